"""The image of a container: its files lead to the line, and an engine that fails or hangs is said."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from corefetch import engine
from corefetch.errors import Exit, Failure
from support.command import Desk, without_functions
from support.cores import LINE, PROGRAMS, Shop


def test_the_files_of_the_image_lead_to_the_line(desk: Desk, place: Path, shop: Shop, docker: Path) -> None:
    (docker / "image").symlink_to(shop.root)
    done = desk.good("info", "last")
    lines = done.out.splitlines()
    assert lines[0] == f"shop: SIGSEGV in total_of at {PROGRAMS / 'shop.c'}:{LINE}"
    assert "image      shop:1.0" in lines
    assert re.search(r"#1 +checkout \(order=0x[0-9a-f]+, dies=0\) at \S+shop\.c:\d+", done.out)
    assert re.search(r"3 threads: .*\n #0 .*pause", done.out)
    assert "wait_for_ever" in done.out
    assert "missing" not in done.out
    said = (docker / "log").read_text().splitlines()
    created = re.fullmatch(
        r"create --pull=never --name (corefetch-[0-9a-f]+) --network none shop:1\.0 corefetch", said[0]
    )
    assert created
    assert said[-1] == f"rm --force --volumes {created[1]}"
    # Only what is mapped, and not what this machine has.
    copied = {line.split(":")[-1].split()[0] for line in said if line.startswith("cp")}
    assert {Path(path).name for path in copied} == {"shop", "libtax.so.1"}


def test_links_of_an_image_are_followed(desk: Desk, place: Path, shop: Shop, docker: Path) -> None:
    image = docker / "image"
    shutil.copytree(shop.root, image)
    library = image / shop.library.relative_to(shop.root)
    library.rename(image / "tax")
    library.symlink_to("libtax.so")
    (library.parent / "libtax.so").symlink_to("/tax")
    files = desk.good("info", "last", "--json").json["files"]
    assert {one["state"] for one in files if one["path"].endswith("libtax.so.1")} == {"lines"}
    library.unlink()
    library.symlink_to(library.name)
    shutil.rmtree(desk.directory / ".cache/corefetch/build-id")
    files = desk.good("info", "last", "--json").json["files"]
    assert {one["state"] for one in files if one["path"].endswith("libtax.so.1")} == {"missing"}


def test_an_engine_that_ends_in_the_middle_is_said(desk: Desk, place: Path, shop: Shop, docker: Path) -> None:
    (docker / "image").symlink_to(shop.root)
    program = docker / "docker"
    program.write_text(program.read_text().replace('"${path##*/}" ;;', '"${path##*/}" | head -c 9000 ;;'))
    assert "docker cp ended in the middle" in without_functions(desk)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Cannot connect to the Docker daemon at unix:///x.sock. Is the docker daemon running?", "start the engine"),
        ("permission denied while trying to connect to the docker API at unix:///x.sock", "start the engine"),
        ("Error: unable to connect to Podman socket: connection refused", "start the engine"),
        (
            'Error response from daemon: Get "http://localhost:1/v2/": connect: connection refused',
            "{} pull shop:1.0 brings it",
        ),
        ("Error: shop:1.0: image not known", "{} pull shop:1.0 brings it"),
    ],
)
def test_an_engine_that_makes_no_container_is_said_with_the_remedy(tmp_path: Path, said: str, remedy: str) -> None:
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(Failure, match=f"image shop:1.0: .*{re.escape(said[-20:])}: {remedy.format(program)}"):
        engine.opened(str(program), "shop:1.0").__enter__()


@pytest.mark.parametrize(
    ("hangs", "told"),
    [
        ("create|rm", "image shop:1.0: {0} does not answer: see whether it works"),
        ("cp|rm", "/file of the image: {0} cp stopped: nothing came for 1 s: see whether the engine works"),
        ("rm", "image shop:1.0: {0} does not answer: {0} rm --force --volumes {1} removes container {1}, if it is"),
    ],
)
def test_an_engine_that_hangs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str, told: str) -> None:
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\ncase $1 in {hangs}) exec sleep 20 ;; esac\n")
    program.chmod(0o755)
    monkeypatch.setattr(engine, "LONGEST", 1)
    container = f"corefetch-{'0' * 16}"
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    began = time.monotonic()
    with (
        pytest.raises(Failure) as failure,
        engine.opened(str(program), "shop:1.0") as image,
        image.open("/file") as file,
    ):
        assert file is None
    assert str(failure.value).startswith(told.format(program, container))
    assert failure.value.code == Exit.UNREACHABLE
    assert time.monotonic() - began < 10


def test_an_engine_that_is_slow_may_copy_for_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * 20000)
    program = tmp_path / "docker"
    slow = "for n in 1 2 3 4; do head -c 10240; sleep 0.4; done"
    program.write_text(f"#!/bin/sh\n[ $1 != cp ] || tar -c -C {tmp_path} file | ({slow})\n")
    program.chmod(0o755)
    monkeypatch.setattr(engine, "LONGEST", 1)
    with engine.opened(str(program), "shop:1.0") as image, image.open("/file") as file:
        assert file is not None and file.read() == b"x" * 20000


def test_the_files_are_fetched_once(desk: Desk, place: Path, shop: Shop, docker: Path) -> None:
    (docker / "image").symlink_to(shop.root)
    desk.good("info", "last")
    (docker / "log").unlink()
    assert "total_of" in desk.good("info", "last").out
    assert not (docker / "log").exists()
    assert not list((desk.directory / ".cache/corefetch/roots").iterdir())


def test_what_is_stripped_in_the_cache_hides_no_other_copy(
    desk: Desk, place: Path, shop: Shop, stripped: tuple[Path, Path], docker: Path
) -> None:
    # strip(1) leaves the build id as it is.
    (docker / "image").symlink_to(stripped[0])
    assert "/app/shop is stripped" in desk.good("info", "last").out
    (docker / "log").unlink()
    assert "/app/shop is stripped" in desk.good("info", "last").out
    assert not (docker / "log").exists()
    assert "total_of" in desk.good("info", "last", "--sysroot", str(shop.root)).out
    (docker / "image").unlink()
    (docker / "image").symlink_to(shop.root)
    assert "total_of" in desk.good("info", "last", "--image", "shop:1.0").out
    assert "total_of" in desk.good("info", "last").out


def test_what_an_image_says_counts_for_its_own_cores_alone(
    desk: Desk, place: Path, shop: Shop, docker: Path, tmp_path: Path
) -> None:
    """Anybody can give a file the build id of another one."""
    forged = tmp_path / "forged"
    shutil.copytree(shop.root, forged, symlinks=True)
    there = forged / shop.program.relative_to(shop.root)
    there.write_bytes(there.read_bytes().replace(b"total_of\0", b"planted!\0"))
    program = docker / "docker"
    program.write_text(program.read_text().replace("shop:1.0", "forged:1.0"))
    (docker / "image").symlink_to(forged)
    assert "planted!" in desk.good("info", "last", "--image", "forged:1.0").out
    (docker / "image").unlink()
    (docker / "image").symlink_to(shop.root)
    program.write_text(program.read_text().replace("forged:1.0", "shop:1.0"))
    out = desk.good("info", "last").out
    assert "total_of" in out and "planted" not in out


def test_ctrl_c_leaves_no_container_and_no_directory(desk: Desk, place: Path, docker: Path) -> None:
    (docker / "log.slow").touch()
    process = subprocess.Popen(
        desk.words("info", "last"), cwd=desk.directory, env=desk.environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not (docker / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == Exit.INTERRUPTED
    assert said.startswith("corefetch: interrupted")
    created, removed = (docker / "log").read_text().splitlines()
    assert removed == f"rm --force --volumes {created.split()[3]}"
    assert not list((desk.directory / ".cache/corefetch/roots").iterdir())
