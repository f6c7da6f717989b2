"""The fallback file /tmp/core.PID.UID.GID, written where the process sees that path, and at its privilege.

It has holes where the core has nothing but zeros: most of the memory that a process has reserved was never used. A bound keeps
a program that crashes in a loop from filling the disk: so many files of one user may lie there, which take so many bytes of the
disk. Containers that have one /tmp share that bound. Each user of a container has a bound.

The file has another name until the core in it is whole: whatever ends the writer, a part never has the name of a whole core.
"""

import posix

from core_helper import corefile, holes, joining, linux, privileges
from core_helper.configuration import FALLBACK_VARIABLE
from core_helper.program import Absent, Stopped
from core_helper.status_pipe import StatusPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from core_helper.child import Child

SECTOR = 512  # The unit of st_blocks; stat(2).
MODE = 0o600
TRUNCATED = b".truncated"  # What is added to the name of a file that holds a part of a core.
EEXIST = 17
NO_LINKS = {1, 38, 95}  # EPERM, ENOSYS and EOPNOTSUPP: what a file system without hard links says.
NO_LIMIT = 1 << 62


def path_of(pid: int, uid: int, gid: int) -> bytes:
    """Return the path of the fallback file; the ids are those of the initial namespaces, as in %P, %u and %g."""
    return f"/tmp/core.{pid}.{uid}.{gid}".encode()


def write(
    plan: joining.Plan, path: bytes, wanted: bool, child: "Child", bound: "tuple[int, int]" = (0, 0)
) -> "NoReturn":
    """In a child: enter the container as the delegate would, create ``path`` and copy the core into it; never returns.

    Nothing is executed and nothing appears in the container's pid namespace. Where it is not known yet whether the fallback
    file is ``wanted``, the environment of the process must ask for it. The ``bound`` is the number of such files and of the
    bytes that they take, 0 for any number. What goes wrong is sent over the status pipe.
    """
    process = plan.process
    with StatusPipe(child.status_write_end) as status:
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
        status.step = "count fallback files"
        room = room_in(path.rpartition(b"/")[0], *bound)
        status.step = "create fallback file"
        privileges.limit_file_size(process)
        posix.umask(0o077)
        try:
            refuse_existing(path)
            file = create(path + TRUNCATED)
        except OSError as error:
            raise Stopped(f"{path.decode()}: {error.strerror}") from None
        status.step = "write fallback file"
        status.send("ready", "")
        if not copy(child.core_read_end, file, room):
            status.step = "rename fallback file"
            rename(path + TRUNCATED, path)
        posix._exit(0)


def create(path: bytes) -> int:
    """Create a file and return it, opened. Raises OSError.

    O_EXCL follows no symbolic link and takes no file, FIFO or hard link that somebody has put there.
    """
    return linux.openat2(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW, MODE)


def refuse_existing(path: bytes) -> None:
    """Raise OSError where there is something of that name: better now than when the core was read."""
    try:
        posix.lstat(path)
    except OSError:
        return  # Whatever else is wrong with the directory is told when a file is created there.
    raise OSError(EEXIST, posix.strerror(EEXIST))


def room_in(directory: bytes, most: int, size: int) -> int:
    """Return how many bytes more the fallback files in ``directory`` may take. Raises Stopped if there may be no more."""
    if not most:
        return NO_LIMIT
    count, taken = 0, 0
    try:
        listed = linux.openat2(directory, posix.O_RDONLY | posix.O_DIRECTORY)
        for entry in posix.scandir(listed):
            words = entry.name.split(".")
            if words[0] == "core" and len(words) in (4, 5) and all(map(str.isdigit, words[1:4])):
                found = entry.stat(follow_symlinks=False)
                # What others have put there, under whatever name, must not cost this user a core.
                if (
                    found.st_uid == posix.getuid()
                    and found.st_nlink == 1
                    and found.st_mode & linux.S_IFMT == linux.S_IFREG
                ):
                    count += 1
                    taken += found.st_blocks * SECTOR
    except OSError as error:
        raise Stopped(f"{directory.decode()}: {error.strerror}") from None
    if count >= most or taken >= size:
        raise Stopped(
            f"{count} core files of user {posix.getuid()} take {taken} bytes in {directory.decode()} already, and"
            f" DOCKERCOREHELPER_FALLBACK_MAX is {most}/{size}: remove them"
        )
    return size - taken


def rename(old: bytes, new: bytes) -> None:
    """Give the file ``old`` the name ``new``, unless there is a file of that name. Raises OSError."""
    try:
        posix.link(old, new, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # There an empty file of ours is replaced.
        posix.close(create(new))
        posix.rename(old, new)
        return
    posix.unlink(old)


def copy(source: int, file: int, room: int = NO_LIMIT) -> bool:
    """Copy ``source`` to its end into ``file``, onto the disk, and tell whether the core was cut off.

    Raises Stopped with how much was copied so far, also where more than ``room`` bytes would be written.
    """
    copied = 0
    header = corefile.Header()
    limit = linux.getrlimit(linux.RLIMIT_FSIZE)[0]
    try:
        while True:
            block = posix.read(source, holes.BLOCK)
            if not block:
                break
            header.add_some(block)
            start, view = copied, memoryview(block)
            # Beyond the limit nothing is left out: the write there tells that the file may be no larger.
            all_of_it = 0 <= limit < start + len(block)
            for begin, end in [(0, len(block))] if all_of_it else holes.runs(block, len(block), start):
                copied = start + begin
                if end - begin > room:
                    raise Stopped(f"the bound of all core files of this user there is reached after {copied} bytes")
                while copied < start + end:
                    count = posix.pwrite(file, view[copied - start : end], copied)
                    copied += count
                    room -= count
            copied = start + len(block)
        posix.ftruncate(file, copied)
        posix.fsync(file)
    except OSError as error:
        posix.ftruncate(file, copied)
        raise Stopped(f"{error.strerror} after {copied} bytes") from None
    return header.was_cut(copied)
