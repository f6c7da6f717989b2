"""The door by which the lab's crashes come in: the kernel's pipe, or its socket, where CORE_LAB_DOOR=socket asks for that.

The rollout installs the pattern of the pipe. The socket takes its place after that, and the pipe comes back before the removal.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from support import lab
from support.hosts import HELPER

DOOR = os.environ.get("CORE_LAB_DOOR", "pipe")
BY_SOCKET = DOOR == "socket"
SOCKET = Path("/run/docker_core_helper/core.sock")
SERVER, IDLE, BUSY = "core_server", "core_idle", "core_delivery"
PIPE = lab.DIRECTORY / "pattern-of-the-pipe"
STARTER = lab.DIRECTORY / "serve"
PATTERN = "kernel/core_pattern"


def start() -> None:
    """Opens the socket in place of the pipe, if the environment asks for that."""
    if BY_SOCKET:
        open_socket()


def open_socket() -> None:
    """Starts the server, and sets the pattern of the socket."""
    PIPE.write_text(lab.setting(PATTERN).read_text())
    start_server()
    lab.setting(PATTERN).write_text(f"@@{SOCKET}")


def reopen() -> None:
    """Sets the pattern of the socket again, if crashes come in there: a run of the role has set that of the pipe."""
    if BY_SOCKET:
        lab.setting(PATTERN).write_text(f"@@{SOCKET}")


def has_sockets() -> bool:
    """Whether this kernel knows the pattern of the socket."""
    modes = Path("/proc/sys/kernel/core_modes")
    return modes.exists() and "socket" in modes.read_text()


def stop() -> None:
    """Opens the pipe again, and ends the server. Does nothing where the pipe is open."""
    if PIPE.exists():
        lab.setting(PATTERN).write_text(PIPE.read_text())
        PIPE.unlink()
    if servers():
        stop_server()
        shutil.rmtree(SOCKET.parent)


def start_server(script: str = f"exec {HELPER} serve </dev/null\n") -> None:
    """Starts the server by a script, and waits until it is ready."""
    by_kernel(script)
    wait_until(lambda: named(IDLE) and SOCKET.exists(), "docker_core_helper serve does not start: see the log")


def by_kernel(script: str) -> None:
    """Has the kernel start a script, with all privileges: a shell of this machine may have fewer than systemd gives.

    It is one for the shell if it names no interpreter.
    """
    before = lab.setting(PATTERN).read_text()
    STARTER.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}")
    STARTER.chmod(0o755)
    lab.setting(PATTERN).write_text(f"|{STARTER}")
    try:
        subprocess.run(["sh", "-c", "kill -SEGV $$"], check=False)
    finally:
        lab.setting(PATTERN).write_text(before)


def wait_until(condition: Callable[[], object], otherwise: str, seconds: float = 20) -> None:
    """Waits for a condition, and raises ``RuntimeError`` with the text ``otherwise`` if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(0.05)


def stop_server() -> None:
    """Ends the server, and waits for its end."""
    end(SERVER)
    wait_until(lambda: not named(IDLE), "the workers of docker_core_helper serve do not end", 60)


def end(name: str) -> None:
    """Ends the processes that are shown under this name, and waits for their end."""
    for pid in named(name):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not named(name), f"{name} does not end", 60)


def servers(name: str = SERVER) -> list[int]:
    """The pid of the server. A worker has the ``name`` of the server, too, before it has one of its own."""
    found = named(name)
    return [pid for pid in found if parent_of(pid) not in found]


def idle_workers() -> list[int]:
    """The pids of the workers that wait for a crash. One that rehearses has a child of the same name for a moment."""
    there = servers()
    return [pid for pid in named(IDLE) if parent_of(pid) in there]


def parent_of(pid: int) -> int:
    """The parent of a process, 0 where the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def named(name: str) -> list[int]:
    """The pids of the helper's processes that are shown under this name."""
    return [int(directory.name) for directory in Path("/proc").glob("[0-9]*") if name_of(directory) == name]


def name_of(directory: Path) -> str:
    """The name under which a process is shown, "" where it has ended."""
    try:
        return (directory / "comm").read_text().rstrip("\n")
    except OSError:
        return ""
