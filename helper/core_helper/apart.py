"""Has a child do what a container can make last as long as it likes, so that this process need not wait for its end."""

import posix
import select
import time
from _signal import SIGKILL

from core_helper import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

GRACE = 2.0  # Seconds after SIGKILL.


def read(steps: "Callable[[int], None]", limit: float) -> "tuple[bytes | None, int]":
    """Return what a child writes to the pipe that it gives to ``steps``, and the pid of the child if it hangs, else 0.

    None if that has not come to its end by the monotonic time ``limit``. Not even SIGKILL ends each wait in the kernel.
    """
    reading, writing = posix.pipe()
    pid = posix.fork()
    if pid == 0:
        try:
            steps(writing)
        finally:
            posix._exit(0)
    posix.close(writing)
    text, hanging = None, pid
    try:
        text = _read_within(reading, limit)
    finally:
        posix.close(reading)
        # Also where this process was interrupted: nobody else ends that child.
        if _has_ended(pid):
            hanging = 0
    return text, hanging


def write(pipe: int, text: bytes) -> None:
    """In the child: write all of ``text`` to the pipe."""
    while text:
        text = text[posix.write(pipe, text) :]


def _read_within(pipe: int, limit: float) -> "bytes | None":
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while poll.poll(max(0.0, limit - time.monotonic()) * 1000):
        part = posix.read(pipe, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None


def _has_ended(pid: int) -> bool:
    """End our child ``pid``, and tell whether it has ended."""
    posix.kill(pid, SIGKILL)
    return linux.wait_for_end(pid, GRACE)
