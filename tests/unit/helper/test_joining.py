"""The steps into the container, one after the other: their order, and what each hands to the next. Nothing is entered here."""

from __future__ import annotations

import os
import posix
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import container, fallback, joining, linux, privileges, start
from core_helper.configuration import FALLBACK_VARIABLE
from core_helper.crash import Refused
from core_helper.program import Absent, Program, Stopped, parse_script_line
from unit.helper.support import in_child, process, script
from unit.helper.world import keeps_descriptors


class Recorder:
    """What was done, in order; ``watch`` has a function of a module only note that it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.done: list[Any] = []

    def watch(self, module: Any, name: str, answer: Any = None) -> None:
        def noted(*words: Any) -> Any:
            self.done.append((name, *words))
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.monkeypatch.setattr(module, name, noted)

    def sent(self) -> list[tuple[str, str]]:
        return [words[1:] for words in self.done if words[0] == "send"]

    def names(self) -> list[str]:
        return [words[0] for words in self.done]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


class Steps:
    """The steps of ``joining.execute`` or ``fallback.write``, which do not run but when they are asked for."""

    def __init__(self, recorder: Recorder, enter: Any, **facts: Any) -> None:
        self.process = process(**{"limits": {}, "nice": 0, "notes": ["a note"], **facts})
        self.groups = container.ControlGroups()
        label = SimpleNamespace(open="open", at_exec="at_exec", at_once="at_once")
        self.plan = joining.Plan(self.process, self.groups, label, None)  # type: ignore[arg-type]
        recorder.monkeypatch.setattr(joining, "run_child", self.run_child)
        recorder.watch(joining.Reporter, "send")
        recorder.monkeypatch.setattr(
            joining.Reporter, "send", lambda reporter, *words: recorder.done.append(("send", *words))
        )
        self.runs: list[dict[str, Any]] = []
        enter(self.plan)
        self.steps = self.runs[0]

    def run_child(self, reporter: joining.Reporter, steps: list[tuple[str, Any]]) -> None:
        self.runs.append(dict(steps))


ENTRY = [
    "open label",
    "take over scheduling",
    "join namespaces",
    "take over ids",
    "join user namespace",
    "enter root directory",
    "limit capabilities",
    "confine",
]
CHILD: Any = SimpleNamespace(error_out=50, core_in=51, standard_streams=lambda: {0: 51, 1: 52, 2: 53})


def executing(recorder: Recorder, **facts: Any) -> Steps:
    variables = {b"A": b"of the process", b"CORE_PID": b"1"}
    facts = {"read_environ": lambda: variables, **facts}
    return Steps(recorder, lambda plan: joining.execute(plan, [b"/d", b"x"], {b"CORE_PID": b"7"}, CHILD), **facts)


def test_privileges_are_given_away_step_by_step_before_the_delegate_is_opened(recorder: Recorder) -> None:
    steps = executing(recorder)
    order = ["read environment", "give pipes", *ENTRY, "open delegate", "take over label", "start delegate"]
    assert list(steps.steps) == order
    assert (steps.steps["open label"], steps.steps["take over label"]) == ("open", "at_exec")
    for module in (container, privileges):
        for name in (
            "join_namespaces",
            "take_over_ids",
            "join_user_namespace",
            "enter_root",
            "limit_capabilities",
            "confine",
        ):
            if hasattr(module, name):
                recorder.watch(module, name)
    for name in ENTRY[2:]:
        steps.steps[name]()
    assert recorder.names() == [
        *("join_namespaces", "take_over_ids", "join_user_namespace", "enter_root", "limit_capabilities", "confine")
    ]
    assert all(words[1] is steps.process for words in recorder.done)


def test_the_core_file_is_created_after_all_privileges_were_given_away(recorder: Recorder) -> None:
    steps = writing(recorder)
    first = ["read environment", "join control groups"]
    assert list(steps.steps) == [*first, *ENTRY, "take over label", "create core file", "write core file"]
    assert steps.steps["take over label"] == "at_once"


def test_what_cannot_be_taken_over_of_the_scheduling_is_a_note_and_limits_get_room(recorder: Recorder) -> None:
    steps = executing(recorder)
    recorder.watch(privileges, "take_over_scheduling", ["nice", "score"])
    recorder.watch(privileges, "raise_hard_limits")
    steps.steps["take over scheduling"]()
    assert recorder.done == [
        ("take_over_scheduling", steps.process),
        ("send", "note", "nice"),
        ("send", "note", "score"),
        ("raise_hard_limits", steps.process),
    ]


@pytest.mark.parametrize(("variables", "told"), [({}, ""), ({FALLBACK_VARIABLE: b""}, "fallback")])
def test_that_the_environment_was_read_is_told_and_whether_it_asks_for_the_core_file(
    recorder: Recorder, variables: dict[bytes, bytes], told: str
) -> None:
    steps = executing(recorder, read_environ=lambda: variables)
    steps.steps["read environment"]()
    assert recorder.done == [("send", "environ", told)]


def test_the_delegate_may_open_its_pipes_anew(recorder: Recorder) -> None:
    steps = executing(recorder)
    recorder.watch(posix, "fchown")
    recorder.watch(posix, "open", 99)
    steps.steps["give pipes"]()
    owner = (steps.process.uid, steps.process.gid)
    assert recorder.done == [
        *(("fchown", end, *owner) for end in (51, 52, 53)),
        ("open", "/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC),
        ("send", "note", "a note"),
    ]


def started(recorder: Recorder, forked: Any) -> Steps:
    """Return the steps with the delegate opened as 60, the host's /proc/self/fd as 99, and a fork that returns ``forked``."""
    steps = executing(recorder)
    steps.groups.others = [("pids", 70)]
    for name in ("fchown", "open"):
        recorder.watch(posix, name, 99)
    steps.steps["read environment"]()
    steps.steps["give pipes"]()
    recorder.watch(joining, "Program", SimpleNamespace(descriptor=60))
    steps.steps["open delegate"]()
    assert recorder.done[-1] == ("Program", [b"/d", b"x"], None, 99)
    recorder.done.clear()
    recorder.watch(posix, "dup2")
    recorder.watch(linux, "close_all_but")
    recorder.watch(posix, "fork", forked)
    return steps


STREAMS = [("dup2", source, target) for target, source in enumerate((51, 52, 53))]
KEPT = ("close_all_but", {60, 50, 70})


def test_nothing_of_the_host_is_open_when_the_container_sees_us(recorder: Recorder) -> None:
    steps = started(recorder, 4711)
    steps.steps["start delegate"]()
    # And the pipes are where the delegate has them: no other descriptor tells that it is one of ours.
    assert recorder.done == [*STREAMS, KEPT, ("fork",), ("send", "pid", "4711")]
    assert len(steps.runs) == 1


def test_the_child_becomes_the_delegate(recorder: Recorder) -> None:
    steps = started(recorder, 0)
    recorder.watch(joining, "delegate_steps", [("last", None)])
    steps.steps["start delegate"]()
    assert steps.runs[1] == {"last": None}
    (prepared,) = [words for words in recorder.done if words[0] == "delegate_steps"]
    _, plan, program, environment, child, _ = prepared
    assert (plan, program.descriptor, child) == (steps.plan, 60, CHILD)
    # What the helper says of the crash is not for the process to say.
    assert environment == {b"A": b"of the process", b"CORE_PID": b"7"}


def test_a_container_that_may_not_have_one_more_process_is_crowded(recorder: Recorder) -> None:
    steps = started(recorder, BlockingIOError(11, "Resource temporarily unavailable"))
    with pytest.raises(joining.Crowded, match=r"^Resource temporarily unavailable$"):
        steps.steps["start delegate"]()


def last_steps(recorder: Recorder, **facts: Any) -> tuple[Steps, dict[str, Any]]:
    steps = executing(recorder, **facts)
    program: Any = SimpleNamespace(
        prepare=lambda environment: recorder.done.append(("prepare", environment)),
        execute=lambda reporter: recorder.done.append(("execute",)),
    )
    made = joining.delegate_steps(steps.plan, program, {b"A": b"1"}, CHILD, joining.Reporter(50))
    assert [name for name, _ in made] == ["join control groups", "settle", "execute delegate"]
    return steps, dict(made)


def test_the_delegate_is_settled_limits_last(recorder: Recorder) -> None:
    steps, last = last_steps(recorder, umask=0o027)
    for module, names in ((posix, ("setsid", "umask")), (start, ("reset_signals",))):
        for name in names:
            recorder.watch(module, name)
    recorder.watch(privileges, "take_over_processors", ["processors"])
    recorder.watch(privileges, "set_limits", ["limits"])
    last["settle"]()
    last["execute delegate"]()
    assert recorder.done == [
        ("setsid",),
        ("umask", 0o027),
        ("reset_signals",),
        ("take_over_processors", steps.process),
        ("send", "note", "processors"),
        ("prepare", {b"A": b"1"}),
        ("set_limits", steps.process),
        ("send", "note", "limits"),
        ("execute",),
    ]


@pytest.mark.parametrize(
    ("in_container", "uid", "stopped"), [(True, 1000, True), (False, 0, True), (True, 0, True), (False, 1000, False)]
)
def test_who_could_open_devices_has_the_device_rules_or_no_delegate(
    recorder: Recorder, in_container: bool, uid: int, stopped: bool
) -> None:
    steps, last = last_steps(recorder, uid=uid, in_container=lambda: in_container)
    last["join control groups"]()
    steps.groups.others = [("a", OSError(2, "why")), ("b", OSError(2, "why"))]
    if stopped:
        with pytest.raises(Stopped, match=r"^control group a: why; control group b: why$"):
            last["join control groups"]()
        assert recorder.sent() == []
    else:
        last["join control groups"]()
        assert recorder.sent() == [("note", "control group a: why"), ("note", "control group b: why")]


@pytest.mark.parametrize("in_container", [True, False])
def test_the_interpreter_of_the_helper_is_forbidden_in_containers(recorder: Recorder, in_container: bool) -> None:
    crashed = process(in_container=lambda: in_container)
    recorder.watch(privileges, "check")
    plan = joining.prepare(crashed)
    own = os.stat("/proc/self/exe")
    assert plan.interpreter == ((own.st_dev, own.st_ino) if in_container else None)
    assert (recorder.done, plan.process) == ([("check", crashed)], crashed)


def test_what_cannot_be_taken_over_is_refused_before_anything_is_opened(recorder: Recorder) -> None:
    recorder.watch(container, "open_control_groups")
    with pytest.raises(Refused):
        joining.prepare(process(seccomp=1))
    assert recorder.done == []


# The child and what it reports.


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Absent("no such file"), "absent no such file"),
        (joining.Crowded("too many"), "crowded second: too many"),
        (Refused("not for you"), "refused not for you"),
        (Stopped("a\nb"), r"failed second: a\nb"),
        (OSError(1, "Operation not permitted", "setns"), "failed second: Operation not permitted"),
        (KeyError("x"), "failed second: KeyError: 'x'"),
        (SystemExit(3), "failed second: SystemExit: 3"),
    ],
)
def test_the_first_failure_is_reported_and_the_rest_is_not_done(error: BaseException, line: str) -> None:
    reading, writing = os.pipe()

    def second() -> None:
        raise error

    pid = os.fork()
    if pid == 0:
        try:
            reporter = joining.Reporter(writing)
            steps: list[tuple[str, object]] = [("first", lambda: reporter.send("note", "1"))]
            steps += [("second", second), ("third", second)]
            joining.run_child(reporter, steps)
        finally:
            os._exit(9)
    os.close(writing)
    with open(reading) as pipe:
        assert pipe.read() == f"note 1\n{line}\n"
    assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 1


def test_no_step_can_load_code() -> None:
    def loaded() -> object:
        joining.lock_interpreter()
        try:
            import colorsys  # noqa: F401
        except ImportError:
            return [sys.path, sys.meta_path, sys.path_hooks]
        return "imported"

    sys.modules.pop("colorsys", None)
    assert in_child(loaded) == [[], [], []]


def test_a_child_is_locked_before_its_first_step() -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            reporter = joining.Reporter(writing)
            joining.run_child(reporter, [("first", lambda: reporter.send("note", f"{sys.path}{sys.meta_path}"))])
        finally:
            os._exit(9)
    os.close(writing)
    with open(reading) as pipe:
        assert pipe.read() == "note [][]\n"
    os.waitpid(pid, 0)


# The program that is opened.


def test_scripts_and_what_is_refused_leave_nothing_open(tmp_path: Path) -> None:
    fine = script(tmp_path / "fine", b"#!/bin/sh\n")
    words = [b"/missing", os.fsencode(tmp_path), os.fsencode(fine)]
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)

    def opened() -> None:
        os.close(Program([words[2]], None, descriptors).descriptor)

    assert keeps_descriptors(opened)
    program = Program([words[2]], None, descriptors)
    assert os.get_inheritable(program.descriptor) is False
    # Opened without any right, so that it has no effect: O_PATH.
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(program.descriptor, 1)
    for descriptor in (program.descriptor, descriptors):
        os.close(descriptor)


def test_a_program_that_may_not_be_read_is_no_script(tmp_path: Path) -> None:
    fine = script(tmp_path / "fine", b"#!/bin/sh\n")
    program = Program([os.fsencode(fine)], None, 9999)
    assert program.arguments == [os.fsencode(fine)]
    os.close(program.descriptor)


def test_a_script_that_names_no_interpreter_is_told(tmp_path: Path) -> None:
    path = script(tmp_path / "delegate", b"#! \n")
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)

    def opened() -> None:
        with pytest.raises(Stopped, match=f"^{path}: its #! line names no interpreter"):
            Program([os.fsencode(path)], None, descriptors)

    assert keeps_descriptors(opened)
    os.close(descriptors)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        # 256 bytes are looked at: an interpreter that their end may have cut is none.
        (b"#!/" + b"a" * 300, None),
        (b"#! /" + b"a" * 300, None),
        (b"#!" + b" " * 300, None),
        (b"#!/a " + b"b" * 300, [b"/a", b"b" * 250]),
        (b"#!/a b\n", [b"/a", b"b"]),
        (b"#!\n", None),
    ],
)
def test_the_first_line_is_read_as_far_as_the_kernel_reads_it(line: bytes, words: list[bytes] | None) -> None:
    assert parse_script_line(line[:256]) == words


# The core file.


def writing(recorder: Recorder, asked: bool = True, path: bytes = b"/tmp/core.1.2.3", **facts: Any) -> Steps:
    child: Any = SimpleNamespace(error_out=50, core_in=facts.pop("core_in", 51))
    return Steps(recorder, lambda plan: fallback.write(plan, path, asked, child), **facts)


def test_a_core_file_that_was_asked_for_needs_no_variable(recorder: Recorder) -> None:
    steps = writing(recorder, True, read_environ=None)
    steps.steps["read environment"]()
    assert recorder.done == [("send", "environ", "")]


def test_a_core_file_that_nobody_asked_for_is_not_written(recorder: Recorder) -> None:
    with pytest.raises(Absent, match=r"^no delegate is configured$"):
        writing(recorder, False).steps["read environment"]()
    variables = {FALLBACK_VARIABLE: b"1"}
    writing(recorder, False, read_environ=lambda: variables).steps["read environment"]()
    assert recorder.sent()[-1] == ("environ", "fallback")


def test_what_writes_the_core_file_is_in_the_groups_and_on_the_processors_of_the_process(recorder: Recorder) -> None:
    steps = writing(recorder)
    recorder.monkeypatch.setattr(steps.groups, "join", lambda: ["group"])
    recorder.watch(privileges, "take_over_processors", ["processors"])
    steps.steps["join control groups"]()
    assert recorder.done == [
        ("send", "note", "group"),
        ("take_over_processors", steps.process),
        ("send", "note", "processors"),
    ]


def test_the_core_file_is_the_owners_whatever_the_mask_was(recorder: Recorder, tmp_path: Path) -> None:
    path = tmp_path / "core"
    steps = writing(recorder, path=os.fsencode(path))
    recorder.watch(privileges, "limit_file_size")
    before = os.umask(0o777)
    try:
        steps.steps["create core file"]()
        assert os.umask(0o777) == 0o077
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o600
    assert recorder.done == [("limit_file_size", steps.process)]
    with pytest.raises(Stopped, match="File exists"):
        steps.steps["create core file"]()


def test_the_core_file_is_opened_for_writing_alone_and_must_be_new(recorder: Recorder) -> None:
    steps = writing(recorder)
    recorder.watch(linux, "openat2", 9)
    recorder.watch(posix, "umask")
    steps.steps["create core file"]()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    assert recorder.done == [("umask", 0o077), ("openat2", b"/tmp/core.1.2.3", flags, 0o600)]


class Ended(Exception):
    """The child would have ended."""


def copied(recorder: Recorder, tmp_path: Path, core: bytes) -> Path:
    path = tmp_path / "core"
    reading, sink = os.pipe()
    os.write(sink, core)
    os.close(sink)
    steps = writing(recorder, path=os.fsencode(path), core_in=reading)
    steps.steps["create core file"]()
    recorder.watch(posix, "_exit", Ended())
    try:
        steps.steps["write core file"]()
    finally:
        os.close(reading)
    return path


def test_the_core_is_on_the_disk_before_that_is_told(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = posix.write, []

    def write(file: int, block: bytes) -> int:
        sizes.append(len(block))
        # A disk may take less than it was given.
        return real(file, block[:3])

    monkeypatch.setattr(posix, "write", write)
    recorder.watch(posix, "fsync")
    with pytest.raises(Ended):
        copied(recorder, tmp_path, b"12345678")
    assert (tmp_path / "core").read_bytes() == b"12345678"
    assert recorder.names() == ["send", "fsync", "_exit"]
    assert recorder.done[0] == ("send", "ready", "") and recorder.done[2] == ("_exit", 0)
    file = os.open(tmp_path / "core", os.O_RDONLY)
    assert os.path.samestat(os.fstat(recorder.done[1][1]), os.fstat(file))
    for descriptor in (file, recorder.done[1][1]):
        os.close(descriptor)


def test_a_disk_that_fails_at_the_end_is_told(recorder: Recorder, tmp_path: Path) -> None:
    recorder.watch(posix, "fsync", OSError(5, "Input/output error"))
    with pytest.raises(Stopped, match=r"^Input/output error after 4 bytes$"):
        copied(recorder, tmp_path, b"core")
    os.close(recorder.done[1][1])
