# SPDX-License-Identifier: Apache-2.0
"""The cores that a host keeps: a removal or a rollback leaves them where they are, and says where."""

from __future__ import annotations

import glob
import os
import re

from ansible.module_utils.basic import AnsibleModule

from . import places


def directory_of(configuration: str | None) -> str:
    """Return where the helper keeps cores by a configuration that the role has written; None is no configuration."""
    found = re.search(r'^DOCKERCOREHELPER_KEEP_DIRECTORY="(.*)"$', configuration or "", re.MULTILINE)
    return re.sub(r'\\([\\"])', r"\1", found.group(1)) if found else places.CORES


def is_kept_in(directory: str, configuration: str | None) -> bool:
    """Return whether the helper keeps cores in this directory by a configuration, and so deletes those that are too old."""
    keeps = re.search(r"^DOCKERCOREHELPER_KEEP=(?!never$)", configuration or "", re.MULTILINE)
    return bool(keeps) and directory_of(configuration) == directory


def warn(module: AnsibleModule, configuration: str | None) -> None:
    """Warn where the cores are, if there are any; helper/core_helper/store.py says how they are called."""
    directory = directory_of(configuration)
    pattern = os.path.join(glob.escape(directory), "*", "*.core")
    count = len(glob.glob(pattern)) + len(glob.glob(f"{pattern}.zst"))
    if count:
        module.warn(
            f"{count} {'core stays' if count == 1 else 'cores stay'} in {directory}, and no bound or age deletes them any"
            " more: delete that directory when nobody needs them"
        )
