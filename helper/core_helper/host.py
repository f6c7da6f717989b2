"""The host, for a server that runs in a container: it goes over to the namespaces and the root directory of PID 1.

From there on every path is the host's, as for a helper that the kernel has started: sockets, slots and kept cores, the log, the
control groups, the records of the engines, previous handlers and lent programs. What it keeps of its container are the program
itself, which is loaded before, the configuration, if the container has one, capabilities, label, seccomp filter and control
group. Workers leave the last one.

The first process of the container stays there, and a child of it goes: so a program that is executed in the container later
finds that, and if the child is killed, somebody is left to set the previous pattern.
"""

import _signal
import posix
import sys

from core_helper import configuration, linux, listening, program, status_pipe, verification, worker

# include/uapi/linux/nsfs.h
INITIAL = {"pid": 0xEFFFFFFC, "user": 0xEFFFFFFD}
REMEDIES = {"pid": "docker run --pid=host, or hostPID of Kubernetes", "user": "run it without a user namespace"}
NAME = b"core_container"  # Of the process that stays.
# The namespaces to join. It is in the host's pid and user namespace from the start.
KINDS = [(kind, flag) for kind, flag in verification.NAMESPACES if kind not in INITIAL]
PROC = "/proc"
OF_HOST = (1, 2)  # The second one is the parent of all kernel threads.


def is_elsewhere() -> bool:
    """Tell whether this process is in other namespaces than the host.

    Raises Unusable where that cannot be found out, or where a server in these namespaces could not handle crashes.
    """
    for kind, number in INITIAL.items():
        if posix.stat(f"{PROC}/self/ns/{kind}").st_ino != number:
            raise listening.Unusable(f"it takes the {kind} namespace of the host: {REMEDIES[kind]}")
    host = _process_of_host()
    return any(_inode(host, kind) != _inode("self", kind) for kind, _flag in KINDS)


def _process_of_host() -> int:
    """Return a process that is in the namespaces of the host, and at which this one may look. Raises Unusable."""
    for pid in OF_HOST:
        try:
            posix.stat(f"{PROC}/{pid}/ns/mnt")
            return pid
        except OSError:
            continue  # Something may guard PID 1 beyond what capabilities(7) says.
    raise listening.Unusable(
        "it cannot look at PID 1: it takes CAP_SYS_PTRACE, and no AppArmor profile that forbids that"
    )


def _inode(pid: "int | str", kind: str) -> int:
    """Return the number of a namespace of a process, 0 where the kernel has no namespaces of that kind."""
    try:
        return posix.stat(f"{PROC}/{pid}/ns/{kind}").st_ino
    except FileNotFoundError:
        return 0


def own_configuration() -> "bytes | None":
    """Return the configuration of this container, None if it has none. Raises Unusable where it must not count."""
    path = configuration.CONFIGURATION
    try:
        file = configuration.open_of_root(path, 0o022)
    except FileNotFoundError:
        return None
    except configuration.NotOfRoot:
        raise listening.Unusable(f"{path}: only root may own and write it") from None
    try:
        return posix.read(file, configuration.LONGEST_FILE + 1)
    finally:
        posix.close(file)


def own_interpreter() -> "tuple[int, int]":
    """Return device and inode of the interpreter of this container. On the host another one may lie at its path."""
    return program.identity(posix.stat(sys.executable))


def join() -> None:
    """Go over to the host. Raises Unusable. All that this process will need must be imported before."""
    host = _process_of_host()
    try:
        root = posix.open(f"{PROC}/{host}/root", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        others = [
            (posix.open(f"{PROC}/{host}/ns/{kind}", posix.O_RDONLY | posix.O_CLOEXEC), flag)
            for kind, flag in KINDS
            if _inode(host, kind) != _inode("self", kind)
        ]
        # From here on a module of the same name would be another one.
        status_pipe.lock_interpreter()
        for namespace, flag in others:
            linux.setns(namespace, flag)
            posix.close(namespace)
        # setns(2) sets the root directory to that of the namespace.
        posix.fchdir(root)
        posix.chroot(".")
    except OSError as error:
        remedy = "it takes CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE"
        raise listening.Unusable(f"it cannot go over to the host: {error.strerror}: {remedy}") from None
    posix.chdir("/")
    posix.close(root)


def send() -> "int | None":
    """Go over to the host in a child, and return None there; return how the child has ended here, as waitpid(2) does.

    Raises Unusable in the child.
    """
    parent = posix.getpid()
    # Waited for by sigwait(3): what came right before a waitpid(2) would be handled after it.
    awaited = {_signal.SIGTERM, _signal.SIGINT, _signal.SIGCHLD}
    _signal.pthread_sigmask(_signal.SIG_BLOCK, awaited)
    child = posix.fork()
    if child == 0:
        # If the parent is killed, the container ends. The engine kills the child only then: time enough for the pattern.
        linux.prctl(linux.PR_SET_PDEATHSIG, _signal.SIGTERM)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, awaited)
        if posix.getppid() != parent:
            posix._exit(1)
        join()
        return None
    worker.name(NAME)
    while True:
        number = _signal.sigwait(awaited)
        if number != _signal.SIGCHLD:
            posix.kill(child, number)
            continue
        ended, status = posix.waitpid(child, posix.WNOHANG)
        if ended:
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, awaited)
            return status
