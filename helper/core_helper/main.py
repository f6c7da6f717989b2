"""The entry's only module: the door through which a crash comes in, and its way through the others.

Only this module knows that the core is on standard input and the facts are in the command line: the kernel's pipe is the
first door, a socket may become a second one.
"""

from __future__ import annotations

import posix
import sys
import time

from core_helper import __version__, command, container, delegate, fallback, journal, linux, privileges, relay, victim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

EXIT_OK, EXIT_NOT_DELIVERED, EXIT_USAGE = 0, 1, 2

# signal(7); the library's module for these names costs more than half of the helper's time.
SIGNALS = {
    3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV", 24: "SIGXCPU",
    25: "SIGXFSZ", 31: "SIGSYS",
}  # fmt: skip


def main(arguments: list[str]) -> NoReturn:
    """Handle the crash that the kernel announces by ``arguments``, and exit; see command.USAGE for the exit codes."""
    began = time.monotonic()
    if "--help" in arguments[1:2]:
        sys.stdout.write(command.USAGE)
        sys.exit(EXIT_OK)
    if "--version" in arguments[1:2]:
        print(f"docker_core_helper {__version__}")
        sys.exit(EXIT_OK)
    if len(arguments) == 1 and sys.stderr is not None:
        sys.stderr.write("docker_core_helper: the kernel starts this program when a process crashes; nothing to do\n\n")
        sys.stderr.write(command.USAGE)
        sys.exit(EXIT_USAGE)
    log = journal.Journal(settle_descriptors())
    code = EXIT_NOT_DELIVERED
    try:
        code = receive(arguments[1:], log, began)
    except BaseException as error:
        # Nothing may end without a word: nobody sees what the kernel's helpers print.
        log.write(journal.LOG_ERR, f"core not delivered: {type(error).__name__}: {error}")
    # Not sys.exit: tearing down the interpreter takes as long as handling the crash.
    posix._exit(code)


def settle_descriptors() -> int | None:
    """Put /dev/null on 1 and 2 and hide this process; return a copy of standard error if a person has it open.

    The kernel starts the helper with both closed: whatever was opened next would be taken for standard output.
    """
    terminal = None if sys.stderr is None else posix.dup(2)
    null = posix.open("/dev/null", posix.O_RDWR)
    for descriptor in (1, 2):
        if null != descriptor:
            posix.dup2(null, descriptor)
    if null > 2:
        posix.close(null)
    posix.umask(0o077)
    privileges.hide()
    return terminal


def receive(words: list[str], log: journal.Journal, began: float) -> int:
    """Take a crash from the kernel's command line and handle it; return the exit code."""
    try:
        crash, problems = command.parse_arguments(words)
    except command.UsageError as error:
        log.write(journal.LOG_ERR, f"core lost: {error}")
        return EXIT_USAGE
    if crash.pidfd is not None:
        posix.set_inheritable(crash.pidfd, False)
    configuration = command.read_configuration()
    for problem in problems + configuration.problems:
        log.write(journal.LOG_WARNING, problem)
    return handle(0, crash, configuration, log, began)


def handle(core: int, crash: command.Crash, configuration: command.Configuration, log: journal.Journal, began: float) -> int:
    """Bring the core dump that is read from ``core`` to where it belongs, tell the log, and return the exit code."""
    try:
        process = victim.examine(crash)
        process.hostname = container.hostname_of(process)
        plan = delegate.prepare(process)
    except (victim.Refused, OSError) as error:
        log.write(journal.LOG_ERR, f"pid={crash.pid} uid={crash.uid} gid={crash.gid}: core not delivered: {error}")
        return EXIT_NOT_DELIVERED
    name = describe(crash, process)
    output = f"pid={crash.pid} container={process.container_id[:12] or '-'}: delegate: "
    deadline = began + configuration.timeout
    reason = "no delegate is configured"
    severity = journal.LOG_INFO
    words = crash.delegate or [command.expand(word, specifiers(crash, process)) for word in configuration.delegate]
    if words:
        environment = delegate_environment(crash, process)
        result = relay.supervise(
            core,
            plan.groups.fork,
            lambda child: delegate.execute(plan, words, environment, child.standard_streams(), child.error_out),
            deadline,
            lambda line: log.write(journal.LOG_INFO, output + journal.escape(line)),
        )
        if result.started:
            return conclude(log, name, journal.escape(words[0]), result, began)
        reason = str(result.failure)
        severity = journal.LOG_INFO if result.absent else journal.LOG_ERR
    if wants_fallback(configuration, process):
        path = fallback.path_of(crash.pid, crash.uid, crash.gid)
        result = relay.supervise(
            core, plan.groups.fork, lambda child: fallback.write(plan, path, child.core_in, child.error_out), deadline, lambda line: None
        )
        if result.started:
            return conclude(log, name, path.decode(), result, began, f" ({reason})")
        reason, severity = f"{reason}; {result.failure}", journal.LOG_ERR
    log.write(severity, f"{name}: core dropped: {reason}")
    return EXIT_OK if severity == journal.LOG_INFO else EXIT_NOT_DELIVERED


def conclude(
    log: journal.Journal, name: str, target: str, result: relay.Result, began: float, reason: str = ""
) -> int:
    """Log how the delivery to ``target`` ended and return the exit code."""
    notes = "".join(f"; {note}" for note in result.notes)
    seconds = time.monotonic() - began
    amount = f"{result.delivered} bytes to {target} in {seconds:.3f} s{reason}"
    if result.failure is None and result.complete:
        log.write(journal.LOG_INFO, f"{name}: delivered {amount}{notes}")
        return EXIT_OK
    cut = "" if result.complete else ", truncated"
    log.write(journal.LOG_ERR, f"{name}: not delivered: {result.failure or 'it stopped reading'}: {amount}{cut}{notes}")
    return EXIT_NOT_DELIVERED


def wants_fallback(configuration: command.Configuration, process: victim.FaultingProcess) -> bool:
    """Tell whether the fallback is defined: for the host in the helper's environment or configuration, or in the process's."""
    defined = (configuration.fallback, command.FALLBACK_VARIABLE in posix.environ, command.FALLBACK_VARIABLE in process.environ)
    return any(defined)


def signal_name(number: int | None) -> str:
    """Return the name of a signal, "" if it is not known."""
    return SIGNALS.get(number or 0, "" if number is None else f"SIG{number}")


def specifiers(crash: command.Crash, process: victim.FaultingProcess) -> dict[str, bytes]:
    """Return what each specifier of the configured delegate stands for; core(5)."""
    return {
        "P": b"%d" % crash.pid,
        "p": b"%d" % process.pid,
        "u": b"%d" % crash.uid,
        "g": b"%d" % crash.gid,
        "s": b"" if crash.signal is None else b"%d" % crash.signal,
        "t": b"%d" % crash_time(crash),
        "e": process.comm,
        "h": process.hostname,
        "E": process.exe.replace(b"/", b"!"),
    }


def crash_time(crash: command.Crash) -> int:
    """Return the time of the crash in seconds since the Epoch: the kernel's, or now."""
    return int(time.time()) if crash.time is None else crash.time


def delegate_environment(crash: command.Crash, process: victim.FaultingProcess) -> dict[bytes, bytes]:
    """Return the environment of the process with the CORE_* variables of the README in it."""
    facts = {
        b"CORE_PID": b"%d" % process.pid,
        b"CORE_HOST_PID": b"%d" % crash.pid,
        b"CORE_UID": b"%d" % crash.uid,
        b"CORE_GID": b"%d" % crash.gid,
        b"CORE_SIGNAL": b"" if crash.signal is None else b"%d" % crash.signal,
        b"CORE_SIGNAL_NAME": signal_name(crash.signal).encode(),
        b"CORE_TIME": b"%d" % crash_time(crash),
        b"CORE_EXE": process.exe,
        b"CORE_COMM": process.comm,
        b"CORE_HOSTNAME": process.hostname,
        b"CORE_NODE": command.encode(posix.uname().nodename),
        b"CORE_CONTAINER_ID": process.container_id.encode(),
    }
    return {**process.environ, **facts}


def describe(crash: command.Crash, process: victim.FaultingProcess) -> str:
    """Return who crashed, where and by which signal, for the log."""
    signal = "?" if crash.signal is None else f"{crash.signal} ({signal_name(crash.signal)})"
    return (
        f"pid={crash.pid} ({process.pid} in its namespace) uid={crash.uid} gid={crash.gid} signal={signal}"
        f' comm="{journal.escape(process.comm)}" exe="{journal.escape(process.exe)}"'
        f' container={process.container_id[:12] or "-"} host="{journal.escape(process.hostname)}"'
    )
