"""Readers of the files below /proc: bytes in, plain values out; proc(5).

Files are opened with O_NONBLOCK: then the helper never waits for a process that has a lease on one (F_SETLEASE, fcntl(2)).
"""

import _struct
import posix

from core_helper.crash import Refused

ENVIRON_LIMIT = 1 << 20
MOST_VARIABLES = 8192
AT_SECURE = 23
FILE_LIMIT = 1 << 20
PATH_MAX = 4096  # With the byte that ends a path; limits.h.
MOUNTINFO_LIMIT = 1 << 22  # Some 20,000 mounts; each helper that looks at them has them in memory.


def read(directory: int, name: str, limit: int = FILE_LIMIT) -> bytes:
    """Return at most ``limit`` bytes of the file ``name`` in the opened ``directory``. Raises OSError."""
    descriptor = open_file(directory, name)
    try:
        return read_all(descriptor, limit)
    finally:
        posix.close(descriptor)


def read_path(path: str, limit: int = FILE_LIMIT) -> bytes:
    """Return at most ``limit`` bytes of the file at ``path``. Raises OSError."""
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
    try:
        return read_all(descriptor, limit)
    finally:
        posix.close(descriptor)


def open_file(directory: int, name: str) -> int:
    """Open the file ``name`` in the opened ``directory``, no symbolic link. Raises OSError."""
    return posix.open(name, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC | posix.O_NOFOLLOW, dir_fd=directory)


def open_long(path: bytes, flags: int) -> int:
    """Open a path of any length, in steps: open(2) takes fewer than PATH_MAX bytes at a time. Raises OSError."""
    directory: int | None = None
    try:
        while len(path) >= PATH_MAX:
            end = path.rindex(b"/", 0, PATH_MAX)
            step = posix.open(path[:end], posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=directory)
            if directory is not None:
                posix.close(directory)
            directory, path = step, path[end + 1 :]
        return posix.open(path, flags | posix.O_NONBLOCK | posix.O_CLOEXEC, dir_fd=directory)
    finally:
        if directory is not None:
            posix.close(directory)


def refuse_lease(error: OSError) -> None:
    """Raise Refused where ``error`` says that a process has a lease on a file: the file is there, and cannot be read now."""
    if isinstance(error, BlockingIOError):
        raise Refused(f"a process has a lease on {error.filename!r}, so it cannot be read: see /proc/locks")


def read_all(descriptor: int, limit: int = FILE_LIMIT) -> bytes:
    """Return at most ``limit`` bytes of the opened file. Raises OSError."""
    parts = []
    while limit > 0:
        part = posix.read(descriptor, min(limit, 65536))
        if not part:
            break
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def path_of(descriptor: int) -> bytes:
    """Return the path of the opened ``descriptor``, in its own mount namespace; proc_pid_fd(5)."""
    return posix.readlink(b"/proc/self/fd/%d" % descriptor)


def task_of(pid: int, tid: "int | None") -> str:
    """Return the path of the faulting thread's directory: of ``tid``, or else of the first thread that still has namespaces.

    The leader may have exited; then it has no namespaces any more.
    """
    if tid is not None:
        return f"/proc/{pid}/task/{tid}"
    leader = f"/proc/{pid}/task/{pid}"
    try:
        posix.readlink(f"{leader}/ns/mnt")
        return leader
    except OSError:
        pass
    try:
        names = posix.listdir(f"/proc/{pid}/task")
    except OSError:
        names = []  # Gone altogether.
    for name in names:
        try:
            posix.readlink(f"/proc/{pid}/task/{name}/ns/mnt")
            return f"/proc/{pid}/task/{name}"
        except OSError:
            continue
    return leader


def parse_status(text: bytes) -> "dict[str, str]":
    """Return the fields of /proc/PID/status. The name, which the process chose, is escaped by the kernel."""
    fields = {}
    for line in text.decode("latin-1").split("\n"):
        key, colon, value = line.partition(":")
        if colon:
            fields[key] = value.strip()
    return fields


def stat_fields(text: bytes) -> "list[str]":
    """Return the fields of /proc/PID/stat from the third (state) on; the second may hold blanks and parentheses."""
    return text.rpartition(b")")[2].decode("latin-1").split()


def parse_limits(text: bytes) -> "dict[str, tuple[int, int]]":
    """Return soft and hard limit of each row of /proc/PID/limits by its name; -1 stands for unlimited."""
    limits = {}
    for line in text.decode("latin-1").split("\n")[1:]:
        # Columns of 25, 20 and 20 characters, each followed by a blank: fs/proc/base.c, proc_pid_limits.
        values = line[26:].split()
        if len(values) >= 2:
            soft, hard = (-1 if value == "unlimited" else int(value) for value in values[:2])
            limits[line[:26].strip()] = (soft, hard)
    return limits


def parse_cgroup(text: bytes) -> "list[tuple[bytes, bytes]]":
    """Return (controllers, path) of each hierarchy in /proc/PID/cgroup; no controllers: the unified one; cgroups(7)."""
    cgroups = []
    for line in text.split(b"\n"):
        parts = line.split(b":", 2)
        if len(parts) == 3:
            cgroups.append((parts[1], parts[2]))
    return cgroups


def parse_environ(text: bytes) -> "tuple[dict[bytes, bytes], bool]":
    """Return the variables of /proc/PID/environ and whether some were left out.

    The process may have written anything there. Strings without ``=`` are no variables. A string that is longer than execve(2)
    takes (MAX_ARG_STRLEN) would keep the delegate from starting. Past 1 MiB a string may have been cut off.
    """
    cut = len(text) > ENVIRON_LIMIT
    # Bounded before they are split: each variable takes memory of the host's, however short it is.
    strings = text[:ENVIRON_LIMIT].split(b"\0", MOST_VARIABLES)
    if cut or len(strings) > MOST_VARIABLES:
        cut = bool(strings.pop()) or cut
    variables: dict[bytes, bytes] = {}
    for string in strings:
        name, equals, value = string.partition(b"=")
        if not equals or not name:
            continue
        if len(string) >= 131072:
            cut = True
            continue
        variables.setdefault(name, value)
    return variables, cut


def was_overwritten(text: bytes) -> bool:
    """Tell whether the process has written a title over the variables of /proc/PID/environ, as by setproctitle(3).

    Then it begins within such a title, or with the zeros or blanks behind one, and not with NAME=VALUE.
    """
    return bool(text) and b"=" not in text.split(b"\0", 1)[0]


def parse_processors(text: str) -> "set[int]":
    """Return the processors of a list like "0-3,8", as /proc/PID/status has it in Cpus_allowed_list; proc_pid_status(5)."""
    processors: set[int] = set()
    for part in text.split(","):
        first, _dash, last = part.partition("-")
        if first.isdigit():
            processors.update(range(int(first), int(last or first) + 1))
    return processors


def parse_auxv(auxv: bytes) -> "tuple[int, dict[int, int]]":
    """Return the bytes of a word in /proc/PID/auxv, and the values by their types (AT_*); getauxval(3).

    Raises ValueError where that is no vector.
    """
    for size, kind in ((8, "=QQ"), (4, "=II")):
        usable = auxv[: len(auxv) // (2 * size) * 2 * size]
        vector = dict(_struct.iter_unpack(kind, usable))
        # In the vector of a 32-bit process, read as 64 bits, type and value fall together into one huge number.
        if AT_SECURE in vector and max(vector) < 1 << 16:
            return size, vector
    raise ValueError("no auxiliary vector")


def is_process_of(pidfd: int, pid: int) -> bool:
    """Tell whether ``pid`` is still the number of the process of an opened pidfd: nobody else can have it then."""
    return shows_process(read_path(f"/proc/self/fdinfo/{pidfd}"), pid)


def shows_process(fdinfo: bytes, pid: int) -> bool:
    """Tell whether this /proc/PID/fdinfo is that of a pidfd of the process ``pid``, which still has that number."""
    return parse_status(fdinfo).get("Pid") == str(pid)


def still_dumping(status: bytes) -> bool:
    """Tell whether the process of this /proc/PID/status is being dumped; the kernel escapes the name that it chose."""
    return b"\nCoreDumping:\t1\n" in status


def is_younger(stat: bytes, own_stat: bytes) -> bool:
    """Tell from two /proc/PID/stat whether the first process was started after the second; proc_pid_stat(5), starttime."""
    return int(stat_fields(stat)[19]) > int(stat_fields(own_stat)[19])
