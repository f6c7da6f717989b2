"""``docker_core_helper serve``: its command line, and what this process becomes before server.py takes the first crash."""

import fcntl
import gc
import posix
import sys

import core_helper
from core_helper import configuration, host, kernel_socket, linux, listening, seccomp, start
from core_helper.command_line import EXIT_NOT_DELIVERED, EXIT_OK, EXIT_USAGE
from core_helper.crash import Refused
from core_helper.log import Log
from core_helper.pattern import KEPT, Failed, Pattern
from core_helper.server import Server
from core_helper.worker import PIDFD, Settings, name

PATH = "/run/docker_core_helper/core.sock"
LONGEST_PATH = 107  # unix(7).
USAGE = f"""\
usage: docker_core_helper serve [--pattern] [--socket=PATH]
       docker_core_helper serve --restore [--socket=PATH]

Waits for crashes at a socket on which the kernel (Linux 6.17 and newer) announces them, and handles each as if the kernel had
started the helper. A socket that systemd has opened comes first; else PATH is created, {PATH} by default.

--pattern  has the kernel use that socket: sets kernel.core_pattern to @@PATH when crashes can come, keeps the previous pattern
           in PATH{KEPT}, and sets it again when this program is told to end
--restore  sets the previous pattern again where a server was killed and has left @@PATH, and does nothing else

Without --pattern: sysctl -w kernel.core_pattern=@@{PATH}
In a container with the pid namespace of the host, it goes over to the host: every path is the host's. Only the configuration is
that of the container, if it has one.

The delegate is that of {configuration.CONFIGURATION}. SIGTERM ends the program: crashes that wait are still handled.
"""
# What service managers say, and what the administrator may say to a helper; sd_listen_fds(3), sd_notify(3).
PASSED_ON = {
    *(b"LISTEN_FDS", b"LISTEN_PID", b"NOTIFY_SOCKET", b"WATCHDOG_PID", b"WATCHDOG_USEC"),
    configuration.FALLBACK_VARIABLE,
}
LOGIN_ID, NO_LOGIN = "/proc/self/loginuid", b"4294967295"
# Descriptors: two for each crash that waits, and three for each worker, of which the kernel's limit may allow thousands.
FILES = 1 << 16
NAME = b"core_server"
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
        terminal = become_server(elsewhere)
        log.terminal = terminal
        files = raise_limits()
        inherited = listening.inherited_socket()
        # There the kernel gives a helper the pidfd, and a previous handler expects it.
        posix.dup2(0, PIDFD, False)
        load(elsewhere)
        given = interpreter = None
        if elsewhere:
            given, interpreter = host.own_configuration(), host.own_interpreter()
            status = host.send()
            if status is not None:
                return stay_behind(status, path if asked else None, log)
        listener = listening.listen(path) if inherited is None else inherited
        if inherited is not None:
            path = listener.getsockname()
        pattern = Pattern(path) if asked else None
        settings = Settings(terminal, unprotected, files, given, interpreter)
        server = Server(listener, settings, pattern, inherited is not None)
        log.lines.info(f"waits for crashes at the core-dump socket {path}")
        server.serve()
        if inherited is None:
            posix.unlink(path)
        if server.failed:
            return EXIT_NOT_DELIVERED
    except (listening.Unusable, Failed, Refused, OSError) as error:
        return give_up(path, error, log)
    except Exception as error:
        # Standard error is /dev/null by now.
        return give_up(path, Failed(f"{type(error).__name__}: {error}"), log)
    return EXIT_OK


def restore(path: str, log: Log) -> int:
    """Set the pattern from before a server at the socket ``path``, if that was killed; return the exit code."""
    try:
        if host.is_elsewhere():
            load(elsewhere=True)
            host.join()
        if Pattern(path).restore():
            log.lines.warning(
                f"the server at the core-dump socket {path} was killed: the previous pattern is set again"
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
    """In the container: the server has ended with that wait ``status``; set the previous pattern if it was killed.

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


def become_server(elsewhere: bool = False) -> "int | None":
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
    forget_login(elsewhere or b"NOTIFY_SOCKET" in posix.environ)
    name(NAME)
    return terminal


def forget_login(started: bool) -> None:
    """Give up the login in which this program was started: delegates inherit the keys of its session, and its audit id.

    ``started`` says that a service manager or an engine has started it. They give it a session keyring of its own, which stays
    where no other can be had. Nobody can use that of the server: it is the delegate's where a worker gets none. Raises OSError
    or Unusable.
    """
    if not linux.new_session_keyring() and not started:
        raise listening.Unusable(
            "user 0 has as many keys as kernel.keys.root_maxkeys and root_maxbytes allow; keyrings(7)"
        )
    linux.seal_session_keyring()
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
    """Have room for the descriptors of crashes that wait; return the previous limits."""
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
