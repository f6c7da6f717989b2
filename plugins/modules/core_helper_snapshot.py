#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: how a host is, for a table of the fleet, and to come back to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: core_helper_snapshot
short_description: Reads what a rollout of docker_core_helper changes on a host, and brings it back
version_added: 1.0.0
description:
  - Without O(snapshot) reads the files that a rollout writes, the kernel's live values, and what a table of the fleet shows.
    Changes nothing.
  - With O(snapshot), what an earlier run has returned, brings a host back to that version of the helper. Its library
    must still be on the host, where M(core_helper_files) keeps the version before. A host that had no helper is not brought
    back here - that is what O(core_helper_files#module:state=absent) and O(core_pattern#module:state=absent) are for.
options:
  snapshot:
    description: The V(snapshot) that the run to come back to has returned.
    type: dict
  bin_dir:
    description: Directory of the helper.
    type: str
    default: /opt/bin
  sysctl_file:
    description: The file that sets the kernel's values at the next boot.
    type: str
    default: /etc/sysctl.d/60-docker-core-helper.conf
attributes:
  check_mode:
    support: full
    description: Tells what a run would change.
  diff_mode:
    support: full
    description: Shows the files and values that are brought back.
author:
  - The docker-core-helper authors
"""

EXAMPLES = r"""
- name: Look at the host
  core_helper_snapshot:
  register: before

- name: Bring it back
  core_helper_snapshot:
    snapshot: "{{ before.snapshot }}"
"""

RETURN = r"""
snapshot:
  description: The content of each file, V(null) where there is none, and the live values.
  returned: always
  type: dict
  sample: {files: {/opt/bin/docker_core_helper: null}, live: {core_pattern: core, core_pipe_limit: "0"}}
installed:
  description: Whether the helper is there.
  returned: always
  type: bool
  sample: true
version:
  description: The version of the helper and of its library, empty if it is not there.
  returned: always
  type: str
  sample: 1.0.0 (2f7c0d1e9a34)
kernel:
  description: The release of the kernel.
  returned: always
  type: str
  sample: 6.12.107
engines:
  description: The container engines that are installed, with their versions.
  returned: always
  type: list
  elements: str
  sample: [docker 20.10.24, podman 4.3.1]
"""

import os  # noqa: E402 (Ansible wants the documentation first)
import re  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

HELPER = "docker_core_helper"
CONFIGURATION = "/etc/docker_core_helper.conf"
KERNEL = "/proc/sys/kernel"
# The other name that the file for the next boot may have; see core_pattern.
LAST = "zz-docker-core-helper.conf"
# In this order: a helper must never be started without the limit.
NAMES = ("core_pipe_limit", "core_pattern")
ENGINES = ("docker", "podman", "containerd")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class RestoreError(Exception):
    """The host cannot be brought back; the text says why, and what to do."""


def read(path: str) -> str | None:
    """Return the content of a file, None if there is none."""
    try:
        # Latin-1 brings any byte into JSON, and back.
        with open(path, encoding="latin-1", newline="") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def answer(*words: str) -> str:
    """Return what a program prints, "" if it does not run."""
    try:
        result = subprocess.run(
            words,
            env={"PATH": PATH, "HOME": "/"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=True,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def engines() -> list[str]:
    """Return the container engines that are installed; none of them is asked to start anything."""
    found = []
    for name in ENGINES:
        program = shutil.which(name, path=PATH)
        if program:
            number = re.search(r"\d+\.[\w.+~-]*\w", answer(program, "--version"))
            found.append(f"{name} {number.group()}" if number else name)
    return found


def library_of(entry: str) -> str:
    """Return the directory that a helper takes its library from, "" if it was not installed by the role."""
    found = re.search(r'^LIBRARY = "(/.*)"$', entry, re.MULTILINE)
    return found.group(1) if found else ""


def version_of(path: str, entry: str | None) -> str:
    """Return the version of the installed helper: its own number, and the name of its library.

    It is read, and not asked: nobody has seen yet who owns it, and this is root.
    """
    if entry is None:
        return ""
    library = library_of(entry)
    package = read(os.path.join(library or os.path.dirname(path), "core_helper/__init__.py"))
    found = re.search(r'^__version__ = "(.+)"$', package or "", re.MULTILINE)
    number = found.group(1) if found else "unknown"
    return f"{number} ({os.path.basename(library)})" if library else number


def take(paths: list[str]) -> dict[str, dict[str, str | None]]:
    """Return how the host is."""
    live = {name: (read(os.path.join(KERNEL, name)) or "").rstrip("\n") for name in NAMES}
    return {"files": {path: read(path) for path in paths}, "live": live}


def write(module: AnsibleModule, path: str, content: str | None, mode: int) -> None:
    """Give a file this content, in one step, or remove it."""
    if content is None:
        os.unlink(path)
        return
    descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path))
    try:
        with open(descriptor, "w", encoding="latin-1", newline="") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        module.set_context_if_different(temporary, module.selinux_default_context(path), False)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = path  # A full disk names no file.
        raise


def set_live(live: dict[str, str]) -> None:
    """Set the kernel's values, and read them back."""
    # A helper must not be started without the limit: the limit comes before it, and goes after it.
    for name in NAMES if HELPER in live["core_pattern"] else reversed(NAMES):
        with open(os.path.join(KERNEL, name), "w", encoding="latin-1") as file:
            file.write(live[name] + "\n")
        shown = (read(os.path.join(KERNEL, name)) or "").rstrip("\n")
        if shown != live[name]:
            raise RestoreError(f"kernel.{name}: wrote {live[name]!r}, but the kernel shows {shown!r}")


def restore(module: AnsibleModule, entry: str, now: dict[str, dict], wanted: dict[str, dict]) -> list[dict[str, str]]:
    """Bring the host back and return what was changed, as --diff shows it."""
    before = wanted["files"].get(entry)
    if before is None:
        raise RestoreError(f"{entry} was not there before: remove the helper, with docker_core_helper_state=absent")
    library = library_of(before)
    if library and not os.path.isdir(library):
        raise RestoreError(
            f"the library of the version before is gone: {library}; nothing was changed. Roll that version out again, from its"
            " own checkout"
        )
    diff = []
    # In the order of the snapshot: the helper itself first, as its library is there already.
    for path, content in wanted["files"].items():
        if now["files"].get(path) != content:
            diff.append({"header": path, "before": now["files"].get(path) or "", "after": content or ""})
            if not module.check_mode:
                write(module, path, content, 0o755 if path == entry else 0o644)
    if now["live"] != wanted["live"]:
        pattern = now["live"]["core_pattern"]
        if HELPER not in pattern and pattern != wanted["live"]["core_pattern"]:
            module.warn(f"somebody else has set kernel.core_pattern since the rollout: replaced, it was {pattern!r}")
        shown = ["".join(f"kernel.{name} = {state['live'][name]}\n" for name in NAMES) for state in (now, wanted)]
        diff.append({"header": KERNEL, "before": shown[0], "after": shown[1]})
        if not module.check_mode:
            set_live(wanted["live"])
    return [
        {
            "before_header": step["header"],
            "after_header": step["header"],
            "before": step["before"],
            "after": step["after"],
        }
        for step in diff
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "snapshot": {"type": "dict"},
            "bin_dir": {"type": "str", "default": "/opt/bin"},
            "sysctl_file": {"type": "str", "default": "/etc/sysctl.d/60-docker-core-helper.conf"},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    entry = os.path.join(parameters["bin_dir"], HELPER)
    # Not the record of what the host had before the first run: that stays as it is until the removal, with what was taken
    # over from others.
    last = os.path.join(os.path.dirname(parameters["sysctl_file"]), LAST)
    paths = [entry, CONFIGURATION, parameters["sysctl_file"], last]
    diff: list[dict[str, str]] = []
    try:
        snapshot = take(paths)
        if parameters["snapshot"]:
            diff = restore(module, entry, snapshot, parameters["snapshot"])
            snapshot = snapshot if module.check_mode else take(paths)
    except RestoreError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    content = snapshot["files"][entry]
    module.exit_json(
        changed=bool(diff),
        diff=diff,
        snapshot=snapshot,
        installed=content is not None,
        version=version_of(entry, content),
        kernel=os.uname().release,
        engines=engines(),
    )


if __name__ == "__main__":
    main()
