"""Fixtures of the uploader's tests: images of one shell, directories, users, a server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.uploader.support import (
    CLIENTS,
    SHELLS,
    UPLOADER,
    USERS,
    Image,
    Server,
    as_user,
    installed,
    serving,
)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(shell: str, tmp_path: Path) -> Image:
    return Image(shell, tmp_path)


@pytest.fixture
def cores(tmp_path: Path) -> Path:
    directory = tmp_path / "cores"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def public_image(shell: str, public: Path) -> Image:
    image = Image(shell, public)
    image.script = Path(shutil.copy(UPLOADER, public))
    image.script.chmod(0o755)
    return image


@pytest.fixture
def public_cores(public: Path) -> Path:
    """What README says about a directory in which the processes of several users crash."""
    directory = public / "cores"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


@pytest.fixture
def users() -> list[int]:
    """Two users, neither of them root."""
    if os.getuid() != 0:
        pytest.skip("only root can run the script as two users: sudo .venv/bin/python -m pytest ...")
    try:
        subprocess.run(["true"], check=True, **as_user(USERS[0]))
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"this root cannot become user {USERS[0]}: {error}")
    return USERS


@pytest.fixture
def limited_user() -> int | None:
    """A user for whom RLIMIT_NPROC counts; for root it does not. Each worker has one of its own, with no other processes."""
    beside = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return max(USERS) + 1 + beside if os.getuid() == 0 else None


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def client(request: pytest.FixtureRequest, image: Image) -> str:
    path = installed(request.param)
    if path is None:
        pytest.skip(f"no {request.param}: {CLIENTS[request.param]}")
    image.link(request.param, path)
    image.link("zstd")
    return str(request.param)


@pytest.fixture
def dash(tmp_path: Path) -> Image:
    """For what takes its time, and does not differ with the shell."""
    return Image("dash", tmp_path)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    directory = tmp_path / "spool"
    directory.mkdir()
    return directory
