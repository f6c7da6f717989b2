"""How the helper opens files: what every open has to say, found in the source, and what nobody may inherit."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
from core_helper import holders, linux, procfs, quota, slots
from core_helper.crash import Crash
from core_helper.log import Log
from unit.helper.support import PACKAGE, in_child

# The only ones that are read or listed, or that others stand for.
READ_OR_LISTED = {
    ("verification", "examine", "/proc"),
    ("verification", "open_task", "{}/task"),
    ("source", "release", "/proc"),
    ("family", "end_unknown", "/proc"),
    ("store", "_open_directory", ""),
}
# A program or a directory, of a file system that is not asked; a pipe.
MAGIC_LINKS = {("mount_table", "open_link", ""), ("kernel_socket", "_feed", "/proc/self/fd/{}")}
DIRECTORIES = {"/", "/proc", "/proc/self", "/proc/self/fd", "/proc/thread-self", "/proc/{}", "root", "{}/task"}


class Open:
    """A call of posix.open in the source."""

    def __init__(self, module: str, function: str, call: ast.Call) -> None:
        self.where = (module, function, text_of(call.args[0]))
        self.flags = {node.attr for node in ast.walk(call.args[1]) if isinstance(node, ast.Attribute)}


def text_of(node: ast.AST) -> str:
    """Return a literal, with {} for what is computed in it, or ""."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) or "{}" for value in node.values)
    value = getattr(node, "value", "")
    return value if isinstance(node, ast.Constant) and isinstance(value, str) else ""


def opens() -> list[Open]:
    found = []
    for path in sorted(PACKAGE.glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                called = node.func if isinstance(node, ast.Call) else None
                if (
                    isinstance(called, ast.Attribute)
                    and called.attr == "open"
                    and getattr(called.value, "id", "") == "posix"
                ):
                    found.append(Open(path.stem, function.name, node))  # type: ignore[arg-type]
    return found


def test_what_is_opened_is_close_on_exec() -> None:
    # Python sees to that anyway, but not openat2: whoever copies a line has the flag.
    inherited = {found.where[:2] for found in opens() if "O_CLOEXEC" not in found.flags}
    # The library's code is read before anything else.
    assert inherited == {("__init__", "load")}
    assert len(opens()) > 25


def test_a_directory_is_opened_as_one_and_only_to_name_what_is_in_it() -> None:
    for found in opens():
        if found.where in MAGIC_LINKS or found.where == ("configuration", "open_after_lease", ""):
            # The second one is a file of root's, which is looked at before it is opened.
            assert found.flags == {"O_PATH", "O_CLOEXEC"}
        elif found.where[2] in DIRECTORIES or found.flags & {"O_PATH", "O_DIRECTORY"}:
            assert "O_DIRECTORY" in found.flags, found.where
            assert ("O_PATH" in found.flags) != (found.where in READ_OR_LISTED), found.where


def test_what_may_be_created_is_never_a_link_that_somebody_has_put_there() -> None:
    created = [found for found in opens() if "O_CREAT" in found.flags]
    assert {found.where[0] for found in created} == {"table", "store", "pattern"}
    assert all("O_NOFOLLOW" in found.flags for found in created)


def test_a_file_of_a_process_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    directory = os.open(tmp_path, os.O_PATH)
    with pytest.raises(OSError, match="symbolic links"):
        procfs.open_file(directory, "link")
    file = procfs.open_file(directory, "file")
    assert not os.get_inheritable(file)
    for descriptor in (file, directory):
        os.close(descriptor)


def test_the_files_that_all_helpers_share_are_roots_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "holder_of", lambda crash: holders.named("a", 1))
    for module in (slots, quota):
        monkeypatch.setattr(module, "FILE", str(tmp_path / module.__name__))

    def use() -> object:
        os.umask(0)
        slots.acquire(Crash(os.getpid(), 0, 0), 4, Log())
        quota.admit("a")
        return None

    in_child(use)
    assert [os.stat(module.FILE).st_mode & 0o777 for module in (slots, quota)] == [0o600, 0o600]


def test_what_is_opened_in_the_container_is_close_on_exec_whatever_the_caller_says(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for flags in (os.O_PATH, os.O_RDONLY):
        descriptor = linux.openat2(os.fsencode(tmp_path / "file"), flags)
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
