"""Who is touched by a rollout that goes well, and by one that does not; see stand_in.py for what is simulated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from fleet.conftest import CANARY, FIRST, HOSTS, PLAYBOOK, PROJECT, REST, SECOND, UNREACHABLE, Fleet


def assert_rollback_brings_exactly_these_back(fleet: Fleet, hosts: list[str], before: dict[str, str]) -> None:
    code, said = fleet.play("rollback.yml")
    assert code == 0, said
    assert sorted(fleet.touched()) == sorted(hosts)
    assert fleet.versions() == before
    assert not list(fleet.record.glob("*.json")), "nothing is left to be brought back"


def test_canary_first_then_growing_batches(fleet: Fleet) -> None:
    code, said = fleet.play("site.yml")
    assert code == 0, said
    touched = fleet.touched()
    parts = [touched[:1], sorted(touched[1:3]), sorted(touched[3:7]), sorted(touched[7:])]
    assert parts == [CANARY, FIRST, SECOND, REST]
    assert said.index("Let a process crash") < said.index("PLAY [Pass the gate]") < said.index("to the others]")
    told = "The kernel of each starts docker_core_helper at each crash; to try one on each, run playbooks/verify.yml"
    assert told in said

    code, said = fleet.play("site.yml")
    assert (code, fleet.touched()) == (0, []), said
    assert "changed=1" not in said

    assert_rollback_brings_exactly_these_back(fleet, HOSTS, {})


def test_a_removal_does_not_say_that_the_helper_starts_at_each_crash(fleet: Fleet) -> None:
    fleet.put(HOSTS, "2")
    code, said = fleet.play("site.yml", "-e", "docker_core_helper_state=absent")
    assert code == 0, said
    assert "None of them has docker_core_helper" in said
    assert "starts docker_core_helper at each crash" not in said


def test_what_changes_nothing_that_a_rollback_restores_is_told_as_a_change_all_the_same(fleet: Fleet) -> None:
    fleet.put(HOSTS, "2")
    fleet.variables[FIRST[0]] = {
        "docker_core_helper_keep": "always",
        "docker_core_helper_sender": ["/opt/bin/sender"],
        "docker_core_helper_sender_environment": {"KEY": "x"},
    }
    code, said = fleet.play("site.yml", "--limit", ",".join([*CANARY, *FIRST]))
    assert (code, fleet.touched()) == (0, []), said
    told = f"changed: none; changed in what rollback.yml leaves as it is, such as credentials: {FIRST[0]}. The kernel"
    assert told in " ".join(said.split())


def test_check_mode_touches_nobody_lets_nothing_crash_and_writes_no_record(fleet: Fleet) -> None:
    code, said = fleet.play("site.yml", "--check", "--diff")
    assert (code, fleet.touched(), fleet.record.exists()) == (0, [], False), said


def test_without_the_stand_in_nothing_of_the_real_role_runs_on_this_machine(fleet: Fleet) -> None:
    shutil.rmtree(fleet.role)
    code, said = fleet.play("site.yml", "--check")
    assert code != 0
    assert "/nowhere/python3" in said
    assert "Write down how the hosts are" not in said


@pytest.mark.parametrize("playbook", ["site.yml", "verify.yml", "rollback.yml", "remove.yml"])
def test_a_mistyped_inventory_is_an_error_from_any_directory(fleet: Fleet, playbook: str) -> None:
    # No ansible.cfg counts here, and of the two inventories one can be read.
    code, said = fleet.play(playbook, "-i", "mistyped", "-i", "web01,")
    assert (code != 0, fleet.touched()) == (True, [])
    assert f"no such inventory: {fleet.directory}/mistyped: correct -i" in said
    fleet.variables.clear()
    code, said = fleet.play(playbook, "--limit", "web01")
    assert (code != 0, fleet.touched()) == (True, [])
    assert f"there is no host in {fleet.directory}/inventory.yml: correct the inventory" in said


def test_the_syntax_can_be_checked_without_an_inventory() -> None:
    playbooks = sorted((PROJECT / "playbooks").glob("*.yml"))
    environment = {**os.environ, "ANSIBLE_INVENTORY": "/etc/ansible/hosts"}
    subprocess.run([PLAYBOOK, "--syntax-check", *playbooks], env=environment, cwd="/", check=True)


def test_a_run_that_is_refused_says_that_nothing_was_changed(fleet: Fleet) -> None:
    code, said = fleet.play("site.yml", "-e", "docker_core_helper_timeout=0")
    assert code != 0
    assert "docker_core_helper_timeout must be a number of seconds" in said
    assert f"before the next batch: {CANARY[0]}: failed or unreachable. Nothing was changed" in said
    assert (fleet.touched(), list(fleet.record.glob("*"))) == ([], [])


def test_a_failing_canary_stops_it_before_anybody_else(fleet: Fleet) -> None:
    fleet.variables[CANARY[0]]["fault"] = "core_helper_canary"
    code, said = fleet.play("site.yml")
    assert code != 0
    assert fleet.touched() == CANARY
    assert f"Changed so far, or begun with: {CANARY[0]};" in said
    assert_rollback_brings_exactly_these_back(fleet, CANARY, {})


def test_one_failing_canary_of_several_stops_it(fleet: Fleet) -> None:
    fleet.variables["web09"]["fault"] = "core_helper_canary"
    code, said = fleet.play("site.yml", "-e", '{"rollout_canaries": ["web05", "web09"]}')
    assert code != 0
    assert sorted(fleet.touched()) == ["web05", "web09"]
    assert "web09: failed or unreachable" in said


@pytest.mark.parametrize("fault", ["core_helper_files", "core_pattern"])
def test_a_host_that_fails_in_batch_two_stops_it_before_batch_three(fleet: Fleet, fault: str) -> None:
    fleet.put(FIRST, "1")
    before = fleet.versions()
    fleet.variables["web05"]["fault"] = fault
    code, said = fleet.play("site.yml")
    assert code != 0
    assert sorted(fleet.touched()) == CANARY + FIRST + SECOND
    assert f"Changed so far, or begun with: {', '.join(CANARY + FIRST + SECOND)};" in said
    fleet.variables["web05"].clear()
    touched = [host for host in CANARY + FIRST + SECOND if host != "web05" or fault == "core_pattern"]
    assert_rollback_brings_exactly_these_back(fleet, touched, before)


def test_the_free_strategy_stops_as_well(fleet: Fleet) -> None:
    fleet.variables["web05"]["fault"] = "core_helper_files"
    code, _ = fleet.play("site.yml", ANSIBLE_STRATEGY="free")
    assert (code != 0, sorted(fleet.touched())) == (True, CANARY + FIRST + SECOND)


def test_an_unreachable_host_stops_it_before_its_batch_is_touched(fleet: Fleet) -> None:
    fleet.variables["web05"] = UNREACHABLE
    code, said = fleet.play("site.yml")
    assert code != 0
    assert sorted(fleet.touched()) == CANARY + FIRST
    assert "before anything of this batch was changed: web05: failed or unreachable" in said
    assert_rollback_brings_exactly_these_back(fleet, CANARY + FIRST, {})


def test_an_unreachable_canary_stops_it_before_anybody_is_touched(fleet: Fleet) -> None:
    fleet.variables[CANARY[0]] = UNREACHABLE
    code, _ = fleet.play("site.yml")
    assert (code != 0, fleet.touched()) == (True, [])


def test_a_host_that_becomes_unreachable_in_the_middle_stops_it_and_is_not_forgotten(fleet: Fleet) -> None:
    vanished = fleet.directory / "hosts/web05/vanished"
    connection = "{{ 'ssh' if '" + str(vanished) + "' is exists else 'local' }}"
    fleet.variables["web05"] = {**UNREACHABLE, "ansible_connection": connection, "fault": "vanish at core_helper_files"}
    code, said = fleet.play("site.yml")
    assert code != 0
    assert sorted(fleet.touched()) == CANARY + FIRST + SECOND
    assert "before the next batch: web05: failed or unreachable" in said

    code, said = fleet.play("rollback.yml")
    assert code != 0
    assert sorted(fleet.touched()) == [host for host in CANARY + FIRST + SECOND if host != "web05"]
    assert f"still to be brought back, in {fleet.record / 'pending.json'}: web05" in said
    fleet.variables["web05"].clear()
    assert_rollback_brings_exactly_these_back(fleet, ["web05"], {})


@pytest.mark.parametrize("batch", [CANARY, FIRST])
def test_a_whole_batch_that_becomes_unreachable_is_not_forgotten(fleet: Fleet, batch: list[str]) -> None:
    """There is no host left for the gate then, as if somebody had ended Ansible."""
    for host in batch:
        vanished = fleet.directory / "hosts" / host / "vanished"
        connection = "{{ 'ssh' if '" + str(vanished) + "' is exists else 'local' }}"
        fleet.variables[host] = {
            **UNREACHABLE,
            "ansible_connection": connection,
            "fault": "vanish at core_helper_files",
        }
    code, _ = fleet.play("site.yml")
    reached = CANARY if batch == CANARY else CANARY + FIRST
    assert (code != 0, sorted(fleet.touched())) == (True, reached)
    for host in batch:
        fleet.variables[host].clear()
    assert_rollback_brings_exactly_these_back(fleet, reached, {})


@pytest.mark.parametrize("fails", [CANARY, []])
def test_an_interrupted_rollout_that_is_carried_on_can_be_taken_back_as_a_whole(fleet: Fleet, fails: list[str]) -> None:
    fleet.put(HOSTS, "1")
    before = fleet.versions()
    for host in FIRST:
        vanished = fleet.directory / "hosts" / host / "vanished"
        connection = "{{ 'ssh' if '" + str(vanished) + "' is exists else 'local' }}"
        fleet.variables[host] = {
            **UNREACHABLE,
            "ansible_connection": connection,
            "fault": "vanish at core_helper_files",
        }
    assert fleet.play("site.yml")[0] != 0
    for host in FIRST:
        fleet.variables[host].clear()
    for host in fails:
        fleet.variables[host]["fault"] = "core_helper_canary"
    assert (fleet.play("site.yml")[0] != 0) == bool(fails)
    fleet.touched()
    assert_rollback_brings_exactly_these_back(fleet, CANARY + FIRST if fails else HOSTS, before)


def test_a_host_that_is_no_more_stops_no_later_rollout(fleet: Fleet) -> None:
    fleet.variables["web05"]["fault"] = "core_helper_files"
    assert fleet.play("site.yml")[0] != 0
    del fleet.variables["web05"]
    code, said = fleet.play("site.yml")
    assert code == 0, said
    assert set(fleet.versions().values()) == {"2"}
    code, said = fleet.play("rollback.yml")
    assert code != 0
    assert "Not in this inventory, or not within --limit: web05" in said
    assert "still to be brought back, in" in said and fleet.versions() == {}


def test_a_second_rollback_does_not_go_further_back(fleet: Fleet) -> None:
    assert fleet.play("site.yml", version="1")[0] == 0
    record = (fleet.record / "finished.json").read_text()
    fleet.variables["web05"]["fault"] = "core_pattern"
    assert fleet.play("site.yml")[0] != 0
    # Nor does one after it where a host is no more, and its entry, here the only one that is left, was deleted.
    fleet.variables["web05"] = UNREACHABLE
    assert fleet.play("rollback.yml")[0] != 0
    (fleet.record / "pending.json").unlink()
    fleet.variables["web05"] = {}
    fleet.put(["web05"], "1")
    assert set(fleet.versions().values()) == {"1"}
    fleet.touched()
    code, said = fleet.play("rollback.yml")
    assert (code != 0, fleet.touched()) == (True, [])
    assert "no host is to be brought back: there is neither" in said
    # Only on request.
    (earlier,) = fleet.record.glob("finished-*.json")
    assert earlier.read_text() == record
    earlier.rename(fleet.record / "finished.json")
    assert_rollback_brings_exactly_these_back(fleet, HOSTS, {})


@pytest.mark.parametrize("playbook", ["rollback.yml", "remove.yml"])
def test_a_state_by_e_does_not_turn_a_removal_round(fleet: Fleet, playbook: str) -> None:
    assert fleet.play("site.yml")[0] == 0
    fleet.put(["web05"], "")
    fleet.touched()
    for host in HOSTS:
        fleet.variables[host]["docker_core_helper_state"] = "present"
    code, said = fleet.play(playbook, "-e", "docker_core_helper_state=present")
    assert (code != 0, fleet.touched()) == (True, [])
    assert "docker_core_helper_state must not be given by -e here: present" in said
    # In an inventory it is right.
    assert fleet.play(playbook)[0] == 0
    assert fleet.versions() == {}


def test_a_host_that_is_not_as_before_stays_in_the_record(fleet: Fleet) -> None:
    assert fleet.play("site.yml")[0] == 0
    main = fleet.role / "tasks/main.yml"
    tasks = main.read_text()
    main.write_text("[]\n")
    code, said = fleet.play("rollback.yml")
    assert code != 0
    assert f"brought back: none; still to be brought back, in {fleet.record / 'finished.json'}: web01" in said
    main.write_text(tasks)
    assert_rollback_brings_exactly_these_back(fleet, HOSTS, {})


def test_the_gate_looks_at_the_canaries_once_more(fleet: Fleet) -> None:
    drift = fleet.directory / "hosts" / CANARY[0] / "drift"
    code, said = fleet.play("site.yml", "-e", json.dumps({"rollout_gate_command": ["touch", str(drift)]}))
    assert (code != 0, fleet.touched()) == (True, CANARY), said


def test_the_variables_of_a_playbook_that_imports_this_one_count(fleet: Fleet) -> None:
    (fleet.directory / "ours.yml").write_text(
        f"""
- import_playbook: {PROJECT}/playbooks/site.yml
  vars: {{rollout_gate_command: [test, -e, /nowhere], rollout_canaries: [web07, web09]}}
"""
    )
    code, said = fleet.play(str(fleet.directory / "ours.yml"))
    assert (code != 0, sorted(fleet.touched())) == (True, ["web07", "web09"]), said
    (fleet.directory / "ours.yml").write_text(
        f"- import_playbook: {PROJECT}/playbooks/site.yml\n  vars: {{rollout_gate_cmd: [false]}}\n"
    )
    code, said = fleet.play(str(fleet.directory / "ours.yml"))
    assert (code != 0, fleet.touched()) == (True, [])
    assert "rollout_gate_cmd is no variable of this playbook" in said


def test_a_rescue_in_the_way_hides_nothing(fleet: Fleet) -> None:
    tasks = fleet.role / "tasks"
    (tasks / "main.yml").rename(tasks / "inner.yml")
    (tasks / "main.yml").write_text(
        "- block: [{ansible.builtin.import_tasks: inner.yml}]\n  rescue: [{ansible.builtin.debug: {msg: never mind}}]\n"
    )
    fleet.variables["web05"]["fault"] = "core_pattern"
    code, said = fleet.play("site.yml")
    assert code != 0
    assert sorted(fleet.touched()) == CANARY + FIRST + SECOND
    assert "web05: a rescue hides: core_pattern fails on purpose" in said
    fleet.variables["web05"].clear()
    assert_rollback_brings_exactly_these_back(fleet, CANARY + FIRST + SECOND, {})


def test_the_gate_has_a_command_of_the_user(fleet: Fleet) -> None:
    code, _ = fleet.play("site.yml", "-e", '{"rollout_gate_command": ["test", "-e", "/nowhere"]}')
    assert (code != 0, fleet.touched()) == (True, CANARY)
    code, said = fleet.play("site.yml", "-e", '{"rollout_gate_command": ["true"], "rollout_gate_seconds": 1}')
    assert (code, sorted(fleet.touched())) == (0, HOSTS[1:]), said


def test_a_rollout_that_is_carried_on_can_still_be_taken_back_as_a_whole(fleet: Fleet) -> None:
    fleet.put(HOSTS[2:9], "1")
    before = fleet.versions()
    fleet.variables["web05"]["fault"] = "core_helper_files"
    assert fleet.play("site.yml")[0] != 0
    fleet.variables["web05"].clear()
    assert fleet.play("site.yml")[0] == 0
    assert set(fleet.versions().values()) == {"2"}
    fleet.touched()
    assert_rollback_brings_exactly_these_back(fleet, HOSTS, before)


def test_within_a_limit_the_first_host_of_it_is_the_canary(fleet: Fleet) -> None:
    fleet.variables["web09"]["fault"] = "core_helper_canary"
    code, _ = fleet.play("site.yml", "--limit", "web09,web10,web11", "-e", '{"rollout_canaries": ["web01"]}')
    assert (code != 0, fleet.touched()) == (True, ["web09"])


def test_a_mistyped_canary_is_refused(fleet: Fleet) -> None:
    code, said = fleet.play("site.yml", "-e", '{"rollout_canaries": ["web99"]}')
    assert (code != 0, fleet.touched()) == (True, [])
    assert "rollout_canaries: web99: neither a host nor a group" in said


def test_without_a_record_nothing_is_rolled_back(fleet: Fleet) -> None:
    fleet.put(HOSTS, "1")
    code, said = fleet.play("rollback.yml")
    assert (code != 0, fleet.touched()) == (True, [])
    assert "no host is to be brought back" in said


def test_verify_changes_nothing_and_has_a_row_for_every_host(fleet: Fleet) -> None:
    fleet.put(HOSTS, "2")
    fleet.put(["web03"], "1")
    fleet.put(["web04"], "")
    (fleet.directory / "hosts/web06/drift").touch()
    fleet.variables["web05"] = UNREACHABLE
    fleet.variables["web07"]["fault"] = "core_helper_canary"
    (fleet.directory / "hosts/web08/other").touch()
    code, said = fleet.play("verify.yml", "-e", "docker_core_helper_canary=true")
    assert code != 0
    assert [host for host in fleet.touched() if host != "web07"] == []
    rows = {row["host"]: row for row in json.loads((fleet.record / "verify.json").read_text())}
    assert list(rows) == HOSTS
    assert sorted(host for host, row in rows.items() if not row["ok"]) == HOSTS[2:8]
    expected = {
        "web03": "the files are not those of this version",
        "web04": "the helper is not installed",
        "web05": "unreachable: ",
        "web06": "drift: kernel.core_pattern is '|/bin/false', somebody has changed it since the role set",
        "web07": "core_helper_canary fails on purpose",
        "web08": "next boot: /etc/sysctl.d/99-x.conf sets kernel.core_pattern to '|/bin/false'",
    }
    page = (fleet.record / "verify.html").read_text()
    for host, problem in expected.items():
        assert problem in str(rows[host]["problems"])
        assert f"\n{host}: {problem}" in said
        assert f"<td>{host}</td>" in page
    assert "://" not in page, "the page must need nothing else"
    assert "6 of 12 hosts are as they should be" in said
    assert rows["web12"]["canary"] == "delivered in 0.012 s"


def test_a_canary_through_the_delegate_is_made_of_the_variables(fleet: Fleet) -> None:
    for host in HOSTS:
        fleet.variables[host] |= {
            "docker_core_helper_canary": "delegate",
            "docker_core_helper_canary_image": "shop:1.0",
            "docker_core_helper_canary_options": ["--env-file", "/etc/shop.env"],
            "docker_core_helper_timeout": "60",
        }
    words = '{"image": "shop:1.0", "options": ["--env-file", "/etc/shop.env"], "pull": false, "timeout": 90}'
    code, said = fleet.play("site.yml", "-v")
    assert code == 0, said
    assert said.replace('\\"', '"').count(words) == len(CANARY)
    code, said = fleet.play("verify.yml")
    assert code == 0, said
    assert all(f"\n{host}: tried with {words}\n" in said for host in HOSTS)
    # With the throw-away program nothing of this counts.
    code, said = fleet.play("verify.yml", "-e", "docker_core_helper_canary=true")
    assert (code, "tried with" in said, "delivered in 0.001 s" in said) == (0, False, True), said


def test_verify_has_its_table_if_nobody_can_be_reached(fleet: Fleet) -> None:
    fleet.variables["web05"] = UNREACHABLE
    code, said = fleet.play("verify.yml", "--limit", "web05")
    assert code != 0
    assert "0 of 1 hosts are as they should be" in said
    assert [row["host"] for row in json.loads((fleet.record / "verify.json").read_text())] == ["web05"]


def test_verify_of_a_fleet_as_it_should_be_ends_with_0(fleet: Fleet) -> None:
    fleet.put(HOSTS[1:], "2")
    fleet.variables[HOSTS[0]]["docker_core_helper_state"] = "absent"
    code, said = fleet.play("verify.yml")
    assert (code, fleet.touched()) == (0, []), said
    assert "not tried" in said
    # The state may be a template.
    fleet.variables[HOSTS[0]]["docker_core_helper_state"] = "{{ 'absent' if true else 'present' }}"
    assert fleet.play("verify.yml")[0] == 0
    code, said = fleet.play("verify.yml", "-e", "docker_core_helper_cannary=true")
    assert code != 0
    assert f"\n{HOSTS[0]}: docker_core_helper_cannary is no variable of this role" in said


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        (
            {"rollout_gate_cmd": ["false"]},
            "rollout_gate_cmd is no variable of this playbook: did you mean rollout_gate_command?",
        ),
        (
            {"rollout_canaries": "web02 web03"},
            """rollout_canaries must be a list, such as -e '{"rollout_canaries": ["web02", "web03"]}'""",
        ),
        ({"rollout_gate_command": "false"}, "rollout_gate_command must be a list"),
        ({"rollout_gate_seconds": "5m"}, "rollout_gate_seconds must be a whole number of seconds: '5m'"),
        ({"rollout_gate_seconds": -1}, "rollout_gate_seconds must be a whole number of seconds: '-1'"),
        ({"rollout_canaries": [], "rollout_gate_seconds": 5}, "there is no gate without canaries"),
        ({"rollout_canaries": [], "rollout_gate_command": ["false"]}, "there is no gate without canaries"),
    ],
)
def test_a_mistyped_variable_is_refused_before_anybody_is_touched(
    fleet: Fleet, variable: dict[str, object], says: str
) -> None:
    code, said = fleet.play("site.yml", "-e", json.dumps(variable))
    assert code != 0
    assert says in said.replace('\\"', '"')
    assert fleet.touched() == []


def test_a_variable_of_the_rollout_in_the_inventory_is_refused_because_it_would_not_count(fleet: Fleet) -> None:
    for host in HOSTS:
        fleet.variables[host]["rollout_gate_command"] = ["false"]
    code, said = fleet.play("site.yml")
    assert code != 0
    assert f"rollout_gate_command does not count in an inventory, where {CANARY[0]} has it: give it by -e" in said
    assert fleet.touched() == []
    # By -e it counts, whatever the inventory says.
    code, said = fleet.play("site.yml", "--limit", CANARY[0], "-e", '{"rollout_gate_command": ["true"]}')
    assert code == 0, said


def test_the_record_of_the_rollout_before_is_kept(fleet: Fleet) -> None:
    assert fleet.play("site.yml")[0] == 0
    record = (fleet.record / "finished.json").read_text()
    assert fleet.play("site.yml", "--limit", "web02", version="3")[0] == 0
    (earlier,) = fleet.record.glob("finished-*.json")
    assert earlier.read_text() == record
    assert list(json.loads((fleet.record / "finished.json").read_text())["hosts"]) == ["web02"]
    assert earlier.stat().st_mode & 0o777 == 0o600
