"""membership: whether a process belongs to the container whose namespaces it is in, on a made-up host."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import first_process, membership, procfs
from core_helper.process import Withheld, withheld
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
    SYS_ADMIN,
    SYS_PTRACE,
    World,
    keeps_descriptors,
    looked_at,
    told,
)

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


# What the container's filters tell.


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
        # It is in the pid namespace of the host.
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
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], first: int, may: bool
) -> None:
    facts = {"in_pid_namespace": lambda: True, "permitted": 0, "bounding": 0, "sandbox": False, "other": "", **facts}
    facts["inode"] = lambda kind: 3 if kind == facts["other"] else 2
    # The host's, that of the container, and one below.
    monkeypatch.setattr(membership, "_user_namespaces", lambda process: [3, 2, 1] if process.sandbox else [2, 1])
    member: Any = SimpleNamespace(rights=first, namespace=lambda kind: 2)
    assert membership._may_have_joined(crashed(**facts), member) is may


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
