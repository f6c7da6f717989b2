"""What a sixth stranger found: sandboxes that take all slots, and sandboxes that cost others their cores."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hostile.groups import move
from hostile.intruders import PROGRAM
from hostile.observe import LIMIT, helpers, wait_until
from hostile.test_second_look import assert_is_handled
from support.containers import MakeCrash, wait_for_log

# A program that is executed can be dumped again, whoever it has become.
CRASH = (f"execute={PROGRAM}", "tiny")
# Each crash in a pid namespace of its own, as set-id sandboxes make them, or all in one, as engines do it that name nothing.
FLOODS = {
    "sandboxes": (("fork=70", "sandbox=pid", "user", *CRASH), LIMIT * 3 // 4),
    "one container": (("sandbox=pid", "fork=70", "other-user", *CRASH), LIMIT // 2),
}


@pytest.mark.usefixtures("patient", "delegate_of_the_host")
@pytest.mark.parametrize("kind", FLOODS)
def test_attack_22_pid_namespaces_that_root_makes_for_others(attack: MakeCrash, records: Path, kind: str) -> None:
    actions, share = FLOODS[kind]
    other = attack("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    words = [PROGRAM, f"wait={records}/go", *actions]
    flood = subprocess.Popen(words, env={"ATTACK": "never-ends"}, start_new_session=True)
    try:
        move(flood.pid, None)
        (records / "go").touch()
        wait_until(lambda: rests(flood.pid), "the flood does not come to rest", 60)
        assert LIMIT // 4 <= len(of_users("delegate")) <= share
        assert_is_handled(other)
    finally:
        # With the first process of a pid namespace, the delegate in it ends.
        os.killpg(flood.pid, signal.SIGKILL)
        flood.wait()
        wait_until(lambda: helpers() == 0, "helpers are left", 30)


def of_users(name: str) -> list[int]:
    """The processes of that name that are not root's."""
    return [pid for pid, uid in processes(name) if uid]


def processes(name: str) -> Iterator[tuple[int, int]]:
    """The processes of that name that have not ended, with their users."""
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (directory / "comm").read_text() == f"{name}\n":
                status = (directory / "status").read_text()
                if "\nState:\tZ" not in status:
                    yield int(directory.name), int(status.partition("\nUid:\t")[2].split()[0])


def rests(first: int) -> bool:
    """Whether all crashes among the descendants of a process that have no delegate are over."""
    of_root = [pid for pid, uid in processes("crasher") if not uid and os.getpgid(pid) == first]
    delegates = len(of_users("delegate"))
    # Beside the first process, there is one of root's in each pid namespace or around it.
    return len(of_users("crasher")) == delegates > 0 and len(of_root) - 1 in (1, delegates)


ID = "ab" * 32
SANDBOX = ("user", f"execute={PROGRAM}", "sandbox=user")
# What another process does in the same mounts, the control group it is in, and whether the core is withheld for it.
OTHERS = {
    "a sandbox of a user": ((*SANDBOX, "sandbox=pid"), "session-2.scope", False),
    "a user who names a group": (("user", f"execute={PROGRAM}"), f"libpod-{ID}.scope", False),
    "a monitor of Podman": ((), f"libpod-conmon-{ID}.scope", False),
    "a monitor of CRI-O": ((), f"crio-conmon-{ID}", False),
    "a container": (("sandbox=pid",), "session-2.scope", True),
    "a container whose processes become a user's": (("sandbox=pid", *SANDBOX), "session-2.scope", True),
    "a container that root has named": ((), f"libpod-{ID}.scope", True),
}


@pytest.mark.usefixtures("delegate_of_the_host")
@pytest.mark.parametrize("kind", OTHERS)
def test_attack_20_others_in_the_same_mounts_of_the_host(
    records: Path, into: Callable[[int, str], None], group_of_user: Path, kind: str
) -> None:
    """Root and a user have logged in by a daemon with mounts of its own; each session has a control group."""
    actions, group, stranger = OTHERS[kind]
    go, moved, there = (records / name for name in ("go", "moved", "there"))
    words = [PROGRAM, "own-mounts", f"wait={go}", "tiny"]
    crash = subprocess.Popen(words, env={"RECORD_DIRECTORY": str(records)})
    wait_until(lambda: mounts_of(crash.pid) != mounts_of(os.getpid()), "it has no mounts of its own")
    words = [PROGRAM, f"join=/proc/{crash.pid}/ns/mnt", f"wait={moved}", *actions, f"touch={there}", "wait=/never"]
    other = subprocess.Popen(words, start_new_session=True)
    try:
        into(crash.pid, "session-1.scope")
        if kind == "a user who names a group":
            (group_of_user / group).mkdir()
            (group_of_user / group / "cgroup.procs").write_text(str(other.pid))
        else:
            into(other.pid, group)
        moved.touch()
        wait_until(there.exists, "the other one is not there")
        go.touch()
        crash.wait()
        told = "is in the mount namespace of another container" if stranger else ": delivered "
        assert told in wait_for_log(f"pid={crash.pid} ", told)
    finally:
        go.touch()
        crash.wait()
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()


def mounts_of(pid: int) -> str:
    """The mount namespace of a process."""
    return os.readlink(f"/proc/{pid}/ns/mnt")
