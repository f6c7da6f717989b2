"""An upgrade from the version before, on a host on which processes crash all the time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import lab
from support.machines import Machine
from support.records import is_whole
from vm.crashes import CrashLoop


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


def test_no_core_is_lost_during_an_upgrade(
    machine: Machine, playbook: Callable[..., str], version_before: Path, tmp_path: Path
) -> None:
    entry = "sed -n 's/^LIBRARY = //p' /opt/bin/docker_core_helper"
    playbook("site.yml", project=version_before)
    old = machine.run(entry)
    loop = CrashLoop(machine, pause=2)
    before = loop.wait_for(5)
    playbook("site.yml")
    after = loop.wait_for(0)
    loop.wait_for(after + 5)
    crashed, delivered = loop.end(tmp_path)
    assert machine.run(entry) != old, "it was no upgrade: the same library as before"
    print(f"{crashed} processes crashed, {after - before} of them during the upgrade; {len(delivered)} cores arrived")
    assert after > before
    assert len(delivered) == crashed
    assert all(is_whole(record.core.read_bytes()) for record in delivered)
