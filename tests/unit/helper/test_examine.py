"""verification.examine on a made-up /proc: what is asked, when, and what becomes of a process that changes meanwhile."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from core_helper import linux, verification
from core_helper.crash import Crash, Refused
from core_helper.process import FaultingProcess, Withheld
from unit.helper.test_process import FILES
from unit.helper.world import KINDS, World, keeps_descriptors

PID = 4711


class Crashing:
    """A process that is being dumped, in the files of a made-up host."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.monkeypatch = world, monkeypatch
        self.task = world.proc / str(PID) / "task" / str(PID)
        (self.task / "ns").mkdir(parents=True)
        for kind in (*KINDS, "ipc"):
            namespace = world.host.setdefault(kind, world.namespace())
            for directory in (self.task, world.proc / "self"):
                if not (directory / "ns" / kind).exists():
                    os.link(namespace, directory / "ns" / kind)
        for name, content in {**FILES, "stat": self.stat(100)}.items():
            (self.task / name).write_bytes(content)
        (self.task.parent.parent / "stat").write_bytes(self.stat(100))
        (world.proc / "self" / "stat").write_bytes(self.stat(200))
        (self.task / "root").symlink_to(world.directory)
        self.tell()
        self.secure(0)
        (world.proc / "sys" / "fs").mkdir(parents=True)
        self.dumpable("2")
        (world.proc / "self" / "fdinfo").mkdir()

    @staticmethod
    def stat(started: int) -> bytes:
        return b"4711 (a) D " + b"0 " * 18 + b"%d " % started + b"0 " * 30 + b"\n"

    def tell(self, **fields: str) -> None:
        uid, gid = str(os.getuid()), str(os.getgid())
        facts = {
            **{"Tgid": str(PID), "Pid": str(PID), "Uid": f"{uid}\t" * 4, "Gid": f"{gid}\t" * 4, "Groups": ""},
            **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd"), "0"),
            **{"CoreDumping": "1", "Threads": "1", **fields},
        }
        text = "Name:\ta\n" + "".join(f"{name}:\t{value}\n" for name, value in facts.items())
        (self.task / "status").write_text(text)

    def secure(self, value: int) -> None:
        self.auxv(struct.pack("=4Q", 23, value, 0, 0))

    def auxv(self, content: bytes) -> None:
        (self.task / "auxv").write_bytes(content)

    def dumpable(self, value: str) -> None:
        (self.world.proc / "sys" / "fs" / "suid_dumpable").write_text(value + "\n")

    @staticmethod
    def crash(**facts: Any) -> Crash:
        crash = Crash(PID, os.getuid(), os.getgid())
        crash.tid = PID
        for name, fact in facts.items():
            setattr(crash, name, fact)
        return crash

    def examine(self, **facts: Any) -> FaultingProcess:
        return verification.examine(self.crash(**facts))

    def refused(self, **facts: Any) -> str:
        try:
            self.examine(**facts)
        except Withheld as error:
            return f"withheld: {error}" if error.process.host_pid == PID else "another process"
        except Refused as error:
            return str(error)
        return ""


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crashing]:
    world = World(tmp_path, monkeypatch)
    yield Crashing(world, monkeypatch)
    world.close()


def close(process: FaultingProcess) -> None:
    assert process.environ_file is not None
    opened = [process.root, process.environ_file, *(namespace[2] for namespace in process.namespaces)]
    if process.user_namespace is not None:
        opened.append(process.user_namespace)
    process.close_task()
    for descriptor in opened:
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)


@pytest.mark.parametrize(("known", "signal"), [(None, 6), (11, 11)])
def test_the_signal_that_the_kernel_has_named_counts(crashing: Crashing, known: int | None, signal: int) -> None:
    (crashing.task.parent.parent / "stat").write_bytes(b"4711 (a) D " + b"0 " * 48 + b"6 ")
    crash = crashing.crash(signal=known)
    verification.examine(crash)
    assert crash.signal == signal


def test_a_process_with_a_pidfd_of_the_kernels_may_be_younger_than_the_helper(crashing: Crashing) -> None:
    (crashing.task / "stat").write_bytes(crashing.stat(300))
    assert "younger than its own crash" in crashing.refused()
    (crashing.world.proc / "self" / "fdinfo" / "3").write_text(f"Pid:\t{PID}\n")
    crashing.monkeypatch.setattr(linux, "pidfd_coredump_mask", lambda _: linux.PIDFD_COREDUMP_USER)
    assert crashing.refused(pidfd=3) == ""


def test_a_process_that_dumps_core_is_described_and_nothing_else_stays_open(crashing: Crashing) -> None:
    assert keeps_descriptors(lambda: close(crashing.examine()))
    process = crashing.examine()
    assert (process.host_pid, process.namespaces, process.user_namespace) == (PID, [], None)
    # Until membership.py knows better.
    assert os.path.samestat(os.fstat(process.root), os.stat(crashing.world.directory))
    # Opened without any right: its file system, which may be of the container, is not asked.
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.listdir(process.root)
    process.close_task()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(process.task)


def test_the_namespaces_that_are_not_the_helpers_are_opened(crashing: Crashing) -> None:
    opened = {}
    for kind in ("pid", "mnt", "user"):
        (crashing.task / "ns" / kind).unlink()
        opened[kind] = crashing.world.namespace()
        os.link(opened[kind], crashing.task / "ns" / kind)
    # The time namespace is one that this kernel does not have.
    process = crashing.examine()
    assert [(name, kind) for name, kind, _ in process.namespaces] == [
        ("pid", linux.CLONE_NEWPID),
        ("mnt", linux.CLONE_NEWNS),
    ]
    assert process.user_namespace is not None
    descriptors = [process.descriptor("pid"), process.descriptor("mnt"), process.user_namespace]
    for path, descriptor in zip(opened.values(), descriptors):
        assert descriptor is not None and os.path.samestat(os.fstat(descriptor), path.stat())
    assert process.inode("mnt") == opened["mnt"].stat().st_ino
    assert process.inode("net") == crashing.world.host["net"].stat().st_ino
    assert (process.in_container(), process.in_pid_namespace()) == (True, True)
    close(process)
    assert crashing.examine().descriptor("net") is None


def test_a_namespace_that_cannot_be_looked_at_is_an_error(crashing: Crashing) -> None:
    (crashing.task / "ns" / "mnt").unlink()
    with pytest.raises(FileNotFoundError):
        crashing.examine()


def opened(crashing: Crashing) -> tuple[set[str], set[str]]:
    """Return which namespaces of the process are not the host's, and which are to be joined."""
    proc, task = (os.open(path, os.O_PATH) for path in (crashing.world.proc, crashing.task))
    foreign, joined = verification.open_namespaces(task, proc)
    for descriptor in (proc, task, *{namespace[2] for namespace in (*foreign, *joined)}):
        os.close(descriptor)
    return {name for name, _, _ in foreign}, {name for name, _, _ in joined}


def test_what_is_the_hosts_and_the_helpers_is_not_opened(crashing: Crashing) -> None:
    assert opened(crashing) == (set(), set())


def test_each_kind_of_namespace_that_the_process_has_of_its_own_is_joined(crashing: Crashing) -> None:
    kinds = {"pid", "cgroup", "ipc", "uts", "net", "time", "mnt", "user"}
    for kind in kinds:
        (crashing.task / "ns" / kind).unlink(missing_ok=True)
        os.link(crashing.world.namespace(), crashing.task / "ns" / kind)
    own = crashing.world.proc / "self" / "ns" / "time"
    assert opened(crashing) == (kinds - {"time"}, kinds - {"time"})  # This kernel has none of that kind.
    own.touch()
    assert opened(crashing) == (kinds, kinds)


def test_a_helper_in_a_container_of_its_own_compares_with_the_host(crashing: Crashing) -> None:
    kinds = {kind.name for kind in (crashing.task / "ns").iterdir()}
    host = crashing.world.proc / "1" / "ns"
    host.mkdir(parents=True)
    for kind in kinds:
        os.link(crashing.world.namespace(), host / kind)
    # A process in the namespaces of the helper is not of the host, and has nothing to be joined.
    assert opened(crashing) == (kinds, set())
    for kind in kinds:
        (crashing.task / "ns" / kind).unlink()
        os.link(host / kind, crashing.task / "ns" / kind)
    # One of the host is, and everything of it has to be joined.
    assert opened(crashing) == (set(), kinds)


def test_what_is_no_longer_dumped_is_missing(crashing: Crashing) -> None:
    crashing.tell(CoreDumping="0")
    with pytest.raises(verification.Missing, match="is not dumping core"):
        crashing.examine()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"Tgid": "1"}, "does not belong"),
        ({"Uid": "77 77 77 77"}, "does not have the ids"),
        ({"Uid": f"{os.getuid()} 77 77 77"}, "withheld: a set-id program"),
        ({"Gid": f"{os.getgid()} 77 77 77"}, "withheld: a set-id program"),
    ],
)
def test_who_is_another_one_is_refused(crashing: Crashing, fields: dict[str, str], told: str) -> None:
    crashing.tell(**fields)
    assert told in crashing.refused()


def test_who_is_younger_than_its_crash_is_refused(crashing: Crashing) -> None:
    (crashing.task / "stat").write_bytes(crashing.stat(201))
    assert "younger than its own crash" in crashing.refused()


def test_the_pidfd_of_the_kernel_must_agree(crashing: Crashing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "pidfd_coredump_mask", lambda pidfd: None)
    file = crashing.world.proc / "self" / "fdinfo" / "77"
    for pid, told in ((PID, ""), (PID + 1, "the pidfd of the kernel is not of process")):
        file.write_text(f"pos:\t0\nPid:\t{pid}\n")
        assert crashing.refused(pidfd=77).startswith(told)
        assert bool(crashing.refused(pidfd=77)) is bool(told)


SECURE, PLAIN, UNKNOWN = 1, 0, None
SET_ID = "withheld: a set-id program"
NOBODY_KNOWS = "withheld: its auxiliary vector does not tell"


@pytest.mark.parametrize(
    ("dumpable", "setting", "vector", "told"),
    [
        # What the kernel told is enough, but where it calls all programs dumpable.
        (1, "2", SECURE, ""),
        (1, "0", SECURE, ""),
        (1, "2", UNKNOWN, ""),
        (1, "1", SECURE, SET_ID),
        (1, "1", PLAIN, ""),
        (1, "1", UNKNOWN, NOBODY_KNOWS),
        (2, "2", PLAIN, SET_ID),
        # Where it told nothing, the program's own vector does.
        (None, "2", SECURE, SET_ID),
        (None, "1", SECURE, SET_ID),
        (None, "2", PLAIN, ""),
        (None, "2", UNKNOWN, NOBODY_KNOWS),
    ],
)
def test_a_set_id_program_is_told_by_the_kernel_or_by_its_vector(
    crashing: Crashing, dumpable: int | None, setting: str, vector: int | None, told: str
) -> None:
    crashing.dumpable(setting)
    if vector is None:
        crashing.auxv(b"")
    else:
        crashing.secure(vector)
    refused = crashing.refused(dumpable=dumpable)
    assert refused.startswith(told) and bool(refused) is bool(told)


@pytest.mark.parametrize(
    ("owner", "told"), [((0, 0), True), ((0, 77), True), ((77, 0), True), ((77, 77), False), ((78, 77), True)]
)
def test_the_files_of_a_set_id_program_belong_to_root(owner: tuple[int, int], told: bool) -> None:
    crash = Crash(PID, 77, 77)
    found = os.stat_result((0, 0, 0, 0, *owner, 0, 0, 0, 0))
    status = {"Uid": "77 77 77 77", "Gid": "77 77 77 77"}
    try:
        verification.refuse_set_id(crash, status, False, found)
    except Refused:
        assert told
    else:
        assert not told


@pytest.mark.parametrize("secure", [0, 1])
def test_who_is_killed_while_it_is_looked_at_is_missing_whatever_was_found(
    crashing: Crashing, monkeypatch: pytest.MonkeyPatch, secure: int
) -> None:
    real = verification.secure_execution

    def killed(auxv: bytes) -> bool:
        crashing.tell(CoreDumping="0")
        return real(auxv)

    crashing.secure(secure)
    monkeypatch.setattr(verification, "secure_execution", killed)
    with pytest.raises(verification.Missing, match=f"process {PID} is not dumping core"):
        crashing.examine()


@pytest.mark.parametrize(
    ("auxv", "secure"),
    [
        (struct.pack("=6Q", 3, 64, 23, 1, 0, 0), True),
        (struct.pack("=6Q", 3, 1 << 40, 23, 0, 0, 0), False),
        (struct.pack("=6Q", 3, 64, 23, 2, 0, 0) + b"rest", True),
        (struct.pack("=6I", 3, 64, 23, 1, 0, 0), True),
        (struct.pack("=6I", 3, 64, 23, 0, 0, 0), False),
        (struct.pack("=6I", 3, 64, 23, 1, 0, 0) + b"abc", True),
        (struct.pack("=4Q", 3, 64, 0, 0), None),
        (struct.pack("=4Q", 23, 0, 1 << 16, 0), None),
        (struct.pack("=4Q", 23, 1, (1 << 16) - 1, 0), True),
        (b"", None),
        (b"garbage", None),
    ],
)
def test_the_vector_of_64_and_of_32_bits_is_read(auxv: bytes, secure: bool | None) -> None:
    if secure is None:
        with pytest.raises(Refused, match="does not tell whether the program was set-id"):
            verification.secure_execution(auxv)
    else:
        assert verification.secure_execution(auxv) is secure


def tasks(crashing: Crashing, *numbers: int) -> int:
    """Add threads, and return the opened /proc; those above 100 still have their namespaces."""
    for number in numbers:
        task = crashing.task.parent / str(number)
        (task / "ns").mkdir(parents=True)
        if number > 100:
            (task / "ns" / "mnt").symlink_to("mnt:[1]")
    return crashing.world.open(crashing.world.proc)


def test_the_first_thread_that_has_its_namespaces_stands_for_the_process(crashing: Crashing) -> None:
    # As numbers: 1000 comes after 999.
    proc = tasks(crashing, 7, 8, 999, 1000)

    def opened() -> None:
        os.close(verification.open_task(proc, PID, None))

    assert keeps_descriptors(opened)
    task = verification.open_task(proc, PID, None)
    assert os.path.samestat(os.fstat(task), os.stat(crashing.task.parent / "999"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.listdir(task)
    os.close(task)


def test_the_leader_stands_for_the_process_though_another_thread_has_a_smaller_number(crashing: Crashing) -> None:
    # Numbers had come to their end and begun anew.
    proc = tasks(crashing, 101)
    (crashing.task / "ns" / "mnt").unlink()
    (crashing.task / "ns" / "mnt").symlink_to("mnt:[1]")
    task = verification.open_task(proc, PID, None)
    assert os.path.samestat(os.fstat(task), os.stat(crashing.task.parent / str(PID)))
    os.close(task)


def test_a_process_none_of_whose_threads_has_namespaces_is_gone(crashing: Crashing) -> None:
    proc = tasks(crashing, 7, 8)

    def gone() -> None:
        with pytest.raises(verification.Missing, match=f"process {PID} is gone"):
            verification.open_task(proc, PID, None)

    assert keeps_descriptors(gone)


def test_what_its_memory_says_is_read_only_when_it_is_asked_for(crashing: Crashing) -> None:
    process = crashing.examine()
    assert process.environ_file is not None
    (crashing.task / "environ").write_bytes(b"C=3\0")
    assert process.read_environ() == {b"C": b"3"}
    close(process)
