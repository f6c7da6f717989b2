"""Which cores there are: chosen, the newest first, and crash loops folded into one row each."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from signal import Signals
from typing import Any

from corefetch import text
from corefetch.elfcore import signal_name
from corefetch.errors import Exit, Failure, NoSuchCore
from corefetch.facts import Core, of_entry
from corefetch.keys import LONGEST_PROGRAM
from corefetch.learn import Student, cores_of

LAST_SIGNAL = 64


@dataclass
class Choice:
    """Which cores are wanted. A word is a part of the name, or a pattern with * and ?; a signal has any of these names."""

    host: str | None = None
    container: str | None = None
    program: str | None = None
    signals: set[str] | None = None
    since: datetime | None = None
    until: datetime | None = None
    truncated: bool = False

    @property
    def needs_facts(self) -> bool:
        """Whether the name of a core may not be enough."""
        return bool(self.signals or self.truncated)

    @property
    def has_words(self) -> bool:
        """Whether names count."""
        return bool(self.host or self.container or self.program)

    def by_time(self, core: Core) -> bool:
        """Tell whether the core is of the right time."""
        return (self.since is None or core.when >= self.since) and (self.until is None or core.when < self.until)

    def by_name(self, core: Core) -> bool:
        """Tell whether the core may be wanted, as far as its name goes: there, the parts cannot always be separated."""
        named = _in_key(self.host, core) and _in_key(self.program, core)
        return self.by_time(core) and named and (_in_key(self.container, core) or core.json is not None)

    def unsure(self, core: Core) -> bool:
        """Tell whether the name of a core that may be wanted is not enough. It has the pod or the container, not both."""
        doubt = core.vague or not _in_key(self.container, core)
        return self.needs_facts or (self.has_words and doubt)

    def by_facts(self, core: Core) -> bool:
        """Tell whether the core is wanted."""
        return (
            self.by_time(core)
            and (not self.truncated or core.truncated)
            and (self.signals is None or core.signal in self.signals)
            and _any(self.host, core.node, core.host)
            and _any(self.container, core.pod, core.container, core.namespace)
            and _any(self.program, core.program, core.exe, core.thread)
        )


def signal_names(word: str) -> set[str]:
    """Return the names that a core may have for a signal, which is a number or a name, also without SIG. Raises Failure."""
    bare = word.upper().removeprefix("SIG")
    found = (int(one) for one in Signals if one.name == f"SIG{bare}")
    number = int(bare) if re.fullmatch(r"[0-9]{1,3}", bare) else next(found, 0)
    if not 0 < number <= LAST_SIGNAL:
        raise Failure(f"no signal: {text.plain(word)}", "say a name such as SEGV, or a number such as 11", Exit.USAGE)
    # The helper has a number where it knows no name.
    return {signal_name(number), f"SIG{number}"}


def _in_key(word: str | None, core: Core) -> bool:
    """Tell whether a word may be in a key, where paths and strange characters are not, nor the ends of long names."""
    if word is None or not core.program:
        return True
    shown = word.rpartition("/")[2][:LONGEST_PROGRAM]
    return _matches(f"*{''.join(one if one.isalnum() or one in '*._-' else '?' for one in shown)}*", core.name.stem)


def _matches(pattern: str, name: str) -> bool:
    """Compare without regard to the case."""
    return fnmatch(name.lower(), pattern.lower())


def _any(word: str | None, *names: str) -> bool:
    """Tell whether a word stands for one of the names."""
    if word is None:
        return True
    pattern = word if any(one in word for one in "*?") else f"*{word}*"
    return any(name and _matches(pattern, name) for name in names)


def chosen(
    student: Student, choice: Choice, deep: bool, progress: Callable[[int], None] = lambda number: None
) -> Iterator[Core]:
    """Yield the cores that are wanted, in the order of the store; what is in memory does not grow with the store."""

    def named() -> Iterator[Core]:
        for number, core in enumerate(cores_of(student.store), 1):
            progress(number)
            if choice.by_name(core):
                yield core

    def unsure(core: Core) -> bool:
        return deep or choice.unsure(core)

    return (core for core in student.of_many(named(), deep, unsure) if choice.by_facts(core))


def newest(cores: Iterator[Core], most: int | None) -> list[Core]:
    """Return the newest cores, at most so many."""
    if most is None:
        return sorted(cores, key=lambda core: (core.when, core.path), reverse=True)
    heap: list[tuple[datetime, str, Core]] = []
    for core in cores:
        item = (core.when, core.path, core)
        if len(heap) < most:
            heapq.heappush(heap, item)
        elif heap and item[:2] > heap[0][:2]:
            heapq.heapreplace(heap, item)
    return [core for _, _, core in sorted(heap, key=lambda item: item[:2], reverse=True)]


@dataclass
class Group:
    """The cores of one fault."""

    program: str
    build_id: str
    signal: str
    fault: str
    count: int
    first: datetime
    last: datetime
    newest: Core

    def row(self) -> dict[str, Any]:
        """Return what ``--json`` shows of it."""
        return {
            "program": self.program or None,
            "build_id": self.build_id or None,
            "signal": self.signal or None,
            "fault": self.fault or None,
            "count": self.count,
            "first": text.iso(self.first),
            "last": text.iso(self.last),
            "newest": self.newest.key,
            "newest_path": self.newest.path,
        }


def folded(cores: Iterator[Core]) -> list[Group]:
    """Fold cores of the same fault into one group each, the newest first."""
    groups: dict[tuple[str, str, str, str], Group] = {}
    for core in cores:
        same = (core.exe or core.program, core.build_id, core.signal, core.fault)
        group = groups.get(same)
        if group is None:
            groups[same] = Group(*same, 1, core.when, core.when, core)
            continue
        group.count += 1
        group.first = min(group.first, core.when)
        if core.when >= group.last:
            group.last, group.newest = core.when, core
    return sorted(groups.values(), key=lambda group: group.last, reverse=True)


def find(student: Student, words: str, choice: Choice | None = None) -> Core:
    """Return the one core that is meant: by its path, by a part of its key, or by ``last``. Raises Failure."""
    store = student.store
    if not any(one.isalnum() for one in words):
        # Such as an empty variable of a shell: each key has that.
        raise Failure(f"{text.plain(words)!r} names no core", "say its ID, or another part of its key", Exit.USAGE)
    if words == "last":
        found = newest((core for core in cores_of(store) if choice is None or choice.by_facts(core)), 1)
        if not found:
            raise NoSuchCore(f"{store.url}: no core", "see corefetch list")
        return found[0]
    if words.startswith(f"{store.url}/"):
        words = words[len(store.url) + 1 :]
    entry = store.stat(words) if "/" not in words or not words.startswith("/") else None
    if entry and (core := of_entry(entry)):
        return core
    candidates: list[Core] = []
    number = 0
    for core in cores_of(store):
        if _is_part(words, core):
            if words in (core.key, core.id):
                return core
            number += 1
            if len(candidates) < 3:
                candidates.append(core)
    if number == 1:
        return candidates[0]
    if not number:
        raise NoSuchCore(f"{store.url}: no core has {text.plain(words)!r} in its key", "see corefetch list")
    some = ", ".join(map(_told_apart, candidates)) + (", ..." if number > 3 else "")
    raise Failure(f"{text.plain(words)!r} is in {number} keys", f"say more of one: {text.plain(some)}", Exit.NOT_FOUND)


def _is_part(words: str, core: Core) -> bool:
    """Tell whether a word is a part of the path. A word such as ``.core`` alone says nothing, unless the key has it."""
    return words in core.name.stem or (words in core.path and words not in core.path[len(core.name.stem) :])


def _told_apart(core: Core) -> str:
    """Return what names a core, and what an operator knows it by."""
    known = ", ".join(filter(None, (core.place, text.moment(core.time) if core.time else "")))
    return f"{core.id or core.key} ({known})" if known else core.id or core.key
