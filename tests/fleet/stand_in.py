"""The role's modules for a simulated host, which is a directory: what a rollout would do there is written into a file.

The kernel has one core pattern, so a machine cannot be twelve hosts. The playbooks, their plugins and the role's tasks are
the real ones in these tests; this one file stands in for the role's modules, as an action plugin under each of their names.
What the real modules do on a host is shown by molecule, by tests/unit, and by tests/fleet/test_canary.py and test_restore.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

PATTERN = "|/opt/bin/docker_core_helper -F%F -I%I -s%s -t%t -d%d -c%c %P %u %g"


class ActionModule(ActionBase):  # type: ignore[misc]
    """Any of the role's modules."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do in the host's directory what the module would do on a host, or fail as the inventory's ``fault`` says."""
        super().run(tmp, task_vars)
        variables = task_vars or {}
        module = self._task.action.rpartition(".")[2]
        # Nothing but this makes a host unreachable, by whatever connection the inventory gives to it.
        self._low_level_execute_command("true")
        self.host = Path(variables["fleet"]) / "hosts" / variables["inventory_hostname"]
        self.wanted: str = variables["fleet_version"]
        before = self.state()
        fault = str(variables.get("fault", ""))
        # The kernel's values are looked at in check mode first, and that goes well.
        if fault == module and not (module == "core_pattern" and self._task.check_mode):
            self.touch(module)
            return {"failed": True, "msg": f"{module} fails on purpose", "outcome": "lost"}
        if fault == f"vanish at {module}":
            (self.host / "vanished").touch()
        result: dict[str, Any] = getattr(self, module)(before)
        return {"changed": self.state() != before, **result}

    def state(self) -> str:
        """The version of the helper on the host, or nothing."""
        path = self.host / "version"
        return path.read_text() if path.exists() else ""

    def touch(self, module: str) -> None:
        """Note that a host was changed, or that it was begun with."""
        if not self._task.check_mode:
            with open(self.host.parent.parent / "touched", "a") as file:
                file.write(f"{self.host.name} {module}\n")

    def set(self, module: str, version: str) -> dict[str, Any]:
        """Bring a version onto the host."""
        if version != self.state():
            if self._task.check_mode:
                return {"changed": True}
            self.touch(module)
            (self.host / "version").write_text(version)
        return {}

    def core_helper_files(self, before: str) -> dict[str, Any]:
        """Install or remove. New credentials are a change that no snapshot tells."""
        absent = self._task.args.get("state") == "absent"
        credentials = {"changed": True} if self._task.args.get("credentials") else {}
        return {
            "python": "/usr/bin/python3",
            **self.set("core_helper_files", "" if absent else self.wanted),
            **credentials,
        }

    def core_pattern(self, before: str) -> dict[str, Any]:
        """Nothing of its own: the version is the host's whole state."""
        other = (self.host / "other").exists()
        return {
            "core_pattern": PATTERN,
            "core_pipe_limit": "512",
            "next_boot": "|/bin/false" if other else PATTERN,
            "next_boot_file": "/etc/sysctl.d/99-x.conf" if other else "/etc/sysctl.d/x",
            "conflicts": [],
        }

    def core_helper_snapshot(self, before: str) -> dict[str, Any]:
        """Look, or bring back."""
        wanted = self._task.args.get("snapshot")
        if wanted:
            self.set("core_helper_snapshot", wanted["version"])
        drift = (self.host / "drift").exists()
        live = {"core_pattern": "|/bin/false" if drift else PATTERN if before else "core", "core_pipe_limit": "512"}
        return {
            "snapshot": {
                "version": before,
                "files": {"/etc/sysctl.d/x": f"kernel.core_pattern = {PATTERN}\n"},
                "live": live,
            },
            "installed": bool(before),
            "version": before,
            "kernel": "6.1",
            "engines": ["docker 1.0"],
        }

    def core_helper_canary(self, before: str) -> dict[str, Any]:
        """Say that a core came."""
        if self._task.check_mode:
            return {"outcome": "skipped"}
        number = re.search(r"\d+$", self.host.name)
        real = {"verdict": f"tried with {json.dumps(dict(self._task.args), sort_keys=True)}"}
        return {
            "outcome": "delivered",
            "size": 1000,
            "seconds": int(number.group() if number else 0) / 1000,
            **(real if "image" in self._task.args else {}),
        }
