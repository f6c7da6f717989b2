# SPDX-License-Identifier: Apache-2.0
"""Refuses a host on which the helper cannot work, or where something would be lost; changes nothing."""

from __future__ import annotations

import os
import re
import stat
import struct
import sys

from . import files, places, usable_python
from .places import HELPER, is_ours, library_of
from .usable_python import UnusableError

CORE_PATTERN = "/proc/sys/kernel/core_pattern"
# openat2(2), without which the helper could not open a container's files safely, came with Linux 5.6.
OLDEST_KERNEL = (5, 6)


def refuse_host(directories: tuple[str, ...]) -> None:
    """Raise UnusableError if the helper cannot work on this host; ``directories`` are to hold it."""
    if not sys.platform.startswith("linux"):
        raise UnusableError(f"this host runs {sys.platform}: only Linux has kernel.core_pattern")
    release = os.uname().release
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers and (int(numbers.group(1)), int(numbers.group(2))) < OLDEST_KERNEL:
        raise UnusableError(f"this host runs Linux {release}: the helper needs 5.6 or newer, for openat2(2)")
    if os.geteuid() != usable_python.OWNER:
        raise UnusableError("only root can install the helper: become root, with ansible-playbook --become for example")
    if not os.access(CORE_PATTERN, os.W_OK):
        raise UnusableError(
            f"{CORE_PATTERN} cannot be written: this seems to be a container, apply the role to its host"
        )
    for directory in directories:
        danger = usable_python.changeable(directory)
        if danger:
            raise UnusableError(f"{directory} cannot hold what the kernel starts as root: {danger}")


def refuse_second_installation(entry: str, lib_dir: str) -> None:
    """Raise UnusableError if the helper is installed in another place than ``entry`` and ``lib_dir``.

    Nothing would ever remove the files there.
    """
    remedy = "remove it first, with docker_core_helper_state=absent and the directories that it was installed with"
    for word in (files.read(CORE_PATTERN) or "").lstrip("|").split():
        if word != entry and library_of(files.read(word) if os.path.basename(word) == HELPER else None):
            raise UnusableError(f"the helper is already installed as {word}: {remedy}")
    installed = library_of(files.read(entry))
    if installed and os.path.dirname(installed) != lib_dir:
        raise UnusableError(f"the installed helper has its library in {os.path.dirname(installed)}: {remedy}")


def refuse_configuration(entry: str) -> None:
    """Raise UnusableError if there is a configuration that somebody has written by hand: removal could not restore it."""
    if not library_of(files.read(entry)) and not is_ours(files.read(places.CONFIGURATION)):
        raise UnusableError(
            f"{places.CONFIGURATION} was written by somebody else, and would be lost: move it away, and give its settings to"
            " the role"
        )


def refuse_lent(path: str | None) -> None:
    """Raise UnusableError if the helper must not lend the program at ``path``; see helper/core_helper/lent.py."""
    if path is None:
        return
    name = f"{path}, which docker_core_helper_lend names,"
    try:
        found = os.stat(path)
        if os.path.realpath(path) != path:
            raise UnusableError(f"{name} has a symbolic link in its path: name {os.path.realpath(path)}")
        if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o111:
            raise UnusableError(f"{name} is not an executable file: chmod 0755")
        danger = usable_python.changeable(path)
        if danger:
            raise UnusableError(f"{name} must be root's alone: {danger}: chown root and chmod go-w")
        with open(path, "rb") as file:
            if not is_static(file.read(4096)):
                raise UnusableError(f"{name} is not a static program: lend one that is linked statically")
    except OSError as error:
        raise UnusableError(f"{name}: {error.strerror}: put that program there first") from error


def is_static(begin: bytes) -> bool:
    """Return whether a program of these first bytes is linked statically: without a loader, PT_INTERP of elf(5)."""
    begin = begin.ljust(64, b"\0")
    is_long, order = begin[4] == 2, ">" if begin[5] == 2 else "<"
    if not begin.startswith(b"\x7fELF"):
        return False
    (first,) = struct.unpack_from(order + ("Q" if is_long else "I"), begin, 32 if is_long else 28)
    size, count = struct.unpack_from(order + "HH", begin, 54 if is_long else 42)
    headers = range(first, min(first + size * count, len(begin) - 3), size or len(begin))
    return all(struct.unpack_from(order + "I", begin, header) != (3,) for header in headers)
