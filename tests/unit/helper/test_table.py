"""table: a file of records by which helpers that run at the same time count together."""

from __future__ import annotations

import _struct
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import bounds, quota, runtime, table

RECORD = _struct.Struct("=dI4s")


def add(path: Path, key: bytes, time: float = 1.0, rows: int = 4) -> bool:
    """Count one more for ``key``."""
    return table.change(str(path), RECORD, rows, (key,), (time, 0), lambda row: (time, int(row[1]) + 1))


def rows_of(path: Path) -> list[tuple[object, ...]]:
    return list(RECORD.iter_unpack(path.read_bytes()))


def test_each_key_has_a_row_and_the_oldest_goes(tmp_path: Path) -> None:
    for moment, key in enumerate([b"aaaa", b"bbbb", b"aaaa", b"cccc", b"dddd"], 1):
        assert add(tmp_path / "t", key, moment)
    assert rows_of(tmp_path / "t") == [(3, 2, b"aaaa"), (2, 1, b"bbbb"), (4, 1, b"cccc"), (5, 1, b"dddd")]
    add(tmp_path / "t", b"eeee", 6)
    assert rows_of(tmp_path / "t")[1] == (6, 1, b"eeee")
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o600


def test_a_row_that_stays_is_not_written(tmp_path: Path) -> None:
    add(tmp_path / "t", b"aaaa")
    before = (tmp_path / "t").read_bytes()
    assert table.change(str(tmp_path / "t"), RECORD, 4, (b"bbbb",), (9, 9), lambda row: None)
    assert (tmp_path / "t").read_bytes() == before


@pytest.mark.parametrize("what", ["link", "directory"])
def test_what_is_no_file_of_ours_is_not_used(tmp_path: Path, what: str) -> None:
    (tmp_path / "other").write_bytes(b"")
    (tmp_path / "t").symlink_to("other") if what == "link" else (tmp_path / "t").mkdir()
    assert not add(tmp_path / "t", b"aaaa")
    assert (tmp_path / "other").read_bytes() == b""


@contextmanager
def held(path: Path, mode: str, words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have another process hold a lock of a file, which it has opened in that mode."""
    program = f"import fcntl, os, sys; file = open(sys.argv[1], {mode!r}); {words}; os.write(1, b'x'); os.read(0, 1)"
    process = subprocess.Popen(
        [sys.executable, "-ISc", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None and process.stdout.read(1) == b"x"
        yield process


def test_nobody_waits_for_a_lock_that_whoever_can_read_the_table_has(tmp_path: Path) -> None:
    add(tmp_path / "t", b"aaaa")
    began = time.monotonic()
    with held(tmp_path / "t", "rb", "fcntl.lockf(file, fcntl.LOCK_SH)") as process:
        assert not add(tmp_path / "t", b"aaaa")
        file = table.open_file(str(tmp_path / "t"))
        with pytest.raises(OSError, match=f"process {process.pid} has it locked, and is no helper"):
            table.lock(file, 5, 1)
        os.close(file)
    assert time.monotonic() - began < table.PATIENCE
    assert add(tmp_path / "t", b"aaaa")


def test_nobody_waits_for_a_lease(tmp_path: Path) -> None:
    add(tmp_path / "t", b"aaaa")
    words = (
        "import signal; signal.signal(signal.SIGIO, signal.SIG_IGN); fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)"
    )
    with held(tmp_path / "t", "rb", words), pytest.raises(BlockingIOError):
        table.open_file(str(tmp_path / "t"))


def test_a_helper_waits_for_another_one_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path / "t", b"aaaa")
    file = table.open_file(str(tmp_path / "t"))
    with held(tmp_path / "t", "r+b", "fcntl.lockf(file, fcntl.LOCK_EX)") as process:
        assert process.stdin is not None
        threading.Timer(0.2, process.stdin.close).start()
        began = time.monotonic()
        table.lock(file)
        assert time.monotonic() - began > 0.1
    os.close(file)
    file = table.open_file(str(tmp_path / "t"))
    monkeypatch.setattr(table, "PATIENCE", 0.05)
    other = held(tmp_path / "t", "r+b", "fcntl.lockf(file, fcntl.LOCK_EX)")
    with other, pytest.raises(OSError, match="another helper has had it locked"):
        table.lock(file)
    os.close(file)


def test_helpers_count_together(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path[:0] = {[str(Path(table.__file__).parents[1])]!r}
import _struct
from core_helper import bounds, quota, runtime, table
record = _struct.Struct("=dI4s")
for _ in range(200):
    table.change({str(tmp_path / "t")!r}, record, 4, (b"aaaa",), (1.0, 0), lambda row: (1.0, row[1] + 1))
"""
    helpers = [subprocess.Popen([sys.executable, "-c", program], env=os.environ) for _ in range(3)]
    assert [helper.wait() for helper in helpers] == [0, 0, 0]
    assert rows_of(tmp_path / "t")[0] == (1, 600, b"aaaa")


HOLDS = """
import fcntl, sys, time
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
time.sleep(0.3)
"""


@pytest.mark.parametrize("module", [quota, bounds])
def test_the_time_is_that_at_which_the_lock_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    # With the time at which one began to wait, the clock of the table would go back and forth.
    file = tmp_path / "t"
    file.touch()
    monkeypatch.setattr(module, "FILE", str(file))
    monkeypatch.setattr(runtime, "group_of", lambda cgroups: "a")
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(file)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline()
    began = time.monotonic()
    if module is quota:
        assert quota.admit("a") == (True, "")
    else:
        process: Any = SimpleNamespace(cgroups=[], exe=b"/a")
        assert bounds.left_out(process, 1, 60) == (0, 0)
    assert time.monotonic() > began + 0.2
    (written,) = _struct.unpack_from("=d", file.read_bytes())
    assert written > began + 0.2
    other.communicate()
