# SPDX-License-Identifier: Apache-2.0
"""The crash of the canary in a container of an image, and what the helper says of its core: the way to the real destination."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator

from .canary_crash import LostError
from .canary_log import Log
from .canary_root import SetupError
from .programs import last_line

ENGINES = ("docker", "podman")
# Some hosts have the engine where a process of ssh or sudo does not look.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"
PULL_SECONDS = 1800
# For whatever the engine does beside running the container.
ENGINE_SECONDS = 60
# How long a line may take from the helper into the log.
LOG_SECONDS = 10
# The inner shell crashes: process 1 takes no signal of its own namespace.
SCRIPT = "/bin/sh -c 'kill -s SEGV $$'; exit 0"
SHOWN_LINES = 5


class Engine:
    """A container engine of the host."""

    def __init__(self, name: str) -> None:
        """Take its name; the program must be there."""
        self.name = name

    def run(self, *words: str, timeout: float = ENGINE_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run the engine's program."""
        return subprocess.run(
            [self.name, *words],
            env={**os.environ, "PATH": search_path()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )

    def must(self, what: str, *words: str, timeout: float = ENGINE_SECONDS) -> str:
        """Run the engine's program and return what it prints; raise SetupError if it fails."""
        done = self.run(*words, timeout=timeout)
        if done.returncode:
            raise SetupError(f"{self.name} {what}: {last_line(done.stderr)}")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Return whether an image is on the host."""
        return self.run("image", "inspect", image).returncode == 0


def search_path() -> str:
    """Return where programs are looked for."""
    return ":".join(part for part in (os.environ.get("PATH", ""), PATH) if part)


def engine_with(image: str, pull: bool) -> Engine:
    """Return the engine that has an image, or has fetched it if ``pull`` says so. Raises SetupError if there is none."""
    engines = [Engine(name) for name in ENGINES if shutil.which(name, path=search_path())]
    if not engines:
        raise SetupError(f"there is no {' and no '.join(ENGINES)} on this host, and so no container of {image}")
    problems = []
    answering = []
    for engine in engines:
        done = engine.run("version")
        if done.returncode:
            problems.append(f"{engine.name} does not answer: {last_line(done.stderr)}")
            continue
        if engine.has(image):
            return engine
        answering.append(engine)
    if not answering:
        raise SetupError("; ".join(problems))
    if not pull:
        names = " or ".join(engine.name for engine in answering)
        raise SetupError(
            f"the image {image} is not on this host: fetch it there by {names}, correct docker_core_helper_canary_image, or"
            " set docker_core_helper_canary_pull"
        )
    answering[0].must(f"cannot fetch {image}", "pull", "--quiet", image, timeout=PULL_SECONDS)
    return answering[0]


@contextlib.contextmanager
def container_of(engine: Engine, image: str, options: list[str], warnings: list[str]) -> Iterator[str]:
    """Make a container in which a shell will crash, and remove it in any case; it is the engine's to name what is wrong."""
    name = f"docker-core-helper-canary-{uuid.uuid4().hex[:12]}"
    # Ours come last, and count. The engine itself removes the container where this process cannot.
    words = ["create", *options, "--rm", f"--name={name}", "--entrypoint=/bin/sh", image, "-c", SCRIPT]
    try:
        yield last_line(engine.must(f"cannot make a container of {image}", *words))
    finally:
        if not remove(engine, name):
            warnings.append(f"the canary's container is still on this host, remove it: {engine.name} rm --force {name}")


def remove(engine: Engine, name: str) -> bool:
    """Remove a container, and return whether it is gone."""
    deadline = time.monotonic() + ENGINE_SECONDS
    while True:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            engine.run("rm", "--force", "--volumes", name)
            left = engine.run("ps", "--all", "--quiet", f"--filter=name={name}")
            if left.returncode == 0 and not left.stdout.strip():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def escape(path: str) -> str:
    """Return a path as the helper writes it into its lines."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in path.encode())


def judge(lines: list[str], delegate: str) -> dict[str, object] | None:
    """Return what the helper's lines about a container say of its core: that the delegate has read the whole and ended with 0.

    None if they do not say yet what became of it. Raises LostError if it is anything else.
    """
    said = [line.partition(": delegate: ")[2] for line in lines if re.match(r"pid=\d+ container=\w+: delegate: ", line)]
    quoted = f"; it said: {' | '.join(said[-SHOWN_LINES:])}" if said else "; it said nothing"
    for line in lines:
        # What follows the container's host name, or where nobody knows that, its id.
        ending = re.match(
            r'pid=\d+ \([^)]*\) .* container=\w+(?: \w+="[^"]*")* host="[^"]*"(?: left_out=\d+)?: (.*)', line
        )
        refusal = re.match(r"pid=\d+ uid=\d+ .* container=\w+: (core not delivered.*)", line)
        if refusal:
            raise LostError(f"it did not reach {delegate}: {refusal.group(1)}")
        if not ending:
            continue
        delivered = re.match(rf"delivered (\d+) bytes to {re.escape(escape(delegate))} in ([\d.]+) s", ending.group(1))
        if not delivered:
            raise LostError(f"{delegate} has not taken all of it: {ending.group(1)}{quoted}")
        size, seconds = int(delivered.group(1)), float(delivered.group(2))
        verdict = f"{delegate} has read all {size} bytes and ended with exit code 0{quoted}"
        return {"outcome": "delivered", "size": size, "seconds": seconds, "said": said, "verdict": verdict}
    return None


def crash_in_container(
    delegate: str, image: str, options: list[str], pull: bool, timeout: float, warnings: list[str]
) -> dict[str, object]:
    """Let a shell crash in a container of ``image``, and return what the configured delegate has made of its core.

    ``timeout`` is in seconds. Raises SetupError where there was no crash, and LostError where the core was lost.
    """
    engine = engine_with(image, pull)
    log = Log()
    with contextlib.closing(log), container_of(engine, image, options, warnings) as identifier:
        try:
            # The container stays until the delegate has ended: the faulting process is one of its own.
            done = engine.run("start", "--attach", identifier, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise LostError(f"{delegate} has not ended within {timeout:g} seconds") from None
        if done.returncode:
            raise SetupError(f"{engine.name} cannot run /bin/sh in a container of {image}: {last_line(done.stderr)}")
        deadline = time.monotonic() + LOG_SECONDS
        while True:
            found = judge(log.read(identifier[:12]), delegate)
            if found:
                return {**found, "delegate": delegate, "image": image, "engine": engine.name}
            if time.monotonic() > deadline:
                raise LostError(
                    f"the host's log has no line about what became of it; the crash was in container {identifier[:12]}"
                )
            time.sleep(0.1)
