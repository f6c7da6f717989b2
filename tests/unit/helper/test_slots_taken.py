"""slots: what is written down of a crash, and whose it is, on a made-up host."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from core_helper import procfs, runtime, slots
from core_helper.crash import Crash, Refused
from core_helper.log import Log
from unit.helper.support import in_child
from unit.helper.world import OTHER_ID, World, keeps_descriptors

ID = "a1" * 32


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(slots, "FILE", str(tmp_path / "slots"))
    monkeypatch.setattr(slots, "RELEASED", str(tmp_path / "released"))
    monkeypatch.setattr(slots, "holder_of", lambda crash: slots.Holder("container a", 7))
    return tmp_path / "slots"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world", monkeypatch)
    yield world
    world.close()


def crash_of(pid: int, tid: int | None = None) -> Crash:
    crash = Crash(pid, 1000, 100)
    crash.tid = tid
    return crash


def close(slot: slots.Slot) -> None:
    assert slot.file is not None
    os.close(slot.file)


def records(file: Path) -> list[tuple[int, int, int, int, bytes]]:
    return [record for record in slots.RECORD.iter_unpack(file.read_bytes()[: slots.MUTEX]) if record[0]]


@pytest.mark.parametrize("tid", [None, 1 << 22])
def test_a_slot_says_whose_crash_it_is(file: Path, tid: int | None) -> None:
    crash = crash_of(os.getpid(), tid)
    log = Log()
    slot = slots.acquire(crash, 4, log)
    # The lines of a user who may make containers of any number are counted together.
    assert log.holder == "7 user 7"
    group = b"7 container a".ljust(104, b"\0")
    # That of a thread which is gone is not known.
    started = None if tid else slots.start_of(f"/proc/{os.getpid()}/task/{os.getpid()}")
    assert records(file) == [(os.getpid(), tid or 0, started or 0, 7, group)]
    assert bool(tid) is (started is None)
    assert slot.index == 0
    close(slot)


def lockable(file: Path, place: int) -> object:
    """Tell whether another process could lock a byte of the file."""

    def attempt() -> object:
        other = os.open(file, os.O_RDWR)
        try:
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError:
            return False
        return True

    return in_child(attempt)


def test_one_helper_at_a_time_looks_for_a_slot(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    real = slots._choose

    def choose(*words: Any) -> int:
        seen.append(lockable(file, slots.MUTEX))
        return real(*words)

    monkeypatch.setattr(slots, "_choose", choose)
    slot = slots.acquire(crash_of(os.getpid()), 4, Log())
    assert seen == [False]
    # The next one may look, but not have this slot.
    assert lockable(file, slots.MUTEX)
    assert not lockable(file, slot.index * slots.RECORD.size)
    assert lockable(file, (slot.index + 1) * slots.RECORD.size)
    close(slot)


def test_whoever_is_refused_lets_the_next_one_look(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "may_add", lambda held, free, weight: False)
    with pytest.raises(Refused):
        slots.acquire(crash_of(os.getpid()), 4, Log())
    assert lockable(file, slots.MUTEX)


@pytest.mark.parametrize(
    ("held", "free", "weight", "may"),
    [
        *((0, 0, 1, False), (1, 0, 1, False), (0, 1, 1, True), (1, 1, 1, False), (1, 2, 1, True), (2, 2, 1, False)),
        *((2, 1, 3, True), (3, 1, 3, False), (5, 2, 3, True), (6, 2, 3, False), (0, -1, 1, False)),
    ],
)
def test_who_holds_as_much_as_is_free_may_not_add(held: int, free: int, weight: int, may: bool) -> None:
    assert slots.may_add(held, free, weight) is may


def write(file: Path, *processes: tuple[int, int, bytes]) -> None:
    """Fill the file with (pid, owner, group) that are still dumping."""
    content = b"".join(slots.RECORD.pack(pid, 0, 5, owner, group) for pid, owner, group in processes)
    file.write_bytes(content)


@pytest.mark.parametrize(("others", "short"), [(0, False), (3, False), (4, True), (6, True)])
def test_slots_are_short_where_fewer_than_half_are_free(
    file: Path, monkeypatch: pytest.MonkeyPatch, others: int, short: bool
) -> None:
    monkeypatch.setattr(slots, "is_dumping", lambda pid, tid, started: started == 5)
    write(file, *((pid, slots.NOBODY, b"-1 x") for pid in range(1, others + 1)))
    slot = slots.acquire(crash_of(os.getpid()), 8, Log())
    slot.limit = 8
    assert slot.are_short() is short
    # To count has not given up the slot, nor kept anybody from counting.
    assert not lockable(file, slot.index * slots.RECORD.size)
    assert lockable(file, slots.MUTEX)
    close(slot)


def test_where_slots_are_not_counted_they_are_short() -> None:
    assert slots.Slot(None, 0).are_short()


def refusal(crash: Crash, limit: int) -> str:
    try:
        slot = slots.acquire(crash, limit, Log())
    except Refused as error:
        return str(error)
    close(slot)
    return f"slot {slot.index}"


def test_who_crashes_in_too_many_containers_is_told_by_the_number_of_the_user(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "is_dumping", lambda pid, tid, started: started == 5)
    write(file, (1, 7, b"7 x"), (2, 7, b"7 y"), (3, 7, b"7 z"))
    assert refusal(crash_of(os.getpid()), 4).startswith("user 7 has 3 crashes in flight, and 1 of 4 slots are free: ")
    # Root may make as many as there are.
    monkeypatch.setattr(slots, "holder_of", lambda crash: slots.Holder("container a", None))
    write(file, (1, -1, b"-1 x"), (2, -1, b"-1 y"), (3, -1, b"-1 z"))
    assert refusal(crash_of(os.getpid()), 4) == "slot 3"
    write(file, *((number, -1, b"-1 x") for number in range(1, 5)))
    assert refusal(crash_of(os.getpid()), 4).startswith("container a has 0 crashes in flight, and 0 of 4")


def test_the_first_slot_that_nobody_holds_is_taken(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "is_dumping", lambda pid, tid, started: pid == 1)
    locked: list[int] = []
    real = slots._is_locked
    monkeypatch.setattr(slots, "_is_locked", lambda file, index: index in locked or real(file, index))
    write(file, (1, 8, b"8 x"), (2, 8, b"8 x"), (0, 0, b""))
    assert refusal(crash_of(os.getpid()), 4) == "slot 1"
    # One that was left is still locked by its helper: no other has it.
    write(file, (1, 8, b"8 x"), (0, 0, b""), (0, 0, b""))
    locked.append(1)
    assert refusal(crash_of(os.getpid()), 4) == "slot 2"
    # And one whose process has ended counts as long as its helper is there.
    write(file, (1, 8, b"7 container a"), (2, 8, b"7 container a"))
    assert "container a has 2 crashes in flight, and 2 of 4" in refusal(crash_of(os.getpid()), 4)


def test_a_helper_that_was_executed_anew_has_its_slot(file: Path) -> None:
    write(file, (1, 8, b"8 x"), (2, 9, b"9 container b"))
    descriptor = os.open(file, os.O_RDWR)
    os.set_inheritable(descriptor, True)
    log = Log()
    slot = slots.resume(descriptor, 1, log)
    assert (slot.file, slot.index, log.holder) == (descriptor, 1, "9 user 9")
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_a_process_that_is_gone_has_its_slot(file: Path) -> None:
    slot = slots.acquire(crash_of(1 << 22), 4, Log())
    assert [record[:3] for record in records(file)] == [(1 << 22, 0, 0)]
    close(slot)


def fork_child(ends: bool = False) -> int:
    """Fork a child that waits until it is killed, or is a zombie."""
    pid = os.fork()
    if pid == 0:
        try:
            while not ends:
                signal.pause()
        finally:
            os._exit(0)
    if ends:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def end_child(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("dumping", [True, False])
def test_a_slot_counts_as_long_as_the_process_is_there_or_the_child_that_was_left(
    file: Path, monkeypatch: pytest.MonkeyPatch, dumping: bool
) -> None:
    there = dumping
    monkeypatch.setattr(slots, "is_dumping", lambda pid, tid, started: there)
    full = "container a has 2 crashes in flight, and 2 of 4 slots are free: "
    children = [fork_child(), fork_child()]
    for child in children:
        slot = slots.acquire(crash_of(1 << 22), 4, Log())
        slot.keep_for(child)
        close(slot)
        if not dumping and child == children[0]:
            assert refusal(crash_of(os.getpid()), 4) == "slot 1"
    assert refusal(crash_of(os.getpid()), 4).startswith(full)
    # An older helper finds the record that it knows.
    assert [record[:3] for record in records(file)[:2]] == [(1 << 22, 0, 0)] * 2
    end_child(children[1])
    # The process alone is enough, and so is the child.
    assert refusal(crash_of(os.getpid()), 4).startswith(full if dumping else "slot 1")
    there = False
    assert refusal(crash_of(os.getpid()), 4) == "slot 1"
    end_child(children[0])
    assert refusal(crash_of(os.getpid()), 4) == "slot 0"


def test_who_takes_a_slot_has_nothing_of_a_child_that_another_has_left(file: Path) -> None:
    child = fork_child()
    slot = slots.acquire(crash_of(1 << 22), 4, Log())
    slot.keep_for(child)
    close(slot)
    end_child(child)
    close(slots.acquire(crash_of(1 << 22), 4, Log()))
    assert file.read_bytes()[slots.CHILDREN :] == bytes(slots.CHILD.size)


def test_a_child_that_was_left_counts_for_its_container_while_the_previous_handler_has_the_process(file: Path) -> None:
    child = fork_child()
    slot = slots.acquire(crash_of(1 << 22), 4, Log())
    slot.keep_for(child)
    slot.release()
    close(slot)
    assert refusal(crash_of(os.getpid()), 2).startswith(
        "container a has 1 crashes in flight, and 1 of 2 slots are free: "
    )
    end_child(child)
    assert refusal(crash_of(os.getpid()), 2) == "slot 0"


def test_a_child_that_has_ended_meanwhile_or_a_slot_without_a_record_keeps_nothing(file: Path) -> None:
    slot = slots.acquire(crash_of(1 << 22), 4, Log())
    slot.keep_for(1 << 22)
    close(slot)
    assert file.read_bytes()[slots.CHILDREN :] == bytes(slots.CHILD.size)
    slots.Slot(None, 0).keep_for(os.getpid())


def test_a_zombie_or_another_process_of_that_number_is_not_there() -> None:
    child, zombie = fork_child(), fork_child(ends=True)
    started = slots.start_of(f"/proc/{child}/task/{child}")
    assert started is not None
    assert slots.is_there(child, started)
    assert not slots.is_there(child, started + 1)
    assert not slots.is_there(0, 0)
    started = slots.start_of(f"/proc/{zombie}/task/{zombie}")
    assert started is not None
    assert not slots.is_there(zombie, started)
    end_child(child)
    os.waitpid(zombie, 0)
    assert not slots.is_there(zombie, started)


def test_a_process_whose_first_thread_has_ended_is_there() -> None:
    script = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    process = subprocess.Popen([sys.executable, "-ISc", script])
    try:
        status = Path(f"/proc/{process.pid}/status")
        deadline = time.monotonic() + 10
        while "\nState:\tZ" not in status.read_text():
            assert time.monotonic() < deadline, "the first thread has not ended"
            time.sleep(0.01)
        started = slots.start_of(f"/proc/{process.pid}/task/{process.pid}")
        assert started is not None
        assert slots.is_there(process.pid, started)
    finally:
        process.kill()
        process.wait()


def gone(*words: object) -> str:
    raise ProcessLookupError(3, "No such process")


def test_a_process_that_goes_away_meanwhile_has_its_slot_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "task_of", gone)
    close(slots.acquire(crash_of(os.getpid()), 4, Log()))
    assert [record[:3] for record in records(file)] == [(os.getpid(), 0, 0)]


def test_a_process_that_goes_away_meanwhile_is_not_dumping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "read_path", gone)
    assert slots.is_dumping(4711, 4711, 7) is False


def test_a_name_is_as_long_as_its_record_has_room() -> None:
    assert slots.Holder("x" * 200, None).group == "-1 " + "x" * 101
    assert len(slots.RECORD.pack(0, 0, 0, 0, b"")) == slots.RECORD.size
    assert slots.log_name(slots.NOBODY, "-1 a") == "-1 a"


def test_where_slots_cannot_be_counted_there_is_none_to_keep() -> None:
    log = Log()
    slot = slots.resume(-1, 5, log)
    assert (slot.file, slot.index, log.holder) == (None, 0, "")
    slot.reclaim(slot.release())


def test_a_slot_that_is_left_is_empty(file: Path) -> None:
    write(file, (1, 8, b"8 x"), (2, 9, b"9 b"))
    descriptor = os.open(file, os.O_RDWR)
    slot, before = slots.Slot(descriptor, 1), file.read_bytes()
    record = slot.release()
    assert [record[0] for record in slots.RECORD.iter_unpack(file.read_bytes())] == [1, 0]
    slot.reclaim(record)
    assert file.read_bytes() == before
    os.close(descriptor)


# Whose a crash is.


def holder(pid: int, tid: int | None = None) -> tuple[str, int]:
    assert keeps_descriptors(lambda: slots.holder_of(crash_of(pid, tid)))
    found = slots.holder_of(crash_of(pid, tid))
    assert found.group == f"{max(found.owner, -1)} {found.name}"
    return found.name, found.owner


def test_a_process_of_the_host_is_that_of_its_user(world: World) -> None:
    world.process(21, cgroup="/user.slice/a")
    assert holder(21) == ("user 1000", 1000)
    assert holder(21, 21) == ("user 1000", 1000)


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """Who may make control groups beside that of the container: root, unless a test says otherwise."""
    maker: dict[str, int | None] = {"maker": 0}
    monkeypatch.setattr(runtime, "maker_of", lambda controllers, above: maker["maker"])
    return maker


def test_a_container_of_an_engine_is_one_whatever_namespaces_its_processes_have_made(
    world: World, maker: dict[str, int | None]
) -> None:
    for pid, user in enumerate(range(1000, 1070), 21):
        users = world.namespace(world.host["user"], maker=user)
        world.process(pid, cgroup=f"/docker/{ID}", user=users, pid=world.namespace(world.host["pid"], owner=users))
        assert holder(pid) == (f"container {ID}", -1)
    world.process(20, cgroup=f"/docker/{ID}")
    assert holder(20) == (f"container {ID}", -1)


def test_the_containers_of_a_pod_are_one(world: World, maker: dict[str, int | None]) -> None:
    uid = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
    for pid, identifier in ((20, ID), (21, OTHER_ID)):
        world.process(pid, cgroup=f"/kubepods/burstable/pod{uid}/{identifier}")
        assert holder(pid) == (f"pod {uid}", -1)
    maker["maker"] = 1000
    assert holder(20) == (f"control group of user 1000 {ID}", 1000)


def test_a_control_group_that_a_user_has_named_counts_among_his_own(world: World, maker: dict[str, int | None]) -> None:
    maker["maker"] = 1000
    users = world.namespace(world.host["user"], maker=1234)
    ways: list[tuple[int, dict[str, Any]]] = [
        (21, {}),
        (22, {"user": users, "pid": world.namespace(world.host["pid"], owner=users)}),
    ]
    for pid, namespaces in ways:
        world.process(pid, cgroup=f"/user.slice/{ID}", **namespaces)
        assert holder(pid) == (f"control group of user 1000 {ID}", 1000)


def test_a_control_group_that_nobody_finds_is_no_name(world: World, maker: dict[str, int | None]) -> None:
    maker["maker"] = None
    world.process(21, cgroup=f"/docker/{ID}")
    assert holder(21) == ("user 1000", 1000)


def test_who_made_a_user_namespace_has_its_crashes(world: World) -> None:
    users = world.namespace(world.host["user"], maker=1234)
    inner = world.namespace(users, maker=99)
    for pid, namespace in ((21, users), (22, inner)):
        world.process(pid, user=namespace)
        assert holder(pid) == ("user 1234", 1234)


def test_a_user_has_the_numbers_that_he_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "subuid").write_text(
        "garbage\nann:100000:65536\n1001:165536:10\nbob:300000:5\ncam:400000:5\n1002:65536:1\n"
    )
    (tmp_path / "passwd").write_text("root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\ncam:x\n")
    for name in ("SUBUID", "PASSWD"):
        monkeypatch.setattr(slots, name, str(tmp_path / name.lower()))
    numbers = (0, 1000, 65535, 65536, 99999, 100000, 165535, 165536, 165546, 300000, 400000)
    # Of somebody who is not in the file, or whose number is elsewhere, nothing is known.
    assert [slots.user_of(number) for number in numbers] == [
        0,
        1000,
        65535,
        1002,
        99999,
        1000,
        1000,
        1001,
        165546,
        300000,
        400000,
    ]
    (tmp_path / "subuid").unlink()
    assert slots.user_of(100000) == 100000


def test_a_container_is_its_pid_namespace_and_those_below_it(world: World) -> None:
    pids = world.namespace(world.host["pid"])
    below = world.namespace(world.namespace(pids))
    name = f"container pid:[{pids.stat().st_ino}]"
    for pid, namespace in ((21, pids), (22, below)):
        world.process(pid, pid=namespace)
        assert holder(pid)[0] == name


def sandbox(world: World, pid: int, cgroup: str, uid: int = 1000) -> slots.Holder:
    """Return whose a crash of ``uid`` is, in a pid namespace of its own that root has made."""
    world.process(pid, cgroup=cgroup, pid=world.namespace(world.host["pid"]))
    return slots.holder_of(Crash(pid, uid, uid))


def test_sandboxes_that_root_makes_for_a_user_are_those_of_the_session(world: World) -> None:
    paths = ("session-2.scope", "session-3.scope", "user@1000.service/app.slice/x")
    found = [
        sandbox(world, pid, f"/user.slice/user-1000.slice/{path}", uid)
        for pid, path, uid in zip((21, 22, 23, 24), (*paths, paths[0]), (1000, 1000, 1001, 0))
    ]
    # Root alone could do anything; who has become another user in the session is still of that session.
    assert [holder.owner for holder in found] == [1000, 1000, 1000, -1]
    assert len({holder.group for holder in found}) == 4
    assert {slots.log_name(holder.owner, holder.group) for holder in found[:3]} == {"1000 user 1000"}


def test_sandboxes_outside_of_sessions_are_those_of_the_control_group_that_root_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        pid: sandbox(world, pid, path, uid)
        for pid, path, uid in (
            (21, "/lxc.payload.a", 1000),
            (22, "/lxc.payload.a", 1001),
            (23, "/lxc.payload.b", 1000),
            (24, "/", 1000),
            (25, "/", 1001),
            (26, "/", 1000),
            (27, "/lxc.payload.a/user.slice/user-1000.slice/x", 1000),
            (28, "/user.slice/user-0.slice/session-1.scope", 1000),
        )
    }
    owners = {pid: holder.owner for pid, holder in found.items()}
    # Nobody's are those of a user of the host: root of a container may have any number.
    assert all(owner < -1 for owner in owners.values())
    assert owners[21] == owners[22] and owners[24] == owners[26]
    assert len(set(owners.values())) == 6
    for holder in found.values():
        assert slots.RECORD.pack(1, 1, 1, holder.owner, b"a")
        # A container is one, whatever users its processes have.
        assert holder.group == f"-1 {holder.name}" == slots.log_name(holder.owner, holder.group)
    # No number of a group is that of a user.
    monkeypatch.setattr(runtime, "group_of_root", lambda cgroups: 1000)
    assert sandbox(world, 29, "/lxc.payload.a").owner not in (*owners.values(), -1001)


def test_a_container_whose_engine_has_named_it_is_roots_though_nobody_finds_the_group(
    world: World, maker: dict[str, int | None]
) -> None:
    maker["maker"] = None
    assert sandbox(world, 21, f"/docker/{ID}").owner == -1


def test_a_rootless_container_is_that_of_who_made_its_user_namespace(world: World) -> None:
    users = world.namespace(world.host["user"], maker=1234)
    inner = world.namespace(users, maker=0)
    pids = world.namespace(world.host["pid"], owner=inner)
    world.process(21, pid=pids, user=world.namespace(inner, maker=5))
    assert holder(21) == (f"container pid:[{pids.stat().st_ino}]", 1234)


def test_who_is_gone_while_it_is_looked_at_is_unknown_and_leaves_nothing_open(world: World) -> None:
    assert holder(99) == ("unknown", -1)
    world.process(21)
    (world.proc / "21" / "ns" / "user").unlink()
    assert holder(21) == ("unknown", -1)


def test_the_file_of_a_process_that_is_read_is_closed(world: World) -> None:
    world.process(21)
    assert keeps_descriptors(lambda: procfs.read_path("/proc/21/stat"))
    assert slots.start_of("/proc/21/task/21") == 100
    assert slots.start_of("/proc/22") is None


def test_a_process_that_was_released_gives_its_slot_back_and_its_delivery_is_counted_elsewhere(
    file: Path, tmp_path: Path
) -> None:
    slot = slots.acquire(crash_of(1 << 22), 4, Log())
    slot.limit = 4
    # To read a file would release this process's lock on it.
    assert not lockable(file, 0)
    slot.give_back()
    assert lockable(file, 0)
    released = tmp_path / "released"
    assert not lockable(released, slot.index * slots.RECORD.size)
    assert records(released) == records(file)
    # A child that hangs counts there.
    slot.keep_for(os.getpid())
    assert slots.CHILD.unpack(released.read_bytes()[slots.CHILDREN :][: slots.CHILD.size])[0] == os.getpid()
    close(slot)


def test_a_slot_that_was_given_back_stays_taken_while_the_process_is_still_dumped(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = slots.acquire(crash_of(1 << 22), 4, Log())
    slot.limit = 4
    slot.give_back()
    monkeypatch.setattr(slots, "is_dumping", lambda pid, tid, started: True)
    assert refusal(crash_of(os.getpid()), 4) == "slot 1"
    monkeypatch.setattr(slots, "is_dumping", lambda pid, tid, started: False)
    assert refusal(crash_of(os.getpid()), 4) == "slot 0"
    close(slot)


def test_whoever_has_too_many_deliveries_of_released_processes_starts_no_other(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "is_dumping", lambda pid, tid, started: started == 5)
    write(tmp_path / "released", (1, 7, b"7 container a"), (2, 7, b"7 container a"))
    slot = slots.acquire(crash_of(os.getpid()), 4, Log())
    slot.limit = 4
    with pytest.raises(slots.TooMany, match=r"^container a has 2 crashes in flight, and 2 of 4 slots are free$"):
        slot.give_back()
    assert lockable(file, slot.index * slots.RECORD.size)
    # The place in the first file is another's now.
    slot.keep_for(os.getpid())
    assert file.read_bytes()[slots.CHILDREN :] == bytes(slots.CHILD.size)


def test_a_delivery_that_cannot_be_counted_keeps_its_slot(file: Path, tmp_path: Path) -> None:
    (tmp_path / "released").mkdir()
    slot = slots.acquire(crash_of(os.getpid()), 4, Log())
    slot.limit = 4
    slot.give_back()
    assert not lockable(file, slot.index * slots.RECORD.size)
    close(slot)
    slots.Slot(None, 0).give_back()
