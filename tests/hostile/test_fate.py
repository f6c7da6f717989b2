"""What becomes of a core: a delegate that read nothing costs nothing, and limits of the process lose nothing without a word."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.keeping import content_of
from hostile.observe import cpu_of_helpers, delegates_of, helpers, kill_dumper, processes_of, wait_until
from support import lab
from support.containers import Container, MakeCrash
from support.hosts import HELPER
from support.records import is_whole

FALLBACK = "--env=DOCKERCOREHELPER_FALLBACK_CORE=1"


@pytest.fixture
def fallback(tmp_path: Path) -> tuple[str, ...]:
    """Options for a core file that can be looked at."""
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o1777)
    return FALLBACK, f"--volume={tmp_path}:/tmp"


def core_file(directory: Path) -> bytes:
    """The only core file."""
    (core,) = directory.glob("core.*")
    return core.read_bytes()


@pytest.mark.parametrize("does", ["dies", "gives-up"])
def test_a_delegate_that_fails_and_read_nothing_leaves_the_whole_core(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...], does: str
) -> None:
    container = attack("memory=4", options=(*fallback, f"--env=ATTACK={does}"))
    line = container.log("delivered")
    why = "/opt/bin/delegate: it (was killed by signal 9|ended with exit code 7) before it read a byte"
    assert re.search(rf": delivered \d+ bytes to .*; no delegate took it: {why}", line), line
    assert is_whole(core_file(tmp_path))


# What the delegate takes over and cannot even start with: on some kernels execve(2) fails, on others it kills.
TIGHT = ["data:0", "stack:4096", "files:1", "files:0", "memory:1048576"]


@pytest.mark.parametrize("limit", TIGHT)
def test_a_limit_that_the_delegate_cannot_start_with_leaves_the_whole_core(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...], limit: str
) -> None:
    container = attack("memory=4", f"limit={limit}", options=fallback)
    assert ": delivered " in container.log("delivered")
    # With some of them the delegate of this test, which needs next to nothing, does start.
    whole = core_file(tmp_path) if list(tmp_path.glob("core.*")) else container.delegate.core.read_bytes()
    assert is_whole(whole)


def test_a_delegate_that_wants_no_core_ends_well_and_nothing_else_gets_it(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    container = attack("memory=4", options=(*fallback, "--env=ATTACK=wants-nothing"))
    assert "not wanted by /opt/bin/delegate: it read nothing and ended with exit code 0" in container.log("not wanted")
    assert list(tmp_path.glob("core.*")) == []


def test_little_address_space_and_a_large_environment(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    container = attack("environ=large", "limit=memory:12582912", options=("--ulimit=stack=8388608", *fallback))
    line = container.log("delivered")
    assert ": delivered " in line and "MemoryError" not in line
    assert is_whole(container.delegate.core.read_bytes())


def test_the_core_file_is_no_larger_than_the_process_may_write(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    container = attack("delegate=none", "memory=4", "limit=fsize:65536", options=fallback)
    assert "File too large after 65536 bytes" in container.log("not delivered")
    assert len(core_file(tmp_path)) == 65536


@pytest.mark.parametrize("delegate", [(), ("delegate=none",)], ids=["delegate", "core file"])
def test_processors_and_scheduling_are_those_of_the_process(
    attack: MakeCrash, fallback: tuple[str, ...], delegate: tuple[str, ...]
) -> None:
    container = attack(*delegate, "modest", options=fallback)
    assert ": delivered " in container.log("delivered")
    if not delegate:
        assert container.delegate.status["Cpus_allowed_list"] == "0"
        # The 41st field, of which the second is a name in parentheses: SCHED_IDLE.
        assert container.delegate.text("stat").rpartition(")")[2].split()[38] == "5"


def test_attack_22_two_hundred_thousand_variables(attack: MakeCrash) -> None:
    container = attack("environ=many", options=("--ulimit=stack=67108864",))
    assert "more than 8192 variables" in container.log("delivered")
    assert is_whole(container.delegate.core.read_bytes())


@pytest.mark.parametrize("does", ["floods", "drips"])
def test_attack_22_a_flood_of_output_costs_the_host_nothing(attack: MakeCrash, does: str) -> None:
    container = attack("keep=60", options=(f"--env=ATTACK={does}", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    time.sleep(3)
    assert helpers() == 1
    assert cpu_of_helpers() < 0.5
    assert "deadline passed" in container.log("deadline passed")


@pytest.fixture
def with_fuse() -> tuple[str, ...]:
    """Options for a container that mounts a file system of its own."""
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no /dev/fuse")
    return "--device=/dev/fuse", "--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined"


def test_attack_23_an_environment_in_a_file_that_never_answers(attack: MakeCrash, with_fuse: tuple[str, ...]) -> None:
    options = (*with_fuse, f"--env=LONG={'x' * 20000}", "--detach")
    container: Container = attack("leave=60", "fuse=environ", options=options)
    # The kernel reads nothing there but memory: what lies behind that page is missing, and nobody waits.
    assert ": delivered " in container.log("delivered")
    assert len(container.delegate.environment.get("LONG", "")) < 20000


def test_if_memory_ends_the_delegate_goes_and_its_neighbours_stay(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    # Both processes of the container are larger than the delegate can become.
    options = (*fallback, "--memory=64m", "--memory-swap=64m", "--env=ATTACK=eats")
    container = attack("memory=40", "fork=1", options=options)
    assert "it was killed by signal 9 before it read a byte" in container.log("before it read a byte")
    assert (container.exit_status, container.output) == (0, "child ended\n")
    assert is_whole(core_file(tmp_path))


def test_a_user_whose_limit_of_processes_is_used_up_has_a_core_all_the_same(attack: MakeCrash) -> None:
    uploader = f"--volume={lab.PROJECT}/container_scripts/uploader.sh:/opt/bin/delegate:ro"
    options = ("--user=4711", "--ulimit=nproc=1", uploader, "--env=CORE_DESTINATION=/out")
    container = attack("tiny", options=options)
    assert ": delivered " in container.log(": delivered "), container.log("pid=")


def test_the_uploader_that_may_start_no_process_leaves_the_whole_core(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    uploader = f"--volume={lab.PROJECT}/container_scripts/uploader.sh:/opt/bin/delegate:ro"
    options = (*fallback, uploader, "--env=CORE_DESTINATION=/tmp", "--detach")
    container = attack("wait=/out/go", "memory=4", options=options)
    # The process itself, and the delegate.
    lab.output("docker", "update", "--pids-limit=2", container.name)
    (container.records / "go").touch()
    told = container.log("before it read a byte")
    assert "delegate: uploader.sh: cannot start a process: " in told
    assert re.search(
        r": delivered \d+ bytes to .*; no delegate took it: .* exit code 71 before it read a byte", told
    ), told
    assert is_whole(core_file(tmp_path))


# A core that was cut off never has the name of a whole one.

WAIT_AND_UPLOAD = """#!/bin/sh
until [ -e /out/go ]; do sleep 0.05; done
exec /opt/bin/uploader.sh /out "$1" "$2" "$3"
"""


def test_a_core_that_was_cut_off_never_has_the_name_of_a_whole_one(attack: MakeCrash, tmp_path: Path) -> None:
    tmp_path.parent.chmod(0o755)
    delegate = tmp_path / "delegate"
    delegate.write_text(WAIT_AND_UPLOAD)
    delegate.chmod(0o755)
    uploader = f"{lab.PROJECT}/container_scripts/uploader.sh:/opt/bin/uploader.sh:ro"
    volumes = (f"--volume={delegate}:/opt/bin/delegate:ro", f"--volume={uploader}")
    container = attack("keep=20", "memory=256", options=(*volumes, "--detach"))
    wait_until(lambda: any("/opt/bin/delegate" in words for _, words in processes_of(container)), "no delegate")
    time.sleep(0.3)
    kill_dumper(container)
    (container.records / "go").touch()
    told = container.log("truncated: of")
    delivered, length = map(
        int, re.findall(r"the core was cut off: (\d+) bytes to .*truncated: of (\d+) bytes", told)[0]
    )
    assert 0 < delivered < 8 << 20 and length > 256 << 20
    (core,) = (path.name for path in container.records.iterdir() if ".core" in path.name)
    name = r"[A-Za-z0-9._-]+\.crasher\.crasher\.\d+\.\d{8}T\d{6}Z\.[0-9a-f]{12}\.core(\.zst|\.gz)?\.truncated"
    assert re.fullmatch(name, core), core
    assert f"delegate: uploader.sh: /out/{core}: ended by SIGTERM, so this is a part of the core" in told


def test_a_delegate_that_asks_to_keep_the_core_is_heard(attack: MakeCrash, tmp_path: Path) -> None:
    tmp_path.parent.chmod(0o755)
    delegate = tmp_path / "delegate"
    delegate.write_text('#!/bin/sh\ncat >/dev/null\necho "$CORE_TIMEOUT" >/out/left\nexit 75\n')
    delegate.chmod(0o755)
    container = attack("memory=4", options=(f"--volume={delegate}:/opt/bin/delegate:ro",))
    told = container.log("not delivered")
    assert re.search(r"not delivered: it ended with exit code 75 \(keep the core and try again\): \d+ bytes", told), (
        told
    )
    assert 0 < int((container.records / "left").read_text()) <= 5


def test_a_delegate_that_goes_on_reading_is_not_ended_at_the_timeout(attack: MakeCrash) -> None:
    container = attack("memory=96", options=("--env=ATTACK=reads-on",))
    assert ": delivered " in container.log("delivered"), container.log("pid=")
    # The timeout of these tests; a delegate that drips is ended then: see test_supervision.py.
    assert container.seconds > 10


# There are too many cores, or too large ones.


@pytest.fixture
def configured() -> Iterator[Callable[[str], None]]:
    """Adds lines to the helper's configuration for the time of one test."""
    file = Path("/etc/docker_core_helper.conf")
    before = file.read_text()

    def add(lines: str) -> None:
        file.write_text(before + lines)

    yield add
    file.write_text(before)


def test_a_core_that_is_too_large_is_refused_before_anything_is_started(
    attack: MakeCrash, configured: Callable[[str], None], tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    configured("DOCKERCOREHELPER_SIZE_MAX=32M\n")
    told = attack("memory=64", options=fallback).log("not wanted")
    length = int(
        re.findall(r"core dropped: not wanted: it has (\d+) bytes, and .*SIZE_MAX is 33554432$", told, re.M)[0]
    )
    assert 64 << 20 < length < 80 << 20
    assert "delegate" not in told and list(tmp_path.iterdir()) == []
    assert ": delivered " in attack("memory=4", options=fallback).log("delivered")


@pytest.mark.parametrize(
    ("setting", "other"),
    [
        ('IGNORE_SIGNALS="SIGQUIT SIGSEGV"', "IGNORE_SIGNALS=SIGQUIT"),
        ("IGNORE_PROGRAMS=*/crash?r", "IGNORE_PROGRAMS=/crasher"),
    ],
    ids=["signals", "programs"],
)
def test_cores_that_nobody_wants_go_nowhere(
    attack: MakeCrash,
    configured: Callable[[str], None],
    tmp_path: Path,
    fallback: tuple[str, ...],
    setting: str,
    other: str,
) -> None:
    configured(f"DOCKERCOREHELPER_{setting}\n")
    container = attack("tiny", options=fallback)
    assert f"core dropped: not wanted: DOCKERCOREHELPER_{setting.partition('=')[0]} names" in container.log("dropped")
    assert not container.of("delegate") and list(tmp_path.iterdir()) == []
    configured(f"DOCKERCOREHELPER_{other}\n")
    assert ": delivered " in attack("tiny").log("delivered")


def test_a_program_that_crashes_too_often_leaves_a_line_and_a_number(
    attack: MakeCrash, configured: Callable[[str], None]
) -> None:
    configured("DOCKERCOREHELPER_BURST=2/15s\n")
    began = time.monotonic()
    # This delegate leaves no record, in whose way a process of the same pid would be later.
    container = attack("fork=6", "tiny", options=("--env=ATTACK=reads-on",))
    assert time.monotonic() - began < 10, "this machine is too slow for this test"
    assert container.log("not wanted").count(": delivered ") == 2
    assert container.log("not wanted").count("DOCKERCOREHELPER_BURST allows 2 cores of this program in 15 s") == 1
    time.sleep(max(0.0, began + 16 - time.monotonic()))
    lab.output("docker", "start", "--attach", container.name)
    # Of the next six, again two.
    told = container.log(" left_out=4: delivered ")
    assert told.count(" left_out=4: delivered ") == 1 and told.count(": delivered ") == 4
    # Another container has a bound of its own.
    assert ": delivered " in attack("tiny").log("delivered")


def test_core_files_do_not_fill_the_disk(
    attack: MakeCrash, configured: Callable[[str], None], tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    configured("DOCKERCOREHELPER_FALLBACK_MAX=2/1G\n")
    for _ in range(2):
        assert ": delivered " in attack("delegate=none", "memory=4", options=fallback).log("delivered")
    told = attack("delegate=none", "memory=4", options=fallback).log("core dropped")
    assert "2 core files take" in told and "DOCKERCOREHELPER_FALLBACK_MAX is 2/1073741824: remove them" in told
    assert len(list(tmp_path.iterdir())) == 2


def test_a_core_file_has_holes(attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...]) -> None:
    attack("delegate=none", "memory=4", "untouched=512", options=fallback).log("delivered")
    (core,) = tmp_path.glob("core.*")
    found = core.stat()
    assert found.st_size > 512 << 20 and found.st_blocks * 512 < 32 << 20
    assert is_whole(core.read_bytes())


def test_a_process_that_has_overwritten_its_environment_is_told_as_such(attack: MakeCrash) -> None:
    told = attack("tiny", "title").log("it has overwritten its environment")
    assert re.search(
        r"; it has overwritten its environment, of which 0 variables are left: the delegate may lack", told
    )


def test_below_which_root_directory_the_delegate_was_looked_for_is_told(attack: MakeCrash) -> None:
    told = attack("root=/tmp").log("core dropped")
    assert "No such file in the container, below /tmp, which the process has made its root directory" in told, told


def test_the_loader_that_the_delegate_misses_is_named(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    delegate = tmp_path / "delegate"
    delegate.write_bytes(Path("/bin/true").read_bytes().replace(b"/ld-", b"/no-"))
    delegate.chmod(0o755)
    container = attack("tiny", options=(*fallback, f"--volume={delegate}:/opt/bin/delegate:ro"))
    told = container.log("its dynamic loader")
    assert re.search(
        r"/opt/bin/delegate: its dynamic loader /\S+/no-\S+ is not there: install that one, or link", told
    ), told
    assert is_whole(core_file(tmp_path))


# Uploader and helper come to a host in different ways, so one of them may be older.

RELEASED = "da06cd6"  # Version 1.0.0.


@pytest.fixture
def released() -> Iterator[Path]:
    """Version 1.0.0 of helper and uploader, in a directory."""
    git = ["git", "-c", f"safe.directory={lab.PROJECT}", "-C", str(lab.PROJECT)]
    archive = subprocess.run([*git, "archive", RELEASED, "helper", "container_scripts"], capture_output=True)
    if archive.returncode:
        pytest.skip("this clone has no version 1.0.0: fetch the history (git fetch --unshallow)")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
        yield Path(directory)


def uploaded(container: Container) -> Path:
    """The core that the uploader has put into /out of the container."""
    assert ": delivered " in container.log(": delivered "), container.log("pid=")
    (core,) = container.records.rglob("*.core*")
    assert is_whole(content_of(core))
    return core


def test_the_uploader_of_version_1_0_0_under_this_helper(attack: MakeCrash, released: Path) -> None:
    uploader = f"--volume={released}/container_scripts/uploader.sh:/opt/bin/delegate:ro"
    container = attack("memory=4", options=(uploader, "--env=CORE_DESTINATION=/out"))
    assert re.search(r"crasher\.\d+\.0\.0\.\d+\.core", uploaded(container).name)


def test_this_uploader_under_the_helper_of_version_1_0_0(
    attack: MakeCrash, released: Path, kernel: Callable[[str, str], None]
) -> None:
    kernel("kernel/core_pattern", f"|{released}/helper/docker_core_helper %P %u %g /opt/bin/delegate")
    uploader = f"--volume={lab.PROJECT}/container_scripts/uploader.sh:/opt/bin/delegate:ro"
    container = attack("memory=4", options=(uploader, "--env=CORE_DESTINATION=/out"))
    # The name that it makes itself.
    assert re.search(r"\.crasher\.\d+\.0\.0\.\d+\.core", uploaded(container).name)


# Whatever is wrong with the pattern or the limit, a line names it.


def test_a_pattern_with_the_pid_of_the_container_is_named(
    attack: MakeCrash, kernel: Callable[[str, str], None], refusal: Callable[[str], str]
) -> None:
    kernel("kernel/core_pattern", f"|{HELPER} %p %u %g /opt/bin/delegate")
    attack("tiny")
    line = refusal("must hold %P in place of %p")
    # That is a process of the host's, which did not crash.
    assert "core not delivered, 0 bytes: process 1 is " in line
    assert "truncated" not in line


def test_without_a_limit_what_is_still_there_is_delivered_with_a_warning(
    attack: MakeCrash, kernel: Callable[[str, str], None], refusal: Callable[[str], str]
) -> None:
    kernel("kernel/core_pipe_limit", "0")
    # Large enough that the kernel is still writing when the helper looks.
    container = attack("keep=5", "memory=64")
    assert ": delivered " in container.log("delivered")
    refusal("kernel.core_pipe_limit is 0, so the kernel does not keep a process until its core is read")
