"""Tells whether a container could trace a process of ours. Rarely imported.

That is where a container is at its limit of processes, or could overwrite the helper's interpreter.
"""

import posix
import time

from core_helper import first_process, namespaces, procfs
from core_helper.first_process import CAP_SYS_PTRACE, PATIENCE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.process import FaultingProcess


def may_be_traced(process: "FaultingProcess") -> bool:
    """Tell whether a container may trace a process of ours that appears in the pid namespace of ``process``; ptrace(2).

    A tracer needs CAP_SYS_PTRACE in the user namespace of the host: the memory of our process belongs to that one until it
    executes the delegate. More than one container may be in that pid namespace: all processes that see it are asked. That
    costs a look at each process of the host.
    """
    namespace = process.descriptor("pid")
    if namespace is None:
        return process.in_container() or process.container_id != ""
    hosts, users = namespaces.of_host("pid"), namespaces.of_host("user")
    seen = namespaces.lineage(namespace, hosts)
    limit = time.monotonic() + PATIENCE
    known: set[str] = set()
    some_ended = True
    # A process that has ended before it was looked at may have left another one behind.
    while some_ended:
        some_ended = False
        for name in set(posix.listdir("/proc")) - known:
            if time.monotonic() > limit:
                return True
            known.add(name)
            inode = first_process.namespace_of(int(name), "pid") if name.isdigit() else hosts
            some_ended = some_ended or inode is None
            if inode is None or inode == hosts or inode not in seen:
                continue
            # All threads of a process have the same user namespace, but each thread has capabilities of its own.
            user = first_process.namespace_of(int(name), "user")
            some_ended = some_ended or user is None
            if user == users and _has_tracer(name, limit):
                return True
    return False


def _has_tracer(name: str, limit: float) -> bool:
    """Tell whether a thread of the process ``name`` has CAP_SYS_PTRACE, or may get it; True if the time ``limit`` passes."""
    try:
        threads = posix.listdir(f"/proc/{name}/task")
    except OSError:
        return False
    for thread in threads:
        if time.monotonic() > limit:
            return True
        try:
            status = procfs.parse_status(procfs.read_path(f"/proc/{name}/task/{thread}/status"))
        except OSError as error:
            procfs.refuse_lease(error)
            continue
        if first_process.rights_of(status) >> CAP_SYS_PTRACE & 1:
            return True
    return False
