"""The kernel's core-dump socket: how the kernel says that a process crashes, what it is answered, and the core after that.

A connection of the kernel's, where kernel.core_pattern is @@PATH (Linux 6.17; fs/coredump.c, include/uapi/linux/coredump.h)::

    kernel  {u32 size, u32 size_ack, u64 mask}    what it offers
    helper  {u32 size, u32 0, u64 mask}           KERNEL: write the core here; WAIT: keep the process until this end is closed
    kernel  {u32 mark}                            0: that was understood
    kernel  the core, and the end of the stream

The kernel sends nothing else. The connection has a pidfd of the faulting process, and the pidfd says which process that is.
"""

import _socket
import _struct
import posix
import select
import time

from core_helper import corefile, linux, procfs
from core_helper.crash import Crash, Refused
from core_helper.source import KernelPipe

SO_PEERPIDFD = 77
SIZE = 16  # Bytes of a request, and of an answer.
MESSAGE = _struct.Struct("=IIQ")
MARK = _struct.Struct("=I")
ACCEPTED = 0
KERNEL, WAIT = 1, 8
GONE = "a process that is gone has connected to the core-dump socket: it was killed, or does not crash"
CLOSED = "the core-dump socket was closed at the other end: the process was killed before its core was written"
PATIENCE = 5.0  # Seconds for the kernel to say what it has to say before the core.
PAGE = 4096
CORE_LIMIT = "Max core file size"  # Its row in /proc/PID/limits; proc_pid_limits(5).
# The limit by which the kernel knows a crash of a helper or its delegate. It applies it to a pipe, and not to a socket.
OF_HELPERS = 1
UNLIMITED = (1 << 64) - 1
MOST_THREADS = 1 << 16  # So many are looked at for the one that crashed, which takes some seconds.
STANDSTILL = 0.2  # Seconds without a further byte after which the socket is taken to be full.
READER_PAUSE = 0.05  # Seconds between two looks whether the previous handler has closed its pipe.


def crash_of(connection: _socket.socket) -> Crash:
    """Return the crash that the kernel announces on ``connection``; nothing is read there.

    Raises Refused where the process that has connected does not crash.
    """
    try:
        pidfd = connection.getsockopt(_socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        raise Refused(f"a connection without a process: {error.strerror}") from None
    info = linux.pidfd_info(pidfd)
    if info is None or info.coredump is None:
        posix.close(pidfd)
        if info is None:
            raise Refused(GONE)
        who = f"process {info.pid} of user {info.uid}"
        raise Refused(f"{who} has connected to the core-dump socket, and does not crash")
    crash = Crash(info.pid, info.uid, info.gid)
    crash.pidfd = crash.handle = pidfd
    crash.signal = info.signal
    whose = info.coredump & (linux.PIDFD_COREDUMP_USER | linux.PIDFD_COREDUMP_ROOT)
    crash.dumpable = 1 if whose == linux.PIDFD_COREDUMP_USER else 2
    return crash


def has_ended(connection: _socket.socket) -> bool:
    """Tell whether the kernel has closed its end: the process was killed meanwhile, whether it was waited for or not."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def core_limit(pid: int) -> "int | None":
    """Return the soft limit for cores of a process as the kernel writes it (%c), None where the process is gone.

    The kernel does not look at the memory of the process for that. A process that looks at it may be the last one to let go of
    it, and then waits for ever.
    """
    try:
        soft = procfs.parse_limits(procfs.read_path(f"/proc/{pid}/limits"))[CORE_LIMIT][0]
    except (OSError, KeyError):
        return None
    return UNLIMITED if soft == -1 else soft


def faulting_thread(pid: int) -> "int | None":
    """Return the thread that crashed, None where the process is gone; include/linux/sched.h. May wait, as the server must not.

    Raises Refused where it is not found among so many: the delegate would become what another thread is.
    """
    try:
        threads = posix.listdir(f"/proc/{pid}/task")
    except OSError:
        return None
    for name in sorted(threads, key=lambda name: (name != str(pid), int(name)))[:MOST_THREADS]:
        try:
            if int(procfs.stat_fields(procfs.read_path(f"/proc/{pid}/task/{name}/stat"))[6]) & linux.PF_DUMPCORE:
                return int(name)
        except OSError as error:
            procfs.refuse_lease(error)
            continue
    if len(threads) > MOST_THREADS:
        raise Refused(
            f"process {pid} has {len(threads)} threads, and the one that crashed is not among {MOST_THREADS} of them"
        )
    return None


def greet(connection: _socket.socket) -> None:
    """Have the kernel write the core, and keep the process until the connection is closed. Raises Refused."""
    try:
        _greet(connection)
    except (BrokenPipeError, ConnectionResetError):
        raise Refused(CLOSED) from None


def _greet(connection: _socket.socket) -> None:
    limit = time.monotonic() + PATIENCE
    size, size_of_answer, offered = MESSAGE.unpack(_receive(connection, SIZE, limit))
    if size < SIZE or size_of_answer < SIZE or offered & (KERNEL | WAIT) != KERNEL | WAIT:
        offer = f"{size} bytes that offer {offered:#x}"
        raise Refused(
            f"the core-dump socket got a request of {offer}: it takes Linux 6.17, and @@ in kernel.core_pattern"
        )
    _receive(connection, size - SIZE, limit)  # What a later kernel may say.
    connection.send(MESSAGE.pack(SIZE, 0, KERNEL | WAIT), _socket.MSG_NOSIGNAL)
    (mark,) = MARK.unpack(_receive(connection, MARK.size, limit))
    if mark != ACCEPTED:
        raise Refused(f"the kernel does not accept the answer on the core-dump socket: mark {mark}")


def _receive(connection: _socket.socket, count: int, limit: float) -> bytes:
    """Return the next ``count`` bytes. Raises Refused where they do not come until the monotonic time ``limit``."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    content = b""
    while len(content) < count:
        part = b""
        if poll.poll(max(0.0, limit - time.monotonic()) * 1000):
            part = connection.recv(min(count - len(content), PAGE))
        if not part and has_ended(connection):
            raise Refused(CLOSED)
        if not part:
            raise Refused(f"the core-dump socket got {len(content)} bytes where the kernel says {count}")
        content += part
    return content


class KernelSocket(KernelPipe):
    """A connection of the kernel's, to be read like its pipe: as long as it is open, the kernel keeps the faulting process."""

    def __init__(self, connection: _socket.socket) -> None:
        """Take the connection, whose greeting is still to come."""
        super().__init__(connection.fileno())
        self.connection = connection
        self.reading = self.starting = -1

    def peek(self, sink: int, count: int) -> int:
        """Copy as KernelPipe.peek does, a page at most: the pipe ``sink`` takes that at once."""
        block = self.connection.recv(min(count, PAGE), _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
        return posix.write(sink, block) if block else 0

    def announced_length(self) -> "int | None":
        """Return what KernelPipe.announced_length does. A header that the socket cannot hold as a whole says nothing."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLRDHUP)
        seen, grown = 0, time.monotonic()

        def look(count: int) -> "bytes | None":
            nonlocal seen, grown
            ended = bool(poll.poll(0))
            try:
                content = self.connection.recv(count, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
            except BlockingIOError:
                content = b""
            now = time.monotonic()
            stands = bool(seen) and len(content) == seen and now > grown + STANDSTILL
            if len(content) > seen:
                seen, grown = len(content), now
            if len(content) >= count:
                return content
            return None if ended or stands else b""

        return corefile.announced_length(look)

    def stream(self) -> int:
        """Return a pipe for a program that takes this process's place. Another process fills it as soon as that is executed.

        That process holds the connection as long as the kernel's pipe would be held: until nobody has the pipe open any more.
        """
        self.reading, writing = posix.pipe()
        waiting, self.starting = posix.pipe()
        if posix.fork() == 0:
            try:
                linux.close_all_but({self.descriptor, writing, waiting})
                # Executing the program closes the other end.
                if not posix.read(waiting, 1):
                    self._feed(writing)
            finally:
                posix._exit(0)
        posix.close(waiting)
        posix.close(writing)
        return self.reading

    def end_stream(self) -> None:
        """Have the core here again, as it was before ``stream``: the program could not be executed."""
        if self.starting >= 0:
            posix.write(self.starting, b"x")
            for end in (self.starting, self.reading):
                posix.close(end)
            self.reading = self.starting = -1

    def _feed(self, writing: int) -> None:
        pipe = posix.open(f"/proc/self/fd/{writing}", posix.O_PATH | posix.O_CLOEXEC)
        while True:
            for descriptor, event in ((self.descriptor, select.POLLIN), (writing, select.POLLOUT)):
                poll = select.poll()
                poll.register(descriptor, event)
                poll.poll()
            try:
                if not linux.splice(self.descriptor, writing, linux.PIPE_SIZE):
                    break
            except BlockingIOError:
                continue
        posix.close(writing)
        while _has_reader(pipe):
            time.sleep(READER_PAUSE)

    def close(self) -> None:
        """Close this copy of the connection, if that was not done yet."""
        if not self.closed:
            self.connection.detach()
        super().close()


def _has_reader(pipe: int) -> bool:
    """Tell whether anybody could read the pipe that an O_PATH descriptor names; a reader at that moment waits for a moment."""
    end = posix.open(f"/proc/self/fd/{pipe}", posix.O_WRONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(end, 0)
        return not poll.poll(0)
    finally:
        posix.close(end)
