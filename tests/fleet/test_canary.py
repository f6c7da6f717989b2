"""The canary for real: a crash on this machine, with the helper installed in a directory of the test.

Sets the kernel's core pattern and gives it back.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import lab

from plugins.module_utils.docker_core_helper import canary_container

PROJECT = Path(__file__).resolve().parents[2]
MODULE = "plugins.modules.core_helper_canary"
KERNEL = Path("/proc/sys/kernel")
OUTSIDE = "/opt/bin/canary-of-the-test"
# What crashes: the last word of its command line, on the host and in a container.
CRASHERS = ("kill -s SEGV $$", canary_container.SCRIPT)


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
        result: dict[str, Any] = json.loads(self.begin(timeout, **options).communicate(timeout=90)[0])
        return result

    def begin(self, timeout: int = 10, **options: object) -> subprocess.Popen[bytes]:
        """Start the module."""
        arguments = {"ANSIBLE_MODULE_ARGS": {"timeout": timeout, "_ansible_remote_tmp": "/tmp", **options}}
        program = (
            "import json, runpy, sys\n"
            "from ansible.module_utils.testing import patch_module_args\n"
            "arguments = json.loads(sys.argv[2])['ANSIBLE_MODULE_ARGS']\n"
            "with patch_module_args(arguments):\n"
            "    runpy.run_module(sys.argv[1], run_name='__main__')\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program, MODULE, json.dumps(arguments)],
            cwd=PROJECT,
            env=lab.environment(),
            stdout=subprocess.PIPE,
        )


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
            words = path.read_bytes().decode(errors="replace").split("\0")
            # Whole words: `make test` plays playbooks for a virtual machine meanwhile, which name the canary, too.
            if not {MODULE, OUTSIDE, *CRASHERS}.isdisjoint(words):
                left.append(f"process {path.parent.name}: {words}")
    left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " canary " in line]
    for pattern in ("core*", "canary*", ".host", "opt/bin/canary*", "tmp/core.[0-9]*", "usr/bin/canary*", "nowhere"):
        left += [str(path) for path in Path("/").glob(pattern)]
    return left


@pytest.mark.parametrize(
    ("word", "is_left"),
    [(MODULE, True), (OUTSIDE, True), (CRASHERS[0], True), ("docker_core_helper_canary=true", False)],
)
def test_what_names_the_canary_is_not_all_its_own(word: str, is_left: bool) -> None:
    process = subprocess.Popen(["/bin/sh", "-c", "echo; read end", word], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        assert any(line.startswith(f"process {process.pid}:") for line in left_behind()) == is_left


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


def test_a_part_of_the_core_is_no_core(host: Host) -> None:
    real = host.helper.with_name("real")
    host.helper.rename(real)
    # The kernel's pipe stays open, so that the process is still there to be verified.
    host.helper.write_text(f'#!/bin/sh\n(head -c 4096; sleep 1; exec cat >/dev/null) | {real} "$@"\n')
    host.helper.chmod(0o755)
    host.start_helper()
    result = host.canary()
    assert result["outcome"] == "lost"
    # The helper has ended the delegate before it could take the part for a core.
    assert f"no core came to {OUTSIDE}" in result["msg"]


def test_a_helper_that_never_ends_is_not_waited_for(host: Host) -> None:
    host.helper.write_text("#!/bin/sh\ntrap '' TERM\nexec sleep 8\n")
    host.start_helper()
    result = host.canary(timeout=1)
    assert result["outcome"] == "lost"
    assert "within 1 seconds" in result["msg"]


@pytest.mark.parametrize(
    "pattern", ["core", "/tmp/core.%p", "|/bin/false", "|/usr/share/apport/apport %p", "@@/run/mine"]
)
def test_with_a_pattern_of_somebody_else_no_crash_is_tried(host: Host, pattern: str) -> None:
    host.set(pattern)
    result = host.canary()
    assert (result["failed"], result["outcome"]) == (True, "skipped")
    says = "the canary was not tried, and no crash was made: kernel.core_pattern does not start docker_core_helper"
    owner = ", Apport" if "apport" in pattern else ", the socket /run/mine" if "@" in pattern else ""
    assert result["msg"] == f"{says}: {pattern!r}{owner}"


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


# The way through the delegate itself, in a container of an image.

IMAGE = "core-lab/canary"
UPLOADER = "/opt/bin/uploader.sh"
NO_NETWORK = ["--network", "none"]


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """Return the name of an image with the uploader. The engine is the lab's, unless one answers already."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    started = not lab.DIRECTORY.exists()
    lab.DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    try:
        lab.start_engine()
        archive = lab.root_archive({UPLOADER.lstrip("/"): PROJECT / "container_scripts/uploader.sh"})
        lab.command("docker", "import", "-", IMAGE, input=archive, stdout=subprocess.DEVNULL)
        yield IMAGE
        lab.command("docker", "rmi", "--force", IMAGE, stdout=subprocess.DEVNULL)
    finally:
        if started:
            lab.stop_engine()
            shutil.rmtree(lab.DIRECTORY)


def containers() -> str:
    """Return the containers of the canary that there are, those that have ended included."""
    return lab.output("docker", "ps", "--all", "--filter=name=docker-core-helper-canary", "--format={{.Names}}")


@pytest.fixture
def cores(image: str, tmp_path: Path) -> Iterator[Path]:
    """Return the destination, a directory; no container is left at the end."""
    yield tmp_path
    assert containers() == ""


def options_for(cores: Path) -> list[str]:
    """Return the words with which the engine makes a container that has the destination."""
    return [*NO_NETWORK, f"--volume={cores}:/cores", "--env=CORE_DESTINATION=/cores", "--hostname=shop-1"]


def test_a_core_takes_the_way_through_the_delegate_to_its_destination(host: Host, image: str, cores: Path) -> None:
    host.start_helper(UPLOADER)
    result = host.canary(image=image, options=options_for(cores), timeout=60)
    assert result.get("outcome") == "delivered", result
    (core,) = cores.glob("*.core*")
    # Node, container, program and thread.
    assert re.fullmatch(r"[^.]+\.docker-core-helper-canary-\w+\.busybox\.sh\..*\.core(\.zst|\.gz)?", core.name), (
        core.name
    )
    assert result["verdict"].startswith(
        f"{UPLOADER} has read all {result['size']} bytes and ended with exit code 0; it said: uploader.sh: "
    )
    assert core.name in result["verdict"]
    if core.suffix == ".core":
        assert core.stat().st_size == result["size"]


def test_a_delegate_that_fails_is_named_with_what_it_said(host: Host, image: str, cores: Path) -> None:
    host.start_helper(UPLOADER)
    result = host.canary(image=image, options=[*options_for(cores), "--env=CORE_DESTINATION=/nowhere"], timeout=60)
    assert (result["failed"], result["outcome"]) == (True, "lost"), result
    assert f"{UPLOADER} has not taken all of it" in result["msg"]
    assert "/nowhere" in result["msg"]
    assert not list(cores.iterdir())


def test_an_image_without_the_delegate_loses_the_core(host: Host, image: str, cores: Path) -> None:
    host.start_helper("/opt/bin/another")
    result = host.canary(image=image, options=options_for(cores), timeout=60)
    assert result["outcome"] == "lost", result
    assert "/opt/bin/another" in result["msg"] and "No such file" in result["msg"]


def test_an_image_that_is_not_there_is_refused_and_not_fetched(host: Host, image: str, cores: Path) -> None:
    host.start_helper(UPLOADER)
    result = host.canary(image="core-lab/mistyped:1", options=NO_NETWORK)
    assert result["outcome"] == "setup"
    assert "the image core-lab/mistyped:1 is not on this host: fetch it there by docker" in result["msg"]


def test_an_ended_module_takes_its_container_along(host: Host, image: str, cores: Path) -> None:
    slow = cores / "slow"
    slow.write_text("#!/bin/sh\ncat >/dev/null\nsleep 30\n")
    slow.chmod(0o755)
    host.start_helper("/opt/bin/slow")
    words = [*NO_NETWORK, f"--volume={slow}:/opt/bin/slow:ro"]
    began = time.monotonic()
    process = host.begin(image=image, options=words, timeout=60)
    while not containers():
        assert time.monotonic() < began + 30
        time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
