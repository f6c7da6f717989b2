"""Fairness: one container that crashes in a loop leaves slots of kernel.core_pipe_limit to the others.

A slot is one locked byte of a file of root's, at an offset that belongs to the container. The kernel releases the lock when
the helper ends, however it ends; fcntl_locking(2).
"""

import fcntl
import posix

from core_helper import victim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.victim import FaultingProcess

FILE = "/run/docker_core_helper.slots"
LIMIT = "/proc/sys/kernel/core_pipe_limit"
NS_GET_PARENT = 0xB702
MOST_SLOTS = 1 << 16


def take(process: "FaultingProcess") -> None:
    """Take one of the slots that the container of ``process`` may have at a time, until this process ends.

    Raises Refused when it has them all. Processes in the initial pid namespace belong to no container.
    """
    container = outermost_container(process)
    if container is None:
        return
    with_limit = posix.open(LIMIT, posix.O_RDONLY | posix.O_CLOEXEC)
    limit = int(posix.read(with_limit, 32))
    posix.close(with_limit)
    # Left open: closing any descriptor of the file would release the lock.
    file = posix.open(FILE, posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600)
    for slot in range(share_of(limit)):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, container * MOST_SLOTS + slot)
            return
        except OSError:
            continue
    raise victim.Refused(
        f"its container has {share_of(limit)} crashes in flight, its share of kernel.core_pipe_limit={limit}: core dropped"
    )


def share_of(limit: int) -> int:
    """Return how many of ``limit`` slots one container may hold: three quarters, but at least one."""
    return min(max(1, limit * 3 // 4), MOST_SLOTS)


def outermost_container(process: "FaultingProcess") -> "int | None":
    """Return the inode of the pid namespace that stands for the container of ``process``, None outside of containers.

    That is the one right below the initial namespace: a container that makes namespaces of its own has no more slots for that;
    ioctl_ns(2).
    """
    own = posix.stat("/proc/self/ns/pid").st_ino
    namespace = next(
        (descriptor for name, _, descriptor in process.namespaces if name == "pid"),
        None,
    )
    if namespace is None:
        return None
    namespace = posix.dup(namespace)
    while True:
        inode = posix.fstat(namespace).st_ino
        parent = fcntl.ioctl(namespace, NS_GET_PARENT)
        posix.close(namespace)
        if posix.fstat(parent).st_ino == own:
            posix.close(parent)
            return inode
        namespace = parent
