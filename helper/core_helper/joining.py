"""The steps into the container, in their order: one statement for each, with the name of the step on the line before.

Two processes run here. The *joining process* enters the container with the helper's privileges, and drops them step by step.
Only then it forks the second process, which appears in the container's pid namespace and becomes the delegate. So the container
never sees a process of ours that has more privilege than the faulting process.

From ``container.join_namespaces`` on, no path is the host's any more. Nothing may be looked up by a path any more, except the
delegate itself: no module, no name of a user, no locale (CVE-2022-28657).

docs/contributing.md says where a new attribute of the process goes that the delegate shall take over.
"""

import posix
import sys

from core_helper import container, control_groups, linux, privileges, procfs, start
from core_helper.configuration import FALLBACK_VARIABLE
from core_helper.program import Program, Stopped, identity
from core_helper.status_pipe import Crowded, StatusPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from core_helper.child import Child
    from core_helper.lent import Lent
    from core_helper.process import FaultingProcess


class Plan:
    """All that a child needs to enter the container, opened and prepared on the host."""

    def __init__(
        self,
        process: "FaultingProcess",
        groups: control_groups.ControlGroups,
        label: privileges.Label,
        interpreter: "tuple[int, int] | None",
        root: bytes = b"/",
    ) -> None:
        """Take the process to become; ``interpreter`` is device and inode of the helper's own, never to be executed.

        ``root`` is the path of the root directory. Unless that is /, no other user may be able to change the delegate, as in a
        directory that a daemon has made its root directory: the user who may write there need not have made the image.
        ``late`` says whether the last fork happens outside of the control group that counts processes.
        """
        self.process = process
        self.late = False
        self.groups = groups
        self.label = label
        self.interpreter = interpreter
        self.root = root


def prepare(process: "FaultingProcess", interpreter: "tuple[int, int] | None" = None) -> Plan:
    """Open what will be joined. Raises Refused where that cannot be done in full.

    ``interpreter`` is that of the helper, None where it lies at its path.
    """
    privileges.check(process)
    if not process.in_container():
        interpreter = None  # There the delegate may well be a script for the same Python.
    elif interpreter is None:
        interpreter = identity(posix.stat(sys.executable))  # /proc/self/exe may be in an overlay of its own.
    root = procfs.path_of(process.root)
    return Plan(process, control_groups.open_control_groups(process), privileges.Label(process), interpreter, root)


def read_environment(process: "FaultingProcess", status: StatusPipe) -> "dict[bytes, bytes]":
    """Return the variables of the process for the delegate, and report that they were read, which may take for ever."""
    variables = process.read_environ()
    status.send("environ", "fallback" if FALLBACK_VARIABLE in variables else "")
    return variables


def enter(plan: Plan, status: StatusPipe) -> None:
    """Go from the host and all privileges to the files and privileges of the process. Raises OSError, Refused or Stopped."""
    process = plan.process
    status.step = "open label"  # In the host's /proc: the container's may be a fake.
    plan.label.open()
    status.step = "take over scheduling"  # Files of the host's /proc are written, so before the mount namespace.
    status.note(privileges.take_over_scheduling(process))
    status.note(privileges.go_first())
    privileges.raise_hard_limits(process)
    status.step = "join namespaces"  # All but the user namespace. The mount namespace is the last one of them.
    container.join_namespaces(process)
    status.step = "take over ids"  # In the host's view, before the user namespace: nothing has to be translated.
    privileges.take_over_ids(process)
    status.step = "join user namespace"  # Before the capabilities: joining gives a full set of them.
    privileges.join_user_namespace(process)
    # As the user of the process, in its user namespace: a FUSE file system lets nobody else in. Until here the root directory
    # is that of the mount namespace; nothing is looked up there.
    status.step = "enter root directory"
    container.enter_root(process)
    status.step = "limit capabilities"
    status.note(privileges.limit_capabilities(process))
    status.step = "confine"  # Last: the filter would forbid the steps before it.
    privileges.confine(process)


def execute_delegate(
    plan: Plan,
    words: "list[bytes]",
    defaults: "dict[bytes, bytes]",
    facts: "dict[bytes, bytes]",
    child: "Child",
    lent: "Lent | None" = None,
) -> "NoReturn":
    """In the joining process: enter the container and start the delegate ``words`` in it; never returns.

    The delegate gets the environment of the process, the ``defaults`` that are not in it, and the variables ``facts``. It is a
    program of the container, or the one that is ``lent``.
    """
    process = plan.process
    with StatusPipe(child.status_write_end) as status:
        status.step = "read environment"
        variables = read_environment(process, status)
        environment = {**defaults, **variables, **facts}
        if lent is not None:
            words = lent.fill_in(words, environment)
        status.step = "give pipes"  # So that the delegate may open them again, as /dev/stdin and /dev/stderr.
        for end in child.standard_streams().values():
            posix.fchown(end, process.uid, process.gid)
        descriptors = posix.open("/proc/self/fd", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        status.note(process.notes)
        status.note(
            [f"{name.decode()} is the engine's: the process lacks it" for name in defaults if name not in variables]
        )
        # Before anything of the container is looked up: its file systems may hold this process for ever, and then it counts
        # for the container. Also before the container can see a process of ours: it may trace that one, which must be under
        # its rules for devices and memory.
        status.step = "join control groups"
        _check_groups(process, plan.groups.join(), status)
        copy: Program | None = None
        if lent is not None:
            # On the host, where the file is, but in the control groups: the copy is memory of the container.
            status.step = "copy lent program"
            privileges.go_first()
            copy = lent.copy(words, process)
        enter(plan, status)
        # After the capabilities were dropped: the delegate must not be a file that the process itself could not reach.
        status.step = "open delegate"
        program = Program(words, plan.interpreter, descriptors, plan.root) if copy is None else copy
        status.step = "take over label"  # With the next execve(2), so after everything that is opened.
        plan.label.at_exec()
        # Not after the last fork: there each page that is written to has to be copied first.
        status.step = "prepare execution"
        program.prepare(environment)
        if plan.late:
            # After everything that is looked up.
            status.step = "leave control group of processes"
            plan.groups.leave()
        # From here on the container can see a process of ours. Whoever has CAP_SYS_PTRACE in the initial user namespace may
        # look at our descriptors: a directory of the host's among them would be a way out of the container.
        status.step = "start delegate"
        for target, end in child.standard_streams().items():
            posix.dup2(end, target)
        kept = {program.descriptor, status.descriptor}
        if plan.late:
            kept.update(plan.groups.files())
        linux.close_all_but(kept)
        try:
            pid = posix.fork()
        except BlockingIOError as error:
            raise Crowded(error.strerror) from None
        if pid == 0:
            _become_delegate(plan, program, status)
        status.send("pid", str(pid))
    raise AssertionError("the context ends the process")


def _check_groups(process: "FaultingProcess", failures: "list[str]", status: StatusPipe) -> None:
    """Raise Stopped where control groups could not be joined, as one whose path is longer than the kernel shows.

    Users of the host may do without a hierarchy that is not mounted: without one, others could open the host's disks.
    """
    unmounted = all(failure.endswith(control_groups.NOT_MOUNTED) for failure in failures)
    if failures and (not unmounted or process.in_container() or process.uid == 0):
        raise Stopped("; ".join(failures))
    status.note(failures)


def _become_delegate(plan: Plan, program: Program, status: StatusPipe) -> None:
    """In the process that the container sees: do the last steps and execute the ``program``. Raises OSError or Stopped."""
    process = plan.process
    # After the last fork: at the first try, that fork has failed within a group at its pids.max. Nobody can trace this process.
    if plan.late:
        status.step = "join control group of processes"
        _check_groups(process, plan.groups.join(counting_only=True), status)
    status.step = "take over session, umask and signals"
    posix.setsid()
    posix.umask(process.umask)
    start.reset_signals()
    status.step = "take over processors"  # After the control groups: their cpuset bounds the processors.
    status.note(privileges.take_over_processors(process))
    status.step = "take over limits"  # Last, since they may leave room for nothing more.
    status.note(privileges.set_limits(process))
    status.step = "execute delegate"
    program.execute(status)
