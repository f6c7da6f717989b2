"""Tables on terminals of any width: what tells the rows apart stays."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from corefetch import tables
from corefetch.tables import Column
from rich.console import Console
from support.command import Desk

FAULT = "/usr/bin/orders+0x11ab"


@pytest.fixture
def orders(desk: Desk) -> Desk:
    """A store with cores of three containers of one host, all of the same program."""
    store = desk.directory / "store"
    store.mkdir()
    for number in (1, 2, 3):
        put(store, f"node-7.orders-{number}.orders.orders.770{number}.20261129T18000{number}Z.{number}00000000000")
    desk.variables["COREFETCH_FROM"] = str(store)
    return desk


def put(store: Path, key: str) -> None:
    """Put a core into a store, and what is known of it."""
    (store / f"{key}.core").write_bytes(b"x" * 5000)
    facts = {"CORE_SIGNAL_NAME": "SIGSEGV", "CORE_EXE": "/usr/bin/orders"}
    known = {"sha256": None, "build_ids": {"/usr/bin/orders": "ab" * 20}, "facts": facts}
    (store / f"{key}.json").write_text(json.dumps(known))


def printed(columns: list[Column], rows: list[list[str]], width: int) -> tuple[list[str], list[str]]:
    """Return the lines of a table, and what is left out."""
    file = io.StringIO()
    left_out = tables.show(Console(file=file, width=width), columns, rows)
    return file.getvalue().splitlines(), left_out


@pytest.mark.parametrize("width", [40, 50, 60, 80, 120])
def test_what_tells_cores_apart_stays(orders: Desk, width: int) -> None:
    done = orders.good("list", COLUMNS=str(width))
    lines = done.out.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= width
    assert [line.split()[-1 if width < 80 else -2] for line in lines[1:]] == ["orders-3", "orders-2", "orders-1"]
    assert all("SEGV" in line and "18:00" in line for line in lines[1:])
    # What all rows share is said once.
    assert ("HOST (node-7 in each row)" in done.err) == (width < 80)
    assert "…" not in done.out


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100, 120, 200])
def test_the_number_of_a_group_is_never_cut(orders: Desk, width: int) -> None:
    done = orders.good("list", "--group", COLUMNS=str(width))
    assert max(map(len, done.out.splitlines())) <= width
    assert "3" in done.out.replace(" N ", " ").split()
    assert "30000000" in done.out
    assert "abababab" in done.out or "abababab in each row" in done.err
    assert "ab" * 5 not in done.out
    assert "orders" in done.out


def test_a_build_id_is_short_in_every_table(orders: Desk) -> None:
    assert "ab" * 5 not in orders.good("list", "--group").out
    assert orders.good("list", "--group", "--json").json[0]["build_id"] == "ab" * 20


def test_no_row_ends_in_blanks(orders: Desk) -> None:
    for words in (["list"], ["list", "--group"]):
        for variables in ({}, {"COLUMNS": "80"}):
            lines = orders.good(*words, **variables).out.splitlines()
            assert lines == [line.rstrip() for line in lines]


@pytest.mark.parametrize(
    ("words", "width", "shown"),
    [
        (["checkout-7d9f8b6c5-x2x4z", "checkout-7d9f8b6c5-q8q8q"], 12, ["check…-x2x4z", "check…-q8q8q"]),
        (["a-very-long-name-of-a-node", "b-very-long-name-of-a-node"], 10, ["a-ve…-node", "b-ve…-node"]),
        (["/usr/lib/one/bin/shop", "/usr/lib/two/bin/shop"], 16, ["…ib/one/bin/shop", "…ib/two/bin/shop"]),
        (["aaaaaaaaaaaa1bbbbbbbb", "aaaaaaaaaaaa2bbbbbbbb"], 10, ["…1bbbbbbbb", "…2bbbbbbbb"]),
    ],
)  # fmt: skip
def test_names_are_cut_where_they_are_the_same(words: list[str], width: int, shown: list[str]) -> None:
    lines, _ = printed([Column("NAME", flexible=True)], [[word] for word in words], width)
    assert lines[1:] == shown


def test_a_column_is_cut_before_what_differs_is_left_out() -> None:
    columns = [Column("ID"), Column("HOST", flexible=True, rank=2), Column("SIZE", right=True, rank=1)]
    rows = [["1", "node-a.example.org", "5K"], ["2", "node-b.example.org", "6K"]]
    assert printed(columns, rows, 30) == (
        ["ID  HOST                SIZE", "1   node-a.example.org    5K", "2   node-b.example.org    6K"],
        [],
    )
    lines, left_out = printed(columns, rows, 24)
    assert lines[0].split() == ["ID", "HOST", "SIZE"] and left_out == []
    assert len({line.split()[1] for line in lines[1:]}) == 2
    lines, left_out = printed(columns, rows, 17)
    assert lines[0].split() == ["ID", "HOST"] and left_out == ["SIZE"]


def test_rows_without_room_are_blocks() -> None:
    columns = [Column("ID"), Column("PROGRAM", flexible=True), Column("FAULT", flexible=True)]
    lines, left_out = printed(columns, [["11111111", "orders", FAULT], ["22222222", "cart", FAULT]], 24)
    assert lines == [
        "ID 11111111",
        "  PROGRAM orders",
        "  FAULT /usr/bi…s+0x11ab",
        "ID 22222222",
        "  PROGRAM cart",
        "  FAULT /usr/bi…s+0x11ab",
    ]
    assert left_out == []
