"""The facts beside a core."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from unit.uploader.support import (
    CORE,
    FACTS,
    MADE,
    NAME,
    Image,
    Server,
    assert_delivered,
    each_shell_and_client,
    files,
    terminated,
)


def test_beside_a_core_in_a_directory_are_its_facts(image: Image, cores: Path) -> None:
    image.link("zstd")
    strange = 'a"b\\c\x01d\xe9 {}'
    image.run(str(cores), CORE_KEY=MADE, CORE_EXE=strange, CORE_IMAGE="app:1.0", CORE_SIGNAL_NAME="SIGSEGV")
    path = cores / f"{MADE}.json"
    facts = json.loads(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {name: facts[name] for name in ("core", "sha256", "build_ids", "truncated")} == {
        "core": f"{MADE}.core.zst",
        "sha256": None,
        "build_ids": None,
        "truncated": False,
    }
    assert facts["facts"]["CORE_EXE"] == 'a"b\\c_d__ {}' and facts["facts"]["CORE_IMAGE"] == "app:1.0"
    assert facts["facts"].items() >= {**FACTS, "CORE_KEY": MADE, "CORE_SIGNAL_NAME": "SIGSEGV", "CORE_NODE": ""}.items()


@each_shell_and_client
def test_beside_an_object_are_its_facts(image: Image, client: str, server: Server) -> None:
    known = {"CORE_SHA256": "0f" * 32, "CORE_BUILD_IDS": '{"/usr/bin/server": "1234"}', "CORE_TRUNCATED": "1"}
    image.run("s3://bucket/facts/", environment={**server.environment, **known}, CORE_KEY=MADE)
    facts = json.loads((server.root / "bucket/facts" / f"{MADE}.json").read_text())
    assert (facts["core"], facts["truncated"]) == (f"{MADE}.core.zst.truncated", True)
    assert (facts["sha256"], facts["build_ids"]) == ("0f" * 32, {"/usr/bin/server": "1234"})


def test_a_part_of_a_core_has_its_facts_too(image: Image, cores: Path) -> None:
    terminated(image, str(cores), CORE)
    facts = json.loads((cores / NAME.replace(".core", ".json")).read_text())
    assert (facts["core"], facts["truncated"]) == (f"{NAME}.truncated", True)


def test_beside_a_whole_core_are_its_own_facts_also_where_a_first_upload_was_cut_off(image: Image, cores: Path) -> None:
    facts = cores / f"{MADE}.json"
    terminated(image, str(cores), CORE, CORE_KEY=MADE)
    assert json.loads(facts.read_text())["truncated"] is True
    assert_delivered(image.run(str(cores), CORE_KEY=MADE), f"{cores}/{MADE}.core")
    assert files(cores) == [f"{MADE}.core", f"{MADE}.core.truncated"]
    known = json.loads(facts.read_text())
    assert (known["core"], known["truncated"]) == (f"{MADE}.core", False)
    # A part that comes later changes nothing.
    result = image.run(str(cores), CORE_KEY=MADE, CORE_TRUNCATED="1", core=b"")
    assert result.returncode == 73 and json.loads(facts.read_text()) == known
    (cores / f"{MADE}.core.truncated").unlink()
    result = image.run(str(cores), CORE_KEY=MADE, CORE_TRUNCATED="1")
    assert result.returncode == 0 and b".json: cannot be written: " in result.stderr
    assert json.loads(facts.read_text()) == known


@pytest.mark.parametrize(
    ("there", "key"),
    [
        (f'{{"core": "{MADE}.core.zst", "truncated": true}}\n', MADE),
        (f'{{"core": "x{MADE}.core.truncated"}}\n', MADE),
        (f'{{"core": "{MADE}.core.truncated"}}', MADE),
        ("", MADE),
        # Without the helper's name, another process may have had the same one.
        (f'{{"core": "{NAME}.truncated"}}\n', "UNSET"),
    ],
)
def test_no_other_facts_are_replaced(image: Image, cores: Path, there: str, key: str) -> None:
    facts = cores / (NAME.replace(".core", ".json") if key == "UNSET" else f"{MADE}.json")
    facts.write_text(there)
    result = image.run(str(cores), CORE_KEY=key)
    assert result.returncode == 0 and b".json: cannot be written: " in result.stderr
    assert facts.read_text() == there


@pytest.mark.parametrize("kind", ["file", "link"])
def test_facts_of_another_user_are_never_replaced(
    public_image: Image, public_cores: Path, public: Path, users: list[int], kind: str
) -> None:
    facts, elsewhere = public_cores / f"{MADE}.json", public / "elsewhere"
    os.chown(public_cores, users[1], users[1])  # So the kernel would let that user delete them.
    elsewhere.write_text(f'{{"core": "{MADE}.core.truncated"}}\n')
    os.chown(elsewhere, *(users[1:] * 2 if kind == "link" else users[:1] * 2))
    (os.symlink if kind == "link" else os.link)(elsewhere, facts)
    os.chown(facts, users[0], users[0], follow_symlinks=False)
    found = facts.lstat()
    result = public_image.run(str(public_cores), CORE_KEY=MADE, user=users[1])
    assert result.returncode == 0 and b".json: cannot be written: " in result.stderr
    assert facts.lstat().st_ino == found.st_ino


def test_facts_that_cannot_be_stored_do_not_cost_the_core(image: Image, cores: Path) -> None:
    (cores / NAME.replace(".core", ".json")).symlink_to(cores / "nowhere")
    result = image.run(str(cores))
    assert (result.returncode, files(cores)) == (0, [NAME])
    assert b".json: cannot be written: " in result.stderr and not (cores / "nowhere").exists()
