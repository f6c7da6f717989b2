"""Which engines a host has; how a host is read and brought back is in test_role_rollout.py and tests/fleet/test_restore.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.project import load

MODULE = Path(__file__).resolve().parents[2] / "plugins/modules/core_helper_snapshot.py"
# The client has another version than the daemon, which answers as long as there is a file.
DOCKER = """#!/bin/sh
echo "$@" >>"${0%/*}/asked"
case "$1" in
--version) echo "Docker version 28.2.2, build e6534b4" ;;
version) [ -e "${0%/*}/up" ] && echo 20.10.24+dfsg1 ;;
esac
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module, for a host with a client of Docker and with Podman."""
    pytest.importorskip("ansible.module_utils.basic")
    loaded = load(MODULE)
    for name, text in (("docker", DOCKER), ("podman", "#!/bin/sh\necho podman version 4.3.1\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(loaded, "PATH", str(tmp_path))
    return loaded


def test_the_version_of_docker_is_that_of_its_daemon(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "up").touch()
    monkeypatch.setattr(module, "runs", lambda name: name == "dockerd")
    assert module.engines() == ["docker 20.10.24+dfsg1", "podman 4.3.1"]


def test_a_daemon_that_does_not_answer_is_not_taken_for_its_client(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "runs", lambda _: True)
    assert module.engines() == ["docker without daemon (client 28.2.2)", "podman 4.3.1"]


def test_a_daemon_that_does_not_run_is_not_asked_because_that_would_start_it(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "up").touch()
    monkeypatch.setattr(module, "runs", lambda _: False)
    assert module.engines()[0] == "docker without daemon (client 28.2.2)"
    assert (tmp_path / "asked").read_text() == "--version\n"


@pytest.mark.parametrize(
    ("pattern", "owner"),
    [
        ("@@/run/systemd/coredumpd/kernel", "the socket /run/systemd/coredumpd/kernel (systemd-coredump)"),
        ("@/run/mine", "the socket /run/mine"),
        ("|/opt/dynatrace/oneagent/agent/rdp -p %p", "Dynatrace OneAgent"),
        ("|/usr/sbin/memfault-core-handler -c /etc/memfaultd.conf %P %I %s", "memfaultd"),
        ("|/usr/lib/systemd/systemd-coredump %P", "systemd-coredump"),
        ("|/usr/libexec/abrt-hook-ccpp %s", "abrt"),
        ("|/opt/bin/docker_core_helper %P %u %g /opt/apport", ""),
        ("/var/apport/core", ""),
        ("@apport", ""),
        ("|", ""),
        ("", ""),
    ],
)
def test_a_pattern_is_told_as_what_it_is(module: Any, pattern: str, owner: str) -> None:
    assert module.owners.owner_of(pattern) == owner
    assert module.owners.shown(pattern) == (f"{pattern!r}, {owner}" if owner else repr(pattern))


def test_a_process_is_found_by_the_name_of_its_program(module: Any) -> None:
    assert module.runs(Path("/proc/self/comm").read_text().strip())
    assert not module.runs("dockerd-of-nobody")
