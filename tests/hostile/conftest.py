"""Fixtures of the attacks: an image of programs that mean harm, containers of it, and the kernel's settings."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from core_helper import control_groups
from hostile.groups import GROUPS, Place, make, move_into
from hostile.intruders import OF_THE_HOST, Start, start
from hostile.keeping import Keep
from hostile.observe import ended, processes_of, wait_until
from hostile.options import ADMINISTRATOR, FALLBACK
from support import lab
from support.containers import Container, MakeCrash, crash_in, read_log
from support.hosts import HELPER, delegate_on_host, records_of_host

HERE = Path(__file__).resolve().parent
HOLD_SHELL = """#!/bin/sh
number=1
until mkdir {directory}/held.$number; do number=$((number + 1)); done
while [ ! -e {directory}/go.$number ]; do sleep 0.02; done
{start} {helper} "$@"
"""
# Takes the place of the last line of the installed entry.
HOLD_ENTRY = """
import os
import time

from core_helper import {module}


def held(*arguments, called={module}.{name}):
    os.close(os.open("{directory}/held", os.O_CREAT | os.O_WRONLY))
    while not os.path.exists("{directory}/go"):
        time.sleep(0.01)
    return called(*arguments)


{module}.{name} = held
main(sys.argv)
"""


@pytest.fixture(scope="session", autouse=True)
def image() -> None:
    """Compiles the programs and puts them into an image of their own."""
    for program in ("crasher", "delegate"):
        flags = ("-static", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")
        lab.command("gcc", *flags, "-o", lab.PROGRAMS / program, HERE / f"{program}.c")
    alone = ("-nostdlib", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wl,--entry=_start")
    lab.command("gcc", *alone, "-o", lab.PROGRAMS / "planted", HERE / "planted.c")
    crasher = lab.PROGRAMS / "crasher"
    files = {"usr/bin/crasher": crasher, "usr/bin/setid": crasher, "opt/bin/delegate": lab.PROGRAMS / "delegate"}
    lab.import_image("hostile", files)


@pytest.fixture(scope="module")
def attack() -> Iterator[MakeCrash]:
    """Runs the crasher in a container: ``attack(*its_actions, options=...)``."""
    containers: list[Container] = []
    yield crash_in(containers, "hostile", "crasher")
    for container in containers:
        container.remove()


@pytest.fixture
def siege() -> Iterator[MakeCrash]:
    """As ``attack``, for containers that take slots or hold helpers: all of their processes are ended after each test."""
    with ended(90) as made:
        yield made


@pytest.fixture
def refusal() -> Callable[[str], str]:
    """Waits for a line with a text which was not in the log before the test: a refusal does not name the container."""
    before = set(read_log().splitlines())

    def wait(text: str) -> str:
        deadline = time.monotonic() + 10
        while True:
            for line in read_log().splitlines():
                if text in line and line not in before:
                    return line
            assert time.monotonic() < deadline, f"not in the log: {text}"
            time.sleep(0.1)

    return wait


@pytest.fixture
def kernel() -> Iterator[Callable[[str, str], None]]:
    """Sets a value of the kernel for the time of one test."""
    before = {name: lab.setting(name).read_text() for name in lab.SETTINGS}

    def write(name: str, value: str) -> None:
        lab.setting(name).write_text(value)
        assert lab.setting(name).read_text().rstrip("\n") == value

    yield write
    for name, value in before.items():
        lab.setting(name).write_text(value)


@pytest.fixture
def delegate_of_the_host() -> Iterator[None]:
    """Puts the delegate where the configuration says, on the host itself."""
    with delegate_on_host("delegate"):
        yield


@pytest.fixture
def group_of_user() -> Iterator[Path]:
    """A control group of the unified hierarchy whose subtree is that of user 1000."""
    mounts = control_groups.own_cgroup_mounts()
    group = Path(os.fsdecode(mounts[b""]), "lab-of-user-1000")
    (group / "start").mkdir(parents=True)
    for path in (group, group / "cgroup.procs", group / "start", group / "start/cgroup.procs"):
        os.chown(path, 1000, 1000)
    yield group
    (group / "cgroup.kill").write_text("1")
    wait_until(lambda: "populated 0" in (group / "cgroup.events").read_text(), "a process of the user is left", 30)
    for below in group.iterdir():
        if below.is_dir():
            below.rmdir()
    group.rmdir()


@contextmanager
def timeout_of(seconds: int) -> Iterator[None]:
    """Another timeout than that of these tests."""
    file = Path("/etc/docker_core_helper.conf")
    before = file.read_text()
    file.write_text(before.replace("DOCKERCOREHELPER_TIMEOUT=5\n", f"DOCKERCOREHELPER_TIMEOUT={seconds}\n"))
    yield
    file.write_text(before)


@pytest.fixture
def patient() -> Iterator[None]:
    """The timeout that a host has: with that of the other tests, a busy machine loses cores that wait for a processor."""
    with timeout_of(300):
        yield


@pytest.fixture
def patient_enough() -> Iterator[None]:
    """A timeout whose end a test can wait for."""
    with timeout_of(20):
        yield


@pytest.fixture
def records() -> Iterator[Path]:
    """A directory for records of the host's processes, in which every user may write."""
    with records_of_host() as directory:
        yield directory


@pytest.fixture
def hold(kernel: Callable[[str, str], None], records: Path) -> Iterator[Callable[..., Path]]:
    """Installs a core pattern whose helper is held, by files in the directory that is returned.

    ``hold(options)`` holds it before it starts, by a shell that then becomes the helper or, ``becomes=False``, starts it: the
    first one writes ``held.1`` and goes on when ``go.1`` is there, the second one ``held.2``, and so on.
    ``hold(options, before=(module, name))`` holds the helper itself before it calls that function: ``held`` and ``go``.
    """
    # At most 127 bytes go into the core pattern.
    script = lab.DIRECTORY / "hold"

    def install(options: str = "-d%d", before: tuple[str, str] | None = None, becomes: bool = True) -> Path:
        if before is None:
            start = "exec" if becomes else ""
            text = HOLD_SHELL.format(directory=records, helper=HELPER, start=start)
        else:
            module, name = before
            wait = HOLD_ENTRY.format(directory=records, module=module, name=name)
            text = HELPER.read_text().replace("\nmain(sys.argv)\n", wait)
        script.write_text(text)
        script.chmod(0o755)
        kernel("kernel/core_pattern", f"|{script} {options} %P %u %g")
        return records

    yield install
    script.unlink(missing_ok=True)


@pytest.fixture
def old_kernel(kernel: Callable[[str, str], None]) -> Iterator[Callable[[str], None]]:
    """Installs a helper that takes the kernel for an older one: ``old_kernel(lines)``, which the entry does first."""
    script = lab.DIRECTORY / "old"

    def install(lines: str) -> None:
        script.write_text(HELPER.read_text().replace("\nmain(sys.argv)\n", f"\n{lines}\nmain(sys.argv)\n"))
        script.chmod(0o755)
        kernel("kernel/core_pattern", f"|{script} -I%I -d%d %P %u %g")

    yield install
    script.unlink(missing_ok=True)


@pytest.fixture
def fuse() -> str:
    """What the engine is told for a container that mounts a file system of its own."""
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no /dev/fuse")
    return "--device=/dev/fuse"


@pytest.fixture
def other(attack: MakeCrash) -> Container:
    """Another container, whose delegate nobody may start; its program and its delegate are among what was changed in it."""
    container = attack("idle", "sandbox=mounts", "wait=/out/go", options=(*ADMINISTRATOR, "--detach"))
    wait_until(lambda: len(processes_of(container)) == 2, "the container does not run")
    lab.output("docker", "exec", container.name, "touch", "/usr/bin/crasher", "/opt/bin/delegate")
    return container


@pytest.fixture
def plain(attack: MakeCrash) -> Container:
    """A container without any capability of its own, its first process where the engine has put it."""
    return start(attack)


@pytest.fixture(scope="module")
def target(attack: MakeCrash) -> Container:
    """A container with a delegate of its own, which has done nothing."""
    return attack("wait=/out/go", options=("--detach",))


@pytest.fixture
def jail() -> Iterator[Path]:
    """A directory of the host with the program that crashes and a delegate."""
    directory = lab.DIRECTORY / "jails/jail"
    for source, name in (("crasher", "usr/bin/crasher"), ("delegate", "opt/bin/delegate")):
        (directory / name).parent.mkdir(parents=True)
        lab.command("cp", lab.PROGRAMS / source, directory / name)
    yield directory
    shutil.rmtree(directory.parent)


@pytest.fixture
def into() -> Iterator[Callable[[int, str], None]]:
    """Moves a process into control groups of that name, which are removed after the test."""
    made: list[Path] = []
    yield lambda pid, name: made.extend(move_into(pid, name))
    for group in made:
        wait_until(lambda of=group: not (of / "cgroup.procs").read_text(), "a process is left")  # type: ignore[misc]
        group.rmdir()


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


@pytest.fixture
def fallback(tmp_path: Path) -> tuple[str, ...]:
    """Options for a core file that can be looked at."""
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o1777)
    return FALLBACK, f"--volume={tmp_path}:/tmp"


@pytest.fixture
def configured() -> Iterator[Callable[[str], None]]:
    """Adds lines to the helper's configuration for the time of one test."""
    file = Path("/etc/docker_core_helper.conf")
    before = file.read_text()

    def add(lines: str) -> None:
        file.write_text(before + lines)

    yield add
    file.write_text(before)


@pytest.fixture
def keep(tmp_path: Path, configured: Callable[[str], None]) -> Keep:
    """Configures what is kept, and returns the directory: ``keep("undelivered", max="10G")``."""
    store = tmp_path / "cores"

    def configure(which: str, **bounds: str) -> Path:
        lines = {"KEEP": which, "KEEP_DIRECTORY": str(store), "KEEP_FREE": "1"}
        own = ("pipe_limit", "release", "sender")
        lines.update({("" if name in own else "KEEP_") + name.upper(): text for name, text in bounds.items()})
        configured("".join(f"DOCKERCOREHELPER_{key}={value}\n" for key, value in lines.items()))
        return store

    return configure


@pytest.fixture
def sender() -> Iterator[Path]:
    """The uploader, on the host, beside a directory where the user that sends cores may write; that user is there, too."""
    user = "docker-core-helper"
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        uploader = Path(shutil.copy(lab.PROJECT / "container_scripts/uploader.sh", directory))
        subprocess.run(["useradd", "--system", "--no-create-home", user], check=True)
        try:
            shutil.chown(uploader.parent, user)
            yield uploader
        finally:
            subprocess.run(["userdel", user], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB where the store is."""
    directory = tmp_path / "cores"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M,mode=0700", "small", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)
