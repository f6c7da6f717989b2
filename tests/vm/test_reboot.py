"""What a real boot leaves of the rollout, where systemd-coredump, a hardening rule and Apport were taken over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.machines import MACHINES, Machine
from support.records import is_whole
from vm.crashes import PATTERN, PROCESS, WAYS, MachineCrash, coredumpctl


@pytest.fixture(scope="module", autouse=True)
def before(machine: Machine) -> str:
    """The kernel's settings from before the reboot."""
    settings = machine.run(PATTERN)
    machine.reboot()
    return settings


def test_the_pattern_and_the_limit_are_the_same_after_a_reboot(machine: Machine, before: str) -> None:
    assert before.startswith("|/opt/bin/docker_core_helper ") and before.endswith("\n512")
    assert machine.run(PATTERN) == before


def test_a_crash_in_a_container_reaches_its_delegate_after_a_reboot(crash: Callable[[str], MachineCrash]) -> None:
    assert is_whole(crash(WAYS["docker"]).delegate.core.read_bytes())


def test_a_crash_of_the_host_goes_where_it_belongs_after_a_reboot(
    machine: Machine, crash: Callable[[str], MachineCrash]
) -> None:
    if "systemd-coredump" in MACHINES[machine.name].packages:
        assert " present " in coredumpctl(machine)["coredumpctl"]
    else:
        assert is_whole(crash(PROCESS).delegate.core.read_bytes())
