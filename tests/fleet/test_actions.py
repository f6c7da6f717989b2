"""The controller's part of the playbooks, where somebody else has a hand in its directory or in what a host answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.project import load

errors = pytest.importorskip("ansible.errors")

PLUGINS = Path(__file__).resolve().parents[2] / "plugins/action"
PENDING = {"hosts": {"web01": {"touched": True, "before": {"installed": True}}}}


def rollout(directory: Path) -> dict[str, Any]:
    """Return what the rollback reads in a directory."""
    module = load(PLUGINS / "core_helper_rollout.py")
    action = module.ActionModule.__new__(module.ActionModule)
    action.pending, action.finished = str(directory / "pending.json"), str(directory / "finished.json")
    action.all = ["web01"]
    result: dict[str, Any] = action.load()
    return result


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Return a record as a rollout writes it."""
    path = tmp_path / "pending.json"
    path.write_text(json.dumps(PENDING))
    path.chmod(0o600)
    return path


def test_a_record_of_ours_is_read(record: Path) -> None:
    assert rollout(record.parent)["hosts"] == {"web01": {"installed": True}}


@pytest.mark.parametrize("content", ['{"hosts": {"web01": {},}}', "[]", "{}", '{"hosts": '])
def test_a_record_that_somebody_has_edited_wrongly_is_named(record: Path, content: str) -> None:
    record.write_text(content)
    with pytest.raises(
        errors.AnsibleActionFail, match=f"^{record} is no record of a rollout any more: .*: correct what was edited$"
    ):
        rollout(record.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_a_record_of_another_user_is_refused(record: Path) -> None:
    os.chown(record, 12345, 12345)
    with pytest.raises(errors.AnsibleActionFail, match="belongs to user 12345"):
        rollout(record.parent)


def test_a_record_that_others_can_write_is_refused(record: Path) -> None:
    record.chmod(0o662)
    with pytest.raises(errors.AnsibleActionFail, match="others can write"):
        rollout(record.parent)


SNAPSHOT = {
    "installed": True,
    "version": "1.0.0",
    "kernel": "6.1",
    "engines": [],
    "snapshot": {"files": {}, "live": {"core_pattern": "core", "core_pipe_limit": "0"}},
}


# Nothing to be changed.
COMPARED = {
    "__docker_core_helper_preflight": {"state": "present"},
    "__docker_core_helper_files": {"changed": False},
    "__docker_core_helper_found": {"changed": False},
}


def report(
    directory: Path, answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **extra: Any
) -> tuple[dict[str, Any], str]:
    """Return the result of the report over what hosts have answered, and what it shows on the terminal."""
    known = {host: {**COMPARED, "__docker_core_helper_snapshot": answer, **extra} for host, answer in answers.items()}
    return run_report(directory, known, monkeypatch, table="fleet")


def run_report(
    directory: Path, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch, table: str
) -> tuple[dict[str, Any], str]:
    """Return the same for one of its tables over what is known of the hosts."""
    module = load(PLUGINS / "core_helper_report.py")
    shown: list[str] = []
    monkeypatch.setattr(module, "Display", lambda: SimpleNamespace(display=shown.append))
    monkeypatch.setattr(module.ActionBase, "run", lambda *_: {})
    action = module.ActionModule.__new__(module.ActionModule)
    files = {name: str(directory / f"verify.{name}") for name in ("json", "html")}
    action._task = SimpleNamespace(args={"table": table, **files})
    variables = {"hostvars": SimpleNamespace(raw_get=known.get), "ansible_play_hosts_all": list(known)}
    return action.run(None, variables), "\n".join(shown)


def test_what_a_host_answers_cannot_steer_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "\x1b[2J6.1\nweb02  as wanted\r\x9b1A\u202e\ud800"
    answers = {"web01": {**SNAPSHOT, "kernel": hostile}, "web02": {"failed": True, "msg": f"no {hostile}"}}
    _, shown = report(tmp_path, answers, monkeypatch)
    assert all(line.isprintable() for line in shown.splitlines()), shown
    assert not [line for line in shown.splitlines() if line.startswith("web02  as wanted")]
    assert "\\x1b[2J6.1\\nweb02" in shown


def test_what_a_host_answers_is_text_in_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "<script>alert('{head}')</script>\"&{"
    answers = {hostile: {**SNAPSHOT, "kernel": hostile}, "b": {"failed": True, "msg": hostile}}
    report(tmp_path, answers, monkeypatch)
    page = (tmp_path / "verify.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#x27;{head}&#x27;)") == 3


def test_a_host_is_right_only_if_it_was_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "failed" not in report(tmp_path, {"web01": SNAPSHOT}, monkeypatch)[0]
    for name in COMPARED:
        for result in (None, {"skipped": True}):
            found, shown = report(tmp_path, {"web01": SNAPSHOT}, monkeypatch, **{name: result})
            assert found["failed"] and "web01: was not compared" in shown


def test_a_host_without_helper_must_not_start_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = {"core_pattern": "|/opt/bin/docker_core_helper %P", "core_pipe_limit": "64"}
    gone: dict[str, Any] = {**SNAPSHOT, "installed": False, "version": "", "snapshot": {"files": {}, "live": live}}
    absent = {"__docker_core_helper_preflight": {"state": "absent"}}
    found, shown = report(tmp_path, {"web01": gone}, monkeypatch, **absent)
    assert found["failed"] and "still starts the helper" in shown
    gone["snapshot"]["live"]["core_pattern"] = "core"
    assert "failed" not in report(tmp_path, {"web01": gone}, monkeypatch, **absent)[0]
    step = {"after_header": "/etc/sysctl.d/60-docker-core-helper.conf"}
    changes: list[dict[str, Any]] = [
        {"__docker_core_helper_found": {"diff": [step]}},
        {"__docker_core_helper_files": {"changed": True}},
    ]
    for change, name in zip(changes, (step["after_header"], "the library"), strict=True):
        found, shown = report(tmp_path, {"web01": gone}, monkeypatch, **absent, **change)
        assert found["failed"] and f"web01: a removal would still change: {name}" in shown


def test_a_host_without_its_record_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = "/opt/lib/docker_core_helper/previous.json"
    kernel = {"record": record, "diff": [{"after_header": record}]}
    found, shown = report(tmp_path, {"web01": SNAPSHOT}, monkeypatch, __docker_core_helper_found=kernel)
    assert found["failed"] and f"web01: not as the role writes it: {record}" in shown


def test_where_no_crash_was_made_the_table_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    msg = (
        "the canary was not tried, and no crash was made: kernel.core_pattern does not start docker_core_helper: 'core'"
    )
    crash: dict[str, Any] = {"failed": True, "outcome": "skipped", "msg": msg}
    found, shown = report(tmp_path, {"web01": SNAPSHOT}, monkeypatch, __docker_core_helper_crash=crash)
    assert found["failed"] and f"\nweb01: {msg}" in shown
    assert "lost" not in shown
    (row,) = json.loads((tmp_path / "verify.json").read_text())
    assert row["canary"] == "not tried"

    crash = {"outcome": "skipped", "msg": "no delegate is configured, so there is nothing to try"}
    found, shown = report(tmp_path, {"web01": SNAPSHOT}, monkeypatch, __docker_core_helper_crash=crash)
    assert "failed" not in found and "not tried: no delegate is configured" in shown
    (row,) = json.loads((tmp_path / "verify.json").read_text())
    assert row["canary"] == f"not tried: {crash['msg']}"


def test_what_the_delegate_said_is_below_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = "/opt/bin/uploader.sh has read all 9 bytes and ended with exit code 0; it said: \x1b[2J<b>"
    crash = {"outcome": "delivered", "size": 9, "seconds": 0.4, "verdict": verdict}
    found, shown = report(tmp_path, {"web01": SNAPSHOT}, monkeypatch, __docker_core_helper_crash=crash)
    assert "failed" not in found
    safe = verdict.replace("\x1b", "\\x1b")
    assert f"\nweb01: {safe}\n" in shown and "delivered in 0.4 s" in shown
    (row,) = json.loads((tmp_path / "verify.json").read_text())
    assert (row["canary"], row["canary_verdict"]) == ("delivered in 0.4 s", verdict)
    assert "delivered in 0.4 s: /opt/bin/uploader.sh has read all 9 bytes" in (tmp_path / "verify.html").read_text()
    assert "<b>" not in (tmp_path / "verify.html").read_text()


def deep(times: int) -> list[Any]:
    """Return a list in a list, and so on."""
    found: list[Any] = []
    for _ in range(times):
        found = [found]
    return found


@pytest.mark.parametrize(
    "answer",
    [
        {"snapshot": None},
        {**SNAPSHOT, "engines": [{}]},
        {**SNAPSHOT, "snapshot": {"files": 1, "live": {"core_pattern": 1}}},
        ["no"],
        {**SNAPSHOT, "kernel": "\ud800", "version": 1, "snapshot": None},
        {"failed": True, "msg": None},
        {**SNAPSHOT, "kernel": deep(20_000)},
        {**SNAPSHOT, "kernel": float("inf")},
    ],
)
def test_a_host_that_answers_nonsense_is_a_wrong_row_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    result, shown = report(tmp_path, {"web01": answer, "web02": {"unreachable": True}}, monkeypatch)
    assert result["failed"] and "web01" in result["msg"]
    assert [line for line in shown.splitlines() if line.startswith("web02: unreachable")]


def test_a_socket_is_told_as_one_and_an_owner_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = {"core_pattern": "@@/run/x", "core_pipe_limit": "512"}
    answer = {**SNAPSHOT, "owner": "the socket /run/x", "snapshot": {"files": {}, "live": live}}
    kernel = {
        "core_pattern": "|/opt/bin/docker_core_helper",
        "next_boot": "|/a/rdp",
        "next_boot_file": "/etc/sysctl.conf",
    }
    found = {"__docker_core_helper_found": {**kernel, "next_boot_owner": "Dynatrace OneAgent"}}
    _, shown = report(tmp_path, {"web01": answer}, monkeypatch, **found)
    assert "  the socket /run/x  " in shown
    assert "web01: kernel.core_pattern is '@@/run/x', the socket /run/x instead of '|/opt" in shown
    assert "web01: next boot: /etc/sysctl.conf sets kernel.core_pattern to '|/a/rdp', Dynatrace OneAgent\n" in shown


PIPE = "|/opt/bin/docker_core_helper %P %u %g"
RESIDENT = "@@/run/docker_core_helper/core.sock"
SERVICE = "docker-core-helper.service"


@pytest.mark.parametrize(
    ("wanted", "live", "column", "said", "is_right"),
    [
        (PIPE, PIPE, "as wanted", "", True),
        (RESIDENT, RESIDENT, "as wanted, socket", "", True),
        (
            RESIDENT,
            PIPE,
            "pipe for now",
            "warning: web01: the server at the core-dump socket does not get the cores, so each",
            True,
        ),
        (PIPE, RESIDENT, "the socket", f"web01: drift: kernel.core_pattern is {RESIDENT!r}", False),
        (RESIDENT, "core", "core", f"web01: kernel.core_pattern is 'core' instead of {RESIDENT!r}", False),
    ],
)
def test_both_ways_of_a_core_are_right_and_the_table_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, live: str, column: str, said: str, is_right: bool
) -> None:
    owner = "the socket" if live == RESIDENT else ""
    files = {"/etc/sysctl.d/60-docker-core-helper.conf": f"kernel.core_pattern = {PIPE}\n"}
    state = {"files": files, "live": {"core_pattern": live, "core_pipe_limit": "512"}}
    kernel = {"core_pattern": wanted, "core_pattern_at_boot": PIPE, "next_boot": PIPE, "next_boot_file": "/etc/x"}
    result, shown = report(
        tmp_path,
        {"web01": {**SNAPSHOT, "installed": True, "owner": owner, "snapshot": state}},
        monkeypatch,
        __docker_core_helper_found={"changed": False, **kernel},
    )
    assert f"  {column}  " in shown and said in shown
    assert result.get("failed") is not is_right


UNHEARD = "and the kernel sends each core to its socket, where no server takes it: see systemctl status"


@pytest.mark.parametrize(
    ("state", "live", "problem"),
    [
        ("enabled, active, of another version", RESIDENT, f"{SERVICE} is enabled, active, of another version"),
        ("disabled, active", RESIDENT, f"{SERVICE} is disabled, active"),
        ("enabled, inactive", PIPE, ""),
        ("enabled, failed", PIPE, ""),
        ("enabled, inactive", RESIDENT, f"{SERVICE} is enabled, inactive, {UNHEARD}"),
        ("enabled, failed", RESIDENT, f"{SERVICE} is enabled, failed, {UNHEARD}"),
        ("enabled, activating", RESIDENT, f"{SERVICE} is enabled, activating, {UNHEARD}"),
        ("disabled, failed", RESIDENT, f"{SERVICE} is disabled, failed, {UNHEARD}"),
        ("enabled, inactive, of another version", RESIDENT, f"{SERVICE} is enabled, inactive, of another version, and"),
    ],
)
def test_a_resident_helper_that_is_not_there_or_is_another_one_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, live: str, problem: str
) -> None:
    step = {"after_header": SERVICE, "before_header": SERVICE, "before": f"{state}\n", "after": "enabled, active\n"}
    kernel = {"changed": True, "core_pattern": RESIDENT, "core_pattern_at_boot": PIPE, "diff": [step]}
    values = {"files": {}, "live": {"core_pattern": live, "core_pipe_limit": "512"}}
    answer = {**SNAPSHOT, "installed": True, "snapshot": values}
    result, shown = report(tmp_path, {"web01": answer}, monkeypatch, __docker_core_helper_found=kernel)
    assert f"\nweb01: {problem}" in shown if problem else "\nweb01: " not in shown
    (row,) = json.loads((tmp_path / "verify.json").read_text())
    assert row["ok"] is not bool(problem) and result.get("failed", False) is bool(problem)
    nobody = UNHEARD.partition(":")[0] in shown or "inactive, of" in state
    assert row["pattern"] == ("pipe for now" if live == PIPE else "no server" if nobody else "as wanted, socket")


def test_that_set_id_programs_leave_no_core_is_a_warning_where_there_are_some_and_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {"suid_dumpable": "0", "undumpable": ["envoy", "nginx"]}
    answers = {f"web{number}": {**SNAPSHOT, **programs} for number in range(7)}
    # The default of the kernel costs nobody anything by itself.
    answers["idle"] = {**SNAPSHOT, "suid_dumpable": "0", "undumpable": []}
    answers["old"] = {**SNAPSHOT, "suid_dumpable": "0"}
    answers["db"] = {**SNAPSHOT, "suid_dumpable": "2", "undumpable": []}
    result, shown = report(tmp_path, answers, monkeypatch)
    assert "failed" not in result
    (line,) = [line for line in shown.splitlines() if "suid_dumpable" in line]
    hosts = "web0, web1, web2, web3, web4 and 2 more"
    assert line.startswith(f"warning: {hosts}: fs.suid_dumpable is 0: in containers, envoy, nginx would leave no core")
    rows = {row["host"]: row for row in json.loads((tmp_path / "verify.json").read_text())}
    assert [len(rows[host]["warnings"]) for host in ("web6", "idle", "old", "db")] == [1, 0, 0, 0]
    assert (tmp_path / "verify.html").read_text().count("none<br>warning: fs.suid_dumpable is 0") == 7


@pytest.mark.parametrize(
    ("configuration", "warned"),
    [
        ('DOCKERCOREHELPER_CHAIN="/usr/share/apport/apport -p%P"\n', True),
        ('# DOCKERCOREHELPER_CHAIN=/x\nDOCKERCOREHELPER_CHAIN=""\nDOCKERCOREHELPER_CHAIN_CONTAINERS=1\n', False),
        (None, False),
    ],
)
def test_that_the_previous_handler_lacks_the_cores_of_set_id_programs_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configuration: str | None, warned: bool
) -> None:
    state = {
        "files": {"/etc/docker_core_helper.conf": configuration},
        "live": {"core_pattern": "core", "core_pipe_limit": "0"},
    }
    programs = ["a", "b", "c", "d", "e", "f"]
    answer = {**SNAPSHOT, "snapshot": state, "suid_dumpable": "0", "undumpable": programs}
    _, shown = report(tmp_path, {"web01": answer}, monkeypatch)
    assert "in containers, a, b, c, d, e and 1 more would leave" in shown
    assert ("With 2 in /etc/sysctl.d the previous handler gets" in shown) is warned


CORE = {
    "id": "919eb8c9e6bc",
    "time": "2026-11-29T18:34:40Z",
    "size": 26214400,
    "on_disk": 1000,
    "signal": "SIGABRT",
    "program": "/usr/bin/shop",
    "container": "shop",
    "state": "whole",
    "collected": "-",
}


def cores(
    directory: Path, answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    """Return the result of the report over the cores that hosts keep, the lines that it shows, and its JSON file."""
    known = {host: {"__docker_core_helper_cores": answer} for host, answer in answers.items()}
    result, shown = run_report(directory, known, monkeypatch, table="cores")
    return result, shown.splitlines(), json.loads((directory / "verify.json").read_text())


def test_each_core_is_a_line_and_so_is_a_host_that_has_none_or_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {
        "web01": {"cores": [CORE, {**CORE, "id": "b", "collected": "now", "removed": True}], "problems": []},
        "web02": {"cores": [], "problems": []},
        "web03": {"unreachable": True, "msg": "no route to host"},
        "web04": {"failed": True, "msg": "there is no helper"},
        "web05": {},
        "web06": {"cores": [{**CORE, "collected": "failed"}], "problems": ["k: its checksum is wrong"], "failed": True},
    }
    result, shown, rows = cores(tmp_path, answers, monkeypatch)
    lines = [" ".join(line.split()) for line in shown]
    assert "web01 919eb8c9e6bc 2026-11-29T18:34:40Z 25M 1000B SIGABRT /usr/bin/shop shop whole -" in lines
    assert "web01 b 2026-11-29T18:34:40Z 25M 1000B SIGABRT /usr/bin/shop shop whole now" in lines
    assert "web02 - - - - - - - no core is kept -" in lines
    assert [line for line in lines if line.startswith("web0") and "unknown" in line] == [
        f"web0{number} - - - - - - - unknown -" for number in (3, 4, 5)
    ]
    assert "web03: unreachable: no route to host" in lines
    assert "web04: there is no helper" in lines
    assert "web05: was not asked" in lines
    assert "web06: k: its checksum is wrong" in lines
    summary = (
        "3 cores on 2 of 6 hosts, 1 brought, 1 not brought, 1 deleted on their hosts; 3 of 6 hosts could not be asked"
    )
    assert result["failed"] and result["msg"] == f"{summary}; wrong: web03, web04, web05, web06"
    assert [(row["host"], len(row["cores"]), row["ok"]) for row in rows] == [
        *(("web01", 2, True), ("web02", 0, True), ("web03", 0, False), ("web04", 0, False), ("web05", 0, False)),
        ("web06", 1, False),
    ]
    assert rows[0]["cores"][0] == CORE
    page = (tmp_path / "verify.html").read_text()
    assert page.count("<tr") == 8 and page.count("<tr class=wrong>") == 4 and summary in page


def test_hosts_without_any_core_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _, _ = cores(tmp_path, {"web01": {"cores": [], "problems": []}}, monkeypatch)
    assert "failed" not in result and result["msg"] == "0 cores on 0 of 1 hosts"


def test_what_a_container_has_chosen_steers_neither_terminal_nor_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "\x1b[2J<script>alert('{head}')</script>\nweb02  x\u202e"
    core = {**CORE, "program": hostile, "container": hostile}
    answers = {
        "web01": {"cores": [core], "problems": [hostile], "failed": True},
        "web02": {"failed": True, "msg": hostile},
    }
    _, shown, _ = cores(tmp_path, answers, monkeypatch)
    assert all(line.isprintable() for line in shown)
    assert len([line for line in shown if line.startswith("web02 ")]) == 1
    page = (tmp_path / "verify.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert all(line.isprintable() for line in page.splitlines())


@pytest.mark.parametrize(
    "answer",
    [
        {"cores": None},
        {"cores": [1]},
        {"cores": [{}]},
        {"cores": [{**CORE, "size": "x"}]},
        {"cores": [{**CORE, "size": 10**400}]},
        ["no"],
        {"cores": 3},
    ],
)
def test_a_list_that_makes_no_sense_is_a_wrong_row_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    result, shown, _ = cores(tmp_path, {"web01": answer, "web02": {"cores": [CORE], "problems": []}}, monkeypatch)
    assert result["msg"] == "1 core on 1 of 2 hosts; 1 of 2 hosts could not be asked; wrong: web01"
    assert [line for line in shown if line.startswith("web01: its answer makes no sense")]


def test_a_link_in_the_place_of_the_report_is_replaced_and_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    for name in ("json", "html"):
        (tmp_path / f"verify.{name}").symlink_to(other)
    report(tmp_path, {"web01": SNAPSHOT}, monkeypatch)
    assert other.read_text() == "mine"
    assert json.loads((tmp_path / "verify.json").read_text())[0]["host"] == "web01"


def test_a_report_that_cannot_be_written_is_shown_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "verify.json").mkdir()
    result, shown = report(tmp_path, {"web01": SNAPSHOT}, monkeypatch)
    assert result["failed"]
    assert f"not written: {tmp_path}/verify.json: Is a directory, give another file with verify_json" in result["msg"]
    assert [line for line in shown.splitlines() if line.startswith("web01")]
    # The other one is there, and nothing half.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["verify.html", "verify.json"]
