"""To whom a crash belongs: the container, pod, unit or user that pays for it with slots and with lines of the log.

A process of the host counts for its unit, a service or a scope that root has made: one service that crashes in a loop takes no
slots from the others. Its owner is the user of the process all the same. So a user who has processes in several units, such as
sessions, cron and a service, has a share for each, and all of them together hold no more than OWNER_WEIGHT in slots.py allows
to that user. Two users have no share in common, not even in one unit: the jobs of one take nothing from those of the other. For
root, who could do anything, nothing but the units is a bound.
"""

import fcntl
import posix

from core_helper import namespaces, procfs, runtime
from core_helper.words import harmless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.crash import Crash

SUBUID, PASSWD = "/etc/subuid", "/etc/passwd"
FIRST_SUBUID = 65536  # The first number that is neither a user's nor nobody's; subuid(5).
NOBODY = -1
LAST_USER = (1 << 32) - 1
LONGEST_NAME = 104  # Bytes of a name in the records of slots.py.


class Holder:
    """The container, unit or user to whom a crash belongs.

    ``group`` stands for the pod or container, or for the unit or the user of a process of the host. ``owner`` is the user who
    could make more such groups: the one who made the container, or that user of the host; NOBODY for root, who could do
    anything. For a user who had root make the container it is a number below NOBODY. ``name`` is the group in words, for
    the log.
    """

    def __init__(self, owner: int, group: str, name: str = "") -> None:
        """Take what is counted, and the ``name``, "" where nobody writes it."""
        self.owner = owner
        self.group = group
        self.name = name


def named(name: str, owner: "int | None", by_root: bool = False) -> Holder:
    """Return the holder of that ``name``; ``owner`` is None for root.

    Two groups of different owners are different, even if they have the same name, unless root made them (``by_root``).
    """
    whose = owner or NOBODY
    # Cut to what a record holds: a longer group would never be found again.
    return Holder(whose, f"{NOBODY if by_root else whose} {name}"[:LONGEST_NAME], name)


def log_name(owner: int, group: str) -> str:
    """Return the name under which a holder's lines are counted: all groups of a user who can make many have one name."""
    return group if owner <= NOBODY else f"{owner} user {owner}"


def holder_of(crash: "Crash") -> Holder:
    """Return to whom the crash belongs, nobody known if the process is gone: another one may have its number by now.

    Without a pidfd of the kernel's, the process is not verified yet: another one in its place is refused later.
    """
    found = _holder_of(crash)
    if crash.handle is not None and not procfs.is_process_of(crash.handle, crash.pid):
        return named("unknown", None)
    return found


def _holder_of(crash: "Crash") -> Holder:
    """Return to whom the crash belongs, by the number of the process. Raises Refused."""
    opened: list[int] = []
    try:
        task = procfs.task_of(crash.pid, crash.tid)
        cgroups = procfs.parse_cgroup(procfs.read_path(f"{task}/cgroup"))
        group = runtime.outermost_group(cgroups)
        if group is not None:
            maker = runtime.maker_of(*group[1:])
            if maker is not None:
                # This is one container, whatever namespaces it was given and its processes have made, or one pod. A user of
                # the host who may make control groups can give them any name: such a group counts for that user only.
                owner, pod = user_of(maker), runtime.pod_of(group[2])
                if owner:
                    return named(f"control group of user {owner} {group[0]}", owner)
                return named(f"pod {pod}" if pod else f"container {group[0]}", None)
        if _may_have_lost_groups(crash, task, cgroups):
            return named("unknown", None)
        opened.append(posix.open(f"{task}/ns/pid", posix.O_RDONLY | posix.O_CLOEXEC))
        host = namespaces.of_host("pid")
        if posix.fstat(opened[0]).st_ino != host:
            # The namespace itself says who made it; its processes may make user namespaces as any user. The outermost one
            # counts: a container that makes namespaces of its own gets no more slots by that.
            opened.append(namespaces.outermost(opened[0], host))
            opened.append(fcntl.ioctl(opened[1], namespaces.NS_GET_USERNS))
            name = f"container pid:[{posix.fstat(opened[1]).st_ino}]"
            maker = _maker_of(opened[-1], opened)
            # Root may make containers for users, as many as they like.
            if maker or group is not None:
                return named(name, maker)
            return named(name, _instigator_of(crash, cgroups), by_root=True)
        opened.append(posix.open(f"{task}/ns/user", posix.O_RDONLY | posix.O_CLOEXEC))
        maker = _maker_of(opened[-1], opened)
    except OSError as error:
        procfs.refuse_lease(error)
        return named("unknown", None)
    finally:
        for descriptor in set(opened):
            posix.close(descriptor)
    user = maker or user_of(crash.uid)
    unit = runtime.unit_of_root(cgroups)
    return named(f"unit {harmless(unit, LONGEST_NAME)}" if unit else f"user {user}", user)


def _may_have_lost_groups(crash: "Crash", task: str, cgroups: "list[tuple[bytes, bytes]]") -> bool:
    """Tell whether the process was killed before its groups were read, and had others; see verification.examine.

    In old hierarchies it shows those of the host then. A process of a container would be taken for one of the host's root. Not
    asked by a server, which does not know the thread yet: to read the status is to look at the memory of the process.
    """
    if crash.tid is None or not any(controllers for controllers, _path in cgroups):
        return False
    return not procfs.still_dumping(procfs.read_path(f"{task}/status"))


def _instigator_of(crash: "Crash", cgroups: "list[tuple[bytes, bytes]]") -> "int | None":
    """Return for whom root has made a pid namespace that no engine has named; None for root itself.

    The sandboxes of a set-id program are as many as any user likes. The control group that root has given to the process tells
    whose they are: root of a container may have the number of any user, but cannot leave that group. So nobody's crashes count
    for another user. What is in no session counts for its control group: that is one container of LXC, or a service. In the
    root groups there is nothing but the user to tell them apart.
    """
    if crash.uid == 0:
        return None
    user = runtime.user_of_session(cgroups)
    if user:
        return user
    group = runtime.group_of_root(cgroups)
    return NOBODY - (user_of(crash.uid) if group is None else LAST_USER + group)


def user_of(uid: int) -> int:
    """Return the user who may act as ``uid``: that user, or whoever has it in the range of subuid(5)."""
    if uid < FIRST_SUBUID:
        return uid
    try:
        for line in procfs.read_path(SUBUID).split(b"\n"):
            name, _colon, numbers = line.partition(b":")
            first, _colon, count = numbers.partition(b":")
            if first.isdigit() and count.isdigit() and int(first) <= uid < int(first) + int(count):
                return int(name) if name.isdigit() else _number_of(name)
    except (OSError, LookupError):
        pass
    return uid


def _number_of(name: bytes) -> int:
    """Return the number of the user ``name``; passwd(5). Raises LookupError or OSError."""
    for line in procfs.read_path(PASSWD).split(b"\n"):
        fields = line.split(b":", 3)
        if fields[0] == name and fields[2].isdigit():
            return int(fields[2])
    raise LookupError(name)


def _maker_of(namespace: int, opened: "list[int]") -> "int | None":
    """Return who made the outermost user namespace that the opened ``namespace`` lies in, None for the host's; ioctl_ns(2)."""
    host = namespaces.of_host("user")
    if posix.fstat(namespace).st_ino == host:
        return None
    opened.append(namespaces.outermost(namespace, host))
    return user_of(namespaces.maker_of(opened[-1]))
