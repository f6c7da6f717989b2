"""The attacks on the way into the container, one test or a small group each; README.md says how each defence was tried."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lab
import pytest
from containers import Container, Crash, wait_for_log
from records import CAPABILITY_SETS, NAMESPACES, is_whole

HELPER = Path("/opt/bin/docker_core_helper")
LIBRARY = Path("/opt/lib/docker_core_helper")
ORIGINAL = f"|{HELPER} %P %u %g /opt/bin/delegate"
FALLBACK = "--env=DOCKERCOREHELPER_FALLBACK_CORE=1"
UNCONFINED = ("--security-opt=seccomp=unconfined",)
ADMINISTRATOR = ("--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined")

Kernel = Callable[[str, str], None]


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
    return (f"--volume={lab.VICTIMS}/planted:{path}:ro",)


@pytest.mark.parametrize(
    "delegate", ["#!/proc/self/exe", "#!/proc/thread-self/exe", "#!/opt/link", "#!/opt/bin/script", "self-exe"]
)
def test_attack_01_proc_self_exe_as_delegate(
    attack: Crash, planted_interpreter: tuple[str, ...], tmp_path: Path, delegate: str
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


def test_attack_01_the_python_of_the_host_as_delegate(attack: Crash, planted_interpreter: tuple[str, ...]) -> None:
    container = attack(options=(*planted_interpreter, f"--volume={interpreter().resolve()}:/opt/bin/delegate:ro"))
    assert "is the helper's own interpreter" in container.log("core dropped")
    assert not (container.records / "planted").exists()


# 2


def looked(container: Container) -> dict[str, int]:
    """How often the watcher saw a process of ours, from its output."""
    return {name: int(count) for name, count in re.findall(r"^(hidden|seen) (\d+)$", container.output, re.M)}


@pytest.mark.parametrize(("user", "suid_dumpable"), [("user", "0"), ("user", "1"), ("user", "2"), ("fork=1", "0")])
def test_attack_02_looking_at_the_process_between_fork_and_exec(
    attack: Crash, kernel: Kernel, user: str, suid_dumpable: str
) -> None:
    kernel("fs/suid_dumpable", suid_dumpable)
    container = attack(user, "watch=2")
    if user == "user":
        assert looked(container)["hidden"] > 0, "the watcher was never there in time: nothing was shown"
    assert re.findall(r"^(?:GOT|EXE) .*", container.output, re.M) == []


def test_attack_02_cap_sys_ptrace_finds_no_directory_of_the_host(attack: Crash) -> None:
    container = attack("watch=2", options=("--cap-add=SYS_PTRACE",))
    assert looked(container)["seen"] > 0, "the watcher was never there in time: nothing was shown"
    assert "GOT directory" not in container.output


# 3


@pytest.mark.parametrize("options", ["-F%F -I%I -s%s -t%t -d%d -c%c ", ""])
def test_attack_03_a_leaked_descriptor_of_the_host(attack: Crash, kernel: Kernel, options: str) -> None:
    kernel("kernel/core_pattern", f"|{HELPER} {options}%P %u %g")
    container = attack()
    container.log("delivered")
    assert container.delegate.facts["descriptors"].split() == ["0", "1", "2"]
    assert container.delegate.links["cwd"] == "/"


# 4


@pytest.mark.parametrize("delegate", ["none", "directory", "#!/opt/kept"])
def test_attack_04_planted_modules_and_libraries(attack: Crash, tmp_path: Path, delegate: str) -> None:
    mark = 'import posix\nposix.close(posix.open("/out/planted", posix.O_CREAT | posix.O_WRONLY, 0o666))\n'
    program = "import sys; print(*(path for path in sys.path if not path.endswith('.zip')), sep='\\n')"
    modules = lab.output(interpreter(), "-IS", "-c", program).splitlines()[0]
    planted = {"modules": modules, "helper": str(LIBRARY)}
    names = [f"{name}.py" for name in sys.stdlib_module_names] + ["encodings/__init__.py", "encodings/idna.py"]
    for name in names:
        write(tmp_path / "modules" / name, mark)
    for module in LIBRARY.glob("*/core_helper/*.py"):
        write(tmp_path / "helper" / module.relative_to(LIBRARY), mark)
    options = [f"--volume={tmp_path / name}:{path}:ro" for name, path in planted.items()]
    # Mounted one by one, since all of them are in a few directories.
    linked = re.findall(r"(/\S+) \(0x", lab.output("ldd", interpreter()))
    for library in [*linked, "/lib/x86_64-linux-gnu/libnss_files.so.2", "/lib/x86_64-linux-gnu/libgcc_s.so.1"]:
        options.append(f"--volume={lab.VICTIMS}/planted:{library}:ro")
    container = attack(f"delegate={delegate}", options=tuple(options))
    assert "pid=" in container.log("pid=")
    assert not (container.records / "planted").exists()


def write(file: Path, text: str) -> None:
    """Writes a file, and its directory if there is none yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


# 5


def test_attack_05_a_fifo_at_the_path_of_the_helper(attack: Crash, tmp_path: Path) -> None:
    for file in [HELPER, *LIBRARY.glob("*/core_helper/*.py")]:
        planted = tmp_path / file.relative_to("/opt")
        planted.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(planted)
    # A delegate that fails after the root directory was changed: whoever prints a traceback reads the program's source.
    (tmp_path / "bin" / "delegate").mkdir()
    container = attack(options=(f"--volume={tmp_path}:/opt",))
    assert "not a regular file" in container.log("core dropped")
    assert container.seconds < 3


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
        (f"{lab.DIRECTORY}/victims/delegate", "No such file"),
        ("#!../../opt/kept", "not an absolute path"),
        ("#!/opt/missing", "/opt/missing: No such file"),
        ("#!/opt/bin/delegate", "more than 5 scripts"),
    ],
)
def test_attack_06_the_path_of_the_delegate_leads_astray(attack: Crash, delegate: str, told: str) -> None:
    container = attack(f"delegate={delegate}", "record")
    assert told in container.log("core dropped")
    assert container.of("delegate") == []
    assert container.seconds < 3


def test_attack_06_links_and_dots_at_every_component_stay_in_the_container(attack: Crash) -> None:
    container = attack("delegate=directory-link", "record")
    container.log("delivered")
    assert container.delegate.links["exe"] == "/opt/kept"
    assert container.delegate.links["ns/mnt"] == container.process.links["ns/mnt"]


# 7


HOLD = """#!/bin/sh
# Holds the helper up, in which time the pid that it was told becomes somebody else's.
: > {directory}/held
while [ ! -e {directory}/go ]; do sleep 0.02; done
exec {helper} "$@"
"""


@pytest.fixture
def hold(tmp_path: Path, kernel: Kernel, records: Path) -> Iterator[Path]:
    """A core pattern whose helper starts only when the file ``go`` is there."""
    # At most 127 bytes go into the core pattern.
    script = lab.DIRECTORY / "hold"
    script.write_text(HOLD.format(directory=records, helper=HELPER))
    script.chmod(0o755)
    kernel("kernel/core_pattern", f"|{script} -d%d %P %u %g")
    yield records
    script.unlink()


def take_pid(pid: int, *actions: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a process with that very pid: root of the host can ask for it, others try until they have it."""
    for _ in range(200):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen([lab.VICTIMS / "victim", *actions], env=environment)
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    raise RuntimeError(f"somebody else has pid {pid}")


@pytest.mark.usefixtures("delegate_of_the_host")
@pytest.mark.parametrize(
    ("successor", "told"),
    [("wait=/nowhere", "is not dumping core"), ("tiny", "is younger than its own crash")],
)
def test_attack_07_the_pid_is_reused_before_the_helper_looks(hold: Path, successor: str, told: str) -> None:
    environment = {"RECORD_DIRECTORY": str(hold)}
    dumper = subprocess.Popen([lab.VICTIMS / "victim", "tiny"], env=environment)
    while not (hold / "held").exists():
        time.sleep(0.01)
    (hold / "held").unlink()
    dumper.kill()
    dumper.wait()
    replaced = take_pid(dumper.pid, successor, environment=environment)
    try:
        while successor == "tiny" and not (hold / "held").exists():
            time.sleep(0.01)
        (hold / "go").touch()
        assert told in wait_for_log(f"pid={dumper.pid} ", told)
        # The successor's own crash may be delegated: by its own helper.
        time.sleep(0.5)
        assert len(list(hold.glob("delegate.*"))) == (1 if successor == "tiny" else 0)
    finally:
        replaced.kill()
        replaced.wait()


def test_attack_07_a_core_of_almost_nothing_keeps_its_process(attack: Crash) -> None:
    container = attack("tiny", "record")
    container.log("delivered")
    assert container.delegate.core.stat().st_size < 64 << 10
    assert container.delegate.links["ns/mnt"] == container.process.links["ns/mnt"]


# 8


@pytest.mark.parametrize("suid_dumpable", ["0", "1", "2"])
@pytest.mark.parametrize("pattern", ["full", "original"])
@pytest.mark.parametrize("becomes", ["", "become"])
def test_attack_08_a_set_id_program_crashed_by_a_user(
    attack: Crash,
    kernel: Kernel,
    refusal: Callable[[str], str],
    suid_dumpable: str,
    pattern: str,
    becomes: str,
) -> None:
    kernel("fs/suid_dumpable", suid_dumpable)
    if pattern == "original":
        kernel("kernel/core_pattern", ORIGINAL)
    container = attack("setid", *filter(None, [becomes]), options=(FALLBACK,))
    if suid_dumpable != "0":  # With 0 the kernel dumps nothing.
        refusal("never delegated")
    assert container.of("delegate") == []
    assert "/tmp/core." not in lab.output("docker", "diff", container.name)


# 9


def test_attack_09_a_thread_that_unshared_its_namespaces(attack: Crash) -> None:
    container = attack("thread", "record", options=ADMINISTRATOR)
    container.log("delivered")
    for namespace in NAMESPACES:
        assert container.delegate.links[f"ns/{namespace}"] == container.process.links[f"ns/{namespace}"]


@pytest.mark.parametrize("pattern", ["full", "original"])
def test_attack_09_a_thread_whose_leader_has_exited(attack: Crash, kernel: Kernel, pattern: str) -> None:
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


def test_attack_10_file_capabilities_of_the_delegate(attack: Crash) -> None:
    container = attack("delegate=capable", "user", "record")
    # The kernel does not execute a program without the capabilities that its file says it needs; capabilities(7).
    assert "Operation not permitted" in container.log("core dropped")
    assert container.of("delegate") == []


def test_attack_10_a_set_id_delegate(attack: Crash) -> None:
    container = attack("delegate=set-id", "user", "record")
    container.log("delivered")
    process, found = container.process, container.delegate
    assert (found.status["Uid"], found.status["Gid"]) == (process.status["Uid"], process.status["Gid"])
    assert [found.capabilities(name) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]


def test_attack_10_root_that_gave_its_capabilities_away(attack: Crash) -> None:
    container = attack("give", "record")
    container.log("delivered")
    assert container.process.capabilities("CapBnd") != 0
    assert [container.delegate.capabilities(name) for name in CAPABILITY_SETS] == [0, 0, 0, 0, 0]


def test_attack_10_a_node_of_a_disk_of_the_host(attack: Crash) -> None:
    disks = [Path(name).read_text().strip() for name in sorted(Path("/sys/block").glob("*/dev"))]
    if not disks:
        pytest.skip("this machine has no disk")
    container = attack(options=("--env=ATTACK=opens-disk", f"--env=DISK={disks[-1]}"))
    container.log("delivered")
    told = (container.records / "disk").read_text()
    assert "mknod" not in told
    assert "Operation not permitted" in told


# 14


def test_attack_14_the_delegate_crashes(attack: Crash) -> None:
    container = attack("fork=1", options=("--env=ATTACK=crashes", "--ulimit=core=-1"))
    (line,) = lines_of(container)
    assert "was killed by signal 6" in line


# 15


def test_attack_15_names_full_of_bytes_that_matter_elsewhere(attack: Crash, kernel: Kernel) -> None:
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


# 16


def test_attack_16_a_false_proc(attack: Crash) -> None:
    container = attack("limits", "fake-proc", "user", options=ADMINISTRATOR)
    assert "delivered" in container.log("delivered")
    delegate = container.delegate
    assert is_whole(delegate.core.read_bytes())
    facts = delegate.directory.stat()
    assert (facts.st_uid, facts.st_gid) == (1000, 1000)
    assert delegate.facts["descriptors"].split() == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["mapped", "unmapped", "denied"])
def test_attack_16_a_user_namespace_with_an_odd_map(attack: Crash, kind: str) -> None:
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


def test_attack_17_an_environment_of_one_letter_names(attack: Crash) -> None:
    container = attack("environ=letters")
    container.log("delivered")
    ours = {name: value for name, value in container.delegate.environment.items() if not name.startswith("CORE_")}
    assert ours == {chr(letter): "1" for letter in range(ord("a"), ord("z") + 1)}


def test_attack_17_an_environment_of_two_megabytes(attack: Crash) -> None:
    container = attack("environ=large")
    line = container.log("delivered")
    assert "the rest was left out" in line
    assert is_whole(container.delegate.core.read_bytes())


def test_attack_17_a_large_environment_and_a_small_stack(attack: Crash) -> None:
    container = attack("environ=large", options=("--ulimit=stack=8388608",))
    container.log("delivered")
    (large,) = (container,)
    assert is_whole(large.delegate.core.read_bytes())
    small = attack("limits", options=tuple(f"--env=V{i}={'x' * 100000}" for i in range(8)))
    line = small.log("delivered")
    assert "only CORE_* passed on" in line
    assert all(name.startswith("CORE_") for name in small.delegate.environment)


def test_attack_17_an_environment_without_a_final_nul(attack: Crash) -> None:
    container = attack("environ=unterminated", "record", options=("--env=LAST=value",))
    container.log("delivered")
    assert "N" in "".join(value[-1:] for value in container.delegate.environment.values())


# 18


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "directory"])
def test_attack_18_something_is_where_the_core_file_would_be(attack: Crash, kind: str) -> None:
    options = (FALLBACK, "--tmpfs=/tmp:mode=1777", "--detach")
    container = attack("delegate=none", f"plant={kind}", "keep=20", options=options)
    assert "File exists" in container.log("core dropped")
    assert lab.output("docker", "exec", container.name, "stat", "-c", "%s", "/tmp/target") == "0"


def test_attack_18_a_full_disk(attack: Crash) -> None:
    container = attack("delegate=none", "memory=4", options=(FALLBACK, "--tmpfs=/tmp:size=64k"))
    line = container.log("not delivered")
    assert re.search(r"not delivered: .*No space left on device after \d+ bytes", line)
    assert "truncated" in line


def test_attack_18_a_read_only_root(attack: Crash) -> None:
    empty = f"--volume={lab.VICTIMS}:/opt/bin:ro"
    container = attack("record", options=(FALLBACK, "--read-only", empty, "--env=ATTACK=fails"))
    assert "ended with exit code 7" in container.log("not delivered")
    bare = Container("bare", ("crash",), (FALLBACK, "--read-only"))
    try:
        assert "Read-only file system" in bare.log("core dropped")
    finally:
        bare.remove()


def test_attack_18_the_temporary_directory_of_another_user(attack: Crash, tmp_path: Path) -> None:
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


def test_attack_19_the_delegate_may_use_no_system_call_that_the_process_may_not(attack: Crash) -> None:
    container = attack("syscalls", "record", options=("--cap-drop=ALL", "--env=ATTACK=system-calls"))
    container.log("delivered")
    process, delegate = (answers(container.records / f"{role}.syscalls") for role in ("process", "delegate"))
    denied = {1, 38}  # EPERM, ENOSYS
    assert len(process) > 300
    more = {call for call, error in process.items() if error in denied and delegate.get(call) not in denied}
    assert more - HARMLESS == set()
    # Tracing, which Docker allows.
    assert process[101] not in denied and delegate[101] in denied


def test_attack_19_strict_mode_is_never_left(attack: Crash, refusal: Callable[[str], str]) -> None:
    container = attack("seccomp=strict", options=UNCONFINED)
    refusal("strict seccomp mode")
    assert container.of("delegate") == []


def test_attack_19_a_process_with_a_filter_of_its_own_passes_no_variables_on(attack: Crash) -> None:
    container = attack("seccomp=filter", options=("--env=LD_PRELOAD=/out/planted",))
    container.log("delivered")
    assert container.delegate.status["Seccomp"] == "2"
    assert all(name.startswith("CORE_") for name in container.delegate.environment)


@pytest.mark.skipif(
    not Path("/sys/module/apparmor/parameters/enabled").exists(), reason="the kernel has no security module that labels"
)
def test_attack_19_the_label_of_the_delegate_is_that_of_the_process(attack: Crash) -> None:
    container = attack("record")
    container.log("delivered")
    assert container.delegate.text("label") == container.process.text("label") != ""
