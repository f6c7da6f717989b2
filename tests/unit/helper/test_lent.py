"""lent: the program of the host for containers that have none: which one may be lent, and the copy that the container gets."""

from __future__ import annotations

import errno
import fcntl
import os
import posix
import shutil
import subprocess
from pathlib import Path

import pytest
from core_helper import control_groups, lent, linux
from core_helper.lent import Copy, Lent, changeable_part
from core_helper.program import Absent, Stopped
from unit.helper.support import elf, execute, executed, in_child, process, script

SEALS = 0xF  # All four of F_ADD_SEALS; fcntl(2).
MIB = 1 << 20


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program that prints its words."""
    directory = tmp_path_factory.mktemp("static")
    source = directory / "words.c"
    source.write_text("#include <stdio.h>\nint main(int n, char **words) { for (; *words; words++) puts(*words); }\n")
    subprocess.run(["gcc", "-static", "-o", directory / "words", source], check=True)
    return directory / "words"


def words_of(path: Path, *more: bytes) -> list[bytes]:
    return [os.fsencode(path), *more]


def copy_of(path: Path, *more: bytes) -> Copy:
    """Return the copy, made by root: whom else would the test have."""
    return Copy(words_of(path, *more), None)


@pytest.fixture(autouse=True)
def roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what this user owns be root's."""
    if os.getuid() == 0:
        return
    real = posix.stat

    def stat(path: bytes) -> os.stat_result:
        fields = list(real(path))
        fields[4] = 0 if fields[4] == os.getuid() else fields[4]
        return os.stat_result(fields)

    monkeypatch.setattr(posix, "stat", stat)


# The words.


def test_words_name_variables_of_the_process_and_facts_of_the_crash() -> None:
    environment = {b"CORE_DESTINATION": b"s3://cores/%P", b"CORE_KEY": b"node.7"}
    words = [b"/r", b"%P", b":s3:%{CORE_DESTINATION#s3://}/%{CORE_KEY}.core", b"100%%", b"%{CORE_KEY}%{CORE_KEY}"]
    filled = Lent({"P": b"4711"}).fill_in(words, environment)
    # What a container says is not filled in again.
    assert filled == [b"/r", b"4711", b":s3:cores/%P/node.7.core", b"100%", b"node.7node.7"]


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "lent /r: the process has no CORE_DESTINATION that begins with s3://: give one to the container"),
        ({b"CORE_DESTINATION": b""}, "has no CORE_DESTINATION that begins"),
        ({b"CORE_DESTINATION": b"gs://cores/"}, "has no CORE_DESTINATION that begins with s3://"),
    ],
)
def test_a_process_without_a_variable_of_the_words_has_nothing_lent(environment: dict[bytes, bytes], told: str) -> None:
    with pytest.raises(Absent, match=told):
        Lent({}).fill_in([b"/r", b"%{CORE_DESTINATION#s3://}"], environment)


# The copy.


def test_the_program_is_executed_from_a_copy_with_its_words_and_environment(static: Path) -> None:
    words = words_of(static, b"", b"a b", b"\xff")
    done = executed(lambda reporter: execute(Copy(words, None), {b"A": b"1"}, reporter))
    assert (done.arguments, done.environment, done.error) == (words, [b"A=1"], "")
    assert done.program == f"/memfd:{static.name} (deleted)"


def test_nobody_can_change_the_copy(static: Path) -> None:
    copy = copy_of(static)
    try:
        assert fcntl.fcntl(copy.descriptor, 1034) == SEALS  # F_GET_SEALS
        assert os.pread(copy.descriptor, 1 << 24, 0) == static.read_bytes()
        assert not os.get_inheritable(copy.descriptor)
        for change in (
            lambda file: os.pwrite(file, b"x", 0),
            lambda file: os.pwrite(file, b"x", static.stat().st_size),
            lambda file: os.ftruncate(file, 0),
            lambda file: fcntl.fcntl(file, linux.F_ADD_SEALS, 0),
        ):
            with pytest.raises(PermissionError):
                change(copy.descriptor)
    finally:
        os.close(copy.descriptor)


def test_each_crash_has_a_copy_of_its_own_and_no_file_of_the_host_stays_open(static: Path) -> None:
    def opened() -> object:
        before = set(os.listdir("/proc/self/fd"))
        copies = [copy_of(static).descriptor for _ in range(2)]
        found = [os.readlink(f"/proc/self/fd/{number}") for number in sorted(set(os.listdir("/proc/self/fd")) - before)]
        return [found, len({os.fstat(copy).st_ino for copy in copies})]

    assert in_child(opened) == [[f"/memfd:{static.name} (deleted)"] * 2, 2]


def test_a_kernel_that_knows_no_executable_memory_files_makes_one(
    static: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = posix.memfd_create

    def old(name: str, flags: int) -> int:
        if flags & linux.MFD_EXEC:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(posix, "memfd_create", old)
    os.close(copy_of(static).descriptor)


def test_a_copy_that_cannot_be_made_is_told(static: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, flags: int) -> int:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(posix, "memfd_create", refused)
    with pytest.raises(Stopped, match=f"lent {static}: cannot be copied into memory: Permission denied$"):
        copy_of(static)
    monkeypatch.undo()
    monkeypatch.setattr(posix, "sendfile", lambda *words: 0)
    with pytest.raises(Stopped, match="it has just been changed"):
        copy_of(static)


@pytest.mark.parametrize(("room", "lent_it"), [(0, False), (33 * MIB, True), (None, True)])
def test_a_container_whose_memory_does_not_hold_the_program_has_nothing_lent(
    static: Path, monkeypatch: pytest.MonkeyPatch, room: int | None, lent_it: bool
) -> None:
    if lent_it:
        os.close(Copy(words_of(static), room).descriptor)
        return
    monkeypatch.setattr(linux, "memory_file", None)  # Not called.
    told = r"takes 32 MiB of the memory of the container, which has 0 MiB left: raise that limit, or lend a smaller"
    with pytest.raises(Stopped, match=told):
        Copy(words_of(static), room)


# What is refused.


@pytest.fixture
def place(tmp_path: Path, static: Path) -> Path:
    """A program of the host that may be lent, in a directory of its own."""
    (tmp_path / "bin").mkdir(mode=0o755)
    return Path(shutil.copy(static, tmp_path / "bin/program"))


def refusal(path: Path) -> str:
    """Return why the program at the path is not lent, "" if it is."""
    try:
        os.close(copy_of(path).descriptor)
    except Stopped as error:
        return str(error).partition(f"lent {path}: ")[2]
    return ""


def test_only_what_root_alone_can_change_is_lent(place: Path) -> None:
    assert refusal(place) == ""
    for path, mode in ((place, 0o757), (place.parent, 0o757), (place.parent, 0o777)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert refusal(place) == f"others than root can change {path}: chown root and chmod go-w"
        path.chmod(before)
    # As /tmp: nobody can replace what root has there.
    place.parent.chmod(0o1777)
    assert refusal(place) == ""
    if os.getuid() == 0:
        for path in (place, place.parent):
            os.chown(path, 1000, 0)
            assert refusal(place) == f"others than root can change {path}: chown root and chmod go-w"
            os.chown(path, 0, 0)
            os.chown(path, 0, 1000)
            path.chmod(0o775)
            assert refusal(place) == f"others than root can change {path}: chown root and chmod go-w"
            os.chown(path, 0, 0)
            assert refusal(place) == ""


def test_a_path_with_a_link_is_not_lent(place: Path) -> None:
    for name, target, path in (
        ("link", "bin/program", "link"),
        ("directory", "bin", "directory/program"),
    ):
        (place.parents[1] / name).symlink_to(target)
        assert refusal(place.parents[1] / path) == (
            "Too many levels of symbolic links on the host: name a file there, without symbolic links"
        )


def test_what_is_no_static_program_is_not_lent(place: Path) -> None:
    missing = place.with_name("missing")
    assert refusal(missing) == "No such file or directory on the host: put it there"
    assert refusal(place.parent) == "not an executable file: chmod 0755"
    os.mkfifo(missing)
    assert refusal(missing) == "not an executable file: chmod 0755"
    place.chmod(0o644)
    assert refusal(place) == "not an executable file: chmod 0755"
    place.chmod(0o755)
    linked = "not a static program: lend one that is linked statically, as the container may have no libraries"
    for content in (b"#!/bin/sh\n", b"", Path("/bin/true").resolve().read_bytes()):
        assert refusal(script(missing.with_name("other"), content)) == linked
    assert refusal(script(missing.with_name("other"), elf(64, "<", []))) == ""


def test_a_part_of_a_path_that_is_gone_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: bytes) -> bytes:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(lent, "changeable_part", gone)
    assert refusal(place) == "cannot be copied into memory: No such file or directory"


def test_the_root_directory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat("/")
    fields = list(real)
    fields[0] = 0o040757
    monkeypatch.setattr(posix, "stat", lambda path: os.stat_result(fields) if path == b"/" else real)
    assert changeable_part(b"/x") == changeable_part(b"/") == b"/"


def test_the_room_of_the_containers_groups_counts(static: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [(b"", b"/docker/x")]
    monkeypatch.setattr(control_groups, "memory_left", lambda cgroups: MIB if cgroups is groups else None)
    with pytest.raises(Stopped, match="which has 1 MiB left"):
        Lent({}).copy(words_of(static), process(cgroups=groups))
