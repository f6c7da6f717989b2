"""Which delegate the canary takes the place of; its crashes are in tests/fleet/test_canary.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from core_helper.configuration import Configuration, parse_configuration
from support.project import load, shared

MODULE = Path(__file__).resolve().parents[2] / "plugins/modules/core_helper_canary.py"


@pytest.fixture(scope="module")
def canary() -> dict[str, Any]:
    """Return what the module defines."""
    pytest.importorskip("ansible.module_utils.basic")
    defined: dict[str, Any] = vars(load(MODULE))
    return defined


@pytest.mark.parametrize(
    "text",
    [
        "",
        "DOCKERCOREHELPER_TIMEOUT=3",
        "DOCKERCOREHELPER_DELEGATE=/opt/a b",
        'DOCKERCOREHELPER_DELEGATE="/opt/a b"',
        "DOCKERCOREHELPER_DELEGATE=\"'/opt/a b' c\"",
        "DOCKERCOREHELPER_DELEGATE='/opt/a\\ b c'",
        'DOCKERCOREHELPER_DELEGATE="/opt/a \\"b c\\" \\\\x"',
        "# no\n  DOCKERCOREHELPER_DELEGATE=/first\nDOCKERCOREHELPER_DELEGATE=/second # word\n",
        "DOCKERCOREHELPER_DELEGATE=",
    ],
)
def test_the_configuration_is_read_as_the_helper_reads_it(canary: dict[str, Any], text: str) -> None:
    configuration = Configuration()
    parse_configuration(text.encode(), "test", configuration)
    assert configuration.problems == []
    assert canary["words_of_configuration"](text) == [word.decode() for word in configuration.delegate]


def test_root_reads_the_core_and_nothing_that_another_process_of_nobody_has_put_there(
    canary: dict[str, Any], tmp_path: Path
) -> None:
    read_core = shared("canary_crash").read_core
    core = tmp_path / "core"
    core.write_bytes(b"core")
    (tmp_path / "link").symlink_to(core)
    os.mkfifo(tmp_path / "pipe")
    assert read_core(str(core)) == b"core"
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=name):
            read_core(str(tmp_path / name))
