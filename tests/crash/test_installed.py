"""What the rollout has left on the host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import door

if TYPE_CHECKING:
    from testinfra.host import Host


def pattern_of_the_pipe() -> str:
    """The pattern that the rollout has set, which the socket's may have replaced since."""
    return (door.PIPE if door.BY_SOCKET else Path("/proc/sys/kernel/core_pattern")).read_text().rstrip("\n")


def test_the_kernel_starts_the_helper_with_what_it_knows_of_the_crash(host: Host) -> None:
    expected = "|/opt/bin/docker_core_helper -F%F -I%I -s%s -t%t -d%d -c%c %P %u %g"
    assert pattern_of_the_pipe() == expected
    assert host.sysctl("kernel.core_pipe_limit") == 512


def test_the_next_boot_sets_the_same_values(host: Host) -> None:
    lines = host.file("/etc/sysctl.d/60-docker-core-helper.conf").content_string.splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    settings = {name.strip(): value.strip() for name, value in pairs}
    for name in ("core_pattern", "core_pipe_limit"):
        now = (
            pattern_of_the_pipe()
            if name == "core_pattern"
            else Path(f"/proc/sys/kernel/{name}").read_text().rstrip("\n")
        )
        assert settings[f"kernel.{name}"] == now


@pytest.mark.parametrize(
    "path",
    [
        "/opt/bin/docker_core_helper",
        "/opt/lib/docker_core_helper",
        "/etc/docker_core_helper.conf",
        "/etc/sysctl.d/60-docker-core-helper.conf",
    ],
)
def test_only_root_can_change_what_the_kernel_starts(host: Host, path: str) -> None:
    found = host.run_expect([0], f"find {path} -type f -print -o -type d -print").stdout.split()
    assert found
    for name in found:
        file = host.file(name)
        assert (file.user, file.group, file.mode & 0o022) == ("root", "root", 0), name


def test_the_installed_helper_tells_its_version(host: Host) -> None:
    assert host.check_output("/opt/bin/docker_core_helper --version").startswith("docker_core_helper ")
