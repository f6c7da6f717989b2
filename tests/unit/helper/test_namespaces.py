"""namespaces: the ancestors of a namespace, on a made-up host."""

from __future__ import annotations

import functools
import os

import pytest
from core_helper import namespaces
from unit.helper.world import World, keeps_descriptors


def test_the_ancestors_of_a_user_namespace_end_at_the_hosts(world: World) -> None:
    middle = world.namespace(world.host["user"])
    inner = world.namespace(middle)
    inodes = [path.stat().st_ino for path in (inner, middle, world.host["user"])]
    own = inodes[-1]
    assert namespaces.lineage(world.open(inner), own) == inodes
    assert namespaces.lineage(world.open(middle), own) == inodes[1:]
    assert namespaces.lineage(world.open(world.host["user"]), own) == [own]
    for path in (inner, middle, world.host["user"]):
        opened = world.open(path)
        assert keeps_descriptors(functools.partial(namespaces.lineage, opened, own))


def test_a_walk_that_ends_early_leaves_nothing_open(world: World) -> None:
    inner = world.namespace(world.namespace())
    opened = world.open(inner)

    def walk() -> None:
        # Not below the namespace of the helper, so that the kernel says no in the end.
        with pytest.raises(PermissionError):
            namespaces.lineage(opened, world.host["user"].stat().st_ino)

    assert keeps_descriptors(walk)


def test_the_first_process_of_the_host_is_asked_once_for_each_kind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Posix:
        @staticmethod
        def stat(path: str) -> os.stat_result:
            asked.append(path)
            if path == "/proc/1/ns/net":
                raise PermissionError(path)
            return os.stat(world.host["user"])

    monkeypatch.setattr(namespaces, "posix", Posix)
    for kind in ("user", "net", "user", "net"):
        assert namespaces.of_host(kind) == world.host["user"].stat().st_ino
    assert asked == ["/proc/1/ns/user", "/proc/1/ns/net", "/proc/self/ns/net"]
