"""What `make bench` compares: handlers of crashes, the places in which processes crash, and what is left of a crash."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import report
from support import door, lab
from support.hosts import HELPER

# Short paths, and the same ones in the containers: a core pattern has at most 127 bytes.
PROGRAM = lab.DIRECTORY / "latency"
RECORD = lab.RECORDS / "r"
FLOOR = lab.DIRECTORY / "floor"
STORE = lab.DIRECTORY / "cores"
SOCKET_OF_C = lab.DIRECTORY / "c.sock"
SERVER_OF_C = "yardstick"
CONFIGURATION = Path("/etc/docker_core_helper.conf")
KEEP = f"DOCKERCOREHELPER_KEEP=undelivered\nDOCKERCOREHELPER_KEEP_DIRECTORY={STORE}\nDOCKERCOREHELPER_KEEP_FREE=1\n"
PATIENCE = 60.0

HOST, CONTAINER = "host", "container"


@dataclass(frozen=True)
class Handler:
    """What handles a crash: the core pattern that names it, and where the process crashes.

    ``yardstick`` is the name of the handler in C that its times are compared with: one that does the least. A ``silent`` one
    starts no delegate.
    """

    name: str
    place: str
    pattern: str
    yardstick: str
    silent: bool = False


def plain(pipe: str) -> list[Handler]:
    """The handlers that give a core to a delegate at once; ``pipe`` is the core pattern of the rollout."""
    socket, entering, serving = f"@@{door.SOCKET}", f"|{PROGRAM} enter %P {PROGRAM} {RECORD}", f"@@{SOCKET_OF_C}"
    handlers = [
        Handler(report.C_HOST, HOST, f"|{PROGRAM} {RECORD}", report.C_HOST),
        Handler(report.PYTHON, HOST, f"|{FLOOR}", report.C_HOST),
        Handler(report.PIPE_HOST, HOST, pipe, report.C_HOST),
        Handler(report.C_PIPE, CONTAINER, entering, report.C_PIPE),
        Handler(report.PIPE, CONTAINER, pipe, report.C_PIPE),
        Handler(report.C_SOCKET, CONTAINER, serving, report.C_SOCKET),
        Handler(report.SOCKET, CONTAINER, socket, report.C_SOCKET),
        Handler(report.SOCKET_HOST, HOST, socket, report.C_HOST),
    ]
    return [handler for handler in handlers if door.has_sockets() or not handler.pattern.startswith("@@")]


def keeping(pipe: str) -> list[Handler]:
    """The handlers that write a core to the disk of the host before anything else."""
    storing, socket = f"|{PROGRAM} store {STORE}/plain {RECORD}", f"@@{door.SOCKET}"
    handlers = [
        Handler(report.C_STORES, HOST, storing, report.C_STORES),
        Handler(report.PIPE_KEEPS, CONTAINER, pipe, report.C_STORES),
        Handler(report.SOCKET_KEEPS, CONTAINER, socket, report.C_STORES),
    ]
    return [handler for handler in handlers if door.has_sockets() or not handler.pattern.startswith("@@")]


def set_pattern(pattern: str) -> None:
    """Has the kernel start another handler from here on. Raises ``RuntimeError`` where it is not taken as a whole."""
    setting = lab.setting(door.PATTERN)
    setting.write_text(pattern)
    if setting.read_text().rstrip("\n") != pattern:
        raise RuntimeError(f"the kernel has cut off {pattern}")


@contextmanager
def configured(lines: str) -> Iterator[None]:
    """Adds lines to the configuration of the helper meanwhile; the last one of a key counts."""
    before = CONFIGURATION.read_text()
    CONFIGURATION.write_text(before + lines)
    try:
        yield
    finally:
        CONFIGURATION.write_text(before)


@contextmanager
def serving() -> Iterator[None]:
    """Has the servers wait at their sockets meanwhile: that of the helper, and the one in C. Nothing on older kernels."""
    if door.has_sockets():
        door.start_server()
        door.by_kernel(f"exec {PROGRAM} serve {SOCKET_OF_C} {PROGRAM} {RECORD} </dev/null\n")
        door.wait_until(SOCKET_OF_C.exists, "the server in C does not start")
    try:
        yield
    finally:
        door.end(SERVER_OF_C)
        if door.servers():
            door.stop_server()
        shutil.rmtree(door.SOCKET.parent, ignore_errors=True)


@dataclass(frozen=True)
class CrashTimes:
    """When a process crashed, and when it was gone; all times are seconds of the monotonic clock."""

    crashed: float
    gone: float


@dataclass(frozen=True)
class Delivery:
    """When a delegate was started, when its core had ended, and how many bytes it had."""

    started: float
    ended: float
    size: int


def read(text: str) -> tuple[list[CrashTimes], list[Delivery]]:
    """What latency.c has written: each crash and each delivery, in the order of their ends."""
    rows = [line.split() for line in text.splitlines()]
    crashes = [CrashTimes(float(row[1]), float(row[2])) for row in rows if row[0] == "crash"]
    deliveries = [Delivery(float(row[1]), float(row[2]), int(row[3])) for row in rows if row[0] == "delegate"]
    return crashes, deliveries


class Crasher:
    """A program whose children crash on demand, on this machine or in a container."""

    def __init__(self, name: str = "") -> None:
        """Starts it: on this machine, or with a ``name`` in a container of that name."""
        directory = lab.RECORDS / name
        directory.mkdir(exist_ok=True)
        directory.chmod(0o777)
        self.record = directory / RECORD.name
        words = [*(in_container(name) if name else []), PROGRAM, "crasher", RECORD]
        self.process = subprocess.Popen(
            words, env=lab.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def order(self, mib: int = 1, count: int = 1, at: float = 0.0) -> None:
        """Has ``count`` processes crash at once, at a monotonic time or as soon as they can; forgets earlier crashes."""
        assert self.process.stdin
        self.record.write_text("")
        self.record.chmod(0o666)
        self.process.stdin.write(f"{mib} {count} {at:.6f}\n".encode())

    def crashes(self) -> tuple[list[CrashTimes], list[Delivery]]:
        """What became of them, as soon as all of them are gone: by then each delegate that was started has ended."""
        assert self.process.stdout
        if not self.process.stdout.read(1):
            raise RuntimeError("the crasher did not survive the crashes of its children")
        return read(self.record.read_text())

    def crash(self, mib: int, silent: bool = False) -> tuple[CrashTimes, Delivery]:
        """One crash, and its delivery. Raises ``RuntimeError`` where the core did not arrive as a whole.

        Of a ``silent`` handler only the end of the process is known.
        """
        self.order(mib)
        (crash,), deliveries = self.crashes()
        if silent:
            return crash, Delivery(crash.gone, crash.gone, 0)
        limit = time.monotonic() + PATIENCE
        while not deliveries and time.monotonic() < limit:
            time.sleep(0.02)  # The process was let go before its core was delivered.
            deliveries = read(self.record.read_text())[1]
        if len(deliveries) != 1 or deliveries[0].size < mib << 20:
            raise RuntimeError(f"{lab.setting(door.PATTERN).read_text()}: of a core of {mib} MiB, {deliveries} arrived")
        return crash, deliveries[0]

    def stop(self) -> None:
        """Ends the program, and its container with it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(PATIENCE)


class Attacker:
    """A container in which processes crash in loops, as long as the ``with`` lasts; ``crashes`` is their number after it."""

    def __init__(self, loops: int) -> None:
        """Takes how many loops."""
        self.loops = loops
        self.crashes = 0

    def __enter__(self) -> Attacker:
        """Starts them."""
        directory = lab.RECORDS / "attacker"
        directory.mkdir(exist_ok=True)
        directory.chmod(0o777)
        words = [*in_container("attacker"), PROGRAM, "loop", str(self.loops)]
        self.process = subprocess.Popen(words, env=lab.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *failure: object) -> None:
        """Ends them, and the container with them."""
        told, _ = self.process.communicate(timeout=PATIENCE)
        self.crashes = int(told or 0)


def in_container(name: str) -> list[str | Path]:
    """The command that runs a program in a container, which has a directory of its own for records at the usual place."""
    mount = f"--volume={lab.RECORDS / name}:{lab.RECORDS}"
    return ["docker", "run", "--rm", "--interactive", "--label=core-lab", "--network=none", mount, "core-lab/latency"]


def interpreter() -> str:
    """The interpreter of the installed helper."""
    return HELPER.read_text().partition("\n")[0].removeprefix("#!").split()[0]


def compile_program(path: Path) -> None:
    """Compiles the program, which needs no library."""
    lab.command("gcc", "-static", "-O1", "-Wall", "-o", path, Path(__file__).with_name("latency.c"))


def write_floor() -> None:
    """Writes the Python that only executes, for the interpreter of the helper."""
    FLOOR.write_text(f'#!{interpreter()} -IS\nimport posix\nposix.execv("{PROGRAM}", ["latency", "{RECORD}"])\n')
    FLOOR.chmod(0o755)


def set_up() -> str:
    """Rolls out, makes what else there must be in the lab, and returns the core pattern of the rollout."""
    compile_program(PROGRAM)
    lab.import_image("latency", {str(PROGRAM).lstrip("/"): PROGRAM})
    lab.playbook("site.yml", *lab.HERE, "-e", f'{{"docker_core_helper_delegate": ["{PROGRAM}", "{RECORD}"]}}')
    write_floor()
    STORE.mkdir(mode=0o700)
    return lab.setting(door.PATTERN).read_text().rstrip("\n")
