"""Tight limits of a process or of its container: memory, processes, files, processors. None loses a core in silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hostile.keeping import Keep, content_of, core_file, kept_in
from hostile.run import TIMEOUT
from support import lab
from support.containers import MakeCrash
from support.records import is_whole

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


def test_a_hard_limit_of_the_size_of_files_leaves_the_whole_core_on_the_host(attack: MakeCrash, keep: Keep) -> None:
    # As `ulimit -f 1` does it: the uploader cannot write more than a block, either.
    store = keep("undelivered")
    uploader = f"--volume={lab.PROJECT}/container_scripts/uploader.sh:/opt/bin/delegate:ro"
    container = attack("memory=4", "limit=fsize:512", options=(uploader, "--env=CORE_DESTINATION=/out"))
    assert "kept on this host" in container.log("kept on this host")
    ((known, core),) = kept_in(store)
    assert known["truncated"] is False
    assert is_whole(content_of(core))
    assert not [path for path in container.records.glob("*.core*") if not path.name.endswith(".truncated")]


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


def test_if_memory_ends_the_delegate_goes_and_its_neighbours_stay(
    attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    # Both processes of the container are larger than the delegate can become.
    options = (*fallback, "--memory=64m", "--memory-swap=64m", "--env=ATTACK=eats")
    container = attack("memory=40", "fork=1", options=options)
    assert "it was killed by signal 9 before it read a byte" in container.log("before it read a byte")
    assert (container.exit_status, container.output) == (0, "child ended\n")
    assert is_whole(core_file(tmp_path))


def test_attack_11_the_container_has_little_memory(attack: MakeCrash) -> None:
    container = attack("memory=4", options=("--memory=8m",))
    assert re.search(r"delivered|dropped", container.log("pid="))
    assert container.seconds < TIMEOUT


@pytest.mark.parametrize("processes", [1, 2])
def test_attack_11_the_limit_of_processes_is_reached(attack: MakeCrash, processes: int) -> None:
    forks = ["fork=1"] if processes == 2 else []
    # Not before the engine's own runtime, which needs threads, has started it.
    container = attack("wait=/out/go", *forks, "record", options=("--detach",))
    lab.output("docker", "update", f"--pids-limit={processes}", container.name)
    (container.records / "go").touch()
    assert "delivered" in container.log("delivered")
    assert is_whole(container.delegate.core.read_bytes())
    assert container.delegate.text("cgroup") == container.process.text("cgroup")


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
