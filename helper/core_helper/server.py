"""The server, which serve.py starts: it waits at the kernel's core-dump socket; kernel.core_pattern is @@PATH.

The other door is main.py, and behind both the way is one. The server itself reads no core and enters no container. It asks who
has crashed, lets the crash wait for a slot (waiting.py), and gives it to a worker (worker.py), which ends with it. Whatever may
take long, or wait for a container, is up to the worker: while the server waits for anybody, every crash of the host waits.
"""

import _signal
import _socket
import posix
import select
import time

import core_helper
from core_helper import (
    configuration,
    control_groups,
    holders,
    kernel_socket,
    linux,
    main,
    procfs,
    quota,
    runtime,
    slots,
)
from core_helper.command_line import EXIT_NOT_DELIVERED
from core_helper.crash import Refused
from core_helper.log import Log
from core_helper.notifier import Notifier
from core_helper.pattern import Failed, Pattern, in_force
from core_helper.slots import TooMany
from core_helper.waiting import Count, Job, Queue
from core_helper.words import shown
from core_helper.worker import BEGUN, GIVEN_BACK, OWN, READY, TAKEN_AGAIN, Settings, give, work

IDLE_WORKERS = 3  # Started before they are needed.
ACCEPTED_AT_ONCE = 64
MOST_WORKERS = 512  # Where kernel.core_pipe_limit is 0: as many helpers as that allows to the kernel itself.
REST = 1.0  # Seconds until the next worker is started after one that has ended without a crash.
# The same where a crash waits for it.
SHORT_REST = 0.1
# Seconds from a crash that was given to a worker until the next worker is started: the rehearsal of that one would take a
# processor from the crash. A crash that finds no worker does not wait for this.
PRECEDENCE = 0.05
# Seconds without another crash after which nobody goes by the pattern of the socket any more, once the previous one is set.
LINGER, LONGEST_LINGER = 0.1, 5.0
TABLE_PATIENCE = 0.5  # Seconds for the table of lines: every crash of the host waits meanwhile.
# The name under which lines are counted; see holders.log_name.
STRANGERS = "0 processes that connect and do not crash"


class Home:
    """The root control groups, in which the kernel starts a helper: workers are born there, wherever this server is."""

    def __init__(self) -> None:
        """Open those that this process is not in."""
        self.groups = control_groups.ControlGroups()
        mounts = control_groups.own_cgroup_mounts()
        for controllers, path in procfs.parse_cgroup(procfs.read_path("/proc/self/cgroup")):
            mount_point = mounts.get(controllers.split(b",")[0])
            if path == b"/" or mount_point is None:
                continue
            if controllers:
                self.groups.add(controllers.decode("latin-1"), mount_point + b"/tasks")
            else:
                self.groups.add(control_groups.UNIFIED, mount_point + b"/cgroup.procs")
                self.groups.unified = procfs.open_long(mount_point, posix.O_PATH | posix.O_DIRECTORY)


class Worker:
    """A worker, seen from the server: its process, the way to it, and the crash that it has."""

    def __init__(self, home: Home, settings: Settings, early: bool) -> None:
        """Start it, ``early`` where there is no crash yet."""
        self.channel, theirs = _pair()
        self.job: Job | None = None
        self.ready = False  # Whether it waits for a crash; if not, it may wait for something else.
        self.counts = False  # Whether it has a slot, as it has reported.
        self.pid = home.groups.fork()
        if self.pid == 0:
            try:
                _signal.set_wakeup_fd(-1)
                posix.setsid()  # What a terminal sends to the group of the server is not for a worker.
                home.groups.join()
                work(theirs, settings, early)
            finally:
                posix._exit(EXIT_NOT_DELIVERED)
        theirs.close()
        self.channel.setblocking(False)
        try:
            self.pidfd = linux.pidfd_open(self.pid)
        except OSError:
            posix.kill(self.pid, _signal.SIGKILL)
            posix.waitpid(self.pid, 0)
            raise

    def close(self) -> int:
        """Close it after its end, and return how it has ended, as waitpid(2) does."""
        posix.close(self.pidfd)
        self.channel.close()
        return posix.waitpid(self.pid, 0)[1]


def _pair() -> "tuple[_socket.socket, _socket.socket]":
    kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
    one, other = _socket.socketpair(_socket.AF_UNIX, kind)
    return one, other


class Bounds:
    """What the administrator allows: so many ``slots``, so many ``workers``, and so many seconds of ``patience``."""

    def __init__(self, watched: configuration.Watched) -> None:
        """Take the configuration."""
        self.watched = watched
        self.refresh()

    def refresh(self) -> None:
        """Ask for them anew."""
        configured = self.watched.read()
        kernel_limit = int(procfs.read_path(main.LIMIT_OF_KERNEL))
        self.slots = slots.limit_of(configured.pipe_limit, kernel_limit)
        self.workers = kernel_limit or MOST_WORKERS
        self.patience = configured.timeout


class Server:
    """The server: crashes that wait, and workers."""

    def __init__(
        self,
        listener: _socket.socket,
        settings: Settings,
        pattern: "Pattern | None" = None,
        inherited: bool = False,
    ) -> None:
        """Take the opened socket, and what each worker gets.

        ``pattern`` is the one to set, None where that is up to others. A socket that is ``inherited`` has a copy at systemd.
        """
        self.listener = listener
        self.inherited = inherited
        self.settings = settings
        self.pattern = pattern
        self.failed = False
        self.home = Home()
        self.bounds = Bounds(settings.watched)
        self.queue = Queue()
        self.taken = Count()
        self.idle: list[Worker] = []
        # By their descriptors: the pidfd of a worker, and the way to one that has a crash.
        self.ends: dict[int, Worker] = {}
        self.channels: dict[int, Worker] = {}
        self.poll = select.poll()
        self.stopping = False
        self.listening = True
        self.rest = 0.0  # Until when no worker is started that is not needed.
        self.short_rest = 0.0  # Until when none is started at all.
        # How many connections were no crash, or not any more, since there was a line about that; why the latest was none; and
        # when the next line may be written. To write one takes longer than to fill the backlog, for the crashes of all.
        self.turned_away = 0
        self.latest = ""
        self.report_at = 0.0
        self.notifier = Notifier()
        listener.setblocking(False)
        self.poll.register(listener.fileno(), select.POLLIN)
        self.woken, waking = posix.pipe()
        for end in (self.woken, waking):
            posix.set_blocking(end, False)
        self.poll.register(self.woken, select.POLLIN)
        _signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
            _signal.signal(number, self.stop)

    def stop(self, number: int, frame: object) -> None:
        """Handle a signal that ends the server: the second one ends it at once.

        But for SIGHUP: the kernel and the shell may each send one where a terminal is closed.
        """
        if self.stopping and number != _signal.SIGHUP:
            self.restore_pattern()
            posix._exit(EXIT_NOT_DELIVERED)
        self.stopping = True

    def serve(self) -> None:
        """Handle crashes until the server is told to end, and nobody waits any more."""
        for _worker in range(IDLE_WORKERS):
            self.hire()
        try:
            self.install()
            # systemctl status shows which version runs, and the role reads it.
            library = core_helper.__path__[0].rpartition("/")[0].encode("utf-8", "surrogateescape")
            self.notifier.send(b"READY=1\nSTATUS=Waits for crashes, with %b" % library)
            while not self.stopping:
                self.turn_on()
            if self.restore_pattern() or not self.is_followed():
                self.receive_last()
            self.listening = False
            self.poll.unregister(self.listener.fileno())
            self.listener.close()
            while self.queue.groups:
                self.turn_on()
        finally:
            self.restore_pattern()

    def install(self) -> None:
        """Have the kernel announce crashes at the socket, if that is up to this server. Raises Failed or OSError."""
        if self.pattern is None:
            return
        before = self.pattern.install()
        lines = self.log_of("").lines
        if before is None:
            lines.warning(
                "kernel.core_pattern names this socket already, and is left so: the previous one is not known"
            )
        else:
            lines.info(f"kernel.core_pattern names this socket; at the end it will be {shown(before)} again")

    def restore_pattern(self) -> bool:
        """Set the previous pattern, and tell whether that was done now."""
        pattern, self.pattern = self.pattern, None
        try:
            return pattern is not None and pattern.restore()
        except (Failed, OSError) as error:
            self.failed = True
            self.say(f"kernel.core_pattern still names the socket of a server that ends: {error}")
            return False

    def receive_last(self) -> None:
        """Accept the crashes from while the pattern named the socket that have not connected yet."""
        limit = time.monotonic() + LONGEST_LINGER
        poll = select.poll()
        poll.register(self.listener.fileno(), select.POLLIN)
        while poll.poll(LINGER * 1000) and time.monotonic() < limit:
            self.receive()
        self.dispatch()

    def turn_on(self) -> None:
        """Do what ``turn`` does. One crash for which there is no memory must not cost the others."""
        try:
            self.turn()
        except MemoryError:
            self.say("no memory: a crash may be lost", OWN)
            time.sleep(0.01)

    def turn(self) -> None:
        """Wait for something to happen, and do what is to be done then."""
        short = len(self.idle) < IDLE_WORKERS and len(self.ends) < self.bounds.workers and time.monotonic() > self.rest
        events = self.poll.poll(0 if short else self.pause() * 1000)
        self.notifier.watch()
        for descriptor, _event in events:
            if descriptor == self.woken:
                posix.read(self.woken, 64)
            elif descriptor in self.channels:
                self.hear(self.channels[descriptor])
            elif descriptor in self.ends:
                self.part(self.ends[descriptor])
            elif self.listening:
                self.receive()
        if self.queue.groups:
            for job in self.queue.expired(time.monotonic()):
                self.drop(job, "no slot was free until the timeout")
            self.dispatch()
        if self.turned_away and time.monotonic() >= self.report_at:
            self.report_turned_away()
        if short and not events:
            self.hire()

    def pause(self) -> float:
        """Return for how many seconds there is nothing to do unless something happens."""
        now = time.monotonic()
        latest = min((job.patience for jobs in self.queue.groups.values() for job in jobs[:1]), default=float("inf"))
        if self.turned_away:
            latest = min(latest, self.report_at)
        if self.queue.groups and now < self.short_rest:
            latest = min(latest, self.short_rest)
        return max(0.0, min(latest - now, self.notifier.interval, self.rest - now if self.rest > now else REST * 60))

    def is_followed(self) -> bool:
        """Tell whether crashes that have connected may wait for the next server, as the kernel still sends more to this socket.

        That needs a copy of the socket, which systemd has, as long as it restarts the server.
        """
        return self.inherited and in_force().startswith(b"@@")

    def receive(self) -> None:
        """Accept the crashes that have connected: most of them at once, for one look at the settings."""
        try:
            self.bounds.refresh()
        except OSError as error:
            # No descriptor is free, as a rule: what was read before counts.
            self.say(f"the settings are not read: {error.strerror}", OWN)
        for _crash in range(ACCEPTED_AT_ONCE):
            try:
                descriptor, _address = self.listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                # No descriptor is free, as a rule: the crashes that wait will free some.
                self.say(f"crashes are not accepted: {error.strerror}", OWN)
                time.sleep(0.01)
                return
            connection = _socket.socket(fileno=descriptor)
            try:
                if kernel_socket.has_ended(connection):
                    raise Refused(kernel_socket.GONE)
                self.admit(connection)
            except Refused as error:
                connection.close()
                self.turned_away += 1
                self.latest = str(error)
            except Exception as error:
                # One crash that nobody understands must not cost the others.
                connection.close()
                self.say(f"core dropped: {type(error).__name__}: {error}", STRANGERS)

    def report_turned_away(self) -> None:
        """Log which process has connected without a crash, and how many others have."""
        others = f"; {self.turned_away - 1} others were refused before" if self.turned_away > 1 else ""
        self.turned_away, self.report_at = 0, time.monotonic() + REST
        self.say(f"{self.latest}: refused{others}", STRANGERS)

    def admit(self, connection: _socket.socket) -> None:
        """Have the crash on a connection wait, or drop it. Raises Refused where it is none."""
        crash = kernel_socket.crash_of(connection)
        try:
            crash.limit = kernel_socket.core_limit(crash.pid)
            job = Job(connection, crash, holders.holder_of(crash))
        except (Refused, OSError) as error:
            # A crash all the same: its line counts as one of somebody who is not known.
            if not quota.leaves_out(main.NOBODYS, patience=TABLE_PATIENCE):
                self.log_of(main.NOBODYS).lines.refuse(crash, main.whereabouts_of(crash), str(error))
            connection.close()
            return
        finally:
            posix.close(crash.handle or -1)  # The worker asks for one of its own.
        job.patience = time.monotonic() + self.bounds.patience
        try:
            if crash.limit == kernel_socket.OF_HELPERS:
                self.drop(job, "its limit for core files is 1 byte, as that of a helper or delegate")
            else:
                loser = self.queue.add(job)
                if loser is not None:
                    self.drop(
                        loser,
                        f"no other container has so many that wait as {loser.holder.name}: one that has fewer waits",
                    )
        except TooMany as error:
            self.drop(job, f"{error} to wait for one".replace("slots", "places"))

    def dispatch(self) -> None:
        """Give crashes that wait to workers, as long as slots are free."""
        while len(self.ends) - len(self.idle) < self.bounds.workers:
            job = self.queue.next(self.taken, self.bounds.slots)
            if job is None:
                return
            if kernel_socket.has_ended(job.connection):
                self.drop(job, "it was killed while it waited for a slot")
                continue
            worker = self.choose()
            if worker is None:
                self.queue.put_back(job)
                return
            worker.job = job
            try:
                give(worker.channel, job)
            except OSError:
                # It was killed, or the kernel lacks memory. The crash waits again when the end of that worker is noticed.
                linux.pidfd_send_signal(worker.pidfd, _signal.SIGKILL)
                continue
            self.rest = max(self.rest, time.monotonic() + PRECEDENCE)
            self.count(worker, True)

    def choose(self) -> "Worker | None":
        """Return a worker that waits for a crash, or else a new one; None where that cannot be started now."""
        for worker in reversed(self.idle):
            if not worker.ready:
                self.hear(worker)
            if worker.ready:
                self.idle.remove(worker)
                return worker
        return self.start(early=False)

    def hire(self) -> None:
        """Start a worker before it is needed."""
        worker = self.start(early=True)
        if worker is not None:
            self.idle.append(worker)

    def start(self, early: bool) -> "Worker | None":
        """Start a worker; None where that cannot be done now."""
        if time.monotonic() < self.short_rest:
            return None
        try:
            worker = Worker(self.home, self.settings, early)
        except OSError as error:
            self.rest = time.monotonic() + REST
            self.say(f"no worker can be started: {error.strerror}", OWN)
            return None
        self.ends[worker.pidfd] = self.channels[worker.channel.fileno()] = worker
        for descriptor in (worker.pidfd, worker.channel.fileno()):
            self.poll.register(descriptor, select.POLLIN)
        return worker

    def count(self, worker: Worker, counts: bool) -> None:
        """Count the slot of a worker, or count it no more."""
        if worker.job is not None and worker.counts != counts:
            worker.counts = counts
            self.taken.add(worker.job.holder, 1 if counts else -1)

    def hear(self, worker: Worker) -> None:
        """Take over what a worker has reported since the last time."""
        while worker.channel.fileno() in self.channels:
            try:
                word = worker.channel.recv(1)
            except BlockingIOError:
                return
            except OSError:
                word = b""
            if word == READY:
                worker.ready = True
            elif word in (GIVEN_BACK, TAKEN_AGAIN):
                self.count(worker, word == TAKEN_AGAIN)
            elif word == BEGUN and worker.job is not None:
                # Nobody else holds the process from here on.
                worker.job.connection.close()
                worker.job.begun = True
            else:
                # It has ended, or has become the previous handler.
                self.poll.unregister(worker.channel.fileno())
                del self.channels[worker.channel.fileno()]

    def part(self, worker: Worker) -> None:
        """Part with a worker that has ended."""
        self.hear(worker)
        self.poll.unregister(worker.pidfd)
        del self.ends[worker.pidfd]
        if worker in self.idle:
            self.idle.remove(worker)
            self.rest = time.monotonic() + REST
        if self.channels.pop(worker.channel.fileno(), None):
            self.poll.unregister(worker.channel.fileno())
        self.count(worker, False)
        status = worker.close()
        if worker.job is None:
            return
        if not worker.job.begun:
            # What has ended it may end the next one, too.
            self.short_rest = time.monotonic() + SHORT_REST
            self.rest = max(self.rest, self.short_rest)
            self.queue.put_back(worker.job)
        elif posix.WIFSIGNALED(status):
            # The process is gone, as a rule, and nobody else can tell any more whose it was.
            who = worker.job.holder.name
            self.drop(worker.job, f"its worker was killed by signal {posix.WTERMSIG(status)}; it was of {who}")

    def drop(self, job: Job, reason: str) -> None:
        """Tell that a core is lost, and why; the kernel lets the process go when nobody has the connection any more."""
        holder = holders.log_name(job.holder.owner, job.holder.group)
        logged = not quota.leaves_out(holder, patience=TABLE_PATIENCE)
        # Asked before the process may go.
        whereabouts = runtime.whereabouts(job.crash.pid) if logged else (b"", "-")
        if job.begun or kernel_socket.has_ended(job.connection):
            whereabouts = b"", "-"  # It may be gone, and another process may have its number.
        job.connection.close()
        if logged:
            self.log_of(holder).lines.refuse(job.crash, whereabouts, reason)

    def say(self, text: str, holder: str = "") -> None:
        """Write a line, for a ``holder`` that may write only so many."""
        if not (holder and quota.leaves_out(holder, patience=TABLE_PATIENCE)):
            self.log_of(holder).lines.error(text)

    def log_of(self, holder: str) -> Log:
        """Return a log for whose next line nobody has to wait for long."""
        log = Log()
        log.holder, log.terminal = holder, self.settings.terminal
        log.lines.patience, log.lines.table_patience = 0.0, TABLE_PATIENCE
        return log
