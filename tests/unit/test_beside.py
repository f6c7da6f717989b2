"""tests/beside.py: what two commands that run at once say, and how they end."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.project import PROJECT

BESIDE: list[str | Path] = [sys.executable, PROJECT / "tests/beside.py"]


def beside(first: str, second: str) -> list[str | Path]:
    """Return the command for two scripts of the shell."""
    return [*BESIDE, "sh", "-c", first, "--", "sh", "-c", second]


def test_what_the_first_says_comes_in_one_piece_after_what_the_second_says(tmp_path: Path) -> None:
    # The second ends only when the first has said its half, and the first only after the second.
    first = (
        f"echo first half; touch {tmp_path}/half; until [ -e {tmp_path}/end ]; do sleep 0.05; done; echo other half >&2"
    )
    second = f"until [ -e {tmp_path}/half ]; do sleep 0.05; done; echo second; touch {tmp_path}/end"
    done = subprocess.run(beside(first, second), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "second" in lines and lines[-2:] == ["first half", "other half"]


@pytest.mark.parametrize(("first", "second"), [("exit 3", "true"), ("true", "exit 3"), ("exit 3", "exit 3")])
def test_it_fails_where_one_of_them_fails_and_names_it(tmp_path: Path, first: str, second: str) -> None:
    end = f"touch {tmp_path}/"
    done = subprocess.run(
        beside(f"{end}first; {first}", f"{end}second; {second}"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.count("failed: ") == (first, second).count("exit 3")
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGHUP, True), (signal.SIGTERM, False)])
def test_a_signal_ends_both_and_their_clean_up_is_waited_for(tmp_path: Path, number: int, to_all: bool) -> None:
    clean = f"sleep 0.3; touch {tmp_path}/"
    scripts = [
        f"trap '{clean}{name}.clean; exit 1' HUP INT TERM; touch {tmp_path}/{name}; while :; do sleep 0.05; done"
        for name in ("first", "second")
    ]
    # Where these tests run in the background, the signal is ignored, and a shell cannot change that.
    heeds = functools.partial(signal.signal, number, signal.SIG_DFL)
    process = subprocess.Popen(
        beside(*scripts), start_new_session=True, preexec_fn=heeds, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not ((tmp_path / "first").exists() and (tmp_path / "second").exists()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        (os.killpg if to_all else os.kill)(process.pid, number)
        assert process.wait(timeout=60) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert (tmp_path / "first.clean").exists() and (tmp_path / "second.clean").exists()
