"""Whose the files are that a process sees: what a fifth stranger found."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.groups import move_into
from hostile.intruders import (
    ADMINISTRATOR,
    IN_ROOT,
    NOT_FOR,
    OF_THE_HOST,
    PROGRAM,
    UNCONFINED,
    Refusal,
    assert_delivered_from,
    assert_withheld,
    crash_on_host,
    mounts_of_a_user,
    start,
)
from hostile.observe import files_of, pid_of, processes_of, wait_until
from support.containers import MakeCrash


@pytest.mark.parametrize("program", ["execute=/usr/bin/crasher", "bound=a80425fb"], ids=["theirs", "of the host"])
def test_attack_20_a_pid_namespace_of_its_own_in_the_control_group_of_a_container(
    attack: MakeCrash, refusal: Refusal, tmp_path: Path, program: str
) -> None:
    container = start(attack)
    pid = pid_of(container)
    crash_on_host("sandbox=pid", f"join=/proc/{pid}/ns/mnt", program, directory=tmp_path, group_of=pid)
    assert_withheld(container, refusal)


@pytest.fixture
def service(into: Callable[[int, str], None]) -> Iterator[str]:
    """The name of a control group of a service of the host, with one process in it."""
    name = "lab.service"
    elder = subprocess.Popen(["sleep", "100"])
    into(elder.pid, name)
    yield name
    elder.kill()
    elder.wait()


def test_attack_20_a_service_of_the_host_with_mounts_of_its_own_in_what_was_changed_in_a_container(
    attack: MakeCrash, refusal: Refusal, service: str, tmp_path: Path
) -> None:
    container = start(attack)
    go = tmp_path / "go"
    words = [f"wait={go}", "own-mounts", f"root={files_of(container, 'UpperDir')}", "execute=/usr/bin/crasher"]
    crash = subprocess.Popen([PROGRAM, *words], env=OF_THE_HOST)
    move_into(crash.pid, service)
    go.touch()
    crash.wait()
    assert_withheld(container, refusal)


def test_attack_20_an_agent_covers_its_root_directory_with_the_files_of_a_container(
    attack: MakeCrash, refusal: Refusal
) -> None:
    container = start(attack)
    files = Path(files_of(container))
    volume = f"--volume={files.parent.parent}:/host"
    options = (*ADMINISTRATOR, *UNCONFINED, volume, f"--env={IN_ROOT}")
    attack("fork=1", f"cover=/host/{files.parent.name}/{files.name}", "execute=/usr/bin/crasher", options=options)
    assert_withheld(container, refusal)


def test_attack_20_a_layer_of_an_image(attack: MakeCrash, refusal: Refusal, tmp_path: Path) -> None:
    layer = files_of(start(attack), "LowerDir").split(":")[-1]
    crash_on_host(f"root={layer}", "execute=/usr/bin/crasher", directory=tmp_path)
    assert "core not delivered, 0 bytes" in refusal(NOT_FOR)
    assert not list(Path(layer).glob("delegate.*")), "the delegate was started"


def test_attack_20_root_of_the_host_in_a_sandbox_that_a_container_has_made(
    attack: MakeCrash, refusal: Refusal, tmp_path: Path
) -> None:
    container = attack("fork=1", "sandbox=root", "wait=/never", options=(*ADMINISTRATOR, *UNCONFINED, "--detach"))
    own = os.readlink(f"/proc/{pid_of(container)}/ns/mnt")

    def inside() -> list[int]:
        found = [pid for pid, _ in processes_of(container)]
        return [pid for pid in found if Path(f"/proc/{pid}/root/usr/bin/crasher").exists() and mounts_of(pid) != own]

    wait_until(inside, "there is no sandbox")
    (pid,) = inside()
    crash_on_host(f"join=/proc/{pid}/ns/mnt", "execute=/usr/bin/crasher", directory=tmp_path)
    assert "core not delivered, 0 bytes" in refusal(NOT_FOR)
    assert not list(Path(f"/proc/{pid}/root").glob("delegate.*")), "the delegate was started"


def mounts_of(pid: int) -> str:
    """The mount namespace of a process."""
    return os.readlink(f"/proc/{pid}/ns/mnt")


def test_attack_20_a_user_of_the_host_makes_its_list_of_mounts_very_long(jail: Path, tmp_path: Path) -> None:
    with mounts_of_a_user(tmp_path, "fuse.sshfs"):
        assert_delivered_from(jail)
