"""A user of the host hides in control groups of his own; the delegate is in the same ones, or there is none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.intruders import PROGRAM
from hostile.observe import wait_until
from support.containers import wait_for_log

USER = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")


@pytest.fixture
def deep_group(request: pytest.FixtureRequest, group_of_user: Path) -> Iterator[Callable[[int], None]]:
    """Moves a process into a control group of user 1000 whose path in the hierarchy has so many bytes."""
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    made = []
    os.chdir(group_of_user)
    length = len(f"/{group_of_user.name}")
    while length < request.param:
        name = "d" * min(250, request.param - length - 1)
        os.mkdir(name)
        os.chown(name, 1000, 1000)
        os.chdir(name)
        made.append(name)
        length += len(name) + 1
    file = os.open("cgroup.procs", os.O_WRONLY)

    def move(pid: int) -> None:
        os.write(file, str(pid).encode())

    yield move
    os.close(file)
    for name in reversed(made):
        os.chdir("..")
        wait_until(lambda of=name: "populated 0" in Path(of, "cgroup.events").read_text(), "a process is left")  # type: ignore[misc]
        os.rmdir(name)
    os.fchdir(before)
    os.close(before)


# With the path of the hierarchy, too long for open(2); and longer than the kernel tells, which cuts it off.
@pytest.mark.parametrize("deep_group", [4086, 5000], indirect=True)
@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_10_control_groups_of_a_user_whose_path_is_too_long(
    records: Path, deep_group: Callable[[int], None]
) -> None:
    words = [*USER, PROGRAM, f"wait={records}/go", "record", "tiny"]
    crash = subprocess.Popen(words, cwd="/", env={"RECORD_DIRECTORY": str(records)})
    deep_group(crash.pid)
    (records / "go").touch()
    crash.wait()
    lines = wait_for_log(f"pid={crash.pid} ", "deliver")
    assert "deliver" in lines
    (process,) = records.glob("process.*")
    for delegate in records.glob("delegate.*"):
        theirs, ours = ((place / "cgroup").read_text().splitlines()[-1] for place in (process, delegate))
        assert ours == theirs, f"the delegate is in another control group than the process: {lines}"
