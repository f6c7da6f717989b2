"""A lease on a file, which a process has that does not give it up when somebody opens the file; F_SETLEASE of fcntl(2)."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lease_on(path: str | os.PathLike[str], directory: int | None = None) -> Iterator[None]:
    """Has a lease on a file, whose path may begin at an opened ``directory``. Raises OSError where the kernel grants none."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    file = os.open(path, os.O_RDONLY, dir_fd=directory)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(file)
        signal.signal(signal.SIGIO, before)
