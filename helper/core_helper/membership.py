"""Checks whether the files that the process sees and the privileges that it has belong to the same container.

A program of the host may have joined the mount namespace of a container, as agents and ``nsenter -m`` do. When it crashes, the
delegate would be a program of that container's files, and get the rights of the host. So the mount namespace must be that of
the process's own container: the one to which its control group, and the first process of that group, belong. Nothing is changed
here but ``process.confined``, which only a comparison with that first process can tell.

A process that could have joined the mounts of others needs a *proof*: the program that it executes must lie in the mounts that
it has. A process that has only joined a container executes a program from elsewhere, whether that container still runs or not.
A program of the container's image that was given rights of the host has those already. In case of doubt, the core is withheld.
"""

from core_helper import first_process, foreign_files, namespaces, procfs, runtime, strangers
from core_helper.first_process import CAP_SYS_ADMIN, CAP_SYS_PTRACE, Member
from core_helper.process import withheld

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.process import FaultingProcess

INTRUDING = 1 << CAP_SYS_ADMIN | 1 << CAP_SYS_PTRACE
SHOWING_ORIGIN = ("net", "ipc", "uts")  # Namespaces that a process may have kept from where it was before.


def check(process: "FaultingProcess") -> None:
    """Raise Withheld unless the mount namespace and the root directory of ``process`` are its own.

    Notes in ``process.confined`` whether it was confined more than its container is. Raises Refused where that cannot be told,
    OSError when the process went away.
    """
    if not process.in_container() and process.seccomp_filters == 0:
        # An ordinary process of the host, or of a container that shares the host's files.
        foreign_files.check_root(foreign_files.View(process, None), True)
        return
    first, others = first_process.first_of(process)
    members = others if first is None else [first, *others]
    try:
        if members:
            process.confined = process.seccomp_filters > min(member.filters for member in members)
        if not process.in_container():
            foreign_files.check_root(foreign_files.View(process, None), True)
            return
        _check_owner(process)
        view = foreign_files.View(process, first)
        if process.shows_no_container() and foreign_files.has_root_of_the_host(view):
            strangers.refuse(view, None, hosts_root=True)
            return
        if first is not None:
            _check_group(process, first)
        # The first process of its pid namespace may be its own, in the control group of a container.
        eldest = [
            member
            for member in members
            if member is first or runtime.share_name(member.cgroups, process.cgroups) is not False
        ]
        for member in eldest:
            _check_eldest(process, member)
        joined = first is None or any(_may_have_joined(process, member) for member in eldest)
        foreign_files.check_root(view, joined)
        if joined or not view.own:
            foreign_files.check_program(view)
    finally:
        for member in members:
            member.close()


def _may_have_joined(process: "FaultingProcess", first: Member) -> bool:
    """Tell whether the process may have come into the mount namespace from outside, or have joined it from its own container.

    A sandbox that a user has made cannot join what others have.
    """
    if not process.in_pid_namespace():
        return True
    # Capabilities in a user namespace that was made in the container do not count outside of that user namespace.
    sandboxed = _is_in_sandbox(process, first)
    rights = 0 if sandboxed else process.permitted | process.bounding
    if rights & ~first.rights:
        return True
    # It may have kept them when it came from another container.
    if not sandboxed and any(process.inode(kind) != first.namespace(kind) for kind in SHOWING_ORIGIN):
        return True
    joins = process.user_namespace is None or runtime.named_group(process.cgroups) is not None
    return joins and first.rights & INTRUDING != 0


def _is_in_sandbox(process: "FaultingProcess", first: Member) -> bool:
    """Tell whether ``process`` is in a user namespace below that of ``first``."""
    return first.namespace("user") in _user_namespaces(process)[1:]


# Does the process belong to that container?


def _check_group(process: "FaultingProcess", first: Member) -> None:
    """Raise Withheld where ``process`` is in namespaces of a container but not in its control group, or the other way round.

    The group decides on devices, and shows which processes came from outside. Where the container has none, only capabilities
    show that. A user namespace bounds what the process may do wherever it is, as long as its ids are of that namespace.
    """
    if first.pid_namespace != process.inode("pid"):
        raise withheld(process, "it is in a container's control group, but in another pid namespace")
    bounded = process.permitted & ~first.rights == 0
    if not first.has_group():
        if not bounded:
            raise withheld(process, "it has capabilities that the container, whose namespaces it is in, could not have")
        return
    if runtime.is_within(process.cgroups, first.cgroups):
        return
    if bounded and _is_in_user_namespace(process, first):
        return
    raise withheld(process, "it is in a container's namespaces, but in another control group")


def _check_eldest(process: "FaultingProcess", first: Member) -> None:
    """Raise Withheld where ``process`` has kept a namespace of the host that its container does not have.

    Or where its pid namespace is neither that of the container nor one below.
    """
    namespace = process.descriptor("pid")
    if namespace is not None and first.pid_namespace not in namespaces.lineage(namespace, namespaces.of_host("pid")):
        raise withheld(process, "it is in a container's control group, but in another pid namespace")
    for kind in SHOWING_ORIGIN:
        if process.descriptor(kind) is None and first.namespace(kind) != namespaces.of_host(kind):
            raise withheld(process, f"it is in a container's control group, but in the host's {kind} namespace")


def _is_in_user_namespace(process: "FaultingProcess", first: Member) -> bool:
    """Tell whether ``process`` is in the user namespace of ``first`` or below it, with ids of that namespace."""
    if process.user_namespace is None or first.namespace("user") not in _user_namespaces(process):
        return False
    groups = {process.gid, *process.groups}
    return (
        namespaces.mapped(first.directory, "uid_map", {process.uid}) == {process.uid}
        and namespaces.mapped(first.directory, "gid_map", groups) == groups
    )


def _user_namespaces(process: "FaultingProcess") -> "list[int]":
    """Return the inodes of the user namespace of ``process`` and its ancestors, up to that of the host."""
    host = namespaces.of_host("user")
    return [host] if process.user_namespace is None else namespaces.lineage(process.user_namespace, host)


def _check_owner(process: "FaultingProcess") -> None:
    """Raise Withheld where the mount namespace belongs to a user namespace that the process is neither in nor below.

    Root of that user namespace chooses the files, and the process has rights outside of it. A process that has only joined it,
    as by ``nsenter --preserve-credentials``, is of a user whom that user namespace does not have, and who has not made it.
    """
    owner = namespaces.owner_of(process.descriptor("mnt"))  # type: ignore[arg-type]
    if owner not in _user_namespaces(process):
        raise withheld(process, "it is in the mount namespace of a container without being in its user namespace")
    if process.user_namespace is None or owner == namespaces.of_host("user"):
        return
    # Only a user whom the parent has can make a user namespace (kernel/user_namespace.c, create_user_ns). Those that root makes
    # and maps are for others.
    if namespaces.mapped(process.task, "uid_map", {process.uid}) and namespaces.mapped(
        process.task, "gid_map", {process.gid}
    ):
        return
    made = namespaces.maker_of(process.user_namespace) == process.uid
    if not made or (process.uid == 0 and procfs.read(process.task, "uid_map")):
        raise withheld(process, f"it is in a user namespace that does not have its user, {process.uid}, or its group")
