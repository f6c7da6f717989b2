"""mount_table: the lists of mounts, where a path lies, and the visits to mount namespaces."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from core_helper import apart, linux, mount_table, procfs
from core_helper.crash import Refused
from unit.helper.delivery import wait_for_text
from unit.helper.world import World, keeps_descriptors


def test_the_mount_of_a_file_is_told_without_asking_its_file_system() -> None:
    descriptor = os.open("/proc", os.O_PATH)
    proc_self = os.open("/proc/self", os.O_PATH)
    table = mount_table.Mounts(Path("/proc/self/mountinfo").read_bytes())
    for proc in (None, proc_self):
        assert keeps_descriptors(functools.partial(mount_table.mount_of, descriptor, proc))
        assert table[mount_table.mount_of(descriptor, proc)].point == b"/proc"
    for file in (descriptor, proc_self):
        os.close(file)


TABLE = rb"""20 1 8:1 / / rw - ext4 a rw
30 20 0:50 /sub /mnt/a\040b rw shared:1 - ext4 a rw
garbage
x 20 0:50 / /mnt rw - ext4 a rw
31 20 0:51 / /short
40 20 0:60 / / rw - overlay o rw
"""


def test_the_mounts_of_a_process_are_those_of_its_table() -> None:
    table = mount_table.Mounts(TABLE)
    found = {number: table[number] for number in range(100) if number in table and number != 31}
    assert {number: (mount.point, mount.device, mount.root) for number, mount in found.items()} == {
        20: (b"/", b"8:1", b"/"),
        30: (b"/mnt/a b", b"0:50", b"/sub"),
        40: (b"/", b"0:60", b"/"),
    }
    with pytest.raises(KeyError):
        table[2]


def test_the_directories_that_an_overlay_is_made_of_are_told() -> None:
    line = rb"40 20 0:60 / / rw shared:1 - overlay o rw,lowerdir=/l/A\040b:l/B,lowerdir+=/l/C,upperdir=/u,workdir=/w"
    assert mount_table.layers_of(mount_table.Mount(line.replace(rb"\\", b"\\"))) == [b"/l/A b", b"/l/B", b"/l/C", b"/u"]
    # As Docker writes it for an image of many layers.
    line = rb"40 20 0:60 / /var/o/8/merged rw - overlay o rw,lowerdir=l/A:l/B,upperdir=8/diff,workdir=8/work"
    layers = mount_table.layers_of(mount_table.Mount(line))
    assert layers == [b"/var/o/l/A", b"/var/o/l/B", b"/var/o/8/diff"]
    assert mount_table.layers_of(mount_table.Mount(TABLE.splitlines()[0])) == []


def test_a_path_is_on_the_mount_that_is_nearest_above_and_was_made_last() -> None:
    text = b"""20 1 8:1 / / rw - ext4 a rw
30 20 0:50 /sub /mnt rw - ext4 a rw
31 30 0:51 / /mnt/x rw - overlay o rw
32 31 0:52 / /mnt/x rw - fuse.fuse-overlayfs o rw
"""
    table = mount_table.Mounts(text)
    assert table.place_of(b"/srv/x") == (b"8:1", b"/srv/x")
    assert table.place_of(b"/mnt/y") == (b"0:50", b"/sub/y")
    assert table.place_of(b"/mnt2") == (b"8:1", b"/mnt2")
    assert table.place_of(b"/mnt/x/y") == (b"0:52", b"/y")
    assert mount_table.Mounts(b"").place_of(b"/") is None
    assert [mount.device for mount in table.overlays()] == [b"0:51", b"0:52"]


@pytest.mark.parametrize(
    ("link", "place"),
    [
        *(("../8/diff", "o/8/diff"), ("../../p/9", "p/9"), ("other", "o/l/other"), ("/p/9", None), (None, "o/l/A")),
    ],
)
def test_a_layer_is_where_the_link_leads_that_stands_for_it(
    tmp_path: Path, link: str | None, place: str | None
) -> None:
    (tmp_path / "o" / "l").mkdir(parents=True)
    layer = tmp_path / "o" / "l" / "A"
    if link is not None:
        layer.symlink_to(link)
    path, leads_to = os.fsencode(layer), b"/p/9" if place is None else os.fsencode(tmp_path / place)
    assert mount_table.Mounts(b"20 1 8:1 / / rw - ext4 a rw\n").place_of_layer(path) == (b"8:1", leads_to)
    # No link is read that is on no mount that we know, or on one of FUSE.
    assert mount_table.Mounts(b"").place_of_layer(path) is None
    assert mount_table.Mounts(b"20 1 0:9 / / rw - fuse.sshfs a rw\n").place_of_layer(path) is None


def test_of_the_hosts_mounts_those_of_fuse_that_a_user_has_made_are_left_out(world: World) -> None:
    kinds = (
        *((b"fuse.sshfs", b"rw,user_id=1000,group_id=0"), (b"fuse", b"rw,user_id=0,group_id=0"), (b"fusectl", b"rw")),
        *((b"fuse.fuse-overlayfs", b"rw,user_id=1000"), (b"fuse", b"user_id=1"), (b"ext4", b"rw,user_id=1000")),
    )
    lines = [b"%d 20 0:5 / /mnt rw - %s a %s\n" % (number, *words) for number, words in enumerate(kinds, 50)]
    (world.proc / "self" / "mountinfo").write_bytes(b"".join(lines))
    table = mount_table.mounts_of_host()
    assert [number for number in range(50, 56) if number in table] == [51, 52, 55]


@pytest.mark.skipif(os.getuid() != 0, reason="to join a mount namespace needs root")
def test_all_mounts_of_a_namespace_are_seen_by_a_visit() -> None:
    words = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=1M visited /mnt && echo && exec cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("no mount namespace can be made here")
        namespace = os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY)
        here = os.stat("/proc/self/ns/mnt").st_ino
        opened = os.listdir("/proc/self/fd")
        table = mount_table.Visits().mounts_of_namespace(namespace)
        assert b" visited " in table.text and b" visited " not in mount_table.mounts_of_host().text
        assert (os.stat("/proc/self/ns/mnt").st_ino, os.listdir("/proc/self/fd")) == (here, opened)
        os.close(namespace)
        process.stdin.close()
    with open("/dev/null") as wrong, pytest.raises(Refused, match="cannot be looked at"):
        mount_table.Visits().mounts_of_namespace(wrong.fileno())


class Stuck:
    """Visits to a mount namespace that keep whoever enters it, and what such a child has open then."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found = directory / "found"
        self.visits = mount_table.Visits()
        self.visits.patience = 0.5
        monkeypatch.setattr(linux, "setns", self.enter)
        read_within = apart._read_within

        def read(pipe: int, limit: float) -> bytes | None:
            wait_for_text(self.found)
            return read_within(pipe, limit)

        monkeypatch.setattr(apart, "_read_within", read)

    def enter(self, namespace: int, kind: int) -> None:
        opened = []
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # That of the list itself.
                opened += [os.readlink(f"/proc/self/fd/{name}")] if int(name) > 2 else []
        self.found.write_text(json.dumps([os.getpid(), *opened]))
        time.sleep(60)

    def told(self) -> str:
        with open("/dev/null") as namespace, pytest.raises(Refused) as refused:
            self.visits.mounts_of_namespace(namespace.fileno())
        return str(refused.value)


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stuck:
    return Stuck(tmp_path, monkeypatch)


def test_a_visit_that_does_not_end_is_ended_and_is_the_last_one(stuck: Stuck) -> None:
    core, writing = os.pipe()
    opened = os.listdir("/proc/self/fd")
    began = time.monotonic()
    assert "a process that enters its mount namespace has to wait" in stuck.told()
    assert 0.4 < time.monotonic() - began < 10
    pid, *inherited = json.loads(stuck.found.read_text())
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    assert os.listdir("/proc/self/fd") == opened
    # Nobody but the helper may hold the core: the process, the namespace, and the pipe for the list.
    assert os.readlink(f"/proc/self/fd/{core}") not in inherited
    assert [re.sub(r"\d+", "N", path) for path in sorted(inherited)][:2] == ["/dev/null", "/proc/N"]
    assert stuck.visits.hanging == 0
    stuck.found.unlink()
    assert "after one where that lasted too long" in stuck.told()
    assert not stuck.found.exists()
    for descriptor in (core, writing):
        os.close(descriptor)


def test_a_visitor_that_cannot_be_ended_is_known(stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "SIGKILL", 0)
    monkeypatch.setattr(apart, "GRACE", 0.1)
    assert "has to wait" in stuck.told()
    pid = json.loads(stuck.found.read_text())[0]
    assert stuck.visits.hanging == pid
    stuck.visits.patience = 60.0
    assert "after one where that lasted too long" in stuck.told()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_of_a_list_of_any_length_only_the_mounts_that_are_asked_for_are_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(21, mountinfo=TABLE)
    directory = world.open(world.proc / "21", os.O_PATH)
    monkeypatch.setattr(procfs, "MOUNTINFO_LIMIT", 40)
    monkeypatch.setattr(mount_table, "LONGEST_LIST", len(TABLE))
    table = mount_table.mounts_of(directory, 30, 40, 77)
    assert [number for number in range(100) if number in table] == [30, 40]
    assert (table[40].device, table[30].point) == (b"0:60", b"/mnt/a b")
    assert mount_table.sees(directory, 40) and not mount_table.sees(directory, 41)
    assert keeps_descriptors(lambda: mount_table.mounts_of(directory, 30))
    monkeypatch.setattr(mount_table, "LONGEST_LIST", len(TABLE) - 1)
    with pytest.raises(Refused, match="the list of its mounts is longer than"):
        mount_table.mounts_of(directory, 30)


def test_the_root_directory_is_known_by_the_first_mounts_without_one_that_is_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = b"20 1 8:1 / / rw - ext4 a rw\n"
    world.process(21, mountinfo=first + b"30 20 0:50 / /mnt rw - ext4 a rw\n")
    directory = world.open(world.proc / "21", os.O_PATH)
    for limit in range(len(first), 70):
        monkeypatch.setattr(procfs, "MOUNTINFO_LIMIT", limit)
        assert mount_table.first_mounts_of(directory).place_of_root() == (b"8:1", b"/")
    assert 30 in mount_table.first_mounts_of(directory)


USERS = b"rw,user_id=1000,group_id=1000"


@pytest.mark.parametrize(
    ("kind", "point", "options", "kept"),
    [
        (b"fuse.sshfs", b"/srv", USERS, False),
        (b"fuse.fuse-overlayfs", b"/srv", USERS, False),
        (b"fuseblk", b"/srv", USERS, False),
        (b"fuse.fuse-overlayfs", b"/srv", b"rw,user_id=0,group_id=0", True),
        (b"fuse.sshfs", b"/srv", b"rw", True),
        (b"overlay", b"/srv", b"rw,user_id=1000,lowerdir=/a", True),
        # All of the host's files.
        (b"fuse.sshfs", b"/", USERS, True),
    ],
)
def test_no_fuse_of_a_user_is_among_the_mounts_of_the_host(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: bytes, point: bytes, options: bytes, kept: bool
) -> None:
    first = b"20 1 8:1 / / rw - ext4 a rw\n"
    text = first + b"30 20 0:50 / %s rw shared:1 - %s x %s\n" % (point, kind, options)
    (world.proc / "self" / "mountinfo").write_bytes(text)
    assert (30 in mount_table.mounts_of_host()) is kept
    # That of the root directory of the process, and that of its program, are looked at whoever has made them.
    assert 30 in mount_table.mounts_of_host(30) and (30 in mount_table.mounts_of_host(31)) is kept
    monkeypatch.setattr(procfs, "MOUNTINFO_LIMIT", len(first))
    if not kept:
        assert mount_table.mounts_of_host().place_of_root() == (b"8:1", b"/")
        # What lies below one that was left out may not answer: it is nowhere.
        table = mount_table.mounts_of_host()
        monkeypatch.setattr("core_helper.mount_table.posix.readlink", None)
        assert (table.place_of(b"/srv/x/y"), table.place_of_layer(b"/srv/x")) == (None, None)
        assert table.place_of(b"/srv2/x") == (b"8:1", b"/srv2/x")
        return
    with pytest.raises(Refused, match="the list of the host's mounts is too long"):
        mount_table.mounts_of_host()


@pytest.mark.parametrize(
    ("point", "root", "path", "place"),
    [
        (b"/", b"/", b"/", b"/"),
        (b"/", b"/", b"/a/b", b"/a/b"),
        (b"/", b"/jail", b"/a", b"/jail/a"),
        (b"/mnt", b"/sub", b"/mnt/a", b"/sub/a"),
        (b"/mnt", b"/", b"/mnt", b"/"),
        (b"/mnt", b"/", b"/mnt2", None),
        (b"/mnt", b"/", b"/", None),
    ],
)
def test_a_path_has_its_place_in_the_file_system_of_its_mount(
    point: bytes, root: bytes, path: bytes, place: bytes | None
) -> None:
    expected = None if place is None else (b"8:1", place)
    mount = mount_table.Mount(b"20 1 8:1 %s %s rw - ext4 a rw" % (root, point))
    assert mount.place_of(path) == expected


def test_the_topmost_root_counts() -> None:
    assert mount_table.Mounts(TABLE).place_of_root() == (b"0:60", b"/")
    assert [mount.device for mount in mount_table.Mounts(TABLE).roots()] == [b"0:60", b"8:1"]
    assert mount_table.Mounts(b"30 20 0:50 / /mnt rw - ext4 a rw\n").place_of_root() is None
    assert mount_table.Mounts(b"").place_of_root() is None


@pytest.mark.parametrize(
    ("place", "tree", "below"),
    [
        ((b"1", b"/a"), (b"1", b"/a"), True),
        ((b"1", b"/a/b"), (b"1", b"/a/"), True),
        ((b"1", b"/ab"), (b"1", b"/a"), False),
        ((b"1", b"/"), (b"1", b"/a"), False),
        ((b"1", b"/a"), (b"1", b"/"), True),
        ((b"2", b"/a"), (b"1", b"/a"), False),
        (None, (b"1", b"/a"), False),
        ((b"1", b"/a"), None, False),
        (None, None, False),
    ],
)
def test_what_lies_below_a_directory_is_on_its_device_too(place: Any, tree: Any, below: bool) -> None:
    assert mount_table.is_below(place, tree) is below
