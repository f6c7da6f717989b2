"""A host that rolls out to itself: the README of examples/ansible-pull word by word, with a git repository on the machine."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support import lab
from support.machines import Machine
from support.project import PROJECT, make_repository
from support.records import is_whole
from vm.crashes import PATTERN, WAYS, MachineCrash

# Debian 12 has too old an Ansible; one machine is enough.
pytestmark = pytest.mark.only_on("trixie-backports")

EXAMPLE = Path("examples/ansible-pull")
REPOSITORY = "/srv/repository"
# What the README leaves to its reader.
EDIT = f"[Service]\nEnvironment=REPOSITORY=file://{REPOSITORY}\n"
OWN_DELEGATE = "sed -i s/uploader.sh/delegate/ docker-core-helper-pull.yml"
# Nobody here waits for two hours.
SOON = "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/10\nRandomizedDelaySec=0\nAccuracySec=1s\n"
SERVICE, TIMER = "docker-core-helper-pull.service", "docker-core-helper-pull.timer"
CRASHES = "journalctl --sync; journalctl --identifier=docker_core_helper --output=cat --no-pager"
CONFIGURATION = "/etc/docker_core_helper.conf"


@pytest.fixture(scope="module")
def before(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The kernel's settings of the bare machine; leaves the repository there."""
    clone = tmp_path_factory.mktemp("repository")
    make_repository(clone)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as members:
        members.add(clone, ".")
    machine.unpack(archive.getvalue(), REPOSITORY)
    return machine.run(PATTERN)


def test_a_host_that_follows_the_readme_rolls_out_to_itself(
    machine: Machine, before: str, crash: Callable[[str], MachineCrash]
) -> None:
    (block,) = re.findall(r"^```console\n(.*?)^```", (PROJECT / EXAMPLE / "README.md").read_text(), re.M | re.S)
    commands = "\n".join(re.findall("^# (.*)$", block, re.M)).replace("systemctl edit", "systemctl edit --stdin")
    assert not before.startswith("|/opt/bin/docker_core_helper ")
    crashes = machine.run(CRASHES)
    machine.run(f"set -e; cd {REPOSITORY}/{EXAMPLE}; {OWN_DELEGATE}\n{commands}", data=EDIT.encode())
    assert machine.run(CRASHES) == crashes, "each host would let a process crash every hour"
    assert machine.run(PATTERN).startswith("|/opt/bin/docker_core_helper ")
    assert machine.run(f"systemctl is-enabled {TIMER}; systemctl is-active {TIMER}") == "enabled\nactive"
    assert is_whole(crash(WAYS["docker"]).delegate.core.read_bytes())


def test_what_is_pushed_arrives_by_the_timer(machine: Machine) -> None:
    machine.run(f"""
        set -e
        cd {REPOSITORY}
        git checkout --quiet -- {EXAMPLE}
        sed -i 's/^docker_core_helper_timeout: .*/docker_core_helper_timeout: 77/' roles/docker_core_helper/defaults/main.yml
        git -c user.name=test -c user.email=test@localhost commit --quiet --all --message=Shorter
    """)
    assert "TIMEOUT=77" not in machine.run(f"cat {CONFIGURATION}")
    machine.run(f"systemctl edit --stdin {TIMER} && systemctl restart {TIMER}", data=SOON.encode())
    machine.run(f"until grep -q TIMEOUT=77 {CONFIGURATION}; do sleep 1; done", seconds=600)
    # The run that wrote it comes to its end, and no other one begins.
    state = f"systemctl show --property=ActiveState --value {SERVICE}"
    machine.run(f"systemctl stop {TIMER}; while [ $({state}) = activating ]; do sleep 1; done", seconds=600)
    assert machine.run(f"systemctl show --property=Result --value {SERVICE}") == "success"


def test_the_helper_goes_again(machine: Machine, before: str) -> None:
    variable = "      docker_core_helper_state: absent"
    machine.run(f"echo '{variable}' >>/etc/docker-core-helper-pull.yml && systemctl start {SERVICE}")
    assert machine.run(PATTERN) == before
    assert machine.run(f"ls -d {' '.join(lab.INSTALLED)} 2>/dev/null || true") == ""
