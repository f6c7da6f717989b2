"""The sender with a real systemd: its timer, its service in a sandbox, its user. The next module removes it with the helper."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.machines import Machine
from support.records import is_whole
from vm.crashes import CORES, WAYS, MachineCrash

SERVICE, TIMER = "docker-core-helper-sender.service", "docker-core-helper-sender.timer"
USER = "docker-core-helper"
SECRET = 'a "cormorant" of $this test'
# Writes down what it is, and what it may do, beside the core.
PROGRAM = """#!/bin/sh
set -e
cat >"$1/core.part"
{
    grep -E '^(Uid|Gid|Groups|NoNewPrivs|CapPrm|CapBnd):' /proc/self/status
    echo "user $(id -un)"
    echo "credential $CREDENTIAL"
    echo "key $CORE_KEY"
    if touch /srv/outside; then echo writes outside; fi
    if ls /root; then echo sees the home of root; fi
    if cat /etc/docker_core_helper.credentials; then echo reads the credentials; fi
    if ls /var/lib/docker_core_helper/cores; then echo reads the kept cores; fi
} >"$1/record" 2>/dev/null
mv "$1/core.part" "$1/core"
"""
VARIABLES = {
    "docker_core_helper_keep": "undelivered",
    # No image has it: so the host keeps the core of each container.
    "docker_core_helper_delegate": ["/opt/bin/no-delegate"],
    "docker_core_helper_sender": ["/srv/sender/send", "/srv/sent"],
    "docker_core_helper_sender_environment": {"CREDENTIAL": SECRET},
}
# What the module before has left is still taken over.
TAKE_OVER = ("-e", "docker_core_helper_conflicts=take_over")
KEPT = f"find {CORES} -name '*.core' -o -name '*.core.zst'"


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options for playbooks."""
    path = tmp_path_factory.mktemp("sender") / "variables.json"
    path.write_text(json.dumps(VARIABLES))
    return (*TAKE_OVER, "-e", f"@{path}")


@pytest.fixture(scope="module", autouse=True)
def rolled_out(machine: Machine, playbook: Callable[..., str], variables: tuple[str, ...]) -> str:
    """Brings the program to the machine, and rolls out; returns what Ansible says."""
    machine.run("mkdir -p /srv/sender && cat >/srv/sender/send && chmod 755 /srv/sender/send", data=PROGRAM.encode())
    said = playbook("site.yml", "--diff", "-vvv", *variables)
    machine.run(f"mkdir -p /srv/sent && chown {USER} /srv/sent")
    return said


def test_the_timer_waits_and_systemd_knows_every_line_of_the_units(machine: Machine, rolled_out: str) -> None:
    assert "CREDENTIAL=(not shown)" in rolled_out
    assert machine.run(f"systemctl is-enabled {TIMER}; systemctl is-active {TIMER}") == "enabled\nactive"
    assert machine.run(f"systemd-analyze verify --man=no {SERVICE} {TIMER} 2>&1 | grep docker-core || true") == ""
    assert machine.run(f"getent passwd {USER}").endswith(("nologin", "/bin/false"))
    assert machine.run("stat -c '%a %U %G' /etc/docker_core_helper.credentials") == "600 root root"


def test_a_second_rollout_changes_nothing(playbook: Callable[..., str], variables: tuple[str, ...]) -> None:
    assert " changed=0 " in playbook("site.yml", *variables)


def test_a_core_without_a_delegate_is_sent_by_a_user_that_can_do_nothing_else(
    machine: Machine, crash: Callable[[str], MachineCrash], tmp_path: Path
) -> None:
    crash(WAYS["docker"])
    # The timer may have come first, and who compresses the core may still have it.
    machine.run(f"""
        for i in $(seq 100); do
            systemctl start {SERVICE}
            [ ! -e /srv/sent/core ] || break
            sleep 3  # systemd starts no service more than five times in ten seconds.
        done
        rm -rf /srv/sent/core.part
        journalctl --no-pager --unit={SERVICE} >/srv/sent/log
    """)
    machine.pack("/srv/sent", tmp_path)
    log = (tmp_path / "log").read_text()
    assert (tmp_path / "core").exists(), log
    assert is_whole((tmp_path / "core").read_bytes())
    record = (tmp_path / "record").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in record[:6])
    number = machine.run(f"id -u {USER}")
    assert status["Uid"].split() == [number] * 4 and number != "0"
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapPrm"], 16) == 0
    # CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP; capabilities(7).
    assert int(status["CapBnd"], 16) & ~(1 << 5 | 1 << 6 | 1 << 7 | 1 << 8) == 0
    assert record[6:8] == [f"user {USER}", f"credential {SECRET}"]
    assert record[8].startswith("key ") and len(record) == 9, record
    assert machine.run(KEPT) == ""


def test_what_cannot_be_sent_stays(machine: Machine, crash: Callable[[str], MachineCrash]) -> None:
    machine.run("printf '#!/bin/sh\\nexit 75\\n' >/srv/sender/send")
    crash(WAYS["docker"])
    tried = f"! grep --quiet attempts {CORES}/*/*.json || exit 0"
    machine.run(f"for i in $(seq 100); do {tried}; systemctl start {SERVICE}; {tried}; sleep 3; done; exit 1")
    assert machine.run(f"systemctl is-failed {SERVICE}") == "failed"
    assert len(machine.run(KEPT).splitlines()) == 1


def test_no_log_of_the_machine_has_the_credential(machine: Machine, rolled_out: str) -> None:
    assert "cormorant" not in rolled_out
    assert machine.run("journalctl --sync; journalctl --no-pager --output=export | grep -ac cormorant || true") == "0"
    assert machine.run("grep -rl cormorant /etc || true") == "/etc/docker_core_helper.credentials"
