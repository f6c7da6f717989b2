"""waiting: who has slots by the server's count, who waits, and who comes next."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from core_helper import waiting
from core_helper.crash import Crash
from core_helper.holders import named
from core_helper.slots import TooMany
from core_helper.waiting import Count, Job, Queue


def job(group: str, owner: int | None = None, patience: float = 0.0) -> Job:
    connection: Any = None
    job = Job(connection, Crash(1, 0, 0), named(group, owner))
    job.patience = patience
    return job


def serve(queue: Queue, taken: Count, limit: int) -> list[str]:
    """Return the groups that get the slots, in their order, until nobody may have one any more."""
    order = []
    while (next_one := queue.next(taken, limit)) is not None:
        taken.add(next_one.holder, 1)
        order.append(next_one.holder.name)
    return order


def test_slots_go_round_the_containers_and_not_to_the_one_that_came_first() -> None:
    queue, taken = Queue(), Count()
    for name in ("flood", "flood", "flood", "flood", "a", "b"):
        queue.add(job(name))
    assert serve(queue, taken, 64) == ["flood", "a", "b", "flood", "flood", "flood"]
    assert queue.groups == {} and queue.places.used == 0 and taken.used == 6


def test_who_holds_least_comes_next_whoever_has_waited_longest() -> None:
    queue, taken = Queue(), Count()
    for name in ("has two", "has one", "has none"):
        queue.add(job(name))
    for name, held in (("has two", 2), ("has one", 1)):
        taken.add(named(name, None), held)
    assert serve(queue, taken, 64) == ["has none", "has one", "has two"]


def test_whoever_makes_any_number_of_groups_does_not_fill_the_memory() -> None:
    queue, taken = Queue(), Count()
    for _ in range(2):
        queue.add(job("waits"))  # Somebody waits all the time.
    for number in range(10000):
        queue.add(job(f"group {number}"))
        assert queue.next(taken, 64) is not None
    assert len(queue.served) <= waiting.MOST_REMEMBERED


def test_of_those_who_hold_as_much_the_one_comes_next_who_was_served_longest_ago() -> None:
    queue, taken = Queue(), Count()
    for _ in range(3):
        for name in ("a", "b", "c"):
            queue.add(job(name))
    order = []
    # One slot, which each gives back at once.
    for _ in range(9):
        next_one = queue.next(taken, 64)
        assert next_one is not None
        order.append(next_one.holder.name)
    assert order == ["a", "b", "c"] * 3


def test_a_container_that_is_alone_has_half_of_the_slots_and_waits_for_more() -> None:
    queue, taken = Queue(), Count()
    for _ in range(50):
        queue.add(job("flood"))
    assert serve(queue, taken, 64) == ["flood"] * 32
    queue.add(job("other"))
    assert serve(queue, taken, 64) == ["other"]
    assert queue.places.used == 18
    taken.add(named("flood", None), -1)
    assert serve(queue, taken, 64) == ["flood"]


def test_a_user_with_many_containers_has_a_share_too() -> None:
    queue, taken = Queue(), Count()
    for number in range(70):
        queue.add(job(f"container {number}", owner=1000))
    queue.add(job("other"))
    served = serve(queue, taken, 64)
    assert len(served) == 49 and "other" in served


def test_a_holder_that_waits_leaves_places_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_WAITING", 16)
    queue = Queue()
    for _ in range(8):
        queue.add(job("flood"))
    with pytest.raises(TooMany, match="flood has 8 crashes in flight, and 8 of 16"):
        queue.add(job("flood"))
    queue.add(job("other"))
    assert queue.next(Count(), 64) is not None
    queue.add(job("flood"))


@pytest.mark.parametrize("floods", [3, 20])
def test_floods_that_have_taken_the_places_before_leave_some_to_a_container_that_waits_for_fewer(floods: int) -> None:
    queue = Queue()
    for flood in range(floods):
        for _ in range(waiting.MOST_WAITING):
            with contextlib.suppress(TooMany):
                queue.add(job(f"flood {flood}"))
    places = waiting.MOST_WAITING - waiting.MOST_WAITING // 8  # The others are for whoever waits for nothing yet.
    losers = [queue.add(job("other")) for _ in range(places // (floods + 1))]
    assert any(losers) and not any(loser.holder.name == "other" for loser in losers if loser)
    assert queue.places.used <= waiting.MOST_WAITING
    sizes = [len(jobs) for jobs in queue.groups.values()]
    assert sum(sizes) == queue.places.used


def test_a_user_who_makes_many_containers_takes_no_place_of_whoever_waits_for_more() -> None:
    queue = Queue()
    for name in ("flood", "other"):
        for _ in range(waiting.MOST_WAITING):
            with contextlib.suppress(TooMany):
                queue.add(job(name))
    before = {name: len(jobs) for name, jobs in queue.groups.items()}
    for number in range(2 * waiting.MOST_WAITING):
        with contextlib.suppress(TooMany):
            assert queue.add(job(f"container {number}", owner=1000)) is None
    assert before.items() <= {name: len(jobs) for name, jobs in queue.groups.items()}.items()


def test_who_has_waited_too_long_waits_no_more() -> None:
    queue = Queue()
    for name, patience in (("a", 10.0), ("a", 20.0), ("b", 10.5)):
        queue.add(job(name, patience=patience))
    assert queue.expired(9.9) == []
    assert [late.holder.name for late in queue.expired(10.5)] == ["a", "b"]
    assert queue.places.used == 1 and list(queue.groups) == [named("a", None).group]


def test_nobodys_owner_is_not_counted() -> None:
    taken = Count()
    taken.add(named("container a", None), 1)
    taken.add(named("container b", 1000), 2)
    assert taken.owners == {1000: 2} and taken.used == 3
    taken.add(named("container b", 1000), -2)
    assert taken.owners == {} and list(taken.groups.values()) == [1]
