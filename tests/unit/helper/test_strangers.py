"""strangers: who else is at home in a mount namespace, on a made-up host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from core_helper import first_process, mount_table, procfs, runtime, strangers
from core_helper.crash import Refused
from unit.helper.world import DOCKER, FILES, ID, OTHER, OTHER_FILES, World, keeps_descriptors, told


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


def test_whoever_hides_in_a_group_whose_path_nobody_is_shown_is_a_stranger_except_in_the_files_of_the_host(
    world: World, box: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(21)
    real = procfs.read

    def read(directory: int, name: str, *words: int) -> bytes:
        if name == "cgroup" and b"30" in real(directory, "status").split(b"Tgid:")[1].split(b"\n")[0]:
            raise OSError(36, "File name too long")
        return real(directory, name, *words)

    world.process(30, "2", DOCKER, OTHER_FILES, **box)
    process = world.crashed(21)
    monkeypatch.setattr(procfs, "read", read)
    assert keeps_descriptors(lambda: strangers.find(process, None, lambda pid: pid == 30))
    assert strangers.find(process, None, lambda pid: pid == 30)
    assert not strangers.find(process, None, lambda pid: pid == 30, hosts=True)
    with pytest.raises(Refused, match="the path of its control group is too long"):
        first_process.Member(30)
    # The eldest of a group may be that one.
    world.process(31, "3", DOCKER, OTHER_FILES, started=500, **{**box, "mnt": world.namespace()})
    monkeypatch.setattr(first_process, "_processes_in", lambda *words: [30, 31])
    assert at_home(31)


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
