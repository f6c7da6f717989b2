"""The facts beside a core."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from unit.uploader.support import (
    CORE,
    FACTS,
    MADE,
    NAME,
    Image,
    Server,
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


def test_facts_that_cannot_be_stored_do_not_cost_the_core(image: Image, cores: Path) -> None:
    (cores / NAME.replace(".core", ".json")).symlink_to(cores / "nowhere")
    result = image.run(str(cores))
    assert (result.returncode, files(cores)) == (0, [NAME])
    assert b".json: cannot be written: " in result.stderr and not (cores / "nowhere").exists()
