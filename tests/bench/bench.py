"""`make bench`: what a crash costs, as ratios to a Python that does nothing but execute the delegate.

In a container also as ratios to the least that a helper in C could be. Handlers take turns crash by crash, so that all see the
same machine; what counts is the ratio of the medians.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import door, lab

ROUNDS = 60
LARGE_ROUNDS = 5
LARGE_MIB = 512
KEPT_MIB = (256, 1024)
# Short names: a core pattern has at most 127 bytes.
RECORD = lab.RECORDS / "r"
FLOOR = lab.DIRECTORY / "floor"
PROGRAM = lab.DIRECTORY / "latency"
STORE = lab.DIRECTORY / "cores"
CONFIGURATION = Path("/etc/docker_core_helper.conf")
HELPER = "|/opt/bin/docker_core_helper -F%F -I%I -s%s -t%t -d%d -c%c %P %u %g"

FLOOR_SCRIPT = f"""\
#!/usr/bin/python3 -IS
import posix
posix.execv("{PROGRAM}", ["latency", "{RECORD}"])
"""


class Crasher:
    """A program that crashes on demand, on this machine or in a container."""

    def __init__(self, words: list[str | Path], pattern: str) -> None:
        """Starts it; ``pattern`` is the core pattern that is to handle its crashes."""
        self.pattern = pattern
        self.process = subprocess.Popen(
            words, env=lab.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def crash(self) -> tuple[float, float]:
        """Milliseconds from the crash to the delegate's start, and to the end of the core."""
        assert self.process.stdin and self.process.stdout
        RECORD.write_text("")
        RECORD.chmod(0o666)
        lab.setting("kernel/core_pattern").write_text(self.pattern)
        if lab.setting("kernel/core_pattern").read_text().rstrip("\n") != self.pattern:
            raise RuntimeError(f"the kernel has cut off {self.pattern}")
        self.process.stdin.write(b"x")
        if not self.process.stdout.read(1):
            raise RuntimeError("the crasher did not survive the crash of its child")
        deadline = time.monotonic() + 10
        while "delegate" not in RECORD.read_text():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no delegate was started by {self.pattern}")
            time.sleep(0.01)
        rows = {line.split()[0]: line.split()[1:] for line in RECORD.read_text().splitlines()}
        crashed, started, ended = float(rows["crash"][0]), *(float(value) for value in rows["delegate"])
        return 1000 * (started - crashed), 1000 * (ended - crashed)

    def stop(self) -> None:
        """Ends the program, and its container with it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def crashers(mib: int) -> dict[str, Crasher]:
    """A crasher for each handler, by what the kernel's pipe starts."""
    local: list[str | Path] = [PROGRAM, "crasher", RECORD, str(mib)]
    mount = f"--volume={lab.RECORDS}:/out"
    docker = ["docker", "run", "--rm", "--interactive", "--label=core-lab", "--network=none", mount, "core-lab/latency"]
    return {
        "Python that only executes, host": Crasher(local, f"|{FLOOR}"),
        "docker_core_helper, host": Crasher(local, f"{HELPER} {PROGRAM} {RECORD}"),
        "docker_core_helper, Docker": Crasher(
            [*docker, "/usr/bin/latency", "crasher", "/out/r", str(mib)],
            f"{HELPER} /usr/bin/latency /out/r",
        ),
    }


def in_container(mib: int) -> dict[str, Crasher]:
    """A crasher in a container for each door, and for a helper in C. One at the socket goes by the configuration."""
    mount = f"--volume={lab.RECORDS}:/out"
    docker = ["docker", "run", "--rm", "--interactive", "--label=core-lab", "--network=none", mount, "core-lab/latency"]
    words: list[str | Path] = [*docker, "/usr/bin/latency", "crasher", "/out/r", str(mib)]
    return {
        "C that only enters": Crasher(words, f"|{PROGRAM} enter %P /usr/bin/latency /out/r"),
        "docker_core_helper, pipe": Crasher(words, f"{HELPER} /usr/bin/latency /out/r"),
        "docker_core_helper, socket": Crasher(words, f"@@{door.SOCKET}"),
    }


def keepers(mib: int) -> dict[str, Crasher]:
    """A crasher for a plain handler of the host, and for the helper that keeps the core before the delegate starts."""
    local: list[str | Path] = [PROGRAM, "crasher", RECORD, str(mib)]
    return {
        "C that writes to a file": Crasher(local, f"|{PROGRAM} store {STORE}/plain {RECORD}"),
        "docker_core_helper that keeps": Crasher(local, f"{HELPER} {PROGRAM} {RECORD}"),
    }


@contextmanager
def serving() -> Iterator[None]:
    """Has a server wait at the kernel's socket meanwhile, whose delegate is that of the image."""
    before = CONFIGURATION.read_text()
    CONFIGURATION.write_text(before + 'DOCKERCOREHELPER_DELEGATE="/usr/bin/latency /out/r"\n')
    door.start_server()
    yield
    door.stop_server()
    CONFIGURATION.write_text(before)


@contextmanager
def keeping() -> Iterator[None]:
    """Has the helper keep cores meanwhile."""
    before = CONFIGURATION.read_text()
    STORE.mkdir(mode=0o700)
    lines = (
        f"DOCKERCOREHELPER_KEEP=undelivered\nDOCKERCOREHELPER_KEEP_DIRECTORY={STORE}\nDOCKERCOREHELPER_KEEP_FREE=1\n"
    )
    CONFIGURATION.write_text(before + lines)
    yield
    CONFIGURATION.write_text(before)


def measure(mib: int, rounds: int, running: dict[str, Crasher]) -> None:
    """Prints a table of medians, and of their ratios to the first row."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
    try:
        for number in range(rounds + 1):
            for name, crasher in running.items():
                result = crasher.crash()
                if number:  # The first is for warming up.
                    times[name].append(result)
    finally:
        for crasher in running.values():
            crasher.stop()
    print(f"\n{rounds} crashes each, {mib} MiB of memory, medians:")
    print(f"{'handler':34} {'to delegate':>12} {'ratio':>6} {'to end of core':>15} {'ratio':>6}")
    floor: tuple[float, float] | None = None
    for name, results in times.items():
        first, last = median(result[0] for result in results), median(result[1] for result in results)
        floor = floor or (first, last)
        print(f"{name:34} {first:9.2f} ms {first / floor[0]:6.2f} {last:12.2f} ms {last / floor[1]:6.2f}")


def memory() -> None:
    """Prints what the helper has resident while a delegate reads slowly."""
    lab.setting("kernel/core_pattern").write_text(f"{HELPER} /bin/sleep 3")
    with subprocess.Popen(["sh", "-c", "kill -SEGV $$"]):
        time.sleep(1)
        found = lab.output("pgrep", "--full", "docker_core_helper -F").splitlines()
        rows = [Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0] for pid in found]
    print(f"\nresident while a crash is in flight: {max(int(row) for row in rows) / 1024:.1f} MiB")


def main() -> None:
    """Sets the lab up, measures, and gives the machine back."""
    try:
        lab.start()
        lab.command("gcc", "-static", "-O1", "-o", PROGRAM, Path(__file__).with_name("latency.c"))
        lab.import_image("latency", {"usr/bin/latency": PROGRAM})
        FLOOR.write_text(FLOOR_SCRIPT)
        FLOOR.chmod(0o755)
        lab.playbook("site.yml", *lab.HERE)
        lab.RECORDS.chmod(0o777)
        measure(0, ROUNDS, crashers(0))
        measure(LARGE_MIB, LARGE_ROUNDS, crashers(LARGE_MIB))
        if door.has_sockets():
            print("\nBelow, the first row is the least that a helper in C could be.")
            with serving():
                measure(0, ROUNDS, in_container(0))
                measure(LARGE_MIB, LARGE_ROUNDS, in_container(LARGE_MIB))
        with keeping():
            print("\nBelow, what is started first is started when the core is on the disk of the host.")
            for mib in KEPT_MIB:
                measure(mib, LARGE_ROUNDS, keepers(mib))
        memory()
    finally:
        lab.setting("kernel/core_pattern").write_text(HELPER)
        lab.stop()


if __name__ == "__main__":
    main()
