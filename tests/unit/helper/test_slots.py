"""slots: who crashes in a loop leaves slots to the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from core_helper import holders, namespaces, procfs, runtime, slots
from core_helper.crash import Crash, Refused
from core_helper.log import Log
from unit.helper.support import in_child


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(slots, "FILE", str(tmp_path / "slots"))
    # A crash by this process, of whom its user number says.
    monkeypatch.setattr(holders, "holder_of", lambda crash: holders.named(f"container {crash.uid}", crash.gid))
    return tmp_path / "slots"


def crash_of(container: int, owner: int = 0) -> Crash:
    return Crash(os.getpid(), container, owner)


def take_nested(crashes: list[tuple[int, int]], limit: int) -> str:
    """Take a slot for each (container, owner), each in a process that waits for the next; return who got one: + or -."""
    try:
        slots.acquire(crash_of(*crashes[0]), limit, Log())
        got = "+"
    except Refused:
        got = "-"
    return got + (str(in_child(lambda: take_nested(crashes[1:], limit))) if crashes[1:] else "")


def got(crashes: list[tuple[int, int]], limit: int) -> str:
    return str(in_child(lambda: take_nested(crashes, limit)))


def test_three_that_take_all_leave_slots_to_the_fourth_and_the_fifth(file: Path) -> None:
    assert got([(1, 0)] * 9 + [(2, 0)] * 5 + [(3, 0)] * 3 + [(4, 0)] * 2 + [(5, 0)], 16) == (
        "++++++++-" + "++++-" + "++-" + "+-" + "+"
    )


def test_the_last_slot_is_for_one_who_has_none(file: Path) -> None:
    assert got([(1, 0), (1, 0), (2, 0), (3, 0)], 2) == "+-+-"


def test_who_may_make_containers_of_any_number_is_bounded_over_all_of_them(file: Path) -> None:
    # Twelve of sixteen for user 7, whatever their containers are; the others go on.
    crashes = [(number, 7) for number in range(14)] + [(20, 0), (21, 8), (0, 7)]
    assert got(crashes, 16) == "+" * 12 + "--" + "++" + "-"


def test_the_last_slots_are_for_users_who_have_none_whatever_their_containers_are(file: Path) -> None:
    # User 8 has two of the last four slots; the last two are for others, and for one container of each other user.
    crashes = [(number, 7) for number in range(12)] + [(number, 8) for number in range(3)] + [(1, 9), (2, 9), (1, 0)]
    assert got(crashes, 16) == "+" * 12 + "++-" + "+-" + "+"


def test_whoever_has_root_make_containers_is_bounded_over_all_of_them(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        holders, "holder_of", lambda crash: holders.named(f"container {crash.uid}", -crash.gid, by_root=True)
    )
    crashes = [(number, 1001) for number in range(14)] + [(20, 1002), (0, 1001)]
    assert got(crashes, 16) == "+" * 12 + "--" + "+" + "-"
    # A container is one, whoever its crashes belong to.
    assert got([(1, 1001), (1, 1002), (1, 1003)], 4) == "++-"


def test_a_refusal_names_no_user_for_whoever_had_root_make_a_container(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "holder_of", lambda crash: holders.named(f"container {crash.uid}", -7, by_root=True))

    def refusal() -> str:
        with pytest.raises(Refused) as caught:
            slots.acquire(crash_of(2), 2, Log())
        return str(caught.value)

    def nested() -> str:
        slots.acquire(crash_of(1), 2, Log())
        return str(in_child(refusal))

    monkeypatch.setattr(slots, "OWNER_WEIGHT", 1)
    assert str(in_child(nested)).startswith(
        "the user for whom root has made container 2 has 1 crashes in flight, and 1 of 2"
    )


def test_a_group_of_another_owner_is_another_group(file: Path) -> None:
    assert got([(1, 0), (1, 0), (1, 0), (1, 7)], 4) == "++-+"


def test_slots_are_free_again_when_their_helpers_and_processes_have_ended(file: Path) -> None:
    for _ in range(2):
        assert got([(1, 0)] * 3, 4) == "++-"
    assert os.stat(file).st_mode & 0o777 == 0o600


def test_a_slot_is_held_as_long_as_the_crashed_process_is_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = True
    monkeypatch.setattr(slots, "is_dumping", lambda pid, tid, started: there)
    assert got([(1, 0)] * 3, 4) == "++-"
    assert got([(1, 0), (2, 0)], 4) == "-+"
    there = False
    assert got([(1, 0), (2, 0)], 4) == "++"


def test_a_slot_that_was_left_counts_no_more_and_is_nobody_elses(file: Path) -> None:
    def leave_and_take() -> str:
        slots.acquire(crash_of(1), 2, Log()).release()
        return got([(1, 0), (2, 0)], 2)

    assert in_child(leave_and_take) == "+-"


def test_a_slot_that_was_left_can_be_had_again(file: Path) -> None:
    def leave_and_come_back() -> str:
        slot = slots.acquire(crash_of(1), 2, Log())
        slot.reclaim(slot.release())
        return got([(1, 0), (2, 0)], 2)

    assert in_child(leave_and_come_back) == "-+"


def test_a_refusal_names_the_container_what_it_holds_and_the_remedy(file: Path) -> None:
    def refusal() -> str:
        with pytest.raises(Refused) as caught:
            slots.acquire(crash_of(1), 2, Log())
        return str(caught.value)

    # Locks are a process's own: seen from itself it holds none.
    def nested() -> str:
        slots.acquire(crash_of(1), 2, Log())
        return str(in_child(refusal))

    told = in_child(nested)
    assert told.startswith("container 1 has 1 crashes in flight, and 1 of 2 slots are free: core dropped; ")
    assert "docker_core_helper_pipe_limit" in told


@pytest.mark.parametrize(
    ("configured", "kernel", "limit"),
    [(64, 512, 64), (None, 100, 100), (None, 0, 64), (10, 0, 10), (64, 8, 8), (None, 10**9, 1 << 14)],
)
def test_deliveries_are_bounded_by_the_configuration_and_by_the_kernel(
    configured: int | None, kernel: int, limit: int
) -> None:
    assert slots.limit_of(configured, kernel) == limit


def test_a_link_in_place_of_the_file_is_not_followed(file: Path) -> None:
    file.symlink_to(file.parent / "other")
    with pytest.raises(OSError, match="symbolic links"):
        slots.acquire(crash_of(1), 4, Log())
    assert not (file.parent / "other").exists()


def test_a_file_of_garbage_costs_no_slot(file: Path) -> None:
    file.write_bytes(os.urandom(16 * slots.RECORD.size))
    assert got([(1, 0)], 16) == "+"


def test_a_process_that_does_not_dump_core_or_is_another_one_is_not_dumping() -> None:
    started = slots.start_of(f"/proc/{os.getpid()}/task/{os.getpid()}")
    assert started is not None and started > 0
    assert not slots.is_dumping(os.getpid(), os.getpid(), started)
    assert slots.start_of(f"/proc/{1 << 22}/task/{1 << 22}") is None
    assert not slots.is_dumping(1 << 22, 1 << 22, 0)


@pytest.mark.parametrize(
    ("flags", "dumping"), [(0x200, True), (0x40220C & ~4, True), (0x204, False), (0x400000, False)]
)
def test_the_thread_that_crashed_is_asked_whether_it_dumps(
    monkeypatch: pytest.MonkeyPatch, flags: int, dumping: bool
) -> None:
    asked = []

    def read(path: str) -> bytes:
        asked.append(path)
        return b"4711 (a) D 7 7 7 7 7 %d" % flags + b" 7" * 40

    monkeypatch.setattr(procfs, "read_path", read)
    assert slots.is_dumping(4711, 4712, 7) is dumping
    assert not slots.is_dumping(4711, 4712, 8)
    # Not its status, which has all groups of the process.
    assert set(asked) == {"/proc/4711/task/4712/stat"}


def test_no_process_is_looked_at_while_the_lock_is_held(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    program = (
        "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sys.argv[2]))"
    )

    def look(*_: int) -> bool:
        subprocess.run([sys.executable, "-c", program, str(file), str(slots.MUTEX)], check=True)
        looked.append(1)
        return True

    for name in ("is_dumping", "is_there"):
        monkeypatch.setattr(slots, name, look)
    file.write_bytes(
        slots.RECORD.pack(4711, 4711, 7, -1, b"other").ljust(slots.CHILDREN, b"\0") + slots.CHILD.pack(4712, 7)
    )
    slot = slots.acquire(crash_of(os.getpid()), 4, Log())
    slot.limit = 4
    assert slot.index == 1 and len(looked) == 2
    slot.are_short()
    assert len(looked) == 4


def holder_of(*words: str) -> str:
    """Return whose a crash of the process would be that ``words`` start; or skip where that is forbidden here."""
    program = "import os; os.write(1, b'x'); os.read(0, 1)"
    process = subprocess.Popen(
        [*words, sys.executable, "-ISc", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    try:
        if not process.stdout.read(1):
            pytest.skip(f"{words} does not work here: {process.stderr.read().decode()}")
        pid = process.pid
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
        return holders.holder_of(Crash(pid, 4711, 0)).group
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture
def no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run in a unit."""
    monkeypatch.setattr(runtime, "unit_of_root", lambda cgroups: b"")


@pytest.mark.usefixtures("no_unit")
def test_a_process_of_the_host_is_its_users() -> None:
    assert holder_of() == "4711 user 4711"


def test_who_is_gone_is_nobody_in_particular() -> None:
    assert holders.holder_of(Crash(1 << 22, 0, 0)).group == "-1 unknown"


@pytest.mark.usefixtures("no_unit")
def test_a_user_namespace_is_that_of_who_made_it() -> None:
    uid = os.getuid() or -1
    inner = holder_of("unshare", "--user", "--map-root-user", "--pid", "--fork")
    assert inner.startswith(f"{uid} container pid:[")
    nested = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
    assert holder_of(*nested, *nested).startswith(f"{uid} container pid:[")
    alone = holder_of("unshare", "--user", "--map-root-user")
    # What root has made for others counts for these.
    assert alone == (f"{uid} user {uid}" if uid > 0 else "4711 user 4711")


@pytest.mark.skipif(os.getuid() != 0, reason="a pid namespace without a user namespace needs root")
def test_namespaces_below_the_container_are_the_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    real = namespaces.outermost
    levels = []

    def outermost(namespace: int, own: int) -> int:
        found = real(namespace, own)
        levels.append(os.fstat(namespace).st_ino == os.fstat(found).st_ino)
        return found

    monkeypatch.setattr(namespaces, "outermost", outermost)
    assert holder_of("unshare", "--pid", "--fork").startswith("-1 container pid:[")
    nested = ("unshare", "--pid", "--fork")
    assert holder_of(*nested, *nested, *nested).startswith("-1 container pid:[")
    assert levels == [True, False]
