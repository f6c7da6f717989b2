"""The program that compiles the library, on each Python that a host may have; what it makes of the real one is tested there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from unit.helper.support import HELPER

PROGRAM = HELPER / "compile_library.py"
SOURCES = {
    "__init__.py": "",
    "main.py": '"""A docstring."""\nfrom core_helper import linux\nfrom core_helper.command import parse\n',
    "command.py": "from core_helper import linux\n\ndef parse():\n    from core_helper import late\n",
    "deliver.py": "import core_helper.main\n",
    "linux.py": "import os\n",
    "record.py": "from core_helper.linux import read\n",
    "late.py": "",
}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Return the directory of a small library."""
    for name, content in SOURCES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the program as the installer does: from its text, without environment and without site-packages."""
    command_line = [sys.executable, "-I", "-S", "-c", PROGRAM.read_text(), *map(str, words)]
    return subprocess.run(command_line, env={}, capture_output=True, text=True, check=False)


def uncompiled(library: Path) -> list[str]:
    """Return what the program says of a library, and see that it names this Python."""
    version, names = run("check", library).stdout.splitlines()
    assert version == ".".join(map(str, sys.version_info[:3]))
    return names.split()


def test_what_is_compiled_is_not_named_any_more(library: Path) -> None:
    bundles = [f"bundle.{start}.{sys.implementation.cache_tag}" for start in ("main", "deliver", "record")]
    assert uncompiled(library) == [*sorted(SOURCES), *bundles]
    result = run("compile", library, library)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert uncompiled(library) == []
    (library / "linux.py").write_text("import sys\n")
    assert uncompiled(library) == ["linux.py", *bundles]


def test_there_need_be_no_library_to_ask_what_is_not_compiled(tmp_path: Path) -> None:
    assert uncompiled(tmp_path / "missing") == []


def test_each_bundle_holds_what_no_earlier_one_has_each_after_what_it_imports(library: Path) -> None:
    run("compile", library, "/final")
    program = (
        "import marshal, sys\n"
        "bundle = marshal.loads(open(sys.argv[1], 'rb').read()[16:])\n"
        "for name, code in bundle: print(name, code.co_filename, code.co_consts[0])\n"
    )
    for start, names in (("main", ("linux", "command", "main")), ("deliver", ("deliver",)), ("record", ("record",))):
        (bundle,) = library.glob(f"__pycache__/bundle.{start}.*")
        printed = subprocess.check_output([sys.executable, "-ISc", program, str(bundle)], text=True).splitlines()
        assert [line.split()[:2] for line in printed] == [[name, f"/final/{name}.py"] for name in names]
        # Without the docstring.
        assert "A docstring." not in str(printed)
    assert not list(library.glob("__pycache__/*.new"))


@pytest.mark.parametrize("words", [(), ("check",), ("compile", "/a"), ("remove", "/a")])
def test_other_arguments_are_refused(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.returncode and result.stderr.startswith("compile_library.py: expected check LIBRARY")


def test_an_old_python_is_told_what_the_helper_needs() -> None:
    text = PROGRAM.read_text()
    program = f"import sys\nsys.version_info = (3, 7, 1)\nexec({text!r})"
    result = subprocess.run([sys.executable, "-ISc", program], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == "is Python 3.7, and the helper needs 3.8 or newer"
    # Nothing that Python 3.5 could not even read.
    assert "f'" not in text and 'f"' not in text


def test_a_python_without_a_module_that_the_helper_needs_is_named() -> None:
    program = f"import sys\nsys.modules['_ctypes'] = None\nexec({PROGRAM.read_text()!r})"
    result = subprocess.run([sys.executable, "-ISc", program], capture_output=True, text=True, check=False)
    assert result.stderr.startswith("lacks a module that the helper needs: ")
    assert "_ctypes" in result.stderr
