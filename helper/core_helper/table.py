"""Tables of root's in /run, by which helpers that run at the same time count together: files of records of one size."""

import _struct
import fcntl
import posix
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional, Tuple

    Values = Tuple[float, ...]


# struct flock: kind, whence, start, length, process; fcntl_locking(2).
LOCK = _struct.Struct("@hhqqi")
PATIENCE = 10.0  # Seconds. A helper has a lock for less than a millisecond.
# Hundreds of helpers that look all the time would keep each other from the processor.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.064
EAGAIN = 11


def open_file(path: str) -> int:
    """Open the file, which is created if it is not there. Raises OSError, also where it is a link, or somebody has a lease."""
    return posix.open(path, posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC, 0o600)


def lock(file: int, start: int = 0, length: int = 0, patience: float = PATIENCE) -> None:
    """Lock bytes of an opened table, all of them by default, and wait while another helper has them; fcntl_locking(2).

    Raises OSError where somebody else has them. Helpers lock for writing. A process that can only read a table, as in a
    container that has the host's /run mounted read-only, can lock it for reading, as long as it likes: no helper waits for it.
    """
    limit, pause = time.monotonic() + patience, SHORTEST_PAUSE
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            return
        except BlockingIOError:
            pass
        if not is_locked(file, start, length):
            continue  # Not any more.
        if time.monotonic() > limit:
            raise OSError(EAGAIN, f"another helper has had it locked for {patience:.0f} seconds")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def is_locked(file: int, start: int, length: int) -> bool:
    """Tell whether another helper has a lock on bytes of an opened table. Raises OSError where somebody else has one."""
    wanted = LOCK.pack(fcntl.F_WRLCK, 0, start, length, 0)
    kind, _whence, _start, _length, pid = LOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, wanted))
    if kind == fcntl.F_RDLCK:
        raise OSError(EAGAIN, f"{f'process {pid}' if pid > 0 else 'a process'} has it locked, and is no helper")
    return bool(kind != fcntl.F_UNLCK)


def change(
    path: str,
    record: "_struct.Struct",
    rows: int,
    key: "Tuple[bytes, ...]",
    new: "Values",
    step: "Callable[[Values], Optional[Values]]",
    patience: float = PATIENCE,
) -> bool:
    """Have ``step`` change the row of ``key`` while nobody else may, and tell whether the table can be used.

    A ``record`` has numbers, of which the first is a time, and then the key. ``step`` is given the numbers, and returns what
    they become, None if they stay. A key without a row begins with the numbers ``new``. If no row is empty, that is in place of
    a row of those whose first part of the key has the most rows: the one whose time is the oldest. So nobody who makes many
    keys has the rows of others. ``step`` itself asks for the time: one from before the wait for the lock would be too old.
    """
    try:
        file = open_file(path)
    except OSError:
        return False
    try:
        lock(file, patience=patience)
        size = rows * record.size
        table = list(record.iter_unpack(posix.pread(file, size, 0).ljust(size, b"\0")))
        index = next((index for index, row in enumerate(table) if row[-len(key) :] == key), None)
        if index is None:
            of_whom = [row[-len(key)] for row in table]
            number: dict[bytes, int] = {}
            for whose in of_whom:
                number[whose] = number.get(whose, 0) + 1
            number[bytes(len(key[0]))] = rows + 1  # Nobody's.
            index = min(range(rows), key=lambda index: (-number[of_whom[index]], table[index][0]))
            values = step(new)
        else:
            values = step(table[index][: -len(key)])
        if values is not None:
            posix.pwrite(file, record.pack(*values, *key), index * record.size)
        return True
    except OSError:
        return False
    finally:
        posix.close(file)
