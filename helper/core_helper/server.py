"""The resident helper: ``docker_core_helper serve`` waits at the kernel's core-dump socket; kernel.core_pattern is @@PATH.

The other door is main.py, and behind both the way is one. The server itself reads no core and enters no container. It asks who
has crashed, lets the crash wait for a slot (waiting.py), and gives it to a worker (worker.py), which ends with it. Whatever may
take long, or wait for a container, is up to the worker: while the server waits for anybody, every crash of the host waits.
"""

import _signal
import _socket
import fcntl
import gc
import posix
import select
import sys
import time

import core_helper
from core_helper import (
    configuration,
    control_groups,
    holders,
    host,
    kernel_socket,
    linux,
    listening,
    main,
    procfs,
    quota,
    runtime,
    seccomp,
    slots,
    start,
)
from core_helper.command_line import EXIT_NOT_DELIVERED, EXIT_OK, EXIT_USAGE
from core_helper.crash import Refused
from core_helper.log import Log
from core_helper.pattern import KEPT, Failed, Pattern, in_force
from core_helper.slots import TooMany
from core_helper.waiting import Count, Job, Queue
from core_helper.words import shown
from core_helper.worker import BEGUN, GIVEN_BACK, PIDFD, READY, TAKEN_AGAIN, Settings, give, name, work

PATH = "/run/docker_core_helper/core.sock"
LONGEST_PATH = 107  # unix(7).
USAGE = f"""\
usage: docker_core_helper serve [--pattern] [--socket=PATH]
       docker_core_helper serve --restore [--socket=PATH]

Waits for crashes at a socket on which the kernel (Linux 6.17 and newer) announces them, and handles each as if the kernel had
started the helper. A socket that systemd has opened comes first; else PATH is created, {PATH} by default.

--pattern  has the kernel use that socket: sets kernel.core_pattern to @@PATH when crashes can come, keeps the pattern of before
           in PATH{KEPT}, and sets it again when this program is told to end
--restore  sets the pattern of before again where a server was killed and has left @@PATH, and does nothing else

Without --pattern: sysctl -w kernel.core_pattern=@@{PATH}
In a container with the pid namespace of the host, it goes over to the host: every path is the host's. Only the configuration is
that of the container, if it has one.

The delegate is that of {configuration.CONFIGURATION}. SIGTERM ends the program: crashes that wait are still handled.
"""
IDLE_WORKERS = 3  # Started before they are needed.
ACCEPTED_AT_ONCE = 64
MOST_WORKERS = 512  # Where kernel.core_pipe_limit is 0: as many helpers as that allows to the kernel itself.
# What service managers say, and what the administrator may say to a helper; sd_listen_fds(3), sd_notify(3).
PASSED_ON = {
    *(b"LISTEN_FDS", b"LISTEN_PID", b"NOTIFY_SOCKET", b"WATCHDOG_PID", b"WATCHDOG_USEC"),
    configuration.FALLBACK_VARIABLE,
}
LOGIN_ID, NO_LOGIN = "/proc/self/loginuid", b"4294967295"
REST = 1.0  # Seconds until the next worker is started after one that has ended without a crash.
# Seconds from a crash that was given to a worker until the next worker is started: the rehearsal of that one would take a
# processor from the crash. A crash that finds no worker does not wait for this.
PRECEDENCE = 0.05
# Seconds without another crash after which nobody goes by the pattern of the socket any more, once that of before is set.
LINGER, LONGEST_LINGER = 0.1, 5.0
FILES = 4096  # Descriptors: two for each crash that waits, and three for each worker.
NAME = b"core_server"
STRANGERS = "0 whoever connects and does not crash"  # Their lines are counted under this name; see holders.log_name.
OWN = "0 the server itself"
# Imported before the first crash: modules that a helper of the kernel imports when it needs them.
NEEDED = (
    *("journal", "relay", "previous_handler", "fallback", "bounds", "custody", "diagnosis", "tracing"),
    *("finishing", "build_ids", "lent"),
)


def run(words: "list[str]") -> int:
    """Serve until SIGTERM, and return the exit code."""
    path, asked = PATH, ""
    for word in words:
        if word == "--help":
            sys.stdout.write(USAGE)
            return EXIT_OK
        if word in ("--pattern", "--restore") and asked in ("", word):
            asked = word
            continue
        if not word.startswith("--socket=/") or len(word) - 9 > LONGEST_PATH or set(word) & set(" \n"):
            sys.stderr.write(f"docker_core_helper serve: {word!r} is no option; see --help\n")
            return EXIT_USAGE
        path = word[9:]
    log = Log()
    if asked == "--restore":
        return restore(path, log)
    try:
        unprotected = protect()
        elsewhere = host.is_elsewhere()
        terminal = settle(elsewhere)
        log.terminal = terminal
        files = raise_limits()
        inherited = listening.inherited_socket()
        # There the kernel gives a helper the pidfd, and a previous handler expects it.
        posix.dup2(0, PIDFD, False)
        load(elsewhere)
        if elsewhere:
            host.take_configuration()
            status = host.send()
            if status is not None:
                return stay_behind(status, path if asked else None, log)
        listener = listening.listen(path) if inherited is None else inherited
        if inherited is not None:
            path = listener.getsockname()
        pattern = Pattern(path) if asked else None
        server = Server(listener, Settings(terminal, unprotected, files), pattern, inherited is not None)
        log.lines.info(f"waits for crashes at the core-dump socket {path}")
        server.serve()
        if inherited is None:
            posix.unlink(path)
        if server.failed:
            return EXIT_NOT_DELIVERED
    except (listening.Unusable, Failed, OSError) as error:
        return give_up(path, error, log)
    return EXIT_OK


def restore(path: str, log: Log) -> int:
    """Set the pattern of before a server at the socket ``path``, if that was killed; return the exit code."""
    try:
        if host.is_elsewhere():
            load(elsewhere=True)
            host.join()
        if Pattern(path).give_back():
            log.lines.warning(
                f"the server at the core-dump socket {path} was killed: the pattern of before is set again"
            )
    except (listening.Unusable, Failed, OSError) as error:
        return give_up(path, error, log)
    return EXIT_OK


def give_up(path: str, error: Exception, log: Log) -> int:
    """Tell what went wrong, and return the exit code."""
    log.lines.error(f"core-dump socket {path}: {error}")
    if log.terminal is None and sys.stderr is not None:
        sys.stderr.write(f"docker_core_helper serve: {error}\n")
    return EXIT_NOT_DELIVERED


def stay_behind(status: int, path: "str | None", log: Log) -> int:
    """In the container: the server has ended with that wait ``status``; set the pattern of before if it was killed.

    Returns the exit code. ``path`` is None where the pattern was not up to the server.
    """
    if posix.WIFEXITED(status):
        return posix.WEXITSTATUS(status)
    if path is not None:
        restore(path, log)
    return EXIT_NOT_DELIVERED


def protect() -> str:
    """Re-execute this program where no container can overwrite its interpreter, and return why that cannot be, or "".

    Called again after that, it returns: then the interpreter lies on a read-only file system.
    """
    again = posix.environ.pop(start.MARK, None) is not None
    if posix.statvfs("/proc/self/exe").f_flag & start.ST_RDONLY:
        return ""
    if again:
        return "its interpreter was executed from a read-only mount, and is on none"
    # Nothing else: a process of ours has the environment, too, which the container sees before it becomes the delegate.
    kept = {name: value for name, value in posix.environ.items() if name in PASSED_ON}
    return start.execute_read_only({**kept, start.MARK: b""}, lambda: None)


def settle(elsewhere: bool = False) -> "int | None":
    """Make this process what the kernel makes of a helper; return a copy of standard error if a person reads that.

    That of a container is kept, too: the engine has its log there.
    """
    start.reset_signals_for_python()
    terminal = None
    if sys.stderr is not None and posix.isatty(2):
        # Opened anew, so that nobody waits for a terminal that takes no more; the shell shares what it has given.
        opened = posix.open("/proc/self/fd/2", posix.O_WRONLY | posix.O_NONBLOCK | posix.O_NOCTTY | posix.O_CLOEXEC)
        terminal = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, listening.ABOVE)
        posix.close(opened)
    elif sys.stderr is not None and elsewhere:
        terminal = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, listening.ABOVE)
        posix.set_blocking(terminal, False)  # An engine that does not read it keeps nobody waiting.
    start.occupy_descriptors()
    posix.chdir("/")
    linux.setrlimit(linux.RLIMIT_CORE, kernel_socket.OF_HELPERS, kernel_socket.OF_HELPERS)
    forget_login()
    name(NAME)
    return terminal


def forget_login() -> None:
    """Give up the login of whoever has started this program: delegates inherit the keys of its session, and its audit id."""
    linux.new_session_keyring()
    try:
        file = posix.open(LOGIN_ID, posix.O_WRONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        return  # The kernel has no audit system.
    try:
        posix.write(file, NO_LOGIN)
    except PermissionError:
        pass  # In a container without CAP_AUDIT_CONTROL. Engines have no login as a rule, nor has what they start.
    finally:
        posix.close(file)


def raise_limits() -> "tuple[int, int]":
    """Have room for the descriptors of crashes that wait; return the limits of before."""
    soft, hard = linux.getrlimit(linux.RLIMIT_NOFILE)
    if soft != -1 and soft < FILES:
        linux.setrlimit(linux.RLIMIT_NOFILE, FILES if hard == -1 else min(FILES, hard), hard)
    return soft, hard


def load(elsewhere: bool = False) -> None:
    """Import and make what a worker may need, once for all of them, and have garbage collection leave their memory alone.

    From a container, also what finishes a kept core when nobody waits any more: that takes more memory than all the rest.
    """
    for bundle in ("deliver", "record"):
        core_helper.load(bundle)
    for module in ("deliver", "record", *NEEDED):
        __import__(f"core_helper.{module}")
    for module in ("json", "hashlib") if elsewhere else ("json",):
        __import__(module)
    try:
        seccomp.deny_filter(seccomp.architectures(False))
    except Refused:
        pass  # Of an unknown machine: each core of a process with a filter is refused there.
    gc.collect()
    gc.freeze()
    # Unlike a helper, the server lives long enough for garbage collection to pay.
    gc.enable()


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
        self.counts = False  # Whether it has a slot, by what it has told.
        self.pid = home.groups.fork()
        if self.pid == 0:
            try:
                _signal.set_wakeup_fd(-1)
                home.groups.join()
                work(theirs, settings, early)
            finally:
                posix._exit(EXIT_NOT_DELIVERED)
        theirs.close()
        self.channel.setblocking(False)
        self.pidfd = linux.pidfd_open(self.pid)

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
        self.tellers: dict[int, Worker] = {}
        self.poll = select.poll()
        self.stopping = False
        self.listening = True
        self.rest = 0.0  # Until when no worker is started that is not needed.
        # How many connections were no crash, or not any more, since there was a line about that; why the latest was none; and
        # when the next line may be written. To write one takes longer than to fill the backlog, for the crashes of all.
        self.turned_away = 0
        self.latest = ""
        self.tell_at = 0.0
        self.notifier = Notifier()
        listener.setblocking(False)
        self.poll.register(listener.fileno(), select.POLLIN)
        self.woken, waking = posix.pipe()
        for end in (self.woken, waking):
            posix.set_blocking(end, False)
        self.poll.register(self.woken, select.POLLIN)
        _signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        for number in (_signal.SIGTERM, _signal.SIGINT):
            _signal.signal(number, self.stop)

    def stop(self, number: int, frame: object) -> None:
        """Handle a signal that ends the server: the second one ends it at once."""
        if self.stopping:
            self.give_back()
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
            self.notifier.tell(b"READY=1\nSTATUS=Waits for crashes, with %b" % library)
            while not self.stopping:
                self.turn()
            if self.give_back() or not self.is_followed():
                self.receive_last()
            self.listening = False
            self.poll.unregister(self.listener.fileno())
            self.listener.close()
            while self.queue.groups:
                self.turn()
        finally:
            self.give_back()

    def install(self) -> None:
        """Have the kernel announce crashes at the socket, if that is up to this server. Raises Failed or OSError."""
        if self.pattern is None:
            return
        before = self.pattern.install()
        lines = self.log_of("").lines
        if before is None:
            lines.warning("kernel.core_pattern names this socket already, and is left so: that of before is not known")
        else:
            lines.info(f"kernel.core_pattern names this socket; at the end it will be {shown(before)} again")

    def give_back(self) -> bool:
        """Set the pattern of before, and tell whether that was done now."""
        pattern, self.pattern = self.pattern, None
        try:
            return pattern is not None and pattern.give_back()
        except (Failed, OSError) as error:
            self.failed = True
            self.say(f"kernel.core_pattern still names the socket of a server that ends: {error}")
            return False

    def receive_last(self) -> None:
        """Accept who has crashed while the pattern was that of the socket, and has not connected yet."""
        limit = time.monotonic() + LONGEST_LINGER
        poll = select.poll()
        poll.register(self.listener.fileno(), select.POLLIN)
        while poll.poll(LINGER * 1000) and time.monotonic() < limit:
            self.receive()
        self.dispatch()

    def turn(self) -> None:
        """Wait for something to happen, and do what is to be done then."""
        short = len(self.idle) < IDLE_WORKERS and len(self.ends) < self.bounds.workers and time.monotonic() > self.rest
        events = self.poll.poll(0 if short else self.pause() * 1000)
        self.notifier.watch()
        for descriptor, _event in events:
            if descriptor == self.woken:
                posix.read(self.woken, 64)
            elif descriptor in self.tellers:
                self.hear(self.tellers[descriptor])
            elif descriptor in self.ends:
                self.part(self.ends[descriptor])
            elif self.listening:
                self.receive()
        if self.queue.groups:
            for job in self.queue.expired(time.monotonic()):
                self.drop(job, "no slot was free until the timeout")
            self.dispatch()
        if self.turned_away and time.monotonic() >= self.tell_at:
            self.tell_turned_away()
        if short and not events:
            self.hire()

    def pause(self) -> float:
        """Return for how many seconds there is nothing to do unless something happens."""
        latest = min((job.patience for jobs in self.queue.groups.values() for job in jobs[:1]), default=float("inf"))
        if self.turned_away:
            latest = min(latest, self.tell_at)
        now = time.monotonic()
        return max(0.0, min(latest - now, self.notifier.interval, self.rest - now if self.rest > now else REST * 60))

    def is_followed(self) -> bool:
        """Tell whether who has connected may wait for the next server, as the kernel still sends crashes to this socket.

        That needs a copy of the socket, which systemd has, as long as it restarts the server.
        """
        return self.inherited and in_force().startswith(b"@@")

    def receive(self) -> None:
        """Accept the crashes that have connected: most of them at once, for one look at the settings."""
        self.bounds.refresh()
        for _crash in range(ACCEPTED_AT_ONCE):
            try:
                descriptor, _address = self.listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                # No descriptor is free, as a rule: who waits will free some.
                self.say(f"crashes are not accepted: {error.strerror}", OWN)
                time.sleep(0.01)
                return
            connection = _socket.socket(fileno=descriptor)
            try:
                self.admit(connection)
            except Refused as error:
                connection.close()
                self.turned_away += 1
                self.latest = str(error)
            except Exception as error:
                # One crash that nobody understands must not cost the others.
                connection.close()
                self.say(f"core dropped: {type(error).__name__}: {error}", STRANGERS)

    def tell_turned_away(self) -> None:
        """Tell who has connected in vain, and how many others have."""
        others = f"; {self.turned_away - 1} others were refused before" if self.turned_away > 1 else ""
        self.turned_away, self.tell_at = 0, time.monotonic() + REST
        self.say(f"{self.latest}: refused{others}", STRANGERS)

    def admit(self, connection: _socket.socket) -> None:
        """Have the crash on a connection wait, or drop it. Raises Refused where it is none."""
        crash = kernel_socket.crash_of(connection)
        try:
            crash.limit = kernel_socket.core_limit(crash.pid)
            job = Job(connection, crash, holders.holder_of(crash))
        finally:
            posix.close(crash.handle or -1)  # The worker asks for one of its own.
        job.patience = time.monotonic() + self.bounds.patience
        try:
            if crash.limit == kernel_socket.OF_HELPERS:
                self.drop(job, "its limit for core files is 1 byte, as that of a helper or delegate")
            else:
                self.queue.add(job)
        except TooMany as error:
            self.drop(job, f"{error} to wait for one".replace("slots", "places"))

    def dispatch(self) -> None:
        """Give crashes that wait to workers, as long as slots are free."""
        while len(self.ends) - len(self.idle) < self.bounds.workers:
            job = self.queue.next(self.taken, self.bounds.slots)
            if job is None:
                return
            worker = self.choose()
            if worker is None:
                self.queue.put_back(job)
                return
            worker.job = job
            try:
                give(worker.channel, job)
            except OSError:
                continue  # It was killed; the crash waits again when its end is told.
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
        try:
            worker = Worker(self.home, self.settings, early)
        except OSError as error:
            self.rest = time.monotonic() + REST
            self.say(f"no worker can be started: {error.strerror}", OWN)
            return None
        self.ends[worker.pidfd] = self.tellers[worker.channel.fileno()] = worker
        for descriptor in (worker.pidfd, worker.channel.fileno()):
            self.poll.register(descriptor, select.POLLIN)
        return worker

    def count(self, worker: Worker, counts: bool) -> None:
        """Count the slot of a worker, or count it no more."""
        if worker.job is not None and worker.counts != counts:
            worker.counts = counts
            self.taken.add(worker.job.holder, 1 if counts else -1)

    def hear(self, worker: Worker) -> None:
        """Take over what a worker has told since the last time."""
        while worker.channel.fileno() in self.tellers:
            try:
                told = worker.channel.recv(1)
            except BlockingIOError:
                return
            except OSError:
                told = b""
            if told == READY:
                worker.ready = True
            elif told in (GIVEN_BACK, TAKEN_AGAIN):
                self.count(worker, told == TAKEN_AGAIN)
            elif told == BEGUN and worker.job is not None:
                # Nobody else holds the process from here on.
                worker.job.connection.close()
                worker.job.begun = True
            else:
                # It has ended, or has become the previous handler.
                self.poll.unregister(worker.channel.fileno())
                del self.tellers[worker.channel.fileno()]

    def part(self, worker: Worker) -> None:
        """Part with a worker that has ended."""
        self.hear(worker)
        self.poll.unregister(worker.pidfd)
        del self.ends[worker.pidfd]
        if worker in self.idle:
            self.idle.remove(worker)
            self.rest = time.monotonic() + REST
        if self.tellers.pop(worker.channel.fileno(), None):
            self.poll.unregister(worker.channel.fileno())
        self.count(worker, False)
        status = worker.close()
        if worker.job is None:
            return
        if not worker.job.begun:
            self.queue.put_back(worker.job)
        elif posix.WIFSIGNALED(status):
            # The process is gone, as a rule, and nobody else can tell any more whose it was.
            who = worker.job.holder.name
            self.drop(worker.job, f"its worker was killed by signal {posix.WTERMSIG(status)}; it was of {who}")

    def drop(self, job: Job, reason: str) -> None:
        """Tell that a core is lost, and why; the kernel lets the process go when nobody has the connection any more."""
        holder = holders.log_name(job.holder.owner, job.holder.group)
        told = not quota.leaves_out(holder)
        # Asked before the process may go.
        whereabouts = runtime.whereabouts(job.crash.pid) if told else (b"", "-")
        job.connection.close()
        if told:
            self.log_of(holder).lines.refuse(job.crash, whereabouts, reason)

    def say(self, text: str, holder: str = "") -> None:
        """Write a line, for a ``holder`` that may write only so many."""
        if not (holder and quota.leaves_out(holder)):
            self.log_of(holder).lines.error(text)

    def log_of(self, holder: str) -> Log:
        """Return a log for whose next line nobody has to wait."""
        log = Log()
        log.holder, log.terminal = holder, self.settings.terminal
        log.lines.patience = 0.0
        return log


class Notifier:
    """Tells systemd that the server is ready, and that it goes on; sd_notify(3)."""

    def __init__(self) -> None:
        """Take what the service manager asks for."""
        path = posix.environ.pop(b"NOTIFY_SOCKET", b"")
        self.path = b"\0" + path[1:] if path[:1] == b"@" else path
        microseconds = posix.environ.pop(b"WATCHDOG_USEC", b"")
        pid = posix.environ.pop(b"WATCHDOG_PID", b"%d" % posix.getpid())
        asked = microseconds.isdigit() and pid == b"%d" % posix.getpid()
        self.interval = int(microseconds) / 2e6 if asked else 3600.0
        self.last = time.monotonic() if asked else float("inf")

    def watch(self) -> None:
        """Tell that the server goes on, if it is time to."""
        now = time.monotonic()
        if now - self.last > self.interval / 2:
            self.last = now
            self.tell(b"WATCHDOG=1")

    def tell(self, text: bytes) -> None:
        """Send a message, if anybody wants one."""
        if not self.path:
            return
        try:
            connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
            connection.sendto(text, _socket.MSG_DONTWAIT, self.path)
            connection.close()
        except OSError:
            pass
