"""The attacks on the way into the container, one test or a small group each; README.md says how each defence was tried."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.observe import kill_dumper, wait_until
from support import lab
from support.containers import Container, MakeCrash, wait_for_log
from support.hosts import HELPER
from support.records import CAPABILITY_SETS, NAMESPACES, is_whole

LIBRARY = Path("/opt/lib/docker_core_helper")
ORIGINAL = f"|{HELPER} %P %u %g /opt/bin/delegate"
FALLBACK = "--env=DOCKERCOREHELPER_FALLBACK_CORE=1"
UNCONFINED = ("--security-opt=seccomp=unconfined",)
ADMINISTRATOR = ("--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined")

Kernel = Callable[[str, str], None]
Hold = Callable[..., Path]


def interpreter() -> Path:
    """The Python of the host that the installed helper runs on."""
    return Path(HELPER.read_text().split(maxsplit=1)[0][2:])


def lines_of(container: Container) -> list[str]:
    """The lines of the log about a container, a moment after the first one: there should be no more."""
    container.log("pid=")
    time.sleep(1)
    return container.log("pid=").splitlines()


# 1


@pytest.fixture
def planted_interpreter() -> tuple[str, ...]:
    """A program of ours where a program interpreter is that the host's Python wants; elf(5), PT_INTERP."""
    headers = lab.output("readelf", "--program-headers", "--wide", interpreter())
    (path,) = re.findall(r"program interpreter: (\S+)\]", headers)
    return (f"--volume={lab.PROGRAMS}/planted:{path}:ro",)


@pytest.mark.parametrize(
    "delegate", ["#!/proc/self/exe", "#!/proc/thread-self/exe", "#!/opt/link", "#!/opt/bin/script", "self-exe"]
)
def test_attack_01_proc_self_exe_as_delegate(
    attack: MakeCrash, planted_interpreter: tuple[str, ...], tmp_path: Path, delegate: str
) -> None:
    link, script = tmp_path / "link", tmp_path / "script"
    link.symlink_to("/proc/self/exe")
    script.write_text("#!/proc/self/exe\n")
    script.chmod(0o755)
    # A symbolic link cannot be mounted itself, its directory can.
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o755)
    delegate = delegate.replace("/opt/link", "/tricks/link").replace("/opt/bin/script", "/tricks/script")
    options = (*planted_interpreter, f"--volume={tmp_path}:/tricks")
    container = attack(f"delegate={delegate}", options=options)
    assert "delegate" in container.log("core dropped")
    assert not (container.records / "planted").exists()


def test_attack_01_the_python_of_the_host_as_delegate(attack: MakeCrash, planted_interpreter: tuple[str, ...]) -> None:
    container = attack(options=(*planted_interpreter, f"--volume={interpreter().resolve()}:/opt/bin/delegate:ro"))
    assert "is the helper's own interpreter" in container.log("core dropped")
    assert not (container.records / "planted").exists()


# 2


def looked(container: Container) -> dict[str, int]:
    """How often the watcher saw a process of ours, from its output."""
    return {name: int(count) for name, count in re.findall(r"^(hidden|seen) (\d+)$", container.output, re.M)}


@pytest.mark.parametrize(
    ("user", "suid_dumpable"),
    [("user", "0"), ("user", "1"), ("user", "2"), pytest.param("fork=1", "0", id="root of the container")],
)
def test_attack_02_looking_at_the_process_between_fork_and_exec(
    attack: MakeCrash, kernel: Kernel, user: str, suid_dumpable: str
) -> None:
    kernel("fs/suid_dumpable", suid_dumpable)
    container = attack(user, "watch=2")
    assert looked(container)["hidden"] > 0, "the watcher was never there in time: nothing was shown"
    assert re.findall(r"^(?:GOT|EXE) .*", container.output, re.M) == []


def test_attack_02_cap_sys_ptrace_finds_no_directory_of_the_host(attack: MakeCrash) -> None:
    container = attack("watch=2", options=("--cap-add=SYS_PTRACE",))
    assert looked(container)["seen"] > 0, "the watcher was never there in time: nothing was shown"
    # Neither a directory, nor a device such as /dev/null, whose mode is that of the whole host.
    assert "GOT" not in container.output


# 3


@pytest.mark.parametrize("options", ["-F%F -I%I -s%s -t%t -d%d -c%c ", ""])
def test_attack_03_a_leaked_descriptor_of_the_host(attack: MakeCrash, kernel: Kernel, options: str) -> None:
    kernel("kernel/core_pattern", f"|{HELPER} {options}%P %u %g")
    container = attack()
    container.log("delivered")
    assert container.delegate.facts["descriptors"].split() == ["0", "1", "2"]
    assert container.delegate.links["cwd"] == "/"


# 4


MARK = 'import posix\nposix.close(posix.open("/out/planted", posix.O_CREAT | posix.O_WRONLY, 0o666))\n'
GCONV = "gconv"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Something that leaves a mark wherever a program of the host would look for code: Python's modules and the C library's.

    All of it is an image's: where the host has its files, the container has these.
    """
    root = tmp_path_factory.mktemp("planted")
    told = lab.output(interpreter(), "-IS", "-c", "import sys, _imp; print(*sys.path, *_imp.extension_suffixes())")
    archive, modules, extensions, suffix = told.split()[:4]
    places = [archive, modules, str(LIBRARY), *plant_libraries(root)]
    binary = {file.name.partition(".")[0] for file in Path(extensions).iterdir()} | {"resource", "_json"}
    for name in binary:
        link(root, f"{extensions}/{name}{suffix}")
    with zipfile.ZipFile(below(root, archive), "w") as modules_in_one:
        for name in [*sorted(sys.stdlib_module_names - binary), "encodings/__init__", "encodings/idna"]:
            below(root, f"{modules}/{name}.py").write_text(MARK)
            modules_in_one.writestr(f"{name}.py", MARK)
    for module in LIBRARY.glob("*/core_helper/*.py"):
        below(root, str(module)).write_text(MARK)
    return tuple(f"--volume={root}{place}:{place}:ro" for place in places)


def plant_libraries(root: Path) -> list[str]:
    """Plants every shared library of the host, with those by which the C library converts and looks names up."""
    linked = re.findall(r"(/\S+) \(0x", lab.output("ldd", interpreter()))
    (loader,) = (library for library in linked if "/ld-linux" in library)
    directories = {str(Path(library).parent) for library in linked if library != loader}
    directories |= {str(Path(directory).resolve()) for directory in directories}
    for directory in sorted(directories):
        for library in [*Path(directory).glob("*.so*"), *Path(directory, GCONV).glob("*.so")]:
            link(root, str(library))
        link(root, f"{directory}/libnss_planted.so.2")
        # For a host that has no cache of its own, which is read at the start; iconvconfig(8).
        below(root, f"{directory}/{GCONV}/gconv-modules").write_text(
            "module BIG5// INTERNAL BIG5 1\nmodule INTERNAL BIG5// BIG5 1\n"
        )
    link(root, loader)
    databases = ("passwd", "group", "shadow", "hosts", "services", "protocols")
    below(root, "/etc/nsswitch.conf").write_text("".join(f"{name}: planted\n" for name in databases))
    below(root, "/etc/ld.so.preload").write_text(f"{loader}\n")
    return [loader, "/etc/nsswitch.conf", "/etc/ld.so.preload", *sorted(directories)]


def below(root: Path, path: str) -> Path:
    """The place of an absolute path below another root directory, which then exists."""
    file = Path(f"{root}{path}")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def link(root: Path, path: str) -> None:
    """Plants a shared library; they are many, and all the same."""
    file = below(root, path)
    if not file.exists():
        file.hardlink_to(lab.PROGRAMS / "planted")


@pytest.mark.parametrize("delegate", ["none", "directory", "#!/opt/kept"])
def test_attack_04_planted_modules_and_libraries(attack: MakeCrash, planted: tuple[str, ...], delegate: str) -> None:
    container = attack(f"delegate={delegate}", options=planted)
    assert "pid=" in container.log("pid=")
    assert not (container.records / "planted").exists()


# 5


def test_attack_05_a_fifo_at_the_path_of_the_helper(attack: MakeCrash, tmp_path: Path) -> None:
    for file in [HELPER, *LIBRARY.glob("*/core_helper/*.py")]:
        planted = tmp_path / file.relative_to("/opt")
        planted.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(planted)
    # A delegate that fails after the root directory was changed: whoever prints a traceback reads the program's source.
    (tmp_path / "bin" / "delegate").mkdir()
    container = attack("wait=/out/go", options=(f"--volume={tmp_path}:/opt", "--detach"))
    (container.records / "go").touch()
    began = time.monotonic()
    assert "not a regular file" in container.log("core dropped")
    # The line is the last thing that the helper does.
    assert time.monotonic() - began < 1


# 6


@pytest.mark.parametrize(
    ("delegate", "told"),
    [
        ("fifo", "not a regular file"),
        ("device", "not a regular file"),
        ("directory", "not a regular file"),
        ("plain", "not executable"),
        ("loop", "Too many levels of symbolic links"),
        ("magic", "Too many levels of symbolic links"),
        (f"{lab.DIRECTORY}/programs/delegate", "No such file"),
        ("#!../../opt/kept", "not an absolute path"),
        ("#!/opt/missing", "/opt/missing: No such file"),
        ("#!/opt/bin/delegate", "more than 5 scripts"),
    ],
)
def test_attack_06_the_path_of_the_delegate_leads_astray(attack: MakeCrash, delegate: str, told: str) -> None:
    container = attack(f"delegate={delegate}", "record")
    assert told in container.log("core dropped")
    assert container.of("delegate") == []
    assert container.seconds < 3


def test_attack_06_links_and_dots_at_every_component_stay_in_the_container(attack: MakeCrash) -> None:
    container = attack("delegate=directory-link", "record")
    container.log("delivered")
    assert container.delegate.links["exe"] == "/opt/kept"
    assert container.delegate.links["ns/mnt"] == container.process.links["ns/mnt"]


# 7


def take_pid(pid: int, *actions: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a process with that very pid: root of the host can ask for it, others try until they have it."""
    for _ in range(200):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen([lab.PROGRAMS / "crasher", *actions], env=environment)
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    raise RuntimeError(f"somebody else has pid {pid}")


@pytest.mark.usefixtures("delegate_of_the_host")
@pytest.mark.parametrize(
    ("options", "successor", "told"),
    [
        ("-d%d", "wait=/nowhere", "is not dumping core"),
        ("-d%d", "tiny", "is younger than its own crash"),
        # Such a helper is younger than the successor, as one is whose start took as long as a tick of the kernel's clock.
        ("-F%F -d%d", "tiny", "the pidfd of the kernel is not of process"),
    ],
)
def test_attack_07_the_pid_is_reused_before_the_helper_looks(
    hold: Hold, options: str, successor: str, told: str
) -> None:
    directory = hold(options, becomes="-F" not in options)
    environment = {"RECORD_DIRECTORY": str(directory)}
    dumper = subprocess.Popen([lab.PROGRAMS / "crasher", "tiny"], env=environment)
    wait_until((directory / "held.1").exists, "no helper")
    dumper.kill()
    dumper.wait()
    replaced = take_pid(dumper.pid, successor, environment=environment)
    try:
        if successor == "tiny":
            wait_until((directory / "held.2").exists, "no helper of the successor")
        (directory / "go.1").touch()
        assert told in wait_for_log(f"pid={dumper.pid} ", told)
        time.sleep(0.5)
        assert list(directory.glob("delegate.*")) == []
        # The successor's own crash is delegated: by its own helper.
        (directory / "go.2").touch()
        if successor == "tiny":
            wait_until(lambda: list(directory.glob("delegate.*")), "the crash of the successor was not handled")
    finally:
        (directory / "go.2").touch()
        replaced.kill()
        replaced.wait()


def test_attack_07_the_process_is_killed_while_the_helper_reads(attack: MakeCrash, hold: Hold) -> None:
    # Who was killed has no attributes of his own any more; in old hierarchies his control groups are those of the host.
    directory = hold(before=("process", "security_label"))
    container = attack("leave=30", "memory=16", options=("--detach",))
    wait_until((directory / "held").exists, "no helper")
    kill_dumper(container)
    (directory / "go").touch()
    assert "is not dumping core" in container.log("pid=")
    time.sleep(0.5)
    assert container.of("delegate") == []


def test_attack_07_a_core_of_almost_nothing_keeps_its_process(attack: MakeCrash) -> None:
    container = attack("tiny", "record")
    container.log("delivered")
    assert container.delegate.core.stat().st_size < 64 << 10
    assert container.delegate.links["ns/mnt"] == container.process.links["ns/mnt"]


# 8


@pytest.mark.parametrize("suid_dumpable", ["0", "1", "2"])
@pytest.mark.parametrize("pattern", ["full", "original"])
@pytest.mark.parametrize("program", [("setid",), ("setid", "become"), ("capable",)], ids=" ".join)
def test_attack_08_a_set_id_program_crashed_by_a_user(
    attack: MakeCrash,
    kernel: Kernel,
    refusal: Callable[[str], str],
    suid_dumpable: str,
    pattern: str,
    program: tuple[str, ...],
) -> None:
    kernel("fs/suid_dumpable", suid_dumpable)
    if pattern == "original":
        kernel("kernel/core_pattern", ORIGINAL)
    container = attack(*program, options=(FALLBACK,))
    if suid_dumpable != "0":  # With 0 the kernel dumps nothing.
        refusal("never delegated")
    assert container.of("delegate") == []
    assert "/tmp/core." not in lab.output("docker", "diff", container.name)


# 9


def test_attack_09_a_thread_that_unshared_its_namespaces(attack: MakeCrash) -> None:
    container = attack("thread", "record", options=ADMINISTRATOR)
    container.log("delivered")
    for namespace in NAMESPACES:
        assert container.delegate.links[f"ns/{namespace}"] == container.process.links[f"ns/{namespace}"]


@pytest.mark.parametrize("pattern", ["full", "original"])
def test_attack_09_a_thread_whose_leader_has_exited(attack: MakeCrash, kernel: Kernel, pattern: str) -> None:
    if pattern == "original":
        kernel("kernel/core_pattern", ORIGINAL)
    container = Container("hostile", ("crash", "-l"), ())
    try:
        container.log("delivered")
        assert is_whole(container.delegate.core.read_bytes())
        for namespace in NAMESPACES:
            assert container.delegate.links[f"ns/{namespace}"] == container.process.links[f"ns/{namespace}"]
    finally:
        container.remove()


# 10


def test_attack_10_file_capabilities_of_the_delegate(attack: MakeCrash) -> None:
    container = attack("delegate=capable", "user", "record")
    # The kernel does not execute a program without the capabilities that its file says it needs; capabilities(7).
    assert "Operation not permitted" in container.log("core dropped")
    assert container.of("delegate") == []


def test_attack_10_a_set_id_delegate(attack: MakeCrash) -> None:
    container = attack("delegate=set-id", "user", "record")
    container.log("delivered")
    process, found = container.process, container.delegate
    assert (found.status["Uid"], found.status["Gid"]) == (process.status["Uid"], process.status["Gid"])
    assert [found.capabilities(name) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]


def test_attack_10_root_that_gave_its_capabilities_away(attack: MakeCrash) -> None:
    container = attack("give", "record")
    container.log("delivered")
    assert container.process.capabilities("CapBnd") != 0
    assert [container.delegate.capabilities(name) for name in CAPABILITY_SETS] == [0, 0, 0, 0, 0]


def test_attack_10_a_node_of_a_disk_of_the_host(attack: MakeCrash) -> None:
    disks = [Path(name).read_text().strip() for name in sorted(Path("/sys/block").glob("*/dev"))]
    if not disks:
        pytest.skip("this machine has no disk")
    container = attack(options=("--env=ATTACK=opens-disk", f"--env=DISK={disks[-1]}"))
    container.log("delivered")
    told = (container.records / "disk").read_text()
    assert "mknod" not in told
    assert "Operation not permitted" in told


# 14


def test_attack_14_the_delegate_crashes(attack: MakeCrash) -> None:
    container = attack("fork=1", options=("--env=ATTACK=crashes", "--ulimit=core=-1"))
    (line,) = lines_of(container)
    assert "was killed by signal 6" in line


# 15


def test_attack_15_names_full_of_bytes_that_matter_elsewhere(attack: MakeCrash, kernel: Kernel) -> None:
    kernel("kernel/core_pattern", f"|{HELPER} -s%s %P %u %g /opt/bin/delegate %e %h %E")
    options = (*ADMINISTRATOR, "--env=ATTACK=tells-words")
    container = attack("name", "thread-name", "user", options=options)
    (line,) = lines_of(container)
    assert " uid=1000 gid=1000 signal=11 (SIGSEGV)" in line
    assert "delivered" in line
    told = line.replace("\\x5c", "\\")
    assert r'comm="a\x0ab) \x22%P\x1b\xff" exe="/tmp/a \x22b\x22 \x0a0 0 0 %P \x1b[31m\xff\xfe"' in told
    assert r'host="h 0 0\x0a\x22%s\x1b\xff"' in told
    words = (container.records / "words").read_bytes().split(b"\0")
    assert words == [
        b'a\nb) "%P\x1b\xff',
        b'h 0 0\n"%s\x1b\xff',
        b'!tmp!a "b" \n0 0 0 %P \x1b[31m\xff\xfe',
        b"",
    ]


@pytest.mark.parametrize(("length", "told"), [(4000, 4000), (5000, 0)])
def test_attack_15_a_path_of_four_kibibytes_or_more(attack: MakeCrash, length: int, told: int) -> None:
    container = attack(f"path={length}", options=("--tmpfs=/tmp:exec,mode=1777",))
    (line,) = lines_of(container)
    assert ": delivered " in line, "the path has pushed out what became of the core"
    assert is_whole(container.delegate.core.read_bytes())
    # No more than PATH_MAX can be read of a path; proc_pid_exe(5).
    exe = container.delegate.environment["CORE_EXE"]
    assert len(exe) == told
    assert f'exe="{exe[:256]}{"..." if exe else ""}"' in line


# 16


def test_attack_16_a_false_proc(attack: MakeCrash) -> None:
    container = attack("limits", "fake-proc", "user", options=ADMINISTRATOR)
    assert "delivered" in container.log("delivered")
    delegate = container.delegate
    assert is_whole(delegate.core.read_bytes())
    facts = delegate.directory.stat()
    assert (facts.st_uid, facts.st_gid) == (1000, 1000)
    assert delegate.facts["descriptors"].split() == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["mapped", "unmapped", "denied"])
def test_attack_16_a_user_namespace_with_an_odd_map(attack: MakeCrash, kind: str) -> None:
    # Only who administrates the system may map users and leave setgroups(2) allowed.
    options = (*UNCONFINED, "--cap-add=SYS_ADMIN") if kind == "mapped" else UNCONFINED
    container = attack(f"userns={kind}", "record", options=options)
    container.log("delivered")
    process, delegate = container.process, container.delegate
    assert delegate.links["ns/user"] == process.links["ns/user"]
    for name in ("Uid", "Gid", "Groups"):
        assert delegate.status[name].split() == process.status[name].split()
    facts = delegate.directory.stat()
    assert (facts.st_uid, facts.st_gid) == (1000, 1000)


# 17


def test_attack_17_an_environment_of_one_letter_names(attack: MakeCrash) -> None:
    container = attack("environ=letters")
    container.log("delivered")
    ours = {name: value for name, value in container.delegate.environment.items() if not name.startswith("CORE_")}
    assert ours == {chr(letter): "1" for letter in range(ord("a"), ord("z") + 1)}


def test_attack_17_an_environment_of_two_megabytes(attack: MakeCrash) -> None:
    container = attack("environ=large")
    line = container.log("delivered")
    assert "the rest was left out" in line
    assert is_whole(container.delegate.core.read_bytes())


def test_attack_17_a_large_environment_and_a_small_stack(attack: MakeCrash) -> None:
    container = attack("environ=large", options=("--ulimit=stack=8388608",))
    container.log("delivered")
    (large,) = (container,)
    assert is_whole(large.delegate.core.read_bytes())
    small = attack("limits", options=tuple(f"--env=V{i}={'x' * 100000}" for i in range(8)))
    line = small.log("delivered")
    assert "only CORE_* passed on" in line
    assert all(name.startswith("CORE_") for name in small.delegate.environment)


def test_attack_17_an_environment_without_a_final_nul(attack: MakeCrash) -> None:
    container = attack("environ=unterminated", "record", options=("--env=LAST=value",))
    container.log("delivered")
    assert "N" in "".join(value[-1:] for value in container.delegate.environment.values())


# 18


def protections() -> str:
    """What the kernel itself forbids in sticky directories; proc_sys_fs(5). The helper does not count on it."""
    return " ".join(f"{file.name}={file.read_text().strip()}" for file in Path("/proc/sys/fs").glob("protected_*"))


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "directory", "foreign"])
def test_attack_18_something_is_where_the_core_file_would_be(
    attack: MakeCrash, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    options = (FALLBACK, "--tmpfs=/tmp:mode=1777", "--detach")
    user = ["user"] if kind == "foreign" else []
    container = attack("delegate=none", f"plant={kind}", "keep=20", *user, options=options)
    assert "File exists" in container.log("core dropped")
    # Nothing was written: neither into what was planted nor where it leads.
    found = lab.output("docker", "exec", container.name, "find", "/tmp", "-type", "f", "-size", "+0")
    assert found == ""
    with capsys.disabled():
        print(f"\n{protections()}")


def test_attack_18_a_full_disk(attack: MakeCrash) -> None:
    container = attack("delegate=none", "memory=4", options=(FALLBACK, "--tmpfs=/tmp:size=64k"))
    line = container.log("not delivered")
    assert re.search(r"not delivered: .*No space left on device after \d+ bytes", line)
    assert "truncated" in line


def test_attack_18_a_read_only_root(attack: MakeCrash) -> None:
    empty = f"--volume={lab.PROGRAMS}:/opt/bin:ro"
    container = attack("record", options=(FALLBACK, "--read-only", empty, "--env=ATTACK=fails"))
    assert "ended with exit code 7" in container.log("not delivered")
    bare = Container("bare", ("crash",), (FALLBACK, "--read-only"))
    try:
        assert "Read-only file system" in bare.log("core dropped")
    finally:
        bare.remove()


def test_attack_18_the_temporary_directory_of_another_user(attack: MakeCrash, tmp_path: Path) -> None:
    directory = tmp_path / "tmp"
    directory.mkdir()
    os.chown(directory, 1001, 1001)
    directory.chmod(0o755)
    container = attack("delegate=none", "user", options=(FALLBACK, f"--volume={directory}:/tmp"))
    assert "Permission denied" in container.log("core dropped")
    assert list(directory.iterdir()) == []


# 19


# What Docker's profile may deny to the process and ours allows to the delegate, none of which gives anything away.
HARMLESS = {
    135,  # personality: the kernel takes -1 for the question which one it is, whatever the upper half of the word says.
    446,  # landlock_restrict_self: takes only rights away; needs no_new_privs, which the delegate always has.
}


def answers(file: Path) -> dict[int, int]:
    """The errno of each system call."""
    return {int(call): int(error) for call, error in (line.split() for line in file.read_text().splitlines())}


def test_attack_19_the_delegate_may_use_no_system_call_that_the_process_may_not(attack: MakeCrash) -> None:
    container = attack("syscalls", "record", options=("--cap-drop=ALL", "--env=ATTACK=system-calls"))
    container.log("delivered")
    process, delegate = (answers(container.records / f"{role}.syscalls") for role in ("process", "delegate"))
    denied = {1, 38}  # EPERM, ENOSYS
    assert len(process) > 300
    more = {call for call, error in process.items() if error in denied and delegate.get(call) not in denied}
    assert more - HARMLESS == set()
    # Tracing, which Docker allows.
    assert process[101] not in denied and delegate[101] in denied


def test_attack_19_no_system_call_of_32_bits_leads_around_the_filter(attack: MakeCrash) -> None:
    container = attack("syscalls", "record", options=("--cap-drop=ALL", "--env=ATTACK=system-calls"))
    container.log("delivered")
    process, delegate = (answers(container.records / f"{role}.syscalls-i386") for role in ("process", "delegate"))
    if not process:
        pytest.skip("the kernel takes no system call of 32 bits: int 0x80 ends the program")
    assert len(process) > 400
    # The process is one of 64 bits, and so is its delegate: it has no use for the others.
    assert set(delegate.values()) == {38}  # ENOSYS


def test_attack_19_strict_mode_is_never_left(attack: MakeCrash, refusal: Callable[[str], str]) -> None:
    container = attack("seccomp=strict", options=UNCONFINED)
    refusal("strict seccomp mode")
    assert container.of("delegate") == []


# What a process that was confined more than its container may not choose: another program's code, and where its core goes.
CHOSEN = ("--env=LD_PRELOAD=/out/planted", "--env=CORE_DESTINATION=s3://elsewhere/")


@pytest.mark.parametrize("profile", [(), UNCONFINED], ids=["of the engine", "none"])
@pytest.mark.parametrize("nested", [(), ("userns=denied",)], ids=["", "in a user namespace"])
def test_attack_19_a_process_with_a_filter_of_its_own_passes_no_variables_on(
    attack: MakeCrash, profile: tuple[str, ...], nested: tuple[str, ...]
) -> None:
    if nested and not profile:
        profile = ("--cap-add=SYS_ADMIN",)
    container = attack("fork=1", *nested, "seccomp=filter", options=(*CHOSEN, *profile))
    assert "a seccomp filter of its own" in container.log("delivered")
    assert container.delegate.status["Seccomp"] == "2"
    assert all(name.startswith("CORE_") for name in container.delegate.environment)
    assert "CORE_DESTINATION" not in container.delegate.environment


def test_attack_24_filters_of_the_whole_container_take_no_variables_away(attack: MakeCrash) -> None:
    # As under systemd-nspawn, which has several: those of its first process are the container's.
    container = attack("seccomp=filter", "seccomp=filter", "fork=1", options=("--env=CORE_DESTINATION=s3://mine/",))
    container.log("delivered")
    assert container.delegate.environment["CORE_DESTINATION"] == "s3://mine/"


# 21


@pytest.mark.parametrize(
    ("action", "options"), [("hold=3", ()), ("hold-userns=3", UNCONFINED)], ids=["", "of children in user namespaces"]
)
def test_attack_21_cap_sys_ptrace_holds_the_interpreter_and_writes_to_it_later(
    attack: MakeCrash, action: str, options: tuple[str, ...]
) -> None:
    container = attack(action, options=("--cap-add=SYS_PTRACE", *options))
    assert "held 1" in container.output, "the interpreter was never held: nothing was shown"
    assert "write: Read-only file system" in container.output


@pytest.mark.skipif(
    not Path("/sys/module/apparmor/parameters/enabled").exists(), reason="the kernel has no security module that labels"
)
def test_attack_19_the_label_of_the_delegate_is_that_of_the_process(attack: MakeCrash) -> None:
    container = attack("record")
    container.log("delivered")
    assert container.delegate.text("label") == container.process.text("label") != ""
