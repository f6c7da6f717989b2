"""A fleet of 12 simulated hosts, and the real playbooks for them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tables import Row, pytest_terminal_summary, row  # noqa: F401 (pytest finds them here)

PROJECT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
MODULES = [path.stem for path in (PROJECT / "plugins/modules").glob("*.py")]
HOSTS = [f"web{number:02}" for number in range(1, 13)]
# Nobody listens there.
UNREACHABLE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
# The canary, then batches of 2, 4 and the rest.
BATCHES = [2, 4, "100%"]
CANARY, FIRST, SECOND, REST = HOSTS[:1], HOSTS[1:3], HOSTS[3:7], HOSTS[7:]


def play(words: list[str | Path], directory: Path, environment: dict[str, str], seconds: float) -> tuple[int, str]:
    """Run a playbook in a directory, and return the exit code and what it said."""
    result = subprocess.run(
        words,
        cwd=directory,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(directory / "home"), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    return result.returncode, result.stdout


class Fleet:
    """The inventory, the record of the controller, and a directory for each host."""

    def __init__(self, directory: Path, show: Callable[..., None]) -> None:
        """Make a fleet that nobody has touched, and the role with the stand-in for its modules.

        ``show`` gets a number and the hosts, whenever somebody asks which hosts were touched.
        """
        self.show = show
        self.runs = 0
        self.directory = directory
        self.variables: dict[str, dict[str, Any]] = {host: {} for host in HOSTS}
        self.record = directory / "rollout"
        self.role = directory / "roles/docker_core_helper"
        for host in HOSTS:
            (directory / "hosts" / host).mkdir(parents=True)
        for role in ("docker_core_helper", "core_uploader"):
            shutil.copytree(PROJECT / "roles" / role, self.role.with_name(role))
        (self.role / "action_plugins").mkdir(exist_ok=True)
        for module in MODULES:
            shutil.copy(Path(__file__).with_name("stand_in.py"), self.role / f"action_plugins/{module}.py")

    def play(self, playbook: str, *options: str, version: str = "2", **environment: str) -> tuple[int, str]:
        """Run a playbook and return the exit code and what it said."""
        # Beside the playbooks is the real role. If it were taken in place of that with the stand-in, its modules would roll out
        # to this machine: without a Python for them they cannot.
        reached = {"ansible_connection": "local", "ansible_python_interpreter": "/nowhere/python3"}
        inventory = {"all": {"hosts": self.variables, "vars": reached}}
        (self.directory / "inventory.yml").write_text(yaml.safe_dump(inventory))
        variables = {
            "fleet": str(self.directory),
            "fleet_version": version,
            "rollout_batches": BATCHES,
            "rollout_directory": str(self.record),
            "verify_json": str(self.record / "verify.json"),
            "verify_html": str(self.record / "verify.html"),
        }
        words: list[str | Path] = [
            PLAYBOOK,
            "-i",
            self.directory / "inventory.yml",
            "-e",
            json.dumps(variables),
            *options,
        ]
        settings = {
            "ANSIBLE_ROLES_PATH": str(self.role.parent),
            "ANSIBLE_INJECT_FACT_VARS": "false",
            "ANSIBLE_FORKS": "5",
            **environment,
        }
        return play([*words, PROJECT / "playbooks" / playbook], self.directory, settings, 300)

    def touched(self) -> list[str]:
        """Return which hosts were touched since the last call, in that order, and have the table at the end show them."""
        path = self.directory / "touched"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        hosts = list(dict.fromkeys(line.split()[0] for line in lines))
        self.runs += 1
        self.show(str(self.runs), f"{len(hosts)} of {len(HOSTS)}{': ' if hosts else ''}{' '.join(hosts)}")
        return hosts

    def versions(self) -> dict[str, str]:
        """Return the version on each host that has one."""
        found = {path.parent.name: path.read_text() for path in sorted(self.directory.glob("hosts/*/version"))}
        return {host: version for host, version in found.items() if version}

    def put(self, hosts: list[str], version: str) -> None:
        """Give hosts a version, as an earlier rollout has."""
        for host in hosts:
            (self.directory / "hosts" / host / "version").write_text(version)


@pytest.fixture
def fleet(tmp_path: Path, row: Row, request: pytest.FixtureRequest) -> Fleet:  # noqa: F811 (that is how pytest finds it)
    """Return a fleet that nobody has touched."""
    return Fleet(tmp_path, functools.partial(row, "touched", request.node.name))
