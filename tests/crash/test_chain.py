"""The handler that the host had before: the kernel starts it, and then the helper in its own place, and both look the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import lab
from support.containers import Container, MakeCrash, wait_for_log
from support.records import is_whole

CONFIGURATION = Path("/etc/docker_core_helper.conf")
HANDLER = lab.DIRECTORY / "recorder"
STARTS = lab.DIRECTORY / "starts"
# All specifiers of the kernel, and what is no specifier; a name with blanks must stay one word.
WORDS = "%P %p %I %i %u %g %d %s %t %h %e %f %E %c %C %F -x%e=%s a%%b %%F z%Zz %"
POSITIONS = [None, *(word[1:] for word in WORDS.split()[:16])]
USER = ("setpriv", "--reuid=1000", "--regid=1001", "--groups=2000,3000", "--inh-caps=-all")
ON = "DOCKERCOREHELPER_CHAIN_CONTAINERS=1"

Configure = Callable[..., None]
SetPattern = Callable[[str], None]


class Start:
    """One start of the handler, as it saw itself."""

    def __init__(self, directory: Path) -> None:
        """Reads it."""
        self.directory = directory
        self.arguments = (directory / "arguments").read_bytes().split(b"\0")[:-1]
        self.core = (directory / "core").read_bytes()

    def facts(self) -> dict[str, bytes]:
        """All that must be equal for every start of the same words, and for the same crash."""
        return {name: (self.directory / name).read_bytes() for name in ("environment", "status", "descriptors")}

    def comparable(self, *threads: str) -> list[bytes]:
        """The arguments, with the ids of the process, and the time, replaced by their names."""
        told = dict(zip(POSITIONS, self.arguments, strict=False))
        for name in threads:
            assert int(told[name]) > 0
        assert abs(int(told["t"]) - time.time()) < 60
        names = {told[name]: name.encode() for name in threads}
        return [
            b"time" if position == POSITIONS.index("t") else names.get(word, word)
            for position, word in enumerate(self.arguments)
        ]


@pytest.fixture(scope="module", autouse=True)
def _handler() -> Iterator[None]:
    """Makes the handler, and the directory for its records."""
    STARTS.mkdir()
    source = lab.PROJECT / "tests" / "support" / "programs" / "recorder.c"
    flags = ("-static", "-O1", "-Wall", "-Wextra", "-Werror", f'-DRECORDS="{STARTS}"')
    lab.command("gcc", *flags, "-o", HANDLER, source)
    yield
    HANDLER.unlink()
    shutil.rmtree(STARTS)


@pytest.fixture
def configure() -> Iterator[Configure]:
    """Adds lines to the helper's configuration for the time of one test."""
    before = CONFIGURATION.read_text()

    def write(*lines: str) -> None:
        CONFIGURATION.write_text("\n".join([before, *lines, ""]))

    yield write
    CONFIGURATION.write_text(before)


@pytest.fixture
def chain(configure: Configure) -> Configure:
    """Configures the recorder as the handler from before, and further lines."""

    def write(*lines: str) -> None:
        configure(f'DOCKERCOREHELPER_CHAIN="{HANDLER} {WORDS}"', *lines)

    return write


@pytest.fixture
def dumped_set_id() -> Iterator[None]:
    """Has the kernel dump set-id programs, for handlers of root, as systemd-coredump and Apport ask it to."""
    setting = lab.setting("fs/suid_dumpable")
    before = setting.read_text()
    setting.write_text("2")
    yield
    setting.write_text(before)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for records and programs in which every user may write, which is also the root of a chroot."""
    directory = lab.DIRECTORY / "place"
    (directory / "out").mkdir(parents=True)
    shutil.copy(lab.PROGRAMS / "crash", directory / "crash")
    for path in (directory, directory / "out"):
        path.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


def start_of(crash: Callable[[], int]) -> tuple[int, Start]:
    """Crashes something, and returns its process id, as it sees that itself, and the start of the handler that came of it."""
    before = set(STARTS.iterdir())
    pid = crash()
    deadline = time.monotonic() + 10
    while True:
        # Others may crash on this machine meanwhile.
        for start in starts_since(before):
            if b"%d" % pid in start.arguments[1:3]:
                return pid, start
        assert time.monotonic() < deadline, "the handler was not started: " + wait_for_log(str(pid), "")
        time.sleep(0.05)


def starts_since(before: set[Path]) -> list[Start]:
    """The complete records that were not there before."""
    return [Start(path) for path in set(STARTS.iterdir()) - before if not path.name.startswith(".")]


def run(place: Path, *words: str | Path, executable: str | None = None) -> int:
    """Crashes a process of the host on one processor, which the kernel tells by %C, and returns its process id."""
    out = "/out" if "chroot" in words or "-r" in words else str(place / "out")
    process = subprocess.Popen(
        list(words),
        executable=executable,
        env={"PATH": os.environ["PATH"], "RECORD_DIRECTORY": out},
        cwd="/",
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
    )
    assert process.wait(timeout=60) == -11
    return process.pid


def crash_deleted(place: Path) -> int:
    """Crashes a program whose file is gone."""
    program = os.memfd_create("gone with a blank", os.MFD_CLOEXEC)
    try:
        with open(place / "crash", "rb") as source, open(program, "wb", closefd=False) as target:
            target.write(source.read())
        return run(place, "gone", executable=f"/proc/{os.getpid()}/fd/{program}")
    finally:
        os.close(program)


def crash_named(place: Path) -> int:
    """Crashes a program with a name that could be misread."""
    name = place / " a%P b\n"
    shutil.copy(place / "crash", name)
    return run(place, name)


def crash_set_id(place: Path) -> int:
    """Crashes a program of root's that a user has started."""
    program = place / "set-id"
    shutil.copy(place / "crash", program)
    program.chmod(0o4755)
    return run(place, *USER, program)


CRASHES: dict[str, Callable[[Path], int]] = {
    "root": lambda place: run(place, place / "crash"),
    "user": lambda place: run(place, *USER, place / "crash"),
    "limited": lambda place: run(place, "prlimit", "--core=4096:8192", place / "crash"),
    "unlimited": lambda place: run(place, "prlimit", "--core=unlimited", place / "crash"),
    "named": crash_named,
    "deleted": crash_deleted,
    "thread": lambda place: run(place, place / "crash", "-l"),
    "chroot": lambda place: run(place, "chroot", place, "/crash"),
    "program outside of its root": lambda place: run(place, lab.PROGRAMS / "crash", "-r", str(place)),
    "host name": lambda place: run(place, "unshare", "--uts", "sh", "-c", f"hostname 'a/b'; exec {place}/crash"),
    "service with mounts of its own": lambda place: run(place, "unshare", "--mount", place / "crash"),
    "set-id": crash_set_id,
}


@pytest.mark.usefixtures("dumped_set_id")
@pytest.mark.parametrize("kind", CRASHES)
def test_the_handler_is_started_as_the_kernel_starts_it(
    place: Path, chain: Configure, core_pattern: SetPattern, kind: str
) -> None:
    by_helper = lab.setting("kernel/core_pattern").read_text()
    core_pattern(f"|{HANDLER} {WORDS}")
    by_kernel = start_of(lambda: CRASHES[kind](place))
    core_pattern(by_helper.rstrip("\n"))
    chain()
    passed_on = start_of(lambda: CRASHES[kind](place))
    arguments = []
    for pid, start in (by_kernel, passed_on):
        ids = ("I", "i") if kind == "thread" else ("P", "p", "I", "i")
        arguments.append([b"PID" if word == b"%d" % pid else word for word in start.comparable(*ids)])
        assert start.facts()["environment"] == b""
        assert (start.directory / "pidfd").read_text() == f"Pid:\t{pid}\n"
        assert is_whole(start.core)
    assert arguments[0] == arguments[1]
    assert by_kernel[1].facts() == passed_on[1].facts()
    line = f"passed to the previous handler {HANDLER}"
    assert line in wait_for_log(f"pid={passed_on[0]} ", line)


def test_descriptor_3_is_closed_where_the_words_do_not_ask_for_it(
    place: Path, configure: Configure, core_pattern: SetPattern
) -> None:
    by_helper = lab.setting("kernel/core_pattern").read_text()
    core_pattern(f"|{HANDLER} %P %%F")
    _, by_kernel = start_of(lambda: run(place, place / "crash"))
    core_pattern(by_helper.rstrip("\n"))
    configure(f'DOCKERCOREHELPER_CHAIN="{HANDLER} %P %%F"')
    _, passed_on = start_of(lambda: run(place, place / "crash"))
    assert by_kernel.facts() == passed_on.facts()
    assert b"\n3 " not in passed_on.facts()["descriptors"]


def test_what_the_host_had_comes_before_a_delegate_of_the_host(place: Path, chain: Configure) -> None:
    chain()
    delegate = Path("/opt/bin/delegate")
    shutil.copy(lab.PROGRAMS / "probe", delegate)
    try:
        pid, _ = start_of(lambda: run(place, place / "crash"))
    finally:
        delegate.unlink()
    assert not (place / "out" / f"delegate.{pid}").exists()


@pytest.mark.parametrize("handler", ["missing", "directory", "not executable", "no program"])
def test_a_handler_that_cannot_be_executed_is_told_and_the_core_is_whole(
    place: Path, configure: Configure, handler: str
) -> None:
    program = place / "handler"
    if handler == "directory":
        program.mkdir()
    elif handler != "missing":
        program.write_text("no program\n")
        program.chmod(0o755 if handler == "no program" else 0o644)
    configure(f'DOCKERCOREHELPER_CHAIN="{program} %P %F"', "DOCKERCOREHELPER_FALLBACK_CORE=1", "MISTYPED=1")
    pid = run(place, place / "crash")
    core = Path(f"/tmp/core.{pid}.0.0")
    try:
        said = wait_for_log(f"pid={pid} ", "delivered")
        assert f"not passed to the previous handler '{program}'" in said
        assert "install it again, or correct DOCKERCOREHELPER_CHAIN" in said
        assert is_whole(core.read_bytes())
        assert "unknown key 'MISTYPED'" in wait_for_log("docker_core_helper.conf", "MISTYPED")
    finally:
        core.unlink()


@pytest.fixture
def nobody_is_started() -> Iterator[None]:
    """Fails where the handler was started."""
    before = set(STARTS.iterdir())
    yield
    time.sleep(0.2)
    started = [start.arguments for start in starts_since(before)]
    assert [words for words in started if words[POSITIONS.index("e")] == b"crash"] == []


@pytest.mark.usefixtures("nobody_is_started")
@pytest.mark.parametrize("image", ["probe", "bare"])
def test_a_container_does_not_reach_the_handler_of_the_host(crash: MakeCrash, chain: Configure, image: str) -> None:
    chain()
    container = crash(image=image)
    if image == "probe":
        assert is_whole(container.delegate.core.read_bytes())
    assert ("delivered" if image == "probe" else "core dropped") in container.log("core dropped")


# Each of these takes one of the namespaces of the host, or all; what is left tells that it is a container.
HALF_CONTAINERS = {
    "pid": ("--pid=host",),
    "pid and cgroup": ("--pid=host", "--cgroupns=host"),
    "all but mounts": ("--pid=host", "--cgroupns=host", "--ipc=host", "--uts=host"),
    "the root of the host": ("--pid=host", "--cgroupns=host", "--volume=/:/host"),
}


@pytest.mark.usefixtures("nobody_is_started")
@pytest.mark.parametrize("kind", HALF_CONTAINERS)
def test_a_container_with_namespaces_of_the_host_does_not_reach_the_handler(
    crash: MakeCrash, chain: Configure, kind: str
) -> None:
    chain()
    arguments = ("-r", "/host") if "root" in kind else ()
    directory = ("--env=RECORD_DIRECTORY=/tmp",) if "root" in kind else ()
    container = crash(*arguments, image="bare", options=(*HALF_CONTAINERS[kind], *directory))
    # Whose program lies outside of its root directory has no delegate either.
    told = "core not delivered, 0 bytes" if "root" in kind else "core dropped"
    assert told in container.log(told)
    for record in Path("/tmp").glob("process.*"):
        shutil.rmtree(record)


@pytest.mark.usefixtures("nobody_is_started")
@pytest.mark.parametrize("words", [("--pid", "--fork"), ("--user", "--map-root-user")], ids=["pid", "user"])
def test_a_process_in_a_namespace_that_only_a_container_has_does_not_reach_the_handler(
    place: Path, chain: Configure, words: tuple[str, ...]
) -> None:
    chain()
    # The shell stays, so that the exit status of the parent tells of the crash.
    program = ["unshare", *words, "sh", "-c", f"{place}/crash; exit 5"]
    environment = {"PATH": os.environ["PATH"], "RECORD_DIRECTORY": str(place / "out")}
    assert subprocess.run(program, env=environment, check=False, timeout=60, capture_output=True).returncode == 5


@pytest.mark.usefixtures("dumped_set_id", "nobody_is_started")
def test_a_set_id_program_of_a_container_does_not_reach_the_handler(crash: MakeCrash, chain: Configure) -> None:
    chain(ON)
    # Root that goes on as a user with the ids of before saved: not dumpable for that user.
    container = crash(image="bare", options=("--user=1000:1001", f"--volume={set_id()}:/usr/bin/crash"))
    assert "is for root only" in container.log("is for root only")


def set_id() -> Path:
    """A copy of the crashing program that is set-id root."""
    program = lab.PROGRAMS / "set-id"
    shutil.copy(lab.PROGRAMS / "crash", program)
    program.chmod(0o4755)
    return program


def test_a_container_without_a_delegate_is_passed_on_where_that_is_configured(
    crash: MakeCrash, chain: Configure, core_pattern: SetPattern
) -> None:
    by_helper = lab.setting("kernel/core_pattern").read_text()
    containers: list[Container] = []

    def in_container() -> int:
        containers.append(
            crash(
                image="bare",
                options=("--cpuset-cpus=0", "--ulimit=core=4096", "--env=DOCKERCOREHELPER_FALLBACK_CORE=1"),
            )
        )
        return 1

    core_pattern(f"|{HANDLER} {WORDS}")
    _, by_kernel = start_of(in_container)
    core_pattern(by_helper.rstrip("\n"))
    chain(ON)
    _, passed_on = start_of(in_container)
    names = [container.name.encode() for container in containers]
    arguments = [
        [word.replace(name, b"NAME") for word in start.comparable("P", "I")]
        for name, start in zip(names, (by_kernel, passed_on), strict=True)
    ]
    assert arguments[0] == arguments[1]
    assert arguments[0][POSITIONS.index("h")] == b"NAME" and arguments[0][POSITIONS.index("p")] == b"1"
    assert by_kernel.facts() == passed_on.facts()
    assert is_whole(passed_on.core)
    line = f"passed to the previous handler {HANDLER}"
    assert line in containers[1].log(line)


@pytest.mark.usefixtures("nobody_is_started")
def test_a_container_with_a_delegate_keeps_its_cores(crash: MakeCrash, chain: Configure) -> None:
    chain(ON)
    assert is_whole(crash(image="probe").delegate.core.read_bytes())


def test_a_core_that_the_host_has_written_is_passed_on_through_a_pipe(
    crash: MakeCrash, chain: Configure, tmp_path: Path
) -> None:
    store = tmp_path / "cores"
    chain(ON, "DOCKERCOREHELPER_KEEP=undelivered", f"DOCKERCOREHELPER_KEEP_DIRECTORY={store}")
    _, start = start_of(lambda: len([crash(image="bare")]))
    assert is_whole(start.core)
    # The process that has filled the pipe deletes the core when the handler has read all of it.
    deadline = time.monotonic() + 10
    while any(path.is_file() for path in store.rglob("*")):
        assert time.monotonic() < deadline, "the core stays on the disk"
        time.sleep(0.05)
