# SPDX-License-Identifier: Apache-2.0
"""The sender's parts on a host: its uploader, its credentials, the units of systemd that start it, and its system user."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import re

from ansible.module_utils.basic import AnsibleModule

from . import files, library, next_boot, places
from .programs import last_line, program
from .usable_python import UnusableError

# The helper knows the user by this name; helper/core_helper/sender.py.
USER = "docker-core-helper"
# By this a removal knows the user that the role has made from one that was there before.
COMMENT = "docker_core_helper sender"
SHELLS = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false")
UPLOADER_BEGINS = "#!/bin/sh\n# uploader.sh: "
SENDER = "docker-core-helper-sender"
SERVICE, TIMER = f"{SENDER}.service", f"{SENDER}.timer"
HOME = "/nonexistent"


def user() -> pwd.struct_passwd | None:
    """Return the sender's user, None if there is none."""
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        return None


def group() -> grp.struct_group | None:
    """Return the group of the sender's user, None if there is none."""
    try:
        return grp.getgrnam(USER)
    except KeyError:
        return None


def credentials_shown(content: str | None, other: str | None) -> str:
    """Return the names in a file of credentials, and which of them have another value in the ``other`` one; no value."""
    others = dict(re.findall(r"^(\w+)=(.*)$", other or "", re.MULTILINE))
    found = re.findall(r"^(\w+)=(.*)$", content or "", re.MULTILINE)
    return "".join(
        f"{name}=(not shown{', another value' if others.get(name, value) != value else ''})\n" for name, value in found
    )


def version_shown(content: str | None) -> str | None:
    """Return what --diff shows of an uploader."""
    return content and f"sha256 {hashlib.sha256(content.encode()).hexdigest()[:12]}\n"


class Sender:
    """What of the sender is on the host, and the change to what is wanted."""

    def __init__(self, module: AnsibleModule, lib_dir: str, encoding: str = "utf-8") -> None:
        """Take the directory of the uploader; ``encoding`` is that of the contents. Changes nothing."""
        self.module = module
        self.encoding = encoding
        self.uploader = os.path.join(lib_dir, "uploader.sh")
        self.service = os.path.join(places.UNITS, SERVICE)
        self.timer = os.path.join(places.UNITS, TIMER)
        self.link = os.path.join(places.UNITS, "timers.target.wants", TIMER)
        self.systemctl = program("systemctl")

    def recorded(self) -> list[str]:
        """Return the files that a snapshot of the host holds: no credentials."""
        return [self.uploader, self.service, self.timer]

    def wanted(self, uploader: str | None, service: str | None, timer: str | None) -> dict[str, str | None]:
        """Return the files of a sender with their contents, None for those that shall not be there: all without an uploader.

        A host without systemd has no use for units. The credentials are left as they are, as long as nobody adds them.
        """
        units = (service, timer) if self.systemctl and uploader else (None, None)
        return dict(zip(self.recorded(), (uploader or None, *units)))

    def refuse(self, wanted: dict[str, str | None]) -> None:
        """Raise UnusableError if a sender is wanted that this host cannot have, or if a file would be lost."""
        if wanted[self.uploader] is None:
            return
        for path, content in wanted.items():
            if content is not None and not self._is_ours(path):
                remedy = "move it away"
                if path == places.CREDENTIALS:
                    remedy += ", or leave docker_core_helper_sender_environment empty to go on using it"
                raise UnusableError(f"{path} was written by somebody else, and would be lost: {remedy}")
        found = user()
        if found and found.pw_uid == 0:
            raise UnusableError(f"the user {USER}, as which cores are sent, is root: give it a uid of its own")
        if not found and not program("useradd") and not program("adduser"):
            raise UnusableError(
                f"this host has neither useradd nor adduser: make the system user {USER}, as which cores are sent"
            )

    def change(self, wanted: dict[str, str | None]) -> list[dict[str, str]]:
        """Bring the sender to what is wanted, unless this is check mode; return the steps, as --diff shows them.

        What is right already is left alone, so that the next run completes one that was interrupted.
        """
        is_wanted = wanted[self.uploader] is not None
        if is_wanted and not self.systemctl:
            self.module.warn(
                "this host has no systemd, so nothing sends the kept cores by itself: let cron run docker_core_helper cores"
                " send as root, such as every 5 minutes"
            )
        steps = [self._file_step(path, content) for path, content in wanted.items() if self._differs(path, content)]
        steps += self._timer_step(wanted[self.timer] is not None) + self._user_step(is_wanted)
        if steps and not self.module.check_mode:
            if is_wanted:
                # Of the timer and its units.
                starts = any(SENDER in step["after_header"] for step in steps)
                self._install(wanted, starts)
            else:
                self._remove(wanted)
        return steps

    # -- before a change

    def _is_ours(self, path: str) -> bool:
        content = files.read(path)
        if path == self.uploader:
            return (content or UPLOADER_BEGINS).startswith(UPLOADER_BEGINS)
        return places.is_ours(content)

    def _mode(self, path: str) -> int:
        return {self.uploader: 0o755, places.CREDENTIALS: 0o600}.get(path, 0o644)

    def _differs(self, path: str, content: str | None) -> bool:
        before = files.read(path, self.encoding)
        if content is None:
            return before is not None and self._is_ours(path)
        return before != content or not library.is_owned(path, self._mode(path))

    def _file_step(self, path: str, content: str | None) -> dict[str, str]:
        """Return the change of a file as --diff shows it: of credentials the names, of the uploader its version."""
        before = files.read(path, self.encoding)
        shown, shown_before = content, before
        if path == places.CREDENTIALS:
            shown, shown_before = credentials_shown(content, before), credentials_shown(before, before)
        elif path == self.uploader:
            shown, shown_before = version_shown(content), version_shown(before)
        return files.diff_step(path, files.wrong_access(path, self._mode(path)) + (shown_before or ""), shown)

    def _timer_step(self, is_wanted: bool) -> list[dict[str, str]]:
        """Return what is to change about the timer, beside the contents of its units."""
        is_enabled = os.path.islink(self.link)
        if not is_wanted and not is_enabled and not os.path.exists(self.timer):
            return []
        state, wanted = "enabled" if is_enabled else "disabled", "enabled"
        if self.systemctl and next_boot.systemd_runs():
            wanted = "enabled, active"
            query = ("show", "--property=ActiveState,NeedDaemonReload", TIMER, SERVICE)
            said = self._run("systemctl show", self.systemctl, *query)
            state += f", {(re.findall('^ActiveState=(.*)', said, re.MULTILINE) or ['unknown'])[0]}"
            if "NeedDaemonReload=yes" in said:
                state += ", of an older version"
        if not is_wanted:
            return [files.diff_step(TIMER, f"{state}\n", None)]
        return [files.diff_step(TIMER, f"{state}\n", f"{wanted}\n")] if state != wanted else []

    def _user_step(self, is_wanted: bool) -> list[dict[str, str]]:
        """Return what is to change about the user; one that the role has not made is left as it is."""
        found, shown = user(), "a system user without home and shell\n"
        if is_wanted:
            return [] if found else [files.diff_step(f"user {USER}", None, shown)]
        return [files.diff_step(f"user {USER}", shown, None)] if found and found.pw_gecos == COMMENT else []

    # -- a change

    def _install(self, wanted: dict[str, str | None], starts: bool) -> None:
        if not user():
            self._add_user()
        for path, content in wanted.items():
            if not self._differs(path, content):
                continue
            if content is None:
                os.unlink(path)
            else:
                files.write(self.module, path, content, self._mode(path), library.owner(), self.encoding)
        if self.systemctl and starts:
            if next_boot.systemd_runs():
                self._run("systemctl daemon-reload", self.systemctl, "daemon-reload")
            self._run(f"systemctl enable {TIMER}", self.systemctl, "enable", TIMER)
            if next_boot.systemd_runs():
                # Not start: a timer that is active goes by its new settings only after that.
                self._run(f"systemctl restart {TIMER}", self.systemctl, "restart", TIMER)

    def _remove(self, wanted: dict[str, str | None]) -> None:
        runs = self.systemctl and next_boot.systemd_runs()
        if self.systemctl and os.path.exists(self.timer):
            self._run(f"systemctl disable {TIMER}", self.systemctl, "disable", *(["--now"] if runs else []), TIMER)
            if runs:
                # A process that sends a core just now belongs to the user, which could not be deleted then.
                self._run(f"systemctl stop {SERVICE}", self.systemctl, "stop", SERVICE)
                # A unit that has failed would be listed until the next boot.
                self.module.run_command([self.systemctl, "reset-failed", SERVICE])
        elif runs and os.path.islink(self.link):
            # Somebody has deleted the unit, of which systemd may know still.
            self.module.run_command([str(self.systemctl), "stop", TIMER, SERVICE])
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.link)
        for path, content in wanted.items():
            if self._differs(path, content):
                os.unlink(path)
        if runs:
            self._run("systemctl daemon-reload", self.systemctl, "daemon-reload")
        if self._user_step(False):
            self._delete_user()

    def _add_user(self) -> None:
        what = f"cannot make the user {USER}, as which cores are sent"
        shell = next((path for path in SHELLS if os.path.exists(path)), SHELLS[-1])
        if program("useradd"):
            words = ["--system", "--no-create-home", "--home-dir", HOME, "--shell", shell, "--comment", COMMENT]
            self._run(what, program("useradd"), *words, *(["--gid", USER] if group() else ["--user-group"]), USER)
            return
        # Alpine has the programs of busybox.
        if not group():
            self._run(what, program("addgroup"), "-S", USER)
        self._run(what, program("adduser"), "-S", "-D", "-H", "-h", HOME, "-s", shell, "-g", COMMENT, "-G", USER, USER)

    def _delete_user(self) -> None:
        what = f"cannot delete the user {USER}, as which cores were sent"
        self._run(what, program("userdel") or program("deluser"), USER)
        found = group()
        if found and not found.gr_mem:
            self._run(what, program("groupdel") or program("delgroup"), USER)

    def _run(self, what: str, path: str | None, *words: str) -> str:
        """Run a program of the host and return what it prints. Raises UnusableError, which says what has failed."""
        if not path:
            raise UnusableError(f"{what}: this host lacks the program for that")
        code, output, said = self.module.run_command([path, *words], environ_update={"LC_ALL": "C"})
        if code:
            raise UnusableError(f"{what}: {last_line(said)}")
        return str(output)
