"""Cores that nobody wants: too large, of a signal or of a program that the configuration names, or too many."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import lab
from support.containers import MakeCrash


def test_a_core_that_is_too_large_is_refused_before_anything_is_started(
    attack: MakeCrash, configured: Callable[[str], None], tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    configured("DOCKERCOREHELPER_SIZE_MAX=32M\n")
    told = attack("memory=64", options=fallback).log("not wanted")
    length = int(
        re.findall(r"core dropped: not wanted: it has (\d+) bytes, and .*SIZE_MAX is 33554432$", told, re.M)[0]
    )
    assert 64 << 20 < length < 80 << 20
    assert "delegate" not in told and list(tmp_path.iterdir()) == []
    assert ": delivered " in attack("memory=4", options=fallback).log("delivered")


@pytest.mark.parametrize(
    ("setting", "other"),
    [
        ('IGNORE_SIGNALS="SIGQUIT SIGSEGV"', "IGNORE_SIGNALS=SIGQUIT"),
        ("IGNORE_PROGRAMS=*/crash?r", "IGNORE_PROGRAMS=/crasher"),
    ],
    ids=["signals", "programs"],
)
def test_cores_that_nobody_wants_go_nowhere(
    attack: MakeCrash,
    configured: Callable[[str], None],
    tmp_path: Path,
    fallback: tuple[str, ...],
    setting: str,
    other: str,
) -> None:
    configured(f"DOCKERCOREHELPER_{setting}\n")
    container = attack("tiny", options=fallback)
    assert f"core dropped: not wanted: DOCKERCOREHELPER_{setting.partition('=')[0]} names" in container.log("dropped")
    assert not container.of("delegate") and list(tmp_path.iterdir()) == []
    configured(f"DOCKERCOREHELPER_{other}\n")
    assert ": delivered " in attack("tiny").log("delivered")


def test_a_program_that_crashes_too_often_leaves_a_line_and_a_number(
    attack: MakeCrash, configured: Callable[[str], None]
) -> None:
    configured("DOCKERCOREHELPER_BURST=2/15s\n")
    began = time.monotonic()
    # This delegate leaves no record, in whose way a process of the same pid would be later.
    container = attack("fork=6", "tiny", options=("--env=ATTACK=reads-on",))
    assert time.monotonic() - began < 10, "this machine is too slow for this test"
    assert container.log("not wanted").count(": delivered ") == 2
    assert container.log("not wanted").count("DOCKERCOREHELPER_BURST allows 2 cores of this program in 15 s") == 1
    time.sleep(max(0.0, began + 16 - time.monotonic()))
    lab.output("docker", "start", "--attach", container.name)
    # Of the next six, again two.
    told = container.log(" left_out=4: delivered ")
    assert told.count(" left_out=4: delivered ") == 1 and told.count(": delivered ") == 4
    # Another container has a bound of its own.
    assert ": delivered " in attack("tiny").log("delivered")
