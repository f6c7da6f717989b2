"""procfs: what is read from the texts of /proc, most of which a container chose."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
from pathlib import Path

import pytest
from core_helper import privileges, procfs, runtime, verification
from core_helper.crash import Refused
from unit.helper.support import deep_directory, executed, narrow_program
from unit.helper.world import Elsewhere, World, keeps_descriptors

ID = "0123456789abcdef" * 4
OTHER = "f" * 64


def test_fields_of_status_are_found_whatever_the_name_holds() -> None:
    status = procfs.parse_status(b"Name:\ta\\nUid:\t0 \xff)\nUmask:\t0022\nTgid:\t7\nUid:\t1\t2\t3\t4\nGroups:\t\n")
    assert status["Name"] == "a\\nUid:\t0 \xff)"
    assert (status["Tgid"], status["Uid"], status["Groups"]) == ("7", "1\t2\t3\t4", "")


@pytest.mark.parametrize("comm", [b"cat", b"a b", b")", b") R 1 (", b"\xff\xfe", b"a\nb) S", b""])
def test_fields_of_stat_are_found_whatever_the_name_holds(comm: bytes) -> None:
    fields = procfs.stat_fields(b"7 (" + comm + b") D " + b" ".join(b"%d" % number for number in range(4, 53)) + b"\n")
    # Numbered as in proc_pid_stat(5): nice is field 19, the start time 22.
    assert (fields[0], fields[16], fields[19]) == ("D", "19", "22")


def test_limits_of_this_process_are_those_that_it_has() -> None:
    limits = procfs.parse_limits(Path("/proc/self/limits").read_bytes())
    assert set(limits) - {"Max core file size"} == set(privileges.RESOURCES)
    for name, number in privileges.RESOURCES.items():
        assert limits[name] == resource.getrlimit(number), name


def test_limits_are_read_by_column() -> None:
    text = (
        b"Limit                     Soft Limit           Hard Limit           Units     \n"
        b"Max cpu time              10                   unlimited            seconds   \n"
        b"Max stack size            8388608              unlimited            bytes     \n"
        b"Max nice priority         0                    0                    \n"
        b"Max realtime timeout      unlimited            unlimited            us        \n"
        b"\n"
    )
    assert procfs.parse_limits(text) == {
        "Max cpu time": (10, -1),
        "Max stack size": (8388608, -1),
        "Max nice priority": (0, 0),
        "Max realtime timeout": (-1, -1),
    }


def test_cgroups_are_split_at_the_first_two_colons() -> None:
    text = b"12:cpu,cpuacct:/docker/a:b\n1:name=systemd:/x y\n0::/system.slice/a.service\n\n"
    assert procfs.parse_cgroup(text) == [
        (b"cpu,cpuacct", b"/docker/a:b"),
        (b"name=systemd", b"/x y"),
        (b"", b"/system.slice/a.service"),
    ]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (f"/docker/{ID}", ID),
        (f"/system.slice/docker-{ID}.scope", ID),
        (f"/docker/{ID}/docker/{OTHER}", ID),
        (f"/system.slice/docker-{ID}.scope/init.scope", ID),
        (f"/machine.slice/libpod-{ID}.scope/container", ID),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", ID),
        (f"/libpod_parent/libpod-{ID}", ID),
        (f"/kubepods/burstable/pod2c48913c-b29f-11e7-9350-020968147796/{ID}", ID),
        (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-{ID}.scope", ID),
        (f"/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope", ID),
        (f"/../../docker/{ID}", ID),
        # Monitors of containers are none.
        (f"/machine.slice/libpod-conmon-{ID}.scope", ""),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-conmon-{ID}.scope", ""),
        (f"/kubepods.slice/kubepods-pod1.slice/crio-conmon-{ID}.scope", ""),
        (f"/kubepods/burstable/pod2c48913c-b29f-11e7-9350-020968147796/crio-conmon-{ID}", ""),
        (f"/machine.slice/libpod-{ID}.scope/libpod-conmon-{OTHER}.scope", ID),
        (f"/machine.slice/libpod-conmon-{OTHER}.scope/libpod-{ID}.scope", ID),
        (f"/machine.slice/xlibpod-conmon-{ID}.scope", ID),
        ("/", ""),
        ("/user.slice/user-1000.slice/session-1.scope", ""),
        (f"/docker/{ID[:63]}", ""),
        (f"/docker/{ID}0", ""),
        (f"/docker/{ID[:63]}g", ""),
        (f"/docker/{ID.upper()}", ""),
        (f"/docker/{ID[:63]}\xff", ""),
    ],
)
def test_the_container_id_is_found_in_the_cgroup_of_each_engine(path: str, found: str) -> None:
    assert runtime.container_id([(b"", path.encode("latin-1"))]) == found


def test_the_container_id_may_stand_in_any_hierarchy() -> None:
    hierarchies = [(b"cpuset", b"/"), (b"memory", f"/docker/{ID}".encode()), (b"", f"/docker/{OTHER}".encode())]
    assert runtime.container_id(hierarchies) == ID
    assert runtime.container_id([]) == ""


def test_26_variables_do_not_overflow_anything() -> None:
    text = b"".join(b"%c=1\0" % letter for letter in b"abcdefghijklmnopqrstuvwxyz")
    variables, cut = procfs.parse_environ(text)
    assert variables == {bytes([letter]): b"1" for letter in b"abcdefghijklmnopqrstuvwxyz"}
    assert cut is False


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        (b"", {}),
        (b"\0", {}),
        (b"a=1\0b=2", {b"a": b"1", b"b": b"2"}),
        (b"a=1\0\0\0b=2\0", {b"a": b"1", b"b": b"2"}),
        (b"title of the process\0a=1\0", {b"a": b"1"}),
        (b"=x\0=x=y\0a=\0b==c=\0", {b"a": b"", b"b": b"=c="}),
        (b"a=1\0a=2\0", {b"a": b"1"}),
        (b"\xff\n=\xfe \0", {b"\xff\n": b"\xfe "}),
    ],
)
def test_strings_that_are_no_variables_are_left_out(text: bytes, variables: dict[bytes, bytes]) -> None:
    assert procfs.parse_environ(text) == (variables, False)


def test_an_environment_of_2_mib_is_cut_at_1_mib_and_never_within_a_variable() -> None:
    strings = [b"v%06d=" % number + b"x" * 190 for number in range(11000)]
    variables, cut = procfs.parse_environ((b"\0".join(strings) + b"\0")[: procfs.ENVIRON_LIMIT + 1])
    assert cut is True
    assert set(variables.values()) == {b"x" * 190}
    assert len(variables) == procfs.ENVIRON_LIMIT // 199


@pytest.mark.parametrize("more", [0, 1, 200_000])
def test_the_number_of_variables_is_bounded(more: int) -> None:
    text = b"".join(b"%d=\0" % number for number in range(procfs.MOST_VARIABLES + more))
    variables, cut = procfs.parse_environ(text[: procfs.ENVIRON_LIMIT + 1])
    assert (len(variables), cut) == (procfs.MOST_VARIABLES, more > 0)


@pytest.mark.parametrize(
    ("text", "processors"),
    [("0", {0}), ("0-3,8", {0, 1, 2, 3, 8}), ("1,3", {1, 3}), ("", set()), ("7-7", {7}), ("x", set())],
)
def test_a_list_of_processors_is_read(text: str, processors: set[int]) -> None:
    assert procfs.parse_processors(text) == processors


def test_an_environment_of_1_mib_is_not_cut() -> None:
    count, rest = divmod(procfs.ENVIRON_LIMIT, 1024)
    assert rest == 0
    variables, cut = procfs.parse_environ(b"".join(b"v%04d=" % n + b"x" * 1017 + b"\0" for n in range(count)))
    assert (len(variables), cut) == (1024, False)


def test_a_variable_is_left_out_only_if_execve_would_not_take_it() -> None:
    longest = b"a=" + b"x" * (131072 - 3)
    variables, cut = procfs.parse_environ(longest + b"\0b=1\0")
    assert (set(variables), cut) == ({b"a", b"b"}, False)
    assert executed(lambda _: os.execve("/bin/true", ["true"], variables)).error == ""
    variables, cut = procfs.parse_environ(longest + b"x\0b=1\0")
    assert (variables, cut) == ({b"b": b"1"}, True)
    too_long = {b"a": b"x" * (131072 - 2)}
    assert "Argument list too long" in executed(lambda _: os.execve("/bin/true", ["true"], too_long)).error


AUXV = [(33, 0x7FFFDEADB000), (6, 4096), (3, 0x555555554040), (17, 100), (11, 1000), (9, 0x555555555000), (25, 0x7FFC0)]
AUXV_32 = [(32, 0xF7F0A560), (33, 0xF7F0A000), (6, 4096), (3, 0x56555034), (11, 1000), (9, 0x56556000), (25, 0xFFB40)]


@pytest.mark.parametrize("secure", [0, 1])
@pytest.mark.parametrize("at", [0, 1, 4, 7])
@pytest.mark.parametrize(("kind", "vector"), [("=QQ", AUXV), ("=II", AUXV_32)])
def test_at_secure_is_found_in_vectors_of_64_and_32_bits(
    kind: str, vector: list[tuple[int, int]], at: int, secure: int
) -> None:
    entries = [*vector[:at], (23, secure), *vector[at:], (0, 0)]
    # The kernel gives out its whole array, and what follows the end is zero.
    auxv = b"".join(struct.pack(kind, *entry) for entry in entries) + bytes(5 * struct.calcsize(kind))
    assert verification.secure_execution(auxv) is bool(secure)


def test_this_process_was_not_executed_set_id() -> None:
    assert verification.secure_execution(Path("/proc/self/auxv").read_bytes()) is False


# Programs that stop themselves, again and again: kill(getpid(), SIGSTOP).
STOP = {
    "x86_64": "b814000000 cd80 89c3 b913000000 b825000000 cd80 ebe9",
    "aarch64": "1470a0e3 000000ef 1310a0e3 2570a0e3 000000ef f9ffffea",
}


@pytest.mark.skipif(os.uname().machine not in STOP, reason="only x86_64 and aarch64 run programs of 32 bits")
@pytest.mark.parametrize("secure", [False, True])
def test_the_vector_of_a_program_of_32_bits_tells_whether_it_was_executed_set_id(tmp_path: Path, secure: bool) -> None:
    if secure and os.getuid() != 0:
        pytest.skip("only root can give a program to root, and execute it as somebody else")
    if secure and os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip(f"{tmp_path} is on a file system without set-id programs")
    program = tmp_path / "program"
    program.write_bytes(narrow_program(bytes.fromhex(STOP[os.uname().machine])))
    program.chmod(0o4755 if secure else 0o755)
    tmp_path.chmod(0o755)
    become = (lambda: os.setresuid(65534, 65534, 65534)) if secure else None
    try:
        # From its directory, since those above are for root alone.
        child = subprocess.Popen(["./program"], cwd=tmp_path, preexec_fn=become)
    except OSError as error:
        pytest.skip(f"the kernel runs no programs of 32 bits: {error.strerror}")
    # Popen returns in the middle of execve(2), when the kernel has not written the new vector yet.
    os.waitpid(child.pid, os.WUNTRACED)
    auxv = Path(f"/proc/{child.pid}/auxv").read_bytes()
    child.kill()
    child.wait()
    assert verification.secure_execution(auxv) is secure


@pytest.mark.parametrize(
    "auxv",
    [b"", b"\0" * 320, b"\xff" * 320, b"\x17", struct.pack("=QQ", 6, 4096), bytes(range(256))],
)
def test_a_vector_that_does_not_tell_at_secure_is_refused(auxv: bytes) -> None:
    with pytest.raises(Refused, match="auxiliary vector"):
        verification.secure_execution(auxv)


def task_of(world: World, *threads: int) -> str:
    for thread in threads:
        namespaces = world.proc / "4711" / "task" / str(thread) / "ns"
        namespaces.mkdir(parents=True)
        if thread > 5000 or (thread == 4711 and len(threads) == 1):
            (namespaces / "mnt").symlink_to("mnt:[1]")
    return procfs.task_of(4711, None)


def test_the_leader_stands_for_its_process(world: World) -> None:
    assert task_of(world, 4711) == "/proc/4711/task/4711"
    assert procfs.task_of(4711, 4712) == "/proc/4711/task/4712"


def test_a_thread_stands_for_a_leader_that_has_lost_its_namespaces(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Elsewhere(world.proc)
    monkeypatch.setattr(moved, "listdir", lambda path: ["4711", "4712", "5001"], raising=False)
    monkeypatch.setattr(procfs, "posix", moved)
    assert task_of(world, 4711, 4712, 5001) == "/proc/4711/task/5001"


def test_a_leader_without_any_such_thread_stands_for_itself(world: World) -> None:
    assert task_of(world, 4711, 4712) == "/proc/4711/task/4711"


@pytest.mark.parametrize(
    ("environ", "names", "cut"),
    [
        (b"A=1\0B=2\0C=3", b"ABC", False),
        (b"A=1\0B=2\0C=3\0", b"ABC", False),
        (b"A=1\0B=2\0C=3\0D=4", b"ABC", True),
        (b"A=1\0B=2\0C=3\0\0", b"ABC", True),
    ],
)
def test_as_many_variables_as_are_allowed_are_passed_on(
    monkeypatch: pytest.MonkeyPatch, environ: bytes, names: bytes, cut: bool
) -> None:
    monkeypatch.setattr(procfs, "MOST_VARIABLES", 3)
    variables, some_left_out = procfs.parse_environ(environ)
    assert (b"".join(variables), some_left_out) == (names, cut)


@pytest.mark.parametrize("length", [3000, 4095, 4096, 4097, 9000])
def test_a_path_of_any_length_is_opened(tmp_path: Path, length: int) -> None:
    path = deep_directory(tmp_path, (length - len(str(tmp_path)) - 5) // 251)
    path += b"/" * (length - len(path) - 4)
    assert len(path + b"file") == length

    def read() -> None:
        file = procfs.open_long(path + b"file", os.O_RDONLY)
        assert procfs.read_all(file) == b"content" and not os.get_inheritable(file)
        os.close(file)
        with pytest.raises(FileNotFoundError):
            procfs.open_long(path + b"none", os.O_RDONLY)

    assert keeps_descriptors(read)
