"""ELF files that a stranger may have written: headers, notes, and the build id; elf(5)."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

# What pyelftools and this module say of numbers that lead nowhere.
MALFORMED = (
    ELFError,
    ConstructError,
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    AttributeError,
    UnicodeError,
    struct.error,
    MemoryError,
    AssertionError,
)
# Those of a program or a library, which has a few. In sum: there may be very many segments.
MOST_NOTES = 64
# Bytes of the list of files in a core, of which the kernel writes no more than that; and of any other note that is read.
LONGEST_LIST, LONGEST_NOTE = 16 << 20, 4096
NT_FILE = 0x46494C45
NT_GNU_BUILD_ID, NT_GO_BUILD_ID, GO = 3, 4, "go-"
LONGEST_ID = 128  # Digits, of which a directory of the cache is named.
PN_XNUM = 0xFFFF


def stream_of(content: Any) -> Any:
    """Return a file of ``content``, whose header names no sections: cores have none, or so far at the end that they lack."""
    if bytes(content[:4]) != b"\x7fELF":
        raise ValueError("no ELF file")
    wide = content[4] == 2
    order = ">" if content[5] == 2 else "<"
    (segments,) = struct.unpack_from(f"{order}H", content, 56 if wide else 44)
    if segments != PN_XNUM:
        # e_shoff, then e_shentsize is left alone, e_shnum and e_shstrndx.
        struct.pack_into(f"{order}{'Q' if wide else 'I'}", content, 40 if wide else 32, 0)
        struct.pack_into(f"{order}2H", content, 60 if wide else 48, 0, 0)
    return io.BytesIO(content) if isinstance(content, bytearray) else content


class Note(NamedTuple):
    """A note, and where its data are."""

    name: bytes
    kind: int
    begin: int
    size: int

    def read(self, content: Any) -> bytes:
        """Return the data. Raises ValueError where they are longer than those of any such note."""
        if self.size > (LONGEST_LIST if self.kind == NT_FILE else LONGEST_NOTE):
            raise ValueError("a note that is too long")
        return bytes(content[self.begin : self.begin + self.size])


def notes_in(content: Any, begin: int, end: int, order: str, most: int) -> Iterator[Note]:
    """Yield the notes between two places, at most so many, up to one that is cut off; elf(5).

    pyelftools would read as much as a number in a note says, up to the end of the file.
    """
    header = struct.Struct(f"{order}3I")
    for _ in range(most):
        if begin + header.size > end:
            return
        length, size, kind = header.unpack_from(content, begin)
        name = begin + header.size
        data = name + length + -length % 4
        if data + size > end:
            return
        yield Note(bytes(content[name : name + min(length, 16)]).split(b"\0", 1)[0], kind, data, size)
        begin = data + size + -size % 4


def build_id_of(stream: Any) -> str:
    """Return the build id of an ELF file, "" if it has none. Its first page is enough. Raises any of MALFORMED.

    Go has build ids of its own, of any characters. One of these becomes ``go-`` and a checksum.
    """
    page = bytearray(stream.read(4096))
    of_go, left = "", MOST_NOTES
    file = ELFFile(stream_of(page))
    order = "<" if file.little_endian else ">"
    for segment in file.iter_segments():
        begin, end = segment.header.p_offset, segment.header.p_offset + segment.header.p_filesz
        if segment.header.p_type == "PT_NOTE" and end <= len(page):
            for note in notes_in(page, begin, end, order, left):
                left -= 1
                if (note.name, note.kind) == (b"GNU", NT_GNU_BUILD_ID):
                    found = note.read(page).hex()
                    return found if len(found) <= LONGEST_ID else ""
                if (note.name, note.kind) == (b"Go", NT_GO_BUILD_ID):
                    of_go = f"{GO}{hashlib.sha256(note.read(page)).hexdigest()[:40]}"
    return of_go
