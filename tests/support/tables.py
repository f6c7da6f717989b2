"""Tables at the end of a run: each row is what a test of this run has seen, by the fixture ``row``.

A conftest.py that imports both names has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

# The helper's tests load this on Python 3.8, too, which knows no Callable[...] but as an annotation.
if TYPE_CHECKING:
    Row = Callable[..., None]
else:
    Row = Callable
# For each: its title, the heads of its columns, and how the first cells begin without which it is not complete.
TABLES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "faults": (
        "Where the core is after a fault",
        ("fault", "client", "where the core is", "what the log says"),
        (
            *("refuses the connection", "dies in the middle", "403", "404", "503, SlowDown", "is slow"),
            *("503, backendError", "503, ServerBusy", "429, rateLimitExceeded", "429, TooManyRequests"),
            *("the disk is full", "the disk of the store is full", "is away for 15 s", "stays away"),
        ),
    ),
    "stores": (
        "What came of a core, by the store",
        ("store", "shell", "client", "result"),
        ("rclone serve s3", "SeaweedFS", "Google Cloud Storage", "Azure"),
    ),
    "touched": ("Which hosts a playbook has touched", ("test", "run", "hosts"), ()),
    "images": (
        "What came of a core, by the image",
        ("image", "client", "result"),
        (
            "An image with a shell",
            "An image without a shell",
            "FROM scratch",
            "Debian, Python",
            "Debian, JVM",
            "Debian, curl only",
        ),
    ),
}


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Row:
    """Adds a row to a table: ``row("images", *cells)``; it is shown if the test passes."""

    def add(table: str, *cells: str) -> None:
        assert len(cells) == len(TABLES[table][1])
        record_property("row", [table, *cells])

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows the tables that have rows."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in getattr(report, "user_properties", []):
            if name == "row" and report.when == "call":
                rows.setdefault(value[0], []).append(tuple(value[1:]))
    for table, (title, heads, complete) in TABLES.items():
        if table not in rows:
            continue
        terminalreporter.section(title)
        lines = [heads, *sorted(set(rows[table]))]
        widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            terminalreporter.write_line(" | ".join(cells).rstrip())
        missing = [name for name in complete if not any(line[0].startswith(name) for line in lines)]
        if missing:
            terminalreporter.write_line(f"Nothing here, in this run, of: {'; '.join(missing)}")
