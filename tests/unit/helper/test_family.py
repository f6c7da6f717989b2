"""family: who is ended with a delegate, and who is not."""

from __future__ import annotations

import ctypes
import itertools
import os
import posix
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from core_helper import family, linux, namespaces, procfs
from unit.helper.support import PTRACE_TRACEME, process
from unit.helper.world import keeps_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("without_entry")


@pytest.mark.parametrize(
    ("ended", "traced", "after"), [(True, True, []), (False, False, ["tracers"]), (False, True, ["tracers", 0])]
)
def test_who_traces_the_delegate_is_looked_for_where_nothing_else_ends_it(
    monkeypatch: pytest.MonkeyPatch, ended: bool, traced: bool, after: list[object]
) -> None:
    done: list[object] = []

    def noted(word: object, answer: bool) -> bool:
        done.append(word)
        return answer

    monkeypatch.setattr(family, "_signal_session", lambda pid, number: done.append(number))
    monkeypatch.setattr(family, "kill_holders", lambda child, process: done.append("holders"))
    monkeypatch.setattr(family, "wait_for_end", lambda pid, option: noted(option, ended))
    monkeypatch.setattr(family, "_kill_tracers", lambda pid, process: noted("tracers", traced))
    child: Any = SimpleNamespace(pid=4711)
    family.end(child, process())
    assert done == [signal.SIGTERM, os.WNOWAIT, signal.SIGKILL, "holders", 0, *after]


def test_of_the_holders_of_a_pipe_only_those_of_the_container_and_user_are_ended() -> None:
    reading, writing = os.pipe()
    holder = subprocess.Popen(["/bin/sleep", "30"], stdin=reading, start_new_session=True)
    child: Any = SimpleNamespace(pid=0, setup_pid=holder.pid, pipes={f"pipe:[{os.fstat(writing).st_ino}]"})

    def found(kind: str, uid: int) -> set[int]:
        namespace = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
        own = process(uid=uid, namespaces=[("pid", linux.CLONE_NEWPID, namespace)])
        pids = set()
        for pidfd in family._holders(child, own):
            fdinfo = Path(f"/proc/self/fdinfo/{pidfd}").read_bytes()
            pids.add(int(procfs.parse_status(fdinfo)["Pid"]))
            os.close(pidfd)
        os.close(namespace)
        return pids

    try:
        # Any other namespace serves as that of another container.
        assert (found("pid", os.getuid()), found("mnt", os.getuid())) == ({holder.pid}, set())
        assert found("pid", os.getuid() + 1) == set()
        # In the pid namespace of the host root has daemons that a pipe may have been passed on to, and others have not.
        assert family._holders(child, process(uid=0)) == []
        group = procfs.parse_cgroup(Path("/proc/self/cgroup").read_bytes())
        for cgroups, mine in ((group, True), ([(name, b"/docker/" + b"a1" * 32) for name, _ in group], False)):
            own = process(uid=os.getuid(), cgroups=cgroups, container_id="a1" * 32)
            pidfds = family._holders(child, own)
            assert bool(pidfds) is mine
            for pidfd in pidfds:
                os.close(pidfd)
    finally:
        holder.kill()
        holder.wait()
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(("below", "of_it"), [(True, True), (False, False), (None, False)])
def test_who_is_in_a_pid_namespace_below_is_of_the_family_and_who_cannot_be_told_is_not(
    monkeypatch: pytest.MonkeyPatch,
    innocent: subprocess.Popen[bytes],
    below: bool | None,
    of_it: bool,
) -> None:
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    own = process(namespaces=[("pid", linux.CLONE_NEWPID, namespace)])

    def lineage(opened: int, last: int) -> list[int]:
        assert (os.fstat(opened).st_ino, last) == (os.stat("/proc/self/ns/pid").st_ino, namespaces.of_host("pid"))
        if below is None:
            raise PermissionError(1, "Operation not permitted")
        return [1, own.inode("pid")] if below else [1]

    monkeypatch.setattr(namespaces, "lineage", lineage)
    found: list[bool] = []
    assert keeps_descriptors(lambda: found.append(family._is_of_the_family(str(innocent.pid), own)))
    assert found == [of_it]
    assert not family._is_of_the_family(str(1 << 22), own)
    os.close(namespace)


def test_of_those_above_only_a_tracer_of_the_container_is_of_the_family(
    monkeypatch: pytest.MonkeyPatch, innocent: subprocess.Popen[bytes]
) -> None:
    own, name = os.open("/proc/self/ns/mnt", os.O_RDONLY), str(innocent.pid)
    below = process(namespaces=[("pid", linux.CLONE_NEWPID, own)])
    theirs, host = os.stat("/proc/self/ns/pid").st_ino, 7
    monkeypatch.setattr(namespaces, "of_host", lambda kind: host)

    def lineage(opened: int, last: int) -> list[int]:
        assert last == host
        return [below.inode("pid"), theirs, host] if opened == own else [theirs, host]

    monkeypatch.setattr(namespaces, "lineage", lineage)
    assert family._is_of_the_family(name, below, above=True)
    assert not family._is_of_the_family(name, below)
    # In the pid namespace of the host, only who is in the control group of the container.
    host = theirs
    assert not family._is_of_the_family(name, below, above=True)
    below.cgroups = [
        (controllers, b"/docker/" + b"a1" * 32) for controllers, _ in procfs.parse_cgroup(b"1:a:/\n0::/\n")
    ]
    for group, of_it in ((b"1:a:/docker/" + b"a1" * 32, True), (b"1:a:/docker/" + b"b1" * 32, False)):
        monkeypatch.setattr(procfs, "read_path", lambda path, group=group: group + b"\n0::/\n")
        assert family._is_of_the_family(name, below, above=True) is of_it
    os.close(own)


def test_who_has_too_much_open_is_not_looked_at_for_longer_than_the_grace() -> None:
    reading, writing = os.pipe()
    wanted = {os.readlink(f"/proc/self/fd/{reading}")}
    assert family._has_pipe("self", wanted, time.monotonic() + 10)
    assert not family._has_pipe("self", wanted, time.monotonic() - 1)
    os.close(reading)
    os.close(writing)


def test_what_is_closed_or_ends_meanwhile_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"/proc/7/task": ["8", "9", "10"], "/proc/7/task/9/fd": ["3", "4"]}
    links = {"/proc/7/task/9/fd/4": "pipe:[5]"}
    status = {
        "/proc/7/task/10/status": b"TracerPid:\t12\n",
        "/proc/7/task/9/status": b"TracerPid:\t0\n",
        "/proc/12/status": b"Tgid:\t11\nPid:\t12\n",  # A thread traces.
    }

    def look_up(table: dict[str, Any]) -> Callable[[str], Any]:
        def look(path: str) -> Any:
            if path not in table:
                raise FileNotFoundError(2, "No such file or directory")
            return table[path]

        return look

    monkeypatch.setattr(posix, "listdir", look_up(names))
    monkeypatch.setattr(posix, "readlink", look_up(links))
    monkeypatch.setattr(procfs, "read_path", look_up(status))
    assert family._has_pipe("7", {"pipe:[5]"}, time.monotonic() + 10)
    assert not family._has_pipe("7", {"pipe:[6]"}, time.monotonic() + 10)
    assert not family._has_pipe("12", {"pipe:[5]"}, time.monotonic() + 10)
    assert family._tracers_of(7) == {11}
    assert family._tracers_of(12) == set()


@pytest.mark.parametrize(("pid", "setup_pid"), [(20, 0), (0, 20), (20, 7)])
def test_of_the_holders_those_that_came_after_the_child_are_looked_for_first(
    monkeypatch: pytest.MonkeyPatch, pid: int, setup_pid: int
) -> None:
    looked_at: list[int] = []
    monkeypatch.setattr(family, "_is_of_the_family", lambda name, process: looked_at.append(int(name)))

    def pidfd_open(number: int) -> int:
        if number == 31:
            raise ProcessLookupError(3, "No such process")
        return os.open("/", os.O_PATH)

    # A host of 30 processes and one that has just ended, and time for those after the child and a few others.
    names = [str(number) for number in range(31, 0, -1)]
    monkeypatch.setattr(posix, "listdir", lambda path: [*names, "self"] if path == "/proc" else [])
    monkeypatch.setattr(linux, "pidfd_open", pidfd_open)
    times = itertools.count(0.0, family.GRACE / 15)
    monkeypatch.setattr(family, "time", SimpleNamespace(monotonic=lambda: next(times)))
    child: Any = SimpleNamespace(pid=pid, setup_pid=setup_pid, pipes=set())
    assert family._holders(child, process(uid=os.getuid(), container_id="a1" * 32)) == []
    assert looked_at[:11] == [*range(20, 31)] and looked_at[11:] == [*range(1, len(looked_at) - 10)]
    assert 11 < len(looked_at) < 30


def test_the_parent_of_a_process_that_has_ended_is_nobody() -> None:
    proc = os.open("/proc", os.O_PATH)
    assert (family._parent(proc, str(os.getpid())), family._parent(proc, str(1 << 22))) == (
        str(os.getppid()),
        "",
    )
    os.close(proc)


def test_the_tracers_of_a_tracer_are_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tracers = {1: {11, 12}, 11: {13}, 12: {1}, 13: {11}}
    ended: list[int] = []
    monkeypatch.setattr(family, "_tracers_of", lambda pid: tracers[pid])
    monkeypatch.setattr(family, "_has_family", lambda process: True)
    monkeypatch.setattr(family, "_is_of_the_family", lambda name, process, above: above)

    def opened(pid: int) -> int:
        ended.append(pid)
        return os.open("/", os.O_PATH)

    monkeypatch.setattr(linux, "pidfd_open", opened)
    monkeypatch.setattr(linux, "pidfd_send_signal", lambda pidfd, number: None)
    assert family._kill_tracers(1, process())
    assert sorted(ended) == [11, 12, 13]


def test_whoever_traces_a_thread_of_the_delegate_is_found() -> None:
    pid = os.fork()
    if pid == 0:
        if ctypes.CDLL(None).ptrace(PTRACE_TRACEME, 0, None, None) == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(77)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        pytest.skip("ptrace(2) is forbidden here")
    assert family._tracers_of(pid) == {os.getpid()}
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert family._tracers_of(pid) == set() == family._tracers_of(os.getpid())


@pytest.mark.parametrize(
    ("again", "has_family", "of_it", "ended"),
    [(True, True, True, True), (False, True, True, False), (True, False, True, False), (True, True, False, False)],
)
def test_only_a_tracer_of_the_family_is_ended(
    monkeypatch: pytest.MonkeyPatch, again: bool, has_family: bool, of_it: bool, ended: bool
) -> None:
    looks = [{4711}, {4711} if again else set(), set()]
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(family, "_tracers_of", lambda pid: looks.pop(0))
    monkeypatch.setattr(family, "_has_family", lambda process: has_family)
    monkeypatch.setattr(family, "_is_of_the_family", lambda name, process, above: of_it and name == "4711")
    monkeypatch.setattr(linux, "pidfd_open", lambda pid: os.open("/", os.O_PATH))
    monkeypatch.setattr(linux, "pidfd_send_signal", lambda pidfd, number: signals.append((pidfd, number)))
    found: list[bool] = []
    assert keeps_descriptors(lambda: found.append(family._kill_tracers(1, process())))
    assert found == [ended]
    assert [number for _, number in signals] == ([9] if ended else [])
