"""The faulting process: opened, verified, described. Nothing is changed here.

A process is an opened directory of the host's /proc, never a number: once ``/proc/PID/task/TID`` is open, a process that
is replaced behind our back leaves the directory empty (ESRCH) instead of showing somebody else's facts.
See proc(5) for every file that is read.
"""

import _struct
import posix

from core_helper import linux, procfs
from core_helper.command import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.command import Crash

AT_SECURE = 23

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


class Withheld(Refused):
    """The core is not for a delegate. ``process`` is whose it is: the host's own handler may be asked to look after it."""

    def __init__(self, text: str, process: "FaultingProcess", of_the_host: bool = False) -> None:
        """Take the text for the log, the process as it was verified, and whether it is the host's though it may not look so."""
        super().__init__(text)
        self.process = process
        self.of_the_host = of_the_host


class FaultingProcess:
    """What the helper knows of the process whose core it holds. Descriptors are close-on-exec."""

    def __init__(
        self, task: int, root: int, namespaces: "list[tuple[str, int, int]]", status: "dict[str, str]"
    ) -> None:
        """Take the opened ``/proc/PID/task/TID``, the root directory, (name, kind, descriptor) of namespaces, the status."""
        stat = procfs.stat_fields(procfs.read(task, "stat"))
        self.task = task
        self.root = root
        self.namespaces = [namespace for namespace in namespaces if namespace[0] != "user"]
        self.user_namespace = next((namespace[2] for namespace in namespaces if namespace[0] == "user"), None)
        self.uid = _ids(status, "Uid")[0]
        self.gid = _ids(status, "Gid")[0]
        self.groups = [int(group) for group in status["Groups"].split()]
        self.pid = int(status.get("NStgid", status["Tgid"]).split()[-1])
        self.host_pid = int(status["Tgid"])
        self.host_tid = int(status["Pid"])
        self.depth = len(status.get("NSpid", status["Pid"]).split())
        self.tid = int(status.get("NSpid", status["Pid"]).split()[-1])
        self.inheritable = int(status["CapInh"], 16)
        self.permitted = int(status["CapPrm"], 16)
        self.effective = int(status["CapEff"], 16)
        self.bounding = int(status["CapBnd"], 16)
        self.ambient = int(status.get("CapAmb", "0"), 16)
        self.seccomp = int(status.get("Seccomp", "0"))
        self.seccomp_filters = int(status.get("Seccomp_filters", "0"))
        self.umask = int(status.get("Umask", "0022"), 8)
        self.comm = procfs.read(task, "comm")[:-1]  # The name may end in newlines of its own.
        self.exe = _link(task, "exe")
        self.nice = int(stat[16])
        self.cpu = int(stat[36])
        self.policy = int(stat[38])
        self.processors = procfs.parse_processors(status.get("Cpus_allowed_list", ""))
        self.signal = _exit_signal(task)
        self.oom_score_adj = procfs.read(task, "oom_score_adj").strip()
        self.limits = procfs.parse_limits(procfs.read(task, "limits"))
        self.cgroups = procfs.parse_cgroup(procfs.read(task, "cgroup"))
        self.notes: list[str] = []
        # Only opened: to read it takes the memory of the process, which may lie in a file system that does not answer.
        self.environ_file: int | None = procfs.open_file(task, "environ")
        self.label_kind, self.label = security_label(task)
        self.container_id = procfs.container_id(self.cgroups)
        self.hostname = b""
        # Whether a process of its container may have CAP_SYS_PTRACE; see membership.py.
        self.traceable = True
        self.confined = self.seccomp_filters > (1 if self.in_container() else 0)

    def close_task(self) -> None:
        """Close the directory in the host's /proc: nobody in the container must find it open in one of our processes."""
        posix.close(self.task)

    def read_environ(self) -> "dict[bytes, bytes]":
        """Return the variables of the process that the delegate gets; ``notes`` tell what was left out.

        Called in the joining process: the supervisor must not wait for the memory of the process. Nothing is passed on where
        the process was confined more than its container is. Filters cannot be taken over, and Landlock cannot even be seen:
        with LD_PRELOAD and its like, the process would choose what the delegate, which is confined less, does.
        """
        if self.environ_file is None:
            self.notes.append("its environment could not be read in time: none of its variables was passed on")
            return {}
        if self.confined:
            self.notes.append("it had a seccomp filter of its own: none of its variables was passed on")
            return {}
        variables, cut = procfs.parse_environ(procfs.read_all(self.environ_file, procfs.ENVIRON_LIMIT + 1))
        if cut:
            self.notes.append(
                f"its environment has more than {procfs.MOST_VARIABLES} variables or 1 MiB, or a variable of 128 KiB:"
                " the rest was left out"
            )
        return variables

    def descriptor(self, kind: str) -> "int | None":
        """Return the opened namespace of that ``kind``, None where the process has the helper's."""
        return next((descriptor for name, _, descriptor in self.namespaces if name == kind), None)

    def inode(self, kind: str) -> int:
        """Return the inode of the process's namespace of that ``kind``."""
        descriptor = self.descriptor(kind)
        found = posix.stat(f"/proc/self/ns/{kind}") if descriptor is None else posix.fstat(descriptor)
        return found.st_ino

    def in_container(self) -> bool:
        """Tell whether the process has a mount namespace other than the helper's."""
        return self.descriptor("mnt") is not None

    def in_pid_namespace(self) -> bool:
        """Tell whether the process has a pid namespace other than the helper's."""
        return self.descriptor("pid") is not None


def secure_execution(auxv: bytes) -> bool:
    """Tell from /proc/PID/auxv whether the program was executed set-id or with file capabilities; getauxval(3).

    Raises Refused where the vector does not say it: then nobody knows.
    """
    for size, kind in ((8, "=QQ"), (4, "=II")):
        usable = auxv[: len(auxv) // (2 * size) * 2 * size]
        vector = dict(_struct.iter_unpack(kind, usable))
        # In the vector of a 32-bit process, read as 64 bits, type and value fall together into one huge number.
        if AT_SECURE in vector and max(vector) < 1 << 16:
            return bool(vector[AT_SECURE])
    raise Refused("its auxiliary vector does not tell whether the program was set-id: core not delegated")


def _ids(status: "dict[str, str]", field: str) -> "list[int]":
    return [int(value) for value in status[field].split()]


def _exit_signal(task: int) -> "int | None":
    """Return the signal that ends the process, for a core pattern without %s, None on kernels that show it only later."""
    try:
        # Of the process, which lies two directories up: that of a thread does not show it.
        return int(procfs.stat_fields(procfs.read(task, "../../stat"))[49]) & 0x7F or None
    except (OSError, IndexError):
        return None


def _link(directory: int, name: str) -> bytes:
    try:
        return posix.readlink(name.encode(), dir_fd=directory)
    except OSError:
        return b""


def security_label(task: int) -> "tuple[str, bytes]":
    """Return the kind of LSM ("apparmor", "other", "" for none) and the label in attr/; apparmor(7), selinux(8)."""
    for kind, name in (("apparmor", "attr/apparmor/current"), ("other", "attr/current")):
        try:
            label = procfs.read(task, name).rstrip(b"\n\0")
        except OSError:
            continue  # No such LSM: ENOENT, or EINVAL for attr/current without any.
        if label:
            return kind, label
    return "", b""


def open_task(proc: int, pid: int, tid: "int | None") -> int:
    """Open the directory of the faulting thread in the opened host's /proc.

    ``tid`` is that thread; None where the core pattern does not tell it. Then the leader stands for the process or, when the
    leader has exited and lost its namespaces with that, the first thread that still has them.
    """
    try:
        if tid is not None:
            return _open_directory(proc, f"{pid}/task/{tid}")
        tasks = posix.open(f"{pid}/task", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=proc)
        try:
            for candidate in sorted(posix.listdir(tasks), key=int):
                task = _open_directory(tasks, candidate)
                if _link(task, "ns/mnt"):
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
    """Open, verify and describe the process that ``crash`` names.

    Raises Refused when it is not the process that crashed or its core must not be delegated, OSError when it went away.
    """
    proc = posix.open("/proc", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    task = open_task(proc, crash.pid, crash.tid)
    namespaces = _open_namespaces(task, proc)
    root = posix.open("root", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=task)
    # Verified only now, after everything was opened: what was opened before belongs to this very process, and it is still
    # being dumped, so it did not run another program in between (CVE-2025-4598, CVE-2025-5054).
    status = procfs.parse_status(procfs.read(task, "status"))
    verify(crash, status, procfs.read(task, "stat"), procfs.read(proc, "self/stat"))
    if crash.pidfd is not None:
        verify_pidfd(crash, procfs.read(proc, f"self/fdinfo/{crash.pidfd}"))
    # The auxiliary vector tells a set-id program where the kernel did not, or calls all programs dumpable. Elsewhere it is not
    # asked: a security module may have set its flag for an ordinary program too.
    told = crash.dumpable is not None and procfs.read(proc, "sys/fs/suid_dumpable").strip() != b"1"
    process = FaultingProcess(task, root, namespaces, status)
    refusal = None
    try:
        secure = not told and secure_execution(procfs.read(task, "auxv"))
        refuse_set_id(crash, status, secure, posix.stat("status", dir_fd=task))
    except Refused as error:
        refusal = error
    # Once more, after everything was read: a process that was killed meanwhile shows no label, an empty environment and, in old
    # hierarchies, the host's own control groups (kernel/cgroup/cgroup.c, proc_cgroup_show). That would be joined instead, or
    # a container taken for a process of the host.
    if not procfs.still_dumping(procfs.read(task, "status")):
        raise Missing(f"process {crash.pid} is not dumping core")
    if refusal is not None:
        raise Withheld(str(refusal), process)
    posix.close(proc)
    return process


def _open_namespaces(task: int, proc: int) -> "list[tuple[str, int, int]]":
    """Open those namespaces of ``task`` that are not the helper's own: (name, kind, descriptor) of each."""
    namespaces = []
    for name, kind in (*NAMESPACES, ("user", linux.CLONE_NEWUSER)):
        try:
            own = posix.stat(f"self/ns/{name}", dir_fd=proc)
        except FileNotFoundError:
            continue  # The kernel was built without this kind of namespace.
        theirs = posix.stat(f"ns/{name}", dir_fd=task)
        if (own.st_dev, own.st_ino) != (theirs.st_dev, theirs.st_ino):
            namespaces.append((name, kind, posix.open(f"ns/{name}", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=task)))
    return namespaces


def verify(crash: "Crash", status: "dict[str, str]", stat: bytes, own_stat: bytes) -> None:
    """Raise Refused unless the opened process is the one that is being dumped."""
    if status.get("CoreDumping") != "1":
        raise Missing(f"process {crash.pid} is not dumping core")
    if status.get("Tgid") != str(crash.pid):
        raise Refused(f"thread {crash.tid} does not belong to process {crash.pid}")
    if (_ids(status, "Uid")[0], _ids(status, "Gid")[0]) != (crash.uid, crash.gid):
        raise Refused(
            f"process {crash.pid} does not have the ids {crash.uid}:{crash.gid} that the kernel named: core not delegated"
        )
    if procfs.is_younger(stat, own_stat):
        raise Refused(f"process {crash.pid} is younger than its own crash: its pid was reused")


def verify_pidfd(crash: "Crash", fdinfo: bytes) -> None:
    """Raise Refused unless the kernel's pidfd (%F) is of the process that was opened."""
    if procfs.parse_status(fdinfo).get("Pid") != str(crash.pid):
        raise Refused(f"the pidfd of the kernel is not of process {crash.pid}")


def refuse_set_id(crash: "Crash", status: "dict[str, str]", secure: bool, owner: posix.stat_result) -> None:
    """Raise Refused where the process knew more than its user may see (CVE-2022-4415, CVE-2025-4598).

    That is a set-id program, one with file capabilities, or one that changed its ids. The kernel says so by %d, or by the
    pidfd, or by the owner of the files in /proc. The ids are looked at in any case, since fs.suid_dumpable = 1 has the kernel
    call every process dumpable; ``secure`` is AT_SECURE for that case.
    """
    mask = None if crash.pidfd is None else linux.pidfd_coredump_mask(crash.pidfd)
    uids, gids = _ids(status, "Uid"), _ids(status, "Gid")
    if crash.dumpable is not None:
        safe = crash.dumpable == 1
    elif mask is not None:
        safe = mask & linux.PIDFD_COREDUMP_USER != 0
    else:
        safe = (owner.st_uid, owner.st_gid) == (uids[1], gids[1])
    if mask is not None and mask & linux.PIDFD_COREDUMP_ROOT:
        safe = False
    if not safe or secure or len(set(uids)) > 1 or len(set(gids)) > 1:
        raise Refused("a set-id program or one with changed ids: its core is for root only and never delegated")
