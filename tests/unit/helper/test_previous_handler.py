"""previous_handler: whose crashes it gets, and how its words are filled in. tests/crash compares that with the kernel."""

from __future__ import annotations

import _signal
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from core_helper import container, deliver, delivery, linux, membership, previous_handler, runtime, start, verification
from core_helper.configuration import Configuration
from core_helper.crash import Crash, Refused
from core_helper.process import Withheld
from unit.helper.support import in_child, process, script

ID = "0123456789abcdef" * 4


@pytest.fixture
def crash() -> Crash:
    crash = Crash(4711, 1000, 100)
    crash.signal, crash.time, crash.limit, crash.dumpable, crash.pidfd = 11, 1700000000, 4096, 1, 3
    return crash


@pytest.fixture
def root() -> Any:
    descriptor = os.open("/", os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def crashed(**facts: Any) -> Any:
    """Return a stand-in for the faulting process with all that the handler's words may ask for."""
    return process(**{"host_tid": 4712, "tid": 8, "cpu": 1, "signal": 11, **facts})


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        (b"/usr/lib/systemd/systemd-coredump", b"/usr/lib/systemd/systemd-coredump"),
        (b"-p%p", b"-p7"),
        (b"%P:%I:%i", b"4711:4712:8"),
        (b"%u:%g:%d:%s:%t:%c:%C:%F", b"1000:100:1:11:1700000000:4096:1:3"),
        (b"%h:%e:%f:%E", b"box:server:server:!usr!bin!server"),
        (b"%%", b"%"),
        (b"%%F", b"%F"),
        (b"%%%F", b"%3"),
        (b"a%", b"a"),
        (b"%z%Z% x", b"x"),
        (b"%", b""),
        (b"", b""),
        (b"%\xff.\xff", b".\xff"),
    ],
)
def test_a_word_is_filled_in_as_the_kernel_does(crash: Crash, root: int, word: bytes, expanded: bytes) -> None:
    assert previous_handler.expand(word, previous_handler.specifiers(crash, crashed(root=root))) == expanded


def test_what_the_kernel_did_not_tell_is_empty(crash: Crash, root: int) -> None:
    crash.signal = crash.dumpable = crash.pidfd = crash.limit = None
    limits = {"Max core file size": (-1, -1)}
    values = previous_handler.specifiers(crash, crashed(root=root, limits=limits))
    assert previous_handler.expand(b"%s,%d,%F,%c", values) == b",,,18446744073709551615"
    assert previous_handler.specifiers(crash, crashed(root=root, limits={"Max core file size": (5, 9)}))[b"c"] == b"5"


def test_an_unlimited_core_is_the_number_that_the_kernel_writes(crash: Crash, root: int) -> None:
    crash.limit = -1
    assert previous_handler.specifiers(crash, crashed(root=root))[b"c"] == b"18446744073709551615"


@pytest.mark.parametrize(
    ("name", "escaped"),
    [(b"a/b", b"a!b"), (b".", b"!"), (b"..", b"!."), (b"...", b"..."), (b"", b"!"), (b"a b\n", b"a b\n"), (b"/", b"!")],
)
def test_a_name_is_one_component_of_a_path(name: bytes, escaped: bytes) -> None:
    assert previous_handler.escape(name) == escaped


@pytest.mark.parametrize(
    ("exe", "expected"),
    [
        ("{root}/bin/x y (deleted)", b"/bin/x y (deleted)"),
        ("{root}x/bin", None),
        ("/bin/outside", b"/bin/outside"),
        ("", b"server (path unknown)"),
    ],
)
def test_the_path_of_the_program_is_seen_from_its_root(tmp_path: Path, exe: str, expected: bytes | None) -> None:
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    path = os.fsencode(exe.format(root=tmp_path))
    assert previous_handler.path_of_program(crashed(root=root, exe=path)) == (path if expected is None else expected)
    os.close(root)


def test_outside_of_containers_every_namespace_that_counts_is_the_hosts(root: int) -> None:
    assert runtime.is_of_the_host(crashed(root=root))
    for name in ("net", "ipc", "uts", "cgroup", "time"):
        assert runtime.is_of_the_host(crashed(root=root, namespaces=[(name, 0, 9)]))
    assert not runtime.is_of_the_host(crashed(root=root, namespaces=[("pid", 0, 9)]))
    assert not runtime.is_of_the_host(crashed(root=root, user_namespace=9))


def test_a_service_with_mounts_of_its_own_is_of_the_host_and_a_container_is_not(root: int, tmp_path: Path) -> None:
    mounts = [("mnt", 0, 9)]
    assert runtime.is_of_the_host(crashed(root=root, namespaces=mounts))
    assert runtime.is_of_the_host(crashed(root=root, namespaces=[*mounts, ("net", 0, 9), ("ipc", 0, 9)]))
    other = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    for facts in (
        {"root": other},
        {"container_id": ID},
        {"user_namespace": 9},
        {"namespaces": [*mounts, ("pid", 0, 9)]},
        {"namespaces": [*mounts, ("cgroup", 0, 9)]},
    ):
        assert not runtime.is_of_the_host(crashed(**{"root": root, "namespaces": mounts, **facts})), facts
    os.close(other)


def test_a_container_that_has_the_root_of_the_host_mounted_and_changed_to_it_is_none_of_the_host(
    tmp_path: Path,
) -> None:
    words = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        'mount --rbind / "$0" && echo done && exec cat',
    ]
    with subprocess.Popen([*words, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as container:
        assert container.stdin and container.stdout
        if container.stdout.readline() != b"done\n":
            pytest.skip("no user namespaces here")
        for path, is_of_the_host in (("/", True), (str(tmp_path), False)):
            root = os.open(f"/proc/{container.pid}/root{path}", os.O_PATH | os.O_DIRECTORY)
            assert os.path.samestat(os.fstat(root), os.stat("/"))
            assert runtime.is_of_the_host(crashed(root=root, namespaces=[("mnt", 0, 9)])) is is_of_the_host
            os.close(root)
        container.stdin.close()


class Lines:
    """A log in a list."""

    def __init__(self) -> None:
        self.lines = self
        self.written: list[str] = []

    def pass_to_handler(self, crash: object, process: object, handler: bytes) -> None:
        self.written.append(f"passed to the previous handler {handler.decode()}")

    def warning(self, text: str) -> None:
        self.written.append(text)

    def drop(self, *words: object) -> None:
        self.written.append("dropped")


def test_a_handler_that_cannot_be_executed_leaves_this_process_as_it_was(
    crash: Crash, root: int, tmp_path: Path
) -> None:
    garbage = script(tmp_path / "garbage", b"no program\n")

    def state() -> list[object]:
        mask = os.umask(0)
        os.umask(mask)
        status = Path("/proc/self/status").read_text().splitlines()
        signals = [line for line in status if line.startswith(("SigIgn", "SigBlk"))]
        names = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]
        return [mask, signals, [os.get_inheritable(fd) for fd in (0, 1, 2, 3)], names]

    def attempt() -> Any:
        null = os.open("/dev/null", os.O_RDWR)
        core = os.open("/dev/zero", os.O_RDONLY)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.dup2(null, 3, inheritable=False)
        os.umask(0o077)
        # Whatever the caller of the tests ignores, the helper does not.
        start.reset_signals_for_python()
        before = state()
        log: Any = Lines()
        for word in (os.fsencode(garbage), b"/missing", b"/"):
            previous_handler.execute(core, crash, crashed(root=root), [word, b"%F"], log)
        return [before == state(), log.written]

    same, lines = in_child(attempt)
    assert same
    assert [line.partition(":")[0] for line in lines] == [
        f"passed to the previous handler {garbage}",
        f"not passed to the previous handler '{garbage}'",
        "not passed to the previous handler '/missing'",
        "not passed to the previous handler '/'",
    ]
    assert "No such file or directory: install it again, or correct DOCKERCOREHELPER_CHAIN in /etc/" in lines[2]


class Stage:
    """deliver.deliver with a process of ours, and what is passed on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: int) -> None:
        self.passed_on: list[list[bytes]] = []
        self.descriptor = 9
        self.slot: list[Any] = []
        self.root = root
        self.found: Any = crashed(root=root)
        self.refusal: Exception | None = None
        monkeypatch.setattr(verification, "examine", self.examine)
        monkeypatch.setattr(membership, "check", lambda process: None)
        monkeypatch.setattr(container, "hostname_of", lambda process: b"box")
        monkeypatch.setattr(_signal, "alarm", lambda seconds: 60 - seconds)
        monkeypatch.setattr(deliver.CoreFile, "attempt", lambda *words: delivery.Outcome(delivery.ABSENT))
        monkeypatch.setattr(
            previous_handler, "execute", lambda core, crash, process, words, log: self.passed_on.append(words)
        )

    def examine(self, crash: Crash) -> Any:
        if self.refusal is not None:
            raise self.refusal
        return self.found

    def run(self, crash: Crash, words: list[bytes]) -> int:
        configuration = Configuration()
        configuration.chain = words
        stage: Any = self
        log: Any = Lines()
        return deliver.deliver(stage, crash, configuration, stage, log, 0.0)

    def stream(self) -> int:
        """The pipe for the handler."""
        return self.descriptor

    def end_stream(self) -> None:
        """The core again, where the handler could not be executed."""

    def release(self) -> bytes:
        """The slot, which what is passed on does not hold."""
        self.slot.append("released")
        return b"record"

    def reclaim(self, record: bytes) -> None:
        """The slot again, where the handler could not be executed."""
        self.slot.append(record)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, root: int) -> Stage:
    return Stage(monkeypatch, root)


def test_a_crash_of_the_host_is_passed_on_where_that_is_configured(crash: Crash, stage: Stage) -> None:
    assert stage.run(crash, []) == 0
    assert (stage.passed_on, stage.slot) == ([], [])
    stage.run(crash, [b"/handler"])
    assert stage.passed_on == [[b"/handler"]]
    # It could not be executed here, so that the helper goes on with its slot.
    assert stage.slot == ["released", b"record"]


def test_a_set_id_program_is_passed_on_and_else_refused(crash: Crash, stage: Stage) -> None:
    stage.refusal = Withheld("never delegated", stage.found)
    for words in ([], [b"/handler"]):
        with pytest.raises(Refused, match="never delegated"):
            stage.run(crash, words)
    assert stage.passed_on == [[b"/handler"]]
    stage.refusal = Withheld("never delegated", crashed(root=stage.root, namespaces=[("pid", 0, 9), ("mnt", 0, 9)]))
    with pytest.raises(Refused, match="never delegated"):
        stage.run(crash, [b"/handler"])
    assert len(stage.passed_on) == 1


def test_a_process_of_the_host_in_a_containers_files_is_passed_on_and_else_refused(crash: Crash, stage: Stage) -> None:
    stage.found = crashed(root=stage.root, namespaces=[("mnt", 0, 9)], container_id="f" * 64)
    stage.refusal = Withheld("of another container", stage.found)
    with pytest.raises(Refused, match="another container"):
        stage.run(crash, [b"/handler"])
    assert stage.passed_on == []
    stage.refusal = Withheld("of another container", stage.found, of_the_host=True)
    with pytest.raises(Refused, match="another container"):
        stage.run(crash, [b"/handler"])
    assert stage.passed_on == [[b"/handler"]]


def test_a_process_that_could_not_be_verified_is_not_passed_on(crash: Crash, stage: Stage) -> None:
    stage.refusal = Refused("its pid was reused")
    with pytest.raises(Refused, match="reused"):
        stage.run(crash, [b"/handler"])
    assert stage.passed_on == []


def test_a_container_is_not_passed_on(crash: Crash, stage: Stage) -> None:
    stage.found = crashed(root=stage.root, namespaces=[("pid", linux.CLONE_NEWPID, 9)])
    assert stage.run(crash, [b"/handler"]) == 0
    assert stage.passed_on == []
