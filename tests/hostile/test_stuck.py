"""Helpers, delegates and faulting processes that somebody wants to hold for ever: by locks, by tracing, by a file system."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hostile.keeping import Keep
from hostile.observe import (
    LIMIT,
    assert_no_helper_is_left,
    delegates_of,
    helpers,
    pid_of,
    processes_of,
    running,
    wait_until,
)
from hostile.options import ADMINISTRATOR, ENDLESS, TRACER, UNCONFINED
from hostile.run import TIMEOUT
from support import door, lab
from support.containers import Container, MakeCrash, read_log
from support.records import is_whole


@pytest.mark.parametrize("does", ["locks-input", "locks-errors", "locks-in-thread"])
def test_attack_23_the_delegate_has_the_kernel_lock_a_pipe_of_the_helper(siege: MakeCrash, does: str) -> None:
    container = siege("keep=60", "tiny", options=(f"--env=ATTACK={does}", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    assert_no_helper_is_left()
    assert "deadline passed" in container.log("deadline passed")
    wait_until(lambda: not delegates_of(container), "a process of the delegate is left")
    wait_until(lambda: "ended" in lab.output("docker", "logs", container.name), "the process was not given free")


def test_attack_23_another_user_has_the_kernel_lock_a_pipe_of_the_helper_for_ever(siege: MakeCrash) -> None:
    # Nobody is ended whom the delegate could not have ended itself: the lock stays.
    container = siege("locker=1000", "keep=60", "memory=8", options=("--env=ATTACK=passes-on", "--detach"))
    wait_until((container.records / "received").exists, "nothing was passed on")
    wait_until(
        lambda: "ended" in lab.output("docker", "logs", container.name),
        "the process was not given free at the deadline",
        TIMEOUT + 30,
    )
    assert "deadline passed" in container.log("deadline passed")
    assert any(words.startswith("receiver") for _, words in processes_of(container)), "the lock was given back"


def test_attack_23_a_process_with_many_descriptors_does_not_keep_the_helper_looking(siege: MakeCrash) -> None:
    container = siege("descriptors=100:15000", "keep=200", "tiny", options=ENDLESS)
    wait_until(lambda: delegates_of(container), "no delegate")
    wait_until(lambda: helpers() == 0, "the helper looks on", TIMEOUT + 15)


# Whoever traces a delegate holds its end.


def test_attack_23_a_delegate_that_has_ended_is_held_by_whoever_traces_it(siege: MakeCrash) -> None:
    container = siege("seize=60", options=("--env=ATTACK=waits", "--detach"))
    wait_until((container.records / "go").exists, "the delegate was never traced: nothing was shown")
    assert_no_helper_is_left()


@pytest.mark.parametrize("tracer", ["seize-exit", "seize-thread", "seize-above"])
def test_attack_23_a_delegate_whose_end_is_stopped_by_whoever_traces_it(siege: MakeCrash, tracer: str) -> None:
    unconfined = UNCONFINED if tracer == "seize-above" else ()
    container = siege("leave=60", f"{tracer}=60", options=(*unconfined, "--env=ATTACK=never-ends", "--detach"))
    wait_until((container.records / "go").exists, "the delegate was never traced: nothing was shown")
    assert delegates_of(container)
    wait_until(lambda: helpers() == 0, "the helper does not end", TIMEOUT + 15)
    assert delegates_of(container) == []
    assert lab.output("docker", "inspect", "--format={{.State.Running}}", container.name) == "true"


def test_attack_23_the_end_of_the_tracer_is_stopped_by_another_one(siege: MakeCrash) -> None:
    container = siege("leave=90", "seize-chain=80", options=ENDLESS)
    wait_until((container.records / "go").exists, "the delegate was never traced: nothing was shown")
    wait_until(lambda: helpers() == 0, "the helper does not end", TIMEOUT + 15)
    wait_until(lambda: not delegates_of(container), "the delegate stays", 10)


def test_attack_23_the_end_of_a_process_that_has_not_become_the_delegate_is_stopped(siege: MakeCrash) -> None:
    container = siege("leave=90", "catch-exit=80", options=("--cap-add=SYS_PTRACE", "--detach"))
    wait_until((container.records / "go").exists, "none was caught: nothing was shown", 30)
    wait_until(lambda: helpers() == 0, "a process of ours stays", TIMEOUT + 20)


@pytest.mark.parametrize("line", ["ready ", "pid 1"])
def test_attack_23_what_is_said_to_the_helper_hides_no_process_of_ours(siege: MakeCrash, line: str) -> None:
    container = siege(f"report={line}", options=(*TRACER, "--detach"))
    wait_until(
        lambda: "told 3" in lab.output("docker", "logs", container.name), "none was caught: nothing was shown", 30
    )
    # Those that were caught are among them.
    wait_until(lambda: helpers() == 0, "a process of ours stays", TIMEOUT + 20)
    assert processes_of(container), "whoever traced them was over too early: nothing was shown"


# A faulting process that the kernel does not let go, and a process of ours that a file system holds.

WAITED_IN_VAIN = "no slot was free until the timeout"  # At the socket, crashes wait for a slot.


def test_attack_23_the_kernel_walks_on_through_reserved_memory(siege: MakeCrash, refusal: Callable[[str], str]) -> None:
    container = siege("reserve=8", options=("--env=ATTACK=never-ends",))
    # Minutes, without being killed; whoever waits for it sees that.
    assert container.exit_status == 128 + signal.SIGKILL
    assert container.seconds < TIMEOUT + 8
    assert "killed: it did not end when nobody read its core any more" in refusal("killed: it did not end")


def test_attack_23_a_mapped_file_that_never_answers_counts_until_its_process_is_gone(
    siege: MakeCrash, refusal: Callable[[str], str], fuse: str
) -> None:
    options = (fuse, *ADMINISTRATOR, "--detach")
    container = siege("fuse=serve", f"fork={LIMIT}", "wait=/out/go", "fuse=map", options=options)
    (container.records / "go").touch()
    refusal(WAITED_IN_VAIN if door.BY_SOCKET else f"has {LIMIT // 2} crashes in flight")
    wait_until(lambda: helpers() == 0, "the helpers do not end", TIMEOUT + 15)
    # All helpers are gone, and their processes are not: the container has nothing left, and others have.
    before = set(read_log().splitlines())
    lab.command("docker", "exec", container.name, "crasher", "tiny", check=False)
    told = f"container {container.identifier} has {LIMIT // 2} crashes in flight"
    wait_until(lambda: any(told in line for line in set(read_log().splitlines()) - before), "it was not refused")
    other = siege("tiny")
    assert ": delivered " in other.log("delivered")
    # With its server, which dies with the container, the processes go, and the slots.
    lab.output("docker", "kill", container.name)
    wait_until(lambda: not processes_left(container), "the processes do not end")


def processes_left(container: Container) -> bool:
    """Whether the engine still says that the container runs."""
    return lab.output("docker", "inspect", "--format={{.State.Running}}", container.name) == "true"


KTHREADD = 2  # The parent of a helper, kernel/umh.c.
WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "CAP_SYS_ADMIN": ((), ADMINISTRATOR),
    "a user namespace": (("sandbox=user", "sandbox=mounts"), UNCONFINED),
}


@pytest.mark.parametrize("way", WAYS)
def test_attack_23_a_process_of_ours_that_hangs_in_a_file_system_counts_until_it_is_gone(
    siege: MakeCrash, refusal: Callable[[str], str], fuse: str, way: str
) -> None:
    first, options = WAYS[way]
    actions = ("leave=600", *first, "silent=/opt/bin", "wait=/out/go", "storm=40")
    container = siege(*actions, options=(*options, fuse, "--pids-limit=150", "--detach"))
    (container.records / "go").touch()
    share = LIMIT // 2
    refusal(WAITED_IN_VAIN if door.BY_SOCKET else f"container {container.identifier} has {share} crashes in flight")
    wait_until(lambda: sum(not is_ours(parent) for _, parent in hanging()) >= share, "nothing hangs", TIMEOUT + 15)

    # The helpers that started them are gone. Without a slot for each of them, more would come at once.
    own = Path(f"/proc/{pid_of(container)}/cgroup").read_text()
    for _ in range(20):
        assert len(hanging()) <= share, "more hang than the container has slots"
        time.sleep(0.2)
    groups = [Path(f"/proc/{pid}/cgroup").read_text() for pid, _ in hanging()]
    assert groups == [own] * share, "they cost others than their container"
    other = siege("tiny")
    assert ": delivered " in other.log("delivered")
    # With the server, which dies with the container, they go, and so do the slots.
    lab.output("docker", "kill", container.name)
    wait_until(lambda: not hanging(), "a process of ours is left")


def hanging() -> list[tuple[int, int]]:
    """Pid and parent of each process of ours that no signal ends now, and that has not just been started by the kernel."""
    found = []
    for directory in running():
        with suppress(OSError):
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            if state == "D" and int(parent) != KTHREADD:
                found.append((int(directory.name), int(parent)))
    return found


def is_ours(pid: int) -> bool:
    """Whether a process is a helper, or the child of one that has not become the delegate."""
    return Path(f"/proc/{pid}") in running()


def started_for_crashes() -> list[Path]:
    """Helpers, found without a look at the memory of any process: here, whoever looks at that of all waits for ever."""
    parents = door.servers() if door.BY_SOCKET else [KTHREADD]
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (
                door.parent_of(int(directory.name)) in parents
                and os.readlink(directory / "exe")
                and door.name_of(directory) != door.IDLE
            ):
                found.append(directory)
    return found


def test_attack_23_memory_that_is_kept_locked_keeps_no_helper_that_lets_the_process_go(
    attack: MakeCrash, keep: Keep
) -> None:
    keep("undelivered", release="kept")
    options = (*ADMINISTRATOR, "--device=/dev/fuse", "--detach")
    container = attack("leave=600", "hold-memory", options=options)
    wait_until(started_for_crashes, "no crash")
    try:
        wait_until(lambda: not started_for_crashes(), "the helper stays", 3 * (TIMEOUT + 10))
        assert container.log("pid="), "no line in the log"
    finally:
        lab.output("docker", "kill", container.name)


@pytest.mark.skipif(not door.BY_SOCKET, reason="the pipe has no server")
def test_attack_23_a_container_with_the_lock_of_a_server_keeps_none_from_starting(
    attack: MakeCrash, siege: MakeCrash
) -> None:
    lock = f"/host/{door.SOCKET.parent.name}/{door.SOCKET.name}.lock"
    locker = siege(f"read-lock={lock}", options=("--volume=/run:/host:ro", "--detach"))
    wait_until(lambda: processes_of(locker), "the container does not run")
    door.stop_server()
    wait_until(lambda: "locked" in lab.output("docker", "logs", locker.name), "nothing is locked")
    door.start_server()
    assert is_whole(attack().delegate.core.read_bytes())
    assert processes_of(locker), "the lock was over too early: nothing was shown"
