"""What the host keeps, and what is in a fallback file, as a test sees it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from hostile.observe import wait_until

Keep = Callable[..., Path]


def kept_in(store: Path) -> list[tuple[dict[str, object], Path]]:
    """Return what the store lists, when the helper has finished with each."""
    found = []
    for file in store.glob("*/*.json"):
        wait_until(partial(is_finished, file), "no checksum")
        known = json.loads(file.read_text())
        found.append((known, file.parent / known["file"]))
    return found


def is_finished(file: Path) -> bool:
    return "sha256" in json.loads(file.read_text())


def core_file(directory: Path) -> bytes:
    """The only fallback file."""
    (core,) = directory.glob("core.*")
    return core.read_bytes()


def content_of(core: Path) -> bytes:
    program = {".zst": "zstd", ".gz": "gzip"}.get(core.suffix)
    if program:
        return subprocess.run([program, "-d", "-c", core], check=True, stdout=subprocess.PIPE).stdout
    return core.read_bytes()


def bytes_in(store: Path) -> int:
    """How much of the disk all that is in the store takes."""
    total = 0
    for path in store.glob("*/*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total
