"""An upgrade from the version before, on a host on which processes crash all the time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import lab
from support.machines import Machine
from support.records import Record, is_whole
from vm.crashes import ROOT

LOOP = "/srv/loop"
# A container as small as can be, one after the other, each in a directory of its own.
CRASHES = f"""
n=0
while [ ! -e {LOOP}.stop ]; do
    n=$((n + 1))
    mkdir {LOOP}/$n
    RECORD_DIRECTORY={LOOP}/$n unshare --pid --fork --mount-proc {ROOT}/usr/bin/crash
    sleep 2  # Ansible wants the processor, too.
done
"""


@pytest.fixture(scope="module")
def version_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it was before the last change of the helper."""
    git = ["git", "-c", f"safe.directory={lab.PROJECT}", "-C", str(lab.PROJECT)]
    log = lab.command(*git, "log", "--format=%H", "--max-count=50", "--", "helper", check=False, stdout=subprocess.PIPE)
    commits = log.stdout.decode().split()
    for commit in commits:
        if lab.command(*git, "diff", "--quiet", commit, "--", "helper", check=False).returncode != 0:
            directory = tmp_path_factory.mktemp("before")
            archive = subprocess.run([*git, "archive", commit], check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", directory], input=archive, check=True)
            return directory
    pytest.skip("this clone has no version before this one: fetch the history (git fetch --unshallow)")


def wait_for_crashes(machine: Machine, number: int) -> int:
    """Return how many processes have crashed, once there are that many."""
    machine.run(f"until [ $(ls {LOOP} | wc -l) -ge {number} ]; do sleep 0.2; done", seconds=300)
    return int(machine.run(f"ls {LOOP} | wc -l"))


def test_no_core_is_lost_during_an_upgrade(
    machine: Machine, playbook: Callable[..., str], version_before: Path, tmp_path: Path
) -> None:
    entry = "sed -n 's/^LIBRARY = //p' /opt/bin/docker_core_helper"
    playbook("site.yml", project=version_before)
    old = machine.run(entry)
    machine.run(f"mkdir {LOOP} && cat >{LOOP}.sh", data=CRASHES.encode())
    machine.run(f"systemd-run --quiet --unit=crashes --property=RuntimeMaxSec=1800 /bin/sh {LOOP}.sh")
    before = wait_for_crashes(machine, 5)
    playbook("site.yml")
    after = wait_for_crashes(machine, 0)
    wait_for_crashes(machine, after + 5)
    machine.run(f"touch {LOOP}.stop; while systemctl --quiet is-active crashes; do sleep 0.2; done")
    assert machine.run(entry) != old, "it was no upgrade: the same library as before"
    machine.pack(LOOP, tmp_path)
    crashed, delivered = len(list(tmp_path.glob("*/process.1"))), len(list(tmp_path.glob("*/delegate.1")))
    print(f"{crashed} processes crashed, {after - before} of them during the upgrade; {delivered} cores were delivered")
    assert after > before
    assert delivered == crashed
    assert all(is_whole(Record(path).core.read_bytes()) for path in tmp_path.glob("*/delegate.1"))
