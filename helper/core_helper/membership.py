"""Whether the files that the process sees and the rights that it has belong to the same container.

A program of the host may have joined the mount namespace of a container, as agents and ``nsenter -m`` do. When it crashes, the
delegate would be looked up in that container's files and get the rights of the host. So the mount namespace must be that of the
process's own container: of the one that its control group, and the init of that, belong to. Nothing is changed here.

Whoever could have joined the mounts of others needs a proof: the program that it executes must lie in the mounts that it has. A
program that has only joined a container came from elsewhere, whether that container still runs or not. A program of the
container's image that was given rights of the host has those already. Where nobody can tell, the core is withheld.
"""

import fcntl
import posix
import time

from core_helper import container, first_process, namespaces, procfs, runtime
from core_helper.crash import Refused
from core_helper.first_process import PATIENCE, Member
from core_helper.process import Withheld

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from core_helper.process import FaultingProcess

# What lets a process into the mounts of others: setns(2) takes the first one, /proc/PID/root the second.
CAP_SYS_PTRACE, CAP_SYS_ADMIN = 19, 21
INTRUDING = 1 << CAP_SYS_ADMIN | 1 << CAP_SYS_PTRACE


def check(process: "FaultingProcess") -> None:
    """Raise Withheld unless the mount namespace and the root directory of ``process`` are its own.

    Notes in ``process.confined`` whether it was confined more than its container is. Raises Refused where that cannot be told,
    OSError when the process went away.
    """
    if not process.in_container() and process.seccomp_filters == 0:
        # An ordinary process of the host, or one that shares its files.
        _check_root(process, None)
        return
    first, outermost = first_process.first_of(process)
    try:
        filters = [member.filters for member in (first, outermost) if member is not None]
        known = [member.bounding for member in (first, outermost) if member is not None]
        process.traceable = not known or any(mask >> CAP_SYS_PTRACE & 1 for mask in (*known, process.bounding))
        if filters:
            process.confined = process.seccomp_filters > min(filters)
        if not process.in_container():
            _check_root(process, None)
            return
        _check_owner(process)
        if not process.in_pid_namespace() and not process.container_id and _has_root_of_the_host(process):
            return
        if first is not None:
            _check_group(process, first)
        if _may_have_joined(process, first):
            _check_program(process, first)
            _check_root(process, first)
    finally:
        for member in (first, outermost):
            if member is not None:
                member.close()


def _has_root_of_the_host(process: "FaultingProcess") -> bool:
    """Tell whether it sees the host's files in mounts of its own, as the services of systemd do."""
    own = container.place_of_root(_mounts_of(process.task))
    return own is not None and own == container.place_of_root(_mounts_at("/proc/self"))


def _may_have_joined(process: "FaultingProcess", first: "Member | None") -> bool:
    """Tell whether the process may have come into the mount namespace from outside, or have joined it from its own container.

    A sandbox that a user has made cannot join what others have.
    """
    if first is None or not process.in_pid_namespace():
        return True
    if (process.permitted | process.bounding) & ~first.bounding:
        return True
    joins = process.user_namespace is None or runtime.named_group(process.cgroups) is not None
    return joins and (first.bounding | process.bounding) & INTRUDING != 0


def withheld(process: "FaultingProcess", reason: str) -> Withheld:
    """Return why the core of ``process`` is withheld, and whether it is the host's own."""
    # What is in the pid and user namespace of the host, and has no engine's name on its control group, is no container's.
    of_the_host = process.user_namespace is None and not process.in_pid_namespace() and not process.container_id
    return Withheld(f"{reason}: its core is not for a program of that one's image", process, of_the_host)


# Does it belong to that one?


def _has_group(member: "Member | None") -> bool:
    return member is not None and any(path != b"/" for _, path in member.cgroups)


def _check_group(process: "FaultingProcess", first: Member) -> None:
    """Raise Withheld where ``process`` is in namespaces of a container but not in its control group, or the other way round.

    The group decides on devices, and tells who came from outside. Without any, nothing but capabilities tells. A user namespace
    bounds what the process may do wherever it is, as long as its ids are of that namespace.
    """
    if first.processes != process.inode("pid"):
        raise withheld(process, "it is in a container's control group, but in another pid namespace")
    bounded = process.permitted & ~first.bounding == 0
    if not _has_group(first):
        if not bounded:
            raise withheld(process, "it has capabilities that the container, whose namespaces it is in, could not have")
        return
    if runtime.is_within(process.cgroups, first.cgroups):
        return
    if bounded and _is_in_user_namespace(process, first):
        return
    raise withheld(process, "it is in a container's namespaces, but in another control group")


def _is_in_user_namespace(process: "FaultingProcess", first: Member) -> bool:
    """Tell whether ``process`` is in the user namespace of ``first`` or below it, with ids of that namespace."""
    if process.user_namespace is None or first.namespace("user") not in _user_namespaces(process):
        return False
    groups = [process.gid, *process.groups]
    return _are_mapped(first, "uid_map", [process.uid]) and _are_mapped(first, "gid_map", groups)


def _are_mapped(first: Member, name: str, ids: "list[int]") -> bool:
    """Tell whether the user namespace of ``first`` has all ``ids`` of the host; user_namespaces(7)."""
    ranges = [[int(word) for word in line.split()] for line in procfs.read(first.directory, name).splitlines()]
    return all(any(begin <= number < begin + count for _, begin, count in ranges) for number in ids)


def _user_namespaces(process: "FaultingProcess") -> "list[int]":
    """Return the inodes of the user namespace of ``process`` and its ancestors, up to that of the host."""
    host = namespaces.of_host("user")
    return [host] if process.user_namespace is None else namespaces.lineage(process.user_namespace, host)


def _check_owner(process: "FaultingProcess") -> None:
    """Raise Withheld where the mount namespace belongs to a user namespace that the process only looks down on.

    Whoever is root there chooses the files; the process has rights outside of it.
    """
    owner = fcntl.ioctl(process.descriptor("mnt"), namespaces.NS_GET_USERNS)  # type: ignore[arg-type]
    inode = posix.fstat(owner).st_ino
    posix.close(owner)
    if inode not in _user_namespaces(process):
        raise withheld(process, "it is in the mount namespace of a container without being in its user namespace")


# Whose are the files?


def _open(directory: int, name: str) -> int:
    """Open a magic link of /proc/PID; no file system is asked, which may be of the container's making and not answer."""
    return posix.open(name, posix.O_PATH | posix.O_CLOEXEC, dir_fd=directory)


def _mount_of(directory: int, name: str) -> int:
    """Return the number of the mount that the magic link ``name`` in the opened /proc/PID leads to."""
    file = _open(directory, name)
    try:
        return container.mount_of(file)
    finally:
        posix.close(file)


def _mounts_of(directory: int) -> "dict[int, container.Mount]":
    """Return the mounts that the process of the opened /proc/PID sees."""
    return container.mounts(procfs.read(directory, "mountinfo", procfs.MOUNTINFO_LIMIT))


def _mounts_at(path: str) -> "dict[int, container.Mount]":
    """Return the mounts that the process at ``path``, which is /proc/PID, sees."""
    return container.mounts(procfs.read_path(f"{path}/mountinfo", procfs.MOUNTINFO_LIMIT))


def _mounts_seen(directory: int) -> "set[int]":
    """Return the numbers of the mounts that the process of the opened /proc/PID sees, that of its root directory included."""
    return {*_mounts_of(directory), _mount_of(directory, "root")}


def _check_program(process: "FaultingProcess", first: "Member | None") -> None:
    """Raise Withheld unless the process executes a program of the mount namespace that it is in.

    One that made a mount namespace of its own executes one of its container's, and has the same root directory.
    """
    own = first is not None and process.inode("mnt") == first.mounts
    alike = first is not None and not own and _same_root(process.task, first.directory)
    if not process.in_pid_namespace() or not (own or alike):
        _check_inhabitants(process, first)
    if first is not None and not own and not alike:
        raise withheld(process, "it is in a mount namespace other than that of its own container")
    mounts = _mounts_seen(process.task)
    if first is not None:
        mounts |= _mounts_seen(first.directory)
    if _mount_of(process.task, "exe") not in mounts:
        raise withheld(process, "it executes a program from outside of the mount namespace that it is in")


def _same_root(task: int, other: int) -> bool:
    """Tell whether two processes, opened, have the same root directory, each in a mount namespace of its own."""
    ours, theirs = (container.place_of_root(_mounts_of(file)) for file in (task, other))
    return ours is not None and ours == theirs


def _check_inhabitants(process: "FaultingProcess", first: "Member | None") -> None:
    """Raise Withheld where another container is at home in the mount namespace of ``process``."""
    mounts = process.inode("mnt")
    if _find_stranger(process, first, lambda pid: _mount_namespace(pid) == mounts):
        raise withheld(process, "it is in the mount namespace of another container")


def _mount_namespace(pid: int) -> "int | None":
    """Return the inode of the mount namespace of process ``pid``; its leader may have exited."""
    return first_process.inode_of(f"/proc/{pid}/ns/mnt") or first_process.inode_of(
        f"{procfs.task_of(pid, None)}/ns/mnt"
    )


def _check_root(process: "FaultingProcess", first: "Member | None") -> None:
    """Raise Withheld where the root directory, which the process has changed, lies in the files of another container.

    An agent may have changed it to where an engine has put them together. The program that the process executes must lie in it,
    unless it is on the file system that is the container's root anyway. That it lies in the mount namespace of the process at
    all is asked by container.join_namespaces, where that is not the host's.
    """
    path = posix.readlink(b"/proc/self/fd/%d" % process.root)
    if path == b"/" and (process.in_container() or _is_root_of_the_host(process.root)):
        return
    host = _mounts_at("/proc/self")
    table = host if first is None else _mounts_of(first.directory)
    number = container.mount_of(process.root)
    if number not in table:
        if process.in_container():
            return
        raise withheld(process, "its root directory is in another mount namespace than itself")
    if first is not None and number == _mount_of(first.directory, "root"):
        return
    if not _is_program_below(process, table, path):
        raise withheld(process, "its root directory is not that of the program that it executes")
    place = table[number].place_of(path)
    nobodys = {container.place_of_root(host), None}
    host_mounts = namespaces.of_host("mnt")
    # Of many processes in one mount namespace, which may have thousands of mounts, one is enough.
    trees: dict[int, tuple[bytes, bytes]] = {}

    def holds_root(pid: int) -> bool:
        inode = _mount_namespace(pid)
        if inode in (host_mounts, None):
            return False
        tree = trees.get(inode)
        if tree is None:
            try:
                tree = container.place_of_root(_mounts_at(f"/proc/{pid}"))
            except OSError:
                return False
            if tree is None:
                return False
            trees[inode] = tree
        return tree not in nobodys and container.is_below(place, tree)

    if _find_stranger(process, first, holds_root):
        raise withheld(process, "its root directory lies in the files of another container")


def _is_program_below(process: "FaultingProcess", table: "dict[int, container.Mount]", root: bytes) -> bool:
    """Tell whether the program that the process executes lies in the directory ``root`` of these mounts."""
    file = _open(process.task, "exe")
    try:
        path = posix.readlink(b"/proc/self/fd/%d" % file)
        return container.mount_of(file) in table and container.is_below((b"", path), (b"", root))
    finally:
        posix.close(file)


def _is_root_of_the_host(root: int) -> bool:
    """Tell whether the opened directory, which is the root of its mount, is on that of the helper's root directory."""
    own = posix.open("/", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        return container.mount_of(root) == container.mount_of(own)
    finally:
        posix.close(own)


def _find_stranger(process: "FaultingProcess", first: "Member | None", wanted: "Callable[[int], bool]") -> bool:
    """Tell whether one of the ``wanted`` processes is at home in another container than that of ``process``.

    Raises Refused where the host has too many processes to tell.
    """
    limit = time.monotonic() + PATIENCE
    for name in posix.listdir("/proc"):
        if time.monotonic() > limit:
            raise Refused("the host has too many processes to find out whose its files are: core not delegated")
        if not name.isdigit() or not wanted(int(name)):
            continue
        try:
            member = Member(int(name))
        except OSError:
            continue
        try:
            if not _is_part(member, process, first) and _is_at_home(member):
                return True
        finally:
            member.close()
    return False


def _is_part(member: Member, process: "FaultingProcess", first: "Member | None") -> bool:
    """Tell whether ``member`` belongs to the container of ``process``: by the control group, else by the pid namespace."""
    if first is not None and _has_group(first):
        return runtime.is_within(member.cgroups, first.cgroups)
    if not process.in_pid_namespace():
        return member.processes == process.inode("pid") and runtime.named_group(member.cgroups) is None
    namespace = posix.open("ns/pid", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=member.directory)
    try:
        return process.inode("pid") in namespaces.lineage(namespace, namespaces.of_host("pid"))
    finally:
        posix.close(namespace)


def _is_at_home(member: Member) -> bool:
    """Tell whether ``member`` is in the mount namespace of its own container, not in one that it has joined."""
    if len(member.pids) > 1 and member.pids[-1] == "1":
        return True
    group = runtime.named_group(member.cgroups)
    eldest = first_process.eldest_of(*group) if group else None
    if eldest is None:
        return False
    try:
        return eldest.mounts == member.mounts
    finally:
        eldest.close()
