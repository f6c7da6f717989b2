"""A crash that a test made: what the processes said of themselves, what was printed, and how the program ended."""

from __future__ import annotations

from pathlib import Path

from support.records import Record


class Crash:
    """What is left of a crash, wherever it was made; ``containers.py`` and ``vm/crashes.py`` make them."""

    def __init__(self, records: Path, exit_status: int, output: str) -> None:
        """``records`` is the directory in which each process and each delegate has a directory of its own."""
        self.records, self.exit_status, self.output = records, exit_status, output

    def __repr__(self) -> str:
        """What pytest shows where a test fails."""
        roles = ", ".join(sorted(found.name for found in self.records.glob("*.*")))
        return f"exit status {self.exit_status}, records of {roles or 'nobody'}, output {self.output!r}"

    def of(self, role: str) -> list[Record]:
        """The records of all processes of a role, ``process`` or ``delegate``, in the order of their pids."""
        return sorted((Record(found) for found in self.records.glob(f"{role}.*")), key=lambda record: record.pid)

    @property
    def process(self) -> Record:
        """The only faulting process."""
        return self._only("process")

    @property
    def delegate(self) -> Record:
        """The only delegate."""
        return self._only("delegate")

    def _only(self, role: str) -> Record:
        found = self.of(role)
        assert len(found) == 1, f"{len(found)} records of the {role}: {self!r}"
        return found[0]
