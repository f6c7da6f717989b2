# SPDX-License-Identifier: Apache-2.0
"""The paths that the role writes, as far as more than one module needs them.

The action plugins, which run on the controller, have copies of what they need: in a clone Ansible loads an action plugin as a
single file, which cannot import our module_utils.
"""

from __future__ import annotations

import os
import re

HELPER = "docker_core_helper"
CONFIGURATION = "/etc/docker_core_helper.conf"
# For root alone; the sender gets the variables in it.
CREDENTIALS = "/etc/docker_core_helper.credentials"
UNITS = "/etc/systemd/system"
# Where docker_core_helper serve waits for crashes, and the pattern by which the kernel sends them there.
SOCKET = "/run/docker_core_helper/core.sock"
SOCKET_PATTERN = f"@@{SOCKET}"
CORES = "/var/lib/docker_core_helper/cores"
BIN_DIR = "/opt/bin"
LIB_DIR = "/opt/lib/docker_core_helper"
# The values from before the first run.
RECORD = f"{LIB_DIR}/previous.json"
# The file that sets the kernel's values at the next boot, and the name that it has where it must sort behind whatever begins
# with a number.
SYSCTL_FILE = "/etc/sysctl.d/60-docker-core-helper.conf"
LAST = "zz-docker-core-helper.conf"
# How a file begins that the role has written.
WRITTEN = "# Written by the Ansible role docker_core_helper"


def last_of(sysctl_file: str) -> str:
    """Return the other path that the file for the next boot may have."""
    return os.path.join(os.path.dirname(sysctl_file), LAST)


def is_ours(content: str | None) -> bool:
    """Return whether the role has written a file with this content, or the file is not there."""
    return (content or WRITTEN).startswith(WRITTEN)


def library_of(entry: str | None) -> str | None:
    """Return the directory that an installed helper takes its library from; None if the role has not installed it."""
    found = re.search(r'^LIBRARY = "(/.*)"$', entry or "", re.MULTILINE)
    return found.group(1) if found and (entry or "").startswith("#!") else None
