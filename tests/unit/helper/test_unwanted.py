"""unwanted: which cores nobody wants."""

from __future__ import annotations

import time

import pytest
from core_helper import unwanted
from core_helper.configuration import Configuration
from core_helper.crash import Crash
from unit.helper.support import process


def reason(signal: int | None = 11, **wanted: object) -> str:
    """Return why nobody wants a core; ``wanted`` are values of the configuration, and ``limits`` and ``exe`` of the process."""
    crash, configuration = Crash(1, 2, 3), Configuration()
    crash.signal = signal
    facts = {name: wanted.pop(name) for name in ("limits", "exe") if name in wanted}
    for name, value in wanted.items():
        setattr(configuration, name, value)
    return unwanted.reason_of(crash, process(**facts), configuration)


@pytest.mark.parametrize(
    ("soft", "hard", "obey", "dropped"),
    [
        (0, 0, True, True),
        (0, 0, False, False),
        (0, -1, True, False),
        (0, 1, True, False),
        (-1, -1, True, False),
    ],
)
def test_a_hard_limit_of_0_means_no_core_and_a_soft_one_says_nothing(
    soft: int, hard: int, obey: bool, dropped: bool
) -> None:
    told = reason(limits={"Max core file size": (soft, hard)}, obey_core_limit=obey)
    assert told == ("not wanted: its hard limit for core files is 0" if dropped else "")


def test_where_the_limit_is_not_known_the_core_is_wanted() -> None:
    assert reason(limits={}) == ""


@pytest.mark.parametrize(("signal", "dropped"), [(3, True), (24, True), (11, False), (None, False)])
def test_a_signal_that_is_left_out_is_named(signal: int | None, dropped: bool) -> None:
    told = reason(signal, ignore_signals=[3, 24])
    name = {3: "SIGQUIT", 24: "SIGXCPU"}.get(signal or 0, "")
    assert told == (f"not wanted: DOCKERCOREHELPER_IGNORE_SIGNALS names {name}" if dropped else "")


@pytest.mark.parametrize(
    ("exe", "dropped"),
    [(b"/opt/chrome/chrome", True), (b"/opt/chrome/chrome (deleted)", True), (b"/opt/chrome", False)],
)
def test_a_program_that_is_left_out_is_named(exe: bytes, dropped: bool) -> None:
    told = reason(exe=exe, ignore_programs=[b"/usr/bin/x", b"*/chrome/chrome"])
    assert told == ("not wanted: DOCKERCOREHELPER_IGNORE_PROGRAMS names */chrome/chrome" if dropped else "")


@pytest.mark.parametrize(
    ("text", "pattern", "expected"),
    [
        (b"/usr/bin/x", b"/usr/bin/x", True),
        (b"/usr/bin/x", b"/usr/bin/", False),
        (b"/usr/bin", b"/usr/bin/", False),
        (b"/usr/bin/x", b"/usr/*", True),
        (b"/usr/bin/x", b"*", True),
        (b"/usr/bin/x", b"/usr/*/y", False),
        (b"/usr/bin/x", b"*/x", True),
        (b"/usr/bin/x", b"/usr/bin/?", True),
        (b"/usr/bin/", b"/usr/bin/?", False),
        (b"/a/b/a/c", b"/*/a/?", True),
        (b"/a/b/a/c", b"/*a*b*c**", True),
        (b"/aab", b"/*ab", True),
        (b"/[a]", b"/[a]", True),
        (b"/a", b"/[a]", False),
        (b"", b"*", True),
        (b"", b"", True),
        (b"/\xff\n", b"/\xff?", True),
    ],
)
def test_a_pattern_of_programs(text: bytes, pattern: bytes, expected: bool) -> None:
    assert unwanted.matches(text, pattern) is expected


def test_a_path_that_a_container_has_chosen_does_not_take_long() -> None:
    began = time.process_time()
    assert not unwanted.matches(b"/" + b"a" * 4000, b"*a" * 40 + b"b")
    assert time.process_time() - began < 1
