"""The process that enters the container, seen from the supervisor; what it does there is in joining.py and fallback.py."""

import _thread
import posix

from core_helper import control_groups, linux
from core_helper.deadline import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NoReturn

    from core_helper.source import Source


class Child:
    """The process that enters the container, seen from the supervisor: its pipes and pids, and what it reported."""

    def __init__(
        self,
        source: "Source",
        groups: control_groups.ControlGroups,
        run: "Callable[[Child], NoReturn]",
        stays: bool = False,
    ) -> None:
        """Fork it into ``groups`` and have it ``run``, without the ``source`` of the core. Raises OSError, or Told.

        ``stays`` says whether it takes the core itself, and becomes no delegate: nobody else may say that it is ready.
        Whatever can wait is not done here after the fork: it would slow the child down, which shares the pages of our memory.
        """
        # From here on until the supervisor waits, a signal must not leave a child that nobody ends.
        signals.check()
        self.core_read_end, self.core_write_end = posix.pipe()
        # One page, so that it is seen when the first bytes of the core have been read; see relay.py.
        linux.set_pipe_size(self.core_write_end, 1)
        self.status_read_end, self.status_write_end = posix.pipe()
        self.stdout_read_end, self.stdout_write_end = posix.pipe()
        self.stderr_read_end, self.stderr_write_end = posix.pipe()
        self.stays = stays
        # The delegate's, once it is known to be our child. ``setup_pid`` is that of the joining process.
        self.pid = 0
        self.reported_pid = 0
        self.knows_environ = False
        self.reported = b""
        self.pipes: set[str] = set()
        # Acquired by the thread that ends the child, and never released.
        self.ending = _thread.allocate_lock()
        # The joining process exits after it forked the delegate: as a subreaper we become the delegate's parent, although it
        # lives in another pid namespace (kernel/exit.c, find_new_reaper).
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        self.setup_pid = groups.fork()
        ours = (self.core_write_end, self.status_read_end, self.stdout_read_end, self.stderr_read_end)
        theirs = (self.core_read_end, self.status_write_end, self.stdout_write_end, self.stderr_write_end)
        if self.setup_pid == 0:
            try:
                # First of all: a child that is frozen with its container must not hold the faulting process.
                source.close()
                for descriptor in ours:
                    posix.close(descriptor)
                run(self)
            finally:
                posix._exit(1)
        for descriptor in theirs:
            posix.close(descriptor)

    def unblock(self) -> None:
        """Make our ends of the pipes non-blocking, once the delegate runs."""
        for descriptor in (self.core_write_end, self.status_read_end, self.stdout_read_end, self.stderr_read_end):
            posix.set_blocking(descriptor, False)

    def note_pipes(self) -> None:
        """Note the names of the child's pipes, as links of /proc/PID/fd have them: they show who is of its family."""
        self.pipes = {
            f"pipe:[{posix.fstat(end).st_ino}]"
            for end in (self.core_write_end, self.status_read_end, self.stdout_read_end, self.stderr_read_end)
        }

    def standard_streams(self) -> "dict[int, int]":
        """Return what the delegate gets as its descriptors 0, 1 and 2.

        1 is a pipe too and not /dev/null, which root in a container could fchmod(2) for the whole host.
        """
        return {0: self.core_read_end, 1: self.stdout_write_end, 2: self.stderr_write_end}

    def is_delegate(self) -> bool:
        """Tell whether the child is a program of the container, and not our own code; asked once the child has started."""
        return self.pid != self.setup_pid

    def left(self) -> int:
        """Return the pid of a process of this child that was told to end and is still there, 0 if there is none.

        As a rule it hangs in a file system of the container that does not answer.
        """
        for pid in (self.setup_pid, self.pid):
            try:
                if pid and posix.waitid(posix.P_PID, pid, posix.WEXITED | posix.WNOHANG) is None:
                    return pid
            except ChildProcessError:
                pass  # Waited for already, as a rule.
        return 0

    def close(self) -> None:
        """Close what the supervisor still holds, except ``core_write_end``, which the relay closes."""
        for descriptor in (self.status_read_end, self.stdout_read_end, self.stderr_read_end):
            posix.close(descriptor)


class Result:
    """How a child ended.

    ``failure`` is None if it was started and ended with exit code 0; ``absent`` if there is no such delegate, ``crowded`` if
    the container has reached its pids.max, ``refused`` if the core must not go anywhere, ``mute`` if the environment of the
    process could not be read in time. ``fallback`` says whether that environment asks for the fallback file, ``untouched``
    whether the child ended without reading a byte: then the core is still whole. ``complete`` says whether the child has read
    all of the core that came; ``delivered`` counts bytes, ``length`` how many it should be, None if that is not known, and
    ``cut`` says whether the kernel has ended the dump before that. ``stuck`` says that the container still holds a pipe of the
    child locked, ``error`` what ended the thread that attended to the child. ``keep`` says that the child has failed, but asks
    to keep the core and to try again.
    """

    def __init__(self) -> None:
        """Start with nothing done."""
        self.started = False
        self.absent = False
        self.crowded = False
        self.refused = False
        self.mute = False
        self.fallback = False
        self.untouched = False
        self.failure: str | None = None
        self.notes: list[str] = []
        self.delivered = 0
        self.complete = False
        self.cut = False
        self.length: int | None = None
        self.stuck = False
        self.keep = False
        self.error: BaseException | None = None
