"""What can go wrong, and the exit code of each."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes; docs/corefetch.md has the same table."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    DENIED = 5
    DAMAGED = 6
    MISSING_PROGRAM = 7
    INTERRUPTED = 130
    NOBODY_READS = 141


class Failure(Exception):
    """Why the command ends: one line that names the object, what happened, and what to do."""

    def __init__(self, what: str, remedy: str = "", code: Exit = Exit.FAILED) -> None:
        """Take the two halves of the line, and the exit code."""
        super().__init__(f"{what}: {remedy}" if remedy else what)
        self.code = code


class NoSuchCore(Failure):
    """A word that no core of the store has in its key."""

    def __init__(self, what: str, remedy: str) -> None:
        """Take the two halves of the line."""
        super().__init__(what, remedy, Exit.NOT_FOUND)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a core comes. Its text says what is left of that."""
