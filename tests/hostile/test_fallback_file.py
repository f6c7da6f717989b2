"""The fallback file: what is in its place or in its way, how large it is, and how many there may be."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.options import FALLBACK
from support import lab
from support.containers import Container, MakeCrash
from support.records import is_whole


def protections() -> str:
    """What the kernel itself forbids in sticky directories; proc_sys_fs(5). The helper does not count on it."""
    return " ".join(f"{file.name}={file.read_text().strip()}" for file in Path("/proc/sys/fs").glob("protected_*"))


@pytest.mark.parametrize("name", ["", ".truncated"])
@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "directory", "foreign"])
def test_attack_18_something_is_where_the_core_file_would_be(
    attack: MakeCrash, capsys: pytest.CaptureFixture[str], kind: str, name: str
) -> None:
    options = (FALLBACK, "--tmpfs=/tmp:mode=1777", "--detach")
    user = ["user"] if kind == "foreign" else []
    container = attack("delegate=none", f"plant={kind}{name}", "keep=20", *user, options=options)
    assert "File exists" in container.log("core dropped")
    # Nothing was written: neither into what was planted nor where it leads.
    found = lab.output("docker", "exec", container.name, "find", "/tmp", "-type", "f", "-size", "+0")
    assert found == ""
    with capsys.disabled():
        print(f"\n{protections()}")


def test_attack_18_a_full_disk(attack: MakeCrash) -> None:
    container = attack("delegate=none", "memory=4", options=(FALLBACK, "--tmpfs=/tmp:size=64k"))
    line = container.log("not delivered")
    assert re.search(r"not delivered: .*No space left on device after \d+ bytes", line)
    assert "truncated" in line


def test_attack_18_a_read_only_root(attack: MakeCrash) -> None:
    empty = f"--volume={lab.PROGRAMS}:/opt/bin:ro"
    container = attack("record", options=(FALLBACK, "--read-only", empty, "--env=ATTACK=fails"))
    assert "ended with exit code 7" in container.log("not delivered")
    bare = Container("bare", ("crash",), (FALLBACK, "--read-only"))
    try:
        assert "Read-only file system" in bare.log("core dropped")
    finally:
        bare.remove()


def test_attack_18_the_temporary_directory_of_another_user(attack: MakeCrash, tmp_path: Path) -> None:
    directory = tmp_path / "tmp"
    directory.mkdir()
    os.chown(directory, 1001, 1001)
    directory.chmod(0o755)
    container = attack("delegate=none", "user", options=(FALLBACK, f"--volume={directory}:/tmp"))
    assert "Permission denied" in container.log("core dropped")
    assert list(directory.iterdir()) == []


def test_core_files_do_not_fill_the_disk(
    attack: MakeCrash, configured: Callable[[str], None], tmp_path: Path, fallback: tuple[str, ...]
) -> None:
    configured("DOCKERCOREHELPER_FALLBACK_MAX=2/1G\n")
    for _ in range(2):
        assert ": delivered " in attack("delegate=none", "memory=4", options=fallback).log("delivered")
    told = attack("delegate=none", "memory=4", options=fallback).log("core dropped")
    assert (
        "2 core files of user 0 take" in told and "DOCKERCOREHELPER_FALLBACK_MAX is 2/1073741824: remove them" in told
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_a_core_file_has_holes(attack: MakeCrash, tmp_path: Path, fallback: tuple[str, ...]) -> None:
    attack("delegate=none", "memory=4", "untouched=512", options=fallback).log("delivered")
    (core,) = tmp_path.glob("core.*")
    found = core.stat()
    assert found.st_size > 512 << 20 and found.st_blocks * 512 < 32 << 20
    assert is_whole(core.read_bytes())
