"""Finds the build ids of the program and the libraries in a core: by them, debuggers find the debug information; elf(5).

The kernel writes which files the process has mapped (the note NT_FILE, fs/binfmt_elf.c), and, as a rule, the first page of each
ELF file among them (coredump_filter, bit 4; core(5)). That page has the program headers, and mostly the note with the build id.
Imported only when a core that is kept is finished: nobody waits for this. The process may have changed that page.
"""

import _struct
import posix

from core_helper import corefile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

MAGIC = b"\x7fELF"
PT_LOAD, PT_NOTE = 1, 4
NT_FILE, NT_GNU_BUILD_ID = 0x46494C45, 3
LONGEST_NOTES = 8 << 20  # Bytes; 65,536 mappings with short paths take less.
LONGEST_ID = 64
MOST_FILES = 4096
LONGEST_LIST = 1 << 16  # Bytes of JSON, in which a byte of a path may take six: whoever lists cores reads those of all.
FIRST_PAGE = 4096
# What Python says of numbers that lead nowhere.
MALFORMED = (ValueError, IndexError, OverflowError, _struct.error)  # type: ignore[attr-defined]


class Format:
    """Where the fields stand in an ELF file of 32 or 64 bits, little or big endian."""

    def __init__(self, ident: bytes) -> None:
        """Take the first 16 bytes. Raises ValueError where they are not those of an ELF file."""
        orders, words = {1: "<", 2: ">"}, {1: "I", 2: "Q"}
        if ident[:4] != MAGIC or ident[4] not in words or ident[5] not in orders:
            raise ValueError("no ELF file")
        self.order = orders[ident[5]]
        self.word = words[ident[4]]
        # e_type to e_shstrndx.
        self.header = _struct.Struct(f"{self.order}16xHHI3{self.word}I6H")
        self.narrow = self.word == "I"
        self.segment = _struct.Struct(f"{self.order}8I" if self.narrow else f"{self.order}2I6Q")

    def segments(self, content: bytes) -> "Iterator[tuple[int, int, int, int]]":
        """Yield type, offset, address and size in the file of each segment whose header is in ``content``."""
        fields = self.header.unpack_from(content)
        first, entry, count = fields[4], fields[8], fields[9]
        if entry != self.segment.size:
            return
        for number in range(count):
            at = first + number * entry
            if at + entry > len(content):
                return
            values = self.segment.unpack_from(content, at)
            if self.narrow:
                kind, offset, address, _physical, size = values[:5]
            else:
                kind, _flags, offset, address, _physical, size = values[:6]
            yield kind, offset, address, size

    def notes(self, content: bytes) -> "Iterator[tuple[bytes, int, bytes]]":
        """Yield name, type and content of each note; elf(5)."""
        at = 0
        while at + 12 <= len(content):
            length, size, kind = _struct.unpack_from(f"{self.order}3I", content, at)
            name = at + 12
            value = name + (length + 3) // 4 * 4
            if value + size > len(content):
                return
            yield content[name : name + length].rstrip(b"\0"), kind, content[value : value + size]
            at = value + (size + 3) // 4 * 4


def of_core(core: int) -> "dict[str, str]":
    """Return the build ids, as hexadecimal digits, by the paths of the files as the process saw them.

    ``core`` is the opened file. What cannot be read is left out. Raises OSError.
    """
    import json

    found: dict[str, str] = {}
    looked_at: set[bytes] = set()
    room = LONGEST_LIST
    try:
        for path, page in _first_pages(core):
            if path in looked_at or not page.startswith(MAGIC):
                continue
            looked_at.add(path)
            build_id = _of_page(page)
            if build_id:
                name = path.decode("utf-8", "backslashreplace")
                room -= len(json.dumps({name: build_id}))
                if room < 0:
                    break
                found[name] = build_id
            # A page may be made to be read for milliseconds, and 65,536 of them for minutes: the cores of all wait for that.
            if len(looked_at) == MOST_FILES:
                break
    except MALFORMED:
        pass  # Cut off, or no core at all.
    return found


def _first_pages(core: int) -> "Iterator[tuple[bytes, bytes]]":
    """Yield path and first page of each file that the process has mapped from its start, if that page is in the core."""
    ident = posix.pread(core, 64, 0)
    format = Format(ident)
    fields = format.header.unpack_from(ident)
    headers = posix.pread(core, min(fields[4] + fields[8] * fields[9], corefile.LONGEST_HEADER), 0)
    segments = list(format.segments(headers))
    loads = {address: (offset, size) for kind, offset, address, size in segments if kind == PT_LOAD}
    # There is one segment of notes.
    offset, size = next(((offset, size) for kind, offset, _address, size in segments if kind == PT_NOTE), (0, 0))
    for name, number, content in format.notes(posix.pread(core, min(size, LONGEST_NOTES), offset)):
        if name == b"CORE" and number == NT_FILE:
            for path, start in _mapped_from_their_start(format, content):
                at, filled = loads.get(start, (0, 0))
                if filled:
                    yield path, posix.pread(core, min(filled, FIRST_PAGE), at)


def _mapped_from_their_start(format: Format, content: bytes) -> "Iterator[tuple[bytes, int]]":
    """Yield path and address of each file of the note NT_FILE that is mapped from its first byte."""
    size = _struct.calcsize(format.order + format.word)
    if len(content) < 2 * size:
        return
    (count,) = _struct.unpack_from(format.order + format.word, content)
    names = content[2 * size + count * 3 * size :].split(b"\0")
    for number, name in enumerate(names[:count]):
        start, _end, offset = _struct.unpack_from(f"{format.order}3{format.word}", content, (2 + 3 * number) * size)
        if offset == 0 and name:
            yield name, start


def _of_page(page: bytes) -> str:
    """Return the build id that the first page of an ELF file has, "" if there is none."""
    try:
        format = Format(page[:16])
        for kind, offset, _address, size in format.segments(page):
            if kind == PT_NOTE:
                for name, number, content in format.notes(page[offset : offset + size]):
                    if name == b"GNU" and number == NT_GNU_BUILD_ID and 0 < len(content) <= LONGEST_ID:
                        return content.hex()
    except MALFORMED:
        pass
    return ""
