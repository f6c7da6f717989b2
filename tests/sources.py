"""The project's own files: as a git repository, and those that are in no Python package, as modules."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]


def load(path: Path) -> Any:
    """Import a file anew: no test sees what another one has changed in it."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


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
