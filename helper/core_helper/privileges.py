"""Taking over the privileges of the faulting process: ids, capabilities, no_new_privs, label, limits.

Where the delegate would have more than the process had, the delegation is refused.
"""

import posix

from core_helper import linux, seccomp, start
from core_helper.crash import Refused
from core_helper.process import security_label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.process import FaultingProcess

# The rows of /proc/PID/limits and their RLIMIT_* (include/uapi/asm-generic/resource.h). The limit of the core's size, 4, stays
# as the kernel gave it to us, 1: the one value that keeps a crash of the delegate from calling the helper again
# (fs/coredump.c).
RESOURCES = {
    "Max cpu time": 0,
    "Max file size": 1,
    "Max data size": 2,
    "Max stack size": 3,
    "Max resident set": 5,
    "Max processes": 6,
    "Max open files": 7,
    "Max locked memory": 8,
    "Max address space": 9,
    "Max file locks": 10,
    "Max pending signals": 11,
    "Max msgqueue size": 12,
    "Max nice priority": 13,
    "Max realtime priority": 14,
    "Max realtime timeout": 15,
}
# A soft limit is what the process was content with; an upload needs other things. This one says how memory is laid out, too.
KEEPS_SOFT_LIMIT = "Max stack size"
# The kernel counts the processes of a user over all containers. A user at the limit could deliver no core.
COUNTS_PROCESSES, MORE_PROCESSES = "Max processes", 64
AUTOGROUP = "/proc/self/autogroup"
LEAST = 19  # The lowest priority of ordinary processes; nice(2).
FIRST_TO_GO = b"1000"  # The highest value of oom_score_adj; proc_pid_oom_score_adj(5).


def check(process: "FaultingProcess") -> None:
    """Raise Refused where an attribute of ``process`` cannot be taken over; asked before anything is changed."""
    if process.seccomp == 1:
        raise Refused("the process is in strict seccomp mode: no delegate could do anything there")
    if process.seccomp == 2:
        seccomp.architectures(process.narrow)


class Label:
    """The security label of the process, and the files by which a child takes it over."""

    def __init__(self, process: "FaultingProcess") -> None:
        """Take the label; nothing is opened yet."""
        self.kind = process.label_kind
        # AppArmor shows "docker-default (enforce)"; the mode is not part of the name; apparmor(7).
        self.label = process.label.rpartition(b" (")[0] or process.label
        self.shown = process.label

    def open(self) -> None:
        """Open the files by which the calling process changes its own label, through the host's /proc. Raises OSError.

        In the child and not before the fork: the kernel lets nobody else write to them. And on the host, since the container's
        /proc may be a fake.
        """
        if not self.label:
            return
        own_task = posix.open("/proc/thread-self", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            if security_label(own_task) == (self.kind, self.shown):
                self.label = b""
                return
            directory = "attr/apparmor/" if self.kind == "apparmor" else "attr/"
            self.on_exec = posix.open(directory + "exec", posix.O_WRONLY | posix.O_CLOEXEC, dir_fd=own_task)
            self.now = posix.open(directory + "current", posix.O_WRONLY | posix.O_CLOEXEC, dir_fd=own_task)
        finally:
            posix.close(own_task)

    def at_exec(self) -> None:
        """Take the label over with the next execve(2), of this process or of a child. Raises OSError."""
        if self.label:
            posix.write(self.on_exec, b"exec " + self.label if self.kind == "apparmor" else self.label)

    def at_once(self) -> None:
        """Take the label over now, for a process that executes nothing. Raises OSError."""
        if self.label:
            posix.write(self.now, b"changeprofile " + self.label if self.kind == "apparmor" else self.label)


def take_over_scheduling(process: "FaultingProcess") -> "list[str]":
    """Take over the nice value; return a line if that could not be."""
    try:
        if process.nice != 0:  # The kernel starts the helper with 0.
            posix.setpriority(posix.PRIO_PROCESS, 0, process.nice)
    except OSError as error:
        return [f"nice {process.nice}: {error.strerror}"]
    return []


def step_back() -> None:
    """Take the lowest priority among all processes that have ordinary ones; nice(2), and sched(7), "The autogroup feature".

    Where the kernel groups processes by sessions, a nice value says nothing about those of other sessions. So the session must
    be a new one. Nobody without CAP_SYS_NICE comes back from that priority.
    """
    posix.nice(LEAST)
    try:
        file = posix.open(AUTOGROUP, posix.O_WRONLY | posix.O_CLOEXEC)
    except OSError:
        return  # A kernel without that.
    try:
        posix.write(file, b"%d" % LEAST)
    except OSError:
        pass  # Without CAP_SYS_ADMIN, the kernel bounds how often that may be written.
    finally:
        posix.close(file)


def go_first() -> "list[str]":
    """Have the kernel kill this process, and the delegate after it, before all others if memory ends; return a line if not.

    Otherwise the upload of a core could end what it shares the container with: the process that is being dumped, or PID 1.
    """
    try:
        descriptor = posix.open("/proc/self/oom_score_adj", posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(descriptor, FIRST_TO_GO)
        finally:
            posix.close(descriptor)
    except OSError as error:
        return [f"oom_score_adj {FIRST_TO_GO.decode()}: {error.strerror}"]
    return []


def take_over_processors(process: "FaultingProcess") -> "list[str]":
    """Take over the processors, and the policies SCHED_BATCH and SCHED_IDLE; return a line for each that could not be.

    To be called when the control groups were joined: their cpuset bounds the processors; sched(7), cpuset(7). A real-time
    policy is not taken over: the delegate would have more than it needs.
    """
    failures = []
    try:
        if process.processors and posix.sched_getaffinity(0) != process.processors:
            posix.sched_setaffinity(0, process.processors)
    except OSError as error:
        failures.append(f"processors {sorted(process.processors)}: {error.strerror}")
    if process.policy in (posix.SCHED_BATCH, posix.SCHED_IDLE):
        try:
            posix.sched_setscheduler(0, process.policy, posix.sched_param(0))
        except OSError as error:
            failures.append(f"scheduling policy {process.policy}: {error.strerror}")
    return failures


def limit_file_size(process: "FaultingProcess") -> None:
    """Take over the limit of a file's size, for a process that writes one itself; EFBIG, setrlimit(2)."""
    name = "Max file size"
    if name in process.limits:
        linux.setrlimit(RESOURCES[name], *limits_of(process, name))


def limits_of(process: "FaultingProcess", name: str) -> "tuple[int, int]":
    """Return soft and hard limit of the delegate, from the row ``name`` of the limits of ``process``."""
    soft, hard = process.limits[name]
    if name == COUNTS_PROCESSES and hard != -1:
        hard += MORE_PROCESSES
    return soft if name == KEEPS_SOFT_LIMIT else hard, hard


def raise_hard_limits(process: "FaultingProcess") -> None:
    """Raise our hard limits to those of the delegate where ours are lower; done early, because it needs privileges.

    That of processes counts those of the user in all containers, and would forbid the fork of the delegate: none for us.
    """
    for name, number in RESOURCES.items():
        if name in process.limits:
            soft, own = linux.getrlimit(number)
            soft, hard = (-1, -1) if name == COUNTS_PROCESSES else (soft, limits_of(process, name)[1])
            if own != -1 and (hard == -1 or hard > own):
                try:
                    linux.setrlimit(number, soft, hard)
                except OSError:
                    pass  # Without CAP_SYS_RESOURCE; set_limits() reports it.


def set_limits(process: "FaultingProcess") -> "list[str]":
    """Take over the resource limits; return a line for each that could not be. Last, as they may be tight; setrlimit(2).

    The soft limits are raised to the hard ones, as the process itself could have done.
    """
    failures = []
    for name, number in RESOURCES.items():
        if name not in process.limits:
            continue
        soft, hard = limits_of(process, name)
        try:
            linux.setrlimit(number, soft, hard)
        except OSError:
            own = linux.getrlimit(number)[1]
            lower = own if soft == -1 or soft > own else soft
            linux.setrlimit(number, lower, own)
            failures.append(f"{name.lower()} {hard}: not above {own}")
    return failures


def take_over_ids(process: "FaultingProcess") -> None:
    """Become user, group and groups of ``process``, keeping all capabilities for the steps that follow.

    Done with the ids of the host, before the user namespace is joined. So no id has to be translated, ids that the namespace
    does not map work, too, and a namespace that denies setgroups(2) does no harm.
    """
    posix.setgroups(process.groups)
    posix.setresgid(process.gid, process.gid, process.gid)
    linux.prctl(linux.PR_SET_KEEPCAPS, 1)
    posix.setresuid(process.uid, process.uid, process.uid)
    linux.prctl(linux.PR_SET_KEEPCAPS, 0)
    # A change of ids resets "dumpable" to fs.suid_dumpable, which may be 1 (kernel/cred.c, commit_creds).
    start.hide()
    # The permitted capabilities were kept. The effective ones were lost with user 0, and the next step needs them: to join the
    # user namespace.
    permitted = linux.permitted_capabilities()
    linux.capset(permitted, permitted, 0)


def join_user_namespace(process: "FaultingProcess") -> None:
    """Join the user namespace of ``process``, unless the helper is in it; user_namespaces(7).

    That gives a full set of capabilities within it, which ``limit_capabilities`` takes away again.
    """
    if process.joined_user_namespace is not None:
        linux.setns(process.joined_user_namespace, linux.CLONE_NEWUSER)
        start.hide()


def limit_capabilities(process: "FaultingProcess") -> "list[str]":
    """Bring all five capability sets down to those of ``process``; return a line if ours are fewer; capabilities(7).

    The bounding set shrinks to what is permitted, too: a root process that gave its capabilities away would get them back
    from its bounding set at the delegate's execve(2). A server in a container has only what it was given there.
    """
    bounding = process.bounding & process.permitted
    inheritable = process.inheritable & bounding
    linux.drop_from_bounding_set(bounding)
    permitted, failures = process.permitted, []
    try:
        linux.capset(process.effective & permitted, permitted, inheritable)
    except PermissionError:
        own = linux.permitted_capabilities()
        failures.append(f"capabilities {permitted & ~own:#x}: the helper lacks them")
        permitted, inheritable = permitted & own, inheritable & own
        linux.capset(process.effective & permitted, permitted, inheritable)
    linux.set_ambient(process.ambient & permitted & inheritable)
    return failures


def confine(process: "FaultingProcess") -> None:
    """Set no_new_privs, always, so that no set-id delegate regains what was dropped; then the seccomp filter."""
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if process.seccomp == 2:
        linux.set_seccomp_filter(seccomp.deny_filter(seccomp.architectures(process.narrow)))
