"""What stands in each table of defences."""

from __future__ import annotations

Edit = tuple[str, str, str]  # A file of the library, what stands there, and what takes its place.
Breaks = dict[str, tuple[list[Edit], str]]  # By the name of a defence: the edits that take it out, and the attack then.
