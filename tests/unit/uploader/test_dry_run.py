"""What a core would meet: --dry-run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from unit.uploader.support import (
    KEY,
    NAME,
    UPLOADER,
    Image,
    Server,
    assert_failed,
    assert_refused,
    each_client,
    free_port,
)


@each_client
def test_a_dry_run_says_where_a_core_would_go(image: Image, client: str, server: Server, cores: Path) -> None:
    result, left = image.offer("--dry-run", "s3://bucket/dry/", environment=server.environment)
    words = f"uploader.sh: s3://bucket/dry/{KEY}.zst: would be stored there, by zstd: {client} says that the bucket answers\n"
    assert (result.returncode, result.stderr.decode(), left) == (0, words, 1000)
    assert not (server.root / "bucket/dry").exists()
    result, left = image.offer("--dry-run", str(cores))
    words = f"uploader.sh: {cores}/{NAME}.zst: would be stored there, by zstd: a file can be created there\n"
    assert (result.returncode, result.stderr.decode(), left) == (0, words, 1000)
    assert list(cores.iterdir()) == []


@each_client
@pytest.mark.parametrize("wrong", ["bucket", "secret", "endpoint"])
def test_a_dry_run_says_what_is_wrong(image: Image, client: str, server: Server, wrong: str) -> None:
    environment = dict(server.environment)
    if wrong == "secret":
        environment["AWS_SECRET_ACCESS_KEY"] = "another"
    if wrong == "endpoint":
        environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{free_port()}"
    offered = image.offer(
        "--dry-run", "s3://missing/" if wrong == "bucket" else "s3://bucket/", environment=environment
    )
    words = {
        "bucket": "create the bucket",
        "secret": "check the container's AWS_",
        "endpoint": "AWS_ENDPOINT_URL and network",
    }
    assert_refused(offered, 75 if wrong == "endpoint" else 74, f"{client}: ", words[wrong])


def test_a_dry_run_needs_no_core(image: Image, cores: Path) -> None:
    controller, terminal = os.openpty()
    command = [*image.command, str(UPLOADER), "--dry-run", str(cores)]
    result = subprocess.run(command, stdin=terminal, env={"PATH": str(image.bin)}, capture_output=True, timeout=10)
    os.close(controller)
    os.close(terminal)
    assert result.returncode == 0, result.stderr
    assert_failed(image.run("--dry-run", "/proc/nowhere"), 73, "no directory /proc/nowhere")
