"""The entry's only module: the door through which a crash comes in.

Only this module knows that the core is on standard input and the facts are in the command line: the kernel's pipe is the
first door, a socket may become a second one. What is loaded with it is little: a crash may be refused here already.
"""

import _signal
import posix
import sys
import time

import core_helper
from core_helper import command_line, quota, runtime, slots, start
from core_helper.configuration import Configuration, read_configuration
from core_helper.crash import Crash, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from core_helper.journal import Journal

EXIT_OK, EXIT_NOT_DELIVERED, EXIT_USAGE = 0, 1, 2
LAST_RESORT = 60  # Seconds after the deadline.


def main(arguments: "list[str]") -> "NoReturn":
    """Handle the crash that the kernel announces by ``arguments``, and exit; see command_line.USAGE for the exit codes."""
    began = time.monotonic()
    if "--help" in arguments[1:2]:
        sys.stdout.write(command_line.USAGE)
        sys.exit(EXIT_OK)
    if "--version" in arguments[1:2]:
        print(f"docker_core_helper {core_helper.__version__}")
        sys.exit(EXIT_OK)
    if len(arguments) == 1 and sys.stderr is not None:
        sys.stderr.write("docker_core_helper: the kernel starts this program when a process crashes; nothing to do\n\n")
        sys.stderr.write(command_line.USAGE)
        sys.exit(EXIT_USAGE)
    code, terminal = EXIT_NOT_DELIVERED, None
    try:
        start.settle_signals()
        terminal = start.settle_descriptors()
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


def receive(words: "list[str]", terminal: "int | None", began: float) -> int:
    """Take a crash from the kernel's command line and handle it; return the exit code."""
    try:
        crash, problems = command_line.parse_arguments(words)
    except command_line.UsageError as error:
        open_journal(terminal).error(f"core lost: {error}")
        return EXIT_USAGE
    if crash.pidfd is not None:
        posix.set_inheritable(crash.pidfd, False)
    crash.handle = slots.open_pidfd(crash)
    configuration = read_configuration()
    configuration.problems = problems + configuration.problems

    def log() -> "Journal":
        return open_journal(terminal, crash.holder)

    mark = start.mark_of_restart()
    if mark is not None:
        began = mark[2]
    _signal.signal(_signal.SIGALRM, give_up)
    _signal.alarm(int(configuration.timeout) + LAST_RESORT)
    code = EXIT_NOT_DELIVERED
    try:
        # First of all: who has too many crashes in flight must not cost more than this.
        slot = take_slot(crash, configuration) if mark is None else slots.resume(crash, mark[0], mark[1])
        if mark is None:
            crash.exposed = start.protect_interpreter(crash, slot, began, terminal)
        if slots.limit_of_kernel() == 0:
            from core_helper import diagnosis

            configuration.problems.append(f"pid={crash.pid}: {diagnosis.NO_LIMIT}")
        core_helper.load()
        from core_helper import deliver

        code = deliver.handle(0, crash, configuration, slot, log, began)
    except (Refused, OSError) as error:
        if not (crash.holder and quota.leaves_out(crash.holder)):
            log().refuse(crash, runtime.whereabouts(crash.pid), str(error))
    for problem in configuration.problems:
        open_journal(terminal).warning(problem)
    if not crash.drained and slots.let_go(0, crash):
        log().warning(f"pid={crash.pid}: killed: it had not ended without its reader")
    return code


def take_slot(crash: Crash, configuration: Configuration) -> slots.Slot:
    """Return the slot of ``crash``. Where they cannot be counted, as on a full disk, that is no reason to lose a core."""
    try:
        return slots.take(crash, configuration.pipe_limit)
    except OSError as error:
        configuration.problems.append(f"{slots.FILE}: {error.strerror}: nobody's share of the slots is counted")
        return slots.Slot(None, 0)


def give_up(number: int, frame: object) -> "NoReturn":
    """End a helper that waits for what has no deadline of its own."""
    raise TimeoutError("the deadline has passed, and the helper was still waiting")
