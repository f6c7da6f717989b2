# SPDX-License-Identifier: Apache-2.0
"""What the helper writes about a container into the host's log, from now on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess

from .places import HELPER

JOURNAL = "/run/systemd/journal/socket"
KERNEL_LOG = "/dev/kmsg"
# Where a host without a journal keeps what comes to /dev/log.
FILES = ("/var/log/syslog", "/var/log/messages")
# A crash writes a few lines; a log that others fill meanwhile is read no further.
LIMIT = 16 * 1024 * 1024


class Log:
    """The host's log from the moment on at which this was made."""

    def __init__(self) -> None:
        """Note where each log ends."""
        self.lines: list[str] = []
        self.journal = shutil.which("journalctl") if os.path.exists(JOURNAL) else None
        self.cursor = self._journal_cursor() if self.journal else ""
        self.kernel: int | None = None
        with contextlib.suppress(OSError):
            self.kernel = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self.kernel, 0, os.SEEK_END)
        self.files: dict[str, int] = {}
        for path in FILES:
            with contextlib.suppress(OSError):
                self.files[path] = os.stat(path).st_size

    def close(self) -> None:
        """Close what is open."""
        if self.kernel is not None:
            os.close(self.kernel)

    def read(self, container: str) -> list[str]:
        """Return the helper's lines about a container, named by the first 12 digits of its id, without head and tag."""
        self.lines += self._of_kernel()
        texts = [*self.lines, *self._of_files(), *self._of_journal()]
        own = [match.group(1) for match in (re.search(rf"\b{HELPER}\[\d+\]: (.*)", text) for text in texts) if match]
        # The same line may be in more than one log.
        return list(dict.fromkeys(line for line in own if f" container={container}" in line))

    def _journalctl(self, *words: str) -> str:
        """Return what journalctl says, "" if it fails."""
        # _UID: anybody may write lines under the helper's name.
        command = [str(self.journal), "--no-pager", "--quiet", f"--identifier={HELPER}", *words, "_UID=0"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=30,
                check=True,
            )
            return done.stdout[-LIMIT:].decode("utf-8", "replace")
        return ""

    def _journal_cursor(self) -> str:
        """Return the place of the helper's last line in the journal, "" if there is none."""
        found = re.search(r"^-- cursor: (\S+)$", self._journalctl("--lines=1", "--show-cursor"), re.MULTILINE)
        return found.group(1) if found else ""

    def _of_journal(self) -> list[str]:
        """Return the helper's new lines of the journal."""
        if not self.journal:
            return []
        # Without a cursor there was no line of the helper before.
        since = [f"--after-cursor={self.cursor}"] if self.cursor else []
        return self._journalctl("--output=short", *since).splitlines()

    def _of_kernel(self) -> list[str]:
        """Return the new lines of the kernel's log."""
        lines = []
        while self.kernel is not None:
            try:
                record = os.read(self.kernel, 8192)
            except BrokenPipeError:  # Records that were overwritten before they were read.
                continue
            except OSError:
                break
            lines.append(record.decode("utf-8", "replace").splitlines()[0])
        return lines

    def _of_files(self) -> list[str]:
        """Return the new lines of the files."""
        lines = []
        for path, size in self.files.items():
            with contextlib.suppress(OSError), open(path, "rb") as file:
                # A file that is shorter than before is another one.
                file.seek(size if os.fstat(file.fileno()).st_size >= size else 0)
                lines += file.read(LIMIT).decode("utf-8", "replace").splitlines()
        return lines
