"""kernel.core_pattern: that of the server's socket while the server is there, and the previous one when it has ended.

The previous pattern is in a file beside the socket, which is written first. So a server that is killed leaves it to the next
server at that socket, and to ``docker_core_helper serve --restore``.
"""

import posix

from core_helper import configuration, linux, procfs
from core_helper.crash import Refused

FILE = "/proc/sys/kernel/core_pattern"
MODES = "/proc/sys/kernel/core_modes"  # Since Linux 6.17; one word a line.
LONGEST = 127  # The kernel cuts off what is longer, and says nothing; CORENAME_MAX_SIZE.
KEPT = ".previous"  # The end of the name of that file.


class Failed(Exception):
    """The pattern is not what it has to be. The text says why, and what to do."""


class Pattern:
    """The pattern of the server at the socket ``path``."""

    def __init__(self, path: str) -> None:
        """Take the path of the socket."""
        self.ours = b"@@" + path.encode("utf-8", "surrogateescape")
        self.kept = f"{path}{KEPT}"

    def install(self) -> "bytes | None":
        """Set ours, and return the pattern that ``restore`` will set: that which is in force now.

        If a server that was killed has left ours in force, it is the one that this server had found, None where that is not
        known any more. Raises Failed or OSError; then nothing has changed.
        """
        if b"socket" not in _modes():
            raise Failed("this kernel has no core-dump socket: it takes Linux 6.17")
        self._check_path()
        before = in_force()
        if before == self.ours:
            try:
                return self._previous()
            except Failed:
                return None
        if not _is_sane(before):
            raise Failed(f"{FILE} holds {before!r}, which could not be given back later: correct that first")
        self._keep(before)
        try:
            write(self.ours)
        except (Failed, OSError):
            write(before)
            posix.unlink(self.kept)
            raise
        return before

    def _check_path(self) -> None:
        """Raise Failed where the kernel would not reach the socket, or others than root could put another one there."""
        path = self.ours[2:]
        if not _is_sane(self.ours) or b" " in path:
            raise Failed(f"{path!r} cannot stand in {FILE}: name another path by --socket")
        try:
            posix.close(linux.openat2(path, posix.O_PATH, resolve=linux.RESOLVE_NO_SYMLINKS))
        except OSError as error:
            remedy = "no part of the path may be a symbolic link"
            raise Failed(f"the kernel does not reach the socket at {path!r}: {error.strerror}: {remedy}") from None
        self._check_directory()

    def _check_directory(self) -> None:
        directory = self.kept.rpartition("/")[0] or "/"
        found = posix.stat(directory)
        if found.st_uid != 0 or found.st_mode & 0o022:
            raise Failed(f"{directory}: only root may own and write it")

    def _keep(self, before: bytes) -> None:
        """Write the file, or replace it: at no time there is a part of it only."""
        part = f"{self.kept}.part"
        try:
            posix.unlink(part)
        except FileNotFoundError:
            pass
        file = posix.open(
            part, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600
        )
        try:
            posix.write(file, before + b"\n")
        finally:
            posix.close(file)
        posix.rename(part, self.kept)

    def restore(self) -> bool:
        """Set the previous pattern, and tell whether that was to be done: not where somebody else has set another one.

        Raises Failed or OSError where it is not known, or cannot be set.
        """
        found = in_force() == self.ours
        if found:
            write(self._previous())
        try:
            posix.unlink(self.kept)
        except FileNotFoundError:
            pass
        return found

    def _previous(self) -> bytes:
        """Return the previous pattern. Raises Failed where nobody but root can be trusted to have written it."""
        remedy = "set the pattern that the host shall have, as by sysctl --system"
        try:
            self._check_directory()
            file = configuration.open_after_lease(self.kept, 0o077, posix.O_NOFOLLOW)
        except FileNotFoundError:
            raise Failed(f"the previous pattern is not known, as {self.kept} is missing: {remedy}") from None
        except Refused as error:
            raise Failed(f"{error}: {remedy}") from None
        except (configuration.NotOfRoot, OSError):
            raise Failed(f"{self.kept} is not a file that only root may read and write: {remedy}") from None
        try:
            line, end, more = posix.read(file, LONGEST + 2).partition(b"\n")
        finally:
            posix.close(file)
        if not end or more or not _is_sane(line) or line == self.ours:
            raise Failed(f"{self.kept} does not hold a pattern: {remedy}")
        return line


def _modes() -> "list[bytes]":
    """Return what the kernel may do with a core; it does not say so before Linux 6.17."""
    try:
        return procfs.read_path(MODES).split()
    except FileNotFoundError:
        return []


def _is_sane(line: bytes) -> bool:
    """Tell whether the kernel takes the line as it is."""
    return len(line) <= LONGEST and all(byte >= 32 and byte != 127 for byte in line)


def in_force() -> bytes:
    """Return the pattern that is in force. Raises OSError."""
    return procfs.read_path(FILE).partition(b"\n")[0]


def write(line: bytes) -> None:
    """Set the pattern. Raises OSError, or Failed where the kernel has taken another one."""
    file = posix.open(FILE, posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        # An empty line is a pattern, too.
        posix.write(file, line + b"\n")
    finally:
        posix.close(file)
    found = in_force()
    if found != line:
        raise Failed(f"{FILE} was set to {line!r}, and holds {found!r}")
