"""The program that the host lends to a container without a delegate: executed from a copy in memory that nobody can change.

So the container never has a file of the host open, not even as /proc/PID/exe. Each crash has a copy of its own, which counts as
memory of the container. Imported only where it may be needed.
"""

import posix

from core_helper import control_groups, linux, procfs
from core_helper.program import ELF, FIRST_PAGE, Absent, Program, Stopped, loader_of
from core_helper.words import expand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.process import FaultingProcess

# What such a program needs beside its copy: a client that sends a core has buffers.
WORKING_MEMORY = 32 << 20
LARGEST_STEP = 1 << 30


class Lent:
    """What the host lends; the words of its command line may name variables, which are known only in the joining process."""

    def __init__(self, values: "dict[str, bytes]") -> None:
        """Take what the specifiers in the words stand for."""
        self.values = values

    def fill_in(self, words: "list[bytes]", environment: "dict[bytes, bytes]") -> "list[bytes]":
        """Return the words for a process of that ``environment``. Raises Absent where it lacks a variable that they name."""

        def variable(name: bytes, prefix: bytes) -> bytes:
            value = environment.get(name, b"")
            if not value or not value.startswith(prefix):
                beginning = f" that begins with {_name(prefix)}" if prefix else ""
                raise Absent(
                    f"lent {_name(words[0])}: the process has no {_name(name)}{beginning}: give one to the container"
                )
            return value[len(prefix) :]

        return [expand(word, self.values, variable) for word in words]

    def copy(self, words: "list[bytes]", process: "FaultingProcess") -> Program:
        """Return a copy of the program for the container of ``process``. Raises Stopped where there can be none."""
        return Copy(words, control_groups.memory_left(process.cgroups))


class Copy(Program):
    """A program of the host as a file in memory, sealed: nobody can write to it, for this crash or another one."""

    def __init__(self, words: "list[bytes]", room: "int | None") -> None:
        """Copy the program of the command line ``words``; ``room`` is the memory that there is for it, None for any.

        Raises Stopped with a text for the log where that program must not be lent.
        """
        self.arguments = list(words)
        self.name = f"lent {_name(words[0])}"
        try:
            # Without symbolic links, so that these are the directories that count.
            file = linux.openat2(words[0], posix.O_RDONLY | posix.O_NONBLOCK, resolve=linux.RESOLVE_NO_SYMLINKS)
        except OSError as error:
            remedy = "put it there" if error.errno == linux.ENOENT else "name a file there, without symbolic links"
            raise Stopped(f"{self.name}: {error.strerror} on the host: {remedy}") from None
        try:
            size = posix.fstat(file).st_size
            problem = self._problem_of(file) or self._problem_of_size(size, room)
            if problem:
                raise Stopped(f"{self.name}: {problem}")
            self.descriptor = self._copy_of(file, size)
        except OSError as error:
            raise Stopped(f"{self.name}: cannot be copied into memory: {error.strerror}") from None
        finally:
            posix.close(file)

    def _problem_of(self, file: int) -> str:
        """Return why the opened program of the host must not be lent, "" if it may be."""
        found = posix.fstat(file)
        if found.st_mode & linux.S_IFMT != linux.S_IFREG or not found.st_mode & 0o111:
            return "not an executable file: chmod 0755"
        changeable = changeable_part(procfs.path_of(file))
        if changeable:
            return f"others than root can change {_name(changeable)}: chown root and chmod go-w"
        self.begin = posix.pread(file, FIRST_PAGE, 0)
        if self.begin[:4] != ELF or loader_of(self.begin):
            return "not a static program: lend one that is linked statically, as the container may have no libraries"
        return ""

    @staticmethod
    def _problem_of_size(size: int, room: "int | None") -> str:
        if room is None or room >= size + WORKING_MEMORY:
            return ""
        return (
            f"it takes {(size + WORKING_MEMORY) >> 20} MiB of the memory of the container, which has {max(room, 0) >> 20} MiB"
            " left: raise that limit, or lend a smaller program"
        )

    def _copy_of(self, file: int, size: int) -> int:
        """Return an opened copy of so many bytes of that ``file``."""
        copy = linux.memory_file(_name(self.arguments[0].rpartition(b"/")[2])[:200])
        position = 0
        while position < size:
            moved = posix.sendfile(copy, file, position, min(size - position, LARGEST_STEP))
            if not moved:
                raise Stopped(f"{self.name}: it has just been changed")
            position += moved
        posix.fchmod(copy, 0o555)
        linux.seal(copy)
        return copy


def changeable_part(path: bytes) -> bytes:
    """Return which part of ``path``, in which there is no link, others than root could change; b"" if none.

    A directory that all may write is harmless if it is sticky: then nobody can replace what root has in it.
    """
    while True:
        found = posix.stat(path or b"/")
        kept = found.st_mode & linux.S_IFMT == linux.S_IFDIR and found.st_mode & linux.S_ISVTX
        writable = found.st_mode & 0o002 or (found.st_mode & 0o020 and found.st_gid != 0)
        if found.st_uid != 0 or (writable and not kept):
            return path or b"/"
        if path in (b"", b"/"):
            return b""
        path = path.rpartition(b"/")[0]


def _name(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
