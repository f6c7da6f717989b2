"""An image that cannot be changed, FROM scratch: its core reaches the bucket through a program that the host lends."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import lab
from support.containers import MakeCrash
from support.records import is_whole
from support.tables import Row

BUCKET = "cores"
CONFIGURATION = Path("/etc/docker_core_helper.conf")
CHAPTER = (lab.PROJECT / "docs/images.md").read_text().partition("## Images that cannot be changed")[2]
# As a distroless image is used.
HARDENED = ("--user=65534:65534", "--cap-drop=ALL", "--read-only", "--security-opt=no-new-privileges")


@pytest.fixture
def lent() -> Iterator[Path]:
    """The program of the page, lent with the words of the page; only its directory is another one."""
    (text,) = re.findall(r"^```yaml\n(docker_core_helper_lend:.*?)^```", CHAPTER, re.M | re.S)
    words = yaml.safe_load(text)["docker_core_helper_lend"]
    program = Path(shutil.copy(Path(sys.executable).parent / "rclone", lab.DIRECTORY / "rclone"))
    program.chmod(0o755)
    before = CONFIGURATION.read_text()
    quoted = " ".join(f"'{word}'" for word in [str(program), *words[1:]])
    CONFIGURATION.write_text(f'{before}DOCKERCOREHELPER_LEND="{quoted}"\n')
    yield program
    CONFIGURATION.write_text(before)
    program.unlink()


@pytest.fixture
def s3_server() -> Iterator[None]:
    lab.start_s3(BUCKET)
    yield
    lab.stop_s3()


def test_a_crash_in_an_image_from_scratch_reaches_the_bucket(
    crash: MakeCrash, lent: Path, s3_server: None, tmp_path: Path, row: Row
) -> None:
    shutil.copy(lab.PROGRAMS / "crash", tmp_path)
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY crash /usr/bin/crash\n")
    build = ("docker", "build", "--network=none", "--quiet", "--tag", "core-lab/scratch", "--file")
    lab.command(*build, tmp_path / "Containerfile", tmp_path, stdout=subprocess.DEVNULL)
    variables = {**lab.S3_ENVIRONMENT, "CORE_DESTINATION": f"s3://{BUCKET}/shop/"}
    options = (*lab.S3_OPTIONS, *HARDENED, *(f"--env={name}={value}" for name, value in variables.items()))
    container = crash("-m", "8", image="scratch", options=options)
    assert f"bytes to lent {lent} in" in container.log(": delivered "), container.log("pid=")
    (core,) = (line for line in lab.s3("lsf", BUCKET).decode().splitlines() if not line.endswith("/"))
    assert re.fullmatch(rf"shop/\S+\.{container.name}\.crash\.crash\.\d+\.\S+Z\.[0-9a-f]{{12}}\.core", core)
    stored = lab.s3("cat", f"{BUCKET}/{core}")
    assert is_whole(stored) and len(stored) > 8 << 20
    row("images", "FROM scratch, read-only, nobody", "rclone, lent by the host", "whole in the bucket, as .core")
    # Without a destination of its own, a container has nothing lent.
    other = crash(image="scratch")
    assert "the process has no CORE_DESTINATION that begins with s3://" in other.log("core dropped")
