"""Crashes that wait for a slot at the core-dump socket, and who has the slots: the server's own count, in its memory.

The rules are those of slots.py. The holder of the fewest slots comes first. Of several, it is the one that was served
the longest time ago: so a container that crashes in a loop waits for itself, and others do not wait for it. The places in the
queue are given like slots: a holder that waits there leaves some to others. Whoever waits for the most crashes leaves a place
to a container that waits for fewer: so several that crash in loops, and have come first, do not shut out others.
"""

from core_helper import holders, slots
from core_helper.slots import TooMany

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from core_helper.crash import Crash
    from core_helper.holders import Holder

MOST_WAITING = 1024
MOST_REMEMBERED = 4 * MOST_WAITING  # Groups.


class Job:
    """One crash at the socket: its ``connection``, and to whom it belongs."""

    def __init__(self, connection: "_socket.socket", crash: "Crash", holder: "Holder") -> None:
        """Take what is known of it."""
        self.connection = connection
        self.crash = crash
        self.holder = holder
        self.begun = False  # Whether a worker has it.
        self.patience = 0.0  # Until when it may wait, by the monotonic clock.


class Count:
    """How many slots, or places of a queue, are taken, by which group and which owner."""

    def __init__(self) -> None:
        """Start with none."""
        self.used = 0
        self.groups: dict[str, int] = {}
        self.owners: dict[int, int] = {}

    def add(self, holder: "Holder", number: int) -> None:
        """Count ``number`` more for a holder, or less."""
        self.used += number
        _add(self.groups, holder.group, number)
        if holder.owner != holders.NOBODY:
            _add(self.owners, holder.owner, number)

    def check(self, holder: "Holder", limit: int) -> None:
        """Raise TooMany unless ``holder`` may have one more of ``limit``."""
        slots.check_share(
            holder.owner,
            holder.group,
            self.groups.get(holder.group, 0),
            self.owners.get(holder.owner, 0),
            self.used,
            limit,
        )


class Queue:
    """The crashes that wait."""

    def __init__(self) -> None:
        """Start with none."""
        self.places = Count()
        self.groups: dict[str, list[Job]] = {}
        # The groups that were served, and when: the number of the turn.
        self.served: dict[str, int] = {}
        self.turn = 0

    def add(self, job: Job) -> "Job | None":
        """Have a crash wait; return the one that loses its place to it. Raises TooMany where there is no place for it."""
        loser = None
        try:
            self.places.check(job.holder, MOST_WAITING)
        except TooMany:
            loser = self._loser_to(job.holder)
            if loser is None:
                raise
            self._remove(loser)
        self.places.add(job.holder, 1)
        self.groups.setdefault(job.holder.group, []).append(job)
        return loser

    def _loser_to(self, holder: "Holder") -> "Job | None":
        """Return the last crash of the group that has the most, if ``holder`` has fewer and is no user of the host.

        A user can make any number of groups, each with few crashes.
        """
        most = max(self.groups.values(), key=len, default=[])
        has_fewer = len(self.groups.get(holder.group, ())) + 1 < len(most)
        return most[-1] if has_fewer and holder.owner == holders.NOBODY else None

    def put_back(self, job: Job) -> None:
        """Have a crash wait again, before others of its group: the worker that had it was killed."""
        self.places.add(job.holder, 1)
        self.groups.setdefault(job.holder.group, []).insert(0, job)

    def next(self, taken: Count, limit: int) -> "Job | None":
        """Return the next crash that may have one of ``limit`` slots, of which so many are ``taken``; it waits no more."""
        for group in sorted(self.groups, key=lambda name: (taken.groups.get(name, 0), self.served.get(name, 0))):
            job = self.groups[group][0]
            try:
                taken.check(job.holder, limit)
            except TooMany:
                continue
            self._remove(job)
            self.turn += 1
            self.served[group] = self.turn
            if len(self.served) > MOST_REMEMBERED:
                # A user who can make any number of groups must not have the server remember all of them.
                self.served = {name: turn for name, turn in self.served.items() if name in self.groups}
            return job
        return None

    def expired(self, now: float) -> "list[Job]":
        """Return those that have waited too long by the monotonic time ``now``; they wait no more."""
        late = [job for jobs in self.groups.values() for job in jobs if job.patience <= now]
        for job in late:
            self._remove(job)
        return late

    def _remove(self, job: Job) -> None:
        jobs = self.groups[job.holder.group]
        jobs.remove(job)
        if not jobs:
            del self.groups[job.holder.group]
        self.places.add(job.holder, -1)
        if not self.groups:
            # Nobody waits: everybody begins anew.
            self.served.clear()


def _add(numbers: "dict[Name, int]", name: "Name", number: int) -> None:
    numbers[name] = numbers.get(name, 0) + number
    if not numbers[name]:
        del numbers[name]


if TYPE_CHECKING:
    from typing import TypeVar

    Name = TypeVar("Name", str, int)
