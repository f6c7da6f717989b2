"""Hosts that are set up in an odd way: helper and uploader of different versions, a wrong pattern, a wrong limit."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.keeping import content_of
from hostile.observe import delegates_of, wait_until
from support import door, lab
from support.containers import Container, MakeCrash
from support.hosts import HELPER
from support.leases import lease_on
from support.records import is_whole

# Uploader and helper come to a host in different ways, so one of them may be older.
RELEASED = "da06cd6"  # Version 1.0.0.
CONFIGURATION = "/etc/docker_core_helper.conf"


@pytest.fixture
def released() -> Iterator[Path]:
    """Version 1.0.0 of helper and uploader, in a directory."""
    git = ["git", "-c", f"safe.directory={lab.PROJECT}", "-C", str(lab.PROJECT)]
    archive = subprocess.run([*git, "archive", RELEASED, "helper", "container_scripts"], capture_output=True)
    if archive.returncode:
        pytest.skip("this clone has no version 1.0.0: fetch the history (git fetch --unshallow)")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
        yield Path(directory)


def uploaded(container: Container) -> Path:
    """The core that the uploader has put into /out of the container."""
    assert ": delivered " in container.log(": delivered "), container.log("pid=")
    (core,) = container.records.rglob("*.core*")
    assert is_whole(content_of(core))
    return core


def test_the_uploader_of_version_1_0_0_under_this_helper(attack: MakeCrash, released: Path) -> None:
    uploader = f"--volume={released}/container_scripts/uploader.sh:/opt/bin/delegate:ro"
    container = attack("memory=4", options=(uploader, "--env=CORE_DESTINATION=/out"))
    assert re.search(r"crasher\.\d+\.0\.0\.\d+\.core", uploaded(container).name)


def test_this_uploader_under_the_helper_of_version_1_0_0(
    attack: MakeCrash, released: Path, kernel: Callable[[str, str], None]
) -> None:
    kernel("kernel/core_pattern", f"|{released}/helper/docker_core_helper %P %u %g /opt/bin/delegate")
    uploader = f"--volume={lab.PROJECT}/container_scripts/uploader.sh:/opt/bin/delegate:ro"
    container = attack("memory=4", options=(uploader, "--env=CORE_DESTINATION=/out"))
    # The name that it makes itself.
    assert re.search(r"\.crasher\.\d+\.0\.0\.\d+\.core", uploaded(container).name)


# Whatever is wrong with the pattern or the limit, a line names it.


def test_a_pattern_with_the_pid_of_the_container_is_named(
    attack: MakeCrash, kernel: Callable[[str, str], None], refusal: Callable[[str], str]
) -> None:
    kernel("kernel/core_pattern", f"|{HELPER} %p %u %g /opt/bin/delegate")
    attack("tiny")
    line = refusal("must hold %P in place of %p")
    # That is a process of the host's, which did not crash.
    assert "core not delivered, 0 bytes: process 1 is " in line
    assert "truncated" not in line


def test_without_a_limit_what_is_still_there_is_delivered_with_a_warning(
    attack: MakeCrash, kernel: Callable[[str, str], None], refusal: Callable[[str], str]
) -> None:
    kernel("kernel/core_pipe_limit", "0")
    # Large enough that the kernel is still writing when the helper looks.
    container = attack("keep=5", "memory=64")
    assert ": delivered " in container.log("delivered")
    text = "kernel.core_pipe_limit is 0, so the kernel does not keep a process until its core is read"
    if door.BY_SOCKET:  # There the kernel keeps it as long as the connection is open.
        assert text not in container.log("delivered")
    else:
        refusal(text)


@pytest.mark.skipif(door.BY_SOCKET, reason="the kernel's limit is for helpers that it starts: here the crash waits")
def test_attack_13_a_crash_beyond_the_limit_of_the_kernel_leaves_a_line_of_the_kernel(
    siege: MakeCrash, kernel: Callable[[str, str], None]
) -> None:
    before = lab.output("dmesg").splitlines()
    kernel("kernel/core_pipe_limit", "1")
    first = siege("keep=60", "tiny", options=("--env=ATTACK=never-ends", "--detach"))
    wait_until(lambda: delegates_of(first), "no delegate")
    second = siege("tiny")
    assert second.of("delegate") == []

    def told() -> bool:
        new = set(lab.output("dmesg").splitlines()) - set(before)
        return any("over core_pipe_limit" in line for line in new)

    wait_until(told, "the kernel has not told")


# A container that may read root's files of the host can have a lease on one.


@pytest.fixture
def lease() -> Iterator[None]:
    """A process has a lease on the configuration, and does not give it up before the kernel takes it, after three seconds."""
    time_of_kernel = Path("/proc/sys/fs/lease-break-time")
    before = time_of_kernel.read_text()
    time_of_kernel.write_text("3")
    os.utime(CONFIGURATION)  # A server reads again what has changed.
    try:
        with lease_on(CONFIGURATION):
            yield
    finally:
        time_of_kernel.write_text(before)


def test_attack_22_a_lease_on_the_configuration_takes_no_core(attack: MakeCrash, lease: None) -> None:
    for _crash in range(2):
        container = attack("tiny")
        assert ": delivered " in container.log("pid=")
