"""handling: who has its core delegated, who is handed on, and how often a delivery is tried."""

from __future__ import annotations

import _signal
from typing import Any

import pytest
from core_helper import (
    container,
    deliver,
    diagnosis,
    joining,
    membership,
    previous_handler,
    runtime,
    supervisor,
    verification,
)
from core_helper.child import Result
from core_helper.configuration import Configuration
from core_helper.crash import Crash, Refused
from core_helper.process import Withheld
from unit.helper.support import process


class Stage:
    """What surrounds deliver.py, which only notes that it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[Any] = []
        self.process = process(close_task=lambda: self.note("close_task"), traceable=True, signal=6, namespaces=[])
        self.configuration = Configuration()
        self.crash = Crash(4711, 1000, 100)
        self.error: Exception | None = None
        monkeypatch.setattr(verification, "examine", self.examine)
        monkeypatch.setattr(membership, "check", lambda process: self.note("check"))
        monkeypatch.setattr(diagnosis, "of_missing", lambda crash: "the diagnosis")
        monkeypatch.setattr(container, "hostname_of", lambda process: b"visited")
        monkeypatch.setattr(_signal, "alarm", lambda seconds: self.note("alarm", seconds))
        monkeypatch.setattr(previous_handler, "hand_on", lambda *words: self.note("hand_on", *words[2:]))

    def note(self, *words: Any) -> None:
        self.done.append(words[0] if len(words) == 1 else words)

    def examine(self, crash: Crash) -> Any:
        if self.error is not None:
            raise self.error
        return self.process

    def leave(self) -> None:
        self.note("leave")

    def warning(self, text: str) -> None:
        self.note("warning", text)

    def run(self) -> Any:
        slot: Any = self
        log: Any = lambda: self  # noqa: E731
        return deliver.examine(self.crash, self.configuration, slot, log)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_a_process_is_checked_and_its_directory_closed_before_anything_is_entered(stage: Stage) -> None:
    assert stage.run() is stage.process
    assert stage.done == ["check", "close_task"]
    assert stage.crash.signal == 6


def test_the_signal_that_the_kernel_told_counts(stage: Stage) -> None:
    stage.crash.signal = 11
    stage.run()
    assert stage.crash.signal == 11


@pytest.mark.parametrize(
    ("exposed", "traceable", "refused"),
    [("why", True, True), ("why", False, False), ("", True, False), ("", False, False)],
)
def test_where_the_interpreter_could_be_overwritten_nothing_is_delegated(
    stage: Stage, exposed: str, traceable: bool, refused: bool
) -> None:
    stage.crash.exposed, stage.process.traceable = exposed, traceable
    if refused:
        with pytest.raises(Withheld, match="could overwrite the helper's interpreter: why") as caught:
            stage.run()
        assert caught.value.process is stage.process
    else:
        assert stage.run() is stage.process
    assert stage.done == ["check", "close_task"]


def test_a_process_that_is_missing_is_refused_with_a_diagnosis(stage: Stage) -> None:
    stage.error = verification.Missing("process 4711 is gone")
    stage.configuration.chain = [b"/handler"]
    with pytest.raises(Refused, match=r"^process 4711 is gone: the diagnosis$"):
        stage.run()
    assert stage.done == []


@pytest.mark.parametrize(
    ("namespaces", "of_the_host", "is_of_the_host", "handed_on"),
    [
        ([], False, True, True),
        ([], False, False, False),
        ([], True, False, True),
        ([("mnt", 0, 9)], False, True, True),
        ([("mnt", 0, 9), ("pid", 0, 9)], True, True, False),
    ],
)
def test_the_handler_of_the_host_has_what_is_the_hosts(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    namespaces: list[Any],
    of_the_host: bool,
    is_of_the_host: bool,
    handed_on: bool,
) -> None:
    monkeypatch.setattr(runtime, "is_of_the_host", lambda process: is_of_the_host)
    stage.process.namespaces = namespaces
    stage.error = Withheld("never", stage.process, of_the_host)
    stage.configuration.chain, stage.configuration.problems = [b"/handler"], ["a problem"]
    with pytest.raises(Withheld, match="never"):
        stage.run()
    if handed_on:
        # It has a slot, a deadline and a log of its own.
        assert stage.done == [("warning", "a problem"), "leave", ("alarm", 0), ("hand_on", [b"/handler"], stage)]
        assert (stage.configuration.problems, stage.process.hostname) == ([], b"visited")
    else:
        assert stage.done == []
    stage.configuration.chain = []
    stage.done.clear()
    with pytest.raises(Withheld, match="never"):
        stage.run()
    assert stage.done == []


# How often a delivery is tried.


def outcome(**facts: object) -> Result:
    result = Result()
    for name, fact in {"started": True, "complete": True, **facts}.items():
        setattr(result, name, fact)
    return result


class Deliveries:
    """handling.handle with children that end as they are told; each is noted with what it was given."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage = stage
        self.outcomes: list[Result] = []
        self.tried: list[tuple[bool, bool, float]] = []
        self.told: list[Any] = []
        self.plan = joining.Plan(stage.process, container.ControlGroups(), None, None)  # type: ignore[arg-type]
        self.plan.groups.unified = 99
        monkeypatch.setattr(deliver, "examine", lambda *words: stage.process)
        monkeypatch.setattr(joining, "prepare", lambda process: self.plan)
        monkeypatch.setattr(deliver, "Child", lambda groups, run: run)
        monkeypatch.setattr(supervisor, "supervise", self.supervise)

    def supervise(self, core: int, run: object, process: Any, deadline: float, output: Any) -> Result:
        self.tried.append((process.environ_file is not None, self.plan.groups.unified is not None, deadline))
        output(b"a line")
        return self.outcomes.pop(0)

    def __getattr__(self, name: str) -> Any:
        """Note a word for the log."""

        def noted(*words: Any) -> bool:
            self.told.append((name, *words[2:]))
            return True

        return noted

    def handle(self) -> int:
        slot: Any = None
        log: Any = lambda: self  # noqa: E731
        return deliver.handle(0, self.stage.crash, self.stage.configuration, slot, log, 100.0)


@pytest.fixture
def deliveries(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Deliveries:
    stage.crash.delegate = [b"/d"]
    stage.configuration.timeout = 7.0
    return Deliveries(stage, monkeypatch)


def test_a_delivery_is_tried_once_where_nothing_stands_in_its_way(deliveries: Deliveries) -> None:
    deliveries.outcomes = [outcome(drained=True)]
    assert deliveries.handle() == 0
    assert deliveries.tried == [(True, True, 107.0)]
    assert deliveries.stage.crash.drained is True
    assert deliveries.stage.process.hostname == b"visited"
    assert deliveries.told[0] == ("output", b"a line")


def test_an_environment_that_does_not_answer_is_done_without_once(deliveries: Deliveries) -> None:
    deliveries.outcomes = [outcome(started=False, mute=True), outcome()]
    assert deliveries.handle() == 0
    assert [words[:2] for words in deliveries.tried] == [(True, True), (False, True)]


def test_a_container_that_is_full_is_entered_later_once(deliveries: Deliveries) -> None:
    deliveries.outcomes = [outcome(started=False, crowded=True), outcome()]
    assert deliveries.handle() == 0
    assert [words[:2] for words in deliveries.tried] == [(True, True), (True, False)]


def test_what_fails_twice_is_told(deliveries: Deliveries) -> None:
    failed = {"started": False, "failure": "why"}
    deliveries.outcomes = [outcome(mute=True, **failed), outcome(crowded=True, **failed), outcome(mute=True, **failed)]
    assert deliveries.handle() == 1
    assert [words[:2] for words in deliveries.tried] == [(True, True), (False, True), (False, False)]
    assert deliveries.told[-1] == ("drop", "why", False)


def test_a_core_that_is_refused_in_the_container_goes_nowhere(deliveries: Deliveries) -> None:
    deliveries.stage.configuration.fallback = True
    deliveries.outcomes = [outcome(started=False, refused=True, absent=True, failure="not its root")]
    assert deliveries.handle() == 1
    assert deliveries.told[-1] == ("refuse", "not its root")


@pytest.mark.parametrize(
    ("chain_containers", "absent", "handed_on"),
    [(True, True, True), (False, True, False), (True, False, False)],
)
def test_a_container_without_a_delegate_is_handed_on_where_that_is_configured(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch, chain_containers: bool, absent: bool, handed_on: bool
) -> None:
    configuration = deliveries.stage.configuration
    configuration.chain, configuration.chain_containers = [b"/handler"], chain_containers
    deliveries.stage.process.namespaces = [("pid", 0, 9)]
    given: list[Any] = []
    deliveries.outcomes = [outcome(started=False, absent=absent, failure="why")]
    monkeypatch.setattr(deliver, "hand_on", lambda *words: given.append(words))
    assert deliveries.handle() == (0 if absent else 1)
    assert len(given) == handed_on
