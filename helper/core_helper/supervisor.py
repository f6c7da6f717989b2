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
from _signal import SIGKILL

from core_helper import family
from core_helper.child import Result
from core_helper.deadline import PASSED, Told, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from core_helper.child import Child
    from core_helper.deadline import Deadline
    from core_helper.process import FaultingProcess
    from core_helper.source import Source

EAGAIN = 11
ENVIRON_PATIENCE = 10.0  # Seconds that reading the environment of the process may take.
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

    After the ``deadline`` the child is ended, and when this process is told to end. ``log_output`` gets what the delegate
    writes to its standard error, line by line. Raises OSError where that cannot be attended to; then the child has ended.
    """
    result = Result()
    child.note_pipes()
    finished = _thread.allocate_lock()
    finished.acquire()
    done: list[bool] = []
    signals.wake = lambda: _release(finished)
    try:
        _thread.start_new_thread(_attend, (source, child, process, deadline, log_output, result, finished, done))
    except RuntimeError as error:
        # The child must not see the end of its input.
        _abandon(child, process)
        posix.close(child.core_write_end)
        child.close()
        raise OSError(EAGAIN, str(error)) from None
    while not done and not signals.number:
        finished.acquire(timeout=deadline.left(LATE))
        if deadline.close(LATE):  # Otherwise it has moved on.
            break
    told = 0 if done else signals.number
    if not done:
        # The other thread is late. As a rule it is just ending the child. Or a pipe that the container keeps locked holds it in
        # the kernel. Or this process was told to end.
        deadline.at = min(deadline.at, time.monotonic())
        if child.ending.acquire(blocking=False):
            _end(child, process)
        family.kill_holders(child, process)
        limit = time.monotonic() + 4 * family.GRACE
        while not done and time.monotonic() < limit:
            finished.acquire(timeout=max(0.0, limit - time.monotonic()))
        if not done:
            # This thread must not touch the child's pipes, or it would hang, too. The slot stays taken as long as the other
            # thread hangs.
            result.stuck = True
            result.failure = PASSED
    if told and (result.error is not None or result.failure is not None or not result.complete):
        # Both threads wait for the end of the child: an error of the other one may be that it came second.
        result.failure, result.error = str(Told(told)), None
    elif result.error is not None:
        raise result.error
    return result


def _release(lock: "_thread.LockType") -> None:
    """Release a ``lock`` that somebody else may just have released, too."""
    try:
        lock.release()
    except RuntimeError:
        pass


def _attend(
    source: "Source",
    child: "Child",
    process: "FaultingProcess",
    deadline: "Deadline",
    log_output: "Callable[[bytes], None]",
    result: Result,
    finished: "_thread.LockType",
    done: "list[bool]",
) -> None:
    """In a thread of its own: attend to the ``child`` until its end, fill in ``result``, and release ``finished``.

    ``done`` has an entry then: a signal releases ``finished``, too.

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
            family.wait_for_end(child.pid, 0)
            _read_last_words(child, result)
        elif child.ending.acquire(blocking=False):
            _end(child, process)
        child.close()
    except BaseException as error:
        result.error = error
        try:
            # The input of a delegate ends with this process, and the delegate would take that for the end of the core.
            if child.ending.acquire(blocking=False):
                _end(child, process)
        except OSError:
            pass
    done.append(True)
    _release(finished)


def _end(child: "Child", process: "FaultingProcess") -> None:
    """End the delegate with its family, or a child that has not become the delegate. Once: its pid may be reused after that."""
    if child.pid:
        family.end(child, process)
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
    if family.wait_for_end(child.setup_pid, 0):
        child.setup_pid = 0
    if child.reported_pid:
        try:
            posix.waitid(posix.P_PID, child.reported_pid, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
            child.pid = child.reported_pid
            return None
        except ChildProcessError:
            pass
    family.end_unknown(child)
    return "the process that enters the container was killed"


def _abandon(child: "Child", process: "FaultingProcess") -> None:
    """End a child that has not become the delegate. It runs our own code, so it gets no grace."""
    if child.setup_pid:
        posix.kill(child.setup_pid, SIGKILL)
        # Waits for its end, so that its own child, if it has one, becomes ours. That child may hang in a file system of the
        # container.
        _adopt(child)
    if child.pid:
        posix.kill(child.pid, SIGKILL)
        family.wait_in_spite_of_tracers(child.pid, process)


def _read_reports(child: "Child", result: "Result") -> bool:
    """Take over what the child reported in full lines; tell whether it said that it is ready for the core."""
    ready = False
    *lines, child.reported = child.reported.split(b"\n")
    for line in lines:
        kind, _space, text = line.decode("utf-8", "replace").partition(" ")
        if kind == "pid" and text.isascii() and text.isdigit() and len(text) <= LONGEST_PID:
            # The first pid counts: a process that traces the forked one may write here, too.
            child.reported_pid = child.reported_pid or int(text)
        elif kind == "note":
            result.notes.append(text)
        elif kind == "environ":
            child.knows_environ = True
            result.fallback = text == "fallback"
        elif kind == "ready" and child.stays:
            child.pid = child.setup_pid
            ready = True
        elif result.failure is None:
            result.absent = kind == "absent"
            result.crowded = kind == "crowded"
            result.refused = kind == "refused"
            result.failure = "somebody else reported that it is ready" if kind == "ready" else text
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
