"""Crashes in containers of runc on a machine with a 64-bit ARM processor. These run on that machine, as root: see run.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from support.crashes import Crash
from support.project import PROJECT
from support.records import CAPABILITY_SETS, NAMESPACES, is_whole

PROGRAMS = Path("/programs")
LIBRARY = Path("/opt/lib/docker_core_helper")
HELPER, DELEGATE = Path("/opt/bin/docker_core_helper"), "opt/bin/delegate"
BITS = {"wide": 64, "narrow": 32}
# e_machine of a core: EM_AARCH64, EM_ARM; elf(5).
MACHINES = {"wide": 183, "narrow": 40}
# Any filter will do: the helper cannot read it, and the delegate gets the helper's own.
FILTER = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    "syscalls": [{"names": ["kexec_load"], "action": "SCMP_ACT_ERRNO"}],
}
USER = {"uid": 1000, "gid": 1001, "additionalGids": [1002, 1003]}
# The process, its delegate, and whether there is a filter.
CASES = [
    ("wide", "wide", True),
    ("narrow", "narrow", True),
    ("narrow", "narrow", False),
    ("narrow", "wide", True),
]
NAMES = ["64 bits", "32 bits", "32 bits without a filter", "32 bits with a delegate of 64"]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    """Installs the helper as the role does, with the role's pattern."""
    shutil.copytree(PROJECT / "helper/core_helper", LIBRARY / "core_helper")
    HELPER.parent.mkdir()
    text = (PROJECT / "helper/docker_core_helper").read_text()
    HELPER.write_text(re.sub("(?m)^LIBRARY = .*$", f'LIBRARY = "{LIBRARY}"', text))
    HELPER.chmod(0o755)
    Path("/etc/docker_core_helper.conf").write_text(f'DOCKERCOREHELPER_DELEGATE="/{DELEGATE} %P %u %g"\n')
    defaults = (PROJECT / "roles/docker_core_helper/defaults/main.yml").read_text()
    (words,) = re.findall(r'^docker_core_helper_core_pattern: "\|\{\{.*\}\}/docker_core_helper (.*)"$', defaults, re.M)
    Path("/proc/sys/kernel/core_pipe_limit").write_text("512")
    Path("/proc/sys/kernel/core_pattern").write_text(f"|{HELPER} {words}")


@pytest.fixture(scope="module", params=CASES, ids=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[str, str, bool]:
    """Which programs crash and get the core, and whether they have a filter."""
    found: tuple[str, str, bool] = request.param
    return found


class Container(Crash):
    """A crash in a container of runc, with the line about it in the kernel's log."""

    def __init__(self, bundle: Path, process: str, delegate: str, filtered: bool) -> None:
        """Runs the container to its end."""
        root = bundle / "rootfs"
        for directory in ("dev", "opt/bin", "out", "proc", "sys", "tmp", "usr/bin"):
            (root / directory).mkdir(parents=True)
        (root / "out").chmod(0o777)
        shutil.copy(PROGRAMS / process / "crash", root / "usr/bin/crash")
        shutil.copy(PROGRAMS / delegate / "probe", root / DELEGATE)
        subprocess.run(["runc", "spec"], cwd=bundle, check=True)
        configuration = json.loads((bundle / "config.json").read_text())
        configuration["process"] |= {"args": ["crash"], "terminal": False, "user": USER}
        configuration["process"]["env"].append("KEPT=1")
        capabilities = configuration["process"]["capabilities"]
        capabilities["inheritable"] = capabilities["ambient"] = capabilities["permitted"]
        configuration["root"]["readonly"] = False
        if filtered:
            configuration["linux"]["seccomp"] = FILTER
        (bundle / "config.json").write_text(json.dumps(configuration))
        before = len(log())
        words = ["runc", "run", "--bundle", str(bundle), bundle.name]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        # The helper writes its line when the process is gone already.
        deadline = time.monotonic() + 60
        while len(log()) == before and time.monotonic() < deadline:
            time.sleep(0.2)
        super().__init__(root / "out", done.returncode, done.stdout + done.stderr)
        self.log = log()[before:]

    def __repr__(self) -> str:
        """What pytest shows where a test fails."""
        return f"{super().__repr__()}, log {self.log}"


def log() -> list[str]:
    """The lines of the helper: without a socket /dev/log they go to the kernel's log."""
    lines = subprocess.run(["dmesg"], check=True, capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if "docker_core_helper[" in line]


@pytest.fixture(scope="module")
def crashed(case: tuple[str, str, bool], tmp_path_factory: pytest.TempPathFactory) -> Container:
    """One crash in that way, for all tests."""
    bundle = tmp_path_factory.mktemp("bundle")
    # The container's user has to come to its root directory.
    for path in (bundle, *bundle.parents[:2]):
        path.chmod(0o755)
    return Container(bundle, *case)


def test_this_is_the_machine_that_is_meant() -> None:
    assert os.uname().machine == "aarch64"


def test_the_delegate_gets_the_whole_core(case: tuple[str, str, bool], crashed: Container) -> None:
    core = crashed.delegate.core.read_bytes()
    assert crashed.exit_status == 128 + 11
    assert is_whole(core, BITS[case[0]])
    assert core[18] == MACHINES[case[0]]
    (line,) = crashed.log
    assert "signal=11 (SIGSEGV)" in line and f"delivered {len(core)} bytes to /{DELEGATE} in" in line


def test_the_delegate_has_the_privileges_of_the_process(case: tuple[str, str, bool], crashed: Container) -> None:
    process, delegate = crashed.process, crashed.delegate
    for name in ("Uid", "Gid", "Groups", "Seccomp", "Seccomp_filters"):
        assert delegate.status[name].split() == process.status[name].split(), name
    assert process.status["Uid"].split() == ["1000"] * 4 and process.status["Groups"].split() == ["1002", "1003"]
    assert process.status["Seccomp"] == ("2" if case[2] else "0")
    assert delegate.status["NoNewPrivs"] == "1"
    for name in CAPABILITY_SETS:
        # The bounding set shrinks to what is permitted.
        assert delegate.capabilities(name) == process.capabilities("CapPrm") != 0, name
    for namespace in NAMESPACES:
        assert delegate.links[f"ns/{namespace}"] == process.links[f"ns/{namespace}"], namespace
    assert delegate.facts["root_inode"] == process.facts["root_inode"]
    assert delegate.text("cgroup") == process.text("cgroup")


def test_the_delegate_has_the_limits_and_the_variables_of_the_process(crashed: Container) -> None:
    assert crashed.delegate.environment["KEPT"] == "1"
    hard = [
        {name: row[21:42].strip() for name, row in record.limits.items()}
        for record in (crashed.process, crashed.delegate)
    ]
    assert hard[0].pop("Max processes") and hard[1].pop("Max processes")
    assert hard[0] == hard[1]
