"""Whose image chooses the program: a process that is in the files of another container than its own has no delegate there."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from core_helper import control_groups, procfs
from hostile.observe import files_of, pid_of, wait_until
from hostile.options import FALLBACK, PRIVILEGED
from support import lab
from support.containers import Container, MakeCrash, wait_for_log

AGENT = (*PRIVILEGED, FALLBACK)
OF_THE_HOST = {"DOCKERCOREHELPER_FALLBACK_CORE": "1", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
OTHER_MOUNTS = "in the mount namespace of another container"
OTHER_ROOT = "root directory"
OTHER_PROGRAM = "a program from outside of the mount namespace"


@pytest.fixture
def untouched(target: Container) -> Iterator[Container]:
    """The target, of whose image nothing may have been executed, and in whose files nothing may have been written."""
    before = set(Path("/tmp").glob("core.*"))
    yield target
    assert target.of("delegate") == []
    assert "/tmp/core." not in lab.output("docker", "diff", target.name)
    assert set(Path("/tmp").glob("core.*")) == before


AGENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    # Its actions, its options, and what the log says.
    "of the host's pid namespace": (("fork=1", "join=/proc/{pid}/ns/mnt"), ("--pid=host",), OTHER_MOUNTS),
    "itself the first process": (("join=/proc/{pid}/ns/mnt",), ("--pid=host",), OTHER_MOUNTS),
    "itself the first process, with a program of the container": (
        ("join=/proc/{pid}/ns/mnt", "execute=/usr/bin/crasher"),
        ("--pid=host",),
        OTHER_MOUNTS,
    ),
    "of a pid namespace of its own": (("fork=1", "join=/host/{pid}/ns/mnt"), ("--volume=/proc:/host",), OTHER_MOUNTS),
    "itself the first of its pid namespace": (("join=/host/{pid}/ns/mnt",), ("--volume=/proc:/host",), OTHER_MOUNTS),
    "with the root of the container": (("root=/host/{pid}/root",), ("--volume=/proc:/host",), OTHER_PROGRAM),
    "with the root of it, in the host's pid namespace": (("root=/proc/{pid}/root",), ("--pid=host",), OTHER_PROGRAM),
    "with the files of the container": (("fork=1", "root=/host{files}"), ("--volume=/:/host",), OTHER_ROOT),
    "in all namespaces but the mounts'": (
        ("join=/host/{pid}/ns/net", "join=/host/{pid}/ns/mnt"),
        ("--volume=/proc:/host",),
        OTHER_MOUNTS,
    ),
}


@pytest.mark.parametrize("kind", AGENTS)
def test_attack_20_an_agent_in_the_files_of_another_container(
    attack: MakeCrash, untouched: Container, refusal: Callable[[str], str], kind: str
) -> None:
    actions, options, told = AGENTS[kind]
    facts = {"pid": pid_of(untouched), "files": files_of(untouched)}
    attack(*(action.format(**facts) for action in actions), options=(*AGENT, *options))
    line = refusal(told)
    assert "core not delivered, 0 bytes" in line


OF_HOST: dict[str, tuple[list[str], str]] = {
    "nsenter --mount": (["nsenter", "--mount", "--target={pid}", "/usr/bin/crasher"], "mount namespace"),
    "setns alone": ([f"{lab.PROGRAMS}/crasher", "join=/proc/{pid}/ns/mnt"], "mount namespace"),
    "the engine's directory of what was changed": ([f"{lab.PROGRAMS}/crasher", "root={changes}"], OTHER_ROOT),
    "its own chroot to the engine's directory": ([f"{lab.PROGRAMS}/crasher", "root={files}"], OTHER_ROOT),
    "nsenter of all but users": (
        ["nsenter", "--mount", "--uts", "--ipc", "--net", "--pid", "--target={pid}", "/usr/bin/crasher"],
        "control group",
    ),
    "nsenter --mount --pid, root alone": (
        ["nsenter", "--mount", "--pid", "--target={pid}", "/usr/bin/crasher", "user"],
        "control group",
    ),
    "chroot /proc/PID/root": (["chroot", "/proc/{pid}/root", "/usr/bin/crasher"], OTHER_ROOT),
    "chroot to the engine's directory": (["chroot", "{files}", "/usr/bin/crasher"], OTHER_ROOT),
    "chroot below it": (["chroot", "{files}", "/usr/bin/crasher", "root=/jail"], OTHER_ROOT),
}


@pytest.mark.parametrize("kind", OF_HOST)
def test_attack_20_a_process_of_the_host_in_the_files_of_a_container(untouched: Container, kind: str) -> None:
    words, told = OF_HOST[kind]
    facts = {"pid": pid_of(untouched), "files": files_of(untouched), "changes": files_of(untouched, "UpperDir")}
    crash = subprocess.Popen([word.format(**facts) for word in words], env=OF_THE_HOST)
    crash.wait()
    line = wait_for_log(f"uid={1000 if 'user' in words else 0} ", told)
    assert told in line


@pytest.mark.parametrize("first", ["has ended", "has lost its leading thread"])
def test_attack_20_an_agent_in_the_files_of_a_container_whose_first_process(
    attack: MakeCrash, refusal: Callable[[str], str], first: str
) -> None:
    actions = ["second"] if "thread" in first else []
    other = attack(*actions, "sleep=60", options=("--detach",))
    agent = attack(
        f"join=/proc/{pid_of(other)}/task/{thread_of(other)}/ns/mnt",
        "sleep=3",
        options=(*AGENT, "--pid=host", "--detach"),
    )
    wait_until(lambda: in_same_mounts(agent, other), "the agent has not joined")
    if "ended" in first:
        lab.output("docker", "kill", other.name)
    line = refusal(OTHER_PROGRAM if "ended" in first else OTHER_MOUNTS)
    assert "core not delivered, 0 bytes" in line
    assert other.of("delegate") == []


def thread_of(container: Container) -> int:
    """A thread of the first process that has namespaces; the leading one may have exited."""
    pid = pid_of(container)
    wait_until(lambda: list(living_threads(pid)), "no thread")
    return next(living_threads(pid))


def living_threads(pid: int) -> Iterator[int]:
    """The threads of a process that have not exited."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            (task / "ns/mnt").readlink()
            yield int(task.name)


def in_same_mounts(one: Container, other: Container) -> bool:
    """Whether two containers have the same mount namespace."""
    links = [Path(f"/proc/{pid_of(found)}/task/{thread_of(found)}/ns/mnt").readlink() for found in (one, other)]
    return links[0] == links[1]


@pytest.mark.parametrize("names", [("mnt",), ("net", "ipc", "uts", "mnt")], ids=" ".join)
def test_attack_20_a_process_of_the_host_that_was_moved_into_the_control_groups(
    untouched: Container, tmp_path: Path, names: tuple[str, ...]
) -> None:
    go = tmp_path / "go"
    pid = pid_of(untouched)
    words = [f"{lab.PROGRAMS}/crasher", f"wait={go}", *(f"join=/proc/{pid}/ns/{name}" for name in names)]
    crash = subprocess.Popen(words, env=OF_THE_HOST)
    mounts = control_groups.own_cgroup_mounts()
    for controllers, path in procfs.parse_cgroup(Path(f"/proc/{pid}/cgroup").read_bytes()):
        with contextlib.suppress(KeyError):
            Path(os.fsdecode(mounts[controllers.split(b",")[0]] + path), "cgroup.procs").write_text(str(crash.pid))
    go.touch()
    crash.wait()
    assert "in another pid namespace" in wait_for_log(f"pid={crash.pid} ", "not delivered")


def test_attack_20_root_of_the_host_in_the_files_of_a_user_namespace(tmp_path: Path) -> None:
    holder = subprocess.Popen(["unshare", "--user", "--map-root-user", "--mount", "sleep", "60"])
    try:
        namespace = Path(f"/proc/{holder.pid}/ns/mnt")
        own = Path("/proc/self/ns/mnt").readlink()
        wait_until(lambda: namespace.readlink() != own, "no mount namespace")
        crash = subprocess.Popen(
            ["nsenter", f"--mount={namespace}", lab.PROGRAMS / "crasher", f"join={namespace}"], env=OF_THE_HOST
        )
        crash.wait()
        assert "without being in its user namespace" in wait_for_log(f"pid={crash.pid} ", "user namespace")
    finally:
        holder.kill()
        holder.wait()
