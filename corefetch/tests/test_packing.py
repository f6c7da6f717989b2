"""Packed cores."""

from __future__ import annotations

import gzip
import os
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from corefetch import packing

CONTENT = random.Random(1).randbytes(300_000) + bytes(3_000_000) + b"end"


def pieces(content: bytes, size: int = 70_001) -> Iterator[bytes]:
    """Yield a content as it may come."""
    for at in range(0, len(content), size):
        yield content[at : at + size]


PACKED = {
    "": CONTENT,
    ".zst": zstandard.ZstdCompressor(level=1).compress(CONTENT),
    ".gz": gzip.compress(CONTENT, 1),
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("size", [1 << 20, 70_001, 17])
def test_what_is_packed_comes_back(packed: str, size: int) -> None:
    assert b"".join(packing.unpack(packed, pieces(PACKED[packed], size))) == CONTENT


@pytest.mark.parametrize("packed", [".zst", ".gz"])
def test_several_frames_are_one_core(packed: str) -> None:
    assert b"".join(packing.unpack(packed, pieces(PACKED[packed] * 3))) == CONTENT * 3


@pytest.mark.parametrize("packed", [".zst", ".gz"])
@pytest.mark.parametrize("cut", [1, 5, 100_000])
def test_a_missing_end_is_damage_after_what_is_there(packed: str, cut: int) -> None:
    found = b""
    with pytest.raises(packing.Damaged):  # noqa: PT012
        for block in packing.unpack(packed, pieces(PACKED[packed][:-cut])):
            found += block
    assert CONTENT.startswith(found)


@pytest.mark.parametrize("packed", [".zst", ".gz"])
def test_another_kind_is_damage(packed: str) -> None:
    with pytest.raises(packing.Damaged):
        list(packing.unpack(packed, [b"nothing of that kind at all"]))


@pytest.mark.parametrize("packed", [".zst", ".gz"])
def test_a_core_of_zeros_takes_no_memory(packed: str) -> None:
    zeros = bytes(1 << 28)
    content = zstandard.ZstdCompressor(level=1).compress(zeros) if packed == ".zst" else gzip.compress(zeros, 1)
    size = len(zeros)
    del zeros
    tracemalloc.start()
    try:
        assert sum(map(len, packing.unpack(packed, [content]))) == size
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_zeros_become_holes(tmp_path: Path) -> None:
    path = tmp_path / "core"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    offset = 0
    for block in packing.unpack("", pieces(CONTENT + bytes(1 << 22), 1 << 20)):
        packing.put(file, block, offset)
        offset += len(block)
    os.close(file)
    assert path.read_bytes() == CONTENT + bytes(1 << 22)
    assert path.stat().st_blocks * 512 < 1_000_000
