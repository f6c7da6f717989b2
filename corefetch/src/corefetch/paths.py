"""Paths of a container, chosen by a stranger: none leads out of the directory that stands for the root of the container."""

from __future__ import annotations

import os
from pathlib import Path

from corefetch.text import plain

MOST_LINKS = 40


def safe(path: str) -> str:
    """Return a path of the container, relative to its root and without a way out of it.

    It becomes a word of a debugger's command, which ends with its line, and is shown.
    """
    return plain("/".join(part for part in path.split("/") if part not in ("", ".", ".."))) or "unnamed"


def resolve(root: Path, path: str) -> Path | None:
    """Return a file below ``root``, whose symbolic links are meant as the container sees them; None if it cannot be had."""
    try:
        return _resolved(root, path)
    except OSError:
        return None  # Such as a name that is too long for one.


def _resolved(root: Path, path: str) -> Path | None:
    """Return a file below ``root``, None if it is not there. Raises OSError."""
    at, parts, steps = root, [one for one in path.split("/") if one], 0
    while parts:
        part = parts.pop(0)
        if part == ".":
            continue
        if part == "..":
            at = at.parent if at != root else root
            continue
        next_one = at / part
        if next_one.is_symlink():
            steps += 1
            if steps > MOST_LINKS:
                return None
            target = os.readlink(next_one)
            at = root if target.startswith("/") else at
            parts = [one for one in target.split("/") if one] + parts
        else:
            at = next_one
    return at if at.is_file() else None


def symlink(target: Path, place: Path) -> None:
    """Make one link, unless a stranger's paths contradict each other."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.absolute())
    except OSError:
        return
