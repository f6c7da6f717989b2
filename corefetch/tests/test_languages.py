"""Cores of other languages than C: what gdb shows of them, and what else reads them."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from corefetch import rust, symbols
from support.command import Desk
from support.cores import PROGRAMS, crash, run

TILL = PROGRAMS / "till.py"


@pytest.mark.parametrize(("words", "fault"), [((), "SIGSEGV"), (("dies",), "SIGABRT")], ids=["reads at 0", "aborts"])
def test_a_core_of_python_shows_what_gdb_shows_and_says_what_shows_the_lines_of_python(
    desk: Desk, tmp_path: Path, words: tuple[str, ...], fault: str
) -> None:
    program = Path(sys.executable).resolve()
    core = crash(program, tmp_path / "till.core", str(TILL), *words)
    told = desk.good("info", core, "--sysroot", "/", "--json").json
    assert told["signal"] == fault
    functions = [frame["function"] for frame in told["threads"][0]["frames"]]
    shown = run("gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-ex", "bt 64", program, core)
    # gdb begins with the frame of the fault.
    _, *frames = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\S+)", shown, re.M)
    assert functions == [None if name == "??" else name for name in frames]
    assert any(name and name.startswith("_PyEval_EvalFrame") for name in functions)
    (hint,) = told["hints"]
    assert hint.startswith(f"Python: pystack core {core} {program} shows the Python frames")
    assert f"py-bt of gdb: corefetch debug {core} " in hint
    assert "python3-dbg" in hint
    out = desk.good("info", core, "--sysroot", "/").out
    assert out.startswith(f"{program.name}: {fault} ")
    assert f"What else reads this core\n- {hint}\n" in out


@pytest.mark.parametrize(
    ("path", "is_python"),
    [
        ("/usr/bin/python3.11", True),
        ("/usr/local/lib/libpython3.14.so.1.0", True),
        ("/usr/local/bin/python3.14t", True),
        ("/usr/lib/libpython3.11d.so.1.0", True),
        ("/usr/bin/python-argcomplete", False),
        ("/usr/lib/libboost_python311.so.1.74.0", False),
    ],
)
def test_all_builds_of_python_are_known(path: str, is_python: bool) -> None:
    told = symbols.hints([path], "", Path("x.core"), None)
    assert [one.startswith("Python: ") for one in told] == [True] * is_python


@pytest.fixture(scope="module")
def rusty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with names of Rust."""
    program = tmp_path_factory.mktemp("rusty") / "rusty"
    run("gcc", "-O0", "-fno-optimize-sibling-calls", "-o", program, PROGRAMS / "rusty.c")
    return program


def test_a_core_of_rust_has_names_as_rust_writes_them(desk: Desk, rusty: Path) -> None:
    core = crash(rusty, rusty.with_name("rusty.core"))
    done = desk.good("info", core, "--sysroot", "/")
    assert done.out.startswith(f"rusty: SIGABRT in shop::total of {rusty}\n")
    names = [
        "__rustc::rust_begin_unwind",
        "core::panicking::panic_fmt",
        "core::option::unwrap_failed",
        "shop::total",
        "shop::order::{{closure}}",
        "<shop::Cart as core::iter::traits::Iterator>::next",
        "shop::apply::<u64>",
        "shop::checkout",
        "main",
    ]
    assert [name for name in re.findall(r"^ #\d+ +(.*?)(?: in \S+)?$", done.out, re.M) if name in names] == names
    assert "- Rust: rust-gdb and rust-lldb show Rust's own types" in done.out


@pytest.mark.parametrize(
    ("text", "stripped", "language"),
    [
        ("void rust_eh_personality(void) {}", False, "Rust"),
        ('__asm__(".ident \\"rustc version 1.84.0\\"");', True, "Rust"),
        (f'const char *at = "/rustc/{"0a" * 20}/library/core/src/option.rs";', True, "Rust"),
        ('const char *at = "/usr/src/rustc-1.63.0/library/core/src/option.rs";', True, "Rust"),
        ('const char *at = "/rustc/not-a-hash/";', True, ""),
        ("", False, ""),
    ],
)
def test_a_program_of_rust_is_known_also_where_it_is_stripped(
    tmp_path: Path, text: str, stripped: bool, language: str
) -> None:
    (tmp_path / "x.c").write_text(f"{text}\nint main(void) {{ return 0; }}\n")
    run("gcc", "-o", tmp_path / "x", tmp_path / "x.c")
    if stripped:
        run("strip", tmp_path / "x")
    assert symbols.read(tmp_path / "x").language == language


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("shop::total::h0123456789abcdef", "shop::total"),
        ("_$u5b$T$u5d$::first::h0123456789abcdef", "[T]::first"),
        ("alloc::vec::Vec$LT$T$C$A$GT$::push::h0123456789abcdef", "alloc::vec::Vec<T,A>::push"),
        ("_$LT$$RF$T$u20$as$u20$core..fmt..Debug$GT$::fmt::h0123456789abcdef", "<&T as core::fmt::Debug>::fmt"),
        ("shop[3c1c0]::apply::<u64>", "shop::apply::<u64>"),
        # What only looks so.
        ("shop::hash", "shop::hash"),
        ("operator new[](unsigned long)", "operator new[](unsigned long)"),
        ("std::string[abi:cxx11]::at", "std::string[abi:cxx11]::at"),
        ("$u1b$::x::h0123456789abcdef", "$u1b$::x"),
        ("$uffff$::x::h0123456789abcdef", "$uffff$::x"),
        ("a$LT$b::hash", "a$LT$b::hash"),
    ],
)
def test_names_of_rust_lose_what_only_a_linker_needs(name: str, readable: str) -> None:
    assert rust.readable(name) == readable


def test_pystack_reads_the_core_as_the_hint_says(desk: Desk, tmp_path: Path) -> None:
    if not shutil.which("pystack"):
        pytest.skip("no pystack here: pip install pystack")
    core = crash(Path(sys.executable).resolve(), tmp_path / "till.core", str(TILL))
    (hint,) = desk.good("info", core, "--sysroot", "/", "--json").json["hints"]
    assert "in price" in run(*hint.removeprefix("Python: ").partition(" shows")[0].split())
