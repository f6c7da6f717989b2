"""Checks whether the files that the process sees and the privileges that it has belong to the same container.

A program of the host may have joined the mount namespace of a container, as agents and ``nsenter -m`` do. When it crashes, the
delegate would be a program of that container's files, and get the rights of the host. So the mount namespace must be that of
the process's own container: the one to which its control group, and the first process of that group, belong. Nothing is changed
here but ``process.confined``, which only a comparison with that first process can tell.

A process that could have joined the mounts of others needs a *proof*: the program that it executes must lie in the mounts that
it has. A process that has only joined a container executes a program from elsewhere, whether that container still runs or not.
A program of the container's image that was given rights of the host has those already. In case of doubt, the core is withheld.
"""

import fcntl
import posix
import time

from core_helper import first_process, mount_table, namespaces, procfs, runtime
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
        # An ordinary process of the host, or of a container that shares the host's files.
        _check_root(process, None, True)
        return
    first, others = first_process.first_of(process)
    members = others if first is None else [first, *others]
    try:
        if members:
            process.confined = process.seccomp_filters > min(member.filters for member in members)
        if not process.in_container():
            _check_root(process, None, True)
            return
        _check_owner(process)
        if not process.in_pid_namespace() and not process.container_id and _has_root_of_the_host(process):
            _refuse_strangers(process, first, b"/", None)
            return
        if first is not None:
            _check_group(process, first)
        # The first process of its pid namespace may be its own, in the control group of a container.
        group = runtime.named_group(process.cgroups)
        eldest = [member for member in members if member is first or runtime.named_group(member.cgroups) == group]
        for member in eldest:
            _check_eldest(process, member)
        joined = first is None or any(_may_have_joined(process, member) for member in eldest)
        _check_root(process, first, joined)
        if joined or (first is not None and process.inode("mnt") != first.mounts):
            _check_program(process, first)
    finally:
        for member in members:
            member.close()


def may_be_traced(process: "FaultingProcess") -> bool:
    """Tell whether a container may trace a process of ours that appears in the pid namespace of ``process``; ptrace(2).

    That takes CAP_SYS_PTRACE in the user namespace of the host, to which the memory of such a process belongs until it executes
    the delegate. Asked of all who see that pid namespace: not only one container may be in it. Costs a look at all processes.
    """
    namespace = process.descriptor("pid")
    if namespace is None:
        return process.in_container() or process.container_id != ""
    hosts, users = namespaces.of_host("pid"), namespaces.of_host("user")
    seen = namespaces.lineage(namespace, hosts)
    limit = time.monotonic() + PATIENCE
    known: set[str] = set()
    some_ended = True
    # A process that has ended before it was looked at may have left another one behind.
    while some_ended:
        some_ended = False
        for name in set(posix.listdir("/proc")) - known:
            if time.monotonic() > limit:
                return True
            known.add(name)
            inode = _namespace_of(int(name), "pid") if name.isdigit() else hosts
            some_ended = some_ended or inode is None
            if inode is None or inode == hosts or inode not in seen:
                continue
            # All threads of a process have the same user namespace, but each thread has capabilities of its own.
            user = _namespace_of(int(name), "user")
            some_ended = some_ended or user is None
            if user == users and _has_tracer(name, limit):
                return True
    return False


def _has_tracer(name: str, limit: float) -> bool:
    """Tell whether a thread of the process ``name`` has CAP_SYS_PTRACE, or may get it; True if the time ``limit`` passes."""
    try:
        threads = posix.listdir(f"/proc/{name}/task")
    except OSError:
        return False
    for thread in threads:
        if time.monotonic() > limit:
            return True
        try:
            status = procfs.parse_status(procfs.read_path(f"/proc/{name}/task/{thread}/status"))
        except OSError:
            continue
        if first_process.rights_of(status) >> CAP_SYS_PTRACE & 1:
            return True
    return False


def _has_root_of_the_host(process: "FaultingProcess") -> bool:
    """Tell whether ``process`` sees the host's files in mounts of its own, as the services of systemd do."""
    own = mount_table.mounts_of(process.task).place_of_root()
    return own is not None and own == mount_table.mounts_of_host().place_of_root()


def _may_have_joined(process: "FaultingProcess", first: "Member | None") -> bool:
    """Tell whether the process may have come into the mount namespace from outside, or have joined it from its own container.

    A sandbox that a user has made cannot join what others have.
    """
    if first is None or not process.in_pid_namespace():
        return True
    # Capabilities in a user namespace that was made in the container do not count outside of that user namespace.
    rights = 0 if _is_in_sandbox(process, first) else process.permitted | process.bounding
    if rights & ~first.rights:
        return True
    joins = process.user_namespace is None or runtime.named_group(process.cgroups) is not None
    return joins and first.rights & INTRUDING != 0


def _is_in_sandbox(process: "FaultingProcess", first: Member) -> bool:
    """Tell whether ``process`` is in a user namespace below that of ``first``."""
    return first.namespace("user") in _user_namespaces(process)[1:]


def withheld(process: "FaultingProcess", reason: str) -> Withheld:
    """Return why the core of ``process`` is withheld, and whether it is the host's own."""
    # A process in the pid and user namespace of the host, whose control group has no engine's id, belongs to no container.
    of_the_host = process.user_namespace is None and not process.in_pid_namespace() and not process.container_id
    return Withheld(f"{reason}: its core is not for a program of that container's image", process, of_the_host)


# Does the process belong to that container?


def _has_group(member: "Member | None") -> bool:
    return member is not None and any(path != b"/" for _controllers, path in member.cgroups)


def _check_group(process: "FaultingProcess", first: Member) -> None:
    """Raise Withheld where ``process`` is in namespaces of a container but not in its control group, or the other way round.

    The group decides on devices, and shows which processes came from outside. Where the container has none, only capabilities
    show that. A user namespace bounds what the process may do wherever it is, as long as its ids are of that namespace.
    """
    if first.processes != process.inode("pid"):
        raise withheld(process, "it is in a container's control group, but in another pid namespace")
    bounded = process.permitted & ~first.rights == 0
    if not _has_group(first):
        if not bounded:
            raise withheld(process, "it has capabilities that the container, whose namespaces it is in, could not have")
        return
    if runtime.is_within(process.cgroups, first.cgroups):
        return
    if bounded and _is_in_user_namespace(process, first):
        return
    raise withheld(process, "it is in a container's namespaces, but in another control group")


def _check_eldest(process: "FaultingProcess", first: Member) -> None:
    """Raise Withheld where ``process`` has kept a namespace of the host that its container does not have.

    Or where its pid namespace is neither that of the container nor one below.
    """
    namespace = process.descriptor("pid")
    host = namespaces.of_host("pid")
    if namespace is not None and first.processes not in [*namespaces.lineage(namespace, host), host]:
        raise withheld(process, "it is in a container's control group, but in another pid namespace")
    for kind in ("net", "ipc", "uts"):
        if process.descriptor(kind) is None and first.namespace(kind) != namespaces.of_host(kind):
            raise withheld(process, f"it is in a container's control group, but in the host's {kind} namespace")


def _is_in_user_namespace(process: "FaultingProcess", first: Member) -> bool:
    """Tell whether ``process`` is in the user namespace of ``first`` or below it, with ids of that namespace."""
    if process.user_namespace is None or first.namespace("user") not in _user_namespaces(process):
        return False
    groups = [process.gid, *process.groups]
    return _are_mapped(first, "uid_map", [process.uid]) and _are_mapped(first, "gid_map", groups)


def _are_mapped(first: Member, name: str, ids: "list[int]") -> bool:
    """Tell whether the user namespace of ``first`` has all ``ids`` of the host; user_namespaces(7)."""
    ranges = [[int(word) for word in line.split()] for line in procfs.read(first.directory, name).splitlines()]
    return all(any(begin <= number < begin + count for _inside, begin, count in ranges) for number in ids)


def _user_namespaces(process: "FaultingProcess") -> "list[int]":
    """Return the inodes of the user namespace of ``process`` and its ancestors, up to that of the host."""
    host = namespaces.of_host("user")
    return [host] if process.user_namespace is None else namespaces.lineage(process.user_namespace, host)


def _check_owner(process: "FaultingProcess") -> None:
    """Raise Withheld where the mount namespace belongs to a user namespace that the process is neither in nor below.

    Root of that user namespace chooses the files, and the process has rights outside of it.
    """
    owner = fcntl.ioctl(process.descriptor("mnt"), namespaces.NS_GET_USERNS)  # type: ignore[arg-type]
    inode = posix.fstat(owner).st_ino
    posix.close(owner)
    if inode not in _user_namespaces(process):
        raise withheld(process, "it is in the mount namespace of a container without being in its user namespace")


# To which container do the files belong?


def _open(directory: int, name: str) -> int:
    """Open a magic link of /proc/PID, without access to its file system: a container may have made one that does not answer."""
    return posix.open(name, posix.O_PATH | posix.O_CLOEXEC, dir_fd=directory)


def _mount_of(directory: int, name: str) -> int:
    """Return the number of the mount that the magic link ``name`` in the opened /proc/PID leads to."""
    file = _open(directory, name)
    try:
        return mount_table.mount_of(file)
    finally:
        posix.close(file)


def _sees(directory: int, number: int) -> bool:
    """Tell whether the process of the opened /proc/PID sees the mount of that number, that of its root directory included."""
    return number == _mount_of(directory, "root") or number in mount_table.mounts_of(directory)


def _check_program(process: "FaultingProcess", first: "Member | None") -> None:
    """Raise Withheld unless the process executes a program of the mount namespace that it is in.

    A process that has made its own mount namespace, and has the same root directory in it, may execute a program of its
    container's mount namespace.
    """
    own = first is not None and process.inode("mnt") == first.mounts
    number = _mount_of(process.task, "exe")
    if _sees(process.task, number):
        return
    if first is not None and (own or _same_root(process.task, first.directory)) and _sees(first.directory, number):
        return
    raise withheld(process, "it executes a program from outside of the mount namespace that it is in")


def _same_root(task: int, other: int) -> bool:
    """Tell whether two processes, opened, have the same root directory, each in a mount namespace of its own."""
    ours, theirs = (mount_table.mounts_of(file).place_of_root() for file in (task, other))
    return ours is not None and ours == theirs


def _namespace_of(pid: int, kind: str) -> "int | None":
    """Return the inode of the namespace of process ``pid``, None where it has ended; its leader alone may have exited."""
    inode = first_process.inode_of(f"/proc/{pid}/ns/{kind}")
    return inode or first_process.inode_of(f"{procfs.task_of(pid, None)}/ns/{kind}")


def _check_root(process: "FaultingProcess", first: "Member | None", proof: bool) -> None:
    """Raise Withheld where the root directory of ``process`` lies in the files of another container, or that is at home there.

    An agent may have joined its mount namespace, or have changed its root directory to where an engine has assembled its files.
    What engines have mounted is read from the host's own mounts: a container can change what its processes show, and not those.
    Where a ``proof`` is needed, the program that the process executes must lie in a root directory that was changed.
    """
    path = posix.readlink(b"/proc/self/fd/%d" % process.root)
    own = first is not None and process.inode("mnt") == first.mounts
    if path == b"/" and not process.in_container() and _is_root_of_the_host(process.root):
        return
    number = mount_table.mount_of(process.root)
    if path == b"/" and first is not None and own and number == _mount_of(first.directory, "root"):
        if proof:
            # More mounts than can be looked at are cut off: that of the root directory is one of the first.
            table = mount_table.Mounts(procfs.read(process.task, "mountinfo", procfs.MOUNTINFO_LIMIT))
            place = table[number].place_of(path) if number in table else None
            _refuse_strangers(process, first, path, place)
        return
    table = _mounts_around(process, path)
    if number not in table:
        raise withheld(process, "its root directory is in another mount namespace than the process")
    place = table[number].place_of(path)
    home = _home(process, first)
    if process.in_container() and mount_table.is_below(place, home):
        if proof:
            _refuse_strangers(process, first, path, place)
        return
    if _is_of_an_engine(place, home):
        raise withheld(process, _foreign(process, path))
    if path != b"/" and proof and not _is_program_below(process, table, path):
        raise withheld(process, "its root directory is not that of the program that it executes")
    _refuse_strangers(process, first, path, place)


def _mounts_around(process: "FaultingProcess", path: bytes) -> mount_table.Mounts:
    """Return the mounts among which the root directory of ``process`` is, whose ``path`` is that in its mount namespace."""
    namespace = process.descriptor("mnt")
    if namespace is None:
        return mount_table.mounts_of_host()
    return mount_table.mounts_of(process.task) if path == b"/" else mount_table.mounts_of_namespace(namespace)


def _home(process: "FaultingProcess", first: "Member | None") -> "tuple[bytes, bytes] | None":
    """Return the place of the root directory of the container of ``process``, or of the host; None where that is unknown.

    Of a process of the host with mounts of its own it is unknown: others in its control group prove nothing.
    """
    if not process.in_container():
        return mount_table.mounts_of_host().place_of_root()
    if first is None or not (process.in_pid_namespace() or process.container_id):
        return None
    return _root_of_mounts(first.directory)


def _root_of_mounts(directory: int) -> "tuple[bytes, bytes] | None":
    """Return the place of the root directory of the mount namespace of the process of the opened /proc/PID.

    The process itself may have another one.
    """
    root = _open(directory, "root")
    path = posix.readlink(b"/proc/self/fd/%d" % root)
    posix.close(root)
    if path == b"/":
        return mount_table.mounts_of(directory).place_of_root()
    namespace = posix.open("ns/mnt", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=directory)
    try:
        return mount_table.mounts_of_namespace(namespace).place_of_root()
    finally:
        posix.close(namespace)


def _is_of_an_engine(place: "tuple[bytes, bytes] | None", home: "tuple[bytes, bytes] | None") -> bool:
    """Tell whether a ``place`` lies in a root directory that an engine has mounted on the host, other than that at ``home``."""
    host = mount_table.mounts_of_host()
    for overlay in host.overlays():
        if home is not None and overlay.device == home[0]:
            continue
        trees = [(overlay.device, b"/"), *map(host.place_of_layer, mount_table.layers_of(overlay))]
        if any(mount_table.is_below(place, tree) for tree in trees):
            return True
    return False


def _refuse_strangers(
    process: "FaultingProcess", first: "Member | None", path: bytes, place: "tuple[bytes, bytes] | None"
) -> None:
    """Raise Withheld where another container is at home in the mounts of ``process``, or ``place`` is in its root directory."""
    mounts = process.inode("mnt") if process.in_container() else None
    holds = _holders_of(place)
    if _find_stranger(process, first, lambda pid: _namespace_of(pid, "mnt") == mounts or holds(pid)):
        raise withheld(process, _foreign(process, path))


def _foreign(process: "FaultingProcess", path: bytes) -> str:
    if process.in_container() and path == b"/":
        return "it is in the mount namespace of another container"
    return "its root directory lies in the files of another container"


def _holders_of(place: "tuple[bytes, bytes] | None") -> "Callable[[int], bool]":
    """Return a function that tells whether a place, device and path, lies in what a process has as its root directory.

    Asked where engines make no overlay. Of each mount namespace, one process is asked: it may have thousands of mounts. A mount
    namespace that belongs to a user namespace is not asked: any user can make such a one, and mount there whatever he reads.
    """
    if place is None:
        return lambda pid: False
    hosts = mount_table.mounts_of_host().place_of_root()
    host_mounts = namespaces.of_host("mnt")
    roots: dict[int, tuple[bytes, bytes] | None] = {}

    def holds(pid: int) -> bool:
        inode = _namespace_of(pid, "mnt")
        if inode in (host_mounts, None):
            return False
        if inode not in roots:
            try:
                roots[inode] = _root_of(procfs.task_of(pid, None))
            except OSError:
                return False
            except Refused:
                # More mounts than can be looked at: the other processes there show no fewer.
                roots[inode] = None
        return roots[inode] != hosts and mount_table.is_below(place, roots[inode])

    return holds


def _root_of(task: str) -> "tuple[bytes, bytes] | None":
    """Return the place of the root directory of the mount namespace of a thread, None for that of a user namespace."""
    namespace = posix.open(f"{task}/ns/mnt", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(namespace, namespaces.NS_GET_USERNS)
        inode = posix.fstat(owner).st_ino
        posix.close(owner)
        if inode != namespaces.of_host("user"):
            return None
        directory = posix.open(task, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            return _root_of_mounts(directory)
        finally:
            posix.close(directory)
    finally:
        posix.close(namespace)


def _is_program_below(process: "FaultingProcess", table: mount_table.Mounts, root: bytes) -> bool:
    """Tell whether the program that the process executes lies in the directory ``root`` of these mounts."""
    file = _open(process.task, "exe")
    try:
        path = posix.readlink(b"/proc/self/fd/%d" % file)
        return mount_table.mount_of(file) in table and mount_table.is_below((b"", path), (b"", root))
    finally:
        posix.close(file)


def _is_root_of_the_host(root: int) -> bool:
    """Tell whether the opened directory, which is the root of its mount, is on that of the helper's root directory."""
    own = posix.open("/", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        return mount_table.mount_of(root) == mount_table.mount_of(own)
    finally:
        posix.close(own)


def _find_stranger(process: "FaultingProcess", first: "Member | None", wanted: "Callable[[int], bool]") -> bool:
    """Tell whether one of the ``wanted`` processes is at home in a container other than that of ``process``.

    Raises Refused where the host has too many processes to tell.
    """
    limit = time.monotonic() + PATIENCE
    host = not process.in_pid_namespace() and not process.container_id
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
            # Whoever is of a container is a stranger to a process of the host, wherever that one came from.
            strange = host and (len(member.pids) > 1 or runtime.named_group(member.cgroups) is not None)
            if not _is_part(member, process, first) and (strange or _is_at_home(member)):
                return True
        finally:
            member.close()
    return False


def _is_part(member: Member, process: "FaultingProcess", first: "Member | None") -> bool:
    """Tell whether ``member`` belongs to the container of ``process``: by the control group, else by the pid namespace."""
    named = runtime.named_group(member.cgroups), None if first is None else runtime.named_group(first.cgroups)
    if any(named):
        # The innermost ones: a container may have containers of its own.
        return named[0] == named[1]
    if first is not None and _has_group(first) and not runtime.is_within(member.cgroups, first.cgroups):
        return False
    if not process.in_pid_namespace():
        if member.processes == process.inode("pid"):
            return True
        # A container may have been started from the very login that the process is of.
        return first is not None and _has_group(first) and process.inode("mnt") == first.mounts
    namespace = posix.open("ns/pid", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=member.directory)
    try:
        host = namespaces.of_host("pid")
        below = namespaces.lineage(namespace, host)
        above = namespaces.lineage(process.descriptor("pid"), host)  # type: ignore[arg-type]
        return process.inode("pid") in below or (member.processes != host and member.processes in above)
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
    eldest = first_process.eldest_of(*group) if group else None
    if eldest is None:
        return False
    try:
        return eldest.mounts == member.mounts or _sees(member.directory, _mount_of(member.directory, "exe"))
    except Refused:
        return True  # It has more mounts than can be looked at.
    finally:
        eldest.close()
