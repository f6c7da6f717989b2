# SPDX-License-Identifier: Apache-2.0
"""The programs that are known to own the core pattern: what each writes there, and which service writes it."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from . import files

# Where Dynatrace OneAgent keeps the pattern that it has replaced: since its version 1.302, and before. It starts what that
# pattern names after itself, and sets that pattern again when it is uninstalled.
KEPT = (
    "var/lib/dynatrace/oneagent/agent/backup/original_core_pattern",
    "opt/dynatrace/oneagent/agent/conf/original_core_pattern",
)


class Owner(NamedTuple):
    """A program that sets the core pattern."""

    name: str
    # A part of the program or socket in the patterns that it sets.
    mark: str
    # The service that sets the pattern whenever it starts, even when its package is upgraded. Without one, files of sysctl.d(5)
    # set the pattern, which next_boot.py finds, whatever program has written them.
    service: str = ""
    # Whether systemd's own units start the service: without an [Install] section, `systemctl disable` does nothing to it.
    is_static: bool = False

    def has_set(self, pattern: str) -> bool:
        """Return whether a pattern is one of its patterns."""
        return pattern[:1] in ("|", "@") and self.mark in (pattern[1:].split() or [""])[0]


# https://docs.dynatrace.com, "OneAgent security on Linux" and "Crash analysis": its installer sets the live value and a line in
# /etc/sysctl.conf.
ONEAGENT = Owner("Dynatrace OneAgent", "/oneagent/agent/rdp")
OWNERS = (
    Owner("Apport", "/apport", "apport.service"),
    Owner("abrt", "/abrt-hook-ccpp", "abrt-ccpp.service"),
    # https://github.com/memfault/memfaultd, version 1.25.2: memfaultd.service, and memfaultd/src/coredump/mod.rs, which sets
    # the pattern at each start and reload.
    Owner("memfaultd", "/memfault-core-handler", "memfaultd.service"),
    # https://github.com/systemd/systemd, version 262 (pull request 43330): units/systemd-coredump-register.service.in and
    # units/systemd-coredumpd.service.in, which starts the former. It sets @@/run/systemd/coredumpd/kernel at each boot, and
    # again with each restart of systemd-coredumpd.service, if the kernel is Linux 6.19 or newer. Nobody may stop it by hand.
    Owner("systemd-coredump", "/run/systemd/coredump", "systemd-coredump-register.service", is_static=True),
    # As a program, by /usr/lib/sysctl.d/50-coredump.conf.
    Owner("systemd-coredump", "/systemd-coredump"),
    ONEAGENT,
    # Our own server: docs/socket.md.
    Owner("docker_core_helper serve", "@/run/docker_core_helper/core.sock"),
)


def socket_of(pattern: str) -> str:
    """Return the path of the socket to which the kernel gives cores by a pattern, "" if that is a program or a file.

    That is ``@PATH`` since Linux 6.16, and ``@@PATH``, with another protocol, since 6.17: fs/coredump.c.
    """
    found = re.match(r"@@?(/.*)", pattern)
    return found.group(1) if found else ""


def owner_of(pattern: str) -> str:
    """Return which program or service gets the cores by a pattern, for people; "" if the pattern says that itself."""
    name = next((owner.name for owner in OWNERS if owner.has_set(pattern)), "")
    socket = socket_of(pattern)
    if socket:
        return f"the socket {socket} ({name})" if name else f"the socket {socket}"
    return name


def shown(pattern: str) -> str:
    """Return a pattern for a message, with its owner."""
    owner = owner_of(pattern)
    return f"{pattern!r}, {owner}" if owner else repr(pattern)


def is_static(service: str) -> bool:
    """Return whether a service can only be masked, and not disabled."""
    return any(owner.service == service and owner.is_static for owner in OWNERS)


def kept_patterns(root: str) -> list[tuple[str, str]]:
    """Return the files in which Dynatrace OneAgent keeps a pattern on the host at ``root``, each with that pattern."""
    paths = [os.path.join(root, path) for path in KEPT]
    return [(path, files.read_exactly(path).strip()) for path in paths if os.path.isfile(path)]
