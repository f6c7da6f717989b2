"""A host that can have a server: a kernel with a core-dump socket, and a systemd that is a script."""

from __future__ import annotations

from typing import Any

import pytest
from support.kernel_values import Kernel
from support.project import shared

SOCKET_PATTERN = "@@/run/docker_core_helper/core.sock"
SERVICE, SOCKET = "docker-core-helper.service", "docker-core-helper.socket"
WRITTEN = "# Written by the Ansible role docker_core_helper\n"
UNITS = {"socket": f"{WRITTEN}[Socket]\n", "service": f"{WRITTEN}[Service]\n"}
HELPER = "/opt/bin/docker_core_helper"
LIBRARY = "/opt/lib/docker_core_helper/2f7c0d1e9a34"
# The service sets the pattern when it starts, as its ExecStartPost does, and that of the next boot when it ends.
SYSTEMCTL = """#!/bin/sh
here=${0%/*} units=$here/../etc/systemd/system kernel=$here/../../kernel
for name; do :; done
case "$1" in
show)
    [ -e "$units/$name" ] && echo LoadState=loaded || echo LoadState=not-found
    [ -e "$here/active-$name" ] && echo ActiveState=active || echo ActiveState=inactive
    [ -e "$here/enabled-$name" ] && echo UnitFileState=enabled || echo UnitFileState=disabled
    echo "StatusText=Waits for crashes, with $(cat "$here/library")"
    exit ;;
esac
echo "$*, $(cat "$kernel/core_pattern")" >>"$here/said"
case "$1" in
enable | disable)
    verb=$1
    shift
    for name; do
        [ "$verb" = enable ] && : >"$here/enabled-$name" || rm -f "$here/enabled-$name"
    done ;;
start | restart)
    if [ -e "$here/fails" ] && [ "$name" = docker-core-helper.service ]; then
        rm -f "$here/active-$name"
        echo "Job for $name failed." >&2
        exit 1
    fi
    : >"$here/active-$name"
    [ "$name" != docker-core-helper.service ] || cat "$here/pattern" >"$kernel/core_pattern" ;;
stop)
    rm -f "$here/active-$name"
    [ "$name" != docker-core-helper.service ] || [ ! -e "$kernel/60-docker-core-helper.conf" ] ||
        sed -n 's/^kernel.core_pattern = //p' "$kernel/60-docker-core-helper.conf" >"$kernel/core_pattern"
    [ ! -e "$here/next" ] || cat "$here/next" >"$kernel/core_pattern" ;;
esac
"""


class HostOfServer:
    """A kernel with a core-dump socket, and a systemd."""

    def __init__(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the host, without units."""
        self.kernel = kernel
        self.bin = kernel.host / "bin"
        self.units = kernel.host / "etc/systemd/system"
        for directory in (self.bin, self.units, kernel.host / "run/systemd/system"):
            directory.mkdir(parents=True)
        (self.bin / "systemctl").write_text(SYSTEMCTL)
        (self.bin / "systemctl").chmod(0o755)
        (self.bin / "pattern").write_text(f"{SOCKET_PATTERN}\n")
        (self.bin / "library").write_text(f"{LIBRARY}\n")
        (kernel.root / "core_modes").write_text("file\npipe\nsocket\n")
        monkeypatch.setattr(shared("places"), "UNITS", str(self.units))
        monkeypatch.setattr(shared("programs"), "PATH", str(self.bin))
        read = shared("files").read

        def read_here(path: str, *words: Any, **options: Any) -> Any:
            return None if path == HELPER else read(path, *words, **options)

        # The helper that this machine may have is none of the host's.
        monkeypatch.setattr(shared("files"), "read", read_here)

    def run(self, mode: str = "socket", state: str = "present", **changed: Any) -> dict[str, Any]:
        """Run the module and return its result."""
        return self.kernel.run(state, **{"mode": mode, **UNITS, **changed})

    def said(self) -> list[str]:
        """Return what was asked of systemd since the last time, each with the pattern of that moment."""
        path = self.bin / "said"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def state(self) -> dict[str, str]:
        """Return all files but those that only the stand-in has."""
        paths = [path for path in self.kernel.root.parent.rglob("*") if path.is_file() and path.name != "said"]
        return {str(path): path.read_text() for path in paths}
