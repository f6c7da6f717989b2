"""A worker: one process of the server's for one crash at the core-dump socket, started before that crash and ended after it.

Once it has a crash, it goes the way of a helper that the kernel has started; see main.handle.
"""

import _socket
import _struct
import gc
import posix
import time

from core_helper import (
    configuration,
    container,
    deadline,
    deliver,
    delivery,
    holders,
    kernel_socket,
    linux,
    main,
    membership,
    procfs,
    slots,
    start,
    table,
    verification,
)
from core_helper.child import Child
from core_helper.command_line import EXIT_NOT_DELIVERED, EXIT_OK
from core_helper.crash import Crash, Refused
from core_helper.log import Log
from core_helper.process import FaultingProcess, ids_of
from core_helper.source import KernelPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from core_helper.waiting import Job

# What the server sends beside the connection: when the crash came, the soft limit for cores and whether it is known, and whose
# the crash is: the owner of the group, and the group.
ORDER = _struct.Struct("=qQ?q")
LONGEST_ORDER = 256
DESCRIPTOR = _struct.Struct("=i")
# The name under which lines are counted that are about no crash; see holders.log_name.
OWN = "0 the server itself"
# What the worker reports: it waits for a crash, it has the crash, it has no slot any more, it has one again.
READY, BEGUN, GIVEN_BACK, TAKEN_AGAIN = b"r", b"b", b"-", b"+"
PIDFD = 3  # Where the kernel would give it to a helper; see previous_handler.py. Reserved by the server.
EMFILE = 24
COMM = "/proc/self/comm"
IDLE, BUSY = b"core_idle", b"core_delivery"
TIMER_SLACK = 50_000  # Nanoseconds: that of the first process; PR_SET_TIMERSLACK(2const).
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 1.0  # Seconds between two tries to have a slot.


def give(channel: _socket.socket, job: "Job") -> None:
    """In the server: give a worker its crash. Raises OSError."""
    soft = job.crash.limit
    order = ORDER.pack(job.crash.time, soft or 0, soft is not None, job.holder.owner)
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, DESCRIPTOR.pack(job.connection.fileno()))
    channel.sendmsg([order + job.holder.group.encode()], [rights], _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)


def report(channel: _socket.socket, what: bytes) -> None:
    """In the worker: report to the server, if that is still there."""
    try:
        channel.send(what, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
    except OSError:
        pass


def name(words: bytes) -> None:
    """Have this process shown under another name, in ps(1) and elsewhere."""
    file = posix.open(COMM, posix.O_WRONLY | posix.O_CLOEXEC)
    posix.write(file, words)
    posix.close(file)


def be_ordinary() -> None:
    """Be scheduled as what the kernel starts, and have a session keyring that nobody else has: the delegate inherits both.

    Some container may have used up the keys that user 0 may have. Then the keyring of the server stays, which nobody can use.
    """
    if posix.getpriority(posix.PRIO_PROCESS, 0) != 0:
        posix.setpriority(posix.PRIO_PROCESS, 0, 0)
    if posix.sched_getscheduler(0) != posix.SCHED_OTHER:
        posix.sched_setscheduler(0, posix.SCHED_OTHER, posix.sched_param(0))
    linux.reset_io_priority()
    linux.prctl(linux.PR_SET_TIMERSLACK, TIMER_SLACK)
    linux.new_session_keyring()


class Settings:
    """What a worker has of its server: the terminal, the interpreter and why that could be overwritten, limits to be put back.

    And the configuration, as it was read last.
    """

    def __init__(
        self,
        terminal: "int | None",
        unprotected: str,
        files: "tuple[int, int]",
        given: "bytes | None" = None,
        interpreter: "tuple[int, int] | None" = None,
    ) -> None:
        """Take these; ``files`` are soft and hard limit of open files, as they were when the server was started.

        A configuration that is ``given`` counts in place of that of the host. ``interpreter`` has device and inode of this
        program's, where that is in a container.
        """
        self.terminal = terminal
        self.unprotected = unprotected
        self.files = files
        self.watched = configuration.Watched(given)
        self.interpreter = interpreter


def rehearse(settings: Settings, forks: bool) -> None:
    """Go as far as a crash does before anything is changed, with this very process in place of the one that crashes.

    The memory that is written to then is this process's own afterwards, and no copy of the server's: to make that at the crash
    would take longer than all that is done there until the delegate starts. A fork makes all memory a copy once more, until it
    is written to: so the last time is one without.
    """
    configured = settings.watched.configuration
    proc = posix.open("/proc", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    task = verification.open_task(proc, posix.getpid(), None)
    foreign, joined = verification.open_namespaces(task, proc)
    root = posix.open("root", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=task)
    process = FaultingProcess(task, root, foreign, joined, procfs.parse_status(procfs.read(task, "status")))
    membership.check(process)
    process.hostname = container.hostname_of(process)
    crash = Crash(posix.getpid(), process.uid, process.gid)
    crash.interpreter = settings.interpreter
    slot = slots.Slot(table.open_file(slots.FILE), 0)
    slot.limit = slots.limit_of(configured.pipe_limit, int(procfs.read_path(main.LIMIT_OF_KERNEL)))
    slot.are_short()
    source = KernelPipe(posix.open("/dev/null", posix.O_RDONLY | posix.O_CLOEXEC))
    delivered = delivery.Delivery(source, crash, process, configured, slot, Log(), time.monotonic())
    deliver.choose(delivered, None)
    delivered.facts()
    groups = delivered.plan.groups
    if forks:
        posix.waitpid(Child(source, groups, lambda child: posix._exit(0)).setup_pid, 0)


def work(channel: _socket.socket, settings: Settings, early: bool) -> "NoReturn":
    """Wait for a crash, bring its core where it belongs, and end this process.

    A worker that was started ``early``, before there is a crash, has the time to rehearse.
    """
    code, log = EXIT_NOT_DELIVERED, Log()
    try:
        gc.disable()
        # Nobody else must hold the connections of other crashes, which the server had when it made this process.
        linux.close_all_but({PIDFD, channel.fileno(), settings.terminal or PIDFD})
        log.terminal, log.holder = settings.terminal, OWN
        start.reset_signals_for_python()
        linux.setrlimit(linux.RLIMIT_NOFILE, *settings.files)
        be_ordinary()
        name(IDLE)
        if early:
            try:
                for forks in (True, False):
                    rehearse(settings, forks)
            except Exception:
                pass  # Then the first time is at the crash.
            linux.close_all_but({PIDFD, channel.fileno(), settings.terminal or PIDFD})
            report(channel, READY)
        try:
            order, rights, _flags, _address = channel.recvmsg(LONGEST_ORDER, _socket.CMSG_SPACE(DESCRIPTOR.size))
        except ConnectionResetError:
            order = b""  # It has not even read what this worker has reported.
        if not order:
            posix._exit(EXIT_OK)  # The server has ended.
        if not rights:
            # No descriptor was free, as a rule. The server gives the crash to another worker.
            raise OSError(EMFILE, "a crash came without its descriptor, and waits again")
        deadline.signals.heed()
        report(channel, BEGUN)
        name(BUSY)
        (descriptor,) = DESCRIPTOR.unpack(rights[0][2])
        posix.set_inheritable(descriptor, False)
        code = receive(order, _socket.socket(fileno=descriptor), channel, settings, log)
    except BaseException as error:
        log.lines.error(f"core not delivered: {type(error).__name__}: {error}")
    # As where the kernel has started the helper.
    posix._exit(code)


def receive(order: bytes, connection: _socket.socket, channel: _socket.socket, settings: Settings, log: Log) -> int:
    """Handle the crash that the kernel announces on ``connection``; return the exit code."""
    came, soft, known, owner = ORDER.unpack_from(order)
    holder = holders.Holder(owner, order[ORDER.size :].decode())
    log.holder = holders.log_name(holder.owner, holder.group)
    try:
        crash = kernel_socket.crash_of(connection)
    except Refused as error:
        log.lines.error(f"core not delivered: {error}")
        return EXIT_NOT_DELIVERED
    posix.dup2(crash.handle or -1, PIDFD, False)
    posix.close(crash.handle or -1)
    crash.pidfd = crash.handle = PIDFD
    crash.time = came
    crash.limit = soft if known else None
    note_thread(crash)
    crash.unprotected, crash.interpreter = settings.unprotected, settings.interpreter
    configured = settings.watched.read()

    def enter() -> slots.Slot:
        limit = slots.limit_of(configured.pipe_limit, int(procfs.read_path(main.LIMIT_OF_KERNEL)))
        slot = acquire_slot(crash, configured, limit, log, holder, channel)
        slot.limit = limit
        kernel_socket.greet(connection)
        return slot

    return main.handle(crash, kernel_socket.KernelSocket(connection), configured, log, time.monotonic(), enter)


def note_thread(crash: Crash) -> None:
    """Note in ``crash`` which thread it was, and the ids of that one: those that the kernel's pidfd shows are the leader's.

    Nothing is noted where the process is gone. May wait, as the server must not.
    """
    crash.tid = kernel_socket.faulting_thread(crash.pid)
    if crash.tid in (None, crash.pid):
        return
    try:
        status = procfs.parse_status(procfs.read_path(f"{procfs.task_of(crash.pid, crash.tid)}/status"))
        if procfs.is_process_of(crash.handle or -1, crash.pid):
            crash.uid, crash.gid = ids_of(status, "Uid")[0], ids_of(status, "Gid")[0]
    except OSError:
        pass


def acquire_slot(
    crash: Crash,
    configured: configuration.Configuration,
    limit: int,
    log: Log,
    holder: holders.Holder,
    channel: _socket.socket,
) -> slots.Slot:
    """Return a slot as main.acquire_slot does.

    By the server's count there is one. But others may have it, of whom the server does not know: helpers from before a restart,
    or processes that cannot be ended. So this waits for one, for half of the timeout.
    """
    limit_of_time = time.monotonic() + configured.timeout / 2
    pause = SHORTEST_PAUSE
    while True:
        try:
            slot = main.acquire_slot(crash, limit, log, holder)
            return SlotOfServer(slot.file, slot.index, channel)
        except slots.NoSlot:
            if time.monotonic() > limit_of_time:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


class SlotOfServer(slots.Slot):
    """A slot of which the server has a count of its own."""

    def __init__(self, file: "int | None", index: int, channel: _socket.socket) -> None:
        """Take the slot, and the way to the server."""
        super().__init__(file, index)
        self.channel = channel

    def release(self) -> bytes:
        """Free the slot as Slot.release does."""
        report(self.channel, GIVEN_BACK)
        return super().release()

    def reclaim(self, record: bytes) -> None:
        """Take the slot again."""
        super().reclaim(record)
        report(self.channel, TAKEN_AGAIN)

    def give_back(self) -> None:
        """Give the slot back, and take one among the deliveries of released processes. Raises TooMany."""
        try:
            super().give_back()
        finally:
            report(self.channel, GIVEN_BACK)
