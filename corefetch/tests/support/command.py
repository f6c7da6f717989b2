"""Runs corefetch as a user does: in a process of its own, with an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corefetch.errors import Exit

SOURCE = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Done:
    """What a command has said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it has printed for programs."""
        return json.loads(self.out)


@dataclass
class Desk:
    """A user's directory, cache and environment."""

    directory: Path
    variables: dict[str, str]

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment of a command: nothing of the user who runs the tests but the path."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "PYTHONPATH": str(SOURCE),
            "PYTHONDONTWRITEBYTECODE": "1",
            # Nobody else is asked for credentials: only the loopback interface is.
            "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1",
            "LC_ALL": "C.UTF-8",
            **self.variables,
            **variables,
        }

    def words(self, *words: str | Path) -> list[str]:
        """Return the words that start a command."""
        return [sys.executable, "-m", "corefetch", *map(str, words)]

    def run(self, *words: str | Path, input: str = "", **variables: str) -> Done:
        """Run a command to its end."""
        done = subprocess.run(
            self.words(*words),
            check=False,
            capture_output=True,
            text=True,
            input=input,
            cwd=self.directory,
            env=self.environment(**variables),
            timeout=120,
        )
        assert f'File "{SOURCE}' not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def good(self, *words: str | Path, **variables: str) -> Done:
        """Run a command that must succeed."""
        done = self.run(*words, **variables)
        assert done.status == 0, f"{words}: {done.status}\n{done.out}{done.err}"
        return done


def without_functions(desk: Desk, **variables: str) -> str:
    """Return what info says where a program is missing: what crashed, or one that reads it."""
    done = desk.run("info", "last", **variables)
    assert done.status == Exit.MISSING_PROGRAM, done.err
    return done.out
