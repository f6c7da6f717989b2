"""Unpacks cores as they come: zstd, gzip, or neither; and writes them with holes where they have zeros."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator

import zstandard

# What is all zeros in this size becomes a hole.
PIECE = 1 << 16
ZEROS = bytes(PIECE)
BLOCK = 1 << 20
# A byte of zstd may become 32 KiB of zeros, and the library gives back at once what it makes of what it gets.
SIP = 1 << 10


class Damaged(Exception):
    """What has come is no whole file of its kind."""


def unpack(packed: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of a file that is packed by ``.zst``, ``.gz`` or ``""``. Raises Damaged where its end is missing."""
    try:
        if packed == ".zst":
            yield from _unzstd(blocks)
        elif packed == ".gz":
            yield from _gunzip(blocks)
        else:
            yield from blocks
    except (zstandard.ZstdError, zlib.error) as error:
        raise Damaged(str(error)) from None


def _unzstd(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Unpack frames of zstd, one after the other, in bounded memory."""
    # A frame that needs more memory than this was made with --ultra --long.
    context = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    decoder = None
    for block in blocks:
        rest = block
        while rest:
            decoder = decoder or context.decompressobj()
            for at in range(0, len(rest), SIP):
                data = decoder.decompress(rest[at : at + SIP])
                if data:
                    yield data
                if decoder.eof:
                    rest = decoder.unused_data + rest[at + SIP :]
                    decoder = None
                    break
            else:
                rest = b""
    if decoder is not None:
        raise Damaged("its end is missing")


def _gunzip(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Unpack members of gzip, one after the other."""
    decoder = None
    for block in blocks:
        rest = block
        while rest:
            decoder = decoder or zlib.decompressobj(wbits=31)
            data = decoder.decompress(rest, BLOCK)
            if data:
                yield data
            if decoder.eof:
                rest = decoder.unused_data
                decoder = None
            else:
                rest = decoder.unconsumed_tail
    if decoder is not None:
        raise Damaged("its end is missing")


# plugins/action/core_helper_collect.py has it, too: corefetch is installed alone.
def put(file: int, block: bytes, offset: int) -> None:
    """Write ``block`` at the ``offset`` of a file, which ends there; what is all zeros becomes a hole."""
    for begin in range(0, len(block), PIECE):
        piece = memoryview(block)[begin : begin + PIECE]
        if piece == ZEROS[: len(piece)]:
            continue
        end = offset + begin + len(piece)
        while piece:
            piece = piece[os.pwrite(file, piece, end - len(piece)) :]
    os.ftruncate(file, offset + len(block))
