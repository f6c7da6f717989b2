"""Fixtures for tests that crash processes on purpose, as root, after molecule has rolled the helper out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support import lab
from support.containers import Container, MakeCrash, crash_in
from support.tables import pytest_terminal_summary, row  # noqa: F401 (pytest finds them here)


@pytest.fixture(scope="module")
def crash() -> Iterator[MakeCrash]:
    """Runs the crashing program in a container: ``crash(*its_arguments, image=..., options=...)``."""
    containers: list[Container] = []
    yield crash_in(containers, "probe", "crash")
    for container in containers:
        container.remove()


@pytest.fixture
def core_pattern() -> Iterator[Callable[[str], None]]:
    """Sets another pattern for the time of one test."""
    pattern = lab.setting("kernel/core_pattern")
    before = pattern.read_text()

    def write(value: str) -> None:
        pattern.write_text(value)
        assert pattern.read_text().rstrip("\n") == value

    yield write
    pattern.write_text(before)


@pytest.fixture
def s3_server() -> Iterator[None]:
    """An S3 server with an empty bucket, reachable from one network namespace only: its own."""
    lab.start_s3()
    yield
    lab.stop_s3()
