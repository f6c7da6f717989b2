"""What comes into the host's log: names full of odd bytes, names of others, and floods of lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from core_helper import quota
from hostile.groups import move
from hostile.observe import LIMIT, is_dumping, kill_dumper, lines_of, pid_of, processes_of, wait_until
from hostile.options import ADMINISTRATOR, ENDLESS
from support import door, lab
from support.containers import Container, MakeCrash, read_log
from support.hosts import HELPER
from support.records import is_whole

Kernel = Callable[[str, str], None]


def test_attack_15_names_full_of_bytes_that_matter_elsewhere(attack: MakeCrash, kernel: Kernel) -> None:
    kernel("kernel/core_pattern", f"|{HELPER} -s%s %P %u %g /opt/bin/delegate %e %h %E")
    options = (*ADMINISTRATOR, "--env=ATTACK=tells-words")
    container = attack("name", "thread-name", "user", options=options)
    (line,) = lines_of(container)
    assert " uid=1000 gid=1000 signal=11 (SIGSEGV)" in line
    assert "delivered" in line
    told = line.replace("\\x5c", "\\")
    assert r'comm="a\x0ab) \x22%P\x1b\xff" exe="/tmp/a \x22b\x22 \x0a0 0 0 %P \x1b[31m\xff\xfe"' in told
    assert r'host="h 0 0\x0a\x22%s\x1b\xff"' in told
    words = (container.records / "words").read_bytes().split(b"\0")
    assert words == [
        b'a\nb) "%P\x1b\xff',
        b'h 0 0\n"%s\x1b\xff',
        b'!tmp!a "b" \n0 0 0 %P \x1b[31m\xff\xfe',
        b"",
    ]


@pytest.mark.parametrize(("length", "told"), [(4000, 4000), (5000, 0)])
def test_attack_15_a_path_of_four_kibibytes_or_more(attack: MakeCrash, length: int, told: int) -> None:
    container = attack(f"path={length}", options=("--tmpfs=/tmp:exec,mode=1777",))
    (line,) = lines_of(container)
    assert ": delivered " in line, "the path has pushed out what became of the core"
    assert is_whole(container.delegate.core.read_bytes())
    # No more than PATH_MAX can be read of a path; proc_pid_exe(5).
    exe = container.delegate.environment["CORE_EXE"]
    assert len(exe) == told
    assert f'exe="{exe[:256]}{"..." if exe else ""}"' in line


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


# Whoever makes processes all the time has one of them get that pid in the end; root of the host can ask for it.
SUCCESSOR = """
import ctypes, os, signal, sys, time
pid, namespace = int(sys.argv[1]), os.open(sys.argv[2], os.O_RDONLY)
sys.stdin.readline()
assert ctypes.CDLL(None).setns(namespace, 0) == 0
for _ in range(500):
    open("/proc/sys/kernel/ns_last_pid", "w").write(str(pid - 1))
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    if os.path.exists(f"/proc/{pid}"):
        print("taken", flush=True)
        sys.stdin.readline()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@contextmanager
def taken_by(container: Container, pid: int) -> Iterator[None]:
    """A process of a container has that pid of the host."""
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the process is not gone")
    first = pid_of(container)
    words = [sys.executable, "-c", SUCCESSOR, str(pid), f"/proc/{first}/ns/pid"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    move(process.pid, first)
    try:
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "taken\n"
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def killed_while_held(
    attack: MakeCrash, other: Container, refusal: Callable[[str], str], held: Path, go: Path
) -> tuple[int, str]:
    """A process is killed while its helper waits for ``go``, and ``other`` gets its pid: that pid, and the line about it."""
    container = attack("keep=60", "tiny", options=("--detach",))
    wait_until(held.exists, "no helper")
    dumper = max(pid for pid, words in processes_of(container) if words.startswith("crasher"))
    kill_dumper(container)
    with taken_by(other, dumper):
        go.touch()
        return dumper, refusal(f"pid={dumper} ")


def test_attack_15_another_container_has_the_pid_of_a_process_that_was_killed(
    attack: MakeCrash, hold: Callable[..., Path], refusal: Callable[[str], str]
) -> None:
    other = attack("wait=/out/go", options=("--detach",))
    directory = hold("-F%F -I%I -d%d", before=("verification", "examine"))
    _dumper, line = killed_while_held(attack, other, refusal, directory / "held", directory / "go")
    assert "is not dumping core" in line
    assert other.identifier[:12] not in line


def test_attack_22_a_process_that_was_killed_costs_whoever_has_its_pid_nothing(
    attack: MakeCrash, hold: Callable[..., Path], refusal: Callable[[str], str]
) -> None:
    # A machine without a free processor starts the helper late.
    other = attack("wait=/out/go", options=("--detach",))
    directory = hold("-F%F -I%I -d%d")
    dumper, line = killed_while_held(attack, other, refusal, directory / "held.1", directory / "go.1")
    assert other.identifier not in Path(quota.FILE).read_bytes().decode("latin-1"), "it has paid for the line"
    assert f"process {dumper} is gone" in line


@pytest.mark.skipif(not door.BY_SOCKET, reason="only there does a crash wait for a slot")
@pytest.mark.usefixtures("patient_enough")
def test_attack_15_another_container_has_the_pid_of_a_process_that_was_killed_while_it_waited(
    siege: MakeCrash, refusal: Callable[[str], str]
) -> None:
    other = siege("wait=/out/go", options=("--detach",))
    full = siege("leave=60", f"fork={LIMIT}", "tiny", options=ENDLESS)
    wait_until(lambda: sum(is_dumping(pid) for pid, _ in processes_of(full)) >= LIMIT, "the slots are not used")
    lab.output("docker", "exec", "--detach", full.name, "crasher", "keep=60", "tiny")

    def waiting() -> list[int]:
        return [pid for pid, words in processes_of(full) if words == "crasher keep=60 tiny" and is_dumping(pid)]

    wait_until(waiting, "it does not crash")
    time.sleep(0.5)  # Until the server has it.
    (dumper,) = waiting()
    os.kill(dumper, signal.SIGKILL)
    with taken_by(other, dumper):
        time.sleep(20)
        line = refusal(f"pid={dumper} ")
    assert "core not delivered, 0 bytes" in line
    assert other.identifier[:12] not in line


def test_attack_12_the_output_of_the_delegate_is_bounded(attack: MakeCrash) -> None:
    container = attack(options=("--env=ATTACK=talks",))
    told = [line for line in container.log("delivered").splitlines() if ": delegate: " in line]
    assert 100 < len(told) <= 201
    assert "not logged" in told[-1]
    assert "\x1b" not in "".join(told)


def test_attack_22_a_flood_of_lines_is_rationed_over_all_crashes(attack: MakeCrash) -> None:
    container = attack("fork=30", "tiny", options=("--env=ATTACK=talks",))
    told = container.log("more are left out while it writes over 10 a second")
    assert "more are left out while it writes over 10 a second" in told
    assert len(told.splitlines()) < 1100
