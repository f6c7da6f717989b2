#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the host's part of playbooks/collect.yml. It lists the cores that a host keeps, and reads them by parts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: core_helper_cores
short_description: Lists the cores that docker_core_helper keeps on a host, and reads a part of one
version_added: 1.1.0
description:
  - The host's part of M(dockercore.helper.core_helper_collect), which calls it. Nobody else needs it.
  - A part is small, so neither the host nor the controller ever has a whole core in memory.
options:
  step:
    description:
      - V(list) returns what the helper knows of each core.
      - V(read) returns a part of the file of a core, as it lies on the host.
      - V(checksum) returns the checksum of that file.
      - V(remove) deletes cores.
    type: str
    choices: [list, read, checksum, remove]
    default: list
  bin_dir:
    description: Directory of the helper.
    type: str
    default: /opt/bin
  path:
    description: The file of a core, for O(step=read) and O(step=checksum).
    type: str
  offset:
    description: Where the part begins.
    type: int
    default: 0
  length:
    description: How many bytes it has. At the end of the file there are fewer.
    type: int
    default: 8388608
  keys:
    description: The cores to delete, for O(step=remove).
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: Deletes nothing.
  diff_mode:
    support: none
    description: A core is no text.
author:
  - The docker-core-helper authors (@docker-core-helper)
"""

EXAMPLES = r"""
- name: List the cores
  dockercore.helper.core_helper_cores:
  register: kept
"""

RETURN = r"""
installed:
  description: Whether the helper is there.
  returned: if O(step=list)
  type: bool
  sample: true
cores:
  description: What C(docker_core_helper cores list --json) says.
  returned: if O(step=list)
  type: list
  elements: dict
  sample: [{key: shop-1.box.shop.shop.17.20261129T183440Z.919eb8c9e6bc, size: 26214400}]
problem:
  description: Why that is not all, such as a core of which nobody can read what is known; empty if it is all.
  returned: if O(step=list)
  type: str
  sample: ""
data:
  description: The part, compressed by zlib, as Base64.
  returned: if O(step=read)
  type: str
  sample: eJwDAAAAAAE=
size:
  description: The size of the whole file.
  returned: if O(step=read)
  type: int
  sample: 8601600
sha256:
  description: The checksum of the file.
  returned: if O(step=checksum)
  type: str
  sample: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
"""

import base64  # noqa: E402 (Ansible wants the documentation first)
import hashlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import stat  # noqa: E402
import subprocess  # noqa: E402
import zlib  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils.docker_core_helper.places import BIN_DIR, HELPER  # noqa: E402

PART = 8 << 20
BLOCK = 1 << 20
COMPRESSED = ".zst"
# More than this says a helper only if somebody has put another program there.
LONGEST_MESSAGE = 500


class CoresError(Exception):
    """What cannot be done. The text names the object and the remedy."""


def helper(bin_dir: str, *words: str) -> tuple[bytes, str]:
    """Run a command of the helper, and return what it prints, and why it has failed, "" if it has not. Raises CoresError."""
    program = os.path.join(bin_dir, HELPER)
    try:
        result = subprocess.run(
            [program, "cores", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise CoresError(f"{program} does not run: {error.strerror}") from None
    if not result.returncode:
        return result.stdout, ""
    said = result.stderr.decode("utf-8", "backslashreplace").strip()[-LONGEST_MESSAGE:]
    return (
        result.stdout,
        f"{program} cores {words[0]} ended with exit code {result.returncode}: {said or 'it said nothing'}",
    )


def list_cores(bin_dir: str) -> dict[str, Any]:
    """Return what the helper knows of each core, and why that is not all. Raises CoresError where it does not say that."""
    if not os.path.exists(os.path.join(bin_dir, HELPER)):
        return {"installed": False, "cores": []}
    said, problem = helper(bin_dir, "list", "--json")
    try:
        cores = json.loads(said)
    except ValueError:
        nothing = f"{bin_dir}/{HELPER} cores list --json says no JSON: install the helper again"
        raise CoresError(problem or nothing) from None
    return {"installed": True, "cores": cores, "problem": problem}


def opened(path: str) -> int:
    """Open the file of a core, which is no link and no pipe. Raises CoresError."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CoresError(f"{path}: no longer there: compressed, or deleted to make room: run again") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise CoresError(f"{path} is no file")
    return file


def read_part(path: str, offset: int, length: int) -> dict[str, Any]:
    """Return a part of the file ``path``."""
    file = opened(path)
    try:
        data = os.pread(file, max(0, min(length, PART)), max(0, offset))
        size = os.fstat(file).st_size
    finally:
        os.close(file)
    # What is not compressed is half zeros.
    packed = zlib.compress(data, 0 if path.endswith(COMPRESSED) else 1)
    return {"data": base64.b64encode(packed).decode(), "size": size}


def checksum_of(path: str) -> dict[str, Any]:
    """Return the checksum of the file ``path``."""
    digest = hashlib.sha256()
    with open(opened(path), "rb", buffering=0) as file:
        while True:
            block = file.read(BLOCK)
            if not block:
                return {"sha256": digest.hexdigest()}
            digest.update(block)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["list", "read", "checksum", "remove"], "default": "list"},
            "bin_dir": {"type": "str", "default": BIN_DIR},
            "path": {"type": "str"},
            "offset": {"type": "int", "default": 0},
            "length": {"type": "int", "default": PART},
            "keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
        },
        required_if=[("step", "read", ["path"]), ("step", "checksum", ["path"])],
        supports_check_mode=True,
    )
    parameters = module.params
    step, path = parameters["step"], parameters["path"]
    result: dict[str, Any] = {}
    try:
        if step == "list":
            result = list_cores(parameters["bin_dir"])
        elif step == "read":
            result = read_part(path, parameters["offset"], parameters["length"])
        elif step == "checksum":
            result = checksum_of(path)
        elif parameters["keys"] and not module.check_mode:
            _said, problem = helper(parameters["bin_dir"], "remove", *parameters["keys"])
            if problem:
                raise CoresError(problem)
    except CoresError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or path}: {error.strerror}")
    module.exit_json(changed=step == "remove" and bool(parameters["keys"]), **result)


if __name__ == "__main__":
    main()
