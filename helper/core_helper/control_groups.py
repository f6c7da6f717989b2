"""Joins the control groups of the faulting process; cgroups(7)."""

import posix

from core_helper import linux, mount_table, procfs

UNIFIED = "unified"
NOT_MOUNTED = "its hierarchy is not mounted on the host"
# By the controllers of a hierarchy, the unified one or that of memory alone: limit, usage, and how names in memory.stat begin.
MEMORY_FILES = {
    b"": (b"/memory.max", b"/memory.current", b""),
    b"memory": (b"/memory.limit_in_bytes", b"/memory.usage_in_bytes", b"total_"),
}

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.process import FaultingProcess


class ControlGroups:
    """The control groups of the process, opened on the host: the container's own mounts cannot be trusted.

    ``unified`` is the directory of the group in the unified hierarchy (version 2), for a fork right into that group; None where
    there is nothing to join. ``others`` are (name, descriptor or the reason why there is none), for joining by a write.
    ``ways_out`` are the files by which a process leaves the groups that count processes, for the root groups of the helper.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.unified: int | None = None
        self.others: list[tuple[str, int | OSError]] = []
        self.ways_out: list[bytes] = []
        self._opened_ways_out: list[int] = []

    def add(self, name: str, file: bytes) -> None:
        """Open ``file``, by which a process joins the group ``name``."""
        try:
            self.others.append((name, procfs.open_long(file, posix.O_WRONLY)))
        except OSError as error:
            self.others.append((name, error))

    def files(self) -> "list[int]":
        """Return the descriptors of those that count processes and are joined by a write."""
        return [file for name, file in self.others if isinstance(file, int) and _counts_processes(name)]

    def fork(self) -> int:
        """Fork; the child is in the unified group. Like posix.fork() where the kernel or the group's pids.max forbids that."""
        if self.unified is not None:
            try:
                pid = linux.fork_into_cgroup(self.unified)
            except OSError:
                return posix.fork()
            if pid == 0:
                # The fork has joined it already; without its entry, nothing can write to its file by mistake.
                self.others = [(name, file) for name, file in self.others if name != UNIFIED]
            return pid
        return posix.fork()

    def join(self, counting_only: bool = False) -> "list[str]":
        """Join what was not joined by the fork, with the calling process; return a line for each that could not be.

        With ``counting_only``, those that count processes. The kernel checks the permission of the process that opened the
        file, so this works after the privileges were dropped. It also works where pids.max is reached, which forbids only to
        fork within the group; cgroups(7).
        """
        failures = []
        for name, file in self.others:
            if counting_only and not _counts_processes(name):
                continue
            try:
                if isinstance(file, OSError):
                    raise file
                _enter_group(file)
            except OSError as error:
                failures.append(f"control group {name}: {error.strerror}")
        return failures

    def prepare_to_leave(self) -> None:
        """Have the next child start outside of the group, and able to ``leave`` what it joins. Raises OSError."""
        self.unified = None
        self._opened_ways_out = [posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC) for path in self.ways_out]

    def leave(self) -> None:
        """Leave the groups that count processes and so may forbid the next fork. Raises OSError."""
        for file in self._opened_ways_out:
            _enter_group(file)


def _counts_processes(name: str) -> bool:
    return name == UNIFIED or "pids" in name.split(",")


def _enter_group(file: int) -> None:
    """Move the calling process into the group of the opened ``file``."""
    posix.write(file, b"0")


def cgroup_mounts(mountinfo: bytes) -> "dict[bytes, bytes]":
    """Return the mount point of each hierarchy by its controllers as /proc/PID/cgroup names them, b"" for the unified.

    ``mountinfo`` is /proc/PID/mountinfo of the host; proc_pid_mountinfo(5).
    """
    mounts: dict[bytes, bytes] = {}
    for line in mountinfo.split(b"\n"):
        left, _dash, right = line.partition(b" - cgroup")
        fields, tail = left.split(b" "), right.split(b" ")
        if len(tail) < 3 or len(fields) < 5 or fields[3] != b"/":
            continue
        mount_point = mount_table.decoded(fields[4])
        if tail[0] == b"2":
            mounts.setdefault(b"", mount_point)
        elif tail[0] == b"":
            # The superblock's options hold the controllers, besides rw, xattr, release_agent= and the like.
            for option in tail[2].split(b","):
                mounts.setdefault(option, mount_point)
    return mounts


def own_cgroup_mounts() -> "dict[bytes, bytes]":
    """Return the mount point of each hierarchy that the helper sees, by its controllers. Raises OSError."""
    return cgroup_mounts(procfs.read_path("/proc/self/mountinfo", procfs.MOUNTINFO_LIMIT))


def memory_left(cgroups: "list[tuple[bytes, bytes]]") -> "int | None":
    """Return how many bytes of memory the groups of a process may still take, None without a limit; ``cgroups`` are its paths.

    What the kernel holds of files does not count: it can be freed.
    """
    mounts = own_cgroup_mounts()
    room: int | None = None
    for controllers, path in cgroups:
        mount_point = mounts.get(controllers)
        if mount_point is None or controllers not in MEMORY_FILES:
            continue
        while path not in (b"", b"/"):
            left = _memory_left_in(mount_point + path, *MEMORY_FILES[controllers])
            if left is not None and (room is None or left < room):
                room = left
            path = path.rpartition(b"/")[0]
    return room


def _memory_left_in(group: bytes, limit: bytes, usage: bytes, prefix: bytes) -> "int | None":
    """Return how many bytes one group may still take, None where it has no limit, or no such controller."""
    try:
        most = _content(group + limit).strip()
        if not most.isdigit():
            return None
        fields = dict(line.split(b" ", 1) for line in _content(group + b"/memory.stat").splitlines())
        files = sum(int(fields.get(prefix + name, b"0")) for name in (b"active_file", b"inactive_file"))
        return int(most) - int(_content(group + usage)) + files
    except OSError:
        return None


def _content(path: bytes) -> bytes:
    file = procfs.open_long(path, posix.O_RDONLY)
    try:
        return procfs.read_all(file)
    finally:
        posix.close(file)


def open_control_groups(process: "FaultingProcess") -> ControlGroups:
    """Open the control groups of ``process`` except root groups, in which the kernel starts the helper; cgroups(7)."""
    mounts = own_cgroup_mounts()
    groups = ControlGroups()
    for controllers, path in process.cgroups:
        if path == b"/":
            continue
        mount_point = mounts.get(controllers.split(b",")[0])
        name = controllers.decode("latin-1") or UNIFIED
        if mount_point is None and controllers.startswith(b"name="):
            # systemd-nspawn of systemd 252 mounts name=systemd in the container alone. It cannot be joined from here, and need
            # not: a hierarchy without controllers limits nothing.
            continue
        if mount_point is None:
            groups.others.append((name, OSError(linux.ENOENT, NOT_MOUNTED)))
            continue
        # A single thread joins an old hierarchy through "tasks": unlike cgroup.procs that takes no lock which every fork of the
        # machine has to wait for (kernel/cgroup/cgroup.c, cgroup_procs_write_start).
        file = b"/tasks" if controllers else b"/cgroup.procs"
        groups.add(name, mount_point + path + file)
        if _counts_processes(name):
            groups.ways_out.append(mount_point + file)
        if not controllers:
            try:
                groups.unified = procfs.open_long(mount_point + path, posix.O_PATH | posix.O_DIRECTORY)
            except OSError:
                pass  # add() has noted why.
    return groups
