"""Tables that fit: where the terminal is narrow, what tells the rows apart stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from corefetch.text import plain
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

GAP, LEAST = 2, 8
ELLIPSIS = "…"
# So many different words of a column decide how its words are cut.
MOST_WORDS = 1000


@dataclass(frozen=True)
class Column:
    """A column, and what becomes of it where there is no room."""

    name: str
    right: bool = False
    # Its words may be cut.
    flexible: bool = False
    # The columns with the least numbers are left out first. What has none stays.
    rank: int | None = None
    # It is left out only where all rows have the same word there.
    telling: bool = False


def show(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Print a table as wide as the terminal at most, or a block for each row. Returns what is left out, in words."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = fitted(columns, cells, console.width)
    if widths is None:
        for row in cells:
            for line in _block(columns, row, console.width):
                console.print(line, soft_wrap=True)
        return []
    shorter = {
        n: _shortened(_words(cells, n), width, MOST_WORDS) if columns[n].flexible else {} for n, width in widths.items()
    }
    console.print(Text(_line(columns, [one.name for one in columns], widths), style="bold"), soft_wrap=True)
    for row in cells:
        console.print(
            Text(_line(columns, [shorter.get(n, {}).get(cell, cell) for n, cell in enumerate(row)], widths)),
            soft_wrap=True,
        )
    left_out = [n for n in range(len(columns)) if n not in widths]
    return [
        f"{columns[n].name} ({cells[0][n]} in each row)" if len(_words(cells, n)) == 1 else columns[n].name
        for n in left_out
    ]


def fits(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Tell whether the whole table has room."""
    return _whole(dict(enumerate(_natural(columns, rows)))) <= width


def fitted(columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int) -> dict[int, int] | None:
    """Return the columns that are shown, each with its width; None where the rows make no table that fits."""
    natural = _natural(columns, cells)
    shown = dict(enumerate(natural))
    ranked = sorted((n for n in shown if columns[n].rank is not None), key=lambda n: columns[n].rank or 0)
    constant = [n for n in ranked if len(cells) > 1 and len(_words(cells, n)) == 1]
    for n in constant:
        if _whole(shown) > width:
            del shown[n]
    # Such a column has the least words that its rows can still be told apart by.
    least = {n: _least(_words(cells, n), natural[n]) for n in shown if columns[n].flexible}
    for last in [-1, *(n for n in ranked if n in shown and not columns[n].telling)]:
        shown.pop(last, None)
        if _whole({n: least.get(n, one) for n, one in shown.items()}) <= width:
            while _whole(shown) > width:
                shown[max((n for n in shown if shown[n] > least.get(n, shown[n])), key=lambda n: shown[n])] -= 1
            return shown
    return None


def _natural(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column as it stands."""
    names = [one.name for one in columns]
    return [max(cell_len(cell) for cell in column) for column in zip(names, *cells, strict=True)]


def _whole(widths: dict[int, int]) -> int:
    """Return the width of a row."""
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _words(cells: Sequence[Sequence[str]], n: int) -> list[str]:
    """Return the different words of a column."""
    return list(dict.fromkeys(row[n] for row in cells))


def _least(words: list[str], natural: int) -> int:
    """Return the least width in which different words stay different, and look like words."""
    words = words[:MOST_WORDS]
    for width in range(min(LEAST, natural), natural):
        if len(set(_shortened(words, width, MOST_WORDS).values())) == len(words):
            return width
    return natural


def _shortened(words: list[str], width: int, most: int) -> dict[str, str]:
    """Return each word as it fits: all are cut at the same place, where that leaves the most of them different."""
    if all(cell_len(word) <= width for word in words):
        return {word: word for word in words}
    # Paths tell most at their ends, other names at both.
    middle = (width - 1) // 2
    heads = (0, middle) if any("/" in word for word in words) else (middle, 0)
    best = max((*heads, width // 4, width - 1), key=lambda head: len({cut(word, width, head) for word in words[:most]}))
    return {word: cut(word, width, best) for word in words}


def cut(word: str, width: int, head: int) -> str:
    """Return a word that fits into ``width`` columns, ``head`` of them with its beginning, and the rest with its end."""
    if cell_len(word) <= width:
        return word
    begin = _part(word, head)
    return f"{begin}{ELLIPSIS}{_part(word[::-1], width - 1 - head)[::-1]}"


def _part(word: str, width: int) -> str:
    """Return the beginning of a word that takes so many columns."""
    taken = 0
    for number, one in enumerate(word):
        taken += cell_len(one)
        if taken > width:
            return word[:number]
    return word


def _line(columns: Sequence[Column], words: Sequence[str], widths: dict[int, int]) -> str:
    """Return a row, without blanks at its end."""
    found = []
    for n, width in widths.items():
        word = cut(words[n], width, width - 1)
        blanks = " " * (width - cell_len(word))
        found.append(f"{blanks}{word}" if columns[n].right else f"{word}{blanks}")
    return (" " * GAP).join(found).rstrip()


def _block(columns: Sequence[Column], row: Sequence[str], width: int) -> Iterator[Text]:
    """Yield the lines of a row that has no room in one: all after the first stand in a little."""
    line, used = Text(), 0
    for column, word in zip(columns, row, strict=True):
        room = max(width - GAP - len(column.name) - 1, LEAST)
        word = cut(word, room, (room - 1) // 2)
        needed = len(column.name) + 1 + cell_len(word)
        if used and used + GAP + needed > width:
            yield line
            line, used = Text(" " * GAP), GAP
        elif used:
            line.append(" " * GAP)
            used += GAP
        line.append(column.name, style="dim").append(f" {word}")
        used += needed
    yield line
