"""What a ninth reader found: who stops the end of a tracer, who looks like nobody, and what a look at others may cost."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hostile.intruders import ADMINISTRATOR, OF_THE_HOST, PROGRAM, UNCONFINED
from hostile.observe import LIMIT, delegates_of, ended, helpers, processes_of, wait_until
from hostile.run import TIMEOUT
from hostile.test_seventh_look import Place, Start, home, place, run  # noqa: F401
from hostile.test_sixth_slots import of_users, processes
from support import lab
from support.containers import MakeCrash, wait_for_log

ENDLESS = ("--env=ATTACK=never-ends", "--detach")
SHARE = LIMIT // 2
USER = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
SESSION = "user.slice/user-1000.slice/session-7.scope"
GROUPS_OF_SESSION = {"pids": SESSION, "memory": SESSION, "systemd": SESSION}


@pytest.fixture
def attack() -> Iterator[MakeCrash]:
    with ended(90) as made:
        yield made


def test_attack_23_the_end_of_the_tracer_is_stopped_by_another_one(attack: MakeCrash) -> None:
    container = attack("leave=90", "seize-chain=80", options=ENDLESS)
    wait_until((container.records / "go").exists, "the delegate was never traced: nothing was shown")
    wait_until(lambda: helpers() == 0, "the helper does not end", TIMEOUT + 15)
    wait_until(lambda: not delegates_of(container), "the delegate stays", 10)


def test_attack_23_the_end_of_a_process_that_has_not_become_the_delegate_is_stopped(attack: MakeCrash) -> None:
    container = attack("leave=90", "catch-exit=80", options=("--cap-add=SYS_PTRACE", "--detach"))
    wait_until((container.records / "go").exists, "none was caught: nothing was shown", 30)
    wait_until(lambda: helpers() == 0, "a process of ours stays", TIMEOUT + 20)


def test_attack_23_a_process_with_many_descriptors_does_not_keep_the_helper_looking(attack: MakeCrash) -> None:
    container = attack("descriptors=100:15000", "keep=200", "tiny", options=ENDLESS)
    wait_until(lambda: delegates_of(container), "no delegate")
    wait_until(lambda: helpers() == 0, "the helper looks on", TIMEOUT + 15)


@pytest.mark.parametrize("name", ["", "opt/bin", "opt/bin/delegate"])
def test_attack_20_all_users_whom_the_user_namespace_does_not_have_look_alike(
    attack: MakeCrash,
    home: Path,  # noqa: F811
    name: str,
) -> None:
    os.chown(home / name, 1001, 1001)
    (home / "out").chmod(0o777)
    container = attack("tiny", "userns=unmapped", "root=/home", options=(f"--volume={home}:/home", *UNCONFINED))
    lines = container.log("another user may change it")
    assert not list((home / "out").iterdir()), f"the delegate of user 1001 was started for user 1000: {lines}"
    assert "another user may change it" in lines


@pytest.mark.usefixtures("patient_enough")
def test_attack_22_whoever_looks_at_the_slots_takes_the_memory_of_a_process_with_it(attack: MakeCrash) -> None:
    # The last one who has the memory of a process open waits for what that process has asked a file system for.
    actions = ("fuse=serve", "groups", f"traced={SHARE}", "aio")
    container = attack("leave=600", *actions, "tiny", options=(*ADMINISTRATOR, "--device=/dev/fuse", *ENDLESS))
    wait_until(lambda: len(delegates_of(container)) >= SHARE - 2, "the slots are not used", 60)
    wait_until(lambda: helpers() == 0, "the helpers do not end", 60)
    (tracer,) = {tracer_of(pid) for pid, _ in processes_of(container)} - {0}
    other = attack("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    storm = attack("wait=/out/go", "delegate=none", "storm=10", options=("--detach",))
    (storm.records / "go").touch()
    time.sleep(4)
    os.kill(tracer, signal.SIGKILL)
    time.sleep(4)
    lab.output("docker", "kill", storm.name)
    (other.records / "go").touch()
    try:
        wait_until(lambda: other.of("delegate"), "the crash of another container was not handled", 30)
    finally:
        lab.output("docker", "kill", container.name)


def tracer_of(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/status").read_text().partition("\nTracerPid:\t")[2].split()[0])
    return 0


@pytest.fixture
def bwrap() -> Iterator[str]:
    """A sandbox program that is set-user-id, and makes a user namespace as root."""
    found = shutil.which("bwrap")
    if found is None:
        pytest.skip("this machine has no bwrap: install bubblewrap")
    program = Path(shutil.copy(found, lab.DIRECTORY / "bwrap"))
    os.chown(program, 0, 0)
    program.chmod(0o4755)
    yield str(program)
    program.unlink()


@pytest.mark.usefixtures("patient", "delegate_of_the_host")
@pytest.mark.parametrize("namespaces", ["--unshare-user --unshare-pid", "--unshare-user"])
def test_attack_22_sandboxes_with_a_user_namespace_that_root_has_made(
    run: Start,  # noqa: F811
    place: Place,  # noqa: F811
    records: Path,
    bwrap: str,
    namespaces: str,
) -> None:
    script = (
        f"while [ ! -e {records}/go ]; do sleep 0.1; done; i=0; while [ $i -lt 70 ]; do"
        f" {bwrap} {namespaces} --dev-bind / / {PROGRAM} tiny & i=$((i+1)); done; wait; sleep 600"
    )
    flood = run(*USER, "sh", "-c", script, env={**OF_THE_HOST, "ATTACK": "never-ends"})
    place(flood.pid, GROUPS_OF_SESSION)
    (records / "go").touch()
    with suppress(AssertionError):
        wait_until(lambda: len(of_users("delegate")) > LIMIT * 3 // 4, "no more", 20)
    held = len(of_users("delegate"))
    crash = run(PROGRAM, "tiny", env={"RECORD_DIRECTORY": str(records)})
    crash.wait()
    lines = wait_for_log(f"pid={crash.pid} ", "deliver")
    os.killpg(flood.pid, signal.SIGKILL)
    for name in ("crasher", "delegate"):
        for pid, uid in processes(name):
            if uid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: helpers() == 0, "helpers are left", 60)
    assert 0 < held <= LIMIT * 3 // 4
    assert ": delivered " in lines
