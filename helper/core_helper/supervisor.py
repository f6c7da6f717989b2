"""The supervisor: stays on the host, waits for the child's start, has the core relayed to it, and ends it at the deadline.

Whoever holds the last copy of the read end of the kernel's pipe holds the crashed process, its namespaces and one slot of
kernel.core_pipe_limit. The delegate therefore gets a pipe of its own, and the kernel's is closed only after the delegate
has ended: when PID 1 of a container crashed, its pid namespace with the delegate in it is killed at that moment; core(5),
pid_namespaces(7).
"""

import posix
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from core_helper.delegate import Child

GRACE = 2.0  # Seconds between SIGTERM and SIGKILL, and again before a delegate that cannot be killed is given up.
SIGTERM, SIGKILL = 15, 9


class Result:
    """How a child ended.

    ``failure`` is None if it was started and ended with exit code 0; ``absent`` if there is no such delegate, ``crowded`` if
    the container has reached its pids.max; ``delivered`` counts bytes, ``complete`` tells whether the core was relayed to its
    end.
    """

    def __init__(self) -> None:
        """Start with nothing done."""
        self.started = False
        self.absent = False
        self.crowded = False
        self.failure: str | None = None
        self.notes: list[str] = []
        self.delivered = 0
        self.complete = False


def supervise(core: int, child: "Child", deadline: float, log_output: "Callable[[bytes], None]") -> Result:
    """Give the forked ``child`` the core that is read from ``core``, wait for its end, and return how that went.

    ``deadline`` is a time of the monotonic clock in seconds, after which the child is ended. ``log_output`` gets what the
    delegate writes to its standard error, line by line.
    """
    result = Result()
    if _wait_for_start(child, result, deadline):
        result.started = True
        # What moves the core is imported only now, when the delegate runs.
        from core_helper import relay

        moving = relay.Relay(core, child, result, log_output)
        moving.run(deadline)
        if result.failure is not None:
            # Before its input ends: an uploader would take that for the end of the core, and complete half an object.
            _end_family(child)
        moving.finish()
        _reap(child)
        _take_last_words(child, result)
    else:
        _end_family(child)
    child.close()
    return result


def _wait_for_start(child: "Child", result: "Result", deadline: float) -> bool:
    """Read the child's reports until it is ready for the core, or has failed."""
    while True:
        poll = select.poll()
        poll.register(child.error_in, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            result.failure = "deadline passed before the delegate was started"
            return False
        part = posix.read(child.error_in, 65536)
        child.reported += part
        ready = _take_reports(child, result)
        if result.failure is not None:
            return False
        if ready:
            return True
        if not part:
            # All copies of the pipe are closed: by exec, or by the end of the processes that had to get there.
            result.failure = _adopt(child)
            return result.failure is None


def _adopt(child: "Child") -> "str | None":
    """Make sure that the delegate is our child; return what is wrong otherwise.

    Its pid came over a pipe that a process inside the container held: no signal is sent to a pid that is not our child's.
    """
    posix.waitpid(child.setup_pid, 0)
    child.setup_pid = 0
    if child.pid:
        try:
            posix.waitid(posix.P_PID, child.pid, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
            return None
        except ChildProcessError:
            child.pid = 0
    return "the process that enters the container was killed"


def _take_reports(child: "Child", result: "Result") -> bool:
    """Take over what the child reported in full lines; tell whether it said that it is ready for the core."""
    ready = False
    *lines, child.reported = child.reported.split(b"\n")
    for line in lines:
        kind, _, text = line.decode("utf-8", "replace").partition(" ")
        if kind == "pid" and text.isdigit():
            child.pid = int(text)
        elif kind == "note":
            result.notes.append(text)
        elif kind == "ready":
            child.pid = child.setup_pid
            ready = True
        elif result.failure is None:
            result.absent = kind == "absent"
            result.crowded = kind == "crowded"
            result.failure = text
    return ready


def _take_last_words(child: "Child", result: "Result") -> None:
    """Take what a child reported after it was ready: why it could not write on."""
    try:
        child.reported += posix.read(child.error_in, 65536)
    except BlockingIOError:
        return
    told = Result()
    _take_reports(child, told)
    result.failure = told.failure or result.failure


def _reap(child: "Child") -> None:
    """Wait for the child that has ended: as a zombie it would keep the pid namespace, and its container, from ending."""
    try:
        posix.waitpid(child.pid, posix.WNOHANG)
    except ChildProcessError:
        pass  # Reaped when it was killed.


def _end_family(child: "Child") -> None:
    """End the delegate and its session: SIGTERM, and SIGKILL after a grace; a process in a frozen group is given up."""
    for number in (SIGTERM, SIGKILL):
        for pid in {child.setup_pid, child.pid} - {0}:
            for kill in (posix.kill, posix.killpg):
                try:
                    kill(pid, number)
                except OSError:
                    pass  # Ended already, or not a group of its own yet.
        limit = time.monotonic() + GRACE
        while time.monotonic() < limit:
            try:
                if posix.waitpid(-1, posix.WNOHANG)[0] == 0:
                    time.sleep(0.01)
            except ChildProcessError:
                return
