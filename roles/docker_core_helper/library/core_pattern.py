#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the kernel's core pattern, live and for the next boot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: core_pattern
short_description: Makes the kernel start docker_core_helper at each crash, and gives the kernel back
version_added: 1.0.0
description:
  - Sets C(kernel.core_pipe_limit) and then C(kernel.core_pattern), live and for the next boot, and reads both back. If
    the kernel shows other values than those written, everything is set back to what it was and the module fails.
  - Before the first change it keeps the live values in a file, from which O(state=absent) restores them.
  - The live value is set here and not in a handler, because notified handlers do not run when a batch of hosts is
    aborted.
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
    description: The value for C(kernel.core_pipe_limit). Needed for O(state=present).
    type: int
  record:
    description: The file that keeps the values from before the first change. Its directory must exist.
    type: str
    default: /opt/lib/docker_core_helper/previous.json
  sysctl_file:
    description: The file that sets both values at the next boot; see C(sysctl.d(5\)).
    type: str
    default: /etc/sysctl.d/60-docker-core-helper.conf
attributes:
  check_mode:
    support: full
    description: Tells what a run would change.
  diff_mode:
    support: full
    description: Shows the live values and the file for the next boot.
author:
  - The docker-core-helper authors
"""

EXAMPLES = r"""
- name: Let the kernel start the helper
  core_pattern:
    pattern: "|/opt/bin/docker_core_helper %P %u %g"
    pipe_limit: 64

- name: Give the kernel back
  core_pattern:
    state: absent
"""

RETURN = r"""
core_pattern:
  description: The live value after the run.
  returned: always
  type: str
  sample: "|/opt/bin/docker_core_helper %P %u %g"
core_pipe_limit:
  description: The live value after the run.
  returned: always
  type: str
  sample: "64"
previous:
  description: The values from before the first change.
  returned: always
  type: dict
  sample: {core_pattern: core, core_pipe_limit: "0"}
"""

import contextlib  # noqa: E402 (Ansible wants the documentation first)
import json  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

HELPER = "docker_core_helper"
KERNEL = "/proc/sys/kernel"
# In this order: a helper must never be started without the limit, because the kernel would then not wait for it.
NAMES = ("core_pipe_limit", "core_pattern")
# What the kernel has if nobody sets anything.
DEFAULTS = {"core_pattern": "core", "core_pipe_limit": "0"}
HEADER = """\
# Written by the Ansible role docker_core_helper; its docker_core_helper_state=absent removes it.
# Above 0: the kernel waits for the helper, and at most so many cores are taken at a time.
"""


class SettingError(Exception):
    """A value cannot be set; the text names it, what the kernel shows, and the remedy."""


def read(path: str) -> str | None:
    """Return the content of a file, None if there is none."""
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def get(name: str) -> str:
    """Return a live value of the kernel."""
    return (read(os.path.join(KERNEL, name)) or "").rstrip("\n")


def set_live(values: dict[str, str], names: tuple[str, ...]) -> None:
    """Set live values in the order of ``names`` and read each back, as some kernels take what they cannot use.

    Raises SettingError if the kernel refuses one or shows another one.
    """
    for name in names:
        value = values[name]
        if get(name) == value:
            continue
        try:
            with open(os.path.join(KERNEL, name), "w", encoding="utf-8") as file:
                file.write(value + "\n")
        except OSError as error:
            raise SettingError(f"kernel.{name}: the kernel refuses {value!r}: {error.strerror}") from error
        if get(name) != value:
            raise SettingError(f"kernel.{name}: wrote {value!r}, but the kernel shows {get(name)!r}")


def lines(values: dict[str, str]) -> str:
    """Return values of the kernel as sysctl.d(5) has them."""
    return "".join(f"kernel.{name} = {values[name]}\n" for name in NAMES)


def starts_the_helper(pattern: str) -> bool:
    """Tell whether a core pattern is one of ours, however it names the helper and its options."""
    return any(os.path.basename(word) == HELPER for word in pattern.lstrip("|").split())


class Settings:
    """Both settings of the kernel: live, for the next boot, and as they were before."""

    def __init__(self, module: AnsibleModule) -> None:
        """Take the parameters; look at the host, change nothing."""
        self.module = module
        self.record: str = module.params["record"]
        self.sysctl_file: str = module.params["sysctl_file"]
        self.live = {name: get(name) for name in NAMES}
        self.boot = read(self.sysctl_file)
        self.recorded = read(self.record)
        self.previous: dict[str, str] = json.loads(self.recorded) if self.recorded else self.first_record()

    def first_record(self) -> dict[str, str]:
        """Return the values to come back to if none are recorded yet."""
        if starts_the_helper(self.live["core_pattern"]):
            self.module.warn(
                "kernel.core_pattern starts the helper already, and no values from before are known:"
                f" removal will set {DEFAULTS}"
            )
            return dict(DEFAULTS)
        return dict(self.live)

    def write(self, path: str, content: str) -> None:
        """Write a file that after a crash of the host is either the old or the new one."""
        descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path))
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            os.fchmod(descriptor, 0o644)
            file.flush()
            os.fsync(descriptor)
        self.module.set_context_if_different(temporary, self.module.selinux_default_context(path), False)
        os.replace(temporary, path)

    def put(self, path: str, content: str | None) -> None:
        """Give a file this content, or remove it."""
        if content is not None:
            self.write(path, content)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def present(self) -> dict[str, object]:
        """Set the wanted values and return the result for Ansible."""
        parameters = self.module.params
        wanted = {"core_pattern": parameters["pattern"], "core_pipe_limit": str(parameters["pipe_limit"])}
        boot = HEADER + lines(wanted)
        record = self.recorded or json.dumps(self.previous) + "\n"
        if not self.module.check_mode:
            try:
                # The record first: once the kernel is changed, nobody else knows what it had.
                if self.recorded is None:
                    self.put(self.record, record)
                if self.boot != boot:
                    self.put(self.sysctl_file, boot)
                set_live(wanted, NAMES)
            except (OSError, SettingError):
                self.take_back()
                raise
        return self.result(wanted, boot, record)

    def take_back(self) -> None:
        """Undo a change that failed, as far as possible."""
        with contextlib.suppress(OSError, SettingError):
            set_live(self.live, tuple(reversed(NAMES)))
        with contextlib.suppress(OSError):
            self.put(self.sysctl_file, self.boot)
            self.put(self.record, self.recorded)

    def absent(self) -> dict[str, object]:
        """Bring the previous values back, unless somebody else has set others meanwhile."""
        wanted = dict(self.live)
        if starts_the_helper(self.live["core_pattern"]) or self.live["core_pattern"] == self.previous["core_pattern"]:
            wanted = self.previous
        else:
            self.module.warn(
                f"somebody else has set kernel.core_pattern meanwhile: left as it is, {self.live};"
                f" before the first run it was {self.previous}"
            )
        if not self.module.check_mode:
            try:
                # The pattern first: without a limit no helper may be started.
                set_live(wanted, tuple(reversed(NAMES)))
                self.put(self.sysctl_file, None)
                self.put(self.record, None)
            except (OSError, SettingError):
                self.take_back()
                raise
        return self.result(wanted, None, None)

    def result(self, live: dict[str, str], boot: str | None, record: str | None) -> dict[str, object]:
        """Return what Ansible reports for these values."""
        diff = []
        if live != self.live:
            diff.append(
                {"before_header": KERNEL, "after_header": KERNEL, "before": lines(self.live), "after": lines(live)}
            )
        for path, old, new in ((self.sysctl_file, self.boot, boot), (self.record, self.recorded, record)):
            if old != new:
                diff.append({"before_header": path, "after_header": path, "before": old or "", "after": new or ""})
        return {"changed": bool(diff), "diff": diff, "previous": self.previous, **live}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "pattern": {"type": "str"},
            "pipe_limit": {"type": "int"},
            "record": {"type": "str", "default": "/opt/lib/docker_core_helper/previous.json"},
            "sysctl_file": {"type": "str", "default": "/etc/sysctl.d/60-docker-core-helper.conf"},
        },
        required_if=[("state", "present", ["pattern", "pipe_limit"])],
        supports_check_mode=True,
    )
    try:
        settings = Settings(module)
        result = settings.present() if module.params["state"] == "present" else settings.absent()
    except SettingError as error:
        module.fail_json(msg=f"{error}; everything is as it was before this run")
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}; everything is as it was before this run")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
