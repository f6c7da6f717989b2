"""What runs in a container and beside it, seen from the host."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from support import lab
from support.containers import Container
from support.hosts import HELPER


def wait_until(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    """Waits for a condition, and fails if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def pid_of(container: Container) -> int:
    """The first process of a container, as the host sees it."""
    return int(lab.output("docker", "inspect", "--format={{.State.Pid}}", container.name))


def files_of(container: Container, kind: str = "MergedDir") -> str:
    """Where the engine has put the files of a container together, or keeps a part of them."""
    return lab.output("docker", "inspect", f"--format={{{{.GraphDriver.Data.{kind}}}}}", container.name)


def processes_of(container: Container) -> list[tuple[int, str]]:
    """Host pid and command line of each process in a container."""
    lines = lab.output("docker", "top", container.name, "-eo", "pid,args").splitlines()[1:]
    return [(int(pid), words) for pid, words in (line.split(maxsplit=1) for line in lines)]


def delegates_of(container: Container) -> list[int]:
    """Host pids of the delegate and its family."""
    return [pid for pid, words in processes_of(container) if words.startswith("/opt/bin/delegate")]


def kill_dumper(container: Container) -> None:
    """Kills the process in a container that came last, which dumps core, and waits until it does so no more."""
    dumper = max(pid for pid, words in processes_of(container) if words.startswith("victim"))
    os.kill(dumper, signal.SIGKILL)
    wait_until(lambda: not is_dumping(dumper), "the killed process dumps core for ever")


def is_dumping(pid: int) -> bool:
    """Whether a process dumps core."""
    try:
        return "\nCoreDumping:\t1\n" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def helpers() -> int:
    """How many crashes are in flight."""
    count = 0
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            count += b"\0/opt/bin/docker_core_helper\0" in (directory / "cmdline").read_bytes()
        except OSError:
            continue
    return count


def cpu_of_helpers(program: Path = HELPER) -> float:
    """How many seconds of processor time the helpers in flight have used, with those of their children that have ended."""
    word = b"\0%s\0" % os.fsencode(program)
    used = 0.0
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if word in (directory / "cmdline").read_bytes():
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
                used += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue
    return used


def peak_of_helpers(seconds: float = 30) -> int:
    """The most bytes of memory that one of the helpers has had from now on, until none is left."""
    peaks = [0]
    deadline = time.monotonic() + seconds
    seen = False
    while (helpers() or not seen) and time.monotonic() < deadline:
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if b"\0/opt/bin/docker_core_helper\0" in (status.parent / "cmdline").read_bytes():
                    seen = True
                    peaks += [int(kib) << 10 for kib in re.findall(r"VmHWM:\s*(\d+)", status.read_text())]
            except OSError:
                continue
    return max(peaks)
