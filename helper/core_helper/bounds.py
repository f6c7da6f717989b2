"""How many cores a program may leave, and how large one may be: asked before a delegate is started.

The administrator's bound for crash loops is a number of cores of each program of a group, in so many seconds; runtime.group_of
says what a group is. What was counted stands in a file of root's, so that it holds over all helpers. The first core beyond the
bound has a line in the log, the others are counted, and the line of the next core that is delivered tells their number.
"""

import _struct
import fcntl
import posix
import select
import time

from core_helper import corefile, linux, runtime, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.process import FaultingProcess

FILE = "/run/docker_core_helper.bursts"
MOST_PROGRAMS = 1024
# When it crashed last, and when it began to be counted, by the monotonic clock; cores since then; cores left out since then;
# group, program.
RECORD = _struct.Struct("=ddII128s136s")
LONGEST_GROUP, LONGEST_PROGRAM = 128, 136
F_GETPIPE_SZ = 1032
LONG_AGO = float("-inf")


def left_out(process: "FaultingProcess", most: int, seconds: int, now: "float | None" = None) -> "tuple[int, int]":
    """Count a core of ``process``, and tell whether it is within the bound of ``most`` cores in so many ``seconds``.

    If it is, return how many were left out before it, and 0. If not, return 0, and how many are left out by now. A file that
    cannot be used means no bound.
    """
    group = runtime.group_of(process.cgroups).encode()[:LONGEST_GROUP].ljust(LONGEST_GROUP, b"\0")
    program = process.exe[-LONGEST_PROGRAM:].ljust(LONGEST_PROGRAM, b"\0")
    counted = Counted(most, seconds, now)
    table.change(FILE, RECORD, MOST_PROGRAMS, (group, program), (LONG_AGO, LONG_AGO, 0, 0), counted.add)
    return counted.before, counted.missed


class Counted:
    """What becomes of one core: ``before`` were left out before it, ``missed`` with it."""

    def __init__(self, most: int, seconds: int, now: "float | None") -> None:
        """Take the bound, and the time, None for that at which it is counted."""
        self.most = most
        self.seconds = seconds
        self.now = now
        self.before = self.missed = 0

    def add(self, row: "tuple[float, ...]") -> "tuple[float, ...]":
        """Count the core: when the last one was, when the time began, how many were admitted since then, and left out."""
        _last, began, admitted, missed = row
        now = time.monotonic() if self.now is None else self.now
        if now - began >= self.seconds or began > now:
            began, admitted = now, 0
        if admitted < self.most:
            self.before, admitted = int(missed), admitted + 1
        else:
            self.missed = min(int(missed) + 1, (1 << 32) - 1)
        return now, began, admitted, self.missed


def length_in_pipe(pipe: int) -> "int | None":
    """Return how many bytes the core in the ``pipe`` will have, and leave it there; None where that is not known in time."""
    out, into = posix.pipe()
    poll = select.poll()
    poll.register(pipe, 0)  # Without events, poll(2) reports only the end.

    def look(count: int) -> "bytes | None":
        size = max(linux.PIPE_SIZE, 2 * count)
        linux.set_pipe_size(pipe, size)
        ended = bool(poll.poll(0))
        if linux.bytes_in_pipe(pipe) < count:
            return None if ended or fcntl.fcntl(pipe, F_GETPIPE_SZ) < count else b""
        linux.set_pipe_size(into, size)
        content = posix.read(out, linux.tee(pipe, into, size))
        # There may be no pipe of that size beside the kernel's.
        return content if len(content) >= count else None

    try:
        return corefile.announced_length(look)
    except OSError:
        return None  # Started by hand with a file.
    finally:
        posix.close(out)
        posix.close(into)
