"""control_groups: where the hierarchies are mounted, which files of them are opened, and how the groups are joined."""

from __future__ import annotations

import os
import posix
from pathlib import Path

import pytest
from core_helper import control_groups, linux, procfs
from unit.helper.support import deep_directory, in_child, process
from unit.helper.world import World, keeps_descriptors

V1 = b"""\
25 30 0:23 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
32 25 0:27 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,size=4096k,nr_inodes=1024,mode=755
34 32 0:29 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
37 32 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,cpu,cpuacct
38 32 0:33 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime shared:16 - cgroup cgroup rw,pids
39 32 0:34 / /sys/fs/cgroup/net_cls,net_prio rw,relatime shared:17 master:2 - cgroup cgroup rw,net_cls,net_prio
"""
HYBRID = V1 + b"33 32 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate\n"
V2 = b"""\
25 30 0:23 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
31 25 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
"""


def test_on_version_2_there_is_one_hierarchy() -> None:
    assert control_groups.cgroup_mounts(V2) == {b"": b"/sys/fs/cgroup"}


@pytest.mark.parametrize("mountinfo", [V1, HYBRID])
def test_on_version_1_each_controller_has_its_mount(mountinfo: bytes) -> None:
    mounts = control_groups.cgroup_mounts(mountinfo)
    assert mounts[b"name=systemd"] == b"/sys/fs/cgroup/systemd"
    assert mounts[b"cpu"] == mounts[b"cpuacct"] == b"/sys/fs/cgroup/cpu,cpuacct"
    assert mounts[b"pids"] == b"/sys/fs/cgroup/pids"
    assert mounts[b"net_cls"] == b"/sys/fs/cgroup/net_cls,net_prio"
    assert b"memory" not in mounts


def test_on_a_hybrid_machine_the_unified_hierarchy_is_found_beside_the_others() -> None:
    assert control_groups.cgroup_mounts(HYBRID)[b""] == b"/sys/fs/cgroup/unified"
    assert b"" not in control_groups.cgroup_mounts(V1)


def test_a_part_of_a_hierarchy_that_is_mounted_elsewhere_does_not_count() -> None:
    bind = b"90 80 0:26 /docker/x /var/lib/x/sys/fs/cgroup ro shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    assert control_groups.cgroup_mounts(bind) == {}
    assert control_groups.cgroup_mounts(bind + V2)[b""] == b"/sys/fs/cgroup"


def test_the_first_of_two_mounts_counts() -> None:
    second = b"99 80 0:26 / /mnt/host/cgroup rw shared:9 - cgroup2 cgroup2 rw\n"
    assert control_groups.cgroup_mounts(V2 + second)[b""] == b"/sys/fs/cgroup"


@pytest.mark.parametrize(
    ("written", "mount_point"),
    [
        (rb"/mnt/my\040own\040cgroup", b"/mnt/my own cgroup"),
        (rb"/mnt/a\011b\012c\134d", b"/mnt/a\tb\nc\\d"),
        # A name in which somebody wrote an escape.
        (rb"/mnt/\134040\134134", rb"/mnt/\040\134"),
    ],
)
def test_escapes_in_a_mount_point_are_decoded(written: bytes, mount_point: bytes) -> None:
    line = b"31 25 0:26 / " + written + b" rw - cgroup2 my\\040cgroup rw,nsdelegate\n"
    assert control_groups.cgroup_mounts(line)[b""] == mount_point


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"31 25 0:26 / /sys/fs/cgroup rw - tmpfs cgroup rw",
        b"31 25 0:26 / /sys/fs/cgroup rw - cgroupfs cgroup rw,pids",
        b"31 25 0:26 / /tmp/\\040-\\040cgroup2\\040cgroup2\\040rw rw - ext4 /dev/sda1 rw",
        b"31 25 - cgroup2",
        b"- cgroup2 cgroup2 rw",
        b"garbage - cgroup cgroup",
    ],
)
def test_lines_about_something_else_are_skipped(line: bytes) -> None:
    assert control_groups.cgroup_mounts(line + b"\n") == {}


def test_groups_are_joined_by_writing_0(tmp_path: Path) -> None:
    groups = control_groups.ControlGroups()
    for name in ("a", "b"):
        (tmp_path / name).touch()
        groups.add(name, os.fsencode(tmp_path / name))
    assert groups.join() == []
    assert [(tmp_path / name).read_bytes() for name in ("a", "b")] == [b"0", b"0"]
    assert not any(os.get_inheritable(file) for _, file in groups.others if isinstance(file, int))


def test_each_group_that_cannot_be_joined_is_told_and_the_others_are_joined(tmp_path: Path) -> None:
    (tmp_path / "good").touch()
    groups = control_groups.ControlGroups()
    groups.add("missing", os.fsencode(tmp_path / "missing" / "cgroup.procs"))
    groups.add("full", b"/dev/full")
    groups.add("good", os.fsencode(tmp_path / "good"))
    assert groups.join() == [
        "control group missing: No such file or directory",
        "control group full: No space left on device",
    ]
    assert (tmp_path / "good").read_bytes() == b"0"


@pytest.mark.parametrize("where", [None, "/"])
def test_the_fork_falls_back_to_a_plain_one(where: str | None) -> None:
    groups = control_groups.ControlGroups()
    if where is not None:
        groups.unified = os.open(where, os.O_PATH | os.O_DIRECTORY)
    groups.others = [(control_groups.UNIFIED, OSError(2, "x"))]
    pid = groups.fork()
    if pid == 0:
        os._exit(len(groups.others))
    _, status = os.waitpid(pid, 0)
    # 1: the child still knows that it has to join the group.
    assert os.WEXITSTATUS(status) == 1
    if groups.unified is not None:
        os.close(groups.unified)


def test_a_child_that_was_forked_into_its_group_does_not_join_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "fork_into_cgroup", lambda directory: 0)
    groups = control_groups.ControlGroups()
    groups.unified = 99
    groups.others = [(control_groups.UNIFIED, 98), ("pids", 97)]
    assert groups.fork() == 0
    assert groups.others == [("pids", 97)]


def open_groups(monkeypatch: pytest.MonkeyPatch, theirs: bytes, mountinfo: bytes) -> control_groups.ControlGroups:
    monkeypatch.setattr(procfs, "read_path", lambda path, limit: mountinfo)
    return control_groups.open_control_groups(process(cgroups=procfs.parse_cgroup(theirs)))


def test_the_groups_of_the_process_are_opened_where_they_are_mounted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("v1/docker/x/tasks", "v2/docker/x/cgroup.procs"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    mountinfo = b"1 0 0:1 / %s/v1 rw - cgroup cgroup rw,cpu,cpuacct\n2 0 0:2 / %s/v2 rw - cgroup2 none rw\n" % (
        (os.fsencode(tmp_path),) * 2
    )
    groups = open_groups(monkeypatch, b"3:pids:/\n2:cpu,cpuacct:/docker/x\n0::/docker/x\n", mountinfo)
    assert [name for name, _ in groups.others] == ["cpu,cpuacct", "unified"]
    assert groups.join() == []
    assert groups.unified is not None and os.path.samestat(os.fstat(groups.unified), os.stat(tmp_path / "v2/docker/x"))
    # A thread joins an old hierarchy by "tasks", a process the unified one by "cgroup.procs".
    assert (tmp_path / "v1/docker/x/tasks").read_bytes() == b"0"
    assert (tmp_path / "v2/docker/x/cgroup.procs").read_bytes() == b"0"


def test_a_group_whose_path_is_too_long_for_one_call_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mount_point = tmp_path / ("m" * 99)
    mount_point.mkdir()
    deep = deep_directory(mount_point, 16, "cgroup.procs", b"")
    path = deep[len(str(mount_point)) :]
    assert len(path) < procfs.PATH_MAX < len(deep)
    mountinfo = b"2 0 0:2 / %s rw - cgroup2 none rw\n" % os.fsencode(mount_point)
    groups = open_groups(monkeypatch, b"0::" + path + b"\n", mountinfo)
    assert groups.join() == []
    assert groups.unified is not None
    assert os.stat("cgroup.procs", dir_fd=groups.unified).st_size == 1


def test_root_groups_in_which_the_helper_is_already_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = open_groups(monkeypatch, b"2:cpu,cpuacct:/\n0::/\n", b"")
    assert (groups.unified, groups.others) == (None, [])


def test_the_groups_that_count_processes_can_be_left_for_the_root_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = [f"{name}{group}/{file}" for name, file in FILES for group in ("", "/docker/x")]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    mountinfo = (
        b"1 0 0:1 / %s/memory rw - cgroup cgroup rw,memory\n2 0 0:2 / %s/pids rw - cgroup cgroup rw,pids\n"
        b"3 0 0:3 / %s/v2 rw - cgroup2 none rw\n" % ((os.fsencode(tmp_path),) * 3)
    )
    groups = open_groups(monkeypatch, b"3:memory:/docker/x\n2:pids:/docker/x\n0::/docker/x\n", mountinfo)
    groups.leave()
    assert [name for name in files if (tmp_path / name).read_bytes()] == []
    groups.prepare_to_leave()
    assert groups.unified is None
    groups.leave()
    assert [name for name in files if (tmp_path / name).read_bytes()] == ["pids/tasks", "v2/cgroup.procs"]
    # A directory of the host's hierarchies is closed before the container can see us, and so are the files of the others.
    assert sorted(procfs.path_of(file).rpartition(b"/")[2] for file in groups.files()) == [b"cgroup.procs", b"tasks"]
    assert groups.join(counting_only=True) == []
    joined = [name for name in files if "docker" in name and (tmp_path / name).read_bytes()]
    assert joined == ["pids/docker/x/tasks", "v2/docker/x/cgroup.procs"]


FILES = (("memory", "tasks"), ("pids", "tasks"), ("v2", "cgroup.procs"))


def test_a_hierarchy_that_is_not_mounted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = open_groups(monkeypatch, b"2:cpu:/docker/x\n0::/docker/x\n", b"")
    reason = "its hierarchy is not mounted on the host"
    assert groups.join() == [f"control group cpu: {reason}", f"control group unified: {reason}"]
    assert groups.unified is None


def test_a_named_hierarchy_that_only_the_container_has_mounted_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = open_groups(monkeypatch, b"1:name=systemd:/machine.slice/x\n", b"")
    assert groups.join() == []


def test_descriptors_of_groups_survive_until_the_child_joins(tmp_path: Path) -> None:
    (tmp_path / "procs").touch()
    groups = control_groups.ControlGroups()
    groups.add("x", os.fsencode(tmp_path / "procs"))
    assert in_child(groups.join) == []
    assert (tmp_path / "procs").read_bytes() == b"0"


def test_only_the_files_of_the_groups_stay_open(world: World) -> None:
    world.process(21, cgroup="/a")
    cgroups = [(b"", b"/a"), (b"cpu", b"/"), (b"pids", b"/missing")]

    def opened() -> None:
        groups = control_groups.open_control_groups(process(cgroups=cgroups))
        assert groups.unified is not None and len(groups.files()) == 1
        assert isinstance(groups.others[1][1], OSError)
        assert not os.get_inheritable(groups.unified)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.listdir(groups.unified)
        for descriptor in (groups.unified, *groups.files()):
            os.close(descriptor)

    assert keeps_descriptors(opened)


def test_a_hierarchy_of_the_container_alone_does_not_hide_those_that_follow(world: World) -> None:
    cgroups = [(b"name=systemd", b"/a"), (b"cpu", b"/"), (b"", b"/gone")]
    groups = control_groups.open_control_groups(process(cgroups=cgroups))
    assert [name for name, _ in groups.others] == [control_groups.UNIFIED]


@pytest.mark.parametrize(
    ("line", "found"), [(b"31 25 0:26 / /x - cgroup2 c rw", True), (b"31 25 0:26 / - cgroup2 c rw", False)]
)
def test_a_line_needs_a_mount_point(line: bytes, found: bool) -> None:
    assert control_groups.cgroup_mounts(line + b"\n") == ({b"": b"/x"} if found else {})


def test_a_group_that_is_gone_is_told_and_the_rest_is_opened(world: World) -> None:
    groups = control_groups.open_control_groups(process(cgroups=[(b"", b"/gone")]))
    assert (groups.unified, groups.files()) == (None, [])
    assert groups.join() == ["control group unified: No such file or directory"]


def test_a_group_without_a_fork_into_it_is_joined_by_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork(directory: int) -> int:
        raise OSError(11, "Resource temporarily unavailable", "clone3")

    monkeypatch.setattr(linux, "fork_into_cgroup", fork)
    monkeypatch.setattr(posix, "fork", lambda: 0)
    groups = control_groups.ControlGroups()
    groups.unified, groups.others = 99, [(control_groups.UNIFIED, 98)]
    assert (groups.fork(), groups.others) == (0, [(control_groups.UNIFIED, 98)])


def test_the_parent_of_a_fork_into_the_group_keeps_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "fork_into_cgroup", lambda directory: 4711)
    groups = control_groups.ControlGroups()
    groups.unified, groups.others = 99, [(control_groups.UNIFIED, 98), ("pids", 97)]
    assert groups.fork() == 4711
    assert groups.files() == [98, 97]


def group_of_memory(directory: Path, **files: str) -> None:
    """Make a control group with these files, whose names have a . for each __."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


STAT = "anon 5\nactive_file 30\ninactive_file 20\ntotal_active_file 3000\ntotal_inactive_file 2000\n"


def test_the_memory_that_a_process_may_still_take_is_that_of_its_tightest_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(control_groups, "own_cgroup_mounts", lambda: {b"": os.fsencode(tmp_path)})
    groups = [(b"", b"/pod/box/inner"), (b"pids", b"/other")]
    group_of_memory(tmp_path, memory__max="1", memory__current="1", memory__stat=STAT)
    group_of_memory(tmp_path / "pod/box/inner", memory__max="max\n", memory__current="7\n", memory__stat=STAT)
    assert control_groups.memory_left(groups) is None  # The root group is no container's.
    group_of_memory(tmp_path / "pod/box", memory__max="1000\n", memory__current="700\n", memory__stat=STAT)
    assert control_groups.memory_left(groups) == 350
    group_of_memory(tmp_path / "pod", memory__max="900\n", memory__current="700\n", memory__stat=STAT)
    assert control_groups.memory_left(groups) == 250
    group_of_memory(tmp_path / "pod/box/inner", memory__max="5000\n")
    assert control_groups.memory_left(groups) == 250
    assert control_groups.memory_left([(b"", b"/")]) is None


def test_the_memory_of_version_1_counts_what_is_below_its_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(control_groups, "own_cgroup_mounts", lambda: {b"memory": os.fsencode(tmp_path)})
    files = {"memory__limit_in_bytes": "10000\n", "memory__usage_in_bytes": "8000\n", "memory__stat": STAT}
    group_of_memory(tmp_path / "docker/box", **files)
    groups = [(b"pids", b"/docker/box"), (b"memory", b"/docker/box")]
    assert control_groups.memory_left(groups) == 7000
    monkeypatch.setattr(control_groups, "own_cgroup_mounts", dict)
    assert control_groups.memory_left(groups) is None
