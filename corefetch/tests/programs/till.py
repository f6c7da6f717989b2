"""Crashes in C code of Python's own: reads at address 0, or ends itself."""

import ctypes
import os
import sys


def price(item: int) -> bytes:
    """Read where nothing is."""
    return ctypes.string_at(item)


def checkout(order: list[int]) -> list[bytes]:
    """Look up all prices."""
    return [price(item) for item in order]


if sys.argv[1:] == ["dies"]:
    os.abort()
checkout([0])
