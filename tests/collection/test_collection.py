"""The collection: what is in it, and that it needs nothing of this clone."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
import yaml
from collection.conftest import Host, install, run
from support.project import PROJECT, tracked
from unit.test_role_rollout import LISTING, count

# A file or directory that is new at the top of this repository is listed here, or in galaxy.yml as one to leave out.
SHIPPED = {
    *("CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md"),
    *("container_scripts", "docs", "examples", "helper", "meta", "playbooks", "plugins", "roles"),
}
ROLES = """
- hosts: all
  gather_facts: false
  roles:
    - role: dockercore.helper.docker_core_helper
    - role: dockercore.helper.core_uploader
"""


def test_the_archive_holds_what_is_shipped_and_nothing_else(archive: Path) -> None:
    with tarfile.open(archive) as members:
        names = {member.name for member in members if not member.isdir()}
    shipped = {name for name in tracked() if name.partition("/")[0] in SHIPPED or name.startswith("tests/sanity/")}
    assert names == shipped | {"MANIFEST.json", "FILES.json"}


def test_what_a_user_keeps_beside_the_clone_stays_there(archive: Path, repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(repository, clone, symlinks=True)
    for name in ("inventory", "inventory.yml", "group_vars/all.yml", "host_vars/shop-1.yml", "rollout/finished.json"):
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_text("secret\n")
    run("ansible-galaxy", "collection", "build", clone, "--output-path", tmp_path, ANSIBLE_HOME=tmp_path)
    with tarfile.open(archive) as shipped, tarfile.open(tmp_path / archive.name) as built:
        assert sorted(built.getnames()) == sorted(shipped.getnames())


def test_from_git_comes_the_same_as_from_the_archive(installed: Path, repository: Path, tmp_path: Path) -> None:
    def contents(directory: Path) -> dict[str, bytes]:
        root = directory / "ansible_collections/dockercore/helper"
        files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        # Made by ansible-galaxy; the order of files in it is that of the disk.
        del files["FILES.json"], files["MANIFEST.json"]
        return files

    assert contents(install(f"git+file://{repository}", tmp_path)) == contents(installed)


def test_the_playbooks_run_by_their_full_names(host: Host) -> None:
    before = host.sandbox.run(LISTING)
    said = host.play("dockercore.helper.site", "--check", "--diff")
    assert "+kernel.core_pipe_limit = 512" in said
    assert "+DOCKERCOREHELPER_TIMEOUT=300" in said
    host.play("dockercore.helper.remove", "--check", "--diff")
    assert host.sandbox.run(LISTING) == before


def test_every_playbook_is_found_by_its_full_name(host: Host) -> None:
    for path in sorted((PROJECT / "playbooks").glob("*.yml")):
        host.play(f"dockercore.helper.{path.stem}", "--syntax-check")


def test_the_roles_run_by_their_full_names(host: Host, installed: Path) -> None:
    playbook = installed / "roles.yml"
    playbook.write_text(ROLES)
    said = host.play(playbook, "--check", "--diff", "-e", "ansible_python_interpreter=/usr/bin/python3")
    assert "+kernel.core_pipe_limit = 512" in said
    uploader = (PROJECT / "container_scripts/uploader.sh").read_text().splitlines()
    assert all(f"+{line}" in said for line in uploader)


def test_a_host_gets_the_helper_of_the_collection_and_is_given_back(host: Host, installed: Path) -> None:
    bare = host.sandbox.run(LISTING)
    host.play("dockercore.helper.site")
    assert host.run("/opt/bin/docker_core_helper", "--version").startswith("docker_core_helper ")
    for source in (installed / "ansible_collections/dockercore/helper/helper/core_helper").glob("*.py"):
        host.run("sh", "-c", f"cmp {source} /opt/lib/docker_core_helper/*/core_helper/{source.name}")
    assert count(host.play("dockercore.helper.site"))[1] == 0
    host.play("dockercore.helper.remove")
    assert host.sandbox.run(LISTING) == bare


def test_a_clone_rolls_out_from_any_directory(host: Host, repository: Path) -> None:
    """The roles stand beside the playbooks, as links, because ansible.cfg counts in the clone's own directory only."""
    bare = host.sandbox.run(LISTING)
    host.play(repository / "playbooks/site.yml")
    assert host.run("/opt/bin/docker_core_helper", "--version").startswith("docker_core_helper ")
    assert count(host.play(repository / "playbooks/site.yml"))[1] == 0
    host.play(repository / "playbooks/rollback.yml")
    assert host.sandbox.run(LISTING) == bare


def test_the_modules_documentation_is_found(host: Host) -> None:
    for path in sorted((PROJECT / "plugins/modules").glob("*.py")):
        assert f"MODULE dockercore.helper.{path.stem}" in host.run("ansible-doc", f"dockercore.helper.{path.stem}")


@pytest.mark.parametrize("role", ["docker_core_helper", "core_uploader"])
def test_the_roles_documentation_is_found(host: Host, role: str) -> None:
    options = yaml.safe_load((PROJECT / f"roles/{role}/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
    said = host.run("ansible-doc", "--type", "role", f"dockercore.helper.{role}")
    assert all(name in said for name in options)
