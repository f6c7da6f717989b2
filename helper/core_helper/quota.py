"""Limits what one container may write into the host's log, over all its crashes: a token bucket in a file of root's.

Without a limit, a container that crashes in a loop, each time with a delegate that writes all it may, fills the host's log.
"""

import _struct
import posix
import time

from core_helper import table

FILE = "/run/docker_core_helper.lines"
# The size of the bucket: lines that a container may write at once. The lines that each second adds. The lines that must be in
# the bucket before a container that had emptied it may write again: otherwise each new line would bring one that says how many
# were left out.
BURST, RATE, RESUME = 1000.0, 10.0, 100.0
MOST_HOLDERS = 256
# Time of the monotonic clock; lines in the bucket; lines left out since it was empty (-1: it was not empty); name.
RECORD = _struct.Struct("=ddq104s")
LONGEST_NAME = 104


def admit(holder: str, now: "float | None" = None, patience: float = table.PATIENCE) -> "tuple[bool, str]":
    """Tell whether ``holder`` may write a line now, and what the log should be told before about lines that were left out.

    ``now`` is a time of the monotonic clock in seconds. A file that cannot be used, or that others have for longer than the
    ``patience`` in seconds, lets every line through.
    """
    line = Line(now, only_left_out=False)
    line.count(holder, patience)
    return line.admitted, line.notice


def leaves_out(holder: str, now: "float | None" = None, patience: float = table.PATIENCE) -> bool:
    """Tell whether the next line of ``holder`` is left out, and count it if so: then the log need not even be loaded for it."""
    line = Line(now, only_left_out=True)
    line.count(holder, patience)
    return not line.admitted


def leaves_out_at_once(holder: str) -> bool:
    """Tell the same without waiting for the table: while nobody can count, only one line a second is written.

    A container that makes such lines may also be the one that holds the table.
    """
    line = Line(None, only_left_out=True)
    return not line.admitted if line.count(holder, 0.0) else not _is_first_in_a_second()


def _is_first_in_a_second() -> bool:
    """Tell whether nobody was told so within the last second, by the time of the table: that needs no lock, and no room.

    The time of its directory counts where that has no room for it. Where no time can be set, everybody is told so.
    """
    for path in (FILE, FILE.rpartition("/")[0]):
        try:
            if 0 <= time.time() - posix.stat(path, follow_symlinks=False).st_mtime < 1:
                return False
            posix.utime(path, follow_symlinks=False)
            return True
        except FileNotFoundError:
            pass
        except OSError:
            break
    return True


class Line:
    """A line for the log: whether it is ``admitted``, and the ``notice`` that the log should be told before."""

    def __init__(self, now: "float | None", only_left_out: bool) -> None:
        """Take the time, None for that at which it is counted. With ``only_left_out``, what may be written is not counted."""
        self.now = now
        self.only_left_out = only_left_out
        self.admitted = True
        self.notice = ""

    def count(self, holder: str, patience: float = table.PATIENCE) -> bool:
        """Take the line from the bucket of ``holder``, and tell whether that could be done within the ``patience``."""
        name = holder.encode()[:LONGEST_NAME].ljust(LONGEST_NAME, b"\0")
        return table.change(FILE, RECORD, MOST_HOLDERS, (name,), (0.0, BURST, -1), self.withdraw, patience)

    def withdraw(self, row: "tuple[float, ...]") -> "tuple[float, ...] | None":
        """Take the line from a bucket: when it was looked at, the lines in it, and how many were left out."""
        then, left, missed = row
        now = time.monotonic() if self.now is None else self.now
        left = min(BURST, left + max(0.0, now - then) * RATE)
        if self.only_left_out and not (missed >= 0 and left < RESUME):
            return None
        if missed >= 0 and left < RESUME:
            self.admitted, missed = False, missed + 1
        elif missed >= 0:
            self.notice, missed = f"{missed} lines of this container were left out of the log", -1
        if self.admitted and left < 1:
            self.admitted, missed = False, 1
            left_out = f"more are left out while it writes over {RATE:.0f} a second"
            self.notice = f"this container has written {BURST:.0f} lines: {left_out}"
        elif self.admitted:
            left -= 1
        return now, left, missed
