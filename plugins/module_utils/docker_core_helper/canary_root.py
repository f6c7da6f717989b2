# SPDX-License-Identifier: Apache-2.0
"""The namespaces in which the canary crashes, and the root directory that it has there."""

from __future__ import annotations

import contextlib
import os
import signal

# Every host has this directory, and in the private mount namespace nobody else can see what is mounted there.
ROOT = "/tmp"
# Where the host's own root is in the canary's, for the shell and its libraries.
HOST = ".host"
OUT = "/canary"
NOBODY = 65534
# The core is complete or not there: it is renamed only after it was written to its end.
DELEGATE = f"#!/bin/sh\ncat >{OUT}/new && mv {OUT}/new {OUT}/core\n"

# mount(2), unshare(2), prctl(2)
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_BIND = 0x1000
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1


class SetupError(Exception):
    """The crash cannot be made, for a reason that does not lie in the helper; the text says which."""


class Namespaces:
    """The system calls that Python's library lacks."""

    def __init__(self) -> None:
        """Load the C library."""
        try:
            import ctypes  # not at the top: some builds of Python lack it, and the message must say so
        except ImportError as error:
            raise SetupError(f"the Python of this module lacks ctypes: {error}") from error
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.get_errno = ctypes.get_errno
        self.libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
        self.libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)

    def check(self, result: int, what: str) -> None:
        """Raise SetupError if a call has failed."""
        if result < 0:
            raise SetupError(f"{what}: {os.strerror(self.get_errno())}")

    def unshare(self) -> None:
        """Give the calling process namespaces of its own, and its next child a pid namespace."""
        flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET
        self.check(self.libc.unshare(flags), "namespaces of its own")

    def mount(self, source: str, target: str, kind: str, flags: int = 0) -> None:
        """Mount something; mount(2)."""
        result = self.libc.mount(source.encode(), target.encode(), kind.encode(), flags, None)
        self.check(result, f"mounting {source} on {target}")

    def die_with_parent(self) -> None:
        """Let the kernel kill the calling process when its parent ends; prctl(2)."""
        self.check(self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")


def build_root(delegate: str) -> None:
    """Fill the directory ROOT: the host as it is, by symbolic links, except the throw-away program as ``delegate``.

    Only the directories on the way to ``delegate`` are new. So its path may be anywhere, in /usr/bin or in a directory that the
    host does not have.
    """
    *parents, name = [part for part in delegate.split("/") if part]
    here, there = ROOT, f"/{HOST}"
    for child in [*parents, None]:
        replaced = {child or name, HOST if here == ROOT else child}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.listdir(f"{ROOT}{there}"):
                if entry not in replaced:
                    os.symlink(f"{there}/{entry}", f"{here}/{entry}")
        if child:
            here, there = f"{here}/{child}", f"{there}/{child}"
            os.mkdir(here, 0o755)
    with open(f"{here}/{name}", "w", encoding="utf-8") as file:
        file.write(DELEGATE)
    os.chmod(f"{here}/{name}", 0o755)
    os.mkdir(ROOT + OUT, 0o700)
    os.chown(ROOT + OUT, NOBODY, NOBODY)
