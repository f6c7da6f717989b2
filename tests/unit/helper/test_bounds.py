"""bounds: how many cores a program may leave over all helpers, and how large a core is before anybody reads it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest
from core_helper import bounds, corefile, linux, runtime
from unit.helper.support import elf, in_child, process

A, B = process(cgroups=[(b"", b"/docker/a")]), process(cgroups=[(b"", b"/docker/b")])


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bounds, "FILE", str(tmp_path / "bursts"))
    monkeypatch.setattr(runtime, "group_of", lambda cgroups: repr(cgroups))
    return tmp_path / "bursts"


def test_beyond_the_bound_cores_are_counted_and_the_next_one_tells_how_many(file: Path) -> None:
    # Each in a process of its own, as each helper is.
    def at(now: float) -> object:
        return tuple(in_child(lambda: bounds.left_out(A, 2, 100, now)))

    assert [at(now) for now in (5000.0, 5010.0, 5020.0, 5030.0, 5099.0)] == [(0, 0), (0, 0), (0, 1), (0, 2), (0, 3)]
    assert [at(now) for now in (5100.0, 5101.0, 5102.0)] == [(3, 0), (0, 0), (0, 1)]
    assert at(6000.0) == (1, 0)
    assert file.stat().st_mode & 0o777 == 0o600


def test_each_program_of_each_container_has_a_bound_of_its_own() -> None:
    other = process(cgroups=A.cgroups, exe=b"/usr/bin/other")
    for found in (A, B, other):
        assert bounds.left_out(found, 1, 100, 5000.0) == (0, 0)
    for found in (A, B, other):
        assert bounds.left_out(found, 1, 100, 5000.0) == (0, 1)


def test_the_file_does_not_grow_and_forgets_the_program_that_crashed_longest_ago(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MOST_PROGRAMS", 3)
    programs = [process(exe=b"/bin/%d" % number) for number in range(4)]
    for number, found in enumerate(programs):
        assert bounds.left_out(found, 1, 1000, 5000.0 + number) == (0, 0)
    assert file.stat().st_size == 3 * bounds.RECORD.size
    assert [bounds.left_out(found, 1, 1000, 5010.0)[1] for found in programs[1:]] == [1, 1, 1]
    assert bounds.left_out(programs[1], 1, 1000, 5020.0) == (0, 2)
    assert bounds.left_out(programs[0], 1, 1000, 5030.0) == (0, 0)
    assert bounds.left_out(programs[1], 1, 1000, 5040.0) == (0, 3)
    assert bounds.left_out(programs[3], 1, 1000, 5050.0) == (0, 0)


def test_a_container_of_many_programs_has_only_its_own_ones_forgotten(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MOST_PROGRAMS", 8)
    assert bounds.left_out(A, 1, 1000, 5000.0) == (0, 0)
    for number in range(50):
        found = process(exe=b"/bin/%d" % number, cgroups=B.cgroups)
        assert bounds.left_out(found, 1, 1000, 5001.0 + number) == (0, 0)
    assert bounds.left_out(A, 1, 1000, 5100.0) == (0, 1)


def test_a_clock_that_began_anew_bounds_nobody_for_ever() -> None:
    assert bounds.left_out(A, 1, 100, 5000.0) == (0, 0)
    assert bounds.left_out(A, 1, 100, 10.0) == (0, 0)


def test_a_file_that_cannot_be_used_bounds_nobody(file: Path) -> None:
    file.symlink_to("/etc/passwd")
    assert [bounds.left_out(A, 1, 100) for _ in range(3)] == [(0, 0)] * 3


# How large a core is.

SEGMENTS = [(1 << 20, 5 << 30)]


def fed(*parts: bytes, ends: bool = False) -> tuple[int, int]:
    """Return both ends of a pipe into which a thread writes the parts, a moment after each other."""
    reading, writing = os.pipe()

    def feed() -> None:
        for part in parts:
            time.sleep(0.05)
            with contextlib.suppress(BrokenPipeError):
                os.write(writing, part)
        if ends:
            os.close(writing)

    threading.Thread(target=feed, daemon=True).start()
    return reading, writing


@pytest.mark.parametrize("count", [1, 100, 9_000])
def test_the_length_is_known_before_anybody_has_read_the_core(count: int) -> None:
    header = elf(64, "<", [*SEGMENTS, *[(4096, 4096)] * (count - 1)])
    reading, writing = fed(header[:10], header[10:70], header[70:], b"memory")
    assert bounds.length_in_pipe(reading) == (1 << 20) + (5 << 30)
    limit = time.monotonic() + 20
    while linux.bytes_in_pipe(reading) < len(header) + 6 and time.monotonic() < limit:
        time.sleep(0.05)
    assert linux.bytes_in_pipe(reading) == len(header) + 6
    assert os.read(reading, 64) == header[:64]
    os.close(reading)
    os.close(writing)


def test_the_length_of_a_core_whose_header_no_pipe_holds_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corefile, "HEADER_PATIENCE", 60.0)
    # Nearly the most segments that a header can count. Root, as the kernel starts the helper, may have a larger pipe.
    another = elf(64, "<", [(4096, 4096)])[64:]
    reading, writing = fed(elf(64, "<", SEGMENTS, count=65_001) + another * 65_000)
    began = time.monotonic()
    may = fcntl.fcntl(reading, linux.F_SETPIPE_SZ, 1 << 20) == 1 << 20
    try:
        may = may and fcntl.fcntl(writing, linux.F_SETPIPE_SZ, 1 << 23) > 1 << 20
    except PermissionError:
        may = False
    assert bounds.length_in_pipe(reading) == ((1 << 20) + (5 << 30) if may else None)
    assert time.monotonic() - began < 40
    os.close(reading)


@pytest.mark.parametrize("text", [b"", b"\x7fELF", elf(64, "<", SEGMENTS)[:100], b"core"])
def test_a_core_that_is_no_core_or_was_cut_off_has_no_length(text: bytes) -> None:
    reading, _ = fed(text, ends=True)
    assert bounds.length_in_pipe(reading) is None
    os.close(reading)


def test_a_kernel_that_writes_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corefile, "HEADER_PATIENCE", 0.2)
    reading, writing = os.pipe()
    assert bounds.length_in_pipe(reading) is None
    os.close(reading)
    os.close(writing)


def test_a_file_as_the_core_has_no_length(tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(elf(64, "<", SEGMENTS) + bytes(5000))
    with (tmp_path / "core").open("rb", 0) as core:
        assert bounds.length_in_pipe(core.fileno()) is None
        assert core.tell() == 0
