"""The defences that broken.py takes out one at a time: what stands in the helper, what takes its place, and the attack then."""

from __future__ import annotations

from hostile.defences import custody, deadline, entering, fate, membership, process, served, slots
from hostile.defences.kinds import Breaks

TABLES = (entering, process, membership, slots, deadline, fate, custody, served)
BREAKS: Breaks = {name: entry for table in TABLES for name, entry in table.BREAKS.items()}
