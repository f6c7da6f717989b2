"""tracing: who may trace a process of ours, on a made-up host."""

from __future__ import annotations

import functools
import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import first_process, procfs, tracing
from unit.helper.world import ALL, DOCKER, FEW, FILES, OTHER, SYS_ADMIN, SYS_PTRACE, World, keeps_descriptors


@pytest.mark.parametrize(
    ("first", "own", "traced"),
    [(FEW, FEW, False), (FEW | SYS_PTRACE, FEW, True), (FEW, SYS_PTRACE, True), (FEW | SYS_ADMIN, SYS_ADMIN, False)],
)
def test_a_process_of_ours_may_be_traced_by_whoever_is_in_its_pid_namespace_or_above(
    world: World, first: int, own: int, traced: bool
) -> None:
    outer = world.container()
    inner = world.namespace(outer["pid"])
    world.process(10, "1", DOCKER, FILES, bounding=first, **outer)
    world.process(11, "2", DOCKER, FILES, bounding=own, **outer)
    world.process(12, "3 1", DOCKER, FILES, bounding=FEW, **{**outer, "pid": inner})
    # A process of the host, or of another container, or without rights outside of its user namespace.
    world.process(1, bounding=ALL)
    world.process(20, "1", OTHER, bounding=ALL, **world.container())
    world.process(21, "4", OTHER, bounding=ALL, **{**outer, "user": world.namespace(world.host["user"])})
    (world.proc / "99").mkdir()
    for pid in (10, 11, 12):
        process = world.crashed(pid)
        assert tracing.may_be_traced(process) is traced
        assert keeps_descriptors(functools.partial(tracing.may_be_traced, process))


@pytest.mark.parametrize("sets", [{"permitted": SYS_PTRACE}, {"inheritable": SYS_PTRACE}])
@pytest.mark.parametrize("thread", [False, True])
def test_whoever_has_the_right_to_trace_outside_of_its_bounding_set_has_it(
    world: World, sets: dict[str, Any], thread: bool
) -> None:
    box = world.container()
    world.process(10, "1", DOCKER, FILES, bounding=FEW, **box)
    world.process(11, "2", DOCKER, FILES, bounding=FEW, **(box if thread else {**box, **sets}))
    if thread:
        world.process("other", bounding=FEW, **sets)
        (world.proc / "11" / "task" / "12").symlink_to(world.proc / "other")
        (world.proc / "10" / "task" / "13").mkdir()
    assert tracing.may_be_traced(world.crashed(10))


def test_a_process_of_very_many_threads_may_trace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.process(10, "1", DOCKER, FILES, bounding=FEW, **world.container())
    assert tracing._has_tracer("10", time.monotonic() - 1)
    assert not tracing._has_tracer("10", time.monotonic() + 60)
    assert not tracing._has_tracer("99", time.monotonic() + 60)


def test_a_thread_that_may_trace_is_found_behind_one_that_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(10, "1", DOCKER, FILES, bounding=ALL, **world.container())
    monkeypatch.setattr(tracing, "posix", SimpleNamespace(listdir=lambda path: ["99", "10"]))
    assert tracing._has_tracer("10", time.monotonic() + 60)


@pytest.mark.parametrize("looked_at", ["pid", "user"])
def test_a_tracer_that_ends_while_it_is_looked_at_and_leaves_another_one_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch, looked_at: str
) -> None:
    box = world.container()
    for pid in (10, 30):
        world.process(pid, str(pid), DOCKER, FILES, bounding=FEW, **box)
    real = first_process.namespace_of

    def ask(pid: int, kind: str) -> int | None:
        # Two, one after the other: the second one is all that is new when it is looked at.
        if pid in (30, 31) and kind == looked_at:
            world.process(pid + 1, str(pid + 1), DOCKER, FILES, bounding=ALL, **box)
            return None
        return real(pid, kind)

    monkeypatch.setattr(first_process, "namespace_of", ask)
    assert tracing.may_be_traced(world.crashed(10))


def test_a_tracer_whose_leading_thread_has_exited_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    box = world.container()
    world.process(10, "1", DOCKER, FILES, bounding=FEW, **box)
    world.process(11, "2", DOCKER, FILES, bounding=ALL, **box)
    process = world.crashed(10)
    for kind in ("pid", "user"):
        os.link(world.proc / "11/ns" / kind, world.directory / f"thread-{kind}")
        (world.proc / "11/ns" / kind).unlink()
    real = first_process.inode_of
    monkeypatch.setattr(procfs, "task_of", lambda pid, tid: f"/thread/{pid}")
    monkeypatch.setattr(
        first_process,
        "inode_of",
        lambda path: (
            (world.directory / f"thread-{path.rpartition('/')[2]}").stat().st_ino
            if path.startswith("/thread/11/")
            else real(path)
        ),
    )
    assert tracing.may_be_traced(process)


def test_who_is_below_sees_nothing_of_a_pid_namespace(world: World) -> None:
    outer = world.container()
    world.process(10, "1", DOCKER, FILES, bounding=FEW, **outer)
    world.process(12, "3 1", DOCKER, FILES, bounding=ALL, **{**outer, "pid": world.namespace(outer["pid"])})
    assert [tracing.may_be_traced(world.crashed(pid)) for pid in (10, 12)] == [False, True]


def test_in_the_pid_namespace_of_the_host_a_container_may_trace_and_the_host_does_not_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(20, cgroup="/system.slice/a.service")
    world.process(21, cgroup=DOCKER)
    world.process(22, mnt=world.namespace(owner=world.host["user"]))
    assert [tracing.may_be_traced(world.crashed(pid)) for pid in (20, 21, 22)] == [False, True, True]
    monkeypatch.setattr(tracing, "PATIENCE", -1.0)
    world.process(23, "1", bounding=FEW, **world.container())
    assert tracing.may_be_traced(world.crashed(23))
