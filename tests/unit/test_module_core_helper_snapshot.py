"""Which engines a host has, and its sender; how the rest of it is brought back is in test_role_rollout.py and tests/fleet."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.kernel_values import Kernel
from support.project import load, shared
from support.sender_host import COMMENT, HostOfSender
from support.server_host import SERVICE, HostOfServer
from support.undumpable import undumpable

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


def test_programs_that_leave_no_core_in_a_container_are_found(module: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with undumpable("lab-changed"):
        # The same user, and a program that was executed after the change.
        words = ["unshare", "--pid", "--fork", "setpriv", "--reuid=65534", "--", "sh", "-c", "echo; read line"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None and other.stdout.readline() == "\n"
            found = module.undumpable()
            other.communicate()
    assert "lab-changed" in found and not {"unshare", "setpriv", "sh"} & set(found)


@pytest.mark.parametrize(
    ("secure", "pid", "cgroup", "found"),
    [
        (1, "pid:[2]", "/", ["lab"]),
        (0, "pid:[2]", "/", []),
        (1, "pid:[1]", "/", []),
        (1, "pid:[1]", f"/docker/{'a1' * 32}", ["lab"]),
    ],
)
def test_a_set_id_program_of_root_is_known_by_its_vector(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: int, pid: str, cgroup: str, found: list[str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for name, namespace in (("self", "pid:[1]"), ("7", pid), ("8", pid)):
        (tmp_path / name / "ns").mkdir(parents=True)
        (tmp_path / name / "ns/pid").symlink_to(namespace)
    content = {"cgroup": f"0::{cgroup}\n", "comm": "lab\n", "environ": ""}
    for name, text in content.items():
        (tmp_path / "7" / name).write_text(text)
    (tmp_path / "7/auxv").write_bytes(struct.pack("=6Q", 6, 4096, 23, secure, 0, 0) + b"x")
    # The eighth has ended meanwhile.
    monkeypatch.setattr(module, "PROC", str(tmp_path))
    assert module.undumpable() == found


MARK = "# Written by the Ansible role docker_core_helper; long ago\n"
SENDER = {"uploader": "#!/bin/sh\n# uploader.sh: é\n", "service": f"{MARK}# é\n", "timer": MARK}


class Recorded(HostOfSender):
    """A host with a helper, of which a record is made, and which is brought back by it."""

    def __init__(self, module: Any, root: Path, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        """Make the helper; it has no sender."""
        super().__init__(root / "host", root / "host/lib", patch)
        self.module = module
        self.capture = capture
        self.root = root / "host"
        for name in ("lib", "bin", "proc"):
            (self.root / name).mkdir(exist_ok=True)
        (self.root / "bin/docker_core_helper").write_text("#!/usr/bin/python3\n")
        for name in ("core_pattern", "core_pipe_limit"):
            (self.root / "proc" / name).write_text("1\n")
        patch.setattr(shared("kernel"), "KERNEL", str(self.root / "proc"))
        patch.setattr(shared("places"), "CONFIGURATION", str(self.root / "docker_core_helper.conf"))
        patch.setattr(shared("usable_python"), "OWNER", os.getuid())
        patch.setattr(shared("usable_python"), "GROUP", os.getgid())

    def run(self, snapshot: Any = None, check: bool = False) -> dict[str, Any]:
        """Run the module and return its result."""
        testing = pytest.importorskip("ansible.module_utils.testing")
        parameters = {
            "snapshot": snapshot,
            "bin_dir": str(self.root / "bin"),
            "lib_dir": str(self.root / "lib"),
            "sysctl_file": str(self.root / "sysctl.conf"),
            "_ansible_check_mode": check,
        }
        with testing.patch_module_args(parameters), pytest.raises(SystemExit):
            self.module.main()
        result: dict[str, Any] = json.loads(self.capture.readouterr().out.splitlines()[-1])
        assert not result.get("failed"), result
        return result

    def add_sender(self) -> None:
        """Have a sender, as the role has made it."""
        for name, content in SENDER.items():
            getattr(self, name).write_text(content)
            getattr(self, name).chmod(0o755 if name == "uploader" else 0o644)
        self.credentials.write_text(f'{MARK}KEY="not-to-be-shown"\n')
        self.link.parent.mkdir()
        self.link.symlink_to(self.timer)
        (self.bin / "active").write_text("active\n")
        self.users.write_text(f"docker-core-helper:990:{COMMENT}\n")
        (self.bin / "groups").write_text("docker-core-helper\n")


@pytest.fixture
def recorded(
    module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Recorded:
    """Return a host with a helper and without a sender."""
    return Recorded(module, tmp_path, capsys, monkeypatch)


def test_a_snapshot_has_units_and_uploader_and_no_credentials(recorded: Recorded) -> None:
    paths = {str(path) for path in (recorded.uploader, recorded.service, recorded.timer)}
    files = recorded.run()["snapshot"]["files"]
    assert {path for path in paths if files[path] is None} == paths
    recorded.add_sender()
    result = recorded.run()
    assert None not in [result["snapshot"]["files"][path] for path in paths]
    assert str(recorded.credentials) not in result["snapshot"]["files"]
    assert "not-to-be-shown" not in json.dumps(result)


@pytest.mark.parametrize("record", ["of this version", "from before there were senders"])
def test_rollback_to_a_version_without_a_sender_leaves_nothing_of_it(recorded: Recorded, record: str) -> None:
    before = recorded.run()["snapshot"]
    if record == "from before there were senders":
        for path in (recorded.uploader, recorded.service, recorded.timer):
            del before["files"][str(path)]
    recorded.add_sender()
    now = recorded.run()["snapshot"]
    predicted = recorded.run(before, check=True)
    assert (recorded.run()["snapshot"], recorded.said()) == (now, [])
    result = recorded.run(before)
    assert (result["changed"], result["diff"]) == (True, predicted["diff"])
    assert "not-to-be-shown" not in json.dumps(result)
    parts = (recorded.uploader, recorded.service, recorded.timer, recorded.link, recorded.credentials, recorded.users)
    assert [path for path in parts if path.exists() or path.is_symlink()] == []
    assert recorded.said()[0] == "systemctl disable --now docker-core-helper-sender.timer"
    assert not recorded.run(before)["changed"]


@pytest.mark.parametrize("credentials", ["there", "gone"])
def test_rollback_to_a_version_with_a_sender_brings_all_back_but_the_credentials(
    recorded: Recorded, credentials: str
) -> None:
    recorded.add_sender()
    before = recorded.run()["snapshot"]
    recorded.service.write_text(f"{MARK}another one\n")
    if credentials == "gone":
        for path in (recorded.timer, recorded.link, recorded.uploader, recorded.credentials, recorded.users):
            path.unlink()
        (recorded.bin / "active").unlink()
    predicted = recorded.run(before, check=True)
    result = recorded.run(before)
    assert (result["changed"], result["diff"]) == (True, predicted["diff"])
    assert result["snapshot"] == before
    assert recorded.credentials.exists() == (credentials == "there")
    assert recorded.users.exists() and recorded.link.is_symlink()
    assert stat.S_IMODE(recorded.uploader.stat().st_mode) == 0o755
    assert recorded.said()[-1] == "systemctl restart docker-core-helper-sender.timer"
    assert not recorded.run(before)["changed"]


@pytest.mark.parametrize(
    ("before", "now", "warned"),
    [
        (None, 'KEEP=undelivered\nDOCKERCOREHELPER_KEEP_DIRECTORY="{}"', True),
        ('KEEP=never\nDOCKERCOREHELPER_KEEP_DIRECTORY="{}"', 'KEEP=always\nDOCKERCOREHELPER_KEEP_DIRECTORY="{}"', True),
        (
            'KEEP=always\nDOCKERCOREHELPER_KEEP_DIRECTORY="{}"',
            'KEEP=undelivered\nDOCKERCOREHELPER_KEEP_DIRECTORY="{}"',
            False,
        ),
        (
            'KEEP=always\nDOCKERCOREHELPER_KEEP_DIRECTORY="{}.2"',
            'KEEP=always\nDOCKERCOREHELPER_KEEP_DIRECTORY="{}"',
            True,
        ),
        # By default.
        ("TIMEOUT=9", "KEEP=undelivered", True),
        ("KEEP=always", "KEEP=undelivered", False),
    ],
)
def test_rollback_to_a_version_that_keeps_no_cores_says_where_they_are(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch, before: str | None, now: str, warned: bool
) -> None:
    warnings: list[str] = []
    basic = pytest.importorskip("ansible.module_utils.basic")
    monkeypatch.setattr(basic.AnsibleModule, "warn", lambda module, text: warnings.append(text))
    store = recorded.root / "cores"
    monkeypatch.setattr(shared("places"), "CORES", str(store))
    configuration = recorded.root / "docker_core_helper.conf"
    if before is not None:
        configuration.write_text(f"{MARK}DOCKERCOREHELPER_{before.format(store)}\n")
    snapshot = recorded.run()["snapshot"]
    configuration.write_text(f"{MARK}DOCKERCOREHELPER_{now.format(store)}\n")
    recorded.run(snapshot, check=True)
    assert warnings == []
    (store / "group").mkdir(parents=True)
    (store / "group/x.core").touch()
    recorded.run(snapshot)
    said = f"1 core stays in {store}, and no bound or age deletes them any more: delete "
    assert [text.startswith(said) for text in warnings] == [True] * warned
    assert (store / "group/x.core").exists()


class Served(HostOfServer):
    """A host whose kernel and units the role sets up, and which is brought back by a snapshot."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Make a helper with a library."""
        super().__init__(Kernel(root, capture, monkeypatch), monkeypatch)
        self.snapshots = load(MODULE, beside=True)
        monkeypatch.setattr(self.snapshots, "PATH", str(self.bin))
        library = root / "lib/2f7c0d1e9a34"
        library.mkdir(parents=True)
        (self.bin / "library").write_text(f"{library}\n")
        self.entry = root / "docker_core_helper"
        self.entry.write_text(f'#!/usr/bin/python3 -IS\nLIBRARY = "{library}"\n')
        self.parameters = {
            "bin_dir": str(root),
            "lib_dir": str(library.parent),
            "sysctl_file": str(self.kernel.sysctl_file),
        }
        monkeypatch.setattr(shared("places"), "CONFIGURATION", str(root / "docker_core_helper.conf"))

    def set_up(self, mode: str) -> None:
        """Have the role set it up."""
        assert "msg" not in self.run(mode, pattern=f"|{self.entry} %P %u %g")
        self.said()

    def snapshot(self, before: Any = None, check: bool = False) -> dict[str, Any]:
        """Take a snapshot, or bring the host back by one."""
        testing = pytest.importorskip("ansible.module_utils.testing")
        parameters = {**self.parameters, "snapshot": before, "_ansible_check_mode": check}
        with testing.patch_module_args(parameters), pytest.raises(SystemExit):
            self.snapshots.main()
        result: dict[str, Any] = json.loads(self.kernel.capture.readouterr().out.splitlines()[-1])
        return result


@pytest.fixture
def served(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Served:
    """Return a host that can have a server."""
    pytest.importorskip("ansible.module_utils.testing")
    return Served(tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize(("mode", "other"), [("socket", "pipe"), ("pipe", "socket")])
def test_rollback_brings_the_mode_back(served: Served, mode: str, other: str) -> None:
    served.set_up(mode)
    before, state = served.snapshot()["snapshot"], served.state()
    served.set_up(other)
    predicted = served.snapshot(before, check=True)
    assert served.said() == []
    result = served.snapshot(before)
    assert (result["changed"], result["diff"]) == (True, predicted["diff"])
    assert (result["snapshot"], served.state()) == (before, state)
    # Whatever is started or stopped: crashes go to the pipe.
    assert {line.split(", ")[1] for line in served.said()} == {f"|{served.entry} %P %u %g"}
    assert not served.snapshot(before)["changed"]


def test_rollback_to_a_version_from_before_there_were_resident_helpers_leaves_no_unit(served: Served) -> None:
    served.set_up("pipe")
    before = served.snapshot()["snapshot"]
    for path in [path for path in before["files"] if path.startswith(str(served.units))]:
        del before["files"][path]
    served.set_up("socket")
    served.snapshot(before)
    assert list(served.units.iterdir()) == []
    assert served.kernel.live == (f"|{served.entry} %P %u %g", "64")


def test_rollback_restarts_a_resident_helper_of_the_newer_version(served: Served) -> None:
    served.set_up("socket")
    before = served.snapshot()["snapshot"]
    (served.bin / "library").write_text("/opt/lib/docker_core_helper/of-the-newer-one\n")
    (step,) = served.snapshot(before)["diff"]
    assert step["before"] == "enabled, active, of another version\n"
    assert f"restart {SERVICE}, |{served.entry} %P %u %g" in served.said()


def test_a_resident_helper_that_does_not_come_back_leaves_crashes_to_the_pipe(served: Served) -> None:
    served.set_up("socket")
    before = served.snapshot()["snapshot"]
    served.set_up("pipe")
    (served.bin / "fails").touch()
    (served.bin / "systemctl").write_text(
        (served.bin / "systemctl").read_text().replace("\nstop)\n", '\nstop)\n    echo "not today" >&2; exit 1\n')
    )
    message = served.snapshot(before)["msg"]
    assert message.startswith(f"systemctl restart {SERVICE}")
    assert f"; and these could not be brought back: {SERVICE}: systemctl stop {SERVICE}: not today" in message
    assert served.kernel.live == (f"|{served.entry} %P %u %g", "64")


def test_a_host_is_as_before_whatever_an_earlier_version_has_not_recorded() -> None:
    pytest.importorskip("ansible.plugins.action")
    action = load(MODULE.parents[1] / "action/core_helper_rollout.py")
    assert action.there({"/a": "x", "/b": None}) == action.there({"/a": "x"})
    assert action.there({"/a": "x", "/b": ""}) != action.there({"/a": "x"})
