"""SECURITY.md and the README of the attacks name the tests that show what they say; those tests exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["SECURITY.md", "tests/hostile/README.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)[`*]", (PROJECT / page).read_text())) - {"test_attack_12_"}
    defined = {
        name
        for file in (PROJECT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)
    }
    assert len(named) > 10
    assert {name for name in named if not any(known.startswith(name) for known in defined)} == set()


@pytest.mark.parametrize(
    "hole", ["2015-1318", "2018-6552", "2019-5736", "2022-4415", "2022-28657", "2024-21626", "2025-4598", "2025-5054"]
)
def test_every_known_hole_has_its_row(hole: str) -> None:
    rows = [row for row in (PROJECT / "SECURITY.md").read_text().splitlines() if row.startswith(f"| [{hole}]")]
    assert len(rows) == 1 and rows[0].count("|") == 5
