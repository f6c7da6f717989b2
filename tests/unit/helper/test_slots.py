"""slots: one container leaves slots of kernel.core_pipe_limit to the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from core_helper import slots, victim
from unit.helper.support import in_child, process


@pytest.mark.parametrize(("limit", "share"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 3), (64, 48), (10**9, 1 << 16)])
def test_a_container_may_hold_three_quarters_but_at_least_one(limit: int, share: int) -> None:
    assert slots.share_of(limit) == share


def test_a_process_of_the_host_needs_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "FILE", "/missing/directory/slots")
    slots.take(process())
    assert slots.outermost_container(process(namespaces=[("mnt", 0, 99)])) is None


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "limit").write_text("4\n")
    monkeypatch.setattr(slots, "FILE", str(tmp_path / "slots"))
    monkeypatch.setattr(slots, "LIMIT", str(tmp_path / "limit"))
    monkeypatch.setattr(slots, "outermost_container", lambda process: process.container)
    return tmp_path / "slots"


def take_nested(containers: list[int]) -> str:
    """Take a slot for each of ``containers``, each in a process that waits for the next; return who was refused."""
    try:
        slots.take(process(container=containers[0]))
        refused = ""
    except victim.Refused as error:
        refused = f"{len(containers)}: {error}\n"
    return refused + (str(in_child(lambda: take_nested(containers[1:]))) if containers[1:] else "")


def test_a_container_gets_its_share_and_another_one_still_gets_a_slot(file: Path) -> None:
    refused = in_child(lambda: take_nested([4026531836, 4026531836, 4026531836, 4026531836, 4026532000]))
    assert refused == "2: its container has 3 crashes in flight, its share of kernel.core_pipe_limit=4: core dropped\n"
    assert os.stat(file).st_mode & 0o777 == 0o600


def test_slots_are_free_again_when_their_helpers_have_ended(file: Path) -> None:
    for _ in range(2):
        assert in_child(lambda: take_nested([4026531836] * 3)) == ""


def test_a_link_in_place_of_the_file_is_not_followed(file: Path) -> None:
    file.symlink_to(file.parent / "other")
    with pytest.raises(OSError, match="symbolic links"):
        slots.take(process(container=1))
    assert not (file.parent / "other").exists()
