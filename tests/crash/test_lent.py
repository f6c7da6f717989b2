"""An image that cannot be changed, FROM scratch: its core reaches the bucket through a program that the host lends.

The role has told the host to lend it, with the words of docs/images.md.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import door, lab
from support.containers import MakeCrash
from support.records import is_whole
from support.tables import Row

CONFIGURATION = Path("/etc/docker_core_helper.conf")
PROGRAM = lab.DIRECTORY / "rclone"
CHAPTER = (lab.PROJECT / "docs/images.md").read_text().partition("## Images that cannot be changed")[2]
# As a distroless image is used.
HARDENED = ("--user=65534:65534", "--cap-drop=ALL", "--read-only", "--security-opt=no-new-privileges")


ROLE = "- {hosts: all, gather_facts: false, roles: [docker_core_helper]}\n"
# What the lab has told the role for all tests.
DELEGATE = ["/opt/bin/delegate", "%P", "%u", "%g"]


def words_of_the_page() -> list[str]:
    """The words, where only the directory of the program is another one."""
    (text,) = re.findall(r"^```yaml\n(docker_core_helper_lend:.*?)^```", CHAPTER, re.M | re.S)
    return [str(PROGRAM), *yaml.safe_load(text)["docker_core_helper_lend"][1:]]


def apply_role(lend: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs the role on this machine, as it was run for the lab but for what is lent."""
    (timeout,) = re.findall(r"^DOCKERCOREHELPER_TIMEOUT=(\d+)$", CONFIGURATION.read_text(), re.M)
    (python,) = re.findall(r"^#!(\S+)", Path("/opt/bin/docker_core_helper").read_text())
    known = {"delegate": DELEGATE, "timeout": int(timeout), "lend": lend}
    variables = {f"docker_core_helper_{name}": value for name, value in known.items()}
    (directory / "role.yml").write_text(ROLE)
    applied = subprocess.run(
        [
            *("ansible-playbook", "-i", "localhost,", "-c", "local", directory / "role.yml"),
            *("-e", json.dumps({**variables, "ansible_python_interpreter": python})),
        ],
        cwd=lab.PROJECT,
        env={**lab.environment(), "HOME": str(lab.DIRECTORY), "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    door.reopen()
    return applied


@pytest.fixture
def lent(tmp_path: Path) -> Iterator[Path]:
    """The program of the page, which the host lends for the time of the test."""
    before = CONFIGURATION.read_text()
    shutil.copy(Path(sys.executable).parent / "rclone", PROGRAM)
    PROGRAM.chmod(0o755)
    try:
        applied = apply_role(words_of_the_page(), tmp_path)
        # The configuration, and the pattern of the pipe where crashes come in at the socket.
        assert applied.returncode == 0 and f"changed={2 if door.BY_SOCKET else 1} " in applied.stdout, applied.stdout
        yield PROGRAM
        applied = apply_role([], tmp_path)
        assert applied.returncode == 0, applied.stdout
        assert CONFIGURATION.read_text() == before
    finally:
        CONFIGURATION.write_text(before)
        PROGRAM.unlink()


def test_a_crash_in_an_image_from_scratch_reaches_the_bucket(
    crash: MakeCrash, lent: Path, s3_server: None, tmp_path: Path, row: Row
) -> None:
    shutil.copy(lab.PROGRAMS / "crash", tmp_path)
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY crash /usr/bin/crash\n")
    build = ("docker", "build", "--network=none", "--quiet", "--tag", "core-lab/scratch", "--file")
    lab.command(*build, tmp_path / "Containerfile", tmp_path, stdout=subprocess.DEVNULL)
    variables = {**lab.S3_ENVIRONMENT, "CORE_DESTINATION": f"s3://{lab.BUCKET}/shop/"}
    options = (*lab.S3_OPTIONS, *HARDENED, *(f"--env={name}={value}" for name, value in variables.items()))
    container = crash("-m", "8", image="scratch", options=options)
    assert f"bytes to lent {lent} in" in container.log(": delivered "), container.log("pid=")
    (core,) = (line for line in lab.s3("lsf", lab.BUCKET).decode().splitlines() if not line.endswith("/"))
    assert re.fullmatch(rf"shop/\S+\.{container.name}\.crash\.crash\.\d+\.\S+Z\.[0-9a-f]{{12}}\.core", core)
    stored = lab.s3("cat", f"{lab.BUCKET}/{core}")
    assert is_whole(stored) and len(stored) > 8 << 20
    row("images", "FROM scratch, read-only, nobody", "rclone, lent by the host", "whole in the bucket, as .core")
    # Without a destination of its own, a container has nothing lent.
    other = crash(image="scratch")
    assert "the process has no CORE_DESTINATION that begins with s3://" in other.log("core dropped")


def test_a_host_that_lacks_the_program_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    before = CONFIGURATION.read_text()
    applied = apply_role(words_of_the_page(), tmp_path)
    assert applied.returncode != 0
    assert f"{PROGRAM}, which docker_core_helper_lend names,: No such file or directory: put that" in applied.stdout
    assert CONFIGURATION.read_text() == before
