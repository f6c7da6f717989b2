"""The server with a real systemd, on a kernel that has the core-dump socket; the next module has the pipe again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.machines import Machine
from support.records import NAMESPACES, is_whole
from vm.crashes import PATTERN, WAYS, CrashLoop, MachineCrash

pytestmark = pytest.mark.only_on("trixie-backports")

SERVICE, SOCKET = "docker-core-helper.service", "docker-core-helper.socket"
RESIDENT = "@@/run/docker_core_helper/core.sock\n512"
LIVE = "cat /proc/sys/kernel/core_pattern"
# What the module before has left is still taken over.
TAKE_OVER = ("-e", "docker_core_helper_conflicts=take_over")
MODE = (*TAKE_OVER, "-e", "docker_core_helper_mode=socket")
# What a service would pass on to a delegate, or to a previous handler.
INHERITED = (
    *(
        "Umask",
        "Groups",
        "SigQ",
        "SigPnd",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
    ),
    *("NoNewPrivs", "Seccomp", "Seccomp_filters", "Cpus_allowed", "Mems_allowed", "THP_enabled"),
)
RESTARTS = 20


@pytest.fixture(scope="module")
def through_pipe(crash: Callable[[str], MachineCrash]) -> dict[str, MachineCrash]:
    """Crashes from before the socket, which all the tests of this module compare with."""
    return {way: crash(WAYS[way]) for way in ("service", "docker")}


@pytest.fixture(scope="module", autouse=True)
def before(machine: Machine, through_pipe: dict[str, MachineCrash], playbook: Callable[..., str]) -> str:
    """Rolls the mode out; returns the kernel's settings from before that."""
    settings = machine.run(PATTERN)
    playbook("site.yml", *MODE)
    return settings


def wait_for_pattern(machine: Machine, pattern: str) -> None:
    """Wait until the kernel has a pattern."""
    machine.run(f"until [ \"$({LIVE})\" = '{pattern}' ]; do sleep 0.2; done", seconds=120)


def test_the_kernel_has_the_socket_and_the_next_boot_the_pipe(machine: Machine, before: str) -> None:
    assert machine.run(PATTERN) == RESIDENT
    assert machine.run(f"systemctl is-active {SERVICE} {SOCKET}").split() == ["active", "active"]
    assert machine.run(f"systemctl is-enabled {SERVICE} {SOCKET}").split() == ["enabled", "enabled"]
    written = machine.run("cat /etc/sysctl.d/*docker-core-helper.conf")
    assert f"kernel.core_pattern = {before.splitlines()[0]}\n" in f"{written}\n"
    library = re.search(r'^LIBRARY = "(.*)"$', machine.run("cat /opt/bin/docker_core_helper"), re.M)
    assert library and library[1] in machine.run(f"systemctl status {SERVICE}")


def test_systemd_knows_every_line_of_the_units(machine: Machine) -> None:
    said = machine.run(f"systemd-analyze verify /etc/systemd/system/{SERVICE} /etc/systemd/system/{SOCKET} 2>&1")
    assert said == ""


def test_a_second_rollout_changes_nothing(playbook: Callable[..., str]) -> None:
    assert " changed=0 " in playbook("site.yml", *MODE)


@pytest.mark.parametrize("way", WAYS)
def test_the_delegate_gets_the_whole_core(crash: Callable[[str], MachineCrash], way: str) -> None:
    crashed = crash(WAYS[way])
    assert is_whole(crashed.delegate.core.read_bytes())
    (line,) = crashed.journal
    assert "signal=11 (SIGSEGV)" in line and "to /opt/bin/delegate in" in line


@pytest.mark.parametrize("way", ["service", "docker"])
def test_a_delegate_is_the_same_through_both_doors(
    crash: Callable[[str], MachineCrash], through_pipe: dict[str, MachineCrash], way: str
) -> None:
    pipe, socket = through_pipe[way].delegate, crash(WAYS[way]).delegate
    for name in INHERITED:
        assert socket.status[name] == pipe.status[name], name
    assert socket.limits == pipe.limits
    different = {"oom_score", "pid", "root_inode"}
    assert {name: value for name, value in socket.facts.items() if name not in different}.keys() == {
        name for name in pipe.facts if name not in different
    }
    for namespace in NAMESPACES:
        same = socket.links[f"ns/{namespace}"] == pipe.links[f"ns/{namespace}"]
        # Each container has its own, and each unit with files of its own.
        assert same or way == "docker" or namespace == "mnt", namespace
    names = {name for name in {**socket.environment, **pipe.environment} if name in socket.environment}
    assert names == set(pipe.environment)


def test_the_fleet_is_verified_by_a_crash_and_the_table_says_by_which_way(playbook: Callable[..., str]) -> None:
    said = playbook("verify.yml", *MODE, "-e", "docker_core_helper_canary=true")
    assert "  as wanted, socket  " in said and "delivered in" in said


def test_while_the_service_is_stopped_the_pipe_takes_crashes(
    machine: Machine, crash: Callable[[str], MachineCrash], playbook: Callable[..., str], before: str
) -> None:
    machine.run(f"systemctl stop {SERVICE}")
    assert machine.run(LIVE) == before.splitlines()[0]
    assert is_whole(crash(WAYS["docker"]).delegate.core.read_bytes())
    said = playbook("verify.yml", *MODE)
    assert "  pipe for now  " in said and "warning: trixie-backports: the server at the core-dump socket" in said
    machine.run(f"systemctl start {SERVICE}")
    assert machine.run(PATTERN) == RESIDENT


def test_a_service_that_is_killed_comes_back(machine: Machine, crash: Callable[[str], MachineCrash]) -> None:
    machine.run(f"systemctl kill --signal=KILL --kill-whom=main {SERVICE}")
    wait_for_pattern(machine, RESIDENT.splitlines()[0])
    assert is_whole(crash(WAYS["podman"]).delegate.core.read_bytes())


def test_no_core_is_lost_while_the_service_is_restarted_again_and_again(machine: Machine, tmp_path: Path) -> None:
    loop = CrashLoop(machine, pause=0.5)
    began = loop.wait_for(3)
    for _time in range(RESTARTS):
        # systemd gives up a unit that starts too often.
        machine.run(f"systemctl reset-failed {SERVICE} {SOCKET}; systemctl restart {SERVICE}", seconds=300)
    ended = loop.wait_for(0)
    assert machine.run(PATTERN) == RESIDENT
    crashed, delivered = loop.end(tmp_path)
    print(f"{crashed} processes crashed, {ended - began} during {RESTARTS} restarts; {len(delivered)} cores arrived")
    assert ended > began
    assert len(delivered) == crashed
    assert all(is_whole(record.core.read_bytes()) for record in delivered)


def test_it_is_there_after_a_reboot_before_what_may_crash(
    machine: Machine, crash: Callable[[str], MachineCrash]
) -> None:
    machine.reboot()
    assert machine.run(PATTERN) == RESIDENT
    before = machine.run(f"systemctl show --property=Before --value {SERVICE}").split()
    assert {"docker.service", "containerd.service", "kubelet.service"} <= set(before)
    assert is_whole(crash(WAYS["docker"]).delegate.core.read_bytes())


def test_what_systemd_says_of_its_exposure_is_what_the_documentation_says(machine: Machine) -> None:
    said = machine.run(f"systemd-analyze security --no-pager {SERVICE} | tail -n 1")
    exposure = re.search(r"[0-9]+\.[0-9]", said)
    assert exposure
    assert f"`{exposure[0]}`" in (Path(__file__).parents[2] / "docs/socket.md").read_text()


def test_rollback_brings_the_pipe_back_and_leaves_no_unit(
    machine: Machine, playbook: Callable[..., str], before: str
) -> None:
    playbook("rollback.yml")
    assert machine.run(PATTERN) == before
    assert machine.run(f"systemctl list-unit-files --no-legend {SERVICE} {SOCKET} || true") == ""
    assert machine.run("ls /run/docker_core_helper/core.sock 2>/dev/null || true") == ""


def test_a_removal_leaves_no_unit(machine: Machine, playbook: Callable[..., str]) -> None:
    playbook("site.yml", *MODE)
    assert machine.run(PATTERN) == RESIDENT
    playbook("remove.yml", *MODE)
    assert machine.run(f"systemctl list-units --all --plain --no-legend {SERVICE} {SOCKET}") == ""
    assert machine.run("find /etc/systemd/system -name 'docker-core-helper*'") == ""
    assert machine.run(LIVE) == "core"
