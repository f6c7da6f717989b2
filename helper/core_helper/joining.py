"""The delegate: finding the program inside the container, and executing it.

Two processes run here. The *joining* process enters the container with the helper's privileges, gives them away step by step
and opens the delegate as the target user. Only then it forks the one that appears in the container's pid namespace: no process
of the container ever sees one of ours that has more privilege than the process that crashed.

Between fork and exec nothing may be looked up by a path except the delegate itself: no import, no name of a user, no locale,
since from ``enter_root`` on every path is the container's (CVE-2022-28657).
"""

import posix
import sys

from core_helper import container, linux, privileges, start
from core_helper.configuration import FALLBACK_VARIABLE
from core_helper.crash import Refused
from core_helper.program import Absent, Program, Stopped, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from core_helper.child import Child
    from core_helper.process import FaultingProcess


class Plan:
    """All that the joining process needs, opened and prepared on the host."""

    def __init__(
        self,
        process: "FaultingProcess",
        groups: container.ControlGroups,
        label: privileges.Label,
        interpreter: "tuple[int, int] | None",
    ) -> None:
        """Take the process to become; ``interpreter`` is device and inode of the helper's own, never to be executed."""
        self.process = process
        self.groups = groups
        self.label = label
        self.interpreter = interpreter


def prepare(process: "FaultingProcess") -> "Plan":
    """Open what will be joined. Raises Refused where that cannot be done in full."""
    privileges.check(process)
    interpreter = None
    if process.in_container():
        # Outside of containers the delegate may well be a script for the same Python.
        interpreter = identity(posix.stat("/proc/self/exe"))
    return Plan(process, container.open_control_groups(process), privileges.Label(process), interpreter)


class Crowded(Stopped):
    """The container has reached its pids.max, and the way in needs one more process."""


class Reporter:
    """Tells the supervisor over the error pipe how far the child got.

    Lines: ``environ`` when the variables of the process were read, ``environ fallback`` where they ask for the core file;
    ``pid N``, ``note TEXT``, ``ready``, ``absent TEXT``, ``crowded TEXT``, ``failed TEXT``, ``refused TEXT``.
    """

    def __init__(self, pipe: int) -> None:
        """Take the writing end, close-on-exec: its end without a failure means that the delegate was executed."""
        self.pipe = pipe
        self.step = "start"

    def send(self, kind: str, text: str) -> None:
        """Write one line, of at most PIPE_BUF bytes so that lines of two processes do not mix; pipe(7)."""
        line = f"{kind} {text}".encode("utf-8", "backslashreplace").replace(b"\n", b"\\n")[:4000]
        posix.write(self.pipe, line + b"\n")


def lock_interpreter() -> None:
    """Make Python unable to load code or to open files on its own: from here on the paths are the container's."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    # sys.path_importer_cache stays: without finders nobody asks it, and to free it costs as much as a fork.


def run_child(reporter: Reporter, steps: "list[tuple[str, object]]") -> "NoReturn":
    """Do ``steps``, pairs of a name and a callable, in order and end this process; the first failure is reported.

    Nothing is raised out of here: Python would open source files, by now the container's, to print a traceback.
    """
    try:
        lock_interpreter()
        for name, action in steps:
            reporter.step = name
            action()  # type: ignore[operator]
    except Absent as error:
        reporter.send("absent", str(error))
    except Crowded as error:
        reporter.send("crowded", f"{reporter.step}: {error}")
    except Refused as error:
        reporter.send("refused", str(error))
    except Stopped as error:
        reporter.send("failed", f"{reporter.step}: {error}")
    except OSError as error:
        reporter.send("failed", f"{reporter.step}: {error.strerror}")
    except BaseException as error:
        reporter.send("failed", f"{reporter.step}: {type(error).__name__}: {error}")
    finally:
        posix._exit(1)


def entry_steps(plan: "Plan", reporter: Reporter) -> "list[tuple[str, object]]":
    """Return the steps from the host, with all privileges, to the process's view with its privileges; the order matters."""
    process = plan.process

    def take_over_limits() -> None:
        # Files of the host's /proc are written here, so this comes before the mount namespace.
        for failure in privileges.take_over_scheduling(process):
            reporter.send("note", failure)
        privileges.raise_hard_limits(process)

    return [
        ("open label", plan.label.open),
        ("take over scheduling", take_over_limits),
        ("join namespaces", lambda: container.join_namespaces(process)),
        # Ids before the user namespace, capabilities after it: joining gives a full set of them.
        ("take over ids", lambda: privileges.take_over_ids(process)),
        ("join user namespace", lambda: privileges.join_user_namespace(process)),
        # As the user, in its user namespace: a file system of FUSE lets nobody else in. Until here the root directory is that
        # of the mount namespace; nothing is looked up in it.
        ("enter root directory", lambda: container.enter_root(process)),
        ("limit capabilities", lambda: privileges.limit_capabilities(process)),
        ("confine", lambda: privileges.confine(process)),
    ]


def read_environ(process: "FaultingProcess", reporter: Reporter) -> "dict[bytes, bytes]":
    """Return the variables of the process for the delegate, and report that they were read: it may take for ever."""
    variables = process.read_environ()
    reporter.send("environ", "fallback" if FALLBACK_VARIABLE in variables else "")
    return variables


def execute(plan: Plan, words: "list[bytes]", facts: "dict[bytes, bytes]", child: "Child") -> "NoReturn":
    """In the joining process: enter the container and start the delegate ``words`` in it; never returns.

    The delegate gets the environment of the process with the variables ``facts`` in it.
    """
    reporter = Reporter(child.error_out)
    environment: dict[bytes, bytes] = {}
    program: list[Program] = []
    descriptors: list[int] = []

    def take_over_environment() -> None:
        environment.update(read_environ(plan.process, reporter))
        environment.update(facts)

    def give_pipes() -> None:
        # So that the delegate may open them anew, as /dev/stdin and /dev/stderr.
        for end in child.standard_streams().values():
            posix.fchown(end, plan.process.uid, plan.process.gid)
        descriptors.append(posix.open("/proc/self/fd", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC))
        for note in plan.process.notes:
            reporter.send("note", note)

    def open_program() -> None:
        # After the capabilities are gone: a file that the process could not have executed is not found here either.
        program.append(Program(words, plan.interpreter, descriptors[0]))

    def fork_into_container() -> None:
        # From here on we can be seen. Whoever has CAP_SYS_PTRACE in the initial user namespace may look at our descriptors: a
        # directory of the host's among them would be a way out of the container.
        for target, source in child.standard_streams().items():
            posix.dup2(source, target)
        linux.close_all_but({program[0].descriptor, reporter.pipe, *plan.groups.files()})
        try:
            pid = posix.fork()
        except BlockingIOError as error:
            raise Crowded(error.strerror) from None
        if pid == 0:
            run_child(reporter, delegate_steps(plan, program[0], environment, child, reporter))
        reporter.send("pid", str(pid))

    steps: list[tuple[str, object]] = [("read environment", take_over_environment)]
    steps += [("give pipes", give_pipes), *entry_steps(plan, reporter)]
    steps.append(("open delegate", open_program))
    steps.append(("take over label", plan.label.at_exec))
    steps.append(("start delegate", fork_into_container))
    run_child(reporter, steps)


def delegate_steps(
    plan: Plan, program: Program, environment: "dict[bytes, bytes]", child: "Child", reporter: Reporter
) -> "list[tuple[str, object]]":
    """Return the last steps, of the process that the container sees and that becomes the delegate."""
    process = plan.process

    def join_control_groups() -> None:
        # Only now, with descriptors that were opened on the host: a fork within a group at its pids.max would fail.
        failures = plan.groups.join()
        if failures and (process.in_container() or process.uid == 0):
            # The device rules hang on the control group: without them the host's disks could be opened.
            raise Stopped("; ".join(failures))
        for failure in failures:
            reporter.send("note", failure)

    def settle() -> None:
        posix.setsid()
        posix.umask(process.umask)
        start.reset_signals()
        for failure in privileges.take_over_processors(process):
            reporter.send("note", failure)
        program.prepare(environment)
        # Last, since they may leave room for nothing more.
        for failure in privileges.set_limits(process):
            reporter.send("note", failure)

    return [
        ("join control groups", join_control_groups),
        ("settle", settle),
        ("execute delegate", lambda: program.execute(reporter)),
    ]
