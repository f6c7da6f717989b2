"""What the core pattern's command line and the configuration file say.

Bytes from the outside are read here: the words of the kernel, and a file of the administrator. Nothing in this module
touches the faulting process.
"""

import posix
import sys
import time

CONFIGURATION = "/etc/docker_core_helper.conf"
CONFIGURATION_LIMIT = 65536
DEFAULT_TIMEOUT = 300.0
S_IFMT, S_IFREG = 0o170000, 0o100000
LONGEST_TIMEOUT = 86400
MOST_DELIVERIES = 1 << 14
FALLBACK_VARIABLE = b"DOCKERCOREHELPER_FALLBACK_CORE"

# The signals whose default action is to dump core; the library's module for names costs as much as the whole helper.
SIGNALS = {
    3: "SIGQUIT",
    4: "SIGILL",
    5: "SIGTRAP",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    11: "SIGSEGV",
    24: "SIGXCPU",
    25: "SIGXFSZ",
    31: "SIGSYS",
}

USAGE = """\
usage: docker_core_helper [OPTIONS] PID UID GID [DELEGATE [ARGUMENT...]]

The kernel starts this program when a process crashes, with the core dump on standard input; see core(5). It runs DELEGATE
in the container of the process, at the privilege of the process, with the core dump on its standard input. To install:

  sysctl -w kernel.core_pipe_limit=512
  sysctl -w 'kernel.core_pattern=|/opt/bin/docker_core_helper %P %u %g /opt/bin/uploader.sh s3://bucket/ %P %u %g'

arguments, with the specifier of core(5) that fills each:
  PID %P, UID %u, GID %g   the faulting process, as the host sees it
  DELEGATE                 absolute path in the container; where it is missing, DOCKERCOREHELPER_DELEGATE of
                           /etc/docker_core_helper.conf

options, each may be empty where the kernel does not know the specifier:
  -F%F  descriptor of the process     -I%I  faulting thread     -s%s  signal
  -t%t  time of the crash             -d%d  dumpable            -c%c  soft limit of the core's size
  --help, --version

exit codes: 0 delivered, or nothing to do; 1 not delivered, or only in part; 2 wrong command line.
What happened to a core is one line in the host's log, identifier docker_core_helper.
"""


class UsageError(Exception):
    """The command line cannot be used; the text names the word and the remedy."""


class ConfigurationError(Exception):
    """The configuration, or a line of it, cannot be used; the text names the place and the remedy."""


class Refused(Exception):
    """The delegation is refused. The text, for the log, says what was found and what to do."""


class Crash:
    """One crash as the kernel announced it: plain values, whichever door it came through. None: not told."""

    def __init__(self, pid: int, uid: int, gid: int) -> None:
        """Take process id, user and group as the initial namespaces see them."""
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.tid: int | None = None
        self.signal: int | None = None
        self.time = int(time.time())
        self.dumpable: int | None = None
        self.limit: int | None = None
        self.pidfd: int | None = None
        # Not told, but found out on the way: whose it is, for slots and log, a pidfd of ours, whether its core was read, and
        # why a container could overwrite the helper's interpreter.
        self.holder = ""
        self.handle: int | None = None
        self.drained = False
        self.exposed = ""
        self.delegate: list[bytes] = []

    def signal_name(self) -> str:
        """Return the name of the signal, "" if it was not told; signal(7)."""
        if self.signal is None:
            return ""
        return SIGNALS.get(self.signal, f"SIG{self.signal}")


class Configuration:
    """What /etc/docker_core_helper.conf says, or the defaults; ``problems`` are lines for the log."""

    def __init__(self) -> None:
        """Start with the defaults."""
        self.delegate: list[bytes] = []
        self.fallback = False
        self.timeout = DEFAULT_TIMEOUT
        self.pipe_limit: int | None = None
        self.chain: list[bytes] = []
        self.chain_containers = False
        self.problems: list[str] = []


OPTIONS = {"-F": "pidfd", "-I": "tid", "-s": "signal", "-t": "time", "-d": "dumpable", "-c": "limit"}


def parse_arguments(words: "list[str]") -> "tuple[Crash, list[str]]":
    """Return the crash that the command line ``words`` announce, and what is wrong with the words but can be lived with.

    Raises UsageError where the process is not told: then there is nothing that could be done.
    """
    problems = []
    values = {}
    position = 0
    while position < len(words) and words[position].startswith("-"):
        word = words[position]
        position += 1
        if word == "--":
            break
        name, value = OPTIONS.get(word[:2]), word[2:]
        if name is None:
            problems.append(f"unknown option {word!r}, ignored: see docker_core_helper --help")
        elif _is_number(value) or (name == "limit" and value == "-1"):
            values[name] = int(value)
        elif value:
            problems.append(f"option {word!r} ignored: {word[:2]} takes a number, correct kernel.core_pattern")
    numbers = words[position : position + 3]
    if len(numbers) < 3:
        raise UsageError(
            f"PID UID GID expected, found {numbers}: kernel.core_pattern must end in %P %u %g [DELEGATE ...]"
        )
    for name, number in zip(("PID", "UID", "GID"), numbers):
        if not _is_number(number):
            raise UsageError(f"{name} must be a number, found {number!r}: kernel.core_pattern must hold %P %u %g here")
    crash = Crash(*(int(number) for number in numbers))
    for option, told in values.items():
        setattr(crash, option, told)
    delegate = [encode(word) for word in words[position + 3 :]]
    if delegate and not delegate[0].startswith(b"/"):
        problems.append(f"delegate {shown(delegate[0])} ignored: kernel.core_pattern must name its absolute path")
    else:
        crash.delegate = delegate
    return crash, problems


def encode(text: str) -> bytes:
    """Return the bytes that Python has made ``text`` of: a word of the command line, or a host name."""
    return text.encode(sys.getfilesystemencoding(), "surrogateescape")


def shown(text: bytes) -> str:
    """Return ``text`` in quotes for a message."""
    return repr(text.decode("utf-8", "backslashreplace"))


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 20


def read_configuration(path: str = CONFIGURATION) -> "Configuration":
    """Return what the file ``path`` says; a missing file is fine.

    A file that others than root can write is refused as a whole, a wrong line is skipped; both are told in ``problems``.
    """
    configuration = Configuration()
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    except FileNotFoundError:
        return configuration
    except OSError as error:
        configuration.problems.append(f"{path}: {error.strerror}: configuration ignored")
        return configuration
    try:
        found = posix.fstat(descriptor)
        if found.st_mode & S_IFMT != S_IFREG or found.st_uid != 0 or found.st_mode & 0o022:
            configuration.problems.append(
                f"{path} refused: only root may own and write it; chown root {path} && chmod 0644 {path}"
            )
            return configuration
        text = posix.read(descriptor, CONFIGURATION_LIMIT + 1)
    finally:
        posix.close(descriptor)
    if len(text) > CONFIGURATION_LIMIT:
        configuration.problems.append(f"{path} refused: longer than {CONFIGURATION_LIMIT} bytes")
        return configuration
    parse_configuration(text, path, configuration)
    return configuration


def parse_configuration(text: bytes, path: str, configuration: "Configuration") -> None:
    """Put the lines of ``text`` into ``configuration``; ``path`` is for messages."""
    for number, line in enumerate(text.split(b"\n"), 1):
        line = line.strip()
        if not line or line.startswith(b"#"):
            continue
        try:
            _take_line(line, configuration)
        except ConfigurationError as error:
            configuration.problems.append(f"{path}, line {number} skipped: {error}")


def _take_line(line: bytes, configuration: "Configuration") -> None:
    key, equals, value = line.partition(b"=")
    if not equals:
        raise ConfigurationError(f"KEY=VALUE expected, found {shown(key)}")
    value = unquote(value.strip())
    if key == FALLBACK_VARIABLE:
        configuration.fallback = True
    elif key == b"DOCKERCOREHELPER_DELEGATE":
        words = split_words(value)
        for word in words:
            expand(word, {})
        if words and not words[0].startswith(b"/"):
            raise ConfigurationError(f"delegate {shown(words[0])} must be an absolute path in the container")
        configuration.delegate = words
    elif key == b"DOCKERCOREHELPER_TIMEOUT":
        configuration.timeout = float(_number(key, value, "a number of seconds", LONGEST_TIMEOUT))
    elif key == b"DOCKERCOREHELPER_PIPE_LIMIT":
        configuration.pipe_limit = _number(key, value, "a number of cores", MOST_DELIVERIES)
    elif key == b"DOCKERCOREHELPER_CHAIN":
        # Any % is fine: what the kernel does not know vanishes, and so it does in chain.py.
        words = split_words(value)
        if words and not words[0].startswith(b"/"):
            raise ConfigurationError(f"handler {shown(words[0])} must be an absolute path on the host")
        configuration.chain = words
    elif key == b"DOCKERCOREHELPER_CHAIN_CONTAINERS":
        # Not "whatever its value", as above: this one opens a way from containers to a program of the host.
        if value not in (b"0", b"1"):
            raise ConfigurationError(f"{key.decode()}={shown(value)} must be 0 or 1")
        configuration.chain_containers = value == b"1"
    else:
        blank = ": no blank may stand before the =" if key != key.strip() else ""
        raise ConfigurationError(f"unknown key {shown(key)}{blank}")


def _number(key: bytes, value: bytes, what: str, most: int) -> int:
    words = split_words(value)
    if len(words) != 1 or not words[0].isdigit() or len(words[0]) > 5 or not 0 < int(words[0]) <= most:
        raise ConfigurationError(f"{key.decode()}={shown(value)} must be {what} from 1 to {most}")
    return int(words[0])


def unquote(value: bytes) -> bytes:
    """Return ``value`` as a shell assignment would have it: one pair of quotes around the whole is removed."""
    quote = value[:1]
    if quote in (b'"', b"'"):
        end, inner = _closing_quote(value)
        if end == len(value) or value[end:].lstrip().startswith(b"#"):
            return inner
    return value


def _closing_quote(value: bytes) -> "tuple[int, bytes]":
    """Return the position after the closing quote of what ``value`` begins with, and what stands between."""
    quote = value[0]
    inner = bytearray()
    position = 1
    while position < len(value):
        byte = value[position]
        if byte == quote:
            return position + 1, bytes(inner)
        if byte == ord("\\") and quote == ord('"') and value[position + 1 : position + 2] in (b'"', b"\\", b"$", b"`"):
            position += 1
            byte = value[position]
        inner.append(byte)
        position += 1
    raise ConfigurationError(f"quote {chr(quote)} is not closed")


def split_words(text: bytes) -> "list[bytes]":
    """Split ``text`` into words by the quoting rules of sh(1); ``#`` at the start of a word begins a comment.

    Raises ConfigurationError for a quote that is not closed. The library's shlex would cost more than the whole helper.
    """
    words = []
    word: bytearray | None = None
    position = 0
    while position < len(text):
        byte = text[position : position + 1]
        if byte in b" \t":
            if word is not None:
                words.append(bytes(word))
            word = None
        elif byte == b"#" and word is None:
            break
        else:
            word = bytearray() if word is None else word
            if byte in b"\"'":
                length, inner = _closing_quote(text[position:])
                word += inner
                position += length - 1
            elif byte == b"\\" and position + 1 < len(text):
                position += 1
                word += text[position : position + 1]
            else:
                word += byte
        position += 1
    if word is not None:
        words.append(bytes(word))
    return words


SPECIFIERS = b"PpugsteEh"


def expand(word: bytes, values: "dict[str, bytes]") -> bytes:
    """Replace each %X of ``word`` by ``values["X"]``, empty where that is not known, and %% by %.

    Raises ConfigurationError for a specifier that the helper does not have.
    """
    parts = word.split(b"%")
    expanded = [parts[0]]
    position = 1
    while position < len(parts):
        part = parts[position]
        specifier = part[:1]
        if not specifier and position + 1 < len(parts):
            expanded.append(b"%" + parts[position + 1])
            position += 1
        elif specifier and specifier in SPECIFIERS:
            expanded.append(values.get(specifier.decode(), b"") + part[1:])
        else:
            raise ConfigurationError(f"%{specifier.decode('latin-1')} is not one of %P %p %u %g %s %t %e %h %E %%")
        position += 1
    return b"".join(expanded)
