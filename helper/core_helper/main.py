"""Receives a crash: the kernel starts the helper at each one; core(5).

Only this module and ``start`` know that the core comes on standard input. Only this module knows that the facts are in the
command line. It is imported first, and imports little: a crash may be refused here already. The other door is serve.py. Both
doors lead to ``handle``.
"""

import _signal
import posix
import sys
import time

import core_helper
from core_helper import command_line, deadline, linux, procfs, quota, runtime, slots, start
from core_helper.command_line import EXIT_NOT_DELIVERED, EXIT_OK, EXIT_USAGE
from core_helper.configuration import NEVER, Configuration, read_configuration
from core_helper.crash import Crash, Refused
from core_helper.log import Log
from core_helper.source import KernelPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NoReturn

    from core_helper.holders import Holder

LIMIT_OF_KERNEL = "/proc/sys/kernel/core_pipe_limit"
NOBODYS = "-1 unknown"  # The name under which lines about a process are counted that is gone; holders.log_name.


def main(arguments: "list[str]") -> "NoReturn":
    """Handle the crash that the kernel announces by ``arguments``, and exit; see command_line.USAGE for the exit codes."""
    began = time.monotonic()
    if "--help" in arguments[1:2]:
        sys.stdout.write(command_line.USAGE)
        sys.exit(EXIT_OK)
    if "--version" in arguments[1:2]:
        print(f"docker_core_helper {core_helper.__version__}")
        sys.exit(EXIT_OK)
    if arguments[1:2] == ["cores"]:
        from core_helper import cores

        sys.exit(cores.run(arguments[2:]))
    if arguments[1:2] == ["serve"]:
        from core_helper import serve

        sys.exit(serve.run(arguments[2:]))
    if len(arguments) == 1 and sys.stderr is not None:
        sys.stderr.write("docker_core_helper: the kernel starts this program when a process crashes; nothing to do\n\n")
        sys.stderr.write(command_line.USAGE)
        sys.exit(EXIT_USAGE)
    code, log = EXIT_NOT_DELIVERED, Log()
    try:
        start.reset_signals_for_python()
        deadline.signals.heed()
        core, log.terminal = start.occupy_standard_descriptors()
        code = receive(arguments[1:], KernelPipe(core), log, began)
    except BaseException as error:
        # The helper must not end silently: nobody sees what a program prints that the kernel has started.
        log.lines.error(f"core not delivered: {type(error).__name__}: {error}")
    # Not sys.exit: tearing down the interpreter takes as long as handling the crash.
    posix._exit(code)


def receive(words: "list[str]", source: KernelPipe, log: Log, began: float) -> int:
    """Handle the crash that the ``words`` of the command line announce, and whose core is in ``source``; return the exit code.

    ``began`` is the monotonic time of the start.
    """
    try:
        crash, problems = command_line.parse_arguments(words)
    except command_line.UsageError as error:
        log.lines.error(f"core lost: {error}")
        return EXIT_USAGE
    if crash.pidfd is not None:
        posix.set_inheritable(crash.pidfd, False)
    mark = start.mark_of_restart()
    if mark is None and is_gone(crash):
        report_gone(crash, problems, log)
        return EXIT_NOT_DELIVERED
    crash.handle = open_pidfd(crash)
    try:
        configuration = read_configuration(is_over=lambda: is_gone(crash))
    except Refused as error:
        log.holder = NOBODYS
        log.lines.refuse(crash, whereabouts_of(crash), str(error))
        return EXIT_NOT_DELIVERED
    configuration.problems = problems + configuration.problems
    if mark is not None:
        began = mark[2]

    def enter() -> slots.Slot:
        kernel_limit = int(procfs.read_path(LIMIT_OF_KERNEL))
        limit = slots.limit_of(configuration.pipe_limit, kernel_limit)
        if mark is None:
            slot = acquire_slot(crash, limit, log)
            # Returns if there is nothing to protect, or no way to. Else the helper re-executes itself: main() runs again.
            crash.unprotected = start.protect_interpreter(crash, source, slot, began, log)
        else:
            slot = slots.resume(mark[0], mark[1], log)
        slot.limit = limit
        if kernel_limit == 0:
            from core_helper import diagnosis

            configuration.problems.append(f"pid={crash.pid}: {diagnosis.NO_LIMIT}")
        return slot

    return handle(crash, source, configuration, log, began, enter)


def is_gone(crash: Crash) -> bool:
    """Tell whether the process is gone: another one that has its number now must not pay for the crash."""
    try:
        if crash.pidfd is not None:
            return not procfs.is_process_of(crash.pidfd, crash.pid)
        posix.stat(f"/proc/{crash.pid}")
    except FileNotFoundError:
        return True
    return False


def report_gone(crash: Crash, problems: "list[str]", log: Log) -> None:
    """Log that the process was killed before anybody could look at it, unless the lines about others are too many already.

    The kernel counts a helper only as long as the process is there. So a container that kills its crashing processes can have
    any number of helpers: these must end at once, and wait for nothing.
    """
    log.holder = NOBODYS
    if not quota.leaves_out_at_once(log.holder):
        from core_helper import diagnosis

        log.lines.refuse(crash, (b"", "-"), f"process {crash.pid} is gone: {diagnosis.of_missing(crash)}")
        for problem in problems:
            log.lines.warning(problem)


def handle(
    crash: Crash,
    source: KernelPipe,
    configuration: Configuration,
    log: Log,
    began: float,
    enter: "Callable[[], slots.Slot]",
) -> int:
    """Bring the core in ``source`` to its destination, whichever way the crash has come in, and return the exit code.

    ``enter`` acquires the slot. It comes first: a container that has too many crashes in flight must not cost more than that.
    """
    _signal.signal(_signal.SIGALRM, give_up)
    # Where cores are kept, writing them to the disk may take as long as a delivery, and a second one may follow.
    deadline.arm(int(configuration.timeout) * (1 if configuration.keep == NEVER else 3))
    code = EXIT_NOT_DELIVERED
    try:
        slot = enter()
        core_helper.load("deliver")
        from core_helper import deliver

        code = deliver.deliver(source, crash, configuration, slot, log, began)
    except (Refused, OSError) as error:
        log.holder = log.holder or NOBODYS
        if not quota.leaves_out(log.holder):
            log.lines.refuse(crash, whereabouts_of(crash), str(error))
    for problem in configuration.problems:
        log.lines.warning(problem)
    if not source.drained and source.release(crash):
        log.lines.warning(f"pid={crash.pid}: killed: it did not end when nobody read its core any more")
    return code


def whereabouts_of(crash: Crash) -> "tuple[bytes, str]":
    """Return name and container of the process for the log, empty where its number may be that of another one by now."""
    found = runtime.whereabouts(crash.pid)
    known = crash.handle is not None and procfs.is_process_of(crash.handle, crash.pid)
    return found if known else (b"", "-")


def open_pidfd(crash: Crash) -> "int | None":
    """Return the kernel's pidfd of the process, or one of the helper's; None where the process is gone."""
    if crash.pidfd is not None:
        return crash.pidfd
    try:
        return linux.pidfd_open(crash.pid)
    except OSError:
        return None


def acquire_slot(crash: Crash, limit: int, log: Log, holder: "Holder | None" = None) -> slots.Slot:
    """Return the slot of ``crash``. If slots cannot be counted, as on a full disk, that is no reason to lose the core."""
    try:
        return slots.acquire(crash, limit, log, holder)
    except OSError as error:
        # Logged now: the helper may execute itself again next, and would forget the error.
        log.lines.warning(f"{slots.FILE}: {error.strerror}: slots are not counted, so containers have no limit")
        return slots.Slot(None, 0)


def give_up(number: int, frame: object) -> "NoReturn":
    """Handle SIGALRM: end a helper that waits for something without a deadline, by raising TimeoutError."""
    raise TimeoutError("the deadline has passed, and the helper was still waiting")
