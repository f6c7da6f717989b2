"""Looks at the faulting process, chooses destinations for its core, and tries each of them in order.

The method ``attempt`` of a destination returns an Outcome: the destination has taken the core, or is absent, or has failed
without taking anything, so that the next one gets the whole core. The first destination that takes the core is the last one
that is tried.
"""

import _signal
import posix

from core_helper import container, joining, key, membership, runtime, supervisor, unwanted, verification
from core_helper.child import Child, Result
from core_helper.configuration import ALWAYS, CONFIGURATION, FALLBACK_VARIABLE, NEVER, Configuration
from core_helper.crash import Crash, Refused
from core_helper.deadline import Deadline
from core_helper.process import FACTS, FaultingProcess, Withheld
from core_helper.words import encode, expand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NoReturn, Protocol

    from core_helper.custody import Custody
    from core_helper.log import Log
    from core_helper.slots import Slot
    from core_helper.source import KernelPipe, Source

    class Destination(Protocol):
        """Where a core may go.

        ``only_if_absent``: it is tried only if all before it were absent, not if one has failed. ``secured``: it gets the core
        from the host's disk, if the administrator wants cores to be kept.
        """

        only_if_absent: bool
        secured: bool

        def attempt(self, delivery: "Delivery", reason: str) -> "Outcome":
            """Try to give the core of ``delivery`` away; ``reason`` says why no destination before has taken the core.

            A destination that takes the core also writes the line of the log.
            """


EXIT_OK, EXIT_NOT_DELIVERED = 0, 1
TAKEN, ABSENT, FAILED = "taken", "absent", "failed"
NO_SECOND = "no process enters the container where one hangs already"
NO_DELEGATE = (
    f"no delegate is configured: name one in kernel.core_pattern, or by DOCKERCOREHELPER_DELEGATE in {CONFIGURATION}"
)


class Outcome:
    """What came of a destination: ``kind`` is TAKEN, ABSENT or FAILED.

    ``reason`` says why the core was not taken, "" where that need not be said. ``delivered`` says, if the core was taken,
    whether all of it has arrived.
    """

    def __init__(self, kind: str, reason: str = "", delivered: bool = False) -> None:
        """Take the three."""
        self.kind = kind
        self.reason = reason
        self.delivered = delivered


class Delivery:
    """One core on its way: where it comes from, whose it is, what the administrator wants, and by when."""

    def __init__(
        self,
        source: "KernelPipe",
        crash: Crash,
        process: FaultingProcess,
        configuration: Configuration,
        slot: "Slot",
        log: "Log",
        began: float,
    ) -> None:
        """Take what is known; ``began`` is the monotonic time of the helper's start."""
        self.kernel = source
        # The core in the store of the host, once it is there. ``secured`` says whether that was tried.
        self.custody: Custody | None = None
        self.secured = False
        self.crash = crash
        self.process = process
        self.configuration = configuration
        self.slot = slot
        self.log = log
        self.began = began
        # Where cores are kept, writing them to the disk may take as long as a delivery, and a second one may follow.
        after = 0.0 if configuration.keep == NEVER else 2 * configuration.timeout
        self.deadline = Deadline(
            began, configuration.timeout, configuration.timeout_max, lambda: self.slot.are_short(), after
        )
        # Whether the fallback file is wanted: by the configuration, or by the helper's own environment. That of the faulting
        # process may ask for it, too; only a child reads that.
        self.wants_file = configuration.fallback or FALLBACK_VARIABLE in posix.environ
        self.knows_environment = False
        # The pid of a child that not even SIGKILL has ended, 0 if there is none.
        self.hanging = process.visits.hanging
        self._plan: joining.Plan | None = None

    @property
    def source(self) -> "Source":
        """Where the destinations read the core."""
        return self.kernel if self.custody is None else self.custody.source

    def rewind(self) -> bool:
        """Have the next destination read from the start; return False if an earlier one has read what comes but once."""
        return self.custody is None or self.custody.source.rewind()

    def stream(self) -> int:
        """Return a pipe for a program that takes the helper's place, and with it the core."""
        return self.kernel.descriptor if self.custody is None else self.custody.source.stream(self.end)

    @property
    def plan(self) -> joining.Plan:
        """What a child needs to enter the container, opened for the first child. Raises Refused or OSError."""
        if self._plan is None:
            self._plan = joining.prepare(self.process)
        return self._plan

    def run(self, steps: "Callable[[Child], NoReturn]") -> "Result":
        """Give the core to a child that takes the ``steps`` in the container, and return how that went.

        Raises Refused where the child has found that the core must go nowhere. Starts none after one that could not be ended:
        a slot counts for one such process.
        """
        plan, process = self.plan, self.process
        if self.hanging:
            result = Result()
            result.failure = NO_SECOND
            return result
        while True:
            child = Child(self.source, plan.groups, steps)
            result = supervisor.supervise(
                self.source,
                child,
                process,
                self.deadline,
                lambda line: self.log.lines.output(self.crash, process, line),
            )
            self.hanging = child.left()
            if self.hanging:
                self.slot.keep_for(self.hanging)
                text = f"pid {self.hanging} hangs in the container, and its slot stays taken"
                if result.started:
                    result.notes.append(text)
                else:
                    result.failure = f"{result.failure}; {text}"
                break
            if result.mute and process.environ_file is not None:
                # The memory of the process does not answer: try again, without the environment.
                process.environ_file = None
            elif result.crowded and not plan.late and not _may_be_traced(process):
                # The container is at its limit of processes: try again, and leave the group that counts them for the last
                # fork, which that group cannot forbid then. Not where the container could trace a process of ours meanwhile.
                plan.groups.prepare_to_leave()
                plan.late = True
            else:
                break
        if result.refused:
            raise Refused(str(result.failure))
        if result.stuck and not result.started:
            raise Stuck(str(result.failure))
        return result

    def secure(self) -> None:
        """Write the core to the disk of the host, if the administrator wants that. The destinations get it from there."""
        if self.secured or self.configuration.keep == NEVER:
            return
        self.secured = True
        from core_helper import custody, store

        try:
            kept = custody.take(self.crash, self.process, self.configuration)
        except store.Unusable as error:
            self.configuration.problems.append(f"pid={self.crash.pid}: {error}")
            return
        kept.write(self.kernel, self.deadline.at)
        self.custody = kept
        if self.configuration.release_kept:
            self.let_go("not delivered yet")
        elif kept.late:
            # Nobody reads on, or the kernel would go on for as long as the process has memory.
            self.kernel.release(self.crash)
        self.deadline = self.deadline.again()

    def conclude(self, target: bytes, result: "Result", reason: str = "") -> "Outcome":
        """Write the line about a destination that was given the core, and return what came of it.

        A core of which the host has a copy is not lost by a destination that has read a part of it: the next one gets it all.
        """
        delivered = self.log.lines.conclude(self.crash, self.process, target, result, self.began, reason)
        if self.custody is None or (result.complete and not result.failure and not result.cut) or delivered:
            return Outcome(TAKEN, delivered=delivered)
        failure = result.failure or ("the core was cut off" if result.complete else "it stopped reading")
        return Outcome(FAILED, f"{target.decode('utf-8', 'backslashreplace')}: {failure}")

    def facts(self) -> "dict[bytes, bytes]":
        """Return the variables that tell the delegate about the crash and, if the host has the core, about the core."""
        facts = facts_of(self.crash, self.process)
        if self.custody is not None:
            facts.update(self.custody.facts())
        return facts

    def end(self) -> None:
        """Delete the core from the disk of the host, where it was taken, unless all cores are kept."""
        if self.configuration.keep != ALWAYS or not self.keep("all cores are kept"):
            self.forget()

    def seal(self, reason: str) -> bool:
        """Have the core stay on the disk of the host if it is there, and tell whether it does; ``reason`` says why."""
        kept = self.custody
        if kept is None:
            return False
        try:
            kept.seal(self.known(kept, reason))
        except OSError as error:
            self.log.lines.warning(f"pid={self.crash.pid}: {kept.store.path}: {error.strerror}: not kept")
            self.forget()
            return False
        return True

    def keep(self, reason: str) -> bool:
        """Seal the core for good, write the line about that, and tell whether it stays."""
        kept = self.custody
        if kept is None or not self.seal(reason):
            return False
        self.log.lines.keep(self.crash, self.process, kept, reason)
        try:
            kept.finish_later(self.kernel, self.crash)
        except OSError:
            pass  # Neither compressed nor with a checksum.
        return True

    def known(self, kept: "Custody", reason: str) -> "dict[str, object]":
        """Return what is known of the core, for its JSON file."""
        return {
            "key": kept.key,
            "group": kept.group_name,
            "size": kept.size,
            "truncated": kept.truncated(),
            "reason": reason,
            "facts": {name.decode(): value.decode("utf-8", "backslashreplace") for name, value in self.facts().items()},
        }

    def let_go(self, reason: str) -> bool:
        """Let the process end before its core is delivered, once the core is safe; return whether that was done now."""
        kept = self.custody
        if kept is None or not kept.is_all() or self.hanging or self.kernel.closed or not self.seal(reason):
            return False
        self.process.keep_environ()
        self.kernel.release(self.crash)
        self.deadline = self.deadline.again()
        return True

    def begins_again(self, reason: str) -> bool:
        """Let the process go, and tell whether that was done and another try could deliver all of the core.

        No destination takes a core that was cut off.
        """
        kept = self.custody
        return kept is not None and not kept.truncated() and self.let_go(reason) and self.rewind()

    def forget(self) -> None:
        """Delete the core from the disk of the host."""
        if self.custody is not None:
            self.custody.drop()


class Stuck(Refused):
    """No process of ours could enter the container in time, or come back from there. No other one is sent after it."""


def _may_be_traced(process: FaultingProcess) -> bool:
    from core_helper import tracing  # Rarely asked.

    return tracing.may_be_traced(process)


def deliver(
    source: "KernelPipe", crash: Crash, configuration: Configuration, slot: "Slot", log: "Log", began: float
) -> int:
    """Bring the core in ``source`` to its destination, write its line into the ``log``, and return the exit code.

    The ``slot`` is held until the end, ``began`` is the monotonic time of the start. Raises Refused or OSError where the core
    must go nowhere, or nobody knows whose it is.
    """
    process, refusal = look(crash, slot)
    if crash.signal is None:
        crash.signal = process.signal
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
    except (Stuck, OSError) as error:
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
    if crash.unprotected and _may_be_traced(process):
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
    if configuration.chain and configuration.chain_containers and not of_the_host:
        destinations.append(PreviousHandler(only_if_absent=True))
    destinations.append(CoreFile())
    return destinations


class NoDestination:
    """Stands for a delegate where there is none to try: nobody wants the core, or none is configured."""

    only_if_absent = False
    secured = False

    def __init__(self, reason: str) -> None:
        """Take why."""
        self.reason = reason

    def attempt(self, delivery: Delivery, reason: str) -> Outcome:
        """Say why."""
        return Outcome(ABSENT, self.reason)


class Bounds:
    """Stands before the delegate where the administrator has set bounds, and takes a core that is beyond one of them."""

    only_if_absent = False
    secured = False

    def attempt(self, delivery: Delivery, reason: str) -> Outcome:
        """Say that the core is beyond a bound, once for each program; or else leave it to the next destination."""
        from core_helper import bounds  # Most hosts have none.

        process, configuration = delivery.process, delivery.configuration
        length = bounds.announced_length(delivery.kernel.descriptor) if configuration.size_max else None
        if length is not None and length > configuration.size_max:
            told = f"not wanted: it has {length} bytes, and DOCKERCOREHELPER_SIZE_MAX is {configuration.size_max}"
            delivery.log.lines.drop(delivery.crash, process, told, True)
            return Outcome(TAKEN, delivered=True)
        most, seconds = configuration.burst
        process.left_out, beyond = bounds.left_out(process, most, seconds) if most else (0, 0)
        if beyond == 1:
            told = (
                f"not wanted: DOCKERCOREHELPER_BURST allows {most} cores of this program in {seconds} s; more are left out,"
                " and the line of the next one tells how many"
            )
            delivery.log.lines.drop(delivery.crash, process, told, True)
        return Outcome(TAKEN, delivered=True) if beyond else Outcome(ABSENT)


class Delegate:
    """The program in the container, ``words``."""

    only_if_absent = False
    secured = True

    def __init__(self, words: "list[bytes]") -> None:
        """Take its command line."""
        self.words = words

    def attempt(self, delivery: Delivery, reason: str) -> Outcome:
        """Start the program and give it the core. It has taken the core as soon as it has read from it."""
        facts = delivery.facts()
        facts[b"CORE_TIMEOUT"] = b"%d" % delivery.deadline.left()
        plan, words = delivery.plan, self.words
        result = delivery.run(lambda child: joining.execute_delegate(plan, words, facts, child))
        delivery.wants_file = delivery.wants_file or result.fallback
        delivery.knows_environment = True
        if result.started and not (result.untouched and result.failure):
            return delivery.conclude(words[0], result)
        failure = str(result.failure)
        if result.untouched:
            failure = f"{words[0].decode('utf-8', 'backslashreplace')}: {failure} before it read a byte"
        return Outcome(ABSENT if result.absent else FAILED, failure)


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
        result = delivery.run(lambda child: fallback.write(plan, path, wanted, child, bound))
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


def facts_of(crash: Crash, process: FaultingProcess) -> "dict[bytes, bytes]":
    """Return the variables that tell the delegate about the crash; docs/images.md has their table."""
    known = process.record.facts
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
        **{name: known.get(name, b"") for name in FACTS},
        b"CORE_KEY": key.key_of(crash, process).encode(),
    }
