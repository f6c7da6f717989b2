"""The fallback file /tmp/core.PID.UID.GID, written where the process sees that path, and at its privilege."""

import posix

from core_helper import corefile, joining, linux, privileges
from core_helper.configuration import FALLBACK_VARIABLE
from core_helper.program import Absent, Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from core_helper.child import Child

BLOCK = 1 << 18
MODE = 0o600
TRUNCATED = b".truncated"  # What is added to the name of a file that holds a part of a core.


def path_of(pid: int, uid: int, gid: int) -> bytes:
    """Return the path of the fallback file; the ids are those of the initial namespaces, as in %P, %u and %g."""
    return f"/tmp/core.{pid}.{uid}.{gid}".encode()


def write(plan: joining.Plan, path: bytes, wanted: bool, child: "Child") -> "NoReturn":
    """In a child: enter the container as the delegate would, create ``path`` and copy the core into it; never returns.

    Nothing is executed and nothing appears in the container's pid namespace. Where it is not known yet whether the fallback
    file is ``wanted``, the environment of the process must ask for it.
    """
    process = plan.process
    with joining.StatusPipe(child.status_write_end) as status:
        status.step = "read environment"
        if wanted:
            status.send("environ", "")
        elif FALLBACK_VARIABLE not in joining.read_environment(process, status):
            raise Absent("the fallback file is not asked for")
        status.step = "join control groups"  # Here no fork follows that a pids.max would forbid.
        status.note(plan.groups.join())
        status.note(privileges.take_over_processors(process))
        joining.enter(plan, status)
        status.step = "take over label"
        plan.label.at_once()
        status.step = "create fallback file"
        privileges.limit_file_size(process)
        # O_EXCL follows no symbolic link and takes no file, FIFO or hard link that somebody has put there.
        posix.umask(0o077)
        try:
            file = linux.openat2(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW, MODE)
        except OSError as error:
            raise Stopped(f"{path.decode()}: {error.strerror}") from None
        status.step = "write fallback file"
        status.send("ready", "")
        if copy(child.core_read_end, file):
            status.step = "rename fallback file"
            rename(path, path + TRUNCATED)
        posix._exit(0)


def rename(old: bytes, new: bytes) -> None:
    """Give the file ``old`` the name ``new``, unless there is a file of that name. Raises OSError."""
    posix.link(old, new, follow_symlinks=False)
    posix.unlink(old)


def copy(source: int, file: int) -> bool:
    """Copy ``source`` to its end into ``file``, onto the disk, and tell whether the core was cut off.

    Raises Stopped with what was written so far.
    """
    written = 0
    header = corefile.Header()
    try:
        while True:
            block = posix.read(source, BLOCK)
            if not block:
                break
            header.add_some(block)
            while block:
                count = posix.write(file, block)
                written += count
                block = block[count:]
        posix.fsync(file)
    except OSError as error:
        raise Stopped(f"{error.strerror} after {written} bytes") from None
    return header.was_cut(written)
