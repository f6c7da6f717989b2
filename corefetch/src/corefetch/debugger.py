"""Runs gdb or lldb on a core, and reads the backtraces that gdb prints."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corefetch.elfcore import CoreFacts
from corefetch.errors import Exit, Failure
from corefetch.programs import output_of
from corefetch.rust import readable
from corefetch.sysroot import DEBUG, Gathered
from corefetch.text import plain

SECONDS = 300
MOST_FRAMES = 64
# Others choose what is in a core: no number is longer than those of gdb, and no expression reads a line again and again.
THREAD = re.compile(r"Thread ([0-9]{1,10}) \((.*)\):")
LWP = re.compile(r"(?:LWP|process) ([0-9]{1,10})(?![0-9])")
FRAME = re.compile(r"#([0-9]{1,10})\s+(?:(0x[0-9a-f]{1,16}) in )?(.*)")
# What stands between a function, with its arguments, and its place.
BETWEEN = re.compile(r"(?<=\)) (at|from) (?=\S)")
LINE = re.compile(r":([0-9]{1,10})")


@dataclass
class Frame:
    """A frame of a backtrace."""

    number: int
    address: int | None
    function: str
    arguments: str = ""
    file: str = ""
    line: int | None = None
    module: str = ""

    def row(self) -> dict[str, Any]:
        """Return what ``--json`` shows of it."""
        return {
            "number": self.number,
            "address": f"{self.address:#x}" if self.address is not None else None,
            "function": self.function or None,
            "arguments": self.arguments or None,
            "file": self.file or None,
            "line": self.line,
            "module": self.module or None,
        }


@dataclass
class Trace:
    """The frames of a thread."""

    thread: int | None
    frames: list[Frame] = field(default_factory=list)
    more: bool = False

    def row(self) -> dict[str, Any]:
        """Return what ``--json`` shows of it."""
        return {"thread": self.thread, "frames": [frame.row() for frame in self.frames], "more": self.more}


def need(program: str) -> str:
    """Return the path of a debugger. Raises Failure."""
    found = shutil.which(program)
    if not found:
        other = ", or say --lldb" if program == "gdb" and shutil.which("lldb") else ""
        raise Failure(f"there is no {program}", f"install {program}{other}", Exit.MISSING_PROGRAM)
    return found


def gdb(core: Path, found: Gathered, batch: bool, directories: list[Path] | None = None) -> list[str]:
    """Return the command that starts gdb, without what it shall do. Raises Failure."""
    early = [
        "set print thread-events off",
        f"set sysroot {found.root}",
        f"set debug-file-directory {found.root / DEBUG}",
        # All that debuginfod servers have is here already.
        "set debuginfod enabled off",
    ]
    if batch:
        # What comes out of an image must not run here.
        early = [
            "set auto-load off",
            "set width 0",
            "set height 0",
            "set pagination off",
            f"set backtrace limit {MOST_FRAMES}",
            *early,
        ]
    words = [need("gdb"), "-q", *(["-nx", "-batch"] if batch else [])]
    for line in early:
        words += ["-iex", line]
    for directory in directories or []:
        words += ["-iex", f"directory {directory}"]
    program = found.program
    words += [str(found.inside(program.path))] if program and program.file else []
    # Not as a second word: without a program, gdb would take it for one.
    return [*words, "-core", str(core)]


def lldb(core: Path, found: Gathered) -> list[str]:
    """Return the command that starts lldb. Raises Failure."""
    words = [need("lldb"), "-o", f"platform select --sysroot {_quoted(found.root)} remote-linux"]
    words += ["-o", f"settings set target.exec-search-paths {' '.join(_quoted(one) for one in _directories(found))}"]
    words += ["-o", f"settings set target.debug-file-search-paths {_quoted(found.root / DEBUG)}"]
    program = found.program
    path = f"{_quoted(found.inside(program.path))} " if program and program.file else ""
    return [*words, "-o", f"target create {path}--core {_quoted(core)}"]


def _directories(found: Gathered) -> list[Path]:
    """Return the directories of the libraries."""
    return list(dict.fromkeys(found.inside(one.path).parent for one in found.files if one.file)) or [found.root]


def _quoted(path: Path) -> str:
    """Return a path as lldb reads it. Raises Failure: a command ends with its line, and another one would follow."""
    if plain(str(path)) != str(path):
        raise Failure(
            f"{path}: lldb takes no such name", "corefetch get brings the core under another name", Exit.USAGE
        )
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def backtraces(core: Path, said: CoreFacts, found: Gathered) -> list[Trace]:
    """Return the backtraces of all threads, that of the faulting thread first. Raises Failure."""
    words = [*gdb(core, found, batch=True), "-ex", "thread apply all backtrace"]
    try:
        done = output_of(words, SECONDS)
    except subprocess.TimeoutExpired:
        raise Failure(f"gdb was not ready with {core} in {SECONDS} s", "try corefetch debug", Exit.FAILED) from None
    traces = read(done.stdout, said)
    if not traces:
        lines = [line for line in done.stderr.splitlines() if line.strip() and "warning" not in line]
        raise Failure(
            f"gdb shows no thread of {core}", plain(lines[-1])[:300] if lines else "see corefetch debug", Exit.DAMAGED
        )
    first = said.threads[0].id if said.threads else None
    return sorted(traces, key=lambda trace: trace.thread != first)


def read(output: str, said: CoreFacts) -> list[Trace]:
    """Read what gdb prints."""
    traces: list[Trace] = []
    for line in output.splitlines():
        if found := THREAD.fullmatch(line.strip()):
            process = LWP.search(found[2])
            traces.append(Trace(int(process[1]) if process else None))
        elif traces and (found := FRAME.fullmatch(line.rstrip())):
            traces[-1].frames.append(_frame(found, said, traces[-1]))
        elif traces and line.startswith(("(More stack frames follow", "Backtrace limit of")):
            traces[-1].more = True
    return [trace for trace in traces if trace.frames]


def _frame(found: re.Match[str], said: CoreFacts, trace: Trace) -> Frame:
    """Read a frame."""
    address = int(found[2], 16) if found[2] else None
    if address is None and found[1] == "0" and trace.frames == [] and trace.thread is not None:
        # gdb leaves the address out where a line begins there.
        address = next((thread.counter for thread in said.threads if thread.id == trace.thread), None)
    elif address is None and trace.frames:
        # The function above was made a part of this one.
        address = trace.frames[-1].address
    called, file, line, module = _parts(found[3])
    function, _, arguments = called.partition(" (")
    place = said.place(address) if address is not None else None
    frame = Frame(int(found[1]), address, plain(readable(function)), plain(arguments.rstrip().removesuffix(")")))
    if file:
        frame.file, frame.line = plain(file), line
    frame.module = plain(place[0] if place else module)
    if function == "??":
        frame.function = ""
        frame.module = f"{frame.module}+{place[1]:#x}" if place else ""
    return frame


def _parts(text: str) -> tuple[str, str, int | None, str]:
    """Return the function with its arguments, the file and the line, or else the module, which are in the text of a frame."""
    colon = text.rfind(":")
    line = LINE.fullmatch(text, colon) if colon >= 0 else None
    found = None
    if not text.endswith(")"):
        for one in BETWEEN.finditer(text):
            # The arguments may have any text in them, so the last bracket counts.
            if one[1] == "from" or (line and one.end() < colon):
                found = one
    if found is None:
        return text, "", None, ""
    if found[1] == "from":
        return text[: found.start()], "", None, text[found.end() :]
    assert line is not None
    return text[: found.start()], text[found.end() : colon], int(line[1]), ""
