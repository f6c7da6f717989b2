"""What an ELF file has to be read by a debugger: its build id, its symbols, its debug information, and its language."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from corefetch import elf
from elftools.elf.elffile import ELFFile

LONGEST_COMMENT, LONGEST_NOTES = 4096, 4096
# Of the sections in which a program of Rust may say that it is one.
MOST = 16 << 20
# A program has some dozens. A stranger's may have as many as the file has room for.
MOST_SECTIONS = 1 << 16
# Where the standard library was built: a panic says where it was.
RUSTC = re.compile(rb"/rustc/[0-9a-f]{40}/|/rustc-\d+\.\d+\.\d+[^/\0]*/library/")
Sections = dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """What an ELF file has."""

    build_id: str = ""
    symbols: bool = False
    lines: bool = False
    language: str = ""

    @property
    def says(self) -> tuple[bool, bool]:
        """What a debugger can say by it, to be compared with other files of the same build id."""
        return self.lines, self.symbols


def read(path: Path) -> Contents:
    """Look into a file. What is no ELF file has nothing."""
    try:
        with open(path, "rb") as stream:
            build_id, sections = _identified(stream)
            return Contents(
                build_id=build_id,
                symbols=".symtab" in sections or ".gnu_debugdata" in sections,
                lines=bool(sections.keys() & {".debug_line", ".zdebug_line"}),
                language=_language(sections),
            )
    except (OSError, *elf.MALFORMED):
        return Contents()


def is_of(path: Path, build_id: str) -> bool:
    """Tell whether there is an ELF file of that build id."""
    try:
        with open(path, "rb") as stream:
            return bool(build_id) and _identified(stream)[0] == build_id
    except (OSError, *elf.MALFORMED):
        return False


def _identified(stream: IO[bytes]) -> tuple[str, Sections]:
    """Return the build id of an ELF file, and its sections by their names. Raises OSError or any of elf.MALFORMED."""
    build_id = elf.build_id_of(stream)
    file = ELFFile(stream)
    sections = {section.name: section for section in islice(file.iter_sections(), MOST_SECTIONS)}
    return build_id or _note(sections, "<" if file.little_endian else ">"), sections


def _note(sections: Sections, order: str) -> str:
    """Return the build id where its note is not in the first page, such as in a file of debug information."""
    data = _beginning(sections, ".note.gnu.build-id", LONGEST_NOTES)
    for note in elf.notes_in(data, 0, len(data), order, elf.MOST_NOTES):
        if (note.name, note.kind) == (b"GNU", elf.NT_GNU_BUILD_ID):
            return note.read(data).hex()
    return ""


def _language(sections: Sections) -> str:
    """Return the language, where another debugger than gdb knows more of it."""
    if sections.keys() & {".gopclntab", ".go.buildinfo", ".note.go.buildid"}:
        return "Go"
    comment = _beginning(sections, ".comment", LONGEST_COMMENT)
    if b"rustc" in comment or b"\0rust_eh_personality\0" in _beginning(sections, ".strtab"):
        return "Rust"
    # What is stripped, such as a package of a distribution.
    return "Rust" if RUSTC.search(_beginning(sections, ".rodata")) else ""


def _beginning(sections: Sections, name: str, most: int = MOST) -> bytes:
    """Return the beginning of a section, nothing if there is none."""
    section = sections.get(name)
    if section is None or section.header.sh_type == "SHT_NOBITS":
        return b""
    section.stream.seek(section.header.sh_offset)
    return bytes(section.stream.read(min(section.header.sh_size, most)))


# What else reads a core of a language, by the files that the process has mapped. Their words CORE and PROGRAM become paths.
HINTS = (
    (
        r"/libjvm\.so$",
        "Java",
        "jhsdb jstack --exe PROGRAM --core CORE, of the very JDK of the image, shows the Java frames",
    ),
    (
        r"/(libpython[\d.]*[a-z]*\.so[\d.]*|python[\d.]*[a-z]*)$",
        "Python",
        "pystack core CORE PROGRAM shows the Python frames (--lib-search-root with the image's files, if it has a libpython). "
        "So does py-bt of gdb: corefetch debug CORE --symbols DIRECTORY -- -ex 'source FILE' -ex py-bt; python3-dbg of the "
        "very build has both, /usr/lib/debug and python3.N-gdb.py",
    ),
    (r"/(node|nodejs|libnode\.so[\d.]*)$", "Node.js", "llnode, a plugin of lldb, shows the JavaScript frames"),
    (r"/(ruby|libruby[\w.-]*\.so[\d.]*)$", "Ruby", "sdb-trace of rbgdb shows the Ruby frames"),
    (r"/(dotnet|libcoreclr\.so)$", ".NET", "dotnet-dump analyze CORE shows the managed frames"),
)
OF_LANGUAGE = {
    "Go": "dlv core PROGRAM CORE shows every goroutine; gdb shows those that run",
    "Rust": "rust-gdb and rust-lldb show Rust's own types; symbols need debug = 1 or strip = false in the profile",
}


def hints(files: list[str], language: str, core: Path, program: Path | None) -> list[str]:
    """Return what else reads this ``core``."""
    found = [f"{name}: {hint}" for pattern, name, hint in HINTS if any(re.search(pattern, path) for path in files)]
    found += [f"{language}: {OF_LANGUAGE[language]}"] if language else []
    words = {"CORE": shlex.quote(str(core)), "PROGRAM": shlex.quote(str(program)) if program else "PROGRAM"}
    return [re.sub(r"\b(CORE|PROGRAM)\b", lambda word: words[word[0]], hint) for hint in found]
