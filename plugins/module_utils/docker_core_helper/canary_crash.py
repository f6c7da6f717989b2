# SPDX-License-Identifier: Apache-2.0
"""The crash of the canary, and its core."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import time
import uuid

from . import files, kernel
from .canary_root import NOBODY, OUT, SetupError

ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}


class LostError(Exception):
    """The core did not reach the delegate; the text says what is known."""


def become_nobody() -> None:
    """Drop all privileges, and undo every setting that could keep the crash from happening."""
    # With a limit of 0 bytes, only a pipe takes a core: not even a wrong core pattern can leave a file behind. A hard limit of
    # 0 would say that nobody wants the core; helper/core_helper/unwanted.py.
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))
    except ValueError:  # Root without CAP_SYS_RESOURCE.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def try_delegate(delegate: str, token: str, timeout: float) -> None:
    """Run the throw-away program without a crash; raise SetupError if it does not work: then the helper cannot be tried."""
    result = subprocess.run(
        [delegate],
        input=token.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        preexec_fn=become_nobody,
        timeout=timeout,
        check=False,
    )
    if files.read(f"{OUT}/core") != token:
        said = result.stdout.decode(errors="replace").strip()
        raise SetupError(
            f"the throw-away delegate does not work: exit code {result.returncode}, {said or 'no message'}"
        )
    os.unlink(f"{OUT}/core")


def read_core(path: str) -> bytes:
    """Return the content of a regular file; raise OSError if another process of nobody has put something else there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return file.read()


def crash(delegate: str, timeout: float) -> dict[str, object]:
    """Let a shell crash and return size and time of its core; runs as process 1 of the namespaces, in ROOT.

    ``timeout`` is in seconds. Raises LostError where no core comes in that time.
    """
    token = uuid.uuid4().hex
    try_delegate(delegate, token, timeout)
    limit = int(kernel.get("core_pipe_limit") or 0)
    began = time.monotonic()
    # Not process 1 itself: it ignores signals from its own namespace.
    crasher = subprocess.Popen(
        ["/bin/sh", "-c", "kill -s SEGV $$"], env={**ENVIRONMENT, "CANARY": token}, preexec_fn=become_nobody
    )
    # With a limit, the kernel keeps the process until its delegate has ended: no core will come after that.
    while crasher.poll() is None if limit else not os.path.exists(f"{OUT}/core"):
        if time.monotonic() > began + timeout:
            raise LostError(f"no core came to {delegate} within {timeout:g} seconds")
        time.sleep(0.002)
    try:
        core = read_core(f"{OUT}/core")
    except FileNotFoundError:
        raise LostError(f"the process crashed, and no core came to {delegate}") from None
    seconds = time.monotonic() - began
    if token.encode() not in core:
        raise LostError(f"{len(core)} bytes came to {delegate}, but they are not the core of the process")
    return {"outcome": "delivered", "delegate": delegate, "size": len(core), "seconds": round(seconds, 3)}
