"""diagnosis: what the log says where the process is not there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from core_helper import diagnosis, linux
from core_helper.crash import Crash


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PATTERN", "LIMIT"):
        monkeypatch.setattr(diagnosis, name, str(tmp_path / name))
    (tmp_path / "PATTERN").write_text("|/opt/bin/docker_core_helper -F%F -I%I -d%d %P %u %g\n")
    (tmp_path / "LIMIT").write_text("64\n")
    return tmp_path


def test_a_kernel_that_does_not_wait_is_named_with_the_remedy(kernel: Path) -> None:
    (kernel / "LIMIT").write_text("0\n")
    assert diagnosis.of_missing(Crash(4711, 0, 0)) == diagnosis.NO_LIMIT


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("|/h %p %u %g", "%P in place of %p"),
        ("|/h -F%F -I%I %p %u %g", "%P in place of %p"),
        ("|/h -I%i %P %u %g", "-I%I in place of -I%i"),
        ("|/h %P %u %g /d %p", "killed or frozen"),
    ],
)
def test_the_pid_of_the_container_is_told_from_that_of_the_host(kernel: Path, pattern: str, told: str) -> None:
    (kernel / "PATTERN").write_text(pattern)
    (kernel / "LIMIT").write_text("0\n" if "%P in" in told else "64\n")
    assert told in diagnosis.of_missing(Crash(4711, 0, 0))


def test_the_pidfd_of_the_kernel_tells_it_too(kernel: Path) -> None:
    crash = Crash(os.getpid(), 0, 0)
    crash.pidfd = linux.pidfd_open(os.getpid())
    assert "killed or frozen" in diagnosis.of_missing(crash)
    crash.pid = 1
    assert "%P in place of %p" in diagnosis.of_missing(crash)
    os.close(crash.pidfd)


def test_a_pidfd_of_a_process_that_is_gone_tells_nothing(kernel: Path) -> None:
    gone = subprocess.Popen(["/bin/true"])
    crash = Crash(gone.pid + 1, 0, 0)
    crash.pidfd = linux.pidfd_open(gone.pid)
    gone.wait()
    assert "killed or frozen" in diagnosis.of_missing(crash)
    os.close(crash.pidfd)


def test_what_cannot_be_read_is_no_reason_to_fail(kernel: Path) -> None:
    for name in ("PATTERN", "LIMIT"):
        (kernel / name).unlink()
    assert "killed or frozen" in diagnosis.of_missing(Crash(4711, 0, 0))
