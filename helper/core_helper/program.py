"""The program that becomes the delegate: opened in the container, and executed by its descriptor; execveat(2)."""

import posix

from core_helper import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.status_pipe import StatusPipe

# fs/exec.c: the kernel reads BINPRM_BUF_SIZE bytes of a script, and follows at most five scripts that name scripts.
SCRIPT_LINE = 256
SCRIPT_DEPTH = 5
# Bytes of a program, in which linkers put its program headers and the path of its loader.
FIRST_PAGE = 4096
ELF = b"\x7fELF"
PT_INTERP = 3
OVERFLOW_UID = 65534  # user_namespaces(7)


class Stopped(Exception):
    """A step failed, and so the delegation; the text says which object, and why."""


class Absent(Stopped):
    """The container has no such delegate; that is no failure."""


class Program:
    """The delegate as an opened file. The interpreters of a script are opened here, too, by the same rules.

    Executing a script by its path would have the kernel open the interpreter that its first line names:
    ``#!/proc/self/exe`` would run the host's Python inside the container (CVE-2019-5736).
    """

    def __init__(
        self, words: "list[bytes]", forbidden: "tuple[int, int] | None", descriptors: int, root: bytes = b"/"
    ) -> None:
        """Open the program of the command line ``words``.

        Raises Stopped with a text for the log when it cannot be executed. ``forbidden`` is device and inode of a file that
        must not be executed whatever its name is, ``descriptors`` the opened /proc/self/fd of the host. ``root`` is the
        path of the root directory. Unless that is /, nobody but root and the calling user may be able to change the program.
        """
        self.arguments = list(words)
        path = words[0]
        for _depth in range(SCRIPT_DEPTH + 1):
            try:
                self.descriptor = self._open(path, forbidden)
            except FileNotFoundError:
                where = "on this host" if forbidden is None else "in the container"
                if root != b"/":
                    where += f", below {_name(root)}, which the process has made its root directory"
                if path is words[0]:
                    raise Absent(f"{_name(path)}: No such file {where}: put the delegate there") from None
                remedy = "save it with Unix line ends" if path.endswith(b"\r") else "install that one there"
                text = f"{_name(words[0])}: its interpreter {_name(path)}: No such file {where}: {remedy}"
                raise Stopped(text) from None
            if root != b"/":
                refuse_changeable(path, posix.readlink(str(self.descriptor), dir_fd=descriptors))
            self.begin = line = self._first_page(descriptors)
            if not line.startswith(b"#!"):
                return
            posix.close(self.descriptor)
            interpreter = parse_script_line(line)
            if interpreter is None:
                raise Stopped(
                    f"{_name(path)}: its #! line names no interpreter, or is longer than {SCRIPT_LINE - 2} bytes"
                )
            # As binfmt_script does: interpreter, its one argument, the script, the script's own arguments.
            self.arguments = [*interpreter, path, *self.arguments[1:]]
            if not interpreter[0].startswith(b"/"):
                raise Stopped(f"{_name(path)}: interpreter {_name(interpreter[0])} is not an absolute path")
            path = interpreter[0]
        raise Stopped(f"{_name(words[0])}: more than {SCRIPT_DEPTH} scripts name each other as interpreter")

    @staticmethod
    def _open(path: bytes, forbidden: "tuple[int, int] | None") -> int:
        try:
            # O_PATH: opening a FIFO would wait, opening a device may have effects.
            descriptor = linux.openat2(path, posix.O_PATH)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Stopped(f"{_name(path)}: {error.strerror}") from None
        found = posix.fstat(descriptor)
        if found.st_mode & linux.S_IFMT != linux.S_IFREG:
            raise Stopped(f"{_name(path)}: not a regular file")
        if identity(found) == forbidden:
            raise Stopped(f"{_name(path)}: is the helper's own interpreter")
        if not found.st_mode & 0o111:
            raise Stopped(f"{_name(path)}: not executable; chmod 0755")
        return descriptor

    def _first_page(self, descriptors: int) -> bytes:
        """Return the first bytes of the program, b"" where it may be executed but not read: then it is no script."""
        try:
            # Opened again by its descriptor: its path may lead to something else by now.
            readable = posix.open(str(self.descriptor), posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=descriptors)
        except OSError:
            return b""
        try:
            return posix.read(readable, FIRST_PAGE)
        finally:
            posix.close(readable)

    def prepare(self, environment: "dict[bytes, bytes]") -> None:
        """Put all that ``execute`` needs into memory: the limits that are set before that may leave no more memory."""
        self.execution = linux.Execution(self.descriptor, self.arguments, environment)
        facts = {name: value for name, value in environment.items() if name.startswith(b"CORE_")}
        self.last_resort = linux.Execution(self.descriptor, self.arguments, facts)

    def execute(self, status: "StatusPipe") -> None:
        """Become the program, by its descriptor; execveat(2). Raises OSError or Stopped when the kernel will not."""
        # The two descriptors that stay are close-on-exec. The kernel executes no script by such a descriptor. So a file that
        # has become a script since its first line was read cannot make the kernel open /proc/self/exe (fs/binfmt_script.c,
        # BINPRM_FLAGS_PATH_INACCESSIBLE).
        linux.close_all_but({self.descriptor, status.descriptor})
        try:
            self.execution.run()
        except OSError as error:
            if error.errno != linux.E2BIG:
                reason = error.strerror
                if error.errno == linux.ENOENT:
                    # The program itself is open, so it is the loader that is missing. Or the program has become a script; see
                    # above.
                    loader = _name(b" " + loader_of(self.begin)).rstrip()
                    reason = (
                        f"its dynamic loader{loader} is not there: install that one, or link the program statically"
                    )
                raise Stopped(f"{_name(self.arguments[0])}: {reason}") from None
        status.send("note", "environment too long for execve(2): only CORE_* passed on")
        self.last_resort.run()


def loader_of(begin: bytes) -> bytes:
    """Return the path of the dynamic loader that a program of these first bytes names, b"" where they do not say; elf(5)."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(begin[at : at + size], "big" if begin[5:6] == b"\2" else "little")

    is_long = begin[4:5] == b"\2"  # EI_CLASS: 64 bits.
    word, phoff, phentsize, p_offset, p_filesz = (8, 32, 54, 8, 32) if is_long else (4, 28, 42, 4, 16)
    if begin[:4] != ELF:
        return b""
    first, size, count = number(phoff, word), number(phentsize, 2), number(phentsize + 2, 2)
    for header in range(first, min(first + size * count, len(begin)), size or FIRST_PAGE):
        if number(header, 4) == PT_INTERP:
            start = number(header + p_offset, word)
            # The string ends in a NUL.
            return begin[start : start + number(header + p_filesz, word)].partition(b"\0")[0]
    return b""


def refuse_changeable(name: bytes, path: str) -> None:
    """Raise Stopped where others than root and our user may change the file ``path``, or replace it; no part is a link."""
    # Where the user namespace has no number for our user, or for the owner, both look like this one.
    trusted = {0, posix.getuid()} - {OVERFLOW_UID}
    while True:
        found = posix.stat(path)
        if found.st_uid not in trusted or found.st_mode & 0o022:
            what = f"{path}: another user may change it, and the process has changed its root directory"
            raise Stopped(f"{_name(name)}: {what}: chown root and chmod go-w")
        if path == "/":
            return
        path = path.rpartition("/")[0] or "/"


def parse_script_line(line: bytes) -> "list[bytes] | None":
    """Return interpreter and, if any, its one argument from the first bytes of a script; None where there is none.

    Step by step what fs/binfmt_script.c, load_script, does with its buffer: an interpreter that the end of the buffer may have
    cut is none, an argument may be cut.
    """
    buffer = bytearray(line[:SCRIPT_LINE].ljust(SCRIPT_LINE, b"\0"))
    end = buffer.find(b"\n")
    if end < 0:
        end = SCRIPT_LINE - 1
        name = _find(buffer, 2, end, blank=False)
        if name is None or _find(buffer, name, end, blank=True) is None:
            return None
    while buffer[end - 1] in b" \t":
        end -= 1
    name = _find(buffer, 2, end, blank=False)
    if name is None or name == end:
        return None
    separator = _find(buffer, name, end, blank=True)
    argument = None
    if separator is not None and buffer[separator] != 0:
        argument = _find(buffer, separator, end, blank=False)
    buffer[end] = 0
    if separator is None or argument is None:
        return [_string(buffer, name)]
    buffer[separator] = 0
    return [_string(buffer, name), _string(buffer, argument)]


def _find(buffer: bytearray, first: int, last: int, blank: bool) -> "int | None":
    """Return where between ``first`` and ``last``, both included, a blank or NUL stands, or else the first non-blank."""
    for position in range(first, last + 1):
        if (buffer[position] in b" \t\0") if blank else (buffer[position] not in b" \t"):
            return position
    return None


def _string(buffer: bytearray, first: int) -> bytes:
    """Return the string from ``first`` to the next NUL."""
    return bytes(buffer[first:].partition(b"\0")[0])


def identity(found: posix.stat_result) -> "tuple[int, int]":
    """Return device and inode, which no other file has at the same time."""
    return found.st_dev, found.st_ino


def _name(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
