# SPDX-License-Identifier: Apache-2.0
"""Finds what sets the kernel's values at the next boot: the files of sysctl.d(5) in their order, and services."""

from __future__ import annotations

import os
import re
import shlex
from typing import NamedTuple

from . import files, owners
from .kernel import DEFAULTS, NAMES
from .owners import OWNERS

ROOT = "/"
# Of these directories, the first one that has a file of a name masks that of the others; sysctl.d(5).
DIRECTORIES = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
REMEDY = "or set docker_core_helper_conflicts=take_over"


class Assignment(NamedTuple):
    """A line of a file that sets one of the two values."""

    file: str
    number: int
    name: str
    value: str
    line: str


def systemd_runs() -> bool:
    """Return whether systemd runs on this host; sd_booted(3)."""
    return os.path.isdir(os.path.join(ROOT, "run/systemd/system"))


def assignments(path: str) -> list[Assignment]:
    """Return the lines of ``path`` that set one of the two values, in either spelling of the key; sysctl.d(5).

    Keys with wildcards are left out, as both systemd and procps do for a key that is set by its name: ours is.
    """
    found = []
    for number, line in enumerate(files.read_exactly(path).split("\n"), 1):
        key, equals, value = line.strip().partition("=")
        # A leading - means: no error if the value cannot be set.
        name = re.sub(r"^-?\s*kernel[./](\w+)\s*$", r"\1", key)
        if equals and name in NAMES:
            found.append(Assignment(path, number, name, value.strip(), line))
    return found


def mask_of(service: str) -> str:
    """Return the symbolic link that masks a service, if it is there and leads to /dev/null."""
    return os.path.join(ROOT, "etc/systemd/system", service)


def has_unit(service: str) -> bool:
    """Return whether a service has a unit of systemd that is not masked."""
    masked = os.path.realpath(mask_of(service)) == "/dev/null"
    return not masked and any(
        os.path.exists(os.path.join(ROOT, path, "systemd/system", service)) for path in DIRECTORIES
    )


def links_that_enable(service: str) -> list[str]:
    """Return the symbolic links by which a service is enabled."""
    units = os.path.join(ROOT, "etc/systemd/system")
    if os.path.realpath(mask_of(service)) == "/dev/null":
        return []
    found = []
    for directory in sorted(os.listdir(units)) if os.path.isdir(units) else []:
        link = os.path.join(units, directory, service)
        if directory.endswith((".wants", ".requires")) and os.path.islink(link):
            found.append(link)
    name = service.rpartition(".")[0]
    # The links of the run levels, which count without systemd, or if systemd makes a unit of them. Apport's script reads its
    # settings first.
    if not (systemd_runs() and has_unit(service)) and os.path.exists(os.path.join(ROOT, "etc/init.d", name)):
        settings = files.read_exactly(os.path.join(ROOT, "etc/default", name))
        if not re.search(r"^\s*enabled=[\"']?0", settings, re.MULTILINE):
            for level in "2345":
                directory = os.path.join(ROOT, f"etc/rc{level}.d")
                names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
                found += [os.path.join(directory, link) for link in names if re.match(rf"S\d\d{name}\Z", link)]
    return found


class NextBoot:
    """The files and the services that set the two values at the next boot."""

    def __init__(self, own: tuple[str, str]) -> None:
        """Look at the host. ``own`` are the two names that our file may have; files of these names are not somebody else's."""
        self.own = own
        found: dict[str, str] = {}
        for directory in DIRECTORIES:
            directory = os.path.join(ROOT, directory, "sysctl.d")
            for name in os.listdir(directory) if os.path.isdir(directory) else []:
                if name.endswith(".conf"):
                    found.setdefault(name, os.path.join(directory, name))
        last = os.path.join(ROOT, "etc/sysctl.conf")
        if not systemd_runs():
            # sysctl --system reads this file last, whatever links lead to it; systemd reads it only through a link.
            found = {name: file for name, file in found.items() if os.path.realpath(file) != os.path.realpath(last)}
        # Each line with its place in the order. A file that a link to /dev/null masks has no lines.
        self.lines = [((0, name), line) for name in sorted(found) for line in assignments(found[name])]
        if not systemd_runs():
            self.lines += [((1, ""), line) for line in assignments(last)]
        # The services that start at the next boot, with the symbolic links that enable them.
        self.services: dict[str, list[str]] = {}
        for owner in OWNERS:
            links = links_that_enable(owner.service) if owner.service and not owner.is_static else []
            if links or (owner.is_static and has_unit(owner.service)):
                self.services[owner.service] = links

    def winner(self, name: str) -> Assignment | None:
        """Return the line that sets a value last, None if there is none."""
        found = [line for _place, line in self.lines if line.name == name]
        return found[-1] if found else None

    def stronger(self, file: str, wanted: dict[str, str]) -> list[tuple[tuple[int, str], Assignment]]:
        """Return the lines that are read after our ``file`` and set other values than the ``wanted`` ones."""
        ours = (0, os.path.basename(file))
        later = [(place, line) for place, line in self.lines if place > ours and line.file not in self.own]
        found = []
        for name in NAMES:
            same = [(place, line) for place, line in later if line.name == name]
            if same and same[-1][1].value != wanted[name]:
                found += [(place, line) for place, line in same if line.value != wanted[name]]
        return found

    def conflicts(self, file: str, wanted: dict[str, str]) -> list[str]:
        """Return a line for each file or service that wins over our ``file`` and the ``wanted`` values, with the remedy."""
        found = []
        for place, line in self.stronger(file, wanted):
            after = "last of all" if place[0] else f"after {os.path.basename(file)}"
            owner = owners.owner_of(line.value)
            found.append(
                f"{line.file}, line {line.number}, sets kernel.{line.name} = {line.value}{owner and f' ({owner})'} and is read"
                f" {after}: remove that line, {REMEDY}"
            )
        for service in self.services:
            how = f"mask it, by systemctl mask {service}" if owners.is_static(service) else "disable it"
            found.append(f"{service} is enabled and sets kernel.core_pattern when it starts: {how}, {REMEDY}")
        return found

    def pattern(self, live: str) -> tuple[str, str]:
        """Return the core pattern of the next boot, and the file or service that decides about it; ``live`` is today's."""
        for service in self.services:
            has_set = any(owner.service == service and owner.has_set(live) for owner in OWNERS)
            return (live if has_set else "", service)
        winner = self.winner("core_pattern")
        if winner:
            return winner.value, winner.file
        try:
            words = shlex.split(files.read("/proc/cmdline") or "")
        except ValueError:
            words = []
        # The kernel sets these before the first program, so that every file comes later.
        given = [re.match(r"sysctl\.kernel[./]core_pattern=(.*)", word) for word in words]
        values = [found.group(1) for found in given if found]
        return (values[-1], "/proc/cmdline") if values else (DEFAULTS["core_pattern"], "")
