"""Control groups: which of them an engine has named after a container, and which processes are in them; cgroups(7)."""

import posix

from core_helper import command, container, procfs

MOST_GROUPS, MOST_PROCESSES = 256, 4096


def named(cgroups: "list[tuple[bytes, bytes]]") -> "tuple[bytes, bytes] | None":
    """Return controllers and path of the control group that an engine has named after the innermost container, or None."""
    for controllers, path in cgroups:
        parts = path.split(b"/")
        for end in range(len(parts), 1, -1):
            if procfs.container_id([(b"", parts[end - 1])]):
                return controllers, b"/".join(parts[:end])
    return None


def is_within(cgroups: "list[tuple[bytes, bytes]]", first: "list[tuple[bytes, bytes]]") -> bool:
    """Tell whether ``cgroups`` lie in the container whose first process has the control groups ``first``."""
    for controllers, theirs in first:
        ours = next((path for name, path in cgroups if name == controllers), None)
        if theirs == b"/" or ours is None:
            continue
        group = named([(controllers, theirs)])
        if group is not None:
            if not (ours + b"/").startswith(group[1] + b"/"):
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


def processes_in(controllers: bytes, path: bytes) -> "list[int]":
    """Return the processes of a control group and the groups below it. Raises Refused where they are too many to tell."""
    mounts = container.cgroup_mounts(procfs.read_path("/proc/self/mountinfo", procfs.MOUNTINFO_LIMIT))
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
