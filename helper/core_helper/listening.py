"""The socket at which the server waits: one that systemd has opened, or one of its own, for root alone."""

import _socket
import fcntl
import posix

from core_helper import table

BACKLOG = 4096  # Crashes that were not accepted yet; the kernel takes net.core.somaxconn if that is lower.
FIRST_OF_SYSTEMD = 3  # sd_listen_fds(3)
ABOVE = 10  # Descriptors that stay while others are put where they must be.


class Unusable(Exception):
    """The server cannot start. The text says why."""


def inherited_socket() -> "_socket.socket | None":
    """Return the socket that systemd has opened, None if there is none; sd_listen_fds(3). Raises Unusable."""
    pid, count = (posix.environ.pop(variable, b"") for variable in (b"LISTEN_PID", b"LISTEN_FDS"))
    if pid != b"%d" % posix.getpid() or count in (b"", b"0"):
        return None
    if count != b"1":
        raise Unusable("systemd gives more than one socket")
    listener = _socket.socket(fileno=fcntl.fcntl(FIRST_OF_SYSTEMD, fcntl.F_DUPFD_CLOEXEC, ABOVE))
    if listener.family != _socket.AF_UNIX or listener.type != _socket.SOCK_STREAM:
        raise Unusable("what systemd gives is no stream socket of AF_UNIX")
    return listener


def listen(path: str) -> _socket.socket:
    """Return a socket at ``path`` that only root may connect to. Raises Unusable where another server is there, or OSError."""
    directory = path.rpartition("/")[0] or "/"
    try:
        posix.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    found = posix.stat(directory)
    if found.st_uid != 0 or found.st_mode & 0o022:
        raise Unusable(f"{directory}: only root may own and write it")
    if not _lock(table.open_file(f"{path}.lock")):
        raise Unusable("another server is there")
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass
    posix.umask(0o177)
    listener.bind(path)
    posix.umask(0o077)
    listener.listen(BACKLOG)
    return listener


def _lock(file: int) -> bool:
    """Lock the opened file as long as this process lives, and tell whether no other server has.

    The workers do not inherit the lock. A server locks the file for writing, by fcntl_locking(2). A process that can only read
    the file, as in a container that has the host's /run mounted read-only, can lock it for reading, and by flock(2), as long as
    it likes: that is no server.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        pass
    try:
        return not table.is_locked(file, 0, 0)
    except OSError:
        return True  # By a reader. Without the lock, a second server is not noticed.
