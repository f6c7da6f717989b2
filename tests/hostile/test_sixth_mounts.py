"""Mounts by which somebody loses the cores of others, or has a helper wait: what a sixth stranger found."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from hostile.intruders import (
    ADMINISTRATOR,
    OF_THE_HOST,
    PROGRAM,
    UNCONFINED,
    Refusal,
    assert_delivered_from,
    mounts_of_a_user,
)
from hostile.observe import helpers, pid_of, wait_until
from hostile.run import TIMEOUT
from support.containers import MakeCrash, wait_for_log

# A type of FUSE that engines use, too.
OF_ENGINES = "fuse.fuse-overlayfs"


def test_attack_20_a_user_makes_the_list_of_the_host_very_long_as_an_engine_would(
    attack: MakeCrash, jail: Path, tmp_path: Path
) -> None:
    with mounts_of_a_user(tmp_path, OF_ENGINES):
        assert_delivered_from(jail)
        assert attack("tiny", options=("--pid=host",)).delegate


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_20_a_user_makes_the_list_of_a_service_very_long(records: Path, tmp_path: Path) -> None:
    # Each service with mounts of its own has a copy of what the user has mounted before.
    with mounts_of_a_user(tmp_path, "fuse.sshfs"):
        crash = subprocess.Popen([PROGRAM, "own-mounts", "tiny"], env=OF_THE_HOST)
        crash.wait()
        assert ": delivered " in wait_for_log(f"pid={crash.pid} ", ": delivered ")


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_20_a_user_makes_the_list_of_an_agent_very_long(
    attack: MakeCrash, records: Path, tmp_path: Path
) -> None:
    with mounts_of_a_user(tmp_path, "fuse.sshfs"):
        # Its own list holds the mounts below /host; it has no namespace of the host, and no more than others.
        options = ("--volume=/:/host", f"--env=RECORD_DIRECTORY={records}")
        agent = attack("fork=1", "tiny", "root=/host", options=options)
        assert ": delivered " in agent.log(": delivered ")


HANGING = ("--pid=host", *ADMINISTRATOR, *UNCONFINED, "--detach")


@pytest.fixture
def autofs() -> None:
    """A kernel that has it."""
    if "\tautofs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no autofs")


@pytest.mark.usefixtures("autofs")
def test_attack_23_a_helper_that_enters_the_mounts_of_a_container_waits_there(
    attack: MakeCrash, refusal: Refusal
) -> None:
    attack("tiny", "automount", options=HANGING)
    line = refusal("whoever enters its mount namespace has to wait")
    assert "core not delivered, 0 bytes" in line
    wait_until(lambda: helpers() == 0, "a helper is left, or a child of one")


@pytest.mark.usefixtures("autofs")
def test_attack_23_helpers_of_others_do_not_wait_in_the_mounts_of_a_container(attack: MakeCrash, jail: Path) -> None:
    container = attack("automount", "touch=/ready", "wait=/never", options=HANGING)
    wait_until(Path(f"/proc/{pid_of(container)}/root/ready").exists, "there is no automounter")
    began = time.monotonic()
    assert_delivered_from(jail)
    assert time.monotonic() - began < TIMEOUT
    wait_until(lambda: helpers() == 0, "a helper is left, or a child of one")
