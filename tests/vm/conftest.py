"""Fixtures for tests on a virtual machine, which molecule has started, and to which it has rolled the helper out.

Boots are dear, so one run goes through a host's whole life: the modules run in the order of ``ORDER``, and the tests of each
in that of the file.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import lab
from support.machines import Machine
from vm.crashes import MachineCrash, furnish

# Each module finds the host as the one before it has left it.
ORDER = (
    "test_crashes.py",
    "test_python.py",
    "test_upgrade.py",
    "test_owners.py",
    "test_reboot.py",
    "test_socket.py",
    "test_sender.py",
    "test_removal.py",
    "test_pull.py",
)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The machine, with what crashes on it and the delegates."""
    ephemeral = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
    found = Machine(Path(os.environ.get("VM_DIRECTORY") or ephemeral / "machine"))
    furnish(found, tmp_path_factory.mktemp("programs"))
    return found


@pytest.fixture(scope="session")
def crash(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], MachineCrash]:
    """Crashes a process on the machine in one of the ways of ``crashes.py``."""
    return lambda way: MachineCrash(machine, way, tmp_path_factory.mktemp("crash"))


@pytest.fixture(scope="session")
def playbook(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a playbook of the project, or of another version of it, on the machine; returns what it says."""
    # Here it writes its record of the rollout, and its tables of the fleet.
    directory = tmp_path_factory.mktemp("rollout")

    def run(name: str, *options: str, project: Path = lab.PROJECT, fails: bool = False) -> str:
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(project / "ansible.cfg"),
            "ANSIBLE_PIPELINING": "true",
            # On a busy computer an emulated machine takes more than Ansible's ten seconds to answer.
            "ANSIBLE_TIMEOUT": "120",
            # An emulated machine takes seconds for a new connection, and a test may be longer than Ansible's minute.
            "ANSIBLE_SSH_ARGS": "-C -o ControlMaster=auto -o ControlPersist=600s",
            # A connection that stayed open would not notice at once that the machine has booted.
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(machine.directory / f"ansible-{machine.boots}"),
        }
        inventory = os.environ["MOLECULE_INVENTORY_FILE"]
        words = ["ansible-playbook", "-i", inventory, *options, str(project / "playbooks" / name)]
        result = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, check=False)
        said = str(result.stdout + result.stderr)
        assert (result.returncode != 0) == fails, said[-6000:]
        return said

    return run


@pytest.fixture(scope="session")
def passed_on() -> dict[str, str]:
    """What systemd-coredump says of a crash of the host that was passed on to it: for a later test to compare with."""
    return {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the modules into their order, and leaves a test out that says on which machines it has a meaning."""
    modules = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    wrong = [f"does not name {name}" for name in sorted(modules.difference(ORDER))]
    wrong += [f"names {name}, which does not exist" for name in ORDER if name not in modules]
    if wrong:
        raise pytest.UsageError(f"ORDER in {__file__} {' and '.join(wrong)}")
    items.sort(key=lambda item: ORDER.index(item.path.name) if item.path.name in ORDER else -1)
    name = os.environ.get("VM_MACHINE", "trixie")
    for item in items:
        if (only := item.get_closest_marker("only_on")) and name not in only.args:
            item.add_marker(pytest.mark.skip(reason=f"only on {', '.join(only.args)}"))
