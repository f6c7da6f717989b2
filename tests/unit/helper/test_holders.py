"""holders: whose a crash is, on a made-up host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from core_helper import holders, linux, runtime, slots
from core_helper.crash import Crash
from unit.helper.support import crash_of
from unit.helper.world import OTHER_ID, World, keeps_descriptors

ID = "a1" * 32


def holder(pid: int, tid: int | None = None) -> tuple[str, int]:
    assert keeps_descriptors(lambda: holders.holder_of(crash_of(pid, tid)))
    found = holders.holder_of(crash_of(pid, tid))
    assert found.group == f"{max(found.owner, -1)} {found.name}"
    return found.name, found.owner


def test_a_process_of_the_host_is_that_of_its_user(world: World) -> None:
    world.process(21, cgroup="/user.slice/user-1000.slice/a")
    assert holder(21) == ("user 1000", 1000)
    assert holder(21, 21) == ("user 1000", 1000)


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """Who may make control groups beside that of the container: root, unless a test says otherwise."""
    maker: dict[str, int | None] = {"maker": 0}
    monkeypatch.setattr(runtime, "maker_of", lambda controllers, above: maker["maker"])
    return maker


def test_a_container_of_an_engine_is_one_whatever_namespaces_its_processes_have_made(
    world: World, maker: dict[str, int | None]
) -> None:
    for pid, user in enumerate(range(1000, 1070), 21):
        users = world.namespace(world.host["user"], maker=user)
        world.process(pid, cgroup=f"/docker/{ID}", user=users, pid=world.namespace(world.host["pid"], owner=users))
        assert holder(pid) == (f"container {ID}", -1)
    world.process(20, cgroup=f"/docker/{ID}")
    assert holder(20) == (f"container {ID}", -1)


def test_whoever_has_the_number_of_a_process_that_is_gone_does_not_pay() -> None:
    child = subprocess.Popen(["sleep", "100"])
    crash = Crash(child.pid, 4711, 0)
    crash.handle = linux.pidfd_open(child.pid)
    assert holders.holder_of(crash).name != "unknown"
    child.kill()
    child.wait()
    # As if this process had got the number.
    crash.pid = os.getpid()
    assert holders.holder_of(crash).group == "-1 unknown"
    os.close(crash.handle)


def test_the_containers_of_a_pod_are_one(world: World, maker: dict[str, int | None]) -> None:
    uid = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
    for pid, identifier in ((20, ID), (21, OTHER_ID)):
        world.process(pid, cgroup=f"/kubepods/burstable/pod{uid}/{identifier}")
        assert holder(pid) == (f"pod {uid}", -1)
    maker["maker"] = 1000
    assert holder(20) == (f"control group of user 1000 {ID}", 1000)


def test_a_control_group_that_a_user_has_named_counts_among_his_own(world: World, maker: dict[str, int | None]) -> None:
    maker["maker"] = 1000
    users = world.namespace(world.host["user"], maker=1234)
    ways: list[tuple[int, dict[str, Any]]] = [
        (21, {}),
        (22, {"user": users, "pid": world.namespace(world.host["pid"], owner=users)}),
    ]
    for pid, namespaces in ways:
        world.process(pid, cgroup=f"/user.slice/{ID}", **namespaces)
        assert holder(pid) == (f"control group of user 1000 {ID}", 1000)


def test_a_control_group_that_nobody_finds_is_no_name(world: World, maker: dict[str, int | None]) -> None:
    maker["maker"] = None
    world.process(21, cgroup=f"/docker/{ID}")
    assert holder(21) == ("user 1000", 1000)


def test_a_process_of_the_host_counts_for_the_unit_that_root_has_made_and_for_its_user(
    world: World, maker: dict[str, int | None]
) -> None:
    cron, other = "/system.slice/cron.service", "/system.slice/other.service"
    for pid, path in ((21, cron), (22, other), (23, "/user.slice/user-1000.slice/session-2.scope")):
        world.process(pid, cgroup=path)
    found = [holder(pid) for pid in (21, 22, 23)]
    assert found == [("unit cron.service", 1000), ("unit other.service", 1000), ("user 1000", 1000)]
    # Two users have no share in common. Root has one for each unit.
    groups = [holders.holder_of(Crash(pid, uid, uid)).group for uid in (0, 1001) for pid in (21, 22, 23)]
    assert groups == [
        f"{owner} {name}"
        for owner, user in ((-1, 0), (1001, 1001))
        for name in ("unit cron.service", "unit other.service", f"user {user}")
    ]
    maker["maker"] = 1000
    assert holder(21) == ("user 1000", 1000)


def test_units_are_those_of_who_made_a_user_namespace(world: World, maker: dict[str, int | None]) -> None:
    users = world.namespace(world.host["user"], maker=1234)
    world.process(21, cgroup="/system.slice/cron.service", user=users)
    assert holder(21) == ("unit cron.service", 1234)


def test_who_made_a_user_namespace_has_its_crashes(world: World) -> None:
    users = world.namespace(world.host["user"], maker=1234)
    inner = world.namespace(users, maker=99)
    for pid, namespace in ((21, users), (22, inner)):
        world.process(pid, user=namespace)
        assert holder(pid) == ("user 1234", 1234)


def test_a_user_has_the_numbers_that_he_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "subuid").write_text(
        "garbage\nann:100000:65536\n1001:165536:10\nbob:300000:5\ncam:400000:5\n1002:65536:1\n"
    )
    (tmp_path / "passwd").write_text("root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\ncam:x\n")
    for name in ("SUBUID", "PASSWD"):
        monkeypatch.setattr(holders, name, str(tmp_path / name.lower()))
    numbers = (0, 1000, 65535, 65536, 99999, 100000, 165535, 165536, 165546, 300000, 400000)
    # Of somebody who is not in the file, or whose number is elsewhere, nothing is known.
    assert [holders.user_of(number) for number in numbers] == [
        0,
        1000,
        65535,
        1002,
        99999,
        1000,
        1000,
        1001,
        165546,
        300000,
        400000,
    ]
    (tmp_path / "subuid").unlink()
    assert holders.user_of(100000) == 100000


def test_a_container_is_its_pid_namespace_and_those_below_it(world: World) -> None:
    pids = world.namespace(world.host["pid"])
    below = world.namespace(world.namespace(pids))
    name = f"container pid:[{pids.stat().st_ino}]"
    for pid, namespace in ((21, pids), (22, below)):
        world.process(pid, pid=namespace)
        assert holder(pid)[0] == name


def sandbox(world: World, pid: int, cgroup: str, uid: int = 1000) -> holders.Holder:
    """Return whose a crash of ``uid`` is, in a pid namespace of its own that root has made."""
    world.process(pid, cgroup=cgroup, pid=world.namespace(world.host["pid"]))
    return holders.holder_of(Crash(pid, uid, uid))


def test_sandboxes_that_root_makes_for_a_user_are_those_of_the_session(world: World) -> None:
    paths = ("session-2.scope", "session-3.scope", "user@1000.service/app.slice/x")
    found = [
        sandbox(world, pid, f"/user.slice/user-1000.slice/{path}", uid)
        for pid, path, uid in zip((21, 22, 23, 24), (*paths, paths[0]), (1000, 1000, 1001, 0))
    ]
    # Root alone could do anything; who has become another user in the session is still of that session.
    assert [holder.owner for holder in found] == [1000, 1000, 1000, -1]
    assert len({holder.group for holder in found}) == 4
    assert {holders.log_name(holder.owner, holder.group) for holder in found[:3]} == {"1000 user 1000"}


def test_sandboxes_outside_of_sessions_are_those_of_the_control_group_that_root_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        pid: sandbox(world, pid, path, uid)
        for pid, path, uid in (
            (21, "/lxc.payload.a", 1000),
            (22, "/lxc.payload.a", 1001),
            (23, "/lxc.payload.b", 1000),
            (24, "/", 1000),
            (25, "/", 1001),
            (26, "/", 1000),
            (27, "/lxc.payload.a/user.slice/user-1000.slice/x", 1000),
            (28, "/user.slice/user-0.slice/session-1.scope", 1000),
        )
    }
    owners = {pid: holder.owner for pid, holder in found.items()}
    # Nobody's are those of a user of the host: root of a container may have any number.
    assert all(owner < -1 for owner in owners.values())
    assert owners[21] == owners[22] and owners[24] == owners[26]
    assert len(set(owners.values())) == 6
    for holder in found.values():
        assert slots.RECORD.pack(1, 1, 1, holder.owner, b"a")
        # A container is one, whatever users its processes have.
        assert holder.group == f"-1 {holder.name}" == holders.log_name(holder.owner, holder.group)
    # No number of a group is that of a user.
    monkeypatch.setattr(runtime, "group_of_root", lambda cgroups: 1000)
    assert sandbox(world, 29, "/lxc.payload.a").owner not in (*owners.values(), -1001)


def test_a_container_whose_engine_has_named_it_is_roots_though_nobody_finds_the_group(
    world: World, maker: dict[str, int | None]
) -> None:
    maker["maker"] = None
    assert sandbox(world, 21, f"/docker/{ID}").owner == -1


def test_a_rootless_container_is_that_of_who_made_its_user_namespace(world: World) -> None:
    users = world.namespace(world.host["user"], maker=1234)
    inner = world.namespace(users, maker=0)
    pids = world.namespace(world.host["pid"], owner=inner)
    world.process(21, pid=pids, user=world.namespace(inner, maker=5))
    assert holder(21) == (f"container pid:[{pids.stat().st_ino}]", 1234)


def test_who_is_gone_while_it_is_looked_at_is_unknown_and_leaves_nothing_open(world: World) -> None:
    assert holder(99) == ("unknown", -1)
    world.process(21)
    (world.proc / "21" / "ns" / "user").unlink()
    assert holder(21) == ("unknown", -1)


def test_who_was_killed_where_old_hierarchies_forget_its_container_does_not_pay_as_the_host(world: World) -> None:
    world.process(21, cgroup="/\n3:cpu,cpuacct:/")
    world.process(22, cgroup="/\n3:cpu,cpuacct:/", pid=world.namespace(world.host["pid"]))
    for dumping, names in ((1, ["user 1000", "container "]), (0, ["unknown", "unknown"])):
        for pid in (21, 22):
            (world.proc / str(pid) / "status").write_text(f"Name:\ta\nCoreDumping:\t{dumping}\n")
        assert [holder(pid, pid)[0][:10] for pid in (21, 22)] == names
