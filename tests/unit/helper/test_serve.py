"""serve, listening and notifier: the command line of the server, and what its process becomes before the first crash."""

from __future__ import annotations

import _signal
import _socket
import ctypes
import fcntl
import os
import posix
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import (
    journal,
    linux,
    listening,
    serve,
    start,
    worker,
)
from core_helper.command_line import EXIT_OK, EXIT_USAGE
from core_helper.log import Log
from core_helper.notifier import Notifier
from unit.helper.support import HELPER, in_child, locked_by_another

PATIENCE = 30.0


# How a server starts.


@pytest.mark.parametrize("how", ["flock", "fcntl"])
def test_whoever_can_only_read_the_lock_of_a_server_keeps_none_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(posix, "stat", lambda path: SimpleNamespace(st_uid=0, st_mode=0o40700))
    lock = tmp_path / "core.sock.lock"
    lock.touch()

    def take(file: int) -> None:
        if how == "flock":
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            fcntl.lockf(file, fcntl.LOCK_SH)

    with locked_by_another(lock, os.O_RDONLY, take):
        assert in_child(lambda: listening.listen(str(tmp_path / "core.sock")).getsockname() != "")


def test_a_second_server_at_the_same_socket_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "stat", lambda path: SimpleNamespace(st_uid=0, st_mode=0o40700))
    path = str(tmp_path / "new" / "core.sock")

    def first() -> object:
        listener = listening.listen(path)
        modes = [oct(os.lstat(name).st_mode & 0o777) for name in (path, tmp_path / "new", f"{path}.lock")]
        pid = os.fork()
        if pid == 0:
            try:
                listening.listen(path)
            except listening.Unusable:
                os._exit(7)
            finally:
                os._exit(8)
        return [*modes, os.waitpid(pid, 0)[1] >> 8, listener.getsockname()]

    os.umask(0o022)
    assert in_child(first) == ["0o600", "0o700", "0o600", 7, path]
    # What a server has left that was killed is in nobody's way.
    assert in_child(first) == ["0o600", "0o700", "0o600", 7, path]


def test_a_directory_that_others_may_change_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(listening.Unusable, match="only root may own and write it"):
        listening.listen(str(tmp_path / "open" / "core.sock"))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], EXIT_OK),
        (["--socket=relative"], EXIT_USAGE),
        (["--socket=/a b"], EXIT_USAGE),
        (["x"], EXIT_USAGE),
        (["--restore", "--pattern"], EXIT_USAGE),
        (["--pattern", "--restore"], EXIT_USAGE),
    ],
)
def test_the_command_line(capsys: pytest.CaptureFixture[str], words: list[str], code: int) -> None:
    assert serve.run(words) == code
    told = capsys.readouterr()
    assert ("usage: docker_core_helper serve" in told.out) == (code == EXIT_OK)
    assert (repr(words[-1]) in told.err) == (code == EXIT_USAGE)
    assert serve.run([f"--socket=/{'x' * 107}"]) == EXIT_USAGE


def test_the_entry_leads_to_the_server() -> None:
    words: list[str | Path] = [sys.executable, "-BIS", HELPER / "docker_core_helper", "serve", "--help"]
    done = subprocess.run(words, env={}, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, serve.USAGE, "")


def test_the_socket_of_systemd_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(kind: int, **variables: str) -> Any:
        def inherit() -> object:
            given = _socket.socket(_socket.AF_UNIX, kind)
            given.bind(str(tmp_path / f"socket{time.monotonic_ns()}"))
            os.dup2(given.fileno(), 3)
            told = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", **variables}
            posix.environ.update({name.encode(): value.encode() for name, value in told.items()})
            try:
                found = listening.inherited_socket()
            except listening.Unusable as error:
                return str(error)
            return [found is not None, found is not None and not os.get_inheritable(found.fileno())]

        return in_child(inherit)

    assert take(_socket.SOCK_STREAM) == [True, True]
    assert take(_socket.SOCK_STREAM, LISTEN_PID="1") == [False, False]
    assert take(_socket.SOCK_STREAM, LISTEN_FDS="0") == [False, False]
    assert take(_socket.SOCK_STREAM, LISTEN_FDS="2") == "systemd gives more than one socket"
    assert take(_socket.SOCK_DGRAM) == "what systemd gives is no stream socket of AF_UNIX"


def test_a_server_is_what_the_kernel_makes_of_a_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    def settled() -> object:
        os.umask(0)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        serve.become_server()
        status = Path("/proc/self/status").read_text()
        return [
            linux.getrlimit(linux.RLIMIT_CORE),
            os.getcwd(),
            os.umask(0),
            {os.readlink(f"/proc/self/fd/{number}") for number in range(3)} == {"/dev/null"},
            os.stat("/proc/self/status").st_uid == 0,
            _signal.getsignal(_signal.SIGCHLD) == _signal.SIG_DFL,
            status.split()[1],
        ]

    assert in_child(settled) == [[1, 1], "/", 0o077, True, True, True, "core_server"]


def test_a_server_in_a_container_writes_into_the_log_of_that_and_waits_for_nobody_who_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SOCKET", "KERNEL_LOG"):
        monkeypatch.setattr(journal, name, "/missing")

    def settled() -> object:
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)
        log = Log()
        log.terminal = serve.become_server(elsewhere=True)
        assert log.terminal is not None
        for _ in range(200):
            log.lines.info("x" * 1000)
        return [os.get_inheritable(log.terminal), os.read(reading, 22).decode()]

    assert in_child(settled) == [False, "docker_core_helper: xx"]


def test_nobody_waits_for_the_terminal_of_a_server() -> None:
    def settled() -> object:
        _master, slave = os.openpty()
        os.dup2(slave, 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        terminal = serve.become_server()
        assert terminal is not None
        written = 0
        try:
            while written < 1 << 20:
                written += os.write(terminal, b"x" * 1000)
        except BlockingIOError:
            pass
        return [0 < written < 1 << 20, os.get_blocking(slave)]

    assert in_child(settled) == [True, True]


PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30


def test_the_login_in_which_the_server_was_started_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    login = tmp_path / "loginuid"
    login.write_text("1000")
    monkeypatch.setattr(serve, "LOGIN_ID", str(login))

    def forgotten() -> object:
        libc = ctypes.CDLL(None, use_errno=True)
        number = linux.NR_KEYCTL[posix.uname().machine]
        joined = libc.syscall(number, 1, b"of-a-login")
        serve.become_server()
        now = libc.syscall(number, 0, -3, 0)
        os.nice(3)
        set_io_priority = linux.NR_IOPRIO_SET[posix.uname().machine]
        libc.syscall(set_io_priority, 1, 0, 3 << 13)  # Only when the disk is idle.
        libc.prctl(PR_SET_TIMERSLACK, 7777)
        worker.be_ordinary()
        own = libc.syscall(number, 0, -3, 0)
        io_priority, slack = libc.syscall(set_io_priority + 1, 1, 0), libc.prctl(PR_GET_TIMERSLACK)
        return [joined > 0, len({joined, now, own}), os.nice(0), io_priority >> 13 in (0, 2), slack]

    assert in_child(forgotten) == [True, 3, 0, True, 50_000]
    assert login.read_text() == "4294967295"


@pytest.mark.parametrize(
    ("read_only", "again", "executed", "told"),
    [
        (True, False, False, ""),
        (False, False, True, "no mount_setattr"),
        (False, True, False, "is on none"),
    ],
)
def test_the_interpreter_is_protected_once(
    monkeypatch: pytest.MonkeyPatch, read_only: bool, again: bool, executed: bool, told: str
) -> None:
    calls: list[dict[bytes, bytes]] = []
    monkeypatch.setattr(posix, "statvfs", lambda path: SimpleNamespace(f_flag=int(read_only)))

    def execute(environment: dict[bytes, bytes], pass_on: Any) -> str:
        calls.append(environment)
        return "no mount_setattr"

    monkeypatch.setattr(start, "execute_read_only", execute)
    if again:
        monkeypatch.setitem(posix.environ, start.MARK, b"")
    assert told in serve.protect()
    assert [start.MARK in environment for environment in calls] == [True] * executed


def test_systemd_is_told_that_the_server_is_ready_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(PATIENCE)
    for name, value in ((b"NOTIFY_SOCKET", os.fsencode(tmp_path / "notify")), (b"WATCHDOG_USEC", b"200000")):
        monkeypatch.setitem(posix.environ, name, value)
    notifier = Notifier()
    assert b"NOTIFY_SOCKET" not in posix.environ and notifier.interval == 0.1
    notifier.send(b"READY=1")
    notifier.watch()
    time.sleep(0.06)
    notifier.watch()
    notifier.watch()
    assert [manager.recv(99), manager.recv(99)] == [b"READY=1", b"WATCHDOG=1"]
    manager.settimeout(0)
    with pytest.raises(BlockingIOError):
        manager.recv(99)
    manager.close()
    notifier.send(b"more")


def test_who_wants_no_message_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (b"NOTIFY_SOCKET", b"WATCHDOG_USEC"):
        monkeypatch.delitem(posix.environ, name, raising=False)
    monkeypatch.setattr(_socket, "socket", None)
    notifier = Notifier()
    notifier.send(b"READY=1")
    notifier.watch()
    assert notifier.interval == 3600.0


def test_what_nobody_expected_of_a_server_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("of no use")

    def give_up(path: str, error: Exception, log: object) -> int:
        said.append(f"{path}: {error}")
        return 1

    said: list[str] = []
    monkeypatch.setattr(serve, "protect", fail)
    monkeypatch.setattr(serve, "give_up", give_up)
    assert serve.run(["--socket=/missing/x"]) == 1
    assert said == ["/missing/x: ValueError: of no use"]
