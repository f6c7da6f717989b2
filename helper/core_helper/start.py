"""What the helper does to itself: signals, "dumpable", descriptors, and the file that it is executed from.

Its children reset their signals here, too.
"""

import _signal
import fcntl
import posix
import sys

from core_helper import linux, namespaces, procfs
from core_helper.words import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from core_helper.crash import Crash
    from core_helper.log import Log
    from core_helper.slots import Slot
    from core_helper.source import KernelPipe

UNCHANGEABLE = {_signal.SIGKILL, _signal.SIGSTOP}
ST_RDONLY = 1
# Number of the slot's file, index of the slot, and time of the first start, for the helper after its re-execution.
MARK = b"DOCKERCOREHELPER_RESTARTED"


def reset_signals() -> None:
    """Give every signal its default action, and empty the mask: execve(2) keeps signals that Python or its caller ignores.

    Python has asked the kernel for all actions when it was started, and makes no system call to say what they are.
    """
    for number in _signal.valid_signals() - UNCHANGEABLE:
        if _signal.getsignal(number) != _signal.SIG_DFL:
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])


def ignore_signals_of_python() -> None:
    """Make writing to a closed pipe, or to a file that may not grow, raise an error, as in any Python."""
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_IGN)


def reset_signals_for_python() -> None:
    """Act on signals as Python does, whatever the caller ignored: an ignored SIGCHLD would hide how the delegate ended."""
    reset_signals()
    ignore_signals_of_python()


def hide() -> None:
    """Forbid ptrace(2) and /proc access to this process to everybody who could not trace the host's root anyway."""
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


def occupy_standard_descriptors() -> "tuple[int, int | None]":
    """Move the core from descriptor 0 to a higher one, put /dev/null on 0, 1 and 2, and hide this process.

    Returns the core's descriptor, and a copy of standard error if a person has that open. The kernel starts the helper with
    1 and 2 closed: whatever was opened next would be taken for standard output.
    """
    core = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    terminal = None if sys.stderr is None else fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3)
    occupy_descriptors()
    return core, terminal


def occupy_descriptors() -> None:
    """Put /dev/null on 0, 1 and 2, and hide this process."""
    null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    for descriptor in (0, 1, 2):
        if null != descriptor:
            posix.dup2(null, descriptor)
    if null > 2:
        posix.close(null)
    posix.umask(0o077)
    hide()


def is_exposed(crash: "Crash") -> bool:
    """Tell whether a container could hold the file that this process is executed from, and so overwrite it.

    Between fork and exec, the container can see a process of ours. A process with CAP_SYS_PTRACE in the host's user namespace
    may open the /proc/PID/exe of ours, and write to that file when nobody executes it any more (CVE-2019-5736). On a read-only
    file system it may still have others wait for that file, by a lease. The user namespace of the faulting process says nothing
    about who else is in its pid namespace.
    """
    task = procfs.task_of(crash.pid, crash.tid) + "/ns/"
    return any(posix.stat(task + kind).st_ino != namespaces.of_host(kind) for kind in ("pid", "mnt"))


def protect_interpreter(crash: "Crash", source: "KernelPipe", slot: "Slot", began: float, log: "Log") -> str:
    """Re-execute this program where no container can overwrite its interpreter; return why that cannot be, or ""."""
    try:
        reason = restart_read_only(crash, source, slot, began, log) if is_exposed(crash) else ""
    except OSError as error:
        return f"its namespaces cannot be looked at: {error.strerror}"
    # Where it could not be executed anew, nobody can overwrite it if it lies on a read-only file system.
    return "" if reason and posix.statvfs("/proc/self/exe").f_flag & ST_RDONLY else reason


def restart_read_only(crash: "Crash", source: "KernelPipe", slot: "Slot", began: float, log: "Log") -> str:
    """Re-execute this program, its interpreter from a read-only mount that nobody else has; return why that cannot be.

    The process keeps its slot: the lock belongs to the process, as long as the file stays open.
    """
    kept = [descriptor for descriptor in (slot.file, crash.pidfd) if descriptor is not None]
    mark = b"%d %d %f" % (-1 if slot.file is None else slot.file, slot.index, began)

    def pass_on() -> None:
        for descriptor in kept:
            posix.set_inheritable(descriptor, True)
        posix.dup2(source.descriptor, 0)
        if log.terminal is not None:
            posix.dup2(log.terminal, 2)

    reason = execute_read_only({**posix.environ, MARK: mark}, pass_on)
    # Nobody else must hold the core.
    for descriptor in (0, 2):
        posix.dup2(1, descriptor)
    return reason


def execute_read_only(environment: "dict[bytes, bytes]", pass_on: "Callable[[], None]") -> str:
    """Execute this program again, its interpreter from such a mount; return why that cannot be.

    ``pass_on`` prepares the descriptors that it shall have.
    """
    words = [encode(word) for word in (sys.executable, "-IS", *sys.argv)]
    reason = ""
    for interpreter in (interpreter_of_overlay, interpreter_of_clone):
        try:
            execution = linux.Execution(interpreter(), words, environment)
            pass_on()
            execution.run()
        except OSError as error:
            reason = f"{error.strerror}: it takes Linux 5.12 or newer, or a Python on a read-only file system"
        else:
            raise AssertionError("execve(2) has returned")
    return reason


def interpreter_of_overlay() -> int:
    """Return the opened interpreter in an overlay file system of its own. Raises OSError where there is no such one.

    Its inode is not that of the host. So a container that holds it cannot have the host wait for a lease (F_SETLEASE of
    fcntl(2)), and finds no other file from there (open_by_handle_at(2)).
    """
    directory, _slash, name = posix.readlink(b"/proc/self/exe").rpartition(b"/")
    library = encode(__file__.rpartition("/")[0])
    if not directory or any(character in directory + library for character in b":,\\"):
        raise OSError(linux.EINVAL, "no directory for an overlay")
    # There must be two directories. In the second one nothing has the name of an interpreter.
    overlay = linux.overlay_of(directory + b":" + library)
    try:
        return posix.open(name, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=overlay)
    finally:
        posix.close(overlay)


def interpreter_of_clone() -> int:
    """Return the opened interpreter on a mount of its own, where the kernel has no overlays. mount_setattr(2), Linux 5.12."""
    return linux.clone_read_only(b"/proc/self/exe")


def mark_of_restart() -> "tuple[int, int, float] | None":
    """Return the slot's file and index and the time of the first start if this program was re-executed, and forget them."""
    mark = posix.environ.pop(MARK, None)
    if mark is None:
        return None
    file, index, began = mark.split()
    return int(file), int(index), float(began)
