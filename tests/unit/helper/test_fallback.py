"""fallback.write: the core file, without the entry into a container, which needs root."""

from __future__ import annotations

import os
import posix
import resource
import signal
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import control_groups, fallback, joining
from unit.helper.delivery import supervise
from unit.helper.support import elf, process

pytestmark = pytest.mark.usefixtures("without_entry")


def write(path: Path, core: bytes, bound: tuple[int, int] = (0, 0)) -> Any:
    label: Any = SimpleNamespace(at_once=lambda: None)
    plan = joining.Plan(process(), control_groups.ControlGroups(), label, None)
    return supervise(lambda child: fallback.write(plan, os.fsencode(path), True, child, bound), core)


def test_the_path_holds_the_ids_of_the_host() -> None:
    assert fallback.path_of(4711, 1000, 100) == b"/tmp/core.4711.1000.100"


@pytest.mark.parametrize("size", [4, 3_000_000])
def test_the_whole_core_is_written_and_belongs_to_the_process_alone(tmp_path: Path, size: int) -> None:
    core = os.urandom(size)
    result = write(tmp_path / "core", core)
    assert (result.started, result.failure, result.complete, result.delivered) == (True, None, True, size)
    assert (tmp_path / "core").read_bytes() == core
    found = os.stat(tmp_path / "core")
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())


CORE = elf(64, "<", [(4096, 600_000)]).ljust(604_096, b"c")


@pytest.mark.parametrize("length", [0, 3, 100, 5000, 604_095])
def test_a_core_that_was_cut_off_has_a_name_that_says_so(tmp_path: Path, length: int) -> None:
    result = write(tmp_path / "core", CORE[:length])
    assert (result.failure, result.complete, result.cut, result.delivered) == (None, True, True, length)
    assert os.listdir(tmp_path) == ["core.truncated"]
    assert (tmp_path / "core.truncated").read_bytes() == CORE[:length]


def test_a_core_that_was_cut_off_replaces_no_other(tmp_path: Path) -> None:
    (tmp_path / "core.truncated").write_bytes(b"precious")
    result = write(tmp_path / "core", CORE[:5000])
    assert (result.started, result.failure) == (False, f"create fallback file: {tmp_path}/core: File exists")
    assert (tmp_path / "core.truncated").read_bytes() == b"precious"


def test_a_core_replaces_no_file_that_has_come_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = fallback.copy

    def copy(*arguments: Any) -> bool:
        (tmp_path / "core").write_bytes(b"precious")
        return original(*arguments)

    monkeypatch.setattr(fallback, "copy", copy)
    assert write(tmp_path / "core", CORE).failure == "rename fallback file: File exists"
    assert (tmp_path / "core").read_bytes() == b"precious"
    assert (tmp_path / "core.truncated").read_bytes() == CORE


def test_a_file_that_was_removed_meanwhile_leaves_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "fsync", lambda file: os.unlink(tmp_path / "core.truncated"))
    assert write(tmp_path / "core", CORE).failure == "rename fallback file: No such file or directory"
    assert os.listdir(tmp_path) == []


def test_a_writer_that_is_killed_leaves_no_name_of_a_whole_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posix, "fsync", lambda file: os.kill(os.getpid(), signal.SIGKILL))
    result = write(tmp_path / "core", CORE)
    assert result.failure == "it was killed by signal 9"
    assert os.listdir(tmp_path) == ["core.truncated"]


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_file_system_without_hard_links_has_whole_cores_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: bool
) -> None:
    def link(*names: bytes, follow_symlinks: bool) -> None:
        if meanwhile:
            (tmp_path / "core").write_bytes(b"precious")
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(posix, "link", link)
    result = write(tmp_path / "core", CORE)
    assert result.failure == ("rename fallback file: File exists" if meanwhile else None)
    assert (tmp_path / "core").read_bytes() == (b"precious" if meanwhile else CORE)
    assert sorted(os.listdir(tmp_path)) == ["core", "core.truncated"][: 1 + meanwhile]


def test_a_core_that_announces_its_length_and_is_whole_keeps_its_name(tmp_path: Path) -> None:
    result = write(tmp_path / "core", CORE)
    assert (result.failure, result.cut, os.listdir(tmp_path)) == (None, False, ["core"])


@pytest.mark.parametrize("kind", ["file", "hard link", "link", "dangling link", "directory", "fifo"])
def test_what_somebody_has_put_there_is_left_alone(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "core", tmp_path / "other"
    other.write_bytes(b"precious")
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "hard link":
        os.link(other, path)
    elif kind == "link":
        path.symlink_to(other)
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "missing")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    result = write(path, b"core")
    assert (result.started, result.delivered) == (False, 0)
    assert result.failure == f"create fallback file: {path}: File exists"
    assert other.read_bytes() == b"precious" and not (tmp_path / "missing").exists()
    assert kind != "file" or path.read_bytes() == b"precious"


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    result = write(tmp_path / "missing" / "core", b"core")
    assert result.failure == f"create fallback file: {tmp_path}/missing/core: No such file or directory"


@pytest.mark.parametrize(("room", "size"), [(1000, 1500), (100_000, 4 << 20)])
def test_a_full_disk_is_told_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, size: int
) -> None:
    def limit() -> None:
        # As full as a disk can be made without root; the signal for it is ignored by Python.
        assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    monkeypatch.setattr(joining, "enter", lambda plan, status: limit())
    result = write(tmp_path / "core", bytes(size))
    assert result.started is True
    assert result.failure == f"write fallback file: File too large after {room} bytes"
    assert os.listdir(tmp_path) == ["core.truncated"]
    assert (tmp_path / "core.truncated").stat().st_size == room


# Holes, and how much may lie there.


def data(size: int) -> bytes:
    return b"c" * size


@pytest.mark.parametrize(
    "core",
    [
        data(4096) + bytes(4 << 20) + data(100),
        bytes(1 << 20) + data(1),
        data(1) + bytes(1 << 20),
        data(5000) + bytes(5000) + data(5000),
        bytes(300_000),
        b"".join(data(4096) + bytes(4096) for _ in range(100)),
        data(1 << 20),
        bytes(4095),
    ],
)
def test_zeros_are_holes_and_the_core_is_the_same(tmp_path: Path, core: bytes) -> None:
    (tmp_path / "plain").write_bytes(core)
    assert write(tmp_path / "core", core).failure is None
    assert (tmp_path / "core").read_bytes() == core
    whole = sum(core[at : at + 4096] != bytes(4096)[: len(core) - at] for at in range(0, len(core), 4096))
    last = core[len(core) // 4096 * 4096 :]
    # Not a page more is written than has data in it, but for a last part of a page. One more may hold the list of the others.
    # A file system may have larger blocks, such as one in memory whose pages have 16 KiB.
    block = max(4096, os.statvfs(tmp_path).f_bsize)
    assert (tmp_path / "core").stat().st_blocks * 512 <= block * (whole + bool(last) + 1)


@pytest.mark.parametrize("room", [4096, 8192, 100_000])
def test_holes_end_where_the_file_may_be_no_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    monkeypatch.setattr(joining, "enter", lambda plan, status: limit())
    result = write(tmp_path / "core", data(10) + bytes(1 << 20) + data(10))
    assert result.failure == f"write fallback file: File too large after {room} bytes"
    assert (tmp_path / "core.truncated").stat().st_size == room


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "directory", "of another user"])
def test_what_is_no_core_file_of_this_user_does_not_count(tmp_path: Path, kind: str) -> None:
    (tmp_path / "other").write_bytes(data(5000))
    planted = tmp_path / "core.1.0.0"
    if kind == "link":
        planted.symlink_to("other")
    elif kind == "hard link":
        os.link(tmp_path / "other", planted)
    elif kind == "fifo":
        os.mkfifo(planted)
    elif kind == "directory":
        planted.mkdir()
    elif os.getuid() == 0:
        planted.write_bytes(data(5000))
        os.chown(planted, 1000, 1000)
    else:
        pytest.skip("only root can have a file of another user")
    assert write(tmp_path / "core.4.0.0", data(5000), (1, 1 << 30)).failure is None


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        ((3, 1 << 30), f"3 core files of user {os.getuid()} take"),
        ((4, 1 << 30), ""),
        ((9, 8192), f"3 core files of user {os.getuid()} take"),
        ((0, 0), ""),
    ],
)
def test_no_more_core_files_are_written_than_the_bound_says(tmp_path: Path, bound: tuple[int, int], told: str) -> None:
    for name in ("core.1.0.0", "core.2.0.0", "core.3.0.0.truncated", "core", "core.x.0.0", "cores.1.2.3", "core.1.2"):
        (tmp_path / name).write_bytes(data(8192))
    result = write(tmp_path / "core.4.0.0", data(5000), bound)
    if told:
        assert result.started is False
        assert result.failure.startswith(f"count fallback files: {told} ")
        assert f"DOCKERCOREHELPER_FALLBACK_MAX is {bound[0]}/{bound[1]}: remove them" in result.failure
    else:
        assert result.failure is None
    assert (tmp_path / "core.4.0.0").exists() is not bool(told)


def test_a_core_that_takes_more_than_is_left_is_ended_there_and_holes_take_nothing(tmp_path: Path) -> None:
    (tmp_path / "core.1.0.0").write_bytes(data(1 << 20))
    core = data(1 << 20) + bytes(8 << 20)
    assert write(tmp_path / "core.2.0.0", core, (9, 3 << 20)).failure is None
    result = write(tmp_path / "core.3.0.0", data(2 << 20), (9, 3 << 20))
    told = "write fallback file: the bound of all core files of this user there is reached after "
    assert result.failure.startswith(told)
    assert sorted(os.listdir(tmp_path)) == ["core.1.0.0", "core.2.0.0", "core.3.0.0.truncated"]
    assert (tmp_path / "core.3.0.0.truncated").stat().st_size <= 1 << 20
