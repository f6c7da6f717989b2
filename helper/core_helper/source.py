"""Where the core comes from: the kernel's pipe, which can be read once."""

import posix
import select
from _signal import SIGKILL

from core_helper import linux, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.crash import Crash

PATIENCE = 0.5  # Seconds for a process to end when nobody reads its core any more.


class KernelPipe:
    """The reading end of the pipe that the kernel writes the core into.

    As long as a copy of this end is open, the kernel keeps the faulting process, its namespaces and one place of
    kernel.core_pipe_limit.
    ``drained`` tells whether the kernel has written the core to its end.
    """

    def __init__(self, descriptor: int) -> None:
        """Take the opened pipe."""
        self.descriptor = descriptor
        self.drained = False

    def close(self) -> None:
        """Close this copy of the pipe."""
        posix.close(self.descriptor)

    def release(self, crash: "Crash") -> bool:
        """Close the last copy of the pipe, and end the process if that does not; return whether SIGKILL was needed.

        As a rule the next write ends the dump. But the kernel may have nothing to write for minutes, while it walks terabytes
        of memory that the process has reserved and never used: fs/coredump.c, dump_user_range. SIGKILL does not end a process
        that waits for a file system which does not answer; the slot of such a process stays taken, see slots.py.
        """
        self.close()
        if crash.handle is None:
            return False
        poll = select.poll()
        poll.register(crash.handle, select.POLLIN)
        if poll.poll(PATIENCE * 1000):
            return False
        try:
            proc = posix.open("/proc", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
            path = procfs.task_of(crash.pid, crash.tid)
            task = posix.open(path, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
            # The process has not ended, so the pid is still its own. And it is no successor that got the pid: a successor is
            # younger.
            if not procfs.still_dumping(procfs.read(task, "status")) or procfs.is_younger(
                procfs.read(task, "../../stat"), procfs.read(proc, "self/stat")
            ):
                return False
        except OSError:
            return False
        linux.pidfd_send_signal(crash.handle, SIGKILL)
        return True
