"""Python is upgraded under the helper, as a host's own upgrade does it, and nobody rolls out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.machines import Machine
from support.records import is_whole
from vm.crashes import PROCESS, MachineCrash

LIBRARY = "/opt/lib/docker_core_helper"


@pytest.fixture
def nothing_compiled(machine: Machine) -> Iterator[None]:
    """Leaves the helper with a library that was compiled for another Python, and so not for this one."""
    machine.run(f"cp -a {LIBRARY} {LIBRARY}.saved")
    machine.run(f"find {LIBRARY} -name '*.cpython-*' -exec sh -c 'mv \"$1\" \"${{1%%.*}}.cpython-37.pyc\"' _ {{}} \\;")
    yield
    machine.run(f"rm -r {LIBRARY} && mv {LIBRARY}.saved {LIBRARY}")


@pytest.fixture
def next_python(machine: Machine) -> Iterator[None]:
    """Makes Python 3.14 the machine's."""
    before = machine.run("readlink /usr/bin/python3")
    machine.run("ln -sf python3.14 /usr/bin/python3")
    yield
    machine.run(f"ln -sf {before} /usr/bin/python3")


@pytest.mark.usefixtures("nothing_compiled")
def test_the_helper_runs_though_it_was_compiled_for_another_python(crash: Callable[[str], MachineCrash]) -> None:
    assert is_whole(crash(PROCESS).delegate.core.read_bytes())


@pytest.mark.only_on("trixie-backports")
@pytest.mark.usefixtures("next_python")
def test_the_helper_runs_on_python_3_14_though_it_was_installed_for_3_13(
    machine: Machine, crash: Callable[[str], MachineCrash]
) -> None:
    assert machine.run("/usr/bin/python3 --version").startswith("Python 3.14")
    assert is_whole(crash(PROCESS).delegate.core.read_bytes())
