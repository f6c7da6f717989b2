"""playbooks/server_image.yml, with a program of the test in place of Docker; tests/crash builds and starts a real image."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.project import PROJECT

PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
DOCKER = """#!/bin/sh
case "$1 $2" in
"image inspect") [ -e "$STATE/image" ] && echo "[{\\"Id\\": \\"$(cat "$STATE/image")\\"}]" ;;
"build "*)
    printf '%s\\n' "$@" "$DOCKER_HOST" >"$STATE/words"
    cat >"$STATE/Dockerfile"
    [ ! -e "$STATE/broken" ] || { cat "$STATE/broken" >&2; exit 1; }
    sha256sum <"$STATE/Dockerfile" >"$STATE/image"
    ;;
*) exit 99 ;;
esac
"""


class Engine:
    """The program that the playbook takes for docker, and what it was told."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.state.mkdir()
        self.programs = directory / "bin"
        self.programs.mkdir()
        (self.programs / "docker").write_text(DOCKER)
        (self.programs / "docker").chmod(0o755)

    def build(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            **{"PATH": f"{self.programs}:{os.environ['PATH']}", "STATE": str(self.state), "DOCKER_HOST": "unix:///e"},
            **{"ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "false"},
        }
        command = [PLAYBOOK, "playbooks/server_image.yml", *words]
        return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


NAMES = ("-e", "server_image_base=base:1", "-e", "server_image_tag=new:1")


def test_an_image_is_its_base_and_the_helper_compiled_for_its_python(engine: Engine) -> None:
    result = engine.build(*NAMES)
    assert "changed=1" in result.stdout, result.stdout
    *words, context, host = (engine.state / "words").read_text().splitlines()
    assert words == ["build", "--network=none", "--tag", "new:1", "--file=-"]
    assert Path(context).resolve() == PROJECT / "helper" and host == "unix:///e"
    dockerfile = (engine.state / "Dockerfile").read_text()
    assert dockerfile.startswith("FROM base:1\n")
    # What it copies is there, and all of it.
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.M) for name in line.split()]
    assert all(list((PROJECT / "helper").glob(name)) for name in copied)
    sources = {path.relative_to(PROJECT / "helper") for name in copied for path in (PROJECT / "helper").glob(name)}
    there = {path.relative_to(PROJECT / "helper") for path in (PROJECT / "helper").rglob("*") if path.is_file()}
    assert {path for path in there if "__pycache__" not in path.parts} == sources
    compiled, program = (json.loads(found) for found in re.findall(r"^(?:RUN|ENTRYPOINT) (.*)$", dockerfile, re.M))
    library = "/opt/lib/docker_core_helper/core_helper"
    assert compiled == ["python3", "compile_library.py", "compile", "core_helper", library]
    assert program == ["python3", "-IS", "/opt/lib/docker_core_helper/docker_core_helper"]
    assert 'CMD ["serve", "--pattern"]' in dockerfile.splitlines()
    # Built again, it is the same.
    assert "changed=0" in engine.build(*NAMES, "-e", "server_image_docker_host=unix:///other").stdout
    assert (engine.state / "words").read_text().endswith("\nunix:///other\n")


def test_what_went_wrong_is_told_in_one_line(engine: Engine) -> None:
    (engine.state / "broken").write_text("Step 1/7\nis Python 3.7, and the helper needs 3.8 or newer\nexit code: 1\n")
    result = engine.build(*NAMES)
    assert result.returncode != 0
    assert "new:1 was not built from base:1: is Python 3.7, and the helper needs 3.8 or newer" in result.stdout


def test_both_names_are_needed_and_check_mode_builds_nothing(engine: Engine) -> None:
    result = engine.build(*NAMES[:2])
    assert result.returncode != 0 and "-e server_image_tag=NAME" in result.stdout
    assert "failed=0" in engine.build(*NAMES, "--check").stdout
    assert not (engine.state / "words").exists()
