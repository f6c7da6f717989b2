"""Joins the container of the faulting process: its namespaces and its root directory."""

import posix

from core_helper import linux, mount_table
from core_helper.crash import Refused
from core_helper.words import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.process import FaultingProcess


def hostname_of(process: "FaultingProcess") -> bytes:
    """Return the host name that ``process`` sees, by a short visit to its UTS namespace; uts_namespaces(7)."""
    for name, kind, descriptor in process.joined:
        if name == "uts":
            own = posix.open("/proc/self/ns/uts", posix.O_RDONLY | posix.O_CLOEXEC)
            try:
                linux.setns(descriptor, kind)
                return encode(posix.uname().nodename)
            finally:
                linux.setns(own, kind)
                posix.close(own)
    return encode(posix.uname().nodename)


def join_namespaces(process: "FaultingProcess") -> None:
    """Join all namespaces of ``process`` except the user namespace; setns(2). Raises OSError where one cannot be joined.

    Raises Refused where the root directory of the process does not lie in its mount namespace: then these are not the files of
    its container. The pid namespace takes effect for children only, so the container cannot see this process.
    """
    proc_self = posix.open("/proc/self", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    for _name, kind, descriptor in process.joined:
        linux.setns(descriptor, kind)
    if process.in_container():
        root = posix.open("/", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        mount = mount_table.mount_of(process.root, proc_self)
        if mount != mount_table.mount_of(root, proc_self) and mount not in mount_table.mounts_of(proc_self, mount):
            raise Refused("its root directory is in another mount namespace than the process")
        posix.close(root)
    posix.close(proc_self)


def enter_root(process: "FaultingProcess") -> None:
    """Make the root directory of ``process`` ours, and our current directory, too.

    setns(2) of a mount namespace resets both to the root of the namespace, which need not be that of the process. The
    current directory of the process is never followed: it may lie outside of the container (CVE-2024-21626).
    """
    posix.fchdir(process.root)
    posix.chroot(".")
    posix.chdir("/")
