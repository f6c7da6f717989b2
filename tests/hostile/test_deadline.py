"""Delegates that do not end by themselves: the deadline ends them, and gives the process and its slot free."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.observe import delegates_of, processes_of, wait_until
from support import lab
from support.containers import Container, MakeCrash

# All of these wait for the deadline, so they do it at the same time.


ATTACKS = {
    "never-reads": "never-reads",
    "reads-slowly": "reads-slowly",
    "never-ends": "never-ends",
    "daemon": "daemon",
    "stops": "stops",
    "frozen": "never-ends",
    "passed on to the same user": "passes-on",
    "passed on to another user": "passes-on",
}
RECEIVERS = {"passed on to the same user": ("receiver=0",), "passed on to another user": ("receiver=1000",)}


@pytest.fixture(scope="module")
def endless(attack: MakeCrash) -> Iterator[dict[str, Container]]:
    """A container for each kind of delegate that does not end by itself."""
    containers = {}
    for kind, does in ATTACKS.items():
        actions = (*RECEIVERS.get(kind, ()), "keep=60", "memory=8")
        containers[kind] = container = attack(*actions, options=(f"--env=ATTACK={does}", "--detach"))
        if kind in RECEIVERS:
            wait_until((container.records / "received").exists, f"nothing was passed on: {kind}", 5)
        else:
            wait_until(lambda of=container: delegates_of(of), f"no delegate: {kind}", 5)  # type: ignore[misc]
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


@pytest.mark.parametrize("kind", RECEIVERS)
def test_attack_12_standard_input_is_passed_on_over_a_socket(endless: dict[str, Container], kind: str) -> None:
    assert_ended(endless[kind])
    receivers = [words for _, words in processes_of(endless[kind]) if words.startswith("receiver")]
    # Nobody is ended whom the delegate could not have ended itself; and what he holds is only our pipe, not the kernel's.
    assert bool(receivers) == (kind == "passed on to another user")


def test_attack_11_the_delegate_stops_itself(endless: dict[str, Container]) -> None:
    assert_ended(endless["stops"])


def test_attack_11_the_container_is_frozen(endless: dict[str, Container]) -> None:
    assert "deadline passed" in endless["frozen"].log("deadline passed")
    lab.output("docker", "unpause", endless["frozen"].name)
    assert_ended(endless["frozen"])


@pytest.mark.parametrize(
    ("before", "told"),
    [
        # The kernel ends a dump when the process is to be frozen.
        (("verification", "examine"), "core not delivered, 0 bytes: process {} is "),
        (("joining", "prepare"), "0 bytes delivered: deadline passed before the delegate was started"),
    ],
    ids=["before the process is examined", "before the container is entered"],
)
def test_attack_11_the_container_is_frozen_before_the_delegate_starts(
    attack: MakeCrash, hold: Callable[..., Path], before: tuple[str, str], told: str
) -> None:
    directory = hold(before=before)
    container = attack("leave=60", options=("--detach",))
    wait_until((directory / "held").exists, "no helper")
    dumper = max(pid for pid, _ in processes_of(container))
    lab.output("docker", "pause", container.name)
    try:
        (directory / "go").touch()
        line = container.log(told.format(dumper))
        assert told.format(dumper) in line
    finally:
        lab.output("docker", "unpause", container.name)
    wait_until(lambda: all("crasher" in words for _, words in processes_of(container)), "a process of ours is left")
    assert container.of("delegate") == []


def test_a_delegate_that_goes_on_reading_is_not_ended_at_the_timeout(attack: MakeCrash) -> None:
    container = attack("memory=96", options=("--env=ATTACK=reads-on",))
    assert ": delivered " in container.log("delivered"), container.log("pid=")
    # The timeout of these tests; a delegate that drips is ended then: see the others here.
    assert container.seconds > 10
