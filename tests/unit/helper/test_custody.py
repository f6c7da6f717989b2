"""custody: the core on the disk of the host, with holes, and what comes after it where there is no room."""

from __future__ import annotations

import hashlib
import json
import os
import posix
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import build_ids, custody, finishing, relay, store
from core_helper.configuration import Configuration
from core_helper.custody import Custody
from core_helper.holes import BLOCK, PAGE, runs
from core_helper.source import KeptFile, KernelPipe
from unit.helper.delivery import feed
from unit.helper.support import elf

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (bytes(BLOCK), []),
        (b"x" * BLOCK, [(0, BLOCK)]),
        (b"x", [(0, 1)]),
        (bytes(100), []),
        (bytes(PAGE) + b"x", [(PAGE, PAGE + 1)]),
        (bytes(PAGE - 1) + b"x" + bytes(PAGE), [(0, PAGE)]),
        (b"x" + bytes(3 * PAGE - 1) + bytes(PAGE - 1) + b"y", [(0, PAGE), (3 * PAGE, 4 * PAGE)]),
        (b"x" + bytes(PAGE) + b"y" + bytes(PAGE), [(0, 2 * PAGE)]),
    ],
    ids=range(9),
)
def test_pages_of_zeros_are_no_runs(content: bytes, expected: list[tuple[int, int]]) -> None:
    buffer = bytearray(BLOCK)
    buffer[: len(content)] = content
    assert runs(buffer, len(content)) == expected


@pytest.fixture
def kept_in(tmp_path: Path) -> store.Store:
    return store.Store(str(tmp_path / "cores"))


def written(
    kept_in: store.Store, core: bytes, room: int = 64 * MIB, need: int = 1, seconds: float = 10, key: str = "key"
) -> Any:
    """Return the custody of ``core``, as the kernel dumps it, and the pipe of the kernel."""
    configuration = Configuration()
    configuration.keep_max, configuration.keep_free = room, 0
    reading, writing = os.pipe()
    kernel = KernelPipe(reading)
    kept = Custody(kept_in, "group", key, need, configuration)
    threading.Thread(target=feed, args=(writing, core), daemon=True).start()
    kept.write(kernel, time.monotonic() + seconds)
    return kept, kernel


def rest_of(source: KeptFile) -> bytes:
    """Return all that can be read, as a destination reads it."""
    content = bytearray()
    while True:
        part = os.read(source.descriptor, MIB)
        content += part
        if not part and not source.advance():
            return bytes(content)


@pytest.mark.parametrize("size", [0, 1, PAGE, BLOCK - 1, BLOCK, BLOCK + 1, 3 * MIB + 5])
def test_all_of_the_core_is_on_the_disk(kept_in: store.Store, size: int) -> None:
    core = os.urandom(size)
    kept, kernel = written(kept_in, core)
    assert (kept.size, kept.stopped, kernel.drained, kept.is_all()) == (size, "", True, True)
    assert rest_of(kept.source) == core
    assert kept.source.rewind() and rest_of(kept.source) == core


def test_zeros_take_no_room(kept_in: store.Store) -> None:
    core = b"x" + bytes(8 * MIB) + b"y"
    kept, _kernel = written(kept_in, core)
    assert os.fstat(kept.file).st_size == len(core)
    assert os.fstat(kept.file).st_blocks * 512 <= 65536
    assert rest_of(kept.source) == core


def test_a_core_that_ends_in_zeros_has_its_length(kept_in: store.Store) -> None:
    kept, _kernel = written(kept_in, b"x" + bytes(MIB))
    assert os.fstat(kept.file).st_size == MIB + 1


@pytest.mark.parametrize(("missing", "cut"), [(0, False), (1, True), (150_000, True)])
def test_the_header_tells_whether_a_part_is_missing(kept_in: store.Store, missing: int, cut: bool) -> None:
    core = (elf(64, "<", [(4096, 200_000)]) + b"x" * 204_096)[: 204_096 - missing]
    kept, _kernel = written(kept_in, core)
    assert (kept.length, kept.truncated()) == (204_096, cut)
    assert kept.facts()[b"CORE_TRUNCATED"] == (b"1" if cut else b"0")
    assert kept.facts()[b"CORE_SIZE"] == b"%d" % len(core)


def test_without_room_the_rest_comes_from_the_kernel_once(kept_in: store.Store) -> None:
    core = os.urandom(5 * MIB + 77)
    kept, kernel = written(kept_in, core, room=2 * MIB)
    assert "has no room for more" in kept.stopped and not kept.is_all() and kept.truncated() and kept.facts() == {}
    assert 0 < kept.size <= 2 * MIB
    assert rest_of(kept.source) == core
    assert kernel.drained
    assert not kept.source.rewind()


def test_a_disk_that_is_full_loses_no_byte(kept_in: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, view: memoryview, offset: int) -> None:
        if offset >= MIB:
            raise OSError(28, "No space left on device")
        os.pwrite(file, view, offset)

    monkeypatch.setattr(custody, "_pwrite", full)
    core = os.urandom(3 * MIB)
    kept, _kernel = written(kept_in, core)
    assert kept.stopped == "No space left on device"
    assert rest_of(kept.source) == core


def test_at_the_deadline_what_is_there_is_all_there_is(kept_in: store.Store) -> None:
    reading, writing = os.pipe()
    kernel = KernelPipe(reading)
    configuration = Configuration()
    configuration.keep_free = 0
    kept = Custody(kept_in, "group", "key", 1, configuration)
    os.write(writing, b"begun")
    kept.write(kernel, time.monotonic() + 0.2)
    assert kept.late and kept.truncated() and kept.is_all() and not kernel.drained
    assert kept.facts() == {b"CORE_SIZE": b"5", b"CORE_TRUNCATED": b"1"}
    assert rest_of(kept.source) == b"begun"
    os.close(writing)


def test_a_core_for_which_there_is_no_room_is_not_begun(kept_in: store.Store) -> None:
    with pytest.raises(store.Unusable, match="has room for 786432 bytes, and the core may take 786433: not kept"):
        written(kept_in, b"", room=MIB, need=MIB * 3 // 4 + 1)
    assert os.listdir(kept_in.path) == []
    written(kept_in, b"", room=MIB, need=MIB * 3 // 4)


def names(kept_in: store.Store) -> list[str]:
    return sorted(os.listdir(Path(kept_in.path, "group")))


def known_of(kept_in: store.Store) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(Path(kept_in.path, "group", "key.json").read_text())
    return known


@pytest.mark.parametrize("step", ["mkdir", "create_file", "listdir"])
def test_a_store_that_was_usable_and_is_read_only_now_keeps_nothing_and_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def refuse(*words: Any, **named: Any) -> Any:
        raise OSError(30, "Read-only file system")

    configuration = Configuration()
    configuration.keep_directory, configuration.keep_free = str(tmp_path / "cores"), 0
    process: Any = SimpleNamespace(cgroups=[], memory=1)
    monkeypatch.setattr(custody, "key_of", lambda *words: "key")
    crash: Any = None
    assert custody.begin(crash, process, configuration).key == "key"
    monkeypatch.setattr(store if step == "create_file" else posix, step, refuse)
    with pytest.raises(store.Unusable) as caught:
        custody.begin(crash, process, configuration)
    told = str(caught.value)
    assert (
        told.startswith(f"{configuration.keep_directory}: Read-only file system: ")
        and "kept" in told
        and "\n" not in told
    )


def test_a_core_is_listed_once_it_is_sealed(kept_in: store.Store) -> None:
    kept, _kernel = written(kept_in, b"core", need=7)
    assert names(kept_in) == [".key.0.part"]
    assert [entry.whole for entry in kept_in.entries()] == [False]
    kept.seal({"reason": "first"})
    kept.seal({"reason": "second"})
    assert names(kept_in) == ["key.core", "key.json"]
    assert known_of(kept_in) == {"file": "key.core", "reason": "second"}
    assert [(entry.whole, entry.finished) for entry in kept_in.entries()] == [(True, False)]


@pytest.mark.parametrize("step", ["announced", "renamed", "described in part"])
def test_a_core_whose_helper_is_killed_is_listed_if_all_of_it_was_there(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    kept, _kernel = written(kept_in, b"core", need=7)
    kept.announce({"reason": "killed", "size": 4})
    assert [entry.whole for entry in kept_in.entries()] == [False]
    group = Path(kept_in.path, "group")
    if step != "announced":
        (group / ".key.0.part").rename(group / "key.core")
    if step == "described in part":
        (group / ".key.json.part").write_text("{")
    os.close(kept.file)
    for _again in range(2):
        (entry,) = kept_in.entries()
        assert entry.whole and sorted(entry.files) == ["key.core", "key.json"] == names(kept_in)
    assert known_of(kept_in) == {"file": "key.core", "reason": "killed", "size": 4}


@pytest.mark.parametrize("wrong", ["boot", "size", "damaged", "no core", "not announced"])
def test_a_core_whose_helper_is_killed_is_deleted_if_it_may_not_be_all_there(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch, wrong: str, tmp_path: Path
) -> None:
    kept, _kernel = written(kept_in, b"core")
    if wrong != "not announced":
        kept.announce({"reason": "killed", "size": 5 if wrong == "size" else 4})
    group = Path(kept_in.path, "group")
    if wrong == "boot":
        (tmp_path / "boot").write_text("another\n")
        monkeypatch.setattr(store, "BOOT", str(tmp_path / "boot"))
    elif wrong == "damaged":
        (group / "key.json.pending").write_text("{")
    elif wrong == "no core":
        (group / ".key.0.part").unlink()
    os.close(kept.file)
    assert kept_in.entries() == []
    assert names(kept_in) == []


@pytest.mark.parametrize("step", ["fsync", "describe"])
def test_a_core_that_cannot_be_listed_now_is_listed_later(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*words: Any) -> None:
        raise OSError(28, "No space left on device")

    kept, _kernel = written(kept_in, b"core", need=7)
    kept.announce({"reason": "killed", "size": 4})
    os.close(kept.file)
    with monkeypatch.context() as patch:
        patch.setattr(store if step == "describe" else posix, step, full)
        assert [entry.whole for entry in kept_in.entries()] == [False]
    assert [entry.whole for entry in kept_in.entries()] == [True]


def test_a_core_that_was_deleted_meanwhile_is_not_listed(kept_in: store.Store) -> None:
    kept, _kernel = written(kept_in, b"core")
    kept.seal({})
    for name in ("key.core", "key.json"):
        Path(kept_in.path, "group", name).unlink()
    with pytest.raises(FileNotFoundError):
        kept.seal({})
    assert names(kept_in) == []


@pytest.mark.parametrize("compressor", [True, False])
def test_only_the_work_on_a_core_has_the_lowest_priority(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compressor: bool
) -> None:
    kept = sealed(kept_in, b"core" * MIB)
    shell(monkeypatch, tmp_path, "exec /bin/gzip")
    if not compressor:
        monkeypatch.setattr(finishing, "COMPRESSORS", ())
    monkeypatch.setattr(build_ids, "of_core", lambda file: {"nice": os.nice(0), "own": os.getsid(0) == os.getpid()})
    before = os.nice(0)
    finishing.finish_all(kept_in, kept.configuration)
    assert known_of(kept_in)["build_ids"] == {"nice": 19, "own": True}
    assert os.nice(0) == before


def test_a_core_whose_reader_is_killed_stays_as_it_is_and_the_next_one_is_finished(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finishing, "COMPRESSORS", ())
    own, real = os.getpid(), finishing._checksum
    for key in ("large", "key"):
        kept, _kernel = written(kept_in, b"core" if key == "key" else b"core" * MIB, key=key)
        kept.seal({})
        os.close(kept.file)

    def killed(file: int) -> str:
        if os.fstat(file).st_size == 4 and os.getpid() != own:
            os.kill(os.getpid(), 9)
        return "" if os.fstat(file).st_size == 4 else real(file)

    monkeypatch.setattr(finishing, "_checksum", killed)
    finishing.finish_all(kept_in, kept.configuration)
    assert {entry.key: entry.finished for entry in kept_in.entries()} == {"key": False, "large": True}
    assert "sha256" not in known_of(kept_in)


def test_a_claim_that_cannot_be_given_back_cuts_no_core_off(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*words: Any) -> None:
        raise OSError(11, "somebody has had it locked")

    monkeypatch.setattr(Custody, "_claim", busy)
    kept, _kernel = written(kept_in, elf(64, "<", [(4096, 100)]).ljust(4196, b"x"), need=8192)
    assert (kept.stopped, kept.is_all(), kept.truncated()) == ("", True, False)
    kept.seal({})
    assert names(kept_in) == ["key.core", "key.json"]


def test_a_core_has_no_gap_where_a_pipe_takes_less(kept_in: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    core = os.urandom(3 * MIB)
    monkeypatch.setattr(custody, "_enlarge", lambda pipe: None)
    kept, _kernel = written(kept_in, core, room=2 * MIB)
    assert kept.stopped == custody.LOST and kept.late and kept.truncated()
    content = rest_of(kept.source)
    assert content == core[: len(content)] and len(content) == kept.size > 0


def test_a_group_that_is_deleted_meanwhile_is_made_again(kept_in: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _kernel = written(kept_in, b"core", key="first")
    real = store.create_file
    dropped: list[str] = []

    def late(group: int, name: str) -> int:
        if not dropped:
            dropped.append(name)
            first.drop()
        return real(group, name)

    monkeypatch.setattr(store, "create_file", late)
    written(kept_in, b"core")
    assert names(kept_in) == [".key.0.part"]


def test_half_an_announcement_is_none(kept_in: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: Any) -> None:
        raise OSError(28, "No space left on device")

    kept, _kernel = written(kept_in, b"core")
    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_all", full)
        with pytest.raises(OSError, match="No space left"):
            kept.announce({})
    kept.announce({})
    assert names(kept_in) == [".key.0.part", "key.json.pending"]
    assert kept.is_there()
    kept.drop()
    assert not kept.is_there()


@pytest.mark.parametrize("sealed", [False, True])
def test_a_core_that_was_taken_leaves_nothing(kept_in: store.Store, sealed: bool) -> None:
    kept, _kernel = written(kept_in, b"core")
    kept.announce({})
    if sealed:
        kept.seal({})
        assert names(kept_in) == ["key.core", "key.json"]
    kept.drop()
    assert os.listdir(kept_in.path) == []


@pytest.mark.parametrize("compressor", [True, False])
def test_a_finished_core_is_compressed_and_has_the_checksum_of_the_plain_one(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compressor: bool
) -> None:
    core = os.urandom(3 * MIB) + bytes(MIB)
    zstd = tmp_path / "zstd"
    zstd.write_text('#!/bin/sh\n[ "$*" = "-q -c -1" ] && exec /usr/bin/tr -d "\\0"\n')
    zstd.chmod(0o755)
    monkeypatch.setattr(finishing, "COMPRESSORS", (str(zstd),) if compressor else ())
    kept, _kernel = written(kept_in, core)
    kept.seal({"reason": "why"})
    os.close(kept.file)
    finishing.finish_all(kept_in, kept.configuration)
    file = "key.core.zst" if compressor else "key.core"
    assert names(kept_in) == [file, "key.json"]
    digest = hashlib.sha256(core).hexdigest()
    assert known_of(kept_in) == {"file": file, "reason": "why", "sha256": digest, "build_ids": {}}
    (entry,) = kept_in.entries()
    assert entry.finished
    content = Path(kept_in.path, "group", file).read_bytes()
    assert content == (core.replace(b"\0", b"") if compressor else core)


def test_a_compressor_that_fails_leaves_the_plain_core(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    zstd = tmp_path / "zstd"
    zstd.write_text("#!/bin/sh\n/bin/cat >/dev/null\nexit 1\n")
    zstd.chmod(0o755)
    monkeypatch.setattr(finishing, "COMPRESSORS", (str(zstd),))
    kept, _kernel = written(kept_in, b"core")
    kept.seal({})
    os.close(kept.file)
    finishing.finish_all(kept_in, kept.configuration)
    assert names(kept_in) == ["key.core", "key.json"]
    assert known_of(kept_in)["file"] == "key.core"


def test_a_core_whose_note_nobody_can_read_keeps_no_other_from_being_finished(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finishing, "COMPRESSORS", ())
    kept = sealed(kept_in, b"core" * MIB)
    group = Path(kept_in.path, "group")
    # It is the smallest one, and so the first.
    (group / "damaged.core").write_bytes(b"core")
    (group / "damaged.json").write_bytes(bytes(300))
    finishing.finish_all(kept_in, kept.configuration)
    finished = {entry.key: entry.finished for entry in kept_in.entries()}
    assert finished == {"key": True, "damaged": False}


def test_small_cores_of_a_loop_do_not_keep_a_large_one_of_others_waiting(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[str] = []

    def entry(group: str, key: str, size: int) -> store.Entry:
        made = store.Entry(group, key)
        made.size = size
        return made

    def unfinished(kept_in: store.Store) -> list[store.Entry]:
        if len(finished) == 50:
            return []
        return [
            entry("loop", f"small-{len(finished)}", 1000),
            entry("loop", "holes", 1 << 40),
            entry("other", "large", 100 * MIB),
        ]

    monkeypatch.setattr(finishing, "_unfinished", unfinished)
    monkeypatch.setattr(finishing, "_finish", lambda kept_in, entry, configuration: finished.append(entry.key))
    finishing.finish_all(kept_in, Configuration())
    assert finished.index("large") < 10
    assert "holes" not in finished


def shell(monkeypatch: pytest.MonkeyPatch, directory: Path, text: str) -> None:
    """Have a shell script compress."""
    zstd = directory / "zstd"
    zstd.write_text(f"#!/bin/sh\n{text}\n")
    zstd.chmod(0o755)
    monkeypatch.setattr(finishing, "COMPRESSORS", (str(zstd),))


def sealed(kept_in: store.Store, core: bytes, room: int = 64 * MIB) -> Custody:
    kept, _kernel = written(kept_in, core, room)
    kept.seal({})
    os.close(kept.file)
    made: Custody = kept
    return made


def test_what_does_not_become_smaller_stays_plain(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell(monkeypatch, tmp_path, "/bin/cat && /usr/bin/head -c 8192 /dev/zero")
    core = os.urandom(MIB)
    finishing.finish_all(kept_in, sealed(kept_in, core).configuration)
    assert names(kept_in) == ["key.core", "key.json"]
    assert known_of(kept_in)["sha256"] == hashlib.sha256(core).hexdigest()


def test_a_compressed_core_keeps_to_the_bound_beside_the_plain_one(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell(monkeypatch, tmp_path, f"/usr/bin/head -c {3 * MIB // 4} && /bin/cat >/dev/null")
    finishing.finish_all(kept_in, sealed(kept_in, os.urandom(MIB), 3 * MIB // 2).configuration)
    assert names(kept_in) == ["key.core", "key.json"]


@pytest.mark.parametrize("compressor", [True, False])
def test_a_core_that_is_deleted_meanwhile_stays_deleted(
    kept_in: store.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compressor: bool
) -> None:
    kept = sealed(kept_in, b"core" * MIB)
    shell(monkeypatch, tmp_path, f"/bin/rm {kept_in.path}/group/key.*; exec /bin/gzip")
    if not compressor:
        monkeypatch.setattr(finishing, "COMPRESSORS", ())
        monkeypatch.setattr(finishing, "_checksum", lambda file: kept.drop())
    finishing.finish_all(kept_in, kept.configuration)
    assert list(Path(kept_in.path).glob("*/*")) == []


def test_one_process_finishes_all_cores(kept_in: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = sealed(kept_in, b"core")
    monkeypatch.setattr(finishing, "COMPRESSORS", ())
    turn = kept_in.turn(store.FINISHING)
    assert turn is not None and kept_in.turn(store.FINISHING) is None
    finishing.finish_all(kept_in, kept.configuration)
    assert "sha256" not in known_of(kept_in)
    os.close(turn)
    finishing.finish_all(kept_in, kept.configuration)
    assert "sha256" in known_of(kept_in)


def test_the_smallest_core_is_finished_first(kept_in: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    for key, size in (("huge", 3 * MIB), ("small", 5), ("middle", MIB)):
        kept, _kernel = written(kept_in, bytes(size), key=key)
        kept.seal({})
        os.close(kept.file)
    monkeypatch.setattr(finishing, "_finish", lambda kept_in, entry, configuration: order.append(entry.key))
    finishing.finish_all(kept_in, kept.configuration)
    assert order == ["small", "middle", "huge"]


def test_a_core_that_its_helper_holds_is_left_to_it(kept_in: store.Store) -> None:
    kept, _kernel = written(kept_in, b"core")
    kept.seal({})
    finishing.finish_all(kept_in, kept.configuration)
    assert "sha256" not in known_of(kept_in)
    os.close(kept.file)


def test_two_cores_that_take_more_than_expected_share_what_is_free(kept_in: store.Store) -> None:
    first, _kernel = written(kept_in, os.urandom(3 * MIB), 4 * MIB)
    assert [entry.claim for entry in kept_in.entries()] == [3 * MIB]
    configuration = first.configuration
    second = Custody(kept_in, "other", "second", MIB // 2, configuration)
    reading, writing = os.pipe()
    threading.Thread(target=feed, args=(writing, os.urandom(3 * MIB)), daemon=True).start()
    second.write(KernelPipe(reading), time.monotonic() + 10)
    assert first.size == 3 * MIB and "has no room for more" in second.stopped and second.size <= MIB


def tell(pipe: int) -> None:
    os.write(pipe, b"end")


def test_a_program_that_takes_the_helpers_place_reads_a_pipe(kept_in: store.Store) -> None:
    core = os.urandom(2 * MIB)
    kept, _kernel = written(kept_in, core)
    told = os.pipe()
    pipe = kept.source.stream(lambda: tell(told[1]))
    content = b""
    while part := os.read(pipe, MIB):
        content += part
    assert content == core and os.read(told[0], 9) == b"end"
    os.wait()
    # Others read on from where they were.
    assert rest_of(kept.source) == core


def test_the_relay_gives_away_the_file_and_then_what_comes_after_it(kept_in: store.Store) -> None:
    core = os.urandom(5 * MIB)
    kept, _kernel = written(kept_in, core, room=2 * MIB)
    reading, writing = os.pipe()
    result: Any = SimpleNamespace(delivered=0, length=None, complete=False, failure=None)
    child: Any = SimpleNamespace(core_write_end=writing, stderr_read_end=-1, stdout_read_end=-1)
    content = bytearray()

    def read() -> None:
        while part := os.read(reading, MIB):
            content.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    os.set_blocking(writing, False)
    moving = relay.Relay(kept.source, child, result, lambda line: None)
    moving.readable = True
    deadline = time.monotonic() + 10
    while moving.open and time.monotonic() < deadline:
        if moving.ended:
            moving._close_when_read()
        else:
            moving.readable = True
            moving._move()
    reader.join(10)
    assert bytes(content) == core and result.complete
