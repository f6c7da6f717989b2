"""The collection, built from this clone and installed into an empty folder, and a host of its own to run it on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.project import PROJECT, make_repository
from unit.test_role_rollout import Sandbox

BINARIES = Path(sys.executable).parent


def run(*words: str | Path, cwd: str | Path = "/", **variables: str | Path) -> str:
    """Run a program, by default from an unrelated directory, and return what it prints; it must succeed."""
    environment = {
        **os.environ,
        "PATH": f"{BINARIES}:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": "",
        "ANSIBLE_NOCOLOR": "1",
    }
    environment |= {name: str(value) for name, value in variables.items()}
    done = subprocess.run(
        words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Host:
    """A host that is this machine, with its own /etc, /opt and values of the kernel."""

    def __init__(self, directory: Path, environment: dict[str, Path | str]) -> None:
        """Start it."""
        self.sandbox = Sandbox(directory)
        # No crash can be tried where files stand for the kernel's values, and the record of a rollout goes with the host.
        rollout = {"rollout_canaries": [], "rollout_directory": f"{directory}/rollout"}
        self.rollout = ("-e", json.dumps(rollout))
        self.environment = {"PATH": f"{BINARIES}:{os.environ['PATH']}", "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0"}
        self.environment |= {name: str(value) for name, value in environment.items()}

    def run(self, *words: str | Path) -> str:
        """Run a program in an unrelated directory and return what it prints; it must succeed."""
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment.items())
        said = self.sandbox.run(f"cd / && env -u ANSIBLE_CONFIG {variables} {shlex.join(map(str, words))}")
        assert said.endswith("end of command 0\n"), said
        return said

    def play(self, playbook: str | Path, *options: str) -> str:
        """Run a playbook on this host."""
        return self.run("ansible-playbook", "-i", "localhost,", "-c", "local", playbook, *self.rollout, *options)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the archive that a developer builds, with whatever lies around in the clone."""
    directory = tmp_path_factory.mktemp("archive")
    run("ansible-galaxy", "collection", "build", PROJECT, "--output-path", directory, ANSIBLE_HOME=directory)
    (path,) = directory.glob("*.tar.gz")
    return path


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a git repository of this clone's files, with what is not committed yet."""
    directory = tmp_path_factory.mktemp("repository")
    make_repository(directory)
    return directory


def install(source: str | Path, directory: Path) -> Path:
    """Install the collection below an empty directory, and return that."""
    run(
        *("ansible-galaxy", "collection", "install", source, "--collections-path", directory),
        ANSIBLE_COLLECTIONS_PATH=directory,
        ANSIBLE_HOME=directory / "home",
    )
    return directory


@pytest.fixture(scope="session")
def installed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory with the collection from the archive."""
    return install(archive, tmp_path_factory.mktemp("installed"))


@pytest.fixture
def host(tmp_path: Path, installed: Path) -> Iterator[Host]:
    """Return a bare host on which the collection, and no role of this clone, can be found."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for private mounts")
    host = Host(tmp_path, {"ANSIBLE_COLLECTIONS_PATH": installed, "ANSIBLE_HOME": installed / "home"})
    yield host
    host.sandbox.shell.communicate("exit\n")
