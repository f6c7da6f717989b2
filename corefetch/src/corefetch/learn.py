"""Learns more of cores than their names say: from the JSON files beside them, and from their beginnings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any

from corefetch import elfcore, keys, packing
from corefetch.cache import Cache
from corefetch.errors import Failure
from corefetch.facts import LONGEST, Core, add_core, add_json, of_entry
from corefetch.stores import Store
from corefetch.text import harmless

AT_ONCE = 16
# Headers, notes, and the first page of the program. The kernel puts each of 65,536 mappings into 56 + about 60 bytes of these.
BEGINNINGS = (96 << 10, 1 << 20, 16 << 20)


def cores_of(store: Store) -> Iterator[Core]:
    """Yield the cores of a store, each with the path of its JSON file, if that comes next in the order of the names.

    A core and what an earlier upload has left of it have one JSON file.
    """
    waiting: list[Core] = []
    for entry in store.entries():
        if waiting and entry.path == waiting[0].name.stem + keys.FACTS:
            for core in waiting:
                core.json = entry.path
            continue
        found = of_entry(entry)
        if waiting and (not found or found.name.stem != waiting[0].name.stem):
            yield from waiting
            waiting = []
        if found:
            waiting.append(found)
    yield from waiting


class Student:
    """Learns of the cores of one store; what is learnt of the beginning of a core is kept."""

    def __init__(self, store: Store, cache: Cache) -> None:
        """Take the store."""
        self.store = store
        self.cache = cache
        self.problem: Failure | None = None

    def from_json(self, core: Core) -> bool:
        """Read the JSON file beside a core. Tells whether there is one that makes sense. Raises Failure."""
        path = core.json or core.name.stem + keys.FACTS
        content = self.store.read(path, LONGEST)
        if content is None or not add_json(core, content):
            return False
        core.json = path
        return True

    def from_beginning(self, core: Core) -> elfcore.CoreFacts | None:
        """Read the beginning of a core, and return what it says, None if that is nothing. Raises Failure."""
        kept = self.cache.of_core(self.store.url, core.version, f"{harmless(core.key)}.json")
        try:
            said = _from_words(json.loads(kept.read_bytes()))
        except (OSError, ValueError, TypeError, KeyError):
            found = self._beginning(core)
            if found is None:
                return None
            said = found
            try:
                with self.cache.new(kept) as file:
                    file.write(json.dumps(_words(said)).encode())
            except Failure:
                pass  # A full disk: then it is read again the next time.
        add_core(core, said)
        return said

    def _beginning(self, core: Core) -> elfcore.CoreFacts | None:
        """Return what the beginning of a core says, None if it says nothing."""
        content = bytearray()
        sizes = iter(BEGINNINGS)
        enough = next(sizes)
        found: elfcore.CoreFacts | None = None
        with closing(packing_of(self.store, core)) as blocks:
            try:
                for block in blocks:
                    content += block[: BEGINNINGS[-1] - len(content)]
                    if len(content) >= enough:
                        found = _said(bytes(content))
                        if found is None or (found.threads and found.mappings and found.build_ids):
                            return found
                        enough = next(sizes, 0)
                        if not enough:
                            return found
            except packing.Damaged:
                pass
        return _said(bytes(content))

    def of_many(
        self, cores: Iterable[Core], deep: bool = False, wanted: Callable[[Core], bool] = lambda core: True
    ) -> Iterator[Core]:
        """Learn of those cores that are ``wanted``, several at once, and yield all in their order."""
        waiting = iter(cores)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while batch := list(islice(waiting, 4 * AT_ONCE)):
                # Most cores of a large store are not wanted, and cost no thread.
                for _ in pool.map(lambda core: self.learn(core, deep), filter(wanted, batch)):
                    pass
                yield from batch

    def learn(self, core: Core, deep: bool = False) -> Core:
        """Learn what a row shows: of the JSON file, else of the core; ``deep`` where the fault must be known, too.

        What cannot be read is left out: ``problem`` says why. A core may be deleted meanwhile.
        """
        try:
            known = self.from_json(core) if core.json else False
            if deep or not known or not core.signal:
                self.from_beginning(core)
        except Failure as failure:
            self.problem = failure
        return core


def packing_of(store: Store, core: Core) -> Any:
    """Return what yields the content of a core, unpacked."""

    def blocks() -> Iterator[bytes]:
        with closing(store.blocks(core.path)) as found:  # type: ignore[type-var]
            yield from packing.unpack(core.name.packed, found)

    return blocks()


def _said(content: bytes) -> elfcore.CoreFacts | None:
    """Return what the beginning of a core says, None if it is none."""
    try:
        return elfcore.of_beginning(content)
    except ValueError:
        return None


def _words(said: elfcore.CoreFacts) -> dict[str, Any]:
    """Return what is kept of a beginning."""
    return {
        "signal": said.signal,
        "length": said.length,
        "arguments": said.arguments,
        "pid": said.pid,
        "name": said.name,
        "program": said.program,
        "build_ids": said.build_ids,
        "fault": said.fault(),
    }


class _Kept(elfcore.CoreFacts):
    """What was kept of a beginning."""

    kept_fault: tuple[str, int] | None = None

    def fault(self) -> tuple[str, int] | None:
        """Return where the first thread was."""
        return self.kept_fault


def _from_words(words: dict[str, Any]) -> elfcore.CoreFacts:
    """Return what was kept."""
    said = _Kept(signal=words["signal"], pid=words["pid"], name=words["name"], program=words["program"])
    said.length, said.arguments = words["length"], words["arguments"]
    said.build_ids = dict(words["build_ids"])
    if words["fault"]:
        said.kept_fault = (str(words["fault"][0]), int(words["fault"][1]))
    return said
