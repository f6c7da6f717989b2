"""The steps into the container, one after the other: their order, and what each hands to the next. Nothing is entered here."""

from __future__ import annotations

import os
import posix
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import container, control_groups, fallback, joining, linux, privileges, start, status_pipe
from core_helper.configuration import FALLBACK_VARIABLE
from core_helper.crash import Refused
from core_helper.program import Absent, Stopped
from unit.helper.support import in_child, process


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


class Line:
    """The straight line: its steps are only noted, in their order, with the name of the step that is said before each."""

    def __init__(self, recorder: Recorder, **facts: Any) -> None:
        self.recorder = recorder
        self.process = process(**{"limits": {}, "nice": 0, "notes": ["a note"], "read_environ": dict, **facts})
        self.groups = control_groups.ControlGroups()
        self.defaults: dict[bytes, bytes] = {}
        self.steps: list[tuple[str, str]] = []
        label = SimpleNamespace(**{name: self.noted(name) for name in ("open", "at_exec", "at_once")})
        self.plan = joining.Plan(self.process, self.groups, label, None)  # type: ignore[arg-type]
        for name in ("take_over_scheduling", "go_first", "take_over_processors", "set_limits"):
            recorder.watch(privileges, name, [name])
        for name in PRIVILEGES:
            recorder.watch(privileges, name, [])
        for name in ("join_namespaces", "enter_root"):
            recorder.watch(container, name)
        for name in ("setsid", "umask", "fchown", "dup2", "fsync"):
            recorder.watch(posix, name)
        recorder.watch(posix, "open", 99)
        recorder.watch(posix, "fork", 4711)
        recorder.watch(start, "reset_signals")
        recorder.watch(linux, "close_all_but")
        recorder.watch(linux, "openat2", 9)
        program = SimpleNamespace(descriptor=60, prepare=self.noted("prepare"), execute=self.noted("execute"))
        recorder.watch(joining, "Program", program)
        recorder.monkeypatch.setattr(
            status_pipe.StatusPipe, "send", lambda status, *words: recorder.done.append(("send", *words))
        )
        recorder.monkeypatch.setattr(status_pipe, "lock_interpreter", lambda: None)
        recorder.monkeypatch.setattr(status_pipe.StatusPipe, "__exit__", lambda *words: None)
        recorder.monkeypatch.setattr(status_pipe.StatusPipe, "__setattr__", lambda *words: self.said(*words))

    def noted(self, name: str) -> Any:
        return lambda *words: self.recorder.done.append((name, *words))

    def said(self, status: status_pipe.StatusPipe, name: str, value: Any) -> None:
        """Note the name of a step among what is done."""
        if name == "step" and value != "start":
            self.recorder.done.append(("step", value))
        object.__setattr__(status, name, value)

    def names(self) -> list[str]:
        return [words[1] for words in self.recorder.done if words[0] == "step"]

    def of(self, step: str) -> list[Any]:
        """Return what was done in a step."""
        begin = self.recorder.done.index(("step", step)) + 1
        rest = self.recorder.done[begin:]
        return rest[: next((index for index, words in enumerate(rest) if words[0] == "step"), len(rest))]

    def execute(self, words: tuple[bytes, ...] = (b"/d", b"x")) -> None:
        with pytest.raises(AssertionError, match="ends the process"):
            joining.execute_delegate(self.plan, list(words), self.defaults, {b"CORE_PID": b"7"}, CHILD)

    def write(self, wanted: bool = True, path: bytes = b"/tmp/core.1.2.3", core_read_end: int = 51) -> None:
        child: Any = SimpleNamespace(status_write_end=50, core_read_end=core_read_end)
        fallback.write(self.plan, path, wanted, child)


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
PRIVILEGES = (
    *("raise_hard_limits", "take_over_ids", "join_user_namespace", "limit_capabilities", "confine", "limit_file_size"),
)
LAST = [
    "join control group of processes",
    "take over session, umask and signals",
    "take over processors",
    "take over limits",
    "execute delegate",
]
CHILD: Any = SimpleNamespace(status_write_end=50, core_read_end=51, standard_streams=lambda: {0: 51, 1: 52, 2: 53})


@pytest.fixture
def ended(recorder: Recorder) -> None:
    """Have the end of a process that wrote the core file be noted only."""
    recorder.watch(posix, "_exit", Ended())


class Ended(Exception):
    """The child would have ended."""


def test_privileges_are_given_away_step_by_step_before_the_delegate_is_opened(recorder: Recorder) -> None:
    line = Line(recorder)
    line.execute()
    assert line.names() == [
        *("read environment", "give pipes", "join control groups", *ENTRY),
        *("open delegate", "take over label", "prepare execution", "start delegate"),
    ]
    assert (line.of("open label"), line.of("take over label")) == ([("open",)], [("at_exec",)])
    assert [line.of(step) for step in ENTRY[2:]] == [
        [(name, line.process)]
        for name in (
            *("join_namespaces", "take_over_ids", "join_user_namespace", "enter_root", "limit_capabilities", "confine"),
        )
    ]


def test_the_core_file_is_created_after_all_privileges_were_given_away(recorder: Recorder, ended: None) -> None:
    line = Line(recorder)
    for name in ("copy", "rename"):
        recorder.watch(fallback, name)
    with pytest.raises(Ended):
        line.write()
    first = ["read environment", "join control groups"]
    assert line.names() == [
        *first,
        *ENTRY,
        "take over label",
        "count fallback files",
        "create fallback file",
        "write fallback file",
        "rename fallback file",
    ]
    assert line.of("take over label") == [("at_once",)]
    assert line.of("write fallback file") == [("send", "ready", ""), ("copy", 51, 9, fallback.NO_LIMIT)]
    names = b"/tmp/core.1.2.3.truncated", b"/tmp/core.1.2.3"
    assert line.of("rename fallback file") == [("rename", *names), ("_exit", 0)]


def test_what_cannot_be_taken_over_of_the_scheduling_is_a_note_and_limits_get_room(recorder: Recorder) -> None:
    line = Line(recorder)
    line.execute()
    assert line.of("take over scheduling") == [
        ("take_over_scheduling", line.process),
        ("send", "note", "take_over_scheduling"),
        ("go_first",),
        ("send", "note", "go_first"),
        ("raise_hard_limits", line.process),
    ]


@pytest.mark.parametrize(("variables", "told"), [({}, ""), ({FALLBACK_VARIABLE: b""}, "fallback")])
def test_that_the_environment_was_read_is_told_and_whether_it_asks_for_the_core_file(
    recorder: Recorder, variables: dict[bytes, bytes], told: str
) -> None:
    line = Line(recorder, read_environ=lambda: variables)
    line.execute()
    assert line.of("read environment") == [("send", "environ", told)]


def test_the_delegate_may_open_its_pipes_anew(recorder: Recorder) -> None:
    line = Line(recorder)
    line.execute()
    owner = (line.process.uid, line.process.gid)
    assert line.of("give pipes") == [
        *(("fchown", end, *owner) for end in (51, 52, 53)),
        ("open", "/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC),
        ("send", "note", "a note"),
    ]
    assert line.of("open delegate") == [("Program", [b"/d", b"x"], None, 99, b"/")]


STREAMS = [("dup2", source, target) for target, source in enumerate((51, 52, 53))]


@pytest.mark.parametrize(("late", "kept"), [(False, {60, 50}), (True, {60, 50, 70})])
def test_nothing_of_the_host_is_open_when_the_container_sees_us(recorder: Recorder, late: bool, kept: set[int]) -> None:
    line = Line(recorder)
    line.plan.late = late
    line.groups.others = [("pids", 70), ("memory", 71)]
    recorder.monkeypatch.setattr(line.groups, "join", lambda: [])
    line.execute()
    # And the pipes are where the delegate has them: no other descriptor tells that it is one of ours.
    assert line.of("start delegate") == [*STREAMS, ("close_all_but", kept), ("fork",), ("send", "pid", "4711")]


def become(recorder: Recorder, **facts: Any) -> Line:
    """Return the line of the process that becomes the delegate."""
    line = Line(recorder, **facts)
    recorder.watch(posix, "fork", 0)
    recorder.monkeypatch.setattr(line.groups, "join", lambda counting_only=False: [])
    return line


def test_the_child_becomes_the_delegate_limits_last(recorder: Recorder) -> None:
    variables = {b"A": b"of the process", b"CORE_PID": b"1"}
    line = become(recorder, umask=0o027, read_environ=lambda: variables)
    line.plan.late = True
    line.execute()
    assert line.names()[-len(LAST) :] == LAST
    steps = [line.of(step) for step in LAST]
    assert steps[:3] == [
        [],
        [("setsid",), ("umask", 0o027), ("reset_signals",)],
        [("take_over_processors", line.process), ("send", "note", "take_over_processors")],
    ]
    # What the helper says of the crash is not for the process to say.
    environment = {b"A": b"of the process", b"CORE_PID": b"7"}
    # The limits may leave no memory for it.
    assert line.of("prepare execution") == [("prepare", environment)]
    assert steps[3] == [("set_limits", line.process), ("send", "note", "set_limits")]
    assert steps[4][0][0] == "execute" and isinstance(steps[4][0][1], status_pipe.StatusPipe)


def test_the_delegate_gets_from_the_engine_what_the_process_lacks(recorder: Recorder) -> None:
    line = become(recorder, read_environ=lambda: {b"A": b"of the process", b"EMPTY": b""})
    line.defaults = {b"A": b"x", b"EMPTY": b"x", b"B": b"of the engine", b"CORE_PID": b"1"}
    line.execute()
    environment = {b"A": b"of the process", b"EMPTY": b"", b"B": b"of the engine", b"CORE_PID": b"7"}
    assert line.of("prepare execution") == [("prepare", environment)]
    notes = [words[2] for words in recorder.done if words[:2] == ("send", "note") and "engine's" in words[2]]
    assert notes == ["B is the engine's: the process lacks it", "CORE_PID is the engine's: the process lacks it"]


def test_a_lent_program_is_copied_on_the_host_as_memory_of_the_container(recorder: Recorder) -> None:
    line = become(recorder, read_environ=lambda: {b"A": b"of the process"})
    program = SimpleNamespace(descriptor=60, prepare=line.noted("prepare"), execute=line.noted("execute"))

    def copy(*words: Any) -> Any:
        recorder.done.append(("copy", *words))
        return program

    def fill_in(words: list[bytes], environment: dict[bytes, bytes]) -> list[bytes]:
        recorder.done.append(("fill_in", dict(environment)))
        return [*words, b"filled"]

    lent: Any = SimpleNamespace(copy=copy, fill_in=fill_in)
    with pytest.raises(AssertionError, match="ends the process"):
        joining.execute_delegate(line.plan, [b"/lent"], {}, {b"CORE_PID": b"7"}, CHILD, lent)
    names = line.names()
    assert names[: names.index("start delegate") + 1] == [
        *("read environment", "give pipes", "join control groups", "copy lent program", *ENTRY),
        *("open delegate", "take over label", "prepare execution", "start delegate"),
    ]
    assert ("fill_in", {b"A": b"of the process", b"CORE_PID": b"7"}) in recorder.done
    # First to go before it takes memory.
    assert line.of("copy lent program") == [("go_first",), ("copy", [b"/lent", b"filled"], line.process)]
    assert "Program" not in recorder.names()
    assert line.of("execute delegate")[0][0] == "execute"


def test_a_container_that_may_not_have_one_more_process_is_crowded(recorder: Recorder) -> None:
    line = Line(recorder)
    recorder.watch(posix, "fork", BlockingIOError(11, "Resource temporarily unavailable"))
    with pytest.raises(status_pipe.Crowded, match=r"^Resource temporarily unavailable$"):
        joining.execute_delegate(line.plan, [b"/d"], {}, {}, CHILD)


@pytest.mark.parametrize(
    ("in_container", "uid", "why", "stopped"),
    [
        *((True, 1000, "a", True), (False, 0, "a", True), (True, 0, "a", True), (False, 1000, "a", False)),
        *((True, 1000, "b", True), (False, 1000, "b", True)),
    ],
)
def test_without_its_control_groups_a_delegate_is_only_that_of_a_user_where_a_hierarchy_is_not_mounted(
    recorder: Recorder, in_container: bool, uid: int, why: str, stopped: bool
) -> None:
    line = become(recorder, uid=uid, in_container=lambda: in_container)
    reasons = {"a": control_groups.NOT_MOUNTED, "b": "No such file or directory"}
    failures = [f"control group a: {reasons['a']}", f"control group b: {reasons[why]}"]
    for step, plan_is_late, fails in (
        ("join control groups", False, False),
        ("join control groups", True, False),
        ("join control group of processes", True, True),
    ):
        line.plan.late = plan_is_late
        recorder.monkeypatch.setattr(
            line.groups,
            "join",
            lambda counting_only=False, fails=fails, failures=failures: failures if counting_only is fails else [],
        )
        recorder.done.clear()
        if stopped:
            with pytest.raises(Stopped, match=f"^{'; '.join(failures)}$"):
                joining.execute_delegate(line.plan, [b"/d"], {}, {}, CHILD)
            assert line.of(step) == []
        else:
            line.execute()
            assert line.of(step) == [("send", "note", failure) for failure in failures]


@pytest.mark.parametrize("late", [True, False])
def test_control_groups_are_joined_before_anything_is_looked_up_or_a_process_of_ours_is_seen(
    recorder: Recorder, late: bool
) -> None:
    line = become(recorder)
    line.plan.late = late

    def join(counting_only: bool = False) -> list[str]:
        recorder.done.append(("joined", counting_only))
        return []

    recorder.monkeypatch.setattr(line.groups, "join", join)
    recorder.monkeypatch.setattr(line.groups, "leave", lambda: recorder.done.append(("left",)))
    line.execute()
    order = [
        words[:2] if words[0] == "joined" else words[0]
        for words in recorder.done
        if words[0] in ("joined", "left", "join_namespaces", "enter_root", "Program", "fork")
    ]
    looked_up = ["join_namespaces", "enter_root", "Program"]
    # All, but the one that counts processes may have forbidden the fork.
    if late:
        assert order == [("joined", False), *looked_up, "left", "fork", ("joined", True)]
    else:
        assert order == [("joined", False), *looked_up, "fork"]


@pytest.mark.parametrize("in_container", [True, False])
def test_the_interpreter_of_the_helper_is_forbidden_in_containers(recorder: Recorder, in_container: bool) -> None:
    crashed = process(in_container=lambda: in_container, root=os.open("/", os.O_PATH))
    recorder.watch(privileges, "check")
    plan = joining.prepare(crashed)
    os.close(crashed.root)
    own = os.stat("/proc/self/exe")
    assert plan.interpreter == ((own.st_dev, own.st_ino) if in_container else None)
    assert (recorder.done, plan.process) == ([("check", crashed)], crashed)


def test_the_interpreter_of_a_server_that_has_left_its_container_is_that_of_the_container(recorder: Recorder) -> None:
    crashed = process(in_container=lambda: True, root=os.open("/", os.O_PATH))
    recorder.watch(privileges, "check")
    recorder.monkeypatch.setattr(sys, "executable", "/missing")
    assert joining.prepare(crashed, (7, 8)).interpreter == (7, 8)
    os.close(crashed.root)


def test_a_delegate_below_a_root_directory_that_was_changed_is_looked_at_closely(
    recorder: Recorder, tmp_path: Path
) -> None:
    recorder.watch(privileges, "check")
    for path, root in (("/", b"/"), (tmp_path, os.fsencode(tmp_path))):
        crashed = process(in_container=lambda: True, root=os.open(path, os.O_PATH))
        assert joining.prepare(crashed).root == root
        os.close(crashed.root)


def test_what_cannot_be_taken_over_is_refused_before_anything_is_opened(recorder: Recorder) -> None:
    recorder.watch(control_groups, "open_control_groups")
    with pytest.raises(Refused):
        joining.prepare(process(seccomp=1))
    assert recorder.done == []


# The child and what it reports.


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Absent("no such file"), "absent no such file"),
        (status_pipe.Crowded("too many"), "crowded second: too many"),
        (Refused("not for you"), "refused not for you"),
        (Stopped("a\nb"), r"failed second: a\nb"),
        (OSError(1, "Operation not permitted", "setns"), "failed second: Operation not permitted"),
        (KeyError("x"), "failed second: KeyError: 'x'"),
        (SystemExit(3), "failed second: SystemExit: 3"),
    ],
)
def test_the_first_failure_is_reported_and_the_rest_is_not_done(error: BaseException, line: str) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with status_pipe.StatusPipe(writing) as status:
                status.step = "first"
                status.send("note", "1")
                status.step = "second"
                raise error
        finally:
            os._exit(9)
    os.close(writing)
    with open(reading) as pipe:
        assert pipe.read() == f"note 1\n{line}\n"
    assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 1


def test_no_step_can_load_code() -> None:
    def loaded() -> object:
        status_pipe.lock_interpreter()
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
            with status_pipe.StatusPipe(writing) as status:
                status.note([f"{sys.path}{sys.meta_path}"])
        finally:
            os._exit(9)
    os.close(writing)
    with open(reading) as pipe:
        assert pipe.read() == "note [][]\n"
    os.waitpid(pid, 0)


# The core file.


def test_a_core_file_that_was_asked_for_needs_no_variable(recorder: Recorder, ended: None) -> None:
    line = Line(recorder, read_environ=None)
    for name in ("copy", "rename"):
        recorder.watch(fallback, name)
    with pytest.raises(Ended):
        line.write()
    assert line.of("read environment") == [("send", "environ", "")]


def test_a_core_file_that_nobody_asked_for_is_not_written(recorder: Recorder, ended: None) -> None:
    line = Line(recorder)
    with pytest.raises(Absent, match=r"^the fallback file is not asked for$"):
        line.write(wanted=False)
    assert line.names() == ["read environment"]
    recorder.done.clear()
    line.process.read_environ = lambda: {FALLBACK_VARIABLE: b"1"}
    for name in ("copy", "rename"):
        recorder.watch(fallback, name)
    with pytest.raises(Ended):
        line.write(wanted=False)
    assert line.of("read environment") == [("send", "environ", "fallback")]


def test_what_writes_the_core_file_is_in_the_groups_and_on_the_processors_of_the_process(
    recorder: Recorder, ended: None
) -> None:
    line = Line(recorder)
    recorder.monkeypatch.setattr(line.groups, "join", lambda: ["group"])
    for name in ("copy", "rename"):
        recorder.watch(fallback, name)
    with pytest.raises(Ended):
        line.write()
    assert line.of("join control groups") == [
        ("send", "note", "group"),
        ("take_over_processors", line.process),
        ("send", "note", "take_over_processors"),
    ]


def test_the_core_file_is_opened_for_writing_alone_and_must_be_new(recorder: Recorder, ended: None) -> None:
    line = Line(recorder)
    for name in ("copy", "rename"):
        recorder.watch(fallback, name)
    with pytest.raises(Ended):
        line.write()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    assert line.of("create fallback file") == [
        ("limit_file_size", line.process),
        ("umask", 0o077),
        ("openat2", b"/tmp/core.1.2.3.truncated", flags, 0o600),
    ]


def test_the_core_file_is_the_owners_whatever_the_mask_was(recorder: Recorder, ended: None, tmp_path: Path) -> None:
    path = tmp_path / "core"
    real, real_umask = linux.openat2, posix.umask
    line = Line(recorder)
    recorder.monkeypatch.setattr(linux, "openat2", real)
    recorder.monkeypatch.setattr(posix, "umask", real_umask)
    for name in ("copy", "rename"):
        recorder.watch(fallback, name)
    before = os.umask(0o777)
    try:
        with pytest.raises(Ended):
            line.write(path=os.fsencode(path))
        assert real_umask(0o777) == 0o077
        assert (tmp_path / "core.truncated").stat().st_mode & 0o7777 == 0o600
        with pytest.raises(Stopped, match="File exists"):
            line.write(path=os.fsencode(path))
    finally:
        real_umask(before)


def copied(tmp_path: Path, core: bytes) -> Path:
    path = tmp_path / "core"
    reading, sink = os.pipe()
    os.write(sink, core)
    os.close(sink)
    with open(path, "wb") as file:
        try:
            fallback.copy(reading, file.fileno())
        finally:
            os.close(reading)
    return path


def test_the_core_is_on_the_disk_before_that_is_told(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = posix.pwrite, []

    def pwrite(file: int, block: bytes, offset: int) -> int:
        sizes.append(len(block))
        # A disk may take less than it was given.
        return real(file, block[:3], offset)

    monkeypatch.setattr(posix, "pwrite", pwrite)
    recorder.watch(posix, "fsync")
    assert copied(tmp_path, b"12345678").read_bytes() == b"12345678"
    assert sizes == [8, 5, 2]
    assert recorder.names() == ["fsync"]


def test_a_disk_that_fails_at_the_end_is_told(recorder: Recorder, tmp_path: Path) -> None:
    recorder.watch(posix, "fsync", OSError(5, "Input/output error"))
    with pytest.raises(Stopped, match=r"^Input/output error after 4 bytes$"):
        copied(tmp_path, b"core")
