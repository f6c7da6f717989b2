"""Fixtures of the helper's tests."""

from __future__ import annotations

import posix
import subprocess
from typing import TYPE_CHECKING

import pytest
from core_helper import family, joining, store
from unit.helper.world import DOCKER, FEW, FILES, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A made-up host with files of its own."""
    world = World(tmp_path, monkeypatch)
    yield world
    world.close()


@pytest.fixture(autouse=True)
def short_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the cores of tests have short names."""
    monkeypatch.setattr(store, "is_key", bool)


@pytest.fixture
def without_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the steps that need root, do not wait long for what does not end, and let nobody signal everybody."""
    monkeypatch.setattr(joining, "enter", lambda plan, status: None)
    monkeypatch.setattr(family, "GRACE", 0.3)
    for name in ("kill", "killpg"):
        monkeypatch.setattr(posix, name, _bounded(getattr(posix, name)))


def _bounded(kill: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Return ``kill`` for a single process only: killpg(1) is kill(-1), which as root ends every process of the machine."""

    def bounded(pid: int, number: int) -> None:
        assert pid > 1, f"a signal to {pid}"
        kill(pid, number)

    return bounded


@pytest.fixture
def box(world: World) -> dict[str, Path]:
    """A container of the processes 10, the first one, and 11."""
    box = world.container()
    for pid, pids in ((10, "1"), (11, "2")):
        world.process(pid, pids, DOCKER, FILES, 200 + pid, 9 if pid == 10 else 10, bounding=FEW, **box)
    return box


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is no child of the helper's."""
    process = subprocess.Popen(["/bin/sleep", "30"], start_new_session=True)
    yield process
    process.kill()
    process.wait()
