"""main: the entry as a person and as the kernel start it, and what it makes of a crash."""

from __future__ import annotations

import os
import posix
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import (
    __version__,
    command_line,
    container,
    control_groups,
    deliver,
    delivery,
    fallback,
    joining,
    journal,
    main,
    membership,
    slots,
    supervisor,
    verification,
)
from core_helper.child import Result
from core_helper.configuration import FALLBACK_VARIABLE, Configuration
from core_helper.crash import Crash
from core_helper.log import Log
from core_helper.process import CONTAINER_NAME, POD_NAME, Record
from core_helper.words import SPECIFIERS, expand
from unit.helper.support import HELPER, process

ENTRY = HELPER / "docker_core_helper"


def entry(*arguments: str) -> Any:
    """Run the entry by hand, on this Python, with the options of its first line."""
    command_line = [sys.executable, "-BIS", str(ENTRY), *arguments]
    return subprocess.run(command_line, env={}, cwd="/", capture_output=True, text=True, timeout=30, check=False)


def test_help_shows_the_usage_and_how_to_install_it() -> None:
    done = entry("--help")
    assert (done.returncode, done.stdout, done.stderr) == (0, command_line.USAGE, "")
    assert "kernel.core_pattern=|/opt/bin/docker_core_helper %P %u %g" in done.stdout
    assert "exit codes: 0" in done.stdout


def test_version_is_that_of_the_package() -> None:
    done = entry("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"docker_core_helper {__version__}\n", "")


def test_a_person_without_arguments_is_told_what_this_is() -> None:
    done = entry()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("docker_core_helper: the kernel starts this program") and "usage:" in done.stderr


def test_every_option_is_in_the_usage() -> None:
    for option in command_line.OPTIONS:
        assert f"{option}%{option[1]}" in command_line.USAGE


def test_the_pattern_in_the_usage_is_one_that_the_kernel_takes() -> None:
    (pattern,) = [line for line in command_line.USAGE.split("\n") if "kernel.core_pattern=|" in line]
    assert len(pattern.split("kernel.core_pattern=")[1].rstrip("'")) <= 127
    crash, problems = command_line.parse_arguments(
        pattern.split("docker_core_helper ")[1]
        .rstrip("'")
        .replace("%P", "1")
        .replace("%u", "2")
        .replace("%g", "3")
        .split()
    )
    assert problems == [] and crash.delegate[0] == b"/opt/bin/uploader.sh"


class Run:
    """main, with a log of ours in place of this machine's: by hand, or as the kernel does, with 1 and 2 closed."""

    def __init__(
        self, directory: Path, *arguments: str, as_kernel: bool = False, limit: int = 512, first: str = ""
    ) -> None:
        program = (
            f"import sys; sys.path.insert(0, {str(HELPER)!r})\n"
            "from core_helper import configuration, diagnosis, journal, main, quota, slots\n"
            f"main.LIMIT_OF_KERNEL = diagnosis.LIMIT = {str(directory / 'limit')!r}; diagnosis.PATTERN = '/missing'\n"
            f"slots.FILE, quota.FILE = {str(directory / 'slots')!r}, {str(directory / 'lines')!r}\n"
            f"journal.SOCKET = '/missing'; journal.KERNEL_LOG = {str(directory / 'log')!r}\n"
            f"configuration.CONFIGURATION = '/missing'\n{first}\n"
            "main.main(['docker_core_helper', *sys.argv[1:]])"
        )
        words = [sys.executable, "-BISc", program, *arguments]
        if as_kernel:
            words = ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh", *words]
        (directory / "limit").write_text(f"{limit}\n")
        # A FIFO takes line after line without being told to append, as the kernel's log does.
        os.mkfifo(directory / "log")
        log = os.open(directory / "log", os.O_RDWR | os.O_NONBLOCK)
        try:
            os.write(log, b"\n")
            done = subprocess.run(words, env={}, cwd="/", input=b"core", capture_output=True, timeout=30, check=False)
            self.lines = os.read(log, 65536).decode().splitlines()[1:]
        finally:
            os.close(log)
        self.code, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize("as_kernel", [False, True])
@pytest.mark.parametrize("arguments", [["garbage"], ["1", "2"], ["x", "2", "3"], ["-s", ""], ["--halp"]])
def test_garbage_is_a_wrong_command_line_and_logged(tmp_path: Path, arguments: list[str], as_kernel: bool) -> None:
    done = Run(tmp_path, *arguments, as_kernel=as_kernel)
    assert (done.code, done.stdout) == (2, b"")
    (line,) = done.lines
    assert line.startswith("<27>docker_core_helper[") and "core lost: " in line and "%P %u %g" in line
    assert done.stderr == ("" if as_kernel else f"docker_core_helper: {line.partition(']: ')[2]}\n")


def test_a_kernel_that_gives_no_arguments_is_logged(tmp_path: Path) -> None:
    done = Run(tmp_path, as_kernel=True)
    assert done.code == 2 and "core lost: PID UID GID expected" in done.lines[0]


@pytest.mark.parametrize("as_kernel", [False, True])
def test_a_process_that_does_not_crash_is_refused(tmp_path: Path, as_kernel: bool) -> None:
    done = Run(tmp_path, str(os.getpid()), str(os.getuid()), str(os.getgid()), "/bin/true", as_kernel=as_kernel)
    assert done.code == 1
    (line,) = done.lines
    assert line.startswith("<27>") and f"]: pid={os.getpid()} uid={os.getuid()} gid={os.getgid()} comm=" in line
    assert f"core not delivered, 0 bytes: process {os.getpid()} is not dumping core: " in line


def test_the_configuration_of_this_machine_is_that_of_the_test(tmp_path: Path) -> None:
    first = "configuration.CONFIGURATION = '/dev/null/conf'"
    done = Run(tmp_path, str(os.getpid()), str(os.getuid()), str(os.getgid()), "/bin/true", first=first)
    assert [line.partition("]: ")[2].startswith("/dev/null/conf") for line in done.lines] == [False, True]


def test_a_helper_that_handles_no_signal_any_more_is_ended_after_one_that_does(tmp_path: Path) -> None:
    first = (
        "calls = []\n"
        f"def note(seconds): calls.append(seconds); open({str(tmp_path / 'calls')!r}, 'w').write(repr(calls))\n"
        "main.deadline._signal = main._signal = type('', (), {'SIGALRM': 14, 'signal': print, 'alarm': note})\n"
        "def kill_after(seconds): note(seconds); raise OSError\n"
        "main.linux.kill_after = kill_after\n"
        "main.read_configuration = lambda is_over: configuration.Configuration()"
    )
    done = Run(tmp_path, str(os.getpid()), "0", "0", "/bin/true", first=first)
    # Where there is no such timer, all else is as it was.
    assert "is not dumping core" in done.lines[0]
    timeout = int(Configuration().timeout)
    assert (tmp_path / "calls").read_text() == str([timeout + 60, timeout + 90])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_helper_that_is_told_to_end_says_so(tmp_path: Path, name: str) -> None:
    first = f"import os, signal\nmain.receive = lambda *given: os.kill(os.getpid(), signal.{name})"
    done = Run(tmp_path, str(os.getpid()), "0", "0", "/bin/true", first=first)
    assert (done.code, len(done.lines)) == (1, 1)
    assert done.lines[0].endswith(f"the helper was told to end by {name}")


@pytest.mark.parametrize("option", ["-F999999", "-F99999999999999999999"])
def test_what_nobody_expected_is_logged(tmp_path: Path, option: str) -> None:
    done = Run(tmp_path, option, "1", "2", "3", as_kernel=True)
    assert (done.code, len(done.lines)) == (1, 1)
    assert done.lines[0].startswith("<27>") and "core not delivered: O" in done.lines[0]


def test_a_problem_of_the_command_line_is_a_warning_beside_the_outcome(tmp_path: Path) -> None:
    done = Run(tmp_path, "-Xx", str(2**22 + 1), "2", "3", "relative", as_kernel=True)
    lines = sorted(done.lines)
    assert done.code == 1 and [line[:4] for line in lines] == ["<27>", "<28>", "<28>"]
    assert f"process {2**22 + 1} is gone: " in lines[0]


def test_a_kernel_that_does_not_wait_is_told_beside_the_outcome(tmp_path: Path) -> None:
    lines = Run(tmp_path, str(os.getpid()), str(os.getuid()), str(os.getgid()), "/bin/true", limit=0).lines
    assert [line[:4] for line in lines] == ["<27>", "<28>"]
    assert all("sysctl -w kernel.core_pipe_limit=512" in line for line in lines)


@pytest.mark.parametrize("as_kernel", [False, True])
def test_an_entry_without_its_library_says_so(tmp_path: Path, as_kernel: bool) -> None:
    """Without it there is no log but the kernel's, which a test does not write to: /dev/kmsg is another file here."""
    log = tmp_path / "kmsg"
    log.touch()
    alone = tmp_path / "docker_core_helper"
    alone.write_text(ENTRY.read_text().replace("/dev/kmsg", str(log)))
    words = [sys.executable, "-BIS", str(alone), "1", "2", "3"]
    if as_kernel:
        words = ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh", *words]
    done = subprocess.run(words, env={}, cwd="/", capture_output=True, text=True, timeout=30, check=False)
    told = (
        f"core lost: {tmp_path}/core_helper cannot be loaded: No module named 'core_helper': install the helper again"
    )
    assert done.returncode == 1
    assert log.read_text() == f"<27>docker_core_helper: {told}\n"
    assert done.stderr == ("" if as_kernel else f"docker_core_helper: {told}\n")


IGNORE_ALL = """
import signal, sys, os
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_what_the_caller_ignored_and_blocked_is_reset() -> None:
    show = (
        f"import sys; sys.path.insert(0, {str(HELPER)!r})\n"
        "from core_helper import start\n"
        "start.reset_signals_for_python()\n"
        "print(open('/proc/self/status').read())"
    )
    words = [sys.executable, "-c", IGNORE_ALL, "-BISc", show]
    status = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout
    fields = dict(line.split(":\t") for line in status.strip().splitlines() if ":\t" in line)
    # SIGPIPE and SIGXFSZ, as in any Python; 32 and 33 are the C library's own.
    assert int(fields["SigIgn"], 16) & ~(3 << 31) == 1 << 12 | 1 << 24
    assert int(fields["SigBlk"], 16) & ~(3 << 31) == 0


@pytest.fixture
def crash() -> Crash:
    crash = Crash(4711, 1000, 100)
    crash.signal, crash.time = 11, 1700000000
    return crash


def test_specifiers_are_those_of_core_5(crash: Crash) -> None:
    words = expand(b"%P|%p|%u|%g|%s|%t|%e|%h|%E|%%", deliver.specifiers(crash, process(comm=b"a b%P\n")))
    assert words == b"4711|7|1000|100|11|1700000000|a b%P\n|box|!usr!bin!server|%"
    assert set(deliver.specifiers(crash, process())) == set(SPECIFIERS.decode())


def test_the_facts_tell_the_delegate_about_the_crash(crash: Crash) -> None:
    known = Record()
    known.facts = {CONTAINER_NAME: b"web", POD_NAME: b"web-0"}
    told = delivery.facts_of(crash, process(container_id="f" * 64, record=known))
    elsewhere = (b"CORE_LIMIT", b"CORE_NODE", b"CORE_KEY")
    facts = {name: value for name, value in told.items() if name not in elsewhere}
    assert facts == {
        b"CORE_PID": b"7",
        b"CORE_HOST_PID": b"4711",
        b"CORE_UID": b"1000",
        b"CORE_GID": b"100",
        b"CORE_SIGNAL": b"11",
        b"CORE_SIGNAL_NAME": b"SIGSEGV",
        b"CORE_TIME": b"1700000000",
        b"CORE_EXE": b"/usr/bin/server",
        b"CORE_COMM": b"server",
        b"CORE_HOSTNAME": b"box",
        b"CORE_CONTAINER_ID": b"f" * 64,
        b"CORE_CONTAINER_NAME": b"web",
        b"CORE_IMAGE": b"",
        b"CORE_POD_NAME": b"web-0",
        b"CORE_POD_NAMESPACE": b"",
        b"CORE_POD_UID": b"",
    }
    assert b".web-0.server.server.4711." in told[b"CORE_KEY"]
    assert told[b"CORE_KEY"].decode() == crash.key
    assert told[b"CORE_NODE"] == os.fsencode(os.uname().nodename)


def test_facts_that_are_not_known_are_empty(crash: Crash) -> None:
    crash.signal = None
    environment = delivery.facts_of(crash, process())
    assert (environment[b"CORE_SIGNAL"], environment[b"CORE_SIGNAL_NAME"], environment[b"CORE_CONTAINER_ID"]) == (
        b"",
    ) * 3


class Stage:
    """The parts around deliver.deliver, each replaced; ``children`` are what was to be run in the container."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
        self.log = log
        self.process = process()
        self.outcomes: list[Result] = []
        self.children: list[Any] = []
        self.groups = control_groups.ControlGroups()
        self.groups.unified = 99
        plan = joining.Plan(self.process, self.groups, None, None)  # type: ignore[arg-type]
        log.touch()
        monkeypatch.setattr(journal, "SOCKET", "/missing")
        monkeypatch.setattr(journal, "KERNEL_LOG", str(log))
        monkeypatch.setattr(verification, "examine", lambda crash: self.process)
        monkeypatch.setattr(membership, "check", lambda process: None)
        monkeypatch.setattr(container, "hostname_of", lambda process: process.hostname)
        monkeypatch.setattr(joining, "prepare", lambda process, interpreter: plan)
        monkeypatch.setattr(
            delivery, "Child", lambda source, groups, run, stays: SimpleNamespace(run=run, left=lambda: 0)
        )
        monkeypatch.setattr(joining, "execute_delegate", lambda *arguments: ("execute", arguments[1]))
        monkeypatch.setattr(
            fallback, "write", lambda plan, path, asked, child, bound: ("write" if asked else "ask", path)
        )
        monkeypatch.setattr(supervisor, "supervise", self.supervise)

    def supervise(self, source: object, child: Any, *_: object) -> Result:
        self.children.append((*child.run(None), self.groups.unified))
        return self.outcomes.pop(0)

    def handle(self, crash: Crash, configuration: Configuration) -> int:
        nothing: Any = None
        return deliver.deliver(nothing, crash, configuration, nothing, Log(), 0.0)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    monkeypatch.delitem(posix.environ, FALLBACK_VARIABLE, raising=False)
    return Stage(monkeypatch, tmp_path / "log")


def outcome(**facts: object) -> Result:
    result = Result()
    for name, fact in facts.items():
        setattr(result, name, fact)
    return result


DELIVERED: dict[str, object] = {"started": True, "complete": True, "delivered": 5}
FILE = ("write", b"/tmp/core.4711.1000.100", 99)


def test_the_delegate_of_the_command_line_comes_before_that_of_the_configuration(stage: Stage, crash: Crash) -> None:
    configuration = Configuration()
    configuration.delegate = [b"/configured", b"%P", b"%e"]
    stage.outcomes = [outcome(**DELIVERED), outcome(**DELIVERED)]
    crash.delegate = [b"/named", b"%P"]
    assert stage.handle(crash, configuration) == 0
    crash.delegate = []
    assert stage.handle(crash, configuration) == 0
    assert [child[1] for child in stage.children] == [[b"/named", b"%P"], [b"/configured", b"4711", b"server"]]


@pytest.mark.parametrize("where", ["nowhere", "configuration", "helper", "process"])
@pytest.mark.parametrize("absent", [True, False])
def test_the_fallback_is_written_only_where_it_is_defined(
    stage: Stage, crash: Crash, monkeypatch: pytest.MonkeyPatch, where: str, absent: bool
) -> None:
    crash.delegate = [b"/d"]
    configuration = Configuration()
    configuration.fallback = where == "configuration"
    if where == "helper":
        monkeypatch.setitem(posix.environ, FALLBACK_VARIABLE, b"")
    stage.outcomes = [outcome(failure="why", absent=absent, fallback=where == "process"), outcome(**DELIVERED)]
    code = stage.handle(crash, configuration)
    written = [child for child in stage.children if child[0] == "write"]
    if where == "nowhere":
        assert (written, code) == ([], 0 if absent else 1)
        told = "core dropped: why" if absent else "core dropped, 0 bytes delivered: why"
        assert told in stage.log.read_text()
    else:
        assert (written, code) == ([FILE], 0)
        line = stage.log.read_text()
        assert ": delivered 5 bytes to /tmp/core.4711.1000.100 in " in line, line
        assert line.endswith("; no delegate took it: why\n"), line
    assert len(stage.log.read_text().splitlines()) == 1


def test_a_core_that_a_delegate_has_begun_to_read_is_not_written_again(stage: Stage, crash: Crash) -> None:
    crash.delegate = [b"/d"]
    configuration = Configuration()
    configuration.fallback = True
    stage.outcomes = [outcome(started=True, failure="it ended with exit code 1", delivered=3)]
    assert stage.handle(crash, configuration) == 1
    assert [child[0] for child in stage.children] == ["execute"]


@pytest.mark.parametrize("status", [0, 1])
def test_a_delegate_that_read_nothing_leaves_the_whole_core_if_it_failed(
    stage: Stage, crash: Crash, status: int
) -> None:
    crash.delegate = [b"/d"]
    configuration = Configuration()
    configuration.fallback = True
    failure = "it ended with exit code 1" if status else None
    stage.outcomes = [outcome(started=True, untouched=True, failure=failure), outcome(**DELIVERED)]
    assert stage.handle(crash, configuration) == 0
    assert [child[0] for child in stage.children] == ["execute", *(["write"] if status else [])]
    told = (
        "; no delegate took it: /d: it ended with exit code 1 before it read a byte" if status else "not wanted by /d"
    )
    assert told in stage.log.read_text()


def test_without_any_delegate_the_process_is_asked_for_the_core_file(stage: Stage, crash: Crash) -> None:
    stage.outcomes = [outcome(failure="no delegate is configured", absent=True)]
    assert stage.handle(crash, Configuration()) == 0
    assert [child[0] for child in stage.children] == ["ask"]
    assert "core dropped: no delegate is configured" in stage.log.read_text()


def test_a_crowded_container_is_entered_a_second_time_by_the_other_way(stage: Stage, crash: Crash) -> None:
    crash.delegate = [b"/d"]
    stage.outcomes = [outcome(crowded=True, failure="full"), outcome(**DELIVERED)]
    assert stage.handle(crash, Configuration()) == 0
    assert stage.children == [("execute", [b"/d"], 99), ("execute", [b"/d"], None)]


def test_an_environment_that_cannot_be_read_is_done_without(stage: Stage, crash: Crash) -> None:
    crash.delegate = [b"/d"]
    stage.outcomes = [outcome(mute=True, failure="slow"), outcome(**DELIVERED)]
    assert stage.handle(crash, Configuration()) == 0
    assert stage.process.environ_file is None


def test_a_fallback_that_fails_too_tells_both_reasons(stage: Stage, crash: Crash) -> None:
    crash.delegate = [b"/d"]
    configuration = Configuration()
    configuration.fallback = True
    stage.outcomes = [outcome(failure="one", absent=True), outcome(failure="two")]
    assert stage.handle(crash, configuration) == 1
    assert "<27>" in stage.log.read_text() and "core dropped, 0 bytes delivered: one; two" in stage.log.read_text()


def test_slots_that_cannot_be_counted_cost_no_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(slots, "FILE", str(tmp_path / "missing" / "slots"))
    log: Any = SimpleNamespace(holder="", lines=SimpleNamespace(warning=told.append))
    slot = main.acquire_slot(Crash(os.getpid(), 0, 0), 512, log)
    slot.release()
    assert told == [
        f"{tmp_path}/missing/slots: No such file or directory: slots are not counted, so containers have no limit"
    ]


def test_the_pidfd_of_the_kernel_comes_before_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = Crash(os.getpid(), 0, 0)
    descriptor = main.open_pidfd(crash)
    assert descriptor is not None
    os.close(descriptor)
    crash.pidfd = 77
    assert main.open_pidfd(crash) == 77
    assert main.open_pidfd(Crash(1 << 22, 0, 0)) is None
