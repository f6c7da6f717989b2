"""Namespaces and their ancestors, by opened files of /proc/PID/ns; ioctl_ns(2)."""

import fcntl
import posix
import sys

from core_helper import procfs

NS_GET_USERNS = 0xB701
NS_GET_PARENT = 0xB702
NS_GET_OWNER_UID = 0xB704
NS_GET_PID_FROM_PIDNS = 0x8004B706  # Linux 6.11.
_of_host: "dict[str, int]" = {}  # Asked once: the first process of a host keeps its namespaces.


def of_host(kind: str) -> int:
    """Return the inode of the host's namespace of that ``kind``: that of PID 1. Raises FileNotFoundError for an unknown kind.

    The helper may run in a container of its own, so its own namespaces need not be the host's. Where the helper may not look at
    PID 1, the kernel has started it, and the kernel starts it in the namespaces of the host.
    """
    if kind not in _of_host:
        try:
            found = posix.stat(f"/proc/1/ns/{kind}")
        except OSError:
            found = posix.stat(f"/proc/self/ns/{kind}")
        _of_host[kind] = found.st_ino
    return _of_host[kind]


def owner_of(namespace: int) -> int:
    """Return the inode of the user namespace that the opened ``namespace`` belongs to."""
    owner = fcntl.ioctl(namespace, NS_GET_USERNS)
    try:
        return posix.fstat(owner).st_ino
    finally:
        posix.close(owner)


def maker_of(user_namespace: int) -> int:
    """Return the user of the host who has made the opened ``user_namespace``."""
    owner = bytearray(4)
    fcntl.ioctl(user_namespace, NS_GET_OWNER_UID, owner, True)
    return int.from_bytes(owner, sys.byteorder)


def mapped(directory: int, name: str, ids: "set[int]") -> "set[int]":
    """Return those ``ids`` of the host that the user namespace of the opened /proc/PID has; ``name`` is uid_map or gid_map."""
    ranges = [[int(word) for word in line.split()] for line in procfs.read(directory, name).splitlines()]
    return {number for number in ids if any(begin <= number < begin + count for _inside, begin, count in ranges)}


def lineage(namespace: int, last: int) -> "list[int]":
    """Return the inodes of the opened ``namespace`` and its ancestors, up to that of the inode ``last``. Raises OSError."""
    inodes = [posix.fstat(namespace).st_ino]
    current = namespace
    try:
        while inodes[-1] != last:
            parent = fcntl.ioctl(current, NS_GET_PARENT)
            if current != namespace:
                posix.close(current)
            current = parent
            inodes.append(posix.fstat(current).st_ino)
    finally:
        if current != namespace:
            posix.close(current)
    return inodes


def outermost(namespace: int, last: int) -> int:
    """Return the ancestor of the opened ``namespace`` right below that of the inode ``last``, or ``namespace`` itself."""
    current = namespace
    while posix.fstat(current).st_ino != last:
        parent = fcntl.ioctl(current, NS_GET_PARENT)
        if posix.fstat(parent).st_ino == last:
            posix.close(parent)
            return current
        if current != namespace:
            posix.close(current)
        current = parent
    return namespace
