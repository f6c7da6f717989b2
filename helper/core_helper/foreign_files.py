"""Checks whether the files that the process sees are its own container's: its root directory, and the program that it executes.

What engines have mounted is read from the host's own mounts: a container can change what its processes show, and not those.
"""

import posix

from core_helper import mount_table, procfs, strangers
from core_helper.process import withheld

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.first_process import Member
    from core_helper.process import FaultingProcess


class View:
    """What ``process`` has as its root directory, and the ``first`` process of its container, None where that is unknown.

    ``path`` is that of the root directory in its mount namespace. ``own`` tells whether that is the one of ``first``.
    """

    def __init__(self, process: "FaultingProcess", first: "Member | None") -> None:
        """Take the process, and the first one of its container."""
        self.process = process
        self.first = first
        self.path = procfs.path_of(process.root)
        self.own = first is not None and process.inode("mnt") == first.mount_namespace
        self._host: mount_table.Mounts | None = None

    def host(self) -> mount_table.Mounts:
        """Return the mounts of the host, which are read once."""
        if self._host is None:
            self._host = mount_table.mounts_of_host(*self.numbers())
        return self._host

    def numbers(self) -> "list[int]":
        """Return the numbers of the mounts that always count, even if a user has made them.

        They are those of the root directory and, where that was changed, of the program.
        """
        root = mount_table.mount_of(self.process.root)
        return [root] if self.path == b"/" else [root, mount_table.mount_of_link(self.process.task, "exe")]

    def around(self) -> mount_table.Mounts:
        """Return the mounts to search for those of the root directory and of the program."""
        namespace = self.process.descriptor("mnt")
        if namespace is None:
            return self.host()
        if self.path == b"/":
            return mount_table.mounts_of(self.process.task, *self.numbers())
        return self.process.visits.mounts_of_namespace(namespace, *self.numbers())

    def home(self) -> "tuple[bytes, bytes] | None":
        """Return the place of the root directory of the container of the process, or of the host; None where that is unknown.

        Of a process of the host with mounts of its own it is unknown: others in its control group prove nothing.
        """
        if not self.process.in_container():
            return self.host().place_of_root()
        if self.first is None or self.process.shows_no_container():
            return None
        return self.process.visits.root_of_namespace(self.first.directory)


def has_root_of_the_host(view: View) -> bool:
    """Tell whether the process sees the host's files in mounts of its own, as the services of systemd do."""
    own = mount_table.first_mounts_of(view.process.task).place_of_root()
    return own is not None and own == view.host().place_of_root()


def check_root(view: View, proof: bool) -> None:
    """Raise Withheld where the root directory of the process lies in the files of another container, or that is at home there.

    An agent may have joined its mount namespace, or have changed its root directory to where an engine has assembled its files.
    Where a ``proof`` is needed, the program that the process executes must lie in a root directory that was changed.
    """
    process, path = view.process, view.path
    if path == b"/" and not process.in_container() and _is_root_of_the_host(process.root):
        return
    number = mount_table.mount_of(process.root)
    if path == b"/" and _has_root_of_first(view, number):
        if proof:
            # What the engine has given is on one of the first mounts: more than can be looked at are cut off.
            table = mount_table.first_mounts_of(process.task)
            strangers.refuse(view, table[number].place_of(path) if number in table else None)
        return
    table = view.around()
    if number not in table:
        raise withheld(process, "its root directory is in another mount namespace than the process")
    place, home = table[number].place_of(path), view.home()
    if process.in_container() and mount_table.is_below(place, home):
        if not proof:
            return
    else:
        if _is_of_an_engine(place, home, view.host()):
            raise withheld(process, strangers.reason(view))
        if path != b"/" and proof and not _is_program_below(process, table, path):
            raise withheld(process, "its root directory is not that of the program that it executes")
    strangers.refuse(view, place)


def check_program(view: View) -> None:
    """Raise Withheld unless the process executes a program of the mount namespace that it is in.

    A process that has made its own mount namespace, and has the same root directory in it, may execute a program of its
    container's mount namespace.
    """
    task, first = view.process.task, view.first
    number = mount_table.mount_of_link(task, "exe")
    if mount_table.sees(task, number):
        return
    if (
        first is not None
        and (view.own or _same_root(task, first.directory))
        and mount_table.sees(first.directory, number)
    ):
        return
    raise withheld(view.process, "it executes a program from outside of the mount namespace that it is in")


def _has_root_of_first(view: View, number: int) -> bool:
    """Tell whether the process has the same root directory as the first process, which is on the mount ``number``."""
    return view.first is not None and view.own and number == mount_table.mount_of_link(view.first.directory, "root")


def _same_root(task: int, other: int) -> bool:
    """Tell whether two processes, opened, have the same root directory, each in a mount namespace of its own."""
    ours, theirs = (mount_table.first_mounts_of(file).place_of_root() for file in (task, other))
    return ours is not None and ours == theirs


def _is_of_an_engine(
    place: "tuple[bytes, bytes] | None", home: "tuple[bytes, bytes] | None", host: mount_table.Mounts
) -> bool:
    """Tell whether a ``place`` lies in a root directory that an engine has mounted on the host, other than that at ``home``."""
    for overlay in host.overlays():
        if home is not None and overlay.device == home[0]:
            continue
        trees = [(overlay.device, b"/"), *map(host.place_of_layer, mount_table.layers_of(overlay))]
        if any(mount_table.is_below(place, tree) for tree in trees):
            return True
    return False


def _is_program_below(process: "FaultingProcess", table: mount_table.Mounts, root: bytes) -> bool:
    """Tell whether the program that the process executes lies in the directory ``root`` of these mounts."""
    file = mount_table.open_link(process.task, "exe")
    try:
        path = procfs.path_of(file)
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
