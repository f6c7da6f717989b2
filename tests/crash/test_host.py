"""Crashes of processes of the host, outside of containers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import lab
from support.containers import wait_for_log
from support.hosts import delegate_on_host, records_of_host
from support.records import CAPABILITY_SETS, NAMESPACES, Record, is_whole

USER = ("setpriv", "--reuid=1000", "--regid=1001", "--groups=2000,3000", "--inh-caps=-all")


@pytest.fixture
def delegate() -> Iterator[None]:
    """Puts the probe where the configuration says, on the host itself."""
    with delegate_on_host("probe"):
        yield


@pytest.fixture
def records() -> Iterator[Path]:
    """A directory for records in which every user may write."""
    with records_of_host() as directory:
        yield directory


def crash(records: Path, *before: str, **variables: str) -> int:
    """Crashes a process, with other words before the program, and returns its process id."""
    environment = {"RECORD_DIRECTORY": str(records), **variables}
    process = subprocess.Popen([*before, lab.PROGRAMS / "crash"], env={"PATH": os.environ["PATH"], **environment})
    assert process.wait(timeout=60) == -11
    return process.pid


@pytest.mark.usefixtures("delegate")
@pytest.mark.parametrize("words", [(), USER], ids=["root", "user"])
def test_the_delegate_on_the_host_gets_the_core_and_the_identity_of_the_process(
    records: Path, words: tuple[str, ...]
) -> None:
    pid = crash(records, *words)
    process, delegate = Record(records / f"process.{pid}"), Record(records / f"delegate.{pid}")
    assert is_whole(delegate.core.read_bytes())
    for name in ("Uid", "Gid", "Groups"):
        assert delegate.status[name].split() == process.status[name].split()
    for name in CAPABILITY_SETS:
        assert delegate.capabilities(name) & ~process.capabilities(name) == 0
    for namespace in NAMESPACES:
        assert delegate.links[f"ns/{namespace}"] == process.links[f"ns/{namespace}"]
    assert delegate.text("cgroup") == process.text("cgroup")
    assert delegate.facts["descriptors"].split() == ["0", "1", "2"]
    assert delegate.environment.get("CORE_CONTAINER_ID", "") == ""


def test_the_fallback_on_the_host_is_a_private_file_of_the_process(records: Path) -> None:
    pid = crash(records, *USER, DOCKERCOREHELPER_FALLBACK_CORE="1")
    core = Path(f"/tmp/core.{pid}.1000.1001")
    try:
        facts = core.lstat()
        assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o7777) == (1000, 1001, 0o600)
        assert is_whole(core.read_bytes())
    finally:
        core.unlink()


def test_nothing_is_written_where_the_host_has_no_delegate(records: Path) -> None:
    pid = crash(records)
    assert "/opt/bin/delegate" in wait_for_log(str(pid), "/opt/bin/delegate")
    assert list(Path("/tmp").glob(f"core.{pid}.*")) == []
