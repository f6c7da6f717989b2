"""Moves processes between control groups, and makes such groups in the hierarchies of version 1."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core_helper import control_groups, procfs

GROUPS = Path("/sys/fs/cgroup")
MANY = 300  # More control groups than the helper looks at.
# As systemd does it in the hierarchies of version 1: there is a control group for each unit where the unit has a limit, else
# that of the slice alone. In /proc/PID/cgroup, the hierarchy of processes comes before that of memory.
SERVICE = {"pids": "lab.slice", "memory": "lab.slice/lab-a.service"}
ANOTHER = {"pids": "lab.slice", "memory": "lab.slice/lab-b.service"}

Place = Callable[[int, "dict[str, str]"], None]


def move(pid: int, to: int | None) -> None:
    """Moves a process into all control groups of another one, or into the root groups."""
    mounts = control_groups.own_cgroup_mounts()
    for controllers, path in procfs.parse_cgroup(Path(f"/proc/{to or pid}/cgroup").read_bytes()):
        group = mounts.get(controllers.split(b",")[0])
        if group is not None:
            Path(os.fsdecode(group + (path if to else b"/")), "cgroup.procs").write_text(str(pid))


def make(group: Path) -> None:
    """Makes a control group; one of processors needs those of the group above before it takes a process."""
    group.mkdir()
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (group / file).exists():
            (group / file).write_text((group.parent / file).read_text())


@contextmanager
def moved_below(pid: int, parent: int, name: str) -> Iterator[None]:
    """Has a process in control groups below those of another one, as an engine in a container makes them."""
    made: list[Path] = []
    before = Path(f"/proc/{pid}/cgroup").read_text()
    try:
        for line in Path(f"/proc/{parent}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            group = Path(f"{GROUPS}/{controllers.removeprefix('name=')}{path}")
            if not controllers or path == "/" or not (group / "cgroup.procs").exists():
                continue
            for directory in (group / Path(name).parent, group / name):
                make(directory)
                made.append(directory)
            (group / name / "cgroup.procs").write_text(str(pid))
        assert made, "this host has no control groups of version 1: nothing was shown"
        yield
    finally:
        for line in before.splitlines():
            _, controllers, path = line.split(":", 2)
            procs = Path(f"{GROUPS}/{controllers.removeprefix('name=')}{path}/cgroup.procs")
            if controllers and procs.exists():
                procs.write_text(str(pid))
        for directory in reversed(made):
            # The engine removes them with those of a container that has ended.
            with suppress(FileNotFoundError):
                directory.rmdir()


def move_into(pid: int, name: str) -> list[Path]:
    """Moves a process into a control group of that name in each hierarchy of version 1; returns those that were made."""
    made = []
    for hierarchy in GROUPS.iterdir():
        group = hierarchy / name
        if hierarchy.is_symlink() or not (hierarchy / "tasks").exists():
            continue
        if not group.exists():
            make(group)
            made.append(group)
        (group / "cgroup.procs").write_text(str(pid))
    return made


@contextmanager
def many_groups(above: Path) -> Iterator[None]:
    """Very many control groups, as hundreds of containers have them."""
    groups = [above / f"unit-{number}.scope" for number in range(MANY)]
    try:
        for group in groups:
            group.mkdir()
        yield
    finally:
        for group in groups:
            group.rmdir()
