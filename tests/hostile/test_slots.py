"""Who takes slots: containers, users and sandboxes have their shares, and leave some to others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from core_helper import control_groups
from hostile.groups import ANOTHER, SERVICE, Place, move
from hostile.intruders import OF_THE_HOST, PROGRAM, Start
from hostile.observe import (
    LIMIT,
    count_log_lines,
    delegates_of,
    helpers,
    processes_of,
    running,
    wait_for_rest,
    wait_until,
)
from hostile.options import ADMINISTRATOR, ENDLESS, UNCONFINED
from hostile.run import TIMEOUT
from support import door, lab
from support.containers import Container, MakeCrash, read_log, wait_for_log
from support.hosts import DELEGATE
from support.records import is_whole


def host_crash(records: Path) -> subprocess.Popen[bytes]:
    """A process of the host that crashes."""
    return subprocess.Popen([lab.PROGRAMS / "crasher"], env={"RECORD_DIRECTORY": str(records)})


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_13_one_container_crashes_too_much(
    siege: MakeCrash, records: Path, refusal: Callable[[str], str]
) -> None:
    flood = siege("wait=/out/go", "fork=200", "tiny", options=ENDLESS)
    other = siege("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    wait_until(lambda: helpers() == 0, "crashes of another test are in flight")
    (flood.records / "go").touch()
    if not door.BY_SOCKET:  # There they wait.
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


@pytest.mark.parametrize("table", ["slots", "lines"])
def test_attack_22_a_container_that_reads_the_files_of_the_host_locks_them(
    attack: MakeCrash, siege: MakeCrash, table: str
) -> None:
    attack().log("delivered")  # There are tables.
    words = f"read-lock=/host/docker_core_helper.{table}"
    locker = siege(words, options=("--volume=/run:/host:ro", "--detach"))
    wait_until(lambda: "locked" in lab.output("docker", "logs", locker.name), "nothing is locked")
    other = attack()
    assert is_whole(other.delegate.core.read_bytes())
    other.log("delivered")
    wait_until(lambda: helpers() == 0, "the helper waits for the lock", TIMEOUT - 2)
    if table == "slots":
        line = "has it locked, and is no helper: slots are not counted"
        wait_until(lambda: line in read_log(), "nobody is told")
    assert processes_of(locker), "the lock was over too early: nothing was shown"


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_22_three_containers_take_all_slots_they_get(siege: MakeCrash, records: Path) -> None:
    floods = [siege("wait=/out/go", "fork=80", "tiny", options=ENDLESS) for _ in range(3)]
    other = siege("wait=/out/go", "fork=1", "tiny", options=("--detach",))
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


def test_attack_22_a_container_in_the_hosts_pid_namespace_has_its_share(siege: MakeCrash) -> None:
    flood = siege("wait=/out/go", "fork=90", "tiny", options=(*ENDLESS, "--pid=host"))
    other = siege("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    wait_until(lambda: helpers() == 0, "crashes of another test are in flight")
    (flood.records / "go").touch()
    wait_until(lambda: len(delegates_of(flood)) == LIMIT // 2 == helpers(), "the flood did not fill its share", 4)
    (other.records / "go").touch()
    wait_until(lambda: other.of("delegate"), "the crash of the other container was not handled", 2)


@pytest.mark.usefixtures("patient")
def test_attack_22_four_hundred_crash_loops(siege: MakeCrash, capsys: pytest.CaptureFixture[str]) -> None:
    written = count_log_lines()
    other = siege("wait=/out/go", "series=15", "tiny", options=("--detach",))
    flood = siege("storm=400", options=("--env=ATTACK=fails", "--detach"))
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


@pytest.mark.skipif(
    not door.BY_SOCKET, reason="at the pipe no crash waits: of many containers, each has a slot at a time"
)
@pytest.mark.usefixtures("patient")
def test_attack_22_crash_loops_in_many_containers(siege: MakeCrash) -> None:
    other = siege("wait=/out/go", "series=15", "tiny", options=("--detach",))
    options = ("--env=ATTACK=fails", "--pids-limit=500", "--detach")
    floods = [siege("storm=250", options=options) for _ in range(6)]
    time.sleep(8)
    (other.records / "go").touch()
    try:
        wait_until(lambda: "ended" in lab.output("docker", "logs", other.name), "the series does not end", 150)
    finally:
        lab.output("docker", "kill", *(flood.name for flood in floods))
    assert len(other.of("delegate")) >= 14


@pytest.mark.usefixtures("patient")
def test_attack_22_eight_containers_take_all_slots_they_get(siege: MakeCrash) -> None:
    floods = [siege("leave=600", "wait=/out/go", "fork=40", "tiny", options=ENDLESS) for _ in range(8)]
    other = siege("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    for flood in floods:
        (flood.records / "go").touch()
        rests_alone(flood)
    assert len(delegates_of(floods[0])) >= LIMIT // 4, "the floods were over too early: nothing was shown"
    assert_is_handled(other)


def test_attack_22_a_container_has_all_keys_that_root_may_have(siege: MakeCrash) -> None:
    # The workers of a server that are there already have what they need.
    others = [siege("wait=/out/go", "fork=1", "tiny", options=("--detach",)) for _ in range(12)]
    greedy = siege("keys", options=(*UNCONFINED, "--detach"))
    wait_until((greedy.records / "full").exists, "the keys were not used up: nothing was shown", 60)
    for other in others:
        assert_is_handled(other)
        time.sleep(1)  # What this crash gives back has been taken by then.


def rests_alone(flood: Container, each: int = 1) -> None:
    """Waits until a container has all delegates that it gets; a crash counts as so many processes."""
    wait_for_rest(lambda: has_all_it_gets(flood, each), lambda: len(delegates_of(flood)))


def has_all_it_gets(flood: Container, each: int) -> bool:
    """Whether all crashes of a container that have no delegate are over; a crash counts as so many processes."""
    crashers = [pid for pid, words in processes_of(flood) if words.startswith("crasher")]
    # The first process stays, and its child, which waits for those that crash, until there are none.
    return len(crashers) == 1 or 0 < len(delegates_of(flood)) * each == len(crashers) - 2


def assert_is_handled(container: Container) -> None:
    """The one crash of a container, which waits for it, is delivered."""
    (container.records / "go").touch()
    wait_until(lambda: container.of("delegate"), "the crash of the other container was not handled", 30)


# Users, namespaces and sandboxes do not multiply a share.


@pytest.mark.usefixtures("patient")
def test_attack_22_many_users_of_a_container_in_the_hosts_pid_namespace_have_one_share(siege: MakeCrash) -> None:
    actions = ("leave=600", "wait=/out/go", "fork=70", "other-user", "sandbox=user", "sandbox=pid", "tiny")
    flood = siege(*actions, options=(*ENDLESS, "--pid=host", *UNCONFINED))
    other = siege("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    (flood.records / "go").touch()
    # Each crash has a parent, which ends with it.
    rests_alone(flood, 2)
    assert len(delegates_of(flood)) <= LIMIT // 2
    assert_is_handled(other)


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
    siege: MakeCrash, group_of_user: Path, actions: str
) -> None:
    other = siege("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    script = USER_OF_THE_HOST.format(group=group_of_user, crasher=f"{lab.PROGRAMS}/crasher", actions=actions)
    subprocess.run(["sh", "-c", script], env={**os.environ, "ATTACK": "never-ends"}, stdout=subprocess.DEVNULL)
    wait_for_rest(
        lambda: group_rests(group_of_user, len(actions.split())),
        lambda: len(commands(group_of_user, "/opt/bin/delegate")),
    )
    assert len(commands(group_of_user, "/opt/bin/delegate")) <= LIMIT * 3 // 4
    assert_is_handled(other)


def commands(group: Path, program: str) -> list[str]:
    """The command lines of the processes of a program in a control group and those below it."""
    lines = []
    for file in group.rglob("cgroup.procs"):
        for pid in file.read_text().split():
            with suppress(OSError):
                lines.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    return [line for line in lines if line.startswith(program)]


def group_rests(group: Path, each: int) -> bool:
    """Whether all crashes in a control group that have no delegate are over; a crash counts as so many processes."""
    delegates = len(commands(group, "/opt/bin/delegate"))
    return 0 < each * delegates == len(commands(group, str(lab.PROGRAMS))) and not commands(group, "sh")


@pytest.fixture
def users() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs of users of the host, which end with their delegates after the test."""
    users: list[subprocess.Popen[bytes]] = []
    yield users
    for pid in delegates_on_host():
        os.kill(pid, signal.SIGKILL)
    for user in users:
        with suppress(ProcessLookupError):
            os.killpg(user.pid, signal.SIGKILL)
        user.wait()
    wait_until(lambda: helpers() == 0, "a helper is left", 60)


@pytest.mark.usefixtures("patient", "delegate_of_the_host")
def test_attack_22_users_who_hold_slots_leave_the_last_ones_to_others(
    siege: MakeCrash, users: list[subprocess.Popen[bytes]]
) -> None:
    other = siege("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    for user in range(1000, 1004):
        words = [f"{lab.PROGRAMS}/crasher", "fork=60", "sandbox=user", "sandbox=pid", "tiny"]
        environment = {"ATTACK": "never-ends"}
        options = {"user": user, "group": user, "extra_groups": [], "start_new_session": True}
        users.append(subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, **options))  # type: ignore[call-overload]
        wait_for_rest(lambda: helpers() == len(delegates_on_host()) > 0, lambda: len(delegates_on_host()))
    assert len(delegates_on_host()) >= LIMIT * 3 // 4, "the users were over too early: nothing was shown"
    (other.records / "go").touch()
    wait_until(lambda: other.of("delegate"), "the crash of the container was not handled", 30)


def delegates_on_host() -> list[int]:
    """The pids of the delegates on the host itself, or anywhere else."""
    return [int(directory.name) for directory in running(DELEGATE)]


# A program that is executed can be dumped again, whoever it has become.
CRASH = (f"execute={PROGRAM}", "tiny")
# Each crash in a pid namespace of its own, as set-id sandboxes make them, or all in one, as engines do it that name nothing.
FLOODS = {
    "sandboxes": (("fork=70", "sandbox=pid", "user", *CRASH), LIMIT * 3 // 4),
    "one container": (("sandbox=pid", "fork=70", "other-user", *CRASH), LIMIT // 2),
}


@pytest.mark.usefixtures("patient", "delegate_of_the_host")
@pytest.mark.parametrize("kind", FLOODS)
def test_attack_22_pid_namespaces_that_root_makes_for_others(siege: MakeCrash, records: Path, kind: str) -> None:
    actions, share = FLOODS[kind]
    other = siege("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    words = [PROGRAM, f"wait={records}/go", *actions]
    flood = subprocess.Popen(words, env={"ATTACK": "never-ends"}, start_new_session=True)
    try:
        move(flood.pid, None)
        (records / "go").touch()
        wait_for_rest(lambda: rests(flood.pid), lambda: len(of_users("delegate")))
        assert LIMIT // 4 <= len(of_users("delegate")) <= share
        assert_is_handled(other)
    finally:
        # With the first process of a pid namespace, the delegate in it ends.
        os.killpg(flood.pid, signal.SIGKILL)
        flood.wait()
        wait_until(lambda: helpers() == 0, "helpers are left", 30)


def of_users(name: str) -> list[int]:
    """The processes of that name that are not root's."""
    return [pid for pid, uid in processes(name) if uid]


def processes(name: str) -> Iterator[tuple[int, int]]:
    """The processes of that name that have not ended, with their users."""
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (directory / "comm").read_text() == f"{name}\n":
                status = (directory / "status").read_text()
                if "\nState:\tZ" not in status:
                    yield int(directory.name), int(status.partition("\nUid:\t")[2].split()[0])


def rests(first: int) -> bool:
    """Whether all crashes among the descendants of a process that have no delegate are over."""
    of_root = [pid for pid, uid in processes("crasher") if not uid and os.getpgid(pid) == first]
    delegates = len(of_users("delegate"))
    # Beside the first process, there is one of root's in each pid namespace or around it.
    return len(of_users("crasher")) == delegates > 0 and len(of_root) - 1 in (1, delegates)


@pytest.mark.usefixtures("patient", "delegate_of_the_host")
def test_attack_22_sandboxes_of_one_service_leave_slots_to_those_of_another(
    run: Start, place: Place, records: Path
) -> None:
    sandbox = ("sandbox=pid", "user", f"execute={PROGRAM}", "tiny")
    flood = run(PROGRAM, f"wait={records}/go", "fork=70", *sandbox, env={"ATTACK": "never-ends"})
    place(flood.pid, SERVICE)
    other = run(PROGRAM, f"wait={records}/go2", "fork=1", *sandbox, env={"RECORD_DIRECTORY": str(records)})
    place(other.pid, ANOTHER)
    (records / "go").touch()
    wait_for_rest(
        lambda: len(of_users("crasher")) == len(of_users("delegate")) > LIMIT // 4,
        lambda: len(of_users("delegate")),
        90,
    )
    (records / "go2").touch()
    wait_until(lambda: list(records.glob("delegate.*")), "the crash of the other service was not handled", 30)
    os.killpg(flood.pid, signal.SIGKILL)
    wait_until(lambda: helpers() == 0, "helpers are left", 30)


@pytest.fixture
def services() -> Iterator[Callable[[int, str], None]]:
    """Moves a process into a control group of that name, which root has made, as a service manager does."""
    made: list[Path] = []
    mounts = control_groups.own_cgroup_mounts()

    def place(pid: int, name: str) -> None:
        move(pid, None)
        made.append(Path(os.fsdecode(mounts[b""]), name))
        made[-1].mkdir()
        (made[-1] / "cgroup.procs").write_text(str(pid))

    yield place
    for group in made:
        wait_until(lambda of=group: "populated 0" in (of / "cgroup.events").read_text(), "a process is left", 30)  # type: ignore[misc]
        group.rmdir()


@pytest.mark.usefixtures("patient", "delegate_of_the_host")
def test_attack_22_a_service_of_root_leaves_slots_to_another(
    services: Callable[[int, str], None], run: Start, records: Path, configured: Callable[[str], None]
) -> None:
    configured("DOCKERCOREHELPER_PIPE_LIMIT=4\n")
    flood = run(PROGRAM, f"wait={records}/go", "fork=4", "tiny", env={"ATTACK": "never-ends"})
    other = run(PROGRAM, f"wait={records}/go2", "fork=1", "tiny", env={"RECORD_DIRECTORY": str(records)})
    for process, name in ((flood, "lab-a.service"), (other, "lab-b.service")):
        services(process.pid, name)
    (records / "go").touch()
    wait_for_rest(lambda: helpers() == len(delegates_on_host()) == 2, lambda: len(delegates_on_host()))
    (records / "go2").touch()
    try:
        wait_until(lambda: list(records.glob("delegate.*")), "the crash of the other service was not handled")
        assert len(delegates_on_host()) >= 2, "the flood was over too early: nothing was shown"
    finally:
        os.killpg(flood.pid, signal.SIGKILL)
        for pid in delegates_on_host():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: helpers() == 0, "helpers are left", 30)


USER = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
SESSION = "user.slice/user-1000.slice/session-7.scope"
GROUPS_OF_SESSION = {"pids": SESSION, "memory": SESSION, "systemd": SESSION}


@pytest.fixture
def bwrap() -> Iterator[str]:
    """A sandbox program that is set-user-id, and makes a user namespace as root."""
    found = shutil.which("bwrap")
    if found is None:
        pytest.skip("this machine has no bwrap: install bubblewrap")
    program = Path(shutil.copy(found, lab.DIRECTORY / "bwrap"))
    os.chown(program, 0, 0)
    program.chmod(0o4755)
    yield str(program)
    program.unlink()


@pytest.mark.usefixtures("patient", "delegate_of_the_host")
@pytest.mark.parametrize("namespaces", ["--unshare-user --unshare-pid", "--unshare-user"])
def test_attack_22_sandboxes_with_a_user_namespace_that_root_has_made(
    run: Start,
    place: Place,
    records: Path,
    bwrap: str,
    namespaces: str,
) -> None:
    script = (
        f"while [ ! -e {records}/go ]; do sleep 0.1; done; i=0; while [ $i -lt 70 ]; do"
        f" {bwrap} {namespaces} --dev-bind / / {PROGRAM} tiny & i=$((i+1)); done; wait; sleep 600"
    )
    flood = run(*USER, "sh", "-c", script, env={**OF_THE_HOST, "ATTACK": "never-ends"})
    place(flood.pid, GROUPS_OF_SESSION)
    (records / "go").touch()
    with suppress(AssertionError):
        wait_until(lambda: len(of_users("delegate")) > LIMIT * 3 // 4, "no more", 20)
    held = len(of_users("delegate"))
    crash = run(PROGRAM, "tiny", env={"RECORD_DIRECTORY": str(records)})
    crash.wait()
    lines = wait_for_log(f"pid={crash.pid} ", "deliver")
    os.killpg(flood.pid, signal.SIGKILL)
    for name in ("crasher", "delegate"):
        for pid, uid in processes(name):
            if uid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: helpers() == 0, "helpers are left", 60)
    assert 0 < held <= LIMIT * 3 // 4
    assert ": delivered " in lines


# Whoever asks which slots are used holds none of them.


SHARE = LIMIT // 2


@pytest.mark.usefixtures("patient_enough")
def test_attack_22_whoever_looks_at_the_slots_takes_the_memory_of_a_process_with_it(
    siege: MakeCrash, fuse: str
) -> None:
    # The last one who has the memory of a process open waits for what that process has asked a file system for. So many groups
    # take the kernel milliseconds at each look; four times as many take some machines more than the deadline.
    actions = ("fuse=serve", "groups=16384", f"traced={SHARE}", "aio")
    container = siege("leave=600", *actions, "tiny", options=(*ADMINISTRATOR, fuse, *ENDLESS))
    wait_until(lambda: len(delegates_of(container)) >= SHARE - 2, "the slots are not used", 60)
    wait_until(lambda: helpers() == 0, "the helpers do not end", 60)
    (tracer,) = {tracer_of(pid) for pid, _ in processes_of(container)} - {0}
    other = siege("wait=/out/go", "fork=1", "tiny", options=("--detach",))
    storm = siege("wait=/out/go", "delegate=none", "storm=10", options=("--detach",))
    (storm.records / "go").touch()
    time.sleep(4)
    os.kill(tracer, signal.SIGKILL)
    time.sleep(4)
    lab.output("docker", "kill", storm.name)
    (other.records / "go").touch()
    try:
        wait_until(lambda: other.of("delegate"), "the crash of another container was not handled", 30)
    finally:
        lab.output("docker", "kill", container.name)


def tracer_of(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/status").read_text().partition("\nTracerPid:\t")[2].split()[0])
    return 0
