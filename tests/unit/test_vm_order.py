"""The modules of tests/vm run in the order that their conftest.py declares, and in no other."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.project import PROJECT, load

SUITE = PROJECT / "tests/vm"
ORDER = load(SUITE / "conftest.py").ORDER


@pytest.fixture
def conftest(tmp_path: Path) -> Any:
    """The suite's conftest.py, beside an empty module for each place."""
    for name in ORDER:
        (tmp_path / name).touch()
    return load(Path(shutil.copy(SUITE / "conftest.py", tmp_path)))


def arrange(conftest: Any) -> list[str]:
    """Return the modules of two tests each, collected by name, in the order in which the tests would run."""
    modules = sorted(Path(conftest.__file__).parent.glob("test_*.py"))
    items = [SimpleNamespace(path=path, get_closest_marker=lambda marker: None) for path in modules for _ in range(2)]
    conftest.pytest_collection_modifyitems(items)
    return [item.path.name for item in items]


def test_the_order_is_the_declared_one(conftest: Any) -> None:
    assert list(ORDER) != sorted(ORDER)
    assert arrange(conftest) == [name for name in ORDER for _ in range(2)]


def test_a_module_without_a_place_ends_the_collection(conftest: Any, tmp_path: Path) -> None:
    (tmp_path / "test_new.py").touch()
    with pytest.raises(pytest.UsageError, match=r"^ORDER in .*/conftest\.py does not name test_new\.py$"):
        arrange(conftest)


def test_a_place_without_a_module_ends_the_collection(conftest: Any, tmp_path: Path) -> None:
    (tmp_path / "test_upgrade.py").unlink()
    with pytest.raises(pytest.UsageError, match=r"names test_upgrade\.py, which does not exist$"):
        arrange(conftest)


def test_the_suite_itself_has_a_place_for_each_module() -> None:
    assert sorted(ORDER) == sorted(path.name for path in SUITE.glob("test_*.py"))
