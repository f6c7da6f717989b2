"""Gives each core a name of its own: for the object in a bucket, the file in a directory, and whatever is kept."""

import posix
import time

from core_helper import procfs, runtime
from core_helper.process import CONTAINER_NAME, POD_NAME
from core_helper.unwanted import DELETED
from core_helper.words import encode, harmless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.crash import Crash
    from core_helper.process import FaultingProcess

RANDOM = "/proc/sys/kernel/random/uuid"  # Another one at each read; random(4).
# Bytes of each part. With the rest there are less than 200: a file system takes 255 for a name and what is added to it.
LONGEST_NODE, LONGEST_PLACE, LONGEST_PROGRAM, LONGEST_THREAD = 48, 63, 24, 15
LAST_SECOND = 253402300799  # Of the year 9999.


def key_of(crash: "Crash", process: "FaultingProcess") -> str:
    """Return the name of the core: node, pod or container, program, thread, pid, time, and twelve random digits.

    No other core ever has it. Machines may be copies of each other, down to the pid and the second, and a container chooses
    some of the parts: only what is random differs for sure. Of A-Za-z0-9._- only, less than 200 bytes, the same at each call.
    """
    if not crash.key:
        year, month, day, hour, minute, second = time.gmtime(min(crash.time, LAST_SECOND))[:6]
        parts = (
            harmless(encode(posix.uname().nodename), LONGEST_NODE),
            harmless(place_of(process), LONGEST_PLACE),
            harmless(program_of(process.exe), LONGEST_PROGRAM),
            harmless(process.comm, LONGEST_THREAD),
            str(crash.pid),
            f"{year}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z",
            procfs.read_path(RANDOM)[:13].replace(b"-", b"").decode(),
        )
        crash.key = ".".join(parts)
    return crash.key


def place_of(process: "FaultingProcess") -> bytes:
    """Return where the process was, as an operator calls that: its pod, its container, else its unit."""
    known = process.record.facts.get(POD_NAME) or process.record.facts.get(CONTAINER_NAME)
    if known:
        return known
    if process.container_id:
        return process.container_name.encode()
    return runtime.group_of(process.cgroups).encode()


def program_of(exe: bytes) -> bytes:
    """Return the name of the program at the path ``exe``, which may be gone."""
    path = exe[: -len(DELETED)] if exe.endswith(DELETED) else exe
    return path.rpartition(b"/")[2]
