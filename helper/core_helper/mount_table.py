"""Reads the lists of mounts that processes see, and says where a path lies; proc_pid_mountinfo(5)."""

import posix
import time

from core_helper import apart, linux, procfs
from core_helper.crash import Refused

OVERLAYS = (b"overlay", b"fuse.fuse-overlayfs", b"aufs")
# Bytes that are read of a list of which few lines are kept: twice of what fusermount3(1) lets all users together mount.
LONGEST_LIST = 1 << 26
PATIENCE = 3.0  # Seconds for all visits to mount namespaces: what a container has answered by then, it will not answer.

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator


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

    def __init__(self, mountinfo: bytes, left_out: "frozenset[int] | set[int]" = frozenset()) -> None:
        """Take the content of /proc/PID/mountinfo, and the hashes of the mount points that were left out there."""
        self.text = b"\n" + mountinfo
        self._left_out = left_out
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
        """Return the mount that an absolute ``path`` is on; no file system and no link is looked at.

        None where that mount was left out.
        """
        if not self._by_point:
            mounts = map(Mount, filter(None, self.text.split(b"\n")))
            # The last one at a mount point covers those before.
            self._by_point = {mount.point: mount for mount in mounts}
        while path not in self._by_point and hash(path) not in self._left_out:
            if path in (b"", b"/"):
                return None
            path = path.rpartition(b"/")[0] or b"/"
        return None if hash(path) in self._left_out else self._by_point[path]

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


def open_link(directory: int, name: str) -> int:
    """Open a magic link of /proc/PID, without access to its file system: a container may have made one that does not answer."""
    return posix.open(name, posix.O_PATH | posix.O_CLOEXEC, dir_fd=directory)


def mount_of_link(directory: int, name: str) -> int:
    """Return the number of the mount that the magic link ``name`` in the opened /proc/PID leads to."""
    file = open_link(directory, name)
    try:
        return mount_of(file)
    finally:
        posix.close(file)


def mounts_of(directory: int, *numbers: int) -> Mounts:
    """Return those mounts that the process of the opened /proc/PID sees which have one of these ``numbers``.

    No other is kept: a user can make the list of others long. Raises Refused where it is too long to look at.
    """
    file = procfs.open_file(directory, "mountinfo")
    try:
        return Mounts(b"\n".join(line for line in _lines(file, LONGEST_LIST) if _number_of(line) in numbers))
    finally:
        posix.close(file)


def first_mounts_of(directory: int) -> Mounts:
    """Return all mounts that the process of the opened /proc/PID sees, but where they are too many, only the first ones.

    That of its root directory is among them: what is mounted below comes later.
    """
    text = procfs.read(directory, "mountinfo", procfs.MOUNTINFO_LIMIT)
    # The last line may have been cut off in its mount point.
    return Mounts(text if len(text) < procfs.MOUNTINFO_LIMIT else text[: text.rfind(b"\n") + 1])


def sees(directory: int, number: int) -> bool:
    """Tell whether the process of the opened /proc/PID sees the mount of that number, that of its root directory included."""
    return number == mount_of_link(directory, "root") or number in mounts_of(directory, number)


def mounts_of_host(*numbers: int) -> Mounts:
    """Return the mounts of the host, without those of FUSE that a user has made, unless they have one of these ``numbers``.

    With fusermount3(1), a user can make the list longer than anybody could read, and name any type of FUSE. Engines that use
    fuse-overlayfs mount it as root, or in a mount namespace of their own. Raises Refused where the others are too many.
    """
    file = posix.open("/proc/self/mountinfo", posix.O_RDONLY | posix.O_CLOEXEC)
    kept, size, left_out = [], 0, set()
    try:
        for line in _lines(file):
            if b" - fuse" in line and _is_of_user(line) and _number_of(line) not in numbers:
                # Nothing below it is asked; see place_of_layer.
                left_out.add(hash(Mount(line).point))
                continue
            kept.append(line)
            size += len(line) + 1
            if size > procfs.MOUNTINFO_LIMIT:
                raise Refused("the list of the host's mounts is too long: core not delegated")
    finally:
        posix.close(file)
    return Mounts(b"\n".join(kept), left_out)


def _lines(file: int, longest: "int | None" = None) -> "Iterator[bytes]":
    """Yield the lines of an opened list of mounts. Raises Refused where there are more than ``longest`` bytes."""
    rest, size = b"", 0
    while part := posix.read(file, 65536):
        size += len(part)
        if longest is not None and size > longest:
            raise Refused(f"the list of its mounts is longer than {longest >> 20} MiB: core not delegated")
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _number_of(line: bytes) -> int:
    number = line.partition(b" ")[0]
    return int(number) if number.isdigit() else -1


def _is_of_user(line: bytes) -> bool:
    """Tell whether this is FUSE that a user has mounted, and not where all of the host's files are."""
    mount = Mount(line)
    users = [option for option in mount.options.split(b",") if option.startswith(b"user_id=")]
    return mount.kind.startswith(b"fuse") and mount.point != b"/" and users not in ([], [b"user_id=0"])


class Visits:
    """Visits to mount namespaces, all for one crash: a container can make some of them last as long as it likes."""

    def __init__(self) -> None:
        """Begin with nothing used."""
        self.patience = PATIENCE
        self.hanging = 0  # The pid of a child that not even SIGKILL has ended, if there is one.

    def mounts_of_namespace(self, namespace: int, *numbers: int) -> Mounts:
        """Return the mounts of the opened mount ``namespace`` with one of these ``numbers``, by the visit of a child; setns(2).

        Without numbers, the first ones, as ``first_mounts_of`` does. A process shows only what lies below its root directory.
        Raises Refused where nobody can look, or not within the patience for all visits: a child may have to wait in a mount
        namespace, as for the daemon of autofs.
        """
        if self.hanging or self.patience <= 0:
            raise Refused(
                "no other mount namespace is looked at after one where that lasted too long: core not delegated"
            )
        began = time.monotonic()
        text, self.hanging = apart.read(lambda pipe: _visit(namespace, numbers, pipe), began + self.patience)
        self.patience -= time.monotonic() - began
        if text is None:
            raise Refused("a process that enters its mount namespace has to wait: core not delegated")
        if not text:
            raise Refused("the mounts of its mount namespace cannot be looked at: core not delegated")
        return Mounts(text)

    def root_of_namespace(self, directory: int) -> "tuple[bytes, bytes] | None":
        """Return the place of the root directory of the mount namespace of the process of the opened /proc/PID.

        The process itself may have another one.
        """
        root = open_link(directory, "root")
        path = procfs.path_of(root)
        posix.close(root)
        if path == b"/":
            return first_mounts_of(directory).place_of_root()
        namespace = posix.open("ns/mnt", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=directory)
        try:
            return self.mounts_of_namespace(namespace).place_of_root()
        finally:
            posix.close(namespace)


def _visit(namespace: int, numbers: "tuple[int, ...]", pipe: int) -> None:
    """In a child: enter the mount namespace, and write its mounts to the ``pipe``; none is a line, too."""
    # Of the child: after the visit begins, there may be no /proc, or a false one.
    own = posix.open("/proc/self", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    # Above all the core: it would keep the faulting process waiting as long as this one waits.
    linux.close_all_but({own, namespace, pipe})
    linux.setns(namespace, linux.CLONE_NEWNS)
    apart.write(pipe, (mounts_of(own, *numbers) if numbers else first_mounts_of(own)).text)


def decoded(path: bytes) -> bytes:
    """Return ``path`` without the octal escapes of /proc/PID/mountinfo; proc_pid_mountinfo(5)."""
    # The backslash comes last: one that is part of a name is escaped itself, so none of the others begins with it.
    for escape, character in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(escape, character)
    return path
