"""process.FaultingProcess on a made-up /proc/PID, which holds what no process of a test can show."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest
from core_helper import apart, linux, procfs, runtime
from core_helper import process as process_module
from core_helper.process import FaultingProcess
from unit.helper.delivery import wait_for_text

ID = "0123456789abcdef" * 4
STATUS = """\
Name:\tevil\\nUid:\t0
Umask:\t0077
State:\tD (disk sleep)
Tgid:\t4711
Pid:\t4712
NStgid:\t4711\t77\t7
NSpid:\t4712\t78\t8
Uid:\t1000\t1000\t1000\t1000
Gid:\t100\t100\t100\t100
Groups:\t4 24 4294967294
CapInh:\t0000000000000001
CapPrm:\t00000000a80425fb
CapEff:\t0000000000000003
CapBnd:\t000001ffffffffff
CapAmb:\t8000000000000000
NoNewPrivs:\t1
Seccomp:\t2
CoreDumping:\t1
Cpus_allowed_list:\t0-3,8
"""
FILES = {
    # Numbered as in proc_pid_stat(5), but for nice, 19, and the exit status, 52.
    "stat": b"4711 (a) b) R (c) D"
    + b"".join(b" %d" % number for number in range(4, 19))
    + b" -5"
    + b"".join(b" %d" % number for number in range(20, 52))
    + b" 139\n",
    "comm": b"a) b) R (c\n",
    "limits": b"Limit                     Soft Limit           Hard Limit           Units     \n"
    b"Max open files            1024                 4096                 files     \n",
    "cgroup": f"0::/system.slice/docker-{ID}.scope\n".encode(),
    "environ": b"A=1\0B=2",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "task" / "4712"
    (directory / "attr" / "apparmor").mkdir(parents=True)
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    # A thread does not show the exit status that its process will have.
    (tmp_path / "stat").write_bytes(FILES["stat"])
    (directory / "stat").write_bytes(FILES["stat"].replace(b" 139\n", b" 0\n"))
    (directory / "exe").symlink_to("/usr/bin/server (deleted)")
    return directory


def describe(
    directory: Path, status: str = STATUS, namespaces: list[tuple[str, int, int]] | None = None
) -> FaultingProcess:
    task = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        return FaultingProcess(task, 99, namespaces or [], namespaces or [], procfs.parse_status(status.encode()))
    finally:
        os.close(task)


@pytest.mark.parametrize(("maker", "told"), [(0, ID[:12]), (1000, f"1000:{ID[:12]}")])
def test_an_id_that_a_user_may_have_chosen_is_named_with_that_user(
    directory: Path, monkeypatch: pytest.MonkeyPatch, maker: int, told: str
) -> None:
    monkeypatch.setattr(runtime, "maker_of", lambda controllers, above: maker)
    process = describe(directory)
    assert (process.container_id, process.container_name) == (ID, told)


def test_facts_are_those_of_the_files(directory: Path) -> None:
    process = describe(directory)
    assert (process.uid, process.gid, process.groups) == (1000, 100, [4, 24, 4294967294])
    assert process.pid == 7
    assert (process.host_tid, process.tid, process.cpu) == (4712, 8, 39)
    assert (process.inheritable, process.permitted, process.effective) == (1, 0xA80425FB, 3)
    assert (process.bounding, process.ambient) == (0x1FFFFFFFFFF, 1 << 63)
    assert (process.seccomp, process.umask, process.nice) == (2, 0o077, -5)
    assert (process.comm, process.exe) == (b"a) b) R (c", b"/usr/bin/server (deleted)")
    assert process.limits == {"Max open files": (1024, 4096)}
    assert (process.container_id, process.cgroups) == (ID, [(b"", f"/system.slice/docker-{ID}.scope".encode())])
    assert (process.policy, process.processors) == (41, {0, 1, 2, 3, 8})
    # Each child that is tried reads it, by the same file.
    for _ in range(2):
        assert (process.read_environ(), process.notes) == ({b"A": b"1", b"B": b"2"}, [])


def test_a_name_may_end_in_newlines_of_its_own(directory: Path) -> None:
    (directory / "comm").write_bytes(b"a\n\n\n")
    assert describe(directory).comm == b"a\n\n"


def test_a_signal_that_the_kernel_does_not_show_early_is_not_known(directory: Path) -> None:
    process = describe(directory)
    process.task = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    assert process.exit_signal() == 11
    (directory.parent.parent / "stat").write_bytes(FILES["stat"].replace(b" 139\n", b" 0\n"))
    assert process.exit_signal() is None
    os.close(process.task)


def test_a_process_without_groups_has_none(directory: Path) -> None:
    assert describe(directory, STATUS.replace("4 24 4294967294", " ")).groups == []


def test_fields_that_an_old_kernel_lacks_have_harmless_values(directory: Path) -> None:
    lacking = ("NStgid", "CapAmb", "Seccomp", "Umask")
    status = "".join(line + "\n" for line in STATUS.split("\n") if not line.startswith(lacking))
    process = describe(directory, status)
    assert (process.pid, process.ambient, process.seccomp, process.umask) == (4711, 0, 0, 0o022)


@pytest.mark.parametrize("field", ["Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd", "CapInh", "Tgid"])
def test_a_privilege_that_is_not_told_is_never_guessed(directory: Path, field: str) -> None:
    with pytest.raises(KeyError):
        describe(directory, "".join(line + "\n" for line in STATUS.split("\n") if not line.startswith(field)))


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_cannot_be_read_ends_the_description(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(FileNotFoundError):
        describe(directory)


def test_a_program_that_cannot_be_named_has_no_name(directory: Path) -> None:
    (directory / "exe").unlink()
    assert describe(directory).exe == b""


def test_a_long_environment_is_bounded(directory: Path) -> None:
    (directory / "environ").write_bytes((b"A=" + b"A" * 1021 + b"\0") * 2048)
    process = describe(directory)
    assert process.read_environ() == {b"A": b"A" * 1021}
    assert len(process.notes) == 1 and "left out" in process.notes[0]


@pytest.mark.parametrize(
    ("text", "left", "told"),
    [
        (bytes(100), {}, "0 variables are left"),
        (b"er: worker process\0\0\0\0B=2\0", {b"B": b"2"}, "1 variables are left"),
        (b"postgres: idle" + b" " * 50, {}, "0 variables are left"),
        (b"A=1\0B=2\0", {b"A": b"1", b"B": b"2"}, ""),
        (b"", {}, ""),
    ],
)
def test_an_environment_that_a_title_has_overwritten_is_told(
    directory: Path, text: bytes, left: dict[bytes, bytes], told: str
) -> None:
    (directory / "environ").write_bytes(text)
    process = describe(directory)
    assert process.read_environ() == left
    assert len(process.notes) == bool(told) and told in "".join(process.notes)


def test_an_environment_that_was_given_up_is_empty(directory: Path) -> None:
    process = describe(directory)
    process.environ_file = None
    assert process.read_environ() == {}
    assert "could not be read in time" in process.notes[0]


@pytest.mark.parametrize(
    ("filters", "in_container", "kept"), [(0, False, True), (1, False, False), (1, True, True), (2, True, False)]
)
def test_a_process_with_a_filter_of_its_own_does_not_choose_the_environment(
    directory: Path, filters: int, in_container: bool, kept: bool
) -> None:
    (directory / "environ").write_bytes(b"LD_PRELOAD=/evil.so\0CORE_DESTINATION=s3://mine/\0XCORE_=1\0")
    namespaces = [("mnt", linux.CLONE_NEWNS, 9)] if in_container else []
    process = describe(directory, STATUS + f"Seccomp_filters:\t{filters}\n", namespaces)
    assert set(process.read_environ()) == ({b"CORE_DESTINATION", b"LD_PRELOAD", b"XCORE_"} if kept else set())
    assert len(process.notes) == (0 if kept else 1)


@pytest.mark.parametrize(
    ("files", "kind", "label"),
    [
        ({}, "", b""),
        ({"attr/current": b""}, "", b""),
        ({"attr/current": b"unconfined\n"}, "other", b"unconfined"),
        (
            {"attr/current": b"system_u:system_r:container_t:s0:c1,c2\0"},
            "other",
            b"system_u:system_r:container_t:s0:c1,c2",
        ),
        ({"attr/apparmor/current": b"docker-default (enforce)\n"}, "apparmor", b"docker-default (enforce)"),
        ({"attr/apparmor/current": b"a (enforce)\n", "attr/current": b"b\n"}, "apparmor", b"a (enforce)"),
        ({"attr/apparmor/current": b"\n", "attr/current": b"b\n"}, "other", b"b"),
    ],
)
def test_the_label_is_that_of_the_security_module_in_use(
    directory: Path, files: dict[str, bytes], kind: str, label: bytes
) -> None:
    for name, content in files.items():
        (directory / name).write_bytes(content)
    process = describe(directory)
    assert (process.label_kind, process.label) == (kind, label)


def test_the_user_namespace_is_kept_apart_from_the_others(directory: Path) -> None:
    user, mnt = ("user", linux.CLONE_NEWUSER, 8), ("mnt", linux.CLONE_NEWNS, 9)
    process = describe(directory, namespaces=[mnt, user])
    assert (process.namespaces, process.user_namespace, process.in_container()) == ([mnt], 8, True)
    assert describe(directory, namespaces=[user]).in_container() is False


def test_a_symbolic_link_in_place_of_a_file_is_not_followed(directory: Path) -> None:
    (directory / "other").write_bytes(b"root\n")
    (directory / "comm").unlink()
    (directory / "comm").symlink_to("other")
    with pytest.raises(OSError, match="symbolic links"):
        describe(directory)


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 200000)
    parent = os.open(tmp_path, os.O_RDONLY)
    assert [len(procfs.read(parent, "file", limit)) for limit in (0, 1, 65536, 65537, 199999, 300000)] == [
        0,
        1,
        65536,
        65537,
        199999,
        200000,
    ]
    os.close(parent)


@pytest.mark.parametrize(
    ("seccomp", "auxv", "narrow"),
    [
        (2, struct.pack("=8I", 6, 4096, 23, 0, 9, 1 << 20, 0, 0), True),
        (2, struct.pack("=6Q", 6, 4096, 23, 0, 0, 0), False),
        (2, b"", False),
        (2, None, False),
        (0, struct.pack("=6I", 6, 4096, 23, 0, 0, 0), False),
    ],
)
def test_where_a_filter_is_needed_a_process_of_32_bits_is_known(
    directory: Path, seccomp: int, auxv: bytes | None, narrow: bool
) -> None:
    if auxv is not None:
        (directory / "auxv").write_bytes(auxv)
    assert describe(directory, STATUS.replace("Seccomp:\t2", f"Seccomp:\t{seccomp}")).narrow is narrow


def test_the_environment_is_kept_for_when_the_process_is_gone(directory: Path) -> None:
    process = describe(directory)
    assert process.keep_environ(time.monotonic() + 10) == 0
    (directory / "environ").write_bytes(b"")
    assert process.read_environ() == {b"A": b"1", b"B": b"2"}


def test_the_environment_of_a_process_with_a_filter_of_its_own_is_not_kept(directory: Path) -> None:
    process = describe(directory)
    process.confined = True
    assert process.keep_environ(0.0) == 0 and process.variables is None
    assert process.read_environ() == {}


def test_memory_that_does_not_answer_is_not_waited_for(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = describe(directory)
    core, writing = os.pipe()
    inherited = directory.parent / "inherited"

    def wait(file: int) -> bytes:
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        inherited.write_text(" ".join(os.readlink(link) for link in links if os.path.lexists(link)))
        while True:
            time.sleep(60)

    def read(pipe: int, limit: float) -> bytes | None:
        assert limit == 4711.0
        wait_for_text(inherited)
        return read_within(pipe, time.monotonic())

    read_within = apart._read_within
    monkeypatch.setattr(apart, "_read_within", read)
    monkeypatch.setattr(process_module, "_text_of", wait)
    name = os.readlink(f"/proc/self/fd/{core}")
    # The child is ended, and keeps nothing of the core as long as it waits.
    assert process.keep_environ(4711.0) == 0
    assert "environ" in inherited.read_text() and name not in inherited.read_text()
    assert process.read_environ() == {}
    assert process.notes == ["its environment could not be read in time: none of its variables was passed on"]
    os.close(core)
    os.close(writing)


def test_whoever_is_interrupted_leaves_no_child(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = describe(directory)
    pid = directory.parent / "pid"

    def wait(file: int) -> bytes:
        pid.write_text(str(os.getpid()))
        while True:
            time.sleep(60)

    def interrupted(pipe: int, limit: float) -> bytes | None:
        wait_for_text(pid)
        raise TimeoutError("the deadline has passed")

    monkeypatch.setattr(process_module, "_text_of", wait)
    monkeypatch.setattr(apart, "_read_within", interrupted)
    with pytest.raises(TimeoutError):
        process.keep_environ(4711.0)
    assert not Path(f"/proc/{pid.read_text()}").exists()
