"""What cores say of themselves, and what those say that are none."""

from __future__ import annotations

import hashlib
import io
import random
import re
import resource
import struct
import time
from pathlib import Path

import pytest
from corefetch import elf, elfcore, paths, symbols
from support.cores import HEADER, PT_NOTE, SEGMENT, Shop, run

NT_AUXV, NT_FILE = 6, 0x46494C45


def test_a_core_says_all_of_the_crash(shop: Shop) -> None:
    said = elfcore.of_file(shop.core)
    assert elfcore.signal_name(said.signal) == "SIGSEGV"
    assert said.name == "shop"
    assert len(said.threads) == 4
    assert said.program == said.files[0]
    assert said.program.endswith("/app/shop")
    assert said.build_ids[said.program] == symbols.read(shop.program).build_id
    assert said.build_ids[f"{said.program[:-4]}libtax.so.1"] == symbols.read(shop.library).build_id
    assert not said.truncated
    fault = said.fault()
    assert fault is not None
    assert fault[0] == said.program


def test_the_loader_s_names_lead_to_the_mapped_files(shop: Shop) -> None:
    said = elfcore.of_file(shop.core)
    assert {target.rpartition("/")[2] for target in said.links.values()} >= {"libc.so.6"} or any(
        path.startswith("/lib/") for path in said.files
    )
    assert set(said.links.values()) <= set(said.files)
    assert any(name.startswith("/lib64/ld-linux") for name in [*said.links, *said.files])


def test_the_beginning_is_enough(shop: Shop) -> None:
    whole = elfcore.of_file(shop.core)
    for size in (96 << 10, 1 << 20):
        said = elfcore.of_beginning(shop.core.read_bytes()[:size])
        assert (said.signal, said.threads, said.fault(), said.program) == (
            whole.signal,
            whole.threads,
            whole.fault(),
            whole.program,
        )
        assert said.build_ids[said.program] == whole.build_ids[whole.program]
        assert not said.truncated


def test_a_program_of_go_has_an_id_too(shop: Shop, tmp_path: Path) -> None:
    source, program = tmp_path / "go.s", tmp_path / "go"
    note = '.section .note.go.buildid, "a", @note\n.long 4, 7, 4\n.ascii "Go\\0\\0"\n.ascii "ab/c=_x\\0"\n'
    source.write_text(f"{note}.text\n.globl _start\n_start: ret\n")
    run("gcc", "-nostdlib", "-static", "-Wl,--build-id=none", "-o", program, source)
    assert symbols.read(program).build_id == f"go-{hashlib.sha256(b'ab/c=_x').hexdigest()[:40]}"
    run("gcc", "-nostdlib", "-static", "-Wl,--build-id", "-o", program, source)
    assert re.fullmatch("[0-9a-f]{40}", symbols.read(program).build_id)


def test_a_file_that_is_not_mapped_from_its_beginning_is_no_program() -> None:
    paths = ("/jdk/lib/server/classes.jsa", "/jdk/lib/libjvm.so")
    facts = elfcore.CoreFacts(mappings=[elfcore.Mapping(0, 4096, 4096, path) for path in paths])
    elfcore._identify(facts, elfcore._Memory(b"", []))
    assert facts.files == ["/jdk/lib/libjvm.so"]


def test_a_core_that_was_cut_off_says_so(shop: Shop, tmp_path: Path) -> None:
    content = shop.core.read_bytes()
    cut = tmp_path / "cut"
    for size in (len(content) - 1, len(content) // 2, 100_000):
        cut.write_bytes(content[:size])
        said = elfcore.of_file(cut)
        assert said.truncated
        assert (said.size, said.expected) == (size, len(content))
        assert elfcore.signal_name(said.signal) == "SIGSEGV"


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"x" * 1000, b"\x7fELF" + bytes(1000), b"\x7fELF\x02\x01\x01" + b"\xff" * 200]
)
def test_what_is_no_core_is_one_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        elfcore.of_file(path)
    with pytest.raises(ValueError, match=r"."):
        elfcore.of_beginning(content)


def test_a_program_is_no_core(shop: Shop) -> None:
    with pytest.raises(ValueError, match="an ELF file of another kind"):
        elfcore.of_file(shop.program)


def test_no_bytes_of_a_stranger_are_an_error_of_another_kind(shop: Shop) -> None:
    content = shop.core.read_bytes()[: 96 << 10]
    chance = random.Random(14)
    read = 0
    for _ in range(400):
        changed = bytearray(content)
        # Headers and notes are where numbers lead elsewhere.
        for _ in range(chance.randrange(1, 30)):
            changed[chance.randrange(64 if chance.random() < 0.3 else 24_000)] = chance.choice(
                (0, 1, 255, chance.randrange(256))
            )
        try:
            said = elfcore.of_beginning(bytes(changed))
        except ValueError:
            continue
        said.fault()
        assert isinstance(said.files, list)
        read += 1
    assert read > 20


def test_a_core_of_very_many_mappings_is_read_soon(shop: Shop) -> None:
    """As many as the kernel allows: vm.max_map_count."""
    content = bytearray(shop.core.read_bytes()[: 1 << 20])
    said = elfcore.of_beginning(bytes(content))
    one = said.mappings[0]
    said.mappings = [elfcore.Mapping(n << 12, (n + 1) << 12, 0, f"{one.path}{n}") for n in range(65_530)]
    memory = elfcore._Memory(content, [(n << 12, 0, 4096) for n in range(65_530)])
    begin = time.process_time()
    elfcore._identify(said, memory)
    assert time.process_time() - begin < 20


def with_notes(kind: int, segments: int, notes: bytes) -> bytes:
    """Return an ELF file of very many segments, which all have the same notes."""
    begin = HEADER.size + SEGMENT.size * segments
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = HEADER.pack(ident, kind, 62, 1, 0, HEADER.size, 0, 0, HEADER.size, SEGMENT.size, segments, 0, 0, 0)
    return header + SEGMENT.pack(PT_NOTE, 4, begin, 0, 0, len(notes), len(notes), 4) * segments + notes


def test_notes_that_are_in_very_many_segments_are_read_soon() -> None:
    begin = time.process_time()
    elfcore.of_beginning(with_notes(4, 4000, bytes(12 * 1000)))
    # As many files as are looked at may have such a page.
    assert elf.build_id_of(io.BytesIO(with_notes(3, 36, bytes(2016)).ljust(4096, b"\0"))) == ""
    assert time.process_time() - begin < 5


def note(kind: int, data: bytes, size: int | None = None) -> bytes:
    """Return a note of a core."""
    size = len(data) if size is None else size
    return struct.pack("<3I", 5, size, kind) + b"CORE".ljust(8, b"\0") + data + bytes(-len(data) % 4)


@pytest.mark.parametrize("count", [1 << 40, 1 << 60, 100_000])
def test_a_list_of_files_that_says_to_be_longer_than_its_note_is_left_out(count: int) -> None:
    """And may be in very many segments."""
    files = note(NT_FILE, struct.pack("<2Q", count, 4096))
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = elfcore.of_beginning(with_notes(4, 60_000, files) + bytes(16 << 20))
    assert said.mappings == []
    assert time.process_time() - begin < 5
    # KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_long_list_of_files_that_is_in_very_many_segments_is_read_once() -> None:
    entries = b"".join(struct.pack("<3Q", n << 12, (n + 1) << 12, 0) for n in range(20_000))
    files = note(NT_FILE, struct.pack("<2Q", 20_000, 4096) + entries + b"/a\0" * 20_000)
    begin = time.process_time()
    said = elfcore.of_beginning(with_notes(4, 4000, files))
    assert (len(said.mappings), said.mappings[-1]) == (20_000, elfcore.Mapping(19_999 << 12, 20_000 << 12, 0, "/a"))
    assert time.process_time() - begin < 5


def test_forged_links_to_very_many_mappings_are_read_soon() -> None:
    """Of a core that a container can have the kernel write."""
    number, links, at = 65_000, elfcore.MOST_LINKS, 0x7F0000000000
    entries = b"".join(struct.pack("<3Q", n << 12, n + 1 << 12, 0) for n in range(number))
    files = note(NT_FILE, struct.pack("<2Q", number, 4096) + entries + b"/a\0" * number)
    notes = note(NT_AUXV, struct.pack("<6Q", elfcore.AT_PHDR, at, elfcore.AT_PHNUM, 2, 0, 0)) + files
    headers = SEGMENT.pack(elfcore.PT_PHDR, *[0] * 7) + SEGMENT.pack(elfcore.PT_DYNAMIC, 0, 0, 0x200, 0, 0, 0, 0)
    # The dynamic section, r_debug, a name, and the list.
    parts = {0: headers, 0x200: struct.pack("<2Q", elfcore.DT_DEBUG, at + 0x300), 0x400: b"/b\0"}
    parts[0x300] = struct.pack("<2Q", 1, at + 0x1000)
    last = number - 1 << 12
    memory = bytearray(0x1000)
    for place, part in parts.items():
        memory[place : place + len(part)] = part
    memory += b"".join(struct.pack("<4Q", 0, at + 0x400, last, at + 0x1000 + 32 * n) for n in range(1, links + 1))
    content = bytearray(with_notes(4, 2, notes))
    SEGMENT.pack_into(content, HEADER.size, 1, 4, len(content), at, at, len(memory), len(memory), 4)
    begin = time.process_time()
    said = elfcore.of_beginning(bytes(content + memory))
    assert (len(said.mappings), said.links) == (number, {"/b": "/a"})
    assert time.process_time() - begin < 5


def test_a_path_that_is_longer_than_any_leads_nowhere(tmp_path: Path) -> None:
    files = note(NT_FILE, struct.pack("<5Q", 1, 4096, 0, 4096, 0) + b"/" + b"a" * 200_000 + b"\0")
    (path,) = [one.path for one in elfcore.of_beginning(with_notes(4, 1, files)).mappings]
    # It becomes a word of a command, whose length has a bound.
    assert len(path) == elfcore.LONGEST_NAME
    assert paths.resolve(tmp_path, path) is None


def test_a_note_that_is_longer_than_any_is_not_read() -> None:
    begin = time.process_time()
    elfcore.of_beginning(with_notes(4, 60_000, note(1, bytes(1 << 20)) + note(NT_AUXV, bytes(1 << 20))))
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(("length", "found"), [(20, "61" * 20), (64, "61" * 64), (65, ""), (200, "")])
def test_a_build_id_that_could_name_no_file_is_none(length: int, found: str) -> None:
    notes = struct.pack("<3I", 4, length, 3) + b"GNU\0" + b"a" * length + bytes(-length % 4)
    assert elf.build_id_of(io.BytesIO(with_notes(3, 1, notes))) == found


def test_symbols_and_lines_are_told_apart(shop: Shop, tmp_path: Path) -> None:
    assert symbols.read(shop.program).lines
    run("strip", "-g", "-o", tmp_path / "functions", shop.program)
    run("strip", "-o", tmp_path / "stripped", shop.program)
    run("objcopy", "--only-keep-debug", shop.program, tmp_path / "debug")
    found = {name: symbols.read(tmp_path / name) for name in ("functions", "stripped", "debug")}
    assert (found["functions"].symbols, found["functions"].lines) == (True, False)
    assert (found["stripped"].symbols, found["stripped"].lines) == (False, False)
    assert found["debug"].lines
    assert {one.build_id for one in found.values()} == {symbols.read(shop.program).build_id}
    assert symbols.read(tmp_path / "none") == symbols.Contents()
