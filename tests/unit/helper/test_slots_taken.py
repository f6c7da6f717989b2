"""slots: what is written down of a crash, on a made-up host."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from core_helper import holders, procfs, slots
from core_helper.crash import Crash, Refused
from core_helper.log import Log
from unit.helper.support import crash_of, in_child
from unit.helper.world import World, keeps_descriptors

ID = "a1" * 32


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(slots, "FILE", str(tmp_path / "slots"))
    monkeypatch.setattr(slots, "RELEASED", str(tmp_path / "released"))
    monkeypatch.setattr(holders, "holder_of", lambda crash: holders.named("container a", 7))
    return tmp_path / "slots"


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


def test_a_process_that_is_gone_is_looked_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def is_dumping(pid: int, tid: int, started: int) -> bool:
        looked.append(pid)
        return pid == 3

    monkeypatch.setattr(slots, "is_dumping", is_dumping)
    write(file, *((pid, -1, b"-1 x") for pid in (1, 2, 3, 4)))
    for index in (0, 1):
        # Before this process has the lock of its own slot, it has no other.
        assert in_child(lambda: slots.acquire(crash_of(1 << 22), 4, Log()).index) == 0, index
    # The second helper finds the record of the first one, and of the others only the one that still counts.
    assert looked == [] and [record[0] for record in records(file)] == [1 << 22, 3]
    slots.acquire(crash_of(1 << 22), 4, Log())
    assert looked == [1 << 22, 3]


@pytest.mark.parametrize(("others", "short"), [(0, False), (3, False), (4, True), (6, True)])
def test_slots_are_short_where_fewer_than_half_are_free(
    file: Path, monkeypatch: pytest.MonkeyPatch, others: int, short: bool
) -> None:
    monkeypatch.setattr(slots, "is_dumping", lambda pid, tid, started: started == 5)
    write(file, *((pid, holders.NOBODY, b"-1 x") for pid in range(1, others + 1)))
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
    monkeypatch.setattr(holders, "holder_of", lambda crash: holders.named("container a", None))
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


def test_a_child_that_has_ended_is_looked_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def is_there(pid: int, started: int) -> bool:
        looked.append(pid)
        return pid == 7

    monkeypatch.setattr(slots, "is_there", is_there)
    write(file)
    with file.open("r+b") as opened:
        opened.seek(slots.CHILDREN)
        opened.write(b"".join(slots.CHILD.pack(pid, 5) for pid in (6, 7, 8)))
    # Whose slot is not the one that is taken, too.
    for _ in range(2):
        assert in_child(lambda: slots.acquire(crash_of(1 << 22), 4, Log()).index) == 0
    close(slots.acquire(crash_of(1 << 22), 4, Log()))
    assert looked == [7]


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


@pytest.mark.parametrize("start", [0, slots.MUTEX])
def test_a_lock_for_reading_is_no_helpers(file: Path, start: int) -> None:
    slot = slots.acquire(crash_of(os.getpid()), 4, Log())
    slot.limit = 4
    assert not slot.are_short()
    program = (
        "import fcntl, os, sys; file = open(sys.argv[1], 'rb');"
        f" fcntl.lockf(file, fcntl.LOCK_SH, {slots.MUTEX} if {start} == 0 else 1, {start} or {slots.RECORD.size});"
        " os.write(1, b'x'); os.read(0, 1)"
    )
    process = subprocess.Popen(
        [sys.executable, "-ISc", program, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None and process.stdout.read(1) == b"x"
        # Slots are not counted then, as on a full disk.
        told = in_child(lambda: refusal_of_lock())
        assert told == f"process {process.pid} has it locked, and is no helper"
        assert slot.are_short()


def refusal_of_lock() -> str:
    try:
        slots.acquire(crash_of(1 << 22), 4, Log())
    except OSError as error:
        return str(error.strerror)
    return "a slot"


def test_a_name_is_as_long_as_its_record_has_room() -> None:
    assert holders.named("x" * 200, None).group == "-1 " + "x" * 101
    assert len(slots.RECORD.pack(0, 0, 0, 0, b"")) == slots.RECORD.size
    assert holders.log_name(holders.NOBODY, "-1 a") == "-1 a"


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
