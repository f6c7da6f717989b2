"""Crashes of processes of the host: the delegate there, and a place for records."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import lab

HELPER = Path("/opt/bin/docker_core_helper")
DELEGATE = Path("/opt/bin/delegate")


@contextmanager
def delegate_on_host(program: str) -> Iterator[None]:
    """Puts one of the lab's programs where the configuration says, on the host itself."""
    shutil.copy(lab.PROGRAMS / program, DELEGATE)
    try:
        yield
    finally:
        DELEGATE.unlink()


@contextmanager
def records_of_host() -> Iterator[Path]:
    """A directory for records of the host's processes, in which every user may write."""
    directory = lab.RECORDS / "host"
    directory.mkdir()
    directory.chmod(0o777)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
