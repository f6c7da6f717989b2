# SPDX-License-Identifier: Apache-2.0
"""The file that keeps the kernel's values from before the first run, and what was taken over from others since."""

from __future__ import annotations

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from . import files, owners
from .kernel import DEFAULTS, SettingError, is_the_helpers


def parse(text: str, path: str) -> dict[str, Any]:
    """Return what a record holds. Raises SettingError if it does not hold the values from before."""
    try:
        content = json.loads(text)
        if all(isinstance(content[name], str) for name in DEFAULTS) and isinstance(content.get("taken_over", {}), dict):
            return dict(content)
    except (ValueError, TypeError, LookupError, AttributeError):
        pass
    raise SettingError(
        f"{path} does not hold the values from before the first run any more: restore it, or write"
        f" {json.dumps(DEFAULTS)} into it"
    )


class Record:
    """The record as this run has found it."""

    def __init__(self, module: AnsibleModule, path: str, live: dict[str, str]) -> None:
        """Read the record; if there is none yet, the ``live`` values are those that a removal restores."""
        self.path = path
        # None: there was no run before this one.
        self.text = files.read(path)
        content: dict[str, Any] = parse(self.text, path) if self.text else dict(live)
        if not self.text and is_the_helpers(live["core_pattern"]):
            module.warn(
                "kernel.core_pattern starts the helper already, and no values from before are known:"
                f" removal will set {DEFAULTS}"
            )
            content = dict(DEFAULTS)
        self.previous: dict[str, str] = {name: content[name] for name in DEFAULTS}
        self.taken_over: dict[str, Any] = content.get("taken_over", {})

    def warn_of_files(self, module: AnsibleModule, pattern: str) -> None:
        """Before the first change, warn if the pattern is a file name or a socket: that gets no cores any more."""
        if self.text is not None or pattern.startswith("|") or pattern == DEFAULTS["core_pattern"]:
            return
        what = f"the file name {pattern!r}, and no such files are written any more"
        if owners.socket_of(pattern):
            what = f"{owners.shown(pattern)}, which gets no cores any more"
        module.warn(
            f"kernel.core_pattern was {what}: processes of this host need a delegate on the host, too, or"
            " docker_core_helper_fallback_core; else their cores are dropped"
        )

    def with_taken_over(self, taken_over: dict[str, Any]) -> str:
        """Return what the record must hold once this was taken over; the same text as before if nothing is new."""
        if self.text and taken_over == self.taken_over:
            return self.text
        return json.dumps({**self.previous, **({"taken_over": taken_over} if taken_over else {})}) + "\n"
