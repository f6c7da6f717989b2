"""store: the directory in which cores are kept, and whose core goes when there is no room for another."""

from __future__ import annotations

import fcntl
import os
import posix
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import store
from core_helper.configuration import Configuration
from core_helper.room import MOST_CORES, Candidates, room_for, room_left, share_of, weight
from core_helper.store import Entry, Store
from unit.helper.world import keeps_descriptors

MIB = 1 << 20
IS_KEY = store.is_key  # Other tests have short ones; conftest.py.
KEY = "node.web-1.shop.worker.4711.20261129T183440Z.919eb8c9e6bc"


def entry(group: str, key: str, size: int, age: float = 0.0, whole: bool = True) -> Entry:
    made = Entry(group, key)
    made.bytes, made.time, made.whole = size, 1000.0 - age, whole
    return made


def evicted(entries: list[Entry], group: str, need: int, bound: int = 100) -> str:
    found = Candidates(entries, group, need, bound).next()
    return "" if found is None else found.key


def test_a_loop_pushes_out_its_own_oldest_core() -> None:
    entries = [entry("loop", "old", 30, 2), entry("loop", "new", 30, 1), entry("other", "oldest", 40, 9)]
    assert evicted(entries, "loop", 30) == "old"


def test_a_group_below_its_share_takes_from_the_one_that_has_most() -> None:
    entries = [entry("big", "old", 40, 2), entry("big", "new", 40, 1), entry("small", "oldest", 15, 9)]
    assert evicted(entries, "small", 10) == "old"
    assert evicted(entries, "fresh", 10) == "old"


def test_a_large_first_core_takes_from_those_that_take_as_much() -> None:
    assert evicted([entry("other", "only", 90)], "fresh", 90) == "only"
    assert evicted([entry("other", "only", 89)], "fresh", 90) == ""
    many = [entry(f"other-{number}", str(number), 10, number) for number in range(9)]
    assert evicted(many, "fresh", 25) == "8"
    assert evicted(many, "fresh", 26) == ""


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_what_is_known_of_a_core_stands_in_an_order_of_its_own(kept: Store) -> None:
    group = kept.group("group")
    store.describe(group, "key", {"size": 1, "key": "key"})
    assert Path(kept.path, "group/key.json").read_text() == '{\n "key": "key",\n "size": 1\n}\n'
    os.close(group)


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_the_smallest_core_counts_for_a_part_of_the_bound(kept: Store) -> None:
    made = put(kept, "group", "key", 5)
    (found,) = kept.entries()
    assert (weight(found, 1_000 * MIB), weight(found, 0)) == (MIB, found.bytes)
    # As many as the bound is for: the next one has to push one out.
    assert room_for(kept, "group", 0, bounds(1_000 * MIB)) <= 999 * MIB
    assert made.exists()


@pytest.fixture
def free(kept: Store, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The store has four cores, on a disk that others have filled."""
    for number in range(4):
        put(kept, f"group-{number}", "key", MIB, number)
    found = SimpleNamespace(f_bavail=0, f_blocks=100, f_frsize=MIB // 2)
    monkeypatch.setattr(posix, "fstatvfs", lambda directory: found)
    return found


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_a_disk_that_others_have_filled_costs_no_more_cores_than_the_new_one_takes(
    kept: Store, free: SimpleNamespace
) -> None:
    # With half a MiB less than nothing, two must go for one.
    assert room_for(kept, "new", MIB, bounds(free=1)) < 0
    assert len(kept.entries()) == 4
    free.f_bavail = 1
    assert room_for(kept, "new", MIB, bounds(free=1)) >= MIB
    assert len(kept.entries()) == 3


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
@pytest.mark.usefixtures("free")
def test_nor_where_the_bound_leaves_just_as_much_as_the_new_one_takes(kept: Store) -> None:
    (size,) = {found.bytes for found in kept.entries()}
    assert room_for(kept, "new", size, bounds(4 * size, free=1)) < 0
    assert len(kept.entries()) == 4


def test_cores_that_are_being_written_make_no_room_and_count() -> None:
    writing = entry("loop", "writing", 60, 5, whole=False)
    assert evicted([writing, entry("other", "kept", 40)], "loop", 30) == ""
    assert evicted([writing], "other", 60) == ""
    writing.expected = 99
    assert writing.claim == 99


def test_the_share_is_the_bound_divided_by_the_groups_with_the_new_one_among_them() -> None:
    # Share: 100 // 2. With 50 it is not more than that, with 51 it is.
    entries = [entry("mine", "mine", 25), entry("other", "other", 75)]
    assert evicted(entries, "mine", 25) == "other"
    assert evicted(entries, "mine", 26) == "mine"


def test_a_group_whose_last_core_goes_leaves_its_share_to_the_others() -> None:
    # The share is 33 with that group, too small for a first core of 35, and 50 without it.
    candidates = Candidates([entry("a", "large", 40), entry("b", "small", 10)], "new", 35, 100)
    assert [found and found.key for found in (candidates.next(), candidates.next(), candidates.next())] == [
        "large",
        "small",
        None,
    ]


def test_one_core_goes_after_the_other() -> None:
    entries = [entry("a", "a1", 30, 3), entry("b", "b1", 20, 9), entry("b", "b2", 15, 8), entry("c", "c1", 5, 7)]
    candidates = Candidates([*entries, entry("c", "writing", 1, whole=False)], "new", 10, 100)
    keys = []
    while (found := candidates.next()) is not None:
        keys.append(found.key)
    assert keys == ["b1", "a1", "b2", "c1"]


def test_as_many_cores_as_may_be_there_are_looked_at_soon() -> None:
    entries = [entry("loop", str(number), 1, number) for number in range(MOST_CORES)]
    began = time.process_time()
    candidates = Candidates(entries, "new", 10, len(entries))
    assert [candidates.next() is not None for _ in entries] == [True] * len(entries)
    assert time.process_time() - began < 2


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "a" / "b"))


def put(kept_in: Store, group: str, key: str, size: int = 0, age: float = 0.0, json: bool = True) -> Path:
    directory = Path(kept_in.path, group)
    directory.mkdir(exist_ok=True)
    core = directory / f"{key}.core"
    core.write_bytes(b"x" * size)
    for file in [core, directory / f"{key}.json"] if json else [core]:
        if file != core:
            file.write_text("{}")
        then = time.time() - age * store.DAY
        os.utime(file, (then, then))
    return core


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_the_store_is_made_for_root_alone(kept: Store) -> None:
    assert os.stat(kept.path).st_mode & 0o7777 == 0o700
    assert os.stat(os.path.dirname(kept.path)).st_mode & 0o7777 == 0o700
    kept.close()
    Store(kept.path).close()


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
@pytest.mark.parametrize("mode", [0o750, 0o701, 0o720])
def test_a_directory_that_others_may_enter_is_no_store(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    opened = os.listdir("/proc/self/fd")
    with pytest.raises(store.Unusable, match=f"chown root {tmp_path} && chmod 0700 {tmp_path}"):
        Store(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == len(opened)


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_the_store_of_somebody_else_is_no_store(tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir(mode=0o700)
    os.chown(directory, 1000, 1000)
    with pytest.raises(store.Unusable, match="only root may enter it"):
        Store(str(directory))


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_directory_is_no_store(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    path.symlink_to(tmp_path) if kind == "link" else path.touch()
    with pytest.raises(store.Unusable, match=f"{path}: Not a directory: cores are not kept"):
        Store(str(path))


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_what_nobody_writes_any_more_is_deleted_and_never_listed(kept: Store) -> None:
    whole = put(kept, "group", "whole", 5)
    left = [put(kept, "group", "unlisted", 5, json=False), Path(kept.path, "group", ".half.100.part")]
    left[1].write_bytes(b"y")
    writing = Path(kept.path, "group", ".writing.4096.part")
    with open(writing, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = {entry.key: entry for entry in kept.entries()}
    assert sorted(found) == ["whole", "writing"]
    assert (found["whole"].whole, found["writing"].whole, found["writing"].claim) == (True, False, 4096)
    assert sorted(found["whole"].files) == ["whole.core", "whole.json"]
    assert whole.exists() and writing.exists() and not any(path.exists() for path in left)
    # Its writer has ended.
    assert [entry.key for entry in kept.entries()] == ["whole"] and not writing.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_a_deleted_core_takes_its_empty_group_along(kept: Store) -> None:
    put(kept, "group", "one")
    put(kept, "group", "two")
    first, second = kept.entries()
    kept.delete(first)
    assert [entry.key for entry in kept.entries()] == [second.key]
    kept.delete(second)
    assert os.listdir(kept.path) == []


def bounds(most: int = 100 * MIB, free: int = 0, age: int = 14) -> Configuration:
    configuration = Configuration()
    configuration.keep_max, configuration.keep_free, configuration.keep_age = most, free, age
    return configuration


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_room_is_made_by_the_oldest(kept: Store) -> None:
    put(kept, "a", "old", MIB, 3)
    put(kept, "a", "new", MIB, 2)
    assert room_for(kept, "a", MIB, bounds(2 * MIB + 65536)) >= MIB
    assert [entry.key for entry in kept.entries()] == ["new"]


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_nothing_goes_where_there_is_just_enough_room(kept: Store) -> None:
    put(kept, "a", "old", MIB)
    (old,) = kept.entries()
    assert room_for(kept, "a", old.bytes, bounds(2 * old.bytes)) == old.bytes
    assert [entry.key for entry in kept.entries()] == ["old"]


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_a_core_that_takes_just_the_share_has_room_made_for_it(kept: Store) -> None:
    put(kept, "a", "old", MIB)
    (old,) = kept.entries()
    share = 2 * old.bytes * 3 // 4
    assert room_for(kept, "a", share + 1, bounds(2 * old.bytes)) == old.bytes
    assert room_for(kept, "a", share, bounds(2 * old.bytes)) == share
    assert kept.entries() == []


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_nobody_waits_for_ever_for_whoever_can_read_the_store(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    other = os.open(kept.path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_SH)
    with pytest.raises(OSError, match="somebody has had it locked"), kept.lock:
        pass
    os.close(other)
    with kept.lock:
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_a_group_without_cores_is_forgotten_and_one_with_cores_is_not(kept: Store) -> None:
    put(kept, "full", "key")
    os.close(kept.group("empty"))
    kept.forget_group("empty")
    kept.forget_group("full")
    assert os.listdir(kept.path) == ["full"]


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_nothing_goes_for_a_core_that_is_too_large_anyway(kept: Store) -> None:
    put(kept, "a", "old", MIB)
    assert room_for(kept, "a", 9 * MIB, bounds(4 * MIB)) < 9 * MIB
    assert [entry.key for entry in kept.entries()] == ["old"]


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_what_is_too_old_goes_first(kept: Store) -> None:
    put(kept, "a", "old", MIB, 15)
    put(kept, "a", "new", MIB, 13)
    room_for(kept, "b", 1, bounds())
    assert [entry.key for entry in kept.entries()] == ["new"]


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_a_part_of_the_file_system_stays_free(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    system = os.statvfs_result((4096, 4096, 1000, 300, 200, 0, 0, 0, 0, 255))
    monkeypatch.setattr(posix, "fstatvfs", lambda directory: system)
    # 200 blocks are free for us, of which 15 % of 1,000 must stay.
    assert room_for(kept, "a", 1, bounds(free=15)) == 50 * 4096 * 3 // 4
    assert room_left(kept, bounds(free=15)) == 50 * 4096
    # What another helper is writing, and may take 30 blocks, has none of them yet.
    group = kept.group("b")
    file = store.create_file(group, f".key.{30 * 4096}{store.PART}")
    assert room_left(kept, bounds(free=15)) == 20 * 4096
    os.close(file)
    os.close(group)


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_what_others_are_writing_has_its_room_already(kept: Store) -> None:
    kept.group("a")
    with open(Path(kept.path, "a", f".writing.{3 * MIB}.part"), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Of the 4 that are left, it leaves one to the next core.
        assert room_for(kept, "b", 3 * MIB, bounds(7 * MIB)) == 3 * MIB
        assert room_for(kept, "b", 3 * MIB + 1, bounds(7 * MIB)) == 3 * MIB
        # The one that is being written has three of 7 already; two of its group share a half.
        assert room_for(kept, "a", MIB, bounds(7 * MIB)) == MIB // 2
        assert room_for(kept, "a", MIB, bounds(8 * MIB)) == MIB
        # It may become larger.
        assert room_for(kept, "a", MIB, bounds(7 * MIB), begun=True) == 7 * MIB * 3 // 4 - 3 * MIB


def test_whole_cores_count_as_room_and_what_is_compressed_is_not_under_way() -> None:
    entries = [
        entry("a", "old", 40),
        entry("b", "being-written", 0, whole=False),
        entry("a", "x.core.zst", 9, whole=False),
    ]
    entries[1].expected = 20
    # Of the bound of 100 the three leave 31, and the whole one can make room.
    assert share_of("a", entries, 500, 31, 100, False) == 71 * 3 // 4
    assert share_of("b", entries, 500, 31, 100, False) == (71 + 20) // 2 - 20
    assert share_of("b", entries, 500, 31, 100, True) == (71 + 20) * 3 // 4 - 20
    # The disk may have less.
    assert share_of("a", entries, 8, 31, 100, False) == 48 * 3 // 4


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_what_is_known_of_a_core_is_on_the_disk_before_it_has_its_name_and_the_name_after_that(
    kept: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    group = kept.group("group")
    real = posix.rename
    monkeypatch.setattr(posix, "fsync", lambda file: done.append("group" if file == group else "file"))

    def rename(*names: str, **directories: Any) -> None:
        done.append("rename")
        real(*names, **directories)

    monkeypatch.setattr(posix, "rename", rename)
    store.describe(group, "key", {})
    assert done == ["file", "rename", "group"]
    os.close(group)


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_a_core_is_not_listed_any_more_before_it_is_deleted(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(kept, "group", "key")
    deleted: list[str] = []
    monkeypatch.setattr(posix, "unlink", lambda name, dir_fd: deleted.append(name))
    kept.delete(kept.entries()[0])
    assert deleted == ["key.json", "key.core"]
    found = entry("group", "key", 1)
    found.files = [".key.0.part", "key.json.pending"]
    kept.delete(found)
    assert deleted[2:] == ["key.json.pending", ".key.0.part"]


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_whoever_has_no_turn_has_nothing_open(kept: Store) -> None:
    turn = kept.turn(store.SENDING)
    assert turn is not None
    assert keeps_descriptors(lambda: kept.turn(store.SENDING))
    os.close(turn)


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_the_lock_of_what_a_link_leads_to_says_nothing(kept: Store, tmp_path: Path) -> None:
    put(kept, "group", "key")
    (tmp_path / "elsewhere").touch()
    Path(kept.path, "group/key.core").unlink()
    Path(kept.path, "group/key.core").symlink_to(tmp_path / "elsewhere")
    with open(tmp_path / "elsewhere") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not kept.is_held(kept.entries()[0])


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_a_core_that_is_being_delivered_is_not_deleted_and_makes_no_room(kept: Store) -> None:
    delivered = put(kept, "a", "delivered", MIB, 20)
    put(kept, "a", "finished", MIB, 20).chmod(store.MODE_WHEN_FINISHED)
    with open(delivered, "rb") as file, open(delivered.with_name("finished.core"), "rb") as sent:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.flock(sent, fcntl.LOCK_EX)
        assert room_for(kept, "b", MIB // 2, bounds(2 * MIB + 65536)) < MIB // 2
        assert sorted(entry.key for entry in kept.entries()) == ["delivered", "finished"]
        # That is what the one that finishes cores does.
        fcntl.flock(file, fcntl.LOCK_SH)
        assert [entry.key for entry in kept.expire(bounds())] == ["finished"]


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_a_core_whose_lock_nobody_can_ask_for_stays(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    core = put(kept, "group", "key", 5, json=False)
    real = posix.open

    def crowded(path: str, *words: Any, **named: Any) -> int:
        if path == "key.core":
            raise OSError(24, "Too many open files")
        return real(path, *words, **named)

    monkeypatch.setattr(posix, "open", crowded)
    assert [entry.key for entry in kept.entries()] == ["key"] and core.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
def test_files_of_others_are_never_touched(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "is_key", IS_KEY)
    ours = [f"{KEY}.core", f".{KEY}.4096.part", f".{KEY}.json.part", f".{KEY}.core.zst.9.part"]
    theirs = [
        "authorized_keys",
        "package.json",
        "x.core",
        ".x.1.part",
        "x.core.zst",
        f"{KEY[:-1]}.core",
        KEY,
        "a.json.pending",
    ]
    directory = Path(kept.path, ".ssh")
    directory.mkdir()
    for name in ours + theirs:
        (directory / name).touch()
        os.utime(directory / name, (0, 0))
    assert kept.expire(bounds()) == []
    assert sorted(os.listdir(directory)) == sorted(theirs)


def test_what_is_no_path_is_no_store() -> None:
    with pytest.raises(store.Unusable, match="no path: cores are not kept") as caught:
        Store("/var\0/cores")
    assert "\0" not in str(caught.value)


def test_a_description_that_the_disk_takes_in_part_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = os.open(tmp_path, os.O_RDONLY)
    store.describe(group, "key", {"size": 1})
    before = (tmp_path / "key.json").read_text()
    real = posix.write
    left = [10]

    def write(file: int, content: bytes) -> int:
        if not left:
            raise OSError(28, "No space left on device")
        return real(file, content[: left.pop()])

    monkeypatch.setattr(posix, "write", write)
    with pytest.raises(OSError, match="No space left"):
        store.describe(group, "key", {"size": 2})
    assert (tmp_path / "key.json").read_text() == before
