"""Namespaces and their ancestors, by opened files of /proc/PID/ns; ioctl_ns(2)."""

import fcntl
import posix

NS_GET_USERNS = 0xB701
NS_GET_PARENT = 0xB702
NS_GET_OWNER_UID = 0xB704
NS_GET_PID_FROM_PIDNS = 0x8004B706  # Linux 6.11.


def lineage(namespace: int, own: int) -> "list[int]":
    """Return the inodes of the opened ``namespace`` and its ancestors, up to the one of the inode ``own``. Raises OSError."""
    inodes = [posix.fstat(namespace).st_ino]
    current = namespace
    try:
        while inodes[-1] != own:
            parent = fcntl.ioctl(current, NS_GET_PARENT)
            if current != namespace:
                posix.close(current)
            current = parent
            inodes.append(posix.fstat(current).st_ino)
    finally:
        if current != namespace:
            posix.close(current)
    return inodes


def outermost(namespace: int, own: int) -> int:
    """Return the ancestor of the opened ``namespace`` right below that of the inode ``own``, or ``namespace`` itself."""
    current = namespace
    while posix.fstat(current).st_ino != own:
        parent = fcntl.ioctl(current, NS_GET_PARENT)
        if posix.fstat(parent).st_ino == own:
            posix.close(parent)
            return current
        if current != namespace:
            posix.close(current)
        current = parent
    return namespace
