"""quota: the lines that a container may write into the host's log, over all its crashes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from core_helper import quota, table


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(quota, "FILE", str(tmp_path / "lines"))
    return tmp_path / "lines"


def use_up(group: str, now: float) -> None:
    assert all(quota.admit(group, now)[0] for _ in range(int(quota.BURST)))


def test_a_burst_is_written_and_then_nothing_with_one_word_about_it(file: Path) -> None:
    use_up("a", 10.0)
    assert quota.admit("a", 10.0) == (
        False,
        "this container has written 1000 lines: more are left out while it writes over 10 a second",
    )
    assert quota.admit("a", 10.0) == (False, "")
    assert quota.admit("b", 10.0) == (True, "")
    assert os.stat(file).st_mode & 0o777 == 0o600


def test_what_was_left_out_is_counted_when_lines_are_written_again() -> None:
    use_up("a", 10.0)
    for _ in range(7):
        quota.admit("a", 10.0)
    # Not at once: or each line that is written would bring another one.
    assert quota.admit("a", 19.9) == (False, "")
    assert quota.admit("a", 20.0) == (True, "8 lines of this container were left out of the log")
    assert [quota.admit("a", 20.0)[0] for _ in range(100)] == [True] * 99 + [False]


def test_the_whole_burst_comes_back_and_not_more() -> None:
    use_up("a", 10.0)
    use_up("a", 10_000.0)
    assert quota.admit("a", 10_000.0)[0] is False


def test_a_clock_that_goes_back_gives_nothing() -> None:
    use_up("a", 10.0)
    assert quota.admit("a", 0.0)[0] is False


def test_the_one_that_was_silent_for_the_longest_time_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MOST_HOLDERS", 4)
    for number in range(4):
        use_up(str(number), 10.0 + number / 100)
    quota.admit("new", 10.05)
    assert [quota.admit(str(number), 10.05)[0] for number in (1, 2, 3)] == [False] * 3
    assert quota.admit("0", 10.05) == (True, "")


@pytest.mark.parametrize("content", [b"x", bytes(range(256)) * 16])
def test_a_file_that_cannot_be_used_lets_lines_through(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    quota.admit("a", 10.0)
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert quota.admit("a", 10.0) == (True, "")


def test_a_line_that_is_left_out_is_told_and_counted_before_the_log_is_loaded() -> None:
    assert not quota.leaves_out("a", 10.0)
    use_up("a", 10.0)
    # The one that says so is still to be written.
    assert not quota.leaves_out("a", 10.0)
    quota.admit("a", 10.0)
    assert [quota.leaves_out("a", 10.0) for _ in range(3)] == [True] * 3
    assert not quota.leaves_out("a", 20.0)
    assert quota.admit("a", 20.0) == (True, "4 lines of this container were left out of the log")


@contextmanager
def locked_for_reading(path: Path) -> Iterator[None]:
    """Have another process hold the table, as one can that may only read it."""
    held, holding = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            file = os.open(path, os.O_RDONLY)
            fcntl.lockf(file, fcntl.LOCK_SH)
            os.write(holding, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    os.read(held, 1)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(held)
        os.close(holding)


def long_ago(path: Path) -> None:
    then = time.time() - 5
    os.utime(path, (then, then))


def test_while_a_stranger_has_the_table_a_line_that_cannot_wait_is_written_once_a_second(file: Path) -> None:
    quota.admit("a")
    long_ago(file)
    with locked_for_reading(file):
        assert [quota.leaves_out_at_once("a") for _ in range(5)] == [False, True, True, True, True]
        long_ago(file)
        assert [quota.leaves_out_at_once("a") for _ in range(2)] == [False, True]
    assert not quota.leaves_out_at_once("a")


def test_without_room_for_the_table_a_line_that_cannot_wait_is_written_once_a_second(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table, "open_file", full)
    long_ago(file.parent)
    assert [quota.leaves_out_at_once("a") for _ in range(3)] == [False, True, True]
    long_ago(file.parent)
    assert not quota.leaves_out_at_once("a")


def test_where_nobody_can_count_at_all_no_line_is_left_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "FILE", str(file / "none" / "lines"))
    assert [quota.leaves_out_at_once("a") for _ in range(3)] == [False] * 3
