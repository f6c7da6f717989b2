"""Reads the names that container engines give to control groups, and says which process is in no container; cgroups(7)."""

import posix

from core_helper import procfs
from core_helper.words import harmless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.process import FaultingProcess

# The monitor of a container, a process of the host, has a control group of its own, which is named after that container:
# libpod-conmon-ID.scope of Podman, crio-conmon-ID.scope and crio-conmon-ID of CRI-O.
MONITORS = (b"libpod-conmon", b"crio-conmon")
SESSIONS = b"/user.slice/user-"
LONGEST_UNIT = 128
SLICE = b".slice"


def container_id(cgroups: "list[tuple[bytes, bytes]]") -> str:
    """Return the id of 64 hexadecimal digits that container engines put into the cgroup's path, or "".

    Docker writes /docker/ID or docker-ID.scope, Podman libpod-ID.scope, Kubernetes cri-containerd-ID.scope. The outermost
    one counts: what lies below it may have been named by the container.
    """
    found = outermost_group(cgroups)
    return "" if found is None else found[0]


def name_for_log(cgroups: "list[tuple[bytes, bytes]]") -> str:
    """Return the beginning of that id as the log names the container, "-" for none.

    A user to whom root has given a part of the hierarchy could name a group there after the container of somebody else. So the
    number of a user who has made the group stands before the id.
    """
    found = outermost_group(cgroups)
    if found is None:
        return "-"
    maker = maker_of(*found[1:])
    return ("" if maker == 0 else "?:" if maker is None else f"{maker}:") + found[0][:12]


def outermost_group(cgroups: "list[tuple[bytes, bytes]]") -> "tuple[str, bytes, bytes] | None":
    """Return id, controllers and the path above the outermost control group that has the id of a container, or None.

    Below its own group, a container may make groups that are named like those of monitors. They change nothing.
    """
    for controllers, path in cgroups:
        above = b""
        for component in path.split(b"/"):
            engine, _hyphen, name = component.rpartition(b"-")
            name = name.partition(b".")[0]
            if len(name) == 64 and not name.strip(b"0123456789abcdef") and engine not in MONITORS:
                return name.decode(), controllers, above
            above += component + b"/"
    return None


def pod_of(above: bytes) -> str:
    """Return the uid of the pod whose control group is the last one of the path ``above``, "" where that is no pod's.

    The kubelet writes pod<uid>, or kubepods-burstable-pod<uid>.slice with each hyphen of the uid as an underscore. A static pod
    has a uid without hyphens.
    """
    name = above.rstrip(b"/").rpartition(b"/")[2]
    if name.endswith(b".slice"):
        name = name[:-6].rpartition(b"-")[2].replace(b"_", b"-")
    uid = name[3:]
    known = name.startswith(b"pod") and 32 <= len(uid) <= 36 and not uid.strip(b"0123456789abcdef-")
    return uid.decode() if known else ""


def group_of(cgroups: "list[tuple[bytes, bytes]]") -> str:
    """Return the name of the group that crashes of a process in these control groups count for; of A-Za-z0-9._- only.

    "pod-UID", else "container-ID", else "unit-NAME", else "host". A user who may make control groups can give them any name:
    what such a user has made is "user-NUMBER.container-ID", and counts for nobody else.
    """
    found = outermost_group(cgroups)
    if found is not None:
        name, controllers, above = found
        maker = maker_of(controllers, above)
        if maker != 0:
            return f"user-{'unknown' if maker is None else maker}.container-{name}"
        pod = pod_of(above)
        return f"pod-{pod}" if pod else f"container-{name}"
    unit = _unit_of(cgroups)
    return f"unit-{harmless(unit, LONGEST_UNIT)}" if unit else "host"


def _unit_of(cgroups: "list[tuple[bytes, bytes]]") -> bytes:
    """Return the outermost control group that is no slice, b"" for the root groups; all sessions of a user are one.

    What lies below it may have been named by others than root: by a user's systemd, or in a container that no engine has named.
    """
    slices = b""
    for _controllers, path in cgroups:
        for component in filter(None, path.split(b"/")):
            if not component.endswith(b".slice"):
                return component
            slices = slices or path
            if (path + b"/").startswith(SESSIONS) and component != b"user.slice":
                return component
    return slices.rpartition(b"/")[2]


def unit_of_root(cgroups: "list[tuple[bytes, bytes]]") -> bytes:
    """Return the outermost control group that is no slice, where root has made it; b"" for the root groups, and for sessions.

    All instances of a template of systemd's are one: of a service like sshd@.service, anybody may start as many as there can be
    connections. The sessions of a user say nothing that the user does not. In case of doubt there is no unit.
    """
    if any(path.startswith(SESSIONS) for _controllers, path in cgroups):
        return b""
    for controllers, path in cgroups:
        above = b""
        for component in path.split(b"/"):
            if component and not component.endswith(SLICE):
                # There is a monitor for each container, and ".." where the helper does not see the group.
                if component == b".." or component.rpartition(b"-")[0] in MONITORS or maker_of(controllers, above) != 0:
                    return b""
                return component.partition(b"@")[0]
            above += component + b"/"
    return b""


def maker_of(controllers: bytes, above: bytes) -> "int | None":
    """Return who may make control groups in the group ``above``, as a user of the host; None where that group is not found.

    Only the owner of that group may. A user to whom root has given a part of the hierarchy can give any name to groups there;
    cgroups(7).
    """
    found = _look_up(controllers, above)
    return None if found is None else found.st_uid


def _look_up(controllers: bytes, path: bytes) -> "posix.stat_result | None":
    """Return what stat(2) says of a control group, None where it is not found."""
    first = controllers.split(b",")[0]
    usual = (first.rpartition(b"=")[2],) if controllers else (b"", b"unified")
    for hierarchy in usual:
        try:
            return _stat(b"/sys/fs/cgroup/" + hierarchy + path)
        except OSError:
            continue
    # Mounted elsewhere.
    from core_helper import control_groups

    mount_point = control_groups.own_cgroup_mounts().get(first)
    try:
        return None if mount_point is None else _stat(mount_point + path)
    except OSError:
        return None


def _stat(path: bytes) -> posix.stat_result:
    if len(path) < procfs.PATH_MAX:
        return posix.stat(path)
    descriptor = procfs.open_long(path, posix.O_PATH)
    try:
        return posix.fstat(descriptor)
    finally:
        posix.close(descriptor)


def user_of_session(cgroups: "list[tuple[bytes, bytes]]") -> int:
    """Return the user for whose sessions systemd has made the control group, 0 for nobody's; systemd.special(7).

    No user can leave that group. A container may make one of that name, but only below its own.
    """
    for _controllers, path in cgroups:
        number, slices, _rest = path[len(SESSIONS) :].partition(b".slice/")
        if path.startswith(SESSIONS) and slices and number.isdigit() and len(number) <= 10:
            return int(number)
    return 0


def group_of_root(cgroups: "list[tuple[bytes, bytes]]") -> "int | None":
    """Return a number for the innermost control group that only root could make, None for the root groups.

    The hierarchy counts in which that group lies deepest and is no slice; of several, the first one. See group_of_unit.
    """
    best, chosen = (False, 0), None
    for controllers, path in cgroups:
        group, number = b"/", None
        for component in filter(None, path.split(b"/")):
            found = _look_up(controllers, group + component)
            if found is None or maker_of(controllers, group) != 0:
                break
            group += component + b"/"
            # Each hierarchy is a device, and numbers its own groups.
            number = posix.minor(found.st_dev) << 42 | found.st_ino & ((1 << 42) - 1)
        rank = (not group.endswith(SLICE + b"/"), group.count(b"/"))
        if number is not None and rank > best:
            best, chosen = rank, number
    return chosen


def named_group(cgroups: "list[tuple[bytes, bytes]]") -> "tuple[bytes, bytes] | None":
    """Return controllers and path of the control group that an engine has named after the innermost container, or None."""
    for controllers, path in cgroups:
        parts = path.split(b"/")
        for end in range(len(parts), 1, -1):
            if container_id([(b"", parts[end - 1])]):
                return controllers, b"/".join(parts[:end])
    return None


def share_name(ours: "list[tuple[bytes, bytes]]", theirs: "list[tuple[bytes, bytes]]") -> "bool | None":
    """Tell whether an engine has named the control groups of two processes after the same container; None where it named none.

    A process that is ending shows root groups in all hierarchies of version 1 (kernel/cgroup/cgroup.c, proc_cgroup_show). So
    those hierarchies count in which both have a name. A container in a container has another name in at least one of them.
    """
    first, second = (
        {group[0]: group[1] for hierarchy in cgroups if (group := named_group([hierarchy]))}
        for cgroups in (ours, theirs)
    )
    if not first and not second:
        return None
    common = first.keys() & second.keys()
    return bool(common) and all(first[controllers] == second[controllers] for controllers in common)


def group_of_unit(cgroups: "list[tuple[bytes, bytes]]") -> "tuple[bytes, bytes] | None":
    """Return controllers and path of the innermost control group that is no slice, None where there are only slices and roots.

    In the hierarchies of version 1 that limit nothing, systemd leaves all services in the same slice; systemd.unit(5). What the
    processes of such a slice are like says nothing of this one.
    """
    groups = [group for group in cgroups if group[1] != b"/" and not group[1].endswith(SLICE)]
    return max(groups, key=lambda group: group[1].count(b"/"), default=None)


def is_within(cgroups: "list[tuple[bytes, bytes]]", first: "list[tuple[bytes, bytes]]") -> bool:
    """Tell whether ``cgroups`` lie in the container whose first process has the control groups ``first``.

    A slice that both are in shows neither that they do nor that they do not: another hierarchy may; see group_of_unit.
    """
    decided, slices = False, False
    for controllers, theirs in first:
        ours = next((path for name, path in cgroups if name == controllers), None)
        if theirs == b"/" or ours is None:
            continue
        group = named_group([(controllers, theirs)])
        if group is None and theirs.endswith(SLICE) and (ours + b"/").startswith(theirs + b"/"):
            slices = True
            continue
        decided = True
        if group is not None:
            if not (ours + b"/").startswith(group[1] + b"/"):
                return False
        elif not _share_unit(ours, theirs):
            return False
    return decided or not slices


def _share_unit(one: bytes, other: bytes) -> bool:
    """Tell whether the control group ``one`` lies in the unit of systemd's that ``other`` is in, or else in ``other`` itself.

    A unit may have groups for its own processes, and the first one of these need not be in the outermost. A slice alone holds
    units that have nothing to do with each other; systemd.unit(5).
    """
    parts = other.split(b"/")
    if parts[-1] == b"init.scope" and len(parts) > 2:
        # In init.scope is the systemd of a container, which makes the other groups of the container beside it.
        parts.pop()
    if parts[-1].endswith(SLICE):
        return False
    for end, part in enumerate(parts, 1):
        if part.endswith((b".scope", b".service")):
            parts = parts[:end]
            break
    return (one + b"/").startswith(b"/".join(parts) + b"/")


def is_of_the_host(process: "FaultingProcess") -> bool:
    """Tell whether ``process`` is outside of containers; False in case of doubt.

    Such a process has the mount, pid and user namespace of the host. Its mount namespace may be another one if everything else
    is the host's, and the root directory, too: like that of systemd's services that have a /tmp of their own.
    """
    if process.user_namespace is not None or process.in_pid_namespace():
        return False
    foreign = {namespace[0] for namespace in process.namespaces}
    if "mnt" not in foreign:
        return True
    # An id in the control group's path is an engine's, whatever namespaces the container was given. A container that has the
    # host's root directory mounted can make it the root directory of a process, by chroot(2), but not the root of its mounts.
    return (
        "cgroup" not in foreign
        and not process.container_id
        and posix.fstat(process.root)[1:3] == posix.stat("/")[1:3]
        and procfs.path_of(process.root) == b"/"
    )


def whereabouts(pid: int) -> "tuple[bytes, str]":
    """Return name and container of process ``pid`` for a line in the log, empty where they cannot be had any more."""
    try:
        directory = posix.open(f"/proc/{pid}", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    except OSError:
        return b"", "-"
    try:
        return procfs.read(directory, "comm").rstrip(b"\n"), name_for_log(
            procfs.parse_cgroup(procfs.read(directory, "cgroup"))
        )
    except OSError:
        return b"", "-"
    finally:
        posix.close(directory)
