# SPDX-License-Identifier: Apache-2.0
"""A change of the kernel's values and of the files for the next boot: all of it, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ansible.module_utils.basic import AnsibleModule

from . import files, kernel
from .kernel import SettingError
from .places import SOCKET_PATTERN, is_ours
from .record import Record
from .server import Server, not_brought_back
from .takeover import Takeover


class Change:
    """What a run writes, and how the host was before."""

    def __init__(
        self,
        module: AnsibleModule,
        live: dict[str, str],
        record: Record,
        takeover: Takeover,
        server: Server,
        own: tuple[str, str],
    ) -> None:
        """Keep how the host is. ``own`` are the two names that our file for the next boot may have."""
        self.module = module
        self.live = live
        self.record = record
        self.takeover = takeover
        self.server = server
        self.own_files = {path: files.read(path) for path in own}
        # Our files that have another owner or mode than the role gives, even if their content is right.
        self.wrong_access = {path: files.wrong_access(path) for path in (*own, record.path)}
        # The server notes there what it could not bring back itself.
        self.not_undone = server.not_undone

    def refuse_files_of_others(self) -> None:
        """Raise SettingError if somebody else has written a file under a name of ours before the first run."""
        for path, content in self.own_files.items():
            if self.record.text is None and not is_ours(content):
                raise SettingError(
                    f"{path} was written by somebody else, and would be lost: move its lines to a file of another name"
                )

    def write_record(self, text: str) -> None:
        """Write the record, if it has changed."""
        if self.record.text != text or self.wrong_access[self.record.path]:
            files.write_or_remove(self.module, self.record.path, text)

    def edit_files(self, before: dict[str, str], after: dict[str, str]) -> None:
        """Write those files of others whose content changes."""
        for path, content in after.items():
            if content != before[path]:
                files.edit(self.module, path, content)

    def write_own_files(self, contents: dict[str, str | None]) -> None:
        """Write our file for the next boot, and remove the one with the other name."""
        for path, content in sorted(contents.items(), key=lambda item: item[1] is None):
            if self.own_files[path] != content or self.wrong_access[path]:
                files.write_or_remove(self.module, path, content)

    @contextlib.contextmanager
    def all_or_nothing(self, before: dict[str, str], disabled: list[str]) -> Iterator[None]:
        """Undo a change that fails, as far as possible; if one step of that fails, the others are still tried.

        ``before`` are the files of others with their contents, ``disabled`` the services that this change disables.
        """
        try:
            yield
        except (OSError, SettingError):
            with self.undoing(kernel.KERNEL):
                # Nobody may be sent to a socket at which nobody waits: a server has set the pattern when it started.
                gone = self.live["core_pattern"] == SOCKET_PATTERN and not self.server.is_active()
                kernel.set_live(self.live, kernel.NAMES[:1] if gone else tuple(reversed(kernel.NAMES)))
                pattern = kernel.get("core_pattern")
                if gone and pattern != SOCKET_PATTERN:
                    self.not_undone.append(
                        f"kernel.core_pattern: no server waits at {SOCKET_PATTERN!r}, so it is {pattern!r}"
                    )
            for path, content in self.own_files.items():
                with self.undoing(path):
                    if files.read(path) != content:
                        files.write_or_remove(self.module, path, content)
            for path, theirs in before.items():
                with self.undoing(path):
                    if files.read_exactly(path) != theirs:
                        files.edit(self.module, path, theirs)
            for service in disabled:
                with self.undoing(service):
                    self.takeover.enable(service)
            # The record comes last, and stays if it is still needed.
            if not self.not_undone:
                with self.undoing(self.record.path):
                    if files.read(self.record.path) != self.record.text:
                        files.write_or_remove(self.module, self.record.path, self.record.text)
            raise

    @contextlib.contextmanager
    def undoing(self, name: str) -> Iterator[None]:
        """Note in ``not_undone`` that ``name`` could not be brought back, and why."""
        try:
            yield
        except OSError as error:
            self.not_undone.append(f"{name}: {error.strerror}")
        except SettingError as error:
            self.not_undone.append(f"{name}: {error}")

    def outcome(self) -> str:
        """Return how a run that failed has left the host, for its message."""
        return (
            not_brought_back(self.not_undone)
            or "the kernel's values and those of the next boot are as they were before"
        )
