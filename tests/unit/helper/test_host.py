"""host: the namespaces are files of the test here, and hard links where two processes share one; tests/crash has real ones."""

from __future__ import annotations

import os
import posix
import signal
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from core_helper import configuration, host, linux, listening, status_pipe
from unit.helper.support import in_child

KINDS = ("cgroup", "ipc", "uts", "net", "time", "mnt")


class Proc:
    """A /proc of PID 1, a kernel thread, and this process, all of which are in the namespaces of the host."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.monkeypatch = monkeypatch
        self.closed: set[str] = set()
        for kind in (*KINDS, "pid", "user"):
            path = directory / "1" / "ns" / kind
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            for pid in ("2", "self"):
                other = directory / pid / "ns" / kind
                other.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, other)
        for pid in ("1", "2"):
            (directory / pid / "root").mkdir()
        initial = {kind: (directory / "1" / "ns" / kind).stat().st_ino for kind in ("pid", "user")}
        monkeypatch.setattr(host, "INITIAL", initial)
        monkeypatch.setattr(host, "PROC", str(directory))
        real: Any = posix.stat

        def refuse(path: Any, **options: Any) -> os.stat_result:
            if any(str(path).startswith(f"{directory}/{pid}/ns/") for pid in self.closed):
                raise PermissionError(13, "Permission denied")
            return real(path, **options)  # type: ignore[no-any-return]

        monkeypatch.setattr(posix, "stat", refuse)

    def leave(self, *kinds: str) -> None:
        """Have this process be in namespaces of its own."""
        for kind in kinds:
            path = self.directory / "self" / "ns" / kind
            path.unlink()
            path.touch()


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proc:
    return Proc(tmp_path / "proc", monkeypatch)


def test_a_server_of_the_host_is_where_it_has_to_be(proc: Proc) -> None:
    assert not host.is_elsewhere()


@pytest.mark.parametrize("kind", KINDS)
def test_one_namespace_of_its_own_makes_a_container(proc: Proc, kind: str) -> None:
    proc.leave(kind)
    assert host.is_elsewhere()


def test_a_kind_of_namespace_that_the_kernel_lacks_makes_none(proc: Proc) -> None:
    for pid in ("1", "2", "self"):
        (proc.directory / pid / "ns" / "time").unlink()
    assert not host.is_elsewhere()


@pytest.mark.parametrize(("kind", "remedy"), [("pid", "--pid=host"), ("user", "without a user namespace")])
def test_from_another_pid_or_user_namespace_no_crash_can_be_told(proc: Proc, kind: str, remedy: str) -> None:
    proc.leave(kind)
    with pytest.raises(listening.Unusable, match=remedy):
        host.is_elsewhere()


def test_who_may_not_look_at_pid_1_asks_the_kernel_threads(proc: Proc) -> None:
    proc.closed = {"1"}
    assert not host.is_elsewhere()
    proc.leave("mnt")
    assert host.is_elsewhere()


def test_who_may_look_at_nobody_is_not_taken_for_the_host(proc: Proc) -> None:
    proc.closed = {"1", "2"}
    with pytest.raises(listening.Unusable, match="it takes CAP_SYS_PTRACE"):
        host.is_elsewhere()


@pytest.mark.parametrize("closed", [set(), {"1"}])
def test_all_that_differs_is_joined_mounts_last_and_then_the_root_directory(proc: Proc, closed: set[str]) -> None:
    proc.closed = closed
    proc.leave("mnt", "uts", "cgroup")
    kinds = {(proc.directory / "1" / "ns" / kind).stat().st_ino: kind for kind in KINDS}
    flags = dict(host.KINDS)
    done: list[Any] = []

    def setns(descriptor: int, flag: int) -> None:
        kind = kinds[os.fstat(descriptor).st_ino]
        done.append([kind, flag == flags[kind]])

    def join() -> object:
        before = len(os.listdir("/proc/self/fd"))
        proc.monkeypatch.setattr(linux, "setns", setns)
        proc.monkeypatch.setattr(
            posix,
            "fchdir",
            lambda descriptor: done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))),
        )
        proc.monkeypatch.setattr(posix, "chroot", done.append)
        proc.monkeypatch.setattr(status_pipe, "lock_interpreter", lambda: done.append("locked"))
        host.join()
        return [*done, os.getcwd(), len(os.listdir("/proc/self/fd")) - before]

    assert in_child(join) == ["locked", ["cgroup", True], ["uts", True], ["mnt", True], "root", ".", "/", 0]


def test_the_interpreter_of_a_container_is_known_by_its_inode() -> None:
    own = os.stat(sys.executable)
    assert host.own_interpreter() == (own.st_dev, own.st_ino)


def test_a_namespace_that_cannot_be_joined_leaves_no_server(proc: Proc) -> None:
    proc.leave("mnt")

    def join() -> object:
        try:
            host.join()
        except listening.Unusable as error:
            return str(error)
        return None

    # It is an ordinary file.
    assert in_child(join) == (
        "it cannot go over to the host: Invalid argument: it takes CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE"
    )


def test_the_first_process_of_the_container_stays_and_tells_how_the_server_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "join", lambda: None)

    def ends(by: Any) -> object:
        def first() -> object:
            status = host.send()
            if status is None:
                by()
            return status

        return in_child(first)

    assert ends(lambda: os._exit(7)) == 7 << 8
    assert ends(lambda: os.kill(os.getpid(), signal.SIGKILL)) == signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_parent_that_gets_a_signal_has_the_server_end(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(host, "join", lambda: None)

    def first() -> object:
        parent = os.getpid()
        status = host.send()
        if status is None:
            signal.signal(number, lambda *_: os._exit(5))
            os.kill(parent, number)
            time.sleep(20)
            os._exit(6)
        return status

    assert in_child(first) == 5 << 8


def test_a_server_whose_container_is_killed_is_told_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "join", lambda: None)

    def ended(*_: object) -> None:
        (tmp_path / "told").touch()
        os._exit(0)

    first = os.fork()
    if first == 0:
        try:
            parent = os.getpid()
            if host.send() is None:
                signal.signal(signal.SIGTERM, ended)
                os.kill(parent, signal.SIGKILL)
                time.sleep(20)
        finally:
            os._exit(1)
    assert os.waitpid(first, 0)[1] == signal.SIGKILL
    limit = time.monotonic() + 20
    while not (tmp_path / "told").exists():
        assert time.monotonic() < limit, "the server goes on"
        time.sleep(0.01)


def test_the_configuration_of_the_container_counts_where_it_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "conf"
    monkeypatch.setattr(configuration, "CONFIGURATION", str(file))
    assert host.own_configuration() is None
    file.write_text("DOCKERCOREHELPER_TIMEOUT=7\nnonsense\n")
    given = host.own_configuration()
    file.write_text("DOCKERCOREHELPER_TIMEOUT=8\n")  # As the file of the host, which is another one.
    found = configuration.Watched(given).read()
    assert found.timeout == 7.0
    assert found.problems == [f"{file}, line 2 skipped: KEY=VALUE expected, found 'nonsense'"]
    assert configuration.read_configuration(str(file)).timeout == 8.0
    assert configuration.Watched(None).read().timeout == 8.0
    file.write_bytes(b"#" * 70000)
    given = host.own_configuration()
    assert configuration.Watched(given).read().problems == [f"{file} refused: longer than 65536 bytes"]


def test_a_configuration_that_others_could_write_starts_no_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "conf"
    file.touch()
    file.chmod(0o666)
    assert file.stat().st_mode & stat.S_IWOTH
    monkeypatch.setattr(configuration, "CONFIGURATION", str(file))
    with pytest.raises(listening.Unusable, match="only root may own and write it"):
        host.own_configuration()
