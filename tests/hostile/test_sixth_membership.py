"""What a sixth stranger found: namespaces kept from another container, root in those of a user, an end that is stopped."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.intruders import (
    ADMINISTRATOR,
    DEFAULT_CAPABILITIES,
    OF_THE_HOST,
    PROGRAM,
    Refusal,
    assert_withheld,
    crash_on_host,
    start,
)
from hostile.observe import delegates_of, helpers, pid_of, wait_until
from hostile.run import TIMEOUT
from support import lab
from support.containers import MakeCrash, wait_for_log


def test_attack_20_an_intruder_that_has_kept_the_network_of_another_container(
    attack: MakeCrash, refusal: Refusal, tmp_path: Path
) -> None:
    container, another = start(attack), start(attack)
    pid, theirs = pid_of(container), pid_of(another)
    joins = (
        *(f"join=/proc/{theirs}/ns/{kind}" for kind in ("net", "ipc", "uts")),
        f"join=/proc/{pid}/ns/pid",
        "fork=1",
        f"join=/proc/{pid}/ns/mnt",
    )
    crash_on_host(*joins, f"bound={DEFAULT_CAPABILITIES}", "tiny", directory=tmp_path, group_of=pid)
    assert_withheld(container, refusal)


def test_a_process_with_a_network_of_its_own_has_its_delegate(attack: MakeCrash) -> None:
    container = attack("own-network", "fork=1", options=("--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined"))
    assert ": delivered " in container.log(": delivered "), container.log("pid=")


def test_a_process_of_the_container_that_does_not_come_to_its_end_is_no_stranger(attack: MakeCrash) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no /dev/fuse")
    options = ("--device=/dev/fuse", *ADMINISTRATOR)
    container = attack("fuse=serve", "fuse=exit", "fork=1", "tiny", options=options)
    assert ": delivered " in container.log(": delivered "), container.log("pid=")


@pytest.fixture
def files_of_a_user(records: Path) -> Path:
    """What a user puts over the delegate of the host, where nobody else sees that; it makes the file "started"."""
    program = records / "program"
    program.write_text(f"#!/bin/sh\n: >{records}/started\ncat >/dev/null\n")
    program.chmod(0o755)
    return program


@pytest.fixture(params=["without a pid namespace", "with one", "in another group"])
def sandbox(
    request: pytest.FixtureRequest, records: Path, files_of_a_user: Path, into: Callable[[int, str], None]
) -> Iterator[list[str]]:
    """How root of the host enters the user and mount namespaces of a user."""
    pids = [] if request.param == "without a pid namespace" else ["--pid", "--fork"]
    ready = records / "ready"
    script = f"mount --bind {files_of_a_user} /opt/bin/delegate && : >{ready} && exec sleep 60"
    user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    words = [*user, "unshare", "--user", "--map-root-user", "--mount", *pids, "sh", "-c", script]
    unshare = subprocess.Popen(words)
    target = unshare.pid
    try:
        wait_until(ready.exists, "the user has no sandbox")
        if pids:
            target = int(Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text())
        if request.param == "in another group":
            into(target, "session-of-the-user.scope")
        yield ["nsenter", "--user", "--mount", *pids[:1], "--preserve-credentials", f"--target={target}"]
    finally:
        subprocess.run(["kill", "-KILL", str(target)], check=False)
        unshare.kill()
        unshare.wait()


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_20_no_program_of_a_user_has_the_number_of_root(sandbox: list[str], records: Path) -> None:
    crash = subprocess.Popen([*sandbox, PROGRAM, "tiny"], env=OF_THE_HOST)
    crash.wait()
    assert "core not delivered, 0 bytes" in wait_for_log('comm="crasher"', "core not delivered, 0 bytes")
    assert not (records / "started").exists()


def test_attack_23_a_delegate_whose_end_is_stopped_by_whoever_traces_it(attack: MakeCrash) -> None:
    container = attack("leave=60", "seize-exit=60", options=("--env=ATTACK=never-ends", "--detach"))
    wait_until((container.records / "go").exists, "the delegate was never traced: nothing was shown")
    assert delegates_of(container)
    wait_until(lambda: helpers() == 0, "the helper does not end", TIMEOUT + 15)
    assert delegates_of(container) == []
    assert lab.output("docker", "inspect", "--format={{.State.Running}}", container.name) == "true"
