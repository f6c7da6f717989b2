"""Slots: a container that crashes in a loop leaves some to the others. Asked first, before anything that costs more.

A slot is a record in a file of root's; there is one for each core that may be delivered at a time. A slot is taken as long as
its helper runs: the helper holds a lock on the record, which the kernel releases however the helper ends; fcntl_locking(2). A
slot is also taken as long as the faulting process exists, or the process of ours that has entered the container. Both may
outlive the helper: if they wait for a file that does not answer, not even SIGKILL ends them at once.

A container may take one more slot only while it holds fewer than are free, as in the dynamic thresholds of switches (Choudhury
and Hahne, 1998). The containers of a pod of Kubernetes are one container here. So three containers that take all they can get
hold 32, 16 and 8 of 64 slots, and 8 are left. A user who can make any number of containers or processes has a limit, too: all
of that user's together may take one more slot only while they hold fewer than three times the free ones. One slot in eight is
left to those that hold none.
"""

import _struct
import fcntl
import posix

from core_helper import holders, linux, procfs, table
from core_helper.crash import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

    from core_helper.crash import Crash
    from core_helper.log import Log

FILE = "/run/docker_core_helper.slots"
# The same for cores that the host keeps, and whose processes were released before the delivery: these hold no slot any more.
RELEASED = "/run/docker_core_helper.released"
DEFAULT_LIMIT = 64
MOST_SLOTS = 1 << 14
# Process, faulting thread, start of that thread in ticks, owner, group.
RECORD = _struct.Struct(f"=IIQq{holders.LONGEST_NAME}s")
PID_SIZE = 4
PF_EXITING = 0x4
NAMES_PROCESS = 16  # The bytes of a record before the owner: they name the process.
MUTEX = MOST_SLOTS * RECORD.size
# A second table: the child of ours that could not be ended, and its start in ticks. No field of RECORD: both processes count.
CHILD = _struct.Struct("=IQ")
CHILDREN = MUTEX + RECORD.size
OWNER_WEIGHT = 3
# Slots are short where fewer than one in so many is free; a container that is alone can take no more than that.
SHORT = 2
RESERVE = 8  # One in so many slots is for containers and users that hold none.


class Mutex:
    """The lock of the opened table, for ``with``: no other helper reads or changes the records meanwhile."""

    def __init__(self, file: int) -> None:
        """Take the opened file."""
        self.file = file

    def __enter__(self) -> None:
        """Wait until no other helper has the lock. Raises OSError where somebody else has it."""
        table.lock(self.file, MUTEX, 1)

    def __exit__(self, *failure: object) -> None:
        """Let others have it."""
        fcntl.lockf(self.file, fcntl.LOCK_UN, 1, MUTEX)


class TooMany(Exception):
    """A container or user has as many crashes in flight as it may have; the text says how many."""

    def __init__(self, who: str, held: int, free: int, limit: int) -> None:
        """Take the container or user, and the numbers."""
        super().__init__(f"{who} has {held} crashes in flight, and {free} of {limit} slots are free")


class NoSlot(Refused):
    """A core has no slot."""

    def __init__(self, error: TooMany) -> None:
        """Take the reason."""
        super().__init__(
            f"{error}: core dropped; fix what crashes, or raise DOCKERCOREHELPER_PIPE_LIMIT (docker_core_helper_pipe_limit)"
        )


class Slot:
    """A slot that was acquired; it is held until this process ends."""

    def __init__(self, file: "int | None", index: int) -> None:
        """Take the opened file, None for no record. The file stays open: closing a descriptor of it would release the lock."""
        self.file = file
        self.index = index
        self.limit = 0  # How many slots there are.

    def are_short(self) -> bool:
        """Tell whether so few slots are free that nobody may hold one for longer than the timeout."""
        if self.file is None:
            return True
        try:
            gone = _gone(self.file, self.limit, self.index)
            with Mutex(self.file):
                used = sum(row.taken for row in _rows(self.file, self.limit, gone, self.index))
        except OSError:
            return True
        return (self.limit - used) * SHORT < self.limit

    def release(self) -> bytes:
        """Free the slot while the faulting process still exists: the previous handler looks after that process from here on.

        Returns the record, for ``reclaim``.
        """
        if self.file is None:
            return b""
        record = posix.pread(self.file, RECORD.size, self.index * RECORD.size)
        # Whose it is stays there: a child of ours may still count.
        posix.pwrite(self.file, bytes(NAMES_PROCESS), self.index * RECORD.size)
        return record

    def reclaim(self, record: bytes) -> None:
        """Take the slot again after ``release``: nobody else can have taken it, because its lock was kept."""
        if self.file is not None:
            posix.pwrite(self.file, record, self.index * RECORD.size)

    def give_back(self) -> None:
        """Give the slot back, and take one among the deliveries of released processes, whose cores the host has.

        The slot stays taken as long as the faulting process is still being dumped. Raises TooMany where the holder of the slot
        has too many such deliveries. Where these cannot be counted, the slot stays taken.
        """
        if self.file is None:
            return
        record = posix.pread(self.file, RECORD.size, self.index * RECORD.size)
        try:
            taken = _acquire(RELEASED, self.limit, record)
        except TooMany:
            posix.close(self.file)
            self.file = None
            raise
        except OSError:
            return
        posix.close(self.file)
        self.file, self.index = taken

    def keep_for(self, pid: int) -> None:
        """Have the slot taken as long as our child ``pid`` exists, too, which could not be ended."""
        started = start_of(f"/proc/{pid}/task/{pid}")
        if self.file is not None and started is not None:
            posix.pwrite(self.file, CHILD.pack(pid, started), CHILDREN + self.index * CHILD.size)


def limit_of(configured: "int | None", kernel: int) -> int:
    """Return how many cores are delivered at a time: as ``configured``, but at most as many as the ``kernel`` allows.

    ``kernel`` is kernel.core_pipe_limit; with 0 the kernel has no limit, and waits for no helper.
    """
    return min(configured or kernel or DEFAULT_LIMIT, kernel or MOST_SLOTS, MOST_SLOTS)


def acquire(crash: "Crash", limit: int, log: "Log", holder: "holders.Holder | None" = None) -> Slot:
    """Acquire one of ``limit`` slots for ``crash``, and note in the ``log`` to whom the crash belongs.

    That is the ``holder``, if it is known already. Raises NoSlot when its container or its user has too many.
    """
    whose = holder or holders.holder_of(crash)
    log.holder = holders.log_name(whose.owner, whose.group)
    try:
        started = start_of(procfs.task_of(crash.pid, crash.tid)) or 0
    except OSError:
        started = 0  # Gone.
    record = RECORD.pack(crash.pid, crash.tid or 0, started, whose.owner, whose.group.encode())
    try:
        return Slot(*_acquire(FILE, limit, record))
    except TooMany as error:
        raise NoSlot(error) from None


def resume(file: int, index: int, log: "Log") -> Slot:
    """Return the slot that this process took before its re-execution; ``file`` is -1 where slots are not counted."""
    if file < 0:
        return Slot(None, 0)
    posix.set_inheritable(file, False)
    owner, group = RECORD.unpack(posix.pread(file, RECORD.size, index * RECORD.size))[-2:]
    log.holder = holders.log_name(owner, group.rstrip(b"\0").decode())
    return Slot(file, index)


def _acquire(path: str, limit: int, record: bytes) -> "tuple[int, int]":
    """Take one of the slots in ``path`` for the ``record``.

    Returns the opened file and the index of the slot. Raises TooMany or OSError.
    """
    file = table.open_file(path)
    try:
        gone = _gone(file, limit)
        with Mutex(file):
            index = _choose(file, limit, record, gone)
            _lock(file, index)
            posix.pwrite(file, record, index * RECORD.size)
            # Written, even if it is empty already, so that the disk has room for it later.
            posix.pwrite(file, bytes(CHILD.size), CHILDREN + index * CHILD.size)
    except BaseException:
        posix.close(file)  # Which releases its locks.
        raise
    return file, index


def _choose(file: int, limit: int, record: bytes, gone: "set[bytes]") -> int:
    """Return the index of a slot that the group and owner of the ``record`` may take. Raises TooMany where there is none."""
    owner, group = RECORD.unpack(record)[-2:]
    empty, used, of_group, of_owner = None, 0, 0, 0
    for row in _rows(file, limit, gone):
        if row.taken:
            its_owner, name = RECORD.unpack(row.record)[-2:]
            used += 1
            of_group += name == group
            of_owner += its_owner == owner != holders.NOBODY
            continue
        # So the next helper need not look at the lock and the processes of every crash there has been.
        if _names_process(row.record):
            posix.pwrite(file, bytes(NAMES_PROCESS), row.index * RECORD.size)
        if _names_process(row.child):
            posix.pwrite(file, bytes(CHILD.size), CHILDREN + row.index * CHILD.size)
        if empty is None and not _is_locked(file, row.index):
            empty = row.index
    name = group.rstrip(b"\0").decode("utf-8", "replace")
    check_share(owner, name, of_group, of_owner, used, limit)
    if empty is None:
        raise TooMany(name.partition(" ")[2], of_group, limit - used, limit)
    return empty


def check_share(owner: int, group: str, of_group: int, of_owner: int, used: int, limit: int) -> None:
    """Raise TooMany unless a group that has so many of the ``used`` slots may take one more, and its owner, too."""
    free = limit - used
    # The last slots are for groups and users that hold none. So others get one, however many containers take all they can get,
    # and however many containers a user makes.
    last = free <= limit // RESERVE
    whose = group.partition(" ")[2]
    if (last and of_group) or not may_add(of_group, free, 1):
        raise TooMany(whose, of_group, free, limit)
    if (last and of_owner) or not may_add(of_owner, free, OWNER_WEIGHT):
        raise TooMany(
            f"user {owner}" if owner > holders.NOBODY else f"the user for whom root has made {whose}",
            of_owner,
            free,
            limit,
        )


class Row:
    """What the table has of one slot, and whether that is ``taken``."""

    def __init__(self, index: int, record: bytes, child: bytes, taken: bool) -> None:
        """Take these."""
        self.index = index
        self.record = record
        self.child = child
        self.taken = taken


def _rows(file: int, limit: int, gone: "set[bytes]", own: int = -1) -> "Iterator[Row]":
    """Yield the row of each slot; that with the index ``own`` is ours.

    Our own lock is not asked for: to us it is none. The processes of the records and children in ``gone`` have ended.
    """
    for index, record, child in _table(file, limit):
        held = index == own or (_names_process(record) and (record not in gone or _is_locked(file, index)))
        yield Row(index, record, child, held or (_names_process(child) and child not in gone))


def _gone(file: int, limit: int, own: int = -1) -> "set[bytes]":
    """Return the records and children whose processes have ended.

    No process is looked at while the lock of the table is held. Whoever looks may be the last one to let go of the memory of a
    process that ends, and then waits with it, for ever where a file system does not answer (fs/aio.c, exit_aio).
    """
    with Mutex(file):
        left = [
            (b"" if index == own or _is_locked(file, index) else record, child)
            for index, record, child in _table(file, limit)
            if _names_process(record) or _names_process(child)
        ]
    gone = {record for record, _child in left if _names_process(record) and not is_dumping(*RECORD.unpack(record)[:3])}
    return gone.union(child for _record, child in left if _names_process(child) and not is_there(*CHILD.unpack(child)))


def _table(file: int, limit: int) -> "Iterator[tuple[int, bytes, bytes]]":
    """Yield the index of each record, the record, and the child that belongs to it."""
    records = posix.pread(file, limit * RECORD.size, 0).ljust(limit * RECORD.size, b"\0")
    children = posix.pread(file, limit * CHILD.size, CHILDREN).ljust(limit * CHILD.size, b"\0")
    for index in range(limit):
        record = records[index * RECORD.size : (index + 1) * RECORD.size]
        yield index, record, children[index * CHILD.size : (index + 1) * CHILD.size]


def _names_process(record: bytes) -> bool:
    """Tell whether a record or child begins with the number of a process."""
    return record[:PID_SIZE].strip(b"\0") != b""


def may_add(held: int, free: int, weight: int) -> bool:
    """Tell whether a group or owner that holds ``held`` slots may take one more of the ``free`` ones."""
    return free > 0 and (held == 0 or held < weight * free)


def _lock(file: int, index: int) -> None:
    """Lock a record, by its first byte. Raises OSError where another process has it."""
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index * RECORD.size)


def _is_locked(file: int, index: int) -> bool:
    return table.is_locked(file, index * RECORD.size, 1)


def start_of(task: str) -> "int | None":
    """Return when the thread of this /proc/PID/task/TID was started, in ticks since the boot, None if it is gone.

    /proc/PID/stat is not read: that would take longer the more threads the process has; proc_pid_stat(5). Raises Refused.
    """
    try:
        return int(procfs.stat_fields(procfs.read_path(f"{task}/stat"))[19])
    except OSError as error:
        procfs.refuse_lease(error)
        return None


def is_dumping(pid: int, tid: int, started: int) -> bool:
    """Tell whether the process whose faulting thread was ``started`` then is still being dumped; include/linux/sched.h.

    Its status is not read, which says that, too: it has all groups of the process, and that may be 65,536.
    """
    try:
        fields = procfs.stat_fields(procfs.read_path(f"{procfs.task_of(pid, tid or None)}/stat"))
    except BlockingIOError:
        return True  # Somebody has a lease on that file.
    except OSError:
        return False
    return int(fields[19]) == started and int(fields[6]) & (linux.PF_DUMPCORE | PF_EXITING) == linux.PF_DUMPCORE


def is_there(pid: int, started: int) -> bool:
    """Tell whether the process ``pid`` that was ``started`` then still exists, and is no zombie."""
    try:
        fields = procfs.stat_fields(procfs.read_path(f"/proc/{pid}/task/{pid}/stat")) if pid else []
        # Other threads may be left behind a leader that has ended.
        return bool(fields) and int(fields[19]) == started and (fields[0] not in "ZX" or _has_threads(pid))
    except BlockingIOError:
        return True  # Somebody has a lease on that file.
    except OSError:
        return False


def _has_threads(pid: int) -> bool:
    return len(posix.listdir(f"/proc/{pid}/task")) > 1
