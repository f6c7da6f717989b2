"""What a fourth reader found who had not written the helper: each hole is a test here, by the kind of its attack."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile.observe import helpers, wait_until
from support import lab
from support.containers import MakeCrash
from support.hosts import DELEGATE

LIMIT = 64  # Deliveries at a time; the role's default.


# 22


@pytest.fixture
def users() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs of users of the host, which end with their delegates after the test."""
    users: list[subprocess.Popen[bytes]] = []
    yield users
    for pid in delegates_on_host():
        os.kill(pid, signal.SIGKILL)
    for user in users:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(user.pid, signal.SIGKILL)
        user.wait()
    wait_until(lambda: helpers() == 0, "a helper is left", 60)


@pytest.mark.usefixtures("patient", "delegate_of_the_host")
def test_attack_22_users_who_hold_slots_leave_the_last_ones_to_others(
    attack: MakeCrash, users: list[subprocess.Popen[bytes]]
) -> None:
    other = attack("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    for user in range(1000, 1004):
        words = [f"{lab.PROGRAMS}/victim", "fork=60", "sandbox=user", "sandbox=pid", "tiny"]
        environment = {"ATTACK": "never-ends"}
        options = {"user": user, "group": user, "extra_groups": [], "start_new_session": True}
        users.append(subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, **options))  # type: ignore[call-overload]
        wait_until(lambda: helpers() == len(delegates_on_host()) > 0, "the user does not come to rest", 60)
    assert len(delegates_on_host()) >= LIMIT * 3 // 4, "the users were over too early: nothing was shown"
    (other.records / "go").touch()
    wait_until(lambda: other.of("delegate"), "the crash of the container was not handled", 30)


def delegates_on_host() -> list[int]:
    """The pids of the delegates on the host itself, or anywhere else."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (directory / "cmdline").read_bytes().startswith(b"%s\0" % os.fsencode(DELEGATE)):
                found.append(int(directory.name))
    return found
