"""``debug``: the debugger has the right files, and nothing of a core commands it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from corefetch import elfcore
from corefetch.errors import Exit
from support.command import Desk
from support.cores import Shop, run


def test_debug_gives_gdb_the_right_files(desk: Desk, place: Path, shop: Shop) -> None:
    done = desk.good(
        "debug",
        "last",
        "--sysroot",
        str(shop.root),
        "--",
        "-batch",
        "-nx",
        "-ex",
        "backtrace",
        "-ex",
        "info sharedlibrary",
    )
    assert re.search(r"#1 .*checkout \(order=", done.out)
    assert re.search(r"Yes +\S+/app/libtax\.so\.1", done.out)
    assert not list((desk.directory / ".cache/corefetch/roots").iterdir())


def test_debug_gives_lldb_the_right_files(desk: Desk, place: Path, shop: Shop, stripped: tuple[Path, Path]) -> None:
    if not shutil.which("lldb"):
        pytest.skip("there is no lldb here: apt-get install lldb")
    image, debug = stripped
    for words in (("--sysroot", str(shop.root)), ("--sysroot", str(image), "--symbols", str(debug))):
        done = desk.good("debug", "last", "--lldb", *words, "--", "-b", "-o", "bt all", "-o", "image list")
        assert re.search(r"thread #1, .*SIGSEGV\n.*frame #0: .*total_of\(.*shop\.c:", done.out)
        assert re.search(r"frame #1: .*checkout\(", done.out)
        assert re.search(r"thread #4.*\n.*\n.*frame #1: .*wait_for_ever\(", done.out)
        # Of the libraries, too, it has those of the image.
        assert re.search(r" /\S+/roots/\S+/app/libtax\.so\.1 ", done.out)


def test_the_status_of_the_debugger_is_ours(desk: Desk, shop: Shop) -> None:
    assert desk.run("debug", shop.core, "--", "-batch", "-nx", "-ex", "quit 9").status == 9


def test_the_command_of_the_debugger_can_be_had(desk: Desk, shop: Shop) -> None:
    known = desk.good("debug", shop.core, "--sysroot", str(shop.root), "--json").json
    out = run(*known["command"], "-batch", "-nx", "-ex", "backtrace")
    assert "checkout" in out


def test_paths_of_a_core_lead_nowhere_else(shop: Shop, desk: Desk, tmp_path: Path) -> None:
    content = shop.core.read_bytes()
    path = str(shop.program.relative_to(shop.root)).encode()
    evil = b"../" * (len(path) // 3) + b"x" * (len(path) % 3)
    changed = desk.directory / "evil.core"
    changed.write_bytes(content.replace(b"/" + path, b"/" + evil))
    assert any("/../" in one for one in elfcore.of_file(changed).files)
    assert desk.run("info", changed).status == Exit.MISSING_PROGRAM
    assert sorted(one.name for one in desk.directory.iterdir()) == [".cache", "evil.core"]


@pytest.mark.parametrize("program", ["gdb", "lldb"])
def test_paths_of_a_core_are_no_commands_and_steer_no_terminal(
    shop: Shop, desk: Desk, tmp_path: Path, program: str
) -> None:
    path = str(shop.program.relative_to(shop.root))
    # lldb takes each line of -o for a command.
    evil = "\x1b[2J\nplatform shell id\n/".ljust(len(path), "x")
    changed = desk.directory / "evil.core"
    changed.write_bytes(shop.core.read_bytes().replace(f"/{path}\0".encode(), f"/{evil}\0".encode()))
    sysroot, tools = tmp_path / "sysroot", tmp_path / "tools"
    (sysroot / evil).parent.mkdir(parents=True)
    shutil.copy(shop.program, sysroot / evil)
    tools.mkdir()
    (tools / program).symlink_to("/bin/true")
    desk.variables["PATH"] = f"{tools}:{os.environ['PATH']}"
    words: list[str | Path] = ["debug", changed, "--sysroot", sysroot, *(["--lldb"] if program == "lldb" else [])]
    command = desk.good(*words, "--json").json["command"]
    assert any("platform shell id" in word for word in command)
    assert not any(character < " " for word in command for character in word)
    printed = desk.good(*words, "--print")
    assert len(printed.out.splitlines()) == 1
    assert "\x1b" not in printed.out + printed.err


def test_the_name_of_a_core_is_no_command_of_lldb(shop: Shop, desk: Desk, tmp_path: Path) -> None:
    store, tools = tmp_path / "store", tmp_path / "tools"
    store.mkdir()
    tools.mkdir()
    (tools / "lldb").symlink_to("/bin/true")
    desk.variables["PATH"] = f"{tools}:{os.environ['PATH']}"
    shutil.copy(shop.core, store / "\x1b[2J\nplatform shell id\n.core")
    done = desk.run("debug", "last", "--from", store, "--lldb", "--print")
    assert (done.status, done.out, len(done.err.splitlines())) == (Exit.USAGE, "", 1)
    assert "lldb takes no such name" in done.err
    assert "\x1b" not in done.err
    assert "\x1b" not in desk.good("debug", "last", "--from", store, "--print").out


def test_no_file_of_a_container_is_a_program_of_gdb(shop: Shop, desk: Desk, tmp_path: Path) -> None:
    path = str(shop.program.relative_to(shop.root))
    evil = f"usr/lib/debug/{'x' * (len(path) - 21)}-gdb.py"
    changed, sysroot = desk.directory / "evil.core", tmp_path / "sysroot"
    changed.write_bytes(shop.core.read_bytes().replace(f"/{path}\0".encode(), f"/{evil}\0".encode()))
    (sysroot / evil).parent.mkdir(parents=True)
    shutil.copy(shop.program, sysroot / evil)
    command = desk.good("debug", changed, "--sysroot", sysroot, "--json").json["command"]
    (root,) = [word.partition("set sysroot ")[2] for word in command if word.startswith("set sysroot ")]
    assert evil in " ".join(command)
    assert not Path(root, evil).exists()
