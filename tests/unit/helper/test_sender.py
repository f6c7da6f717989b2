"""sender: cores of the store go to a program of the host, and those that it has taken go from the store."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from core_helper import cores, finishing, sender, store
from core_helper.configuration import ALWAYS, UNDELIVERED, Configuration
from unit.helper.test_cores import CORE, put

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
HELPER = Path(__file__).resolve().parents[3] / "helper"
NOBODY = pwd.getpwnam("nobody")


class Host:
    """A host with a store, a program that sends, and a configuration."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the program write what it gets below ``root``."""
        self.directory = root / "cores"
        self.sent = root / "sent"
        self.sent.mkdir()
        self.sent.chmod(0o777)
        self.program = root / "program"
        self.credentials = root / "credentials"
        self.configuration = Configuration()
        self.configuration.keep = UNDELIVERED
        self.configuration.keep_directory = str(self.directory)
        self.configuration.sender = [os.fsencode(self.program), b"word"]
        self.does('cat >"$CORE_KEY"; env >env; echo "$*" >words; cat /proc/self/status >status; ulimit -c >limit')
        monkeypatch.setattr(sender, "USER", "nobody")
        monkeypatch.setattr(sender, "CREDENTIALS", str(self.credentials))
        monkeypatch.setattr(cores, "read_configuration", lambda: self.configuration)
        # The command changes them.
        self.before = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def does(self, script: str) -> None:
        """Have the program do something else."""
        self.program.write_text(f"#!/bin/sh\ncd '{self.sent}'\n{script}\n")
        self.program.chmod(0o755)

    def send(self, *names: str) -> int:
        """Run the command, and return its exit code."""
        return cores.run(["send", *names])

    def read(self, name: str) -> str:
        return (self.sent / name).read_text()

    def keys(self) -> list[str]:
        """Return the keys of the cores that are still there."""
        return sorted(path.stem for path in self.directory.glob("*/*.json"))

    def known(self, key: str) -> Any:
        """Return what is known of a core."""
        return json.loads((self.directory / f"container-abc/{key}.json").read_text())


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    # Other users may not enter what pytest makes.
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        found = Host(Path(root), monkeypatch)
        yield found
    for number, action in found.before.items():
        if number not in (signal.SIGKILL, signal.SIGSTOP) and action is not None:
            signal.signal(number, action)


@pytest.mark.parametrize("packed", [False, True])
def test_the_program_gets_the_core_and_the_facts_and_the_core_goes(
    host: Host, packed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if packed and shutil.which("zstd") is None:
        pytest.skip("there is no zstd here")
    put(
        host.directory,
        "node.aaaa",
        packed=packed,
        facts={"CORE_KEY": "node.aaaa", "CORE_EXE": "/shop é", "CORE_TIMEOUT": "0"},
    )
    host.credentials.write_text('# ours\nAWS_SECRET_ACCESS_KEY="a b\\"c"\n\nCORE_EXE=forged\n')
    host.credentials.chmod(0o600)
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "1")
    assert host.send() == 0
    assert capsys.readouterr().out == "node.aaaa: sent\n"
    assert (host.sent / "node.aaaa").read_bytes() == CORE
    assert host.keys() == [] and not list(host.directory.glob("container*"))
    variables = dict(line.split("=", 1) for line in host.read("env").splitlines())
    for name in ("PWD", "OLDPWD", "SHLVL", "_"):  # The shell's own.
        variables.pop(name, None)
    assert variables == {
        "AWS_SECRET_ACCESS_KEY": 'a b"c',
        "CORE_EXE": "/shop é",
        "CORE_KEY": "node.aaaa",
        "CORE_SHA256": hashlib.sha256(CORE).hexdigest(),
        "CORE_SIZE": str(len(CORE)),
        "CORE_TRUNCATED": "0",
        "CORE_TIMEOUT": "300",
        "HOME": "/",
        "PATH": sender.PATH.decode(),
    }
    assert host.read("words") == "word\n"


def test_the_program_is_told_the_checksum_and_the_build_ids_where_they_are_known(host: Host) -> None:
    put(host.directory, "node.aaaa", sha256="0f" * 32, build_ids={"/shop \u00e9": "1234"})
    assert host.send() == 0
    told = host.read("env").splitlines()
    assert f"CORE_SHA256={'0f' * 32}" in told and 'CORE_BUILD_IDS={"/shop \\u00e9": "1234"}' in told


def test_build_ids_that_no_variable_can_hold_are_left_out(host: Host) -> None:
    put(host.directory, "node.aaaa", build_ids={"/x" * 50_000: "1234"})
    assert host.send() == 0
    assert "CORE_BUILD_IDS" not in host.read("env")


def test_the_program_is_a_user_without_privileges(host: Host) -> None:
    put(host.directory, "node.aaaa", facts={"CORE_KEY": "key"})
    assert host.send() == 0
    status = dict(line.split(":\t", 1) for line in host.read("status").splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == {str(NOBODY.pw_uid)}
    assert set(status["Gid"].split()) == {str(NOBODY.pw_gid)}
    assert status["Groups"].strip() == ""
    assert {status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    # The C library keeps two signals for itself, which a caller may have ignored.
    assert [number for number in signal.valid_signals() if int(status["SigIgn"], 16) >> number - 1 & 1] == []
    # What it writes is for nobody else.
    assert (host.sent / "key").stat().st_mode & 0o777 == 0o600
    # Its own crash does not call the helper.
    assert host.read("limit").strip() == "0"  # 1 byte, in blocks of 512.


def test_the_program_lets_all_others_have_the_processors_first(host: Host) -> None:
    host.does("cat >/dev/null; nice >nice; cat /proc/self/autogroup >autogroup; true")
    put(host.directory, "node.aaaa")
    before = os.nice(0)
    assert host.send() == 0
    assert host.read("nice") == "19\n" and os.nice(0) == before
    # Empty where the kernel was built without such groups.
    assert host.read("autogroup").rpartition(" ")[2] in ("", "19\n")


@pytest.mark.skipif(shutil.which("zstd") is None, reason="there is no zstd here")
def test_whatever_decompresses_a_core_lets_all_others_go_first(host: Host) -> None:
    host.does("ps --ppid $PPID -o ni=,args= >processes; cat >/dev/null")
    put(host.directory, "node.aaaa", packed=True, content=os.urandom(1 << 20))
    assert host.send() == 0
    assert [line.split()[0] for line in host.read("processes").splitlines() if line.endswith("zstd -d -q -c")] == ["19"]


def test_the_program_holds_no_descriptor_of_the_store(host: Host) -> None:
    host.does('cat >/dev/null; for file in /proc/$$/fd/*; do readlink "$file"; done >files; true')
    put(host.directory, "node.aaaa")
    assert host.send() == 0
    inside = [line for line in host.read("files").splitlines() if str(host.directory) in line]
    assert inside == [str(host.directory / "container-abc/node.aaaa.core")]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("cat >/dev/null; exit 3", "it ended with exit code 3"),
        ("cat >/dev/null; kill -KILL $$", "it was killed by signal 9"),
        ("exit 0", "it ended with exit code 0, and had not read all"),
        ("head -c 100 >/dev/null", "it ended with exit code 0, and had not read all"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_not_taken_stays_and_the_next_core_is_tried(
    host: Host, script: str, words: str, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if packed and shutil.which("zstd") is None:
        pytest.skip("there is no zstd here")
    host.does(f"[ $CORE_KEY = good ] && exec cat >/dev/null; {script}")
    put(host.directory, "node.aaaa", packed=packed, facts={"CORE_KEY": "bad"}, content=os.urandom(1 << 20))
    put(host.directory, "node.bbbb", facts={"CORE_KEY": "good"})
    assert host.send() == 1
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        f"docker_core_helper: node.aaaa: not sent: {words}",
        f"docker_core_helper: 1 of 2 cores were not sent, or not removed, and stay in {host.directory}",
    ]
    assert host.keys() == ["node.aaaa"]
    noted = host.known("node.aaaa")["sending"]
    assert (noted["attempts"], noted["failure"]) == (1, words)
    assert abs(noted["at"] - time.time()) < 60


def test_a_store_that_is_away_ends_the_run(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.does("cat >/dev/null; echo x >>tries; exit 75")
    for number in range(3):
        put(host.directory, f"node.{number}")
    assert host.send() == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "docker_core_helper: 2 more were not tried, since they would have no better luck"
    )
    assert host.read("tries") == "x\n"
    assert len(host.keys()) == 3


def test_a_core_waits_longer_after_each_try(host: Host) -> None:
    host.does("cat >/dev/null; echo x >>tries; exit 1")
    put(host.directory, "node.aaaa")
    assert host.send() == 1
    assert host.send() == 0 and host.read("tries") == "x\n"
    assert host.send("aaaa") == 1 and host.read("tries") == "x\nx\n"
    assert host.known("node.aaaa")["sending"]["attempts"] == 2


@pytest.mark.parametrize(
    ("attempts", "ago", "due"),
    [
        (1, 299, False),
        (1, 301, True),
        (2, 599, False),
        (2, 601, True),
        (900, 21599, False),
        (900, 21601, True),
        (9, -1, True),
    ],
)
def test_when_the_next_try_is(attempts: int, ago: int, due: bool) -> None:
    assert sender.is_due({"sending": {"attempts": attempts, "at": 100_000 - ago}}, 100_000) is due


def test_what_was_delivered_is_not_sent_again(host: Host) -> None:
    host.configuration.keep = ALWAYS
    put(host.directory, "node.aaaa", delivered=True)
    put(host.directory, "node.bbbb", delivered=False, sending={"attempts": 1, "at": 0, "failure": ""})
    assert host.send() == 0
    assert host.keys() == ["node.aaaa", "node.bbbb"]
    assert host.known("node.bbbb")["delivered"] is True and "sending" not in host.known("node.bbbb")
    (host.sent / "words").unlink()
    assert host.send() == 0 and not (host.sent / "words").exists()
    assert host.send("aaaa") == 0 and (host.sent / "words").exists()


def test_a_core_that_another_process_holds_is_left_to_it(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    with open(put(host.directory, "node.aaaa"), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert host.send() == 0 and capsys.readouterr().out == ""
        assert host.send("aaaa") == 1
        assert "node.aaaa: another process still works on it" in capsys.readouterr().err
    assert host.keys() == ["node.aaaa"] and "sending" not in host.known("node.aaaa")


def test_nobody_compresses_a_core_while_it_is_sent(host: Host) -> None:
    host.does("mkfifo gate; : <gate; cat >/dev/null; exit 1")
    file = put(host.directory, "node.aaaa")
    known = host.known("node.aaaa")
    del known["sha256"]
    file.with_suffix(".json").write_text(json.dumps(known))
    with running(host):
        wait_for((host.sent / "gate").exists)
        finishing.finish_all(store.Store(str(host.directory)), host.configuration)
        assert file.exists() and "sha256" not in host.known("node.aaaa")
        (host.sent / "gate").write_text("")


def test_a_core_that_was_deleted_meanwhile_does_not_come_back(host: Host) -> None:
    host.does("mkfifo gate; : <gate; cat >/dev/null; exit 1")
    put(host.directory, "node.aaaa")
    with running(host):
        wait_for((host.sent / "gate").exists)
        assert cores.run(["remove", "aaaa"]) == 0
        (host.sent / "gate").write_text("")
    assert host.keys() == [] and list(host.directory.glob("*/*")) == []


def test_only_one_process_sends(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    put(host.directory, "node.aaaa")
    turn = store.Store(str(host.directory)).turn(store.SENDING)
    assert turn is not None
    assert host.send() == 1 and "another docker_core_helper sends the cores" in capsys.readouterr().err
    os.close(turn)
    assert host.send() == 0


@pytest.mark.parametrize("packed", [False, True])
def test_a_program_that_reads_nothing_any_more_is_ended_before_its_input_ends(
    host: Host, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if packed and shutil.which("zstd") is None:
        pytest.skip("there is no zstd here")
    host.configuration.timeout, host.configuration.timeout_max = 1, 600
    host.does(
        "trap 'exec echo ended >how' TERM; head -c 4096 >/dev/null; mkfifo gate; read x <gate; cat; echo all >how"
    )
    put(host.directory, "node.aaaa", packed=packed, content=os.urandom(4 << 20))
    put(host.directory, "node.bbbb")
    assert host.send() == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "node.aaaa: not sent: it was ended after" in first and "1 more were not tried" in second
    assert host.read("how") == "ended\n"


def test_a_program_that_goes_on_reading_has_more_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.configuration.timeout = 1.5
    monkeypatch.setattr(sender, "LOOK", 0.1)
    host.does("for turn in 1 2 3 4; do head -c 100000 >/dev/null; sleep 0.7; done; cat >/dev/null")
    put(host.directory, "node.aaaa", content=os.urandom(500_000))
    assert host.send() == 0


def test_a_program_that_reads_one_core_for_ever_leaves_the_others_their_turn(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host.configuration.timeout = host.configuration.timeout_max = 1
    monkeypatch.setattr(sender, "LOOK", 0.1)
    host.does("[ $CORE_KEY = small ] && exec cat >/dev/null; while head -c 1000 >/dev/null; do sleep 0.1; done")
    put(host.directory, "node.aaaa", facts={"CORE_KEY": "huge"}, content=os.urandom(4 << 20))
    put(host.directory, "node.bbbb", facts={"CORE_KEY": "small"})
    assert host.send() == 1
    assert host.keys() == ["node.aaaa"]
    assert "it was ended after 1 s (docker_core_helper_timeout_max)" in capsys.readouterr().err


def test_cores_are_sent_in_turns_of_their_groups_and_those_that_were_tried_come_last() -> None:
    tried = {"attempts": 1, "at": 0}
    cores: list[Any] = [
        *({"group": "loop", "key": key} for key in "abc"),
        {"group": "loop", "key": "d", "sending": tried},
        {"group": "other", "key": "e"},
        {"group": "third", "key": "f", "sending": tried},
        {"group": "other", "key": "g"},
    ]
    assert [core["key"] for core in sender.in_turn(cores)] == list("aebgcdf")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_program_before_its_input_ends(host: Host, number: signal.Signals) -> None:
    # A shell that opens a pipe just when the signal comes waits for ever, and does not see the signal.
    host.does("trap 'exec echo ended >how' TERM; : >gate; while :; do sleep 0.01; done")
    put(host.directory, "node.aaaa")
    put(host.directory, "node.bbbb")
    with running(host, code=1) as process:
        wait_for((host.sent / "gate").exists)
        process.send_signal(number)
        _out, said = process.communicate(timeout=30)
    assert said.splitlines()[-1] == (
        f"docker_core_helper: stopped by {number.name}: what was not sent stays in {host.directory}"
    )
    wait_for((host.sent / "how").exists)
    assert host.read("how") == "ended\n"
    assert host.keys() == ["node.aaaa", "node.bbbb"] and "sending" not in host.known("node.aaaa")


@pytest.mark.parametrize("packed", [False, True])
def test_a_signal_while_the_program_starts_ends_it(host: Host, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if packed and shutil.which("zstd") is None:
        pytest.skip("there is no zstd here")
    started = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]  # Python 3.8 knows no other name.
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            started.append(self)
            # Not to another thread, which an earlier test may have left; the program has none.
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    monkeypatch.setattr(sender, "Popen", Interrupted)
    host.does("while :; do sleep 0.01; done")
    put(host.directory, "node.aaaa", packed=packed)
    assert host.send() == 1
    assert [process.poll() is None for process in started] == [False] * len(started)
    assert host.keys() == ["node.aaaa"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_program_whose_sender_is_killed_still_gets_the_whole_core(host: Host, packed: bool) -> None:
    if packed and shutil.which("zstd") is None:
        pytest.skip("there is no zstd here")
    content = os.urandom(1 << 20)
    host.does("mkfifo gate; : <gate; cat >part; mv part core")
    put(host.directory, "node.aaaa", packed=packed, content=content)
    with running(host, code=-signal.SIGKILL) as process:
        wait_for((host.sent / "gate").exists)
        process.kill()
        process.wait()
        (host.sent / "gate").write_text("")
    wait_for((host.sent / "core").exists)
    assert (host.sent / "core").read_bytes() == content
    assert host.keys() == ["node.aaaa"]


def test_an_ignored_sigchld_hides_no_failure(host: Host) -> None:
    host.does("cat >/dev/null; exit 1")
    put(host.directory, "node.aaaa")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    assert host.send() == 1
    assert host.keys() == ["node.aaaa"]


def test_a_core_that_was_tried_is_no_younger_for_it(host: Host) -> None:
    host.does("cat >/dev/null; exit 1")
    file = put(host.directory, "node.aaaa")
    before = int(time.time()) - 1000
    for path in (file, file.with_suffix(".json")):
        os.utime(path, (before, before))
    host.send()
    (entry,) = store.Store(str(host.directory)).entries()
    assert entry.time == before


def test_a_core_that_is_too_old_goes_before_it_is_sent(host: Host) -> None:
    host.configuration.keep_age = 1
    os.utime(put(host.directory, "node.aaaa"), (time.time() - 2 * store.DAY,) * 2)
    put(host.directory, "node.bbbb")
    assert host.send() == 0
    assert host.keys() == [] and not (host.sent / "node.aaaa").exists() and (host.sent / "node.bbbb").exists()


def test_a_process_that_was_killed_while_it_described_a_core_is_no_obstacle(host: Host) -> None:
    host.does("cat >/dev/null; exit 1")
    file = put(host.directory, "node.aaaa")
    file.with_name(".node.aaaa.json.part").write_text("{")
    assert host.send() == 1
    assert host.known("node.aaaa")["sending"]["attempts"] == 1


def change(host: Host, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something be wrong."""
    if what == "no program":
        host.configuration.sender = []
    elif what == "program is missing":
        host.program.unlink()
    elif what == "program may not be executed":
        host.program.chmod(0o700)
    elif what == "no user":
        monkeypatch.setattr(sender, "USER", "no-such-user")
    elif what == "user is root":
        monkeypatch.setattr(sender, "USER", "root")
    elif what == "others read the credentials":
        host.credentials.write_text("A=1\n")
        host.credentials.chmod(0o640)
    elif what == "credentials are a link":
        host.credentials.symlink_to("/etc/passwd")
    elif what == "credentials of another user":
        host.credentials.write_text("A=1\n")
        host.credentials.chmod(0o600)
        os.chown(host.credentials, NOBODY.pw_uid, 0)
    else:
        host.credentials.write_text(what)
        host.credentials.chmod(0o600)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no program", "name it by DOCKERCOREHELPER_SENDER in /etc/docker_core_helper.conf"),
        ("program is missing", "program: No such file or directory: see whether user"),
        ("program may not be executed", "program: Permission denied: see whether user"),
        ("no user", "there is no user no-such-user, as whom cores are sent: useradd --system no-such-user"),
        ("user is root", "the user root is root: give it a uid of its own"),
        ("others read the credentials", "credentials: only root may read it: chown root"),
        ("credentials are a link", "credentials: Too many levels of symbolic links"),
        ("credentials of another user", "credentials: only root may read it: chown root"),
        ("A=1\nsecret\n", "credentials, line 2: NAME=VALUE expected"),
        ("A-B=secret\n", "credentials, line 1: NAME=VALUE expected"),
        ('A="secret\n', "credentials, line 1: the value of 'A' has a quote that is not closed"),
    ],
)
def test_what_is_wrong_has_one_line_and_no_core_is_touched(
    host: Host, what: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host.directory, "node.aaaa")
    change(host, what, monkeypatch)
    assert host.send() == 1
    told = capsys.readouterr()
    assert words in told.err and "secret" not in told.err and len(told.err.splitlines()) <= 2
    assert host.keys() == ["node.aaaa"] and "sending" not in host.known("node.aaaa")


def test_where_no_core_is_kept_there_is_nothing_to_send(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert host.send() == 0
    assert capsys.readouterr().out.startswith("no core is kept in ")
    host.directory.mkdir(mode=0o700)
    assert host.send() == 0
    assert host.send("aaaa") == 1


class running:  # noqa: N801 (used as a statement)
    """The command, in a process of its own until the end of the block."""

    def __init__(self, host: Host, code: int | None = None) -> None:
        """Take the configuration of ``host``, and the exit code that is expected."""
        self.host = host
        self.code = code

    def __enter__(self) -> subprocess.Popen[str]:
        """Start it."""
        configuration = self.host.configuration
        script = f"""
import sys
sys.path.insert(0, {str(HELPER)!r})
from core_helper import cores, sender, store
from core_helper.configuration import Configuration
store.is_key = bool
found = Configuration()
vars(found).update({vars(configuration)!r})
cores.read_configuration = lambda: found
sender.USER = "nobody"
sender.CREDENTIALS = "/nowhere"
sys.exit(cores.run(["send"]))
"""
        self.process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
        return self.process

    def __exit__(self, *_: object) -> None:
        """Wait for its end."""
        try:
            self.process.communicate(timeout=30)
        finally:
            self.process.kill()
        assert self.code is None or self.process.returncode == self.code


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit, "it does not happen"
        threading.Event().wait(0.01)


@pytest.mark.parametrize("number", [errno.EIO, errno.ELOOP])
def test_a_core_that_the_disk_cannot_read_does_not_hold_up_the_others(
    host: Host, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(host.directory, "node.aaaa")
    put(host.directory, "node.bbbb")
    real: Any = os.open

    def damaged(path: Any, *words: Any, **named: Any) -> int:
        if str(path).endswith("node.aaaa.core"):
            raise OSError(number, os.strerror(number), path)
        descriptor: int = real(path, *words, **named)
        return descriptor

    monkeypatch.setattr(os, "open", damaged)
    assert host.send() == 1
    assert f"node.aaaa: not sent: {os.strerror(number)}\n" in capsys.readouterr().err
    assert host.keys() == ["node.aaaa"]
    assert host.known("node.aaaa")["sending"]["attempts"] == 1


def test_facts_that_no_program_can_have_cost_their_own_core_alone(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    put(host.directory, "node.aaaa", facts={"CORE_KEY": "x" * (1 << 18)})
    put(host.directory, "node.bbbb", facts={"CORE_KEY": "a\0b"})
    put(host.directory, "node.cccc")
    assert host.send() == 1
    assert host.keys() == ["node.aaaa", "node.bbbb"]
    assert [host.known(key)["sending"]["attempts"] for key in ("node.aaaa", "node.bbbb")] == [1, 1]


def test_a_try_that_cannot_be_noted_does_not_hold_up_the_other_cores(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host.does("[ $CORE_KEY = bad ] && exit 1; exec cat >/dev/null")
    put(host.directory, "node.aaaa", facts={"CORE_KEY": "bad"})
    put(host.directory, "node.bbbb")

    def full(*words: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "describe", full)
    assert host.send() == 1
    told = "node.aaaa: not sent: it ended with exit code 1; the try is not noted: No space left on device\n"
    assert told in capsys.readouterr().err
    assert host.keys() == ["node.aaaa"]


def test_a_core_that_was_sent_and_cannot_be_removed_does_not_hold_up_the_others(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(host.directory, "node.aaaa")
    put(host.directory, "node.bbbb")
    real = store.Store.delete

    def stuck(kept_in: store.Store, entry: store.Entry) -> None:
        if entry.key == "node.aaaa":
            raise OSError(errno.EROFS, "Read-only file system")
        real(kept_in, entry)

    monkeypatch.setattr(store.Store, "delete", stuck)
    assert host.send() == 1
    assert "node.aaaa: sent, but it stays: Read-only file system\n" in capsys.readouterr().err
    assert host.keys() == ["node.aaaa"]
