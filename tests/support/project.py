"""The project's own files: as a git repository, and those that are in no Python package, as modules."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
PLUGINS = PROJECT / "plugins"


def load(path: Path, beside: bool = False) -> Any:
    """Import a file anew: no test sees what another one has changed in it, or in what a module of Ansible has with others.

    ``beside``: a module of Ansible shares plugins/module_utils with the last one.
    """
    if path.is_relative_to(PLUGINS):
        for name in [] if beside else [name for name in sys.modules if name.partition(".")[0] == PLUGINS.name]:
            del sys.modules[name]
        sys.path.insert(0, str(PROJECT))
        try:
            return importlib.import_module(".".join(path.relative_to(PROJECT).with_suffix("").parts))
        finally:
            sys.path.remove(str(PROJECT))
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def shared(name: str) -> Any:
    """Return what the last loaded module of Ansible has imported of plugins/module_utils."""
    return sys.modules[f"{PLUGINS.name}.module_utils.docker_core_helper.{name}"]


def tracked() -> list[str]:
    """Return the files of this clone that git does not ignore: those that are in it, or would be with the next commit."""
    with tempfile.TemporaryDirectory() as empty:
        # Asked of an empty repository, so that it works for a download without .git, and for root in somebody else's clone.
        git = ("git", f"--git-dir={empty}", f"--work-tree={PROJECT}")
        subprocess.run([*git, "init", "--quiet"], check=True)
        listing = [*git, "ls-files", "--others", "--exclude-standard"]
        return subprocess.run(listing, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.splitlines()


def make_repository(directory: Path) -> None:
    """Make an empty directory a clone of its own of this project, whose branch main has what is not committed here yet."""
    for name in tracked():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, directory / name, follow_symlinks=False)
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    for words in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        ["commit", "--quiet", "--message=test"],
    ):
        subprocess.run(["git", "-C", directory, *identity, *words], check=True)
