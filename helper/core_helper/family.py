"""Ends a child with its family: its session, and those of the container that hold its pipes, or trace it; proc(5).

The supervisor imports this with itself. At the deadline, when it is needed, the library may have been removed from the host.
"""

import posix
import time
from _signal import SIGKILL, SIGTERM

from core_helper import first_process, linux, namespaces, procfs, runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.child import Child
    from core_helper.process import FaultingProcess

GRACE = 2.0  # Seconds between SIGTERM and SIGKILL, and again before a delegate that cannot be killed is given up.


def end(child: "Child", process: "FaultingProcess") -> None:
    """End the delegate and its family: SIGTERM, and SIGKILL after a grace. Does not wait longer for those that are frozen.

    The family is the delegate's session, and every other process of the container that has inherited its pipes.
    """
    _signal_session(child.pid, SIGTERM)
    wait_for_end(child.pid, posix.WNOWAIT)
    # The delegate is reaped only after this: until then, no other process gets its pid, which is also the number of its group.
    _signal_session(child.pid, SIGKILL)
    kill_holders(child, process)
    wait_in_spite_of_tracers(child.pid, process)


def end_unknown(child: "Child") -> None:
    """End a delegate whose pid the joining process could not report before it died: its pipes show which process it is.

    Or its pid namespace does: a tracer may have the delegate close the pipes. All of /proc is searched, since not every kernel
    lists the children of a process (CONFIG_PROC_CHILDREN).
    """
    try:
        posix.waitid(posix.P_ALL, 0, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
    except ChildProcessError:
        return  # There is none, as a rule.
    own = str(posix.getpid())
    limit = time.monotonic() + GRACE
    proc = posix.open("/proc", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    for name in posix.listdir(proc):
        if (
            name.isdigit()
            and _parent(proc, name) == own
            and (_is_in_container(name) or _has_pipe(name, child.pipes, limit))
        ):
            # It is our child, so the number stays its own until it is waited for.
            _signal_session(int(name), SIGKILL)
            if not wait_for_end(int(name), 0) and int(name) != child.setup_pid:
                child.pid = int(name)
    posix.close(proc)


def kill_holders(child: "Child", process: "FaultingProcess") -> None:
    """End the processes of the family that have one of the child's pipes open."""
    for pidfd in _holders(child, process):
        linux.pidfd_send_signal(pidfd, SIGKILL)
        posix.close(pidfd)


def wait_for_end(pid: int, option: int) -> bool:
    """Wait for the end of our child ``pid``, at most the grace, and tell whether it has ended; see linux.wait_for_end."""
    return linux.wait_for_end(pid, GRACE, option)


def wait_in_spite_of_tracers(pid: int, process: "FaultingProcess") -> None:
    """Wait for the end of our child ``pid``, which SIGKILL has ended, and end those that stop it on its way."""
    if not wait_for_end(pid, 0) and _kill_tracers(pid, process):
        wait_for_end(pid, 0)


def _is_in_container(name: str) -> bool:
    """Tell whether our child is in another pid namespace than this process: none but the one that enters the container is."""
    inode = first_process.inode_of(f"/proc/{name}/ns/pid")
    return inode is not None and inode != first_process.inode_of("/proc/self/ns/pid")


def _parent(proc: int, name: str) -> str:
    try:
        return procfs.stat_fields(procfs.read(proc, f"{name}/stat"))[1]
    except OSError:
        return ""  # Ended meanwhile.


def _signal_session(pid: int, number: int) -> None:
    for kill in (posix.kill, posix.killpg):
        try:
            kill(pid, number)
        except OSError:
            pass  # Ended already.


def _kill_tracers(pid: int, process: "FaultingProcess") -> bool:
    """End the processes of the family that trace the delegate ``pid``, and tell whether there were any; ptrace(2).

    With PTRACE_O_TRACEEXIT, a tracer stops a process that SIGKILL has ended as long as it likes. So do the tracers of tracers.
    """
    found = False
    limit = time.monotonic() + GRACE
    traced, seen = [pid], {pid}
    while traced and time.monotonic() < limit:
        one = traced.pop()
        for tracer in _tracers_of(one) - seen:
            seen.add(tracer)
            try:
                pidfd = linux.pidfd_open(tracer)
            except OSError:
                continue  # Ended meanwhile.
            # Looked at once more: so the signal goes to the tracer, or to none.
            if tracer in _tracers_of(one) and _has_family(process) and _is_of_the_family(str(tracer), process, True):
                linux.pidfd_send_signal(pidfd, SIGKILL)
                traced.append(tracer)
                found = True
            posix.close(pidfd)
    return found


def _tracers_of(pid: int) -> "set[int]":
    """Return the pids of the processes that trace a thread of process ``pid``; proc_pid_status(5).

    Any thread of a process may be the one that traces, and the kernel shows the number of that thread (fs/proc/array.c).
    """
    tracers = set()
    for thread in _listed(f"/proc/{pid}/task"):
        try:
            tracer = procfs.parse_status(procfs.read_path(f"/proc/{pid}/task/{thread}/status")).get("TracerPid", "0")
            if tracer != "0":
                tracers.add(int(procfs.parse_status(procfs.read_path(f"/proc/{tracer}/status"))["Tgid"]))
        except OSError:
            continue  # Ended meanwhile, as another thread need not have.
    return tracers


def _holders(child: "Child", process: "FaultingProcess") -> "list[int]":
    """Return a pidfd for each process of the container that has one of the child's pipes open; proc_pid_fd(5).

    Only those of the same user in the same pid namespace, or in one below, which the delegate could signal itself: over a
    socket, a pipe can be passed on to anybody, even to a daemon of the host. In the pid namespace of the host they must also be
    in the control group of the container.
    """
    if not _has_family(process):
        return []
    limit = time.monotonic() + GRACE
    holders = []
    # Those that got their numbers after the child come first: on a host that is too busy to look at all in that time, they are
    # the likely ones. Pids are given in a circle.
    pids = map(int, filter(str.isdigit, posix.listdir("/proc")))
    for pid in sorted(pids, key=lambda pid: (pid < (child.pid or child.setup_pid), pid)):
        if time.monotonic() > limit:
            break
        name = str(pid)
        try:
            pidfd = linux.pidfd_open(pid)
        except OSError:
            continue  # Ended meanwhile.
        # Looked at after the pidfd was opened: so the signal goes to the process that was looked at, or to none.
        if _is_of_the_family(name, process) and _has_pipe(name, child.pipes, limit):
            holders.append(pidfd)
        else:
            posix.close(pidfd)
    return holders


def _has_family(process: "FaultingProcess") -> bool:
    """Tell whether other processes may be ended with the delegate of ``process``: not those of the host's root."""
    return not process.shows_no_container() or process.uid != 0


def _is_of_the_family(name: str, process: "FaultingProcess", above: bool = False) -> bool:
    """Tell whether the process ``name`` is one that the delegate could signal itself.

    Or, with ``above``, one of the container's in a pid namespace above that of the delegate, below the host's.
    """
    try:
        if posix.stat(f"/proc/{name}").st_uid != process.uid or name == str(posix.getpid()):
            return False
        if not process.in_pid_namespace():
            return _shares_group(name, process) is not False
        namespace = posix.open(f"/proc/{name}/ns/pid", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return False
    try:
        host, own = namespaces.of_host("pid"), process.descriptor("pid")
        if process.inode("pid") in namespaces.lineage(namespace, host):
            return True
        if not above or own is None:
            return False
        theirs = posix.fstat(namespace).st_ino
        return bool(_shares_group(name, process)) if theirs == host else theirs in namespaces.lineage(own, host)
    except OSError:
        return False
    finally:
        posix.close(namespace)


def _shares_group(name: str, process: "FaultingProcess") -> "bool | None":
    """Tell whether the process ``name`` is in the control group that an engine has named after the container of ``process``.

    None where it named none. Raises OSError.
    """
    group = runtime.named_group(process.cgroups)
    theirs = procfs.parse_cgroup(procfs.read_path(f"/proc/{name}/cgroup"))
    return None if group is None else runtime.is_within(theirs, [group])


def _has_pipe(name: str, pipes: "set[str]", limit: float) -> bool:
    """Tell whether a thread of the process ``name`` has one of the ``pipes`` open: each may have descriptors of its own.

    What cannot be looked at before the monotonic time ``limit`` has none.
    """
    for thread in _listed(f"/proc/{name}/task"):
        files = f"/proc/{name}/task/{thread}/fd"
        for link in _listed(files):
            if time.monotonic() > limit:
                return False
            try:
                if posix.readlink(f"{files}/{link}") in pipes:
                    return True
            except OSError:
                continue  # Closed meanwhile: a process that opens and closes files all the time does not hide the others.
    return False


def _listed(directory: str) -> "list[str]":
    """Return the names in a directory of a process that may end at any time."""
    try:
        return posix.listdir(directory)
    except OSError:
        return []
