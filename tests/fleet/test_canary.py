"""The canary for real: a crash on this machine, with the helper installed in a directory of the test.

Sets the kernel's core pattern and gives it back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
MODULE = "plugins.modules.core_helper_canary"
KERNEL = Path("/proc/sys/kernel")
OUTSIDE = "/opt/bin/canary-of-the-test"


class Host:
    """This machine, its core pattern, and a copy of the helper that may be broken."""

    def __init__(self, directory: Path) -> None:
        """Copy the helper."""
        self.helper = directory / "docker_core_helper"
        shutil.copy(PROJECT / "helper/docker_core_helper", self.helper)
        shutil.copytree(PROJECT / "helper/core_helper", directory / "core_helper")

    def set(self, pattern: str, limit: int = 16) -> None:
        """Set the kernel's values."""
        (KERNEL / "core_pipe_limit").write_text(f"{limit}\n")
        (KERNEL / "core_pattern").write_text(f"{pattern}\n")

    def start_helper(self, delegate: str = OUTSIDE, limit: int = 16) -> None:
        """Let the kernel start the helper."""
        self.set(f"|{self.helper} -F%F -d%d %P %u %g {delegate}", limit)

    def canary(self, timeout: int = 10, **options: object) -> dict[str, Any]:
        """Run the module as Ansible does, in a process of its own, and return its result."""
        arguments = {"ANSIBLE_MODULE_ARGS": {"timeout": timeout, "_ansible_remote_tmp": "/tmp", **options}}
        program = (
            "import json, runpy, sys\n"
            "from ansible.module_utils.testing import patch_module_args\n"
            "arguments = json.loads(sys.argv[2])['ANSIBLE_MODULE_ARGS']\n"
            "with patch_module_args(arguments):\n"
            "    runpy.run_module(sys.argv[1], run_name='__main__')\n"
        )
        said = subprocess.run(
            [sys.executable, "-c", program, MODULE, json.dumps(arguments)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            check=False,
            timeout=60,
        ).stdout
        result: dict[str, Any] = json.loads(said)
        return result


@pytest.fixture
def host() -> Iterator[Host]:
    """Return this machine; all is as it was at the end, and nothing of the canary is left."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    values = {name: (KERNEL / name).read_text() for name in ("core_pattern", "core_pipe_limit")}
    # A short path: a pattern has at most 127 bytes.
    directory = Path(tempfile.mkdtemp(prefix="h."))
    before = left_behind()
    try:
        yield Host(directory)
        assert left_behind() == before
    finally:
        for name, value in values.items():
            (KERNEL / name).write_text(value)
        shutil.rmtree(directory)


def left_behind() -> list[str]:
    """Return what a canary could leave: processes, mounts, files."""
    left = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            if b"core_helper_canary" in words or b"kill -s SEGV" in words or OUTSIDE.encode() in words:
                left.append(f"process {path.parent.name}: {words!r}")
    left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " canary " in line]
    for pattern in ("core*", "canary*", ".host", "opt/bin/canary*", "tmp/core.[0-9]*", "usr/bin/canary*", "nowhere"):
        left += [str(path) for path in Path("/").glob(pattern)]
    return left


@pytest.mark.parametrize(
    "delegate", [OUTSIDE, "/canary-at-the-root", "/usr/bin/canary-beside-sh", "/nowhere/near/here", "/usr/bin/env"]
)
def test_a_core_reaches_a_delegate_at_any_path(host: Host, delegate: str) -> None:
    before = os.stat("/usr/bin/env").st_mtime
    host.start_helper(delegate)
    result = host.canary()
    assert (result.get("outcome"), result.get("delegate"), result.get("changed", False)) == (
        "delivered",
        delegate,
        False,
    ), result
    assert result["size"] > 10000
    assert 0 < result["seconds"] < 10
    assert os.stat("/usr/bin/env").st_mtime == before


def test_without_a_limit_of_the_kernel_it_works_or_says_lost(host: Host) -> None:
    host.start_helper(limit=0)
    # The helper refuses what it cannot verify: the core is lost, and the canary says so in time.
    assert host.canary(timeout=2)["outcome"] in ("delivered", "lost")


@pytest.mark.parametrize(
    "broken",
    ["#!/bin/sh\nexec cat >/dev/null\n", "#!/bin/sh\nexit 1\n", "#!/nowhere/python3\n"],
    ids=["swallows the core", "ends at once", "does not start"],
)
def test_a_broken_helper_loses_the_core(host: Host, broken: str) -> None:
    host.helper.write_text(broken)
    host.start_helper()
    result = host.canary(timeout=3)
    assert result["failed"]
    assert result["outcome"] == "lost", result
    assert f"no core came to {OUTSIDE}" in result["msg"]


def test_a_part_of_the_core_is_not_the_core(host: Host) -> None:
    real = host.helper.with_name("real")
    host.helper.rename(real)
    # The kernel's pipe stays open, so that the process is still there to be verified.
    host.helper.write_text(f'#!/bin/sh\n(head -c 4096; sleep 1; exec cat >/dev/null) | {real} "$@"\n')
    host.helper.chmod(0o755)
    host.start_helper()
    result = host.canary()
    assert result["outcome"] == "lost"
    assert f"4096 bytes came to {OUTSIDE}, but they are not the core of the process" in result["msg"]


def test_a_helper_that_never_ends_is_not_waited_for(host: Host) -> None:
    host.helper.write_text("#!/bin/sh\ntrap '' TERM\nexec sleep 8\n")
    host.start_helper()
    result = host.canary(timeout=1)
    assert result["outcome"] == "lost"
    assert "within 1 seconds" in result["msg"]


@pytest.mark.parametrize("pattern", ["core", "/tmp/core.%p", "|/bin/false", "|/usr/share/apport/apport %p"])
def test_a_pattern_of_somebody_else_loses_the_core_and_leaves_no_file(host: Host, pattern: str) -> None:
    host.set(pattern)
    result = host.canary()
    assert result["outcome"] == "lost"
    assert f"kernel.core_pattern does not start docker_core_helper, so no crash was made: {pattern!r}" in result["msg"]


@pytest.mark.parametrize("delegate", ["relative", "/opt/%e"])
def test_what_cannot_be_set_up_is_told_from_a_lost_core(host: Host, delegate: str) -> None:
    host.start_helper(delegate)
    result = host.canary()
    assert (result["failed"], result["outcome"]) == (True, "setup")
    assert "which says nothing of the helper" in result["msg"]


def test_a_shell_that_does_not_run_is_no_lost_core(host: Host) -> None:
    host.start_helper("/bin/sh")
    assert host.canary(timeout=2)["outcome"] == "setup"


def test_without_a_delegate_there_is_nothing_to_try(host: Host) -> None:
    host.start_helper(delegate="")
    result = host.canary()
    assert (result["outcome"], result["msg"]) == ("skipped", "no delegate is configured, so there is nothing to try")


def test_in_check_mode_nothing_crashes(host: Host) -> None:
    host.set("|/bin/false")
    assert host.canary(_ansible_check_mode=True)["outcome"] == "skipped"
