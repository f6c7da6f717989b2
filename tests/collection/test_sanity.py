"""ansible-test sanity on the installed archive: the tests that need nothing from the network.

The others, such as pylint and validate-modules, install their requirements first. `ansible-test sanity` runs all of them in the
directory of the installed collection.
"""

from __future__ import annotations

import sys
from pathlib import Path

from collection.conftest import install, run

TESTS = (
    *("action-plugin-docs", "compile", "empty-init", "ignores", "line-endings", "no-get-exception"),
    *("no-illegal-filenames", "no-smart-quotes", "replace-urlopen", "shebang", "symlinks", "use-argspec-type-path"),
)


def test_the_sanity_tests_that_need_no_requirements_find_nothing(archive: Path, tmp_path: Path) -> None:
    # Not the collection that the other tests use: ansible-test writes into it.
    collection = install(archive, tmp_path) / "ansible_collections/dockercore/helper"
    python = f"--python={sys.version_info.major}.{sys.version_info.minor}"
    run("ansible-test", "sanity", python, *(f"--test={name}" for name in TESTS), cwd=collection, HOME=tmp_path)
