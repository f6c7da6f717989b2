"""Leases on files of /proc: what cannot be read is not taken for gone; F_SETLEASE of fcntl(2)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from core_helper import first_process, holders, kernel_socket, process, procfs, slots, tracing
from core_helper.crash import Crash, Refused
from support.leases import lease_on


@pytest.fixture
def lease() -> Iterator[Callable[[str], None]]:
    """Has a lease on a file until the end of the test."""
    with ExitStack() as leases:

        def take(path: str) -> None:
            try:
                leases.enter_context(lease_on(path))
            except OSError as error:
                pytest.skip(f"the kernel grants no lease on {path}: {error.strerror}")

        yield take


def looks(pid: int) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Whoever reads of another process whether and what it is, and the file that is read."""
    task, crash = f"{pid}/task/{pid}", Crash(pid, os.getuid(), os.getgid())
    return {
        "first process": (f"{task}/status", lambda: first_process.Member(pid)),
        "group of the first process": (f"{task}/cgroup", lambda: first_process.Member(pid)),
        "tracer": (f"{task}/status", lambda: tracing._has_tracer(str(pid), float("inf"))),
        "faulting thread": (f"{task}/stat", lambda: kernel_socket.faulting_thread(pid)),
        "start": (f"{task}/stat", lambda: slots.start_of(f"/proc/{task}")),
        "holder": (f"{task}/cgroup", lambda: holders.holder_of(crash)),
    }


@pytest.mark.parametrize("look", looks(0))
def test_a_process_whose_files_are_under_a_lease_is_not_taken_for_gone(
    lease: Callable[[str], None], innocent: subprocess.Popen[bytes], look: str
) -> None:
    file, act = looks(innocent.pid)[look]
    act()
    lease(f"/proc/{file}")
    with pytest.raises(Refused, match=f"^a process has a lease on '.*{os.path.basename(file)}'"):
        act()


def test_a_slot_counts_as_long_as_nobody_can_read_whether_its_process_is_there(
    lease: Callable[[str], None], innocent: subprocess.Popen[bytes]
) -> None:
    pid, path = innocent.pid, f"/proc/{innocent.pid}/task/{innocent.pid}/stat"
    started = slots.start_of(os.path.dirname(path))
    assert started is not None
    assert (slots.is_there(pid, started), slots.is_dumping(pid, pid, started)) == (True, False)
    assert (slots.is_there(pid, started + 1), slots.is_dumping(pid, pid, started + 1)) == (False, False)
    lease(path)
    assert (slots.is_there(pid, started + 1), slots.is_dumping(pid, pid, started + 1)) == (True, True)


def test_a_label_under_a_lease_is_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, known in ((11, False), (24, False), (13, False), (2, True), (22, True)):

        def read(task: int, name: str, error: int = error) -> bytes:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(procfs, "read", read)
        if known:  # There is no such security module.
            assert process.security_label(7) == ("", b"")
        else:
            with pytest.raises(OSError, match=os.strerror(error)):
                process.security_label(7)
