"""docs/fleet.md, word by word, on three machines at once: `make test-vm VM=fleet`.

The tests run the page's commands in a clone, with an inventory beside it, in the order of the file. The hosts have names of
its examples, and the group that it names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from support import lab, machines
from support.project import PROJECT, make_repository
from support.records import is_whole
from vm.crashes import PATTERN, WAYS, MachineCrash, furnish

MACHINES = {"shop-1": "bookworm", "shop-2": "trixie", "stage-1": "trixie-backports"}
# The first canary is reached as a user who may become root by sudo, with a password only; the others are reached as root.
USER, PASSWORD = "deploy", "a password of this test"
DELEGATE = ["/opt/bin/delegate", "%P", "%u", "%g"]
# Nothing here reaches the address of the published project; tests/collection installs from another git repository.
PUBLISHED = "ansible-galaxy collection install git+https://"


def chapter() -> list[str]:
    """Return the page's commands, without comments."""
    text = (PROJECT / "docs/fleet.md").read_text()
    return [re.sub(r"\s+#.*", "", command) for command in re.findall(r"^\$ (.*)$", text, re.M)]


class Fleet:
    """The machines, and the clone on this machine from which they are reached."""

    def __init__(self, directory: Path, clone: Path) -> None:
        """Start the machines."""
        self.directory, self.clone = directory, clone
        # All at once: a machine that boots leaves a processor idle.
        with ThreadPoolExecutor() as pool:
            started = pool.map(machines.start, MACHINES.values(), (directory / host for host in MACHINES))
            self.hosts = dict(zip(MACHINES, started, strict=True))
        # Commands of the chapter that nobody has run yet.
        self.left = [command for command in chapter() if not command.startswith(PUBLISHED)]
        # Not by the distribution's own method, which takes an emulated machine a second for each task.
        self.hosts["shop-1"].run(f"""
            set -e
            useradd --create-home --shell /bin/sh --groups sudo {USER}
            echo '{USER}:{PASSWORD}' | chpasswd --crypt-method SHA512
        """)
        make_repository(clone)
        (clone / "inventory").write_text(yaml.safe_dump(self.inventory()))

    def inventory(self) -> dict[str, object]:
        """Return an inventory as users have it: how the hosts are reached, groups, and the role's variables for all."""
        reached: dict[str, dict[str, object]] = {
            host: {
                "ansible_host": "127.0.0.1",
                "ansible_port": machine.port,
                "ansible_ssh_private_key_file": str(machine.key),
            }
            for host, machine in self.hosts.items()
        }
        reached["shop-1"] |= {"ansible_user": USER, "ansible_become_password": PASSWORD}
        variables = {
            "ansible_user": "root",
            "ansible_ssh_common_args": "-F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            # Of systemd-coredump on one of them is known from tests/vm/test_owners.py.
            "docker_core_helper_chain": "none",
            "docker_core_helper_delegate": DELEGATE,
        }
        groups = {"staging": {"hosts": {"stage-1": None}}}
        return {"all": {"hosts": reached, "children": groups, "vars": variables}}

    def run(self, command: str, *, fails: bool = False) -> str:
        """Run a command in the clone, as a user does; returns what it says."""
        home = self.directory / "home"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        result = subprocess.run(
            command, shell=True, cwd=self.clone,
            # On a busy computer an emulated machine takes more than Ansible's ten seconds to answer.
            env={
                **environment, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", "ANSIBLE_TIMEOUT": "120",
                "HOME": str(home),
            },
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        print(f"$ {command}\n{result.stdout}")
        assert (result.returncode != 0) == fails, f"exit status {result.returncode}"
        return result.stdout

    def follow(self, *words: str) -> str:
        """Run the first command of the chapter that was not run yet and has all these words; it must succeed."""
        command = next(command for command in self.left if all(word in command.split() for word in words))
        self.left.remove(command)
        return self.run(command)

    def patterns(self) -> dict[str, str]:
        """Return the kernel's pattern and limit of each host."""
        return {host: machine.run(PATTERN) for host, machine in self.hosts.items()}

    def have_the_helper(self) -> list[str]:
        """Return the hosts that have any of its files."""
        listing = f"ls -d {' '.join(lab.INSTALLED)} 2>/dev/null || true"
        return [host for host, machine in self.hosts.items() if machine.run(listing)]

    def rows(self) -> dict[str, dict[str, object]]:
        """Return the rows of the last table."""
        return {row["host"]: row for row in json.loads((self.clone / "rollout/verify.json").read_text())}


def hosts_of(said: str, play: str) -> set[str]:
    """Return the hosts on which a play has run a task, in all its batches."""
    batches = re.findall(rf"^PLAY \[{re.escape(play)}\].*?(?=^PLAY )", said, re.M | re.S)
    return set(re.findall(r"^(?:ok|changed): \[([^\]]*)\]", "".join(batches), re.M))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The fleet, which is bare."""
    directory = Path(os.environ["FLEET_DIRECTORY"])
    try:
        found = Fleet(directory, tmp_path_factory.mktemp("clone"))
        programs = [tmp_path_factory.mktemp("programs") for _ in MACHINES]
        with ThreadPoolExecutor() as pool:
            list(pool.map(furnish, found.hosts.values(), programs))
        yield found
    finally:
        for host in MACHINES:
            machines.stop(directory / host)


@pytest.fixture(scope="module")
def bare(fleet: Fleet) -> dict[str, str]:
    """The kernel's pattern and limit of each host from before."""
    return fleet.patterns()


def test_the_dry_run_shows_every_line_and_writes_none(fleet: Fleet, bare: dict[str, str]) -> None:
    said = fleet.follow("playbooks/site.yml", "--check", "--diff")
    # Live, and for the next boot.
    assert said.count("+kernel.core_pipe_limit = 512") == 2 * len(MACHINES)
    assert (fleet.patterns(), fleet.have_the_helper()) == (bare, [])


def test_without_the_password_of_sudo_the_rollout_ends_at_the_first_host_and_changes_nothing(
    fleet: Fleet, bare: dict[str, str]
) -> None:
    without = re.sub(r".*ansible_become_password.*\n", "", (fleet.clone / "inventory").read_text())
    (fleet.clone / "without").write_text(without)
    said = fleet.run("ansible-playbook -i without playbooks/site.yml", fails=True)
    assert re.search(r"^fatal: \[shop-1\]: FAILED! => .*Missing sudo password", said, re.M)
    assert hosts_of(said, "Roll docker_core_helper out to the others") == set()
    assert (fleet.patterns(), fleet.have_the_helper()) == (bare, [])
    assert not (fleet.clone / "rollout").exists()


def test_the_rollout_reaches_one_host_first_and_then_the_others(fleet: Fleet, tmp_path: Path) -> None:
    said = fleet.follow("playbooks/site.yml")
    assert hosts_of(said, "Roll docker_core_helper out to the canaries") == {"shop-1"}
    assert hosts_of(said, "Roll docker_core_helper out to the others") == {"shop-2", "stage-1"}
    assert all(pattern.startswith("|/opt/bin/docker_core_helper ") for pattern in fleet.patterns().values())
    for host, machine in fleet.hosts.items():
        (tmp_path / host).mkdir()
        assert is_whole(MachineCrash(machine, WAYS["docker"], tmp_path / host).delegate.core.read_bytes()), host


def test_every_host_is_a_row_of_the_table(fleet: Fleet) -> None:
    said = fleet.follow("playbooks/verify.yml", "docker_core_helper_canary=true")
    assert f"{len(MACHINES)} of {len(MACHINES)} hosts are as they should be" in said
    rows = fleet.rows()
    assert list(rows) == list(MACHINES)
    for host, machine in fleet.hosts.items():
        assert rows[host]["kernel"] == machine.run("uname -r")
        assert (rows[host]["pattern"], rows[host]["next_boot"]) == ("as wanted", "as wanted")
        assert str(rows[host]["canary"]).startswith("delivered in ")


def test_the_cores_that_hosts_keep_come_here(fleet: Fleet, tmp_path: Path) -> None:
    """Also from the host that is reached as a user with sudo and its password."""
    keep = "echo DOCKERCOREHELPER_KEEP=always >>/etc/docker_core_helper.conf"
    for host in ("shop-1", "shop-2"):
        machine = fleet.hosts[host]
        machine.run(f"cp -p /etc/docker_core_helper.conf /root/conf && {keep}")
        (tmp_path / host).mkdir()
        crash = MachineCrash(machine, WAYS["docker"], tmp_path / host)
        noted = "grep -qs sha256 /var/lib/docker_core_helper/cores/*/*.json"
        machine.run(f"for i in $(seq 300); do {noted} && exit; sleep 0.2; done; exit 1")
        machine.run("mv /root/conf /etc/docker_core_helper.conf")
        delivered = crash.delegate.core.read_bytes()
        (tmp_path / f"{host}.core").write_bytes(delivered)
    said = fleet.follow("playbooks/collect.yml", "collect_cores=true")
    assert "2 cores on 2 of 3 hosts, 2 brought" in said
    for host in ("shop-1", "shop-2"):
        (core,) = (fleet.clone / "rollout/cores" / host).glob("*.core")
        assert core.read_bytes() == (tmp_path / f"{host}.core").read_bytes()
        assert core.stat().st_mode & 0o777 == 0o600
    said = fleet.run("ansible-playbook -i inventory playbooks/collect.yml -e collect_cores=true -e collect_remove=true")
    assert "2 cores on 2 of 3 hosts, 2 there before, 2 deleted on their hosts" in said
    assert "0 cores on 0 of 3 hosts" in fleet.run("ansible-playbook -i inventory playbooks/collect.yml")


def test_each_host_is_brought_back_to_how_it_was(fleet: Fleet, bare: dict[str, str]) -> None:
    fleet.follow("playbooks/rollback.yml")
    assert (fleet.patterns(), fleet.have_the_helper()) == (bare, [])


def test_the_canaries_are_hosts_and_groups_by_name(fleet: Fleet) -> None:
    said = fleet.follow("playbooks/site.yml", "-e")
    assert hosts_of(said, "Roll docker_core_helper out to the canaries") == {"shop-1", "stage-1"}
    assert hosts_of(said, "Roll docker_core_helper out to the others") == {"shop-2"}
    assert fleet.have_the_helper() == list(MACHINES)


def test_the_collection_rolls_the_same_out(fleet: Fleet) -> None:
    fleet.run("ansible-galaxy collection build")
    fleet.follow("ansible-galaxy", "install")
    said = fleet.follow("dockercore.helper.site", "--check", "--diff")
    assert re.findall(r"changed=(\d+)", said) == ["0"] * len(MACHINES)


def test_the_table_says_who_has_drifted_and_who_is_dead(fleet: Fleet) -> None:
    fleet.hosts["shop-2"].run("echo core >/proc/sys/kernel/core_pattern")
    machines.stop(fleet.hosts.pop("stage-1").directory)
    said = fleet.run("ansible-playbook -i inventory playbooks/verify.yml -e docker_core_helper_canary=true", fails=True)
    assert "1 of 3 hosts are as they should be" in said
    rows = fleet.rows()
    assert rows["shop-1"]["ok"]
    shown = [rows["shop-2"][column] for column in ("pattern", "next_boot", "canary")]
    assert shown == ["core", "as wanted", "not tried"]
    assert "drift: kernel.core_pattern is 'core'" in str(rows["shop-2"]["problems"])
    assert "unreachable: Failed to connect to the host via ssh" in str(rows["stage-1"]["problems"])


def test_a_dead_host_stops_the_rollout_before_anything_of_its_batch_is_changed(fleet: Fleet) -> None:
    said = fleet.run("""ansible-playbook -i inventory playbooks/site.yml -e '{"rollout_batches": [2]}'""", fails=True)
    assert "before anything of this batch was changed: stage-1: failed or unreachable" in said
    assert fleet.patterns()["shop-2"].startswith("core\n")


def test_the_same_command_carries_on_without_it(fleet: Fleet) -> None:
    fleet.run("ansible-playbook -i inventory playbooks/site.yml --limit 'all:!stage-1'")
    assert fleet.patterns()["shop-2"].startswith("|/opt/bin/docker_core_helper ")


def test_the_removal_leaves_nothing_and_names_whom_it_did_not_reach(fleet: Fleet, bare: dict[str, str]) -> None:
    (command,) = fleet.left
    assert "UNREACHABLE" in fleet.run(command, fails=True)
    assert (fleet.patterns(), fleet.have_the_helper()) == ({host: bare[host] for host in fleet.hosts}, [])
