"""The cores of a fleet for real: a crash on this machine, whose core the host keeps, and playbooks/collect.yml.

Sets the kernel's core pattern and gives it back. The helper and its configuration are in a directory of the test.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet.conftest import PLAYBOOK, play

PROJECT = Path(__file__).resolve().parents[2]
KERNEL = Path("/proc/sys/kernel")
PART = 8 << 20
# More than two parts, and no zeros.
CRASH = "import os; random = os.urandom(20 << 20); os.abort()"
NOBODY = 65534
# Nobody listens there.
UNREACHABLE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
# This machine may have no sudo. Whoever may enter the directory of the test becomes root by this one.
SUDO = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **words) {
    if (setresgid(0, 0, 0) || setresuid(0, 0, 0) || setenv("BY_SUDO", "1", 1)) return 1;
    for (int i = 1; i < count; i++)
        if (words[i][0] == '/') execv(words[i], words + i);
    return 1;
}
"""
# The shell by which Ansible does all that it does on a host; what sudo starts stays root.
SHELL = f"""#!/bin/sh
[ -n "$BY_SUDO" ] || [ "$(id -u)" != 0 ] && exec /bin/sh "$@"
exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups /bin/sh "$@"
"""


class Host:
    """This machine with a core that it keeps."""

    def __init__(self, directory: Path) -> None:
        """Install the helper, and let a process crash."""
        self.directory = directory
        self.store = directory / "store"
        shutil.copy(PROJECT / "helper/docker_core_helper", directory)
        shutil.copytree(PROJECT / "helper/core_helper", directory / "core_helper")
        module = directory / "core_helper/configuration.py"
        text = module.read_text()
        assert '"/etc/docker_core_helper.conf"' in text
        module.write_text(text.replace('"/etc/docker_core_helper.conf"', f'"{directory}/conf"'))
        keep = {"KEEP": "undelivered", "KEEP_DIRECTORY": self.store, "KEEP_FREE": "1"}
        (directory / "conf").write_text("".join(f"DOCKERCOREHELPER_{key}={value}\n" for key, value in keep.items()))
        (directory / "sudo.c").write_text(SUDO)
        subprocess.run(["gcc", "-Wall", "-Werror", "-o", directory / "sudo", directory / "sudo.c"], check=True)
        (directory / "sudo").chmod(0o4755)
        (directory / "shell").write_text(SHELL)
        (directory / "shell").chmod(0o755)
        os.chown(directory, 0, NOBODY)
        directory.chmod(0o750)

    def crash(self) -> None:
        """Let a process crash, and wait until its core is compressed and has a checksum."""
        helper = self.directory / "docker_core_helper"
        values = {name: (KERNEL / name).read_text() for name in ("core_pattern", "core_pipe_limit")}
        try:
            (KERNEL / "core_pipe_limit").write_text("16\n")
            (KERNEL / "core_pattern").write_text(f"|{helper} -F%F -s%s -t%t -d%d %P %u %g /nowhere/delegate\n")
            crashed = subprocess.Popen(["/usr/bin/python3", "-c", CRASH])
            assert crashed.wait() == -signal.SIGABRT
        finally:
            for name, value in values.items():
                (KERNEL / name).write_text(value)
        end = time.monotonic() + 30
        while not [known for known in self.kept() if f".{crashed.pid}." in known["key"] and "sha256" in known]:
            assert time.monotonic() < end, "no core with a checksum in the store"
            time.sleep(0.1)
        # Others may have let something crash meanwhile.
        others = [known["key"] for known in self.kept() if f".{crashed.pid}." not in known["key"]]
        if others:
            subprocess.run([helper, "cores", "remove", *others], check=True)

    def kept(self) -> list[dict[str, Any]]:
        """Return what the store has."""
        return [json.loads(path.read_text()) for path in self.store.glob("*/[!.]*.json")]


class Controller:
    """The inventory and the directory of the controller."""

    def __init__(self, host: Host, directory: Path) -> None:
        """Make an inventory with this machine."""
        self.host, self.directory = host, directory
        self.hosts: dict[str, dict[str, Any]] = {"shop-1": {"ansible_connection": "local"}}
        (self.known,) = host.kept()
        self.place = directory / "rollout/cores/shop-1"
        self.core = self.place / f"{self.known['key']}.core"
        self.stored = host.store / self.known["group"] / self.known["file"]
        self.part = self.place / f"{self.stored.name}.part"

    def play(self, *options: str, **environment: str) -> tuple[int, str]:
        """Run the playbook, and return the exit code and what it said."""
        reached = {
            "docker_core_helper_bin_dir": str(self.host.directory),
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        (self.directory / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": self.hosts, "vars": reached}}))
        words: list[str | Path] = [PLAYBOOK, "-i", "inventory.yml", *options, PROJECT / "playbooks/collect.yml"]
        code, said = play(words, self.directory, environment, 120)
        print(said)
        return code, said

    def put_part(self, content: bytes) -> None:
        """Have a part of the core here, as after an interrupted run."""
        self.place.mkdir(mode=0o700, parents=True)
        self.part.write_bytes(content)

    def check_core(self) -> None:
        """See that the core is here, and nothing else."""
        content = self.core.read_bytes()
        assert content.startswith(b"\x7fELF") and len(content) == self.known["size"] > 20 << 20
        assert hashlib.sha256(content).hexdigest() == self.known["sha256"]
        assert sorted(self.place.iterdir()) == [self.core, self.core.with_suffix(".json")]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Return this machine; all is as it was at the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    # A short path: a pattern has at most 127 bytes. One where sudo works.
    (base, *_) = [path for path in ("/tmp", "/var/tmp", "/opt") if not os.statvfs(path).f_flag & os.ST_NOSUID]
    directory = Path(tempfile.mkdtemp(prefix="h.", dir=base))
    try:
        found = Host(directory)
        found.crash()
        yield found
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def controller(host: Host, tmp_path: Path) -> Controller:
    """Return a controller that has no core yet."""
    return Controller(host, tmp_path)


def test_the_table_has_the_core_and_a_line_for_each_host_that_cannot_be_asked(controller: Controller) -> None:
    controller.hosts["shop-2"] = {"ansible_connection": "local", "docker_core_helper_bin_dir": "/nowhere"}
    controller.hosts["shop-3"] = UNREACHABLE
    code, said = controller.play()
    assert code != 0
    identity = controller.known["key"].rpartition(".")[2]
    (line,) = [line.split() for line in said.splitlines() if line.startswith(f"shop-1  {identity}  ")]
    assert "SIGABRT" in line and line[-2:] == ["whole", "-"]
    assert "\nshop-2: there is no /nowhere/docker_core_helper" in said
    assert "\nshop-3: unreachable: Failed to connect to the host via ssh" in said
    assert "1 core on 1 of 3 hosts; 2 of 3 hosts could not be asked" in said
    rows = json.loads((controller.directory / "rollout/cores.json").read_text())
    assert [(row["host"], len(row["cores"])) for row in rows] == [("shop-1", 1), ("shop-2", 0), ("shop-3", 0)]
    assert identity in (controller.directory / "rollout/cores.html").read_text()
    assert not controller.place.exists()


def test_an_ordinary_user_with_sudo_brings_the_core_and_check_mode_does_not(controller: Controller) -> None:
    # By its long name the connection is one by which no host is reached as root.
    sudo = str(controller.host.directory / "sudo")
    controller.hosts["shop-1"] = {"ansible_connection": "ansible.builtin.local", "ansible_become_exe": sudo}
    as_user = {
        "ANSIBLE_EXECUTABLE": str(controller.host.directory / "shell"),
        # Ansible itself is root here. It must put no files anywhere, nor think that the host needs no sudo.
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_BECOME_ALLOW_SAME_USER": "1",
    }
    code, said = controller.play("-e", "collect_cores=true", "--check", **as_user)
    assert code == 0 and "1 core on 1 of 1 hosts, 1 would be brought" in said
    assert not controller.place.exists()

    code, said = controller.play("-e", "collect_cores=true", **as_user)
    assert code == 0 and "1 core on 1 of 1 hosts, 1 brought" in said
    controller.check_core()

    # It is an ordinary user indeed.
    code, said = controller.play("-e", "hosts_become=false", **as_user)
    assert code != 0 and "only root may see the cores of this host" in said


def test_an_interrupted_core_goes_on_and_a_damaged_one_is_refused(controller: Controller) -> None:
    begin = controller.stored.read_bytes()[: PART + 4097]
    damaged = bytearray(begin)
    damaged[PART] ^= 0xFF
    controller.put_part(bytes(damaged))
    code, said = controller.play("-e", "collect_cores=true")
    # So it is not brought from the beginning on.
    assert code != 0 and "what had come of it is deleted; run again" in said
    assert list(controller.place.iterdir()) == []

    controller.part.write_bytes(begin)
    code, said = controller.play("-e", "collect_cores=true", "-e", "collect_remove=true")
    assert code == 0 and "1 brought, 1 deleted on their hosts" in said
    controller.check_core()
    assert controller.host.kept() == []
