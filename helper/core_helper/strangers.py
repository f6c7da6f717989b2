"""Finds processes of another container that are at home where the faulting process is."""

import fcntl
import posix
import time

from core_helper import first_process, mount_table, namespaces, procfs, runtime
from core_helper.crash import Refused
from core_helper.first_process import PATIENCE, Hidden, Member
from core_helper.process import withheld

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from core_helper.foreign_files import View
    from core_helper.process import FaultingProcess


def refuse(view: "View", place: "tuple[bytes, bytes] | None", hosts_root: bool = False) -> None:
    """Raise Withheld where another container is at home in the mounts of the process, or ``place`` is in its root directory.

    In ``hosts_root``, mounts of the host's with the root directory of the host, sandboxes of users are nobody's home.
    """
    process = view.process
    mounts = process.inode("mnt") if process.in_container() else None
    holds = _holders_of(place, view)

    def wanted(pid: int) -> bool:
        inode = first_process.namespace_of(pid, "mnt")
        return inode is not None and (inode == mounts or holds(pid, inode))

    hosts = hosts_root and namespaces.owner_of(process.descriptor("mnt")) == namespaces.of_host("user")  # type: ignore[arg-type]
    if find(process, view.first, wanted, hosts):
        raise withheld(process, reason(view))


def reason(view: "View") -> str:
    """Return why a process is withheld whose root directory is another container's."""
    if view.process.in_container() and view.path == b"/":
        return "it is in the mount namespace of another container"
    return "its root directory lies in the files of another container"


def _holders_of(place: "tuple[bytes, bytes] | None", view: "View") -> "Callable[[int, int], bool]":
    """Return a function that tells whether a place, device and path, lies in what a process has as its root directory.

    It takes the pid and the inode of the mount namespace of that process. Asked where engines make no overlay. Of each mount
    namespace, one process is asked: it may have thousands of mounts. A process that could have written no program there that
    belongs to root or to the user of the faulting process is not asked: any user can make a mount namespace, and mount there
    whatever that user can read.
    """
    if place is None:
        return lambda pid, inode: False
    hosts = view.host().place_of_root()
    host_mounts = namespaces.of_host("mnt")
    roots: dict[int, tuple[bytes, bytes] | None] = {}

    def holds(pid: int, inode: int) -> bool:
        if inode == host_mounts:
            return False
        if inode not in roots:
            try:
                directory = posix.open(procfs.task_of(pid, None), posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
            except OSError:
                return False
            try:
                if not _may_own(directory, {0, view.process.uid}):
                    return False
                roots[inode] = view.process.visits.root_of_namespace(directory)
            except OSError:
                return False
            except Refused:
                # More mounts than can be looked at: the other processes there show no fewer.
                roots[inode] = None
            finally:
                posix.close(directory)
        return roots[inode] != hosts and mount_table.is_below(place, roots[inode])

    return holds


def _may_own(directory: int, users: "set[int]") -> bool:
    """Tell whether a process, the opened /proc/PID, may have files of one of the ``users`` made where its mounts are.

    So it is in the user namespace of the host, in one that has such a user, and in one of root's making: root may have mounted
    a file system there whose owners are others than on the disk; mount_setattr(2), MOUNT_ATTR_IDMAP.
    """
    opened = [posix.open("ns/mnt", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=directory)]
    try:
        host = namespaces.of_host("user")
        opened.append(fcntl.ioctl(opened[0], namespaces.NS_GET_USERNS))
        if posix.fstat(opened[1]).st_ino == host:
            return True
        opened.append(namespaces.outermost(opened[1], host))
        if namespaces.maker_of(opened[2]) == 0:
            return True
        return bool(namespaces.mapped(directory, "uid_map", users))
    finally:
        for descriptor in set(opened):
            posix.close(descriptor)


def find(
    process: "FaultingProcess", first: "Member | None", wanted: "Callable[[int], bool]", hosts: bool = False
) -> bool:
    """Tell whether one of the ``wanted`` processes is at home in a container other than that of ``process``.

    Where the mounts are the ``hosts``, a process that is only in a sandbox of a user's making is not.
    Raises Refused where the host has too many processes to tell.
    """
    limit = time.monotonic() + PATIENCE
    host = process.shows_no_container()
    for name in posix.listdir("/proc"):
        if time.monotonic() > limit:
            raise Refused("the host has too many processes to find out whose its files are: core not delegated")
        if not name.isdigit() or not wanted(int(name)):
            continue
        try:
            member = Member(int(name))
        except OSError:
            continue
        except Hidden:
            # The files of the host are no container's, whatever process is there.
            if hosts:
                continue
            return True
        try:
            # A process of a container is a stranger to a process of the host, wherever that one came from.
            strange = host and (len(member.pids) > 1 or runtime.named_group(member.cgroups) is not None)
            if (
                not _is_part(member, process, first)
                and (strange or _is_at_home(member))
                and not (hosts and _is_of_user(member))
            ):
                return True
        finally:
            member.close()
    return False


def _is_of_user(member: Member) -> bool:
    """Tell whether only a user has put ``member`` into a container: root has neither named it nor made its pid namespace.

    Such a user cannot have mounted anything in the user namespace of the host. A process may enter a user namespace later, but
    it never leaves its pid namespace. So the outermost pid namespace tells, and the user namespace does not suffice.
    """
    for hierarchy in member.cgroups:
        group = runtime.outermost_group([hierarchy])
        if group is not None and not runtime.maker_of(*group[1:]):
            return False
    if len(member.pids) == 1:
        return True
    opened: list[int] = []
    try:
        host = namespaces.of_host("user")
        if member.namespace("user") == host:
            return False
        opened.append(posix.open("ns/pid", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=member.directory))
        opened.append(namespaces.outermost(opened[0], namespaces.of_host("pid")))
        return namespaces.owner_of(opened[1]) != host
    except OSError:
        # It is gone, or only the thread that was looked at is: a process that is still there is no user's.
        return first_process.namespace_of(int(member.status["Tgid"]), "mnt") != member.mount_namespace
    finally:
        for descriptor in set(opened):
            posix.close(descriptor)


def _is_part(member: Member, process: "FaultingProcess", first: "Member | None") -> bool:
    """Tell whether ``member`` belongs to the container of ``process``: by the control group, else by the pid namespace."""
    # The innermost names: a container may have containers of its own.
    same = runtime.share_name(member.cgroups, [] if first is None else first.cgroups)
    if same is not None:
        return same
    if first is not None and first.has_group() and not runtime.is_within(member.cgroups, first.cgroups):
        return False
    if not process.in_pid_namespace():
        if member.pid_namespace == process.inode("pid"):
            return True
        # A container may have been started from the very login that the process is of.
        return first is not None and first.has_group() and process.inode("mnt") == first.mount_namespace
    namespace = posix.open("ns/pid", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=member.directory)
    try:
        host = namespaces.of_host("pid")
        below = namespaces.lineage(namespace, host)
        above = namespaces.lineage(process.descriptor("pid"), host)  # type: ignore[arg-type]
        return process.inode("pid") in below or (member.pid_namespace != host and member.pid_namespace in above)
    finally:
        posix.close(namespace)


def _is_at_home(member: Member) -> bool:
    """Tell whether ``member`` is in the mount namespace of its own container, not in one that it has joined.

    The first process of a container may have changed its own mounts since. Then the other processes execute programs that lie
    in their own mounts.
    """
    if len(member.pids) > 1 and member.pids[-1] == "1":
        return True
    group = runtime.named_group(member.cgroups)
    try:
        eldest = first_process.eldest_of(*group) if group else None
    except Hidden:
        return True
    if eldest is None:
        return False
    try:
        if eldest.mount_namespace == member.mount_namespace:
            return True
        executed = mount_table.mount_of_link(member.directory, "exe")
        return mount_table.sees(member.directory, executed)
    except Refused:
        return True  # It has more mounts than can be looked at.
    finally:
        eldest.close()
