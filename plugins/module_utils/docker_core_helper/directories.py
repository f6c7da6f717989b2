# SPDX-License-Identifier: Apache-2.0
"""Directories that the role creates, and removes again."""

from __future__ import annotations

import contextlib
import os

from ansible.module_utils.basic import AnsibleModule


def missing(directories: tuple[str, ...]) -> list[str]:
    """Return which directories, and which above them, have to be created, the innermost last."""
    found: list[str] = []
    for directory in directories:
        parents = []
        while not os.path.isdir(directory):
            parents.append(directory)
            directory = os.path.dirname(directory)
        found += [parent for parent in reversed(parents) if parent not in found]
    return found


def create(module: AnsibleModule, paths: list[str]) -> None:
    """Create directories, readable for all whatever the umask is."""
    for path in paths:
        os.mkdir(path)
        os.chmod(path, 0o755)
        module.set_default_selinux_context(path, False)


def remove_empty(directories: list[str]) -> None:
    """Remove directories, the last one first, as far as nothing is in them."""
    for directory in reversed(directories):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
