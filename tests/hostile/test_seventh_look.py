"""What a seventh stranger found: slices of systemd's, namespaces that root makes for others, directories of other users."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hostile.groups import make
from hostile.intruders import OF_THE_HOST, PROGRAM
from hostile.observe import LIMIT, helpers, processes_of, wait_until
from hostile.test_sixth_slots import of_users
from support import lab
from support.containers import MakeCrash, read_log, wait_for_log

GROUPS = Path("/sys/fs/cgroup")
MANY = 300  # More control groups than the helper looks at.
# As systemd does it in the hierarchies of version 1: there is a control group for each unit where the unit has a limit, else
# that of the slice alone. In /proc/PID/cgroup, the hierarchy of processes comes before that of memory.
SERVICE = {"pids": "lab.slice", "memory": "lab.slice/lab-a.service"}
ANOTHER = {"pids": "lab.slice", "memory": "lab.slice/lab-b.service"}

Start = Callable[..., "subprocess.Popen[str]"]
Place = Callable[[int, "dict[str, str]"], None]


@pytest.fixture
def run() -> Iterator[Start]:
    """Starts a program on the host, which ends after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: object, env: dict[str, str] = OF_THE_HOST) -> subprocess.Popen[str]:
        words_of_text = [str(word) for word in words]
        started.append(
            subprocess.Popen(words_of_text, env=env, start_new_session=True, stdout=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def place(run: Start) -> Iterator[Place]:
    """Moves a process into a control group of each hierarchy of version 1, and into the root group of the others."""
    made: list[Path] = []
    hierarchies = [path for path in GROUPS.iterdir() if (path / "tasks").exists() and not path.is_symlink()]
    if not {"pids", "memory"} <= {path.name for path in hierarchies}:
        pytest.skip("this host has no control groups of version 1")

    def move(pid: int, names: dict[str, str]) -> None:
        for hierarchy in hierarchies:
            group = hierarchy / names.get(hierarchy.name, "")
            for path in reversed([group, *group.parents]):
                if not path.exists():
                    make(path)
                    made.append(path)
            (group / "cgroup.procs").write_text(str(pid))

    yield move
    for hierarchy in hierarchies:
        for group in filter(Path.exists, made):
            for pid in (group / "cgroup.procs").read_text().split():
                with suppress(OSError):
                    (hierarchy / "cgroup.procs").write_text(pid)
    for group in reversed(made):
        wait_until(lambda of=group: not (of / "cgroup.procs").read_text(), "a process is left")  # type: ignore[misc]
        group.rmdir()


@contextmanager
def many_groups(above: Path) -> Iterator[None]:
    """Very many control groups, as hundreds of containers have them."""
    groups = [above / f"unit-{number}.scope" for number in range(MANY)]
    try:
        for group in groups:
            group.mkdir()
        yield
    finally:
        for group in groups:
            group.rmdir()


def crash_of_service(run: Start, place: Place, records: Path, *actions: object, jail: Path | None = None) -> str:
    """Has a service of the host do the actions, and crash; the lines of the log about it."""
    before = set(read_log().splitlines())
    crash = run(PROGRAM, f"wait={records}/go", *actions, env={"RECORD_DIRECTORY": "/" if jail else str(records)})
    place(crash.pid, SERVICE)
    (records / "go").touch()
    crash.wait()

    def lines() -> str:
        new = [line for line in read_log().splitlines() if line not in before]
        return "\n".join(line for line in new if 'comm="crasher"' in line)

    wait_until(lines, "no line in the log")
    return lines()


# 20, 24: slices


@pytest.mark.usefixtures("delegate_of_the_host")
@pytest.mark.parametrize("kind", ["own-mounts", "seccomp=filter"])
def test_the_units_of_others_cost_no_service_its_core(run: Start, place: Place, records: Path, kind: str) -> None:
    another = run("sleep", "100")
    place(another.pid, ANOTHER)
    with many_groups(GROUPS / "pids/lab.slice"):
        assert ": delivered " in crash_of_service(run, place, records, kind, "tiny")


SERVICES = {
    "a service with a root directory of its own": ("own-mounts", "root={jail}", "execute=/usr/bin/crasher"),
    "a container": ("own-mounts", "sandbox=pid", "root={jail}", "execute=/usr/bin/crasher"),
}


@pytest.mark.usefixtures("delegate_of_the_host")
@pytest.mark.parametrize("kind", SERVICES)
def test_a_slice_in_one_hierarchy_is_no_other_control_group(
    run: Start, place: Place, records: Path, jail: Path, kind: str
) -> None:
    another = run("sleep", "100")
    place(another.pid, ANOTHER)
    actions = [action.format(jail=jail) for action in SERVICES[kind]]
    assert ": delivered " in crash_of_service(run, place, records, *actions, jail=jail)


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_24_a_filter_of_its_own_where_another_service_of_the_slice_has_one(
    run: Start, place: Place, records: Path
) -> None:
    another = run(PROGRAM, "seccomp=filter", f"wait={records}/never")
    place(another.pid, ANOTHER)
    place(run("sleep", "100").pid, SERVICE)
    crash_of_service(run, place, records, "seccomp=filter", "tiny")
    # The variable that names it was not passed on.
    assert not list(records.glob("delegate.*"))


@pytest.mark.usefixtures("patient", "delegate_of_the_host")
def test_attack_22_sandboxes_of_one_service_leave_slots_to_those_of_another(
    run: Start, place: Place, records: Path
) -> None:
    sandbox = ("sandbox=pid", "user", f"execute={PROGRAM}", "tiny")
    flood = run(PROGRAM, f"wait={records}/go", "fork=70", *sandbox, env={"ATTACK": "never-ends"})
    place(flood.pid, SERVICE)
    other = run(PROGRAM, f"wait={records}/go2", "fork=1", *sandbox, env={"RECORD_DIRECTORY": str(records)})
    place(other.pid, ANOTHER)
    (records / "go").touch()
    wait_until(lambda: len(of_users("crasher")) == len(of_users("delegate")) > LIMIT // 4, "no rest", 90)
    (records / "go2").touch()
    wait_until(lambda: list(records.glob("delegate.*")), "the crash of the other service was not handled", 30)
    os.killpg(flood.pid, signal.SIGKILL)
    wait_until(lambda: helpers() == 0, "helpers are left", 30)


# Before Linux 6.11, the kernel does not name the first process.
OLD_KERNEL = """
from core_helper import namespaces

namespaces.NS_GET_PID_FROM_PIDNS = 0
"""


def test_the_control_groups_of_others_cost_no_container_its_core(
    attack: MakeCrash, old_kernel: Callable[[str], None]
) -> None:
    """In a hierarchy that the engine does not know, all containers are in the root group."""
    old_kernel(OLD_KERNEL)
    with open("/proc/self/cgroup") as file:
        unknown = GROUPS / file.readline().split(":")[1].removeprefix("name=")
    if not (unknown / "tasks").exists():
        pytest.skip("this host has no control groups of version 1")
    container = attack("wait=/out/never", options=("--detach",))
    lab.output("docker", "exec", "--detach", container.name, "crasher", "wait=/out/go", "tiny")
    wait_until(lambda: len(processes_of(container)) == 2, "the engine has started nothing")
    for pid, _ in processes_of(container):
        (unknown / "cgroup.procs").write_text(str(pid))
    with many_groups(unknown):
        (container.records / "go").touch()
        assert ": delivered " in container.log(": delivered ")


# 20: who may change what is executed

# A container whose engine is root, and whose users have numbers of their own. It covers the delegate, and tells its pid.
CONTAINER_OF_ROOT = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)


def must(result):
    assert result == 0, os.strerror(ctypes.get_errno())


made, go = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    must(libc.unshare(0x10000000))
    os.write(made[1], b"x")
    os.read(go[0], 1)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    must(libc.unshare(0x20020000))
    first = os.fork()
    if first == 0:
        must(libc.mount(sys.argv[1].encode(), b"/opt/bin/delegate", None, 4096, None))
        open(sys.argv[2], "w").close()
        time.sleep(100)
    print(first, flush=True)
    os.waitpid(first, 0)
    os._exit(0)
os.read(made[0], 1)
for kind in ("uid", "gid"):
    with open(f"/proc/{pid}/{kind}_map", "w") as file:
        file.write("0 100000 65536")
os.write(go[1], b"x")
os.waitpid(pid, 0)
"""


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_20_root_of_the_host_in_a_user_namespace_that_root_has_made_for_others(
    run: Start, records: Path
) -> None:
    program, ready = records / "program", records / "ready"
    program.write_text(f"#!/bin/sh\n: >{records}/started\ncat >/dev/null\n")
    program.chmod(0o755)
    holder = run(sys.executable, "-c", CONTAINER_OF_ROOT, program, ready)
    wait_until(ready.exists, "there is no container")
    (child,) = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
    (first,) = Path(f"/proc/{child}/task/{child}/children").read_text().split()
    enter = ("nsenter", "--user", "--mount", "--pid", "--preserve-credentials", f"--target={first}")
    run(*enter, PROGRAM, "tiny").wait()
    assert "core not delivered, 0 bytes" in wait_for_log("does not have its user, 0", "core not delivered, 0 bytes")
    assert not (records / "started").exists()


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with the program that crashes and a delegate."""
    directory = lab.DIRECTORY / "home"
    (directory / "out").mkdir(parents=True)
    for source, name in (("crasher", "usr/bin/crasher"), ("delegate", "opt/bin/delegate")):
        (directory / name).parent.mkdir(parents=True)
        lab.command("cp", lab.PROGRAMS / source, directory / name)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("name", ["", "opt/bin", "opt/bin/delegate"])
def test_attack_20_a_user_of_a_container_has_a_delegate_for_a_daemon_of_root(
    attack: MakeCrash, home: Path, name: str
) -> None:
    os.chown(home / name, 1000, 1000)
    container = attack("tiny", "root=/home", options=(f"--volume={home}:/home",))
    assert "another user may change it" in container.log("core dropped, 0 bytes delivered")
    assert not list((home / "out").iterdir()), "the delegate was started"


@pytest.mark.parametrize("user", [0, 1000])
def test_a_daemon_has_the_delegate_of_its_root_directory(attack: MakeCrash, home: Path, user: int) -> None:
    for name in ("", "opt/bin", "out"):
        os.chown(home / name, user, user)
    actions = ("root=/home", "user", "execute=/usr/bin/crasher") if user else ("tiny", "root=/home")
    container = attack(*actions, options=(f"--volume={home}:/home",))
    assert ": delivered " in container.log(": delivered "), container.log("pid=")
