"""The package as a whole: what an import of it costs, and the Python it needs."""

from __future__ import annotations

import ast
import json
import posix
import re
import subprocess
import sys
from pathlib import Path

import core_helper
import core_helper.main
import pytest
from core_helper import __version__
from unit.helper.support import HELPER, PACKAGE

# Modules made of C that cost next to nothing; everything of the library that is written in Python costs milliseconds.
CHEAP = {
    "_ctypes",
    "_json",
    "_signal",
    "_thread",
    "_stat",
    "_struct",
    "errno",
    "fcntl",
    "gc",
    "posix",
    "select",
    "sys",
    "time",
}
CHEAP_AFTER_THE_FORK = CHEAP | {"_socket"}
SOURCES = [*sorted(PACKAGE.glob("*.py")), HELPER / "docker_core_helper", HELPER / "compile_library.py"]


def imported(*modules: str, then: str = "") -> set[str]:
    """Return what the import of ``modules`` brings into an interpreter that was started as the kernel starts it.

    That, and the statement ``then``.
    """
    program = (
        f"import sys; sys.path.insert(0, {str(HELPER)!r}); before = set(sys.modules)\n"
        f"import {', '.join(modules)}; {then or 'pass'}; after = set(sys.modules)\n"
        "import json; print(json.dumps(sorted(after - before)))"
    )
    command_line = [sys.executable, "-BISc", program]
    printed = subprocess.run(command_line, env={}, stdout=subprocess.PIPE, check=True).stdout
    return set(json.loads(printed))


def of_others(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] != "core_helper"}


def test_the_way_to_the_fork_imports_only_cheap_modules() -> None:
    assert of_others(imported("core_helper.main")) <= CHEAP


def test_the_whole_package_imports_only_cheap_modules() -> None:
    modules = sorted(f"core_helper.{path.stem}" for path in PACKAGE.glob("*.py") if path.stem != "__init__")
    for command in ("cores", "sender"):  # Of operators: no crash imports them.
        modules.remove(f"core_helper.{command}")
    assert of_others(imported(*modules)) <= CHEAP_AFTER_THE_FORK


def test_what_the_server_may_need_is_there_before_it_leaves_its_container() -> None:
    loaded = imported("core_helper.serve", then="core_helper.serve.load(elsewhere=True)")
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    operators = {"cores", "sender"}
    assert modules - {name.partition(".")[2] for name in loaded} == operators
    later = {
        name.name
        for path in PACKAGE.glob("*.py")
        if path.stem not in operators
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert later <= loaded | set(sys.builtin_module_names) | CHEAP | {"core_helper"} and {"json", "hashlib"} <= later


def test_what_was_loaded_is_looked_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has left its container would find the files of the host."""
    monkeypatch.setattr(core_helper, "__path__", ["/missing"])
    monkeypatch.setattr(posix, "open", None)
    assert "core_helper.main" in sys.modules
    core_helper.load("main")


def test_what_is_needed_only_after_the_delegate_started_is_not_imported_before_the_fork() -> None:
    assert not imported("core_helper.main") & {
        "core_helper.previous_handler",
        "core_helper.journal",
        "core_helper.fallback",
        "core_helper.store",
        "core_helper.custody",
        "core_helper.finishing",
        "core_helper.cores",
        "core_helper.sender",
    }


def test_a_crash_that_is_refused_for_its_slot_pays_for_nothing_that_looks_at_a_container() -> None:
    assert not imported("core_helper.main") & {
        f"core_helper.{name}"
        for name in ("control_groups", "mount_table", "process", "membership", "foreign_files", "strangers", "tracing")
    }


def test_a_crash_of_the_host_does_not_pay_for_the_records_of_engines() -> None:
    assert not imported("core_helper.main", "core_helper.deliver") & {"core_helper.record", "_json"}


def test_who_may_trace_is_rarely_asked_and_not_imported_for_each_crash() -> None:
    assert "core_helper.tracing" not in imported("core_helper.main", "core_helper.deliver")


def test_what_ends_a_child_is_there_before_the_child() -> None:
    """At the deadline, an installation of that moment may have removed the library."""
    assert "core_helper.family" in imported("core_helper.main", "core_helper.deliver")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_source_file_is_of_python_3_8_and_compiles_here(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    compile(source, str(path), "exec", dont_inherit=True)


def test_the_version_is_a_plain_release() -> None:
    assert [part.isdigit() for part in __version__.split(".")] == [True] * 3


def test_the_entry_has_the_two_lines_that_the_installer_replaces() -> None:
    lines = (HELPER / "docker_core_helper").read_text().split("\n")
    assert lines[0] == "#!/usr/bin/python3 -IS"
    assert len([line for line in lines if line.startswith("LIBRARY = ")]) == 1


def test_the_map_of_the_package_names_every_module() -> None:
    text = core_helper.__doc__ or ""
    picture = "".join(line for line in text.splitlines(keepends=True) if line.startswith("    "))
    named = {*re.findall(r"\w+", picture), *re.findall(r"``(\w+)``", text)}
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} - named == set()
