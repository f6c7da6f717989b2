"""A host for the sender, which is a directory: with programs in place of those that would change this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.project import shared

COMMENT = "docker_core_helper sender"
# Each notes its words. What systemctl and the programs of users do is a line in a file, or a link.
PROGRAMS = {
    "systemctl": """
        name=docker-core-helper-sender.timer
        case "$*" in
        show*) echo "ActiveState=$(cat "$here/active" 2>/dev/null || echo inactive)"
            echo NeedDaemonReload=$(cat "$here/old" 2>/dev/null || echo no) ;;
        daemon-reload) rm -f "$here/old" ;;
        enable*) mkdir -p "$units/timers.target.wants" && ln -sf "$units/$name" "$units/timers.target.wants/$name" ;;
        restart*) echo active >"$here/active" ;;
        disable*) rm -f "$units/timers.target.wants/$name" "$here/active" ;;
        esac""",
    "useradd": """
        for name; do :; done
        comment=; while [ $# -gt 0 ]; do [ "$1" != --comment ] || comment=$2; shift; done
        echo "$name:990:$comment" >>"$here/users" && echo "$name" >>"$here/groups" """,
    "userdel": """rm "$here/users" "$here/groups" """,
}


class HostOfSender:
    """Where the parts of the sender go, for the last loaded module of Ansible; systemd runs."""

    def __init__(self, root: Path, lib_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the programs."""
        self.bin = root / "bin"
        self.users = self.bin / "users"
        self.units = root / "etc/systemd/system"
        self.credentials = root / "docker_core_helper.credentials"
        self.service = self.units / "docker-core-helper-sender.service"
        self.timer = self.units / "docker-core-helper-sender.timer"
        self.link = self.units / "timers.target.wants/docker-core-helper-sender.timer"
        self.uploader = lib_dir / "uploader.sh"
        self.booted = root / "run/systemd/system"
        for directory in (self.bin, self.units, self.booted):
            directory.mkdir(parents=True)
        for name, text in PROGRAMS.items():
            self.program(name, text)
        for name in ("rm", "ln", "mkdir", "cat"):
            (self.bin / name).symlink_to(f"/bin/{name}")
        monkeypatch.setattr(shared("places"), "CREDENTIALS", str(self.credentials))
        monkeypatch.setattr(shared("places"), "UNITS", str(self.units))
        monkeypatch.setattr(shared("places"), "CORES", str(root / "cores"))
        monkeypatch.setattr(shared("next_boot"), "ROOT", str(root))
        monkeypatch.setattr(shared("programs"), "PATH", str(self.bin))
        monkeypatch.setattr(shared("sender"), "pwd", self)
        monkeypatch.setattr(shared("sender"), "grp", self)

    def program(self, name: str, text: str) -> None:
        """Put a program on the host, or another one into its place."""
        head = f'#!/bin/sh\nhere={self.bin} units={self.units} PATH={self.bin}\necho "{name} $*" >>"$here/said"\n'
        (self.bin / name).write_text(head + text)
        (self.bin / name).chmod(0o755)

    def getpwnam(self, name: str) -> Any:
        """Return the user of this host."""
        for line in self.users.read_text().splitlines() if self.users.exists() else []:
            found, uid, comment = line.split(":")
            if found == name:
                return type("User", (), {"pw_uid": int(uid), "pw_gecos": comment})
        raise KeyError(name)

    def getgrnam(self, name: str) -> Any:
        """Return the group of this host."""
        path = self.bin / "groups"
        if name in (path.read_text().split() if path.exists() else []):
            return type("Group", (), {"gr_mem": []})
        raise KeyError(name)

    def said(self) -> list[str]:
        """Return what was asked of the programs since the last time, without what changes nothing."""
        path = self.bin / "said"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line for line in lines if not line.startswith("systemctl show")]
