"""Which delegate the canary takes the place of; its crashes are in tests/fleet/test_canary.py."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from core_helper import journal
from core_helper.configuration import Configuration, parse_configuration
from support.project import load, shared

MODULE = Path(__file__).resolve().parents[2] / "plugins/modules/core_helper_canary.py"


@pytest.fixture(scope="module")
def canary() -> dict[str, Any]:
    """Return what the module defines."""
    pytest.importorskip("ansible.module_utils.basic")
    defined: dict[str, Any] = vars(load(MODULE))
    return defined


@pytest.mark.parametrize(
    "text",
    [
        "",
        "DOCKERCOREHELPER_TIMEOUT=3",
        "DOCKERCOREHELPER_DELEGATE=/opt/a b",
        'DOCKERCOREHELPER_DELEGATE="/opt/a b"',
        "DOCKERCOREHELPER_DELEGATE=\"'/opt/a b' c\"",
        "DOCKERCOREHELPER_DELEGATE='/opt/a\\ b c'",
        'DOCKERCOREHELPER_DELEGATE="/opt/a \\"b c\\" \\\\x"',
        "# no\n  DOCKERCOREHELPER_DELEGATE=/first\nDOCKERCOREHELPER_DELEGATE=/second # word\n",
        "DOCKERCOREHELPER_DELEGATE=",
    ],
)
def test_the_configuration_is_read_as_the_helper_reads_it(canary: dict[str, Any], text: str) -> None:
    configuration = Configuration()
    parse_configuration(text.encode(), "test", configuration)
    assert configuration.problems == []
    assert canary["words_of_configuration"](text) == [word.decode() for word in configuration.delegate]


def test_root_reads_the_core_and_nothing_that_another_process_of_nobody_has_put_there(
    canary: dict[str, Any], tmp_path: Path
) -> None:
    read_core = shared("canary_crash").read_core
    core = tmp_path / "core"
    core.write_bytes(b"core")
    (tmp_path / "link").symlink_to(core)
    os.mkfifo(tmp_path / "pipe")
    assert read_core(str(core)) == b"core"
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=name):
            read_core(str(tmp_path / name))


# The crash in a container of an image, with a program of the test in the engine's place.

CONTAINER = "5a6fa8a5079b"
DELEGATE = "/opt/bin/uploader.sh"
HEAD = f'pid=7 (8 in its namespace) uid=0 gid=0 signal=11 (SIGSEGV) comm="sh" exe="/bin/dash" container={CONTAINER} host="x"'
SAID = f"pid=7 container={CONTAINER}: delegate: uploader.sh: s3://cores/x/sh.8.core"
DELIVERED = f"{HEAD}: delivered 4096 bytes to {DELEGATE} in 0.250 s"
ENGINE = """#!/bin/sh
echo "$*" >>"$STATE/asked"
case "$1" in
version) [ ! -e "$STATE/down" ] || { echo "Cannot connect to the Docker daemon" >&2; exit 1; } ;;
image) [ -e "$STATE/image" ] ;;
pull) [ ! -e "$STATE/missing" ] || { echo "pull access denied for $3" >&2; exit 1; }; touch "$STATE/image" ;;
create) touch "$STATE/container"; echo 5a6fa8a5079bffffffff ;;
start)
    [ ! -e "$STATE/slow" ] || exec sleep 60
    [ ! -e "$STATE/no-shell" ] || { echo "exec: /bin/sh: no such file or directory" >&2; exit 127; } ;;
rm) rm -f "$STATE/container" ;;
ps) [ ! -e "$STATE/container" ] || echo 5a6fa8a5079b ;;
*) exit 99 ;;
esac
"""


class Machine:
    """The host of an engine and a log."""

    def __init__(self, directory: Path, module: Any) -> None:
        self.state = directory
        self.module = module
        self.lines: list[str] = []
        self.warnings: list[str] = []
        (directory / "bin").mkdir()
        self.add_engine("docker")

    def add_engine(self, name: str) -> None:
        program = self.state / "bin" / name
        program.write_text(ENGINE)
        program.chmod(0o755)

    def crash(self, pull: bool = False, timeout: float = 5, delegate: str = DELEGATE) -> dict[str, Any]:
        options = ["--env", "CORE_DESTINATION=s3://cores/"]
        found: dict[str, Any] = self.module.crash_in_container(
            delegate, "shop:1.0", options, pull, timeout, self.warnings
        )
        return found

    def asked(self) -> str:
        return (self.state / "asked").read_text()


@pytest.fixture
def machine(canary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a host with an image, whose log the test writes."""
    module = shared("canary_container")
    machine = Machine(tmp_path, module)
    (tmp_path / "image").touch()
    monkeypatch.setenv("STATE", str(tmp_path))
    # Nothing of this machine but what the program of the test itself needs.
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    for name in ("touch", "rm", "sleep"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    monkeypatch.setattr(module, "PATH", "")
    monkeypatch.setattr(module, "LOG_SECONDS", 0.3)

    class Log:
        def read(self, container: str) -> list[str]:
            return [line for line in machine.lines if container in line]

        def close(self) -> None:
            pass

    monkeypatch.setattr(module, "Log", Log)
    return machine


def test_what_the_delegate_has_made_of_the_core_is_told_with_what_it_said(machine: Machine) -> None:
    machine.lines = [SAID, DELIVERED]
    found = machine.crash()
    assert (found["outcome"], found["size"], found["seconds"], found["engine"]) == ("delivered", 4096, 0.25, "docker")
    assert found["verdict"] == (
        f"{DELEGATE} has read all 4096 bytes and ended with exit code 0; it said: uploader.sh: s3://cores/x/sh.8.core"
    )
    (created,) = re.findall(r"^create (.*)", machine.asked(), re.M)
    assert created.startswith("--env CORE_DESTINATION=s3://cores/ --rm --name=docker-core-helper-canary-")
    assert created.endswith("--entrypoint=/bin/sh shop:1.0 -c /bin/sh -c 'kill -s SEGV $$'; exit 0")
    assert "pull" not in machine.asked()
    assert not (machine.state / "container").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"{HEAD}: not wanted by {DELEGATE}: it read nothing and ended with exit code 0", "not wanted by"),
        (f"{HEAD}: not delivered: it stopped reading: 10 bytes to {DELEGATE} in 0.1 s, truncated", "stopped reading"),
        (f"{HEAD}: not delivered: it ended with exit code 74: 10 bytes to {DELEGATE} in 0.1 s", "exit code 74"),
        (f"{HEAD}: core dropped: {DELEGATE}: No such file", "No such file"),
        (f"{HEAD}: {DELEGATE}: No such file: delivered 10 bytes to /tmp/core.8.0.0 in 0.1 s", "No such file"),
        (f"{HEAD}: delivered 10 bytes to /opt/bin/other in 0.1 s", "/opt/bin/other"),
        (f"{HEAD}: passed to the previous handler /usr/lib/systemd/systemd-coredump", "passed to the previous handler"),
    ],
)
def test_whatever_else_became_of_the_core_it_is_lost(machine: Machine, line: str, reason: str) -> None:
    machine.lines = [SAID, line]
    with pytest.raises(shared("canary_crash").LostError, match=reason) as error:
        machine.crash()
    assert str(error.value).startswith(f"{DELEGATE} has not taken all of it: ")
    assert str(error.value).endswith("; it said: uploader.sh: s3://cores/x/sh.8.core")
    assert not (machine.state / "container").exists()


def test_a_refusal_of_the_helper_is_told(machine: Machine) -> None:
    refused = "core not delivered, 0 bytes: kernel.core_pipe_limit is 0"
    machine.lines = [f'pid=7 uid=0 gid=0 comm="sh" container={CONTAINER}: {refused}']
    with pytest.raises(shared("canary_crash").LostError, match=f"it did not reach {DELEGATE}: {refused}"):
        machine.crash()


def test_a_delegate_cannot_say_in_the_helpers_name_that_it_has_the_core(machine: Machine) -> None:
    machine.lines = [f"pid=7 container={CONTAINER}: delegate: {DELIVERED}"]
    with pytest.raises(shared("canary_crash").LostError, match="the host's log has no line about what became of it"):
        machine.crash()


def test_another_container_says_nothing_of_this_one(machine: Machine) -> None:
    machine.lines = [DELIVERED.replace(CONTAINER, "0" * 12)]
    with pytest.raises(shared("canary_crash").LostError, match=f"the crash was in container {CONTAINER}"):
        machine.crash()


@pytest.mark.parametrize("more", [' name="shop-1" host="x"', ' name="a" pod="b/c" host="x"', ' host="x" left_out=3'])
def test_the_helper_may_say_more_about_the_container(machine: Machine, more: str) -> None:
    machine.lines = [DELIVERED.replace(' host="x"', more)]
    assert machine.crash()["outcome"] == "delivered"


def test_a_path_is_compared_as_the_helper_writes_it(machine: Machine) -> None:
    machine.lines = [f"{HEAD}: delivered 4096 bytes to /opt/\\xc3\\xa9 in 0.250 s"]
    assert machine.crash(delegate="/opt/é")["outcome"] == "delivered"


def test_a_host_without_the_image_is_refused_and_fetches_it_if_asked(machine: Machine) -> None:
    (machine.state / "image").unlink()
    with pytest.raises(shared("canary_root").SetupError) as error:
        machine.crash()
    assert str(error.value) == (
        "the image shop:1.0 is not on this host: fetch it there by docker, correct docker_core_helper_canary_image, or set"
        " docker_core_helper_canary_pull"
    )
    assert "pull" not in machine.asked() and "create" not in machine.asked()
    machine.lines = [DELIVERED]
    assert machine.crash(pull=True)["outcome"] == "delivered"
    assert "pull --quiet shop:1.0" in machine.asked()


def test_an_image_that_cannot_be_fetched_is_one_line(machine: Machine) -> None:
    (machine.state / "image").unlink()
    (machine.state / "missing").touch()
    with pytest.raises(shared("canary_root").SetupError) as error:
        machine.crash(pull=True)
    assert str(error.value) == "docker cannot fetch shop:1.0: pull access denied for shop:1.0"


def test_a_host_without_an_engine_is_refused(machine: Machine) -> None:
    (machine.state / "bin/docker").unlink()
    with pytest.raises(shared("canary_root").SetupError, match="there is no docker and no podman on this host"):
        machine.crash()


def test_an_engine_that_is_down_is_one_line(machine: Machine) -> None:
    (machine.state / "down").touch()
    with pytest.raises(
        shared("canary_root").SetupError, match=r"^docker does not answer: Cannot connect to the Docker"
    ):
        machine.crash()


def test_an_image_without_a_shell_is_no_lost_core(machine: Machine) -> None:
    (machine.state / "no-shell").touch()
    with pytest.raises(shared("canary_root").SetupError, match=r"cannot run /bin/sh in a container of shop:1\.0: exec"):
        machine.crash()
    assert not (machine.state / "container").exists()


def test_a_crash_without_an_end_is_not_waited_for_and_its_container_goes(machine: Machine) -> None:
    (machine.state / "slow").touch()
    with pytest.raises(shared("canary_crash").LostError, match=r"uploader\.sh has not ended within 0\.5 seconds"):
        machine.crash(timeout=0.5)
    assert not (machine.state / "container").exists()


def test_a_container_that_cannot_be_removed_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.lines = [DELIVERED]
    monkeypatch.setattr(machine.module, "ENGINE_SECONDS", 1)
    (machine.state / "bin/rm").unlink()
    assert machine.crash()["outcome"] == "delivered"
    (warning,) = machine.warnings
    assert "is still on this host, remove it: docker rm --force docker-core-helper-canary-" in warning


def test_the_log_is_read_from_now_on_and_what_others_write_there_does_not_count(
    canary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = shared("canary_log")
    path = tmp_path / "syslog"
    line = f"Nov 29 11:00:00 shop-1 docker_core_helper[9]: {DELIVERED}\n"
    path.write_text(line.replace("4096", "1"))
    monkeypatch.setattr(module, "FILES", (str(path), str(tmp_path / "nowhere")))
    monkeypatch.setattr(module, "JOURNAL", str(tmp_path / "nowhere"))
    monkeypatch.setattr(module, "KERNEL_LOG", str(tmp_path / "nowhere"))
    log = module.Log()
    assert log.read(CONTAINER) == []
    with open(path, "a") as file:
        file.write(f"Nov 29 11:00:01 shop-1 sshd[8]: {DELIVERED}\n{line}{line.replace(CONTAINER, '0' * 12)}")
    assert log.read(CONTAINER) == [DELIVERED]
    path.write_text(line.partition("shop-1 ")[2])
    assert log.read(CONTAINER) == [DELIVERED], "a new file is read from its beginning"
    log.close()


def test_the_journal_is_asked_for_what_came_after_the_cursor(
    canary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = shared("canary_log")
    (tmp_path / "journalctl").write_text(
        f"""#!/bin/sh
case "$*" in
*--show-cursor*) echo "-- cursor: s=1;i=2" ;;
*"--identifier=docker_core_helper"*"--after-cursor=s=1;i=2 _UID=0") echo '29 x docker_core_helper[9]: {DELIVERED}' ;;
esac
"""
    )
    (tmp_path / "journalctl").chmod(0o755)
    (tmp_path / "socket").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "FILES", ())
    monkeypatch.setattr(module, "JOURNAL", str(tmp_path / "socket"))
    monkeypatch.setattr(module, "KERNEL_LOG", str(tmp_path / "nowhere"))
    assert module.Log().read(CONTAINER) == [DELIVERED]


def test_the_canary_reads_a_path_as_the_helper_writes_it() -> None:
    """The module goes to the host alone, so it cannot import the helper."""
    load(MODULE)
    path = "".join(map(chr, range(1, 256))) + "\N{EURO SIGN}"
    assert shared("canary_container").escape(path) == journal.escape(path.encode())
