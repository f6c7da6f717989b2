"""membership: whose files the process sees, on a made-up host."""

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
from core_helper import command, membership, procfs, victim
from core_helper.namespaces import outermost as outermost_of
from unit.helper.support import HELPER
from unit.helper.support import process as crashed
from unit.helper.world import ALL, World, keeps_descriptors

ID, OTHER_ID = "a1" * 32, "b2" * 32
DOCKER, OTHER = f"/docker/{ID}", f"/docker/{OTHER_ID}"
FILES = b"40 30 0:50 / / rw - overlay overlay rw\n"
OTHER_FILES = b"40 30 0:60 / / rw - overlay overlay rw\n"
SYS_ADMIN, SYS_PTRACE = 1 << 21, 1 << 19
FEW = ALL & ~(SYS_ADMIN | SYS_PTRACE)


@pytest.fixture
def box(world: World) -> dict[str, Path]:
    """A container of the processes 10, the first one, and 11."""
    box = world.container()
    for pid, pids in ((10, "1"), (11, "2")):
        world.process(pid, pids, DOCKER, FILES, 200 + pid, 9 if pid == 10 else 10, bounding=FEW, **box)
    return box


def told(process: Any) -> str:
    """Return why a core is withheld, or ""."""
    try:
        membership.check(process)
    except victim.Withheld as error:
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
    monkeypatch.setattr(membership, "first_of", None)
    membership.check(world.crashed(20))
    # But its root directory may be that of a container.
    assert "in another mount namespace than itself" in told(world.crashed(20, "/", 40))


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
    assert "other than that of its own container" in told(world.crashed(12))


def test_an_agent_in_another_containers_mounts_is_withheld(world: World, box: dict[str, Any]) -> None:
    # The first process of its container, which has joined the mounts, and a child of such a one in the host's pid namespace.
    world.process(30, "1", OTHER, FILES, exe=(77, "/agent"), **world.container(mnt=box["mnt"]))
    assert "executes a program from outside of the mount namespace" in told(world.crashed(30))
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
    with pytest.raises(victim.Withheld, match=told) as caught:
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
    ("first", "own", "traceable"),
    [(FEW, FEW, False), (FEW | SYS_PTRACE, FEW, True), (FEW, SYS_PTRACE, True), (FEW | SYS_ADMIN, SYS_ADMIN, False)],
)
def test_a_container_may_trace_if_the_first_process_or_this_one_may(
    world: World, first: int, own: int, traceable: bool
) -> None:
    box = world.container()
    world.process(10, "1", DOCKER, FILES, bounding=first, **box)
    world.process(11, "2", DOCKER, FILES, bounding=own, **box)
    process = world.crashed(11, permitted=own & first)
    membership.check(process)
    assert process.traceable is traceable


def test_a_process_of_no_known_container_may_be_traced(world: World) -> None:
    world.process(21, mnt=world.namespace(owner=world.host["user"]), bounding=FEW)
    process = world.crashed(21, traceable=False)
    assert told(process) == ""
    assert process.traceable is True


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
    error = membership.withheld(process, "why")
    assert (error.process, error.of_the_host) == (process, of_the_host)
    assert str(error) == "why: its core is not for a program of that one's image"


# Who is the first process.


def first_two(process: Any) -> list[str | None]:
    """Return the pids on the host of the first process of the container and of the outermost one."""
    names = []
    for member in membership.first_of(process):
        names.append(None if member is None else member.status["Tgid"])
        if member is not None:
            member.close()
    return names


def test_the_first_process_of_a_container_is_its_init(world: World, box: dict[str, Any]) -> None:
    assert first_two(world.crashed(11)) == ["10", None]


def test_the_kernel_names_the_first_process_where_it_can(world: World, box: dict[str, Any]) -> None:
    world.first_processes[box["pid"].stat().st_ino] = 10
    process = world.crashed(11, host_pid=0, cgroups=[])
    assert list(membership._candidates(process, process.descriptor("pid"), 0)) == [10]


def test_the_first_process_is_looked_for_among_all_where_it_is_no_ancestor(world: World) -> None:
    box = world.container()
    world.process(10, "1", DOCKER, FILES, **box)
    # Its parent, which has joined the pid namespace from the host as docker exec does, is gone.
    world.process(11, "2", DOCKER + "/below", FILES, parent=9, **box)
    process = world.crashed(11, cgroups=[])
    wanted = box["pid"].stat().st_ino
    assert list(membership._candidates(process, process.descriptor("pid"), wanted)) == [11, 9, *pids_in(world, box)]
    assert membership._init_of(process, process.descriptor("pid"), 2) is not None


def pids_in(world: World, box: dict[str, Any]) -> list[int]:
    names = [name for name in os.listdir(world.proc) if name.isdigit()]
    return [int(name) for name in names if os.path.samefile(world.proc / name / "ns" / "pid", box["pid"])]


def test_the_likely_candidates_are_ancestors_and_then_those_of_the_control_group(world: World) -> None:
    box = world.container()
    world.process(9, cgroup="/engine")
    world.process(10, "1", DOCKER, FILES, parent=9, **box)
    world.process(11, "2", DOCKER, FILES, parent=10, **box)
    process = world.crashed(11)
    wanted = box["pid"].stat().st_ino
    candidates = list(membership._candidates(process, process.descriptor("pid"), wanted))
    assert candidates[:5] == [11, 10, 9, 10, 11]
    assert sorted(candidates[5:]) == [10, 11]


def test_the_search_among_all_processes_ends(
    world: World, box: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = world.crashed(11, host_pid=0, cgroups=[])
    monkeypatch.setattr(membership, "PATIENCE", 0.0)
    wanted = box["pid"].stat().st_ino
    assert list(membership._candidates(process, process.descriptor("pid"), wanted)) == []


def test_a_process_that_is_the_first_one_of_another_namespace_does_not_count(world: World) -> None:
    box = world.container()
    inner = {**box, "pid": world.namespace(box["pid"])}
    world.process(10, "2", DOCKER, FILES, parent=12, **box)
    world.process(12, "3 1", DOCKER, FILES, **inner)
    process = world.crashed(10)
    with pytest.raises(command.Refused, match="first process of its pid namespace was not found"):
        membership.first_of(process)


def test_a_number_that_is_another_process_by_now_is_passed_over(world: World, box: dict[str, Any]) -> None:
    process = world.crashed(11)
    for wrong in (99, 11):
        world.first_processes[box["pid"].stat().st_ino] = wrong
        assert keeps_descriptors(lambda: membership._init_of(process, process.descriptor("pid"), 2))
        assert membership._init_of(process, process.descriptor("pid"), 2) is None
    world.first_processes[box["pid"].stat().st_ino] = 10
    # Of another depth: not the namespace that was asked for.
    assert membership._init_of(process, process.descriptor("pid"), 3) is None


def test_the_outermost_container_counts_where_containers_are_nested(world: World, box: dict[str, Any]) -> None:
    inner = world.container(pid=world.namespace(box["pid"]))
    world.process(12, "3 1", DOCKER + f"/docker/{OTHER_ID}", OTHER_FILES, parent=10, **inner)
    world.process(13, "4 2", DOCKER + f"/docker/{OTHER_ID}", OTHER_FILES, parent=12, **inner)
    assert first_two(world.crashed(13)) == ["12", "10"]


def test_the_outermost_namespace_is_that_below_the_hosts(world: World, box: dict[str, Any]) -> None:
    middle = world.namespace(box["pid"])
    inner = world.open(world.namespace(middle))
    own = world.host["pid"].stat().st_ino
    outermost = outermost_of(inner, own)
    assert os.path.samestat(os.fstat(outermost), box["pid"].stat())
    alone = world.open(box["pid"])
    assert keeps_descriptors(lambda: outermost_of(alone, own))
    assert outermost_of(alone, own) == alone


def test_a_container_in_the_hosts_pid_namespace_is_its_control_group(world: World) -> None:
    mounts = world.namespace(owner=world.host["user"])
    world.process(10, cgroup=DOCKER, started=5, mnt=mounts)
    world.process(9, cgroup=DOCKER + "/below", started=7, mnt=mounts)
    assert first_two(world.crashed(9)) == ["10", None]


def test_a_container_in_another_ones_pid_namespace_is_its_control_group(world: World, box: dict[str, Any]) -> None:
    mounts = world.namespace(owner=world.host["user"])
    world.process(30, "4", OTHER, OTHER_FILES, started=5, parent=9, pid=box["pid"], mnt=mounts, filters=1)
    world.process(31, "5", OTHER, OTHER_FILES, started=6, parent=30, pid=box["pid"], mnt=mounts, filters=1)
    assert first_two(world.crashed(31)) == ["30", "10"]


def test_a_sandbox_of_a_user_is_compared_with_what_has_started_it(world: World) -> None:
    box = world.container()
    world.process(9, cgroup="/user.slice/a", started=1)
    world.process(10, "1", "/user.slice/a", FILES, parent=9, filters=1, **box)
    world.process(11, "2", "/user.slice/a", FILES, parent=10, filters=1, **box)
    assert first_two(world.crashed(11)) == ["10", "9"]


def test_the_eldest_of_a_group_is_what_was_started_first_and_is_still_there(world: World) -> None:
    for pid, started in ((30, 9), (31, 7), (32, 8)):
        world.process(pid, cgroup="/a/b", started=started)
    (world.proc / "31" / "status").unlink()
    (world.groups / "a" / "cgroup.procs").write_text("77\n")
    eldest = membership._eldest_of(b"", b"/a")
    assert eldest is not None and eldest.status["Tgid"] == "32"
    eldest.close()
    assert keeps_descriptors(lambda: membership._eldest_of(b"", b"/a/b/nothing"))
    assert membership._eldest_of(b"", b"/nothing") is None


def test_a_process_of_the_root_group_has_no_eldest(world: World) -> None:
    world.process(21)
    assert membership._eldest_of_own(world.crashed(21)) is None
    world.process(22, cgroup="/a")
    cgroups = [(b"cpu", b"/"), (b"", b"/a")]
    eldest = membership._eldest_of_own(world.crashed(22, cgroups=cgroups))
    assert eldest is not None and eldest.status["Tgid"] == "22"
    eldest.close()


def test_the_processes_of_a_group_are_those_below_it_too(world: World) -> None:
    for pid, group in ((30, "/a"), (31, "/a/b"), (32, "/a/b/c"), (33, "/d")):
        world.process(pid, cgroup=group)
    # A group of threads, or one that goes away, does not stand in the way; and a link leads nowhere.
    (world.groups / "a" / "empty").mkdir()
    (world.groups / "a" / "link").symlink_to(world.groups / "d")
    assert keeps_descriptors(lambda: membership._processes_in(b"", b"/a"))
    assert sorted(membership._processes_in(b"", b"/a")) == [30, 31, 32]
    assert membership._processes_in(b"cpu,cpuacct", b"/a") == []


def test_the_mount_of_an_old_hierarchy_is_found_by_its_first_controller(world: World) -> None:
    world.process(30, cgroup="/a")
    line = b"31 20 0:27 / %s rw - cgroup cgroup rw,cpu,cpuacct\n" % os.fsencode(world.groups)
    (world.proc / "self" / "mountinfo").write_bytes(line)
    assert membership._processes_in(b"cpu,cpuacct", b"/a") == [30]


@pytest.mark.parametrize(("limit", "value"), [("MOST_GROUPS", 2), ("MOST_PROCESSES", 1)])
def test_too_many_processes_of_a_group_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    for pid, group in ((30, "/a"), (31, "/a/b")):
        world.process(pid, cgroup=group)
    monkeypatch.setattr(membership, limit, value)
    assert len(membership._processes_in(b"", b"/a")) == 2 if limit == "MOST_GROUPS" else True
    world.process(32, cgroup="/a/b/c")
    with pytest.raises(command.Refused, match="too many processes"):
        membership._processes_in(b"", b"/a")


def test_as_many_processes_as_are_allowed_are_no_refusal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, group in ((30, "/a"), (31, "/a"), (32, "/a/b")):
        world.process(pid, cgroup=group)
    monkeypatch.setattr(membership, "MOST_PROCESSES", 2)
    assert len(membership._processes_in(b"", b"/a")) == 3


@pytest.mark.parametrize(
    ("one", "other", "chosen"), [(1, 2, 1), (2, 1, 2), (1, 1, 1), (None, 1, 2), (1, None, 1), (None, None, None)]
)
def test_the_less_confined_of_two_is_chosen(one: int | None, other: int | None, chosen: int | None) -> None:
    members: list[Any] = [None if filters is None else SimpleNamespace(filters=filters) for filters in (one, other)]
    expected = None if chosen is None else members[chosen - 1]
    assert membership._less_confined(*members) is expected


def test_a_member_tells_what_its_files_say_and_nothing_stays_open_of_one_that_is_gone(world: World) -> None:
    world.process(30, "7 3", "/a", filters=2, bounding=5)
    member = membership.Member(30)
    assert (member.pids, member.filters, member.bounding) == (["30", "7", "3"], 2, 5)
    assert member.cgroups == [(b"", b"/a")]
    assert (member.mounts, member.processes) == tuple(world.host[kind].stat().st_ino for kind in ("mnt", "pid"))
    member.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(member.directory)
    (world.proc / "30" / "cgroup").unlink()

    def gone() -> None:
        with pytest.raises(FileNotFoundError):
            membership.Member(30)

    assert keeps_descriptors(gone)


# Whether a control group belongs to a container.


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (DOCKER, DOCKER),
        (f"{DOCKER}/init.scope", DOCKER),
        (f"{DOCKER}/docker/{OTHER_ID}/x", f"{DOCKER}/docker/{OTHER_ID}"),
        (f"/system.slice/docker-{ID}.scope", f"/system.slice/docker-{ID}.scope"),
        (f"/{ID}", f"/{ID}"),
        ("/system.slice/a.service", None),
        ("/", None),
        (ID, None),
    ],
)
def test_the_innermost_group_with_the_name_of_a_container_counts(path: str, named: str | None) -> None:
    found = membership.named_group([(b"x", b"/"), (b"cpu", path.encode())])
    assert found == (None if named is None else (b"cpu", named.encode()))


@pytest.mark.parametrize(
    ("ours", "first", "within"),
    [
        (DOCKER, DOCKER, True),
        (f"{DOCKER}/below", DOCKER, True),
        (f"{DOCKER}/a", f"{DOCKER}/b", True),
        (f"{DOCKER}x", DOCKER, False),
        (OTHER, DOCKER, False),
        ("/", DOCKER, False),
        (DOCKER, "/", True),
        ("/", "/", True),
        ("/system.slice/a.service/x", "/system.slice/a.service/y", True),
        ("/system.slice/a.service", "/system.slice/b.service", False),
        ("/", "/system.slice/b.service", False),
    ],
)
def test_a_group_lies_in_the_container_whose_first_process_is_in_it_or_above(
    ours: str, first: str, within: bool
) -> None:
    assert membership.is_within([(b"", ours.encode())], [(b"", first.encode())]) is within


def test_every_hierarchy_that_both_have_decides() -> None:
    first = [(b"name=systemd", b"/"), (b"cpu", DOCKER.encode()), (b"pids", DOCKER.encode())]
    ours = {b"name=systemd": OTHER.encode(), b"cpu": DOCKER.encode(), b"pids": DOCKER.encode()}
    assert membership.is_within(list(ours.items()), first)
    assert membership.is_within([(b"pids", DOCKER.encode())], first)
    assert not membership.is_within(list({**ours, b"pids": OTHER.encode()}.items()), first)
    assert not membership.is_within([(b"cpu", OTHER.encode()), (b"pids", DOCKER.encode())], first)
    units = [(b"cpu", b"/a.service"), (b"pids", b"/a.service")]
    assert not membership.is_within([(b"cpu", b"/a.service"), (b"pids", b"/b.service")], units)
    assert not membership.is_within([(b"cpu", b"/b.service"), (b"pids", b"/a.service")], units)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("/a.service", "/a.service", True),
        ("/a.service/x", "/a.service/y", True),
        ("/user.slice/a.scope", "/user.slice/a.scope/b", True),
        ("/user.slice", "/user.slice", False),
        ("/user.slice/a.scope", "/user.slice/b.scope", False),
        ("/user.slice/a", "/system.slice/a", False),
        ("/", "/a", False),
    ],
)
def test_a_slice_alone_joins_nobody(one: str, other: str, share: bool) -> None:
    assert membership._share_unit(one.encode(), other.encode()) is share


# Whether the process belongs to the container whose namespaces it is in.


def group_told(process: Any, first: int) -> str:
    member = membership.Member(first)
    try:
        membership._check_group(process, member)
    except victim.Withheld as error:
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
    (world.proc / "10" / "status").write_text("Tgid:\t10\nNStgid:\t10 1\nCapBnd:\t1\n")
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
    ],
)
def test_who_may_have_joined_mounts_needs_a_proof(facts: dict[str, Any], first: int | None, may: bool) -> None:
    facts = {"in_pid_namespace": lambda: True, "permitted": 0, "bounding": 0, **facts}
    member: Any = None if first is None else SimpleNamespace(bounding=first)
    assert membership._may_have_joined(crashed(**facts), member) is may


def test_only_what_sees_the_hosts_files_has_the_root_of_the_host(world: World, box: dict[str, Any]) -> None:
    world.process(21, mnt=world.namespace(owner=world.host["user"]))
    assert [membership._has_root_of_the_host(world.crashed(pid)) for pid in (21, 11)] == [True, False]
    for pid in ("21", "self"):
        (world.proc / pid / "mountinfo").write_bytes(b"")
    assert not membership._has_root_of_the_host(world.crashed(21))


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
    members = [membership.Member(pid) for pid in (30, 31)]
    members[0].cgroups = [(b"cpu", b"/"), (b"", b"/a")]
    assert [membership._has_group(member) for member in (*members, None)] == [True, False, False]
    for member in members:
        member.close()


def test_the_ancestors_of_a_user_namespace_end_at_the_hosts(world: World) -> None:
    middle = world.namespace(world.host["user"])
    inner = world.namespace(middle)
    inodes = [path.stat().st_ino for path in (inner, middle, world.host["user"])]
    assert membership._ancestors(world.open(inner)) == inodes
    assert membership._ancestors(world.open(middle)) == inodes[1:]


def owner_told(process: Any) -> str:
    try:
        membership._check_owner(process)
    except victim.Withheld as error:
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


# Whose the files are.


def test_two_have_the_same_root_if_device_and_directory_are_the_same(world: World) -> None:
    roots = [FILES, FILES, OTHER_FILES, b"40 30 0:50 /x / rw - overlay overlay rw\n", b"", b""]
    for number, mountinfo in enumerate(roots):
        world.process(30 + number, mountinfo=mountinfo)
    files = [world.open(world.proc / str(30 + number), os.O_PATH) for number in range(len(roots))]
    assert [membership._same_root(files[0], file) for file in files] == [True, True, False, False, False, False]
    assert not membership._same_root(files[4], files[5])


def root_told(process: Any, first: int | None = None) -> str:
    member = None if first is None else membership.Member(first)
    try:
        membership._check_root(process, member)
    except victim.Withheld as error:
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
        assert "in another mount namespace than itself" in root_told(world.crashed(21, path, 40))
    # Who is no process by now holds nothing.
    for name in ("10", "11"):
        (world.proc / name / "mountinfo").unlink()
    assert root_told(world.crashed(22, *places[22])) == ""


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


def test_the_files_of_its_own_container_are_for_the_process(world: World, box: dict[str, Any]) -> None:
    world.process(12, "3", DOCKER, MERGED, exe=(50, "/var/merged/x"), **{**box, "mnt": world.namespace()})
    process = world.crashed(12, "/var/merged", 50)
    (world.proc / "10" / "mountinfo").write_bytes(MERGED)
    # The tree of process 11 is that of its own container.
    assert root_told(process, 10) == ""


def test_a_root_on_a_mount_that_the_container_does_not_know_is_for_the_kernel_to_judge(
    world: World, box: dict[str, Any]
) -> None:
    # join_namespaces asks whether it is of the mount namespace of the process.
    assert root_told(world.crashed(11, "/jail", 77), 10) == ""


def test_the_root_of_a_mount_namespace_and_of_the_container_is_its_own(world: World, box: dict[str, Any]) -> None:
    (world.proc / "10" / "mountinfo").write_bytes(MERGED + OTHER_FILES)
    world.process(30, "1", OTHER, OTHER_FILES, **world.container())
    world.process(31, "1", f"/docker/{'c3' * 32}", FILES, **world.container())
    assert root_told(world.crashed(11, "/", 40), 10) == ""
    world.process(13, "4", DOCKER, FILES, exe=(77, "/x"), **box)
    assert root_told(world.crashed(13, "/", 50), 10) == ""
    # On the file system that the first process has as its root anyway.
    assert root_told(world.crashed(11, "/jail", 40), 10) == ""
    world.process(12, "3", DOCKER, MERGED, exe=(50, "/var/merged/x"), **box)
    assert "lies in the files" in root_told(world.crashed(12, "/var/merged", 50), 10)


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
    real = membership._read

    def read(pid: int | str, name: str) -> bytes:
        asked.append(name if pid != "self" else "")
        return real(pid, name)

    monkeypatch.setattr(membership, "_read", read)
    assert root_told(world.crashed(21, "/srv")) == ""
    # One that shows nothing is no answer for the others; those of the host are not asked.
    assert 1 <= asked.count("mountinfo") <= 2


def test_what_is_no_process_is_nobody(world: World, box: dict[str, Any]) -> None:
    world.process(21)
    (world.proc / "99").mkdir()
    asked: list[int] = []
    first = membership.Member(10)
    # append() returns None: nobody is wanted.
    assert not membership._find_stranger(world.crashed(11), first, asked.append)  # type: ignore[arg-type]
    first.close()
    assert sorted(asked) == [10, 11, 21, 99]
    process = world.crashed(21)
    assert keeps_descriptors(lambda: membership._find_stranger(process, None, lambda pid: pid in (10, 99)))
    assert membership._find_stranger(process, None, lambda pid: pid == 10)
    assert not membership._find_stranger(process, None, lambda pid: False)


def test_a_stranger_is_found_behind_one_that_is_gone(
    world: World, box: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(21)
    world.process(30, "1", OTHER, OTHER_FILES, **world.container())
    opened: list[int] = []
    real = membership.Member

    def member(pid: int) -> membership.Member:
        opened.append(pid)
        if len(opened) == 1:
            raise ProcessLookupError(3, "No such process")
        return real(pid)

    monkeypatch.setattr(membership, "Member", member)
    assert membership._find_stranger(world.crashed(21), None, lambda pid: pid in (10, 30))
    assert sorted(opened) == [10, 30]


def test_a_host_with_too_many_processes_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.process(21)
    monkeypatch.setattr(membership, "PATIENCE", -1.0)
    with pytest.raises(command.Refused, match="the host has too many processes"):
        membership._find_stranger(world.crashed(21), None, lambda pid: False)


def part(process: Any, pid: int, first: int | None) -> bool:
    members = [None if number is None else membership.Member(number) for number in (pid, first)]
    try:
        assert members[0] is not None
        return membership._is_part(members[0], process, members[1])
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
    assert [part(process, pid, None) for pid in (10, 12, 30, 21)] == [True, True, False, False]
    # Nor does the root group tell.
    (world.proc / "10" / "cgroup").write_text("0::/\n")
    assert [part(process, pid, 10) for pid in (10, 12, 30, 21)] == [True, True, False, False]


def test_outside_of_pid_namespaces_who_has_no_container_is_part(world: World, box: dict[str, Any]) -> None:
    world.process(21)
    world.process(22, cgroup="/system.slice/a.service")
    world.process(23, cgroup=OTHER)
    process = world.crashed(21)
    assert [part(process, pid, None) for pid in (22, 23, 11)] == [True, False, False]


def at_home(pid: int) -> bool:
    member = membership.Member(pid)
    try:
        return membership._is_at_home(member)
    finally:
        member.close()


def test_whoever_is_first_or_has_the_mounts_of_the_eldest_is_at_home(world: World, box: dict[str, Any]) -> None:
    world.process(12, "3", DOCKER, started=500, **{**box, "mnt": world.namespace()})
    world.process(13, "1", "/", **world.container())
    world.process(14, "2", "/", **world.container())
    world.process(15, cgroup="/docker/" + "c3" * 32, mnt=box["mnt"])
    world.process(1)
    world.process(16, cgroup="/docker/" + "d4" * 32, mnt=box["mnt"])
    (world.groups / "docker" / ("d4" * 32) / "cgroup.procs").unlink()
    assert [at_home(pid) for pid in (10, 11, 12, 13, 14, 15, 1, 16)] == [
        *(True, True, False, True, False),
        *(True, False, False),
    ]
    assert keeps_descriptors(lambda: at_home(11))


def test_the_mount_namespace_of_a_process_whose_leader_has_exited_is_that_of_its_threads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(21)
    assert membership._mount_namespace(21) == world.host["mnt"].stat().st_ino
    assert membership._mount_namespace(99) is None
    (world.proc / "21" / "ns" / "mnt").unlink()
    monkeypatch.setattr(procfs, "task_of", lambda pid, tid: "/proc/self" if (pid, tid) == (21, None) else "/missing")
    assert membership._mount_namespace(21) == world.host["mnt"].stat().st_ino


def test_the_number_of_what_is_gone_is_none(world: World) -> None:
    world.process(21)
    assert membership._inode("/proc/21/ns/mnt") == world.host["mnt"].stat().st_ino
    assert membership._inode("/proc/99/ns/mnt") is None
    assert keeps_descriptors(lambda: membership._read(21, "stat"))


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
            with pytest.raises(victim.Withheld, match="mount namespace"):
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


def looked_at(pid: int) -> victim.FaultingProcess:
    """Return what the helper knows of a process that does not crash."""
    proc = os.open("/proc", os.O_RDONLY)
    task = victim.open_task(proc, pid, None)
    status = procfs.parse_status(procfs.read(task, "status"))
    process = victim.FaultingProcess(
        task, os.open(f"/proc/{pid}/root", os.O_PATH), victim._open_namespaces(task, proc), status
    )
    os.close(proc)
    return process
