"""container: the namespaces in their order, the root directory, the host name."""

from __future__ import annotations

import os
import posix
from pathlib import Path
from typing import Any

import pytest
from core_helper import container, linux, mount_table, procfs, verification
from core_helper.crash import Refused
from unit.helper.support import process
from unit.helper.world import Elsewhere, keeps_descriptors


def test_namespaces_are_joined_in_order_and_the_mount_namespace_last(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[tuple[int, int]] = []
    monkeypatch.setattr(linux, "setns", lambda descriptor, kind: joined.append((descriptor, kind)))
    namespaces = [(name, kind, 100 + n) for n, (name, kind) in enumerate(verification.NAMESPACES)]
    container.join_namespaces(process(namespaces=namespaces))
    assert joined == [(100 + n, kind) for n, (_, kind) in enumerate(verification.NAMESPACES)]
    names = [name for name, _ in verification.NAMESPACES]
    assert names[-1] == "mnt" and "user" not in names
    assert set(os.listdir("/proc/self/ns")) - {"pid_for_children", "time_for_children", "user"} <= set(names)


def test_a_namespace_that_cannot_be_joined_ends_the_entry() -> None:
    with pytest.raises(OSError, match="setns"):
        container.join_namespaces(process(namespaces=[("net", linux.CLONE_NEWNET, -1)]))


def test_the_host_name_of_a_process_outside_of_containers_is_that_of_the_machine() -> None:
    assert container.hostname_of(process()) == os.fsencode(os.uname().nodename)


def test_the_helper_comes_back_from_its_visit_even_if_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    visits: list[int] = []

    def setns(descriptor: int, kind: int) -> None:
        assert kind == linux.CLONE_NEWUTS
        visits.append(descriptor)
        if descriptor == 99:
            raise OSError(1, "Operation not permitted", "setns")

    monkeypatch.setattr(linux, "setns", setns)
    with pytest.raises(OSError, match="setns"):
        container.hostname_of(process(namespaces=[("uts", linux.CLONE_NEWUTS, 99)]))
    assert visits[0] == 99 and len(visits) == 2


def test_the_root_is_entered_by_its_descriptor_and_nothing_of_the_old_directory_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[str, object]] = []
    for name in ("fchdir", "chroot", "chdir"):
        monkeypatch.setattr(posix, name, lambda argument, name=name: calls.append((name, argument)))
    container.enter_root(process(root=99))
    assert calls == [("fchdir", 99), ("chroot", "."), ("chdir", "/")]


@pytest.fixture
def joining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """container.join_namespaces of a process whose root is on a mount, in a namespace with a table of mounts."""
    (tmp_path / "self").mkdir()
    moved = Elsewhere(tmp_path)
    ours = os.stat("/")
    joined: list[Any] = []
    monkeypatch.setattr(container, "posix", moved)
    monkeypatch.setattr(linux, "setns", lambda *words: joined.append(words))

    def join(mount: int, table: bytes, in_container: bool = True) -> Any:
        (tmp_path / "self" / "mountinfo").write_bytes(table)
        crashed = process(root=99, namespaces=[("mnt", 5, 98)], in_container=lambda: in_container)

        def mount_of(descriptor: int, proc_self: int | None = None) -> int:
            # Asked through the /proc of the host, which was opened before.
            assert proc_self is not None and os.path.samestat(os.fstat(proc_self), os.stat(tmp_path / "self"))
            assert joined == [(98, 5)]
            if descriptor == 99:
                return mount
            assert os.path.samestat(os.fstat(descriptor), ours)
            return 20

        monkeypatch.setattr(mount_table, "mount_of", mount_of)
        joined.clear()
        container.join_namespaces(crashed)

    return join


@pytest.mark.parametrize(("mount", "table"), [(20, b""), (40, b"40 20 0:50 / /jail rw - overlay o rw\n")])
def test_a_root_directory_of_the_joined_mounts_is_entered(joining: Any, mount: int, table: bytes) -> None:
    assert keeps_descriptors(lambda: joining(mount, table))


def test_a_root_directory_of_other_mounts_is_refused(joining: Any) -> None:
    with pytest.raises(Refused, match="in another mount namespace than the process"):
        joining(40, b"41 20 0:50 / /jail rw - overlay o rw\n")
    # Whoever has the host's mounts was asked before; see membership.py.
    joining(40, b"", in_container=False)


def test_a_root_directory_is_found_in_a_list_of_any_length(joining: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "MOUNTINFO_LIMIT", 20)
    joining(40, b"41 20 0:50 / /mnt rw - ext4 o rw\n40 20 0:50 / /jail rw - overlay o rw\n")


def test_the_host_name_of_a_container_is_seen_by_a_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    visits: list[int] = []
    monkeypatch.setattr(linux, "setns", lambda descriptor, kind: visits.append(descriptor))
    real = posix.uname()

    def uname() -> Any:
        return os.uname_result((real[0], "box" if visits[-1:] == [99] else "host", *real[2:]))

    monkeypatch.setattr(posix, "uname", uname)
    crashed = process(namespaces=[("mnt", 1, 97), ("uts", linux.CLONE_NEWUTS, 99)])
    assert keeps_descriptors(lambda: container.hostname_of(crashed))
    assert container.hostname_of(crashed) == b"box"
    assert visits[0::2] == [99, 99] and 99 not in visits[1::2]
