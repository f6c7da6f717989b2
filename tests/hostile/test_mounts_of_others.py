"""Mounts by which somebody loses the cores of others, or has their helpers look or wait for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hostile.intruders import OF_THE_HOST, PROGRAM, Refusal, assert_delivered_from, mounts_of_a_user
from hostile.observe import files_of, helpers, pid_of, wait_until
from hostile.options import ADMINISTRATOR, UNCONFINED
from hostile.run import TIMEOUT
from support.containers import MakeCrash, wait_for_log


def test_attack_20_a_container_has_the_helper_of_another_one_open_what_does_not_answer(
    attack: MakeCrash, fuse: str
) -> None:
    options = (fuse, *ADMINISTRATOR, "--detach")
    container = attack("leave=600", "overlay-of-host", "wait=/never", options=options)
    (container.records / "pid").write_text(str(pid_of(container)))
    wait_until((container.records / "ready").exists, "the overlay is not there", 15)
    crasher = attack("tiny", options=("--pid=host", "--detach"))
    assert ": delivered " in crasher.log(": delivered ")
    assert crasher.delegate


def test_attack_20_many_mounts_and_many_processes_do_not_cost_others_their_cores(attack: MakeCrash, jail: Path) -> None:
    container = attack("sandbox=user", "jail-mounts=700", options=(*UNCONFINED, "--detach"))
    wait_until((container.records / "ready").exists, "the mounts are not there", 60)
    assert attack("tiny", options=("--pid=host",)).delegate
    assert_delivered_from(jail)


@contextmanager
def claimed(action: str) -> Iterator[None]:
    """Has a user of the host claim files of others, by mounts that any user can make."""
    words = [PROGRAM, "sandbox=user", "sandbox=pid", action, "wait=/never"]
    user = subprocess.Popen(
        words, env={}, user=1000, group=1000, extra_groups=[], start_new_session=True, stdout=subprocess.PIPE
    )
    try:
        assert user.stdout is not None and user.stdout.readline() == b"claimed\n"
        yield
    finally:
        os.killpg(user.pid, signal.SIGKILL)
        user.wait()


def test_attack_20_a_user_of_the_host_claims_the_files_of_a_container(attack: MakeCrash) -> None:
    container = attack("wait=/out/go", "tiny", options=("--pid=host", "--detach"))
    with claimed(f"claim={files_of(container)}"):
        (container.records / "go").touch()
        assert ": delivered " in container.log(": delivered ")


def test_attack_20_a_user_of_the_host_claims_a_directory_of_the_host(jail: Path) -> None:
    with claimed(f"bind-root={jail.parent}"):
        assert_delivered_from(jail)


# Very long lists of mounts.


def test_attack_20_a_user_of_the_host_makes_its_list_of_mounts_very_long(jail: Path, tmp_path: Path) -> None:
    with mounts_of_a_user(tmp_path, "fuse.sshfs"):
        assert_delivered_from(jail)


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


# Mounts in which whoever enters them waits.


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
    line = refusal("a process that enters its mount namespace has to wait")
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
