"""verification: the process opened, verified, described. No process here crashes: those that are looked at are our own."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from core_helper import linux, procfs, verification
from core_helper.crash import Crash, Refused
from core_helper.process import FaultingProcess

PROC = "/proc"
STATUS = {"CoreDumping": "1", "Tgid": "4711", "Uid": "1000\t1000\t1000\t1000", "Gid": "100\t100\t100\t100"}


def stat_of(start: int) -> bytes:
    return b"1 (a) R " + b" ".join([b"0"] * 18) + b" %d 0 0" % start


OLD, YOUNG = stat_of(100), stat_of(200)


@pytest.fixture
def crash() -> Crash:
    crash = Crash(4711, 1000, 100)
    crash.tid = 4711
    return crash


@pytest.fixture
def proc() -> Iterator[int]:
    descriptor = os.open(PROC, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_the_process_that_dumps_core_is_accepted(crash: Crash) -> None:
    verification.verify(crash, STATUS)
    verification.verify_age(crash, OLD, YOUNG)
    verification.verify_age(crash, OLD, OLD)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("CoreDumping", "0", "not dumping core"),
        ("CoreDumping", "", "not dumping core"),
        ("Tgid", "4712", "does not belong"),
        ("Tgid", "", "does not belong"),
        ("Uid", "0\t1000\t1000\t1000", "does not have the ids 1000:100"),
        ("Gid", "0\t100\t100\t100", "does not have the ids 1000:100"),
    ],
)
def test_another_process_is_refused(crash: Crash, field: str, value: str, complaint: str) -> None:
    with pytest.raises(Refused, match=complaint):
        verification.verify(crash, {**STATUS, field: value})


def test_a_process_that_is_younger_than_the_helper_is_refused(crash: Crash) -> None:
    with pytest.raises(Refused, match="younger than its own crash"):
        verification.verify_age(crash, YOUNG, OLD)


def test_an_older_kernel_that_does_not_tell_whether_it_dumps_is_refused(crash: Crash) -> None:
    with pytest.raises(Refused, match="not dumping core"):
        verification.verify(crash, {key: value for key, value in STATUS.items() if key != "CoreDumping"})


@pytest.mark.parametrize("value", ["0", "1"])
def test_whether_a_process_is_still_being_dumped_is_not_for_its_name_to_say(value: str) -> None:
    # As the kernel prints the name "a\\nCoreDumping:\\t1".
    status = f"Name:\ta\\nCoreDumping:\t1\nTgid:\t7\nCoreDumping:\t{value}\nThreads:\t1\n"
    assert procfs.still_dumping(status.encode()) is (value == "1")


def test_the_pidfd_must_be_of_the_same_process(crash: Crash) -> None:
    verification.verify_pidfd(crash, b"pos:\t0\nflags:\t02000002\nPid:\t4711\nNSpid:\t4711\n")
    for fdinfo in (b"Pid:\t4712\n", b"Pid:\t-1\n", b"pos:\t0\n", b""):
        with pytest.raises(Refused, match="pidfd of the kernel"):
            verification.verify_pidfd(crash, fdinfo)


ROOT, USER, SECURE = True, False, True
COREDUMP_USER, COREDUMP_ROOT = linux.PIDFD_COREDUMP_USER | 1, linux.PIDFD_COREDUMP_ROOT | 1


@pytest.mark.parametrize(
    ("dumpable", "mask", "owner", "secure", "delegated"),
    [
        # The kernel's word on the command line decides.
        (1, None, USER, False, True),
        (1, None, ROOT, False, True),
        (2, None, USER, False, False),
        (0, None, USER, False, False),
        (3, None, USER, False, False),
        # So does that of the pidfd, and a contradiction is refused.
        (None, COREDUMP_USER, ROOT, False, True),
        (None, COREDUMP_ROOT, USER, False, False),
        (None, 1, USER, False, False),
        (1, COREDUMP_USER, USER, False, True),
        (1, COREDUMP_ROOT, USER, False, False),
        (1, COREDUMP_USER | COREDUMP_ROOT, USER, False, False),
        (2, COREDUMP_USER, USER, False, False),
        # Lacking both, the owner of /proc/PID.
        (None, None, USER, False, True),
        (None, None, ROOT, False, False),
        # And AT_SECURE in any case.
        (1, COREDUMP_USER, USER, SECURE, False),
        (None, None, USER, SECURE, False),
    ],
)
def test_the_core_of_a_set_id_program_is_never_delegated(
    crash: Crash,
    monkeypatch: pytest.MonkeyPatch,
    dumpable: int | None,
    mask: int | None,
    owner: bool,
    secure: bool,
    delegated: bool,
) -> None:
    crash.dumpable = dumpable
    crash.pidfd = None if mask is None else 3
    monkeypatch.setattr(linux, "pidfd_coredump_mask", lambda _: mask)
    found = os.stat_result((0, 0, 0, 0, 0, 0, 0, 0, 0, 0) if owner is ROOT else (0, 0, 0, 0, 1000, 100, 0, 0, 0, 0))
    if delegated:
        verification.refuse_set_id(crash, STATUS, secure, found)
    else:
        with pytest.raises(Refused, match="never delegated"):
            verification.refuse_set_id(crash, STATUS, secure, found)


@pytest.mark.parametrize("field", ["Uid", "Gid"])
@pytest.mark.parametrize("ids", ["0 9 9 9", "9 0 9 9", "9 9 0 9", "9 9 9 0"])
def test_a_program_with_changed_ids_is_never_delegated(crash: Crash, field: str, ids: str) -> None:
    crash.dumpable = 1
    with pytest.raises(Refused, match="changed ids"):
        verification.refuse_set_id(crash, {**STATUS, field: ids}, False, os.stat("/"))


@pytest.mark.parametrize("tid", [None, os.getpid()], ids=["untold", "leader"])
def test_the_task_of_this_process_is_opened(proc: int, tid: int | None) -> None:
    task = verification.open_task(proc, os.getpid(), tid)
    assert procfs.parse_status(procfs.read(task, "status"))["Pid"] == str(os.getpid())
    assert os.get_inheritable(task) is False
    os.close(task)


def test_the_task_of_the_faulting_thread_is_opened(proc: int) -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        tid = next(int(name) for name in os.listdir("/proc/self/task") if int(name) != os.getpid())
        task = verification.open_task(proc, os.getpid(), tid)
        assert procfs.parse_status(procfs.read(task, "status"))["Pid"] == str(tid)
        os.close(task)
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize("tid", [None, 1, 2**22 + 1])
def test_a_process_that_is_gone_is_missing(proc: int, tid: int | None) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(verification.Missing, match=f"process {pid} is gone"):
        verification.open_task(proc, pid, tid)


def test_a_thread_of_another_process_is_refused(proc: int) -> None:
    with pytest.raises(Refused):
        verification.open_task(proc, os.getpid(), os.getppid())


def test_a_thread_stands_for_the_process_whose_leader_has_exited(proc: int) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)

        def stay() -> None:
            os.write(writing, b"%d" % threading.get_native_id())
            time.sleep(30)

        library = ctypes.CDLL(None)
        threading.Thread(target=stay).start()
        # The call that ends only the calling thread, which the C library does not offer.
        library.syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
    try:
        tid = int(os.read(reading, 100))
        while Path(f"/proc/{pid}/task/{pid}/stat").read_bytes().split()[2] != b"Z":
            time.sleep(0.001)
        task = verification.open_task(proc, pid, None)
        assert procfs.parse_status(procfs.read(task, "status"))["Pid"] == str(tid)
        os.close(task)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


def test_a_living_process_is_not_taken_for_a_crashed_one() -> None:
    crash = Crash(os.getpid(), os.getuid(), os.getgid())
    with pytest.raises(Refused, match="not dumping core"):
        verification.examine(crash)


def test_a_process_is_described_by_what_its_proc_directory_says(tmp_path: Path) -> None:
    # The thread's, as the helper opens it: a file that only the process has lies two directories up.
    task = os.open(f"/proc/self/task/{os.getpid()}", os.O_PATH | os.O_DIRECTORY)
    own = FaultingProcess(task, 99, [], [], procfs.parse_status(procfs.read(task, "status")))
    os.close(task)
    assert (own.uid, own.gid, own.groups) == (os.getuid(), os.getgid(), os.getgroups())
    assert (own.pid, own.root) == (os.getpid(), 99)
    assert (own.exe, own.nice) == (os.readlink(b"/proc/self/exe"), os.nice(0))
    assert own.comm == Path("/proc/self/comm").read_bytes()[:-1]
    umask = os.umask(0)
    os.umask(umask)
    assert own.umask == umask
    assert own.permitted == linux.permitted_capabilities()
    assert (own.notes, own.hostname) == ([], b"")
    assert b"PATH" in own.read_environ()
    assert (own.policy, own.processors) == (os.sched_getscheduler(0), os.sched_getaffinity(0))
    assert (own.user_namespace, own.in_container()) == (None, False)
