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

from core_helper import command, container, namespaces, procfs, victim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterator

    from core_helper.victim import FaultingProcess

# What lets a process into the mounts of others: setns(2) takes the first one, /proc/PID/root the second.
CAP_SYS_PTRACE, CAP_SYS_ADMIN = 19, 21
INTRUDING = 1 << CAP_SYS_ADMIN | 1 << CAP_SYS_PTRACE
MOST_GROUPS, MOST_PROCESSES, MOST_MOUNTS = 256, 4096, 1 << 24
PATIENCE = 30.0  # Seconds for a look at all processes of the host.


class Member:
    """A process, opened: what it has of a container. Raises OSError when it is gone."""

    def __init__(self, pid: int) -> None:
        """Open process ``pid`` of the host and read what counts here."""
        path = procfs.task_of(pid, None)
        self.directory = posix.open(path, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            self.status = procfs.parse_status(procfs.read(self.directory, "status"))
            self.cgroups = procfs.parse_cgroup(procfs.read(self.directory, "cgroup"))
            self.mounts = self.namespace("mnt")
            self.processes = self.namespace("pid")
        except BaseException:
            self.close()
            raise
        self.pids = self.status.get("NStgid", self.status["Tgid"]).split()
        self.filters = int(self.status.get("Seccomp_filters", "0"))
        self.bounding = int(self.status["CapBnd"], 16)

    def namespace(self, name: str) -> int:
        """Return the inode of the namespace ``name``."""
        return posix.stat(f"ns/{name}", dir_fd=self.directory).st_ino

    def close(self) -> None:
        """Close it."""
        posix.close(self.directory)


def check(process: "FaultingProcess") -> None:
    """Raise Withheld unless the mount namespace and the root directory of ``process`` are its own.

    Notes in ``process.confined`` whether it was confined more than its container is. Raises Refused where that cannot be told,
    OSError when the process went away.
    """
    if not process.in_container() and process.seccomp_filters == 0:
        # An ordinary process of the host, or one that shares its files.
        _check_root(process, None)
        return
    first, outermost = first_of(process)
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
    own = container.place_of_root(container.mounts(procfs.read(process.task, "mountinfo", MOST_MOUNTS)))
    return own is not None and own == container.place_of_root(container.mounts(_read("self", "mountinfo")))


def _may_have_joined(process: "FaultingProcess", first: "Member | None") -> bool:
    """Tell whether the process may have come into the mount namespace from outside, or have joined it from its own container.

    A sandbox that a user has made cannot join what others have.
    """
    if first is None or not process.in_pid_namespace():
        return True
    if (process.permitted | process.bounding) & ~first.bounding:
        return True
    joins = process.user_namespace is None or named_group(process.cgroups) is not None
    return joins and (first.bounding | process.bounding) & INTRUDING != 0


def withheld(process: "FaultingProcess", reason: str) -> victim.Withheld:
    """Return why the core of ``process`` is withheld, and whether it is the host's own."""
    # What is in the pid and user namespace of the host, and has no engine's name on its control group, is no container's.
    of_the_host = process.user_namespace is None and not process.in_pid_namespace() and not process.container_id
    return victim.Withheld(f"{reason}: its core is not for a program of that one's image", process, of_the_host)


# Who is the first process of the container?


def first_of(process: "FaultingProcess") -> "tuple[Member | None, Member | None]":
    """Return the first process of the container of ``process``, and that of the outermost container, None where unknown.

    The container is that of the control group, where an engine has named it; else that of the pid namespace. Outside of pid
    namespaces it is the control group as it is, unless that is the root group.
    """
    namespace = process.descriptor("pid")
    group = named_group(process.cgroups)
    if namespace is None:
        return (_eldest_of(*group) if group else _eldest_of_own(process)), None
    init = _init_of(process, namespace, process.depth)
    if init is None:
        raise command.Refused("the first process of its pid namespace was not found: core not delegated")
    outermost = None
    if process.depth > 2:
        own = posix.stat("/proc/self/ns/pid").st_ino
        outermost = _init_of(process, namespaces.outermost(namespace, own), 2)
    if group is None:
        # A sandbox that a user of the host made: what has started it is in the same control group.
        return init, _less_confined(outermost, _eldest_of_own(process))
    if is_within(init.cgroups, [group]):
        return init, outermost
    # It shares the pid namespace of another container.
    return _eldest_of(*group), _less_confined(outermost, init)


def _less_confined(one: "Member | None", other: "Member | None") -> "Member | None":
    if one is None or other is None:
        return one or other
    return one if one.filters <= other.filters else other


def named_group(cgroups: "list[tuple[bytes, bytes]]") -> "tuple[bytes, bytes] | None":
    """Return controllers and path of the control group that an engine has named after the innermost container, or None."""
    for controllers, path in cgroups:
        parts = path.split(b"/")
        for end in range(len(parts), 1, -1):
            if procfs.container_id([(b"", parts[end - 1])]):
                return controllers, b"/".join(parts[:end])
    return None


def _init_of(process: "FaultingProcess", namespace: int, depth: int) -> "Member | None":
    """Return the first process of the opened pid ``namespace``, an ancestor of that of ``process``; ``depth`` is its level."""
    wanted = posix.fstat(namespace).st_ino
    for pid in _candidates(process, namespace, wanted):
        try:
            member = Member(pid)
        except OSError:
            continue
        # Asked of what was opened: the number may be another process's by now.
        if member.processes == wanted and member.pids[-1] == "1" and len(member.pids) == depth:
            return member
        member.close()
    return None


def _candidates(process: "FaultingProcess", namespace: int, wanted: int) -> "Iterator[int]":
    """Yield pids of the host that may be the first process of ``namespace``, the likely ones first."""
    try:
        yield fcntl.ioctl(namespace, namespaces.NS_GET_PID_FROM_PIDNS, 1)
        return
    except OSError:
        pass  # Before Linux 6.11.
    pid = process.host_pid
    while pid:
        yield pid
        try:
            pid = int(procfs.stat_fields(_read(pid, "stat"))[1])
        except OSError:
            break
    for controllers, path in process.cgroups[:1]:
        yield from _processes_in(controllers, path)
    limit = time.monotonic() + PATIENCE
    for name in posix.listdir("/proc"):
        if name.isdigit() and time.monotonic() < limit and _inode(f"/proc/{name}/ns/pid") == wanted:
            yield int(name)


def _eldest_of_own(process: "FaultingProcess") -> "Member | None":
    """Return the eldest process of the control group that ``process`` is in, None in the root group."""
    for controllers, path in process.cgroups:
        if path != b"/":
            return _eldest_of(controllers, path)
    return None


def _eldest_of(controllers: bytes, path: bytes) -> "Member | None":
    """Return the eldest process of a control group and the groups below it, None if there is none."""
    ages = []
    for pid in _processes_in(controllers, path):
        try:
            ages.append((int(procfs.stat_fields(_read(pid, "stat"))[19]), pid))
        except OSError:
            continue
    for _, pid in sorted(ages):
        try:
            return Member(pid)
        except OSError:
            continue
    return None


def _processes_in(controllers: bytes, path: bytes) -> "list[int]":
    """Return the processes of a control group and the groups below it. Raises Refused where they are too many to tell."""
    mounts = container.cgroup_mounts(_read("self", "mountinfo"))
    mount_point = mounts.get(controllers.split(b",")[0])
    if mount_point is None:
        return []
    groups = [mount_point + path]
    pids: list[int] = []
    for number, group in enumerate(groups):
        if number >= MOST_GROUPS or len(pids) > MOST_PROCESSES:
            raise command.Refused("its control group has too many processes to find the first one: core not delegated")
        try:
            file = posix.open(group + b"/cgroup.procs", posix.O_RDONLY | posix.O_CLOEXEC)
            try:
                pids += [int(pid) for pid in procfs.read_all(file).split()]
            finally:
                posix.close(file)
            groups += [entry.path for entry in posix.scandir(group) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # Gone meanwhile, or of threads only.
    return pids


def _read(pid: "int | str", name: str) -> bytes:
    file = posix.open(f"/proc/{pid}/{name}", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return procfs.read_all(file, MOST_MOUNTS)
    finally:
        posix.close(file)


def _inode(path: str) -> "int | None":
    try:
        return posix.stat(path).st_ino
    except OSError:
        return None


# Does it belong to that one?


def is_within(cgroups: "list[tuple[bytes, bytes]]", first: "list[tuple[bytes, bytes]]") -> bool:
    """Tell whether ``cgroups`` lie in the container whose first process has the control groups ``first``."""
    for controllers, theirs in first:
        ours = next((path for name, path in cgroups if name == controllers), None)
        if theirs == b"/" or ours is None:
            continue
        named = named_group([(controllers, theirs)])
        if named is not None:
            if not (ours + b"/").startswith(named[1] + b"/"):
                return False
        elif not _share_unit(ours, theirs):
            return False
    return True


def _share_unit(one: bytes, other: bytes) -> bool:
    """Tell whether two control groups have a common ancestor that is more than a slice of systemd's; systemd.slice(5)."""
    for ours, theirs in zip(one.split(b"/")[1:], other.split(b"/")[1:]):
        if ours != theirs:
            return False
        if not ours.endswith(b".slice"):
            return True
    return False


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
    if is_within(process.cgroups, first.cgroups):
        return
    if bounded and _is_in_user_namespace(process, first):
        return
    raise withheld(process, "it is in a container's namespaces, but in another control group")


def _is_in_user_namespace(process: "FaultingProcess", first: Member) -> bool:
    """Tell whether ``process`` is in the user namespace of ``first`` or below it, with ids of that namespace."""
    if process.user_namespace is None or first.namespace("user") not in _ancestors(process.user_namespace):
        return False
    groups = [process.gid, *process.groups]
    return _are_mapped(first, "uid_map", [process.uid]) and _are_mapped(first, "gid_map", groups)


def _are_mapped(first: Member, name: str, ids: "list[int]") -> bool:
    """Tell whether the user namespace of ``first`` has all ``ids`` of the host; user_namespaces(7)."""
    ranges = [[int(word) for word in line.split()] for line in procfs.read(first.directory, name).splitlines()]
    return all(any(begin <= number < begin + count for _, begin, count in ranges) for number in ids)


def _ancestors(namespace: int) -> "list[int]":
    """Return the inodes of the opened user ``namespace`` and its ancestors up to the helper's own; ioctl_ns(2)."""
    own = posix.stat("/proc/self/ns/user").st_ino
    inodes = [posix.fstat(namespace).st_ino]
    while inodes[-1] != own:
        namespace = fcntl.ioctl(namespace, namespaces.NS_GET_PARENT)
        inodes.append(posix.fstat(namespace).st_ino)
    return inodes


def _check_owner(process: "FaultingProcess") -> None:
    """Raise Withheld where the mount namespace belongs to a user namespace that the process only looks down on.

    Whoever is root there chooses the files; the process has rights outside of it.
    """
    own = posix.stat("/proc/self/ns/user").st_ino
    owner = fcntl.ioctl(process.descriptor("mnt"), namespaces.NS_GET_USERNS)  # type: ignore[arg-type]
    inode = posix.fstat(owner).st_ino
    posix.close(owner)
    if inode not in ([own] if process.user_namespace is None else _ancestors(process.user_namespace)):
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


def _mounts_of(directory: int) -> "set[int]":
    """Return the numbers of the mounts that the process of the opened /proc/PID sees, that of its root directory included."""
    return {*container.mounts(procfs.read(directory, "mountinfo", MOST_MOUNTS)), _mount_of(directory, "root")}


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
    mounts = _mounts_of(process.task)
    if first is not None:
        mounts |= _mounts_of(first.directory)
    if _mount_of(process.task, "exe") not in mounts:
        raise withheld(process, "it executes a program from outside of the mount namespace that it is in")


def _same_root(task: int, other: int) -> bool:
    """Tell whether two processes, opened, have the same root directory, each in a mount namespace of its own."""
    ours, theirs = (
        container.place_of_root(container.mounts(procfs.read(file, "mountinfo", MOST_MOUNTS))) for file in (task, other)
    )
    return ours is not None and ours == theirs


def _check_inhabitants(process: "FaultingProcess", first: "Member | None") -> None:
    """Raise Withheld where another container is at home in the mount namespace of ``process``."""
    mounts = process.inode("mnt")
    if _find_stranger(process, first, lambda pid: _mount_namespace(pid) == mounts):
        raise withheld(process, "it is in the mount namespace of another container")


def _mount_namespace(pid: int) -> "int | None":
    """Return the inode of the mount namespace of process ``pid``; its leader may have exited."""
    return _inode(f"/proc/{pid}/ns/mnt") or _inode(f"{procfs.task_of(pid, None)}/ns/mnt")


def _check_root(process: "FaultingProcess", first: "Member | None") -> None:
    """Raise Withheld where the root directory, which the process has changed, lies in the files of another container.

    An agent may have changed it to where an engine has put them together. The program that the process executes must lie in it,
    unless it is on the file system that is the container's root anyway. That it lies in the mount namespace of the process at
    all is asked by container.join_namespaces, where that is not the host's.
    """
    path = posix.readlink(b"/proc/self/fd/%d" % process.root)
    if path == b"/" and (process.in_container() or _is_root_of_the_host(process.root)):
        return
    host = container.mounts(_read("self", "mountinfo"))
    table = host if first is None else container.mounts(procfs.read(first.directory, "mountinfo", MOST_MOUNTS))
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
    own = posix.stat("/proc/self/ns/mnt").st_ino
    # Of many processes in one mount namespace, which may have thousands of mounts, one is enough.
    trees: dict[int, tuple[bytes, bytes]] = {}

    def holds_root(pid: int) -> bool:
        inode = _mount_namespace(pid)
        if inode in (own, None):
            return False
        tree = trees.get(inode)
        if tree is None:
            try:
                tree = container.place_of_root(container.mounts(_read(pid, "mountinfo")))
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
            raise command.Refused("the host has too many processes to find out whose its files are: core not delegated")
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
        return is_within(member.cgroups, first.cgroups)
    if not process.in_pid_namespace():
        return member.processes == process.inode("pid") and named_group(member.cgroups) is None
    namespace = posix.open("ns/pid", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=member.directory)
    # As deep as that of the process, or deeper: then one of its ancestors may be that one.
    for _ in range(len(member.pids) - process.depth):
        namespace = fcntl.ioctl(namespace, namespaces.NS_GET_PARENT)
    return posix.fstat(namespace).st_ino == process.inode("pid")


def _is_at_home(member: Member) -> bool:
    """Tell whether ``member`` is in the mount namespace of its own container, not in one that it has joined."""
    if len(member.pids) > 1 and member.pids[-1] == "1":
        return True
    group = named_group(member.cgroups)
    eldest = _eldest_of(*group) if group else None
    if eldest is None:
        return False
    try:
        return eldest.mounts == member.mounts
    finally:
        eldest.close()
