"""Fuzzes the readers of foreign bytes, guided by the code that they run through: `make fuzz`.

Without --reader each one gets its share of the time in a process of its own, as many at a time as there are processors. What
a run has found out about the code's paths stays in the corpus for the next one. Exit code 1: a reader broke its promise
(readers.py), and the input that made it do so was printed in hexadecimal digits.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]

REPOSITORY = Path(__file__).parents[2]
# In the place of this directory, whose fuzz.py would be taken for the package fuzz.
sys.path[:1] = [str(REPOSITORY / "helper"), str(REPOSITORY / "tests")]

with atheris.instrument_imports(include=["core_helper"]):
    from fuzz import readers

CORPUS = REPOSITORY / ".cache" / "fuzz-corpus"
LONGEST_INPUT = 4096


def fuzz(reader: str, seconds: int) -> None:
    """Fuzz one reader in this process, which ends with that."""
    corpus = CORPUS / reader
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(readers.SEEDS[reader]):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT}",
        "-timeout=10",
        "-rss_limit_mb=1024",
        f"-artifact_prefix={CORPUS}/{reader}.",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *options], readers.READERS[reader])
    atheris.Fuzz()


def run(reader: str, seconds: int) -> bool:
    """Fuzz one reader in a process of its own, tell how that went, and return whether it kept its promise."""
    for old in CORPUS.glob(f"{reader}.*"):
        old.unlink()
    command = [sys.executable, __file__, "--reader", reader, "--seconds", str(seconds)]
    ended = subprocess.run(command, capture_output=True, text=True, errors="backslashreplace")
    summary = [line for line in ended.stderr.splitlines() if line.startswith("Done ")]
    if ended.returncode == 0 and summary:
        print(f"{reader}: {summary[0].removeprefix('Done ')}", flush=True)
        return True
    inputs = [f"input ({artifact.name}): {artifact.read_bytes().hex()}" for artifact in CORPUS.glob(f"{reader}.*")]
    # The traceback; what libFuzzer itself complains of, time and memory, stands on the other stream.
    print(f"{reader}: FAILED", ended.stdout.strip() or ended.stderr[-3000:], *inputs, sep="\n", flush=True)
    return False


def main() -> int:
    """Fuzz one reader, or all of them, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for all of it, or for the one reader; default 60")
    parser.add_argument("--reader", choices=sorted(readers.READERS))
    options = parser.parse_args()
    if options.reader:
        fuzz(options.reader, options.seconds)
    CORPUS.mkdir(parents=True, exist_ok=True)
    workers = os.cpu_count() or 1
    share = max(1, options.seconds * workers // len(readers.READERS))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        kept = list(pool.map(lambda reader: run(reader, share), readers.READERS))
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
