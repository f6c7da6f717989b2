"""Joins the container of the faulting process: its control groups, namespaces and root directory."""

import posix

from core_helper import linux, procfs
from core_helper.crash import Refused
from core_helper.words import encode

UNIFIED = "unified"
OVERLAYS = (b"overlay", b"fuse.fuse-overlayfs", b"aufs")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

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
            self.others.append((name, posix.open(file, posix.O_WRONLY | posix.O_CLOEXEC)))
        except OSError as error:
            self.others.append((name, error))

    def files(self) -> "list[int]":
        """Return the descriptors of those that are joined by a write."""
        return [file for _name, file in self.others if isinstance(file, int)]

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
        mount_point = decoded(fields[4])
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


class Mount:
    """A mount: where it is, on which device its file system is, and which directory of that it shows; proc_pid_mountinfo(5)."""

    def __init__(self, line: bytes) -> None:
        """Take a line of /proc/PID/mountinfo."""
        left, _dash, right = line.partition(b" - ")
        fields = left.split(b" ")
        self.device = fields[2]
        self.root = decoded(fields[3])
        self.point = decoded(fields[4])
        tail = right.split(b" ")
        self.kind, self.options = tail[0], tail[-1]  # Both of the file system.

    def place_of(self, path: bytes) -> "tuple[bytes, bytes] | None":
        """Return the device of a ``path`` on this mount, and the path within that file system; None where it is not on it."""
        if not is_below((b"", path), (b"", self.point)):
            return None
        return self.device, self.root.rstrip(b"/") + b"/" + path[len(self.point) :].lstrip(b"/")


class Mounts:
    """The mounts that a process sees, by their numbers. Kept as the kernel's text: a mount namespace may have 100,000."""

    def __init__(self, mountinfo: bytes) -> None:
        """Take the content of /proc/PID/mountinfo."""
        self.text = b"\n" + mountinfo
        self._by_point: dict[bytes, Mount] = {}

    def __contains__(self, number: int) -> bool:
        """Tell whether there is a mount of that number."""
        return b"\n%d " % number in self.text

    def __getitem__(self, number: int) -> Mount:
        """Return the mount of that number. Raises KeyError."""
        begin = self.text.find(b"\n%d " % number)
        if begin < 0:
            raise KeyError(number)
        return Mount(self._line(begin + 1))

    def roots(self) -> "Iterator[Mount]":
        """Yield what is mounted at the root directory, the topmost mount first; none after chroot(2)."""
        end = len(self.text)
        while True:
            # The blank before the mount point, which may be that before the root within the file system, too.
            end = self.text.rfind(b" / ", 0, end)
            if end < 0:
                return
            begin = self.text.rfind(b"\n", 0, end) + 1
            line = self._line(begin)
            if line.split(b" ", 5)[4:5] == [b"/"]:
                yield Mount(line)
                end = begin

    def overlays(self) -> "Iterator[Mount]":
        """Yield the mounts that an engine makes of the layers of an image."""
        for kind in OVERLAYS:
            begin = 0
            while (begin := self.text.find(b" - %s " % kind, begin)) >= 0:
                yield Mount(self._line(self.text.rfind(b"\n", 0, begin) + 1))
                begin += 1

    def nearest(self, path: bytes) -> "Mount | None":
        """Return the mount that an absolute ``path`` is on; no file system and no link is looked at."""
        if not self._by_point:
            mounts = map(Mount, filter(None, self.text.split(b"\n")))
            # The last one at a mount point covers those before.
            self._by_point = {mount.point: mount for mount in mounts}
        while path not in self._by_point:
            if path in (b"", b"/"):
                return None
            path = path.rpartition(b"/")[0] or b"/"
        return self._by_point[path]

    def place_of(self, path: bytes) -> "tuple[bytes, bytes] | None":
        """Return device and path within its file system of an absolute ``path``; no link is followed."""
        mount = self.nearest(path)
        return None if mount is None else mount.place_of(path)

    def place_of_layer(self, path: bytes) -> "tuple[bytes, bytes] | None":
        """Return the same of a layer, which Docker names by a symbolic link beside it. FUSE is not asked: it may hang."""
        mount = self.nearest(path)
        if mount is None or mount.kind.startswith(b"fuse"):
            return None
        try:
            target = posix.readlink(path)
        except OSError:
            return mount.place_of(path)
        directory = path.rpartition(b"/")[0]
        while target.startswith(b"../"):
            directory, target = directory.rpartition(b"/")[0], target[3:]
        return self.place_of(target if target.startswith(b"/") else directory + b"/" + target)

    def place_of_root(self) -> "tuple[bytes, bytes] | None":
        """Return device and path of the root directory that the process sees, None where that is no mount."""
        root = next(self.roots(), None)
        return None if root is None else root.place_of(b"/")

    def _line(self, begin: int) -> bytes:
        end = self.text.find(b"\n", begin)
        return self.text[begin : len(self.text) if end < 0 else end]


def layers_of(mount: Mount) -> "list[bytes]":
    """Return the directories of which an overlay ``mount`` is made, its upper one first, as absolute paths; none for others.

    With many layers, Docker gives paths that are relative to the directory above that of the mount point.
    """
    paths = []
    base = mount.point.rpartition(b"/")[0].rpartition(b"/")[0]
    for option in mount.options.split(b","):
        name, _equals, value = option.partition(b"=")
        if name in (b"upperdir", b"lowerdir", b"lowerdir+", b"datadir+"):
            layers = [decoded(path) for path in value.split(b":") if path]
            paths += [path if path.startswith(b"/") else base + b"/" + path for path in layers]
    return paths


def is_below(place: "tuple[bytes, bytes] | None", tree: "tuple[bytes, bytes] | None") -> bool:
    """Tell whether a place, device and path, is ``tree`` or lies below it."""
    if place is None or tree is None:
        return False
    return place[0] == tree[0] and (place[1].rstrip(b"/") + b"/").startswith(tree[1].rstrip(b"/") + b"/")


def mount_of(descriptor: int, proc_self: "int | None" = None) -> int:
    """Return the number of the mount that the opened ``descriptor`` is on, without access to that mount; proc_pid_fdinfo(5).

    ``proc_self`` is the opened /proc/self of the host where the host's /proc is out of reach.
    """
    directory = "" if proc_self is not None else "/proc/self/"
    file = posix.open(f"{directory}fdinfo/{descriptor}", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=proc_self)
    try:
        return int(procfs.parse_status(procfs.read_all(file))["mnt_id"])
    finally:
        posix.close(file)


def mounts_of(directory: int) -> Mounts:
    """Return the mounts that the process of the opened /proc/PID sees. Raises Refused where they are too many to look at."""
    return _bounded(procfs.read(directory, "mountinfo", procfs.MOUNTINFO_LIMIT))


def mounts_of_host() -> Mounts:
    """Return the mounts of the host, without those of FUSE that a user has made. Raises Refused like ``mounts_of``.

    With fusermount3(1), a user can make the list longer than anybody could read.
    """
    file = posix.open("/proc/self/mountinfo", posix.O_RDONLY | posix.O_CLOEXEC)
    kept, size, rest = [], 0, b""
    try:
        while part := posix.read(file, 65536):
            *lines, rest = (rest + part).split(b"\n")
            lines = [line for line in lines if b" - fuse" not in line or not _is_of_user(line)]
            kept += lines
            size += sum(map(len, lines)) + len(lines)
            if size > procfs.MOUNTINFO_LIMIT:
                raise Refused("the list of the host's mounts is too long: core not delegated")
    finally:
        posix.close(file)
    return Mounts(b"\n".join([*kept, rest]))


def _is_of_user(line: bytes) -> bool:
    mount = Mount(line)
    users = [option for option in mount.options.split(b",") if option.startswith(b"user_id=")]
    return mount.kind.startswith(b"fuse") and mount.kind not in OVERLAYS and users not in ([], [b"user_id=0"])


def mounts_of_namespace(namespace: int) -> Mounts:
    """Return all mounts of the opened mount ``namespace``, by the short visit of a child; setns(2).

    A process shows only what lies below its root directory. Raises Refused like ``mounts_of``, and where nobody can look.
    """
    reading, writing = posix.pipe()
    pid = posix.fork()
    if pid == 0:
        try:
            # Of the child: after the visit begins, there may be no /proc, or a false one.
            own = posix.open("/proc/self", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
            linux.setns(namespace, linux.CLONE_NEWNS)
            text = procfs.read(own, "mountinfo", procfs.MOUNTINFO_LIMIT)
            while text:
                text = text[posix.write(writing, text) :]
        finally:
            posix._exit(0)
    posix.close(writing)
    try:
        text = procfs.read_all(reading, procfs.MOUNTINFO_LIMIT)
    finally:
        posix.close(reading)
        posix.waitpid(pid, 0)
    if not text:
        raise Refused("the mounts of its mount namespace cannot be looked at: core not delegated")
    return _bounded(text)


def _bounded(mountinfo: bytes) -> Mounts:
    if len(mountinfo) == procfs.MOUNTINFO_LIMIT:
        raise Refused(f"the list of its mounts is longer than {procfs.MOUNTINFO_LIMIT >> 20} MiB: core not delegated")
    return Mounts(mountinfo)


def decoded(path: bytes) -> bytes:
    """Return ``path`` without the octal escapes of /proc/PID/mountinfo; proc_pid_mountinfo(5)."""
    # The backslash comes last: one that is part of a name is escaped itself, so none of the others begins with it.
    for escape, character in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(escape, character)
    return path


def open_control_groups(process: "FaultingProcess") -> ControlGroups:
    """Open the control groups of ``process`` except root groups, in which the kernel starts the helper; cgroups(7)."""
    proc_self = posix.open("/proc/self", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    mounts = cgroup_mounts(procfs.read(proc_self, "mountinfo"))
    posix.close(proc_self)
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
            groups.others.append((name, OSError(2, "its hierarchy is not mounted on the host")))
            continue
        # A single thread joins an old hierarchy through "tasks": unlike cgroup.procs that takes no lock which every fork of the
        # machine has to wait for (kernel/cgroup/cgroup.c, cgroup_procs_write_start).
        file = b"/tasks" if controllers else b"/cgroup.procs"
        groups.add(name, mount_point + path + file)
        if _counts_processes(name):
            groups.ways_out.append(mount_point + file)
        if not controllers:
            try:
                groups.unified = posix.open(mount_point + path, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
            except OSError:
                pass  # add() has noted why.
    return groups


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
        mount = mount_of(process.root, proc_self)
        if mount != mount_of(root, proc_self) and mount not in mounts_of(proc_self):
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
