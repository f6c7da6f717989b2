"""Whoever has made a container's files its root directory has no delegate there: merged, changed, or in a layer."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.groups import move_into
from hostile.intruders import NOT_FOR, OF_THE_HOST, PROGRAM, Refusal, assert_withheld, crash_on_host, let_go, start
from hostile.observe import files_of
from hostile.options import ADMINISTRATOR, IN_ROOT, UNCONFINED
from support import lab
from support.containers import Container, MakeCrash


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


@pytest.fixture
def service(into: Callable[[int, str], None]) -> Iterator[str]:
    """The name of a control group of a service of the host, with one process in it."""
    name = "lab.service"
    elder = subprocess.Popen(["sleep", "100"])
    into(elder.pid, name)
    yield name
    elder.kill()
    elder.wait()


def test_attack_20_a_service_of_the_host_with_mounts_of_its_own_in_what_was_changed_in_a_container(
    attack: MakeCrash, refusal: Refusal, service: str, tmp_path: Path
) -> None:
    container = start(attack)
    go = tmp_path / "go"
    words = [f"wait={go}", "own-mounts", f"root={files_of(container, 'UpperDir')}", "execute=/usr/bin/crasher"]
    crash = subprocess.Popen([PROGRAM, *words], env=OF_THE_HOST)
    move_into(crash.pid, service)
    go.touch()
    crash.wait()
    assert_withheld(container, refusal)


def test_attack_20_an_agent_covers_its_root_directory_with_the_files_of_a_container(
    attack: MakeCrash, refusal: Refusal
) -> None:
    container = start(attack)
    files = Path(files_of(container))
    volume = f"--volume={files.parent.parent}:/host"
    options = (*ADMINISTRATOR, *UNCONFINED, volume, f"--env={IN_ROOT}")
    attack("fork=1", f"cover=/host/{files.parent.name}/{files.name}", "execute=/usr/bin/crasher", options=options)
    assert_withheld(container, refusal)


def test_attack_20_a_layer_of_an_image(attack: MakeCrash, refusal: Refusal, tmp_path: Path) -> None:
    layer = files_of(start(attack), "LowerDir").split(":")[-1]
    crash_on_host(f"root={layer}", "execute=/usr/bin/crasher", directory=tmp_path)
    assert "core not delivered, 0 bytes" in refusal(NOT_FOR)
    assert not list(Path(layer).glob("delegate.*")), "the delegate was started"


def crash_as_agent(attack: MakeCrash, container: Container, kind: str, *before: str) -> None:
    """Has an agent with no more than Docker's capabilities change its root directory to the files of a container, and crash."""
    files = Path(files_of(container, kind))
    volume = f"--volume={files.parent.parent}:/host"
    attack(*before, f"root=/host/{files.parent.name}/{files.name}", options=(volume, f"--env={IN_ROOT}"))


@pytest.mark.parametrize("kind", ["MergedDir", "UpperDir"])
def test_attack_20_the_first_process_of_an_agent_changes_its_root_directory(
    attack: MakeCrash, refusal: Refusal, kind: str
) -> None:
    container = start(attack)
    crash_as_agent(attack, container, kind)
    assert_withheld(container, refusal)


# What a container does to be no one's container: its leading thread ends, its root directory is another one.
HIDES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "has no leading thread": (("second",), ()),
    "has changed its root directory": (("root=/jail",), ()),
    "has moved its root directory": (("sandbox=root",), (*ADMINISTRATOR, *UNCONFINED)),
}


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
