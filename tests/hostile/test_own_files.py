"""No attack: whoever is in the files of its own container, or of the host, has its delegate, whatever namespaces it shares."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.intruders import PROGRAM
from hostile.observe import mounts_of, pid_of, wait_until
from hostile.options import ADMINISTRATOR, PRIVILEGED, UNCONFINED
from support import lab
from support.containers import Container, MakeCrash, wait_for_log

CONTAINERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "as it is": ((), ()),
    "in the host's pid namespace": ((), ("--pid=host",)),
    "a child, in the host's pid namespace": (("fork=1",), ("--pid=host",)),
    "in another container's pid namespace": ((), ("--pid=container:{name}",)),
    "privileged": ((), (*PRIVILEGED,)),
    "a child, privileged": (("fork=1",), (*PRIVILEGED,)),
    "privileged, in the host's pid namespace": ((), (*PRIVILEGED, "--pid=host")),
    "privileged, in another one's pid namespace": (("fork=1",), (*PRIVILEGED, "--pid=container:{name}")),
    "in the host's control group namespace": ((), ("--cgroupns=host",)),
    "with mounts of its own": (("fork=1", "own-mounts"), ("--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined")),
    "with mounts of its own, privileged": (("fork=1", "own-mounts"), (*PRIVILEGED,)),
    "in a jail": (("root=/jail",), ()),
    "in a jail, privileged": (("fork=1", "root=/jail"), (*PRIVILEGED,)),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_container_has_its_own_delegate_whatever_namespaces_it_shares(
    attack: MakeCrash, target: Container, kind: str
) -> None:
    actions, options = CONTAINERS[kind]
    jail = (f"--volume={lab.PROGRAMS}/delegate:/jail/opt/bin/delegate", f"--volume={lab.RECORDS}/jail:/jail/out")
    (lab.RECORDS / "jail").mkdir(exist_ok=True)
    (lab.RECORDS / "jail").chmod(0o777)
    container = attack("tiny", *actions, options=(*(option.format(name=target.name) for option in options), *jail))
    assert "delivered" in container.log("delivered"), container.log("pid=")


def test_a_process_that_the_engine_has_put_into_a_container_has_its_delegate(attack: MakeCrash) -> None:
    container = attack("wait=/out/go", options=("--detach",))
    lab.command("docker", "exec", container.name, "crasher", check=False)
    wait_until(lambda: container.of("delegate"), "no delegate")
    assert container.delegate.links["ns/mnt"] == Path(f"/proc/{pid_of(container)}/ns/mnt").readlink().name


def test_a_process_with_a_network_of_its_own_has_its_delegate(attack: MakeCrash) -> None:
    container = attack("own-network", "fork=1", options=("--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined"))
    assert ": delivered " in container.log(": delivered "), container.log("pid=")


def test_a_process_of_the_container_that_does_not_come_to_its_end_is_no_stranger(attack: MakeCrash, fuse: str) -> None:
    options = (fuse, *ADMINISTRATOR)
    container = attack("fuse=serve", "fuse=exit", "fork=1", "tiny", options=options)
    assert ": delivered " in container.log(": delivered "), container.log("pid=")


SANDBOXES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a root directory of its own in a user namespace": (
        ("fork=1", "user", "sandbox=user", "sandbox=root", "execute=/usr/bin/crasher"),
        UNCONFINED,
    ),
    "a root directory of its own": (
        ("fork=1", "sandbox=root", "execute=/usr/bin/crasher"),
        (*ADMINISTRATOR, *UNCONFINED),
    ),
    "a program in memory, in a user namespace": (("fork=1", "sandbox=user", "memfd"), UNCONFINED),
    "a program of a user in memory, in a user namespace": (("fork=1", "user", "sandbox=user", "memfd"), UNCONFINED),
}


@pytest.mark.parametrize("kind", SANDBOXES)
def test_a_sandbox_that_a_container_has_made_has_the_delegate_that_it_sees(attack: MakeCrash, kind: str) -> None:
    actions, options = SANDBOXES[kind]
    container = attack(*actions, "tiny", options=options)
    assert ": delivered " in container.log("delivered"), container.log("pid=")


# Others in the same mounts of the host, of whom some are containers.


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
