"""One core on its way: what a destination needs to get it, and what becomes of a copy that the host has of it."""

import posix
import time

from core_helper import joining, key, supervisor
from core_helper.child import Child, Result
from core_helper.configuration import ALWAYS, FALLBACK_VARIABLE, NEVER, Configuration
from core_helper.crash import Crash, Refused
from core_helper.deadline import Deadline
from core_helper.process import FACTS, FaultingProcess
from core_helper.words import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NoReturn

    from core_helper.custody import Custody
    from core_helper.log import Log
    from core_helper.slots import Slot
    from core_helper.source import KernelPipe, Source

TAKEN, ABSENT, FAILED = "taken", "absent", "failed"
NO_SECOND = "no process enters the container where one hangs already"


class Outcome:
    """What came of a destination: ``kind`` is TAKEN, ABSENT or FAILED.

    ``reason`` says why the core was not taken, "" where that need not be said. ``delivered`` says, if the core was taken,
    whether all of it has arrived.
    """

    def __init__(self, kind: str, reason: str = "", delivered: bool = False) -> None:
        """Keep ``kind``, ``reason`` and ``delivered``."""
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
        return self.kernel.stream() if self.custody is None else self.custody.source.stream(self.end)

    @property
    def plan(self) -> joining.Plan:
        """What a child needs to enter the container, opened for the first child. Raises Refused or OSError."""
        if self._plan is None:
            self._plan = joining.prepare(self.process, self.crash.interpreter)
        return self._plan

    def run(self, steps: "Callable[[Child], NoReturn]", stays: bool = False) -> "Result":
        """Give the core to a child that takes the ``steps`` in the container, and return how that went; see Child.

        Raises Refused where the child has found that the core must go nowhere. Starts none after one that could not be ended:
        a slot counts for one such process.
        """
        plan, process = self.plan, self.process
        if self.hanging:
            result = Result()
            result.failure = NO_SECOND
            return result
        while True:
            child = Child(self.source, plan.groups, steps, stays)
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
            elif result.crowded and not plan.late and not may_be_traced(process):
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
            kept = custody.begin(self.crash, self.process, self.configuration)
        except store.Unusable as error:
            self.configuration.problems.append(f"pid={self.crash.pid}: {error}")
            return
        kept.write(self.kernel, self.deadline.at)
        self.custody = kept
        if self.configuration.release_kept and self.let_go("not delivered yet"):
            self.slot.give_back()
        else:
            self.announce(kept)
            if kept.late:
                # Nobody reads on, or the kernel would go on for as long as the process has memory.
                self.kernel.release(self.crash)
        self.deadline = self.deadline.again()

    def announce(self, kept: "Custody") -> None:
        """Have the core stay if this helper is killed during the delivery, as the host may do when its memory ends."""
        try:
            kept.announce({**self.known(kept, "its helper was killed"), "delivered": False})
        except OSError:
            pass  # Then it does not stay.

    def conclude(self, target: bytes, result: "Result", reason: str = "") -> "Outcome":
        """Write the line about a destination that was given the core, and return what came of it.

        A core of which the host has a copy is not lost by a destination that has read a part of it: the next one gets it all.
        """
        if self.custody is not None and not self.custody.is_all():
            result.notes.append(
                f"only {self.custody.size} bytes of it went to the disk of the host: {self.custody.stopped}"
            )
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

    def defaults(self) -> "dict[bytes, bytes]":
        """Return the variables that the delegate gets from the engine's record where the process lacks them.

        They were meant for the container's own programs. So a process that has confined itself, or has made a container or
        a root directory of its own within, gets none.
        """
        process = self.process
        if process.confined or not process.record.shared or self.plan.root != b"/":
            return {}
        known = process.record.environment
        return {name: known[name] for name in self.configuration.container_environment if name in known}

    def end(self) -> None:
        """Delete the core from the disk of the host, where it was taken, unless all cores are kept."""
        if self.configuration.keep != ALWAYS or not self.keep("all cores are kept", True):
            self.forget()

    def seal(self, reason: str, delivered: bool = False) -> bool:
        """Have the core stay on the disk of the host if it is there, and tell whether it is listed; ``reason`` says why.

        The sender leaves a core alone that was ``delivered``. Where only the note about it fails, as with a lock that is
        busy, the core stays as it is: whoever looks at the store after this helper lists it.
        """
        kept = self.custody
        if kept is None:
            return False
        try:
            kept.seal({**self.known(kept, reason), "delivered": delivered})
        except FileNotFoundError:
            self.log.lines.warning(f"pid={self.crash.pid}: {kept.store.path}: somebody has deleted the core: not kept")
            return False
        except OSError as error:
            self.announce(kept)
            self.log.lines.warning(
                f"pid={self.crash.pid}: {kept.store.path}: {error.strerror}: the core stays there and is not listed yet:"
                " docker_core_helper cores list"
            )
            return False
        return True

    def keep(self, reason: str, delivered: bool = False) -> bool:
        """Seal the core for good, write the line about that, and tell whether it stays."""
        kept = self.custody
        if kept is None:
            return False
        if not self.seal(reason, delivered):
            return not delivered and kept.is_there()
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
        self.hanging = self.process.keep_environ(time.monotonic() + supervisor.ENVIRON_PATIENCE)
        if self.hanging:
            self.slot.keep_for(self.hanging)
        self.kernel.release(self.crash)
        return True

    def begins_again(self, reason: str) -> bool:
        """Let the process go, and tell whether that was done and another try could deliver all of the core.

        No destination takes a core that was cut off.
        """
        kept = self.custody
        if kept is None or kept.truncated() or not self.let_go(reason):
            return False
        self.deadline = self.deadline.again()
        return self.rewind()

    def forget(self) -> None:
        """Delete the core from the disk of the host."""
        if self.custody is not None:
            self.custody.drop()


class Stuck(Refused):
    """No process of ours could enter the container in time, or come back from there. No other one is sent after it."""


def may_be_traced(process: FaultingProcess) -> bool:
    """Tell whether the container of ``process`` could trace a process of ours; see tracing.py."""
    from core_helper import tracing  # Rarely asked.

    return tracing.may_be_traced(process)


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
