"""What the unit tests share."""

from __future__ import annotations

from support.tables import pytest_terminal_summary, row  # noqa: F401 (pytest finds them here)
