# SPDX-License-Identifier: Apache-2.0
"""The live values of the kernel, and what a core pattern says; core(5)."""

from __future__ import annotations

import os

from . import files, owners
from .places import HELPER, SOCKET_PATTERN

KERNEL = "/proc/sys/kernel"
# In this order: a helper must never be started without the limit, because the kernel would then not wait for it.
NAMES = ("core_pipe_limit", "core_pattern")
# The kernel's values if nobody sets any.
DEFAULTS = {"core_pattern": "core", "core_pipe_limit": "0"}
# Programs that are in a core pattern so that there are no cores.
NO_HANDLERS = ("false", "true")


class SettingError(Exception):
    """A value cannot be set; the text names the value, what the kernel shows, and the remedy."""


def get(name: str, encoding: str = "utf-8") -> str:
    """Return a live value of the kernel."""
    return (files.read(os.path.join(KERNEL, name), encoding) or "").rstrip("\n")


def set_live(values: dict[str, str], names: tuple[str, ...], encoding: str = "utf-8") -> None:
    """Set live values in the order of ``names`` and read each back, as some kernels accept what they cannot use.

    Raises SettingError if the kernel refuses one or shows another one.
    """
    for name in names:
        value = values[name]
        if get(name, encoding) == value:
            continue
        try:
            with open(os.path.join(KERNEL, name), "w", encoding=encoding) as file:
                file.write(value + "\n")
        except OSError as error:
            raise SettingError(f"kernel.{name}: the kernel refuses {value!r}: {error.strerror}") from error
        if get(name, encoding) != value:
            raise SettingError(
                f"kernel.{name}: wrote {value!r}, but the kernel shows {owners.shown(get(name, encoding))}"
            )


def lines(values: dict[str, str]) -> str:
    """Return values of the kernel as sysctl.d(5) has them."""
    return "".join(f"kernel.{name} = {values[name]}\n" for name in NAMES)


def is_the_helpers(pattern: str) -> bool:
    """Return whether the helper gets the cores by a pattern, however the pattern names the helper and its options."""
    return pattern == SOCKET_PATTERN or entry_of(pattern) is not None


def entry_of(pattern: str) -> str | None:
    """Return the path by which a core pattern names the helper, None if it does not."""
    return next((word for word in pattern.lstrip("|").split() if os.path.basename(word) == HELPER), None)


def has_sockets() -> bool:
    """Return whether this kernel can send cores to a socket; core_modes of fs/coredump.c, since Linux 6.17."""
    return "socket" in (files.read(os.path.join(KERNEL, "core_modes")) or "").split()


def handler_of(pattern: str) -> list[str]:
    """Return the words of the handler that a core pattern starts; none if that is the helper, or a program that drops cores."""
    words = pattern[1:].split() if pattern.startswith("|") else []
    if not words or is_the_helpers(pattern) or os.path.basename(words[0]) in NO_HANDLERS:
        return []
    return words if os.path.isfile(words[0]) and os.access(words[0], os.X_OK) else []
