"""ansible-pull: a host rolls out to itself from a git repository, by the command of the systemd service."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from collection.conftest import Host, run
from support.project import PROJECT
from unit.test_role_rollout import LISTING

EXAMPLE = PROJECT / "examples/ansible-pull"


def pull(repository: Path, clone: Path) -> list[str]:
    """Return the command of the service, for another repository and another directory."""
    service = (EXAMPLE / "docker-core-helper-pull.service").read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", service, re.M)
    values = dict(re.findall(r"^Environment=(\w+)=(.*)$", service, re.M)) | {"REPOSITORY": f"file://{repository}"}
    line = re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], line)
    replaced = line.replace("/var/lib/docker-core-helper-pull/clone", str(clone))
    return shlex.split(replaced.replace("/etc/docker-core-helper-pull.yml", f"{EXAMPLE}/docker-core-helper-pull.yml"))


def test_a_host_pulls_and_rolls_out_to_itself(
    host: Host, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    command = [*pull(repository, tmp_path_factory.mktemp("pull") / "clone"), *host.rollout]
    bare = host.sandbox.run(LISTING)
    assert "+kernel.core_pipe_limit = 512" in host.run(*command, "--check", "--diff")
    assert host.sandbox.run(LISTING) == bare

    host.run(*command)
    assert host.run("/opt/bin/docker_core_helper", "--version").startswith("docker_core_helper ")
    host.run(*command, "-e", "docker_core_helper_state=absent")
    assert host.sandbox.run(LISTING) == bare


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_has_nothing_to_say_about_the_units() -> None:
    said = run("systemd-analyze", "verify", *EXAMPLE.glob("*.service"), *EXAMPLE.glob("*.timer"))
    assert "docker-core-helper-pull" not in said
