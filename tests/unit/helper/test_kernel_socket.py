"""kernel_socket: what the kernel says on a connection, here the other end of a pair, and the core that comes after that."""

from __future__ import annotations

import _socket
import contextlib
import os
import posix
import resource
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import bounds, kernel_socket, linux, procfs
from core_helper.crash import Refused
from core_helper.kernel_socket import KernelSocket
from core_helper.source import KernelPipe
from unit.helper.delivery import LONG, deliver, shell
from unit.helper.support import elf, in_child

pytestmark = pytest.mark.usefixtures("without_entry")
REQUEST = struct.pack("=IIQ", 16, 16, 15)
ACCEPTED = struct.pack("=I", 0)


def test_a_connection_has_ended_when_the_kernel_has_closed_its_end() -> None:
    ours, kernel = _socket.socketpair()
    assert not kernel_socket.has_ended(ours)
    kernel.send(REQUEST)
    assert not kernel_socket.has_ended(ours)
    kernel.close()
    assert kernel_socket.has_ended(ours)
    ours.close()


class Pair:
    """A connection, and the end of the kernel."""

    def __init__(self) -> None:
        self.ours, self.kernel = _socket.socketpair()

    def close(self) -> None:
        for end in (self.ours, self.kernel):
            with contextlib.suppress(OSError):
                end.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


# The greeting.


@pytest.mark.parametrize("request_", [REQUEST, struct.pack("=IIQQ", 24, 24, 0xFF, 7)], ids=["6.17", "later"])
def test_the_kernel_is_told_to_write_the_core_and_to_keep_the_process(pair: Pair, request_: bytes) -> None:
    pair.kernel.send(request_ + ACCEPTED + b"core")
    kernel_socket.greet(pair.ours)
    # KERNEL 1 and WAIT 8 of include/uapi/linux/coredump.h.
    assert pair.kernel.recv(100) == struct.pack("=IIQ", 16, 0, 9)
    assert pair.ours.recv(100) == b"core"


@pytest.mark.parametrize(
    "request_",
    [
        struct.pack("=IIQ", 16, 16, 1),
        struct.pack("=IIQ", 16, 16, 8),
        struct.pack("=IIQ", 8, 16, 15),
        struct.pack("=IIQ", 16, 8, 15),
        b"\x7fELF" + bytes(12),
    ],
    ids=["no wait", "no core", "short", "short answer", "a core at once"],
)
def test_another_protocol_is_refused_and_not_answered(pair: Pair, request_: bytes) -> None:
    pair.kernel.send(request_ + ACCEPTED)
    with pytest.raises(Refused, match=r"it takes Linux 6\.17, and @@"):
        kernel_socket.greet(pair.ours)
    with pytest.raises(BlockingIOError):
        pair.kernel.recv(1, _socket.MSG_DONTWAIT)


@pytest.mark.parametrize(
    "told", [b"", REQUEST[:15], REQUEST, struct.pack("=IIQ", 1 << 20, 16, 15), REQUEST + b"\0\0\0"]
)
@pytest.mark.parametrize("ends", [True, False])
def test_a_peer_that_says_too_little_is_not_waited_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, told: bytes, ends: bool
) -> None:
    monkeypatch.setattr(kernel_socket, "PATIENCE", 0.2)
    pair.kernel.send(told) if told else None
    if ends:
        pair.kernel.shutdown(1)
    began = time.monotonic()
    with pytest.raises(Refused, match="was killed before its core" if ends else "bytes where the kernel says"):
        kernel_socket.greet(pair.ours)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("told", [b"", REQUEST])
def test_a_process_that_was_killed_meanwhile_is_named_as_such(pair: Pair, told: bytes) -> None:
    pair.kernel.send(told) if told else None
    # The end of the kernel's connection, before and after its request was read.
    pair.kernel.close()
    with pytest.raises(Refused, match="was killed before its core"):
        kernel_socket.greet(pair.ours)


def test_an_answer_that_the_kernel_does_not_accept_is_told(pair: Pair) -> None:
    pair.kernel.send(REQUEST + struct.pack("=I", 4))
    with pytest.raises(Refused, match="mark 4"):
        kernel_socket.greet(pair.ours)


# Who has connected.


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[_socket.socket]:
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "core.sock"))
    listener.listen(8)
    yield listener
    listener.close()


def connection_of(listener: Any, program: str = "sys.stdin.read()") -> tuple[_socket.socket, Any]:
    """Return a connection of another process, and that process."""
    connect = f"import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect({listener.getsockname()!r}); {program}"
    process = subprocess.Popen([sys.executable, "-IS", "-c", connect], stdin=subprocess.PIPE)
    return _socket.socket(fileno=listener._accept()[0]), process


@pytest.fixture
def has_peer_pidfd(listener: _socket.socket) -> None:
    connection, process = connection_of(listener)
    try:
        os.close(connection.getsockopt(_socket.SOL_SOCKET, kernel_socket.SO_PEERPIDFD))
    except OSError:
        pytest.skip("this kernel has no SO_PEERPIDFD: it takes Linux 6.5")
    finally:
        process.communicate()
        connection.close()


@pytest.mark.usefixtures("has_peer_pidfd")
def test_a_process_that_does_not_crash_is_refused_and_named(listener: _socket.socket) -> None:
    connection, process = connection_of(listener)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused, match=r"has connected to the core-dump socket, and does not crash"):
        kernel_socket.crash_of(connection)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    process.communicate()
    with pytest.raises(Refused):
        kernel_socket.crash_of(connection)


@pytest.mark.usefixtures("has_peer_pidfd")
@pytest.mark.parametrize(("mask", "dumpable"), [(1 | 4, 1), (1 | 8, 2), (1 | 4 | 8, 2), (1, 2)])
def test_a_crash_is_that_of_the_pidfd(
    listener: _socket.socket, monkeypatch: pytest.MonkeyPatch, mask: int, dumpable: int
) -> None:
    connection, process = connection_of(listener)
    info = SimpleNamespace(pid=process.pid, uid=5, gid=6, coredump=mask, signal=11)
    monkeypatch.setattr(linux, "pidfd_info", lambda pidfd: info)
    crash = kernel_socket.crash_of(connection)
    assert (crash.pid, crash.uid, crash.gid, crash.signal, crash.dumpable) == (process.pid, 5, 6, 11, dumpable)
    assert crash.pidfd == crash.handle and crash.pidfd is not None
    assert f"Pid:\t{process.pid}\n" in Path(f"/proc/self/fdinfo/{crash.pidfd}").read_text()
    assert kernel_socket.core_limit(crash.pid) == soft_limit()
    os.close(crash.pidfd)
    process.communicate()
    assert kernel_socket.core_limit(1 << 22) is None


def soft_limit() -> int:
    soft = resource.getrlimit(resource.RLIMIT_CORE)[0]
    return (1 << 64) - 1 if soft == resource.RLIM_INFINITY else soft


def test_what_the_kernel_says_of_a_process_is_read_where_it_stands() -> None:
    buffer = bytearray(72)
    struct.pack_into("=QQ9I", buffer, 0, 0x57, 0, 8, 7, 1, 1000, 100, 1001, 101, 0, 0)
    struct.pack_into("=II", buffer, 64, 1 | 4, 6)
    info = linux.ProcessInfo(buffer)
    assert (info.pid, info.uid, info.gid, info.coredump, info.signal) == (7, 1000, 100, 5, 6)
    struct.pack_into("=Q", buffer, 0, 0x17)  # Before Linux 6.19.
    assert (linux.ProcessInfo(buffer).coredump, linux.ProcessInfo(buffer).signal) == (5, None)
    struct.pack_into("=Q", buffer, 0, 0x47)  # It says nothing of core dumps.
    assert (linux.ProcessInfo(buffer).coredump, linux.ProcessInfo(buffer).signal) == (None, None)
    struct.pack_into("=QI", buffer, 0, 0x57, 0)
    struct.pack_into("=I", buffer, 64, 4)  # It is not being dumped.
    assert linux.ProcessInfo(buffer).coredump is None


def test_the_thread_that_crashed_is_the_one_that_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"7": 0x400000, "8": 0x400200, "9": 0x400000}
    read: list[str] = []

    def stat(path: str) -> bytes:
        name = path.split("/")[4]
        read.append(name)
        if name == "6":
            raise FileNotFoundError
        return b"%s (a) b) S 1 2 3 4 5 %d 0" % (name.encode(), flags[name])

    monkeypatch.setattr(posix, "listdir", lambda path: ["9", "6", "8", "7"])
    monkeypatch.setattr(procfs, "read_path", stat)
    assert kernel_socket.faulting_thread(7) == 8
    assert read == ["7", "6", "8"]  # The leader is the likely one.
    flags["8"] = 0
    assert kernel_socket.faulting_thread(7) is None
    monkeypatch.setattr(kernel_socket, "MOST_THREADS", 3)
    with pytest.raises(Refused, match=r"^process 7 has 4 threads, and the one that crashed is not among 3 of them$"):
        kernel_socket.faulting_thread(7)


# The core.


@pytest.mark.parametrize("size", [1, 4096, 65537, LONG])
def test_the_whole_core_arrives(tmp_path: Path, size: int) -> None:
    core = os.urandom(size)
    result = deliver(shell('cat >"$0"', tmp_path / "core"), core, by_socket=True)
    assert (result.started, result.failure, result.complete, result.delivered) == (True, None, True, size)
    assert result.drained and (tmp_path / "core").read_bytes() == core


def test_a_delegate_that_fails_before_it_reads_leaves_the_whole_core(pair: Pair) -> None:
    result = deliver(shell("exit 3"), os.urandom(LONG), by_socket=True)
    assert (result.untouched, result.failure, result.delivered) == (True, "it ended with exit code 3", 0)


@pytest.mark.parametrize("length", [50_000, 100, 0])
def test_a_core_that_was_cut_off_is_told_as_such(tmp_path: Path, length: int) -> None:
    core = elf(64, "<", [(4096, 100_000)]).ljust(104_096, b"c")[:length]
    result = deliver(shell('cat >"$0"; mv "$0" "$1"', tmp_path / "part", tmp_path / "core"), core, by_socket=True)
    assert (result.cut, result.complete, result.delivered) == (True, True, length)
    assert not (tmp_path / "core").exists()


def test_what_is_shown_stays(pair: Pair) -> None:
    source = KernelSocket(pair.ours)
    reading, writing = os.pipe()
    with pytest.raises(BlockingIOError):
        source.peek(writing, 1 << 20)
    for part in (b"a" * 3000, b"b" * 3000):
        pair.kernel.send(part)
    assert source.peek(writing, 1 << 20) == 4096
    assert os.read(reading, 9999) == b"a" * 3000 + b"b" * 1096
    assert os.read(source.descriptor, 9999) == b"a" * 3000 + b"b" * 3000
    pair.kernel.shutdown(1)
    assert source.peek(writing, 1 << 20) == 0
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("count", [1, 3000])
def test_the_length_is_known_before_anybody_has_read_the_core(pair: Pair, count: int) -> None:
    header = elf(64, "<", [(1 << 20, 5 << 30), *[(4096, 4096)] * (count - 1)])
    threading.Thread(target=send_slowly, args=(pair.kernel, header[:10], header[10:70], header[70:] + b"more")).start()
    assert KernelSocket(pair.ours).announced_length() == (1 << 20) + (5 << 30)
    assert pair.ours.recv(64) == header[:64]


def send_slowly(end: _socket.socket, *parts: bytes) -> None:
    for part in parts:
        time.sleep(0.03)
        with contextlib.suppress(OSError):
            end.sendall(part)


@pytest.mark.parametrize("told", [b"", b"\x7fELF", b"core"])
def test_a_core_that_is_no_core_or_was_cut_off_has_no_length(pair: Pair, told: bytes) -> None:
    pair.kernel.sendall(told)
    pair.kernel.shutdown(1)
    assert KernelSocket(pair.ours).announced_length() is None


def test_a_header_that_the_socket_cannot_hold_is_not_waited_for(pair: Pair) -> None:
    pair.kernel.setblocking(False)
    header = elf(64, "<", [(4096, 4096)], count=60_001) + elf(64, "<", [(4096, 4096)])[64:] * 60_000
    assert pair.kernel.send(header) < len(header)
    began = time.monotonic()
    assert KernelSocket(pair.ours).announced_length() is None
    assert time.monotonic() - began < 4


def test_the_length_of_the_pipe_is_asked_of_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "length_in_pipe", lambda pipe: pipe + 1)
    reading, writing = os.pipe()
    assert KernelPipe(reading).announced_length() == reading + 1
    os.close(reading)
    os.close(writing)


# The previous handler.


def test_a_program_in_the_helpers_place_reads_a_pipe_and_holds_the_process_as_long_as_that(
    pair: Pair, tmp_path: Path
) -> None:
    core = os.urandom(LONG)
    script = f"test -p /dev/stdin && cat >{tmp_path}/core; touch {tmp_path}/read; sleep 0.5; exec 0</dev/null; sleep 2"
    pid = os.fork()
    if pid == 0:
        try:
            pair.kernel.close()
            os.dup2(KernelSocket(pair.ours).stream(), 0)
            os.execv("/bin/sh", ["sh", "-c", script])
        finally:
            os._exit(9)
    pair.ours.close()
    pair.kernel.sendall(core)
    pair.kernel.shutdown(1)
    began = time.monotonic()
    # As the kernel waits.
    assert pair.kernel.recv(1) == b""
    waited = time.monotonic() - began
    assert (tmp_path / "core").read_bytes() == core and (tmp_path / "read").exists()
    assert 0.4 < waited < 2
    assert os.waitpid(pid, 0)[1] == 0


def test_a_program_that_could_not_be_executed_has_taken_nothing(pair: Pair) -> None:
    pair.kernel.sendall(b"core")

    def helper() -> object:
        source = KernelSocket(pair.ours)
        source.stream()
        source.end_stream()
        os.wait()
        return source.connection.recv(100).decode()

    assert in_child(helper) == "core"


def test_closing_it_twice_closes_it_once(pair: Pair) -> None:
    source = KernelSocket(pair.ours)
    source.close()
    assert pair.kernel.recv(1) == b""
    source.close()
    source.end_stream()
    assert source.closed
