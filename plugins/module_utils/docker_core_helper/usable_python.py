# SPDX-License-Identifier: Apache-2.0
"""Finds a Python on the host that can run the helper, and that only root can change."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess

from .programs import last_line

# The user and the group that own the files, and the only ones that may be able to change what the kernel starts.
OWNER = 0
GROUP = 0
# Names that the distribution keeps stable come first, so that the helper survives an upgrade of Python. Red Hat's version 8 has
# platform-python in any case.
PYTHONS = (
    "/usr/bin/python3",
    "/usr/libexec/platform-python",
    *(f"/usr/bin/python3.{minor}" for minor in range(14, 7, -1)),
    "/usr/local/bin/python3",
)


class UnusableError(Exception):
    """The host or what was asked for cannot be used; the text names the object and the remedy."""


class Python:
    """A Python that can run the helper."""

    def __init__(self, path: str, version: str, uncompiled: list[str]) -> None:
        """Keep its stable path, its version, and the files of the library that are not compiled for it."""
        self.path = path
        self.version = version
        self.uncompiled = uncompiled


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program as the kernel starts the helper: without environment, in the root directory."""
    return subprocess.run(
        words,
        env={},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def changeable(path: str) -> str | None:
    """Return which part of ``path``, symbolic links followed, users other than root could change.

    A part that does not exist does not count. A directory that all may write is harmless if it is sticky: then nobody can
    remove files in it that root owns.
    """
    pending = [part for part in reversed(path.split("/")) if part]
    reached = "/"
    for _step in range(200):
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(reached)
            sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
            if found.st_uid not in (0, OWNER):
                return f"{reached} belongs to user {found.st_uid}"
            if stat.S_ISLNK(found.st_mode):
                target = os.readlink(reached)
                pending += [part for part in reversed(target.split("/")) if part]
                reached = "/" if target.startswith("/") else os.path.dirname(reached)
            elif not sticky and found.st_mode & 0o002:
                return f"{reached} can be written by everybody"
            elif not sticky and found.st_mode & 0o020 and found.st_gid not in (0, GROUP):
                return f"{reached} can be written by group {found.st_gid}"
        if not pending:
            return None
        part = pending.pop()
        reached = os.path.dirname(reached) if part == ".." else os.path.join(reached, part)
    return f"{path} has too many symbolic links"


def examine(path: str, compiler: str, package: str) -> Python:
    """Return the Python at ``path``, or raise UnusableError with the reason why it cannot run the helper.

    The program ``compiler``, helper/compile_library.py, says the reason, and what of the ``package`` is not compiled for this
    Python; there need be no package yet.
    """
    if not re.match(r"/[^\s]*\Z", path):
        raise UnusableError(f"{path!r} is not an absolute path without spaces")
    if not os.access(path, os.X_OK):
        raise UnusableError(f"{path} is no program on this host")
    danger = changeable(path)
    if danger:
        raise UnusableError(f"{danger}: the kernel would start it as root")
    try:
        result = run(path, "-I", "-S", "-c", compiler, "check", package)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnusableError(f"{path} does not run: {error}") from error
    if result.returncode:
        raise UnusableError(f"{path} {last_line(result.stderr)}")
    version, uncompiled = result.stdout.splitlines()
    return Python(path, version, uncompiled.split())


def find_python(asked: str, compiler: str, package: str) -> Python:
    """Return the Python ``asked`` for, or else the first usable one; raise UnusableError if there is none."""
    reasons = []
    for path in [asked] if asked else PYTHONS:
        if not asked and not os.path.exists(path):
            continue
        try:
            return examine(path, compiler, package)
        except UnusableError as error:
            reasons.append(str(error))
    remedy = "change docker_core_helper_python" if asked else "install one, or name it by docker_core_helper_python"
    raise UnusableError(f"no usable Python: {'; '.join(reasons) or 'none in the usual places'}; {remedy}")
