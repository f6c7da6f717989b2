"""What the host's part of playbooks/collect.yml reads, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from support.project import load

MODULE = Path(__file__).resolve().parents[2] / "plugins/modules/core_helper_cores.py"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module; a part has at most 4,096 bytes."""
    pytest.importorskip("ansible.module_utils.basic")
    loaded = load(MODULE)
    monkeypatch.setattr(loaded, "PART", 4096)
    return loaded


def helper(directory: Path, script: str) -> str:
    """Put a helper into a directory, and return the directory."""
    path = directory / "docker_core_helper"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(directory)


@pytest.mark.parametrize("name", ["a.core", "a.core.zst"])
def test_the_parts_of_a_file_are_the_file(module: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(os.urandom(5000) + bytes(5000))
    parts = [module.read_part(str(path), offset, 4096) for offset in (0, 4096, 8192, 12288)]
    assert {part["size"] for part in parts} == {10000}
    data = [zlib.decompress(base64.b64decode(part["data"])) for part in parts]
    assert [len(part) for part in data] == [4096, 4096, 1808, 0]
    assert b"".join(data) == path.read_bytes()


def test_nobody_can_ask_for_more_than_a_part(module: Any, tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(bytes(9000))
    part = module.read_part(str(tmp_path / "core"), 0, 1 << 40)
    assert len(zlib.decompress(base64.b64decode(part["data"]))) == 4096


def test_the_checksum_is_that_of_the_file(module: Any, tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(bytes(3 << 20) + b"end")
    found = module.checksum_of(str(tmp_path / "core"))
    assert found == {"sha256": hashlib.sha256(bytes(3 << 20) + b"end").hexdigest()}


def test_what_is_no_file_is_not_read(module: Any, tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(b"core")
    (tmp_path / "link").symlink_to("core")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="link"):
        module.read_part(str(tmp_path / "link"), 0, 10)
    with pytest.raises(module.CoresError, match="pipe is no file"):
        module.checksum_of(str(tmp_path / "pipe"))
    with pytest.raises(module.CoresError, match=r"nowhere: no longer there: .*: run again"):
        module.read_part(str(tmp_path / "nowhere"), 0, 10)


def test_the_list_is_that_of_the_helper(module: Any, tmp_path: Path) -> None:
    bin_dir = helper(tmp_path, """[ "$*" = "cores list --json" ] && echo '[{"key": "a"}]'""")
    assert module.list_cores(bin_dir) == {"installed": True, "cores": [{"key": "a"}], "problem": ""}


def test_a_list_that_is_not_all_has_the_others_and_the_reason(module: Any, tmp_path: Path) -> None:
    found = module.list_cores(helper(tmp_path, """echo '[{"key": "a"}]'; echo b.json: damaged >&2; exit 1"""))
    assert found["cores"] == [{"key": "a"}]
    assert found["problem"].endswith("docker_core_helper cores list ended with exit code 1: b.json: damaged")


def test_a_host_without_helper_says_so(module: Any, tmp_path: Path) -> None:
    assert module.list_cores(str(tmp_path)) == {"installed": False, "cores": []}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo broken >&2; exit 3", "docker_core_helper cores list ended with exit code 3: broken"),
        ("exit 1", "ended with exit code 1: it said nothing"),
        ("echo nonsense", "says no JSON: install the helper again"),
    ],
)
def test_a_helper_that_does_not_answer_is_told(module: Any, tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(module.CoresError, match=message):
        module.list_cores(helper(tmp_path, script))


def test_a_helper_that_does_not_start_is_told(module: Any, tmp_path: Path) -> None:
    bin_dir = helper(tmp_path, "")
    (tmp_path / "docker_core_helper").write_text("#!/nowhere/python3\n")
    with pytest.raises(module.CoresError, match="docker_core_helper does not run: No such file or directory"):
        module.list_cores(bin_dir)
