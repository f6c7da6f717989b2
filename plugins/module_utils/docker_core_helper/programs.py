# SPDX-License-Identifier: Apache-2.0
"""The programs of a host, and what they say."""

from __future__ import annotations

import shutil

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def program(name: str) -> str | None:
    """Return the path of a program of the host, None if the host does not have it."""
    return shutil.which(name, path=PATH)


def last_line(text: str) -> str:
    """Return the last line of a program's output, which says what happened."""
    return (text.strip().splitlines() or ["no message"])[-1].strip()
