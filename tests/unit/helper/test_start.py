"""start: what the helper does to itself, in a forked child where it cannot be taken back, and whom it restarts for."""

from __future__ import annotations

import _signal
import ctypes
import errno
import os
import posix
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import linux, procfs, start
from core_helper.crash import Crash
from core_helper.log import Log
from support.leases import lease_on
from unit.helper.support import HELPER, in_child
from unit.helper.world import World, keeps_descriptors


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path, monkeypatch)
    (world.proc / "self" / "exe").touch()
    yield world
    world.close()


def signals() -> list[int]:
    """Return what is ignored and what is blocked, but for the C library's own 32 and 33."""
    status = procfs.parse_status(Path("/proc/self/status").read_bytes())
    return [int(status[name], 16) & ~(3 << 31) for name in ("SigIgn", "SigBlk", "SigCgt")]


def test_signals_have_their_defaults_and_an_empty_mask() -> None:
    def reset() -> object:
        for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
        start.reset_signals()
        return signals()

    ignored, blocked, caught = in_child(reset)
    # A library, as readline, may catch others. execve(2) gives those their defaults.
    assert (ignored, blocked, caught & 1 << (signal.SIGUSR2 - 1)) == (0, 0, 0)


def test_the_helper_ignores_what_would_end_it_for_an_error() -> None:
    def settle() -> object:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        start.reset_signals_for_python()
        return signals()

    assert in_child(settle)[:2] == [1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1), 0]
    assert {_signal.SIGKILL, _signal.SIGSTOP} == start.UNCHANGEABLE


SETTLE = f"""
import sys; sys.path.insert(0, {str(HELPER)!r})
from core_helper import linux, start
import os
changed = []
linux.prctl = lambda *words: changed.append(words)
before = len(os.listdir('/proc/self/fd'))
core, terminal = start.occupy_standard_descriptors()
umask = os.umask(0)
names = [os.readlink('/proc/self/fd/%d' % number) for number in (0, 1, 2, core)]
after = len(os.listdir('/proc/self/fd'))
inherited = [os.get_inheritable(number) for number in (core, terminal) if number is not None]
answer = repr((terminal, umask, names, after - before, changed, core > 2, inherited))
with open(sys.argv[1], 'w') as file:
    file.write(answer)
"""


@pytest.mark.parametrize(
    ("closed", "terminal", "more"),
    [("", True, 2), (">&- 2>&-", False, 3), ("2>&-", False, 2)],
)
def test_nothing_is_taken_for_standard_output_and_the_file_mask_is_tight(
    tmp_path: Path, closed: str, terminal: bool, more: int
) -> None:
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-BISc", SETTLE, str(tmp_path / "answer")]
    with open("/dev/zero") as zero:
        subprocess.run(words, stdin=zero, capture_output=True, timeout=30, check=True)
    found, umask, names, opened, changed, above, inherited = eval((tmp_path / "answer").read_text())
    streams = [*["/dev/null"] * 3, "/dev/zero"]
    assert (found is not None, umask, names, opened, above) == (terminal, 0o077, streams, more, True)
    # A program that the helper executes has neither.
    assert inherited == [False] * (2 if terminal else 1)
    assert changed == [(linux.PR_SET_DUMPABLE, 0)]


def exposed(world: World, **namespaces: Any) -> bool:
    number = 40 + len(os.listdir(world.proc))
    world.process(number, **namespaces)
    return start.is_exposed(Crash(number, 0, 0))


def test_whoever_may_look_at_a_process_of_ours_could_overwrite_its_interpreter(world: World) -> None:
    pids, mounts, users = (world.namespace(world.host[kind]) for kind in ("pid", "mnt", "user"))
    assert not exposed(world)
    assert not exposed(world, net=mounts)
    assert exposed(world, pid=pids)
    assert exposed(world, mnt=mounts)
    assert exposed(world, pid=pids, mnt=mounts)
    # Another user namespace says nothing about who else is there.
    assert exposed(world, pid=pids, user=users)
    assert not exposed(world, user=users)


@pytest.mark.parametrize(("flags", "safe"), [(start.ST_RDONLY, True), (start.ST_RDONLY | 4096, True), (4096, False)])
def test_nobody_can_overwrite_what_is_mounted_read_only(
    monkeypatch: pytest.MonkeyPatch, flags: int, safe: bool
) -> None:
    asked = []

    def statvfs(path: str) -> Any:
        asked.append(path)
        return SimpleNamespace(f_flag=flags)

    def restart(*facts: object) -> str:
        asked.append("restart")
        return "no overlay"

    monkeypatch.setattr(start, "posix", SimpleNamespace(statvfs=statvfs))
    monkeypatch.setattr(start, "is_exposed", lambda crash: True)
    monkeypatch.setattr(start, "restart_read_only", restart)
    # It is executed anew all the same: others could have to wait for it.
    assert start.protect_interpreter(Crash(1, 0, 0), SOURCE, SLOT, 1.5, Log()) == ("" if safe else "no overlay")
    assert asked == ["restart", "/proc/self/exe"]
    assert start.ST_RDONLY == os.ST_RDONLY


SLOT: Any = SimpleNamespace(file=7, index=3)
SOURCE: Any = SimpleNamespace(descriptor=6)


def test_only_where_it_is_exposed_the_program_is_executed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "restart_read_only", lambda *facts: f"why {facts[3]}")
    monkeypatch.setattr(start, "ST_RDONLY", 0)
    crash = Crash(1, 0, 0)
    for is_exposed, why in ((False, ""), (True, "why 1.5")):
        monkeypatch.setattr(start, "is_exposed", lambda crash, answer=is_exposed: answer)
        assert start.protect_interpreter(crash, SOURCE, SLOT, 1.5, Log()) == why


def test_a_process_that_is_gone_may_be_of_an_exposed_container(world: World) -> None:
    why = start.protect_interpreter(Crash(99, 0, 0), SOURCE, SLOT, 0.0, Log())
    assert why == "its namespaces cannot be looked at: No such file or directory"


class Executed(Exception):
    """The program would have been executed."""


@pytest.fixture
def restarted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a restart does, in the order in which it does that."""
    done: list[Any] = []

    def overlay() -> int:
        done.append("overlay")
        return 88

    class Execution:
        def __init__(self, program: int, words: list[bytes], environment: dict[bytes, bytes]) -> None:
            done.append((program, words, environment))

        def run(self) -> None:
            raise Executed

    monkeypatch.setattr(linux, "Execution", Execution)
    monkeypatch.setattr(start, "interpreter_of_overlay", overlay)
    monkeypatch.setattr(start, "interpreter_of_clone", lambda: 99)
    monkeypatch.setattr(posix, "set_inheritable", lambda *words: done.append(words))
    monkeypatch.setattr(posix, "dup2", lambda *words: done.append(("dup2", *words)))
    monkeypatch.setattr(posix, "environ", {b"A": b"1"})
    monkeypatch.setattr(sys, "argv", ["/opt/helper", "-F3", "a\udcff"])
    return done


@pytest.mark.parametrize(("pidfd", "terminal"), [(None, None), (5, 9)])
def test_the_program_keeps_core_slot_pidfd_and_terminal(
    restarted: list[Any], pidfd: int | None, terminal: int | None
) -> None:
    crash = Crash(1, 0, 0)
    crash.pidfd = pidfd
    log = Log()
    log.terminal = terminal
    with pytest.raises(Executed):
        start.restart_read_only(crash, SOURCE, SLOT, 1.5, log)
    words = [os.fsencode(sys.executable), b"-IS", b"/opt/helper", b"-F3", b"a\xff"]
    kept = [(7, True), *([] if pidfd is None else [(5, True)])]
    streams = [("dup2", 6, 0), *([] if terminal is None else [("dup2", 9, 2)])]
    environment = {b"A": b"1", start.MARK: b"7 3 1.500000"}
    assert restarted == ["overlay", (88, words, environment), *kept, *streams]


def test_a_program_without_a_slot_is_executed_without_one(restarted: list[Any]) -> None:
    slot: Any = SimpleNamespace(file=None, index=0)
    with pytest.raises(Executed):
        start.restart_read_only(Crash(1, 0, 0), SOURCE, slot, 1.5, Log())
    assert restarted[1][2][start.MARK] == b"-1 0 1.500000"
    assert restarted[2:] == [("dup2", 6, 0)]


def test_nothing_goes_on_behind_an_execution(restarted: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux.Execution, "run", lambda execution: None)
    with pytest.raises(AssertionError, match="has returned"):
        start.restart_read_only(Crash(1, 0, 0), SOURCE, SLOT, 1.5, Log())


def test_a_kernel_without_overlays_has_a_mount_of_the_interpreter(
    restarted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def overlay() -> int:
        raise OSError(19, "No such device", "fsopen")

    monkeypatch.setattr(start, "interpreter_of_overlay", overlay)
    with pytest.raises(Executed):
        start.restart_read_only(Crash(1, 0, 0), SOURCE, SLOT, 1.5, Log())
    assert restarted[0][0] == 99


def test_a_kernel_without_such_mounts_is_told(restarted: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> int:
        raise OSError(38, "Function not implemented", "open_tree")

    monkeypatch.setattr(start, "interpreter_of_overlay", missing)
    monkeypatch.setattr(start, "interpreter_of_clone", missing)
    why = start.restart_read_only(Crash(1, 0, 0), SOURCE, SLOT, 1.5, Log())
    assert why.startswith("Function not implemented: it takes Linux 5.12")
    # Nobody but the source has the core then.
    assert restarted == [("dup2", 1, 0), ("dup2", 1, 2)]


def test_the_mark_of_a_restart_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "environ", {b"A": b"1", start.MARK: b"7 3 1.500000"})
    assert start.mark_of_restart() == (7, 3, 1.5)
    assert posix.environ == {b"A": b"1"}
    assert start.mark_of_restart() is None


@pytest.mark.skipif(os.getuid() != 0, reason="a mount of its own needs root")
def test_the_interpreter_is_on_a_mount_that_nobody_can_write_to() -> None:
    try:
        program = start.interpreter_of_clone()
    except OSError as error:
        pytest.skip(f"{error.filename}: {error.strerror}")
    assert not os.get_inheritable(program)
    assert os.fstatvfs(program).f_flag & os.ST_RDONLY
    assert stat.S_ISREG(os.fstat(program).st_mode)
    assert os.path.samestat(os.fstat(program), os.stat("/proc/self/exe"))
    os.close(program)


@pytest.mark.skipif(os.getuid() != 0, reason="a mount of its own needs root")
def test_the_interpreter_in_an_overlay_is_no_inode_of_the_host() -> None:
    opened: list[int] = []

    def interpreter() -> None:
        opened.append(start.interpreter_of_overlay())
        os.close(opened[-1])

    try:
        assert keeps_descriptors(interpreter)
    except OSError as error:
        pytest.skip(f"{error.filename}: {error.strerror}")
    program = start.interpreter_of_overlay()
    assert not os.get_inheritable(program)
    assert os.fstatvfs(program).f_flag & os.ST_RDONLY
    assert not os.path.samestat(os.fstat(program), os.stat("/proc/self/exe"))
    answer = subprocess.run(
        [f"/proc/self/fd/{program}", "-ISc", "print(6 * 7)"], pass_fds=[program], capture_output=True, check=True
    )
    assert answer.stdout == b"42\n"
    # Who has CAP_DAC_READ_SEARCH would open any file of the host by such a handle.
    handle, mount, no_path = (ctypes.c_uint * 34)(128), ctypes.c_int(), 0x1000
    library = ctypes.CDLL(None, use_errno=True)
    assert library.name_to_handle_at(program, b"", handle, ctypes.byref(mount), no_path) == -1
    assert ctypes.get_errno() == errno.EOPNOTSUPP
    os.close(program)


@pytest.mark.skipif(os.getuid() != 0, reason="a mount of its own needs root")
def test_who_has_a_lease_in_an_overlay_has_none_of_the_host(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    file = tmp_path / "first" / "file"
    file.touch()
    try:
        overlay = linux.overlay_of(os.fsencode(f"{tmp_path}/first:{tmp_path}/second"))
    except OSError as error:
        pytest.skip(f"{error.filename}: {error.strerror}")
    try:
        with lease_on("file", overlay):
            os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))
            with pytest.raises(OSError, match="Read-only file system"):
                os.open("file", os.O_RDWR, dir_fd=overlay)
    finally:
        os.close(overlay)


@pytest.mark.parametrize("path", [b"/a:b/python", b"/a,b/python", b"/a\\b/python", b"/python"])
def test_what_no_overlay_can_name_has_none(monkeypatch: pytest.MonkeyPatch, path: bytes) -> None:
    monkeypatch.setattr(start, "posix", SimpleNamespace(readlink=lambda link: path))
    monkeypatch.setattr(linux, "overlay_of", None)
    with pytest.raises(OSError, match="no directory for an overlay"):
        start.interpreter_of_overlay()


def test_a_mount_that_cannot_be_made_read_only_is_not_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def syscall(number: Any, *arguments: Any) -> int:
        calls.append((number.value, [getattr(argument, "value", argument) for argument in arguments]))
        if len(calls) == 1:
            return os.open("/", os.O_PATH)
        return -1

    monkeypatch.setattr(linux, "_syscall", syscall)

    def clone() -> None:
        with pytest.raises(OSError, match="mount_setattr"):
            linux.clone_read_only(b"/x")

    assert keeps_descriptors(clone)
    (first, opened), (second, changed) = calls
    assert (first, opened) == (linux.NR_OPEN_TREE, [linux.AT_FDCWD, b"/x", linux.OPEN_TREE_CLONE | os.O_CLOEXEC])
    assert second == linux.NR_MOUNT_SETATTR
    assert changed[1:3] == [b"", linux.AT_EMPTY_PATH] and changed[3][:8] == (1).to_bytes(8, sys.byteorder)
