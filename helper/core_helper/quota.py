"""Limits what one container may write into the host's log, over all its crashes: a token bucket in a file of root's.

Without a limit, a container that crashes in a loop, each time with a delegate that writes all it may, fills the host's log.
"""

import _struct
import fcntl
import posix
import time

FILE = "/run/docker_core_helper.lines"
# The size of the bucket: lines that a container may write at once. The lines that each second adds. The lines that must be in
# the bucket before a container that had emptied it may write again: otherwise each new line would bring one that says how many
# were left out.
BURST, RATE, RESUME = 1000.0, 10.0, 100.0
MOST_HOLDERS = 256
# Time of the monotonic clock; lines in the bucket; lines left out since it was empty (-1: it was not empty); name.
RECORD = _struct.Struct("=ddq104s")


def admit(holder: str, now: "float | None" = None) -> "tuple[bool, str]":
    """Tell whether ``holder`` may write a line now, and what the log should be told before about lines that were left out.

    ``now`` is a time of the monotonic clock in seconds. A file that cannot be used lets every line through.
    """
    return _locked(holder, now, False) or (True, "")


def leaves_out(holder: str, now: "float | None" = None) -> bool:
    """Tell whether the next line of ``holder`` is left out, and count it if so: then the log need not even be loaded for it."""
    return _locked(holder, now, True) is not None


def _locked(holder: str, now: "float | None", only_left_out: bool) -> "tuple[bool, str] | None":
    """Return what ``_admit`` says while nobody else asks, None where the file cannot be used."""
    try:
        file = posix.open(FILE, posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
        return _admit(file, holder, time.monotonic() if now is None else now, only_left_out)
    except OSError:
        return None
    finally:
        posix.close(file)


def _admit(file: int, holder: str, now: float, only_left_out: bool) -> "tuple[bool, str] | None":
    """Take a line of ``holder``, and return what becomes of it. With ``only_left_out``, None for a line that may be written."""
    name = holder.encode()[:104].ljust(104, b"\0")
    table = posix.pread(file, MOST_HOLDERS * RECORD.size, 0).ljust(MOST_HOLDERS * RECORD.size, b"\0")
    records = list(RECORD.iter_unpack(table))
    index = next((index for index, record in enumerate(records) if record[3] == name), None)
    if index is None:
        # A new holder takes the place of the one that has been silent for the longest time.
        index = min(range(MOST_HOLDERS), key=lambda index: records[index][0])
        then, left, missed = now, BURST, -1
    else:
        then, left, missed, _holder = records[index]
    left = min(BURST, left + max(0.0, now - then) * RATE)
    admitted, notice = True, ""
    if only_left_out and not (missed >= 0 and left < RESUME):
        return None
    if missed >= 0 and left < RESUME:
        admitted, missed = False, missed + 1
    elif missed >= 0:
        notice, missed = f"{missed} lines of this container were left out of the log", -1
    if admitted and left < 1:
        admitted, missed = False, 1
        notice = (
            f"this container has written {BURST:.0f} lines: more are left out while it writes over {RATE:.0f} a second"
        )
    elif admitted:
        left -= 1
    posix.pwrite(file, RECORD.pack(now, left, missed, name), index * RECORD.size)
    return admitted, notice
