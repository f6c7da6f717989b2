"""The fixtures: a desk, an S3 server, and cores, each built once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from support import cores, servers
from support.command import Desk
from support.cores import KEY, Shop, run
from support.servers import S3

# What stands in for docker: a directory is its only image. The real one is in `make demo`.
DOCKER = """#!/bin/sh
echo "$*" >>{log}
case $1 in
create) [ "$2" = --pull=never ] || {{ echo "it pulls" >&2; exit 125; }}
    [ "$7" = shop:1.0 ] || {{ echo "Error response from daemon: No such image: $7" >&2; exit 1; }}
    [ ! -e {log}.slow ] || sleep 30 ;;
cp) path=${{2#*:}}; cd {image}; [ -e ".$path" ] || [ -h ".$path" ] || exit 1; tar -c -C ".${{path%/*}}" "${{path##*/}}" ;;
rm) ;;
*) exit 1 ;;
esac
"""
# A caller may ignore this signal, as a job of a script does, and whatever a test starts would do so, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A user without any setting."""
    directory = tmp_path / "desk"
    directory.mkdir()
    return Desk(directory, {})


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> cores.Shop:
    """The program that crashes, and its cores. The program then goes away: it is in an image."""
    root = tmp_path_factory.mktemp("shop")
    place = root / "app"
    program, library = cores.build(place)
    core = cores.crash(program, root / "crashed.core")
    aborted = cores.crash(program, root / "aborted.core", "dies")
    image = root / "image"
    inside = image / place.relative_to("/")
    inside.parent.mkdir(parents=True)
    place.rename(inside)
    return cores.Shop(image, inside / program.name, inside / library.name, core, aborted)


@pytest.fixture
def bucket(tmp_path: Path, desk: Desk) -> Iterator[servers.S3]:
    """A bucket, to which the desk's settings lead."""
    with servers.s3(tmp_path) as found:
        desk.variables.update(found.variables, COREFETCH_FROM=f"s3://{servers.BUCKET}/shop")
        (found.directory / "shop").mkdir()
        yield found


@pytest.fixture
def place(bucket: S3, shop: Shop) -> Path:
    """The bucket's directory, with a core."""
    place = bucket.directory / "shop"
    (place / f"{KEY}.core.zst").write_bytes(zstandard.ZstdCompressor(level=1).compress(shop.core.read_bytes()))
    facts = {"CORE_NODE": "node-7", "CORE_POD_NAME": "shop-1", "CORE_IMAGE": "shop:1.0", "CORE_SIGNAL_NAME": "SIGSEGV"}
    (place / f"{KEY}.json").write_text(
        json.dumps({"sha256": None, "build_ids": None, "truncated": False, "facts": facts})
    )
    return place


@pytest.fixture
def stripped(shop: Shop, tmp_path: Path) -> tuple[Path, Path]:
    """The image's files without symbols, and the directory of those."""
    image, debug = tmp_path / "stripped", tmp_path / "debug"
    shutil.copytree(shop.root, image, symlinks=True)
    debug.mkdir()
    for path in (shop.program, shop.library):
        there = image / path.relative_to(shop.root)
        run("objcopy", "--only-keep-debug", there, debug / f"{path.name}.any-name")
        run("strip", there)
    return image, debug


@pytest.fixture
def docker(desk: Desk, tmp_path: Path) -> Path:
    """Put a docker before all others into PATH, whose image has the files of ``image`` beside it."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "docker"
    program.write_text(DOCKER.format(log=directory / "log", image=directory / "image"))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    desk.variables["PATH"] = f"{directory}:{os.environ['PATH']}"
    return directory
