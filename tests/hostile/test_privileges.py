"""The ids and the rights of the delegate: those of the process, also in odd namespaces and for odd programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile.options import ADMINISTRATOR, UNCONFINED
from support.containers import MakeCrash
from support.records import CAPABILITY_SETS, is_whole


def test_attack_10_file_capabilities_of_the_delegate(attack: MakeCrash) -> None:
    container = attack("delegate=capable", "user", "record")
    # The kernel does not execute a program without the capabilities that its file says it needs; capabilities(7).
    assert "Operation not permitted" in container.log("core dropped")
    assert container.of("delegate") == []


def test_attack_10_a_set_id_delegate(attack: MakeCrash) -> None:
    container = attack("delegate=set-id", "user", "record")
    container.log("delivered")
    process, found = container.process, container.delegate
    assert (found.status["Uid"], found.status["Gid"]) == (process.status["Uid"], process.status["Gid"])
    assert [found.capabilities(name) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]


def test_attack_10_root_that_gave_its_capabilities_away(attack: MakeCrash) -> None:
    container = attack("give", "record")
    container.log("delivered")
    assert container.process.capabilities("CapBnd") != 0
    assert [container.delegate.capabilities(name) for name in CAPABILITY_SETS] == [0, 0, 0, 0, 0]


def test_attack_10_a_node_of_a_disk_of_the_host(attack: MakeCrash) -> None:
    disks = [Path(name).read_text().strip() for name in sorted(Path("/sys/block").glob("*/dev"))]
    if not disks:
        pytest.skip("this machine has no disk")
    container = attack(options=("--env=ATTACK=opens-disk", f"--env=DISK={disks[-1]}"))
    container.log("delivered")
    told = (container.records / "disk").read_text()
    assert "mknod" not in told
    assert "Operation not permitted" in told


def test_attack_16_a_false_proc(attack: MakeCrash) -> None:
    container = attack("limits", "fake-proc", "user", options=ADMINISTRATOR)
    assert "delivered" in container.log("delivered")
    delegate = container.delegate
    assert is_whole(delegate.core.read_bytes())
    facts = delegate.directory.stat()
    assert (facts.st_uid, facts.st_gid) == (1000, 1000)
    assert delegate.facts["descriptors"].split() == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["mapped", "unmapped", "denied"])
def test_attack_16_a_user_namespace_with_an_odd_map(attack: MakeCrash, kind: str) -> None:
    # Only who administrates the system may map users and leave setgroups(2) allowed.
    options = (*UNCONFINED, "--cap-add=SYS_ADMIN") if kind == "mapped" else UNCONFINED
    container = attack(f"userns={kind}", "record", options=options)
    container.log("delivered")
    process, delegate = container.process, container.delegate
    assert delegate.links["ns/user"] == process.links["ns/user"]
    for name in ("Uid", "Gid", "Groups"):
        assert delegate.status[name].split() == process.status[name].split()
    facts = delegate.directory.stat()
    assert (facts.st_uid, facts.st_gid) == (1000, 1000)
