"""Delegates that do not end, cores that do not arrive whole, containers that crash too much: each leaves its line."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.observe import LIMIT, count_log_lines, delegates_of, helpers, kill_dumper, processes_of, wait_until
from hostile.run import TIMEOUT
from support import lab
from support.containers import Container, MakeCrash, read_log
from support.records import is_whole

# 11 and 12. All of these wait for the deadline, so they do it at the same time.

ENDLESS = {
    "never-reads": "never-reads",
    "reads-slowly": "reads-slowly",
    "never-ends": "never-ends",
    "daemon": "daemon",
    "stops": "stops",
    "frozen": "never-ends",
    "passed on to the same user": "passes-on",
    "passed on to another user": "passes-on",
}
RECEIVERS = {"passed on to the same user": ("receiver=0",), "passed on to another user": ("receiver=1000",)}


@pytest.fixture(scope="module")
def endless(attack: MakeCrash) -> Iterator[dict[str, Container]]:
    """A container for each kind of delegate that does not end by itself."""
    containers = {}
    for kind, does in ENDLESS.items():
        actions = (*RECEIVERS.get(kind, ()), "keep=60", "memory=8")
        containers[kind] = container = attack(*actions, options=(f"--env=ATTACK={does}", "--detach"))
        if kind in RECEIVERS:
            wait_until((container.records / "received").exists, f"nothing was passed on: {kind}", 5)
        else:
            wait_until(lambda of=container: delegates_of(of), f"no delegate: {kind}", 5)  # type: ignore[misc]
        if kind == "frozen":
            lab.output("docker", "pause", containers[kind].name)
    yield containers
    lab.command("docker", "unpause", containers["frozen"].name, check=False, capture_output=True)


def assert_ended(container: Container) -> None:
    """The deadline has ended the delegate with its family, and given the process and its slot free."""
    line = container.log("deadline passed")
    assert re.search(r"not delivered: deadline passed: \d+ bytes to /opt/bin/delegate in ([5-9]|1[0-5])\.", line), line
    wait_until(lambda: not delegates_of(container), "a process of the delegate is left")
    wait_until(lambda: "ended" in lab.output("docker", "logs", container.name), "the process was not given free")


@pytest.mark.parametrize("kind", ["never-reads", "reads-slowly", "never-ends"])
def test_attack_12_the_delegate_does_not_come_to_an_end(endless: dict[str, Container], kind: str) -> None:
    assert_ended(endless[kind])


def test_attack_12_a_daemon_holds_standard_input(endless: dict[str, Container]) -> None:
    assert_ended(endless["daemon"])


@pytest.mark.parametrize("kind", RECEIVERS)
def test_attack_12_standard_input_is_passed_on_over_a_socket(endless: dict[str, Container], kind: str) -> None:
    assert_ended(endless[kind])
    receivers = [words for _, words in processes_of(endless[kind]) if words.startswith("receiver")]
    # Nobody is ended whom the delegate could not have ended itself; and what he holds is only our pipe, not the kernel's.
    assert bool(receivers) == (kind == "passed on to another user")


def test_attack_11_the_delegate_stops_itself(endless: dict[str, Container]) -> None:
    assert_ended(endless["stops"])


def test_attack_11_the_container_is_frozen(endless: dict[str, Container]) -> None:
    assert "deadline passed" in endless["frozen"].log("deadline passed")
    lab.output("docker", "unpause", endless["frozen"].name)
    assert_ended(endless["frozen"])


@pytest.mark.parametrize(
    ("before", "told"),
    [
        # The kernel ends a dump when the process is to be frozen.
        (("verification", "examine"), "core not delivered, 0 bytes: process {} is "),
        (("joining", "prepare"), "0 bytes delivered: deadline passed before the delegate was started"),
    ],
    ids=["before the process is examined", "before the container is entered"],
)
def test_attack_11_the_container_is_frozen_before_the_delegate_starts(
    attack: MakeCrash, hold: Callable[..., Path], before: tuple[str, str], told: str
) -> None:
    directory = hold(before=before)
    container = attack("leave=60", options=("--detach",))
    wait_until((directory / "held").exists, "no helper")
    dumper = max(pid for pid, _ in processes_of(container))
    lab.output("docker", "pause", container.name)
    try:
        (directory / "go").touch()
        line = container.log(told.format(dumper))
        assert told.format(dumper) in line
    finally:
        lab.output("docker", "unpause", container.name)
    wait_until(lambda: all("crasher" in words for _, words in processes_of(container)), "a process of ours is left")
    assert container.of("delegate") == []


def test_attack_12_the_output_of_the_delegate_is_bounded(attack: MakeCrash) -> None:
    container = attack(options=("--env=ATTACK=talks",))
    told = [line for line in container.log("delivered").splitlines() if ": delegate: " in line]
    assert 100 < len(told) <= 201
    assert "not logged" in told[-1]
    assert "\x1b" not in "".join(told)


# 11


@pytest.mark.parametrize("processes", [1, 2])
def test_attack_11_the_limit_of_processes_is_reached(attack: MakeCrash, processes: int) -> None:
    forks = ["fork=1"] if processes == 2 else []
    # Not before the engine's own runtime, which needs threads, has started it.
    container = attack("wait=/out/go", *forks, "record", options=("--detach",))
    lab.output("docker", "update", f"--pids-limit={processes}", container.name)
    (container.records / "go").touch()
    assert "delivered" in container.log("delivered")
    assert is_whole(container.delegate.core.read_bytes())
    assert container.delegate.text("cgroup") == container.process.text("cgroup")


def test_attack_11_the_container_has_little_memory(attack: MakeCrash) -> None:
    container = attack("memory=4", options=("--memory=8m",))
    assert re.search(r"delivered|dropped", container.log("pid="))
    assert container.seconds < TIMEOUT


def test_attack_11_the_container_is_killed_in_the_middle(attack: MakeCrash) -> None:
    container = attack("memory=64", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    lab.output("docker", "kill", container.name)
    # It had not begun to read.
    assert "/opt/bin/delegate: it was killed by signal 9 before it read a byte" in container.log("core dropped")


# Nothing is lost without a word.


def test_attack_11_the_process_is_killed_while_it_dumps(attack: MakeCrash) -> None:
    container = attack("keep=20", "memory=256", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    time.sleep(0.3)
    kill_dumper(container)
    (container.records / "go").touch()
    line = container.log("truncated")
    delivered, length = map(int, re.findall(r"(\d+) bytes to .*truncated: of (\d+) bytes", line)[0])
    assert 0 < delivered < 8 << 20
    assert length > 256 << 20


def test_attack_11_the_process_is_frozen_while_it_dumps(attack: MakeCrash) -> None:
    container = attack("keep=20", "memory=256", options=("--env=ATTACK=waits", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    time.sleep(0.3)
    lab.output("docker", "pause", container.name)
    (container.records / "go").touch()
    lab.output("docker", "unpause", container.name)
    assert re.search(r"not delivered: .*\d+ bytes to .*truncated", container.log("truncated"))


def test_attack_11_the_exit_code_of_the_delegate_is_told(attack: MakeCrash) -> None:
    container = attack(options=("--env=ATTACK=fails",))
    assert re.search(r"not delivered: it ended with exit code 7: \d+ bytes", container.log("not delivered"))


@pytest.mark.parametrize("delegate", ["plain", "directory", "#!/opt/missing", "garbage"])
def test_a_delegate_that_cannot_be_started_leaves_the_whole_core_to_the_fallback(
    attack: MakeCrash, tmp_path: Path, delegate: str
) -> None:
    options = ("--env=DOCKERCOREHELPER_FALLBACK_CORE=1", f"--volume={tmp_path}:/tmp")
    container = attack(f"delegate={delegate}", "memory=4", options=options)
    assert ": delivered " in container.log("delivered")
    (core,) = tmp_path.glob("core.*")
    assert is_whole(core.read_bytes())
    assert core.stat().st_size > 4 << 20


# 13


def test_attack_13_a_crash_beyond_the_limit_of_the_kernel_leaves_a_line_of_the_kernel(
    attack: MakeCrash, kernel: Callable[[str, str], None]
) -> None:
    before = lab.output("dmesg").splitlines()
    kernel("kernel/core_pipe_limit", "1")
    first = attack("keep=60", "tiny", options=("--env=ATTACK=never-ends", "--detach"))
    wait_until(lambda: delegates_of(first), "no delegate")
    second = attack("tiny")
    assert second.of("delegate") == []

    def told() -> bool:
        new = set(lab.output("dmesg").splitlines()) - set(before)
        return any("over core_pipe_limit" in line for line in new)

    wait_until(told, "the kernel has not told")


ENDLESS_DELEGATE = ("--env=ATTACK=never-ends", "--detach")


def host_crash(records: Path) -> subprocess.Popen[bytes]:
    """A process of the host that crashes."""
    return subprocess.Popen([lab.PROGRAMS / "crasher"], env={"RECORD_DIRECTORY": str(records)})


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_13_one_container_crashes_too_much(
    attack: MakeCrash, records: Path, refusal: Callable[[str], str]
) -> None:
    flood = attack("wait=/out/go", "fork=200", "tiny", options=ENDLESS_DELEGATE)
    other = attack("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    wait_until(lambda: helpers() == 0, "crashes of another test are in flight")
    (flood.records / "go").touch()
    line = refusal("crashes in flight")
    assert f"container {flood.identifier} has " in line
    assert f" of {LIMIT} slots are free: core dropped; " in line
    # Those beyond the share are on their way out.
    share = LIMIT // 2
    wait_until(lambda: len(delegates_of(flood)) == share and helpers() == share, "the flood did not fill its share", 4)

    (other.records / "go").touch()
    crasher = host_crash(records)
    assert crasher.wait() == -signal.SIGSEGV
    wait_until(lambda: other.of("delegate"), "the crash of the other container was not handled", 2)
    assert is_whole(other.delegate.core.read_bytes())
    assert is_whole((records / f"delegate.{crasher.pid}" / "core").read_bytes())
    assert len(delegates_of(flood)) == share, "the flood was over too early: nothing was shown"


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_22_three_containers_take_all_slots_they_get(attack: MakeCrash, records: Path) -> None:
    floods = [attack("wait=/out/go", "fork=80", "tiny", options=ENDLESS_DELEGATE) for _ in range(3)]
    other = attack("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    wait_until(lambda: helpers() == 0, "crashes of another test are in flight")
    for flood in floods:
        (flood.records / "go").touch()

    def taken() -> int:
        return sum(len(delegates_of(flood)) for flood in floods)

    wait_until(lambda: taken() >= LIMIT * 3 // 4 and helpers() == taken(), "the floods did not fill their shares", 6)

    (other.records / "go").touch()
    crasher = host_crash(records)
    assert crasher.wait() == -signal.SIGSEGV
    wait_until(lambda: other.of("delegate"), "the crash of the fourth container was not handled", 2)
    assert is_whole((records / f"delegate.{crasher.pid}" / "core").read_bytes())
    assert taken() >= LIMIT * 3 // 4, "the floods were over too early: nothing was shown"


def test_attack_22_a_container_in_the_hosts_pid_namespace_has_its_share(attack: MakeCrash) -> None:
    flood = attack("wait=/out/go", "fork=90", "tiny", options=(*ENDLESS_DELEGATE, "--pid=host"))
    other = attack("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    wait_until(lambda: helpers() == 0, "crashes of another test are in flight")
    (flood.records / "go").touch()
    wait_until(lambda: len(delegates_of(flood)) == LIMIT // 2 == helpers(), "the flood did not fill its share", 4)
    (other.records / "go").touch()
    wait_until(lambda: other.of("delegate"), "the crash of the other container was not handled", 2)


@pytest.mark.usefixtures("patient")
def test_attack_22_four_hundred_crash_loops(attack: MakeCrash, capsys: pytest.CaptureFixture[str]) -> None:
    written = count_log_lines()
    other = attack("wait=/out/go", "series=15", "tiny", options=("--detach",))
    flood = attack("storm=400", options=("--env=ATTACK=fails", "--detach"))
    time.sleep(3)
    (other.records / "go").touch()
    started = time.monotonic()
    try:
        # On two processors that others use, too, this has taken 11 to 110 seconds.
        wait_until(lambda: "ended" in lab.output("docker", "logs", other.name), "the series does not end", 280)
    finally:
        lab.output("docker", "kill", flood.name)
    seconds = time.monotonic() - started
    lines = written()
    arrived = len(other.of("delegate"))
    with capsys.disabled():
        print(f"\n{arrived} of 15 cores arrived in {seconds:.0f} s; meanwhile the log took {lines} lines")
    assert arrived >= 14
    # Some 200 crashes a second, each with its line, are rationed to a burst and some lines a second.
    assert 0 < lines < 1000 + 20 * seconds


def test_attack_22_a_flood_of_lines_is_rationed_over_all_crashes(attack: MakeCrash) -> None:
    container = attack("fork=30", "tiny", options=("--env=ATTACK=talks",))
    told = container.log("more are left out while it writes over 10 a second")
    assert "more are left out while it writes over 10 a second" in told
    assert len(told.splitlines()) < 1100


# 23


def test_attack_23_the_kernel_walks_on_through_reserved_memory(
    attack: MakeCrash, refusal: Callable[[str], str]
) -> None:
    container = attack("reserve=8", options=("--env=ATTACK=never-ends",))
    # Minutes, without being killed; whoever waits for it sees that.
    assert container.exit_status == 128 + signal.SIGKILL
    assert container.seconds < TIMEOUT + 8
    assert "killed: it did not end when nobody read its core any more" in refusal("killed: it did not end")


def test_attack_23_a_mapped_file_that_never_answers_counts_until_its_process_is_gone(
    attack: MakeCrash, refusal: Callable[[str], str]
) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no /dev/fuse")
    options = ("--device=/dev/fuse", "--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined", "--detach")
    container = attack("fuse=serve", f"fork={LIMIT}", "wait=/out/go", "fuse=map", options=options)
    (container.records / "go").touch()
    assert f"has {LIMIT // 2} crashes in flight" in refusal(f"has {LIMIT // 2} crashes in flight")
    wait_until(lambda: helpers() == 0, "the helpers do not end", TIMEOUT + 15)
    # All helpers are gone, and their processes are not: the container has nothing left, and others have.
    before = set(read_log().splitlines())
    lab.command("docker", "exec", container.name, "crasher", "tiny", check=False)
    told = f"container {container.identifier} has {LIMIT // 2} crashes in flight"
    wait_until(lambda: any(told in line for line in set(read_log().splitlines()) - before), "it was not refused")
    other = attack("tiny")
    assert ": delivered " in other.log("delivered")
    # With its server, which dies with the container, the processes go, and the slots.
    lab.output("docker", "kill", container.name)
    wait_until(lambda: not processes_left(container), "the processes do not end")


def processes_left(container: Container) -> bool:
    """Whether the engine still says that the container runs."""
    return lab.output("docker", "inspect", "--format={{.State.Running}}", container.name) == "true"
