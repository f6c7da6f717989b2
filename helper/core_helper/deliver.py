"""Looks at the faulting process, chooses destinations for its core, and tries each of them in order.

The method ``attempt`` of a destination returns an Outcome: the destination has taken the core, or is absent, or has failed
without taking anything, so that the next one gets the whole core. The first destination that takes the core is the last one
that is tried.
"""

import _signal

from core_helper import container, joining, membership, runtime, unwanted, verification
from core_helper.command_line import EXIT_NOT_DELIVERED, EXIT_OK
from core_helper.configuration import CONFIGURATION, Configuration
from core_helper.crash import Crash, Refused
from core_helper.delivery import ABSENT, FAILED, TAKEN, Delivery, Outcome, Stuck, may_be_traced
from core_helper.process import FaultingProcess, Withheld
from core_helper.slots import TooMany
from core_helper.words import expand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from core_helper.lent import Lent
    from core_helper.log import Log
    from core_helper.slots import Slot
    from core_helper.source import KernelPipe

    class Destination(Protocol):
        """Where a core may go.

        ``only_if_absent``: it is tried only if all before it were absent, not if one has failed. ``secured``: it gets the core
        from the host's disk, if the administrator wants cores to be kept.
        """

        only_if_absent: bool
        secured: bool

        def attempt(self, delivery: Delivery, reason: str) -> Outcome:
            """Try to give the core of ``delivery`` away; ``reason`` says why no destination before has taken the core.

            A destination that takes the core also writes the line of the log.
            """


NO_DELEGATE = (
    f"no delegate is configured: name one in kernel.core_pattern, or by DOCKERCOREHELPER_DELEGATE in {CONFIGURATION}"
)


def deliver(
    source: "KernelPipe", crash: Crash, configuration: Configuration, slot: "Slot", log: "Log", began: float
) -> int:
    """Bring the core in ``source`` to its destination, write its line into the ``log``, and return the exit code.

    The ``slot`` is held until the end, ``began`` is the monotonic time of the start. Raises Refused or OSError where the core
    must go nowhere, or nobody knows whose it is.
    """
    process, refusal = look(crash, slot)
    process.hostname = container.hostname_of(process)
    delivery = Delivery(source, crash, process, configuration, slot, log, began)
    reasons: list[str] = []
    absent = True
    failed: Destination | None = None
    try:
        for destination in choose(delivery, refusal):
            if destination.only_if_absent and not absent:
                continue
            if destination.secured:
                delivery.secure()
            if not delivery.rewind():
                break
            outcome = destination.attempt(delivery, "; ".join(reasons))
            if outcome.kind == TAKEN:
                delivery.end()
                return EXIT_OK if outcome.delivered else EXIT_NOT_DELIVERED
            if outcome.kind == FAILED:
                absent, failed = False, failed or destination
            if outcome.reason:
                reasons.append(outcome.reason)
        if failed is not None and delivery.begins_again("; ".join(reasons)):
            # A second chance: the memory of the process is free now, and its container may have others that live on.
            outcome = failed.attempt(delivery, "; ".join(reasons))
            if outcome.kind == TAKEN:
                delivery.end()
                return EXIT_OK if outcome.delivered else EXIT_NOT_DELIVERED
            reasons.append(f"again without the process: {outcome.reason}")
    except (Stuck, TooMany, OSError) as error:
        if not delivery.keep(str(error)):
            raise
        return EXIT_NOT_DELIVERED
    except Refused:
        # What was refused is never kept.
        delivery.forget()
        raise
    if refusal is not None:
        raise refusal
    if not delivery.keep("; ".join(reasons)):
        log.lines.drop(crash, process, "; ".join(reasons), absent)
    return EXIT_OK if absent else EXIT_NOT_DELIVERED


def look(crash: Crash, slot: "Slot") -> "tuple[FaultingProcess, Withheld | None]":
    """Return the process that ``crash`` names, verified, and why its core must go to no program of a container, or None.

    Changes nothing, but the ``slot`` counts for a child that hangs in the mounts of a container. Raises Refused where this is
    not the process, OSError where it went away.
    """
    try:
        process = verification.examine(crash)
        try:
            membership.check(process)
        finally:
            if process.visits.hanging:
                slot.keep_for(process.visits.hanging)
        process.close_task()
    except verification.Missing as error:
        from core_helper import diagnosis

        raise Refused(f"{error}: {diagnosis.of_missing(crash)}") from None
    except Withheld as error:
        return error.process, error
    if crash.unprotected and may_be_traced(process):
        text = (
            f"its container may have CAP_SYS_PTRACE, and could overwrite the helper's interpreter: {crash.unprotected}"
        )
        return process, Withheld(text, process)
    return process, None


def choose(delivery: Delivery, refusal: "Withheld | None") -> "list[Destination]":
    """Return the destinations for the core, in the order in which they are tried.

    A core with a ``refusal`` must go to no program of a container and into no file. But the previous handler belongs to root,
    and it has always handled such processes of the host.
    """
    crash, process, configuration = delivery.crash, delivery.process, delivery.configuration
    destinations: list[Destination] = []
    of_the_host = (refusal is not None and refusal.of_the_host) or runtime.is_of_the_host(process)
    if configuration.chain and of_the_host:
        destinations.append(PreviousHandler(only_if_absent=False))
    if refusal is not None:
        return destinations
    reason = unwanted.reason_of(crash, process, configuration)
    if reason:
        return [*destinations, NoDestination(reason)]
    if configuration.size_max or configuration.burst[0]:
        destinations.append(Bounds())
    words = crash.delegate or [expand(word, specifiers(crash, process)) for word in configuration.delegate]
    destinations.append(Delegate(words) if words else NoDestination(NO_DELEGATE))
    if configuration.lend and process.in_container() and not of_the_host:
        destinations.append(LentProgram(configuration.lend, specifiers(crash, process)))
    if configuration.chain and configuration.chain_containers and not of_the_host:
        destinations.append(PreviousHandler(only_if_absent=True))
    destinations.append(CoreFile())
    return destinations


class NoDestination:
    """Stands for a delegate where there is none to try: nobody wants the core, or none is configured."""

    only_if_absent = False
    secured = False

    def __init__(self, reason: str) -> None:
        """Take the ``reason``, for the log."""
        self.reason = reason

    def attempt(self, delivery: Delivery, reason: str) -> Outcome:
        """Return that reason."""
        return Outcome(ABSENT, self.reason)


class Bounds:
    """Stands before the delegate where the administrator has set bounds, and takes a core that is beyond one of them."""

    only_if_absent = False
    secured = False

    def attempt(self, delivery: Delivery, reason: str) -> Outcome:
        """Say that the core is beyond a bound, once for each program; or else leave it to the next destination."""
        from core_helper import bounds  # Most hosts have none.

        process, configuration = delivery.process, delivery.configuration
        length = delivery.kernel.announced_length() if configuration.size_max else None
        if length is not None and length > configuration.size_max:
            text = f"not wanted: it has {length} bytes, and DOCKERCOREHELPER_SIZE_MAX is {configuration.size_max}"
            delivery.log.lines.drop(delivery.crash, process, text, True)
            return Outcome(TAKEN, delivered=True)
        most, seconds = configuration.burst
        process.left_out, beyond = bounds.left_out(process, most, seconds) if most else (0, 0)
        if beyond == 1:
            text = (
                f"not wanted: DOCKERCOREHELPER_BURST allows {most} cores of this program in {seconds} s; more are left out,"
                " and the line of the next one tells how many"
            )
            delivery.log.lines.drop(delivery.crash, process, text, True)
        return Outcome(TAKEN, delivered=True) if beyond else Outcome(ABSENT)


class Delegate:
    """The program in the container, ``words``."""

    only_if_absent = False
    secured = True

    def __init__(self, words: "list[bytes]") -> None:
        """Take its command line."""
        self.words = words
        self.name = words[0]
        self.lent: Lent | None = None

    def attempt(self, delivery: Delivery, reason: str) -> Outcome:
        """Start the program and give it the core. It has taken the core as soon as it has read from it."""
        facts = delivery.facts()
        facts[b"CORE_TIMEOUT"] = b"%d" % delivery.deadline.left()
        plan, words, lent, defaults = delivery.plan, self.words, self.lent, delivery.defaults()
        result = delivery.run(lambda child: joining.execute_delegate(plan, words, defaults, facts, child, lent))
        delivery.wants_file = delivery.wants_file or result.fallback
        delivery.knows_environment = True
        if result.started and not (result.untouched and result.failure):
            return delivery.conclude(self.name, result)
        failure = str(result.failure)
        if result.untouched:
            failure = f"{self.name.decode('utf-8', 'backslashreplace')}: {failure} before it read a byte"
        return Outcome(ABSENT if result.absent else FAILED, failure)


class LentProgram(Delegate):
    """A program of the host, for a container that has none of its own."""

    only_if_absent = True

    def __init__(self, words: "list[bytes]", values: "dict[str, bytes]") -> None:
        """Take its command line, and what the specifiers there stand for."""
        super().__init__(words)
        self.name = b"lent " + words[0]
        self.values = values

    def attempt(self, delivery: Delivery, reason: str) -> Outcome:
        """Give a copy of the program the core, in the container, as a delegate."""
        from core_helper import lent  # Most hosts lend none.

        self.lent = lent.Lent(self.values)
        return super().attempt(delivery, reason)


class CoreFile:
    """The fallback file, where the process sees that path."""

    only_if_absent = False
    secured = True

    def attempt(self, delivery: Delivery, reason: str) -> Outcome:
        """Write the file if the administrator wants it, or the environment of the process asks for it."""
        wanted = delivery.wants_file
        if not wanted and delivery.knows_environment:
            return Outcome(ABSENT)
        from core_helper import fallback

        crash, plan, bound = delivery.crash, delivery.plan, delivery.configuration.fallback_max
        path = fallback.path_of(crash.pid, crash.uid, crash.gid)
        result = delivery.run(lambda child: fallback.write(plan, path, wanted, child, bound), stays=True)
        if result.started:
            return delivery.conclude(path, result, reason)
        return Outcome(ABSENT) if result.absent else Outcome(FAILED, str(result.failure))


class PreviousHandler:
    """The handler that the host had before the helper came."""

    def __init__(self, only_if_absent: bool) -> None:
        """Take whether it comes after a delegate, and then only where there is no delegate.

        The cores of the host's own processes go to it as they always did: unkept.
        """
        self.only_if_absent = only_if_absent
        self.secured = only_if_absent

    def attempt(self, delivery: Delivery, reason: str) -> Outcome:
        """Become that handler; return only if that fails."""
        from core_helper import previous_handler

        for problem in delivery.configuration.problems:
            delivery.log.lines.warning(problem)
        delivery.configuration.problems = []
        # That handler has deadlines of its own, or none.
        record, left = delivery.slot.release(), _signal.alarm(0)
        previous_handler.execute(
            delivery.stream(),
            delivery.crash,
            delivery.process,
            delivery.configuration.chain,
            delivery.log,
        )
        delivery.kernel.end_stream()
        _signal.alarm(left)
        delivery.slot.reclaim(record)
        # The log already has a line that says why, and the core is whole.
        return Outcome(ABSENT)


def specifiers(crash: Crash, process: FaultingProcess) -> "dict[str, bytes]":
    """Return what each specifier in the words of the configured delegate stands for; the names are those of core(5).

    Only in ``%E`` each ``/`` is replaced. In previous_handler.py it is in other values, too: they become parts of a path.
    """
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
