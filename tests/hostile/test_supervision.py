"""Delegates that do not end, cores that do not arrive whole, containers that crash too much: each leaves its line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lab
import pytest
from containers import Container, Crash
from records import is_whole

TIMEOUT = 5  # Seconds; what run.py rolls out.


def wait_until(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    """Waits for a condition, and fails if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def processes_of(container: Container) -> list[tuple[int, str]]:
    """Host pid and command line of each process in a container."""
    lines = lab.output("docker", "top", container.name, "-eo", "pid,args").splitlines()[1:]
    return [(int(pid), words) for pid, words in (line.split(maxsplit=1) for line in lines)]


def delegates_of(container: Container) -> list[int]:
    """Host pids of the delegate and its family."""
    return [pid for pid, words in processes_of(container) if words.startswith("/opt/bin/delegate")]


def helpers() -> int:
    """How many crashes are in flight."""
    count = 0
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            count += b"\0/opt/bin/docker_core_helper\0" in (directory / "cmdline").read_bytes()
        except OSError:
            continue
    return count


# 11 and 12. All of these wait for the deadline, so they do it at the same time.

ENDLESS = ("never-reads", "reads-slowly", "never-ends", "daemon", "stops", "frozen")


@pytest.fixture(scope="module")
def endless(attack: Crash) -> Iterator[dict[str, Container]]:
    """A container for each kind of delegate that does not end by itself."""
    containers = {}
    for kind in ENDLESS:
        kinds = (f"--env=ATTACK={'never-ends' if kind == 'frozen' else kind}", "--detach")
        containers[kind] = attack("keep=60", "memory=8", options=kinds)
        wait_until(lambda kind=kind: delegates_of(containers[kind]), f"no delegate: {kind}", 5)  # type: ignore[misc]
        if kind == "frozen":
            lab.output("docker", "pause", containers[kind].name)
    yield containers
    lab.command("docker", "unpause", containers["frozen"].name, check=False, capture_output=True)


def assert_ended(container: Container) -> None:
    """The deadline has ended the delegate with its family, and given the process and its slot free."""
    line = container.log("deadline passed")
    assert re.search(r"not delivered: deadline passed: \d+ bytes to /opt/bin/delegate in ([5-9]|1[0-5])\.", line), line
    wait_until(lambda: not delegates_of(container), "a process of the delegate is left")
    wait_until(lambda: "ended" in lab.output("docker", "logs", container.name), "the process was not given free")


@pytest.mark.parametrize("kind", ["never-reads", "reads-slowly", "never-ends"])
def test_attack_12_the_delegate_does_not_come_to_an_end(endless: dict[str, Container], kind: str) -> None:
    assert_ended(endless[kind])


def test_attack_12_a_daemon_holds_standard_input(endless: dict[str, Container]) -> None:
    assert_ended(endless["daemon"])


def test_attack_11_the_delegate_stops_itself(endless: dict[str, Container]) -> None:
    assert_ended(endless["stops"])


def test_attack_11_the_container_is_frozen(endless: dict[str, Container]) -> None:
    assert "deadline passed" in endless["frozen"].log("deadline passed")
    lab.output("docker", "unpause", endless["frozen"].name)
    assert_ended(endless["frozen"])


def test_attack_12_the_output_of_the_delegate_is_bounded(attack: Crash) -> None:
    container = attack(options=("--env=ATTACK=talks",))
    told = [line for line in container.log("delivered").splitlines() if ": delegate: " in line]
    assert 100 < len(told) <= 201
    assert "not logged" in told[-1]
    assert "\x1b" not in "".join(told)


# 11


@pytest.mark.parametrize("processes", [1, 2])
def test_attack_11_the_limit_of_processes_is_reached(attack: Crash, processes: int) -> None:
    container = attack(*(["fork=1"] if processes == 2 else []), "record", options=(f"--pids-limit={processes}",))
    assert "delivered" in container.log("delivered")
    assert is_whole(container.delegate.core.read_bytes())
    assert container.delegate.text("cgroup") == container.process.text("cgroup")


def test_attack_11_the_container_has_little_memory(attack: Crash) -> None:
    container = attack("memory=4", options=("--memory=8m",))
    assert re.search(r"delivered|dropped", container.log("pid="))
    assert container.seconds < TIMEOUT


def test_attack_11_the_container_is_killed_in_the_middle(attack: Crash) -> None:
    container = attack("memory=64", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    lab.output("docker", "kill", container.name)
    assert re.search(r"not delivered: .*\d+ bytes to .*truncated", container.log("not delivered"))


# Nothing is lost without a word.


def test_attack_11_the_process_is_killed_while_it_dumps(attack: Crash) -> None:
    container = attack("keep=20", "memory=256", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    time.sleep(0.3)
    dumper = max(pid for pid, words in processes_of(container) if words.startswith("victim"))
    os.kill(dumper, signal.SIGKILL)
    (container.records / "go").touch()
    line = container.log("truncated")
    delivered, length = map(int, re.findall(r"(\d+) bytes to .*truncated: of (\d+) bytes", line)[0])
    assert 0 < delivered < 8 << 20
    assert length > 256 << 20


def test_attack_11_the_process_is_frozen_while_it_dumps(attack: Crash) -> None:
    container = attack("keep=20", "memory=256", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    time.sleep(0.3)
    lab.output("docker", "pause", container.name)
    (container.records / "go").touch()
    lab.output("docker", "unpause", container.name)
    assert re.search(r"not delivered: .*\d+ bytes to .*truncated", container.log("truncated"))


def test_attack_11_the_exit_code_of_the_delegate_is_told(attack: Crash) -> None:
    container = attack(options=("--env=ATTACK=fails",))
    assert re.search(r"not delivered: it ended with exit code 7: \d+ bytes", container.log("not delivered"))


# 13


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_13_one_container_crashes_too_much(attack: Crash, records: Path, refusal: Callable[[str], str]) -> None:
    limit = int(lab.setting("kernel/core_pipe_limit").read_text())
    share = limit * 3 // 4
    crashing = ("wait=/out/go", "fork=200", "tiny")
    flood = attack(*crashing, options=("--env=ATTACK=never-ends", "--detach"))
    other = attack("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    wait_until(lambda: helpers() == 0, "crashes of another test are in flight")
    (flood.records / "go").touch()
    line = refusal("its share of")
    assert f"has {share} crashes in flight, its share of kernel.core_pipe_limit={limit}: core dropped" in line
    # Those beyond the share are on their way out.
    wait_until(lambda: len(delegates_of(flood)) == share and helpers() == share, "the flood did not fill its share", 4)

    (other.records / "go").touch()
    victim = subprocess.Popen([lab.VICTIMS / "victim"], env={"RECORD_DIRECTORY": str(records)})
    assert victim.wait() == -signal.SIGSEGV
    wait_until(lambda: other.of("delegate"), "the crash of the other container was not handled", 2)
    assert is_whole(other.delegate.core.read_bytes())
    assert is_whole((records / f"delegate.{victim.pid}" / "core").read_bytes())
    assert len(delegates_of(flood)) == share, "the flood was over too early: nothing was shown"
