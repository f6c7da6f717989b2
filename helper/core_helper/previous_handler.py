"""The previous handler of the host: executed in the helper's place, as the kernel would have started it.

Imported only where it may be needed, so that it costs the crashes of containers nothing. Follows fs/coredump.c of the kernel,
format_corename and umh_coredump_setup, and kernel/umh.c.
"""

import posix

from core_helper import linux, procfs, start
from core_helper.configuration import CONFIGURATION
from core_helper.words import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.crash import Crash
    from core_helper.log import Log
    from core_helper.process import FaultingProcess

PIDFD = 3  # COREDUMP_PIDFD_NUMBER
UMASK = 0o022  # Of whatever the kernel starts: init_fs in fs/fs_struct.c.
UNLIMITED = b"18446744073709551615"


def execute(core: int, crash: "Crash", process: "FaultingProcess", words: "list[bytes]", log: "Log") -> None:
    """Become the handler ``words``. It reads the pipe ``core`` as if the kernel had started it: nothing was read there yet.

    Returns only if that fails; then the log says why, and what to do.
    """
    values = specifiers(crash, process)
    arguments = [expand(word, values) for word in words]
    problem = _unusable(arguments[0])
    if problem is None:
        # Logged before, because this program does not return from a successful execution.
        log.lines.pass_to_handler(crash, process, arguments[0])
        asked = any(expand(word, {b"F": b"3"}) != expand(word, {}) for word in words)
        problem = _execute(core, arguments, crash.pidfd if asked else None)
    log.lines.warning(
        f"not passed to the previous handler {shown(arguments[0])}: {problem}: install it again, or correct"
        f" DOCKERCOREHELPER_CHAIN in {CONFIGURATION}; pid={crash.pid} is handled without it"
    )


def _unusable(program: bytes) -> "str | None":
    """Return why ``program`` cannot be executed, None if it seems that it can."""
    try:
        found = posix.stat(program)
    except OSError as error:
        return error.strerror
    if found.st_mode & linux.S_IFMT != linux.S_IFREG or not found.st_mode & 0o111:
        return "not an executable file"
    return None


def _execute(core: int, arguments: "list[bytes]", pidfd: "int | None") -> str:
    """Execute a program with all that the kernel gives and nothing else; return why that failed.

    The core is on standard input, and standard output and standard error are closed. Not touched are the root directory, and
    RLIMIT_CORE = 1, by which the kernel knows a handler whose own crash it must not handle. All other descriptors are
    close-on-exec.
    """
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)
    mask = posix.umask(UMASK)
    start.reset_signals()
    saved = [posix.dup(descriptor) for descriptor in (0, 1, 2)]
    posix.dup2(core, 0)
    for descriptor in (1, 2):
        posix.close(descriptor)
    if pidfd is not None:
        if pidfd == PIDFD:
            posix.set_inheritable(pidfd, True)
        else:
            posix.dup2(pidfd, PIDFD)
    problem = ""
    try:
        posix.execve(arguments[0], arguments, {})
    except OSError as error:
        problem = str(error.strerror)
    if pidfd is not None:
        posix.set_inheritable(PIDFD, False)
    for descriptor, copy in enumerate(saved):
        posix.dup2(copy, descriptor)
        posix.close(copy)
    start.ignore_signals_of_python()
    posix.umask(mask)
    return problem


def specifiers(crash: "Crash", process: "FaultingProcess") -> "dict[bytes, bytes]":
    """Return what each specifier of core(5) stands for, as the kernel itself writes it; empty where the kernel did not say.

    Those of deliver.py are for the delegate: fewer, and without the kernel's escapes.
    """
    known = {
        b"d": crash.dumpable,
        b"s": crash.signal,
        b"F": None if crash.pidfd is None else PIDFD,
    }
    path = path_of_program(process)
    return {
        b"%": b"%",
        b"P": b"%d" % crash.pid,
        b"p": b"%d" % process.pid,
        b"I": b"%d" % process.host_tid,
        b"i": b"%d" % process.tid,
        b"u": b"%d" % crash.uid,
        b"g": b"%d" % crash.gid,
        b"t": b"%d" % crash.time,
        b"c": _core_limit(crash, process),
        b"C": b"%d" % process.cpu,
        b"h": escape(process.hostname),
        b"e": escape(process.comm),
        b"E": escape(path),
        b"f": escape(path.rpartition(b"/")[2]),
        **{name: b"" if value is None else b"%d" % value for name, value in known.items()},
    }


def _core_limit(crash: "Crash", process: "FaultingProcess") -> bytes:
    soft = process.limits.get("Max core file size", (-1, -1))[0] if crash.limit is None else crash.limit
    return UNLIMITED if soft == -1 else b"%d" % soft


def path_of_root(process: "FaultingProcess") -> bytes:
    """Return the path of the root directory of the process, seen from that of its mount namespace."""
    return procfs.path_of(process.root)


def path_of_program(process: "FaultingProcess") -> bytes:
    """Return the path of the program as the kernel writes it: seen from the root directory of the process."""
    if not process.exe:
        return process.comm + b" (path unknown)"
    root = path_of_root(process).rstrip(b"/")
    return process.exe[len(root) :] if process.exe.startswith(root + b"/") else process.exe


def escape(name: bytes) -> bytes:
    """Return ``name``, which the process chose, as one component of a path; cn_esc_printf in fs/coredump.c."""
    if name in (b".", b".."):
        name = b"!" + name[1:]
    return (name or b"!").replace(b"/", b"!")


def expand(word: bytes, values: "dict[bytes, bytes]") -> bytes:
    """Replace each %X of ``word`` by ``values[X]``. What the kernel does not know vanishes, and so does a % at the end."""
    parts = []
    position = 0
    while position < len(word):
        if word[position : position + 1] == b"%":
            parts.append(values.get(word[position + 1 : position + 2], b""))
            position += 2
        else:
            parts.append(word[position : position + 1])
            position += 1
    return b"".join(parts)
