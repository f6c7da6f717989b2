"""Names of Rust's functions as Rust writes them, where gdb leaves parts of the linker's names in them."""

from __future__ import annotations

import re

# The hash of the older names is their last part. The newer ones number the crates of one name.
OLDER = re.compile(r"(.+)::h[0-9a-f]{16}", re.S)
CRATE = re.compile(r"(?<=\w)\[[0-9a-f]+\](?=::)")
# In the older names only. A part that begins with an escape has a line before it.
ESCAPE = re.compile(r"(?:(?:(?<=::)|^)_)?\$(?:u([0-9a-f]{1,6})|(SP|BP|RF|LT|GT|LP|RP|C))\$|(?<!\.)\.\.(?!\.)")
SIGNS = {"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ","}


def readable(name: str) -> str:
    """Return the name of a function without what only a linker needs. Names of other languages stay as they are."""
    if found := OLDER.fullmatch(name):
        name = ESCAPE.sub(_sign, found[1])
    return CRATE.sub("", name)


def _sign(found: re.Match[str]) -> str:
    """Return what an escape stands for."""
    if found[1]:
        number = int(found[1], 16)
        return chr(number) if 0x20 <= number < 0xD800 else found[0]
    return SIGNS[found[2]] if found[2] else "::"
