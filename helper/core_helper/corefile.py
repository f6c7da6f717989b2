"""Reads from the first bytes of a core dump how long the dump must be, to recognize one that was cut off.

When the process is killed or frozen, the kernel ends its dump early, and does not tell the reader. See elf(5), fs/binfmt_elf.c,
elf_core_dump: the program headers come first, and a pipe gets every byte that they announce, holes as zeros.
"""

import _struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

MAGIC = b"\x7fELF"
PN_XNUM = 0xFFFF
LONGEST_HEADER = 64 + 56 * PN_XNUM
HEADER_PATIENCE = 5.0  # Seconds for the kernel to write the first bytes of the core.
PAUSE = 0.001  # Seconds between two looks at them.

ORDERS = {1: "<", 2: ">"}


class Layout:
    """Where the fields stand in a core dump of 32 or 64 bits."""

    def __init__(self, size: int, entry: int, word: str, phoff: int, phentsize: int, segment: str) -> None:
        """Take the sizes of ELF and program header, the format of a word, and where the fields that count stand."""
        self.size = size
        self.entry = entry
        self.word = word
        self.phoff = phoff
        self.phentsize = phentsize
        self.segment = segment

    def header(self, content: bytes) -> "tuple[int, int, int, int, int]":
        """Return e_phoff, e_shoff, e_phentsize, e_phnum and e_shentsize."""
        order = ORDERS[content[5]]
        first, sections = _struct.unpack_from(f"{order}2{self.word}", content, self.phoff)
        entry, count, section = _struct.unpack_from(f"{order}3H", content, self.phentsize)
        return first, sections, entry, count, section

    def segment_end(self, content: bytes, at: int) -> int:
        """Return where the segment ends whose program header stands at ``at``: p_offset + p_filesz."""
        offset, filled = _struct.unpack_from(ORDERS[content[5]] + self.segment, content, at)
        return int(offset) + int(filled)


CLASSES = {
    1: Layout(52, 32, "I", 28, 42, "4xI8xI"),
    2: Layout(64, 56, "Q", 32, 54, "8xQ16xQ"),
}


class Header:
    """The first bytes of a core dump, collected until they say how long it must be."""

    def __init__(self) -> None:
        """Start with nothing; ``wanted`` is how many bytes are needed next, 0 when no more are."""
        self.content = b""
        self.wanted = 64
        self.length: int | None = None

    def add(self, part: bytes) -> None:
        """Take the next bytes of the dump. What is no ELF core has no known length."""
        self.content += part
        if self.content[:4] != MAGIC[: len(self.content)]:
            self.wanted = 0
        if len(self.content) < self.wanted or not self.wanted:
            return
        end = header_end(self.content)
        if end is None:
            self.wanted = 0
        elif len(self.content) < end:
            self.wanted = end
        else:
            self.length = core_length(self.content)
            self.wanted = 0

    def add_some(self, block: bytes) -> None:
        """Take of the next bytes of the dump what is wanted."""
        while block and self.wanted:
            part = block[: self.wanted - len(self.content)]
            block = block[len(part) :]
            self.add(part)

    def was_cut(self, amount: int) -> bool:
        """Tell whether a dump was cut off that came to its end after ``amount`` bytes, all of which were added."""
        return self.wanted > 0 or amount < (self.length or 0)


def announced_length(look: "Callable[[int], bytes | None]") -> "int | None":
    """Return how many bytes a core will have whose first bytes nobody has read yet; None where that is not known in time.

    ``look`` returns so many of the first bytes and leaves them where they are. It returns b"" while there are fewer, and None
    if there will never be so many.
    """
    header = Header()
    limit = time.monotonic() + HEADER_PATIENCE
    while header.wanted:
        content = look(header.wanted)
        if content:
            header = Header()
            header.add_some(content)
        elif content is None or time.monotonic() > limit:
            return None
        else:
            time.sleep(PAUSE)
    return header.length


def header_end(content: bytes) -> "int | None":
    """Return where the program headers end that the ELF header ``content`` announces, None if it is none; elf(5)."""
    if content[:4] != MAGIC or content[4] not in CLASSES or content[5] not in ORDERS:
        return None
    layout = CLASSES[content[4]]
    first, _sections, entry, count, _section = layout.header(content)
    if count == PN_XNUM:
        return layout.size
    end = first + entry * count
    return end if layout.size <= end <= LONGEST_HEADER and entry == layout.entry else None


def core_length(content: bytes) -> "int | None":
    """Return the length in bytes of the core dump that begins with ``content``, all program headers included."""
    layout = CLASSES[content[4]]
    first, sections, entry, count, section = layout.header(content)
    if count == PN_XNUM:
        # More segments than the field can count: the only section header, which has their number, is the dump's end.
        return sections + section if sections else None
    return max(
        (layout.segment_end(content, first + number * entry) for number in range(count)),
        default=0,
    )
