"""The page that `make bench` writes, docs/bench/README.md, with the goals of the project, and the numbers beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bench.report import (
    C_HOST,
    C_SOCKET,
    C_STORES,
    PIPE_HOST,
    PIPE_KEEPS,
    PYTHON,
    SOCKET,
    SOCKET_IDLE,
    SOCKET_IN_FLIGHT,
    SOCKET_KEEPS,
    Results,
    Row,
    attack,
    beside_never,
    bursts,
    by_size,
    latency,
    memory,
    name_of_size,
    table,
)

RESULTS, WRITTEN = "results.json", "README.md"
KEPT = (256, 1024)  # MiB of the cores that keeping is judged by.
PAGE = """\
# Measurements

`make bench` has written this page, the plots and `results.json`. A ratio says how many times as long one handler takes as
another one, on the same machine at the same time: the handlers take turns, crash by crash. The times themselves are those of
this machine only.

{machine}

*C* is `tests/bench/latency.c`, the least that a handler could be: it looks at nothing and guards against nothing. Where the
process is in a container, it enters the namespaces and starts the delegate there. *Python that only executes* starts the
delegate on the host. *pipe* and *socket* are the two doors by which the kernel gives a core away. Where *host* is not said, the
process crashes in a Docker container. Crashes for each handler: {rounds}.

## Goals

{goals}

## From the crash to the delegate

![The times from the crash to the start of the delegate](latency.svg)

*Held* is the time from the crash until the process is gone.

{latency}

## From the crash to the end of the core

![The times from the crash to the end of the core](drained.svg)

The ratios are those to the first row.

{drained}

The process with {largest}, until its delegate was started, and until it was gone:

{latency_of_largest}

## Cores that the host keeps

The time from the crash until the core is on the disk of the host. Only then the helper starts the delegate. The handler of
the first row writes the core to a file, and starts nothing. *Keeps nothing* is the helper with
`docker_core_helper_keep: never`, as above: the time until its delegate has read the core.

{kept}

And until the process is gone:

{kept_held}

## Many crashes at once

![Lost crashes, and the time that all of them took](bursts.svg)

In 10 containers. *Memory* is the most that the whole machine had in use, beyond what it had just before. *Processor* is the
time of all processors for each crash, with the dump itself and the delegate.

{bursts}

## A container that attacks

In one container {loops} loops run, in each of which one process after the other crashes. Another container has one crash after
the other.

{attack}

## Memory

Memory that processes share counts once.

{memory}
"""
COREDUMP = """
## Beside systemd-coredump

On a virtual machine with {machine}, which qemu may emulate:
`make bench VM={name}`. The time from the crash until the process is gone.

{plain}

systemd-coredump compresses the core, and reads a backtrace from it. This is what the helper takes that keeps the core and lets
the process go when the core is on the disk:

{kept}
"""


class Goal:
    """A number that has to be at most, or at least, another one."""

    def __init__(self, text: str, bound: float, found: float | None, at_least: bool = False) -> None:
        """Take the text, the bound, and what was found: None where that was not measured."""
        self.text = text
        self.bound = bound
        self.found = found
        self.at_least = at_least

    def row(self) -> Row:
        """The row of the table."""
        bound = f"{'at least' if self.at_least else 'at most'} {self.bound:g}"
        if self.found is None:
            return (self.text, bound, "not measured", "")
        met = self.found >= self.bound if self.at_least else self.found <= self.bound
        return (self.text, bound, f"{self.found:.2f}".removesuffix(".00"), "yes" if met else "no")


def goals(results: Results) -> list[Goal]:
    """What the project wants of the numbers."""

    def median(mib: int, name: str, what: str, part: str) -> float | None:
        for size in results[part]:
            for row in size["rows"]:
                if size["mib"] == mib and row["name"] == name:
                    return float(row[what]["p50"])
        return None

    def times(mib: int, name: str, other: str, what: str = "delegate", part: str = "plain") -> float | None:
        one, two = median(mib, name, what, part), median(mib, other, what, part)
        return one / two if one is not None and two is not None else None

    # There, the delegate starts as soon as the core is safe.
    keeps = [
        Goal(
            f"{door}, keeps: {name_of_size(mib)} safe, times the C that stores",
            1.1,
            times(mib, name, C_STORES, part="kept"),
        )
        for door, name in (("pipe", PIPE_KEEPS), ("socket", SOCKET_KEEPS))
        for mib in KEPT
    ]

    def of(part: str, name: str, what: str, crashes: int) -> float | None:
        found = [row[what] for row in results[part] if (row["name"], row["crashes"]) == (name, crashes)]
        return float(found[0]) if found else None

    return [
        Goal("socket: times the C of the socket, to the delegate", 1.2, times(1, SOCKET, C_SOCKET)),
        Goal("pipe, host: times the Python that only executes, to the delegate", 1.5, times(1, PIPE_HOST, PYTHON)),
        Goal("socket: 1 GiB drained, times the C of the host", 0.9, times(1024, SOCKET, C_HOST, "drained")),
        *keeps,
        Goal("socket: lost of 500 crashes at once", 0, of("bursts", SOCKET, "lost", 500)),
        Goal("socket: arrived of the attacked container's 15 crashes", 15, of("attack", SOCKET, "arrived", 15), True),
        Goal("socket: MiB of memory when idle", 30, results["memory"].get(SOCKET_IDLE)),
        Goal("socket: MiB of memory for a crash in flight", 14, results["memory"].get(SOCKET_IN_FLIGHT)),
    ]


def text_of(results: Results) -> str:
    """The page docs/bench/README.md, which `make bench` also prints."""
    plain, kept = results["plain"], results["kept"]
    return PAGE.format(
        machine=table(("what", "which"), [(name, str(value)) for name, value in results["machine"].items()]),
        goals=table(("goal", "bound", "found", "met"), [goal.row() for goal in goals(results)]),
        rounds=", ".join(f"{size['rounds']} of {name_of_size(size['mib'])}" for size in plain),
        latency=latency(plain[0]["rows"]),
        drained=by_size(plain, "drained"),
        largest=name_of_size(plain[-1]["mib"]),
        latency_of_largest=latency(plain[-1]["rows"]),
        kept=by_size(beside_never(kept, plain, "delegate", "drained"), "delegate"),
        kept_held=by_size(beside_never(kept, plain, "held", "held"), "held"),
        bursts=bursts(results["bursts"]),
        loops=results["attack"][0]["loops"],
        attack=attack(results["attack"]),
        memory=memory(results["memory"]),
    ) + (beside_systemd(results["virtual"]) if "virtual" in results else "")


def beside_systemd(found: Results) -> str:
    """What a virtual machine with systemd-coredump has shown."""
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    plain, kept = by_size(found["plain"], "held"), by_size(found["kept"], "held")
    return COREDUMP.format(machine=machine, name=found["name"], plain=plain, kept=kept)


def write(directory: Path, results: Results) -> None:
    """Writes the numbers and the page; both belong to the owner of the clone, who need not be root."""
    owner = Path(__file__).stat()
    directory.mkdir(parents=True, exist_ok=True)
    os.chown(directory, owner.st_uid, owner.st_gid)
    for name, text in ((RESULTS, json.dumps(results, indent=1) + "\n"), (WRITTEN, text_of(results))):
        (directory / name).write_text(text)
        os.chown(directory / name, owner.st_uid, owner.st_gid)


def read(directory: Path) -> Results:
    """The numbers that were written there, none where there are none."""
    path = directory / RESULTS
    return dict(json.loads(path.read_text())) if path.exists() else {}
