"""Gives the cores that no destination has taken to a program of the host: ``docker_core_helper cores send``.

A systemd timer starts it, or an operator. The program is the administrator's. It runs as a system user of its own, without
privileges, and never sees the store: a core comes on its standard input. Nothing of the container reaches it but the facts of
the crash. Never imported at a crash.
"""

import contextlib
import errno
import fcntl
import json
import os
import pwd
import re
import signal
import sys
import time
from subprocess import DEVNULL, Popen, SubprocessError, TimeoutExpired

from core_helper import linux, privileges, procfs, start, store
from core_helper.configuration import ALWAYS, CONFIGURATION, NotOfRoot, open_of_root
from core_helper.cores import Problem
from core_helper.relay import EXIT_KEEP
from core_helper.words import WordError, shown, unquote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterator, NoReturn

    from core_helper.configuration import Configuration

    Known = dict[str, object]

USER = "docker-core-helper"
CREDENTIALS = "/etc/docker_core_helper.credentials"
PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds until the next try: each one is twice as long as the one before.
FIRST_PAUSE, LONGEST_PAUSE = 300, 6 * 3600
LOOK = 1.0  # Seconds between two looks at how far the program has read.
GRACE = 5.0  # Seconds between SIGTERM and SIGKILL.
NO_NEW_CORE = 1  # The limit of the core's size with which a crash never calls the helper; fs/coredump.c.
VARIABLE = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
LONGEST_VARIABLE = 100_000  # execve(2) takes less than 128 KiB.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Away(Problem):
    """The next core would have no better luck."""


class Busy(Problem):
    """Another process still works on the core."""


class Remains(Problem):
    """The program has taken the core, but nobody can remove it, or note that."""


class Stopped(Exception):
    """This process was told to end."""


def send(kept_in: store.Store, cores: "list[Known]", configuration: "Configuration", all_of_them: bool) -> None:
    """Send the ``cores``, or only those of them whose turn it is. Raises Problem if one was not sent; it prints why."""
    words, environment, account = prepare(configuration)
    # An ignored SIGCHLD would hide how the program ended.
    start.reset_signals_for_python()
    for number in STOPPING:
        signal.signal(number, _stop)
    turn = kept_in.turn(store.SENDING)
    if turn is None:
        raise Problem("another docker_core_helper sends the cores: wait for its end")
    try:
        due = in_turn([core for core in cores if all_of_them or is_due(core, time.time())])
        failed = 0
        for position, core in enumerate(due):
            sending = Sending(kept_in, core, configuration)
            try:
                sending.run(words, environment, account)
                print(f"{core['key']}: sent", flush=True)
            except Busy as error:
                if all_of_them:
                    raise Problem(f"{core['key']}: {error}") from None
            except Problem as error:
                failed += 1
                what = "sent, but it stays" if isinstance(error, Remains) else "not sent"
                print(f"docker_core_helper: {core['key']}: {what}: {error}", file=sys.stderr, flush=True)
                left = len(due) - position - 1
                if isinstance(error, Away) and left:
                    raise Problem(f"{left} more were not tried, since they would have no better luck") from None
        if failed:
            raise Problem(f"{failed} of {len(due)} cores were not sent, or not removed, and stay in {kept_in.path}")
    except Stopped as error:
        raise Problem(f"stopped by {error}: what was not sent stays in {kept_in.path}") from None
    finally:
        os.close(turn)


def _stop(number: int, frame: object) -> "NoReturn":
    raise Stopped(signal.Signals(number).name)


def is_due(core: "Known", now: float) -> bool:
    """Tell whether no destination has a core, and the pause after its last try is over."""
    tried = _sending_of(core)
    # The clock may have been set back meanwhile.
    waits = tried["at"] <= now < tried["at"] + pause_after(tried["attempts"])
    return not core.get("delivered") and not waits


def in_turn(cores: "list[Known]") -> "list[Known]":
    """Return the cores in the order in which they are sent: no container can have those of others wait for all of its own.

    Those that were tried least come first; of these, the first one of each group, then the second ones.
    """
    numbers: dict[tuple[int, object], int] = {}
    order = []
    for position, core in enumerate(cores):
        attempts = _sending_of(core)["attempts"]
        number = numbers[attempts, core["group"]] = numbers.get((attempts, core["group"]), -1) + 1
        order.append((attempts, number, position))
    return [cores[position] for _attempts, _number, position in sorted(order)]


def pause_after(attempts: int) -> int:
    """Return how many seconds to wait after so many tries."""
    return min(FIRST_PAUSE << min(attempts - 1, 32), LONGEST_PAUSE) if attempts else 0


def _sending_of(core: "Known") -> "dict[str, int]":
    sending = core.get("sending")
    return sending if isinstance(sending, dict) else {"attempts": 0, "at": 0}


def prepare(configuration: "Configuration") -> "tuple[list[bytes], dict[bytes, bytes], pwd.struct_passwd]":
    """Return the words of the program, its environment without the facts, and its user. Raises Problem."""
    if not configuration.sender:
        raise Problem(f"no program sends cores: name it by DOCKERCOREHELPER_SENDER in {CONFIGURATION}")
    try:
        account = pwd.getpwnam(USER)
    except KeyError:
        raise Problem(f"there is no user {USER}, as whom cores are sent: useradd --system {USER}") from None
    if account.pw_uid == 0:
        raise Problem(f"the user {USER} is root: give it a uid of its own")
    environment = {b"PATH": PATH, b"HOME": b"/", **read_credentials()}
    return configuration.sender, environment, account


def read_credentials(path: "str | None" = None) -> "dict[bytes, bytes]":
    """Return the variables in the file for root alone, none where there is no file. Raises Problem, which shows no value."""
    path = path or CREDENTIALS
    try:
        descriptor = open_of_root(path, 0o077, os.O_NOFOLLOW)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from None
    except NotOfRoot:
        raise Problem(f"{path}: only root may read it: chown root {path} && chmod 0600 {path}") from None
    with open(descriptor, "rb") as file:
        text = file.read()
    variables = {}
    for number, line in enumerate(text.split(b"\n"), 1):
        line = line.strip()
        name, equals, value = line.partition(b"=")
        if not line or line.startswith(b"#"):
            continue
        if not equals or not VARIABLE.fullmatch(name):
            raise Problem(f"{path}, line {number}: NAME=VALUE expected")
        try:
            variables[name] = unquote(value.strip())
        except WordError:
            raise Problem(f"{path}, line {number}: the value of {shown(name)} has a quote that is not closed") from None
    return variables


class Sending:
    """One core on its way to the program."""

    def __init__(self, kept_in: store.Store, core: "Known", configuration: "Configuration") -> None:
        """Take what is known of it."""
        self.store = kept_in
        self.core = core
        self.configuration = configuration

    def run(self, words: "list[bytes]", environment: "dict[bytes, bytes]", account: pwd.struct_passwd) -> None:
        """Give the core to the program, and remove it if that has taken it. Raises Problem; Busy if it was not tried."""
        problem: Problem | None
        try:
            problem = self.give(words, environment, account)
        except (OSError, ValueError) as error:
            # The disk cannot read this core, or no program can have its facts. It must not cost the other cores anything.
            problem = Problem(why(error))
        try:
            self.conclude(problem)
        except (OSError, ValueError) as error:
            if problem is None:
                raise Remains(why(error)) from None
            raise type(problem)(f"{problem}; the try is not noted: {why(error)}") from None
        if problem is not None:
            raise problem

    def give(
        self, words: "list[bytes]", environment: "dict[bytes, bytes]", account: pwd.struct_passwd
    ) -> "Problem | None":
        """Give the core to the program, and return why that has not taken it. Raises Busy, Away, OSError or ValueError."""
        path = str(self.core["path"])
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Busy("another process has just compressed or deleted it: try again") from None
        try:
            # Held by a process that still writes, delivers or compresses it. The program inherits the lock: nobody else works
            # on what it reads, whatever becomes of this process.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            started = Started(file, path.endswith(store.COMPRESSED), account)
            with started.ended_on_failure():
                started.start(words, {**environment, **self.facts()})
                return started.follow(self.configuration.timeout, self.configuration.timeout_max)
        except BlockingIOError:
            raise Busy("another process still works on it: try again later") from None
        finally:
            os.close(file)

    def facts(self) -> "dict[bytes, bytes]":
        """Return the variables that say what the core is."""
        facts = dict(self.core["facts"]) if isinstance(self.core["facts"], dict) else {}
        facts["CORE_SIZE"] = str(self.core["size"])
        facts["CORE_TRUNCATED"] = "1" if self.core["truncated"] else "0"
        facts["CORE_TIMEOUT"] = str(int(self.configuration.timeout))
        # Of a core that is still to be compressed these two are not known.
        if isinstance(self.core.get("sha256"), str):
            facts["CORE_SHA256"] = str(self.core["sha256"])
        if isinstance(self.core.get("build_ids"), dict):
            identified = json.dumps(self.core["build_ids"])
            if len(identified) <= LONGEST_VARIABLE:
                facts["CORE_BUILD_IDS"] = identified
        return {name.encode(): value.encode() for name, value in facts.items()}

    def conclude(self, problem: "Problem | None") -> None:
        """Remove the core that was sent, or note that and why it was not. One that was deleted meanwhile stays deleted."""
        with self.store.lock:
            entry = next((entry for entry in self.store.entries() if entry.key == self.core["key"]), None)
            if entry is None or not entry.whole:
                return
            if problem is None and self.configuration.keep != ALWAYS:
                self.store.delete(entry)
                return
            known = self.store.known_of(entry)
            if problem is None:
                known.pop("sending", None)
                known["delivered"] = True
            else:
                attempts = _sending_of(known)["attempts"] + 1
                known["sending"] = {"attempts": attempts, "at": int(time.time()), "failure": str(problem)}
            group = self.store.group(entry.group)
            try:
                store.describe(group, entry.key, known)
            finally:
                os.close(group)


class Started:
    """The program, which reads the core from a file of the host: as it is, or through zstd.

    The file is its standard input, or that of zstd. So it takes no part of the core for the whole if this process is killed.
    """

    def __init__(self, file: int, compressed: bool, account: pwd.struct_passwd) -> None:
        """Take the opened ``file``, and the user that the program gets."""
        self.file = file
        self.compressed = compressed
        self.account = account
        self.size = os.fstat(file).st_size
        self.program: Popen[bytes] | None = None
        self.zstd: Popen[bytes] | None = None
        self.pipe = -1

    @contextlib.contextmanager
    def ended_on_failure(self) -> "Iterator[None]":
        """End what runs if this process is told to stop, or something fails: before the input of the program ends."""
        try:
            yield
        except BaseException:
            # No second signal interrupts this.
            with uninterrupted():
                self.end()
            raise
        finally:
            if self.pipe >= 0:
                os.close(self.pipe)
            if self.zstd is not None:
                self.zstd.kill()
                self.zstd.wait()

    def start(self, words: "list[bytes]", environment: "dict[bytes, bytes]") -> None:
        """Start the program. Raises Away where that cannot be: no core would have better luck."""
        source = self.file
        # A signal in between would leave a program that nobody knows of, and nobody ends. The program resets the mask.
        with uninterrupted():
            if self.compressed:
                source, writing = os.pipe()
                self.pipe = source
                try:
                    self.zstd = self._start([b"zstd", b"-d", b"-q", b"-c"], {b"PATH": PATH}, self.file, writing)
                finally:
                    os.close(writing)
            self.program = self._start(words, environment, source, DEVNULL)

    def _start(self, words: "list[bytes]", environment: "dict[bytes, bytes]", source: int, sink: int) -> "Popen[bytes]":
        try:
            return Popen(
                words,
                stdin=source,
                stdout=sink,
                env=environment,
                cwd="/",
                start_new_session=True,
                preexec_fn=become(self.account),
            )
        except (OSError, SubprocessError) as error:
            if getattr(error, "errno", None) == errno.E2BIG:
                raise  # The facts of this core are too long for a program.
            name = words[0].decode("utf-8", "backslashreplace")
            raise Away(f"{name}: {why(error)}: see whether user {USER} can execute it") from None

    def follow(self, timeout: float, longest: float) -> "Problem | None":
        """Wait for the end of the program, and return why it has not taken the core, None if it has.

        It has ``timeout`` seconds, and more as long as it reads something in that time, at most ``longest`` in sum.
        """
        assert self.program is not None
        began = moved = time.monotonic()
        position = 0
        while True:
            with contextlib.suppress(TimeoutExpired):
                code = self.program.wait(LOOK)
                break
            now = time.monotonic()
            found = self.position()
            if found != position:
                position, moved = found, now
            if now > moved + timeout:
                self.end()
                return Away(f"it was ended after {now - began:.0f} s, of which it read nothing in {now - moved:.0f} s")
            if now > began + max(longest, timeout):
                # It still reads: another core may be sent sooner.
                self.end()
                return Problem(f"it was ended after {now - began:.0f} s (docker_core_helper_timeout_max)")
        if code == EXIT_KEEP:
            return Away("it ended with exit code 75 (try again later)")
        if code:
            return Problem(f"it ended with exit code {code}" if code > 0 else f"it was killed by signal {-code}")
        return None if self.has_read_all() else Problem("it ended with exit code 0, and had not read all")

    def position(self) -> int:
        """Return how far the program has read: of the core, where zstd can tell that; else of the file.

        A few bytes of that file may be gigabytes of the core.
        """
        if self.zstd is not None:
            with contextlib.suppress(OSError, ValueError):
                for line in procfs.read_path(f"/proc/{self.zstd.pid}/io").splitlines():
                    if line.startswith(b"wchar:"):
                        return int(line.split()[1])
        return os.lseek(self.file, 0, os.SEEK_CUR)

    def has_read_all(self) -> bool:
        """Tell whether the program has read the whole core. It has ended."""
        if self.zstd is None:
            return os.lseek(self.file, 0, os.SEEK_CUR) == self.size
        left = linux.bytes_in_pipe(self.pipe)
        os.close(self.pipe)
        self.pipe = -1
        # Without a reader, it ends at once.
        return self.zstd.wait() == 0 and left == 0

    def end(self) -> None:
        """End the program with its family: SIGTERM, and SIGKILL after a grace."""
        if self.program is None or self.program.poll() is not None:
            return
        _signal_group(self.program.pid, signal.SIGTERM)
        # Not reaped yet: no other process gets its pid, which is also the number of its group.
        linux.wait_for_end(self.program.pid, GRACE, os.WNOWAIT)
        _signal_group(self.program.pid, signal.SIGKILL)
        self.program.wait()


@contextlib.contextmanager
def uninterrupted() -> "Iterator[None]":
    """Have signals that stop this process wait until the end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def why(error: Exception) -> str:
    """Return the reason of a failure in words."""
    return getattr(error, "strerror", None) or str(error)


def _signal_group(number: int, signal_number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(number, signal_number)


def become(account: pwd.struct_passwd) -> "Callable[[], None]":
    """Return what a child does before it executes a program: it becomes the user, for good, without privileges.

    All others of the host have the processors first. This process has not: it holds the lock of the store at times.
    """

    def steps() -> None:
        start.reset_signals()
        os.umask(0o077)
        linux.setrlimit(linux.RLIMIT_CORE, NO_NEW_CORE, NO_NEW_CORE)
        privileges.go_first()
        privileges.step_back()
        os.setgroups([])
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        linux.capset(0, 0, 0)
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)

    return steps
