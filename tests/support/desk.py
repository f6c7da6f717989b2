"""Runs corefetch as somebody at a desk does whose store is the S3 server of the lab."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support import lab

PYTHON = lab.PROJECT / ".cache" / "corefetch" / "bin" / "python"
CACHE = lab.DIRECTORY / "corefetch"


def beside_s3(*words: str | Path) -> list[str | Path]:
    """The command that runs a program in the network namespace of the S3 server, which has a loopback interface only."""
    pid = lab.output("docker", "inspect", "--format={{.State.Pid}}", lab.S3)
    return ["nsenter", f"--net=/proc/{pid}/ns/net", *words]


def corefetch(url: str, *words: str, status: int = 0, **variables: str) -> str:
    """What a command of corefetch prints that ends with ``status``; its store is ``url``, and its standard error is shown."""
    if not PYTHON.exists():
        raise RuntimeError("corefetch has no Python yet: make .cache/corefetch/complete")
    environment = {
        **lab.environment(),
        **lab.S3_ENVIRONMENT,
        "COREFETCH_FROM": url,
        "COREFETCH_CACHE": str(CACHE),
        "PYTHONPATH": str(lab.PROJECT / "corefetch" / "src"),
        # Neither settings nor credentials of the user who runs this.
        "HOME": str(lab.DIRECTORY),
        **variables,
    }
    command = beside_s3(PYTHON, "-m", "corefetch", *words)
    done = lab.command(*command, check=False, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != status:
        raise RuntimeError(f"corefetch {' '.join(words)} ended with status {done.returncode}: {done.stdout}")
    return str(done.stdout).rstrip()
