"""Runs another program and reads what it prints."""

from __future__ import annotations

import subprocess


def output_of(words: list[str], seconds: int) -> subprocess.CompletedProcess[str]:
    """Run a program that gets no input, to its end, and return what it prints. Raises TimeoutExpired after ``seconds``."""
    return subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )
