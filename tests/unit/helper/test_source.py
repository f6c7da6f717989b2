"""source: how the faulting process is released."""

from __future__ import annotations

import os
import posix
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from core_helper import linux, procfs, source
from core_helper.crash import Crash


def crash_of(pid: int, tid: int | None = None) -> Crash:
    crash = Crash(pid, 1000, 100)
    crash.tid = tid
    return crash


class Crashed:
    """A crashed process, and what became of it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.task = directory / "4711" / "task" / "4711"
        self.task.mkdir(parents=True)
        (directory / "self").mkdir()
        self.tell(True, 100)
        self.signals: list[tuple[int, int]] = []
        monkeypatch.setattr(procfs, "task_of", lambda pid, tid: str(self.task))
        monkeypatch.setattr(linux, "pidfd_send_signal", lambda *words: self.signals.append(words))
        monkeypatch.setattr(source, "PATIENCE", 0.01)
        real: Any = posix.open
        moved = {"/proc": str(directory)}
        monkeypatch.setattr(
            posix, "open", lambda path, *words, **named: real(moved.get(str(path), path), *words, **named)
        )

    def tell(self, dumping: bool, started: int) -> None:
        stat = "1 (a) D " + "0 " * 18 + "%d 0\n"
        (self.directory / "4711" / "stat").write_text(stat % started)
        (self.directory / "self" / "stat").write_text(stat % 200)
        (self.task / "status").write_text(f"Name:\ta\nCoreDumping:\t{dumping:d}\nx\n")

    def release(self, handle: int | None, pidfd: int | None = None) -> tuple[bool, list[tuple[int, int]]]:
        crash = crash_of(4711, 4711)
        crash.handle, crash.pidfd = handle, pidfd
        core, writing = os.pipe()
        try:
            ended = source.KernelPipe(core).release(crash)
            # Nobody reads it any more.
            with pytest.raises(BrokenPipeError):
                os.write(writing, b"x")
        finally:
            os.close(writing)
        return ended, self.signals


@pytest.fixture
def crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crashed:
    return Crashed(tmp_path, monkeypatch)


@pytest.fixture
def handle() -> Iterator[int]:
    """A pidfd of a process that has not ended: a pipe that is not readable."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def test_a_process_that_still_dumps_though_nobody_reads_is_ended(crashed: Crashed, handle: int) -> None:
    assert crashed.release(handle) == (True, [(handle, 9)])


def test_a_process_that_cannot_be_named_is_only_let_go(crashed: Crashed) -> None:
    assert crashed.release(None) == (False, [])


def test_a_process_that_has_ended_is_not_ended(crashed: Crashed) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    assert crashed.release(reading) == (False, [])
    os.close(reading)


@pytest.mark.parametrize(("dumping", "started", "ended"), [(False, 100, False), (True, 201, False), (True, 200, True)])
def test_only_the_process_that_has_crashed_is_ended(
    crashed: Crashed, handle: int, dumping: bool, started: int, ended: bool
) -> None:
    crashed.tell(dumping, started)
    assert crashed.release(handle) == (ended, [(handle, 9)] if ended else [])


def test_a_process_of_the_kernels_own_pidfd_may_be_younger(crashed: Crashed, handle: int) -> None:
    crashed.tell(True, 201)
    assert crashed.release(handle, pidfd=handle) == (True, [(handle, 9)])


def test_a_process_that_is_gone_is_not_ended(crashed: Crashed, handle: int) -> None:
    (crashed.task / "status").unlink()
    assert crashed.release(handle) == (False, [])


def test_a_core_that_was_not_read_yet_is_not_drained() -> None:
    assert source.KernelPipe(5).drained is False


@pytest.mark.parametrize("reads", [False, True])
def test_what_nobody_has_read_from_the_pipe_is_not_taken(tmp_path: Path, reads: bool) -> None:
    (tmp_path / "core").write_bytes(b"x" * 5000)
    kernel, writing = os.pipe()
    os.close(writing)
    kept = source.KeptFile(source.KernelPipe(kernel), os.open(tmp_path / "core", os.O_RDONLY), [kernel])
    # As where the program that was to read it cannot be executed.
    core = kept.stream((tmp_path / "taken").touch)
    time.sleep(0.3)
    assert not (tmp_path / "taken").exists()
    if reads:
        assert len(os.read(core, 1 << 16)) == 5000 and os.read(core, 1) == b""
    kept.kernel.end_stream()
    os.wait()
    assert (tmp_path / "taken").exists() is reads
    kept.close()
