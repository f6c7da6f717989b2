"""Crashes in everything that runs processes on a real host: systemd, a pure cgroup v2, AppArmor, three engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.machines import Machine
from support.records import CAPABILITY_SETS, NAMESPACES, is_whole
from vm.crashes import CONFINED, IMAGE, KEPT, ROOT, WAYS, MachineCrash


@pytest.fixture(scope="module", params=list(WAYS))
def way(request: pytest.FixtureRequest) -> str:
    """The name of one way to crash."""
    return str(request.param)


@pytest.fixture(scope="module")
def crashed(way: str, crash: Callable[[str], MachineCrash]) -> MachineCrash:
    """One crash in that way, for all tests."""
    return crash(WAYS[way])


def test_the_delegate_gets_the_whole_core(crashed: MachineCrash) -> None:
    assert is_whole(crashed.delegate.core.read_bytes())


def test_the_delegate_has_ids_namespaces_root_and_cgroup_of_the_process(crashed: MachineCrash) -> None:
    process, delegate = crashed.process, crashed.delegate
    for name in ("Uid", "Gid", "Groups"):
        assert delegate.status[name].split() == process.status[name].split(), name
    for name in CAPABILITY_SETS:
        assert delegate.capabilities(name) & ~process.capabilities(name) == 0, name
    for namespace in NAMESPACES:
        assert delegate.links[f"ns/{namespace}"] == process.links[f"ns/{namespace}"], namespace
    assert delegate.facts["root_inode"] == process.facts["root_inode"]
    # All controllers are in the unified hierarchy. systemd-nspawn of systemd 252 adds an empty one: name=systemd.
    groups = [
        [line for line in record.text("cgroup").splitlines() if ":name=" not in line] for record in (process, delegate)
    ]
    assert len(groups[0]) == 1 and groups[0][0].startswith("0::/")
    assert groups[1] == groups[0]


def test_the_label_of_the_delegate_is_that_of_the_process(way: str, crashed: MachineCrash) -> None:
    label = crashed.process.text("label")
    assert label.startswith(CONFINED.get(way, "")) and label
    assert crashed.delegate.text("label") == label


def test_a_process_with_the_filters_of_its_whole_container_keeps_its_variables(way: str, crashed: MachineCrash) -> None:
    if KEPT not in WAYS[way]:
        pytest.skip(f"no variable was set: {way}")
    assert int(crashed.process.status["Seccomp_filters"]) > 0
    assert crashed.delegate.environment["KEPT"] == "1"


def test_the_delegate_is_told_what_the_engine_of_root_knows(way: str, crashed: MachineCrash) -> None:
    told = crashed.delegate.environment
    assert bool(told["CORE_CONTAINER_NAME"]) is (way in CONFINED)
    # The tag is Podman's.
    assert told["CORE_IMAGE"].partition(":")[0] == (IMAGE if way in CONFINED else "")
    names = {"service": "unit-crasher.service", "hardened-service": "unit-crasher.service"}
    place = told["CORE_CONTAINER_NAME"] or names.get(way, "")
    assert f".{place}" in told["CORE_KEY"] and ".crash.crash." in told["CORE_KEY"]


def test_the_journal_has_one_line(crashed: MachineCrash) -> None:
    (line,) = crashed.journal
    size = crashed.delegate.core.stat().st_size
    assert "signal=11 (SIGSEGV)" in line and f"delivered {size} bytes to /opt/bin/delegate in" in line


def test_a_program_that_is_lent_is_confined_as_the_process_is(
    machine: Machine, crash: Callable[[str], MachineCrash]
) -> None:
    configuration = "/etc/docker_core_helper.conf"
    lines = f"DOCKERCOREHELPER_DELEGATE=/opt/bin/none\nDOCKERCOREHELPER_LEND={ROOT}/opt/bin/delegate\n"
    machine.run(f"cp {configuration} /root/before && printf '{lines}' >>{configuration}")
    try:
        for way in ("docker", "podman", "rootless-podman"):
            crashed = crash(WAYS[way])
            process, lent = crashed.process, crashed.delegate
            assert lent.links["exe"] == "/memfd:delegate (deleted)" and lent.facts["descriptors"] == "0 1 2 "
            assert lent.text("label") == process.text("label")
            assert lent.status["Uid"].split() == process.status["Uid"].split()
            assert is_whole(lent.core.read_bytes())
    finally:
        machine.run(f"mv /root/before {configuration}")
