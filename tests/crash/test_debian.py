"""Images of Debian, with the uploader from playbooks/images.yml: their cores reach the bucket by Debian's own clients."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import debian, lab
from support.containers import Container
from support.records import is_whole
from support.tables import Row

# The lab's delegate has another name than the uploader.
DELEGATE = '#!/bin/sh\nexec /opt/bin/uploader.sh "$@"\n'
# A module of the application, which Python would take for its own.
BROKEN_MODULE = "raise SystemExit('this is the json of the application')\n"
ABORT = "python3 -c 'import os; os.abort()'; true"
# There is no compiler for a program of ours. This one waits for connections at port 1099.
JVM = """
/usr/lib/jvm/default-java/bin/rmiregistry -J-Xmx64m &
until grep -qs :044B /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done
kill -SEGV $!
wait
"""
Run = Callable[..., Container]
pytestmark = pytest.mark.usefixtures("s3_server")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs a command in a container that has a destination: ``run(image, *words, options=...)``."""
    delegate = tmp_path / "delegate"
    delegate.write_text(DELEGATE)
    delegate.chmod(0o755)
    variables = {**lab.S3_ENVIRONMENT, "CORE_DESTINATION": f"s3://{lab.BUCKET}/test/"}
    known = (
        f"--volume={delegate}:/opt/bin/delegate:ro",
        *(f"--env={name}={value}" for name, value in variables.items()),
    )
    containers: list[Container] = []

    def run(image: str, *words: str, options: tuple[str, ...] = ()) -> Container:
        containers.append(Container(image, words, (*known, *lab.S3_OPTIONS, *options)))
        return containers[-1]

    yield run
    for container in containers:
        container.remove()


def check_core(container: Container, program: str) -> None:
    """See that the bucket has one whole core, of that program."""
    assert ": delivered " in container.log("pid="), container.log("pid=")
    core, facts = sorted(name for name in lab.s3("lsf", lab.BUCKET).decode().splitlines() if not name.endswith("/"))
    assert core.endswith(".core.zst") and facts.endswith(".json")
    stored = lab.s3("cat", f"{lab.BUCKET}/{core}")
    assert is_whole(subprocess.run(["zstd", "-d"], input=stored, check=True, capture_output=True).stdout)
    assert program in json.loads(lab.s3("cat", f"{lab.BUCKET}/{facts}"))["facts"]["CORE_EXE"]


def test_a_folder_of_debian_with_python_and_aws(run: Run, tmp_path: Path, row: Row) -> None:
    root = debian.make_root(tmp_path / "root", "awscli", "coreutils", "dash", "python3", "zstd")
    # The scripts of the packages would have compiled this Python. Nobody answers there.
    words = ("chroot", root, "aws", "s3", "cp", "-", "s3://nobody/answers", "--endpoint-url=http://127.0.0.1:9")
    known = {**lab.S3_ENVIRONMENT, "AWS_MAX_ATTEMPTS": "1", "PATH": "/usr/bin:/usr/sbin"}
    lab.command(*words, check=False, env=known, input=b"core", stderr=subprocess.DEVNULL)
    lab.playbook("images.yml", "-e", f"images_root={root}")
    with subprocess.Popen(["tar", "--create", "--directory", root, "."], stdout=subprocess.PIPE) as archive:
        lab.command("docker", "import", "-", "core-lab/debian-python", stdin=archive.stdout, stdout=subprocess.DEVNULL)
    (tmp_path / "application").mkdir()
    (tmp_path / "application/json.py").write_text(BROKEN_MODULE)
    application = (f"--volume={tmp_path}/application:/srv:ro", "--env=PYTHONPATH=/srv")
    hardened = ("--user=65534:65534", "--cap-drop=ALL", "--read-only")
    container = run("debian-python", "sh", "-c", ABORT, options=(*application, *hardened))
    check_core(container, "/usr/bin/python3")
    row("images", "Debian, Python, read-only, nobody", "Debian's aws", "whole in the bucket, as .core.zst")


def test_an_image_of_debian_with_a_jvm_and_rclone(run: Run, tmp_path: Path, row: Row) -> None:
    root = debian.make_root(
        tmp_path / "root.tar", "coreutils", "dash", "default-jre-headless", "grep", "rclone", "zstd"
    )
    lab.command("docker", "import", root, "core-lab/debian-jvm", stdout=subprocess.DEVNULL)
    names = ("-e", "images_base=core-lab/debian-jvm", "-e", "images_tag=core-lab/debian-jvm-cores")
    lab.playbook("images.yml", *names)
    container = run("debian-jvm-cores", "sh", "-c", JVM)
    check_core(container, "/bin/rmiregistry")
    row("images", "Debian, JVM", "Debian's rclone", "whole in the bucket, as .core.zst")


def test_a_running_container_of_debian_with_curl_only(run: Run, row: Row) -> None:
    lab.command("docker", "import", debian.curl_only(), "core-lab/debian-curl", stdout=subprocess.DEVNULL)
    container = run("debian-curl", "sleep", "300", options=("--detach",))
    lab.playbook("images.yml", "-e", f"images_container={container.name}")
    lab.command("docker", "exec", container.name, "sh", "-c", "kill -SEGV $$", check=False)
    check_core(container, "/bin/dash")
    row("images", "Debian, curl only", "curl", "whole in the bucket, as .core.zst")
