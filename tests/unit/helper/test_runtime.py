"""runtime: which group belongs to a container, and who is in it, on a made-up host."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import first_process, procfs, runtime
from core_helper.crash import Refused
from unit.helper.support import deep_directory
from unit.helper.world import (
    DOCKER,
    ID,
    OTHER,
    OTHER_ID,
    World,
    keeps_descriptors,
)


def test_the_processes_of_a_group_are_those_below_it_too(world: World) -> None:
    for pid, group in ((30, "/a"), (31, "/a/b"), (32, "/a/b/c"), (33, "/d")):
        world.process(pid, cgroup=group)
    # A group of threads, or one that goes away, does not stand in the way; and a link leads nowhere.
    (world.groups / "a" / "empty").mkdir()
    (world.groups / "a" / "link").symlink_to(world.groups / "d")
    assert keeps_descriptors(lambda: first_process._processes_in(b"", b"/a"))
    assert sorted(first_process._processes_in(b"", b"/a")) == [30, 31, 32]
    assert first_process._processes_in(b"cpu,cpuacct", b"/a") == []


def test_the_mount_of_an_old_hierarchy_is_found_by_its_first_controller(world: World) -> None:
    world.process(30, cgroup="/a")
    line = b"31 20 0:27 / %s rw - cgroup cgroup rw,cpu,cpuacct\n" % os.fsencode(world.groups)
    (world.proc / "self" / "mountinfo").write_bytes(line)
    assert first_process._processes_in(b"cpu,cpuacct", b"/a") == [30]


def test_a_group_that_is_too_far_down_for_one_path_is_looked_into_and_has_its_maker(world: World) -> None:
    world.process(30, cgroup="/a")
    deep = deep_directory(world.groups / "a", 17, "cgroup.procs", b"31\n")
    assert keeps_descriptors(lambda: first_process._processes_in(b"", b"/a"))
    assert sorted(first_process._processes_in(b"", b"/a")) == [30] + [31] * 17
    assert keeps_descriptors(lambda: runtime.maker_of(b"", deep[len(str(world.groups)) :]))
    assert runtime.maker_of(b"", deep[len(str(world.groups)) :]) == os.getuid()
    assert runtime.maker_of(b"", deep[len(str(world.groups)) :] + b"/none") is None


@pytest.mark.parametrize(("limit", "value"), [("MOST_GROUPS", 2), ("MOST_PROCESSES", 1)])
def test_too_many_processes_of_a_group_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    for pid, group in ((30, "/a"), (31, "/a/b")):
        world.process(pid, cgroup=group)
    monkeypatch.setattr(first_process, limit, value)
    assert len(first_process._processes_in(b"", b"/a")) == 2 if limit == "MOST_GROUPS" else True
    world.process(32, cgroup="/a/b/c")
    with pytest.raises(Refused, match="too many processes"):
        first_process._processes_in(b"", b"/a")


def test_as_many_processes_as_are_allowed_are_no_refusal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, group in ((30, "/a"), (31, "/a"), (32, "/a/b")):
        world.process(pid, cgroup=group)
    monkeypatch.setattr(first_process, "MOST_PROCESSES", 2)
    assert len(first_process._processes_in(b"", b"/a")) == 3


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (DOCKER, DOCKER),
        (f"{DOCKER}/init.scope", DOCKER),
        (f"{DOCKER}/docker/{OTHER_ID}/x", f"{DOCKER}/docker/{OTHER_ID}"),
        (f"/system.slice/docker-{ID}.scope", f"/system.slice/docker-{ID}.scope"),
        (f"/{ID}", f"/{ID}"),
        (f"{DOCKER}/libpod-conmon-{OTHER_ID}.scope", DOCKER),
        (f"{DOCKER}/crio-conmon-{OTHER_ID}/x", DOCKER),
        (f"/machine.slice/libpod-conmon-{ID}.scope", None),
        ("/system.slice/a.service", None),
        ("/", None),
        (ID, None),
    ],
)
def test_the_innermost_group_with_the_name_of_a_container_counts(path: str, named: str | None) -> None:
    found = runtime.named_group([(b"x", b"/"), (b"cpu", path.encode())])
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
    assert runtime.is_within([(b"", ours.encode())], [(b"", first.encode())]) is within


def test_every_hierarchy_that_both_have_decides() -> None:
    first = [(b"name=systemd", b"/"), (b"cpu", DOCKER.encode()), (b"pids", DOCKER.encode())]
    ours = {b"name=systemd": OTHER.encode(), b"cpu": DOCKER.encode(), b"pids": DOCKER.encode()}
    assert runtime.is_within(list(ours.items()), first)
    assert runtime.is_within([(b"pids", DOCKER.encode())], first)
    assert not runtime.is_within(list({**ours, b"pids": OTHER.encode()}.items()), first)
    assert not runtime.is_within([(b"cpu", OTHER.encode()), (b"pids", DOCKER.encode())], first)
    units = [(b"cpu", b"/a.service"), (b"pids", b"/a.service")]
    assert not runtime.is_within([(b"cpu", b"/a.service"), (b"pids", b"/b.service")], units)
    assert not runtime.is_within([(b"cpu", b"/b.service"), (b"pids", b"/a.service")], units)


@pytest.mark.parametrize(
    ("pids", "systemd", "within"),
    [
        ("/a.slice", "/a.slice/a.service", True),
        ("/a.slice/a.service", "/a.slice/a.service/b", True),
        ("/a.slice", "/a.slice/b.service", False),
        ("/", "/a.slice/a.service", False),
        ("/b.slice", "/a.slice/a.service", False),
        ("/a.slice", "/", False),
        ("/a.slice", None, False),
    ],
)
def test_where_one_hierarchy_shows_a_slice_another_one_tells(pids: str, systemd: str | None, within: bool) -> None:
    first = [(b"pids", b"/a.slice"), (b"name=systemd", b"/a.slice/a.service"), (b"cpuset", b"/")]
    ours = [(b"pids", pids.encode()), (b"cpuset", b"/")]
    if systemd is not None:
        ours.append((b"name=systemd", systemd.encode()))
    assert runtime.is_within(ours, first) is within


def test_the_group_of_a_unit_is_the_innermost_that_is_no_slice() -> None:
    groups = [
        (b"cpuset", b"/"),
        (b"pids", b"/a.slice"),
        (b"cpu", b"/a.slice/b.service"),
        (b"", b"/a.slice/b.service/c"),
    ]
    assert runtime.group_of_unit(groups) == (b"", b"/a.slice/b.service/c")
    assert runtime.group_of_unit(groups[:3]) == (b"cpu", b"/a.slice/b.service")
    assert runtime.group_of_unit(groups[:2]) is None


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("/a.service", "/a.service", True),
        ("/a.service/x", "/a.service/y", True),
        ("/user.slice/a.scope", "/user.slice/a.scope/b", True),
        ("/user.slice", "/user.slice", False),
        ("/lxc.payload.a/system.slice/x.service", "/lxc.payload.a/init.scope", True),
        ("/lxc.payload.b/init.scope", "/lxc.payload.a/init.scope", False),
        ("/lxc/b", "/lxc/a", False),
        ("/default/a/x", "/default/a", True),
        ("/default", "/default/a", False),
        ("/machine.slice/a.scope/payload/system.slice/x.service", "/machine.slice/a.scope/payload/init.scope", True),
        ("/system.slice/x.service", "/init.scope", False),
        ("/a.service", "/user.slice/init.scope", False),
        ("/user.slice/a.scope", "/user.slice/b.scope", False),
        ("/user.slice/a", "/system.slice/a", False),
        ("/", "/a", False),
    ],
)
def test_a_slice_alone_joins_nobody(one: str, other: str, share: bool) -> None:
    assert runtime._share_unit(one.encode(), other.encode()) is share


def test_who_may_make_control_groups_is_the_owner_of_the_one_above(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = runtime.outermost_group([(b"cpu", b"/"), (b"pids", f"/a/docker/{ID}/x/{OTHER_ID}".encode())])
    assert found == (ID, b"pids", b"/a/docker/")
    assert runtime.outermost_group([(b"", b"/a/b")]) is None
    asked = []

    def stat(path: bytes) -> Any:
        asked.append(path)
        if len(asked) < 3:
            raise FileNotFoundError(2, "No such file or directory")
        return SimpleNamespace(st_uid=1000)

    monkeypatch.setattr(runtime, "posix", SimpleNamespace(stat=stat))
    assert runtime.maker_of(b"", b"/docker/") == 1000
    assert asked == [
        b"/sys/fs/cgroup//docker/",
        b"/sys/fs/cgroup/unified/docker/",
        os.fsencode(world.groups) + b"/docker/",
    ]
    asked.clear()
    (world.proc / "self" / "mountinfo").write_bytes(b"")
    assert runtime.maker_of(b"name=systemd", b"/docker/") is None
    assert asked == [b"/sys/fs/cgroup/systemd/docker/"]


@pytest.mark.parametrize(("maker", "told"), [(0, ID[:12]), (1000, f"1000:{ID[:12]}"), (None, f"?:{ID[:12]}")])
def test_the_log_names_a_container_and_the_user_who_may_have_named_it(
    monkeypatch: pytest.MonkeyPatch, maker: int | None, told: str
) -> None:
    monkeypatch.setattr(runtime, "maker_of", lambda controllers, above: maker if above == b"/docker/" else 0)
    groups = [(b"pids", f"/docker/{ID}/x/{OTHER_ID}".encode())]
    assert runtime.name_for_log(groups) == told
    assert runtime.container_id(groups) == ID
    assert runtime.name_for_log([(b"", b"/a/b")]) == "-"


def test_where_a_process_is_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    name, identifier = runtime.whereabouts(os.getpid())
    assert name == Path("/proc/self/comm").read_bytes().rstrip(b"\n")
    groups = procfs.parse_cgroup(Path("/proc/self/cgroup").read_bytes())
    assert identifier == runtime.name_for_log(groups)
    monkeypatch.setattr(runtime, "name_for_log", lambda cgroups: ID if cgroups == groups else "-")
    assert runtime.whereabouts(os.getpid()) == (name, ID)
    assert runtime.whereabouts(1 << 22) == (b"", "-")
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(
    ("path", "user"),
    [
        ("/user.slice/user-1000.slice/session-2.scope", 1000),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", 1000),
        ("/user.slice/user-0.slice/session-1.scope", 0),
        ("/user.slice/user-1000.slice", 0),
        ("/user.slice/user-a.slice/b", 0),
        ("/user.slice/user-4294967294.slice/b", 4294967294),
        ("/user.slice/user-99999999999.slice/b", 0),
        ("/user.slice/a", 0),
        ("/lxc.payload.abc/1000.slice/x", 0),
        ("/lxc.payload.a/user.slice/user-1000.slice/session-2.scope", 0),
        ("/", 0),
    ],
)
def test_the_user_of_a_session_is_told_by_the_outermost_groups(path: str, user: int) -> None:
    assert runtime.user_of_session([(b"cpu", b"/"), (b"name=systemd", path.encode())]) == user


def test_the_innermost_group_that_root_has_made_is_where_a_user_cannot_make_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for group in ("a/user/1/2", "b", "c.slice/d.slice", "c.slice/e.service/f"):
        (world.groups / group).mkdir(parents=True)
    monkeypatch.setattr(runtime, "maker_of", lambda controllers, above: 1000 if b"user" in above else 0)

    def number(*paths: str) -> int | None:
        return runtime.group_of_root([(b"", path.encode()) for path in paths])

    assert number("/a/user/1/2") == number("/a/user/1") == number("/a/user") != number("/a")
    assert number("/", "/b") == number("/b") == number("/b/gone") == number("/b", "/a") != number("/a")
    assert number("/c.slice/d.slice", "/b") == number("/b") and number("/c.slice", "/c.slice/d.slice") is not None
    deepest = "/c.slice/e.service/f"
    assert number("/b", "/c.slice/e.service", deepest) == number(deepest) != number("/c.slice/e.service")
    assert number("/") is number("/gone") is number("/gone/b") is number() is None
    assert 0 < (number("/a") or 0) < 1 << 62
    monkeypatch.setattr(runtime, "maker_of", lambda controllers, above: None)
    assert number("/a") is None


def test_groups_of_two_hierarchies_never_have_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = {b"cpu": os.makedev(0, 26), b"pids": os.makedev(0, 27)}

    def look_up(controllers: bytes, path: bytes) -> Any:
        return SimpleNamespace(st_uid=0, st_dev=devices[controllers], st_ino=5)

    monkeypatch.setattr(runtime, "_look_up", look_up)
    numbers = {runtime.group_of_root([(controllers, b"/a")]) for controllers in devices}
    assert len(numbers) == 2 and None not in numbers


A, B = b"/docker/" + b"a" * 64, b"/docker/" + b"b" * 64


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ([(b"pids", A), (b"", A)], [(b"pids", A), (b"", A)], True),
        ([(b"pids", A + b"/x"), (b"", A)], [(b"pids", A), (b"", A + b"/y")], True),
        # One of them is ending.
        ([(b"pids", b"/"), (b"", A)], [(b"pids", A), (b"", A)], True),
        ([(b"pids", b"/"), (b"", B)], [(b"pids", A), (b"", A)], False),
        ([(b"pids", b"/"), (b"", b"/")], [(b"pids", A), (b"", A)], False),
        ([(b"pids", A), (b"", b"/")], [(b"pids", b"/"), (b"", A)], False),
        # A container in a container, in some hierarchies or in all.
        ([(b"pids", A), (b"", A + B)], [(b"pids", A), (b"", A)], False),
        ([(b"pids", A + B), (b"", A)], [(b"pids", A), (b"", A)], False),
        ([(b"pids", A + B), (b"", A + B)], [(b"pids", A), (b"", A)], False),
        ([(b"pids", A), (b"", A)], [], False),
        ([(b"pids", b"/"), (b"", b"/a")], [(b"pids", b"/"), (b"", b"/b")], None),
        ([], [], None),
    ],
)
def test_the_name_of_a_container_counts_in_the_hierarchies_in_which_both_have_one(
    ours: list[tuple[bytes, bytes]], theirs: list[tuple[bytes, bytes]], same: bool | None
) -> None:
    assert runtime.share_name(ours, theirs) is same
    assert runtime.share_name(theirs, ours) is same


UID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
POD = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice"


@pytest.mark.parametrize(
    ("path", "group"),
    [
        (f"{POD}/cri-containerd-{ID}.scope", f"pod-{UID}"),
        (f"{POD}/crio-{ID}.scope/container", f"pod-{UID}"),
        (f"/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope", f"pod-{UID}"),
        (f"/kubepods/besteffort/pod{UID}/{ID}", f"pod-{UID}"),
        (f"/kubepods/burstable/pod{'a1' * 16}/{ID}", f"pod-{'a1' * 16}"),
        # Not right above the container, or no uid.
        (f"{POD}/x/{ID}", f"container-{ID}"),
        (f"{POD}/docker-{ID}.scope/{POD}/{OTHER_ID}", f"pod-{UID}"),
        (f"/docker/{ID}/pod{UID}/{OTHER_ID}", f"container-{ID}"),
        (f"/pod{UID}x/{ID}", f"container-{ID}"),
        (f"/podabc/{ID}", f"container-{ID}"),
        (f"/x{UID}/{ID}", f"container-{ID}"),
        (DOCKER, f"container-{ID}"),
        # In no container.
        ("/", "host"),
        ("/system.slice/cron.service", "unit-cron.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service/x.service", "unit-getty_tty1.service"),
        ("/machine.slice/machine-box.scope/payload/system.slice/cron.service", "unit-machine-box.scope"),
        ("/lxc.payload.box/system.slice/cron.service", "unit-lxc.payload.box"),
        ("/user.slice/user-1000.slice/session-2.scope", "unit-user-1000.slice"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/a.service", "unit-user-1000.slice"),
        (f"{POD}", f"unit-kubepods-burstable-pod{UID.replace('-', '_')}.slice"),
        ("/user.slice", "unit-user.slice"),
        ("/../a b", "unit-_."),
        (f"/{'x' * 255}", f"unit-{'x' * 128}"),
    ],
)
def test_a_crash_counts_for_its_pod_or_container_or_unit(
    monkeypatch: pytest.MonkeyPatch, path: str, group: str
) -> None:
    monkeypatch.setattr(runtime, "maker_of", lambda controllers, above: 0)
    assert runtime.group_of([(b"", path.encode())]) == group


@pytest.mark.parametrize(("maker", "user"), [(1000, "1000"), (None, "unknown")])
def test_a_user_names_no_group_of_others(monkeypatch: pytest.MonkeyPatch, maker: int | None, user: str) -> None:
    monkeypatch.setattr(runtime, "maker_of", lambda controllers, above: maker if above.startswith(b"/user") else 0)
    path = f"/user.slice/user-1000.slice/user@1000.service/pod{UID}/{ID}"
    assert runtime.group_of([(b"", path.encode())]) == f"user-{user}.container-{ID}"


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/cron.service", "cron.service"),
        ("/system.slice/cron.service/a.service", "cron.service"),
        ("/lxc.payload.a/b", "lxc.payload.a"),
        ("/system.slice/system-sshd.slice/sshd@12-10.0.0.1:22-10.0.0.2:999.service", "sshd"),
        ("/user.slice/user-1000.slice/session-2.scope", ""),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/a.service", ""),
        (f"/machine.slice/libpod-conmon-{ID}.scope", ""),
        ("/delegated.slice/a.service", ""),
        ("/lost.slice/a.service", ""),
        ("/system.slice", ""),
        ("/../a", ""),
        ("/", ""),
    ],
)
def test_a_process_of_the_host_counts_for_a_unit_that_root_has_made(
    monkeypatch: pytest.MonkeyPatch, path: str, unit: str
) -> None:
    makers = {b"/delegated.slice/": 1000, b"/lost.slice/": None}
    monkeypatch.setattr(runtime, "maker_of", lambda controllers, above: makers.get(above, 0))
    assert runtime.unit_of_root([(b"cpu", b"/"), (b"pids", b"/system.slice"), (b"", path.encode())]) == unit.encode()
    # Whatever another hierarchy says, the session of a user is that.
    session = (b"name=systemd", b"/user.slice/user-1000.slice/session-2.scope")
    assert runtime.unit_of_root([(b"", path.encode()), session]) == b""


def test_the_unit_is_told_by_the_hierarchy_that_has_one() -> None:
    old = [(b"pids", b"/system.slice"), (b"cpu,cpuacct", b"/"), (b"name=systemd", b"/system.slice/cron.service")]
    assert runtime.group_of(old) == "unit-cron.service"
    assert runtime.group_of(old[:2]) == "unit-system.slice"
    assert runtime.group_of([(b"devices", b"/user.slice"), (b"", b"/user.slice/user-7.slice/x")]) == "unit-user-7.slice"
    assert runtime.group_of([]) == "host"
