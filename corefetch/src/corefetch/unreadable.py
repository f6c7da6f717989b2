"""The names of objects that obstore does not accept, such as one with ``//`` in it, and how to list the objects around them.

A page of a list that has such a name in it cannot be had. So somebody who may write into a bucket could hide its cores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from obstore.exceptions import InvalidPathError

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

PAGE = 1000
# Each of these may cost a request, and somebody may have made very many.
MOST = 100
NAME = re.compile(r'Path "(.*?)"(?: contained|: Encountered)', re.S)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Listing:
    """The objects of a store in the order of their names, and the names that cannot be read."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        """Take the store, and the prefix that names lack in it."""
        self.store = store
        self.prefix = f"{prefix}/" if prefix else ""
        self.unreadable: list[str] = []
        self.cut = False  # Whether there were too many of them: then the list ends before its end.

    def objects(self) -> Iterator[ObjectMeta]:
        """Yield the objects. Raises what the library raises."""
        last = after = ""
        while True:
            try:
                for page in self.store.list(offset=after or None, chunk_size=PAGE):
                    for one in page:
                        last = one["path"]
                        yield one
                return
            except InvalidPathError as error:
                name = name_in(error).removeprefix(self.prefix)
                directories, beyond = taken_apart(name)
                # Some stores list from the beginning, and leave it to the library to pass over what comes before.
                if not beyond or beyond <= after:
                    raise
                if len(self.unreadable) == MOST:
                    self.cut = True
                    return
            self.unreadable.append(name)
            for directory in directories:
                yield from self._between(last, name, directory)
            last = after = beyond

    def _between(self, last: str, name: str, directory: str) -> Iterator[ObjectMeta]:
        """Yield what a directory has between two names, in the page that could not be had."""
        try:
            found = self.store.list_with_delimiter(directory or None)
        except InvalidPathError:
            # It has such a name itself. Mostly what else is in it comes after that: few names come before a slash.
            return
        yield from (one for one in found["objects"] if last < one["path"] < name)
        for below in found["common_prefixes"]:
            if last < f"{below}0" and f"{below}/" < name and not name.startswith(f"{below}/"):
                try:
                    # Behind ``last``: it may have had such a name before that.
                    for page in self.store.list(below, offset=last or None, chunk_size=PAGE):
                        yield from (one for one in page if last < one["path"])
                except InvalidPathError:
                    continue


def name_in(error: InvalidPathError) -> str:
    """Return the name that an error is about, "" if it does not say so."""
    found = NAME.search(str(error))
    return found[1] if found else ""


def taken_apart(name: str) -> tuple[list[str], str]:
    """Return the directories above what cannot be read in a name, and what comes after all names that begin like that.

    The second one is "" where nothing seems to be wrong with the name.
    """
    parts = name.split("/")
    directories = [""]
    for part in parts:
        before = f"{directories[-1]}/" if directories[-1] else ""
        if part in ("", ".", ".."):
            # In the order of the names, 0 follows the slash.
            return directories, f"{before}{part}0"
        if found := CONTROL.search(part):
            return directories, f"{before}{part[: found.start()]}{' ' if found[0] < ' ' else chr(0x80)}"
        directories.append(f"{before}{part}")
    return directories, ""
