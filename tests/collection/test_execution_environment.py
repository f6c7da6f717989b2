"""The execution environment: what ansible-builder makes of its definition. The image itself needs a registry."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml
from collection.conftest import install, run
from support.project import PROJECT


def test_ansible_builder_accepts_the_definition_and_finds_the_archive(archive: Path, tmp_path: Path) -> None:
    for source in (PROJECT / "execution-environment.yml", archive):
        shutil.copy(source, tmp_path)
    run("ansible-builder", "create", "--output-filename", "Containerfile", cwd=tmp_path)
    assert "ansible-core>=2.19" in (tmp_path / "context/Containerfile").read_text()

    # What the Containerfile does with what it copies: a list of collections that is installed in /build.
    build = tmp_path / "context/_build"
    (collection,) = yaml.safe_load((build / "requirements.yml").read_text())["collections"]
    installed = install(build / collection["name"], tmp_path / "installed")
    assert (installed / "ansible_collections/dockercore/helper/playbooks/site.yml").exists()
