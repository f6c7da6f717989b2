"""Whoever has joined the mounts of a container has no delegate there, also where that container has left them, or hides."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from hostile.groups import move, moved_below
from hostile.intruders import NOT_FOR, OF_THE_HOST, Refusal, assert_withheld, crash_on_host, let_go, start
from hostile.observe import mounts_of, pid_of, processes_of, wait_until
from hostile.options import ADMINISTRATOR, DEFAULT_CAPABILITIES, IN_ROOT, UNCONFINED
from support import lab
from support.containers import Container, MakeCrash


def test_attack_20_root_of_the_host_in_a_mount_namespace_that_the_first_process_has_left(
    other: Container, refusal: Refusal, tmp_path: Path
) -> None:
    first = pid_of(other)
    (child,) = (pid for pid, _ in processes_of(other) if pid != first)
    assert Path(f"/proc/{first}/ns/mnt").readlink() != Path(f"/proc/{child}/ns/mnt").readlink()
    # As by a login of root's without systemd: no control group says whose it is.
    crash_on_host(f"join=/proc/{child}/ns/mnt", "execute=/usr/bin/crasher", directory=tmp_path)
    assert_withheld(other, refusal)


def test_attack_20_root_of_the_host_in_a_mount_namespace_that_the_container_has_left_altogether(
    other: Container, refusal: Refusal, tmp_path: Path
) -> None:
    (child,) = (pid for pid, _ in processes_of(other) if pid != pid_of(other))
    go = tmp_path / "go"
    words = [f"wait={go}", f"join=/proc/{child}/ns/mnt", "execute=/usr/bin/crasher", "wait=/out/alone"]
    crash = subprocess.Popen([f"{lab.PROGRAMS}/crasher", *words], env=OF_THE_HOST)
    move(crash.pid, None)
    go.touch()
    joined = Path(f"/proc/{crash.pid}/ns/mnt")
    wait_until(lambda: joined.readlink() == Path(f"/proc/{child}/ns/mnt").readlink(), "the mounts were not joined")
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: len(processes_of(other)) == 1, "the child has not ended")
    (other.records / "alone").touch()
    crash.wait()
    assert_withheld(other, refusal)


@pytest.mark.parametrize("ended", [False, True], ids=["that runs", "that has ended"])
def test_attack_20_a_process_of_the_host_with_the_rights_of_one_container_in_the_mounts_of_another(
    attack: MakeCrash, plain: Container, refusal: Refusal, tmp_path: Path, ended: bool
) -> None:
    go = tmp_path / "go"
    own = attack("wait=/out/go", options=("--detach",))
    words = [
        f"wait={go}",
        *(f"join=/proc/{pid_of(own)}/ns/{name}" for name in ("net", "ipc", "uts")),
        *(f"join=/proc/{pid_of(own)}/ns/pid", "fork=1", f"join=/proc/{pid_of(plain)}/ns/mnt"),
        *(f"bound={DEFAULT_CAPABILITIES}", "touch=/out/joined", "wait=/out/alone"),
    ]
    crash = subprocess.Popen([f"{lab.PROGRAMS}/crasher", *words], env=OF_THE_HOST)
    move(crash.pid, pid_of(own))
    go.touch()
    wait_until((plain.records / "joined").exists, "the mounts were not joined")
    if ended:
        # Then its files lie nowhere on the host, and nobody is at home there.
        lab.output("docker", "kill", plain.name)
    (plain.records / "alone").touch()
    crash.wait()
    assert_withheld(plain, refusal)


AGENT = ("--cap-add=SYS_ADMIN", "--cap-add=SYS_PTRACE", *UNCONFINED, "--volume=/proc:/host", f"--env={IN_ROOT}")


@pytest.mark.parametrize("actions", [("execute=/usr/bin/crasher",), ("execute=/usr/bin/crasher", "fork=1")])
def test_attack_20_the_first_process_of_an_agent_is_no_proof_of_itself(
    attack: MakeCrash, refusal: Refusal, actions: tuple[str, ...]
) -> None:
    container = start(attack)
    attack(f"join=/host/{pid_of(container)}/ns/mnt", *actions, options=AGENT)
    assert_withheld(container, refusal)


def test_attack_20_the_first_process_of_an_agent_in_mounts_that_the_first_process_of_the_container_has_left(
    attack: MakeCrash, other: Container, refusal: Refusal
) -> None:
    (child,) = (pid for pid, _ in processes_of(other) if pid != pid_of(other))
    attack(f"join=/host/{child}/ns/mnt", "execute=/usr/bin/crasher", options=AGENT)
    assert_withheld(other, refusal)


@pytest.mark.parametrize("hides", ["sandbox=root", "second"])
def test_attack_20_the_mounts_of_a_container_that_hides(
    attack: MakeCrash, refusal: Refusal, hides: str, tmp_path: Path
) -> None:
    container = start(attack, "sandbox=user", hides, options=UNCONFINED)
    namespace = f"/proc/{pid_of(container)}/ns/mnt"
    crash_on_host(
        f"join={namespace}",
        "execute=/usr/bin/crasher",
        "touch=/out/joined",
        "wait=/out/alone",
        directory=tmp_path,
        then=lambda: alone(container),
    )
    assert_withheld(container, refusal)


def alone(container: Container) -> None:
    """Lets the container hide when somebody has joined its mounts, and then lets that one crash."""
    wait_until((container.records / "joined").exists, "the mounts were not joined")
    let_go(container)
    (container.records / "alone").touch()


def test_attack_20_a_container_in_the_mounts_of_one_that_it_contains(attack: MakeCrash, refusal: Refusal) -> None:
    inner = start(attack)
    actions = ("fork=1", "wait=/out/go", f"join=/host/{pid_of(inner)}/ns/mnt", "execute=/usr/bin/crasher")
    outer = attack(*actions, options=(*AGENT, "--detach"))
    with moved_below(pid_of(inner), pid_of(outer), "docker/" + "ab" * 32):
        (outer.records / "go").touch()
        assert_withheld(inner, refusal)


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
