"""Crashes through the kernel's core-dump socket: some of those that come through the pipe, and what can go wrong with a server.

docs/socket.md has a table of the latter. `make test-socket` has the other tests of this directory and of hostile/ come so, too.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from support import door, lab
from support.containers import Container, MakeCrash, wait_for_log
from support.hosts import HELPER, delegate_on_host, records_of_host
from support.records import NAMESPACES, Record, is_whole

CONFIGURATION = Path("/etc/docker_core_helper.conf")
LINGER = "--env=PROBE_LINGER=3"


@pytest.fixture(scope="module", autouse=True)
def by_socket() -> Iterator[None]:
    """Has the crashes of these tests come through the socket."""
    if not door.has_sockets():
        pytest.skip("this kernel has no core-dump socket: it takes Linux 6.17")
    if not door.BY_SOCKET:
        door.open_socket()
    yield
    if not door.BY_SOCKET:
        door.stop()


@pytest.fixture
def server() -> Iterator[int]:
    """The pid of a server that a test may treat as it likes; after the test there is another one."""
    (pid,) = door.servers()
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    door.stop_server()
    wait_until(lambda: not door.named(door.BUSY), "a worker is left")
    door.start_server()


@pytest.fixture
def configured() -> Iterator[Callable[[str], None]]:
    """Adds lines to the configuration for the time of one test."""
    before = CONFIGURATION.read_text()

    def add(lines: str) -> None:
        CONFIGURATION.write_text(before + lines)

    yield add
    CONFIGURATION.write_text(before)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 15) -> None:
    """Waits for a condition, and fails if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def has_ended(container: Container) -> bool:
    """Whether a container that was started with --detach has ended."""
    return lab.output("docker", "inspect", "--format={{.State.Running}}", container.name) == "false"


def at_work(container: Container) -> list[Path]:
    """The records of delegates that are at work."""
    return list(container.records.glob(".delegate.*/core"))


def test_the_core_of_pid_1_arrives_with_what_is_known_of_the_crash(crash: MakeCrash) -> None:
    before = int(time.time())
    container = crash(options=("--ulimit=core=4096:8192", "--env=PROBE_LINGER=1"))
    assert (container.process.pid, container.exit_status) == (1, 128 + 11)
    assert is_whole(container.delegate.core.read_bytes())
    assert container.seconds > 1  # Its container has stayed until the delegate was done.
    told = container.delegate.environment
    # Neither the limit nor the signal comes through the socket of Linux 6.18.
    assert (told["CORE_SIGNAL"], told["CORE_SIGNAL_NAME"], told["CORE_LIMIT"]) == ("11", "SIGSEGV", "4096")
    assert before <= int(told["CORE_TIME"]) <= time.time()
    assert f": delivered {container.delegate.core.stat().st_size} bytes" in container.log(": delivered")


def test_the_thread_that_crashes_has_outlived_the_leader(crash: MakeCrash) -> None:
    container = crash("-l")
    assert is_whole(container.delegate.core.read_bytes())
    for namespace in NAMESPACES:
        assert container.delegate.links[f"ns/{namespace}"] == container.process.links[f"ns/{namespace}"]


def test_a_delegate_that_fails_before_it_reads_leaves_the_whole_core(crash: MakeCrash, tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    failing = tmp_path / "delegate"
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    fallback = ("--env=DOCKERCOREHELPER_FALLBACK_CORE=1", f"--volume={tmp_path}:/tmp")
    container = crash("-m", "8", options=(*fallback, f"--volume={failing}:/opt/bin/delegate"))
    assert "before it read a byte" in container.log("no delegate took it")
    (core,) = tmp_path.glob("core.*")
    assert is_whole(core.read_bytes())


SAME = (
    *(
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
    ),
    *("Umask", "SigBlk", "SigIgn", "SigCgt", "ShdPnd", "Cpus_allowed_list", "Mems_allowed_list", "THP_enabled"),
)


def test_a_delegate_is_the_same_through_both_doors() -> None:
    delegates = []
    with delegate_on_host("probe"):
        for pattern in (door.PIPE.read_text(), f"@@{door.SOCKET}"):
            lab.setting(door.PATTERN).write_text(pattern)
            with records_of_host() as records:
                process = subprocess.Popen([lab.PROGRAMS / "crash"], env={"RECORD_DIRECTORY": str(records)})
                assert process.wait(timeout=60) == -signal.SIGSEGV
                one = Record(records / f"delegate.{process.pid}")
                told = {name: one.status[name] for name in SAME if name in one.status}
                surroundings = [one.limits, one.links, one.text("cgroup"), one.facts["descriptors"]]
                delegates.append([told, *surroundings, sorted(one.environment), one.text("limits")])
    by_pipe, by_socket = delegates
    assert by_socket == by_pipe


def test_more_crashes_than_slots_wait_and_none_is_lost(crash: MakeCrash, configured: Callable[[str], None]) -> None:
    configured("DOCKERCOREHELPER_PIPE_LIMIT=4\n")
    container = crash("-c", "20")
    delegates = container.of("delegate")
    assert len(delegates) == 20 == len(container.of("process"))
    assert all(is_whole(delegate.core.read_bytes()) for delegate in delegates)


def test_sixty_crashes_at_once_in_six_containers_and_none_is_lost(
    crash: MakeCrash, configured: Callable[[str], None]
) -> None:
    # More than there are slots, and more than a container may have of them.
    configured("DOCKERCOREHELPER_PIPE_LIMIT=16\nDOCKERCOREHELPER_TIMEOUT=300\n")
    containers: list[Container] = []
    threads = [threading.Thread(target=lambda: containers.append(crash("-c", "10"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [container.exit_status for container in containers] == [0] * 6
    for container in containers:
        delegates = container.of("delegate")
        assert len(delegates) == 10
        assert [delegate.pid for delegate in delegates] == [process.pid for process in container.of("process")]
        assert all(is_whole(delegate.core.read_bytes()) for delegate in delegates)


def memory() -> float:
    """The MiB of memory that the server and its workers take, each page counted once."""
    found = [pid for name in (door.SERVER, door.IDLE, door.BUSY) for pid in door.named(name)]
    kib = 0
    for pid in found:
        with suppress(OSError):
            kib += int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0])
    return kib / 1024


def test_a_server_takes_little_memory_and_each_crash_in_flight_little_more(crash: MakeCrash) -> None:
    wait_until(lambda: not door.named(door.BUSY), "crashes of another test are in flight")
    assert 0 < memory() < 30
    container = crash("-c", "8", options=(LINGER, "--detach"))
    wait_until(lambda: len(at_work(container)) == 8, "no delegates")
    assert memory() < 30 + 8 * 14


def test_the_crash_of_a_delegate_does_not_come_back(crash: MakeCrash, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    crashing = tmp_path / "delegate"
    crashing.write_text("#!/bin/sh\necho run >>/out/runs\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    container = crash(options=(f"--volume={crashing}:/opt/bin/delegate",))
    assert "its limit for core files is 1 byte" in container.log("1 byte")
    assert (container.records / "runs").read_text() == "run\n"


# What goes wrong.


def test_a_worker_that_is_killed_costs_its_own_crash_alone(crash: MakeCrash) -> None:
    before = door.named(door.BUSY)  # Those of an earlier test may have to wait for their delegates.
    container = crash("-c", "2", options=(LINGER, "--detach"))
    wait_until(lambda: len(at_work(container)) == 2, "no delegates")
    workers = [pid for pid in door.named(door.BUSY) if pid not in before and parent_of(pid) in door.servers()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert "its worker was killed by signal 9" in container.log("signal 9")
    wait_until(lambda: has_ended(container), "the process is held")
    assert container.log(": delivered ").count(": delivered ") == 1


def parent_of(pid: int) -> int:
    """The parent of a process, 0 where that has ended: workers of an earlier test may end at any time."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def test_a_server_that_is_killed_leaves_the_deliveries_to_their_workers(
    crash: MakeCrash, configured: Callable[[str], None], server: int
) -> None:
    configured("DOCKERCOREHELPER_PIPE_LIMIT=2\n")
    container = crash("-c", "2", options=(LINGER, "--detach"))
    wait_until(lambda: at_work(container), "no delegate")
    time.sleep(0.2)  # The other one waits.
    os.kill(server, signal.SIGKILL)
    # What has waited at the server is lost, but not held.
    wait_until(lambda: has_ended(container), "a process is held")
    assert len(container.of("delegate")) == 1
    assert is_whole(container.delegate.core.read_bytes())
    assert ": delivered " in container.log(": delivered ")
    # Until another server comes, the kernel drops what crashes.
    lost = crash()
    assert lost.exit_status == 128 + 11 and lost.of("delegate") == []
    door.start_server()
    assert is_whole(crash().delegate.core.read_bytes())


def test_crashes_wait_for_a_frozen_server(crash: MakeCrash, server: int) -> None:
    os.kill(server, signal.SIGSTOP)
    container = crash(options=("--detach",))
    wait_until(lambda: container.of("process"), "no crash")
    time.sleep(0.5)
    assert not has_ended(container) and container.of("delegate") == []
    os.kill(server, signal.SIGCONT)
    wait_until(lambda: has_ended(container), "the process is held")
    assert is_whole(container.delegate.core.read_bytes())


def test_the_kernel_drops_what_a_full_backlog_does_not_take(crash: MakeCrash, server: int) -> None:
    longest = Path("/proc/sys/net/core/somaxconn")
    before = longest.read_text()
    door.stop_server()
    try:
        longest.write_text("2")
        door.start_server()
    finally:
        longest.write_text(before)
    (frozen,) = door.servers()
    os.kill(frozen, signal.SIGSTOP)
    try:
        container = crash("-c", "6", options=("--detach",))
        wait_until(lambda: "receive queue full" in lab.output("dmesg"), "the kernel says nothing")
        time.sleep(0.5)
    finally:
        os.kill(frozen, signal.SIGCONT)
    wait_until(lambda: has_ended(container), "a process is held")
    # A backlog of 2 takes three.
    assert len(container.of("delegate")) == 3


def test_a_process_that_connects_and_does_not_crash_is_refused_whatever_it_says() -> None:
    for words in (b"", b"rubbish" * 1000):
        with closing(socket.socket(socket.AF_UNIX)) as stranger:
            stranger.connect(str(door.SOCKET))
            stranger.settimeout(5)
            with suppress(ConnectionError):
                stranger.sendall(words)
                assert stranger.recv(1) == b""
    told = f"process {os.getpid()} of user 0 has connected to the core-dump socket, and does not crash: refused"
    assert told in wait_for_log(f"process {os.getpid()} ", "refused")


CONNECTS_AND_CRASHES = """
import os, socket, sys, time
connection = socket.socket(socket.AF_UNIX)
connection.connect({path!r})
connection.send(b"rubbish" * 1000)
if os.fork() == 0:
    time.sleep(2)
    os._exit(0)
os.kill(os.getpid(), 11)
"""


def test_what_a_process_says_itself_before_it_crashes_is_refused_and_its_core_arrives(server: int) -> None:
    """The connection of its own is accepted when it crashes already, and before that of the kernel."""
    os.kill(server, signal.SIGSTOP)
    with delegate_on_host("probe"), records_of_host() as records:
        script = CONNECTS_AND_CRASHES.format(path=str(door.SOCKET))
        crashing = subprocess.Popen([sys.executable, "-c", script], env={"RECORD_DIRECTORY": str(records)})
        time.sleep(1)
        os.kill(server, signal.SIGCONT)
        assert crashing.wait(timeout=30) == -signal.SIGSEGV
        assert "the core-dump socket got a request of" in wait_for_log(f"pid={crashing.pid} ", "got a request")
        # The pid is what the probe knows of the host's process.
        assert is_whole((records / f"delegate.{crashing.pid}" / "core").read_bytes())


def test_a_socket_of_the_containers_at_that_path_gets_nothing(crash: MakeCrash, tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as false:
        false.bind(str(tmp_path / door.SOCKET.name))
        false.listen()
        false.setblocking(False)
        container = crash(options=(f"--volume={tmp_path}:{door.SOCKET.parent}",))
        assert is_whole(container.delegate.core.read_bytes())
        with pytest.raises(BlockingIOError):
            false.accept()


@contextmanager
def listening() -> Iterator[int]:
    """A socket that outlives the servers that it is given to, as systemd has it."""
    with closing(socket.socket(socket.AF_UNIX)) as kept:
        door.SOCKET.unlink(missing_ok=True)
        kept.bind(str(door.SOCKET))
        kept.listen(4096)
        yield kept.fileno()


SERVES = f"""
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv("{HELPER}", ["{HELPER}", "serve"])
"""


def serves(pid: int) -> bool:
    """Whether a server has workers that wait, and so handles signals."""
    with suppress(OSError):
        return any(parent_of(worker) == pid for worker in door.named(door.IDLE))
    return False


def serve(descriptor: int) -> subprocess.Popen[bytes]:
    """Starts a server as systemd does."""
    return subprocess.Popen([sys.executable, "-c", SERVES, str(descriptor)], pass_fds=[descriptor])


@contextmanager
def crashing(records: Path) -> Iterator[list[int]]:
    """Has processes of the host crash meanwhile, two at a time; their pids."""
    crashed: list[int] = []
    over = threading.Event()

    def crash_on() -> None:
        while not over.is_set():
            process = subprocess.Popen([lab.PROGRAMS / "crash"], env={"RECORD_DIRECTORY": str(records)})
            crashed.append(process.pid)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()  # No server has it: then the test has failed.
                return

    threads = [threading.Thread(target=crash_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield crashed
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_no_crash_is_lost_while_the_server_is_restarted_again_and_again(server: int) -> None:
    door.stop_server()
    with listening() as descriptor, delegate_on_host("probe"), records_of_host() as records:
        running = serve(descriptor)
        try:
            with crashing(records) as crashed:
                for _ in range(5):
                    wait_until(lambda of=running: serves(of.pid), "the server does not start")  # type: ignore[misc]
                    running.send_signal(signal.SIGTERM)
                    assert running.wait(timeout=20) == 0
                    running = serve(descriptor)
        finally:
            running.terminate()
            running.wait(timeout=20)
        wait_until(lambda: not door.named(door.BUSY), "a worker is left")
        assert len(crashed) > 5
        lost = [pid for pid in crashed if not is_whole((records / f"delegate.{pid}" / "core").read_bytes())]
    assert lost == []


def test_no_crash_is_lost_while_servers_come_and_go_that_set_the_pattern(server: int) -> None:
    door.stop_server()
    pattern, pipe, ours = lab.setting(door.PATTERN), door.PIPE.read_text(), f"@@{door.SOCKET}\n"
    pattern.write_text(pipe)
    came: list[int] = []
    try:
        with delegate_on_host("probe"), records_of_host() as records:
            with crashing(records) as crashed:
                for _ in range(6):
                    running = subprocess.Popen([HELPER, "serve", "--pattern"], stdin=subprocess.DEVNULL)
                    wait_until(lambda: pattern.read_text() == ours, "the server does not set the pattern")
                    came.append(len(crashed))
                    wait_until(lambda: len(crashed) > came[-1] + 10, "nothing crashes")
                    running.send_signal(signal.SIGTERM)
                    assert running.wait(timeout=20) == 0
                    assert pattern.read_text() == pipe
            wait_until(lambda: not door.named(door.BUSY), "a worker is left")
            lost = [pid for pid in crashed if not is_whole((records / f"delegate.{pid}" / "core").read_bytes())]
        assert lost == [] and len(crashed) > 60
    finally:
        pattern.write_text(ours)


# Who has started the server, and how.


# The numbers of add_key(2), keyctl(2) and ioprio_set(2).
CALLS = {"x86_64": (248, 250, 251), "aarch64": (217, 219, 30)}
BY_HAND = """#!{python}
import ctypes, os
library = ctypes.CDLL(None)
library.syscall({keyctl}, 1, b"of-the-login")
library.syscall({add_key}, b"user", b"key-of-root", b"secret", 6, -3)
with open("/proc/self/loginuid", "w") as file:
    file.write("1000")
os.nice(-5)
library.syscall({set_io_priority}, 1, 0, 3 << 13)
library.prctl(29, 7777)
os.execve("{helper}", ["{helper}", "serve"], {{"VARIABLE_OF_ROOT": "secret"}})
"""
TELLS = """#!/bin/sh
cat >/dev/null
cat /proc/keys >/out/keys
cat /proc/self/loginuid >/out/login
cut -d' ' -f19 /proc/self/stat >/out/nice
ionice -p $$ >/out/disk
cat /proc/self/timerslack_ns >/out/slack
"""


def test_a_delegate_has_nothing_of_the_login_in_which_the_server_was_started(
    crash: MakeCrash, server: int, tmp_path: Path
) -> None:
    add_key, keyctl, set_io_priority = CALLS[os.uname().machine]
    door.stop_server()
    python = os.path.realpath("/usr/bin/python3")
    numbers = {"add_key": add_key, "keyctl": keyctl, "set_io_priority": set_io_priority}
    door.start_server(BY_HAND.format(python=python, helper=HELPER, **numbers))
    tmp_path.chmod(0o755)
    telling = tmp_path / "delegate"
    telling.write_text(TELLS)
    telling.chmod(0o755)
    # Docker covers /proc/keys otherwise.
    options = ("--user=1000:1000", "--security-opt=systempaths=unconfined")
    container = crash(options=(f"--volume={telling}:/opt/bin/delegate", *options))
    container.log(": delivered ")
    assert "key-of-root" not in (container.records / "keys").read_text()
    assert (container.records / "login").read_text() == f"{(1 << 32) - 1}"
    assert (container.records / "nice").read_text() == "0\n"
    assert "idle" not in (container.records / "disk").read_text()
    assert (container.records / "slack").read_text() == "50000\n"
    variables = [Path(f"/proc/{pid}/environ").read_bytes() for pid in door.servers() + door.idle_workers()]
    assert variables and not any(b"VARIABLE_OF_ROOT" in text for text in variables)


def test_nobody_waits_for_the_terminal_in_which_the_server_was_started(crash: MakeCrash, server: int) -> None:
    door.stop_server()
    shown, terminal = os.openpty()
    try:
        os.set_blocking(terminal, False)
        with suppress(BlockingIOError):
            while True:
                os.write(terminal, b"x" * 1000)  # Nobody reads that.
        os.set_blocking(terminal, True)
        name = os.ttyname(terminal)
        door.start_server(f"#!/bin/sh\nexec {HELPER} serve <{name} >{name} 2>{name}\n")
        container = crash(options=("--detach",))
        wait_until(lambda: has_ended(container), "the process is held")
        assert is_whole(container.delegate.core.read_bytes())
    finally:
        os.close(terminal)
        os.close(shown)
