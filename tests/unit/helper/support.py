"""What the tests of the helper share: forked children, a look at an execve, and stand-ins for what needs a crash."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import mount_table, status_pipe
from core_helper.crash import Crash
from core_helper.process import Record
from core_helper.program import Program

HELPER = Path(__file__).parents[3] / "helper"
PACKAGE = HELPER / "core_helper"
PTRACE_TRACEME = 0
LONGEST_CHILD = 30  # Seconds, so that a hanging child fails its test instead of the whole run.


def crash_of(pid: int, tid: int | None = None) -> Crash:
    """Return a crash of user 1000."""
    crash = Crash(pid, 1000, 100)
    crash.tid = tid
    return crash


@contextmanager
def locked_by_another(path: str | Path, flags: int, take: Callable[[int], None]) -> Iterator[None]:
    """Have another process open a file with these ``flags``, and ``take`` a lock of it, which it holds until the end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            take(os.open(path, flags))
            os.write(writing, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"x"
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)


def in_child(function: Callable[[], object]) -> Any:
    """Return what ``function`` returns in a forked child, sent as JSON: for what a process cannot take back."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            signal.alarm(LONGEST_CHILD)
            answer = {"value": function()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        try:
            with open(writing, "w") as pipe:
                json.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert text, f"the child ended with wait status {status} and without an answer"
    answer = json.loads(text)
    assert "error" not in answer, answer["error"]
    return answer["value"]


class Execution:
    """A process as execve(2) left it, before the first instruction of its program; ``error`` where it did not succeed."""

    def __init__(self) -> None:
        self.arguments: list[bytes] = []
        self.environment: list[bytes] = []
        self.program = ""
        self.error = ""
        self.reported = b""


def executed(function: Callable[[status_pipe.StatusPipe], object]) -> Execution:
    """Call ``function``, which executes a program, in a traced child, and return how the kernel started that program."""
    execution = Execution()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if ctypes.CDLL(None).ptrace(PTRACE_TRACEME, 0, None, None) == -1:
                os._exit(77)
            function(status_pipe.StatusPipe(writing))
        except BaseException as error:
            os.write(writing, f"error {type(error).__name__}: {error}".encode(errors="backslashreplace"))
        finally:
            os._exit(1)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    if os.WIFSTOPPED(status):
        proc = Path(f"/proc/{pid}")
        execution.arguments = proc.joinpath("cmdline").read_bytes().split(b"\0")[:-1]
        execution.environment = proc.joinpath("environ").read_bytes().split(b"\0")[:-1]
        execution.program = os.readlink(proc / "exe")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    elif os.WEXITSTATUS(status) == 77:
        pytest.skip("ptrace(2) is forbidden here, so an execve cannot be watched")
    with open(reading, "rb") as pipe:
        execution.reported = pipe.read()
    execution.error = execution.reported.decode().partition("error ")[2]
    return execution


def program(words: list[bytes], forbidden: tuple[int, int] | None = None, root: bytes = b"/") -> Program:
    """Return the opened delegate of the command line ``words``."""
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)
    try:
        return Program(words, forbidden, descriptors, root)
    finally:
        os.close(descriptors)


def execute(delegate: Program, environment: dict[bytes, bytes], reporter: status_pipe.StatusPipe) -> None:
    """Become the delegate."""
    delegate.prepare(environment)
    delegate.execute(reporter)


def executed_by_kernel(path: Path, *arguments: bytes) -> Execution:
    """Return how the kernel itself starts ``path``."""
    return executed(lambda _: os.execve(path, [os.fsencode(path), *arguments], {}))


def executed_by_helper(path: Path, *arguments: bytes) -> Execution:
    """Return how the helper starts ``path`` as a delegate."""
    words = [os.fsencode(path), *arguments]
    return executed(lambda reporter: execute(program(words), {}, reporter))


def process(**facts: Any) -> Any:
    """Return a stand-in for a FaultingProcess that looks like this very process; ``facts`` replace its attributes."""
    attributes: dict[str, Any] = {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "pid": 7,
        "user_namespace": None,
        "namespaces": [],
        "seccomp": 0,
        "confined": False,
        "narrow": False,
        "umask": 0o022,
        "limits": {},
        "cgroups": [],
        "environ_file": 0,
        "close_task": lambda: None,
        "read_environ": dict,
        "policy": 0,
        "processors": set(),
        "container_id": "",
        "container_name": "-",
        "hostname": b"box",
        "comm": b"server",
        "exe": b"/usr/bin/server",
        "label": b"",
        "label_kind": "",
        "notes": [],
        "left_out": 0,
        "visits": mount_table.Visits(),
        "record": Record(),
        "in_container": lambda: False,
    }
    attributes = {**attributes, **facts}
    opened = {name: descriptor for name, _, descriptor in attributes["namespaces"]}
    # As where the kernel has started the helper: what is not the host's is to be joined.
    found = {"joined": attributes["namespaces"], "joined_user_namespace": attributes["user_namespace"]}
    ask = {
        "descriptor": opened.get,
        "inode": lambda kind: os.fstat(opened[kind]).st_ino,
        "in_pid_namespace": lambda: "pid" in opened,
        "shows_no_container": lambda: "pid" not in opened and not attributes["container_id"],
    }
    return SimpleNamespace(**{**found, **ask, **attributes})


def script(path: Path, content: bytes, mode: int = 0o755) -> Path:
    """Write the program ``content`` to ``path``."""
    path.write_bytes(content)
    path.chmod(mode)
    return path


def elf(bits: int, order: str, segments: list[tuple[int, int]], count: int | None = None, sections: int = 0) -> bytes:
    """Return ELF and program headers of a core dump; elf(5)."""
    size, entry, word = (64, 56, "Q") if bits == 64 else (52, 32, "I")
    identification = b"\x7fELF" + bytes([bits // 32, {"<": 1, ">": 2}[order], 1]) + bytes(9)
    number = len(segments) if count is None else count
    header = struct.pack(f"{order}HHI3{word}I6H", 4, 62, 1, 0, size, sections, 0, size, entry, number, 64, 1, 0)
    for offset, filled in segments:
        if bits == 64:
            header += struct.pack(f"{order}2I6Q", 1, 4, offset, 0x400000, 0, filled, filled + 4096, 4096)
        else:
            header += struct.pack(f"{order}8I", 1, offset, 0x400000, 0, filled, filled + 4096, 4, 4096)
    return identification + header


# e_machine and e_flags of the programs of 32 bits that a machine of 64 runs; elf(5). One of arm says which interface it uses.
NARROW = {"x86_64": (3, 0), "aarch64": (40, 0x05000000)}


def narrow_program(code: bytes) -> bytes:
    """Return a program of 32 bits for this machine: one segment, which it may write to, and no C library; elf(5)."""
    machine, flags = NARROW[os.uname().machine]
    start, headers = 0x08050000, 52 + 32
    size = headers + len(code)
    header = struct.pack(
        "<16s2H5I6H", b"\x7fELF\1\1\1", 2, machine, 1, start + headers, 52, 0, flags, 52, 32, 1, 0, 0, 0
    )
    return header + struct.pack("<8I", 1, 0, start, start, size, size, 7, 4096) + code


def deep_directory(above: Path, depth: int, name: str = "file", content: bytes = b"content") -> bytes:
    """Make directories so many levels of 250 letters down, each with a file in it, and return the path of the lowest one."""
    path, component = os.fsencode(above), "d" * 250
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(component, dir_fd=directory)
        below = os.open(component, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory, path = below, path + b"/" + component.encode()
        file = os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=directory)
        os.write(file, content)
        os.close(file)
    os.close(directory)
    return path
