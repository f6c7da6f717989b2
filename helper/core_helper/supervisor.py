"""The supervisor: stays on the host, waits for the child's start, relays the core to it, and ends it at the deadline.

As long as a process holds the read end of the kernel's pipe open, the kernel keeps the faulting process, its namespaces and one
place of kernel.core_pipe_limit. The delegate therefore gets a pipe of its own, and the supervisor closes the kernel's only
after the delegate has ended. If PID 1 of a container crashed, the kernel kills everything in its pid namespace at that moment,
the delegate too; core(5), pid_namespaces(7).
"""

import _thread
import posix
import select
import time
from _signal import SIGKILL, SIGTERM

from core_helper import linux, namespaces, procfs, runtime
from core_helper.child import Result
from core_helper.deadline import PASSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from core_helper.child import Child
    from core_helper.deadline import Deadline
    from core_helper.process import FaultingProcess
    from core_helper.source import Source

ENVIRON_PATIENCE = 10.0  # Seconds that reading the environment of the process may take.
GRACE = 2.0  # Seconds between SIGTERM and SIGKILL, and again before a delegate that cannot be killed is given up.
LATE = 1.0  # Seconds that the thread which attends to the child may take to notice the deadline.
LONGEST_REPORTS = 65536  # Bytes that a child may report before the delegate is started; it needs a few lines.
LONGEST_PID = 7  # Digits; PID_MAX_LIMIT of the kernel is 4194304.


def supervise(
    source: "Source",
    child: "Child",
    process: "FaultingProcess",
    deadline: "Deadline",
    log_output: "Callable[[bytes], None]",
) -> Result:
    """Give the forked ``child`` the core of ``process`` from its ``source``, wait for its end, and return how that went.

    After the ``deadline`` the child is ended. ``log_output`` gets what the delegate writes to its standard error, line by line.
    """
    result = Result()
    child.note_pipes()
    finished = _thread.allocate_lock()
    finished.acquire()
    _thread.start_new_thread(_attend, (source, child, process, deadline, log_output, result, finished))
    in_time = False
    while not in_time:
        in_time = finished.acquire(timeout=deadline.left(LATE))
        if deadline.close(LATE):  # Otherwise it has moved on.
            break
    if not in_time:
        # The other thread is late. As a rule it is just ending the child. Or a pipe that the container keeps locked holds it in
        # the kernel.
        if child.ending.acquire(blocking=False):
            _end(child, process)
        _kill_holders(child, process)
        if not finished.acquire(timeout=4 * GRACE):
            # This thread must not touch the child's pipes, or it would hang, too. The slot stays taken as long as the other
            # thread hangs.
            result.stuck = True
            result.failure = PASSED
    if result.error is not None:
        raise result.error
    return result


def _attend(
    source: "Source",
    child: "Child",
    process: "FaultingProcess",
    deadline: "Deadline",
    log_output: "Callable[[bytes], None]",
    result: Result,
    finished: "_thread.LockType",
) -> None:
    """In a thread of its own: attend to the ``child`` until its end, fill in ``result``, and release ``finished``.

    Only this thread touches the pipes of the child. A process that has such a pipe open can hold its lock as long as it likes:
    splice(2) into a socket that nobody reads waits with that lock. Then everybody else who reads, writes, queries or closes the
    pipe waits in the kernel, and no signal interrupts that (fs/splice.c, fs/pipe.c).
    """
    try:
        if _wait_for_start(child, result, deadline.at):
            result.started = True
            child.unblock()
            # What moves the core is imported only now, when the delegate runs.
            from core_helper import relay

            moving = relay.Relay(source, child, result, log_output)
            # At the deadline, and where the core was cut off. Before its input ends: an uploader would take that for the end
            # of the core, and store an incomplete object.
            if not moving.run(deadline) and child.ending.acquire(blocking=False):
                _end(child, process)
            moving.finish()
            _wait_for_end(child.pid, 0)
            _read_last_words(child, result)
        elif child.ending.acquire(blocking=False):
            _end(child, process)
        child.close()
    except BaseException as error:
        result.error = error
    finished.release()


def _end(child: "Child", process: "FaultingProcess") -> None:
    """End the delegate with its family, or a child that has not become the delegate. Once: its pid may be reused after that."""
    if child.pid:
        _end_family(child, process)
    else:
        _abandon(child, process)


def _wait_for_start(child: "Child", result: "Result", deadline: float) -> bool:
    """Read the child's reports until it is ready for the core, or has failed."""
    now = time.monotonic()
    patience = now + min(ENVIRON_PATIENCE, (deadline - now) / 2)
    amount = 0
    while True:
        poll = select.poll()
        poll.register(child.status_read_end, select.POLLIN)
        limit = deadline if child.knows_environ else min(deadline, patience)
        if not poll.poll(max(0.0, limit - time.monotonic()) * 1000):
            result.mute = limit < deadline
            result.failure = "deadline passed before the delegate was started"
            return False
        part = posix.read(child.status_read_end, 65536)
        child.reported += part
        amount += len(part)
        if amount > LONGEST_REPORTS:
            # Our own code does not report that much: a container with CAP_SYS_PTRACE has opened the pipe.
            result.failure = f"more than {LONGEST_REPORTS} bytes were reported before the delegate was started"
            return False
        ready = _read_reports(child, result)
        if result.failure is not None:
            return False
        if ready:
            return True
        if not part:
            # All copies of the pipe are closed: by exec, or because the processes before that have ended.
            result.failure = _adopt(child)
            return result.failure is None


def _adopt(child: "Child") -> "str | None":
    """Make sure that the reported pid is a child of ours; return what is wrong otherwise.

    The pid came over a pipe that a process inside the container held, so no signal may go to it before that is sure.
    """
    if _wait_for_end(child.setup_pid, 0):
        child.setup_pid = 0
    if child.reported_pid:
        try:
            posix.waitid(posix.P_PID, child.reported_pid, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
            child.pid = child.reported_pid
            return None
        except ChildProcessError:
            pass
    _end_unknown(child)
    return "the process that enters the container was killed"


def _end_unknown(child: "Child") -> None:
    """End a delegate whose pid the joining process could not report before it died; its pipes show which process it is.

    All of /proc is searched, since not every kernel lists the children of a process (CONFIG_PROC_CHILDREN).
    """
    try:
        posix.waitid(posix.P_ALL, 0, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
    except ChildProcessError:
        return  # There is none, as a rule.
    own = str(posix.getpid())
    limit = time.monotonic() + GRACE
    proc = posix.open("/proc", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    for name in posix.listdir(proc):
        if name.isdigit() and _parent(proc, name) == own and _has_pipe(name, child.pipes, limit):
            # It is our child, so the number stays its own until it is waited for.
            _signal_session(int(name), SIGKILL)
            if not _wait_for_end(int(name), 0) and int(name) != child.setup_pid:
                child.pid = int(name)
    posix.close(proc)


def _parent(proc: int, name: str) -> str:
    try:
        return procfs.stat_fields(procfs.read(proc, f"{name}/stat"))[1]
    except OSError:
        return ""  # Ended meanwhile.


def _abandon(child: "Child", process: "FaultingProcess") -> None:
    """End a child that has not become the delegate. It runs our own code, so it gets no grace."""
    if child.setup_pid:
        posix.kill(child.setup_pid, SIGKILL)
        # Waits for its end, so that its own child, if it has one, becomes ours. That child may hang in a file system of the
        # container.
        _adopt(child)
    if child.pid:
        posix.kill(child.pid, SIGKILL)
        _wait_in_spite_of_tracers(child.pid, process)


def _read_reports(child: "Child", result: "Result") -> bool:
    """Take over what the child reported in full lines; tell whether it said that it is ready for the core."""
    ready = False
    *lines, child.reported = child.reported.split(b"\n")
    for line in lines:
        kind, _space, text = line.decode("utf-8", "replace").partition(" ")
        if kind == "pid" and text.isascii() and text.isdigit() and len(text) <= LONGEST_PID:
            child.reported_pid = int(text)
        elif kind == "note":
            result.notes.append(text)
        elif kind == "environ":
            child.knows_environ = True
            result.fallback = text == "fallback"
        elif kind == "ready":
            child.pid = child.setup_pid
            ready = True
        elif result.failure is None:
            result.absent = kind == "absent"
            result.crowded = kind == "crowded"
            result.refused = kind == "refused"
            result.failure = text
    return ready


def _read_last_words(child: "Child", result: "Result") -> None:
    """Take over what a child reported after it was ready: why it could not write any more."""
    try:
        child.reported += posix.read(child.status_read_end, 65536)
    except BlockingIOError:
        return
    last = Result()
    _read_reports(child, last)
    result.failure = last.failure or result.failure


def _end_family(child: "Child", process: "FaultingProcess") -> None:
    """End the delegate and its family: SIGTERM, and SIGKILL after a grace. Does not wait longer for those that are frozen.

    The family is the delegate's session, and every other process of the container that has inherited its pipes.
    """
    _signal_session(child.pid, SIGTERM)
    _wait_for_end(child.pid, posix.WNOWAIT)
    # The delegate is reaped only after this: until then, no other process gets its pid, which is also the number of its group.
    _signal_session(child.pid, SIGKILL)
    _kill_holders(child, process)
    _wait_in_spite_of_tracers(child.pid, process)


def _wait_in_spite_of_tracers(pid: int, process: "FaultingProcess") -> None:
    """Wait for the end of our child ``pid``, which SIGKILL has ended, and end those that stop it on its way."""
    if not _wait_for_end(pid, 0) and _kill_tracers(pid, process):
        _wait_for_end(pid, 0)


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
            if tracer in _tracers_of(one) and _has_family(process) and _is_of_the_family(str(tracer), process):
                linux.pidfd_send_signal(pidfd, SIGKILL)
                traced.append(tracer)
                found = True
            posix.close(pidfd)
    return found


def _tracers_of(pid: int) -> "set[int]":
    """Return the pids of the processes that trace a thread of process ``pid``; proc_pid_status(5)."""
    tracers = set()
    for thread in _listed(f"/proc/{pid}/task"):
        try:
            status = procfs.parse_status(procfs.read_path(f"/proc/{pid}/task/{thread}/status"))
        except OSError:
            continue  # Ended meanwhile, as another thread need not have.
        tracers.add(int(status.get("TracerPid", "0")))
    return tracers - {0}


def _listed(directory: str) -> "list[str]":
    """Return the names in a directory of a process that may end at any time."""
    try:
        return posix.listdir(directory)
    except OSError:
        return []


def _kill_holders(child: "Child", process: "FaultingProcess") -> None:
    for pidfd in _holders(child, process):
        linux.pidfd_send_signal(pidfd, SIGKILL)
        posix.close(pidfd)


def _signal_session(pid: int, number: int) -> None:
    for kill in (posix.kill, posix.killpg):
        try:
            kill(pid, number)
        except OSError:
            pass  # Ended already.


def _wait_for_end(pid: int, option: int) -> bool:
    """Wait for the end of our child ``pid``, at most the grace, and tell whether it has ended; see linux.wait_for_end."""
    return linux.wait_for_end(pid, GRACE, option)


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


def _is_of_the_family(name: str, process: "FaultingProcess") -> bool:
    """Tell whether the process ``name`` is one that the delegate could signal itself."""
    try:
        if posix.stat(f"/proc/{name}").st_uid != process.uid or name == str(posix.getpid()):
            return False
        if not process.in_pid_namespace():
            group = runtime.named_group(process.cgroups)
            theirs = procfs.parse_cgroup(procfs.read_path(f"/proc/{name}/cgroup"))
            return group is None or runtime.is_within(theirs, [group])
        namespace = posix.open(f"/proc/{name}/ns/pid", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return False
    try:
        wanted = process.inode("pid")
        return posix.fstat(namespace).st_ino == wanted or wanted in namespaces.lineage(
            namespace, namespaces.of_host("pid")
        )
    except OSError:
        return False
    finally:
        posix.close(namespace)


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
                continue  # Closed meanwhile: who opens and closes files all the time does not hide the others.
    return False
