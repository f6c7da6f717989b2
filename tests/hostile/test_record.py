"""What the engine has written about a container goes to the delegates of that container, and to nobody else's."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile.observe import pid_of, wait_until
from support import lab
from support.containers import Container, MakeCrash, wait_for_log
from support.crashes import Crash

NAMES = ("CORE_CONTAINER_NAME", "CORE_IMAGE")


def told(crash: Crash) -> tuple[str, ...]:
    """Name and image, as the delegate of a crash was told them."""
    environment = crash.delegate.environment
    return tuple(environment[name] for name in NAMES)


@pytest.mark.parametrize(
    "options",
    [(), ("--pid=host",), ("--network", "host", "--ipc=host", "--uts=host"), ("--user=1000",), ("--init",)],
    ids=lambda options: " ".join(options) or "plain",
)
def test_the_delegate_is_told_the_name_and_the_image_of_its_container(
    attack: MakeCrash, options: tuple[str, ...]
) -> None:
    container = attack("fork=1", options=options)
    assert told(container) == (container.name, container.image)
    assert f' name="{container.name}" ' in container.log(": delivered ")


def test_a_process_that_was_started_later_or_in_a_sandbox_is_told_the_same(attack: MakeCrash) -> None:
    container = attack("wait=/out/go", options=("--detach",))
    lab.command("docker", "exec", container.name, "crasher", "fork=1", check=False)
    assert told(container) == (container.name, container.image)
    sandboxed = attack("sandbox=pid", "fork=1", options=("--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined"))
    assert told(sandboxed) == (sandboxed.name, sandboxed.image)


def test_two_containers_that_share_all_they_can_are_told_apart(attack: MakeCrash) -> None:
    first = attack("wait=/out/go", options=("--detach", "--ipc=shareable"))
    shared = [f"--{kind}=container:{first.name}" for kind in ("pid", "ipc")]
    second = attack("fork=1", options=tuple(shared))
    assert told(second) == (second.name, second.image)


def test_every_core_has_a_name_of_its_own(attack: MakeCrash) -> None:
    container = attack("fork=20")
    keys = [delegate.environment["CORE_KEY"] for delegate in container.of("delegate")]
    assert len(keys) == len(set(keys)) == 20
    assert all(key.startswith(f"{platform.node()}.{container.name}.crasher.crasher.") for key in keys)


def test_a_thread_that_has_a_name_hides_the_program_from_nobody(attack: MakeCrash) -> None:
    container = attack("thread-name")
    key = container.delegate.environment["CORE_KEY"]
    assert key.startswith(f"{platform.node()}.{container.name}.crasher.a_b____P__.")


POD = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
GROUPS_OF_POD = ("lab-kubepods", f"lab-kubepods/pod{POD}")
ANNOTATIONS = {
    "container-name": "web",
    "image-name": "shop:1.0",
    "sandbox-name": "web-0",
    "sandbox-namespace": "prod",
    "sandbox-uid": POD,
}


@pytest.fixture
def containerd() -> Iterator[list[str | Path]]:
    """The client of the engine's containerd; the control groups of the pod are removed after the test."""
    sockets = [lab.DIRECTORY / "exec/containerd/containerd.sock", Path("/run/containerd/containerd.sock")]
    found = [socket for socket in sockets if socket.exists()]
    if not found or shutil.which("ctr") is None:
        pytest.skip("this machine has no ctr, or the engine has no containerd of its own")
    yield ["ctr", "--address", found[0], "--namespace", "lab-k8s.io"]
    hierarchies = Path("/sys/fs/cgroup")
    for directory in (hierarchies, *hierarchies.iterdir()):
        for group in reversed(GROUPS_OF_POD):
            if (directory / group).is_dir():
                (directory / group).rmdir()


def test_the_delegate_is_told_the_pod_of_its_container(jail: Path, records: Path, containerd: list[str | Path]) -> None:
    name = uuid.uuid4().hex * 2
    words = [f"--annotation=io.kubernetes.cri.{key}={text}" for key, text in ANNOTATIONS.items()]
    mount = f"--mount=type=bind,src={records},dst=/out,options=rbind:rw"
    run: list[str | Path] = [
        "run",
        "--rm",
        "--rootfs",
        f"--cgroup=/{GROUPS_OF_POD[-1]}/{name}",
        mount,
        *words,
        jail,
        name,
        "/usr/bin/crasher",
    ]
    lab.command(*containerd, *run, "fork=1", check=False)
    told = Crash(records, 0, "").delegate.environment
    facts = [told[f"CORE_{key}"] for key in ("CONTAINER_NAME", "IMAGE", "POD_NAME", "POD_NAMESPACE", "POD_UID")]
    assert facts == list(ANNOTATIONS.values())
    assert told["CORE_KEY"].startswith(f"{platform.node()}.web-0.crasher.crasher.")
    assert ' name="web" pod="prod/web-0" ' in wait_for_log(name[:12], ": delivered ")


@pytest.fixture
def bundle(jail: Path, records: Path) -> Iterator[tuple[Path, str]]:
    """An OCI bundle for runc, and the id that its container is to have; the container is removed after the test."""
    if shutil.which("runc") is None:
        pytest.skip("this machine has no runc")
    name = uuid.uuid4().hex * 2
    lab.command("runc", "spec", "--bundle", jail.parent)
    file = jail.parent / "config.json"
    config = json.loads(file.read_text())
    config["process"].update(terminal=False, args=["/usr/bin/crasher", "fork=1"])
    config["root"] = {"path": jail.name}
    mount = {"destination": "/out", "source": str(records), "type": "bind", "options": ["rbind", "rw"]}
    config["mounts"].append(mount)
    config["annotations"] = {"io.kubernetes.cri.container-name": "web", "io.kubernetes.cri.image-name": "shop:1.0"}
    file.write_text(json.dumps(config))
    yield jail.parent, name
    lab.command("runc", "delete", "--force", name, check=False)


def test_a_container_of_runc_without_an_engine_has_the_facts_of_its_bundle(
    records: Path, bundle: tuple[Path, str]
) -> None:
    directory, name = bundle
    lab.command("runc", "run", "--bundle", directory, name, check=False)
    environment = Crash(records, 0, "").delegate.environment
    facts = [environment[f"CORE_{key}"] for key in ("CONTAINER_ID", "CONTAINER_NAME", "IMAGE")]
    assert facts == [name, "web", "shop:1.0"]
    assert ' name="web" ' in wait_for_log(name[:12], ": delivered ")


# Whoever has started the program of the user works where the monitor of the container does.
USER_OF_THE_HOST = """
echo $$ > {group}/start/cgroup.procs
cd {bundle} || exit
setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs sh -c '
mkdir {group}/{name}
echo $$ > {group}/{name}/cgroup.procs
exec {crasher} {actions} tiny'
"""


@pytest.mark.usefixtures("delegate_of_the_host")
@pytest.mark.parametrize("actions", ["sleep=0", "sandbox=user sandbox=pid fork=1"])
def test_attack_15_a_user_of_the_host_claims_the_record_of_a_container(
    attack: MakeCrash, group_of_user: Path, records: Path, actions: str
) -> None:
    other = attack("wait=/out/go", options=("--detach",))
    words = {"group": group_of_user, "name": other.identifier, "bundle": bundle_of(other), "actions": actions}
    script = USER_OF_THE_HOST.format(crasher=f"{lab.PROGRAMS}/crasher", **words)
    subprocess.run(["sh", "-c", script], env={**os.environ, "RECORD_DIRECTORY": str(records)}, check=False)
    wait_until(lambda: Crash(records, 0, "").of("delegate"), "the crash of the user was not handled")
    claimed = Crash(records, 0, "").delegate.environment
    assert claimed["CORE_CONTAINER_ID"] == other.identifier, "nothing was claimed: nothing was shown"
    assert [claimed[name] for name in NAMES] == ["", ""]
    assert other.name not in claimed["CORE_KEY"]


def bundle_of(container: Container) -> str:
    """Where the engine keeps the OCI bundle of a container, as its monitor shows it."""
    status = Path(f"/proc/{pid_of(container)}/status").read_text()
    monitor = status.partition("\nPPid:\t")[2].partition("\n")[0]
    return os.readlink(f"/proc/{monitor}/cwd")


# Variables of the engine's record.

ASKED = ("--env=CORE_DESTINATION=s3://shop/", "--env=SECRET=not-named")


def test_a_process_that_has_overwritten_its_environment_has_the_destination_of_its_container(attack: MakeCrash) -> None:
    container = attack("title", "fork=1", options=ASKED)
    environment = container.delegate.environment
    assert environment["CORE_DESTINATION"] == "s3://shop/" and "SECRET" not in environment
    assert "; CORE_DESTINATION is the engine's: the process lacks it" in container.log(": delivered ")


def test_a_destination_that_the_process_has_chosen_itself_stays(attack: MakeCrash) -> None:
    container = attack("wait=/out/go", options=(*ASKED, "--detach"))
    own = ("docker", "exec", "--env=CORE_DESTINATION=s3://other/", container.name, "crasher", "fork=1")
    lab.command(*own, check=False)
    assert container.delegate.environment["CORE_DESTINATION"] == "s3://other/"
    assert "the engine's" not in container.log(": delivered ")


@pytest.mark.parametrize(
    ("sandbox", "options"),
    [
        ("sandbox=pid", ("--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined")),
        ("own-network", ("--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined")),
        ("sandbox=user", ("--security-opt=seccomp=unconfined",)),
        ("seccomp=filter", ("--security-opt=seccomp=unconfined",)),
    ],
)
def test_a_sandbox_in_the_container_gets_no_variable_of_the_engine(
    attack: MakeCrash, sandbox: str, options: tuple[str, ...]
) -> None:
    # Its first process is another one: what that one does, the container does.
    container = attack("wait=/out/go", options=(*ASKED, *options, "--detach"))
    lab.command("docker", "exec", container.name, "crasher", "title", sandbox, "fork=1", check=False)
    assert "CORE_DESTINATION" not in container.delegate.environment
    assert "the engine's" not in container.log(": delivered ")
