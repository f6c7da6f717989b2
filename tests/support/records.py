"""What a faulting process and its delegate have said about themselves (tests/support/programs), and what a core says."""

from __future__ import annotations

import struct
from pathlib import Path

CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


class Record:
    """One process, as it saw itself: each fact is a file in the directory that it wrote."""

    def __init__(self, directory: Path) -> None:
        """Reads the record of a process from a directory."""
        self.directory = directory
        self.status = dict(line.split(":\t", 1) for line in self.text("status").splitlines())
        self.links = dict(line.split(" ", 1) for line in self.text("links").splitlines())
        self.facts = dict(line.split(" ", 1) for line in self.text("facts").splitlines())

    def __repr__(self) -> str:
        """The name, for pytest's messages."""
        return self.directory.name

    def text(self, name: str) -> str:
        """The text of one fact; empty if the process could not read it."""
        file = self.directory / name
        return file.read_text(errors="surrogateescape") if file.exists() else ""

    @property
    def pid(self) -> int:
        """The process id in the innermost pid namespace."""
        return int(self.directory.name.rpartition(".")[2])

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the environment."""
        return dict(entry.split("=", 1) for entry in self.text("environ").split("\0") if "=" in entry)

    @property
    def limits(self) -> dict[str, str]:
        """The resource limits, but not that of cores, which is the kernel's and the helper's own matter."""
        lines = [line for line in self.text("limits").splitlines() if "core file" not in line]
        return {line[:26].rstrip(): line[26:] for line in lines}

    @property
    def core(self) -> Path:
        """The core that the delegate read from its standard input."""
        return self.directory / "core"

    def capabilities(self, name: str) -> int:
        """One of the capability sets, as a bit mask."""
        return int(self.status[name], 16)


# By e_ident[EI_CLASS], for 32 and 64 bits: e_phoff, e_phentsize with e_phnum, and p_offset with p_filesz in a program header.
CLASSES = {1: ("<28xI", "<42xHH", "<4xI8xI"), 2: ("<32xQ", "<54xHH", "<8xQ16xQ")}


def is_whole(core: bytes, bits: int = 64) -> bool:
    """Whether this is an ELF core of a program of so many bits that ends exactly where its program headers say; see elf(5)."""
    if core[:6] != b"\x7fELF" + bytes([bits // 32, 1]) or struct.unpack_from("<H", core, 16) != (4,):
        return False
    first, entries, segment = CLASSES[bits // 32]
    (table,), (size, count) = struct.unpack_from(first, core), struct.unpack_from(entries, core)
    ends: list[int] = [sum(struct.unpack_from(segment, core, table + index * size)) for index in range(count)]
    return len(core) == max(ends)
