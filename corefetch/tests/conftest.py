"""The fixtures: a desk, an S3 server, and cores, each built once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import cores, servers
from support.command import Desk

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
