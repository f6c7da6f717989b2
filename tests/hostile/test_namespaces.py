"""Whoever keeps or makes a namespace beside those of the container that he has joined has no delegate there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.intruders import OF_THE_HOST, PROGRAM, Refusal, Start, assert_withheld, crash_on_host, start
from hostile.observe import pid_of, wait_until
from hostile.options import DEFAULT_CAPABILITIES
from support.containers import MakeCrash, wait_for_log


def test_attack_20_a_process_of_the_host_that_has_kept_its_network(
    attack: MakeCrash, refusal: Refusal, tmp_path: Path
) -> None:
    container = start(attack)
    pid = pid_of(container)
    joins = (f"join=/proc/{pid}/ns/pid", "fork=1", f"join=/proc/{pid}/ns/mnt")
    crash_on_host(*joins, f"bound={DEFAULT_CAPABILITIES}", "tiny", directory=tmp_path, group_of=pid)
    assert_withheld(container, refusal)


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


@pytest.mark.parametrize("program", ["execute=/usr/bin/crasher", "bound=a80425fb"], ids=["theirs", "of the host"])
def test_attack_20_a_pid_namespace_of_its_own_in_the_control_group_of_a_container(
    attack: MakeCrash, refusal: Refusal, tmp_path: Path, program: str
) -> None:
    container = start(attack)
    pid = pid_of(container)
    crash_on_host("sandbox=pid", f"join=/proc/{pid}/ns/mnt", program, directory=tmp_path, group_of=pid)
    assert_withheld(container, refusal)


# Root of the host in the user namespace of somebody else.


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


# A container whose engine is root, and whose users have numbers of their own. It covers the delegate, and tells its pid.
CONTAINER_OF_ROOT = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)


def must(result):
    assert result == 0, os.strerror(ctypes.get_errno())


made, go = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    must(libc.unshare(0x10000000))
    os.write(made[1], b"x")
    os.read(go[0], 1)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    must(libc.unshare(0x20020000))
    first = os.fork()
    if first == 0:
        must(libc.mount(sys.argv[1].encode(), b"/opt/bin/delegate", None, 4096, None))
        open(sys.argv[2], "w").close()
        time.sleep(100)
    print(first, flush=True)
    os.waitpid(first, 0)
    os._exit(0)
os.read(made[0], 1)
for kind in ("uid", "gid"):
    with open(f"/proc/{pid}/{kind}_map", "w") as file:
        file.write("0 100000 65536")
os.write(go[1], b"x")
os.waitpid(pid, 0)
"""


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_20_root_of_the_host_in_a_user_namespace_that_root_has_made_for_others(
    run: Start, records: Path
) -> None:
    program, ready = records / "program", records / "ready"
    program.write_text(f"#!/bin/sh\n: >{records}/started\ncat >/dev/null\n")
    program.chmod(0o755)
    holder = run(sys.executable, "-c", CONTAINER_OF_ROOT, program, ready)
    wait_until(ready.exists, "there is no container")
    (child,) = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
    (first,) = Path(f"/proc/{child}/task/{child}/children").read_text().split()
    enter = ("nsenter", "--user", "--mount", "--pid", "--preserve-credentials", f"--target={first}")
    run(*enter, PROGRAM, "tiny").wait()
    assert "core not delivered, 0 bytes" in wait_for_log("does not have its user, 0", "core not delivered, 0 bytes")
    assert not (records / "started").exists()
