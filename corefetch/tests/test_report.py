"""What is made of a backtrace: its frames, the fault, the first line, and what else reads such a core."""

from __future__ import annotations

import io
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from corefetch import debugger, elfcore, report, symbols
from corefetch.debugger import Frame
from corefetch.facts import Core
from corefetch.keys import Name
from rich.console import Console
from support.cores import Shop


def test_frames_are_read_whatever_their_arguments_have_in_them(shop: Shop) -> None:
    said = elfcore.of_file(shop.core)
    output = """\
Thread 2 (Thread 0x7f (LWP 4321)):
#0  0x0000000000000010 in ?? ()
Thread 1 (Thread 0x7f (LWP 1234)):
#0  total (a=<error: Cannot access memory at address 0x7f>, s=0x1 "x) at y:3") at src/a b.c:18
#1  0x00000000000000aa in std::vector<int, std::allocator<int> >::at(unsigned long) (this=0x1, n=3) at /usr/include/v.h:1
#2  <signal handler called>
#3  0x00000000000000bb in abort () from /lib/libc.so.6
#4  inlined () at /go/main.go:5
#5  0x00000000000000cc in main.main () at /go/main.go:7
Backtrace limit of 64 exceeded
"""
    traces = debugger.read(output, said)
    assert [trace.thread for trace in traces] == [4321, 1234]
    frames = traces[1].frames
    assert [(one.function, one.file, one.line) for one in frames] == [
        ("total", "src/a b.c", 18),
        ("std::vector<int, std::allocator<int> >::at(unsigned long)", "/usr/include/v.h", 1),
        ("<signal handler called>", "", None),
        ("abort", "", None),
        ("inlined", "/go/main.go", 5),
        ("main.main", "/go/main.go", 7),
    ]
    # It has no address of its own, because it is a part of the one before.
    assert frames[4].address == 0xBB
    assert traces[1].more
    assert traces[0].frames[0].function == ""


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('f (s=0x1 ") at x:3") at a b.c:18', ('f (s=0x1 ") at x:3")', "a b.c", 18, "")),
        ("f () from /x) at y", ("f ()", "", None, "/x) at y")),
        ("f () at x) from /y:3", ("f () at x)", "", None, "/y:3")),
        ("f () at x.c:3)", ("f () at x.c:3)", "", None, "")),
        ("f () at x.c", ("f () at x.c", "", None, "")),
        ("f () at  x.c:3", ("f () at  x.c:3", "", None, "")),
        ("f () at x.c:" + "9" * 5000, ("f () at x.c:" + "9" * 5000, "", None, "")),
        ("<signal handler called>", ("<signal handler called>", "", None, "")),
    ],
    ids=range(8),
)
def test_the_last_bracket_ends_a_function(text: str, parts: tuple[str, str, int | None, str]) -> None:
    frame = debugger.read(f"Thread 1 (LWP 7):\n#0  0x1 in {text}", elfcore.CoreFacts())[0].frames[0]
    function, _, arguments = parts[0].partition(" (")
    assert (frame.function, frame.arguments) == (function, arguments.removesuffix(")"))
    assert (frame.file, frame.line, frame.module) == parts[1:]


@pytest.mark.parametrize("text", [") at a" * 40000 + ")x", ") from " * 40000 + "\0", "(" * 240000, " at a:3" * 40000])
def test_a_long_line_takes_no_time(text: str) -> None:
    began = time.process_time()
    debugger.read(f"Thread 1 (LWP 7):\n#0  0x1 in {text}", elfcore.CoreFacts())
    assert time.process_time() - began < 2


@pytest.mark.parametrize("line", ["#{}  f ()", "#0  f () at x.c:{}", "Thread {} (LWP 1):", "Thread 1 (LWP {}):"])
def test_a_number_of_any_length_is_none(line: str) -> None:
    output = "Thread 1 (LWP 7):\n#0  0x1 in main ()\n" + line.format("1" * 5000)
    traces = debugger.read(output, elfcore.CoreFacts())
    assert traces[0].thread == 7
    assert traces[0].frames[0].function == "main"


@pytest.mark.parametrize(
    ("functions", "told"),
    [
        (["__pthread_kill_implementation", "__GI_raise", "__GI_abort", "checkout"], "checkout"),
        (
            ["raise", "abort", "__gnu_cxx::__verbose_terminate_handler()", "std::terminate()", "__cxa_throw", "parse"],
            "parse",
        ),
        (
            [
                "__GI_abort",
                "std::process::abort",
                "std::rt::__rust_abort",
                "panic_abort::x",
                "core::panicking::y",
                "a::parse",
            ],
            "a::parse",
        ),
        (["runtime.raise", "runtime.throw", "main.parse"], "main.parse"),
        (["__strlen_avx2", "checkout"], "__strlen_avx2"),
        # What a handler of signals does in the end tells less than why it was called.
        (["raise", "abort", "log_and_die", "<signal handler called>", "checkout"], "checkout"),
        (["log_and_die", "<signal handler called>", "checkout"], "log_and_die"),
        (["__GI_abort", "os::abort(bool, void*)", "VMError::report_and_die()", "Unsafe_GetLong"], "Unsafe_GetLong"),
        (["", "checkout"], ""),
    ],
)
def test_the_fault_is_not_of_what_ends_a_program(functions: list[str], told: str) -> None:
    core = Core("x", Name("x", "x", "", False), 1, any_time())
    frames = [Frame(number, 1, name, line=1) for number, name in enumerate(functions)]
    crash = report.Report(core, traces=[debugger.Trace(1, frames)]).crash
    assert crash is not None
    assert crash.function == told


APP, LIBRARY, C = "/usr/bin/shop", "/opt/libcoupon.so", "/usr/lib/libc.so.6"
ATOI = Frame(1, 1, "atoi", "", "/usr/include/stdlib.h", 364, LIBRARY)
DISCOUNT = Frame(2, 1, "discount", "", "src/coupon.c", 8, LIBRARY)
TOTAL = Frame(3, 1, "total", "", "src/cart.c", 9, APP)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Frame(0, 1, "", module=f"{C}+0x4f"), f"at {C}+0x4f, called from discount at src/coupon.c:8"),
        (Frame(0, 1, "strtol", "", "strtol.c", 5, C), "in strtol at strtol.c:5, called from discount at src/coupon.c:8"),
        (Frame(0, 1, "check", "", "src/coupon.c", 3, LIBRARY), "in check at src/coupon.c:3, called from total at src/cart.c:9"),
        (Frame(0, 1, "check", module=APP), f"in check of {APP}, called from discount at src/coupon.c:8"),
        (TOTAL, "in total at src/cart.c:9"),
    ],
)  # fmt: skip
def test_the_first_line_names_a_line_of_the_users_own(fault: Frame, told: str) -> None:
    core = Core("x", Name("x", "x", "", False), 1, any_time(), program="shop", exe=APP, signal="SIGSEGV")
    frames = [fault, ATOI, Frame(2, 1, "__libc_start_call_main", "", "start.h", 58, C), DISCOUNT, TOTAL]
    assert report.headline(report.Report(core, traces=[debugger.Trace(1, frames)])) == f"shop: SIGSEGV {told}"


STRLEN = Frame(0, 1, "__strlen_evex", module=APP)
HEADER = Frame(1, 1, "atoi", "", "/usr/include/stdlib.h", 364, APP)
LENGTH = Frame(1, 2, "length_of", "", "orders.c", 21, APP)


@pytest.mark.parametrize(
    ("frames", "told", "at"),
    [
        ([STRLEN, LENGTH], f"in __strlen_evex of {APP}, called from length_of at orders.c:21", LENGTH),
        ([STRLEN, HEADER, LENGTH], f"in __strlen_evex of {APP}, called from length_of at orders.c:21", LENGTH),
        ([ATOI, LENGTH], "in atoi at /usr/include/stdlib.h:364, called from length_of at orders.c:21", LENGTH),
        ([ATOI], "in atoi at /usr/include/stdlib.h:364", ATOI),
        ([LENGTH, TOTAL], "in length_of at orders.c:21", LENGTH),
        ([STRLEN], f"in __strlen_evex of {APP}", None),
    ],
)  # fmt: skip
def test_a_static_program_is_told_by_the_innermost_line(frames: list[Frame], told: str, at: Frame | None) -> None:
    core = Core("x", Name("x", "x", "", False), 1, any_time(), program="shop", exe=APP, signal="SIGSEGV")
    known = report.Report(core, traces=[debugger.Trace(1, frames)])
    assert report.headline(known) == f"shop: SIGSEGV {told}"
    row = {"file": at.file, "line": at.line, "function": at.function} if at else None
    assert known.row()["at"] == row
    # The same frame is the one that is shown as such.
    file = io.StringIO()
    report.show(known, Console(file=file, force_terminal=True, width=200))
    (line,) = [line for line in file.getvalue().splitlines() if "\x1b[1m #" in line]
    assert f"#{(at or STRLEN).number} " in line


@pytest.mark.parametrize(
    ("pid", "shown"), [(1, "SIGSEGV, by abort(3): SIGABRT does not end PID 1 of a container"), (7, "SIGSEGV")]
)
def test_an_abort_of_the_first_process_is_said(pid: int, shown: str) -> None:
    core = Core("x", Name("x", "x", "", False), 1, any_time(), pid=4711, signal="SIGSEGV")
    said = elfcore.CoreFacts(pid=pid)
    known = dict(report.facts(report.Report(core, said, [debugger.Trace(1, [Frame(0, 1, "abort", module=C)])])))
    assert known["signal"] == shown
    assert known["pid"] == f"4711, in its container {pid}"


def test_what_else_reads_a_core_is_a_command_as_it_stands() -> None:
    (told,) = symbols.hints([APP], "Go", Path("/a b/x.core"), Path("/cache/executable"))
    assert told.startswith("Go: dlv core /cache/executable '/a b/x.core' shows")
    (told,) = symbols.hints(["/usr/lib/jvm/x/libjvm.so"], "", Path("x.core"), None)
    assert "jhsdb jstack --exe PROGRAM --core x.core," in told


def any_time() -> datetime:
    """Return any time."""
    return datetime(2026, 1, 1, tzinfo=timezone.utc)
