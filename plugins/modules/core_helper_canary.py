#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: a real crash whose core must reach a delegate."""

from __future__ import annotations

DOCUMENTATION = r"""
module: core_helper_canary
short_description: Lets a small process crash and sees whether its core reaches a delegate
version_added: 1.0.0
description:
  - Makes a container of its own, which needs no engine and no image - mount, pid, ipc, uts and net namespaces, and a root
    directory in memory that has a throw-away program at the very path of the configured delegate. A shell crashes
    in it, with a random word in its memory, as user nobody, and the core that the program gets must hold that word.
  - Everything is gone with the last process of the namespaces; nothing of it was ever visible to the host's processes.
  - Fails with RV(outcome=lost) if the core did not come, and with RV(outcome=setup) if the crash could not be made,
    which says nothing of the helper.
  - Makes no crash where C(kernel.core_pattern) does not start the helper, because another handler might keep that core, and
    fails with RV(outcome=skipped). Makes none where no delegate is configured, and that is RV(outcome=skipped), too.
  - With O(image) the crash is that of a shell in a container of that image, and its core goes to the configured delegate itself
    and to where that takes it. It is delivered if the helper's line in the host's log says that the delegate has read the
    whole core and has ended with exit code 0. The container is removed in any case.
options:
  timeout:
    description: The seconds that the core may take. Setting everything up may take as long again.
    type: int
    default: 10
  image:
    description: An image on the host, with C(/bin/sh) and the delegate. Without it there is no engine and no image in it.
    type: str
    version_added: 1.1.0
  options:
    description:
      - Words for C(docker create), such as the variables and the network that the delegate needs. Only for O(image).
      - They are in the host's log. Let secrets come from a file on the host, by C(--env-file).
    type: list
    elements: str
    default: []
    version_added: 1.1.0
  pull:
    description: Whether an image that is not on the host is fetched. Only for O(image).
    type: bool
    default: false
    version_added: 1.1.0
attributes:
  check_mode:
    support: full
    description: Nothing crashes, and RV(outcome=skipped).
  diff_mode:
    support: none
    description: Nothing is ever changed.
author:
  - The docker-core-helper authors (@docker-core-helper)
"""

EXAMPLES = r"""
- name: Let a process crash
  core_helper_canary:
    timeout: 5

- name: Let a process crash in a container, and its core go to where the delegate takes it
  core_helper_canary:
    image: my-app:1.0-cores
    options: [--env-file, /etc/my-app.env]
    timeout: 300
"""

RETURN = r"""
outcome:
  description: What came of it, V(delivered), V(lost), V(setup) or V(skipped).
  returned: always
  type: str
  sample: delivered
delegate:
  description: The path at which the throw-away program was, or with O(image) that of the delegate.
  returned: if the crash was made
  type: str
  sample: /opt/bin/uploader.sh
size:
  description: The bytes of the core.
  returned: if RV(outcome=delivered)
  type: int
  sample: 376832
seconds:
  description:
    - The time from the start of the process that crashed to the end of its delegate. With O(image) the time from the start
      of the helper on, as the host's log has it.
  returned: if RV(outcome=delivered)
  type: float
  sample: 0.021
said:
  description: The lines that the delegate has written to its standard error.
  returned: if RV(outcome=delivered) and O(image)
  type: list
  elements: str
  sample: ["uploader.sh: s3://cores/node-7.shop-1.sh.sh.7775.20261129T180000Z.0f3a9c27d1b4.core.zst"]
verdict:
  description: What became of the core, in one line that names the delegate and what it said.
  returned: if RV(outcome=delivered) and O(image)
  type: str
  sample: /opt/bin/uploader.sh has read all 376832 bytes and ended with exit code 0; it said nothing
"""

import json  # noqa: E402
import os  # noqa: E402
import select  # noqa: E402
import shlex  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import NoReturn  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils.docker_core_helper import files, kernel, owners  # noqa: E402
from ..module_utils.docker_core_helper.canary_container import crash_in_container  # noqa: E402
from ..module_utils.docker_core_helper.canary_crash import LostError, crash  # noqa: E402
from ..module_utils.docker_core_helper.canary_root import (  # noqa: E402
    HOST,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    ROOT,
    Namespaces,
    SetupError,
    build_root,
)
from ..module_utils.docker_core_helper.places import CONFIGURATION, HELPER  # noqa: E402


class UntriedError(Exception):
    """No crash is made, because nothing of the helper would be tried; the text says why."""


def configured_delegate() -> str:
    """Return the path of the delegate that the helper would start, "" if none is configured.

    Raises UntriedError where the helper is not started, SetupError where nobody can know the path. What the core pattern
    names comes first, as in the helper.
    """
    pattern = kernel.get("core_pattern")
    if not kernel.is_the_helpers(pattern) or pattern[:1] not in ("|", "@"):
        raise UntriedError(f"kernel.core_pattern does not start {HELPER}: {owners.shown(pattern)}")
    # The pattern of a socket has no words.
    words = pattern.lstrip("|").split()
    words = words[words.index(kernel.entry_of(pattern) or pattern) + 1 :]
    while words and words[0].startswith("-"):
        words.pop(0)
    # The process, its user and its group come before the delegate.
    words = words[3:] or words_of_configuration(files.read(CONFIGURATION) or "")
    if not words:
        return ""
    path = words[0].replace("%%", "\0")
    if not path.startswith("/") or "%" in path:
        raise SetupError(f"the delegate's path must be absolute and without specifiers such as %e: {words[0]!r}")
    return path.replace("\0", "%")


def words_of_configuration(text: str) -> list[str]:
    """Return the words of the delegate in the helper's configuration: quoted as a whole, then split like a shell does.

    Raises SetupError where they cannot be split.
    """
    words: list[str] = []
    for line in text.splitlines():
        key, _equals, value = line.strip().partition("=")
        if key == "DOCKERCOREHELPER_DELEGATE":
            try:
                words = shlex.split(value, comments=True)
                if value.strip()[:1] in ("'", '"') and len(words) == 1:
                    words = shlex.split(words[0], comments=True)
            except ValueError as error:
                raise SetupError(f"{CONFIGURATION} cannot be read: {error}: {line}") from error
    return words


def outcome_of(function: Callable[..., dict[str, object]], *arguments: object) -> dict[str, object]:
    """Return what ``function`` returns, or its failure as a result."""
    try:
        return function(*arguments)
    except UntriedError as error:
        return {"outcome": "skipped", "reason": str(error)}
    except LostError as error:
        return {"outcome": "lost", "reason": str(error)}
    except (SetupError, OSError, subprocess.SubprocessError) as error:
        return {"outcome": "setup", "reason": str(error)}


def inside(delegate: str, timeout: float, answer: int) -> NoReturn:
    """Make the namespaces and let it crash there, and write the result to ``answer``. Runs in a process of its own."""

    def enter() -> dict[str, object]:
        calls = Namespaces()
        # What goes into the core is inherited, and the random word must be in it; core(5).
        with open("/proc/self/coredump_filter", "w", encoding="ascii") as file:
            file.write("0x33")
        calls.unshare()
        calls.mount("none", "/", "", MS_REC | MS_PRIVATE)
        calls.mount("canary", ROOT, "tmpfs")
        os.chmod(ROOT, 0o755)
        os.mkdir(f"{ROOT}/{HOST}")
        calls.mount("/", f"{ROOT}/{HOST}", "", MS_REC | MS_BIND)
        build_root(delegate)
        socket.sethostname("canary")
        first = os.fork()
        if first:
            os.waitpid(first, 0)
            os._exit(0)
        calls.die_with_parent()
        os.chroot(ROOT)
        os.chdir("/")
        return crash(delegate, timeout)

    os.umask(0o022)
    os.write(answer, json.dumps(outcome_of(enter)).encode())
    os._exit(0)


def run(delegate: str, timeout: float) -> dict[str, object]:
    """Return the result of a crash, at the latest after twice ``timeout``."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        inside(delegate, timeout, writer)
    os.close(writer)
    ready = select.select([reader], [], [], 2 * timeout)[0]
    text = os.read(reader, 65536) if ready else b""
    os.close(reader)
    # Process 1 of the namespaces goes with its parent, and with it everything in them.
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not text:
        what = "its processes ended without a word" if ready else f"not done after {2 * timeout:g} seconds"
        return {"outcome": "setup", "reason": what}
    result: dict[str, object] = json.loads(text)
    return result


def end_on_signal(number: int, _frame: object) -> NoReturn:
    """End in order, so that the container is removed."""
    raise SystemExit(128 + number)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "timeout": {"type": "int", "default": 10},
            "image": {"type": "str"},
            "options": {"type": "list", "elements": "str", "default": []},
            "pull": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    if module.check_mode:
        module.exit_json(outcome="skipped", msg="no process is made to crash in check mode")
    if os.geteuid() != 0:
        module.fail_json(outcome="setup", msg="the canary could not be set up: only root can make its namespaces")
    result = outcome_of(lambda: {"delegate": configured_delegate()})
    if result.get("delegate") == "":
        module.exit_json(outcome="skipped", msg="no delegate is configured, so there is nothing to try")
    if "delegate" in result:
        delegate, timeout = str(result["delegate"]), parameters["timeout"]
        if parameters["image"]:
            # The throw-away container goes with its parent; that of an engine does not.
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, end_on_signal)
            warnings: list[str] = []
            words = (parameters["image"], parameters["options"], parameters["pull"])
            result = outcome_of(crash_in_container, delegate, *words, timeout, warnings)
            for warning in warnings:
                module.warn(warning)
        else:
            result = run(delegate, timeout)
    reason = result.pop("reason", "")
    if result["outcome"] == "skipped":
        module.fail_json(msg=f"the canary was not tried, and no crash was made: {reason}", **result)
    if result["outcome"] == "lost":
        module.fail_json(msg=f"the canary's core was lost: {reason}; the host's log says why: {HELPER}", **result)
    if result["outcome"] == "setup":
        module.fail_json(msg=f"the canary could not be set up, which says nothing of the helper: {reason}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
