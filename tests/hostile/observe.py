"""What runs in a container and beside it, seen from the host."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hostile.run import TIMEOUT
from support import door, lab
from support.containers import Container, MakeCrash, crash_in, read_log
from support.hosts import HELPER

LIMIT = 64  # Deliveries at a time; the role's default.


def wait_until(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    """Waits for a condition, and fails if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def wait_for_rest(over: Callable[[], object], delegates: Callable[[], int], seconds: float = 60) -> None:
    """Waits until whoever floods gets no more delegates: the other crashes are ``over``, or wait, where the socket is open."""
    seen: list[tuple[int, float]] = [(0, 0.0)]

    def has_all() -> bool:
        now = delegates()
        if now != seen[0][0]:
            seen[0] = (now, time.monotonic())
        return now > 0 and time.monotonic() - seen[0][1] > 2

    wait_until(has_all if door.BY_SOCKET else over, "the flood does not come to rest", seconds)


def pid_of(container: Container) -> int:
    """The first process of a container, as the host sees it."""
    return int(lab.output("docker", "inspect", "--format={{.State.Pid}}", container.name))


def files_of(container: Container, kind: str = "MergedDir") -> str:
    """Where the engine has put the files of a container together, or keeps a part of them."""
    return lab.output("docker", "inspect", f"--format={{{{.GraphDriver.Data.{kind}}}}}", container.name)


def lines_of(container: Container) -> list[str]:
    """The lines of the log about a container, a moment after the first one: there should be no more."""
    container.log("pid=")
    time.sleep(1)
    return container.log("pid=").splitlines()


def mounts_of(pid: int) -> str:
    """The mount namespace of a process."""
    return os.readlink(f"/proc/{pid}/ns/mnt")


def processes_of(container: Container) -> list[tuple[int, str]]:
    """Host pid and command line of each process in a container."""
    lines = lab.output("docker", "top", container.name, "-eo", "pid,args").splitlines()[1:]
    return [(int(pid), words) for pid, words in (line.split(maxsplit=1) for line in lines)]


@contextmanager
def ended(patience: float) -> Iterator[MakeCrash]:
    """Runs the crasher in containers whose processes are ended afterwards: some of these take slots, or hold a helper.

    The helpers may take so many seconds of ``patience`` to end.
    """
    containers: list[Container] = []
    yield crash_in(containers, "hostile", "crasher")
    for container in containers:
        # The engine takes its time for those that stay in the host's pid namespace without their first process.
        with suppress(subprocess.CalledProcessError, ProcessLookupError):
            for pid, _ in processes_of(container):
                os.kill(pid, signal.SIGKILL)
        container.remove()
    wait_until(lambda: helpers() == 0, "a helper is left", patience)


def delegates_of(container: Container) -> list[int]:
    """Host pids of the delegate and its family."""
    return [pid for pid, words in processes_of(container) if words.startswith("/opt/bin/delegate")]


def kill_dumper(container: Container) -> None:
    """Kills the process in a container that came last, which dumps core, and waits until it does so no more."""
    dumper = max(pid for pid, words in processes_of(container) if words.startswith("crasher"))
    os.kill(dumper, signal.SIGKILL)
    wait_until(lambda: not is_dumping(dumper), "the killed process dumps core for ever")


def is_dumping(pid: int) -> bool:
    """Whether a process dumps core."""
    try:
        return "\nCoreDumping:\t1\n" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def running(program: Path = HELPER) -> list[Path]:
    """The directories in /proc of the processes whose command line has this program as one of its words.

    Those at the socket that have no crash do not count.
    """
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"\0%s\0" % os.fsencode(program) in b"\0" + (directory / "cmdline").read_bytes():
                found.append(directory)
    return [directory for directory in found if door.name_of(directory) not in (door.SERVER, door.IDLE)]


def helpers() -> int:
    """How many crashes are in flight."""
    return len(running())


def assert_no_helper_is_left() -> None:
    """All helpers have ended soon after the deadline."""
    wait_until(lambda: helpers() == 0, "the helper has not ended at the deadline", TIMEOUT + 15)


def cpu_of_helpers(program: Path = HELPER) -> float:
    """How many seconds of processor time the helpers in flight have used, with those of their children that have ended."""
    used = 0.0
    for directory in running(program):
        with suppress(OSError):
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            used += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return used


def peak_of_helpers(seconds: float = 30) -> int:
    """The most bytes of memory that one of the helpers has had from now on, until none is left."""
    peaks = [0]
    deadline = time.monotonic() + seconds
    seen = False
    while ((found := running()) or not seen) and time.monotonic() < deadline:
        for directory in found:
            seen = True
            with suppress(OSError):
                peaks += [int(kib) << 10 for kib in re.findall(r"VmHWM:\s*(\d+)", (directory / "status").read_text())]
    return max(peaks)


def count_log_lines() -> Callable[[], int]:
    """Begins to count the lines that the helper writes to the log, and returns what tells their number.

    The kernel's log is a ring: a record that it has overwritten counts as the helper's (Documentation/ABI/testing/dev-kmsg).
    """
    if Path("/dev/log").exists():
        before = len(read_log().splitlines())
        return lambda: len(read_log().splitlines()) - before
    last = max(number for number, _ in records_of_kernel())

    def count() -> int:
        records = [(number, text) for number, text in records_of_kernel() if number > last]
        overwritten = min((number for number, _ in records), default=last + 1) - last - 1
        return overwritten + sum(b";docker_core_helper[" in text for _, text in records)

    return count


def records_of_kernel() -> list[tuple[int, bytes]]:
    """The records of the kernel's log, with the sequence number of each."""
    records = []
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            # EPIPE: the record to be read next was overwritten; the read(2) after that is at the oldest one.
            with suppress(BrokenPipeError):
                text = os.read(log, 8192)
                records.append((int(text.split(b",", 2)[1]), text))
    except BlockingIOError:
        return records
    finally:
        os.close(log)
