# SPDX-License-Identifier: Apache-2.0
"""The server on a host: the units of systemd that start it at the kernel's core-dump socket; docs/socket.md."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule

from . import files, kernel, next_boot, places
from .kernel import SettingError
from .places import SOCKET_PATTERN, is_ours
from .programs import program

SERVICE, SOCKET = "docker-core-helper.service", "docker-core-helper.socket"
MODES = ("pipe", "socket", "auto")
PROPERTIES = ("LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload", "StatusText")


def not_brought_back(what: list[str]) -> str:
    """Return for the message of a run that failed what it could not undo, "" if it has undone all."""
    return f"and these could not be brought back: {'; '.join(what)}: run this again when that is fixed" if what else ""


class Server:
    """What of the server is on the host, and the change to what is wanted."""

    def __init__(self, module: AnsibleModule, encoding: str = "utf-8") -> None:
        """Look at the units; ``encoding`` is that of their contents. Changes nothing."""
        self.module = module
        self.encoding = encoding
        # The socket comes first: the service needs it.
        self.paths = [os.path.join(places.UNITS, name) for name in (SOCKET, SERVICE)]
        self.before = {path: files.read(path, encoding) for path in self.paths}
        # What could not be brought back after a change that has failed, and why.
        self.not_undone: list[str] = []
        self.systemctl = program("systemctl") if next_boot.systemd_runs() else None

    def wanted(self, mode: str, socket: str | None, service: str | None) -> dict[str, str | None]:
        """Return the units with their contents, None for those that shall not be there.

        Raises SettingError where the mode needs a socket that this host cannot have, or where a unit would be lost.
        """
        why = "" if mode == "pipe" else self.why_not()
        if why and mode == "socket":
            raise SettingError(f"docker_core_helper_mode=socket needs another host: {why}; set it to pipe or auto")
        if mode == "pipe" or why:
            return dict.fromkeys(self.paths)
        for path, content in self.before.items():
            if not is_ours(content):
                raise SettingError(f"{path} was written by somebody else, and would be lost: remove it")
        return dict(zip(self.paths, (socket, service)))

    def why_not(self) -> str:
        """Return why this host cannot have a server, "" if it can. The kernel itself is asked, not its version."""
        if not kernel.has_sockets():
            return "its kernel knows no core-dump socket, which Linux 6.17 and newer have"
        return "" if self.systemctl else "systemd does not run there"

    def is_active(self) -> bool:
        """Return whether the server runs, by what systemd says."""
        return bool(self.systemctl) and self._states()[SERVICE]["ActiveState"] == "active"

    def steps(self, wanted: dict[str, str | None], library: str | None) -> list[dict[str, str]]:
        """Return what is to be changed, as --diff shows it. ``library`` is what the server must have loaded."""
        steps = []
        for path, content in wanted.items():
            before = self.before[path]
            if content is None and not is_ours(before):
                continue
            wrong = files.wrong_access(path) if content is not None else ""
            if before != content or wrong:
                steps.append(files.diff_step(path, wrong + (before or ""), content))
        if self._are_wanted(wanted) and self.systemctl:
            state, right = self._state(library), "enabled, active\n"
            if state != right:
                steps.append(files.diff_step(SERVICE, state, right))
        return steps

    def change(self, wanted: dict[str, str | None]) -> None:
        """Bring the units to what is wanted, and have the server run or end.

        The live pattern must be another one than that of the socket: then no crash comes while nobody would accept it. Raises
        SettingError, and leaves the units as they were, as far as ``not_undone`` does not say otherwise.
        """
        try:
            if self._are_wanted(wanted):
                self._install(wanted)
            else:
                self._remove()
        except (SettingError, OSError):
            try:
                if self._are_wanted(self.before):
                    self._install(self.before)
                else:
                    self._remove()
            except (SettingError, OSError) as error:
                self.not_undone.append(f"{SERVICE}: {files.reason(error)}")
            raise

    def _install(self, units: dict[str, str | None]) -> None:
        if files.read(self.paths[0], self.encoding) not in (None, units[self.paths[0]]):
            # Another socket: this one goes, once each crash that waits there was accepted.
            self._systemctl("stop", SERVICE)
            self._systemctl("stop", SOCKET)
        for path, content in units.items():
            files.write(self.module, path, content or "", encoding=self.encoding)
        self._systemctl("daemon-reload")
        self._systemctl("enable", SOCKET, SERVICE)
        self._systemctl("start", SOCKET)
        self._systemctl("restart", SERVICE)
        pattern = kernel.get("core_pattern")
        if pattern != SOCKET_PATTERN:
            raise SettingError(f"{SERVICE} runs, and kernel.core_pattern is {pattern!r}, not {SOCKET_PATTERN!r}")

    def _remove(self) -> None:
        paths = [path for path in self.paths if os.path.exists(path) and is_ours(files.read(path, self.encoding))]
        if not paths:
            return
        if self.systemctl:
            # In this order: a socket at which a crash waits would start the service again.
            for name in (SERVICE, SOCKET):
                if self._states()[name]["LoadState"] == "loaded":
                    self._systemctl("stop", name)
            self._systemctl("disable", *(os.path.basename(path) for path in paths))
        for path in paths:
            os.unlink(path)
        if self.systemctl:
            self._systemctl("daemon-reload")
            # Units that have failed would be listed until the next boot.
            self.module.run_command([self.systemctl, "reset-failed", SERVICE, SOCKET])

    def _are_wanted(self, units: dict[str, str | None]) -> bool:
        return all(content is not None and is_ours(content) for content in units.values())

    def _state(self, library: str | None) -> str:
        states = self._states()
        service = states[SERVICE]
        enabled = all(state["UnitFileState"] == "enabled" for state in states.values())
        text = f"{'enabled' if enabled else 'disabled'}, {service['ActiveState'] or 'unknown'}"
        loaded = service["StatusText"].rpartition(" ")[2]
        outdated = any(state["NeedDaemonReload"] == "yes" for state in states.values())
        if outdated or (service["ActiveState"] == "active" and library and loaded != library):
            text += ", of another version"
        return f"{text}\n"

    def _states(self) -> dict[str, dict[str, str]]:
        """Return the properties of both units."""
        states = {}
        for name in (SERVICE, SOCKET):
            said = self._systemctl("show", f"--property={','.join(PROPERTIES)}", name)
            found = dict(line.partition("=")[::2] for line in said.splitlines())
            states[name] = {key: found.get(key, "") for key in PROPERTIES}
        return states

    def _systemctl(self, *words: str) -> str:
        """Run systemctl and return what it prints. Raises SettingError, which says what has failed."""
        code, output, said = self.module.run_command([str(self.systemctl), *words], environ_update={"LC_ALL": "C"})
        if code:
            reason = " ".join((said or output).split())
            raise SettingError(f"systemctl {' '.join(words)}: {reason}; journalctl --unit={SERVICE} says more")
        return str(output)
