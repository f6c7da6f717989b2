"""What a core says of itself: signal, threads, mapped files, build ids, and whether it was cut off; core(5), elf(5).

The kernel writes headers and notes first. So the beginning of a core is enough for all but what lies in the memory of the
process. A core is what a stranger has written: whatever does not make sense is left out.
"""

from __future__ import annotations

import bisect
import io
import mmap
import os
import re
import signal
import struct
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from corefetch.elf import MALFORMED, NT_FILE, build_id_of, notes_in, stream_of
from elftools.elf.elffile import ELFFile

# As many as the helper identifies.
MOST_FILES, MOST_LINKS, LONGEST_NAME = 4096, 4096, 4096
# Some for each thread. In sum: a stranger may have the same notes in each of very many segments.
MOST_NOTES = 1 << 18
# Segments of a core, and the files of its list: vm.max_map_count is 65,530, unless somebody has set more.
MOST_MAPPINGS = 1 << 18
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV = 1, 3, 6
LARGEST = 1 << 64
LIBRARY = re.compile(r"\.so(\.|$)")
DELETED = " (deleted)"
AT_PHDR, AT_PHNUM = 3, 5
PT_DYNAMIC, PT_PHDR, DT_DEBUG = 2, 6, 21
# Where pr_reg begins in struct elf_prstatus, and which of its words is the program counter; linux/elfcore.h, asm/ptrace.h.
COUNTERS = {
    "EM_X86_64": (112, 16),
    "EM_386": (72, 12),
    "EM_AARCH64": (112, 32),
    "EM_ARM": (72, 15),
    "EM_RISCV": (112, 0),
    "EM_PPC64": (112, 32),
    "EM_S390": (112, 1),
}


@dataclass(frozen=True)
class Mapping:
    """A piece of a file in the memory of the process."""

    start: int
    end: int
    offset: int
    path: str


@dataclass(frozen=True)
class Thread:
    """A thread, and where it was."""

    id: int
    counter: int | None


@dataclass
class CoreFacts:
    """All that a core says of itself."""

    machine: str = ""
    word: int = 8
    size: int = 0
    expected: int = 0
    # Of the beginning alone: how long a whole core is that begins like this.
    length: int | None = None
    signal: int | None = None
    pid: int | None = None
    name: str = ""
    arguments: str = ""
    threads: list[Thread] = field(default_factory=list)
    mappings: list[Mapping] = field(default_factory=list)
    build_ids: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    program: str = ""

    @property
    def truncated(self) -> bool:
        """Whether the end of the core is missing."""
        return self.size < self.expected

    @property
    def files(self) -> list[str]:
        """The paths of the mapped ELF files, the program first."""
        found = dict.fromkeys(
            one.path
            for one in self.mappings
            if one.path.startswith("/") and not special(one.path) and one.path not in self.others
        )
        first = [self.program] if self.program in found else []
        return [*first, *(path for path in found if path not in first)]

    def fault(self) -> tuple[str, int] | None:
        """Return the file in which the first thread was, and where in it; None if that is not known."""
        counter = self.threads[0].counter if self.threads else None
        return self.place(counter) if counter is not None else None

    def place(self, address: int) -> tuple[str, int] | None:
        """Return the file that is mapped at an address, and the distance from the first byte of its first mapping."""
        mappings, begins = self._places
        at = bisect.bisect_right(mappings, address, key=lambda one: one.start) - 1
        if at < 0 or address >= mappings[at].end:
            return None
        one = mappings[at]
        base = bisect.bisect_right(begins.get(one.path, []), address) - 1
        return one.path, address - (begins[one.path][base] if base >= 0 else one.start - one.offset)

    @cached_property
    def _places(self) -> tuple[list[Mapping], dict[str, list[int]]]:
        """The mappings by their addresses, and where each file is mapped from its beginning on; all are known before that.

        Sorted once: a container may have 65,530, and forge as many links as are followed. Each frame has an address, too.
        """
        mappings = sorted(self.mappings, key=lambda one: one.start)
        begins: dict[str, list[int]] = {}
        for one in mappings:
            if not one.offset:
                begins.setdefault(one.path, []).append(one.start)
        return mappings, begins


def special(path: str) -> bool:
    """Tell whether a mapped file is none that an image has."""
    return path.startswith(("/dev/", "/proc/", "/memfd:", "/SYSV", "/[", "/anon_hugepage"))


def signal_name(number: int | None) -> str:
    """Return the name of a signal."""
    if not number:
        return ""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def of_file(path: Path) -> CoreFacts:
    """Return what the core in a file says of itself. Raises ValueError where it is none, and OSError."""
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length < 64:
            raise ValueError("no ELF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as content:
            content.madvise(mmap.MADV_RANDOM)
            return _of(content, length)


def of_beginning(content: bytes) -> CoreFacts:
    """Return what the beginning of a core says; its size counts as whole. Raises ValueError where it is no core."""
    if len(content) < 64:
        raise ValueError("no ELF file")
    facts = _of(bytearray(content), len(content))
    facts.length, facts.size, facts.expected = facts.expected or None, 0, 0
    return facts


class _Memory:
    """The memory of the process, as far as it is in the core."""

    def __init__(self, content: Any, loads: list[tuple[int, int, int]]) -> None:
        self.content = content
        self.loads = sorted(loads)

    def read(self, address: int, length: int) -> bytes:
        """Return what stands at an address. Raises ValueError where that is not there."""
        at = bisect.bisect_right(self.loads, (address, LARGEST, LARGEST)) - 1
        if at >= 0:
            start, offset, size = self.loads[at]
            if address < start + size:
                begin = offset + address - start
                found = bytes(self.content[begin : begin + min(length, start + size - address)])
                if found:
                    return found
        raise ValueError(f"nothing at {address:#x}")

    def words(self, address: int, count: int, format: str) -> tuple[int, ...]:
        """Return words of the machine."""
        whole = format[0] + format[1] * count
        return struct.unpack(whole, self.read(address, struct.calcsize(whole)))

    def text(self, address: int) -> str:
        """Return a string that ends with a zero byte."""
        return self.read(address, LONGEST_NAME).split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _of(content: Any, length: int) -> CoreFacts:
    """Read a core."""
    try:
        return _read(ELFFile(stream_of(content)), content, length)
    except MALFORMED as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _read(file: Any, content: Any, length: int) -> CoreFacts:
    """Read a core that is an ELF file. Raises any of MALFORMED where it is none."""
    if file.header.e_type != "ET_CORE":
        raise ValueError("an ELF file of another kind")
    facts = CoreFacts(machine=file.header.e_machine, word=file.elfclass // 8, size=length)
    loads: list[tuple[int, int, int]] = []
    notes = []
    for segment in islice(file.iter_segments(), MOST_MAPPINGS):
        header = segment.header
        facts.expected = max(facts.expected, header.p_offset + header.p_filesz)
        if header.p_type == "PT_LOAD":
            loads.append((header.p_vaddr, header.p_offset, header.p_filesz))
        elif header.p_type == "PT_NOTE":
            notes.append((header.p_offset, min(header.p_offset + header.p_filesz, len(content))))
    auxiliary: dict[int, int] = {}
    once: set[int] = set()
    order = "<" if file.little_endian else ">"
    format = order + ("Q" if facts.word == 8 else "I")
    left = MOST_NOTES
    for begin, end in notes:
        for note in notes_in(content, begin, end, order, left):
            left -= 1
            # The kernel writes one of each, but for those of threads. A stranger may have very many segments of the same one.
            if note.name == b"CORE" and note.kind not in once:
                once |= {note.kind} - {NT_PRSTATUS}
                try:
                    _note(facts, note.kind, note.read(content), order, auxiliary)
                except MALFORMED:
                    pass  # What makes no sense is left out.
    memory = _Memory(content, loads)
    _identify(facts, memory)
    _find_program(facts, auxiliary)
    facts.others.discard(facts.program)
    try:
        _follow_links(facts, memory, auxiliary, format)
    except MALFORMED:
        pass  # A static program, or one that has overwritten its own list.
    return facts


def _note(facts: CoreFacts, kind: int, data: bytes, order: str, auxiliary: dict[int, int]) -> None:
    """Take what one note says. Raises any of MALFORMED."""
    word = "Q" if facts.word == 8 else "I"
    if kind == NT_PRSTATUS:
        (number,) = struct.unpack_from(f"{order}h", data, 12)
        (thread,) = struct.unpack_from(f"{order}i", data, 32 if facts.word == 8 else 24)
        if not facts.threads:
            facts.signal = number or None
        counter = None
        if facts.machine in COUNTERS:
            begin, index = COUNTERS[facts.machine]
            (counter,) = struct.unpack_from(order + word, data, begin + index * facts.word)
        facts.threads.append(Thread(thread, counter))
    elif kind == NT_PRPSINFO:
        # What comes before that differs between machines: pid, three numbers, 16 bytes of the name, 80 of the words.
        pid, name, words = struct.unpack_from(f"{order}i12x16s80s", data, len(data) - 112 if len(data) >= 112 else 0)
        facts.pid, facts.name, facts.arguments = pid, _text(name), _text(words).rstrip()
    elif kind == NT_AUXV:
        pair = f"{order}2{word}"
        for at in range(0, len(data) - struct.calcsize(pair) + 1, struct.calcsize(pair)):
            key, value = struct.unpack_from(pair, data, at)
            auxiliary.setdefault(key, value)
    elif kind == NT_FILE:
        count, page = struct.unpack_from(f"{order}2{word}", data)
        entry, begin = struct.Struct(f"{order}3{word}"), 2 * facts.word
        end = begin + count * entry.size
        if count > MOST_MAPPINGS or end > len(data):
            raise ValueError("a list of more files than it has room for")
        paths = data[end:].split(b"\0", count)
        for (first, last, offset), path in zip(entry.iter_unpack(data[begin:end]), paths, strict=False):
            facts.mappings.append(Mapping(first, last, offset * page, _text(path[:LONGEST_NAME]).removesuffix(DELETED)))


def _text(data: bytes) -> str:
    """Return a text that may end with a zero byte."""
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _identify(facts: CoreFacts, memory: _Memory) -> None:
    """Find the build ids: the kernel keeps the first page of each ELF file, as a rule."""
    # The loader maps an ELF file from its beginning on.
    begins = {one.path for one in facts.mappings if not one.offset}
    facts.others |= {one.path for one in facts.mappings if one.path not in begins and not LIBRARY.search(one.path)}
    tried: set[str] = set()
    for one in facts.mappings:
        if one.offset or one.path in tried or special(one.path):
            continue
        if len(tried) >= MOST_FILES:
            return
        tried.add(one.path)
        try:
            page = memory.read(one.start, min(4096, one.end - one.start))
            if page[:4] != b"\x7fELF":
                facts.others.add(one.path)
            elif found := build_id_of(io.BytesIO(page)):
                facts.build_ids[one.path] = found
        except MALFORMED:
            # The core does not have that page.
            if not LIBRARY.search(one.path):
                facts.others.add(one.path)


def _find_program(facts: CoreFacts, auxiliary: dict[int, int]) -> None:
    """Find which file is the program: the one whose program headers the kernel has shown to the process."""
    found = facts.place(auxiliary[AT_PHDR]) if AT_PHDR in auxiliary else None
    candidates = [one.path for one in facts.mappings if one.path.rpartition("/")[2][:15] == facts.name]
    if found:
        facts.program = found[0]
    elif candidates:
        facts.program = candidates[0]


def _follow_links(facts: CoreFacts, memory: _Memory, auxiliary: dict[int, int], format: str) -> None:
    """Find the names by which the loader knows the libraries, which lead to the mapped files by symbolic links.

    The debugger asks for these names. They stand in the list that the program's dynamic section leads to; link.h.
    """
    headers, count = auxiliary[AT_PHDR], min(auxiliary[AT_PHNUM], 128)
    order = format[0]
    entry = struct.Struct(f"{order}2I6Q" if facts.word == 8 else f"{order}8I")
    table = memory.read(headers, entry.size * count)
    base, dynamic, interpreter = 0, 0, 0
    for at in range(0, len(table) - entry.size + 1, entry.size):
        values = entry.unpack_from(table, at)
        address = values[3] if facts.word == 8 else values[2]
        if values[0] == PT_PHDR:
            base = headers - address
        elif values[0] == PT_DYNAMIC:
            dynamic = address
        elif values[0] == 3:
            interpreter = address
    if interpreter:
        try:
            _link(facts, memory.text(base + interpreter), auxiliary.get(7, 0))
        except ValueError:
            pass
    at = base + dynamic
    link = 0
    for _ in range(256):
        tag, value = memory.words(at, 2, format)
        if tag == DT_DEBUG:
            link = memory.words(value, 2, format)[1]
        if tag in (0, DT_DEBUG):
            break
        at += 2 * facts.word
    for _ in range(MOST_LINKS):
        if not link:
            break
        _address, name, section, link = memory.words(link, 4, format)
        if name:
            _link(facts, memory.text(name), section)


def _link(facts: CoreFacts, name: str, address: int) -> None:
    """Note that the file at ``address`` has another name."""
    found = facts.place(address)
    if found and name.startswith("/") and name != found[0]:
        facts.links.setdefault(name, found[0])
