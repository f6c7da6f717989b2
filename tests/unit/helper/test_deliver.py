"""deliver: who is looked at, which destinations are chosen, and how often a delivery is tried."""

from __future__ import annotations

import _signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import (
    bounds,
    container,
    control_groups,
    custody,
    deadline,
    deliver,
    delivery,
    diagnosis,
    joining,
    membership,
    previous_handler,
    runtime,
    store,
    supervisor,
    tracing,
    verification,
)
from core_helper.child import Result
from core_helper.configuration import Configuration
from core_helper.crash import Crash, Refused
from core_helper.process import Record, Withheld
from core_helper.slots import TooMany
from unit.helper.support import process


class Stage:
    """What surrounds deliver.py, which only notes that it was called; a slot, a log and a source, too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[Any] = []
        self.descriptor = 9
        self.process = process(close_task=lambda: self.note("close_task"), namespaces=[])
        self.configuration = Configuration()
        self.crash = Crash(4711, 1000, 100)
        self.error: Exception | None = None
        monkeypatch.setattr(verification, "examine", self.examine)
        monkeypatch.setattr(membership, "check", lambda process: self.note("check"))
        self.traced = False
        self.too_many = False
        self.hangs = 0
        monkeypatch.setattr(tracing, "may_be_traced", lambda process: self.traced)
        monkeypatch.setattr(diagnosis, "of_missing", lambda crash: "the diagnosis")
        monkeypatch.setattr(container, "hostname_of", lambda process: b"visited")
        monkeypatch.setattr(_signal, "alarm", self.alarm)
        monkeypatch.setattr(previous_handler, "execute", lambda *words: self.note("execute", *words[3:]))

    def note(self, *words: Any) -> None:
        self.done.append(words[0] if len(words) == 1 else words)

    def alarm(self, seconds: int) -> int:
        self.note("alarm", seconds)
        return 77

    def examine(self, crash: Crash) -> Any:
        if self.error is not None:
            raise self.error
        return self.process

    def release(self) -> bytes:
        self.note("release")
        return b"record"

    def reclaim(self, record: bytes) -> None:
        self.note("reclaim", record)

    def stream(self) -> int:
        self.note("stream")
        return 9

    def end_stream(self) -> None:
        self.note("end_stream")

    def keep_for(self, pid: int) -> None:
        self.note("keep_for", pid)

    def give_back(self) -> None:
        self.note("slot given back")
        if self.too_many:
            raise TooMany("container a", 2, 2, 4)

    @property
    def lines(self) -> Any:
        return self

    def warning(self, text: str) -> None:
        self.note("warning", text)

    def look(self) -> Any:
        everything: Any = self
        return deliver.look(self.crash, everything)

    def deliver(self) -> int:
        everything: Any = self
        return deliver.deliver(everything, self.crash, self.configuration, everything, everything, 0.0)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_a_process_is_checked_and_its_directory_closed_before_anything_is_entered(stage: Stage) -> None:
    assert stage.look() == (stage.process, None)
    assert stage.done == ["check", "close_task"]


@pytest.mark.parametrize(
    ("exposed", "traceable", "refused"),
    [("why", True, True), ("why", False, False), ("", True, False), ("", False, False)],
)
def test_where_the_interpreter_could_be_overwritten_nothing_is_delegated(
    stage: Stage, exposed: str, traceable: bool, refused: bool
) -> None:
    stage.crash.unprotected, stage.traced = exposed, traceable
    found, refusal = stage.look()
    assert found is stage.process
    if refused:
        assert refusal is not None and refusal.process is stage.process
        assert "could overwrite the helper's interpreter: why" in str(refusal)
    else:
        assert refusal is None
    assert stage.done == ["check", "close_task"]


def test_a_process_that_is_missing_is_refused_with_a_diagnosis(stage: Stage) -> None:
    stage.error = verification.Missing("process 4711 is gone")
    stage.configuration.chain = [b"/handler"]
    with pytest.raises(Refused, match=r"^process 4711 is gone: the diagnosis$"):
        stage.deliver()
    assert stage.done == []


@pytest.mark.parametrize(
    ("of_the_host", "is_of_the_host", "passed_on"),
    [(False, True, True), (False, False, False), (True, False, True), (True, True, True)],
)
def test_the_handler_of_the_host_has_what_is_the_hosts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, of_the_host: bool, is_of_the_host: bool, passed_on: bool
) -> None:
    monkeypatch.setattr(runtime, "is_of_the_host", lambda process: is_of_the_host)
    stage.error = Withheld("never", stage.process, of_the_host)
    stage.configuration.chain, stage.configuration.problems = [b"/handler"], ["a problem"]
    with pytest.raises(Withheld, match="never"):
        stage.deliver()
    if passed_on:
        # It has a slot, a deadline and a log of its own; where it cannot be executed, the helper has its own again.
        assert stage.done == [
            *(("warning", "a problem"), "release", ("alarm", 0), "stream", ("execute", [b"/handler"], stage)),
            *("end_stream", ("alarm", 77), ("reclaim", b"record")),
        ]
        assert (stage.configuration.problems, stage.process.hostname) == ([], b"visited")
    else:
        assert stage.done == []
    stage.configuration.chain = []
    stage.done.clear()
    with pytest.raises(Withheld, match="never"):
        stage.deliver()
    assert stage.done == []


def chosen(stage: Stage, refusal: Withheld | None = None) -> list[tuple[str, bool]]:
    everything: Any = stage
    attempted = delivery.Delivery(
        everything, stage.crash, stage.process, stage.configuration, everything, everything, 0.0
    )
    return [(type(one).__name__, one.only_if_absent) for one in deliver.choose(attempted, refusal)]


def test_destinations_are_tried_in_this_order(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    host = False
    monkeypatch.setattr(runtime, "is_of_the_host", lambda process: host)
    assert chosen(stage) == [("NoDestination", False), ("CoreFile", False)]
    stage.configuration.delegate = [b"/d"]
    assert chosen(stage) == [("Delegate", False), ("CoreFile", False)]
    stage.configuration.burst = (5, 60)
    assert chosen(stage) == [("Bounds", False), ("Delegate", False), ("CoreFile", False)]
    stage.configuration.burst = (0, 0)
    stage.configuration.chain = [b"/handler"]
    assert chosen(stage) == [("Delegate", False), ("CoreFile", False)]
    stage.configuration.chain_containers = True
    assert chosen(stage) == [("Delegate", False), ("PreviousHandler", True), ("CoreFile", False)]
    stage.configuration.lend = [b"/lent"]
    assert chosen(stage) == [("Delegate", False), ("PreviousHandler", True), ("CoreFile", False)]
    stage.process.in_container = lambda: True
    lending = [("LentProgram", True), ("PreviousHandler", True), ("CoreFile", False)]
    assert chosen(stage) == [("Delegate", False), *lending]
    stage.configuration.delegate = []
    assert chosen(stage) == [("NoDestination", False), *lending]
    stage.configuration.delegate = [b"/d"]
    refusal = Withheld("never", stage.process)
    assert chosen(stage, refusal) == []
    host = True
    assert chosen(stage) == [("PreviousHandler", False), ("Delegate", False), ("CoreFile", False)]
    assert chosen(stage, refusal) == [("PreviousHandler", False)]
    stage.configuration.ignore_signals, stage.crash.signal = [6], 6
    assert chosen(stage) == [("PreviousHandler", False), ("NoDestination", False)]
    host = False
    assert chosen(stage) == [("NoDestination", False)]


# How often a delivery is tried.


def outcome(**facts: object) -> Result:
    result = Result()
    for name, fact in {"started": True, "complete": True, **facts}.items():
        setattr(result, name, fact)
    return result


class Deliveries:
    """deliver.deliver with children that end as they are told; each is noted with what it was given."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage = stage
        self.outcomes: list[Result] = []
        self.tried: list[tuple[bool, bool, float]] = []
        self.told: list[Any] = []
        self.plan = joining.Plan(stage.process, control_groups.ControlGroups(), None, None)  # type: ignore[arg-type]
        self.plan.groups.unified = 99
        monkeypatch.setattr(joining, "prepare", lambda process, interpreter: self.plan)
        self.left = [0]
        monkeypatch.setattr(delivery, "Child", lambda source, groups, run, stays: SimpleNamespace(left=self.left_over))
        monkeypatch.setattr(supervisor, "supervise", self.supervise)

    def left_over(self) -> int:
        return self.left.pop() if len(self.left) > 1 else self.left[0]

    def keep_for(self, pid: int) -> None:
        self.told.append(("keep_for", pid))

    def supervise(self, source: object, run: object, process: Any, deadline: Any, output: Any) -> Result:
        self.tried.append((process.environ_file is not None, not self.plan.late, deadline.at))
        assert (self.plan.groups.unified is None) is self.plan.late
        output(b"a line")
        return self.outcomes.pop(0)

    def __getattr__(self, name: str) -> Any:
        """Note a word for the log."""

        def noted(*words: Any) -> bool:
            self.told.append((name, *words[2:]))
            return True

        return noted

    @property
    def lines(self) -> Any:
        return self

    def deliver(self) -> int:
        nothing: Any = None
        this: Any = self
        return deliver.deliver(nothing, self.stage.crash, self.stage.configuration, this, this, 100.0)


@pytest.fixture
def deliveries(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Deliveries:
    stage.crash.delegate = [b"/d"]
    stage.configuration.timeout = 7.0
    return Deliveries(stage, monkeypatch)


def test_a_delivery_is_tried_once_where_nothing_stands_in_its_way(deliveries: Deliveries) -> None:
    deliveries.outcomes = [outcome()]
    assert deliveries.deliver() == 0
    assert deliveries.tried == [(True, True, 107.0)]
    assert deliveries.stage.process.hostname == b"visited"
    assert deliveries.told[0] == ("output", b"a line")


@pytest.mark.parametrize(("now", "left"), [(100.2, b"6"), (103.5, b"3"), (110.0, b"0")])
def test_the_delegate_is_told_how_many_seconds_are_left(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch, now: float, left: bytes
) -> None:
    told: list[dict[bytes, bytes]] = []
    monkeypatch.setattr(joining, "execute_delegate", lambda *words: told.append(words[3]))

    def start(source: object, groups: object, run: Callable[[object], object], stays: bool) -> Any:
        run(None)
        return SimpleNamespace(left=lambda: 0)

    monkeypatch.setattr(delivery, "Child", start)
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: now))
    deliveries.outcomes = [outcome()]
    assert deliveries.deliver() == 0
    assert told[0][b"CORE_TIMEOUT"] == left


def of_engine(deliveries: Deliveries) -> delivery.Delivery:
    """A delivery of a process whose engine's record has three variables, of which the administrator has named two."""
    process = deliveries.stage.process
    process.record = Record()
    process.record.shared = True
    process.record.environment = {b"CORE_DESTINATION": b"s3://cores", b"AWS_REGION": b"eu", b"SECRET": b"x"}
    deliveries.stage.configuration.container_environment = [b"CORE_DESTINATION", b"AWS_REGION", b"MISSING"]
    this: Any = deliveries
    nothing: Any = None
    return delivery.Delivery(nothing, deliveries.stage.crash, process, deliveries.stage.configuration, this, this, 1.0)


def test_the_delegate_gets_the_variables_of_the_engine_that_the_administrator_names(deliveries: Deliveries) -> None:
    assert of_engine(deliveries).defaults() == {b"CORE_DESTINATION": b"s3://cores", b"AWS_REGION": b"eu"}


@pytest.mark.parametrize("reason", ["a sandbox", "a container of its own", "a root directory of its own", "none named"])
def test_variables_of_the_engine_are_for_the_containers_own_processes_alone(
    deliveries: Deliveries, reason: str
) -> None:
    this = of_engine(deliveries)
    this.process.confined = reason == "a sandbox"
    this.process.record.shared = reason != "a container of its own"
    deliveries.plan.root = b"/srv" if reason == "a root directory of its own" else b"/"
    if reason == "none named":
        this.configuration.container_environment = []
    assert this.defaults() == {}


def test_a_core_that_is_too_large_is_refused_before_anything_is_started(
    deliveries: Deliveries,
) -> None:
    deliveries.stage.configuration.size_max = 4999
    source: Any = SimpleNamespace(descriptor=7, announced_length=lambda: 5000)
    this: Any = deliveries
    configuration = deliveries.stage.configuration
    assert deliver.deliver(source, deliveries.stage.crash, configuration, this, this, 100.0) == 0
    assert deliveries.told == [("drop", "not wanted: it has 5000 bytes, and DOCKERCOREHELPER_SIZE_MAX is 4999", True)]
    configuration.size_max = 5000
    deliveries.outcomes = [outcome()]
    assert deliver.deliver(source, deliveries.stage.crash, configuration, this, this, 100.0) == 0
    assert len(deliveries.tried) == 1


@pytest.mark.parametrize(
    ("result", "kind", "reason"),
    [
        (outcome(), "taken", ""),
        (outcome(cut=True), "failed", "/d: the core was cut off"),
        (outcome(complete=False), "failed", "/d: it stopped reading"),
    ],
)
def test_a_core_of_which_the_host_has_a_copy_is_not_done_with_before_all_of_it_was_taken(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch, result: Result, kind: str, reason: str
) -> None:
    nothing: Any = None
    this: Any = deliveries
    stage = deliveries.stage
    attempted = delivery.Delivery(nothing, stage.crash, stage.process, stage.configuration, this, this, 100.0)
    monkeypatch.setattr(Deliveries, "conclude", lambda *words: kind == "taken", raising=False)
    found = attempted.conclude(b"/d", result)
    assert found.kind == "taken"
    attempted.custody = this
    found = attempted.conclude(b"/d", result)
    assert (found.kind, found.reason) == (kind, reason)


def test_cores_beyond_the_burst_have_one_line_and_the_next_one_tells_how_many(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [(0, 0), (0, 1), (0, 2), (2, 0)]
    monkeypatch.setattr(bounds, "left_out", lambda process, most, seconds: {(1, 60): answers.pop(0)}[most, seconds])
    deliveries.stage.configuration.burst = (1, 60)
    deliveries.outcomes = [outcome(), outcome()]
    lines = []
    for _ in range(4):
        assert deliveries.deliver() == 0
        lines.append([words[0] for words in deliveries.told if words[0] != "output"])
        deliveries.told.clear()
    assert lines == [["conclude"], ["drop"], [], ["conclude"]]
    assert deliveries.stage.process.left_out == 2
    assert deliveries.outcomes == []


def test_an_environment_that_does_not_answer_is_done_without_once(deliveries: Deliveries) -> None:
    deliveries.outcomes = [outcome(started=False, mute=True), outcome()]
    assert deliveries.deliver() == 0
    assert [words[:2] for words in deliveries.tried] == [(True, True), (False, True)]


def test_a_container_that_is_full_is_entered_later_once(deliveries: Deliveries) -> None:
    deliveries.outcomes = [outcome(started=False, crowded=True), outcome()]
    assert deliveries.deliver() == 0
    assert [words[:2] for words in deliveries.tried] == [(True, True), (True, False)]


def test_a_container_that_is_full_and_may_trace_is_not_entered_later(deliveries: Deliveries) -> None:
    deliveries.stage.traced = True
    deliveries.outcomes = [outcome(started=False, crowded=True, failure="full")]
    assert deliveries.deliver() == 1
    assert deliveries.told[-1] == ("drop", "full", False)


def test_what_is_for_absent_delegates_only_is_passed_over_and_the_next_one_is_tried(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "is_of_the_host", lambda process: False)
    configuration = deliveries.stage.configuration
    configuration.chain, configuration.chain_containers, configuration.fallback = [b"/handler"], True, True
    deliveries.outcomes = [outcome(started=False, failure="why"), outcome()]
    assert deliveries.deliver() == 0
    assert len(deliveries.tried) == 2


@pytest.mark.parametrize("absent", [True, False])
def test_a_container_without_a_delegate_has_one_lent(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch, absent: bool
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(runtime, "is_of_the_host", lambda process: False)
    monkeypatch.setattr(joining, "execute_delegate", lambda *words: given.append(words))

    def start(source: object, groups: object, run: Callable[[object], object], stays: bool) -> Any:
        run(None)
        return SimpleNamespace(left=lambda: 0)

    monkeypatch.setattr(delivery, "Child", start)
    deliveries.stage.process.in_container = lambda: True
    deliveries.stage.configuration.lend = [b"/lent", b"%P", b"%{CORE_KEY}"]
    deliveries.outcomes = [outcome(started=False, absent=absent, failure="why"), outcome()]
    assert deliveries.deliver() == (0 if absent else 1)
    assert [words[1] for words in given] == [[b"/d"], [b"/lent", b"%P", b"%{CORE_KEY}"]][: 2 if absent else 1]
    if absent:
        assert (given[0][5], given[1][5].values["P"]) == (None, b"4711")
        assert deliveries.told[-1][:2] == ("conclude", b"lent /lent")


def test_a_lent_program_that_cannot_work_leaves_the_core_to_those_behind_it(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "is_of_the_host", lambda process: False)
    deliveries.stage.process.in_container = lambda: True
    deliveries.stage.configuration.lend, deliveries.stage.configuration.fallback = [b"/lent"], True
    absent = outcome(started=False, absent=True, failure="none here")
    deliveries.outcomes = [absent, outcome(untouched=True, failure="exit code 1"), outcome()]
    assert deliveries.deliver() == 0
    assert "none here; lent /lent: exit code 1 before it read a byte" in str(deliveries.told[-1])


@pytest.mark.parametrize("started", [True, False])
def test_a_delegate_that_holds_its_pipes_is_the_last_one_that_is_tried(deliveries: Deliveries, started: bool) -> None:
    deliveries.stage.configuration.fallback = True
    deliveries.outcomes = [outcome(started=started, stuck=True, failure="deadline passed")]
    if started:
        assert deliveries.deliver() == 0  # The log says what came of it.
    else:
        with pytest.raises(Refused, match="deadline passed"):
            deliveries.deliver()
    assert len(deliveries.tried) == 1


@pytest.mark.parametrize("kind", ["mute", "crowded", "slow"])
def test_after_a_child_that_hangs_no_other_one_is_started(deliveries: Deliveries, kind: str) -> None:
    deliveries.stage.configuration.fallback = True
    deliveries.left = [0, 4712]
    deliveries.outcomes = [outcome(started=False, failure="why", **{kind: True})]
    assert deliveries.deliver() == 1
    assert len(deliveries.tried) == 1
    told = "why; pid 4712 hangs in the container, and its slot stays taken"
    assert deliveries.told[1:] == [
        ("keep_for", 4712),
        ("drop", f"{told}; no process enters the container where one hangs already", False),
    ]


@pytest.mark.parametrize("error", [None, Refused("why")])
def test_a_child_that_hangs_where_it_has_looked_keeps_the_slot_and_is_the_last_one(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch, error: Refused | None
) -> None:
    deliveries.stage.process.visits.hanging = 4712
    deliveries.stage.configuration.fallback = True

    def check(process: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(membership, "check", check)
    if error is None:
        assert deliveries.deliver() == 1
    else:
        with pytest.raises(Refused, match="why"):
            deliveries.deliver()
    assert deliveries.told[0] == ("keep_for", 4712)
    assert deliveries.tried == []


def test_a_delegate_that_hangs_is_noted(deliveries: Deliveries) -> None:
    deliveries.left = [4712]
    result = outcome(failure="deadline passed")
    deliveries.outcomes = [result]
    deliveries.deliver()
    assert deliveries.told[1] == ("keep_for", 4712)
    assert (result.failure, result.notes) == (
        "deadline passed",
        ["pid 4712 hangs in the container, and its slot stays taken"],
    )


def test_what_fails_twice_is_told(deliveries: Deliveries) -> None:
    failed = {"started": False, "failure": "why"}
    deliveries.outcomes = [outcome(mute=True, **failed), outcome(crowded=True, **failed), outcome(mute=True, **failed)]
    assert deliveries.deliver() == 1
    assert [words[:2] for words in deliveries.tried] == [(True, True), (False, True), (False, False)]
    assert deliveries.told[-1] == ("drop", "why", False)


def test_a_core_that_is_refused_in_the_container_goes_nowhere(deliveries: Deliveries) -> None:
    deliveries.stage.configuration.fallback = True
    deliveries.outcomes = [outcome(started=False, refused=True, absent=True, failure="not its root")]
    with pytest.raises(Refused, match=r"^not its root$"):
        deliveries.deliver()
    assert len(deliveries.tried) == 1


@pytest.mark.parametrize("chain", [True, False])
def test_a_core_that_nobody_wants_goes_nowhere_but_to_the_previous_handler_of_the_host(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch, chain: bool
) -> None:
    configuration = deliveries.stage.configuration
    configuration.chain, configuration.chain_containers = [b"/handler"], True
    configuration.fallback, configuration.ignore_signals, deliveries.stage.crash.signal = True, [6], 6
    monkeypatch.setattr(runtime, "is_of_the_host", lambda process: chain)
    given: list[Any] = []

    def attempt(handler: object, *words: object) -> delivery.Outcome:
        given.append(words)
        return delivery.Outcome(delivery.ABSENT)

    monkeypatch.setattr(deliver.PreviousHandler, "attempt", attempt)
    assert deliveries.deliver() == 0
    assert len(given) == chain and deliveries.tried == []
    assert deliveries.told[-1] == ("drop", "not wanted: DOCKERCOREHELPER_IGNORE_SIGNALS names SIGABRT", True)


@pytest.mark.parametrize(
    ("chain_containers", "absent", "passed_on"),
    [(True, True, True), (False, True, False), (True, False, False)],
)
def test_a_container_without_a_delegate_is_passed_on_where_that_is_configured(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch, chain_containers: bool, absent: bool, passed_on: bool
) -> None:
    configuration = deliveries.stage.configuration
    configuration.chain, configuration.chain_containers = [b"/handler"], chain_containers
    monkeypatch.setattr(runtime, "is_of_the_host", lambda process: False)
    given: list[Any] = []
    deliveries.outcomes = [outcome(started=False, absent=absent, failure="why")]

    def attempt(handler: object, *words: object) -> delivery.Outcome:
        given.append(words)
        return delivery.Outcome(delivery.ABSENT)

    monkeypatch.setattr(deliver.PreviousHandler, "attempt", attempt)
    assert deliveries.deliver() == (0 if absent else 1)
    assert len(given) == passed_on


class Kept:
    """A core in the store, and what is done with it."""

    def __init__(self, stage: Stage, all_of_it: bool = True, cut: bool = False) -> None:
        self.stage = stage
        self.source = self
        self.all_of_it = all_of_it
        self.cut = cut
        self.late = False
        self.reads_on = True
        self.announced = self.disk_full = False
        self.failure: OSError | None = None
        self.store = SimpleNamespace(path="/store")
        self.stopped = "" if all_of_it else "/store has no room for more"
        self.key, self.group_name, self.size = "key", "group", 7

    def write(self, kernel: Any, deadline: float) -> None:
        self.stage.note("write")

    def rewind(self) -> bool:
        return self.reads_on

    def is_all(self) -> bool:
        return self.all_of_it

    def truncated(self) -> bool:
        return self.cut

    def facts(self) -> dict[bytes, bytes]:
        return {b"CORE_SIZE": b"7"}

    def announce(self, known: dict[str, Any]) -> None:
        assert self.failure or (known["reason"] == "its helper was killed" and not known["delivered"])
        self.announced = True
        if self.disk_full:
            raise OSError(28, "No space left on device")

    def seal(self, known: dict[str, Any]) -> None:
        self.stage.note("seal", known["reason"], *(["delivered"] if known["delivered"] else []))
        if self.failure is not None:
            raise self.failure

    def is_there(self) -> bool:
        return not isinstance(self.failure, FileNotFoundError)

    def finish_later(self, kernel: Any, crash: Crash) -> None:
        self.stage.note("finish")

    def drop(self) -> None:
        self.stage.note("drop")


class Place:
    """A destination whose attempts end as the test says."""

    only_if_absent = False
    secured = True

    def __init__(self, stage: Stage, *ends: Any) -> None:
        self.stage = stage
        self.ends = list(ends)

    def attempt(self, delivery: Any, reason: str) -> Any:
        self.stage.note("attempt", reason)
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


FAILS = delivery.Outcome(delivery.FAILED, "it failed")
HAS_NONE = delivery.Outcome(delivery.ABSENT, "there is none")
TAKES = delivery.Outcome(delivery.TAKEN, delivered=True)


def keeping(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, *places: Place, kept: Kept | None = None, keep: str = "undelivered"
) -> list[Any]:
    """Deliver to the places, with a core on the disk, and return what was done."""
    stage.configuration.keep = keep
    monkeypatch.setattr(deliver, "choose", lambda delivery, refusal: list(places))
    monkeypatch.setattr(custody, "begin", lambda *words: kept or Kept(stage))
    monkeypatch.setattr(delivery, "facts_of", lambda crash, process: {b"CORE_COMM": b"x"})
    monkeypatch.setattr(Stage, "keep", lambda self, *words: self.note("line", words[-1]), raising=False)
    monkeypatch.setattr(Stage, "drop", lambda self, *words: self.note("dropped", words[2]), raising=False)
    monkeypatch.setattr(Stage, "closed", False, raising=False)

    def keep_environ(limit: float) -> int:
        assert 9 < limit - time.monotonic() <= 10
        stage.note("environ")
        return stage.hangs

    stage.process.keep_environ = keep_environ
    monkeypatch.setattr(Stage, "release", lambda self, crash: self.note("released"), raising=False)
    stage.done.clear()
    stage.deliver()
    return [done for done in stage.done if done not in ("check", "close_task")]


def test_nothing_of_a_core_touches_the_disk_by_default(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keeping(stage, monkeypatch, Place(stage, HAS_NONE), keep="never") == [
        ("attempt", ""),
        ("dropped", "there is none"),
    ]


def test_a_core_is_written_before_the_first_destination_and_deleted_when_one_has_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = (Place(stage, HAS_NONE), Place(stage, TAKES))
    assert keeping(stage, monkeypatch, *places) == ["write", ("attempt", ""), ("attempt", "there is none"), "drop"]


def test_what_the_previous_handler_of_the_host_gets_is_not_written(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(stage, TAKES)
    place.secured = False
    assert keeping(stage, monkeypatch, place) == [("attempt", "")]


def test_all_cores_stay_where_that_is_wanted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    done = keeping(stage, monkeypatch, Place(stage, TAKES), keep="always")
    assert done == [
        "write",
        ("attempt", ""),
        ("seal", "all cores are kept", "delivered"),
        ("line", "all cores are kept"),
        "finish",
    ]


def test_without_a_destination_the_core_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    done = keeping(stage, monkeypatch, Place(stage, HAS_NONE))
    assert done == ["write", ("attempt", ""), ("seal", "there is none"), ("line", "there is none"), "finish"]


def test_a_failure_has_a_second_chance_when_the_process_is_gone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    done = keeping(stage, monkeypatch, Place(stage, FAILS, TAKES), Place(stage, HAS_NONE))
    assert done == [
        "write",
        ("attempt", ""),
        ("attempt", "it failed"),
        ("seal", "it failed; there is none"),
        "environ",
        "released",
        ("attempt", "it failed; there is none"),
        "drop",
    ]


def test_a_second_failure_is_the_last_one(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    done = keeping(stage, monkeypatch, Place(stage, FAILS, delivery.Outcome(delivery.FAILED, "again")))
    assert done[-3:] == [
        ("seal", "it failed; again without the process: again"),
        ("line", "it failed; again without the process: again"),
        "finish",
    ]


def test_a_core_of_which_a_part_can_be_read_but_once_has_no_second_chance(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(stage, all_of_it=False)
    done = keeping(stage, monkeypatch, Place(stage, FAILS), kept=kept)
    assert done == ["write", ("attempt", ""), ("seal", "it failed"), ("line", "it failed"), "finish"]
    kept.reads_on = False
    assert ("attempt", "") not in keeping(stage, monkeypatch, Place(stage, FAILS), kept=kept)


def test_a_core_that_nobody_has_taken_stays_where_the_note_about_it_fails(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(stage)
    kept.failure = OSError(28, "No space left on device")
    done = keeping(stage, monkeypatch, Place(stage, HAS_NONE), kept=kept)
    assert done[:3] == ["write", ("attempt", ""), ("seal", "there is none")]
    ((name, text),) = done[3:]
    assert name == "warning" and "/store: No space left on device: the core stays there and is not listed yet" in text
    # Somebody has deleted it.
    kept.failure = FileNotFoundError(2, "No such file or directory")
    done = keeping(stage, monkeypatch, Place(stage, HAS_NONE), kept=kept)
    assert "/store: somebody has deleted the core: not kept" in done[3][1] and done[4] == ("dropped", "there is none")
    # A destination has taken it.
    kept.failure = OSError(28, "No space left on device")
    assert keeping(stage, monkeypatch, Place(stage, TAKES), kept=kept, keep="always")[-1] == "drop"


def test_a_core_that_was_cut_off_has_no_second_chance(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    done = keeping(stage, monkeypatch, Place(stage, FAILS), kept=Kept(stage, cut=True))
    assert done == ["write", ("attempt", ""), ("seal", "it failed"), ("line", "it failed"), "finish"]


@pytest.mark.parametrize("disk_full", [False, True])
def test_a_core_is_announced_before_its_delivery(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, disk_full: bool
) -> None:
    kept = Kept(stage)
    kept.disk_full = disk_full
    assert keeping(stage, monkeypatch, Place(stage, TAKES), kept=kept) == ["write", ("attempt", ""), "drop"]
    assert kept.announced


def test_a_process_may_end_as_soon_as_its_core_is_safe(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.configuration.release_kept = True
    done = keeping(stage, monkeypatch, Place(stage, TAKES))
    kept = Kept(stage)
    assert keeping(stage, monkeypatch, Place(stage, TAKES), kept=kept) == done and not kept.announced
    safe = ["write", ("seal", "not delivered yet"), "environ", "released", "slot given back"]
    assert done == [*safe, ("attempt", ""), "drop"]
    # The core stays if too many are on their way.
    stage.too_many = True
    reason = "container a has 2 crashes in flight, and 2 of 4 slots are free"
    assert keeping(stage, monkeypatch, Place(stage, TAKES)) == [*safe, ("seal", reason), ("line", reason), "finish"]


def test_whoever_hangs_in_the_memory_of_a_process_that_may_end_counts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.configuration.release_kept, stage.hangs = True, 4711
    done = keeping(stage, monkeypatch, Place(stage, FAILS))
    assert done[:5] == ["write", ("seal", "not delivered yet"), "environ", ("keep_for", 4711), "released"]
    assert done[-1] == "finish"


def test_at_the_deadline_the_kernel_dumps_no_more(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(stage)
    kept.late = True
    assert keeping(stage, monkeypatch, Place(stage, TAKES), kept=kept) == ["write", "released", ("attempt", ""), "drop"]


def test_a_core_that_a_child_refused_is_deleted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="no"):
        keeping(stage, monkeypatch, Place(stage, Refused("no")))
    assert stage.done[-1] == "drop" and not any(done[0] == "seal" for done in stage.done)


@pytest.mark.parametrize("error", [delivery.Stuck("it hangs"), OSError("it hangs")])
def test_a_core_stays_if_the_way_in_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    done = keeping(stage, monkeypatch, Place(stage, error))
    assert done == ["write", ("attempt", ""), ("seal", "it hangs"), ("line", "it hangs"), "finish"]


def test_a_store_that_cannot_be_used_is_told_and_the_core_is_delivered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: Any) -> Any:
        raise store.Unusable("no room")

    monkeypatch.setattr(custody, "begin", refuse)
    place = Place(stage, FAILS)
    stage.configuration.keep = "undelivered"
    monkeypatch.setattr(deliver, "choose", lambda delivery, refusal: [place])
    monkeypatch.setattr(Stage, "drop", lambda self, *words: self.note("dropped", words[2]), raising=False)
    stage.deliver()
    assert stage.configuration.problems == ["pid=4711: no room"]
    assert stage.done[-2:] == [("attempt", ""), ("dropped", "it failed")]


def test_a_disk_that_fails_at_the_end_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(stage, all_of_it=False)

    def fail(known: Any) -> None:
        raise OSError(5, "Input/output error")

    kept.seal = fail  # type: ignore[method-assign]
    done = keeping(stage, monkeypatch, Place(stage, FAILS), kept=kept)
    name, text = done[-1]
    assert name == "warning" and "/store: Input/output error: the core stays there" in text


def test_a_core_that_cannot_be_compressed_stays_as_it_is(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(stage, cut=True)

    def fail(kernel: Any, crash: Crash) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    kept.finish_later = fail  # type: ignore[method-assign]
    done = keeping(stage, monkeypatch, Place(stage, FAILS), kept=kept)
    assert done[-2:] == [("seal", "it failed"), ("line", "it failed")]


@pytest.mark.parametrize("has_copy", [False, True])
def test_what_is_known_of_a_copy_is_told_where_there_is_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, has_copy: bool
) -> None:
    everything: Any = stage
    monkeypatch.setattr(delivery, "facts_of", lambda crash, process: {b"CORE_COMM": b"x"})
    attempted = delivery.Delivery(
        everything, stage.crash, stage.process, stage.configuration, everything, everything, 0.0
    )
    attempted.custody = Kept(stage) if has_copy else None  # type: ignore[assignment]
    assert attempted.facts() == {b"CORE_COMM": b"x", **({b"CORE_SIZE": b"7"} if has_copy else {})}
    assert attempted.seal("why") is has_copy


@pytest.mark.parametrize("all_of_it", [True, False])
def test_that_the_room_on_the_host_ended_midway_is_told_whatever_came_of_the_core(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, all_of_it: bool
) -> None:
    everything: Any = stage
    attempted = delivery.Delivery(
        everything, stage.crash, stage.process, stage.configuration, everything, everything, 0.0
    )
    attempted.custody = Kept(stage, all_of_it)  # type: ignore[assignment]
    told: list[str] = []

    def conclude(*words: Any) -> bool:
        told.extend(words[4].notes)
        return True

    monkeypatch.setattr(Stage, "conclude", conclude, raising=False)
    result = Result()
    result.complete = True
    assert attempted.conclude(b"/delegate", result).kind == "taken"
    assert told == (
        [] if all_of_it else ["only 7 bytes of it went to the disk of the host: /store has no room for more"]
    )


@pytest.mark.parametrize(
    ("has_copy", "complete", "failure", "cut", "reason"),
    [
        (False, False, "it ended", False, ""),
        (True, False, "it ended", False, "it ended"),
        (True, True, "it ended", False, "it ended"),
        (True, False, None, False, "it stopped reading"),
        (True, True, None, True, "the core was cut off"),
        (True, True, None, False, ""),
    ],
)
def test_a_delegate_that_has_read_a_part_takes_the_core_only_where_the_host_has_no_copy(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    has_copy: bool,
    complete: bool,
    failure: str | None,
    cut: bool,
    reason: str,
) -> None:
    everything: Any = stage
    attempted = delivery.Delivery(
        everything, stage.crash, stage.process, stage.configuration, everything, everything, 0.0
    )
    attempted.custody = Kept(stage) if has_copy else None  # type: ignore[assignment]
    monkeypatch.setattr(Stage, "conclude", lambda *words: False, raising=False)
    result: Any = SimpleNamespace(cut=cut, complete=complete, failure=failure)
    outcome = attempted.conclude(b"/delegate", result)
    assert (outcome.kind, outcome.delivered) == ("failed" if reason else "taken", False)
    assert outcome.reason == (f"/delegate: {reason}" if reason else "")
