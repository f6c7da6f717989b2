"""deadline: who goes on reading has more time, and whatever would end the helper waits as long."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from core_helper import deadline, linux
from core_helper.deadline import AHEAD, RATE, STEP, Deadline


class Clock:
    """A clock that a test sets, and what it does to the helper itself."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.armed: list[int] = []
        self.short = False

    def deadline(self, timeout: float = 100.0, longest: float = 1000.0) -> Deadline:
        return Deadline(1000.0, timeout, longest, lambda: self.short)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(deadline, "arm", clock.armed.append)
    return clock


def end_of(clock: Clock, until: Deadline, rate: float, stops: float = 1e9) -> float:
    """Return how many seconds a child has that reads ``rate`` bytes a second until the second ``stops``."""
    while True:
        passed = min(clock.now - 1000.0, stops)
        wait = until.wait(int(passed * rate), 1000.0 + passed)
        if not wait:
            return clock.now - 1000.0
        clock.now += min(wait, 0.3)


@pytest.mark.parametrize(
    ("rate", "stops", "end"),
    [
        (0, 1e9, 100),  # It never reads.
        (1, 1e9, 100),  # It drips.
        (RATE / 2, 1e9, 200),  # Each second of reading gives half a second more.
        (RATE, 1e9, 1000),
        (100 * RATE, 1e9, 1000),
        (100 * RATE, 10, 110),  # Whoever stops has the timeout from there on.
        (100 * RATE, 250, 350),
        (RATE / 2, 40, 120),
    ],
)
def test_a_child_has_a_second_more_for_so_many_bytes(clock: Clock, rate: float, stops: float, end: float) -> None:
    assert end_of(clock, clock.deadline(), rate, stops) == pytest.approx(end, abs=1)


@pytest.mark.parametrize("longest", [0, 50, 100])
def test_a_longest_time_below_the_timeout_does_not_count(clock: Clock, longest: float) -> None:
    assert end_of(clock, clock.deadline(longest=longest), RATE) == pytest.approx(100, abs=0.1)
    assert clock.armed == []


def test_nobody_has_more_time_while_slots_are_short(clock: Clock) -> None:
    clock.short = True
    assert end_of(clock, clock.deadline(), RATE) == pytest.approx(100, abs=0.1)


def test_whoever_has_more_time_loses_it_soon_after_slots_have_become_short(clock: Clock) -> None:
    until = clock.deadline()
    while clock.now < 1200.0:
        assert until.wait(1 << 40, clock.now) > 0
        clock.now += 0.1
    clock.short = True
    assert end_of(clock, until, RATE) <= 200 + STEP + 1


def test_a_deadline_that_has_passed_unseen_moves_no_more(clock: Clock) -> None:
    until = clock.deadline()
    clock.now = 1101.0
    assert not until.close(2.0) and until.wait(1 << 40, clock.now) > 0
    clock.now = until.at + 2.0
    assert until.close(2.0) and until.wait(1 << 40, clock.now) == 0


def test_slots_are_not_asked_for_at_every_byte(clock: Clock) -> None:
    asked = []

    def ask() -> bool:
        asked.append(clock.now)
        return True

    until = Deadline(1000.0, 100.0, 1000.0, ask)
    clock.now = 1000.0 + 100.0 - AHEAD
    while until.wait(1 << 40, clock.now):
        clock.now += 0.001
    assert 1 < len(asked) <= 5


def test_what_ends_the_helper_itself_waits_as_long(clock: Clock) -> None:
    until = clock.deadline()
    while clock.now < 1300.0:
        clock.now += until.wait(1 << 40, clock.now)
        assert not clock.armed or clock.now + clock.armed[-1] >= until.at
    assert len(clock.armed) > 30


def test_where_the_kernel_has_no_such_timer_the_other_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seconds: int) -> None:
        set_.append(seconds)
        raise OSError

    set_: list[int] = []
    monkeypatch.setattr(linux, "kill_after", refuse)
    monkeypatch.setattr(deadline, "_signal", SimpleNamespace(alarm=set_.append))
    deadline.arm(300)
    assert set_ == [360, 390]
