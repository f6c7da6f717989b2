"""What the unit tests share."""

from __future__ import annotations

import pytest
from support.tables import pytest_terminal_summary, row  # noqa: F401 (pytest finds them here)

# What their asserts compare is shown, as in a test.
pytest.register_assert_rewrite("unit.uploader.support")
