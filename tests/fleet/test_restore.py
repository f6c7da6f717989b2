"""The real modules, from one version to the next and back, on this machine with files in place of what they would change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.test_role_rollout import LISTING, SITE, Sandbox, count

PROJECT = Path(__file__).resolve().parents[2]
CONTENTS = (
    f"{LISTING}; cat /etc/docker_core_helper.conf /etc/sysctl.d/60-docker-core-helper.conf /opt/bin/docker_core_helper"
)
VERSION = "/opt/bin/docker_core_helper --version"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """Return a bare host."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for private mounts")
    (tmp_path / "host").mkdir()
    sandbox = Sandbox(tmp_path / "host", "|/bin/false %P")
    yield sandbox
    sandbox.shell.communicate("exit\n")


def newer(directory: Path) -> Path:
    """Return a checkout of the next version."""
    for name in ("helper", "playbooks", "plugins", "roles"):
        shutil.copytree(PROJECT / name, directory / name, symlinks=True)
    package = directory / "helper/core_helper/__init__.py"
    package.write_text(package.read_text().replace('__version__ = "', '__version__ = "9.'))
    return directory


def test_a_host_that_had_none_loses_it_again(sandbox: Sandbox) -> None:
    bare = sandbox.run(LISTING)
    sandbox.play(*SITE)
    assert sandbox.run(LISTING) != bare
    sandbox.play("rollback.yml")
    assert sandbox.run(LISTING) == bare


def test_a_host_that_had_an_older_version_gets_it_again_whole(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.play(*SITE, "-e", "docker_core_helper_kernel_limit=65")
    first = sandbox.run(VERSION)
    before = sandbox.run(CONTENTS)
    new = os.path.relpath(newer(tmp_path / "new"), PROJECT / "playbooks")
    sandbox.run(f"export ANSIBLE_ROLES_PATH={tmp_path}/new/roles")
    sandbox.play(f"{new}/playbooks/site.yml", *SITE[1:], "-e", "docker_core_helper_timeout=77")
    assert "docker_core_helper 9." in sandbox.run(VERSION)
    assert "=77" in sandbox.run(CONTENTS)

    said = sandbox.play("rollback.yml", "--check", "--diff")
    assert "+kernel.core_pipe_limit = 65" in said
    assert "somebody else" not in said
    assert "docker_core_helper 9." in sandbox.run(VERSION)
    # Set by hand since the rollout: told, as this is the only place that knows it.
    sandbox.run("echo '@/run/mine' > /proc/sys/kernel/core_pattern")
    said = sandbox.play("rollback.yml")
    assert "replaced, it was '@/run/mine', the socket /run/mine" in " ".join(said.split())
    assert sandbox.run(VERSION) == first
    # The newer library stays until another version comes, in case that a crash is still in it.
    left = sandbox.run("ls -d /opt/lib/docker_core_helper/*/")
    assert left.count("/opt/lib/") == 2
    added = [line for line in sandbox.run(CONTENTS).splitlines() if line not in before.splitlines()]
    assert all(line.startswith("/opt/lib/docker_core_helper/") for line in added), added

    sandbox.run("unset ANSIBLE_ROLES_PATH")
    assert count(sandbox.play(*SITE, "-e", "docker_core_helper_kernel_limit=65"))[1] == 0


@pytest.mark.parametrize("words", [("verify.yml",), (*SITE, "--check"), SITE])
def test_a_helper_that_others_can_change_is_never_run(sandbox: Sandbox, words: tuple[str, ...]) -> None:
    program = "#!/bin/sh\\nid -un >>/opt/ran\\n"
    sandbox.run("mkdir /opt/bin; chown 65534 /opt/bin")
    sandbox.run(f"printf '{program}' >/opt/bin/docker_core_helper; chmod 755 /opt/bin/docker_core_helper")
    said = sandbox.play(*words, status=2)
    assert "/opt/bin belongs to user 65534" in said
    assert "No such file" in sandbox.run("cat /opt/ran")


@pytest.mark.parametrize("path", ["/etc/docker_core_helper.conf", "/etc/sysctl.d/60-docker-core-helper.conf"])
def test_what_somebody_else_has_under_our_names_is_neither_replaced_nor_removed(sandbox: Sandbox, path: str) -> None:
    sandbox.run(f"echo '# mine' >{path}")
    before = sandbox.run(f"{LISTING}; cat {path}")
    said = sandbox.play(*SITE, status=2)
    assert f"{path} was written by somebody else" in said
    # What is refused before anything is changed leaves nothing to come back from.
    untouched = "Nothing was changed" in said
    assert untouched is ("sysctl.d" in path)
    for playbook in ("rollback.yml", "remove.yml"):
        sandbox.play(playbook, status=2 if untouched and playbook == "rollback.yml" else 0)
        assert sandbox.run(f"{LISTING}; cat {path}") == before


def test_without_its_library_the_older_version_is_refused_before_anything_changes(sandbox: Sandbox) -> None:
    sandbox.play(*SITE, "-e", "docker_core_helper_pipe_limit=8")
    sandbox.play(*SITE, "-e", "docker_core_helper_pipe_limit=9")
    before = sandbox.run(CONTENTS)
    record = sandbox.directory / "rollout/finished.json"
    sandbox.run(f"sed -i 's|/opt/lib/docker_core_helper/[0-9a-f]*|/opt/lib/docker_core_helper/gone|' {record}")
    with pytest.raises(AssertionError, match="the library of the version before is gone"):
        sandbox.play("rollback.yml")
    assert sandbox.run(CONTENTS) == before
