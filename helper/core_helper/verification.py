"""Opens and verifies the faulting process: it must be the one that crashed, and no other.

A process that is opened first and verified after that cannot be exchanged in between (CVE-2025-4598, CVE-2025-5054).
"""

import posix

from core_helper import linux, namespaces, procfs
from core_helper.crash import Refused
from core_helper.process import FaultingProcess, Withheld, ids_of, link_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.crash import Crash

# All namespaces but the user namespace, in the order in which they are joined; mnt comes last, because after it the
# host's files are out of reach. The user namespace is joined after the ids were taken over (privileges.py).
NAMESPACES = (
    ("pid", linux.CLONE_NEWPID),
    ("cgroup", linux.CLONE_NEWCGROUP),
    ("ipc", linux.CLONE_NEWIPC),
    ("uts", linux.CLONE_NEWUTS),
    ("net", linux.CLONE_NEWNET),
    ("time", linux.CLONE_NEWTIME),
    ("mnt", linux.CLONE_NEWNS),
)


class Missing(Refused):
    """The process is not there, or not in the state in which the kernel would have left it; see diagnosis.py."""


def open_task(proc: int, pid: int, tid: "int | None") -> int:
    """Open the directory of the faulting thread in the opened host's /proc.

    ``tid`` is that thread; None where the core pattern does not name it. Then the leader stands for the process or, when the
    leader has exited and lost its namespaces with that, the first thread that still has them. Raises Missing.
    """
    try:
        if tid is not None:
            return _open_directory(proc, f"{pid}/task/{tid}")
        tasks = posix.open(f"{pid}/task", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=proc)
        try:
            for candidate in sorted(posix.listdir(tasks), key=lambda name: (name != str(pid), int(name))):
                task = _open_directory(tasks, candidate)
                if link_of(task, "ns/mnt"):
                    return task
                posix.close(task)
        finally:
            posix.close(tasks)
    except OSError:
        pass
    raise Missing(f"process {pid} is gone")


def _open_directory(parent: int, name: str) -> int:
    return posix.open(name, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=parent)


def examine(crash: "Crash") -> "FaultingProcess":
    """Open, verify and describe the process that ``crash`` names, and note in ``crash`` the signal if that is not known.

    Raises Refused when it is not the process that crashed or its core must not be delegated, OSError when it went away.
    """
    proc = posix.open("/proc", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    task = open_task(proc, crash.pid, crash.tid)
    foreign, joined = open_namespaces(task, proc)
    root = posix.open("root", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=task)
    # Verified only now, after everything was opened: so all that was opened belongs to this very process. The process is still
    # being dumped, so it did not run another program in between (CVE-2025-4598, CVE-2025-5054).
    status = procfs.parse_status(procfs.read(task, "status"))
    verify(crash, status)
    if crash.pidfd is None:
        verify_age(crash, procfs.read(task, "stat"), procfs.read(proc, "self/stat"))
    else:
        verify_pidfd(crash, procfs.read(proc, f"self/fdinfo/{crash.pidfd}"))
    # The auxiliary vector shows a set-id program where the kernel did not say it, or calls all programs dumpable. In other
    # cases the vector is not read: a security module may have set its flag for an ordinary program, too.
    announced = crash.dumpable is not None and procfs.read(proc, "sys/fs/suid_dumpable").strip() != b"1"
    process = FaultingProcess(task, root, foreign, joined, status)
    if crash.signal is None:
        crash.signal = process.exit_signal()
    refusal = None
    try:
        secure = not announced and secure_execution(procfs.read(task, "auxv"))
        refuse_set_id(crash, status, secure, posix.stat("status", dir_fd=task))
    except Refused as error:
        refusal = error
    # Once more, after everything was read: a process that was killed meanwhile shows no label, an empty environment and, in old
    # hierarchies, the host's own control groups (kernel/cgroup/cgroup.c, proc_cgroup_show). Then these groups would be joined,
    # or a process of a container would be taken for one of the host.
    if not procfs.still_dumping(procfs.read(task, "status")):
        raise Missing(f"process {crash.pid} is not dumping core")
    if refusal is not None:
        raise Withheld(str(refusal), process)
    posix.close(proc)
    return process


def open_namespaces(task: int, proc: int) -> "tuple[list[tuple[str, int, int]], list[tuple[str, int, int]]]":
    """Open the namespaces of ``task``: (name, kind, descriptor) of those that are not the host's, and of those to be joined.

    To be joined are those that are not the helper's own. Where the kernel has started the helper, these are the same.
    """
    foreign, joined = [], []
    for name, kind in (*NAMESPACES, ("user", linux.CLONE_NEWUSER)):
        try:
            own = posix.stat(f"self/ns/{name}", dir_fd=proc).st_ino
        except FileNotFoundError:
            continue  # The kernel was built without this kind of namespace.
        host = namespaces.of_host(name)
        theirs = posix.stat(f"ns/{name}", dir_fd=task).st_ino
        if theirs == own == host:
            continue
        opened = (name, kind, posix.open(f"ns/{name}", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=task))
        if theirs != host:
            foreign.append(opened)
        if theirs != own:
            joined.append(opened)
    return foreign, joined


def verify(crash: "Crash", status: "dict[str, str]") -> None:
    """Raise Refused unless the opened process is the one that is being dumped."""
    if status.get("CoreDumping") != "1":
        raise Missing(f"process {crash.pid} is not dumping core")
    if status.get("Tgid") != str(crash.pid):
        raise Refused(f"thread {crash.tid} does not belong to process {crash.pid}")
    if (ids_of(status, "Uid")[0], ids_of(status, "Gid")[0]) != (crash.uid, crash.gid):
        raise Refused(
            f"process {crash.pid} does not have the ids {crash.uid}:{crash.gid} that the kernel named: core not delegated"
        )


def verify_age(crash: "Crash", stat: bytes, own_stat: bytes) -> None:
    """Raise Refused where the process is younger than the helper, which the kernel has started for it.

    Not asked where a pidfd of the kernel's names the process for certain: a server is older than what crashes.
    """
    if procfs.is_younger(stat, own_stat):
        raise Refused(f"process {crash.pid} is younger than its own crash: its pid was reused")


def verify_pidfd(crash: "Crash", fdinfo: bytes) -> None:
    """Raise Refused unless the kernel's pidfd (%F) is of the process that was opened."""
    if not procfs.shows_process(fdinfo, crash.pid):
        raise Refused(f"the pidfd of the kernel is not of process {crash.pid}")


def refuse_set_id(crash: "Crash", status: "dict[str, str]", secure: bool, owner: posix.stat_result) -> None:
    """Raise Refused where the process may know what its user must not see (CVE-2022-4415, CVE-2025-4598).

    That is a set-id program, one with file capabilities, or one that changed its ids. The kernel says so by %d, or by the
    pidfd, or by the owner of the files in /proc. With fs.suid_dumpable = 1 the kernel calls every process dumpable, so the ids
    are looked at in any case; ``secure`` is AT_SECURE, for the same reason.
    """
    mask = None if crash.pidfd is None else linux.pidfd_coredump_mask(crash.pidfd)
    uids, gids = ids_of(status, "Uid"), ids_of(status, "Gid")
    if crash.dumpable is not None:
        safe = crash.dumpable == 1
    elif mask is not None:
        safe = mask & linux.PIDFD_COREDUMP_USER != 0
    else:
        safe = (owner.st_uid, owner.st_gid) == (uids[1], gids[1])
    if mask is not None and mask & linux.PIDFD_COREDUMP_ROOT:
        safe = False
    if not safe or secure or len(set(uids)) > 1 or len(set(gids)) > 1:
        raise Refused(
            "a set-id program or one with changed ids: its core is for root only and never delegated; start it without set-id,"
            " file capabilities or a change of user"
        )


def secure_execution(auxv: bytes) -> bool:
    """Tell from /proc/PID/auxv whether the program was executed set-id or with file capabilities; getauxval(3).

    Raises Refused where the vector does not say it.
    """
    try:
        return bool(procfs.parse_auxv(auxv)[1][procfs.AT_SECURE])
    except ValueError:
        raise Refused("its auxiliary vector does not tell whether the program was set-id: core not delegated") from None
