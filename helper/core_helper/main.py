"""The entry's only module: the door through which a crash comes in, and its way through the others.

Only this module knows that the core is on standard input and the facts are in the command line: the kernel's pipe is the
first door, a socket may become a second one.
"""

import _signal
import posix
import sys
import time

from core_helper import __version__, command, container, delegate, membership, privileges, slots, supervisor, victim
from core_helper.child import Child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NoReturn

    from core_helper.child import Result
    from core_helper.journal import Journal

LAST_RESORT = 60  # Seconds after the deadline.
EXIT_OK, EXIT_NOT_DELIVERED, EXIT_USAGE = 0, 1, 2


def main(arguments: "list[str]") -> "NoReturn":
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
    code, terminal = EXIT_NOT_DELIVERED, None
    try:
        settle_signals()
        terminal = settle_descriptors()
        code = receive(arguments[1:], terminal, began)
    except BaseException as error:
        # Nothing may end without a word: nobody sees what the kernel's helpers print.
        open_journal(terminal).error(f"core not delivered: {type(error).__name__}: {error}")
    # Not sys.exit: tearing down the interpreter takes as long as handling the crash.
    posix._exit(code)


def open_journal(terminal: "int | None", holder: str = "") -> "Journal":
    """Return the log. Its module is imported only when the delegate is on its way: nothing is logged before that."""
    from core_helper import journal

    return journal.Journal(terminal, holder)


def settle_signals() -> None:
    """Act on signals as Python does, whatever the caller ignored: an ignored SIGCHLD would lose how the delegate ended."""
    delegate.reset_signals()
    ignore_own_signals()


def ignore_own_signals() -> None:
    """Have a closed pipe and a file that may not grow be errors, as in any Python."""
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_IGN)


def settle_descriptors() -> "int | None":
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


def receive(words: "list[str]", terminal: "int | None", began: float) -> int:
    """Take a crash from the kernel's command line and handle it; return the exit code."""
    try:
        crash, problems = command.parse_arguments(words)
    except command.UsageError as error:
        open_journal(terminal).error(f"core lost: {error}")
        return EXIT_USAGE
    if crash.pidfd is not None:
        posix.set_inheritable(crash.pidfd, False)
    crash.handle = victim.open_pidfd(crash)
    configuration = command.read_configuration()
    configuration.problems = problems + configuration.problems
    _signal.signal(_signal.SIGALRM, give_up)
    _signal.alarm(int(configuration.timeout) + LAST_RESORT)
    code = handle(0, crash, configuration, terminal, began)
    tell(configuration.problems, terminal)
    if not crash.drained and victim.let_go(0, crash):
        open_journal(terminal, crash.holder).warning(f"pid={crash.pid}: killed: it had not ended without its reader")
    return code


def give_up(number: int, frame: object) -> "NoReturn":
    """End a helper that waits for what has no deadline of its own."""
    raise TimeoutError("the deadline has passed, and the helper was still waiting")


def handle(
    core: int, crash: command.Crash, configuration: command.Configuration, terminal: "int | None", began: float
) -> int:
    """Bring the core that is read from ``core`` to where it belongs, tell the log, and return the exit code.

    ``terminal`` is where a person reads the log, ``began`` the monotonic time of the start.
    """
    try:
        # First of all: who has too many crashes in flight must not cost more than this.
        slot = slots.take(crash, configuration.pipe_limit)
        process = examine(crash, configuration, slot, terminal)
        process.hostname = container.hostname_of(process)
        plan = delegate.prepare(process)
    except (victim.Refused, OSError) as error:
        open_journal(terminal, crash.holder).refuse(crash, victim.whereabouts(crash.pid), str(error))
        return EXIT_NOT_DELIVERED

    def log() -> "Journal":
        return open_journal(terminal, crash.holder)

    def attempt(run: "Callable[[Child], NoReturn]") -> "Result":
        while True:
            child = Child(plan.groups, run)
            result = supervisor.supervise(
                core, child, process, deadline, lambda line: log().output(crash, process, line)
            )
            crash.drained = result.drained
            if result.mute and process.environ_file is not None:
                process.environ_file = None
            elif result.crowded and plan.groups.unified is not None:
                # The container may not have one more process: enter it later, by a way that is slower but needs none.
                plan.groups.unified = None
            else:
                return result

    deadline = began + configuration.timeout
    failure, absent, asked = "no delegate is configured", True, False
    words = crash.delegate or [command.expand(word, specifiers(crash, process)) for word in configuration.delegate]
    if words:
        facts = facts_of(crash, process)
        result = attempt(lambda child: delegate.execute(plan, words, facts, child))
        asked = result.fallback
        if result.started and not (result.untouched and result.failure):
            delivered = log().conclude(crash, process, words[0], result, began)
            return EXIT_OK if delivered else EXIT_NOT_DELIVERED
        if result.refused:
            log().refuse(crash, (process.comm, process.container_id), str(result.failure))
            return EXIT_NOT_DELIVERED
        failure, absent = str(result.failure), result.absent
        if result.untouched:
            failure = f"{words[0].decode('utf-8', 'backslashreplace')}: {failure} before it read a byte"
    if absent and configuration.chain and configuration.chain_containers:
        hand_on(crash, process, configuration, slot, terminal)
    asked = asked or configuration.fallback or command.FALLBACK_VARIABLE in posix.environ
    # Where no delegate was tried, the environment of the process was not read yet: it may ask for the core file.
    if asked or not words:
        from core_helper import fallback

        path = fallback.path_of(crash.pid, crash.uid, crash.gid)
        result = attempt(lambda child: fallback.write(plan, path, asked, child))
        if result.started:
            delivered = log().conclude(crash, process, path, result, began, failure)
            return EXIT_OK if delivered else EXIT_NOT_DELIVERED
        if not result.absent:
            failure, absent = f"{failure}; {result.failure}", False
    log().drop(crash, process, failure, absent)
    return EXIT_OK if absent else EXIT_NOT_DELIVERED


def examine(
    crash: command.Crash, configuration: command.Configuration, slot: slots.Slot, terminal: "int | None"
) -> victim.FaultingProcess:
    """Return the process whose core is to be delegated; that of a process of the host goes to the handler the host had.

    Raises Refused or OSError like victim.examine.
    """
    refusal = None
    try:
        process = victim.examine(crash)
        membership.check(process)
        process.close_task()
    except victim.Withheld as error:
        # Not for a delegate; but the handler of the host is root's, and has always looked after such processes itself.
        process, refusal = error.process, error
    if crash.signal is None:
        crash.signal = process.signal
    # A container's crash pays but this comparison: its pid namespace is another one.
    if configuration.chain and not any(name == "pid" for name, _, _ in process.namespaces):
        from core_helper import chain

        if chain.is_of_the_host(process) or (refusal is not None and refusal.of_the_host):
            hand_on(crash, process, configuration, slot, terminal)
    if refusal is not None:
        raise refusal
    return process


def hand_on(
    crash: command.Crash,
    process: victim.FaultingProcess,
    configuration: command.Configuration,
    slot: slots.Slot,
    terminal: "int | None",
) -> None:
    """Become the handler that the host had before; return if that cannot be."""
    from core_helper import chain

    tell(configuration.problems, terminal)
    configuration.problems = []
    # That handler has its own deadlines, or none.
    slot.leave()
    _signal.alarm(0)
    process.hostname = container.hostname_of(process)
    chain.hand_on(crash, process, configuration.chain, open_journal(terminal, crash.holder))


def tell(problems: "list[str]", terminal: "int | None") -> None:
    """Have the log say what should be mended."""
    for problem in problems:
        open_journal(terminal).warning(problem)


def specifiers(crash: command.Crash, process: victim.FaultingProcess) -> "dict[str, bytes]":
    """Return what each specifier of the configured delegate stands for; core(5)."""
    return {
        "P": b"%d" % crash.pid,
        "p": b"%d" % process.pid,
        "u": b"%d" % crash.uid,
        "g": b"%d" % crash.gid,
        "s": b"" if crash.signal is None else b"%d" % crash.signal,
        "t": b"%d" % crash.time,
        "e": process.comm,
        "h": process.hostname,
        "E": process.exe.replace(b"/", b"!"),
    }


def facts_of(crash: command.Crash, process: victim.FaultingProcess) -> "dict[bytes, bytes]":
    """Return the CORE_* variables of the README that tell the delegate about the crash."""
    return {
        b"CORE_PID": b"%d" % process.pid,
        b"CORE_HOST_PID": b"%d" % crash.pid,
        b"CORE_UID": b"%d" % crash.uid,
        b"CORE_GID": b"%d" % crash.gid,
        b"CORE_SIGNAL": b"" if crash.signal is None else b"%d" % crash.signal,
        b"CORE_SIGNAL_NAME": crash.signal_name().encode(),
        b"CORE_TIME": b"%d" % crash.time,
        b"CORE_LIMIT": b"" if crash.limit is None else b"%d" % crash.limit,
        b"CORE_EXE": process.exe,
        b"CORE_COMM": process.comm,
        b"CORE_HOSTNAME": process.hostname,
        b"CORE_NODE": command.encode(posix.uname().nodename),
        b"CORE_CONTAINER_ID": process.container_id.encode(),
    }
