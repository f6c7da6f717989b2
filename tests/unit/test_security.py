"""SECURITY.md and the README of the attacks name defences and the tests that show them; both exist, and can be taken out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression
from hostile.defences import BREAKS, TABLES

PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "helper/core_helper"


@pytest.mark.parametrize("page", ["SECURITY.md", "tests/hostile/README.md", "docs/socket.md"])
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


def identifiers(module: str) -> set[str]:
    """Return the names that a module of the helper defines or uses."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        found |= {getattr(node, attribute) for attribute in ("name", "id", "attr") if hasattr(node, attribute)}
    return found


def test_every_defence_that_the_attacks_name_is_there() -> None:
    page = (PROJECT / "tests/hostile/README.md").read_text()
    cells = re.findall(r"^\| [\w.]+ \| (`\w+\.py`.*?) \|", page, re.M)
    assert len(cells) > 40
    for cell in cells:
        _, *parts = re.split(r"`(\w+)\.py`", cell)
        for module, text in zip(parts[::2], parts[1::2], strict=True):
            named = {name for path in re.findall(r"`([\w.]+)`", text) for name in path.split(".")}
            assert named <= identifiers(module), f"{module}.py: {cell}"


def test_no_two_defences_have_one_name() -> None:
    assert len(BREAKS) == sum(len(table.BREAKS) for table in TABLES)


# Their change is one of uploader.sh.
OF_THE_UPLOADER = {"test_a_container_of_64_mib_uploads_by_rclone", "test_a_folder_of_debian_with_python_and_aws"}
# What it shows is the kernel's doing.
OF_THE_KERNEL = {"test_pid_1_that_sends_itself_sigabrt_leaves_no_core_and_below_an_init_it_does"}
# It runs the role, which puts back what was taken out.
OF_THE_ROLE = {"test_a_crash_in_an_image_from_scratch_reaches_the_bucket"}


def is_chosen(name: str, selection: str) -> bool:
    """Whether ``pytest -k`` chooses a test of this name."""

    def is_part(word: str, /, **_: object) -> bool:
        return word in name

    return Expression.compile(selection).evaluate(is_part)


def test_for_each_situation_of_real_life_a_defence_is_taken_out() -> None:
    page = (PROJECT / "tests/README.md").read_text()
    named = {name for _, name in re.findall(r"`((?:hostile|crash)/\w+\.py)::(\w+)`", page)}
    assert len(named) > 25
    unproved = {name for name in named if not any(is_chosen(name, selection) for _, selection in BREAKS.values())}
    assert unproved == OF_THE_UPLOADER | OF_THE_KERNEL | OF_THE_ROLE


@pytest.mark.parametrize("name", BREAKS)
def test_every_defence_that_is_taken_out_stands_where_it_is_looked_for(name: str) -> None:
    edits, _ = BREAKS[name]
    assert [(file, old) for file, old, _ in edits if (PACKAGE / file).read_text().count(old) != 1] == []
