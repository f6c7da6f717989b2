"""build_ids: by which a debugger finds what belongs to a core, out of what the process has written."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from core_helper import build_ids

WORDS = {32: "I", 64: "Q"}


def note(order: str, name: bytes, kind: int, content: bytes) -> bytes:
    name += b"\0"
    padded = name.ljust((len(name) + 3) // 4 * 4, b"\0") + content.ljust((len(content) + 3) // 4 * 4, b"\0")
    return struct.pack(f"{order}3I", len(name), len(content), kind) + padded


def elf(bits: int, order: str, segments: list[tuple[int, int, bytes]]) -> bytes:
    """Return an ELF file with these segments: type, address and content."""
    word = WORDS[bits]
    header, entry = (52, 32) if bits == 32 else (64, 56)
    ident = b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2, 1]).ljust(12, b"\0")
    head = ident + struct.pack(
        f"{order}HHI3{word}I6H", 4, 62, 1, 0, header, 0, 0, header, entry, len(segments), 0, 0, 0
    )
    table, data = b"", b""
    at = header + entry * len(segments)
    for kind, address, content in segments:
        if bits == 32:
            table += struct.pack(f"{order}8I", kind, at, address, 0, len(content), len(content), 4, 0)
        else:
            table += struct.pack(f"{order}2I6Q", kind, 4, at, address, 0, len(content), len(content), 0)
        data += content
        at += len(content)
    return head + table + data


def mapped(bits: int, order: str, files: list[tuple[int, int, bytes]], count: int | None = None) -> bytes:
    """Return the content of a note NT_FILE: address, offset in pages and path of each file."""
    word = WORDS[bits]
    content = struct.pack(f"{order}2{word}", len(files) if count is None else count, 4096)
    for start, offset, _path in files:
        content += struct.pack(f"{order}3{word}", start, start + 4096, offset)
    return content + b"".join(path + b"\0" for _start, _offset, path in files)


def core_of(tmp_path: Path, content: bytes) -> int:
    path = tmp_path / "core"
    path.write_bytes(content)
    return os.open(path, os.O_RDONLY)


def library(bits: int, order: str, identity: bytes, name: bytes = b"GNU") -> bytes:
    notes = note(order, b"GNU", 1, b"abi!") + note(order, name, build_ids.NT_GNU_BUILD_ID, identity)
    return elf(bits, order, [(1, 0, b""), (build_ids.PT_NOTE, 0, notes)])


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_program_and_libraries_have_their_build_ids(tmp_path: Path, bits: int, order: str) -> None:
    files = [
        (0x1000, 0, b"/bin/shop"),
        (0x2000, 1, b"/bin/shop"),
        (0x3000, 0, b"/lib/libc.so"),
        (0x4000, 0, b"/etc/data"),
        (0x5000, 0, b"/lib/not dumped"),
    ]
    notes = note(order, b"CORE", 1, b"status") + note(order, b"CORE", build_ids.NT_FILE, mapped(bits, order, files))
    segments = [
        (build_ids.PT_NOTE, 0, notes),
        (1, 0x1000, library(bits, order, bytes.fromhex("aa11"))),
        (1, 0x2000, library(bits, order, bytes.fromhex("ffff"))),
        (1, 0x3000, library(bits, order, bytes.fromhex("bb22"))),
        (1, 0x4000, b"no ELF file at all, and longer than a header"),
        (1, 0x5000, b""),
    ]
    core = core_of(tmp_path, elf(bits, order, segments))
    assert build_ids.of_core(core) == {"/bin/shop": "aa11", "/lib/libc.so": "bb22"}


def test_this_very_python_is_found_in_its_own_core_shaped_file(tmp_path: Path) -> None:
    own = Path("/proc/self/exe").read_bytes()[:4096]
    files = [(0x1000, 0, b"/usr/bin/python")]
    notes = note("<", b"CORE", build_ids.NT_FILE, mapped(64, "<", files))
    found = build_ids.of_core(core_of(tmp_path, elf(64, "<", [(build_ids.PT_NOTE, 0, notes), (1, 0x1000, own)])))
    assert found == {} or len(found["/usr/bin/python"]) >= 16


@pytest.mark.parametrize("name", [b"GNX", b"gnu"])
def test_a_note_of_somebody_else_is_no_build_id(tmp_path: Path, name: bytes) -> None:
    notes = note("<", b"CORE", build_ids.NT_FILE, mapped(64, "<", [(0x1000, 0, b"/x")]))
    core = core_of(tmp_path, elf(64, "<", [(4, 0, notes), (1, 0x1000, library(64, "<", b"\1\2", name))]))
    assert build_ids.of_core(core) == {}


@pytest.mark.parametrize("identity", [b"", b"x" * 65])
def test_an_id_of_no_or_too_many_bytes_is_none(tmp_path: Path, identity: bytes) -> None:
    notes = note("<", b"CORE", build_ids.NT_FILE, mapped(64, "<", [(0x1000, 0, b"/x")]))
    core = core_of(tmp_path, elf(64, "<", [(4, 0, notes), (1, 0x1000, library(64, "<", identity))]))
    assert build_ids.of_core(core) == {}


def test_a_path_that_is_no_text_becomes_text(tmp_path: Path) -> None:
    notes = note("<", b"CORE", build_ids.NT_FILE, mapped(64, "<", [(0x1000, 0, b"/\xff")]))
    core = core_of(tmp_path, elf(64, "<", [(4, 0, notes), (1, 0x1000, library(64, "<", b"\1"))]))
    assert build_ids.of_core(core) == {"/\\xff": "01"}


def test_long_names_leave_room_for_whoever_reads_the_list(tmp_path: Path) -> None:
    # As JSON, each byte takes six.
    paths = [b"/%d/" % number + b"\1" * 4000 for number in range(100)]
    addresses = [0x1000 * (number + 1) for number in range(100)]
    notes = note(
        "<", b"CORE", build_ids.NT_FILE, mapped(64, "<", [(at, 0, path) for at, path in zip(addresses, paths)])
    )
    segments = [(1, at, library(64, "<", b"\1")) for at in addresses]
    found = build_ids.of_core(core_of(tmp_path, elf(64, "<", [(4, 0, notes), *segments])))
    assert 1 < len(found) < 100
    assert len(json.dumps(found)) <= build_ids.LONGEST_LIST


def test_only_so_many_pages_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[bytes] = []

    def look(page: bytes) -> str:
        looked_at.append(page)
        return ""

    monkeypatch.setattr(build_ids, "MOST_FILES", 3)
    monkeypatch.setattr(build_ids, "_of_page", look)
    # One file that is mapped very often, data, and other files.
    paths = [b"/same"] * 10 + [b"/data"] + [b"/%d" % number for number in range(10)]
    addresses = [0x1000 * (number + 1) for number in range(len(paths))]
    notes = note(
        "<", b"CORE", build_ids.NT_FILE, mapped(64, "<", [(at, 0, path) for at, path in zip(addresses, paths)])
    )
    segments = [(1, at, b"data" if path == b"/data" else library(64, "<", b"\1")) for at, path in zip(addresses, paths)]
    assert build_ids.of_core(core_of(tmp_path, elf(64, "<", [(4, 0, notes), *segments]))) == {}
    assert len(looked_at) == 3


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"\x7fELF\2\1" + bytes(10), b"\x7fELF\2\1" + b"\xff" * 200, b"x" * 5000]
)
def test_what_is_no_core_has_no_build_ids(tmp_path: Path, content: bytes) -> None:
    assert build_ids.of_core(core_of(tmp_path, content)) == {}


@pytest.mark.parametrize("count", [0, 1 << 20, (1 << 60) - 1])
def test_a_wrong_number_of_files_ends_nothing(tmp_path: Path, count: int) -> None:
    notes = note("<", b"CORE", build_ids.NT_FILE, mapped(64, "<", [(0x1000, 0, b"/x")], count))
    core = core_of(tmp_path, elf(64, "<", [(4, 0, notes), (1, 0x1000, library(64, "<", b"\1"))]))
    assert build_ids.of_core(core) == {}


@pytest.mark.parametrize("cut", range(0, 500, 7))
def test_a_core_that_was_cut_off_ends_nothing(tmp_path: Path, cut: int) -> None:
    notes = note("<", b"CORE", build_ids.NT_FILE, mapped(64, "<", [(0x1000, 0, b"/x")]))
    whole = elf(64, "<", [(4, 0, notes), (1, 0x1000, library(64, "<", b"\1\2"))])
    assert build_ids.of_core(core_of(tmp_path, whole[:cut])) in ({}, {"/x": "0102"})
