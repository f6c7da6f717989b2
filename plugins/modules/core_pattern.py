#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the kernel's core pattern, live and for the next boot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: core_pattern
short_description: Makes the kernel start docker_core_helper at each crash, and restores the kernel's values
version_added: 1.0.0
description:
  - Sets C(kernel.core_pipe_limit) and then C(kernel.core_pattern), live and for the next boot, and reads both back. If
    the kernel shows other values than those written, everything is set back to what it was and the module fails.
  - Before the first change it keeps the live values in a file, from which O(state=absent) restores them.
  - Looks what else would set these values at the next boot, by the order of C(sysctl.d(5\)) and by the services that are
    known to write the pattern when they start, and either refuses or takes over, so that O(state=absent) can undo it.
  - The live value is set here and not in a handler, because notified handlers do not run when a batch of hosts is
    aborted.
  - With O(mode=socket) it also sets up the server, for which systemd opens the kernel's core-dump socket. The file for
    the next boot holds O(pattern) all the same, and the server sets the pattern of its socket when it waits there. If
    it does not get that far, everything is set back.
options:
  state:
    description: Whether the kernel shall start the helper.
    type: str
    choices: [present, absent]
    default: present
  pattern:
    description: The value for C(kernel.core_pattern). Needed for O(state=present).
    type: str
  pipe_limit:
    description:
      - The value for C(kernel.core_pipe_limit), how many crashes are at the helper at a time. Needed for O(state=present).
      - How many cores the helper delivers at once is a line of its configuration.
    type: int
  mode:
    description:
      - By which way the kernel gives cores to the helper. V(pipe) starts a helper at each crash, by O(pattern). V(socket) has a
        server wait at the kernel's core-dump socket, and fails before anything is changed on a host that cannot have it.
        V(auto) means V(socket) where the host can, and V(pipe) elsewhere.
      - V(socket) and V(auto) need O(socket) and O(service).
    type: str
    choices: [pipe, socket, auto]
    default: pipe
    version_added: 1.1.0
  socket:
    description: Content of C(docker-core-helper.socket).
    type: str
    version_added: 1.1.0
  service:
    description: Content of C(docker-core-helper.service), which is enabled and started.
    type: str
    version_added: 1.1.0
  record:
    description: The file that keeps the values from before the first change. Its directory must exist.
    type: str
    default: /opt/lib/docker_core_helper/previous.json
  sysctl_file:
    description:
      - The file that sets both values at the next boot; see C(sysctl.d(5\)).
      - With O(conflicts=take_over) it may become C(zz-docker-core-helper.conf) in the same directory.
    type: str
    default: /etc/sysctl.d/60-docker-core-helper.conf
  conflicts:
    description:
      - What to do if somebody else would win at the next boot. V(fail) names each and changes nothing. V(take_over) gives the
        file a name that sorts last, and where that is not enough comments lines out and disables services.
    type: str
    choices: [fail, take_over]
    default: fail
  chain_previous:
    description:
      - Whether the program that the pattern named before the first change is to get the host's core dumps.
      - If the pattern named a socket, that is an error before anything is changed, because only the kernel gives cores to it.
    type: bool
    default: false
    version_added: 1.1.0
attributes:
  check_mode:
    support: full
    description: Tells what a run would change.
  diff_mode:
    support: full
    description: Shows the live values and the file for the next boot.
author:
  - The docker-core-helper authors (@docker-core-helper)
"""

EXAMPLES = r"""
- name: Let the kernel start the helper
  core_pattern:
    pattern: "|/opt/bin/docker_core_helper %P %u %g"
    pipe_limit: 512

- name: Restore the kernel's values
  core_pattern:
    state: absent
"""

RETURN = r"""
live:
  description:
    - The live C(kernel.core_pattern) that this run has found, before it changed anything.
    - This and the next six are returned if the module fails, too.
  returned: always
  type: str
  sample: core
pipe_limit:
  description: The live C(kernel.core_pipe_limit) that this run has found.
  returned: always
  type: int
  sample: 0
next_boot:
  description: The C(kernel.core_pattern) of the next boot as this run has found it; empty if a service decides it.
  returned: always
  type: str
  sample: "|/bin/false"
next_boot_file:
  description: The file, or the service, that decides about it; empty if the kernel's own value stays.
  returned: always
  type: str
  sample: /etc/sysctl.d/99-kernel_core_pattern.conf
next_boot_owner:
  description: Which program or service gets the cores by the pattern of the next boot, empty if the pattern says that itself.
  returned: always
  type: str
  sample: Dynatrace OneAgent
conflicts:
  description:
    - A line for each file or service that would win over the wanted values at the next boot.
    - O(conflicts=take_over) takes these over.
  returned: always
  type: list
  elements: str
previous_handler:
  description: The command line of the program that got the host's core dumps before the first change; empty if none did.
  returned: always
  type: list
  elements: str
  sample: [/usr/lib/systemd/systemd-coredump, "%P", "%u"]
core_pattern:
  description: The live value after the run.
  returned: always
  type: str
  sample: "|/opt/bin/docker_core_helper %P %u %g"
core_pattern_at_boot:
  description: The value that O(sysctl_file) sets at the next boot, after the run.
  returned: if O(state=present)
  type: str
  sample: "|/opt/bin/docker_core_helper %P %u %g"
core_pipe_limit:
  description: The live value after the run.
  returned: always
  type: str
  sample: "512"
previous:
  description: The values from before the first change.
  returned: always
  type: dict
  sample: {core_pattern: core, core_pipe_limit: "0"}
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402 (Ansible wants the documentation first)

from ..module_utils.docker_core_helper import files, kernel, next_boot, owners  # noqa: E402
from ..module_utils.docker_core_helper.change import Change  # noqa: E402
from ..module_utils.docker_core_helper.kernel import SettingError  # noqa: E402
from ..module_utils.docker_core_helper.next_boot import NextBoot  # noqa: E402
from ..module_utils.docker_core_helper.owners import ONEAGENT  # noqa: E402
from ..module_utils.docker_core_helper.places import (  # noqa: E402
    RECORD,
    SOCKET_PATTERN,
    SYSCTL_FILE,
    WRITTEN,
    is_ours,
    last_of,
    library_of,
)
from ..module_utils.docker_core_helper.record import Record  # noqa: E402
from ..module_utils.docker_core_helper.server import MODES, Server  # noqa: E402
from ..module_utils.docker_core_helper.takeover import Takeover  # noqa: E402

HEADER = f"""\
{WRITTEN}; its docker_core_helper_state=absent removes it.
# Above 0: the kernel waits for the helper, and drops the crashes that come while so many are at the helper.
"""


class ConflictError(Exception):
    """A file or service of somebody else would win at the next boot; the text names it, the place, and the remedy."""


class Settings:
    """Both settings of the kernel: live, for the next boot, and as they were before."""

    def __init__(self, module: AnsibleModule) -> None:
        """Read the parameters; look at the host, change nothing."""
        self.module = module
        first: str = module.params["sysctl_file"]
        self.live = {name: kernel.get(name) for name in kernel.NAMES}
        self.record = Record(module, module.params["record"], self.live)
        self.takeover = Takeover(module, self.record.taken_over)
        self.server = Server(module)
        self.sysctl_file = self.takeover.sysctl_file or first
        # Our file for the next boot has one of two names.
        own = (first, last_of(first))
        self.change = Change(module, self.live, self.record, self.takeover, self.server, own)
        self.others = NextBoot(own)
        self.diff: list[dict[str, str]] = []
        self.conflicts: list[str] = []

    def found(self) -> dict[str, object]:
        """Return what this run has found, for Ansible."""
        value, file = self.others.pattern(self.live["core_pattern"])
        limit = self.live["core_pipe_limit"]
        return {
            "live": self.live["core_pattern"],
            "pipe_limit": int(limit) if limit.isdigit() else 0,
            "next_boot": value,
            "next_boot_file": file,
            "next_boot_owner": owners.owner_of(value),
            "conflicts": self.conflicts,
            "record": self.record.path,
            "previous_handler": kernel.handler_of(self.record.previous["core_pattern"]),
        }

    # -- the two states

    def present(self) -> dict[str, object]:
        """Set the wanted values and return the result for Ansible. Raises ConflictError where somebody else would win."""
        parameters = self.module.params
        wanted = {"core_pattern": parameters["pattern"], "core_pipe_limit": str(parameters["pipe_limit"])}
        self.change.refuse_files_of_others()
        units = self.server.wanted(parameters["mode"], parameters["socket"], parameters["service"])
        is_resident = any(units.values())
        self.conflicts = self.others.conflicts(self.sysctl_file, wanted)
        if parameters["chain_previous"]:
            self.check_previous_handler()
        self.record.warn_of_files(self.module, self.live["core_pattern"])
        if self.conflicts and parameters["conflicts"] == "fail":
            raise ConflictError(" | ".join(self.conflicts))
        self.sysctl_file = self.takeover.plan(self.others, self.sysctl_file, wanted)
        services = list(self.others.services)
        edited = {path: self.takeover.comment_out(path) for path in self.takeover.files()}
        before = {path: files.read_exactly(path) for path in edited}
        own = {
            path: HEADER + kernel.lines(wanted) if path == self.sysctl_file else None for path in self.change.own_files
        }
        record = self.record.with_taken_over(self.takeover.recorded())
        for path, content in edited.items():
            self.show(path, before[path], content)
        for service in services:
            self.show(service, "enabled\n", "disabled\n")
        changes_server = self.server.steps(units, library_of(files.read(kernel.entry_of(wanted["core_pattern"]) or "")))
        self.diff += changes_server
        if not self.module.check_mode:
            with self.change.all_or_nothing(before, services):
                # The record first: once the host is changed, nobody else knows what it had.
                self.change.write_record(record)
                for service in services:
                    self.takeover.disable(service)
                self.change.edit_files(before, edited)
                self.change.write_own_files(own)
                runs = is_resident and not changes_server and self.live["core_pattern"] == SOCKET_PATTERN
                kernel.set_live(wanted, kernel.NAMES[:1] if runs else kernel.NAMES)
                # Last of all: it starts the helper.
                if changes_server or (is_resident and not runs):
                    self.server.change(units)
        live = {**wanted, "core_pattern": SOCKET_PATTERN} if is_resident else wanted
        return {**self.result(live, own, record), "core_pattern_at_boot": wanted["core_pattern"]}

    def absent(self) -> dict[str, object]:
        """Restore the previous values, unless somebody else has set others meanwhile, and what was taken over."""
        previous = self.record.previous
        pattern = self.live["core_pattern"]
        wanted = dict(self.live)
        if kernel.is_the_helpers(pattern) or pattern == previous["core_pattern"]:
            wanted = previous
        else:
            owner = owners.owner_of(pattern)
            self.module.warn(
                f"somebody else has set kernel.core_pattern meanwhile: left as it is, {self.live}{owner and f', {owner}'};"
                f" before the first run it was {previous}"
            )
        for path, kept in owners.kept_patterns(next_boot.ROOT):
            if kernel.is_the_helpers(kept):
                self.module.warn(
                    f"{path} names the helper, which is removed: write the pattern {previous['core_pattern']!r} into that file,"
                    " which Dynatrace OneAgent goes by at each crash and when it is uninstalled"
                )
        # What somebody else has under our names was refused, and stays.
        own: dict[str, str | None] = {
            path: None
            for path, content in self.change.own_files.items()
            if self.record.text is not None or is_ours(content)
        }
        before = {path: files.read_exactly(path) for path in self.takeover.files()}
        edited = {path: self.takeover.restore_lines(path) for path in before}
        for path, content in edited.items():
            self.show(path, before[path], content)
        for service in self.takeover.services:
            self.show(service, "disabled\n", "enabled\n")
        units = self.server.wanted("pipe", None, None)
        changes_server = self.server.steps(units, None)
        self.diff += changes_server
        if not self.module.check_mode:
            with self.change.all_or_nothing(before, []):
                # The pattern first: without a limit no helper may be started.
                kernel.set_live(wanted, tuple(reversed(kernel.NAMES)))
                self.change.write_own_files(own)
                self.change.edit_files(before, edited)
                if changes_server:
                    self.server.change(units)
                    # When the service ends it sets what the next boot would set.
                    kernel.set_live(wanted, kernel.NAMES[1:])
                for service in self.takeover.services:
                    self.takeover.enable(service)
                files.write_or_remove(self.module, self.record.path, None)
        return self.result(wanted, own, None)

    def check_previous_handler(self) -> None:
        """Raise SettingError if the previous owner of the pattern cannot get the host's cores from the helper."""
        pattern = self.record.previous["core_pattern"]
        if owners.socket_of(pattern):
            raise SettingError(
                f"docker_core_helper_chain=previous cannot pass a core to {owners.owner_of(pattern)}, which is"
                f" kernel.core_pattern from before the first run, {pattern!r}: name a program of this host in"
                " docker_core_helper_chain, such as [/usr/lib/systemd/systemd-coredump, ...] with the words of"
                " /usr/lib/sysctl.d/50-coredump.conf, or set docker_core_helper_chain=none"
            )
        for path, kept in owners.kept_patterns(next_boot.ROOT):
            if ONEAGENT.has_set(pattern) and kernel.is_the_helpers(kept):
                raise SettingError(
                    f"{path} names the helper, and docker_core_helper_chain=previous is Dynatrace OneAgent: they would pass"
                    " each core to one another without end. Write the pattern from before OneAgent into that file, such as"
                    " core, or set docker_core_helper_chain=none"
                )

    # -- what Ansible gets

    def show(self, name: str, before: str, after: str) -> None:
        """Add a change to what --diff shows."""
        if before != after:
            self.diff.append(files.diff_step(name, before, after))

    def result(self, live: dict[str, str], own: dict[str, str | None], record: str | None) -> dict[str, object]:
        """Return what Ansible reports for these values."""
        if live != self.live:
            self.show(kernel.KERNEL, kernel.lines(self.live), kernel.lines(live))
        for path, content in own.items():
            self.show(path, self.change.wrong_access[path] + (self.change.own_files[path] or ""), content or "")
        path = self.record.path
        self.show(path, self.change.wrong_access[path] + (self.record.text or ""), record or "")
        return {
            "changed": bool(self.diff),
            "diff": self.diff,
            "previous": self.record.previous,
            **self.found(),
            **live,
        }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "pattern": {"type": "str"},
            "pipe_limit": {"type": "int"},
            "record": {"type": "str", "default": RECORD},
            "sysctl_file": {"type": "str", "default": SYSCTL_FILE},
            "conflicts": {"type": "str", "choices": ["fail", "take_over"], "default": "fail"},
            "mode": {"type": "str", "choices": list(MODES), "default": "pipe"},
            "socket": {"type": "str"},
            "service": {"type": "str"},
            "chain_previous": {"type": "bool", "default": False},
        },
        required_if=[
            ("state", "present", ["pattern", "pipe_limit"]),
            ("mode", "socket", ["socket", "service"]),
            ("mode", "auto", ["socket", "service"]),
        ],
        supports_check_mode=True,
    )
    try:
        settings = Settings(module)
    except (SettingError, OSError) as error:
        module.fail_json(msg=f"{files.reason(error)}; nothing was changed")
    try:
        result = settings.present() if module.params["state"] == "present" else settings.absent()
    except ConflictError as error:
        module.fail_json(
            msg=f"at the next boot somebody else would win, nothing was changed: {error}", **settings.found()
        )
    except (SettingError, OSError) as error:
        module.fail_json(msg=f"{files.reason(error)}; {settings.change.outcome()}", **settings.found())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
