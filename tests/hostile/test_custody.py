"""The host keeps a core: whatever no destination has taken, and nothing else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hostile.observe import wait_until
from support.containers import MakeCrash
from support.records import is_whole

CONFIGURATION = Path("/etc/docker_core_helper.conf")
Keep = Callable[..., Path]


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    """Configures what is kept, and returns the directory: ``keep("undelivered", max="10G")``."""
    before = CONFIGURATION.read_text()
    store = tmp_path / "cores"

    def configure(which: str, **bounds: str) -> Path:
        lines = {"KEEP": which, "KEEP_DIRECTORY": str(store), "KEEP_FREE": "1"}
        lines.update({f"KEEP_{name.upper()}": value for name, value in bounds.items()})
        CONFIGURATION.write_text(before + "".join(f"DOCKERCOREHELPER_{key}={value}\n" for key, value in lines.items()))
        return store

    yield configure
    CONFIGURATION.write_text(before)


def kept_in(store: Path) -> list[tuple[dict[str, object], Path]]:
    """Return what the store lists, when the helper has finished with each."""
    found = []
    for file in store.glob("*/*.json"):
        wait_until(partial(is_finished, file), "no checksum")
        known = json.loads(file.read_text())
        found.append((known, file.parent / known["file"]))
    return found


def is_finished(file: Path) -> bool:
    return "sha256" in json.loads(file.read_text())


def content_of(core: Path) -> bytes:
    if core.suffix == ".zst":
        return subprocess.run(["zstd", "-d", "-c", core], check=True, stdout=subprocess.PIPE).stdout
    return core.read_bytes()


def test_what_the_delegate_takes_does_not_stay(attack: MakeCrash, keep: Keep) -> None:
    store = keep("undelivered")
    container = attack("memory=4")
    assert ": delivered " in container.log("delivered")
    assert is_whole(container.delegate.core.read_bytes())
    assert [path for path in store.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("does", ["dies", "gives-up"])
def test_what_the_delegate_loses_stays(attack: MakeCrash, keep: Keep, does: str) -> None:
    store = keep("undelivered")
    container = attack("memory=4", options=(f"--env=ATTACK={does}",))
    line = container.log("kept on this host")
    ((known, core),) = kept_in(store)
    assert f"cores get {known['key']} FILE" in line
    assert is_whole(content_of(core))


def test_no_delegate(attack: MakeCrash, keep: Keep) -> None:
    store = keep("undelivered")
    container = attack("delegate=none", "memory=4")
    assert "kept on this host" in container.log("kept on this host")
    ((_known, core),) = kept_in(store)
    assert is_whole(content_of(core))
