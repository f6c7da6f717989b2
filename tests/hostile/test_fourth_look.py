"""What a fourth reader found who had not written the helper: each hole is a test here, by the kind of its attack."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.intruders import DEFAULT_CAPABILITIES
from hostile.observe import LIMIT, cpu_of_helpers, helpers, running, wait_until
from support import lab
from support.containers import MakeCrash, read_log
from support.hosts import DELEGATE

TRACER = ("--cap-add=SYS_PTRACE", "--detach")
CAP_SYS_PTRACE = 19
HELD = lab.DIRECTORY / "hold"  # What the fixture ``hold`` has the kernel start.


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
        words = [f"{lab.PROGRAMS}/crasher", "fork=60", "sandbox=user", "sandbox=pid", "tiny"]
        environment = {"ATTACK": "never-ends"}
        options = {"user": user, "group": user, "extra_groups": [], "start_new_session": True}
        users.append(subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, **options))  # type: ignore[call-overload]
        wait_until(lambda: helpers() == len(delegates_on_host()) > 0, "the user does not come to rest", 60)
    assert len(delegates_on_host()) >= LIMIT * 3 // 4, "the users were over too early: nothing was shown"
    (other.records / "go").touch()
    wait_until(lambda: other.of("delegate"), "the crash of the container was not handled", 30)


def delegates_on_host() -> list[int]:
    """The pids of the delegates on the host itself, or anywhere else."""
    return [int(directory.name) for directory in running(DELEGATE)]


@pytest.mark.usefixtures("patient")
def test_attack_22_a_delegate_that_fills_its_own_input_costs_no_processor_time(
    attack: MakeCrash, hold: Callable[..., Path]
) -> None:
    # Between the two, the helper has seen that there is room, and has not yet used it.
    held = hold("-I%I -d%d", before=("linux", "tee"))
    container = attack("tiny", options=("--env=ATTACK=fills-its-input", "--detach"))
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


# 21


@pytest.mark.parametrize("rights", [f"unbound={CAP_SYS_PTRACE}", f"bound-leader={DEFAULT_CAPABILITIES}"])
def test_attack_21_cap_sys_ptrace_never_finds_a_process_outside_of_the_limit_of_processes(
    attack: MakeCrash, rights: str
) -> None:
    if ":pids:" not in Path("/proc/self/cgroup").read_text():
        pytest.skip("this host has no pids hierarchy of version 1")
    container = attack(rights, "wait=/out/go", "catch-pids=5", options=TRACER)
    threads = 2 if "leader" in rights else 1
    lab.output("docker", "update", f"--pids-limit={threads + 1}", container.name)
    (container.records / "go").touch()
    wait_until(lambda: "caught " in lab.output("docker", "logs", container.name), "nothing was tried", 60)
    assert "GOT" not in lab.output("docker", "logs", container.name)
    # Without the limit there would have been a core.
    assert "Resource temporarily unavailable" in container.log("Resource temporarily unavailable")


# Before Linux 5.12, there is no mount_setattr(2).
OLD_KERNEL = """
from core_helper import linux


def missing(path):
    raise OSError(38, "Function not implemented")


linux.clone_read_only = missing
"""


@pytest.mark.parametrize("rights", ["sleep=0", f"unbound={CAP_SYS_PTRACE}"])
def test_attack_21_cap_sys_ptrace_never_finds_the_interpreter_before_linux_5_12(
    attack: MakeCrash, old_kernel: Callable[[str], None], rights: str
) -> None:
    old_kernel(OLD_KERNEL)
    container = attack(rights, "hold=2", options=("--cap-add=SYS_PTRACE",))
    assert "held 0\n" in container.output
    assert "Function not implemented" in container.log("Function not implemented")


# 15

USER_OF_THE_HOST = """
echo $$ > {group}/start/cgroup.procs
exec setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs sh -c '
mkdir {group}/{name}
echo $$ > {group}/{name}/cgroup.procs
exec {crasher} tiny'
"""


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_15_a_user_of_the_host_names_a_control_group_after_a_container(
    attack: MakeCrash, group_of_user: Path, records: Path
) -> None:
    other = attack("wait=/out/go", options=("--detach",))
    script = USER_OF_THE_HOST.format(group=group_of_user, name=other.identifier, crasher=f"{lab.PROGRAMS}/crasher")
    crash = subprocess.Popen(["sh", "-c", script], env={**os.environ, "RECORD_DIRECTORY": str(records)})
    crash.wait()
    written: list[str] = []

    def is_told() -> bool:
        written[:] = [line for line in read_log().splitlines() if f"pid={crash.pid} " in line]
        return any(": delivered " in line for line in written)

    wait_until(is_told, "the crash of the user was not handled")
    assert not [line for line in written if f"container={other.identifier[:12]}" in line]
    assert [line for line in written if f"container=1000:{other.identifier[:12]}" in line]
