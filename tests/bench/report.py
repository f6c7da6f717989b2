"""What `make bench` makes of its numbers: percentiles, ratios, tables. Nothing here measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# What `measure.py` has found, as it stands in results.json.
Results = dict[str, Any]
Row = Sequence[str]

PERCENTS = (50, 90, 99)
# The names of the handlers. Where "host" is not said, the process crashes in a container.
C_HOST, PYTHON, PIPE_HOST = "C, host", "Python that only executes, host", "helper at the pipe, host"
C_PIPE, PIPE, C_SOCKET, SOCKET = "C at the pipe", "helper at the pipe", "C at the socket", "helper at the socket"
SOCKET_HOST = "helper at the socket, host"
C_STORES, PIPE_KEEPS, SOCKET_KEEPS = "C that stores, host", "helper at the pipe, keeps", "helper at the socket, keeps"
PIPE_IN_FLIGHT, SOCKET_IN_FLIGHT = "one crash in flight, at the pipe", "one crash in flight, at the socket"
SYSTEMD = "systemd-coredump, host"
SOCKET_IDLE = "server and idle workers, at the socket"


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of the ``values`` that so many percent of them do not exceed (the nearest rank)."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """The percentiles of ``values``, in the unit of these."""
    return {f"p{percent}": round(percentile(values, percent), 3) for percent in PERCENTS}


def ratio(one: float, other: float) -> str:
    """How many times as long one takes as the other."""
    return f"{one / other:.2f}"


def table(head: Row, rows: Sequence[Row]) -> str:
    """A table in Markdown, with columns of one width: numbers stand at the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    numbers = [all(is_number(cell) for cell in column) for column in zip(*rows, strict=True)]

    def line(row: Row) -> str:
        cells = zip(row, widths, numbers, strict=True)
        return f"| {' | '.join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in cells)} |"

    rules = ["-" * (width + 1) + (":" if number else "-") for width, number in zip(widths, numbers, strict=True)]
    return "\n".join([line(head), f"|{'|'.join(rules)}|", *map(line, rows)])


def is_number(cell: str) -> bool:
    """Whether a cell is empty or begins with a digit."""
    return not cell or cell[0].isdigit()


def milliseconds(value: float) -> str:
    """A number of milliseconds, with as many digits as say something."""
    return f"{value:.2f} ms" if value < 100 else f"{value:.0f} ms"


def latency(rows: list[Results]) -> str:
    """From the crash to the delegate: ratios first."""
    medians = {row["name"]: row["delegate"]["p50"] for row in rows}
    lines = [
        [
            row["name"],
            ratio(row["delegate"]["p50"], medians[row["yardstick"]]),
            ratio(row["delegate"]["p50"], medians[PYTHON]) if PYTHON in medians else "",
            *(milliseconds(row["delegate"][f"p{percent}"]) for percent in PERCENTS),
            milliseconds(row["held"]["p50"]),
            row["yardstick"],
        ]
        for row in rows
    ]
    return table(("handler", "ratio to C", "to Python", "p50", "p90", "p99", "held, p50", "that C"), lines)


def by_size(sizes: list[Results], what: str) -> str:
    """The medians of ``what`` for each size: ratios to the first handler first."""
    medians = [{row["name"]: row[what]["p50"] for row in size["rows"]} for size in sizes]
    names = [row["name"] for row in sizes[0]["rows"]]
    lines = [
        [name, *(ratio(found[name], found[names[0]]) for found in medians)]
        + [milliseconds(found[name]) for found in medians]
        for name in names
    ]
    heads = [name_of_size(size["mib"]) for size in sizes]
    return table(("handler", *(f"{head}: ratio" for head in heads), *heads), lines)


def beside_never(kept: list[Results], plain: list[Results], what: str, of_plain: str) -> list[Results]:
    """The sizes of ``kept``, with a row of ``of_plain`` as ``what`` for each helper that keeps nothing."""
    rows = {size["mib"]: size["rows"] for size in plain}
    return [
        {
            **size,
            "rows": size["rows"]
            + [
                {"name": f"{row['name']}, keeps nothing", what: row[of_plain]}
                for row in rows.get(size["mib"], [])
                if row["name"] in (PIPE, SOCKET)
            ],
        }
        for size in kept
    ]


def name_of_size(mib: int) -> str:
    """A number of MiB as people write it."""
    return f"{mib // 1024} GiB" if mib % 1024 == 0 else f"{mib} MiB"


def bursts(rows: list[Results]) -> str:
    """Many crashes at once: how many were lost, first."""
    lines = [
        [
            row["name"],
            str(row["crashes"]),
            str(row["lost"]),
            f"{row['seconds']:.2f} s",
            milliseconds(1000 * row["held"]["p50"]),
            f"{row['memory']:.0f} MiB",
            milliseconds(row["processor"]) if row["processor"] is not None else "",
        ]
        for row in rows
    ]
    return table(("handler", "at once", "lost", "all of them", "held, p50", "memory", "processor a crash"), lines)


def attack(rows: list[Results]) -> str:
    """What another container gets while one attacks."""
    lines = [
        [
            row["name"],
            f"{row['arrived']} of {row['crashes']}",
            f"{row['seconds']:.1f} s",
            milliseconds(row["delegate"]["p50"]) if row["delegate"] else "",
            f"{row['attacks'] / row['seconds']:.0f}",
        ]
        for row in rows
    ]
    return table(("handler", "arrived", "all of them", "to delegate, p50", "attacker's crashes a second"), lines)


def memory(found: dict[str, float]) -> str:
    """What is resident."""
    return table(("processes", "memory"), [[name, f"{mib:.1f} MiB"] for name, mib in found.items()])
