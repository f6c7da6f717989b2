"""Finds the first process of a container, with which other processes of that container are compared."""

import fcntl
import posix
import time

from core_helper import control_groups, linux, namespaces, procfs, runtime
from core_helper.crash import Refused
from core_helper.words import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

    from core_helper.process import FaultingProcess

MOST_GROUPS, MOST_PROCESSES = 256, 4096
# What lets a process into the mounts of others: setns(2) takes the second one, /proc/PID/root the first.
CAP_SYS_PTRACE, CAP_SYS_ADMIN = 19, 21
DOCKER_CAPABILITIES = 0xA80425FB  # What Docker gives a container; a process with no more cannot make a pid namespace.
PATIENCE = 30.0  # Seconds for a look at all processes of the host.


class Hidden(Refused):
    """A process is in a control group so far down that the kernel shows its path to nobody; kernel/cgroup/cgroup.c."""


class Member:
    """An opened process, and the facts that show to which container it belongs. Raises OSError when it is gone, or Hidden."""

    def __init__(self, pid: int) -> None:
        """Open process ``pid`` of the host and read what counts here."""
        path = procfs.task_of(pid, None)
        self.directory = posix.open(path, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            self.status = procfs.parse_status(procfs.read(self.directory, "status"))
            self.cgroups = procfs.parse_cgroup(procfs.read(self.directory, "cgroup"))
            self.mount_namespace = self.namespace("mnt")
            self.pid_namespace = self.namespace("pid")
        except OSError as error:
            self.close()
            if error.errno == linux.ENAMETOOLONG:
                text = f"nobody can tell to which container process {pid} belongs: the path of its control group is too long"
                raise Hidden(text) from None
            procfs.refuse_lease(error)
            raise
        self.pids = self.status.get("NStgid", self.status["Tgid"]).split()
        self.filters = int(self.status.get("Seccomp_filters", "0"))
        self.rights = rights_of(self.status)

    def namespace(self, name: str) -> int:
        """Return the inode of the namespace ``name``."""
        return posix.stat(f"ns/{name}", dir_fd=self.directory).st_ino

    def has_group(self) -> bool:
        """Tell whether it is in a control group other than the root ones."""
        return any(path != b"/" for _controllers, path in self.cgroups)

    def close(self) -> None:
        """Close it."""
        posix.close(self.directory)


def rights_of(status: "dict[str, str]") -> int:
    """Return the capabilities that a thread with this ``status`` has, or gets when it executes a program; capabilities(7).

    A thread that drops a capability from its bounding set keeps it in the others.
    """
    return int(status["CapPrm"], 16) | int(status["CapBnd"], 16) | int(status["CapInh"], 16)


def first_of(process: "FaultingProcess") -> "tuple[Member | None, list[Member]]":
    """Return the first process of the container of ``process``, None where unknown, and others to compare ``process`` with.

    The container is that of the control group, if an engine has named that group; else that of the pid namespace. Outside of
    pid namespaces it is the control group as it is, unless that is the root group or a slice. The others are the first process
    of the outermost container, and the eldest process of the control group around a sandbox, which has made the sandbox.
    Raises Refused where the first process of the pid namespace is not found.
    """
    namespace = process.descriptor("pid")
    group = runtime.named_group(process.cgroups)
    if namespace is None:
        return (eldest_of(*group) if group else _eldest_of_own(process)), []
    init = _init_of(process, namespace, process.depth)
    if init is None:
        raise Refused("the first process of its pid namespace was not found: core not delegated")
    others: list[Member | None] = []
    if process.depth > 2:
        others.append(_init_of(process, namespaces.outermost(namespace, namespaces.of_host("pid")), 2))
    if group is None:
        # A sandbox that a user of the host made: the process that started it is in the same control group.
        first: Member | None = init
        others.append(_eldest_of_own(process))
    elif not runtime.is_within(init.cgroups, [group]):
        # It shares the pid namespace of another container.
        first = eldest_of(*group)
        others.append(init)
    else:
        first = init
        if _may_be_another(init, process, group):
            # ``init`` may be the first process of a sandbox, in a container that has no pid namespace of its own; or of a pid
            # namespace that somebody has made who has moved himself into the container's control group.
            eldest = eldest_of(*group)
            if eldest is not None and eldest.status["Tgid"] == init.status["Tgid"]:
                eldest.close()
            else:
                others.append(eldest)
    return first, [member for member in others if member is not None]


def _may_be_another(init: Member, process: "FaultingProcess", group: "tuple[bytes, bytes]") -> bool:
    """Tell whether ``init`` may be another process than the one that the engine has started first in the control ``group``.

    Not so where it has no more than Docker gives, and was started from outside of the group. That spares a look at the group.
    """
    if process.user_namespace is not None or init.rights & ~DOCKER_CAPABILITIES:
        return True
    if any(process.descriptor(kind) is None for kind in ("net", "ipc", "uts")):
        return True
    try:
        parent = procfs.parse_cgroup(procfs.read_path(f"/proc/{init.status['PPid']}/cgroup"))
    except (OSError, KeyError):
        return False  # It has ended; or, for 0, it is outside of all that we see.
    return runtime.is_within(parent, [group])


def _init_of(process: "FaultingProcess", namespace: int, depth: int) -> "Member | None":
    """Return the first process of the opened pid ``namespace``, an ancestor of that of ``process``; ``depth`` is its level."""
    wanted = posix.fstat(namespace).st_ino
    for pid in _candidates(process, namespace, wanted):
        try:
            member = Member(pid)
        except OSError:
            continue
        # The facts are those of the opened process: its number may belong to another process by now.
        if member.pid_namespace == wanted and member.pids[-1] == "1" and len(member.pids) == depth:
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
            pid = int(procfs.stat_fields(procfs.read_path(f"/proc/{pid}/stat"))[1])
        except OSError as error:
            procfs.refuse_lease(error)
            break
    group = runtime.named_group(process.cgroups) or runtime.group_of_unit(process.cgroups)
    try:
        found = _processes_in(*group) if group else []
    except Refused:
        found = []  # Too many, but the one that is looked for may be found elsewhere.
    yield from found
    limit = time.monotonic() + PATIENCE
    for name in posix.listdir("/proc"):
        if name.isdigit() and time.monotonic() < limit and inode_of(f"/proc/{name}/ns/pid") == wanted:
            yield int(name)


def _eldest_of_own(process: "FaultingProcess") -> "Member | None":
    """Return the eldest process of the control group that ``process`` is in, None in the root groups and in a slice."""
    group = runtime.group_of_unit(process.cgroups)
    return None if group is None else eldest_of(*group)


def eldest_of(controllers: bytes, path: bytes) -> "Member | None":
    """Return the eldest process of a control group and the groups below it, None if there is none."""
    ages = []
    for pid in _processes_in(controllers, path):
        try:
            ages.append((int(procfs.stat_fields(procfs.read_path(f"/proc/{pid}/stat"))[19]), pid))
        except OSError as error:
            procfs.refuse_lease(error)
            continue
    for _age, pid in sorted(ages):
        try:
            return Member(pid)
        except OSError:
            continue
    return None


def _processes_in(controllers: bytes, path: bytes) -> "list[int]":
    """Return the processes of a control group and the groups below it. Raises Refused where they are too many to tell."""
    mounts = control_groups.own_cgroup_mounts()
    mount_point = mounts.get(controllers.split(b",")[0])
    if mount_point is None:
        return []
    groups = [mount_point + path]
    pids: list[int] = []
    for number, group in enumerate(groups):
        if number >= MOST_GROUPS or len(pids) > MOST_PROCESSES:
            raise Refused("its control group has too many processes to find the first one: core not delegated")
        try:
            file = procfs.open_long(group + b"/cgroup.procs", posix.O_RDONLY)
            try:
                pids += [int(pid) for pid in procfs.read_all(file).split()]
            finally:
                posix.close(file)
            directory = procfs.open_long(group, posix.O_RDONLY | posix.O_DIRECTORY)
            try:
                below = [entry.name for entry in posix.scandir(directory) if entry.is_dir(follow_symlinks=False)]
            finally:
                posix.close(directory)
            groups += [group + b"/" + encode(name) for name in below]
        except OSError as error:
            procfs.refuse_lease(error)
            continue  # Gone meanwhile, or of threads only.
    return pids


def inode_of(path: str) -> "int | None":
    """Return the inode at ``path``, None where there is none any more."""
    try:
        return posix.stat(path).st_ino
    except OSError:
        return None


def namespace_of(pid: int, kind: str) -> "int | None":
    """Return the inode of the namespace of process ``pid``, None where it has ended; its leader alone may have exited."""
    return inode_of(f"/proc/{pid}/ns/{kind}") or inode_of(f"{procfs.task_of(pid, None)}/ns/{kind}")
