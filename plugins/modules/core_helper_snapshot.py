#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: how a host is, for a table of the fleet, and to come back to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: core_helper_snapshot
short_description: Reads what a rollout of docker_core_helper changes on a host, and restores it
version_added: 1.0.0
description:
  - Without O(snapshot) reads the files that a rollout writes, the kernel's live values, and what a table of the fleet shows.
    Changes nothing.
  - With O(snapshot), what an earlier run has returned, brings a host back to that version of the helper. Its library
    must still be on the host, where M(dockercore.helper.core_helper_files) keeps the version before.
  - A host that had no helper is not brought back here. That is what O(dockercore.helper.core_helper_files#module:state=absent)
    and O(dockercore.helper.core_pattern#module:state=absent) are for.
  - The credentials of a sender are never in a snapshot. They stay as they are, or go if that version had no sender.
options:
  snapshot:
    description: The V(snapshot) that the run to come back to has returned.
    type: dict
  bin_dir:
    description: Directory of the helper.
    type: str
    default: /opt/bin
  lib_dir:
    description: Directory of the library's versions, and of the uploader of the sender.
    type: str
    default: /opt/lib/docker_core_helper
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
  - The docker-core-helper authors (@docker-core-helper)
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
owner:
  description: Which program or service gets the cores by the live C(kernel.core_pattern); empty if the pattern itself says it.
  returned: always
  type: str
  sample: the socket /run/systemd/coredumpd/kernel (systemd-coredump)
suid_dumpable:
  description: The live C(fs.suid_dumpable), empty if it cannot be read.
  returned: always
  type: str
  sample: "0"
undumpable:
  description:
    - The programs that run in containers now and that the kernel does not dump because that value is 0.
    - They are set-id, have file capabilities, or have changed their user.
  returned: always
  type: list
  elements: str
  sample: [nginx]
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
  description:
    - The container engines that are installed, with their versions. That of Docker is its daemon's.
    - The client may be another one. No daemon is started for that.
  returned: always
  type: list
  elements: str
  sample: [docker 20.10.24, podman 4.3.1]
"""

import glob  # noqa: E402 (Ansible wants the documentation first)
import os  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import struct  # noqa: E402
import subprocess  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils.docker_core_helper import files, kept_cores, kernel, owners, places  # noqa: E402
from ..module_utils.docker_core_helper.kernel import NAMES, SettingError  # noqa: E402
from ..module_utils.docker_core_helper.places import (  # noqa: E402
    BIN_DIR,
    HELPER,
    LIB_DIR,
    SOCKET_PATTERN,
    SYSCTL_FILE,
    last_of,
    library_of,
)
from ..module_utils.docker_core_helper.sender import Sender  # noqa: E402
from ..module_utils.docker_core_helper.server import Server, not_brought_back  # noqa: E402
from ..module_utils.docker_core_helper.usable_python import UnusableError  # noqa: E402

SUID_DUMPABLE = "/proc/sys/fs/suid_dumpable"
PROC = "/proc"
OF_A_CONTAINER = re.compile("[0-9a-f]{64}")  # In the path of a control group.
AT_SECURE = 23
ENGINES = ("docker", "podman", "containerd")
SERVER_VERSION = ("version", "--format", "{{.Server.Version}}")
# Brings any byte into JSON, and back.
ENCODING = "latin-1"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class RestoreError(Exception):
    """The host cannot be brought back; the text says why, and what to do."""


def read(path: str) -> str | None:
    """Return the content of a file, None if there is none."""
    try:
        return files.read(path, ENCODING)
    except NotADirectoryError:
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


def number_in(text: str) -> str:
    """Return the first number of a version in a text, "" if there is none."""
    found = re.search(r"\d+\.[\w.+~-]*\w", text)
    return found.group() if found else ""


def runs(name: str) -> bool:
    """Return whether there is a process of a program of this name."""
    for path in glob.glob("/proc/[0-9]*/comm"):
        try:
            if read(path) == f"{name}\n":
                return True
        except OSError:  # It has ended meanwhile.
            continue
    return False


def undumpable() -> list[str]:
    """Return the programs that run in containers and that the kernel would not dump where fs.suid_dumpable is 0.

    The files in the /proc/PID of such a process are not of its user; proc_pid(5). Those of root's are known by AT_SECURE.
    """
    names = set()
    own = os.readlink(f"{PROC}/self/ns/pid")
    for directory in glob.glob(f"{PROC}/[0-9]*"):
        try:
            if os.readlink(f"{directory}/ns/pid") == own and not OF_A_CONTAINER.search(
                read(f"{directory}/cgroup") or ""
            ):
                continue
            user = os.stat(directory).st_uid
            if os.stat(f"{directory}/environ").st_uid != user or (user == 0 and is_secure(f"{directory}/auxv")):
                names.add((read(f"{directory}/comm") or "").rstrip("\n"))
        except OSError:  # It has ended meanwhile.
            continue
    return sorted(names)


def is_secure(auxv: str) -> bool:
    """Return whether a program was executed set-id or with file capabilities; one of 32 bits is never known as such."""
    vector = (read(auxv) or "").encode(ENCODING)
    return dict(struct.iter_unpack("=QQ", vector[: len(vector) // 16 * 16])).get(AT_SECURE) == 1


def engines() -> list[str]:
    """Return the container engines that are installed; none of them is asked to start anything.

    Docker's client is another package than its daemon. To ask the daemon would start one that waits at a socket of systemd.
    """
    found = []
    for name in ENGINES:
        program = shutil.which(name, path=PATH)
        if not program:
            continue
        number = number_in(answer(program, "--version"))
        if name == "docker":
            client = number
            number = number_in(answer(program, *SERVER_VERSION)) if runs("dockerd") else ""
            if client and not number:
                number = f"without daemon (client {client})"
        found.append(f"{name} {number}".strip())
    return found


def version_of(path: str, entry: str | None) -> str:
    """Return the version of the installed helper: its own number, and the name of its library.

    The file is read and not executed: nobody has checked yet who owns it, and this is root.
    """
    if entry is None:
        return ""
    library = library_of(entry) or ""
    package = read(os.path.join(library or os.path.dirname(path), "core_helper/__init__.py"))
    found = re.search(r'^__version__ = "(.+)"$', package or "", re.MULTILINE)
    number = found.group(1) if found else "unknown"
    return f"{number} ({os.path.basename(library)})" if library else number


def snapshot_of(paths: list[str]) -> dict[str, dict[str, Any]]:
    """Return how the host is."""
    live = {name: kernel.get(name, ENCODING) for name in NAMES}
    return {"files": {path: read(path) for path in paths}, "live": live}


def restore(
    module: AnsibleModule,
    entry: str,
    sender: Sender,
    server: Server,
    now: dict[str, dict[str, Any]],
    wanted: dict[str, dict[str, Any]],
) -> list[dict[str, str]]:
    """Bring the host back and return what was changed, as --diff shows it. Raises RestoreError."""
    before = wanted["files"].get(entry)
    if before is None:
        raise RestoreError(f"{entry} was not there before: remove the helper, with docker_core_helper_state=absent")
    library = library_of(before)
    if library and not os.path.isdir(library):
        raise RestoreError(
            f"the library of the version before is gone: {library}; nothing was changed. Roll that version out again, from its"
            " own checkout"
        )
    # A version from before there were senders has recorded none.
    units = sender.wanted(*(wanted["files"].get(path) for path in sender.recorded()))
    # So has one from before there were servers.
    resident = {path: wanted["files"].get(path) for path in server.paths}
    is_resident = wanted["live"]["core_pattern"] == SOCKET_PATTERN and None not in resident.values()
    # As long as the units change, no crash may go to the socket.
    live = {**wanted["live"], "core_pattern": boot_pattern(wanted["files"])} if is_resident else wanted["live"]
    # The sender starts the helper: it comes last, and goes first.
    has_sender = units[sender.uploader] is not None
    diff = sender.change({**units, places.CREDENTIALS: None}) if not has_sender else []
    configuration = now["files"].get(places.CONFIGURATION)
    if not kept_cores.is_kept_in(kept_cores.directory_of(configuration), wanted["files"].get(places.CONFIGURATION)):
        kept_cores.warn(module, configuration)
    # In the order of the snapshot: the helper itself first, as its library is there already.
    for path, content in wanted["files"].items():
        if path in units or path in resident or now["files"].get(path) == content:
            continue
        diff.append(files.diff_step(path, now["files"].get(path), content))
        if not module.check_mode and content is None:
            os.unlink(path)
        elif not module.check_mode:
            files.write(module, path, content, 0o755 if path == entry else 0o644, encoding=ENCODING)
    steps = server.steps(resident, library)
    if now["live"] != wanted["live"]:
        pattern = now["live"]["core_pattern"]
        if HELPER not in pattern and pattern != wanted["live"]["core_pattern"]:
            module.warn(
                f"somebody else has set kernel.core_pattern since the rollout: replaced, it was {owners.shown(pattern)}"
            )
        diff.append(files.diff_step(kernel.KERNEL, kernel.lines(now["live"]), kernel.lines(wanted["live"])))
    if (now["live"] != wanted["live"] or steps) and not module.check_mode:
        # A helper must not be started without the limit: the limit comes before it, and goes after it.
        starts = HELPER in live["core_pattern"]
        names = NAMES if starts else tuple(reversed(NAMES))
        kernel.set_live(live, names, ENCODING)
        if steps or is_resident:
            server.change(resident)
        if not is_resident:
            # When the service ends it sets what the next boot would set.
            kernel.set_live(live, names, ENCODING)
    diff += steps
    return diff + sender.change(units) if has_sender else diff


def boot_pattern(contents: dict[str, str | None]) -> str:
    """Return the core pattern of the file for the next boot. Raises RestoreError if that file was not there."""
    found = re.search(r"^kernel\.core_pattern = (.*)$", "\n".join(filter(None, contents.values())), re.MULTILINE)
    if not found:
        raise RestoreError("the file for the next boot was not there before: nothing was changed")
    return found.group(1)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "snapshot": {"type": "dict"},
            "bin_dir": {"type": "str", "default": BIN_DIR},
            "lib_dir": {"type": "str", "default": LIB_DIR},
            "sysctl_file": {"type": "str", "default": SYSCTL_FILE},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    entry = os.path.join(parameters["bin_dir"], HELPER)
    sender, server = Sender(module, parameters["lib_dir"], ENCODING), Server(module, ENCODING)
    # Not the record of what the host had before the first run: that stays as it is until the removal, with what was taken
    # over from others.
    sysctl_file = parameters["sysctl_file"]
    paths = [entry, places.CONFIGURATION, sysctl_file, last_of(sysctl_file), *sender.recorded(), *server.paths]
    diff: list[dict[str, str]] = []
    try:
        snapshot = snapshot_of(paths)
        if parameters["snapshot"]:
            diff = restore(module, entry, sender, server, snapshot, parameters["snapshot"])
            snapshot = snapshot if module.check_mode else snapshot_of(paths)
    except (RestoreError, SettingError, UnusableError, OSError) as error:
        module.fail_json(msg="; ".join(filter(None, (files.reason(error), not_brought_back(server.not_undone)))))
    content = snapshot["files"][entry]
    suid_dumpable = (read(SUID_DUMPABLE) or "").strip()
    module.exit_json(
        changed=bool(diff),
        diff=diff,
        snapshot=snapshot,
        owner=owners.owner_of(snapshot["live"]["core_pattern"]),
        suid_dumpable=suid_dumpable,
        undumpable=undumpable() if suid_dumpable == "0" else [],
        installed=content is not None,
        version=version_of(entry, content),
        kernel=os.uname().release,
        engines=engines(),
    )


if __name__ == "__main__":
    main()
