"""The helper goes, and the host is what its distribution, and its administrator, have made of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import lab
from support.machines import MACHINES, Machine
from vm.crashes import CORES, HARDENING, PATTERN, coredumpctl

# Of two crashes of the same program, these differ.
OF_ONE_CRASH = ("PID", "TIMESTAMP", "FILENAME", "PROC_", "ENVIRON", "OPEN_FDS")


@pytest.fixture(scope="module")
def expected(machine: Machine) -> str:
    """The settings that the kernel has, or that systemd-coredump makes at boot where it is installed."""
    if "systemd-coredump" in MACHINES[machine.name].packages:
        lines = machine.run("cat /usr/lib/sysctl.d/50-coredump.conf").splitlines()
        values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        return f"{values['kernel.core_pattern']}\n{values['kernel.core_pipe_limit']}"
    return "core\n0"


@pytest.fixture(scope="module", autouse=True)
def removed(playbook: Callable[..., str]) -> str:
    """Removes the helper, which has a sender; returns what Ansible says."""
    return playbook("remove.yml")


def test_the_files_are_gone(machine: Machine) -> None:
    assert machine.run(f"ls -d {' '.join(lab.INSTALLED)} /etc/sysctl.d/*docker* 2>/dev/null || true") == ""


def test_nothing_of_the_sender_is_left(machine: Machine) -> None:
    units = "docker-core-helper-sender.*"
    assert machine.run(f"systemctl list-units --all --plain --no-legend '{units}'") == ""
    assert machine.run(f"systemctl list-unit-files --no-legend '{units}' || true") == ""
    assert machine.run("find /etc/systemd/system -name '*docker-core-helper*'") == ""
    assert machine.run("getent passwd docker-core-helper; getent group docker-core-helper; true") == ""
    assert machine.run("ls /etc/docker_core_helper.* 2>/dev/null || true") == ""


def test_the_kept_core_stays_and_the_removal_says_where(machine: Machine, removed: str) -> None:
    assert f"1 core stays in {CORES}" in " ".join(removed.split())
    assert len(machine.run(f"find {CORES} -name '*.core' -o -name '*.core.zst'").splitlines()) == 1


def test_the_values_of_the_distribution_are_back(machine: Machine, expected: str) -> None:
    assert machine.run(PATTERN) == expected


def test_what_was_taken_over_is_given_back(machine: Machine) -> None:
    assert machine.run(f"cat {HARDENING}") == "kernel.core_pattern = |/bin/false"
    assert machine.run("systemctl is-enabled apport") == "enabled"


@pytest.mark.only_on("trixie")
def test_what_systemd_coredump_was_passed_on_is_what_it_gets_from_the_kernel(
    machine: Machine, passed_on: dict[str, str]
) -> None:
    told = coredumpctl(machine)
    assert passed_on.keys() == told.keys()
    for name in told:
        if not any(part in name for part in OF_ONE_CRASH):
            assert passed_on[name] == told[name], name


def test_the_values_of_the_distribution_are_there_after_a_reboot(machine: Machine, expected: str) -> None:
    machine.run(f"systemctl --quiet disable apport && rm {HARDENING}")
    machine.reboot()
    assert machine.run(PATTERN) == expected
