"""Processes of ours that a file system of the container holds for ever: each counts for that container, and in its groups."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hostile.intruders import ADMINISTRATOR, UNCONFINED
from hostile.observe import LIMIT, pid_of, running, wait_until
from hostile.run import TIMEOUT
from support import lab
from support.containers import MakeCrash

KTHREADD = 2  # The parent of a helper, kernel/umh.c.
WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "CAP_SYS_ADMIN": ((), ADMINISTRATOR),
    "a user namespace": (("sandbox=user", "sandbox=mounts"), UNCONFINED),
}


@pytest.mark.parametrize("way", WAYS)
def test_attack_23_a_process_of_ours_that_hangs_in_a_file_system_counts_until_it_is_gone(
    attack: MakeCrash, refusal: Callable[[str], str], way: str
) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no /dev/fuse")
    first, options = WAYS[way]
    actions = ("leave=600", *first, "silent=/opt/bin", "wait=/out/go", "storm=40")
    container = attack(*actions, options=(*options, "--device=/dev/fuse", "--pids-limit=150", "--detach"))
    (container.records / "go").touch()
    share = LIMIT // 2
    refusal(f"container {container.identifier} has {share} crashes in flight")
    wait_until(lambda: sum(not is_ours(parent) for _, parent in hanging()) >= share, "nothing hangs", TIMEOUT + 15)

    # The helpers that started them are gone. Without a slot for each of them, more would come at once.
    own = Path(f"/proc/{pid_of(container)}/cgroup").read_text()
    for _ in range(20):
        assert len(hanging()) <= share, "more hang than the container has slots"
        time.sleep(0.2)
    groups = [Path(f"/proc/{pid}/cgroup").read_text() for pid, _ in hanging()]
    assert groups == [own] * share, "they cost others than their container"
    other = attack("tiny")
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
