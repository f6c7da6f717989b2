"""Where the core comes from: the kernel's pipe, which can be read once, or a file of the host, as often as needed."""

import posix
import select
from _signal import SIGKILL

from core_helper import linux, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Union

    from core_helper.crash import Crash

    Source = Union["KernelPipe", "KeptFile"]

BLOCK = 1 << 18
LOOK = 0.05  # Seconds between two looks at whether a pipe was read.
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
        self.closed = False
        self.streamed: int | None = None  # The pipe of KeptFile.stream.

    def peek(self, sink: int, count: int) -> int:
        """Copy at most ``count`` of the next bytes into the pipe ``sink`` and leave them here, never waiting.

        Returns the number of bytes, 0 at the end. Raises BlockingIOError where there is nothing yet, and OSError with EINVAL
        where this is no pipe: then bytes cannot be put back.
        """
        return linux.tee(self.descriptor, sink, count)

    def advance(self) -> bool:
        """Go on to where the rest of the core is, at the end of what ``descriptor`` had; return whether there is a rest."""
        self.drained = True
        return False

    def announced_length(self) -> "int | None":
        """Return how many bytes the core will have, and leave it here; None where that is not known in time."""
        from core_helper import bounds

        return bounds.length_in_pipe(self.descriptor)

    def stream(self) -> int:
        """Return a pipe for a program that takes the helper's place, and with it the core."""
        return self.descriptor

    def end_stream(self) -> None:
        """Have the core here again, as it was before ``stream``: the program could not be executed."""
        if self.streamed is not None:
            posix.close(self.streamed)  # Whoever fills it ends, and holds the faulting process no longer.
            self.streamed = None

    def close(self) -> None:
        """Close this copy of the pipe, if that was not done yet."""
        if not self.closed:
            self.closed = True
            posix.close(self.descriptor)

    def release(self, crash: "Crash") -> bool:
        """Close the last copy of the pipe, and end the process if that does not; return whether SIGKILL was needed.

        As a rule the next write ends the dump. But the kernel may have nothing to write for minutes, while it walks terabytes
        of memory that the process has reserved and never used: fs/coredump.c, dump_user_range. SIGKILL does not end a process
        that waits for a file system which does not answer; the slot of such a process stays taken, see slots.py.
        """
        if self.closed or crash.handle is None:
            self.close()
            return False
        self.close()
        poll = select.poll()
        poll.register(crash.handle, select.POLLIN)
        if poll.poll(PATIENCE * 1000):
            return False
        try:
            proc = posix.open("/proc", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
            path = procfs.task_of(crash.pid, crash.tid)
            task = posix.open(path, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
            # The process has not ended, so the pid is still its own. And it is no successor that got the pid: a successor is
            # younger. The kernel's own pidfd leaves no doubt.
            if not procfs.still_dumping(procfs.read(task, "status")) or (
                crash.pidfd is None
                and procfs.is_younger(procfs.read(task, "../../stat"), procfs.read(proc, "self/stat"))
            ):
                return False
        except OSError:
            return False
        linux.pidfd_send_signal(crash.handle, SIGKILL)
        return True


class KeptFile:
    """A core that the host keeps: each destination gets it from the start, through a pipe, and never the file itself.

    What is not in the ``file`` comes after that and can be read once, from the opened pipes ``rest``.
    """

    def __init__(self, kernel: KernelPipe, file: int, rest: "list[int]") -> None:
        """Take the kernel's pipe, the opened file, and the pipes with the rest; the kernel's may be the last one of these."""
        self.kernel = kernel
        self.file = file
        self.descriptor = file
        self.rest = rest

    def rewind(self) -> bool:
        """Have the next destination read from the start; return False if an earlier one has read what comes but once."""
        if self.descriptor != self.file:
            return False
        posix.lseek(self.file, 0, linux.SEEK_SET)
        return True

    def peek(self, sink: int, count: int) -> int:
        """Copy as KernelPipe.peek does. Only the first bytes are ever looked at so."""
        try:
            return linux.splice(self.file, sink, count)
        finally:
            posix.lseek(self.file, 0, linux.SEEK_SET)

    def advance(self) -> bool:
        """Go on as KernelPipe.advance does: from the file to what comes after it."""
        if self.rest:
            self.descriptor = self.rest.pop(0)
            return True
        if self.descriptor == self.kernel.descriptor:
            self.kernel.advance()
        return False

    def stream(self, end: "Callable[[], None]") -> int:
        """Return a pipe from which all can be read; the process that fills it calls ``end`` when all was read. Raises OSError.

        What is left in the pipe when nobody has it open for reading any more was not read. Until then that process holds the
        kernel's pipe: the kernel keeps the faulting process.
        """
        reading, writing = posix.pipe()
        if posix.fork() == 0:
            try:
                posix.close(reading)
                self._feed(writing)
                if _is_read(writing):
                    posix.close(writing)
                    end()
            finally:
                posix._exit(0)
        posix.close(writing)
        self.kernel.streamed = reading
        return reading

    def _feed(self, sink: int) -> None:
        # Not by the file's offset, which other processes share.
        offset = 0
        while block := posix.pread(self.file, BLOCK, offset):
            _write(sink, block)
            offset += len(block)
        while self.advance():
            while block := posix.read(self.descriptor, BLOCK):
                _write(sink, block)

    def close(self) -> None:
        """Close this copy of all."""
        for descriptor in {self.file, self.descriptor, *self.rest} - {self.kernel.descriptor}:
            posix.close(descriptor)
        self.kernel.close()


def _is_read(sink: int) -> bool:
    """Wait until all that is in the pipe was read, or nobody can read it any more, and tell whether it was read."""
    poll = select.poll()
    poll.register(sink, 0)  # The end of the last reader comes unasked, as POLLERR.
    while linux.bytes_in_pipe(sink):
        if poll.poll(LOOK * 1000):
            return not linux.bytes_in_pipe(sink)
    return True


def _write(sink: int, block: bytes) -> None:
    while block:
        block = block[posix.write(sink, block) :]
