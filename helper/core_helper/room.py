"""How much room a core gets in the store, and which cores make room for it: the bounds that the administrator has set."""

import fcntl
import posix

from core_helper.store import COMPRESSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from core_helper.configuration import Configuration
    from core_helper.store import Entry, Store

# The smallest core counts as a part of the bound: to look at all of them must not take long.
MOST_CORES = 1_000
FIRST = 4  # The first core of a group may push out others for a part of the bound, whatever the share is.
# What the cores of a group may take that are being written or delivered, of what others of these leave: one, and several.
LARGEST, SEVERAL = 0.75, 0.5


def room_left(kept_in: "Store", configuration: "Configuration") -> int:
    """Return how many bytes the store has left. Its lock must be held. Raises OSError."""
    return min(_left(kept_in, kept_in.entries(), configuration))


def _left(kept_in: "Store", entries: "list[Entry]", configuration: "Configuration") -> "tuple[int, int]":
    """Return how many bytes are free on the disk, and how many the bound leaves."""
    system = posix.fstatvfs(kept_in.directory)
    free = system.f_bavail * system.f_frsize - system.f_blocks * system.f_frsize * configuration.keep_free // 100
    # What is being written has not taken all yet that it may take.
    free -= sum(entry.claim - entry.bytes for entry in entries)
    bound = configuration.keep_max
    return free, bound - sum(weight(entry, bound) for entry in entries)


def room_for(kept_in: "Store", group: str, need: int, configuration: "Configuration", begun: bool = False) -> int:
    """Return how many bytes a core of ``group`` may take, after others had to make room for the ``need`` of it.

    If the core was ``begun``, it has a claim, and these are added to that. Less than ``need`` if there is no room for that;
    then nothing was deleted for it. The lock must be held. Raises OSError.
    """
    entries = kept_in.expire(configuration)
    bound = configuration.keep_max
    for entry in entries:
        # One that is being delivered was not finished yet: the locks of the others need not be asked here.
        entry.held = entry.whole and not entry.finished and kept_in.is_held(entry, fcntl.LOCK_SH)
    free, left = _left(kept_in, entries, configuration)
    share = share_of(group, entries, free, left, bound, begun)
    evicted: list[Entry] = []
    candidates = Candidates(entries, group, need, bound, lambda entry: kept_in.is_held(entry, fcntl.LOCK_SH))
    before, freed = min(free, left, share), 0
    if share < need:
        return before
    while min(free, left) < need:
        # Where others than cores have filled the disk, no core goes for more than the new one may take.
        oldest = None if left >= need and freed >= need else candidates.next()
        if oldest is None:
            return before
        evicted.append(oldest)
        freed += oldest.bytes
        free, left = free + oldest.bytes, left + weight(oldest, bound)
    for entry in evicted:
        kept_in.delete(entry)
    return min(free, left, share)


class Candidates:
    """The cores that make room for one of ``group`` that takes ``need`` bytes, one after the other.

    The oldest goes. It is one of the same group if that group takes more than its share of the ``bound``, else one of the group
    that takes most. So a group that crashes in a loop pushes out its own cores, and not those of others. A first core that
    takes more than the share, and much of the bound, pushes out only those of groups that take as much: any process can have
    the kernel count a page of memory a thousand times.
    """

    def __init__(
        self,
        entries: "list[Entry]",
        group: str,
        need: int,
        bound: int,
        is_held: "Callable[[Entry], bool]" = lambda entry: False,
    ) -> None:
        """Take the cores that are there. Those that are being written or delivered make no room, but count."""
        self.is_held = is_held
        self.group = group
        self.need = need
        self.bound = bound
        self.taken = {group: need}
        self.left: dict[str, int] = {}
        self.whole: dict[str, list[Entry]] = {}
        for entry in sorted(entries, key=lambda entry: -entry.time):
            self.taken[entry.group] = self.taken.get(entry.group, 0) + weight(entry, bound)
            self.left[entry.group] = self.left.get(entry.group, 0) + 1
            if entry.whole and not entry.held:
                self.whole.setdefault(entry.group, []).append(entry)

    def next(self) -> "Entry | None":
        """Return the next one, None if there is none to delete."""
        while True:
            oldest = self._oldest()
            if oldest is None:
                return None
            if self.is_held(oldest):
                continue  # Such as one that is being sent.
            group = oldest.group
            self.left[group] -= 1
            self.taken[group] -= weight(oldest, self.bound)
            if not self.left[group] and group != self.group:
                del self.taken[group]
            return oldest

    def _oldest(self) -> "Entry | None":
        share = self.bound // len(self.taken)
        groups = list(self.whole)
        if self.left.get(self.group) and self.taken[self.group] > share:
            # Also where the others of the group are only being written.
            groups = [group for group in groups if group == self.group]
        elif self.need > max(share, self.bound // FIRST):
            groups = [group for group in groups if self.taken[group] >= self.need]
        if not groups:
            return None
        group = min(groups, key=lambda group: (-self.taken[group], self.whole[group][-1].time))
        oldest = self.whole[group].pop()
        if not self.whole[group]:
            del self.whole[group]
        return oldest


def share_of(group: str, entries: "list[Entry]", free: int, left: int, bound: int, begun: bool) -> int:
    """Return how many bytes of those that are ``free``, and ``left`` of the bound, another core of ``group`` may claim.

    Cores that are being written or delivered make no room. So a group leaves some to the next one, whatever it claims: a
    process may seem to use much memory, and a delegate may take as long as the timeout. That is as with slots; see slots.py.
    """
    for entry in entries:
        if entry.whole and not entry.held:
            free, left = free + entry.bytes, left + weight(entry, bound)
    # What one process compresses for all groups does not count.
    under_way = [entry for entry in entries if (not entry.whole or entry.held) and not entry.key.endswith(COMPRESSED)]
    claims = [entry.claim for entry in under_way if entry.group == group]
    part = SEVERAL if len(claims) > begun else LARGEST
    return int((min(free, left) + sum(claims)) * part) - sum(claims)


def weight(entry: "Entry", bound: int) -> int:
    """Return the bytes that a core counts for the ``bound``."""
    return max(entry.claim, bound // MOST_CORES)
