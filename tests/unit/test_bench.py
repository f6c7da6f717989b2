"""`make bench`: what it makes of its numbers. Nothing is measured here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench import handlers, page, plots, report, run
from support import door
from support.project import PROJECT

PIPE = "|/opt/bin/docker_core_helper -F%F -I%I -s%s -t%t -d%d -c%c %P %u %g"
NAMES = {
    **dict.fromkeys((report.C_HOST, report.PYTHON, report.PIPE_HOST), report.C_HOST),
    **dict.fromkeys((report.C_PIPE, report.PIPE), report.C_PIPE),
    **dict.fromkeys((report.C_SOCKET, report.SOCKET), report.C_SOCKET),
}


def percentiles(median: float) -> dict[str, float]:
    """Percentiles that tell each other apart."""
    return {"p50": median, "p90": 2 * median, "p99": 3 * median}


def crashes(mib: int, medians: dict[str, float]) -> dict[str, Any]:
    """What is measured of one size: until the end of the core it takes ten times as long as until the delegate."""
    rows = [
        {
            **{"name": name, "place": "host", "yardstick": NAMES.get(name, name), "delegate": percentiles(median)},
            **{"drained": percentiles(10 * median), "held": percentiles(20 * median)},
        }
        for name, median in medians.items()
    ]
    return {"mib": mib, "rounds": 5, "rows": rows}


def burst(name: str, count: int, lost: int) -> dict[str, Any]:
    """Crashes at once, each of which takes 10 ms of a processor."""
    found = {"name": name, "crashes": count, "lost": lost, "seconds": count / 100, "held": percentiles(0.5)}
    return {**found, "memory": 14.0, "processor": 10.0 if count >= 100 else None}


@pytest.fixture
def results() -> dict[str, Any]:
    """The numbers of a run."""
    small = {report.C_HOST: 0.5, report.PYTHON: 6.0, report.PIPE_HOST: 12.0, report.C_PIPE: 1.0, report.PIPE: 24.0}
    sockets = {report.C_SOCKET: 2.0, report.SOCKET: 2.2}
    return {
        "machine": {"kernel": "Linux 6.18.1, x86_64", "Python of the helper": "3.11.2", "processors": "2, of a kind"},
        "plain": [
            crashes(1, {**small, **sockets}),
            crashes(1024, {**small, **sockets, report.C_HOST: 4.0, report.SOCKET: 3.0}),
        ],
        "kept": [
            crashes(1, {report.C_STORES: 1.0, report.PIPE_KEEPS: 3.0, report.SOCKET_KEEPS: 2.0}),
            crashes(1024, {report.C_STORES: 100.0, report.PIPE_KEEPS: 109.0, report.SOCKET_KEEPS: 112.0}),
        ],
        "bursts": [
            burst(name, count, 0 if name == report.SOCKET else count // 4) for count in (1, 500) for name in NAMES
        ],
        "attack": [
            {
                **{"name": name, "loops": 400, "crashes": 15, "arrived": arrived, "seconds": 3.0, "attacks": 600},
                "delegate": percentiles(7.0) if arrived else None,
            }
            for name, arrived in ((report.PIPE, 0), (report.SOCKET, 15))
        ],
        "memory": {report.SOCKET_IDLE: 15.0, report.SOCKET_IN_FLIGHT: 20.0},
    }


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3.0], 50, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.0),
        ([*map(float, range(1, 101))], 90, 90.0),
        ([*map(float, range(1, 101))], 99, 99.0),
        ([1.0, 2.0], 99, 2.0),
    ],
)
def test_a_percentile_is_a_value_that_was_measured(values: list[float], percent: int, expected: float) -> None:
    assert report.percentile(values, percent) == expected


def test_a_table_has_columns_of_one_width_and_numbers_at_the_right() -> None:
    assert report.table(("name", "n"), [("a", "10 ms"), ("longer", "")]).splitlines() == [
        "| name   |     n |",
        "|--------|------:|",
        "| a      | 10 ms |",
        "| longer |       |",
    ]


def test_a_row_of_times_has_the_ratios_first(results: dict[str, Any]) -> None:
    lines = report.latency(results["plain"][0]["rows"]).splitlines()
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    times = ["12.00 ms", "24.00 ms", "36.00 ms", "240 ms"]
    assert cells[report.PIPE_HOST] == ["24.00", "2.00", *times, report.C_HOST]
    assert cells[report.SOCKET][:2] == ["1.10", "0.37"] and cells[report.SOCKET][-1] == report.C_SOCKET


def test_sizes_stand_beside_each_other_as_ratios_to_the_first_handler(results: dict[str, Any]) -> None:
    lines = report.by_size(results["plain"], "drained").splitlines()
    assert lines[0].split("|")[2:4] == [" 1 MiB: ratio ", " 1 GiB: ratio "]
    (socket,) = [line for line in lines if line.startswith(f"| {report.SOCKET} ")]
    assert [cell.strip() for cell in socket.split("|")[2:-1]] == ["4.40", "0.75", "22.00 ms", "30.00 ms"]


def test_the_goals_say_what_was_found_and_whether_that_is_enough(results: dict[str, Any]) -> None:
    found = {goal.text: goal.row()[2:] for goal in page.goals(results)}
    assert found == {
        "socket: times the C of the socket, to the delegate": ("1.10", "yes"),
        "pipe, host: times the Python that only executes, to the delegate": ("2", "no"),
        "socket: 1 GiB drained, times the C of the host": ("0.75", "yes"),
        "pipe, keeps: 256 MiB safe, times the C that stores": ("not measured", ""),
        "pipe, keeps: 1 GiB safe, times the C that stores": ("1.09", "yes"),
        "socket, keeps: 256 MiB safe, times the C that stores": ("not measured", ""),
        "socket, keeps: 1 GiB safe, times the C that stores": ("1.12", "no"),
        "socket: lost of 500 crashes at once": ("0", "yes"),
        "socket: arrived of the attacked container's 15 crashes": ("15", "yes"),
        "socket: MiB of memory when idle": ("15", "yes"),
        "socket: MiB of memory for a crash in flight": ("20", "no"),
    }


def test_a_goal_is_not_met_because_it_was_not_measured(results: dict[str, Any]) -> None:
    results["plain"] = results["plain"][:1]
    results["kept"] = results["bursts"] = results["attack"] = []
    results["memory"] = {}
    missing = [goal.row()[2:] for goal in page.goals(results)][2:]
    assert missing == [("not measured", "")] * 9


def test_what_keeping_costs_stands_beside_what_it_costs_to_keep_nothing(results: dict[str, Any]) -> None:
    text = page.text_of(results).partition("## Cores that the host keeps")[2].partition("## Many")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "keeps nothing" in line]
    pipe, socket = f"{report.PIPE}, keeps nothing", f"{report.SOCKET}, keeps nothing"
    # Until the delegate has read the core, and until the process is gone.
    assert rows == [
        [pipe, "240.00", "2.40", "240 ms", "240 ms"],
        [socket, "22.00", "0.30", "22.00 ms", "30.00 ms"],
        [pipe, "24.00", "0.24", "480 ms", "480 ms"],
        [socket, "2.20", "0.03", "44.00 ms", "60.00 ms"],
    ]


def test_what_is_published_is_no_quick_run() -> None:
    published = json.loads((PROJECT / "docs/bench/results.json").read_text())
    assert {crashes["mib"]: crashes["rounds"] for crashes in published["plain"]} == run.ROUNDS
    assert {attack["loops"] for attack in published["attack"]} == {run.LOOPS}


def test_a_run_measures_the_cores_that_keeping_is_judged_by() -> None:
    assert set(page.KEPT) <= set(run.ROUNDS)


def test_a_goal_of_at_least_so_many_is_not_met_by_fewer() -> None:
    assert page.Goal("arrived", 15, 14, at_least=True).row()[1:] == ("at least 15", "14", "no")
    assert page.Goal("lost", 0, 1).row()[1:] == ("at most 0", "1", "no")


def test_the_page_has_the_machine_and_every_handler(results: dict[str, Any]) -> None:
    text = page.text_of(results)
    assert "Linux 6.18.1" in text and "3.11.2" in text
    for name in NAMES:
        assert f"| {name} " in text
    assert "0 of 15" in text and "15 of 15" in text


def test_the_published_page_says_what_the_published_numbers_say() -> None:
    directory = PROJECT / "docs" / "bench"
    assert (directory / page.WRITTEN).read_text() == page.text_of(page.read(directory))


def test_what_is_written_is_read_again(results: dict[str, Any], tmp_path: Path) -> None:
    assert page.read(tmp_path / "new") == {}
    page.write(tmp_path / "new", results)
    assert page.read(tmp_path / "new") == results
    assert (tmp_path / "new" / page.WRITTEN).read_text() == page.text_of(results)


def test_the_page_has_what_a_virtual_machine_has_shown(results: dict[str, Any]) -> None:
    assert "systemd-coredump" not in page.text_of(results)
    sizes = [crashes(1, {report.C_HOST: 1.0, report.PIPE_HOST: 3.0})]
    results["virtual"] = {"name": "trixie", "machine": {"systemd": "257"}, "plain": sizes, "kept": sizes}
    text = page.text_of(results)
    assert "systemd 257, which qemu may emulate:\n`make bench VM=trixie`" in text
    assert text.endswith(f"{report.by_size(sizes, 'held')}\n")


def test_each_handler_has_a_yardstick_and_a_pattern_that_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "has_sockets", lambda: True)
    for found in (handlers.plain(PIPE), handlers.keeping(PIPE)):
        names = {handler.name for handler in found}
        assert len(names) == len(found)
        for handler in found:
            assert handler.yardstick in names
            assert len(handler.pattern) <= 127


def test_a_kernel_without_the_socket_has_the_other_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "has_sockets", lambda: False)
    found = handlers.plain(PIPE)
    assert {report.C_HOST, report.PYTHON, report.PIPE_HOST, report.C_PIPE, report.PIPE} == {
        handler.name for handler in found
    }


def test_what_the_crashing_program_and_the_delegate_have_written_is_read() -> None:
    text = "delegate 1.500000000 2.000000000 4096\ncrash 1.000000000 2.250000000\n"
    assert handlers.read(text) == ([handlers.CrashTimes(1.0, 2.25)], [handlers.Delivery(1.5, 2.0, 4096)])


def test_the_plot_of_the_delegates_has_a_bar_for_each_handler(results: dict[str, Any]) -> None:
    (panel,) = plots.of_latency(results)
    bars = {bar.name: bar for bar in panel.bars}
    assert list(bars) == list(NAMES)
    assert (bars[report.SOCKET].length, bars[report.SOCKET].beyond) == (2.2, 4.4)
    assert bars[report.SOCKET].text == "2.2 ms, 1.10 times C"
    assert bars[report.PIPE].text == "24.0 ms, 24.00 times C, 4.00 times Python"
    assert bars[report.PYTHON].text == "6.0 ms"
    assert len({plots.colour(name) for name in (report.PIPE_HOST, report.SOCKET, report.C_SOCKET)}) == 3


def test_the_plot_of_whole_cores_has_a_panel_for_each_size(results: dict[str, Any]) -> None:
    panels = plots.of_drained(results)
    assert [panel.title for panel in panels] == [
        "Core of 1 MiB, crash to drained",
        "Core of 1 GiB, crash to drained",
    ]
    assert {bar.name: bar.length for bar in panels[1].bars}[report.SOCKET] == 0.75


def test_the_plot_of_crashes_at_once_has_a_line_for_each_handler(results: dict[str, Any]) -> None:
    arrived, seconds = plots.of_bursts(results)
    assert arrived.ticks == {0.0: "1", 1.0: "500"}
    assert arrived.lines[report.SOCKET] == [(0, 100.0), (1, 100.0)]
    assert arrived.lines[report.PIPE] == [(0, 100.0), (1, 75.0)]
    assert seconds.lines[report.PIPE] == [(0, 0.01), (1, 5.0)]
