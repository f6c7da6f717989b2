"""What ``info`` says of a core: the fault in one line, the facts, the backtraces, and what is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corefetch import elfcore, symbols, text
from corefetch.debugger import Frame, Trace
from corefetch.facts import Core
from corefetch.sysroot import Gathered, Mapped
from corefetch.text import plain
from rich.console import Console
from rich.text import Text

HANDLER = "<signal handler called>"
# Functions through which a program ends itself: the fault is of the one that has called them.
ENDING = re.compile(
    r"(__GI_|__)?(raise|abort|gsignal|kill|tgkill|assert_fail(_base)?|pthread_kill(_implementation|_internal|@\S+)?"
    r"|libc_message(_impl)?|malloc_printerr|fortify_fail|chk_fail|stack_chk_fail|kernel_vsyscall|libc_do_syscall)"
    # C++, and memory that malloc(3) finds to be damaged.
    r"|std::terminate.*|__cxxabiv1::.*|__cxa_(throw|rethrow)|__gnu_cxx::__verbose_terminate_handler.*"
    r"|_?int_free|_?int_malloc|free"
    # Rust.
    r"|(__rustc::)?_*rust_(panic\w*|begin_unwind|start_panic|abort)|(std|core)::panicking::.*"
    r"|std::(sys|sys_common|rt|process)::.*|panic_(abort|unwind)::.*"
    r"|core::(option|result)::(unwrap|expect)\w*_failed|core::slice::index::.*|core::str::slice_error_fail\w*"
    r"|core::cell::panic_\w+|alloc::alloc::handle_alloc_error|alloc::raw_vec::(capacity_overflow|handle_error)"
    # Go.
    r"|runtime\..*"
    # Java.
    r"|os::abort\(.*|VMError::.*"
    rf"|{HANDLER}"
)
BEGINNING = re.compile(r"_*libc_start_\w+|_start|start_thread|_*clone3?")
ABORT = re.compile(r"(__GI_)?abort")
MOST_FILES = 6
SYMBOLS_FROM = "--symbols DIRECTORY of its debug files, DEBUGINFOD_URLS, or an image built with -g and without strip"
# It asks the servers of the distributions.
OF_DISTRIBUTION = "DEBUGINFOD_URLS=https://debuginfod.elfutils.org has the files of many distributions"


@dataclass
class Report:
    """All that is known of a core in the end."""

    core: Core
    said: elfcore.CoreFacts | None = None
    traces: list[Trace] = field(default_factory=list)
    files: list[Mapped] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    @property
    def crash(self) -> Frame | None:
        """The frame that says most about the fault."""
        return next(iter(self._shown()), None)

    @property
    def caller(self) -> Frame | None:
        """The frame with the line that has led there, where the fault is in a library, or in no known line."""
        crash = self.crash
        if crash is None or (_has_own_line(crash) and crash.module == self.core.exe):
            return None
        # Without a line, the fault may be in a library that is a part of the program.
        same = (crash.module.rpartition("+")[0] or crash.module) if _has_own_line(crash) else None
        return next((frame for frame in self._shown()[1:] if _has_own_line(frame) and frame.module != same), None)

    @property
    def at(self) -> Frame | None:
        """The innermost frame with a known line from the fault on, of a header only where no other has one."""
        shown = self._shown()
        own = next((frame for frame in shown if _has_own_line(frame)), None)
        return own or next((frame for frame in shown if frame.line is not None), None)

    @property
    def aborted(self) -> bool:
        """Whether abort(3) ended the first process of a container, which it does by another signal than SIGABRT."""
        frame = self.traces[0].frames[0] if self.traces else None
        first = self.said is not None and self.said.pid == 1
        return first and self.core.signal != "SIGABRT" and frame is not None and bool(ABORT.fullmatch(frame.function))

    def _shown(self) -> list[Frame]:
        """Return the frames of the first thread from the fault on: not those through which a program ends itself."""
        frames = self.traces[0].frames if self.traces else []
        if frames and ENDING.fullmatch(frames[0].function or "??"):
            # The program ended within its handler of a signal: the frame that this interrupted says more about the fault.
            handlers = (n for n, frame in enumerate(frames) if frame.function == HANDLER)
            frames = frames[next(handlers, 0) :]
        first = next((n for n, frame in enumerate(frames) if not ENDING.fullmatch(frame.function or "??")), len(frames))
        return frames[first:]

    def row(self) -> dict[str, Any]:
        """Return what ``--json`` shows."""
        crash, at = self.crash, self.at
        return {
            **self.core.row(),
            "arguments": self.said.arguments if self.said else None,
            "facts": self.core.known or None,
            "build_ids": self.core.build_ids or None,
            "at": {"file": at.file, "line": at.line, "function": at.function or None} if at else None,
            "crash": crash.row() if crash else None,
            "caller": self.caller.row() if self.caller else None,
            "threads": [trace.row() for trace in self.traces],
            "files": [one.row() for one in self.files],
            "problems": self.problems,
            "hints": self.hints,
        }


def _has_own_line(frame: Frame) -> bool:
    """Tell whether a frame is in a known line, and not in one that all programs share: of a header, or of their beginning."""
    return frame.line is not None and not (
        frame.file.startswith("/usr/include/") or BEGINNING.fullmatch(frame.function)
    )


def complete(report: Report, found: Gathered, core: Path) -> None:
    """Add what the files and the backtraces show to be missing, each with its remedy."""
    report.files = found.files
    unnamed = {
        frame.module.rpartition("+")[0] for trace in report.traces for frame in trace.frames if not frame.function
    }
    missing: list[str] = []
    for number, one in enumerate(found.files):
        if one.state == "mismatch":
            others = ", ".join(f"{build_id[:12]} in the {source}" for source, build_id in one.others.items())
            missing.append(
                f"{plain(one.path)}: build id {one.build_id[:12]} in the core, {plain(others)}: they are of another build; "
                "say the right one by --image or --sysroot"
            )
        elif one.state == "missing":
            wanted = f" (build id {one.build_id[:12]})" if one.build_id else ""
            missing.append(f"{plain(one.path)}{wanted}: not found: say --image or --sysroot, or set DEBUGINFOD_URLS")
        elif one.state == "stripped" and (number == 0 or one.path in unnamed):
            remedy = SYMBOLS_FROM if number == 0 or not one.path.startswith(("/lib", "/usr/lib")) else OF_DISTRIBUTION
            missing.append(f"{plain(one.path)} is stripped, so its functions have no names: {remedy}")
        elif one.state == "functions" and number == 0:
            missing.append(f"{plain(one.path)} has no line numbers: {SYMBOLS_FROM}")
    if len(missing) > MOST_FILES:
        missing[MOST_FILES:] = [f"... and {len(missing) - MOST_FILES} files more: see --json"]
    report.problems += [*found.problems, *missing]
    program = found.program
    language = program.contents.language if program else ""
    report.hints = symbols.hints([one.path for one in found.files], language, core, program.file if program else None)


def headline(report: Report) -> str:
    """Return the fault in one line."""
    core = report.core
    what = f"{core.program or core.thread or 'a program'}: {core.signal or 'no signal'}"
    frame = report.crash
    if frame is None:
        return f"{what} at {core.fault}" if core.fault else what
    caller = report.caller
    called = f", called from {caller.function} at {caller.file}:{caller.line}" if caller else ""
    if not frame.function:
        return f"{what} at {frame.module or core.fault or 'an address that belongs to no file'}{called}"
    place = f" of {frame.module}" if frame.module else ""
    if frame.line is not None:
        place = f" at {frame.file}:{frame.line}"
    return f"{what} in {frame.function}{place}{called}"


def facts(report: Report) -> list[tuple[str, str]]:
    """Return the facts that are known, each with its name."""
    core = report.core
    cut = "yes: the end of the core is missing" if core.truncated else ""
    pod = f"{core.namespace}/{core.pod}" if core.namespace else core.pod
    inner = report.said.pid if report.said else None
    pid = str(core.pid) + (f", in its container {inner}" if inner and inner != core.pid else "")
    user = f"{core.uid}:{core.gid}" if core.uid is not None else ""
    stored = f"{text.size(core.stored)} {'packed' if core.name.packed else 'there'}"
    sizes = [text.size(core.size)] if core.size is not None else []
    sizes += [stored] if core.stored != core.size else []
    rows = [
        ("time", f"{text.moment(core.time)} UTC" if core.time else ""),
        ("host", core.node or core.host),
        ("pod", pod),
        ("container", core.container),
        ("image", core.image),
        ("program", core.exe or core.program),
        ("arguments", report.said.arguments if report.said else ""),
        ("thread", core.thread),
        ("pid", "" if core.pid is None else pid),
        ("user", user),
        (
            "signal",
            f"{core.signal}, by abort(3): SIGABRT does not end PID 1 of a container" if report.aborted else core.signal,
        ),
        ("fault", core.fault),
        ("build id", core.build_id),
        ("size", ", ".join(sizes)),
        ("truncated", cut),
        ("sha256", core.sha256),
        ("reason", core.reason),
        ("key", core.key),
    ]
    return [(name, plain(value)) for name, value in rows if value]


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print(Text(plain(headline(report)), style="bold"), soft_wrap=True)
    console.print()
    for name, value in facts(report):
        console.print(Text.assemble((f"{name:<10} ", "dim"), value), soft_wrap=True)
    for number, (same, trace) in enumerate(folded(report.traces)):
        console.print()
        names = ", ".join(str(one) for one in same[:8]) + (", ..." if len(same) > 8 else "")
        title = f"thread {names}" if len(same) == 1 else f"{len(same)} threads: {names}"
        console.print(
            Text(f"{title}{', which crashed' if number == 0 and report.core.signal else ''}", style="bold"),
            soft_wrap=True,
        )
        for frame in trace.frames:
            show_frame(frame, console, frame is (report.at or report.crash))
        if trace.more:
            console.print(" ... more frames: see corefetch debug")
    for title, lines in (("What is missing", report.problems), ("What else reads this core", report.hints)):
        if lines:
            console.print()
            console.print(Text(title, style="bold"))
            for line in lines:
                console.print(Text(plain(f"- {line}")), soft_wrap=True)


def folded(traces: list[Trace]) -> list[tuple[list[int | None], Trace]]:
    """Fold threads that are at the same place into one, except the first."""
    found: dict[tuple[object, ...], tuple[list[int | None], Trace]] = {}
    for number, trace in enumerate(traces):
        same = (number == 0, *((frame.function, frame.file, frame.line, frame.module) for frame in trace.frames))
        found.setdefault(same, ([], trace))[0].append(trace.thread)
    return list(found.values())


def show_frame(frame: Frame, console: Console, marked: bool) -> None:
    """Print a frame, on a second line where one is too short."""
    name = frame.function or frame.module or (f"{frame.address:#x}" if frame.address is not None else "??")
    line = f" #{frame.number:<3}{name}"
    if frame.function and frame.arguments:
        line += f" ({frame.arguments})"
    place = (
        f"at {frame.file}:{frame.line}"
        if frame.line is not None
        else f"in {frame.module}"
        if frame.function and frame.module
        else ""
    )
    style = "bold" if marked else ""
    if place and len(line) + len(place) + 1 <= console.width:
        line, place = f"{line} {place}", ""
    console.print(Text(line, style=style), soft_wrap=True)
    if place:
        console.print(Text(f"      {place}", style=style), soft_wrap=True)
