"""The server of the module that sets the kernel's values, with a systemd that is a script."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.kernel_values import PATTERN, Kernel
from support.server_host import LIBRARY, SERVICE, SOCKET, SOCKET_PATTERN, UNITS, HostOfServer

pytest.importorskip("ansible.module_utils.testing")


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> HostOfServer:
    """Return a host that can have a server."""
    return HostOfServer(Kernel(tmp_path, capsys, monkeypatch), monkeypatch)


@pytest.mark.parametrize("mode", ["socket", "auto"])
def test_the_service_sets_the_pattern_and_the_next_boot_has_that_of_the_pipe(host: HostOfServer, mode: str) -> None:
    result = host.run(mode)
    assert result["changed"]
    assert host.kernel.live == (SOCKET_PATTERN, "64")
    assert (result["core_pattern"], result["core_pattern_at_boot"]) == (SOCKET_PATTERN, PATTERN)
    assert f"kernel.core_pattern = {PATTERN}\n" in host.kernel.sysctl_file.read_text()
    assert {path.name for path in host.units.iterdir()} == {SERVICE, SOCKET}
    # While nobody waits at the socket, the pipe takes crashes.
    assert host.said() == [
        f"{words}, {PATTERN}"
        for words in ("daemon-reload", f"enable {SOCKET} {SERVICE}", f"start {SOCKET}", f"restart {SERVICE}")
    ]


def test_a_second_run_changes_nothing(host: HostOfServer) -> None:
    host.run()
    host.said()
    before = host.state()
    result = host.run()
    assert (result["changed"], result["diff"], host.said()) == (False, [], [])
    assert host.state() == before


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.parametrize("mode", ["socket", "pipe"])
@pytest.mark.parametrize("installed", [False, True])
def test_check_mode_tells_what_a_run_does_and_does_nothing(
    host: HostOfServer, state: str, mode: str, installed: bool
) -> None:
    if installed:
        host.run()
        host.said()
    before = host.state()
    predicted = host.run(mode, state, check=True)
    assert (host.state(), host.said()) == (before, [])
    real = host.run(mode, state)
    assert {**predicted, "invocation": None} == {**real, "invocation": None}
    assert (host.state() != before) == real["changed"]


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("core_modes", "its kernel knows no core-dump socket, which Linux 6.17 and newer have"),
        ("systemd", "systemd does not run there"),
    ],
)
def test_a_host_that_cannot_have_it_is_refused_or_has_the_pipe(host: HostOfServer, missing: str, reason: str) -> None:
    if missing == "systemd":
        (host.kernel.host / "run/systemd/system").rmdir()
    else:
        (host.kernel.root / "core_modes").write_text("file\npipe\n")
    before = host.state()
    result = host.run()
    assert result["msg"].startswith(
        f"docker_core_helper_mode=socket needs another host: {reason}; set it to pipe or auto"
    )
    assert host.state() == before
    assert host.run("auto")["core_pattern"] == PATTERN
    assert (host.kernel.live, host.said(), list(host.units.iterdir())) == ((PATTERN, "64"), [], [])


@pytest.mark.parametrize("fault", ["fails", "pattern"])
@pytest.mark.parametrize("before", ["nothing", "pipe"])
def test_a_service_that_does_not_come_up_leaves_all_as_it_was(host: HostOfServer, fault: str, before: str) -> None:
    if before == "pipe":
        host.run("pipe", pipe_limit=8)
    (host.bin / fault).write_text("@@/run/other\n")
    found = host.state()
    result = host.run()
    assert result["failed"]
    expected = {
        "fails": f"systemctl restart {SERVICE}: Job for {SERVICE} failed.; journalctl --unit={SERVICE} says more",
        "pattern": f"{SERVICE} runs, and kernel.core_pattern is '@@/run/other', not '{SOCKET_PATTERN}'",
    }[fault]
    assert result["msg"].startswith(expected)
    assert host.state() == found


def test_a_new_unit_that_does_not_come_up_leaves_the_old_one_running(host: HostOfServer) -> None:
    host.run()
    before = host.state()
    # It fails once: with the new unit.
    script = (host.bin / "systemctl").read_text()
    (host.bin / "systemctl").write_text(script.replace('[ -e "$here/fails" ]', 'grep -q New "$units/$name"'))
    found = {**before, str(host.bin / "systemctl"): (host.bin / "systemctl").read_text()}
    assert host.run(service=f"{UNITS['service']}New=1\n")["failed"]
    assert host.state() == found
    assert host.kernel.live == (SOCKET_PATTERN, "64")


def test_where_neither_unit_comes_up_the_pipe_takes_crashes(host: HostOfServer) -> None:
    host.run()
    (host.bin / "fails").touch()
    result = host.run(service=f"{UNITS['service']}New=1\n")
    assert result["failed"]
    assert host.kernel.live == (PATTERN, "64")
    failed = f"systemctl restart {SERVICE}: Job for {SERVICE} failed.; journalctl --unit={SERVICE} says more"
    assert result["msg"] == (
        f"{failed}; and these could not be brought back: {SERVICE}: {failed}; kernel.core_pattern: no server waits at"
        f" {SOCKET_PATTERN!r}, so it is {PATTERN!r}: run this again when that is fixed"
    )


def test_a_run_that_ends_before_it_changes_a_value_says_that_all_is_as_before(host: HostOfServer) -> None:
    host.run()
    (host.bin / f"active-{SERVICE}").unlink()
    host.kernel.refuses = "core_pipe_limit"
    result = host.run(pipe_limit=8)
    assert result["failed"] and result["msg"].endswith("are as they were before")
    assert host.kernel.live == (SOCKET_PATTERN, "64")


@pytest.mark.parametrize("verb", ["stop", "disable", "daemon-reload"])
def test_units_that_cannot_be_taken_away_again_are_named_and_the_record_stays(host: HostOfServer, verb: str) -> None:
    (host.bin / "fails").touch()
    script = (host.bin / "systemctl").read_text()
    # Not while they are set up, but when that has failed.
    fails = f'[ "$1 $(cat "$here/last")" != "{verb} restart" ] || {{ echo "not today" >&2; exit 1; }}'
    remembers = '[ "$1" = show ] || [ -e "$here/last" ] && grep -q restart "$here/last" || echo "$1" >"$here/last"'
    (host.bin / "last").touch()
    (host.bin / "systemctl").write_text(script.replace("\ncase", f"\n{fails}\n{remembers}\ncase", 1))
    result = host.run()
    assert f"and these could not be brought back: {SERVICE}: systemctl {verb}" in result["msg"]
    assert "not today" in result["msg"] and "as they were before" not in result["msg"]
    assert host.kernel.record.exists()
    assert host.kernel.live == ("core", "0")


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        (f"active-{SERVICE}", "enabled, inactive\n"),
        (f"enabled-{SOCKET}", "disabled, active\n"),
        ("library", "enabled, active, of another version\n"),
    ],
)
def test_a_service_that_is_not_as_it_should_be_is_started_anew(
    host: HostOfServer, monkeypatch: pytest.MonkeyPatch, changed: str, shown: str
) -> None:
    entry = host.kernel.host / "docker_core_helper"
    entry.write_text(f'#!/usr/bin/python3 -IS\nLIBRARY = "{LIBRARY}"\n')
    pattern = f"|{entry} %P %u %g"
    host.run(pattern=pattern)
    assert not host.run(pattern=pattern)["changed"]
    if changed == "library":
        (host.bin / changed).write_text("/opt/lib/docker_core_helper/0123456789ab\n")
    else:
        (host.bin / changed).unlink()
    host.said()
    (step,) = host.run(pattern=pattern)["diff"]
    assert (step["after_header"], step["before"], step["after"]) == (SERVICE, shown, "enabled, active\n")
    assert host.said()[-1] == f"restart {SERVICE}, {pattern}"


def test_a_pattern_that_somebody_has_set_meanwhile_is_set_again(host: HostOfServer) -> None:
    host.run()
    host.kernel.set("core", "0")
    assert host.run()["changed"]
    assert host.kernel.live == (SOCKET_PATTERN, "64")


def test_another_socket_replaces_the_old_one_when_nobody_is_sent_there(host: HostOfServer) -> None:
    host.run()
    host.said()
    host.run(socket=f"{UNITS['socket']}Backlog=1\n")
    said = host.said()
    assert said[:2] == [f"stop {SERVICE}, {PATTERN}", f"stop {SOCKET}, {PATTERN}"]
    assert host.kernel.live == (SOCKET_PATTERN, "64")


def test_the_pipe_comes_back_before_the_service_ends(host: HostOfServer) -> None:
    host.run()
    host.said()
    assert host.run("pipe")["changed"]
    assert host.kernel.live == (PATTERN, "64")
    assert list(host.units.iterdir()) == []
    # The service first: a socket at which somebody waits would start the service again.
    assert host.said() == [
        f"stop {SERVICE}, {PATTERN}",
        f"stop {SOCKET}, {PATTERN}",
        f"disable {SOCKET} {SERVICE}, {PATTERN}",
        f"daemon-reload, {PATTERN}",
        f"reset-failed {SERVICE} {SOCKET}, {PATTERN}",
    ]
    assert not host.run("pipe")["changed"]


def test_removal_leaves_no_unit_and_restores_the_values(host: HostOfServer) -> None:
    host.kernel.set("/var/crash/core", "16")
    before = host.state()
    host.run()
    host.run("socket", "absent")
    assert host.state() == before
    assert host.said()[4].startswith(f"stop {SERVICE}, /var/crash/core")
    assert not host.run("socket", "absent")["changed"]


def test_a_removal_that_fails_at_the_service_leaves_all_as_it_was(host: HostOfServer) -> None:
    host.run()
    script = (host.bin / "systemctl").read_text()
    (host.bin / "systemctl").write_text(script.replace("\nstop)\n", '\nstop)\n    echo "not today" >&2; exit 1\n'))
    before = host.state()
    result = host.run("socket", "absent")
    assert result["msg"].startswith(f"systemctl stop {SERVICE}: not today")
    assert host.state() == before


def test_removal_restores_the_value_that_the_next_boot_would_not_set(host: HostOfServer) -> None:
    host.run()
    (host.bin / "next").write_text("|/usr/lib/systemd/systemd-coredump %P\n")
    host.run("socket", "absent")
    assert host.kernel.live == ("core", "0")


def test_a_removal_that_the_kernel_refuses_leaves_the_service_its_pattern(host: HostOfServer) -> None:
    host.run()
    before = host.state()
    host.kernel.refuses = "core_pipe_limit"
    assert "the kernel refuses '0'" in host.run("socket", "absent")["msg"]
    assert host.state() == before


@pytest.mark.parametrize("name", [SERVICE, SOCKET])
def test_a_unit_of_somebody_else_is_refused_and_a_removal_leaves_it(host: HostOfServer, name: str) -> None:
    (host.units / name).write_text("[Unit]\n")
    before = host.state()
    assert host.run()["msg"].startswith(
        f"{host.units / name} was written by somebody else, and would be lost: remove it"
    )
    assert host.state() == before
    host.run("pipe")
    host.run("pipe", "absent")
    assert (host.units / name).read_text() == "[Unit]\n"
    assert host.said() == []
