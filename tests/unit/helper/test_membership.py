"""membership: whose files the process sees, on a made-up host."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import (
    first_process,
    foreign_files,
    membership,
    mount_table,
    procfs,
    runtime,
    strangers,
    tracing,
    verification,
)
from core_helper.crash import Refused
from core_helper.process import FaultingProcess, Withheld, withheld
from unit.helper.support import HELPER
from unit.helper.support import process as crashed
from unit.helper.world import (
    ALL,
    DOCKER,
    FEW,
    FILES,
    ID,
    OTHER,
    OTHER_FILES,
    ROOT_OF_HOST,
    SYS_ADMIN,
    SYS_PTRACE,
    World,
    keeps_descriptors,
)


def told(process: Any) -> str:
    """Return why a core is withheld, or ""."""
    try:
        membership.check(process)
    except Withheld as error:
        return str(error) if error.process is process else "another process"
    return ""


# A process and its own container.


def test_a_process_in_its_own_container_has_its_delegate(world: World, box: dict[str, Any]) -> None:
    for pid in (10, 11):
        process = world.crashed(pid)
        assert keeps_descriptors(functools.partial(membership.check, process))


def test_an_ordinary_process_of_the_host_has_its_delegate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.process(20, cgroup="/system.slice/a.service")
    # Nobody looks for others for that.
    monkeypatch.setattr(first_process, "first_of", None)
    membership.check(world.crashed(20))
    # But its root directory may be that of a container.
    assert "in another mount namespace than the process" in told(world.crashed(20, "/", 40))


@pytest.mark.parametrize("pid", [10, 11])
def test_a_container_whose_processes_could_join_others_is_looked_at(world: World, pid: int) -> None:
    box = world.container()
    for number, pids in ((10, "1"), (11, "2")):
        world.process(number, pids, DOCKER, FILES, **box)
    membership.check(world.crashed(pid))


def test_a_process_that_has_made_mounts_of_its_own_is_in_its_container(world: World, box: dict[str, Any]) -> None:
    world.process(
        12, "3", DOCKER, OTHER_FILES, **{**box, "mnt": world.namespace(owner=world.host["user"])}, bounding=FEW
    )
    assert told(world.crashed(12)) == ""


def test_a_program_of_no_mount_is_a_containers_own_where_nobody_could_have_joined(
    world: World, box: dict[str, Any]
) -> None:
    memory = (77, "/memfd:x")
    world.process(12, "3", DOCKER, FILES, bounding=FEW, exe=memory, **box)
    assert told(world.crashed(12)) == ""
    # With other mounts than the first process has it may have come from anywhere.
    mounts = world.namespace(owner=world.host["user"])
    world.process(13, "4", DOCKER, OTHER_FILES, bounding=FEW, exe=memory, **{**box, "mnt": mounts})
    assert "executes a program from outside" in told(world.crashed(13))


@pytest.mark.parametrize("capability", [SYS_ADMIN, SYS_PTRACE])
@pytest.mark.parametrize("who", ["first", "process"])
def test_whoever_could_have_joined_other_mounts_must_see_the_files_of_its_container(
    world: World, capability: int, who: str
) -> None:
    box, other = world.container(), world.namespace(owner=world.host["user"])
    world.process(10, "1", DOCKER, FILES, bounding=FEW | (capability if who == "first" else 0), **box)
    for pid, files in ((11, FILES), (12, OTHER_FILES)):
        namespaces = {**box, "mnt": other}
        world.process(pid, "2", DOCKER, files, bounding=FEW | (capability if who == "process" else 0), **namespaces)
    assert told(world.crashed(11)) == ""
    # Nobody else is at home there, and the program is of these files: a container within the container.
    assert told(world.crashed(12)) == ""
    world.process(13, "3", DOCKER, OTHER_FILES, exe=(77, "/agent"), **{**box, "mnt": other})
    assert "executes a program from outside" in told(world.crashed(13))


def test_an_agent_in_another_containers_mounts_is_withheld(world: World, box: dict[str, Any]) -> None:
    # The first process of its container, which has joined the mounts, and a child of such a one in the host's pid namespace.
    world.process(30, "1", OTHER, FILES, exe=(77, "/agent"), **world.container(mnt=box["mnt"]))
    assert "is in the mount namespace of another container" in told(world.crashed(30))
    world.process(31, cgroup=f"/docker/{'c3' * 32}", mountinfo=FILES, mnt=box["mnt"])
    assert "is in the mount namespace of another container" in told(world.crashed(31))


def test_a_program_of_the_mounts_that_the_process_or_its_container_has_is_its_own(world: World) -> None:
    box = world.container()
    mounts = world.namespace(owner=world.host["user"])
    more = b"41 40 0:51 / /srv rw - ext4 a rw\n"
    world.process(10, "1", DOCKER, FILES + more, **box)
    for pid, mount, files, namespaces in (
        (11, 40, FILES, box),
        (12, 41, FILES, box),
        (13, 41, FILES, {**box, "mnt": mounts}),
        (14, 40, b"60 1 0:50 / / rw - overlay o rw\n", {**box, "mnt": mounts}),
        (15, 60, b"60 1 0:50 / / rw - overlay o rw\n", {**box, "mnt": mounts}),
        (16, 61, b"60 1 0:50 / / rw - overlay o rw\n", {**box, "mnt": mounts}),
    ):
        world.process(pid, str(pid), DOCKER, files, exe=(mount, "/x"), **namespaces)
    refused = {pid: told(world.crashed(pid)) for pid in range(11, 17)}
    assert [pid for pid, why in refused.items() if why] == [16]
    assert "executes a program from outside" in refused[16]
    process = world.crashed(16)
    assert keeps_descriptors(lambda: told(process))


def test_the_descriptors_are_closed_when_a_core_is_withheld(world: World, box: dict[str, Any]) -> None:
    world.process(30, "1", OTHER, FILES, exe=(77, "/agent"), **world.container(mnt=box["mnt"]))
    process = world.crashed(30)
    assert keeps_descriptors(lambda: told(process))


def test_a_root_directory_in_the_files_of_another_container_is_withheld(world: World, box: dict[str, Any]) -> None:
    host = b"20 1 8:1 / / rw - ext4 a rw\n50 20 0:50 / /var/merged rw - overlay overlay rw\n"
    world.process(30, "1", OTHER, OTHER_FILES + host, exe=(50, "/var/merged/bin/x"), **world.container())
    assert "lies in the files of another" in told(world.crashed(30, "/var/merged", 50))


def test_a_process_of_the_host_that_has_joined_a_containers_mounts_is_withheld(
    world: World, box: dict[str, Any]
) -> None:
    world.process(21, cgroup="/user.slice/a", mountinfo=FILES, mnt=box["mnt"])
    world.process(20, cgroup="/user.slice/a", started=50)
    process = world.crashed(21)
    told = "^it is in the mount namespace of another container: its core is not for a program"
    with pytest.raises(Withheld, match=told) as caught:
        membership.check(process)
    assert caught.value.of_the_host


def test_a_process_of_the_host_whose_group_is_unknown_may_not_be_in_a_containers_mounts(
    world: World, box: dict[str, Any]
) -> None:
    world.process(21, cgroup="/", mountinfo=FILES, mnt=box["mnt"])
    assert "is in the mount namespace of another container" in told(world.crashed(21))


def test_a_process_of_the_host_with_mounts_of_its_own_has_its_delegate(world: World, box: dict[str, Any]) -> None:
    mounts = world.namespace(owner=world.host["user"])
    for pid in (21, 22):
        world.process(pid, cgroup="/system.slice/a.service", mnt=mounts)
    assert told(world.crashed(22)) == ""
    # Not where a container is at home in those mounts.
    world.process(30, "1", OTHER, **world.container(mnt=mounts))
    assert "is in the mount namespace of another container" in told(world.crashed(22))


def test_a_pid_namespace_of_its_own_does_not_make_a_process_the_first_of_a_container(world: World) -> None:
    box = {**world.container(), **{kind: world.namespace() for kind in ("net", "ipc", "uts")}}
    world.process(10, "1", DOCKER, FILES, bounding=FEW, started=1, **box)
    # Moved into the control group, with the mounts: alone in its pid namespace, and the first one there.
    for pid, parent in ((30, world.host["pid"]), (31, box["pid"])):
        own: dict[str, Any] = {"pid": world.namespace(parent), "mnt": box["mnt"]}
        world.process(pid, "1" if pid == 30 else "9 1", DOCKER, FILES, bounding=FEW, started=900, **own)
    assert "but in another pid namespace" in told(world.crashed(30))
    assert "but in the host's net namespace" in told(world.crashed(31))


def test_a_sandbox_that_gave_up_everything_is_compared_with_who_made_it(world: World) -> None:
    names: dict[str, Any] = {kind: world.namespace() for kind in ("net", "ipc", "uts")}
    mounts = world.namespace(owner=world.host["user"])
    world.process(10, cgroup=DOCKER, mountinfo=FILES, started=1, filters=0, mnt=mounts, **names)
    pids = world.namespace(world.host["pid"])
    for pid, inner in ((11, "1"), (12, "2")):
        own: dict[str, Any] = {**names, "mnt": mounts, "pid": pids}
        world.process(pid, inner, DOCKER, FILES, started=pid, parent=10, filters=1, bounding=0, **own)
    process = world.crashed(12)
    with contextlib.suppress(Withheld):
        membership.check(process)
    assert process.confined


# What the container's filters and capabilities tell.


@pytest.mark.parametrize(("filters", "confined"), [(1, False), (2, True)])
def test_a_process_is_confined_if_it_has_more_filters_than_its_container(
    world: World, filters: int, confined: bool
) -> None:
    box = world.container()
    world.process(10, "1", DOCKER, FILES, filters=1, **box)
    world.process(11, "2", DOCKER, FILES, filters=filters, **box)
    process = world.crashed(11)
    membership.check(process)
    assert process.confined is confined


@pytest.mark.parametrize(("eldest", "confined"), [(0, True), (1, False)])
def test_a_process_of_the_host_is_compared_with_the_eldest_of_its_group(
    world: World, eldest: int, confined: bool
) -> None:
    world.process(20, cgroup="/system.slice/a.service", started=50, filters=eldest)
    world.process(21, cgroup="/system.slice/a.service", filters=1)
    process = world.crashed(21)
    assert keeps_descriptors(lambda: membership.check(process))
    assert process.confined is confined


def test_a_filtered_process_of_the_host_may_not_have_its_root_in_a_container(world: World, box: dict[str, Any]) -> None:
    world.process(21, cgroup="/system.slice/a.service", filters=1)
    assert "root directory is in another mount namespace" in told(world.crashed(21, "/", 40))


@pytest.mark.parametrize(
    ("first", "own", "traced"),
    [(FEW, FEW, False), (FEW | SYS_PTRACE, FEW, True), (FEW, SYS_PTRACE, True), (FEW | SYS_ADMIN, SYS_ADMIN, False)],
)
def test_a_process_of_ours_may_be_traced_by_whoever_is_in_its_pid_namespace_or_above(
    world: World, first: int, own: int, traced: bool
) -> None:
    outer = world.container()
    inner = world.namespace(outer["pid"])
    world.process(10, "1", DOCKER, FILES, bounding=first, **outer)
    world.process(11, "2", DOCKER, FILES, bounding=own, **outer)
    world.process(12, "3 1", DOCKER, FILES, bounding=FEW, **{**outer, "pid": inner})
    # A process of the host, or of another container, or without rights outside of its user namespace.
    world.process(1, bounding=ALL)
    world.process(20, "1", OTHER, bounding=ALL, **world.container())
    world.process(21, "4", OTHER, bounding=ALL, **{**outer, "user": world.namespace(world.host["user"])})
    (world.proc / "99").mkdir()
    for pid in (10, 11, 12):
        process = world.crashed(pid)
        assert tracing.may_be_traced(process) is traced
        assert keeps_descriptors(functools.partial(tracing.may_be_traced, process))


@pytest.mark.parametrize("sets", [{"permitted": SYS_PTRACE}, {"inheritable": SYS_PTRACE}])
@pytest.mark.parametrize("thread", [False, True])
def test_whoever_has_the_right_to_trace_outside_of_its_bounding_set_has_it(
    world: World, sets: dict[str, Any], thread: bool
) -> None:
    box = world.container()
    world.process(10, "1", DOCKER, FILES, bounding=FEW, **box)
    world.process(11, "2", DOCKER, FILES, bounding=FEW, **(box if thread else {**box, **sets}))
    if thread:
        world.process("other", bounding=FEW, **sets)
        (world.proc / "11" / "task" / "12").symlink_to(world.proc / "other")
        (world.proc / "10" / "task" / "13").mkdir()
    assert tracing.may_be_traced(world.crashed(10))


def test_a_process_of_very_many_threads_may_trace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.process(10, "1", DOCKER, FILES, bounding=FEW, **world.container())
    assert tracing._has_tracer("10", time.monotonic() - 1)
    assert not tracing._has_tracer("10", time.monotonic() + 60)
    assert not tracing._has_tracer("99", time.monotonic() + 60)


def test_a_thread_that_may_trace_is_found_behind_one_that_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(10, "1", DOCKER, FILES, bounding=ALL, **world.container())
    monkeypatch.setattr(tracing, "posix", SimpleNamespace(listdir=lambda path: ["99", "10"]))
    assert tracing._has_tracer("10", time.monotonic() + 60)


@pytest.mark.parametrize("looked_at", ["pid", "user"])
def test_a_tracer_that_ends_while_it_is_looked_at_and_leaves_another_one_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch, looked_at: str
) -> None:
    box = world.container()
    for pid in (10, 30):
        world.process(pid, str(pid), DOCKER, FILES, bounding=FEW, **box)
    real = first_process.namespace_of

    def ask(pid: int, kind: str) -> int | None:
        # Two, one after the other: the second one is all that is new when it is looked at.
        if pid in (30, 31) and kind == looked_at:
            world.process(pid + 1, str(pid + 1), DOCKER, FILES, bounding=ALL, **box)
            return None
        return real(pid, kind)

    monkeypatch.setattr(first_process, "namespace_of", ask)
    assert tracing.may_be_traced(world.crashed(10))


def test_a_tracer_whose_leading_thread_has_exited_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    box = world.container()
    world.process(10, "1", DOCKER, FILES, bounding=FEW, **box)
    world.process(11, "2", DOCKER, FILES, bounding=ALL, **box)
    process = world.crashed(10)
    for kind in ("pid", "user"):
        os.link(world.proc / "11/ns" / kind, world.directory / f"thread-{kind}")
        (world.proc / "11/ns" / kind).unlink()
    real = first_process.inode_of
    monkeypatch.setattr(procfs, "task_of", lambda pid, tid: f"/thread/{pid}")
    monkeypatch.setattr(
        first_process,
        "inode_of",
        lambda path: (
            (world.directory / f"thread-{path.rpartition('/')[2]}").stat().st_ino
            if path.startswith("/thread/11/")
            else real(path)
        ),
    )
    assert tracing.may_be_traced(process)


def test_who_is_below_sees_nothing_of_a_pid_namespace(world: World) -> None:
    outer = world.container()
    world.process(10, "1", DOCKER, FILES, bounding=FEW, **outer)
    world.process(12, "3 1", DOCKER, FILES, bounding=ALL, **{**outer, "pid": world.namespace(outer["pid"])})
    assert [tracing.may_be_traced(world.crashed(pid)) for pid in (10, 12)] == [False, True]


def test_in_the_pid_namespace_of_the_host_a_container_may_trace_and_the_host_does_not_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(20, cgroup="/system.slice/a.service")
    world.process(21, cgroup=DOCKER)
    world.process(22, mnt=world.namespace(owner=world.host["user"]))
    assert [tracing.may_be_traced(world.crashed(pid)) for pid in (20, 21, 22)] == [False, True, True]
    monkeypatch.setattr(tracing, "PATIENCE", -1.0)
    world.process(23, "1", bounding=FEW, **world.container())
    assert tracing.may_be_traced(world.crashed(23))


# Whether a core that is withheld is the host's own.


@pytest.mark.parametrize(
    ("facts", "of_the_host"),
    [
        ({}, True),
        ({"user_namespace": 9}, False),
        ({"namespaces": [("pid", 0, 9)]}, False),
        ({"container_id": ID}, False),
    ],
)
def test_what_has_nothing_of_a_container_is_of_the_host(world: World, facts: dict[str, Any], of_the_host: bool) -> None:
    world.process(21)
    process = world.crashed(21, **{"namespaces": [("mnt", 0, 9)], **facts})
    error = withheld(process, "why")
    assert (error.process, error.of_the_host) == (process, of_the_host)
    assert str(error) == "why: its core is not for a program of that container's image"


# Whether the process belongs to the container whose namespaces it is in.


def group_told(process: Any, first: int) -> str:
    member = first_process.Member(first)
    try:
        membership._check_group(process, member)
    except Withheld as error:
        return str(error)
    finally:
        member.close()
    return ""


def test_a_process_in_a_containers_namespaces_must_be_in_its_control_group(world: World, box: dict[str, Any]) -> None:
    world.process(31, "3", "/user.slice/a", FILES, bounding=FEW, **box)
    assert group_told(world.crashed(11), 10) == ""
    assert "in a container's namespaces, but in another control group" in group_told(world.crashed(31), 10)


def test_whoever_has_entered_a_container_without_its_control_group_is_withheld(
    world: World, box: dict[str, Any]
) -> None:
    world.process(31, "3", "/user.slice/a", FILES, bounding=FEW, **box)
    assert "but in another control group" in told(world.crashed(31))


def test_a_user_namespace_bounds_whoever_has_joined_it(world: World) -> None:
    users = world.namespace(world.host["user"])
    box = world.container(user=users)
    inner = {**box, "user": world.namespace(users)}
    world.process(10, "1", DOCKER, FILES, **box)
    for pid, namespaces in ((31, box), (32, inner), (33, {**box, "user": world.namespace(world.host["user"])})):
        world.process(pid, str(pid), "/user.slice/a", FILES, **namespaces)
    world.process(34, "34", "/user.slice/a", FILES, pid=box["pid"], mnt=box["mnt"])
    assert [group_told(world.crashed(pid), 10) for pid in (31, 32)] == ["", ""]
    assert all("another control group" in group_told(world.crashed(pid), 10) for pid in (33, 34))
    # But not whoever has brought capabilities that the container could not have.
    (world.proc / "10" / "status").write_text("Tgid:\t10\nNStgid:\t10 1\nCapBnd:\t1\nCapPrm:\t0\nCapInh:\t0\n")
    assert "another control group" in group_told(world.crashed(31, permitted=3), 10)
    assert group_told(world.crashed(31, permitted=1), 10) == ""


def test_where_no_group_tells_capabilities_do(world: World) -> None:
    box = world.container()
    world.process(10, "1", "/", FILES, bounding=FEW, **box)
    world.process(11, "2", "/", FILES, **box)
    assert group_told(world.crashed(11, permitted=FEW), 10) == ""
    assert group_told(world.crashed(11, permitted=0), 10) == ""
    assert "capabilities that the container, whose namespaces" in group_told(world.crashed(11, permitted=SYS_ADMIN), 10)


def test_a_control_group_in_another_pid_namespace_is_no_proof(world: World, box: dict[str, Any]) -> None:
    inner = {**box, "pid": world.namespace(box["pid"])}
    world.process(12, "3 1", DOCKER, FILES, **inner)
    assert "control group, but in another pid namespace" in group_told(world.crashed(12), 10)


@pytest.mark.parametrize(
    ("uid", "gid", "groups", "mapped"),
    [
        *((1000, 1000, [1000, 1009, 2000], True), (1009, 2000, [], True), (1000, 1000, [2001], False)),
        *((999, 1000, [], False), (1010, 1000, [], False), (1000, 0, [], False), (1000, 1000, [1000, 0], False)),
    ],
)
def test_the_ids_of_whoever_has_joined_a_user_namespace_are_those_of_it(
    world: World, uid: int, gid: int, groups: list[int], mapped: bool
) -> None:
    box = world.container(user=world.namespace(world.host["user"]))
    world.process(10, "1", DOCKER, FILES, ids="0 1000 10\n20 2000 1", **box)
    world.process(31, "2", "/user.slice/a", FILES, **box)
    refused = group_told(world.crashed(31, uid=uid, gid=gid, groups=groups), 10)
    assert bool(refused) is not mapped


ROOTLESS: dict[str, Any] = {"user_namespace": 9}


@pytest.mark.parametrize(
    ("facts", "first", "may"),
    [
        # Nobody knows its container, or it is in the pid namespace of the host.
        ({}, None, True),
        ({"in_pid_namespace": lambda: False}, FEW, True),
        # It has what its container has not.
        ({"permitted": 1}, 0, True),
        ({"bounding": 1}, 0, True),
        # One of the two capabilities that it takes, unless a user has made the sandbox.
        ({}, FEW, False),
        ({}, SYS_ADMIN, True),
        ({}, SYS_PTRACE, True),
        (ROOTLESS, SYS_ADMIN, False),
        ({**ROOTLESS, "cgroups": [(b"", DOCKER.encode())]}, SYS_ADMIN, True),
        ({**ROOTLESS, "permitted": 1}, SYS_ADMIN, True),
        # Unless the container has made that user namespace itself: there it may have all.
        ({**ROOTLESS, "permitted": 1, "sandbox": True}, SYS_ADMIN, False),
        ({**ROOTLESS, "bounding": ALL, "sandbox": True, "cgroups": [(b"", DOCKER.encode())]}, FEW, False),
        ({**ROOTLESS, "sandbox": True, "cgroups": [(b"", DOCKER.encode())]}, SYS_ADMIN, True),
        # It has another network, unless that is the sandbox's.
        *(({"other": kind}, FEW, True) for kind in ("net", "ipc", "uts")),
        ({"other": "time"}, FEW, False),
        ({**ROOTLESS, "sandbox": True, "other": "net"}, FEW, False),
    ],
)
def test_who_may_have_joined_mounts_needs_a_proof(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], first: int | None, may: bool
) -> None:
    facts = {"in_pid_namespace": lambda: True, "permitted": 0, "bounding": 0, "sandbox": False, "other": "", **facts}
    facts["inode"] = lambda kind: 3 if kind == facts["other"] else 2
    # The host's, that of the container, and one below.
    monkeypatch.setattr(membership, "_user_namespaces", lambda process: [3, 2, 1] if process.sandbox else [2, 1])
    member: Any = None if first is None else SimpleNamespace(rights=first, namespace=lambda kind: 2)
    assert membership._may_have_joined(crashed(**facts), member) is may


def test_only_what_sees_the_hosts_files_has_the_root_of_the_host(world: World, box: dict[str, Any]) -> None:
    world.process(21, mnt=world.namespace(owner=world.host["user"]))
    assert [foreign_files.has_root_of_the_host(foreign_files.View(world.crashed(pid), None)) for pid in (21, 11)] == [
        True,
        False,
    ]
    for pid in ("21", "self"):
        (world.proc / pid / "mountinfo").write_bytes(b"")
    assert not foreign_files.has_root_of_the_host(foreign_files.View(world.crashed(21), None))


FUSE_OF_USER = b"50 20 0:50 / /srv rw - fuse.fuse-overlayfs x rw,user_id=1000,group_id=1000\n"


def test_what_a_user_has_mounted_costs_no_service_its_core_however_much_that_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "MOUNTINFO_LIMIT", len(ROOT_OF_HOST) + len(FUSE_OF_USER))
    (world.proc / "self" / "mountinfo").write_bytes(ROOT_OF_HOST + FUSE_OF_USER * 9)
    world.process(
        21, mountinfo=ROOT_OF_HOST + FUSE_OF_USER * 9, mnt=world.namespace(owner=world.host["user"]), exe=(77, "/x")
    )
    assert told(world.crashed(21)) == ""


def test_a_root_directory_that_a_user_has_mounted_is_found_and_is_nobody_elses(world: World) -> None:
    (world.proc / "self" / "mountinfo").write_bytes(ROOT_OF_HOST + FUSE_OF_USER)
    world.process(20, cgroup="/system.slice/a.service", exe=(50, "/srv/x"))
    # No engine of the host's has made that, as far as the host's list tells: only itself as root directory.
    assert "lies in the files of another container" in told(world.crashed(20, "/srv", 50))
    (world.proc / "self" / "mountinfo").write_bytes(ROOT_OF_HOST + FUSE_OF_USER.replace(b"fuse-overlayfs", b"sshfs"))
    assert told(world.crashed(20, "/srv", 50)) == ""


@pytest.mark.parametrize(
    ("cgroup", "own_pids", "refused"), [("/a", False, False), (DOCKER, False, True), ("/a", True, True)]
)
def test_a_service_with_mounts_of_its_own_needs_no_proof_and_a_container_does(
    world: World, cgroup: str, own_pids: bool, refused: bool
) -> None:
    pids: dict[str, Any] = {"pid": world.namespace(world.host["pid"])} if own_pids else {}
    mounts = world.namespace(owner=world.host["user"])
    world.process(21, "1" if own_pids else "", cgroup, exe=(77, "/x"), mnt=mounts, **pids)
    assert bool(told(world.crashed(21))) is refused


def test_only_a_group_that_is_no_root_group_tells(world: World) -> None:
    world.process(30, cgroup="/a")
    world.process(31)
    members = [first_process.Member(pid) for pid in (30, 31)]
    members[0].cgroups = [(b"cpu", b"/"), (b"", b"/a")]
    assert [member.has_group() for member in members] == [True, False]
    for member in members:
        member.close()


def owner_told(process: Any) -> str:
    try:
        membership._check_owner(process)
    except Withheld as error:
        return str(error)
    return ""


def test_mounts_that_belong_to_a_user_namespace_below_are_not_for_the_process(world: World) -> None:
    users = world.namespace(world.host["user"])
    mounts = world.namespace(owner=users)
    world.process(31, mnt=mounts)
    world.process(32, mnt=mounts, user=users)
    world.process(33, mnt=mounts, user=world.namespace(users))
    world.process(34, mnt=mounts, user=world.namespace(world.host["user"]))
    world.process(35, mnt=world.namespace(owner=world.host["user"]), user=users)
    refused = [owner_told(world.crashed(pid)) for pid in (31, 32, 33, 34, 35)]
    assert [bool(text) for text in refused] == [True, False, False, True, False]
    assert "without being in its user namespace" in refused[0]
    plain = world.crashed(35, user_namespace=None)
    assert keeps_descriptors(lambda: membership._check_owner(plain))
    # Part of the check of whoever has mounts of its own.
    assert "without being in its user namespace" in told(world.crashed(31))


@pytest.mark.parametrize(
    ("uid", "ids", "made", "fine"),
    [
        (1000, "0 1000 1", True, True),
        (1000, "0 2000 1", True, True),
        (1000, "", True, True),
        (1000, "0 1000 1", False, True),
        (0, "0 1000 1", True, False),
        (0, "", True, False),
        (2000, "0 1000 1000", True, False),
        (1999, "0 1000 1000", False, True),
    ],
)
def test_who_has_only_joined_a_user_namespace_is_refused(
    world: World, uid: int, ids: str, made: bool, fine: bool
) -> None:
    users = world.namespace(world.host["user"])
    world.makers[users.stat().st_ino] = 1000 if made else 3000
    world.process(31, mnt=world.namespace(owner=users), user=users)
    (world.proc / "31" / "uid_map").write_text(ids and ids + "\n")
    (world.proc / "31" / "gid_map").write_text("0 0 4294967295\n")
    refused = owner_told(world.crashed(31, uid=uid))
    assert refused.startswith("" if fine else f"it is in a user namespace that does not have its user, {uid}")
    assert bool(refused) is not fine
    # Whose mounts belong to the host need not be asked.
    world.process(32, mnt=world.namespace(owner=world.host["user"]), user=users)
    (world.proc / "32" / "uid_map").write_text(ids and ids + "\n")
    assert owner_told(world.crashed(32, uid=uid)) == ""


@pytest.mark.parametrize(
    ("uids", "gids", "maker", "fine"),
    [
        ("0 100000 65536", "0 100000 65536", 0, False),
        ("0 0 1", "0 100000 65536", 0, False),
        ("0 0 1", "0 0 1", 0, True),
        # Nobody else can be in it.
        ("", "", 0, True),
        ("", "", 1000, False),
    ],
)
def test_root_is_nobody_in_the_user_namespaces_that_root_has_made_for_others(
    world: World, uids: str, gids: str, maker: int, fine: bool
) -> None:
    users = world.namespace(world.host["user"])
    world.makers[users.stat().st_ino] = maker
    world.process(31, mnt=world.namespace(owner=users), user=users)
    for name, text in (("uid_map", uids), ("gid_map", gids)):
        (world.proc / "31" / name).write_text(text and text + "\n")
    told = owner_told(world.crashed(31, uid=0, gid=0))
    assert told.startswith("" if fine else "it is in a user namespace that does not have its user, 0, or its group")
    assert bool(told) is not fine


# Whose the files are.


def test_two_have_the_same_root_if_device_and_directory_are_the_same(world: World) -> None:
    roots = [FILES, FILES, OTHER_FILES, b"40 30 0:50 /x / rw - overlay overlay rw\n", b"", b""]
    for number, mountinfo in enumerate(roots):
        world.process(30 + number, mountinfo=mountinfo)
    files = [world.open(world.proc / str(30 + number), os.O_PATH) for number in range(len(roots))]
    assert [foreign_files._same_root(files[0], file) for file in files] == [True, True, False, False, False, False]
    assert not foreign_files._same_root(files[4], files[5])


def root_told(process: Any, first: int | None = None, proof: bool = True) -> str:
    member = None if first is None else first_process.Member(first)
    try:
        foreign_files.check_root(foreign_files.View(process, member), proof)
    except Withheld as error:
        return str(error)
    finally:
        if member is not None:
            member.close()
    return ""


MERGED = b"20 1 8:1 / / rw - ext4 a rw\n50 20 0:50 / /var/merged rw - overlay overlay rw\n"


def test_a_root_of_the_host_in_the_files_of_a_container_is_withheld(world: World, box: dict[str, Any]) -> None:
    (world.proc / "self" / "mountinfo").write_bytes(MERGED)
    places = {21: ("/srv", 20), 22: ("/var/merged", 50), 23: ("/var/merged/jail", 50)}
    for number, (path, mount) in places.items():
        world.process(number, cgroup="/user.slice/a", exe=(mount, f"{path}/bin/x"))
    assert root_told(world.crashed(21)) == ""
    assert root_told(world.crashed(21, *places[21])) == ""
    for number in (22, 23):
        assert "lies in the files of another container" in root_told(world.crashed(number, *places[number]))
    # In the mounts of the container itself, as by chroot /proc/PID/root.
    for path in ("/", "/etc"):
        assert "in another mount namespace than the process" in root_told(world.crashed(21, path, 40))
    # Whatever the processes of the container show: the engine's mount is the host's own.
    for name in ("10", "11"):
        (world.proc / name / "mountinfo").unlink()
    assert "lies in the files of another container" in root_told(world.crashed(22, *places[22]))


def test_a_container_whose_engine_makes_no_overlay_is_known_by_its_processes(world: World) -> None:
    directory = b"40 30 8:1 /var/root / rw - ext4 a rw\n"
    box = world.container()
    world.process(30, "1", OTHER, directory, **box)
    world.process(21, exe=(20, "/var/root/x/bin/x"))
    process = world.crashed(21, "/var/root/x", 20)
    assert "lies in the files of another container" in root_told(process)
    # All of its processes have changed their root directory: its mount namespace is looked at.
    (world.proc / "30" / "mountinfo").write_bytes(b"")
    (world.proc / "30" / "root").unlink()
    (world.proc / "30" / "root").symlink_to(world.file(40, "/jail"))
    world.monkeypatch.setattr(world, "mounts_of_namespace", lambda namespace: mount_table.Mounts(directory))
    assert "lies in the files of another container" in root_told(process)
    assert keeps_descriptors(lambda: root_told(process))
    # A mount namespace of a user namespace is what any user can make: he owns nothing of the host for that.
    world.owners[box["mnt"].stat().st_ino] = world.namespace(world.host["user"])
    assert root_told(process) == ""
    assert keeps_descriptors(lambda: root_told(process))
    world.owners[box["mnt"].stat().st_ino] = world.host["user"]
    assert root_told(process) != ""
    # Who is no process by now holds nothing.
    (world.proc / "30" / "root").unlink()
    assert root_told(process) == ""


@pytest.mark.parametrize(
    ("exe", "own"),
    [((20, "/srv/bin/x"), True), ((20, "/bin/x"), False), ((20, "/srv2/x"), False), ((77, "/srv/bin/x"), False)],
)
def test_a_root_directory_is_that_of_the_program(world: World, exe: tuple[int, str], own: bool) -> None:
    world.process(21, exe=exe)
    process = world.crashed(21, "/srv", 20)
    assert keeps_descriptors(lambda: root_told(process))
    assert root_told(process).startswith(
        "" if own else "its root directory is not that of the program that it executes"
    )
    assert bool(root_told(process)) is not own


@pytest.mark.parametrize("filters", [0, 1])
def test_a_process_of_the_host_that_has_changed_its_root_directory_needs_a_program_in_it(
    world: World, filters: int
) -> None:
    for pid, path in ((21, "/srv/x"), (22, "/usr/x")):
        world.process(pid, cgroup="/system.slice/a.service", exe=(20, path), filters=filters)
    assert told(world.crashed(21, "/srv")) == ""
    assert "is not that of the program" in told(world.crashed(22, "/srv"))


def test_the_files_of_its_own_container_are_for_the_process(world: World, box: dict[str, Any]) -> None:
    world.process(12, "3", DOCKER, MERGED, exe=(50, "/var/merged/x"), **{**box, "mnt": world.namespace()})
    process = world.crashed(12, "/var/merged", 50)
    (world.proc / "10" / "mountinfo").write_bytes(MERGED)
    # The tree of process 11 is that of its own container.
    assert root_told(process, 10) == ""


@pytest.mark.parametrize("proof", [False, True])
def test_a_container_with_more_mounts_than_are_kept_has_its_delegate_also_if_it_changes_its_root(
    world: World, box: dict[str, Any], monkeypatch: pytest.MonkeyPatch, proof: bool
) -> None:
    monkeypatch.setattr(procfs, "MOUNTINFO_LIMIT", len(FILES))
    monkeypatch.setattr(mount_table, "mounts_of_host", lambda *numbers: mount_table.Mounts(ROOT_OF_HOST))
    for pid in ("10", "11"):
        (world.proc / pid / "mountinfo").write_bytes(FILES + 9 * OTHER_FILES.replace(b" / / ", b" / /mnt "))
    assert root_told(world.crashed(11), 10, proof) == ""
    assert root_told(world.crashed(11, "/jail", 40), 10, proof) == ""


def test_a_root_on_a_mount_that_is_nowhere_in_the_mount_namespace_is_withheld(
    world: World, box: dict[str, Any]
) -> None:
    assert "in another mount namespace than the process" in root_told(world.crashed(11, "/jail", 77), 10)


def test_a_root_that_is_no_mount_is_found_in_the_mounts_of_its_namespace(world: World) -> None:
    layer = b"50 20 0:50 / /var/merged rw - overlay overlay rw,upperdir=/var/upper\n"
    (world.proc / "self" / "mountinfo").write_bytes(ROOT_OF_HOST + layer)
    # As by `unshare --mount chroot DIRECTORY`: the process itself shows no mount.
    for pid, path in ((21, "/var/upper"), (22, "/var/merged/jail"), (23, "/srv")):
        mounts = world.namespace(owner=world.host["user"])
        world.process(pid, cgroup="/user.slice/a.scope", mountinfo=b"", exe=(20, f"{path}/x"), mnt=mounts)
        world.process(
            pid + 10, cgroup="/user.slice/b.scope", mountinfo=ROOT_OF_HOST + layer, parent=1, started=500, mnt=mounts
        )
    numbers = {21: ("/var/upper", 20), 22: ("/var/merged/jail", 50), 23: ("/srv", 20)}
    refused = {pid: root_told(world.crashed(pid, *root)) for pid, root in numbers.items()}
    assert [pid for pid, why in refused.items() if "lies in the files of another container" in why] == [21, 22]
    assert refused[23] == ""


@pytest.mark.parametrize("proof", [False, True])
def test_the_root_of_a_mount_namespace_and_of_the_container_is_its_own(
    world: World, box: dict[str, Any], proof: bool
) -> None:
    volume = b"50 40 0:60 / /var/merged rw - overlay overlay rw\n"
    (world.proc / "10" / "mountinfo").write_bytes(FILES + volume)
    world.process(30, "1", OTHER, OTHER_FILES, **world.container())
    for path in ("/", "/jail"):
        assert root_told(world.crashed(11, path, 40), 10, proof) == ""
    world.process(12, "3", DOCKER, MERGED, exe=(50, "/var/merged/x"), **box)
    assert "lies in the files" in root_told(world.crashed(12, "/var/merged", 50), 10, proof)
    # By pivot_root(2), or a mount that covers the root directory: nothing but the mount tells.
    world.process(13, "4", DOCKER, b"60 1 0:60 / / rw - overlay o rw\n", exe=(60, "/x"), **box)
    assert "is in the mount namespace of another container" in root_told(world.crashed(13, "/", 60), 10, proof)


def test_the_control_group_of_a_service_is_no_home(world: World) -> None:
    layer = b"50 20 0:50 / /var/merged rw - overlay overlay rw,upperdir=/var/upper\n"
    (world.proc / "self" / "mountinfo").write_bytes(ROOT_OF_HOST + layer)
    mounts = world.namespace(owner=world.host["user"])
    world.process(20, cgroup="/system.slice/a.service", started=1)
    world.process(21, cgroup="/system.slice/a.service", mountinfo=b"", exe=(20, "/var/upper/x"), mnt=mounts)
    world.process(22, cgroup="/system.slice/b.service", mountinfo=ROOT_OF_HOST, started=500, mnt=mounts)
    assert "lies in the files of another container" in root_told(world.crashed(21, "/var/upper", 20), 20)


def test_the_home_is_the_root_of_the_mounts_whatever_the_first_process_has_changed(
    world: World, box: dict[str, Any]
) -> None:
    (world.proc / "self" / "mountinfo").write_bytes(ROOT_OF_HOST + b"50 20 0:60 / /m rw - overlay o rw\n")
    (world.proc / "10" / "root").unlink()
    (world.proc / "10" / "root").symlink_to(world.file(50, "/host"))
    (world.proc / "10" / "mountinfo").write_bytes(FILES + b"50 40 0:60 / /host rw - overlay overlay rw\n")
    first = first_process.Member(10)
    assert foreign_files.View(world.crashed(11), first).home() == (b"0:50", b"/")
    first.close()


def test_whoever_has_the_hosts_own_root_is_no_container(world: World) -> None:
    # A container whose root directory is the host's, or none that anybody could name.
    for number, mountinfo in enumerate((b"20 1 8:1 / / rw - ext4 a rw\n", b"")):
        world.process(30 + number, "1", f"/docker/{number}" + ID[1:], mountinfo, **world.container())
    # Nor is whoever has the host's mounts, though it is the first process of a pid namespace.
    world.process(40, "1", OTHER, **world.container(mnt=world.host["mnt"]))
    world.process(21, exe=(20, "/srv/x"))
    assert root_told(world.crashed(21, "/srv")) == ""


def test_of_many_processes_in_one_mount_namespace_one_is_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.process(21, exe=(20, "/srv/x"))
    mounts = world.namespace(owner=world.host["user"])
    for pid in range(30, 40):
        world.process(pid, mountinfo=b"" if pid == 30 else FILES, mnt=mounts)
    asked: list[str] = []
    real = strangers._root_of

    def ask(task: str, view: foreign_files.View) -> tuple[bytes, bytes] | None:
        asked.append(task)
        if len(asked) == 1:
            raise Refused("more mounts than can be looked at")
        return real(task, view)

    monkeypatch.setattr(strangers, "_root_of", ask)
    assert root_told(world.crashed(21, "/srv")) == ""
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("path", "number", "own"),
    [
        *(
            ("/var/l/up", 20, False),
            ("/var/l/up/x", 20, False),
            ("/var/l/low", 20, False),
            ("/var/l/8/diff", 20, False),
        ),
        *(
            ("/var/l/9/diff", 21, False),
            ("/var/l/other", 20, True),
            ("/var/l/up2", 20, True),
            ("/var/l/work", 20, True),
        ),
    ],
)
def test_the_layers_of_what_an_engine_has_mounted_are_its_containers_files_too(
    world: World, path: str, number: int, own: bool
) -> None:
    options = b"rw,lowerdir=/var/l/low:9/diff:/missing,upperdir=8/diff,workdir=/var/l/work"
    mounts = (
        b"21 20 8:2 /data /var/l/9 rw - ext4 b rw\n50 20 0:60 / /var/l/8/merged rw - overlay overlay %s\n" % options
    )
    more = b"51 20 0:61 / /var/lib/m rw - overlay overlay rw,upperdir=/var/l/up\n"
    (world.proc / "self" / "mountinfo").write_bytes(ROOT_OF_HOST + mounts + more)
    world.process(21, exe=(number, f"{path}/x"))
    assert root_told(world.crashed(21, path, number)).startswith(
        "" if own else "its root directory lies in the files of another container"
    )
    assert bool(root_told(world.crashed(21, path, number))) is not own


def test_the_containers_own_files_are_no_other_containers(world: World, box: dict[str, Any]) -> None:
    engine = b"50 20 0:50 / /var/merged rw - overlay overlay rw,upperdir=/var/upper\n"
    (world.proc / "self" / "mountinfo").write_bytes(ROOT_OF_HOST + engine)
    assert root_told(world.crashed(11, "/jail", 40), 10) == ""
    # With mounts of its own, and the same root directory in them.
    world.process(12, "3", DOCKER, FILES, **{**box, "mnt": world.namespace()})
    assert root_told(world.crashed(12, "/", 40), 10) == ""
    assert root_told(world.crashed(12, "/jail", 40), 10) == ""
    # But not for an agent that has joined the mounts, whether or not anybody is at home there.
    world.process(30, "1", OTHER, OTHER_FILES, **world.container())
    world.process(31, "2", OTHER, FILES, **world.container())
    assert "is in the mount namespace of another container" in root_told(world.crashed(31, "/", 40), 30)


def test_the_first_process_of_an_agent_is_no_proof_of_itself(world: World, box: dict[str, Any]) -> None:
    world.process(30, "1", OTHER, FILES, **world.container(mnt=box["mnt"]))
    assert "is in the mount namespace of another container" in told(world.crashed(30))
    world.process(31, "2", OTHER, FILES, pid=world.proc / "30/ns/pid", mnt=box["mnt"])
    assert "is in the mount namespace of another container" in told(world.crashed(31))


@pytest.mark.parametrize("kind", ["net", "ipc", "uts"])
def test_the_container_whose_pid_namespace_is_shared_does_not_tell_what_may_be_the_hosts(
    world: World, kind: str
) -> None:
    box = {**world.container(), kind: world.namespace()}
    world.process(10, "1", DOCKER, FILES, bounding=FEW, **box)
    mounts = world.namespace(owner=world.host["user"])
    for pid in (30, 31):
        world.process(pid, str(pid), OTHER, OTHER_FILES, started=pid, bounding=FEW, pid=box["pid"], mnt=mounts)
    assert told(world.crashed(31)) == ""


@pytest.mark.parametrize("kind", ["net", "ipc", "uts"])
def test_whoever_has_kept_a_namespace_of_the_host_is_withheld(world: World, kind: str) -> None:
    box = {**world.container(), kind: world.namespace()}
    world.process(10, "1", DOCKER, FILES, bounding=FEW, **box)
    for pid, namespace in ((11, world.host[kind]), (12, world.namespace()), (13, box[kind])):
        world.process(pid, str(pid), DOCKER, FILES, bounding=FEW, **{**box, kind: namespace})
    assert [bool(told(world.crashed(pid))) for pid in (11, 12, 13)] == [True, False, False]
    assert f"but in the host's {kind} namespace" in told(world.crashed(11))
    # A container that has the host's own.
    shared = world.container()
    for number, pids in ((20, "1"), (21, "2")):
        world.process(number, pids, OTHER, OTHER_FILES, bounding=FEW, **shared)
    assert told(world.crashed(21)) == ""


def test_what_is_no_process_is_nobody(world: World, box: dict[str, Any]) -> None:
    world.process(21)
    (world.proc / "99").mkdir()
    asked: list[int] = []
    first = first_process.Member(10)
    # append() returns None: nobody is wanted.
    assert not strangers.find(world.crashed(11), first, asked.append)  # type: ignore[arg-type]
    first.close()
    assert sorted(asked) == [10, 11, 21, 99]
    process = world.crashed(21)
    assert keeps_descriptors(lambda: strangers.find(process, None, lambda pid: pid in (10, 99)))
    assert strangers.find(process, None, lambda pid: pid == 10)
    assert not strangers.find(process, None, lambda pid: False)


@pytest.fixture
def session(world: World) -> Path:
    """The mounts of a daemon, with the root directory of the host, in which process 21 of the host has a session."""
    mounts = world.namespace(owner=world.host["user"])
    world.process(21, cgroup="/user.slice/user-0.slice/session-1.scope", mnt=mounts)
    assert told(world.crashed(21)) == ""
    return mounts


SESSION = "/user.slice/user-1000.slice/session-2.scope"


def test_a_sandbox_that_a_user_has_made_in_mounts_of_the_host_is_no_container(world: World, session: Path) -> None:
    users = world.namespace(world.host["user"], maker=1000)
    pids = world.namespace(world.host["pid"], owner=users)
    world.process(30, "1", SESSION, mnt=session, user=users, pid=pids)
    below = world.namespace(users, maker=0)
    inner = world.namespace(pids, owner=below)
    world.process(31, "2 1", SESSION, mnt=session, user=below, pid=inner)
    process = world.crashed(21)
    assert told(process) == ""
    assert keeps_descriptors(lambda: told(process))


@pytest.mark.parametrize("users", ["of the host", "of its own, later"])
def test_a_container_that_root_has_made_in_mounts_of_the_host_is_one_whatever_users_it_has(
    world: World, session: Path, users: str
) -> None:
    pids = world.namespace(world.host["pid"])
    own = world.host["user"] if users == "of the host" else world.namespace(world.host["user"], maker=1000)
    world.process(30, "1", SESSION, mnt=session, user=own, pid=pids)
    assert "is in the mount namespace of another container" in told(world.crashed(21))
    # Neither its first process nor one in a pid namespace below it.
    (world.proc / "30").rename(world.directory / "gone")
    world.process(31, "2 1", SESSION, mnt=session, user=own, pid=world.namespace(pids, owner=own))
    assert "is in the mount namespace of another container" in told(world.crashed(21))


def test_root_of_the_host_in_the_pid_namespace_of_a_user_is_no_user(world: World, session: Path) -> None:
    users = world.namespace(world.host["user"], maker=1000)
    world.process(30, "1", SESSION, mnt=session, pid=world.namespace(world.host["pid"], owner=users))
    assert "is in the mount namespace of another container" in told(world.crashed(21))


def test_a_user_who_could_change_the_mounts_is_a_stranger(world: World) -> None:
    users = world.namespace(world.host["user"], maker=1000)
    mounts = world.namespace(owner=users)
    world.process(30, "1", SESSION, mnt=mounts, user=users, pid=world.namespace(world.host["pid"], owner=users))
    world.process(21, cgroup="/user.slice/user-0.slice/session-1.scope", mnt=mounts, user=users)
    assert "is in the mount namespace of another container" in told(world.crashed(21))


def test_a_sandbox_of_a_user_is_a_stranger_where_the_root_directory_is_not_the_hosts(world: World) -> None:
    mounts = world.namespace(owner=world.host["user"])
    world.process(21, cgroup="/system.slice/a.service", mountinfo=FILES, mnt=mounts)
    assert told(world.crashed(21)) == ""
    users = world.namespace(world.host["user"], maker=1000)
    pids = world.namespace(world.host["pid"], owner=users)
    world.process(30, "1", SESSION, FILES, mnt=mounts, user=users, pid=pids)
    assert "is in the mount namespace of another container" in told(world.crashed(21))


@pytest.mark.parametrize(("maker", "stranger"), [(1000, False), (0, True), (None, True)])
def test_the_name_that_a_user_gives_to_a_control_group_makes_no_container(
    world: World, session: Path, monkeypatch: pytest.MonkeyPatch, maker: int | None, stranger: bool
) -> None:
    monkeypatch.setattr(runtime, "maker_of", lambda controllers, above: maker)
    world.process(30, cgroup=f"/user.slice/user-1000.slice/user@1000.service/libpod-{ID}.scope", mnt=session)
    assert bool(told(world.crashed(21))) is stranger


def test_the_monitor_of_a_container_is_a_process_of_the_host(world: World, session: Path) -> None:
    world.process(30, cgroup=f"/machine.slice/libpod-conmon-{ID}.scope", mnt=session)
    assert told(world.crashed(21)) == ""
    # In the mounts of a container it is withheld as any other.
    box = world.container()
    world.process(40, "1", f"/machine.slice/libpod-{ID}.scope", FILES, **box)
    world.process(31, cgroup=f"/machine.slice/libpod-conmon-{ID}.scope", mountinfo=FILES, mnt=box["mnt"])
    assert "is in the mount namespace of another container" in told(world.crashed(31))


@pytest.mark.parametrize("there", [False, True])
def test_a_sandbox_that_ends_while_it_is_looked_at_is_nobodys_home(
    world: World, session: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    users = world.namespace(world.host["user"], maker=1000)
    pids = world.namespace(world.host["pid"], owner=users)
    world.process(30, "1", SESSION, mnt=session, user=users, pid=pids)

    def gone(namespace: int, last: int) -> int:
        if not there:
            (world.proc / "30").rename(world.directory / "gone")
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr("core_helper.namespaces.outermost", gone)
    process = world.crashed(21)
    assert bool(told(process)) is there
    assert keeps_descriptors(lambda: told(process))


def test_a_stranger_is_found_behind_one_that_is_gone(
    world: World, box: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(21)
    world.process(30, "1", OTHER, OTHER_FILES, **world.container())
    opened: list[int] = []
    real = first_process.Member

    def member(pid: int) -> first_process.Member:
        opened.append(pid)
        if len(opened) == 1:
            raise ProcessLookupError(3, "No such process")
        return real(pid)

    monkeypatch.setattr(strangers, "Member", member)
    assert strangers.find(world.crashed(21), None, lambda pid: pid in (10, 30))
    assert sorted(opened) == [10, 30]


def test_only_to_a_process_of_the_host_is_a_stranger_whoever_is_of_a_container(
    world: World, box: dict[str, Any]
) -> None:
    # An agent of another container, one of a sandbox that has no name, and two services of the host: nobody is at home there.
    mounts = world.namespace(owner=world.host["user"])
    agent: dict[str, Any] = {"mountinfo": FILES, "started": 500, "exe": (77, "/agent")}
    world.process(30, "1", OTHER, OTHER_FILES, **world.container())
    world.process(31, cgroup=OTHER, mnt=box["mnt"], **agent)
    world.process(32, "2", "/sandbox", **world.container(mnt=mounts), **agent)
    for pid, service in ((21, "a"), (22, "b")):
        world.process(pid, cgroup=f"/system.slice/{service}.service", mnt=mounts)
    found = {}
    for pid, number, other in ((11, 10, 31), (21, 21, 31), (21, 21, 32), (21, 21, 22)):
        first = first_process.Member(number)
        found[pid, other] = strangers.find(world.crashed(pid), first, other.__eq__)
        first.close()
    assert found == {(11, 31): False, (21, 31): True, (21, 32): True, (21, 22): False}


def test_a_host_with_too_many_processes_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.process(21)
    monkeypatch.setattr(strangers, "PATIENCE", -1.0)
    with pytest.raises(Refused, match="the host has too many processes"):
        strangers.find(world.crashed(21), None, lambda pid: False)


def part(process: Any, pid: int, first: int | None) -> bool:
    members = [None if number is None else first_process.Member(number) for number in (pid, first)]
    try:
        assert members[0] is not None
        return strangers._is_part(members[0], process, members[1])
    finally:
        for member in members:
            if member is not None:
                member.close()


def test_who_is_part_of_a_container_is_told_by_its_control_group(world: World, box: dict[str, Any]) -> None:
    world.process(30, "1", OTHER, OTHER_FILES, **world.container())
    process = world.crashed(11)
    # One that shares the pid namespace.
    world.process(31, "3", OTHER, pid=box["pid"])
    assert [part(process, pid, 10) for pid in (10, 11, 30, 31)] == [True, True, False, False]


def test_without_a_group_who_is_in_the_pid_namespace_or_below_it_is_part(world: World, box: dict[str, Any]) -> None:
    inner = world.container(pid=world.namespace(box["pid"]))
    world.process(12, "5 1", OTHER, **inner)
    world.process(30, "1", OTHER, OTHER_FILES, **world.container())
    world.process(21)
    process = world.crashed(11)
    # The root group does not tell, nor does one that no engine has named.
    for group in ("/", "/machine.slice/a.scope"):
        for pid in (10, 11, 12, 13):
            if (world.proc / str(pid)).exists():
                (world.proc / str(pid) / "cgroup").write_text(f"0::{group}\n")
        assert [part(process, pid, 10) for pid in (10, 12, 30, 21)] == [True, True, False, False]
        # Of thousands of processes that are asked, none costs a descriptor.
        assert keeps_descriptors(lambda: [part(process, pid, 10) for pid in (10, 12, 30, 21)])
    # Whoever is in the namespace above is part of it, too; a container of an engine in the container is not.
    assert part(world.crashed(12), 11, 12)
    (world.proc / "12" / "cgroup").write_text(f"0::/machine.slice/a.scope{OTHER}\n")
    assert not part(process, 12, 10)


def test_outside_of_pid_namespaces_who_has_no_container_is_part(world: World, box: dict[str, Any]) -> None:
    world.process(21)
    world.process(22, cgroup="/system.slice/a.service")
    world.process(23, cgroup=OTHER)
    process = world.crashed(21)
    assert [part(process, pid, None) for pid in (22, 23, 11)] == [True, False, False]
    # A container that was started from the login of the process, in whose control group it is, is none of the host's.
    for pid, pids, namespaces in ((24, "", {}), (25, "1", world.container())):
        world.process(pid, pids, "/user.slice/a.scope" + ("/b" if pids else ""), **namespaces)
    login = world.crashed(24)
    assert [part(login, pid, 24) for pid in (24, 25)] == [True, True]
    world.process(26, cgroup="/user.slice/a.scope", mnt=world.namespace(owner=world.host["user"]))
    assert [part(world.crashed(26), pid, 24) for pid in (24, 25)] == [True, False]


def at_home(pid: int) -> bool:
    member = first_process.Member(pid)
    try:
        return strangers._is_at_home(member)
    finally:
        member.close()


def test_whoever_is_first_or_has_the_mounts_of_the_eldest_is_at_home(
    world: World, box: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(12, "3", DOCKER, started=500, **{**box, "mnt": world.namespace()})
    world.process(13, "1", "/", **world.container())
    world.process(14, "2", "/", **world.container())
    world.process(15, cgroup="/docker/" + "c3" * 32, mnt=box["mnt"])
    world.process(1)
    world.process(16, cgroup="/docker/" + "d4" * 32, mnt=box["mnt"])
    (world.groups / "docker" / ("d4" * 32) / "cgroup.procs").unlink()
    assert [at_home(pid) for pid in (10, 11, 12, 13, 14, 15, 1, 16)] == [
        # Whose first process has changed its own mounts is at home where its program is.
        *(True, True, True, True, False),
        *(True, False, False),
    ]
    agent: dict[str, Any] = {**box, "mnt": world.namespace(), "started": 501, "exe": (77, "/agent")}
    world.process(17, "4", DOCKER, OTHER_FILES, **agent)
    assert not at_home(17)
    assert keeps_descriptors(lambda: at_home(11))
    # Nobody can tell of one with more mounts than can be looked at.
    world.process(18, "5", DOCKER, 50 * OTHER_FILES, **agent)
    monkeypatch.setattr(mount_table, "LONGEST_LIST", 50 * len(OTHER_FILES) - 1)
    assert at_home(18)
    assert keeps_descriptors(lambda: at_home(18))


def test_the_mount_namespace_of_a_process_whose_leader_has_exited_is_that_of_its_threads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(21)
    assert first_process.namespace_of(21, "mnt") == world.host["mnt"].stat().st_ino
    assert first_process.namespace_of(99, "mnt") is None
    (world.proc / "21" / "ns" / "mnt").unlink()
    monkeypatch.setattr(procfs, "task_of", lambda pid, tid: "/proc/self" if (pid, tid) == (21, None) else "/missing")
    assert first_process.namespace_of(21, "mnt") == world.host["mnt"].stat().st_ino


# The same with the kernel's own namespaces.


@pytest.mark.skipif(os.getuid() != 0, reason="a mount namespace without a user namespace needs root")
def test_a_process_of_this_host_in_the_mounts_of_another_one_is_withheld() -> None:
    stay = "os.write(1, b'x'); os.read(0, 1)"
    join = (
        f"import sys; sys.path.insert(0, {str(HELPER)!r}); from core_helper import linux;"
        f"linux.setns(os.open(sys.argv[1], os.O_RDONLY), linux.CLONE_NEWNS);"
    )
    # Something else as the root directory of whoever joins, not of the shell.
    first = (
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        'mount -t tmpfs x / && exec "$@"',
        "sh",
    )
    with running(*first, sys.executable, "-ISc", f"import os; {stay}") as init:
        process = looked_at(init)
        assert process.in_pid_namespace()
        membership.check(process)
        mounts = f"/proc/{init}/ns/mnt"
        with running(sys.executable, "-BISc", f"import os; {join} {stay}", mounts) as agent:
            process = looked_at(agent)
            assert process.in_container() and not process.in_pid_namespace()
            with pytest.raises(Withheld, match="mount namespace"):
                membership.check(process)


@contextlib.contextmanager
def running(*words: str) -> Iterator[int]:
    """Run ``words`` until they have written a byte and beyond, and yield the pid of the innermost child; or skip."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        if not process.stdout.read(1):
            pytest.skip(f"{words} does not work here")
        pid = process.pid
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
        try:
            yield pid
        finally:
            process.stdin.close()


def looked_at(pid: int) -> FaultingProcess:
    """Return what the helper knows of a process that does not crash."""
    proc = os.open("/proc", os.O_RDONLY)
    task = verification.open_task(proc, pid, None)
    status = procfs.parse_status(procfs.read(task, "status"))
    process = FaultingProcess(
        task, os.open(f"/proc/{pid}/root", os.O_PATH), *verification._open_namespaces(task, proc), status
    )
    os.close(proc)
    return process
