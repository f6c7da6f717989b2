"""corefile: the length that a core dump announces, for dumps of 32 and 64 bits and both byte orders."""

from __future__ import annotations

import pytest
from core_helper import corefile
from unit.helper.support import elf

SEGMENTS = [(0x1000, 0x500), (0x1500, 0), (0x2000, 0x30000), (0x1800, 0x100)]
LENGTH = 0x32000


def length_of(dump: bytes, step: int) -> tuple[int | None, int]:
    """Return the length that a header says which gets ``dump`` in parts of ``step`` bytes, and how much it wanted."""
    header = corefile.Header()
    position = 0
    while header.wanted and position < len(dump):
        part = dump[position : position + min(step, header.wanted - len(header.content))]
        position += len(part)
        header.add(part)
    return header.length, position


@pytest.mark.parametrize("step", [1, 7, 64, 4096])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [32, 64])
def test_the_length_is_the_end_of_the_last_segment(bits: int, order: str, step: int) -> None:
    dump = elf(bits, order, SEGMENTS)
    length, read = length_of(dump + bytes(1000), step)
    assert length == LENGTH
    assert read == max(len(dump), 64)


@pytest.mark.parametrize("cut", [0, 1, 4, 16, 63, 64, 100])
def test_the_length_of_a_dump_that_ends_within_its_headers_is_not_known(cut: int) -> None:
    assert length_of(elf(64, "<", SEGMENTS)[:cut], 4096)[0] is None


@pytest.mark.parametrize(
    "dump",
    [
        bytes(64),
        b"\xff" * 64,
        b"#!/bin/sh\n" * 10,
        b"\x7fELF" + bytes(60),
        b"\x7fELF\x03\x01" + bytes(58),
        b"\x7fELF\x02\x03" + bytes(58),
        b"\x7fELF\x02\x01" + b"\x7f" * 58,
        b"\x7fELF\x01\x01" + b"\x7f" * 58,
    ],
)
def test_what_is_no_core_dump_has_no_length_and_is_not_read_on(dump: bytes) -> None:
    length, read = length_of(dump + bytes(100_000), 4096)
    assert (length, read) == (None, 64)


@pytest.mark.parametrize(("amount", "cut"), [(LENGTH, False), (LENGTH - 1, True), (300, True), (100, True), (0, True)])
def test_a_dump_that_is_shorter_than_it_says_was_cut_off(amount: int, cut: bool) -> None:
    header = corefile.Header()
    dump = elf(64, "<", SEGMENTS).ljust(LENGTH, b"c")[:amount]
    for at in range(0, amount, 150):
        header.add_some(dump[at : at + 150])
    assert header.was_cut(amount) is cut


@pytest.mark.parametrize("text", [b"c", b"core", bytes(64), bytes(5000), b"\x7fELF\x03\x01" + bytes(58)])
def test_what_is_no_core_dump_was_not_cut_off(text: bytes) -> None:
    header = corefile.Header()
    header.add_some(text)
    assert header.was_cut(len(text)) is False


def test_more_segments_than_the_field_can_count_are_told_by_the_section_header_at_the_end() -> None:
    dump = elf(64, "<", [], count=0xFFFF, sections=123456)
    assert length_of(dump + bytes(1000), 4096)[0] == 123456 + 64
