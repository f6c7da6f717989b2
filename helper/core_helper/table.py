"""Tables of root's in /run, by which helpers that run at the same time count together: files of records of one size."""

import fcntl
import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _struct
    from typing import Callable, Optional, Tuple

    Values = Tuple[float, ...]


def open_file(path: str) -> int:
    """Open the file, which is created if it is not there. Raises OSError, also where it is a link."""
    return posix.open(path, posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600)


def change(
    path: str,
    record: "_struct.Struct",
    rows: int,
    key: "Tuple[bytes, ...]",
    new: "Values",
    step: "Callable[[Values], Optional[Values]]",
) -> bool:
    """Have ``step`` change the row of ``key`` while nobody else may, and tell whether the table can be used.

    A ``record`` has numbers, of which the first is a time, and then the key. ``step`` is given the numbers, and returns what
    they become, None if they stay. Who has no row begins with the numbers ``new``, in the row whose time is the oldest.
    ``step`` itself asks for the time: whoever waits for the lock brings an older one.
    """
    try:
        file = open_file(path)
    except OSError:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
        size = rows * record.size
        table = list(record.iter_unpack(posix.pread(file, size, 0).ljust(size, b"\0")))
        index = next((index for index, row in enumerate(table) if row[-len(key) :] == key), None)
        if index is None:
            index = min(range(rows), key=lambda index: table[index][0])
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
