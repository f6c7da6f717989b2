"""Services of the host in slices of systemd's: one is no other, and none costs another one its core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.groups import ANOTHER, GROUPS, SERVICE, Place, many_groups
from hostile.intruders import PROGRAM, Start
from hostile.observe import processes_of, wait_until
from support import lab
from support.containers import MakeCrash, read_log


def crash_of_service(run: Start, place: Place, records: Path, *actions: object, jail: Path | None = None) -> str:
    """Has a service of the host do the actions, and crash; the lines of the log about it."""
    before = set(read_log().splitlines())
    crash = run(PROGRAM, f"wait={records}/go", *actions, env={"RECORD_DIRECTORY": "/" if jail else str(records)})
    place(crash.pid, SERVICE)
    (records / "go").touch()
    crash.wait()

    def lines() -> str:
        new = [line for line in read_log().splitlines() if line not in before]
        return "\n".join(line for line in new if 'comm="crasher"' in line)

    wait_until(lines, "no line in the log")
    return lines()


@pytest.mark.usefixtures("delegate_of_the_host")
@pytest.mark.parametrize("kind", ["own-mounts", "seccomp=filter"])
def test_the_units_of_others_cost_no_service_its_core(run: Start, place: Place, records: Path, kind: str) -> None:
    another = run("sleep", "100")
    place(another.pid, ANOTHER)
    with many_groups(GROUPS / "pids/lab.slice"):
        assert ": delivered " in crash_of_service(run, place, records, kind, "tiny")


SERVICES = {
    "a service with a root directory of its own": ("own-mounts", "root={jail}", "execute=/usr/bin/crasher"),
    "a container": ("own-mounts", "sandbox=pid", "root={jail}", "execute=/usr/bin/crasher"),
}


@pytest.mark.usefixtures("delegate_of_the_host")
@pytest.mark.parametrize("kind", SERVICES)
def test_a_slice_in_one_hierarchy_is_no_other_control_group(
    run: Start, place: Place, records: Path, jail: Path, kind: str
) -> None:
    another = run("sleep", "100")
    place(another.pid, ANOTHER)
    actions = [action.format(jail=jail) for action in SERVICES[kind]]
    assert ": delivered " in crash_of_service(run, place, records, *actions, jail=jail)


@pytest.mark.usefixtures("delegate_of_the_host")
def test_attack_24_a_filter_of_its_own_where_another_service_of_the_slice_has_one(
    run: Start, place: Place, records: Path
) -> None:
    another = run(PROGRAM, "seccomp=filter", f"wait={records}/never")
    place(another.pid, ANOTHER)
    place(run("sleep", "100").pid, SERVICE)
    crash_of_service(run, place, records, "seccomp=filter", "tiny")
    # The variable that names it was not passed on.
    assert not list(records.glob("delegate.*"))


# Before Linux 6.11, the kernel does not name the first process.
OLD_KERNEL = """
from core_helper import namespaces

namespaces.NS_GET_PID_FROM_PIDNS = 0
"""


def test_the_control_groups_of_others_cost_no_container_its_core(
    attack: MakeCrash, old_kernel: Callable[[str], None]
) -> None:
    """In a hierarchy that the engine does not know, all containers are in the root group."""
    old_kernel(OLD_KERNEL)
    with open("/proc/self/cgroup") as file:
        unknown = GROUPS / file.readline().split(":")[1].removeprefix("name=")
    if not (unknown / "tasks").exists():
        pytest.skip("this host has no control groups of version 1")
    container = attack("wait=/out/never", options=("--detach",))
    lab.output("docker", "exec", "--detach", container.name, "crasher", "wait=/out/go", "tiny")
    wait_until(lambda: len(processes_of(container)) == 2, "the engine has started nothing")
    for pid, _ in processes_of(container):
        (unknown / "cgroup.procs").write_text(str(pid))
    with many_groups(unknown):
        (container.records / "go").touch()
        assert ": delivered " in container.log(": delivered ")
