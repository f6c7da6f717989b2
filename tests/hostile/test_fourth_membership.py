"""Whose the files are that a process sees, where the container that they belong to hides: what a fourth stranger found."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hostile.groups import moved_below
from hostile.intruders import (
    ADMINISTRATOR,
    DEFAULT_CAPABILITIES,
    IN_ROOT,
    NOT_FOR,
    PROGRAM,
    UNCONFINED,
    Refusal,
    assert_delivered_from,
    assert_withheld,
    crash_on_host,
    start,
)
from hostile.observe import files_of, pid_of, processes_of, wait_until
from support import lab
from support.containers import Container, MakeCrash

AGENT = ("--cap-add=SYS_ADMIN", "--cap-add=SYS_PTRACE", *UNCONFINED, "--volume=/proc:/host", f"--env={IN_ROOT}")
# What a container does to be no one's container: its leading thread ends, its root directory is another one.
HIDES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "has no leading thread": (("second",), ()),
    "has changed its root directory": (("root=/jail",), ()),
    "has moved its root directory": (("sandbox=root",), (*ADMINISTRATOR, *UNCONFINED)),
}


def let_go(container: Container) -> None:
    """Lets a container go on, and waits until its first process has ended its leading thread, or has another root directory."""
    first = Path(f"/proc/{pid_of(container)}")
    before = view_of(first)
    (container.records / "go").touch()
    wait_until(lambda: view_of(first) != before, "the container does not go on")


def view_of(process: Path) -> tuple[str, ...]:
    """What a process sees, "" where it has no leading thread."""
    try:
        return tuple(os.readlink(process / name) for name in ("root", "ns/mnt", "ns/user"))
    except OSError:
        return ()


def crash_as_agent(attack: MakeCrash, container: Container, kind: str, *before: str) -> None:
    """Has an agent with no more than Docker's capabilities change its root directory to the files of a container, and crash."""
    files = Path(files_of(container, kind))
    volume = f"--volume={files.parent.parent}:/host"
    attack(*before, f"root=/host/{files.parent.name}/{files.name}", options=(volume, f"--env={IN_ROOT}"))


# 20: whoever executes a program of the container's files.


@pytest.mark.parametrize("actions", [("execute=/usr/bin/crasher",), ("execute=/usr/bin/crasher", "fork=1")])
def test_attack_20_the_first_process_of_an_agent_is_no_proof_of_itself(
    attack: MakeCrash, refusal: Refusal, actions: tuple[str, ...]
) -> None:
    container = start(attack)
    attack(f"join=/host/{pid_of(container)}/ns/mnt", *actions, options=AGENT)
    assert_withheld(container, refusal)


def test_attack_20_the_first_process_of_an_agent_in_mounts_that_the_first_process_of_the_container_has_left(
    attack: MakeCrash, other: Container, refusal: Refusal
) -> None:
    (child,) = (pid for pid, _ in processes_of(other) if pid != pid_of(other))
    attack(f"join=/host/{child}/ns/mnt", "execute=/usr/bin/crasher", options=AGENT)
    assert_withheld(other, refusal)


@pytest.mark.parametrize("kind", ["MergedDir", "UpperDir"])
def test_attack_20_the_first_process_of_an_agent_changes_its_root_directory(
    attack: MakeCrash, refusal: Refusal, kind: str
) -> None:
    container = start(attack)
    crash_as_agent(attack, container, kind)
    assert_withheld(container, refusal)


@pytest.mark.parametrize("hides", list(HIDES))
@pytest.mark.parametrize("who", ["agent", "host"])
def test_attack_20_the_files_of_a_container_that_hides(
    attack: MakeCrash, refusal: Refusal, hides: str, who: str, tmp_path: Path
) -> None:
    actions, options = HIDES[hides]
    container = start(attack, *actions, options=options)
    let_go(container)
    for kind in ("MergedDir", "UpperDir"):
        if who == "agent":
            crash_as_agent(attack, container, kind, "fork=1")
        else:
            crash_on_host(f"root={files_of(container, kind)}", "execute=/usr/bin/crasher", directory=tmp_path)
        assert not list(Path(files_of(container)).glob("delegate.*")), "its delegate was started"
    assert "core not delivered, 0 bytes" in refusal(NOT_FOR)


@pytest.mark.parametrize("hides", ["sandbox=root", "second"])
def test_attack_20_the_mounts_of_a_container_that_hides(
    attack: MakeCrash, refusal: Refusal, hides: str, tmp_path: Path
) -> None:
    container = start(attack, "sandbox=user", hides, options=UNCONFINED)
    namespace = f"/proc/{pid_of(container)}/ns/mnt"
    crash_on_host(
        f"join={namespace}",
        "execute=/usr/bin/crasher",
        "touch=/out/joined",
        "wait=/out/alone",
        directory=tmp_path,
        then=lambda: alone(container),
    )
    assert_withheld(container, refusal)


def alone(container: Container) -> None:
    """Lets the container hide when somebody has joined its mounts, and then lets that one crash."""
    wait_until((container.records / "joined").exists, "the mounts were not joined")
    let_go(container)
    (container.records / "alone").touch()


@pytest.mark.parametrize("count", [3, 100])
def test_attack_20_an_image_of_so_many_layers_that_their_paths_are_relative(
    attack: MakeCrash, refusal: Refusal, count: int
) -> None:
    import_layers(count)
    container = start(attack, "root=/jail", image="layers")
    let_go(container)
    crash_as_agent(attack, container, "UpperDir", "fork=1")
    assert_withheld(container, refusal)


def import_layers(count: int) -> None:
    """Makes the image ``layers`` of that many layers."""
    programs = {"usr/bin/crasher": lab.PROGRAMS / "crasher", "opt/bin/delegate": lab.PROGRAMS / "delegate"}
    layers = [lab.root_archive(programs), *(archive_of({f"layer-{number}": b""}) for number in range(count))]
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    roots = {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": roots}).encode()
    files = {f"{digest}.tar": layer for digest, layer in zip(digests, layers, strict=True)}
    manifest = [{"Config": "config.json", "RepoTags": ["core-lab/layers:latest"], "Layers": list(files)}]
    image = archive_of({"config.json": config, **files, "manifest.json": json.dumps(manifest).encode()})
    lab.command("docker", "load", input=image, stdout=subprocess.DEVNULL)


def archive_of(files: dict[str, bytes]) -> bytes:
    """A tar archive of files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as target:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def test_attack_20_root_of_the_host_with_mounts_of_its_own_in_what_was_changed_in_a_container(
    attack: MakeCrash, refusal: Refusal, tmp_path: Path
) -> None:
    container = start(attack)
    crash_on_host(
        "own-mounts", f"root={files_of(container, 'UpperDir')}", "execute=/usr/bin/crasher", directory=tmp_path
    )
    assert_withheld(container, refusal)


@pytest.mark.parametrize("sandbox", [("sandbox=user", "sandbox=mounts"), ("sandbox=mounts",)], ids=["user", "mounts"])
def test_attack_20_an_agent_with_mounts_of_its_own_in_what_was_changed_in_a_container(
    attack: MakeCrash, refusal: Refusal, sandbox: tuple[str, ...]
) -> None:
    container = start(attack)
    files = Path(files_of(container, "UpperDir"))
    options = UNCONFINED if "sandbox=user" in sandbox else (*ADMINISTRATOR, *UNCONFINED)
    root = f"root=/host/{files.parent.name}/{files.name}"
    volume = f"--volume={files.parent.parent}:/host"
    attack("fork=1", *sandbox, root, "execute=/usr/bin/crasher", options=(*options, volume, f"--env={IN_ROOT}"))
    assert_withheld(container, refusal)


def test_attack_20_a_container_in_the_mounts_of_one_that_it_contains(attack: MakeCrash, refusal: Refusal) -> None:
    inner = start(attack)
    actions = ("fork=1", "wait=/out/go", f"join=/host/{pid_of(inner)}/ns/mnt", "execute=/usr/bin/crasher")
    outer = attack(*actions, options=(*AGENT, "--detach"))
    with moved_below(pid_of(inner), pid_of(outer), "docker/" + "ab" * 32):
        (outer.records / "go").touch()
        assert_withheld(inner, refusal)


def test_attack_20_a_process_of_the_host_that_has_kept_its_network(
    attack: MakeCrash, refusal: Refusal, tmp_path: Path
) -> None:
    container = start(attack)
    pid = pid_of(container)
    joins = (f"join=/proc/{pid}/ns/pid", "fork=1", f"join=/proc/{pid}/ns/mnt")
    crash_on_host(*joins, f"bound={DEFAULT_CAPABILITIES}", "tiny", directory=tmp_path, group_of=pid)
    assert_withheld(container, refusal)


# 20: whoever has the cores of others refused, or their helper look for ever.


def test_attack_20_a_container_has_the_helper_of_another_one_open_what_does_not_answer(attack: MakeCrash) -> None:
    options = ("--device=/dev/fuse", *ADMINISTRATOR, "--detach")
    container = attack("leave=600", "overlay-of-host", "wait=/never", options=options)
    (container.records / "pid").write_text(str(pid_of(container)))
    wait_until((container.records / "ready").exists, "the overlay is not there", 15)
    crasher = attack("tiny", options=("--pid=host", "--detach"))
    assert ": delivered " in crasher.log(": delivered ")
    assert crasher.delegate


def test_attack_20_many_mounts_and_many_processes_do_not_cost_others_their_cores(attack: MakeCrash, jail: Path) -> None:
    container = attack("sandbox=user", "jail-mounts=700", options=(*UNCONFINED, "--detach"))
    wait_until((container.records / "ready").exists, "the mounts are not there", 60)
    assert attack("tiny", options=("--pid=host",)).delegate
    assert_delivered_from(jail)


@contextmanager
def claimed(action: str) -> Iterator[None]:
    """Has a user of the host claim files of others, by mounts that any user can make."""
    words = [PROGRAM, "sandbox=user", "sandbox=pid", action, "wait=/never"]
    user = subprocess.Popen(
        words, env={}, user=1000, group=1000, extra_groups=[], start_new_session=True, stdout=subprocess.PIPE
    )
    try:
        assert user.stdout is not None and user.stdout.readline() == b"claimed\n"
        yield
    finally:
        os.killpg(user.pid, signal.SIGKILL)
        user.wait()


def test_attack_20_a_user_of_the_host_claims_the_files_of_a_container(attack: MakeCrash) -> None:
    container = attack("wait=/out/go", "tiny", options=("--pid=host", "--detach"))
    with claimed(f"claim={files_of(container)}"):
        (container.records / "go").touch()
        assert ": delivered " in container.log(": delivered ")


def test_attack_20_a_user_of_the_host_claims_a_directory_of_the_host(jail: Path) -> None:
    with claimed(f"bind-root={jail.parent}"):
        assert_delivered_from(jail)
