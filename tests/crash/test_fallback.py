"""The core in /tmp where no delegate can be executed, if somebody asked for that."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support import lab
from support.containers import Container, MakeCrash
from support.records import is_whole

ASKED = ("--env=DOCKERCOREHELPER_FALLBACK_CORE=1",)


def files_in_tmp(container: Container) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    """What is in the container's own /tmp, with owners and modes."""
    archive = lab.command("docker", "cp", f"{container.name}:/tmp", "-", capture_output=True).stdout
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as image:
        for entry in image:
            content = image.extractfile(entry)
            if content:
                files[entry.name.removeprefix("tmp/")] = (entry, content.read())
    return files


@pytest.mark.parametrize(("user", "uid", "gid"), [("0:0", 0, 0), ("1000:1001", 1000, 1001)])
def test_the_core_is_a_private_file_of_the_process(crash: MakeCrash, user: str, uid: int, gid: int) -> None:
    ((name, (entry, core)),) = files_in_tmp(crash(image="bare", options=(*ASKED, f"--user={user}"))).items()
    assert re.fullmatch(rf"core\.[1-9][0-9]*\.{uid}\.{gid}", name)
    assert (entry.uid, entry.gid, entry.mode & 0o7777) == (uid, gid, 0o600)
    assert is_whole(core)


def test_the_core_is_written_while_pid_1_lives_on(crash: MakeCrash) -> None:
    container = crash("-c", "1", image="bare", options=ASKED)
    ((_, core),) = files_in_tmp(container).values()
    assert container.exit_status == 0
    assert is_whole(core)


def test_the_environment_of_the_helper_can_ask_for_it(crash: MakeCrash, core_pattern: Callable[[str], None]) -> None:
    core_pattern("|/usr/bin/env DOCKERCOREHELPER_FALLBACK_CORE=1 /opt/bin/docker_core_helper %P %u %g")
    ((_, core),) = files_in_tmp(crash(image="bare")).values()
    assert is_whole(core)


def test_nothing_is_written_where_the_delegate_did_its_work(crash: MakeCrash) -> None:
    container = crash(options=ASKED)
    assert is_whole(container.delegate.core.read_bytes())
    assert files_in_tmp(container) == {}


def test_a_read_only_container_without_a_delegate_only_leaves_a_line_in_the_log(crash: MakeCrash) -> None:
    container = crash(image="bare", options=(*ASKED, "--read-only"))
    assert "/tmp/core." in container.log("/tmp/core.")
    assert lab.output("docker", "diff", container.name) == ""


def test_the_fallback_may_write_only_where_the_process_may(crash: MakeCrash, tmp_path: Path) -> None:
    directory = tmp_path / "tmp"
    directory.mkdir(mode=0o755)
    container = crash(image="bare", options=(*ASKED, "--user=1000:1001", f"--volume={directory}:/tmp"))
    assert "Permission denied" in container.log("/tmp/core.")
    assert list(directory.iterdir()) == []
