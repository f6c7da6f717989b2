"""first_process: with whom a process is compared, on a made-up host."""

from __future__ import annotations

import os
from typing import Any

import pytest
from core_helper import first_process, procfs
from core_helper.crash import Refused
from core_helper.namespaces import outermost as outermost_of
from unit.helper.world import (
    ALL,
    DOCKER,
    FILES,
    OTHER,
    OTHER_FILES,
    OTHER_ID,
    SYS_ADMIN,
    World,
    keeps_descriptors,
)


def first_two(process: Any) -> list[str | None]:
    """Return the pids on the host of the first process of the container, and of those that it is compared with, too."""
    first, others = first_process.first_of(process)
    names = [None if first is None else first.status["Tgid"], *(member.status["Tgid"] for member in others)]
    for member in ([] if first is None else [first]) + others:
        member.close()
    return names


@pytest.mark.parametrize(
    ("sign", "compared"),
    [
        *(("none", False), ("parent is gone", False), ("parent", True)),
        *(("user", True), ("rights", True), ("net", True), ("ipc", True), ("uts", True)),
    ],
)
def test_the_first_process_of_a_container_is_its_init(world: World, sign: str, compared: bool) -> None:
    # Whoever is older in its control group is looked for only where there is a sign that another process came first.
    world.process(8, cgroup=DOCKER, started=1)
    world.process(9, cgroup="/engine", started=1)
    box = {**world.container(), **{kind: world.namespace() for kind in ("net", "ipc", "uts") if kind != sign}}
    if sign == "user":
        box["user"] = world.namespace(world.host["user"])
    rights = first_process.DOCKER_CAPABILITIES | (SYS_ADMIN if sign == "rights" else 0)
    parent = {"parent": 8, "parent is gone": 7}.get(sign, 9)
    world.process(10, "1", DOCKER, FILES, parent=parent, bounding=rights, **box)
    world.process(11, "2", DOCKER, FILES, parent=10, bounding=0, **box)
    assert first_two(world.crashed(11)) == (["10", "8"] if compared else ["10"])


def test_the_kernel_names_the_first_process_where_it_can(world: World, box: dict[str, Any]) -> None:
    world.first_processes[box["pid"].stat().st_ino] = 10
    process = world.crashed(11, host_pid=0, cgroups=[])
    assert list(first_process._candidates(process, process.descriptor("pid"), 0)) == [10]


def test_the_first_process_is_looked_for_among_all_where_it_is_no_ancestor(world: World) -> None:
    box = world.container()
    world.process(10, "1", DOCKER, FILES, **box)
    # Its parent, which has joined the pid namespace from the host as docker exec does, is gone.
    world.process(11, "2", DOCKER + "/below", FILES, parent=9, **box)
    process = world.crashed(11, cgroups=[])
    wanted = box["pid"].stat().st_ino
    assert list(first_process._candidates(process, process.descriptor("pid"), wanted)) == [11, 9, *pids_in(world, box)]
    assert first_process._init_of(process, process.descriptor("pid"), 2) is not None


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
    candidates = list(first_process._candidates(process, process.descriptor("pid"), wanted))
    assert candidates[:5] == [11, 10, 9, 10, 11]
    assert sorted(candidates[5:]) == [10, 11]


def test_a_control_group_of_too_many_processes_does_not_end_the_search(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = world.container()
    world.process(10, "1", DOCKER, FILES, parent=0, **box)
    world.process(12, "3", DOCKER, FILES, parent=0, **box)
    monkeypatch.setattr(first_process, "MOST_PROCESSES", 0)
    assert first_two(world.crashed(12))[0] == "10"


def test_the_search_among_all_processes_ends(
    world: World, box: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = world.crashed(11, host_pid=0, cgroups=[])
    monkeypatch.setattr(first_process, "PATIENCE", 0.0)
    wanted = box["pid"].stat().st_ino
    assert list(first_process._candidates(process, process.descriptor("pid"), wanted)) == []


def test_a_process_that_is_the_first_one_of_another_namespace_does_not_count(world: World) -> None:
    box = world.container()
    inner = {**box, "pid": world.namespace(box["pid"])}
    world.process(10, "2", DOCKER, FILES, parent=12, **box)
    world.process(12, "3 1", DOCKER, FILES, **inner)
    process = world.crashed(10)
    with pytest.raises(Refused, match="first process of its pid namespace was not found"):
        first_process.first_of(process)


def test_a_number_that_is_another_process_by_now_is_passed_over(world: World, box: dict[str, Any]) -> None:
    process = world.crashed(11)
    for wrong in (99, 11):
        world.first_processes[box["pid"].stat().st_ino] = wrong
        assert keeps_descriptors(lambda: first_process._init_of(process, process.descriptor("pid"), 2))
        assert first_process._init_of(process, process.descriptor("pid"), 2) is None
    world.first_processes[box["pid"].stat().st_ino] = 10
    # Of another depth: not the namespace that was asked for.
    assert first_process._init_of(process, process.descriptor("pid"), 3) is None


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
    assert first_two(world.crashed(9)) == ["10"]


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
    eldest = first_process.eldest_of(b"", b"/a")
    assert eldest is not None and eldest.status["Tgid"] == "32"
    eldest.close()
    assert keeps_descriptors(lambda: first_process.eldest_of(b"", b"/a/b/nothing"))
    assert first_process.eldest_of(b"", b"/nothing") is None


def test_a_process_of_the_root_group_has_no_eldest(world: World) -> None:
    world.process(21)
    assert first_process._eldest_of_own(world.crashed(21)) is None
    world.process(22, cgroup="/a")
    cgroups = [(b"cpu", b"/"), (b"", b"/a")]
    eldest = first_process._eldest_of_own(world.crashed(22, cgroups=cgroups))
    assert eldest is not None and eldest.status["Tgid"] == "22"
    eldest.close()


def test_a_sandbox_in_a_container_of_the_hosts_pid_namespace_is_compared_with_that_one(world: World) -> None:
    users, sandbox = world.namespace(world.host["user"]), world.container()
    world.process(30, cgroup=DOCKER, started=1, mnt=world.namespace())
    world.process(31, "1", DOCKER, started=2, user=users, bounding=0, **sandbox)
    world.process(32, "2", DOCKER, started=3, user=users, **sandbox)
    crashed_in = world.crashed(32)
    assert first_two(crashed_in) == ["31", "30"]
    # So is one that root of the container has made, who needs no user namespace for that.
    other = world.container()
    world.process(33, "1", DOCKER, started=4, bounding=ALL, **other)
    world.process(34, "2", DOCKER, started=5, **other)
    assert first_two(world.crashed(34)) == ["33", "30"]
    # What is not in the bounding set any more may still be permitted.
    last = world.container()
    world.process(35, "1", DOCKER, started=6, bounding=0, permitted=SYS_ADMIN, **last)
    world.process(36, "2", DOCKER, started=7, bounding=0, **last)
    assert first_two(world.crashed(36)) == ["35", "30"]


def test_a_member_tells_what_its_files_say_and_nothing_stays_open_of_one_that_is_gone(world: World) -> None:
    world.process(30, "7 3", "/a", filters=2, bounding=5, permitted=2, inheritable=8)
    member = first_process.Member(30)
    assert (member.pids, member.filters, member.rights) == (["30", "7", "3"], 2, 15)
    assert member.cgroups == [(b"", b"/a")]
    assert (member.mount_namespace, member.pid_namespace) == tuple(
        world.host[kind].stat().st_ino for kind in ("mnt", "pid")
    )
    member.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(member.directory)
    (world.proc / "30" / "cgroup").unlink()

    def gone() -> None:
        with pytest.raises(FileNotFoundError):
            first_process.Member(30)

    assert keeps_descriptors(gone)


def test_the_number_of_what_is_gone_is_none(world: World) -> None:
    world.process(21)
    assert first_process.inode_of("/proc/21/ns/mnt") == world.host["mnt"].stat().st_ino
    assert first_process.inode_of("/proc/99/ns/mnt") is None
    assert keeps_descriptors(lambda: procfs.read_path("/proc/21/stat"))
