"""A process in a container of its own that has changed its user, which the kernel dumps only if fs.suid_dumpable says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PROGRAM = """
import os, sys
open("/proc/self/comm", "w").write(sys.argv[1])
os.setuid(65534)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def undumpable(name: str) -> Iterator[None]:
    """Has such a process of that name run in a pid namespace; needs root."""
    words = ["unshare", "--pid", "--fork", sys.executable, "-ISc", PROGRAM, name]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "\n"
        yield
        process.communicate()
