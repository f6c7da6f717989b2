"""Reads the configuration file of the host's administrator, which only root may be able to write."""

import _signal
import posix
import time

from core_helper import linux
from core_helper.crash import SIGNALS, Refused
from core_helper.words import WordError, expand, is_variable, shown, split_words, unquote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

CONFIGURATION = "/etc/docker_core_helper.conf"
LONGEST_FILE = 65536
DEFAULT_TIMEOUT = 300.0
DEFAULT_FALLBACK_MAX = (16, 8 << 30)
DEFAULT_TIMEOUT_MAX = 3600.0
LONGEST_TIMEOUT = 86400
MOST_DELIVERIES = 1 << 14
FALLBACK_VARIABLE = b"DOCKERCOREHELPER_FALLBACK_CORE"
NEVER, UNDELIVERED, ALWAYS = "never", "undelivered", "always"
KEEP_DIRECTORY = "/var/lib/docker_core_helper/cores"
KEEP_MAX, KEEP_FREE, KEEP_AGE = 10 << 30, 15, 14  # Bytes, percent, days.
SIZES = {b"K": 1 << 10, b"M": 1 << 20, b"G": 1 << 30, b"T": 1 << 40}
# Seconds to wait for the end of a lease: the kernel ends it after fs.lease-break-time, by default 45 seconds; fcntl(2).
LEASE_PATIENCE, LEASE_LOOK = 60.0, 1.0
TIMES = {b"s": 1, b"m": 60, b"h": 3600, b"d": 86400}


class Configuration:
    """What /etc/docker_core_helper.conf says, or the defaults; ``problems`` are lines for the log."""

    def __init__(self) -> None:
        """Start with the defaults."""
        self.delegate: list[bytes] = []
        # A program of the host for containers that have no delegate.
        self.lend: list[bytes] = []
        self.fallback = False
        # So many core files in the directory of the fallback file, which take so many bytes; 0 means any number.
        self.fallback_max = DEFAULT_FALLBACK_MAX
        self.timeout = DEFAULT_TIMEOUT
        self.timeout_max = DEFAULT_TIMEOUT_MAX
        self.pipe_limit: int | None = None
        self.size_max = 0
        # So many cores of each program of a container, in so many seconds; 0 means any number.
        self.burst = (0, 0)
        self.chain: list[bytes] = []
        self.chain_containers = False
        self.obey_core_limit = True
        # Variables that a delegate gets from the record of its container's engine, where the process lacks them.
        self.container_environment = [b"CORE_DESTINATION"]
        self.ignore_signals: list[int] = []
        self.ignore_programs: list[bytes] = []
        self.keep = NEVER
        self.keep_directory = KEEP_DIRECTORY
        self.keep_max = KEEP_MAX
        self.keep_free = KEEP_FREE
        self.keep_age = KEEP_AGE
        self.release_kept = False
        self.sender: list[bytes] = []
        self.problems: list[str] = []
        self.unread = False  # Whether there is a file that could not be opened, as where no descriptor is free.


class NotOfRoot(Exception):
    """A file is not root's, or others may do with it what they must not, or it is no regular file."""


class _Interrupted(Exception):
    pass


def open_of_root(path: str, others: int, flags: int = 0) -> int:
    """Open a file of root's to be read, in whose mode none of the bits ``others`` is set. Raises OSError or NotOfRoot.

    Where somebody has a lease on the file, that is BlockingIOError; see open_after_lease.
    """
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | flags)
    try:
        _check_of_root(descriptor, others)
    except NotOfRoot:
        posix.close(descriptor)
        raise
    return descriptor


def _check_of_root(descriptor: int, others: int) -> None:
    found = posix.fstat(descriptor)
    if found.st_mode & linux.S_IFMT != linux.S_IFREG or found.st_uid != 0 or found.st_mode & others:
        raise NotOfRoot


def open_after_lease(
    path: str,
    others: int,
    flags: int = 0,
    patience: "float | None" = None,
    is_over: "Callable[[], bool]" = lambda: False,
) -> int:
    """Open a file as ``open_of_root`` does. If somebody has a lease on it, wait for the end of that; fcntl(2).

    This waits for so many seconds of ``patience``, and asks now and then whether it ``is_over``: Refused is raised after that.
    Who has the lease is told that somebody waits, and might take it again at once. So the kernel must have this open(2) wait.
    """
    limit = time.monotonic() + (LEASE_PATIENCE if patience is None else patience)
    try:
        return open_of_root(path, others, flags)
    except BlockingIOError:
        pass
    refused = Refused(f"{path}: a process has a lease on it, so it cannot be read: see /proc/locks")
    if time.monotonic() >= limit:
        raise refused
    place = posix.open(path, posix.O_PATH | posix.O_CLOEXEC | flags)
    before = _signal.signal(_signal.SIGALRM, _interrupt)
    try:
        _check_of_root(place, others)  # What is no regular file might keep an open(2) waiting for ever.
        while time.monotonic() < limit and not is_over():
            try:
                _signal.setitimer(_signal.ITIMER_REAL, min(LEASE_LOOK, max(0.001, limit - time.monotonic())))
                try:
                    return posix.open(f"/proc/self/fd/{place}", posix.O_RDONLY | posix.O_CLOEXEC)
                finally:
                    _signal.setitimer(_signal.ITIMER_REAL, 0)
            except _Interrupted:
                continue  # Also where the file was opened just then: that descriptor stays until this process ends.
    finally:
        _signal.signal(_signal.SIGALRM, before)
        posix.close(place)
    raise refused


def _interrupt(number: int, frame: object) -> None:
    raise _Interrupted


def read_configuration(
    path: str = "", patience: "float | None" = None, is_over: "Callable[[], bool]" = lambda: False
) -> "Configuration":
    """Return what the file ``path`` says, by default /etc/docker_core_helper.conf; a missing file is fine.

    A file that users other than root can write is refused as a whole, a wrong line is skipped; ``problems`` names both. Raises
    Refused where somebody has a lease on the file, as ``open_after_lease`` does: the defaults must not take the place of what
    root has chosen.
    """
    path = path or CONFIGURATION
    configuration = Configuration()
    try:
        descriptor = open_after_lease(path, 0o022, patience=patience, is_over=is_over)
    except FileNotFoundError:
        return configuration
    except OSError as error:
        configuration.problems.append(f"{path}: {error.strerror}: configuration ignored")
        configuration.unread = True
        return configuration
    except NotOfRoot:
        configuration.problems.append(
            f"{path} refused: only root may own and write it; chown root {path} && chmod 0644 {path}"
        )
        return configuration
    try:
        text = posix.read(descriptor, LONGEST_FILE + 1)
    finally:
        posix.close(descriptor)
    _parse_text(text, path, configuration)
    return configuration


def _parse_text(text: bytes, path: str, configuration: "Configuration") -> None:
    if len(text) > LONGEST_FILE:
        configuration.problems.append(f"{path} refused: longer than {LONGEST_FILE} bytes")
    else:
        parse_configuration(text, path, configuration)


class Watched:
    """The configuration of a process that stays: read again where the file is another one, or was written to."""

    def __init__(self, given: "bytes | None" = None) -> None:
        """Read the file. In its place counts what is ``given``: what a server has brought from its container; see host.py.

        Raises Refused as ``read_configuration`` does.
        """
        self.is_given = given is not None
        self.seen = _state_of_file()
        self.configuration = Configuration() if self.is_given else read_configuration()
        if given is not None:
            _parse_text(given, CONFIGURATION, self.configuration)

    def read(self) -> Configuration:
        """Return what the file says now. If the file cannot be read, what it said before counts, and nobody waits for it."""
        if self.is_given:
            return self.configuration
        seen = _state_of_file()
        if seen == self.seen:
            return self.configuration
        try:
            found = read_configuration(patience=0.0)
            if not found.unread:
                self.seen, self.configuration = seen, found
                return found
        except Refused:
            pass
        self.configuration.problems = [f"{CONFIGURATION} cannot be read: what it said before counts"]
        return self.configuration


def _state_of_file() -> object:
    try:
        file = posix.stat(CONFIGURATION)
    except OSError:
        return "missing"
    return file.st_mtime_ns, file.st_ctime_ns, file.st_size, file.st_ino


def parse_configuration(text: bytes, path: str, configuration: "Configuration") -> None:
    """Put the lines of ``text`` into ``configuration``; ``path`` is for messages."""
    for number, line in enumerate(text.split(b"\n"), 1):
        line = line.strip()
        if not line or line.startswith(b"#"):
            continue
        try:
            _parse_line(line, configuration)
        except WordError as error:
            configuration.problems.append(f"{path}, line {number} skipped: {error}")


def _parse_line(line: bytes, configuration: "Configuration") -> None:
    key, equals, value = line.partition(b"=")
    if not equals:
        raise WordError(f"KEY=VALUE expected, found {shown(key)}")
    value = unquote(value.strip())
    if key == FALLBACK_VARIABLE:
        configuration.fallback = True
    elif key == b"DOCKERCOREHELPER_DELEGATE":
        words = split_words(value)
        for word in words:
            expand(word, {})
        if words and not words[0].startswith(b"/"):
            raise WordError(f"delegate {shown(words[0])} must be an absolute path in the container")
        configuration.delegate = words
    elif key == b"DOCKERCOREHELPER_LEND":
        words = _program(value, "lent program")
        for word in words:
            expand(word, {}, lambda name, prefix: b"")
        configuration.lend = words
    elif key == b"DOCKERCOREHELPER_TIMEOUT":
        configuration.timeout = float(_number(key, value, "a number of seconds", LONGEST_TIMEOUT))
    elif key == b"DOCKERCOREHELPER_TIMEOUT_MAX":
        configuration.timeout_max = float(_number(key, value, "a number of seconds", LONGEST_TIMEOUT))
    elif key == b"DOCKERCOREHELPER_PIPE_LIMIT":
        configuration.pipe_limit = _number(key, value, "a number of cores", MOST_DELIVERIES)
    elif key == b"DOCKERCOREHELPER_SIZE_MAX":
        configuration.size_max = _unit_number(key, value, SIZES, "a number of bytes such as 10G, or 0")
    elif key == b"DOCKERCOREHELPER_BURST":
        configuration.burst = _pair(key, value, TIMES, "a number of cores and a time such as 5/1h, or 0")
    elif key == b"DOCKERCOREHELPER_FALLBACK_MAX":
        configuration.fallback_max = _pair(key, value, SIZES, "a number of files and of bytes such as 16/8G, or 0")
    elif key == b"DOCKERCOREHELPER_CHAIN":
        # Any % is fine: previous_handler.py drops a specifier that it does not know, as the kernel does.
        configuration.chain = _program(value, "handler")
    elif key == b"DOCKERCOREHELPER_CHAIN_CONTAINERS":
        # Here the value counts, unlike that of the fallback: this key opens a way from containers to a program of the host.
        configuration.chain_containers = _switch(key, value)
    elif key == b"DOCKERCOREHELPER_OBEY_CORE_LIMIT":
        configuration.obey_core_limit = _switch(key, value)
    elif key == b"DOCKERCOREHELPER_CONTAINER_ENVIRONMENT":
        names = split_words(value)
        for name in names:
            if not is_variable(name):
                raise WordError(f"{key.decode()}: {shown(name)} must be the name of a variable")
        configuration.container_environment = names
    elif key == b"DOCKERCOREHELPER_IGNORE_SIGNALS":
        configuration.ignore_signals = [_signal_number(key, word) for word in split_words(value)]
    elif key == b"DOCKERCOREHELPER_IGNORE_PROGRAMS":
        words = split_words(value)
        for word in words:
            if not word.startswith((b"/", b"*")):
                raise WordError(f"{key.decode()}: {shown(word)} must be a path that begins with / or *")
        configuration.ignore_programs = words
    elif key == b"DOCKERCOREHELPER_KEEP":
        configuration.keep = _choice(key, value, NEVER, UNDELIVERED, ALWAYS)
    elif key == b"DOCKERCOREHELPER_KEEP_DIRECTORY":
        if not value.startswith(b"/") or b"/../" in value + b"/":
            raise WordError(f"{key.decode()}={shown(value)} must be an absolute path on the host")
        configuration.keep_directory = value.decode("utf-8", "surrogateescape")
    elif key == b"DOCKERCOREHELPER_KEEP_MAX":
        what = "a number of bytes, such as 500000000, 500M or 10G"
        configuration.keep_max = _unit_number(key, value, SIZES, what, longest=18)
    elif key == b"DOCKERCOREHELPER_KEEP_FREE":
        configuration.keep_free = _number(key, value, "a percentage", 99, 0)
    elif key == b"DOCKERCOREHELPER_KEEP_AGE":
        configuration.keep_age = _number(key, value, "a number of days", 36500)
    elif key == b"DOCKERCOREHELPER_RELEASE":
        configuration.release_kept = _choice(key, value, "delivered", "kept") == "kept"
    elif key == b"DOCKERCOREHELPER_SENDER":
        configuration.sender = _program(value, "sender")
    else:
        blank = ": no blank may stand before the =" if key != key.strip() else ""
        raise WordError(f"unknown key {shown(key)}{blank}")


def _program(value: bytes, what: str) -> "list[bytes]":
    """Return the words of a program of the host, none where there is none."""
    words = split_words(value)
    if words and not words[0].startswith(b"/"):
        raise WordError(f"{what} {shown(words[0])} must be an absolute path on the host")
    return words


def _choice(key: bytes, value: bytes, *words: str) -> str:
    """Return the one of ``words`` that ``value`` is."""
    for word in words:
        if value == word.encode():
            return word
    raise WordError(f"{key.decode()}={shown(value)} must be {', '.join(words[:-1])} or {words[-1]}")


def _unit_number(key: bytes, value: bytes, units: "dict[bytes, int]", what: str, longest: int = 15) -> int:
    """Return the number that ``value`` says, such as 10G, of at most so many digits; ``units`` are the factors."""
    number, factor = (value[:-1], units[value[-1:]]) if value[-1:] in units else (value, 1)
    if not number.isdigit() or len(number) > longest:
        raise WordError(f"{key.decode()}={shown(value)} must be {what}")
    return int(number) * factor


def _pair(key: bytes, value: bytes, units: "dict[bytes, int]", what: str) -> "tuple[int, int]":
    """Return the two numbers of such as 5/1h, of which neither is 0, or both for the value 0."""
    most, slash, amount = value.partition(b"/")
    second = _unit_number(key, amount, units, what) if slash else 0
    if not most.isdigit() or len(most) > 5 or bool(int(most)) != bool(second):
        raise WordError(f"{key.decode()}={shown(value)} must be {what}")
    return int(most), second


def _switch(key: bytes, value: bytes) -> bool:
    if value not in (b"0", b"1"):
        raise WordError(f"{key.decode()}={shown(value)} must be 0 or 1")
    return value == b"1"


def _signal_number(key: bytes, word: bytes) -> int:
    for number, name in SIGNALS.items():
        if word == name.encode():
            return number
    raise WordError(f"{key.decode()}: {shown(word)} must be one of {' '.join(SIGNALS.values())}")


def _number(key: bytes, value: bytes, what: str, most: int, least: int = 1) -> int:
    words = split_words(value)
    if len(words) != 1 or not words[0].isdigit() or len(words[0]) > 5 or not least <= int(words[0]) <= most:
        raise WordError(f"{key.decode()}={shown(value)} must be {what} from {least} to {most}")
    return int(words[0])
