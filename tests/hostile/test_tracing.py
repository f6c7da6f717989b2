"""What a container sees of our processes, by tracing them or in /proc: nothing of the host, and no more rights than its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.observe import wait_until
from hostile.options import CAP_SYS_PTRACE, DEFAULT_CAPABILITIES, TRACER
from support import lab
from support.containers import Container, MakeCrash
from support.hosts import HELPER

Kernel = Callable[[str, str], None]


def looked(container: Container) -> dict[str, int]:
    """How often the watcher saw a process of ours, from its output."""
    return {name: int(count) for name, count in re.findall(r"^(hidden|seen) (\d+)$", container.output, re.M)}


@pytest.mark.parametrize(
    ("user", "suid_dumpable"),
    [("user", "0"), ("user", "1"), ("user", "2"), pytest.param("fork=1", "0", id="root of the container")],
)
def test_attack_02_looking_at_the_process_between_fork_and_exec(
    attack: MakeCrash, kernel: Kernel, user: str, suid_dumpable: str
) -> None:
    kernel("fs/suid_dumpable", suid_dumpable)
    container = attack(user, "watch=2")
    assert looked(container)["hidden"] > 0, "the watcher was never there in time: nothing was shown"
    assert re.findall(r"^(?:GOT|EXE) .*", container.output, re.M) == []


def test_attack_02_cap_sys_ptrace_finds_no_directory_of_the_host(attack: MakeCrash) -> None:
    container = attack("watch=2", options=("--cap-add=SYS_PTRACE",))
    assert looked(container)["seen"] > 0, "the watcher was never there in time: nothing was shown"
    # No directory, no file of a control group, no device such as /dev/null, whose mode is that of the whole host.
    assert "GOT" not in container.output


@pytest.mark.parametrize("options", ["-F%F -I%I -s%s -t%t -d%d -c%c ", ""])
def test_attack_03_a_leaked_descriptor_of_the_host(attack: MakeCrash, kernel: Kernel, options: str) -> None:
    kernel("kernel/core_pattern", f"|{HELPER} {options}%P %u %g")
    container = attack()
    container.log("delivered")
    assert container.delegate.facts["descriptors"].split() == ["0", "1", "2"]
    assert container.delegate.links["cwd"] == "/"


def test_attack_21_cap_sys_ptrace_never_finds_the_device_rules_of_the_host(attack: MakeCrash) -> None:
    if not any("devices" in line for line in Path("/proc/self/cgroup").read_text().splitlines()):
        pytest.skip("this host has no devices hierarchy of version 1")
    container = attack("catch=5", options=TRACER)
    assert "caught 0\n" not in container.output, "no process was caught: nothing was shown"
    assert "GOT" not in container.output


@pytest.mark.parametrize("rights", [f"unbound={CAP_SYS_PTRACE}", f"bound-leader={DEFAULT_CAPABILITIES}"])
def test_attack_21_cap_sys_ptrace_never_finds_a_process_outside_of_the_limit_of_processes(
    attack: MakeCrash, rights: str
) -> None:
    if ":pids:" not in Path("/proc/self/cgroup").read_text():
        pytest.skip("this host has no pids hierarchy of version 1")
    container = attack(rights, "wait=/out/go", "catch-pids=5", options=(*TRACER, "--detach"))
    threads = 2 if "leader" in rights else 1
    lab.output("docker", "update", f"--pids-limit={threads + 1}", container.name)
    (container.records / "go").touch()
    wait_until(lambda: "caught " in lab.output("docker", "logs", container.name), "nothing was tried", 60)
    assert "GOT" not in lab.output("docker", "logs", container.name)
    # Without the limit there would have been a core.
    assert "Resource temporarily unavailable" in container.log("Resource temporarily unavailable")
