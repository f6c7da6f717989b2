# SPDX-License-Identifier: Apache-2.0
"""Disables what others set at the next boot, so that the role's own values hold, and restores it on removal."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from . import files, next_boot, owners
from .kernel import SettingError
from .next_boot import Assignment, NextBoot
from .places import LAST, last_of

MARK = "# docker_core_helper took this over, its removal gives it back: "


class Takeover:
    """What is taken over from others. The record says how to restore it, even if it was not taken over yet."""

    def __init__(self, module: AnsibleModule, recorded: dict[str, Any]) -> None:
        """Begin with what earlier runs have recorded."""
        self.module = module
        self.sysctl_file: str | None = recorded.get("sysctl_file")
        self.lines: list[list[str]] = [list(line) for line in recorded.get("lines", [])]
        self.services: dict[str, dict[str, str]] = dict(recorded.get("services", {}))

    def recorded(self) -> dict[str, Any]:
        """Return what is to be recorded; nothing if nothing was taken over."""
        found = {"sysctl_file": self.sysctl_file, "lines": self.lines, "services": self.services}
        return {key: value for key, value in found.items() if value}

    def plan(self, others: NextBoot, file: str, wanted: dict[str, str]) -> str:
        """Plan as little as is enough: a name that sorts last, or else to disable what others set.

        ``file`` is ours for the next boot. Returns the name that this file needs.
        """
        if any(place < (0, LAST) for place, _line in others.stronger(file, wanted)):
            self.sysctl_file = file = last_of(file)
        for _place, line in others.stronger(file, wanted):
            self.add_line(line)
        for service, links in others.services.items():
            self.services.setdefault(service, {}).update({link: os.readlink(link) for link in links})
        return file

    def add_line(self, line: Assignment) -> None:
        """Plan to comment a line out."""
        # The target of a link, because the link must stay a link.
        entry = [os.path.realpath(line.file), line.line]
        if entry not in self.lines:
            self.lines.append(entry)

    def files(self) -> list[str]:
        """Return the files that have lines of ours."""
        return sorted({path for path, _line in self.lines})

    def comment_out(self, file: str) -> str:
        """Return the content of ``file`` without the planned lines."""
        content = files.read_exactly(file)
        for path, line in self.lines:
            if path == file:
                content = "\n".join(MARK + found if found == line else found for found in content.split("\n"))
        return content

    def restore_lines(self, file: str) -> str:
        """Return the content of ``file`` with its lines enabled again. Whatever somebody has changed meanwhile stays."""
        content = files.read_exactly(file)
        theirs = [line for path, line in self.lines if path == file]
        if not os.path.exists(file):
            self.module.warn(f"{file} is gone: not given back: {'; '.join(theirs)}")
            return content
        added = [found for found in next_boot.assignments(file) if found.line not in theirs]
        for line in theirs:
            found = content.split("\n")
            if MARK + line in found and added:
                self.module.warn(
                    f"{file}, line {added[0].number}, was added meanwhile: left as it is; from before, in a comment: {line}"
                )
            elif MARK + line in found:
                content = "\n".join(line if one == MARK + line else one for one in found)
            elif line not in found:
                self.module.warn(f"{file} was changed meanwhile: left as it is; before, it had the line: {line}")
        return content

    def disable(self, service: str) -> None:
        """Disable a service, or mask it. It is not stopped: Apport, for one, would then set values of its own.

        Raises SettingError where systemctl fails.
        """
        is_static = owners.is_static(service)
        if next_boot.systemd_runs():
            verb = "mask" if is_static else "disable"
            code, _output, said = self.module.run_command(["systemctl", verb, service])
            if code:
                raise SettingError(f"systemctl {verb} {service} failed: {said.strip()}")
            return
        if is_static:
            os.symlink("/dev/null", next_boot.mask_of(service))
        for link in self.services[service]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link)

    def enable(self, service: str) -> None:
        """Enable a service again, if it is still there."""
        problem = ""
        is_static = owners.is_static(service)
        if next_boot.systemd_runs():
            code, _output, said = self.module.run_command(["systemctl", "unmask" if is_static else "enable", service])
            problem = said.strip() if code else ""
        elif is_static:
            mask = next_boot.mask_of(service)
            # A unit of the administrator's own has the same name.
            if os.path.islink(mask) and os.readlink(mask) == "/dev/null":
                os.unlink(mask)
        else:
            for link, target in self.services[service].items():
                try:
                    if not os.path.lexists(link):
                        os.symlink(target, link)
                except OSError as error:
                    problem = f"{link}: {error.strerror}"
        if problem:
            self.module.warn(f"{service} was enabled before the first run, and cannot be enabled again: {problem}")
