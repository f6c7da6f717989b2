"""What a container or a user can have a helper spend: memory and processor time."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from core_helper import quota, slots
from hostile.observe import (
    assert_no_helper_is_left,
    cpu_of_helpers,
    delegates_of,
    helpers,
    kill_dumper,
    peak_of_helpers,
    processes_of,
    running,
    wait_until,
)
from hostile.options import ADMINISTRATOR, TRACER
from support import door, lab
from support.containers import MakeCrash, read_log

MEMORY = 64 << 20  # Bytes that a helper may have.


def test_attack_21_cap_sys_ptrace_floods_the_helper_with_reports(siege: MakeCrash) -> None:
    container = siege("wait=/out/go", "reports=8", options=(*TRACER, "--detach"))
    (container.records / "go").touch()
    assert peak_of_helpers() < MEMORY
    assert_no_helper_is_left()


@pytest.mark.parametrize("does", ["floods", "drips"])
def test_attack_22_a_flood_of_output_costs_the_host_nothing(siege: MakeCrash, does: str) -> None:
    container = siege("keep=60", options=(f"--env=ATTACK={does}", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    time.sleep(3)
    assert helpers() == 1
    assert cpu_of_helpers() < 0.5
    assert "deadline passed" in container.log("deadline passed")


HELD = lab.DIRECTORY / "hold"  # What the fixture ``hold`` has the kernel start.


@pytest.mark.usefixtures("patient")
def test_attack_22_a_delegate_that_fills_its_own_input_costs_no_processor_time(
    siege: MakeCrash, hold: Callable[..., Path]
) -> None:
    # Between the two, the helper has seen that there is room, and has not yet used it.
    held = hold("-I%I -d%d", before=("linux", "tee"))
    container = siege("tiny", options=("--env=ATTACK=fills-its-input", "--detach"))
    wait_until((held / "held").exists, "the helper has nothing to show")
    (container.records / "held").touch()
    wait_until((container.records / "filled").exists, "the delegate has not filled its input")
    (held / "go").touch()
    time.sleep(1)
    before = cpu_of_helpers(HELD)
    time.sleep(1)
    used = cpu_of_helpers(HELD) - before
    assert before > 0, "there is no helper: nothing was shown"
    (container.records / "go").touch()
    assert used < 0.2
    assert ": delivered " in container.log(": delivered ")


def test_attack_22_a_container_with_very_many_mounts_costs_the_helper_no_memory(siege: MakeCrash) -> None:
    container = siege("mounts=16", "fork=1", "tiny", options=(*ADMINISTRATOR, "--env=ATTACK=never-ends", "--detach"))
    assert peak_of_helpers(60) < MEMORY
    assert "deadline passed" in container.log("deadline passed")


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_22_a_user_of_the_host_with_very_many_mounts_costs_the_helper_no_memory() -> None:
    words = [f"{lab.PROGRAMS}/crasher", "sandbox=user", "sandbox=mounts", "mounts=16", "tiny"]
    crash = subprocess.Popen(words, env={"ATTACK": "never-ends"}, user=1000, group=1000, extra_groups=[])
    try:
        assert peak_of_helpers(60) < MEMORY
    finally:
        crash.kill()
        crash.wait()


@pytest.mark.skipif(door.BY_SOCKET, reason="there is no helper for a process that is gone")
def test_attack_22_a_helper_whose_process_was_killed_waits_for_nobody(
    siege: MakeCrash, hold: Callable[..., Path]
) -> None:
    """The kernel does not count such helpers: a container can have any number of them."""
    siege("tiny", options=("--detach",)).log(": delivered ")  # There are tables.
    wait_until(lambda: helpers() == 0, "crashes of another test are in flight")
    held = hold()
    container = siege("keep=60", "memory=16", options=("--detach",))
    wait_until((held / "held.1").exists, "no helper")
    kill_dumper(container)
    (helper,) = running(HELD)
    wait_until(lambda: len(processes_of(container)) == 1, "the process was not waited for")
    tables = [os.open(path, os.O_RDWR) for path in (slots.FILE, quota.FILE)]
    try:
        for table in tables:
            fcntl.lockf(table, fcntl.LOCK_EX)  # As many helpers have them at once.
        (held / "go.1").touch()
        wait_until(lambda: not helper.exists(), "it waits", 4)
    finally:
        for table in tables:
            os.close(table)


@pytest.mark.skipif(not door.BY_SOCKET, reason="there is no worker, and a helper has been started already")
def test_attack_22_no_worker_is_started_for_a_process_that_was_killed(siege: MakeCrash) -> None:
    """Nor has the server the time for hundreds of them: its backlog becomes full meanwhile, for the crashes of all."""
    before = set(read_log().splitlines())
    container = siege("kill-crashes=20", options=("--pids-limit=450", "--detach"))
    time.sleep(5)
    lab.output("docker", "kill", container.name)
    lines = set(read_log().splitlines()) - before
    assert any("others were refused before" in line for line in lines), "nobody was killed: nothing was shown"
    assert sum("core not delivered: a process that is gone" in line for line in lines) < 50


def test_attack_23_signals_that_wait_take_no_helper_its_timer(siege: MakeCrash) -> None:
    hoard = siege("signals", options=("--detach",))
    wait_until((hoard.records / "full").exists, "signals can still be sent", 30)
    siege("tiny", options=("--env=ATTACK=never-ends", "--detach"))
    wait_until(lambda: helpers() == 1, "no helper")
    time.sleep(1)
    timers = [(directory / "timers").read_text() for directory in running()]
    assert timers and all("signal: 9/" in text for text in timers)
    assert_no_helper_is_left()
