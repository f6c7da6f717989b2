"""Which process has crashed: not one that has its pid now, and not another thread; and one whose core nobody may have."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.observe import kill_dumper, wait_until
from hostile.options import ADMINISTRATOR, FALLBACK
from support import lab
from support.containers import Container, MakeCrash, read_log, wait_for_log
from support.hosts import HELPER
from support.records import NAMESPACES, is_whole

Kernel = Callable[[str, str], None]
Hold = Callable[..., Path]
ORIGINAL = f"|{HELPER} %P %u %g /opt/bin/delegate"


def take_pid(pid: int, *actions: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a process with that very pid: root of the host can ask for it, others try until they have it."""
    for _ in range(200):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen([lab.PROGRAMS / "crasher", *actions], env=environment)
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    raise RuntimeError(f"somebody else has pid {pid}")


@pytest.mark.usefixtures("delegate_of_the_host")
@pytest.mark.parametrize(
    ("options", "successor", "told"),
    [
        ("-d%d", "wait=/nowhere", "is not dumping core"),
        ("-d%d", "tiny", "is younger than its own crash"),
        # Such a helper is younger than the successor, as one is whose start took as long as a tick of the kernel's clock.
        ("-F%F -d%d", "tiny", "is gone: it was killed or frozen, or its pid was reused"),
    ],
)
def test_attack_07_the_pid_is_reused_before_the_helper_looks(
    hold: Hold, options: str, successor: str, told: str
) -> None:
    directory = hold(options, becomes="-F" not in options)
    environment = {"RECORD_DIRECTORY": str(directory)}
    dumper = subprocess.Popen([lab.PROGRAMS / "crasher", "tiny"], env=environment)
    wait_until((directory / "held.1").exists, "no helper")
    dumper.kill()
    dumper.wait()
    replaced = take_pid(dumper.pid, successor, environment=environment)
    try:
        if successor == "tiny":
            wait_until((directory / "held.2").exists, "no helper of the successor")
        (directory / "go.1").touch()
        assert told in wait_for_log(f"pid={dumper.pid} ", told)
        time.sleep(0.5)
        assert list(directory.glob("delegate.*")) == []
        # The successor's own crash is delegated: by its own helper.
        (directory / "go.2").touch()
        if successor == "tiny":
            wait_until(lambda: list(directory.glob("delegate.*")), "the crash of the successor was not handled")
    finally:
        (directory / "go.2").touch()
        replaced.kill()
        replaced.wait()


def test_attack_07_the_process_is_killed_while_the_helper_reads(attack: MakeCrash, hold: Hold) -> None:
    # Who was killed has no attributes of his own any more; in old hierarchies his control groups are those of the host.
    directory = hold(before=("process", "security_label"))
    container = attack("leave=30", "memory=16", options=("--detach",))
    wait_until((directory / "held").exists, "no helper")
    kill_dumper(container)
    (directory / "go").touch()
    assert "is not dumping core" in container.log("pid=")
    time.sleep(0.5)
    assert container.of("delegate") == []


def test_attack_07_a_core_of_almost_nothing_keeps_its_process(attack: MakeCrash) -> None:
    container = attack("tiny", "record")
    container.log("delivered")
    assert container.delegate.core.stat().st_size < 64 << 10
    assert container.delegate.links["ns/mnt"] == container.process.links["ns/mnt"]


@pytest.mark.parametrize("suid_dumpable", ["0", "1", "2"])
@pytest.mark.parametrize("pattern", ["full", "original"])
@pytest.mark.parametrize("program", [("setid",), ("setid", "become"), ("capable",)], ids=" ".join)
def test_attack_08_a_set_id_program_crashed_by_a_user(
    attack: MakeCrash,
    kernel: Kernel,
    refusal: Callable[[str], str],
    suid_dumpable: str,
    pattern: str,
    program: tuple[str, ...],
) -> None:
    kernel("fs/suid_dumpable", suid_dumpable)
    if pattern == "original":
        kernel("kernel/core_pattern", ORIGINAL)
    before = set(read_log().splitlines())
    container = attack(*program, options=(FALLBACK,))
    if suid_dumpable == "0":
        # The kernel dumps nothing, and starts no helper that could tell it: verify.yml does.
        time.sleep(0.3)
        assert not [line for line in read_log().splitlines() if line not in before and "never delegated" in line]
    else:
        remedy = "never delegated; start it without set-id, file capabilities or a change of user"
        assert remedy in refusal("never delegated")
    assert container.of("delegate") == []
    assert "/tmp/core." not in lab.output("docker", "diff", container.name)


def test_attack_09_a_thread_that_unshared_its_namespaces(attack: MakeCrash) -> None:
    container = attack("thread", "record", options=ADMINISTRATOR)
    container.log("delivered")
    for namespace in NAMESPACES:
        assert container.delegate.links[f"ns/{namespace}"] == container.process.links[f"ns/{namespace}"]


def test_attack_09_a_thread_that_is_of_another_user_than_its_leader(attack: MakeCrash) -> None:
    container = attack("thread-user")
    assert "uid=1000 gid=1000" in container.log("delivered")
    assert container.delegate.status["Uid"].split() == ["1000"] * 4


@pytest.mark.parametrize("pattern", ["full", "original"])
def test_attack_09_a_thread_whose_leader_has_exited(attack: MakeCrash, kernel: Kernel, pattern: str) -> None:
    if pattern == "original":
        kernel("kernel/core_pattern", ORIGINAL)
    container = Container("hostile", ("crash", "-l"), ())
    try:
        container.log("delivered")
        assert is_whole(container.delegate.core.read_bytes())
        for namespace in NAMESPACES:
            assert container.delegate.links[f"ns/{namespace}"] == container.process.links[f"ns/{namespace}"]
    finally:
        container.remove()
