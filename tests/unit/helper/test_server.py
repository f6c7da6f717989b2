"""server and worker: crashes of stand-ins at a real socket, which real workers get, each a process of its own."""

from __future__ import annotations

import _signal
import _socket
import contextlib
import ctypes
import errno
import fcntl
import gc
import os
import posix
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import core_helper
import pytest
from core_helper import (
    configuration,
    deliver,
    holders,
    host,
    journal,
    kernel_socket,
    linux,
    listening,
    main,
    pattern,
    procfs,
    quota,
    runtime,
    seccomp,
    serve,
    server,
    slots,
    table,
    worker,
)
from core_helper.command_line import EXIT_NOT_DELIVERED, EXIT_OK
from core_helper.crash import Crash, Refused
from core_helper.holders import named
from core_helper.log import Log
from core_helper.notifier import Notifier
from core_helper.waiting import Job
from unit.helper.support import in_child, locked_by_another

REQUEST = struct.pack("=IIQ", 16, 16, 15)
PATIENCE = 30.0


class Stage:
    """A server in a process of its own, whose crashes are connections of the test; a crash's first bytes name its container."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.path = directory / "core.sock"
        self.log = directory / "log"
        self.log.touch()
        self.configuration = directory / "conf"
        self.configuration.write_text("DOCKERCOREHELPER_PIPE_LIMIT=4\n")
        self.done = directory / "done"
        self.done.mkdir()
        self.connections: list[_socket.socket] = []
        self.pid = 0
        self.listener: _socket.socket | None = None
        self.is_delegate = False
        self.pattern: pattern.Pattern | None = None
        self.in_force = directory / "pattern"
        monkeypatch.setattr(pattern, "FILE", str(self.in_force))
        monkeypatch.setattr(journal, "SOCKET", "/missing")
        monkeypatch.setattr(journal, "KERNEL_LOG", str(self.log))
        monkeypatch.setattr(quota, "FILE", str(directory / "lines"))
        monkeypatch.setattr(slots, "FILE", str(directory / "slots"))
        monkeypatch.setattr(main, "LIMIT_OF_KERNEL", str(directory / "limit"))
        (directory / "limit").write_text("32\n")
        monkeypatch.setattr(configuration, "read_configuration", lambda patience=0.0: read(self.configuration))
        monkeypatch.setattr(configuration, "CONFIGURATION", str(self.configuration))
        monkeypatch.setattr(kernel_socket, "crash_of", self.crash_of)
        monkeypatch.setattr(kernel_socket, "core_limit", lambda pid: 1 if self.is_delegate else 0)
        monkeypatch.setattr(holders, "holder_of", lambda crash: named(f"container {crash.uid}", None))
        monkeypatch.setattr(main, "handle", self.handle)
        monkeypatch.setattr(Notifier, "send", self.tell)

    def crash_of(self, connection: _socket.socket) -> Crash:
        """The container of a crash is the first thing that its connection says; 0 is nobody's, 9 a delegate's, 8 an error."""
        number = connection.recv(1, _socket.MSG_PEEK)[0]  # Raises IndexError where nothing is said.
        if not number:
            raise Refused("process 1 has connected to the core-dump socket, and does not crash")
        if number == 8:
            raise ValueError("of no use")
        crash = Crash(os.getpid(), number, 0)
        crash.pidfd = crash.handle = os.open("/dev/null", os.O_RDONLY)
        self.is_delegate = number == 9
        return crash

    def handle(self, crash: Crash, source: Any, configured: Any, log: Log, began: float, enter: Any) -> int:
        """What a worker does: it holds its slot until the test says so, and tells who it was."""
        number = source.connection.recv(1)[0]
        slot = enter() if source.connection.recv(1) == b"s" else None
        name = f"{number}.{os.getpid()}"
        (self.done / name).touch()
        while (said := source.connection.recv(1)) == b"r":
            assert slot is not None
            slot.release()
            source.connection.send(b"r")
        source.connection.send(said)
        return EXIT_OK

    def serve(self, inherited: bool = False) -> None:
        """Start the server; if it has ``inherited`` the socket, the test has that, too."""
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen(64)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.alarm(60)
                moved = _socket.socket(fileno=os.dup(listener.fileno()))
                listener.close()
                posix.dup2(os.open("/dev/null", os.O_RDWR), worker.PIDFD, False)
                settings = worker.Settings(None, "why", (256, 512))
                serving = server.Server(moved, settings, self.pattern, inherited)
                serving.serve()
                os._exit(EXIT_NOT_DELIVERED if serving.failed else EXIT_OK)
            finally:
                os._exit(1)
        if inherited:
            self.listener = listener
        else:
            listener.close()
        wait_for((self.directory / "own").exists)
        self.own = int((self.directory / "own").read_text())

    def tell(self, text: bytes) -> None:
        """Note how many descriptors the server has when it is ready: seen from outside, it may be about to start a worker."""
        if text.startswith(b"READY=1"):
            counted = self.directory / "counted"
            # One is that of the directory itself.
            counted.write_text(f"{len(os.listdir('/proc/self/fd')) - 1 - 2 * server.IDLE_WORKERS}")
            counted.rename(self.directory / "own")

    def crash(self, container: int, more: bytes = b"-") -> _socket.socket:
        """Have a container crash; the worker waits until the connection says something else than ``r``."""
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.connect(str(self.path))
        connection.settimeout(PATIENCE)
        with contextlib.suppress(BrokenPipeError):
            connection.send(bytes([container]) + more)
        self.connections.append(connection)
        return connection

    def workers(self, container: int) -> list[int]:
        """The workers that a container has had so far."""
        return [int(path.suffix[1:]) for path in self.done.glob(f"{container}.*")]

    def others(self) -> int:
        """How many descriptors the server has, but for two for each worker; -1 while workers are missing."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        found = len(os.listdir(f"/proc/{self.pid}/fd")) - 2 * len(children)
        return found if len(idle_workers(self.pid)) == server.IDLE_WORKERS else -1

    def rests(self, waiting: int = 0) -> None:
        """Wait until all workers are there, and so many crashes wait."""
        wait_for(lambda: self.others() == self.own + waiting)

    def stop(self) -> None:
        for connection in self.connections:
            connection.close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def read(path: Path) -> configuration.Configuration:
    found = configuration.Configuration()
    configuration.parse_configuration(path.read_bytes(), str(path), found)
    return found


def refuses(path: Path) -> bool:
    """Tell whether nobody listens at a socket any more."""
    with contextlib.closing(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)) as connection:
        try:
            connection.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def ends(connection: _socket.socket) -> bool:
    """Tell whether the server closes a connection, with or without having read all of it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def wait_for(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, "it does not come to that"
        time.sleep(0.005)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(tmp_path, monkeypatch)
    yield stage
    stage.stop()


def test_each_crash_has_a_worker_of_its_own_that_ends_with_it(stage: Stage) -> None:
    stage.serve()
    for number in (1, 2, 3, 4, 5):
        connection = stage.crash(number)
        connection.send(b"x")
        assert connection.recv(1) == b"x"
        assert connection.recv(1) == b""  # Nobody holds the process any more.
    pids = [pid for number in range(1, 6) for pid in stage.workers(number)]
    assert len(set(pids)) == 5
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_who_has_no_slot_waits_and_others_go_first(stage: Stage) -> None:
    stage.serve()
    flood = [stage.crash(1) for _ in range(6)]
    wait_for(lambda: len(stage.workers(1)) == 2)  # Half of the four.
    other = stage.crash(2)
    wait_for(lambda: stage.workers(2))
    assert len(stage.workers(1)) == 2
    for connection in flood:
        connection.send(b"x")
    assert [connection.recv(1) for connection in flood] == [b"x"] * 6
    other.send(b"x")
    assert other.recv(1) == b"x" and stage.log.read_text() == ""


def test_who_has_given_the_slot_back_counts_no_more(stage: Stage) -> None:
    stage.serve()
    flood = [stage.crash(1, b"s" if number == 0 else b"-") for number in range(3)]
    greet(flood[0])
    wait_for(lambda: len(stage.workers(1)) == 2)
    flood[0].send(b"r")
    assert flood[0].recv(1) == b"r"
    wait_for(lambda: len(stage.workers(1)) == 3)


def greet(connection: _socket.socket) -> None:
    connection.send(REQUEST + bytes(4))
    assert connection.recv(16) == struct.pack("=IIQ", 16, 0, 9)


def test_a_crash_that_waits_longer_than_the_timeout_has_a_line(stage: Stage) -> None:
    stage.configuration.write_text("DOCKERCOREHELPER_PIPE_LIMIT=2\nDOCKERCOREHELPER_TIMEOUT=1\n")
    stage.serve()
    stage.crash(1)
    wait_for(lambda: stage.workers(1))
    late = stage.crash(1)
    began = time.monotonic()
    assert ends(late) and time.monotonic() - began > 0.5
    told = "core not delivered, 0 bytes: no slot was free until the timeout"
    wait_for(lambda: told in stage.log.read_text())


def test_a_changed_configuration_counts_at_once(stage: Stage) -> None:
    stage.configuration.write_text("DOCKERCOREHELPER_PIPE_LIMIT=2\n")
    stage.serve()
    stage.crash(1)
    wait_for(lambda: stage.workers(1))
    stage.configuration.write_text("DOCKERCOREHELPER_PIPE_LIMIT=40\n")
    stage.crash(1)
    wait_for(lambda: len(stage.workers(1)) == 2)


@pytest.mark.parametrize(
    ("container", "told"),
    [
        (0, "process 1 has connected to the core-dump socket, and does not crash: refused"),
        (9, "is 1 byte"),
        (8, "core dropped: ValueError: of no use"),
    ],
)
def test_who_does_not_crash_and_who_is_a_delegate_is_refused(stage: Stage, container: int, told: str) -> None:
    stage.serve()
    assert ends(stage.crash(container))
    wait_for(lambda: told in stage.log.read_text())
    assert stage.workers(container) == []
    after = stage.crash(1)
    after.send(b"x")
    assert after.recv(1) == b"x"


def test_a_thousand_connections_without_a_crash_have_a_line_now_and_then(stage: Stage) -> None:
    stage.serve()
    for _ in range(20):
        crashes = [stage.crash(0) for _ in range(50)]
        assert all(map(ends, crashes))
        for connection in crashes:
            connection.close()
    wait_for(lambda: "others were refused before" in stage.log.read_text())
    after = stage.crash(1)
    after.send(b"x")
    assert after.recv(1) == b"x"


def test_a_worker_that_is_killed_hurts_no_other_and_is_told(stage: Stage) -> None:
    stage.serve()
    first, second = stage.crash(1), stage.crash(2)
    wait_for(lambda: stage.workers(1) and stage.workers(2))
    os.kill(stage.workers(1)[0], signal.SIGKILL)
    assert ends(first)
    wait_for(lambda: "its worker was killed by signal 9" in stage.log.read_text())
    second.send(b"x")
    assert second.recv(1) == b"x"
    assert len(stage.workers(1)) == 1
    # Its slot is free again.
    again = stage.crash(1)
    again.send(b"x")
    assert again.recv(1) == b"x"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_that_is_told_to_end_says_so(stage: Stage, number: int) -> None:
    stage.serve()
    crash = stage.crash(1)
    wait_for(lambda: stage.workers(1))
    os.kill(stage.workers(1)[0], number)
    assert ends(crash)
    wait_for(lambda: f"was told to end by {signal.Signals(number).name}" in stage.log.read_text())


def test_idle_workers_that_are_killed_cost_no_crash(stage: Stage) -> None:
    stage.serve()
    for number in range(1, 4):
        for pid in idle_workers(stage.pid):
            os.kill(pid, signal.SIGKILL)
        connection = stage.crash(number)
        connection.send(b"x")
        assert connection.recv(1) == b"x"


def test_a_server_waits_for_nobody_who_has_the_table_of_lines_locked(stage: Stage) -> None:
    stage.serve()
    with locked_by_another(quota.FILE, os.O_RDWR | os.O_CREAT, lambda file: fcntl.lockf(file, fcntl.LOCK_EX)):
        began = time.monotonic()
        assert ends(stage.crash(9))
        after = stage.crash(1)
        after.send(b"x")
        assert after.recv(1) == b"x"
        assert time.monotonic() - began < table.PATIENCE / 2
    wait_for(lambda: "is 1 byte" in stage.log.read_text())


def test_settings_that_cannot_be_read_now_end_no_server(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh = server.Bounds.refresh

    def fail_at_times(bounds: server.Bounds) -> None:
        if (stage.directory / "full").exists():
            raise OSError(24, "Too many open files")
        refresh(bounds)

    monkeypatch.setattr(server.Bounds, "refresh", fail_at_times)
    stage.serve()
    (stage.directory / "full").touch()
    connection = stage.crash(1)
    connection.send(b"x")
    assert connection.recv(1) == b"x"
    assert "the settings are not read: Too many open files" in stage.log.read_text()


def test_a_crash_that_cannot_be_given_to_a_worker_waits_for_another(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = stage.directory / "failed"

    def fail_once(channel: _socket.socket, job: Job) -> None:
        if not failed.exists():
            failed.touch()
            raise OSError(12, "Cannot allocate memory")
        worker.give(channel, job)

    monkeypatch.setattr(server, "give", fail_once)
    stage.serve()
    connection = stage.crash(1)
    connection.send(b"x")
    assert connection.recv(1) == b"x"
    assert failed.exists()


def test_a_crash_whose_descriptor_does_not_come_waits_for_another(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_once(channel: _socket.socket, job: Job) -> None:
        if (stage.directory / "once").exists():
            worker.give(channel, job)
            return
        (stage.directory / "once").touch()
        channel.send(bytes(64))

    monkeypatch.setattr(server, "give", without_once)
    stage.serve()
    connection = stage.crash(1)
    connection.send(b"x")
    assert connection.recv(1) == b"x"
    assert "a crash came without its descriptor, and waits again" in stage.log.read_text()


@pytest.mark.parametrize("error", [Refused("/x: a process has a lease on it"), OSError(5, "Input/output error")])
def test_a_crash_whose_holder_nobody_can_tell_has_a_line(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(crash: Crash) -> holders.Holder:
        if crash.uid == 2:
            raise error
        return named(f"container {crash.uid}", None)

    monkeypatch.setattr(holders, "holder_of", refuse)
    stage.serve()
    assert ends(stage.crash(2))
    wait_for(lambda: f"core not delivered, 0 bytes: {error}" in stage.log.read_text())
    assert "uid=2" in stage.log.read_text()
    after = stage.crash(1)
    after.send(b"x")
    assert after.recv(1) == b"x"


def test_a_server_without_memory_for_one_crash_goes_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    original = server.Server.dispatch

    def dispatch(serving: server.Server) -> None:
        if not (stage.directory / "once").exists():
            (stage.directory / "once").touch()
            raise MemoryError
        original(serving)

    monkeypatch.setattr(server.Server, "dispatch", dispatch)
    stage.serve()
    for number in (1, 2):
        connection = stage.crash(number)
        connection.send(b"x")
        assert connection.recv(1) == b"x"
    assert "no memory: a crash may be lost" in stage.log.read_text()


def test_a_worker_that_cannot_be_started_now_is_started_later(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REST", 0.2)
    start = server.Worker

    def fail_at_times(*words: Any) -> Any:
        if (stage.directory / "full").exists():
            raise OSError(11, "Resource temporarily unavailable")
        return start(*words)

    monkeypatch.setattr(server, "Worker", fail_at_times)
    stage.serve()
    (stage.directory / "full").touch()
    crashes = [stage.crash(number) for number in range(1, 6)]
    for connection in crashes:
        connection.send(b"x")
    wait_for(lambda: "no worker can be started: Resource temporarily unavailable" in stage.log.read_text())
    (stage.directory / "full").unlink()
    assert [connection.recv(1) for connection in crashes] == [b"x"] * 5


def test_a_worker_that_ends_before_it_has_its_crash_is_not_followed_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_WORKERS", 0)
    started = stage.directory / "started"
    (stage.directory / "full").touch()

    def be_ordinary() -> None:
        with started.open("a") as file:
            file.write("one\n")
        if (stage.directory / "full").exists():
            raise OSError(122, "Disk quota exceeded", "keyctl")

    monkeypatch.setattr(worker, "be_ordinary", be_ordinary)
    stage.serve()
    connection = stage.crash(1)
    connection.send(b"x")
    time.sleep(1)
    assert 3 <= len(started.read_text().splitlines()) <= 1 / server.SHORT_REST + 1
    assert "core not delivered: OSError: [Errno 122] Disk quota exceeded: 'keyctl'" in stage.log.read_text()
    (stage.directory / "full").unlink()
    assert connection.recv(1) == b"x"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become a user whose keys it may use up")
@pytest.mark.skipif(not Path("/proc/key-users").exists(), reason="the kernel has no keys")
def test_who_may_have_no_more_keys_has_a_keyring_that_nobody_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "LOGIN_ID", "/nowhere")  # Root's.
    keyctl = ctypes.CDLL(None, use_errno=True).syscall
    numbers = {"x86_64": (248, 250), "aarch64": (217, 219)}  # add_key(2), keyctl(2).
    add_key, control = numbers[os.uname().machine]

    def is_sealed() -> bool:
        return keyctl(control, 0, linux.KEY_SPEC_SESSION_KEYRING, 0) < 0 and ctypes.get_errno() == errno.EACCES

    def act() -> list[Any]:
        user = 1_000_000_000 + os.getpid()
        os.setresuid(user, user, user)
        seen: list[Any] = []
        serve.forget_login(False)
        seen.append(is_sealed())
        worker.be_ordinary()
        seen.append(is_sealed())
        number = 0
        while keyctl(add_key, b"user", b"%d" % number, b"x", ctypes.c_long(1), -2) > 0:
            number += 1
        seen.append(ctypes.get_errno() == errno.EDQUOT)
        serve.forget_login(True)
        worker.be_ordinary()
        seen.append(is_sealed())
        try:
            serve.forget_login(False)
        except listening.Unusable as error:
            seen.append(str(error))
        return seen

    told = "user 0 has as many keys as kernel.keys.root_maxkeys and root_maxbytes allow; keyrings(7)"
    assert in_child(act) == [True, False, True, True, told]


def test_garbage_is_collected_in_the_server_and_not_in_a_worker(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded() -> object:
        gc.disable()
        serve.load()
        return [gc.isenabled(), gc.get_freeze_count() > 1000, "core_helper.relay" in sys.modules]

    assert in_child(loaded) == [True, True, True]

    def loaded_again() -> object:
        serve.load()
        monkeypatch.setattr(posix, "open", lambda *words: pytest.fail("a bundle is read again"))
        for bundle in ("main", "deliver", "record"):
            core_helper.load(bundle)
        monkeypatch.setattr(seccomp, "_filter_of", lambda known: pytest.fail("the filter is made again"))
        return len(seccomp.deny_filter(seccomp.architectures(False))) > 100

    # A worker has all of it, and a crash does not pay for it once more.
    assert in_child(loaded_again) is True

    def tell(*words: Any) -> int:
        (stage.done / f"collects.{gc.isenabled()}").touch()
        return 0

    monkeypatch.setattr(main, "handle", tell)
    stage.serve()
    assert ends(stage.crash(1))
    assert (stage.done / "collects.False").exists()


def idle_workers(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = []
    for child in map(int, children):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_bytes() == worker.IDLE + b"\n":
                found.append(child)
    return found


def test_no_worker_is_started_while_a_crash_was_just_given_to_another(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PRECEDENCE", 3600.0)
    report = worker.report

    def tell_both(channel: _socket.socket, told: bytes) -> None:
        report(channel, told)
        (stage.done / f"ready.{os.getpid()}").touch()

    monkeypatch.setattr(worker, "report", tell_both)
    stage.serve()
    wait_for(lambda: len(list(stage.done.glob("ready.*"))) == server.IDLE_WORKERS)
    for number in range(1, server.IDLE_WORKERS + 2):
        connection = stage.crash(number)
        # The last one finds no worker that waits, and does not wait for one either.
        wait_for(lambda number=number: stage.workers(number))  # type: ignore[misc]
    assert idle_workers(stage.pid) == []
    connection.send(b"x")
    assert connection.recv(1) == b"x"


def test_a_server_that_is_killed_leaves_its_workers_to_their_work(stage: Stage) -> None:
    stage.serve()
    connection = stage.crash(1)
    wait_for(lambda: stage.workers(1))
    idle = idle_workers(stage.pid)
    os.kill(stage.pid, signal.SIGKILL)
    connection.send(b"x")
    assert connection.recv(1) == b"x"
    wait_for(lambda: not any(is_there(pid) for pid in idle))


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def one_has_the_only_slot_and_one_waits(stage: Stage) -> tuple[_socket.socket, _socket.socket]:
    """Return the connections of two crashes of one container: that of a worker, and one that waits for its slot."""
    first = stage.crash(1)
    wait_for(lambda: stage.workers(1))
    stage.rests()
    second = stage.crash(1)
    stage.rests(waiting=1)
    return first, second


def both_are_handled_and_the_server_ends(stage: Stage, first: _socket.socket, second: _socket.socket) -> None:
    """Let a worker end, and see that the crash that has waited gets one, and that the server ends after that."""
    assert len(stage.workers(1)) == 1
    for connection in (first, second):
        connection.send(b"x")
        assert connection.recv(1) == b"x"
    assert os.waitpid(stage.pid, 0)[1] == 0
    stage.pid = 0


def told_to_end_while_one_waits(stage: Stage) -> tuple[_socket.socket, _socket.socket]:
    """Start a server, and tell it to end when one crash has the only slot and another one waits; return their connections."""
    stage.configuration.write_text("DOCKERCOREHELPER_PIPE_LIMIT=2\n")
    stage.serve()
    connections = one_has_the_only_slot_and_one_waits(stage)
    os.kill(stage.pid, signal.SIGTERM)
    wait_for(lambda: refuses(stage.path))
    return connections


def test_a_server_that_gets_sigterm_handles_the_waiting_crashes_first(stage: Stage) -> None:
    first, second = told_to_end_while_one_waits(stage)
    both_are_handled_and_the_server_ends(stage, first, second)


def test_a_server_whose_terminal_is_closed_handles_the_waiting_crashes_first(stage: Stage, core_pattern: Path) -> None:
    stage.serve()
    crash = stage.crash(1)
    wait_for(lambda: stage.workers(1))
    for _ in range(2):  # That of the shell, and that of the kernel.
        os.kill(stage.pid, signal.SIGHUP)
        wait_for(lambda: refuses(stage.path))
    assert os.waitpid(stage.pid, 0)[1] == 0
    stage.pid = 0
    assert first_line(core_pattern) == "|/before %P"
    crash.send(b"x")
    assert crash.recv(1) == b"x"


def test_what_a_terminal_sends_to_the_group_of_a_server_is_not_for_its_workers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = server.Server.serve

    def serve(serving: server.Server) -> None:
        os.setpgid(0, 0)
        original(serving)

    monkeypatch.setattr(server.Server, "serve", serve)
    stage.serve()
    crash = stage.crash(1)
    wait_for(lambda: stage.workers(1) and len(idle_workers(stage.pid)) == server.IDLE_WORKERS)
    idle = idle_workers(stage.pid)
    os.killpg(stage.pid, signal.SIGINT)
    assert os.waitpid(stage.pid, 0)[1] == 0
    stage.pid = 0
    crash.send(b"x")
    assert crash.recv(1) == b"x"
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in idle))


def stop_before_the_second_is_accepted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, inherited: bool
) -> _socket.socket:
    """Tell a server to end that accepts one crash at a time, while two have connected; return the second."""
    monkeypatch.setattr(server, "ACCEPTED_AT_ONCE", 1)
    stage.serve(inherited)
    os.kill(stage.pid, signal.SIGSTOP)
    os.waitpid(stage.pid, os.WUNTRACED)
    stage.crash(1).send(b"x")
    second = stage.crash(2)
    second.send(b"x")
    os.kill(stage.pid, signal.SIGTERM)
    os.kill(stage.pid, signal.SIGCONT)
    assert os.waitpid(stage.pid, 0)[1] == 0
    stage.pid = 0
    return second


@pytest.mark.parametrize(("inherited", "live"), [(False, "@@/run/x"), (True, "|/opt/bin/docker_core_helper %P")])
def test_a_server_that_nobody_follows_accepts_who_has_connected_before_it_ends(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, inherited: bool, live: str
) -> None:
    stage.in_force.write_text(live)
    assert stop_before_the_second_is_accepted(stage, monkeypatch, inherited).recv(1) == b"x"


def test_a_server_that_another_follows_leaves_who_has_connected_to_that_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.in_force.write_text("@@/run/x")
    stop_before_the_second_is_accepted(stage, monkeypatch, inherited=True)
    assert stage.listener is not None
    left = []
    with contextlib.suppress(BlockingIOError):
        while True:
            descriptor, _address = stage.listener._accept()  # type: ignore[attr-defined]
            left.append(os.read(descriptor, 1))
            os.close(descriptor)
    # The first one, too, if the server has seen the signal before anything else.
    assert left[-1:] == [bytes([2])]


def test_a_server_that_is_told_twice_ends_at_once(stage: Stage) -> None:
    _first, waiting = told_to_end_while_one_waits(stage)
    os.kill(stage.pid, signal.SIGTERM)
    assert ends(waiting)
    assert os.waitpid(stage.pid, 0)[1] == EXIT_NOT_DELIVERED << 8
    stage.pid = 0


def test_the_server_keeps_no_descriptor_of_a_crash_that_is_over(stage: Stage) -> None:
    stage.serve()
    for _ in range(3):
        for container in (0, 8, 9, 1):
            connection = stage.crash(container)
            with contextlib.suppress(OSError):
                connection.send(b"x")
            with contextlib.suppress(OSError):
                while connection.recv(1):
                    pass
        stage.rests()


# The pattern of the kernel.


@pytest.fixture
def core_pattern(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's pattern, which is up to the server."""
    file, modes = stage.directory / "core_pattern", stage.directory / "core_modes"
    file.write_text("|/before %P\n")
    modes.write_text("file\npipe\nsocket\n")
    stage.directory.chmod(0o700)
    monkeypatch.setattr(pattern, "FILE", str(file))
    monkeypatch.setattr(pattern, "MODES", str(modes))
    stage.pattern = pattern.Pattern(str(stage.path))
    return file


def first_line(path: Path) -> str:
    return path.read_text().partition("\n")[0]


def test_the_pattern_is_that_of_the_socket_from_ready_to_the_end_and_waiting_crashes_come_after(
    stage: Stage, core_pattern: Path
) -> None:
    stage.configuration.write_text("DOCKERCOREHELPER_PIPE_LIMIT=2\n")
    stage.serve()
    assert first_line(core_pattern) == f"@@{stage.path}"
    assert "names this socket; at the end it will be '|/before %P' again" in stage.log.read_text()
    first, second = one_has_the_only_slot_and_one_waits(stage)
    os.kill(stage.pid, signal.SIGTERM)
    wait_for(lambda: first_line(core_pattern) == "|/before %P")
    both_are_handled_and_the_server_ends(stage, first, second)


def test_who_crashes_while_the_pattern_is_given_back_is_handled(
    stage: Stage, core_pattern: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has read the pattern of the socket, and connects when that is in force no more."""
    real = pattern.Pattern.restore

    def restore(ours: pattern.Pattern) -> bool:
        done = real(ours)
        (stage.directory / "given").touch()
        wait_for((stage.directory / "connected").exists)
        return done

    monkeypatch.setattr(pattern.Pattern, "restore", restore)
    stage.serve()
    os.kill(stage.pid, signal.SIGTERM)
    wait_for((stage.directory / "given").exists)
    late = stage.crash(1, b"-x")
    (stage.directory / "connected").touch()
    assert late.recv(1) == b"x"
    assert os.waitpid(stage.pid, 0)[1] == 0
    stage.pid = 0


def test_a_server_that_is_told_twice_gives_the_pattern_back(stage: Stage, core_pattern: Path) -> None:
    stage.serve()
    os.kill(stage.pid, signal.SIGSTOP)
    for number in (signal.SIGTERM, signal.SIGINT):  # Both before it can do anything.
        os.kill(stage.pid, number)
    os.kill(stage.pid, signal.SIGCONT)
    assert os.waitpid(stage.pid, 0)[1] == EXIT_NOT_DELIVERED << 8
    stage.pid = 0
    assert first_line(core_pattern) == "|/before %P"


def test_a_server_that_fails_gives_the_pattern_back(
    stage: Stage, core_pattern: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: server.Server) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(server.Server, "turn", fail)
    stage.serve()
    assert os.waitpid(stage.pid, 0)[1] == 1 << 8
    stage.pid = 0
    assert first_line(core_pattern) == "|/before %P"


def test_a_server_that_cannot_restore_the_pattern_says_so_and_handles_waiting_crashes(
    stage: Stage, core_pattern: Path
) -> None:
    core_pattern.write_text(f"@@{stage.path}\n")
    stage.serve()
    assert "names this socket already, and is left so" in stage.log.read_text()
    connection = stage.crash(1)
    wait_for(lambda: stage.workers(1))
    os.kill(stage.pid, signal.SIGTERM)
    connection.send(b"x")
    assert connection.recv(1) == b"x"
    assert os.waitpid(stage.pid, 0)[1] == EXIT_NOT_DELIVERED << 8
    stage.pid = 0
    assert "still names the socket of a server that ends" in stage.log.read_text()
    assert first_line(core_pattern) == f"@@{stage.path}"


def test_a_server_that_cannot_set_the_pattern_is_never_ready(stage: Stage, core_pattern: Path) -> None:
    (stage.directory / "core_modes").write_text("file\npipe\n")
    assert stage.pattern is not None
    with pytest.raises(pattern.Failed):
        in_this_process(stage)
    assert not (stage.directory / "own").exists()
    assert first_line(core_pattern) == "|/before %P"


def in_this_process(stage: Stage) -> None:
    """Serve without a worker, until the server fails."""
    with contextlib.closing(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)) as listener:
        listener.bind(str(stage.path))
        listener.listen(1)
        handlers = {number: _signal.getsignal(number) for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)}
        serving = server.Server(listener, worker.Settings(None, "why", (256, 512)), stage.pattern)
        serving.hire = lambda: None  # type: ignore[method-assign]
        try:
            serving.serve()
        finally:
            _signal.set_wakeup_fd(-1)
            for number, handler in handlers.items():
                _signal.signal(number, handler)


def test_what_a_killed_server_has_left_is_set_right_by_hand(
    stage: Stage, core_pattern: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "is_elsewhere", lambda: False)
    stage.serve()
    os.kill(stage.pid, signal.SIGKILL)
    os.waitpid(stage.pid, 0)
    stage.pid = 0
    assert first_line(core_pattern) == f"@@{stage.path}"
    words = ["--restore", f"--socket={stage.path}"]
    assert serve.run(words) == EXIT_OK
    assert first_line(core_pattern) == "|/before %P"
    assert "was killed: the previous pattern is set again" in stage.log.read_text()
    # Then there is nothing to do.
    before = stage.log.read_text()
    assert serve.run(words) == EXIT_OK and stage.log.read_text() == before
    core_pattern.write_text(f"@@{stage.path}\n")
    assert serve.run(words) == EXIT_NOT_DELIVERED
    assert "is missing: set the pattern that the host shall have" in capsys.readouterr().err


def test_the_first_process_of_a_container_sets_the_pattern_of_before_where_its_server_was_killed(
    core_pattern: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "is_elsewhere", lambda: False)
    stage.path.touch()
    assert stage.pattern is not None
    stage.pattern.install()
    assert serve.stay_behind(3 << 8, str(stage.path), Log()) == 3
    assert serve.stay_behind(signal.SIGKILL, None, Log()) == EXIT_NOT_DELIVERED
    assert first_line(core_pattern) == f"@@{stage.path}"
    assert serve.stay_behind(signal.SIGKILL, str(stage.path), Log()) == EXIT_NOT_DELIVERED
    assert first_line(core_pattern) == "|/before %P"


def test_the_pattern_of_before_is_set_from_a_container_too(
    core_pattern: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    joined: list[object] = []
    monkeypatch.setattr(host, "is_elsewhere", lambda: True)
    monkeypatch.setattr(serve, "load", lambda elsewhere: None)
    monkeypatch.setattr(host, "join", lambda: joined.append(first_line(core_pattern)))
    stage.path.touch()
    assert stage.pattern is not None
    stage.pattern.install()
    assert serve.run(["--restore", f"--socket={stage.path}"]) == EXIT_OK
    assert joined == [f"@@{stage.path}"] and first_line(core_pattern) == "|/before %P"

    def fail() -> bool:
        raise listening.Unusable("it takes the pid namespace of the host")

    monkeypatch.setattr(host, "is_elsewhere", fail)
    assert serve.run(["--restore"]) == EXIT_NOT_DELIVERED
    assert "it takes the pid namespace of the host" in capsys.readouterr().err


# What a worker is.


def test_a_worker_holds_nothing_of_other_crashes(stage: Stage) -> None:
    stage.configuration.write_text("DOCKERCOREHELPER_PIPE_LIMIT=2\n")
    stage.serve()
    first = stage.crash(1)
    wait_for(lambda: stage.workers(1))
    stage.crash(1)  # Waits, while workers are started.
    wait_for(lambda: len(idle_workers(stage.pid)) == server.IDLE_WORKERS)
    # 0 to 2, the place of the pidfd, the way to the server; the connection.
    (pid,) = stage.workers(1)
    wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) == 6)
    wait_for(lambda: {len(os.listdir(f"/proc/{idle}/fd")) for idle in idle_workers(stage.pid)} == {5})
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")) == [
        "256",
        "512",
    ]
    first.send(b"x")


def test_a_worker_tells_the_server_of_its_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = server._pair()
    monkeypatch.setattr(slots.Slot, "give_back", lambda slot: None)
    slot = worker.SlotOfServer(None, 0, theirs)
    record = slot.release()
    slot.reclaim(record)
    slot.give_back()
    assert [ours.recv(9) for _ in range(3)] == [b"-", b"+", b"-"]
    ours.close()
    slot.give_back()  # The server has ended.
    theirs.close()


# Of a thread that is of another user than its leader.
STATUS = b"Uid:\t1001\t1001\t1001\t1001\nGid:\t101\t101\t101\t101\n"


def test_a_crash_is_that_of_the_connection_and_of_what_the_server_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = Crash(4711, 1000, 100)
    seen: dict[str, Any] = {}

    def handle(crash: Crash, source: Any, configured: Any, log: Log, began: float, enter: Any) -> int:
        seen.update(vars(crash), holder=log.holder, source=source.connection.fileno(), slot=enter())
        seen["inherited"] = os.get_inheritable(3)
        return 5

    monkeypatch.setattr(kernel_socket, "crash_of", lambda connection: crash)
    monkeypatch.setattr(kernel_socket, "faulting_thread", lambda pid: 4712)
    monkeypatch.setattr(procfs, "read_path", lambda path: STATUS if path == "/proc/4711/task/4712/status" else b"1")
    monkeypatch.setattr(procfs, "is_process_of", lambda pidfd, pid: pid == 4711)
    monkeypatch.setattr(kernel_socket, "greet", lambda connection: seen.update(greeted=True))
    monkeypatch.setattr(main, "handle", handle)
    held = []

    def acquire(*words: Any) -> slots.Slot:
        held.append(words)
        if len(held) < 3:
            raise slots.NoSlot(slots.TooMany("container a", 2, 2, 4))
        return slots.Slot(None, 0)

    monkeypatch.setattr(main, "acquire_slot", acquire)
    ours, theirs = server._pair()
    kernel, connection = _socket.socketpair()

    def receive() -> object:
        posix.dup2(os.open("/dev/null", os.O_RDONLY), worker.PIDFD)
        crash.pidfd = crash.handle = os.open("/dev/null", os.O_RDONLY)
        job = Job(connection, crash, named("container a", 7))
        job.crash.limit, job.crash.time = 4096, 1700000000
        worker.give(ours, job)
        order, rights, _, _ = theirs.recvmsg(worker.LONGEST_ORDER, _socket.CMSG_SPACE(4))
        passed = _socket.socket(fileno=struct.unpack("=i", rights[0][2])[0])
        code = worker.receive(order, passed, theirs, worker.Settings(None, "why", (1, 1), None, (7, 8)), Log())
        names = (
            "uid",
            "gid",
            "tid",
            "time",
            "limit",
            "pidfd",
            "handle",
            "inherited",
            "unprotected",
            "interpreter",
            "holder",
            "greeted",
        )
        told = held[2][3]
        return [code, len(held), *(seen[name] for name in names), told.owner, told.group]

    assert in_child(receive) == [
        *(5, 3, 1001, 101, 4712, 1700000000, 4096, 3, 3, False, "why", [7, 8], "7 user 7", True),
        *(7, "7 container a"),
    ]
    for end in (ours, theirs, kernel, connection):
        end.close()


def test_a_worker_rehearses_and_changes_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(slots.FILE)
    path.write_bytes(b"")
    told: list[str] = []
    real = deliver.choose

    def choose(delivered: Any, refusal: Any) -> Any:
        told.append(str(delivered.process.host_pid))
        return real(delivered, refusal)

    monkeypatch.setattr(deliver, "choose", choose)

    def rehearse() -> object:
        for forks in (True, False):
            worker.rehearse(worker.Settings(None, "why", (1, 1), b""), forks)
        return [told == 2 * [str(os.getpid())], path.read_bytes().hex(), stage.log.read_text()]

    assert in_child(rehearse) == [True, "", ""]


def test_the_memory_of_a_worker_is_its_own_when_the_crash_comes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    # A fork would make it a copy once more.
    def rehearse(settings: object, forks: bool) -> None:
        with open(stage.directory / f"rehearsed.{os.getpid()}", "a") as file:
            file.write(f"{forks} ")

    monkeypatch.setattr(worker, "rehearse", rehearse)
    stage.serve()
    connection = stage.crash(1)
    wait_for(lambda: stage.workers(1))
    connection.send(b"x")
    (pid,) = stage.workers(1)
    assert (stage.directory / f"rehearsed.{pid}").read_text() == "True False "


def test_a_worker_whose_rehearsal_fails_works(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: object, forks: bool) -> None:
        os.open("/dev/null", os.O_RDONLY)
        raise ValueError

    monkeypatch.setattr(worker, "rehearse", fail)
    stage.serve()
    connection = stage.crash(1)
    wait_for(lambda: stage.workers(1))
    assert len(os.listdir(f"/proc/{stage.workers(1)[0]}/fd")) <= 7
    connection.send(b"x")
    assert connection.recv(1) == b"x"


def test_a_worker_that_hangs_before_it_has_a_crash_is_given_none(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(configured: object, forks: bool) -> None:
        (stage.done / f"hangs.{os.getpid()}").touch()
        parent = os.getppid()
        # No longer than there is a server: other tests of this machine count its workers.
        while os.getppid() == parent:
            time.sleep(0.05)
        os._exit(0)

    monkeypatch.setattr(worker, "rehearse", hang)
    stage.serve()
    wait_for(lambda: len(list(stage.done.glob("hangs.*"))) == server.IDLE_WORKERS)
    for number in (1, 2):
        connection = stage.crash(number)
        connection.send(b"x")
        assert connection.recv(1) == b"x"
    # No more than these hang.
    assert len(list(stage.done.glob("hangs.*"))) == server.IDLE_WORKERS


def test_nothing_is_read_of_a_crash_for_which_the_kernel_looks_at_the_memory_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    real: Any = posix.open

    def note(path: Any, *words: Any, **named: Any) -> int:
        opened.append(os.fsdecode(path))
        return int(real(path, *words, **named))

    monkeypatch.setattr(posix, "open", note)
    kernel_socket.core_limit(os.getpid())
    holders.holder_of(Crash(os.getpid(), 0, 0))
    runtime.whereabouts(os.getpid())
    # Of these, the kernel reads limits, control groups, namespaces and the name without the memory; fs/proc/base.c, array.c.
    harmless = {"limits", "cgroup", "comm", "pid", "user", f"{os.getpid()}"}
    assert {path.rpartition("/")[2] for path in opened if not path.startswith("/etc/")} <= harmless
    assert len(opened) >= 4
