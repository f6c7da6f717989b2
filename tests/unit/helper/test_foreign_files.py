"""foreign_files: whose the files are that a process sees as its root directory, on a made-up host."""

from __future__ import annotations

import os
from typing import Any

import pytest
from core_helper import first_process, foreign_files, mount_table, procfs
from core_helper.crash import Refused
from core_helper.process import Withheld
from unit.helper.world import DOCKER, FEW, FILES, ID, OTHER, OTHER_FILES, ROOT_OF_HOST, World, keeps_descriptors, told


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
    world.owners[box["mnt"].stat().st_ino] = world.namespace(world.host["user"], maker=1000)
    (world.proc / "30" / "uid_map").write_text("0 1000 1\n")
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

    def ask(visits: mount_table.Visits, directory: int) -> tuple[bytes, bytes] | None:
        asked.append(procfs.path_of(directory).decode())
        raise Refused("more mounts than can be looked at")

    monkeypatch.setattr(mount_table.Visits, "root_of_namespace", ask)
    assert root_told(world.crashed(21, "/srv")) == ""
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("maker", "ids", "asked"),
    [
        # Any user may have made it, and mounted there what he reads.
        (1000, "0 1000 1\n1 100000 65536", False),
        # But this has files that root of the host owns, or the user of the process; and root mounts file systems of any owner.
        (1000, "0 0 1", True),
        (1000, "0 1000 1\n5 1033 2", True),
        (0, "0 100000 65536", True),
    ],
)
def test_a_container_in_a_user_namespace_is_asked_where_its_files_may_be_of_our_users(
    world: World, maker: int, ids: str, asked: bool
) -> None:
    world.process(21, exe=(20, "/srv/x"))
    users = world.namespace(world.host["user"], maker=maker)
    inner = world.namespace(users, maker=1000)
    srv = b"40 30 8:1 /srv / rw - ext4 /dev/sda1 rw\n"
    mounts = world.namespace(owner=inner)
    pids = world.namespace(world.host["pid"], owner=users)
    # A process with fewer users in the same mounts does not answer for the other one.
    world.process(29, "1", mountinfo=srv, user=inner, mnt=mounts, pid=pids, ids="0 4242 1")
    world.process(30, "2", mountinfo=srv, user=users, mnt=mounts, pid=pids, ids=ids)
    process = world.crashed(21, "/srv", uid=1034)
    assert bool(root_told(process)) is asked
    assert keeps_descriptors(lambda: root_told(process))


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
