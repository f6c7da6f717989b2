"""Finds what of a core need not be stored: most of the memory that a process has reserved was never used, and is zeros."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

BLOCK = 1 << 18  # The bytes that are looked at together.
PAGE = 1 << 12
_BLOCK_OF_ZEROS, _PAGE_OF_ZEROS = bytes(BLOCK), bytes(PAGE)


def runs(block: "Union[bytes, bytearray]", length: int, position: int = 0) -> "list[tuple[int, int]]":
    """Return begin and end of each run of pages in the first ``length`` bytes of ``block`` that are not all zero.

    The block stands at that ``position`` of the core, whose pages count. What it has of a page that began before it is never
    left out.
    """
    if length == BLOCK and block == _BLOCK_OF_ZEROS and position % PAGE == 0:
        return []
    found: list[tuple[int, int]] = []
    first_page = min(-position % PAGE, length)
    begin = 0 if first_page else None
    # A page whose first byte is not zero need not be looked at.
    for number, first in enumerate(block[first_page:length:PAGE]):
        page = first_page + number * PAGE
        if first or not _PAGE_OF_ZEROS.startswith(block[page : min(page + PAGE, length)]):
            if begin is None:
                begin = page
        elif begin is not None:
            found.append((begin, page))
            begin = None
    if begin is not None:
        found.append((begin, length))
    return found
