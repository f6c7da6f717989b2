"""supervisor: the start of a child and its failures, and the end of what hangs."""

from __future__ import annotations

import _thread
import os
import posix
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from core_helper import family, joining, linux, relay, status_pipe, supervisor
from core_helper.child import Child, Result
from core_helper.deadline import Deadline, signals
from core_helper.program import Stopped
from unit.helper.delivery import LONG, PATIENCE, deliver, end, is_gone, shell, supervise, wait_for_text
from unit.helper.support import in_child, process

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("without_entry")


def test_the_delegate_has_its_environment_session_and_mask_and_default_signals() -> None:
    # The last one takes the place of the shell, which blocks signals while it starts others.
    script = (
        "exec >&2; echo $A $CORE_PID; cut -d' ' -f6 /proc/$$/stat; echo $$; umask; "
        "exec grep -E '^Sig(Ign|Blk)' /proc/self/status"
    )
    result = deliver(shell(script), environment={b"A": b"1", b"CORE_PID": b"7"})
    first, session, pid, umask, *masks = result.logged
    assert (first, session, umask) == ("1 7", pid, "0022")
    # But for the C library's own 32 and 33, which it lets nobody change, and which some test runners leave ignored.
    assert [int(line.split()[1], 16) & ~(3 << 31) for line in masks] == [0, 0]


def test_a_missing_delegate_is_told_as_absent() -> None:
    result = deliver(["/missing/delegate"], bytes(LONG))
    assert (result.started, result.absent, result.delivered) == (False, True, 0)
    assert result.failure == "/missing/delegate: No such file on this host: put the delegate there"


def test_a_delegate_that_cannot_be_executed_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "delegate").write_bytes(b"garbage")
    (tmp_path / "delegate").chmod(0o755)
    result = deliver([str(tmp_path / "delegate")])
    assert (result.started, result.absent) == (False, False)
    assert result.failure == f"execute delegate: {tmp_path}/delegate: Exec format error"


def failing(action: Callable[[], object], timeout: float = PATIENCE, once: Path | None = None) -> Any:
    """Return what the supervisor says of a child whose entry does ``action``."""

    def run(child: Child) -> None:
        with status_pipe.StatusPipe(child.status_write_end) as status:
            status.step = "enter"
            action()

    return supervise(run, timeout=timeout, once=once)


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (PermissionError(1, "Operation not permitted", "setns"), "enter: Operation not permitted"),
        (Stopped("a\nb"), "enter: a\\nb"),
        (RuntimeError("odd \udcff"), "enter: RuntimeError: odd \\udcff"),
        (MemoryError(), "enter: MemoryError: "),
        (KeyboardInterrupt(), "enter: KeyboardInterrupt: "),
    ],
)
def test_the_step_that_failed_is_told(error: BaseException, failure: str) -> None:
    result = failing(raising(error))
    assert (result.started, result.absent, result.crowded, result.failure) == (False, False, False, failure)


def test_a_crowded_container_is_told_as_such() -> None:
    result = failing(raising(status_pipe.Crowded("Resource temporarily unavailable")))
    assert (result.started, result.crowded) == (False, True)
    assert result.failure == "enter: Resource temporarily unavailable"


def test_an_entry_that_is_killed_is_told() -> None:
    result = failing(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert (result.started, result.failure) == (False, "the process that enters the container was killed")


def test_an_entry_that_hangs_is_ended_at_the_deadline() -> None:
    result = failing(lambda: time.sleep(60), timeout=0.5)
    assert (result.started, result.failure) == (False, "deadline passed before the delegate was started")
    assert result.seconds < PATIENCE


@pytest.mark.parametrize(
    ("ends", "timeout", "failure"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), PATIENCE, "the process that enters the container was killed"),
        (lambda: time.sleep(60), 0.5, "deadline passed before the delegate was started"),
    ],
    ids=["killed", "late"],
)
def test_a_delegate_whose_pid_was_never_told_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Callable[[], object], timeout: float, failure: str
) -> None:
    tell = status_pipe.StatusPipe.send

    def send(status: status_pipe.StatusPipe, kind: str, text: str) -> None:
        if kind == "pid":
            (tmp_path / "pid").write_text(text)
            ends()
        tell(status, kind, text)

    monkeypatch.setattr(status_pipe.StatusPipe, "send", send)
    result = deliver(shell("sleep 60"), timeout=timeout, once=tmp_path / "pid")
    assert (result.started, result.failure) == (False, failure)
    pid = int((tmp_path / "pid").read_text())
    gone = is_gone(pid)
    end(pid)
    assert gone


def test_a_delegate_that_hangs_before_it_is_executed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*words: object) -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(60)

    monkeypatch.setattr(joining, "_become_delegate", hang)
    result = deliver(shell("exit 0"), timeout=0.5, once=tmp_path / "pid")
    assert (result.started, result.failure) == (False, "deadline passed before the delegate was started")
    assert result.left == 0
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_an_error_of_the_thread_that_attends_to_the_child_is_the_supervisors(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: object) -> bool:
        raise RuntimeError("broken")

    monkeypatch.setattr(supervisor, "_wait_for_start", broken)
    with pytest.raises(AssertionError, match="RuntimeError: broken"):
        supervise(lambda child: os._exit(0), timeout=0.5)


def test_an_error_in_the_middle_of_a_core_lets_no_delegate_take_that_for_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    splice, moved = relay.Relay._splice, [0]

    def broken(self: relay.Relay) -> int:
        if moved[0] > LONG // 4:
            raise OSError(5, "Input/output error")  # As of the disk on which the host keeps the core.
        moved[0] += (count := splice(self))
        return count

    monkeypatch.setattr(relay.Relay, "_splice", broken)
    script = 'echo $$ >"$2"; cat >"$0"; mv "$0" "$1"'
    part, core, pid = tmp_path / "part", tmp_path / "core", tmp_path / "pid"
    with pytest.raises(AssertionError, match="Input/output error"):
        deliver(shell(script, part, core, pid), bytes(LONG))
    assert is_gone(int(pid.read_text()))
    assert part.stat().st_size > 0 and not core.exists()


@pytest.fixture
def immortal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No signal of the supervisor ends a process: as if it hung in a file system that does not answer."""
    monkeypatch.setattr(family, "GRACE", 0.2)
    for name in ("kill", "killpg"):
        monkeypatch.setattr(posix, name, lambda pid, number: None)


@pytest.mark.usefixtures("immortal")
def test_an_entry_that_cannot_be_ended_is_left(tmp_path: Path) -> None:
    def hang() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(60)

    result = failing(hang, timeout=0.5, once=tmp_path / "pid")
    assert result.failure == "deadline passed before the delegate was started"
    assert result.left == int((tmp_path / "pid").read_text())


@pytest.mark.usefixtures("immortal")
def test_a_delegate_that_cannot_be_ended_is_left(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    result = deliver(shell('echo $$ >"$0"; exec sleep 60', pid), timeout=0.5, once=pid)
    assert (result.started, result.failure) == (True, "deadline passed")
    assert result.left == int(pid.read_text())


@pytest.mark.usefixtures("immortal")
def test_a_delegate_that_cannot_be_ended_and_whose_pid_was_never_told_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = status_pipe.StatusPipe.send

    def send(status: status_pipe.StatusPipe, kind: str, text: str) -> None:
        if kind == "pid":
            (tmp_path / "pid").write_text(text)
            os._exit(1)
        tell(status, kind, text)

    monkeypatch.setattr(status_pipe.StatusPipe, "send", send)
    result = deliver(shell("exec sleep 60"))
    assert result.failure == "the process that enters the container was killed"
    assert result.left == int((tmp_path / "pid").read_text())


@pytest.mark.parametrize("script", ["cat >/dev/null", "exit 7", "sleep 60"])
def test_of_a_delegate_that_has_ended_nothing_is_left(script: str) -> None:
    assert deliver(shell(script), timeout=0.5).left == 0


def lives(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(0.1)
    except subprocess.TimeoutExpired:
        return True
    return False


def test_a_pid_that_is_not_our_childs_is_not_believed(innocent: subprocess.Popen[bytes]) -> None:
    def run(child: Child) -> None:
        status_pipe.StatusPipe(child.status_write_end).send("pid", str(innocent.pid))
        os._exit(0)

    assert supervise(run).failure == "the process that enters the container was killed"
    assert lives(innocent)


def test_no_signal_is_sent_to_a_pid_that_is_not_our_childs(innocent: subprocess.Popen[bytes]) -> None:
    def run(child: Child) -> None:
        status = status_pipe.StatusPipe(child.status_write_end)
        status.send("pid", str(innocent.pid))
        status.send("failed", "why")
        os._exit(0)

    assert supervise(run).failure == "why"
    assert lives(innocent)


def test_no_signal_is_sent_to_a_pid_that_was_reaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It may belong to any process of the host by then.
    log = tmp_path / "calls"

    def recorded(name: str) -> Callable[..., Any]:
        real = getattr(posix, name)

        def call(*arguments: int) -> Any:
            with log.open("a") as file:
                file.write(" ".join([name, *(str(argument) for argument in arguments)]) + "\n")
            found = real(*arguments)
            if name == "waitpid" or (name == "waitid" and found is not None and not arguments[2] & os.WNOWAIT):
                with log.open("a") as file:
                    file.write(f"reaped {found[0]}\n")
            return found

        return call

    for name in ("kill", "killpg", "waitpid", "waitid"):
        monkeypatch.setattr(posix, name, recorded(name))
    # What left the session of the delegate may keep the supervisor waiting for its whole grace.
    script = 'setsid sleep 60 </dev/null >&- 2>&- & echo $! >"$0"; sleep 60'
    deliver(shell(script, tmp_path / "pid"), timeout=0.5, once=tmp_path / "pid")
    end(int((tmp_path / "pid").read_text()))
    calls = log.read_text().splitlines()
    delegate_pid = next(call.split()[1] for call in calls if call.startswith("kill "))
    signals = [
        n for n, call in enumerate(calls) if call.split()[0] in ("kill", "killpg") and delegate_pid in call.split()
    ]
    assert signals and f"reaped {delegate_pid}" not in calls[: signals[-1]]


def test_notes_are_kept_in_order() -> None:
    def run(child: Child) -> None:
        status = status_pipe.StatusPipe(child.status_write_end)
        for text in ("one", "two\nlines"):
            status.send("note", text)
        status.send("absent", "no")
        os._exit(0)

    result = supervise(run)
    assert (result.notes, result.absent, result.failure) == (["one", "two\\nlines"], True, "no")


@pytest.mark.parametrize(
    ("report", "pid"), [("4194304", 4194304), ("7", 7), ("41943040", 0), ("-7", 0), ("\u00b2", 0), ("", 0)]
)
def test_a_pid_is_a_number_that_the_kernel_gives(report: str, pid: int) -> None:
    child: Any = SimpleNamespace(reported=f"pid {report}\nrest".encode(), reported_pid=0)
    result = Result()
    assert supervisor._read_reports(child, result) is False
    assert (child.reported_pid, child.reported) == (pid, b"rest")
    assert result.failure == (None if pid else report)


def test_whoever_traces_the_delegate_says_neither_that_it_is_ready_nor_that_it_is_another() -> None:
    child: Any = SimpleNamespace(reported=b"pid 7\npid 8\nready \n", reported_pid=0, stays=False)
    result = Result()
    assert supervisor._read_reports(child, result) is False
    assert (child.reported_pid, result.failure) == (7, "somebody else reported that it is ready")


@pytest.mark.parametrize("kind", ["absent", "crowded", "refused", "failed"])
def test_the_first_failure_that_is_reported_tells_what_became_of_the_core(kind: str) -> None:
    child: Any = SimpleNamespace(reported=f"{kind} why\nabsent later\nrefused later\n".encode())
    result = Result()
    assert supervisor._read_reports(child, result) is False
    assert (result.failure, result.notes) == ("why", [])
    assert [name for name in ("absent", "crowded", "refused") if getattr(result, name)] == [kind][: kind != "failed"]


def test_a_child_that_reports_without_end_is_ended() -> None:
    def run(child: Child) -> None:
        status = status_pipe.StatusPipe(child.status_write_end)
        while True:
            status.send("note", "x" * 1000)

    result = supervise(run)
    told = "more than 65536 bytes were reported before the delegate was started"
    assert (result.started, result.failure, result.left) == (False, told, 0)


@pytest.mark.parametrize("started", [True, False])
def test_where_the_thread_that_attends_to_the_child_is_late_another_one_ends_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    def wait(child: Child) -> bool:
        while not child.ending.locked():
            time.sleep(0.001)
        return False

    monkeypatch.setattr(supervisor, "LATE", 0.0)
    if started:
        monkeypatch.setattr(relay.Relay, "run", lambda moving, deadline: wait(moving.child))
    else:
        monkeypatch.setattr(supervisor, "_wait_for_start", lambda child, result, deadline: wait(child))
    begun, asked = tmp_path / "begun", tmp_path / "asked"
    monkeypatch.setattr(family, "kill_holders", lambda *words: asked.open("a").write("x"))
    result = deliver(shell('echo >"$0"; exec sleep 60', begun), timeout=0.5, once=begun)
    assert (result.started, result.stuck, result.left) == (started, False, 0)
    # With the family of a delegate; and in any case, since a holder of a pipe may be what keeps the thread.
    assert asked.read_text() == ("xx" if started else "x")


def test_who_has_the_status_pipe_of_a_child_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    def run(child: Child) -> None:
        status_pipe.StatusPipe(child.status_write_end).send("ready", "")
        if os.fork() == 0:
            linux.close_all_but({child.status_write_end})
            (tmp_path / "pid").write_text(str(os.getpid()))
            time.sleep(60)
        wait_for_text(tmp_path / "pid")
        os._exit(0)

    result = supervise(run)
    end(int((tmp_path / "pid").read_text()))
    assert (result.started, result.failure) == (True, None)


def test_a_report_is_never_longer_than_what_a_pipe_takes_at_once() -> None:
    reading, writing = os.pipe()
    status_pipe.StatusPipe(writing).send("failed", "\xe4" * 5000)
    report = os.read(reading, 10000)
    assert len(report) <= 4096 and report.endswith(b"\n")
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("module", ["this", "_symtable"])
def test_no_module_can_be_imported_on_the_way(module: str) -> None:
    assert module not in sys.modules
    result = failing(lambda: __import__(module))
    assert result.failure == f"enter: ModuleNotFoundError: No module named '{module}'"


def test_a_delegate_that_never_reads_is_ended_at_the_deadline(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    result = deliver(shell('echo $$ >"$0"; sleep 60', pid), bytes(LONG), timeout=0.5, once=pid)
    assert (result.failure, result.complete, result.delivered) == ("deadline passed", False, 0)
    assert 0.5 <= result.seconds < PATIENCE
    assert is_gone(int(pid.read_text()))


def test_a_delegate_that_does_not_end_is_ended_at_the_deadline(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    # Time enough to read four bytes.
    result = deliver(shell('echo $$ >"$0"; cat >/dev/null; sleep 60', pid), b"core", timeout=2, once=pid)
    assert (result.failure, result.complete, result.delivered) == ("deadline passed", True, 4)
    assert is_gone(int(pid.read_text()))


@pytest.mark.parametrize("pipes", ["", "exec </dev/null >/dev/null 2>&1; "])
def test_a_delegate_that_ignores_the_first_signal_is_killed(tmp_path: Path, pipes: str) -> None:
    script = f'{pipes}trap "" TERM; echo $$ >"$0"; while :; do sleep 1; done'
    result = deliver(shell(script, tmp_path / "pid"), timeout=0.5, once=tmp_path / "pid")
    assert result.failure == "deadline passed"
    assert 0.8 <= result.seconds < PATIENCE
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_process_of_the_delegates_session_is_ended_with_it(tmp_path: Path) -> None:
    script = 'sleep 60 </dev/null >/dev/null 2>&1 & echo $! >"$0"; wait'
    result = deliver(shell(script, tmp_path / "pid"), timeout=0.5, once=tmp_path / "pid")
    pid = int((tmp_path / "pid").read_text())
    gone = is_gone(pid)
    end(pid)
    assert (result.failure, gone) == ("deadline passed", True)


def test_no_pipe_of_the_delegate_makes_the_supervisor_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    real = relay.Relay.run

    def run(moving: relay.Relay, deadline: Deadline) -> bool:
        child = moving.child
        pipes = (child.core_write_end, child.status_read_end, child.stdout_read_end, child.stderr_read_end)
        moving.output.log(str([os.get_blocking(pipe) for pipe in pipes]).encode())
        return real(moving, deadline)

    monkeypatch.setattr(relay.Relay, "run", run)
    assert deliver(shell("cat >/dev/null"), b"core").logged == ["[False, False, False, False]"]


def test_a_stopped_delegate_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    result = deliver(shell('echo $$ >"$0"; kill -STOP $$', pid), bytes(LONG), timeout=0.5, once=pid)
    assert result.failure == "deadline passed" and result.seconds < PATIENCE
    assert is_gone(int(pid.read_text()))


def test_the_input_does_not_end_before_a_delegate_that_is_ended(tmp_path: Path) -> None:
    # Which would complete an upload of half a core.
    begun, done = tmp_path / "begun", tmp_path / "complete"
    script = 'trap "" TERM; echo >"$0"; sleep 0.8; cat >/dev/null && echo >"$1"'
    deliver(shell(script, begun, done), bytes(LONG), timeout=0.5, once=begun)
    assert not done.exists()


@pytest.mark.parametrize("detached", ["", "setsid "])
def test_a_daemon_that_holds_the_input_frees_the_slot_at_the_deadline(tmp_path: Path, detached: str) -> None:
    script = f'exec 3<&0; {detached}sleep 60 <&3 3<&- & echo $! >"$0"; exit 0'
    result = deliver(shell(script, tmp_path / "pid"), bytes(LONG), timeout=0.5, once=tmp_path / "pid")
    pid = int((tmp_path / "pid").read_text())
    gone = is_gone(pid, 1.0 if detached else PATIENCE)
    end(pid)
    assert (result.failure, result.complete) == ("deadline passed", False)
    assert result.seconds < PATIENCE
    # Outside of containers nobody looks for one that left the session; it holds its own pipe only, never the kernel's.
    assert gone is (detached == "")


def test_a_daemon_does_not_keep_the_supervisor_once_the_delegate_has_ended(tmp_path: Path) -> None:
    script = 'exec 3<&0; setsid sleep 60 <&3 >&- 2>&- 3<&- & echo $! >"$0"; exit 0'
    result = deliver(shell(script, tmp_path / "pid"), b"small core")
    end(int((tmp_path / "pid").read_text()))
    # What nobody has read when the delegate ends is not called delivered.
    assert (result.failure, result.complete, result.delivered) == (None, False, 0)


def test_an_environment_that_cannot_be_read_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "ENVIRON_PATIENCE", 0.2)
    result = supervise(lambda child: time.sleep(60), timeout=2 * PATIENCE)
    assert (result.started, result.mute) == (False, True)
    # Half of the time would be longer.
    assert 0.2 <= result.seconds < PATIENCE


def test_half_of_the_time_is_left_for_a_second_try() -> None:
    result = supervise(lambda child: time.sleep(60), timeout=0.6)
    # Whoever was mute has not had all of the time.
    assert result.mute is True
    assert result.seconds >= 0.3


def test_a_delegate_that_is_slow_to_start_has_until_the_deadline_once_the_environment_was_read(tmp_path: Path) -> None:
    def run(child: Child) -> None:
        status_pipe.StatusPipe(child.status_write_end).send("environ", "")
        (tmp_path / "sent").write_text("environ")
        time.sleep(60)

    result = supervise(run, timeout=0.5, once=tmp_path / "sent")
    assert (result.mute, result.failure) == (False, "deadline passed before the delegate was started")


@pytest.mark.parametrize(("ended", "after"), [(True, []), (False, ["tracers", 0])])
def test_a_child_that_has_not_become_the_delegate_does_not_stay_for_its_tracer(
    monkeypatch: pytest.MonkeyPatch, ended: bool, after: list[object]
) -> None:
    done: list[object] = []

    def noted(word: object, answer: bool) -> bool:
        done.append(word)
        return answer

    monkeypatch.setattr(posix, "kill", lambda pid, number: done.append((pid, number)))
    monkeypatch.setattr(family, "wait_for_end", lambda pid, option: noted(option, ended))
    monkeypatch.setattr(family, "_kill_tracers", lambda pid, process: noted("tracers", True))
    child: Any = SimpleNamespace(pid=4711, setup_pid=0)
    supervisor._abandon(child, process())
    assert done == [(4711, signal.SIGKILL), 0, *after]


def test_a_child_that_nobody_can_attend_to_is_ended_before_the_end_of_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        wait_for_text(tmp_path / "begun")
        raise RuntimeError("can't start new thread")

    original, told = supervisor.supervise, []

    def supervise(*arguments: Any) -> Result:
        try:
            return original(*arguments)
        except OSError as error:
            told.append(str(error.strerror))
        time.sleep(0.3)
        told.extend(sorted(os.listdir(tmp_path)))
        result = Result()
        result.notes = told
        return result

    monkeypatch.setattr(supervisor, "supervise", supervise)
    thread = SimpleNamespace(allocate_lock=_thread.allocate_lock, start_new_thread=fail)
    monkeypatch.setattr(supervisor, "_thread", thread)
    result = deliver(shell('echo >"$0/begun"; cat >"$0/core"; touch "$0/whole"', tmp_path))
    assert result.notes == ["can't start new thread", "begun", "core"]


# Signals that tell the helper to end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_helper_that_is_told_to_end_ends_its_delegate_before_the_end_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    original = supervisor.supervise

    def heed(*arguments: Any) -> Result:
        signals.heed()
        return original(*arguments)

    monkeypatch.setattr(supervisor, "supervise", heed)
    script = f'head -c 65536 >"$0.core"; kill -{int(number)} $(cut -d" " -f4 /proc/$$/stat); cat >>"$0.core"; touch "$0.whole"'
    result = deliver(shell(script, tmp_path / "out"), bytes(8 << 20), timeout=30.0)
    assert result.failure == f"the helper was told to end by {signal.Signals(number).name}"
    assert result.started and not result.complete and result.seconds < 10
    assert os.listdir(tmp_path) == ["out.core"]


def test_a_helper_that_was_told_to_end_makes_no_child() -> None:
    def told() -> str:
        signals.heed()
        signals.wake = lambda: None
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            Child(SimpleNamespace(), SimpleNamespace(fork=os.fork), lambda child: os._exit(0))  # type: ignore[arg-type]
        except OSError as error:
            return str(error)
        return "made"

    assert in_child(told) == "the helper was told to end by SIGTERM"


def test_a_helper_that_waits_before_it_has_a_child_is_told_by_an_error_and_only_once() -> None:
    def told() -> str:
        signals.heed()
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        except OSError as error:
            os.kill(os.getpid(), signal.SIGTERM)
            return str(error)
        return "not told"

    assert in_child(told) == "the helper was told to end by SIGHUP"


def test_a_child_of_ours_ends_by_such_a_signal() -> None:
    def told() -> int:
        signals.heed()
        pid = os.fork()
        if pid == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except OSError:
                os._exit(7)
            os._exit(8)
        return os.waitpid(pid, 0)[1]

    assert in_child(told) == 1 << 8
