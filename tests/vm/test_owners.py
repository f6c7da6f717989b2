"""Others that want the core pattern as well: systemd-coredump, a hardening rule, Apport; and a hand at the keyboard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.machines import Machine
from support.records import is_whole
from vm.crashes import HARDENING, PATTERN, WAYS, MachineCrash, coredumpctl

APPORT = """[Unit]
Description=Sets the core pattern when it starts, like the service of this name
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo "|/bin/false apport" >/proc/sys/kernel/core_pattern'
[Install]
WantedBy=multi-user.target
"""


@pytest.mark.only_on("trixie")
def test_coredumpctl_lists_a_crash_of_the_host_while_that_of_a_container_reaches_its_delegate(
    machine: Machine, crash: Callable[[str], MachineCrash], passed_on: dict[str, str]
) -> None:
    # The upgrade was done with the role's defaults, by which the handler from before keeps the crashes of the host.
    passed_on |= coredumpctl(machine)
    assert "SIGSEGV" in passed_on["coredumpctl"] and " present " in passed_on["coredumpctl"], passed_on
    listed = machine.run("coredumpctl --no-legend --no-pager list | wc -l")
    assert is_whole(crash(WAYS["docker"]).delegate.core.read_bytes())
    assert machine.run("coredumpctl --no-legend --no-pager list | wc -l") == listed


def test_the_fleet_is_verified_by_a_crash(playbook: Callable[..., str]) -> None:
    playbook("verify.yml", "-e", "docker_core_helper_canary=true")


def test_a_pattern_that_was_changed_behind_our_back_is_found(machine: Machine, playbook: Callable[..., str]) -> None:
    before = machine.run(PATTERN)
    machine.run("echo '|/bin/false by hand' >/proc/sys/kernel/core_pattern")
    said = playbook("verify.yml", "-e", "docker_core_helper_canary=true", fails=True)
    assert "drift: kernel.core_pattern is '|/bin/false by hand'" in said
    machine.run("cat >/proc/sys/kernel/core_pattern", data=before.encode())


def test_others_who_would_win_at_the_next_boot_are_named_and_nothing_is_changed(
    machine: Machine, playbook: Callable[..., str]
) -> None:
    before = machine.run(PATTERN)
    machine.run(f"echo 'kernel.core_pattern = |/bin/false' >{HARDENING}")
    machine.run("cat >/etc/systemd/system/apport.service && systemctl --quiet enable apport", data=APPORT.encode())
    said = playbook("site.yml", fails=True)
    assert HARDENING in said and "apport.service" in said
    assert machine.run(PATTERN) == before


def test_they_are_taken_over_if_that_is_wanted(machine: Machine, playbook: Callable[..., str]) -> None:
    before = machine.run(PATTERN)
    playbook("site.yml", "-e", "docker_core_helper_conflicts=take_over")
    # What a boot does; a real one follows in the next module.
    machine.run("systemctl restart systemd-sysctl")
    assert machine.run(PATTERN) == before
    assert machine.run("systemctl is-enabled apport || true") == "disabled"
