"""A crash on its way through the other modules: examined, given to the delegate, to the core file, or to the host's handler."""

import _signal
import posix

from core_helper import container, joining, membership, slots, supervisor, verification
from core_helper.child import Child
from core_helper.configuration import CONFIGURATION, FALLBACK_VARIABLE, Configuration
from core_helper.crash import Crash, Refused
from core_helper.process import FaultingProcess, Withheld
from core_helper.words import encode, expand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NoReturn

    from core_helper.child import Result
    from core_helper.journal import Journal

    Log = Callable[[], Journal]

EXIT_OK, EXIT_NOT_DELIVERED = 0, 1
NO_DELEGATE = (
    f"no delegate is configured: name one in kernel.core_pattern, or by DOCKERCOREHELPER_DELEGATE in {CONFIGURATION}"
)


def handle(
    core: int,
    crash: Crash,
    configuration: Configuration,
    slot: slots.Slot,
    log: "Log",
    began: float,
) -> int:
    """Bring the core that is read from ``core`` to where it belongs, tell the ``log``, and return the exit code.

    ``slot`` is held meanwhile, ``began`` is the monotonic time of the start. Raises Refused or OSError where the core must not
    be delegated, or the process cannot be told.
    """
    process = examine(crash, configuration, slot, log)
    process.hostname = container.hostname_of(process)
    plan = joining.prepare(process)

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
    failure, absent, asked = NO_DELEGATE, True, False
    words = crash.delegate or [expand(word, specifiers(crash, process)) for word in configuration.delegate]
    if words:
        facts = facts_of(crash, process)
        result = attempt(lambda child: joining.execute(plan, words, facts, child))
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
        hand_on(crash, process, configuration, slot, log)
    asked = asked or configuration.fallback or FALLBACK_VARIABLE in posix.environ
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


def examine(crash: Crash, configuration: Configuration, slot: slots.Slot, log: "Log") -> FaultingProcess:
    """Return the process whose core is to be delegated; that of a process of the host goes to the handler the host had.

    Raises Refused or OSError like verification.examine.
    """
    refusal = None
    try:
        process = verification.examine(crash)
        membership.check(process)
        process.close_task()
        if crash.exposed and process.traceable:
            raise Withheld(
                f"its container may have CAP_SYS_PTRACE, and could overwrite the helper's interpreter: {crash.exposed}",
                process,
            )
    except verification.Missing as error:
        from core_helper import diagnosis

        raise Refused(f"{error}: {diagnosis.of_missing(crash)}") from None
    except Withheld as error:
        # Not for a delegate; but the handler of the host is root's, and has always looked after such processes itself.
        process, refusal = error.process, error
    if crash.signal is None:
        crash.signal = process.signal
    # A container's crash pays but this comparison: its pid namespace is another one.
    if configuration.chain and not any(name == "pid" for name, _, _ in process.namespaces):
        from core_helper import runtime

        if runtime.is_of_the_host(process) or (refusal is not None and refusal.of_the_host):
            hand_on(crash, process, configuration, slot, log)
    if refusal is not None:
        raise refusal
    return process


def hand_on(
    crash: Crash,
    process: FaultingProcess,
    configuration: Configuration,
    slot: slots.Slot,
    log: "Log",
) -> None:
    """Become the handler that the host had before; return if that cannot be."""
    from core_helper import previous_handler

    for problem in configuration.problems:
        log().warning(problem)
    configuration.problems = []
    # That handler has its own deadlines, or none.
    slot.leave()
    _signal.alarm(0)
    process.hostname = container.hostname_of(process)
    previous_handler.hand_on(crash, process, configuration.chain, log())


def specifiers(crash: Crash, process: FaultingProcess) -> "dict[str, bytes]":
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


def facts_of(crash: Crash, process: FaultingProcess) -> "dict[bytes, bytes]":
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
        b"CORE_NODE": encode(posix.uname().nodename),
        b"CORE_CONTAINER_ID": process.container_id.encode(),
    }
