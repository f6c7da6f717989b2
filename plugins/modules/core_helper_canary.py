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
    that is RV(outcome=lost). Makes none where no delegate is configured, and that is RV(outcome=skipped).
options:
  timeout:
    description: The seconds that the core may take. Setting everything up may take as long again.
    type: int
    default: 10
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
"""

RETURN = r"""
outcome:
  description: What came of it, V(delivered), V(lost), V(setup) or V(skipped).
  returned: always
  type: str
  sample: delivered
delegate:
  description: The path at which the throw-away program was.
  returned: if the crash was made
  type: str
  sample: /opt/bin/uploader.sh
size:
  description: The bytes of the core.
  returned: if RV(outcome=delivered)
  type: int
  sample: 376832
seconds:
  description: The time from the start of the process that crashed to the end of its delegate.
  returned: if RV(outcome=delivered)
  type: float
  sample: 0.021
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

from ..module_utils.docker_core_helper import files, kernel  # noqa: E402
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


def configured_delegate() -> str:
    """Return the path of the delegate that the helper would start, "" if none is configured.

    Raises LostError where the helper is not started, SetupError where nobody can know the path. What the core pattern
    names comes first, as in the helper.
    """
    pattern = kernel.get("core_pattern")
    words = pattern.lstrip("|").split()
    position = next((index for index, word in enumerate(words) if os.path.basename(word) == HELPER), None)
    if not pattern.startswith("|") or position is None:
        raise LostError(f"kernel.core_pattern does not start {HELPER}, so no crash was made: {pattern!r}")
    words = words[position + 1 :]
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
    """Return the words of the delegate in the helper's configuration: quoted as a whole, then split like a shell does."""
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


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"timeout": {"type": "int", "default": 10}},
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(outcome="skipped", msg="no process is made to crash in check mode")
    if os.geteuid() != 0:
        module.fail_json(outcome="setup", msg="the canary could not be set up: only root can make its namespaces")
    result = outcome_of(lambda: {"delegate": configured_delegate()})
    if result.get("delegate") == "":
        module.exit_json(outcome="skipped", msg="no delegate is configured, so there is nothing to try")
    if "delegate" in result:
        result = run(str(result["delegate"]), module.params["timeout"])
    reason = result.pop("reason", "")
    if result["outcome"] == "lost":
        module.fail_json(msg=f"the canary's core was lost: {reason}; the host's log says why: {HELPER}", **result)
    if result["outcome"] == "setup":
        module.fail_json(msg=f"the canary could not be set up, which says nothing of the helper: {reason}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
