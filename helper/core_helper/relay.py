"""The supervisor: the core's way from the kernel to the delegate, the deadline, and the end.

It stays on the host with the kernel's pipe. Whoever holds the last copy of that pipe's read end holds the crashed process, its
namespaces and one slot of kernel.core_pipe_limit. The delegate therefore gets a pipe of its own, and the kernel's is
closed only after the delegate has ended: when PID 1 of a container crashed, its pid namespace with the delegate in it is
killed at that moment; core(5), pid_namespaces(7).
"""

import posix
import select
import time

from core_helper import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from core_helper.delegate import Child

PIPE_SIZE = 1 << 20
STEP = 1 << 20
GRACE = 2.0  # Seconds between SIGTERM and SIGKILL, and again before a delegate that cannot be killed is given up.
OUTPUT_LIMIT = 65536
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
        _relay(core, child, result, deadline, log_output)
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


class _Output:
    """What the delegate writes: standard error for the log, bounded; standard output for nobody."""

    def __init__(self, child: "Child", log: "Callable[[bytes], None]") -> None:
        self.streams = {child.stderr_in, child.stdout_in}
        self.stderr = child.stderr_in
        self.left = OUTPUT_LIMIT
        self.line = b""
        self.log = log

    def take(self, stream: int) -> None:
        try:
            part = posix.read(stream, 65536)
        except BlockingIOError:
            return
        if not part:
            self.streams.discard(stream)
        if stream != self.stderr or self.left <= 0:
            return
        part, self.left = part[: self.left], self.left - len(part)
        *lines, self.line = (self.line + part).split(b"\n")
        for line in lines:
            self.log(line)
        if self.left <= 0:
            self.log(self.line + b" [more than 64 KiB of output: not logged]")
            self.line = b""

    def finish(self) -> None:
        if self.stderr in self.streams:
            self.take(self.stderr)
        if self.line:
            self.log(self.line)


class _Relay:
    """The state of one relay: which of the two pipes is known to be ready."""

    def __init__(self, core: int, child: "Child", result: "Result") -> None:
        self.core = core
        self.sink = child.core_out
        self.result = result
        self.open = True
        self.readable = False
        linux.set_pipe_size(core, PIPE_SIZE)
        linux.set_pipe_size(self.sink, PIPE_SIZE)

    def register(self, poll: select.poll) -> None:
        # One side at a time: waiting for the sink while the source is empty would spin, and the other way round too.
        if self.open:
            poll.register(self.sink, select.POLLOUT if self.readable else 0)
            if not self.readable:
                poll.register(self.core, select.POLLIN)

    def advance(self, ready: "dict[int, int]") -> None:
        if not self.open:
            return
        if self.core in ready:
            self.readable = True
        elif ready.get(self.sink, 0) & (select.POLLERR | select.POLLNVAL):
            self.close()  # The delegate closed its standard input: it does not want more.
        elif ready.get(self.sink, 0) & select.POLLOUT:
            self._move()

    def _move(self) -> None:
        try:
            moved = linux.splice(self.core, self.sink, STEP)
        except BlockingIOError:
            self.readable = False
            return
        except BrokenPipeError:
            self.close()
            return
        self.result.delivered += moved
        if moved == 0:
            self.result.complete = True
            self.close()

    def close(self) -> None:
        if self.open:
            self.open = False
            if not self.result.complete:
                # What lies in the pipe is not read by anybody any more.
                self.result.delivered -= linux.bytes_in_pipe(self.sink)
            posix.close(self.sink)


def _relay(core: int, child: "Child", result: "Result", deadline: float, log: "Callable[[bytes], None]") -> None:
    """Move the core until its end, then wait for the end of the delegate; both only until the deadline."""
    relay = _Relay(core, child, result)
    output = _Output(child, log)
    pidfd = linux.pidfd_open(child.pid)
    end = None
    while end is None or relay.open:
        poll = select.poll()
        relay.register(poll)
        if end is None:
            poll.register(pidfd, select.POLLIN)
        for stream in output.streams:
            poll.register(stream, select.POLLIN)
        ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if not ready and time.monotonic() >= deadline:
            result.failure = "deadline passed"
            break
        relay.advance(ready)
        for stream in list(output.streams):
            if stream in ready:
                output.take(stream)
        if pidfd in ready:
            # Not reaped yet: that keeps its pid from being reused, and the number of its process group with it.
            end = posix.waitid(posix.P_PID, child.pid, posix.WEXITED | posix.WNOWAIT)
    posix.close(pidfd)
    if result.failure is not None:
        # Before its input ends: an uploader would take that for the end of the core, and complete half an object.
        _end_family(child)
    relay.close()
    output.finish()
    if result.failure is None and end is not None and end.si_status:
        kind = "ended with exit code" if end.si_code == posix.CLD_EXITED else "was killed by signal"
        result.failure = f"it {kind} {end.si_status}"


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
