"""The parts of `make bench`, each of which returns what results.json has of it."""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench import report
from bench.handlers import (
    CONTAINER,
    HOST,
    Attacker,
    Crasher,
    Handler,
    configured,
    interpreter,
    set_pattern,
)
from bench.report import Results
from support import lab

CONTAINERS = 10
ATTACKED = 15
# What the first look at a container and at files costs is not what is measured.
WARM_UP = 2
LINGER = 'DOCKERCOREHELPER_DELEGATE="/bin/sleep 3"\n'
HELPERS = re.compile(r"docker_core_helper")


def machine() -> Results:
    """What the numbers depend on."""
    words = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", words, re.M)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    version = lab.output(interpreter(), "-c", "import platform; print(platform.python_version())")
    # A distribution's own part of the release says nothing to others.
    kernel = re.match(r"[\d.]*\d", platform.release())
    return {
        "kernel": f"Linux {kernel[0] if kernel else '?'}, {platform.machine()}",
        "Python of the helper": version,
        "processors": f"{os.cpu_count()}, {model[1] if model else 'of an unknown kind'}",
        "memory": f"{total / (1 << 30):.0f} GiB",
        "containers": "Docker " + lab.output("docker", "version", "--format={{.Server.Version}}"),
    }


def turns(handlers: list[Handler], mib: int, rounds: int, crashers: dict[str, Crasher]) -> Results:
    """Crashes of one size, of which each handler gets one after the other: so all of them see the same machine."""
    times: dict[str, list[tuple[float, float, float]]] = {handler.name: [] for handler in handlers}
    for number in range(-min(WARM_UP, rounds), rounds):
        for handler in handlers:
            set_pattern(handler.pattern)
            crash, delivery = crashers[handler.place].crash(mib, handler.silent)
            if number >= 0:
                since = [1000 * (at - crash.crashed) for at in (delivery.started, delivery.ended, crash.gone)]
                times[handler.name].append((since[0], since[1], since[2]))
    rows = []
    for handler in handlers:
        delegate, drained, held = map(report.summary, zip(*times[handler.name], strict=True))
        row = {"name": handler.name, "place": handler.place, "yardstick": handler.yardstick}
        rows.append({**row, "delegate": delegate, "drained": drained, "held": held})
    return {"mib": mib, "rounds": rounds, "rows": rows}


def burst(handler: Handler, count: int, crashers: list[Crasher]) -> Results:
    """As many crashes at once, spread over the containers."""
    set_pattern(handler.pattern)
    chosen = crashers[: min(count, len(crashers))]
    # By then all processes are there and sleep.
    at = time.monotonic() + 0.5 + count / 250
    for crasher in chosen:
        crasher.order(1, count // len(chosen), at)
    with Watch(at) as watch:
        found = [crasher.crashes() for crasher in chosen]
    crashes = [crash for one, _ in found for crash in one]
    deliveries = [delivery for _, one in found for delivery in one]
    end = max([crash.gone for crash in crashes] + [delivery.ended for delivery in deliveries])
    return {
        "name": handler.name,
        "crashes": len(crashes),
        "lost": len(crashes) - len(deliveries),
        "seconds": round(end - min(crash.crashed for crash in crashes), 3),
        "held": report.summary([crash.gone - crash.crashed for crash in crashes]),
        "memory": round(watch.most, 1),
        # The kernel counts in hundredths of a second.
        "processor": round(1000 * watch.processor / len(crashes), 2) if len(crashes) >= 100 else None,
    }


class Watch(threading.Thread):
    """The most memory, in MiB, and the processor time that the machine takes, from a monotonic time on, in a ``with``.

    It asks for the whole machine: to ask hundreds of processes would cost what is measured.
    """

    def __init__(self, begin: float) -> None:
        """Take when it begins."""
        super().__init__(daemon=True)
        self.begin = begin - 0.05
        self.over = threading.Event()
        self.most = self.processor = 0.0

    def __enter__(self) -> Watch:
        """Start."""
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop."""
        self.over.set()
        self.join()

    def run(self) -> None:
        """Look a hundred times a second."""
        self.over.wait(max(0.0, self.begin - time.monotonic()))
        available, busy = mib_available(), seconds_busy()
        while not self.over.wait(0.01):
            self.most = max(self.most, available - mib_available())
        self.processor = seconds_busy() - busy


def mib_available() -> float:
    """The memory of the machine that nobody needs; proc_meminfo(5)."""
    found = re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)
    return int(found[1]) / 1024 if found else 0.0


def seconds_busy() -> float:
    """The time that all processors have worked since the boot; proc_stat(5)."""
    user, nice, system, _idle, _waiting, hard, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + hard + soft) / os.sysconf("SC_CLK_TCK")


def attack(handler: Handler, loops: int, attacked: Crasher) -> Results:
    """One crash after the other in a container, while another container attacks."""
    set_pattern(handler.pattern)
    times = []
    with Attacker(loops) as attacker:
        time.sleep(1)
        began = time.monotonic()
        for _ in range(ATTACKED):
            attacked.order()
            (crash,), deliveries = attacked.crashes()
            times += [1000 * (delivery.started - crash.crashed) for delivery in deliveries]
        seconds = time.monotonic() - began
    return {
        "name": handler.name,
        "loops": loops,
        "crashes": ATTACKED,
        "arrived": len(times),
        "seconds": round(seconds, 2),
        "delegate": report.summary(times) if times else None,
        "attacks": attacker.crashes,
    }


def memory(pipe: Handler, socket: Handler | None, crasher: Crasher) -> dict[str, float]:
    """What the helper has resident while a crash is in flight, and the server while there is none; in MiB."""
    found = {}
    with configured(LINGER):
        set_pattern(pipe.pattern)
        found[report.PIPE_IN_FLIGHT] = in_flight(crasher)
        if socket is not None:
            set_pattern(socket.pattern)
            time.sleep(1)  # The workers of the last crashes end, and others take their places.
            idle = resident()
            found[report.SOCKET_IDLE] = idle
            found[report.SOCKET_IN_FLIGHT] = in_flight(crasher) - idle
    return {name: round(mib, 1) for name, mib in found.items()}


def in_flight(crasher: Crasher) -> float:
    """What is resident while a delegate sleeps."""
    crasher.order()
    time.sleep(1.5)
    used = resident()
    crasher.crashes()
    return used


def resident() -> float:
    """The memory of all processes of the helper, in MiB. What they share counts once: proc_pid_smaps(5)."""
    used = 0
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if HELPERS.search((directory / "cmdline").read_text(errors="replace")):
                found = re.search(r"^Pss:\s+(\d+)", (directory / "smaps_rollup").read_text(), re.M)
                used += int(found[1]) if found else 0
        except OSError:
            continue
    return used / 1024


def everything(
    plain: list[Handler],
    keeping: list[Handler],
    keep: str,
    rounds: dict[int, int],
    crowds: tuple[int, ...],
    loops: int,
    say: Callable[[str], None],
) -> Results:
    """All parts: ``rounds`` by the MiB of a core, the numbers ``crowds`` of crashes at once, the attacker's ``loops``."""
    results: Results = {"machine": machine()}
    with ExitStack() as stack:

        def started(name: str = "") -> Crasher:
            crasher = Crasher(name)
            stack.callback(crasher.stop)
            return crasher

        containers = [started(f"c{number}") for number in range(CONTAINERS)]
        crashers = {HOST: started(), CONTAINER: containers[0]}
        for part, handlers, lines in (("plain", plain, ""), ("kept", keeping, keep)):
            results[part] = []
            with configured(lines):
                for mib, number in rounds.items():
                    say(f"{number} crashes of {report.name_of_size(mib)} for each of {len(handlers)} handlers ({part})")
                    results[part].append(turns(handlers, mib, number, crashers))
        inside = [handler for handler in plain if handler.place == CONTAINER]
        results["bursts"] = []
        for count in crowds:
            say(f"{count} crashes at once")
            results["bursts"] += [burst(handler, count, containers) for handler in inside]
        results["attack"] = []
        for handler in inside:
            say(f"{loops} crash loops against {ATTACKED} crashes: {handler.name}")
            results["attack"].append(attack(handler, loops, containers[0]))
        say("memory")
        by_name = {handler.name: handler for handler in plain}
        results["memory"] = memory(by_name[report.PIPE], by_name.get(report.SOCKET), containers[0])
    return results
