"""Draws what `make bench` has found: reads results.json of a directory, and writes the plots beside it.

Only this module needs matplotlib, which has an environment of its own, and only where it draws.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import page, report
from bench.report import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that people who see few of them can tell apart; by door, and grey for what is no helper.
PIPE, SOCKET, OTHER = "#0072b2", "#d55e00", "#999999"
FONT = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "bench"}


@dataclass(frozen=True)
class Bar:
    """A bar to the right: how long it is, to where a thin line goes on, and what stands beside it."""

    name: str
    length: float
    beyond: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One picture: bars, or else lines through points ``(x, y)`` by their names; ``ticks`` name the places of the x axis."""

    title: str
    unit: str
    bars: list[Bar] = field(default_factory=list)
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    ticks: dict[float, str] = field(default_factory=dict)
    logarithmic: bool = False


def colour(name: str) -> str:
    """The colour of a handler."""
    doors = {PIPE: report.PIPE, SOCKET: report.SOCKET}
    return next((found for found, helper in doors.items() if name.startswith(helper)), OTHER)


def of_latency(results: Results) -> list[Panel]:
    """From the crash to the delegate: medians, and the slowest of ten."""
    first = results["plain"][0]
    medians = {row["name"]: row["delegate"]["p50"] for row in first["rows"]}
    bars = []
    for row in first["rows"]:
        median, name = medians[row["name"]], row["name"]
        text = f"{median:.1f} ms"
        if colour(name) != OTHER:
            text += f", {report.ratio(median, medians[row['yardstick']])} times C"
        if colour(name) == PIPE:
            text += f", {report.ratio(median, medians[report.PYTHON])} times Python"
        bars.append(Bar(name, median, row["delegate"]["p90"], text))
    title = "From the crash to the start of the delegate (bar: median, line: 90 %)"
    return [Panel(title, "ms", bars)]


def of_drained(results: Results) -> list[Panel]:
    """From the crash to the end of the core, as ratios to the first handler, one panel for each size."""
    panels = []
    for size in results["plain"]:
        first = size["rows"][0]["drained"]["p50"]
        bars = [
            Bar(
                row["name"],
                row["drained"]["p50"] / first,
                row["drained"]["p90"] / first,
                f"{row['drained']['p50']:.1f} ms",
            )
            for row in size["rows"]
        ]
        panels.append(Panel(f"Core of {report.name_of_size(size['mib'])}, crash to drained", "times C, host", bars))
    return panels


def of_bursts(results: Results) -> list[Panel]:
    """Crashes at once: which part arrived, and how long all of them took."""
    names = list(dict.fromkeys(row["name"] for row in results["bursts"]))
    places = {row["crashes"]: place for place, row in enumerate(results["bursts"][:: len(names)])}
    ticks = {float(place): str(count) for count, place in places.items()}

    def lines(what: str) -> dict[str, list[tuple[float, float]]]:
        return {
            name: [
                (places[row["crashes"]], 100 * (1 - row["lost"] / row["crashes"]) if what == "arrived" else row[what])
                for row in results["bursts"]
                if row["name"] == name
            ]
            for name in names
        }

    return [
        Panel("Crashes at once in 10 containers: cores that arrived", "%", lines=lines("arrived"), ticks=ticks),
        Panel("... and the time for all of them", "s", lines=lines("seconds"), ticks=ticks, logarithmic=True),
    ]


PLOTS = {"latency.svg": of_latency, "drained.svg": of_drained, "bursts.svg": of_bursts}


def draw(panels: list[Panel], path: Path, caption: str) -> None:
    """Writes panels as one picture, the same one for the same numbers."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context(FONT):
        height = sum(0.6 + 0.3 * len(panel.bars) if panel.bars else 2.6 for panel in panels) + 0.6
        figure, axes = pyplot.subplots(len(panels), figsize=(9, height), squeeze=False, layout="constrained")
        for panel, ax in zip(panels, axes[:, 0], strict=True):
            ax.set_title(panel.title, loc="left", fontsize=11)
            ax.spines[["top", "right"]].set_visible(False)
            (draw_bars if panel.bars else draw_lines)(panel, ax)
        figure.supxlabel(caption, fontsize=8, color="#555555")
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
        pyplot.close(figure)


def draw_bars(panel: Panel, ax: Axes) -> None:
    """Bars to the right, the first one on top."""
    places = range(len(panel.bars))
    colours = [colour(bar.name) for bar in panel.bars]
    ax.barh(places, [bar.length for bar in panel.bars], color=colours, height=0.7)
    ax.hlines(places, [bar.length for bar in panel.bars], [bar.beyond for bar in panel.bars], color=colours)
    longest = max(max(bar.length, bar.beyond) for bar in panel.bars)
    for place, bar in enumerate(panel.bars):
        ax.text(max(bar.length, bar.beyond) + longest / 80, place, bar.text, va="center", fontsize=9)
    ax.set_yticks(places, [bar.name for bar in panel.bars])
    ax.set_xlim(0, longest * 1.8)
    ax.set_xlabel(panel.unit)
    ax.invert_yaxis()


def draw_lines(panel: Panel, ax: Axes) -> None:
    """Lines through points; those of C are broken."""
    for name, points in panel.lines.items():
        style = "--" if name.startswith("C ") else "-"
        of_door = PIPE if name.endswith("pipe") else SOCKET
        ax.plot(*zip(*points, strict=True), style, marker="o", color=of_door, label=name)
    ax.set_xticks(list(panel.ticks), list(panel.ticks.values()))
    if panel.logarithmic:
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 105)
    ax.set_ylabel(panel.unit)
    ax.legend(frameon=False, fontsize=9)


def main() -> None:
    """Draws all plots of a directory."""
    directory = Path(sys.argv[1])
    results = page.read(directory)
    machine = results["machine"]
    caption = f"{machine['kernel']}; Python {machine['Python of the helper']}; {machine['processors']}"
    for name, panels in PLOTS.items():
        draw(panels(results), directory / name, caption)


if __name__ == "__main__":
    main()
