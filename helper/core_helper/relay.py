"""Moves the core from the kernel's pipe into that of the delegate, and the delegate's output into the log."""

import posix
import select
import time

from core_helper import corefile, linux
from core_helper.deadline import PASSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from core_helper.child import Child, Result
    from core_helper.deadline import Deadline
    from core_helper.source import Source

STEP = 1 << 20
OUTPUT_LIMIT = 65536
OUTPUT_LINES = 200
# The bytes that a delegate may write before it has to wait, and the seconds that it then waits for each read of 64 KiB. A
# delegate that writes without end would otherwise cost the host several times the processor time that the container is allowed.
# A read costs the host the same for one byte as for a page: it counts as a page at least.
OUTPUT_FREE = 1 << 20
OUTPUT_READ = 1 << 12
OUTPUT_PAUSE = 0.02
EXIT_KEEP = 75  # EX_TEMPFAIL of sysexits.h: the delegate asks to keep the core, and to try again later.
TRACED_PAUSE = 0.05  # Seconds between two checks whether a traced delegate has ended.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.0001, 0.1  # Seconds between two checks whether the delegate has read all.


class Output:
    """What the delegate writes: a limited part of standard error goes to the log, standard output is discarded."""

    def __init__(self, child: "Child", log: "Callable[[bytes], None]") -> None:
        """Take the pipes of ``child``; ``log`` gets each line."""
        self.streams = {child.stderr_read_end, child.stdout_read_end}
        self.stderr = child.stderr_read_end
        self.left = OUTPUT_LIMIT
        self.lines = OUTPUT_LINES
        self.line = b""
        self.log = log
        self.amount = 0
        self.resume = 0.0

    def read(self, stream: int) -> None:
        """Read what there is, and forget a stream that has ended."""
        try:
            part = posix.read(stream, 65536)
        except BlockingIOError:
            return
        if not part:
            self.streams.discard(stream)
        self.amount += max(len(part), OUTPUT_READ)
        if self.amount > OUTPUT_FREE:
            self.resume = time.monotonic() + OUTPUT_PAUSE
        if stream != self.stderr or self.left <= 0:
            return
        part, self.left = part[: self.left], self.left - len(part)
        *lines, self.line = (self.line + part).split(b"\n")
        for line in lines[: self.lines]:
            self.log(line)
        self.lines -= len(lines)
        if self.left <= 0 or self.lines <= 0:
            if self.line and self.lines > 0:
                self.log(self.line)
            self.log(b"[more than 64 KiB or 200 lines of output: not logged]")
            self.left, self.line = 0, b""

    def finish(self) -> None:
        """Read what was written last, with or without a newline."""
        if self.stderr in self.streams:
            self.read(self.stderr)
        if self.line:
            self.log(self.line)


class Relay:
    """Moves the core into the child's pipe, and notes in ``result`` what became of it.

    ``copied`` bytes of the core lie as a copy in our pipe, and ``shown`` of them in the child's. ``committed`` says that
    they were removed from the kernel's pipe. ``pending`` bytes were read and not written yet. ``readable`` says that there
    may be something to move, ``moved`` when something was moved last, ``ended`` that the core has come to its end, and
    ``open`` that the child's input is open.
    """

    def __init__(self, source: "Source", child: "Child", result: "Result", log: "Callable[[bytes], None]") -> None:
        """Take the ``source`` of the core, the started ``child``, and ``log`` for what it writes to standard error."""
        self.source = source
        self.core = source.descriptor
        self.child = child
        self.sink = child.core_write_end
        self.result = result
        self.output = Output(child, log)
        self.open = True
        self.readable = False
        self.ended = False
        self.pause = SHORTEST_PAUSE
        self.copied = 0
        self.shown = 0
        self.committed = False
        self.header = corefile.Header()
        self.pending = b""
        self.moved = time.monotonic()
        # The core moves through a pipe of ours. The container may hold the lock of the child's pipe. A call that waits for that
        # lock must not hold the lock of the kernel's pipe: the faulting process would wait for it, and no signal would
        # interrupt that.
        self.buffer_out, self.buffer_in = posix.pipe()
        self.buffered = 0
        linux.set_pipe_size(self.buffer_in, 1)
        linux.set_pipe_size(self.core, linux.PIPE_SIZE)  # Does nothing to a file.

    def run(self, deadline: "Deadline") -> bool:
        """Relay the core to its end and wait for that of the delegate; tell whether both came before the ``deadline``.

        Also false where the delegate has failed and nobody has read a byte, but somebody may do so yet; and where the core was
        cut off. Then the delegate must be ended while its input is open.
        """
        pidfd = linux.pidfd_open(self.child.pid)
        end, held = None, False
        while end is None or (self.open and not self.ended):
            left = deadline.wait(self.result.delivered, self.moved)
            if left <= 0:
                self.result.failure = PASSED
                break
            poll = select.poll()
            self._register(poll)
            if end is None:
                poll.register(pidfd, select.POLLIN)
            pause = self.output.resume - time.monotonic()
            if pause <= 0:
                for stream in self.output.streams:
                    poll.register(stream, select.POLLIN)
            ready = dict(poll.poll(self._patience(left if pause <= 0 else min(left, pause))))
            self._advance(ready)
            for stream in list(self.output.streams):
                if stream in ready:
                    self.output.read(stream)
            if pidfd in ready:
                # Not reaped yet: that keeps its pid from being reused, and the number of its process group with it.
                end = posix.waitid(posix.P_PID, self.child.pid, posix.WEXITED | posix.WNOWAIT | posix.WNOHANG)
                if end is None:
                    # Another process traces it, and has not let it end yet.
                    time.sleep(TRACED_PAUSE)
            if end is not None and self.open and not self.committed and self._is_held():
                # A process that has inherited the input of a delegate which ended with exit code 0 goes on reading.
                if end.si_status and linux.bytes_in_pipe(self.sink) == self.shown:
                    held = True
                    break
                if self.shown:
                    self._commit()
            if self.open and self.result.complete:
                held = True
                break
        posix.close(pidfd)
        # Nobody can read the shown bytes any more; the kernel's pipe still has them.
        self.result.untouched = not self.committed and end is not None
        if self.result.failure is None and end is not None and end.si_status:
            exited = end.si_code == posix.CLD_EXITED
            self.result.keep = exited and end.si_status == EXIT_KEEP
            kind = "ended with exit code" if exited else "was killed by signal"
            meaning = " (keep the core and try again)" if self.result.keep else ""
            self.result.failure = f"it {kind} {end.si_status}{meaning}"
        return self.result.failure != PASSED and not held

    def _is_held(self) -> bool:
        """Tell whether anybody has the input of the delegate open."""
        poll = select.poll()
        poll.register(self.sink, 0)
        return not poll.poll(0)

    def _patience(self, left: float) -> float:
        """Return the milliseconds to wait for an event, of ``left`` seconds: short while the pipe is being emptied."""
        if not (self.ended and self.open):
            return left * 1000 + 1
        pause, self.pause = min(left, self.pause), min(2 * self.pause, LONGEST_PAUSE)
        if pause < 0.001:
            time.sleep(pause)  # Less than poll(2) can wait.
            return 0
        return pause * 1000

    def finish(self) -> None:
        """Close the child's input if that was not done yet, and log its last output."""
        self._close()
        for descriptor in (self.buffer_in, self.buffer_out):
            posix.close(descriptor)
        self.output.finish()

    def _register(self, poll: select.poll) -> None:
        # Wait for one side at a time: to wait for the sink while the source is empty would spin, and vice versa.
        if self.open:
            poll.register(self.sink, select.POLLOUT if self.readable and not self.ended else 0)
            if not self.readable:
                poll.register(self.core, select.POLLIN)

    def _advance(self, ready: "dict[int, int]") -> None:
        if not self.open:
            return
        if self.core in ready:
            self.readable = True
        elif ready.get(self.sink, 0) & (select.POLLERR | select.POLLNVAL):
            # The delegate closed its standard input, or ended: it does not want more.
            if not self.committed and self.shown and linux.bytes_in_pipe(self.sink) < self.shown:
                self._commit()
            self._close()
        elif self.ended:
            self._close_when_read()
        elif ready.get(self.sink, 0) & select.POLLOUT:
            self._move()

    def _show(self) -> None:
        """Show the child the first bytes of the core and leave them in the kernel's pipe: that of the child holds one page.

        The child's pipe takes more only when the child has read these bytes. If the child ends before that, nothing is lost:
        the next destination gets the whole core.
        """
        try:
            if not self.copied:
                self.copied = self.source.peek(self.buffer_in, STEP)
            self.shown = linux.splice(self.buffer_out, self.sink, self.copied) if self.copied else 0
        except BlockingIOError:
            # The core is empty; or the delegate, which may write to its input, too, has filled that again. Then the copy stays
            # in our pipe, until there is room for it.
            self.readable = self.copied > 0
        except BrokenPipeError:
            self._close()
        except OSError as error:
            if error.errno != linux.EINVAL:
                raise
            self._commit()  # Started by hand with a file: bytes that are read from it cannot be put back.
        else:
            if self.shown == 0:
                self._commit()  # The process was killed before it wrote anything.

    def _commit(self) -> None:
        """Remove the bytes that the child has begun to read from the kernel's pipe: from here on the core is this child's."""
        self.committed = True
        left = self.shown
        while left > 0:
            part = posix.read(self.core, left)
            self.header.add(part)
            self.result.delivered += len(part)
            left -= len(part)
        for pipe in (self.buffer_in, self.sink):
            linux.set_pipe_size(pipe, linux.PIPE_SIZE)

    def _move(self) -> None:
        if not self.committed:
            if self.shown == 0:
                self._show()
                return
            self._commit()
        try:
            moved = self._copy() if self.header.wanted or self.pending else self._splice()
        except BlockingIOError:
            self.readable = bool(self.pending or self.buffered)
            return
        except BrokenPipeError:
            self._close()
            return
        self.result.delivered += moved
        self.moved = time.monotonic()
        if moved == 0 and self.source.advance():
            self.core = self.source.descriptor
        elif moved == 0:
            self.ended = True
            self.result.length = self.header.length
            self.result.cut = self.header.was_cut(self.result.delivered)
            self._close_when_read()

    def _splice(self) -> int:
        """Move some of the core without copying it, and return how many bytes; 0 at the end of the core."""
        try:
            # Fills the buffer while the child reads: otherwise each side would wait for the other in turn.
            self.buffered += linux.splice(self.core, self.buffer_in, STEP)
        except BlockingIOError:
            if self.buffered == 0:
                raise
        if self.buffered == 0:
            return 0
        moved = linux.splice(self.buffer_out, self.sink, self.buffered)
        self.buffered -= moved
        return moved

    def _close_when_read(self) -> None:
        """Close the child's input once it has read all: bytes that still lie in the pipe are not delivered yet.

        The input of a delegate stays open where the core was cut off: at its end the delegate would give the core a name, and
        nobody could tell that core from a whole one.
        """
        if linux.bytes_in_pipe(self.sink) == 0:
            self.result.complete = True
            if not (self.result.cut and self.child.is_delegate()):
                self._close()

    def _copy(self) -> int:
        """Move some of the dump's first bytes, which say how long the dump must be, and return how many."""
        if not self.pending:
            self.pending = posix.read(self.core, min(self.header.wanted - len(self.header.content), STEP))
            self.header.add(self.pending)
        if not self.pending:
            return 0
        written = posix.write(self.sink, self.pending)
        self.pending = self.pending[written:]
        return written

    def _close(self) -> None:
        if self.open:
            self.open = False
            if self.committed and not self.result.complete:
                # Nobody reads the bytes any more that lie in the pipe.
                self.result.delivered -= linux.bytes_in_pipe(self.sink)
            posix.close(self.sink)
