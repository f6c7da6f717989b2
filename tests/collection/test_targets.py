"""The Python of the hosts: the role's modules on each that is found here, which Ansible starts there."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from collection.conftest import Host
from unit.test_role_rollout import LISTING, count

PY_MIN = pytest.importorskip("ansible.module_utils.basic")._PY_MIN


def pythons(minor: int) -> Iterator[str]:
    """Yield the paths of a Python 3 of this minor version: in PATH, or installed by pyenv."""
    found = shutil.which(f"python3.{minor}")
    candidates = [found] if found else []
    for path in [*candidates, *glob.glob(os.path.expanduser(f"~/.pyenv/versions/3.{minor}.*/bin/python3"))]:
        program = "import sys; sys.exit(sys.version_info[:2] != (3, int(sys.argv[1])))"
        if subprocess.run([path, "-c", program, str(minor)], stderr=subprocess.DEVNULL, check=False).returncode == 0:
            yield path


@pytest.mark.parametrize("minor", range(8, 15))
def test_a_host_with_this_python_from_the_first_run_to_the_removal(host: Host, minor: int) -> None:
    if (3, minor) < PY_MIN:
        pytest.skip(f"this ansible-core needs Python {'.'.join(map(str, PY_MIN))} on its hosts")
    python = next(pythons(minor), None)
    if python is None:
        pytest.skip(f"no Python 3.{minor} here")
    interpreter = ("-e", f"ansible_python_interpreter={python}")
    bare = host.sandbox.run(LISTING)
    assert count(host.play("dockercore.helper.site", *interpreter))[1] == 2
    host.play("dockercore.helper.remove", *interpreter)
    assert host.sandbox.run(LISTING) == bare
