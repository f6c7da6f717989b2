"""What somebody found who had not written the helper: each hole is a test here, by the kind of its attack."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile.groups import move
from hostile.intruders import (
    ADMINISTRATOR,
    DEFAULT_CAPABILITIES,
    IN_ROOT,
    OF_THE_HOST,
    UNCONFINED,
    Refusal,
    assert_withheld,
    start,
)
from hostile.observe import (
    LIMIT,
    delegates_of,
    ended,
    files_of,
    helpers,
    peak_of_helpers,
    pid_of,
    processes_of,
    wait_until,
)
from hostile.run import TIMEOUT
from support import lab
from support.containers import Container, MakeCrash

MEMORY = 64 << 20  # Bytes that a helper may have.
TRACER = ("--cap-add=SYS_PTRACE",)
ENDLESS = ("--env=ATTACK=never-ends", "--detach")


@pytest.fixture
def attack() -> Iterator[MakeCrash]:
    with ended(30) as made:
        yield made


def assert_no_helper_is_left() -> None:
    """All helpers have ended soon after the deadline."""
    wait_until(lambda: helpers() == 0, "the helper has not ended at the deadline", TIMEOUT + 15)


# 23


@pytest.mark.parametrize("does", ["locks-input", "locks-errors", "locks-in-thread"])
def test_attack_23_the_delegate_has_the_kernel_lock_a_pipe_of_the_helper(attack: MakeCrash, does: str) -> None:
    container = attack("keep=60", "tiny", options=(f"--env=ATTACK={does}", "--detach"))
    wait_until(lambda: delegates_of(container), "no delegate")
    assert_no_helper_is_left()
    assert "deadline passed" in container.log("deadline passed")
    wait_until(lambda: not delegates_of(container), "a process of the delegate is left")
    wait_until(lambda: "ended" in lab.output("docker", "logs", container.name), "the process was not given free")


def test_attack_23_another_user_has_the_kernel_lock_a_pipe_of_the_helper_for_ever(attack: MakeCrash) -> None:
    # Nobody is ended whom the delegate could not have ended itself: the lock stays.
    container = attack("locker=1000", "keep=60", "memory=8", options=("--env=ATTACK=passes-on", "--detach"))
    wait_until((container.records / "received").exists, "nothing was passed on")
    wait_until(
        lambda: "ended" in lab.output("docker", "logs", container.name),
        "the process was not given free at the deadline",
        TIMEOUT + 30,
    )
    assert "deadline passed" in container.log("deadline passed")
    assert any(words.startswith("receiver") for _, words in processes_of(container)), "the lock was given back"


def test_attack_23_a_delegate_that_has_ended_is_held_by_whoever_traces_it(attack: MakeCrash) -> None:
    container = attack("seize=60", options=("--env=ATTACK=waits", "--detach"))
    wait_until((container.records / "go").exists, "the delegate was never traced: nothing was shown")
    assert_no_helper_is_left()


# 21


def test_attack_21_cap_sys_ptrace_never_finds_the_device_rules_of_the_host(attack: MakeCrash) -> None:
    if not any("devices" in line for line in Path("/proc/self/cgroup").read_text().splitlines()):
        pytest.skip("this host has no devices hierarchy of version 1")
    container = attack("catch=5", options=TRACER)
    assert "caught 0\n" not in container.output, "no process was caught: nothing was shown"
    assert "GOT" not in container.output


def test_attack_21_cap_sys_ptrace_floods_the_helper_with_reports(attack: MakeCrash) -> None:
    container = attack("wait=/out/go", "reports=8", options=(*TRACER, "--detach"))
    (container.records / "go").touch()
    assert peak_of_helpers() < MEMORY
    assert_no_helper_is_left()


# 20


@pytest.fixture
def plain(attack: MakeCrash) -> Container:
    """A container without any capability of its own, its first process where the engine has put it."""
    return start(attack)


@pytest.mark.parametrize("kind", ["MergedDir", "UpperDir"])
def test_attack_20_chroot_without_more_capabilities_into_the_files_of_another_container(
    attack: MakeCrash, plain: Container, refusal: Refusal, kind: str
) -> None:
    files = Path(files_of(plain, kind))
    volume = f"--volume={files.parent.parent}:/host"
    attack("fork=1", f"root=/host/{files.parent.name}/{files.name}", options=(volume, f"--env={IN_ROOT}"))
    assert_withheld(plain, refusal)


def test_attack_20_root_of_the_host_in_what_was_changed_in_a_container(plain: Container, refusal: Refusal) -> None:
    subprocess.run(["chroot", files_of(plain, "UpperDir"), "/usr/bin/crasher"], env=OF_THE_HOST)
    assert_withheld(plain, refusal)


def test_attack_20_root_of_the_host_in_a_mount_namespace_that_the_first_process_has_left(
    other: Container, refusal: Refusal, tmp_path: Path
) -> None:
    first = pid_of(other)
    (child,) = (pid for pid, _ in processes_of(other) if pid != first)
    assert Path(f"/proc/{first}/ns/mnt").readlink() != Path(f"/proc/{child}/ns/mnt").readlink()
    go = tmp_path / "go"
    words = [f"wait={go}", f"join=/proc/{child}/ns/mnt", "execute=/usr/bin/crasher"]
    crash = subprocess.Popen([f"{lab.PROGRAMS}/crasher", *words], env=OF_THE_HOST)
    # As by a login of root's without systemd: no control group says whose it is.
    move(crash.pid, None)
    go.touch()
    crash.wait()
    assert_withheld(other, refusal)


def test_attack_20_root_of_the_host_in_a_mount_namespace_that_the_container_has_left_altogether(
    other: Container, refusal: Refusal, tmp_path: Path
) -> None:
    (child,) = (pid for pid, _ in processes_of(other) if pid != pid_of(other))
    go = tmp_path / "go"
    words = [f"wait={go}", f"join=/proc/{child}/ns/mnt", "execute=/usr/bin/crasher", "wait=/out/alone"]
    crash = subprocess.Popen([f"{lab.PROGRAMS}/crasher", *words], env=OF_THE_HOST)
    move(crash.pid, None)
    go.touch()
    joined = Path(f"/proc/{crash.pid}/ns/mnt")
    wait_until(lambda: joined.readlink() == Path(f"/proc/{child}/ns/mnt").readlink(), "the mounts were not joined")
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: len(processes_of(other)) == 1, "the child has not ended")
    (other.records / "alone").touch()
    crash.wait()
    assert_withheld(other, refusal)


@pytest.mark.parametrize("ended", [False, True], ids=["that runs", "that has ended"])
def test_attack_20_a_process_of_the_host_with_the_rights_of_one_container_in_the_mounts_of_another(
    attack: MakeCrash, plain: Container, refusal: Refusal, tmp_path: Path, ended: bool
) -> None:
    go = tmp_path / "go"
    own = attack("wait=/out/go", options=("--detach",))
    words = [
        f"wait={go}",
        *(f"join=/proc/{pid_of(own)}/ns/{name}" for name in ("net", "ipc", "uts")),
        *(f"join=/proc/{pid_of(own)}/ns/pid", "fork=1", f"join=/proc/{pid_of(plain)}/ns/mnt"),
        *(f"bound={DEFAULT_CAPABILITIES}", "touch=/out/joined", "wait=/out/alone"),
    ]
    crash = subprocess.Popen([f"{lab.PROGRAMS}/crasher", *words], env=OF_THE_HOST)
    move(crash.pid, pid_of(own))
    go.touch()
    wait_until((plain.records / "joined").exists, "the mounts were not joined")
    if ended:
        # Then its files lie nowhere on the host, and nobody is at home there.
        lab.output("docker", "kill", plain.name)
    (plain.records / "alone").touch()
    crash.wait()
    assert_withheld(plain, refusal)


# 24


def test_attack_24_a_filter_of_its_own_below_the_pid_namespace_of_the_host(attack: MakeCrash) -> None:
    actions = ("user", "sandbox=user", "sandbox=pid", "seccomp=filter")
    container = attack(*actions, options=("--pid=host", *UNCONFINED, "--env=CORE_DESTINATION=s3://elsewhere/"))
    assert "a seccomp filter of its own" in container.log("delivered")
    assert "CORE_DESTINATION" not in container.delegate.environment


# 22


@pytest.mark.usefixtures("patient")
def test_attack_22_many_users_of_a_container_in_the_hosts_pid_namespace_have_one_share(attack: MakeCrash) -> None:
    actions = ("leave=600", "wait=/out/go", "fork=70", "other-user", "sandbox=user", "sandbox=pid", "tiny")
    flood = attack(*actions, options=(*ENDLESS, "--pid=host", *UNCONFINED))
    other = attack("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    (flood.records / "go").touch()
    # Each crash has a parent, which ends with it.
    wait_until(lambda: has_all_it_gets(flood, 2), "the flood does not come to rest", 60)
    assert len(delegates_of(flood)) <= LIMIT // 2
    assert_is_handled(other)


@pytest.mark.usefixtures("patient")
def test_attack_22_eight_containers_take_all_slots_they_get(attack: MakeCrash) -> None:
    floods = [attack("leave=600", "wait=/out/go", "fork=40", "tiny", options=ENDLESS) for _ in range(8)]
    other = attack("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    for flood in floods:
        (flood.records / "go").touch()
        wait_until(lambda of=flood: has_all_it_gets(of), "a flood does not come to rest", 60)  # type: ignore[misc]
    assert len(delegates_of(floods[0])) >= LIMIT // 4, "the floods were over too early: nothing was shown"
    assert_is_handled(other)


def has_all_it_gets(flood: Container, each: int = 1) -> bool:
    """Whether all crashes of a container that have no delegate are over; a crash counts as so many processes."""
    crashers = [pid for pid, words in processes_of(flood) if words.startswith("crasher")]
    # The first process stays, and its child, which waits for those that crash, until there are none.
    return len(crashers) == 1 or 0 < len(delegates_of(flood)) * each == len(crashers) - 2


def assert_is_handled(container: Container) -> None:
    """The one crash of a container, which waits for it, is delivered."""
    (container.records / "go").touch()
    wait_until(lambda: container.of("delegate"), "the crash of the other container was not handled", 30)


USER_OF_THE_HOST = """
echo $$ > {group}/start/cgroup.procs
exec setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs sh -c '
for number in $(seq 70); do
    name={group}/$(printf %064x $number)
    mkdir $name
    (sh -c "echo \\$\\$ > $name/cgroup.procs && exec {crasher} {actions} tiny" &)
done'
"""


@pytest.mark.usefixtures("patient", "delegate_of_the_host")
@pytest.mark.parametrize("actions", ["sandbox=user", "sandbox=user sandbox=pid"])
def test_attack_22_a_user_of_the_host_names_control_groups_as_an_engine_does(
    attack: MakeCrash, group_of_user: Path, actions: str
) -> None:
    other = attack("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    script = USER_OF_THE_HOST.format(group=group_of_user, crasher=f"{lab.PROGRAMS}/crasher", actions=actions)
    subprocess.run(["sh", "-c", script], env={**os.environ, "ATTACK": "never-ends"}, stdout=subprocess.DEVNULL)
    wait_until(lambda: rests(group_of_user, len(actions.split())), "the user does not come to rest", 60)
    assert len(commands(group_of_user, "/opt/bin/delegate")) <= LIMIT * 3 // 4
    assert_is_handled(other)


def commands(group: Path, program: str) -> list[str]:
    """The command lines of the processes of a program in a control group and those below it."""
    lines = []
    for file in group.rglob("cgroup.procs"):
        for pid in file.read_text().split():
            with contextlib.suppress(OSError):
                lines.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    return [line for line in lines if line.startswith(program)]


def rests(group: Path, each: int) -> bool:
    """Whether all crashes in a control group that have no delegate are over; a crash counts as so many processes."""
    delegates = len(commands(group, "/opt/bin/delegate"))
    return 0 < each * delegates == len(commands(group, str(lab.PROGRAMS))) and not commands(group, "sh")


def test_attack_22_a_container_with_very_many_mounts_costs_the_helper_no_memory(attack: MakeCrash) -> None:
    container = attack("mounts=16", "fork=1", "tiny", options=(*ADMINISTRATOR, "--env=ATTACK=never-ends", "--detach"))
    assert peak_of_helpers(60) < MEMORY
    assert "deadline passed" in container.log("deadline passed")


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_22_a_user_of_the_host_with_very_many_mounts_costs_the_helper_no_memory() -> None:
    words = [f"{lab.PROGRAMS}/crasher", "sandbox=user", "sandbox=mounts", "mounts=16", "tiny"]
    crash = subprocess.Popen(words, env={"ATTACK": "never-ends"}, user=1000, group=1000, extra_groups=[])
    try:
        assert peak_of_helpers(60) < MEMORY
    finally:
        crash.kill()
        crash.wait()


# Sandboxes that are no attack.

SANDBOXES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a root directory of its own in a user namespace": (
        ("fork=1", "user", "sandbox=user", "sandbox=root", "execute=/usr/bin/crasher"),
        UNCONFINED,
    ),
    "a root directory of its own": (
        ("fork=1", "sandbox=root", "execute=/usr/bin/crasher"),
        (*ADMINISTRATOR, *UNCONFINED),
    ),
    "a program in memory, in a user namespace": (("fork=1", "sandbox=user", "memfd"), UNCONFINED),
    "a program of a user in memory, in a user namespace": (("fork=1", "user", "sandbox=user", "memfd"), UNCONFINED),
}


@pytest.mark.parametrize("kind", SANDBOXES)
def test_a_sandbox_that_a_container_has_made_has_the_delegate_that_it_sees(attack: MakeCrash, kind: str) -> None:
    actions, options = SANDBOXES[kind]
    container = attack(*actions, "tiny", options=options)
    assert ": delivered " in container.log("delivered"), container.log("pid=")
