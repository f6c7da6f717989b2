"""`make bench VM=trixie`: the helper beside systemd-coredump, which needs a systemd, on a virtual machine.

Adds what it has found to results.json and to the page of the directory that the command line names.
"""

from __future__ import annotations

import io
import json
import platform
import resource
import signal
import sys
import tarfile
import tempfile
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import handlers, measure, page, report
from bench.handlers import HOST, PROGRAM, RECORD, STORE, Handler
from bench.report import Results
from support import door, lab, machines
from support.hosts import HELPER

# An emulated machine takes seconds for a crash.
ROUNDS = {1: 10, 16: 3}
THERE = "/srv/bench"
PARTS = ("helper/docker_core_helper", "helper/compile_library.py", "helper/core_helper", "tests/bench", "tests/support")
PIPE = f"|{HELPER} -F%F -I%I -s%s -t%t -d%d -c%c %P %u %g"
INSTALL = f"""
set -e
cd {THERE}
install -D helper/docker_core_helper {HELPER}
cp -r helper/core_helper {HELPER.parent}
python3 helper/compile_library.py compile {HELPER.parent}/core_helper {HELPER.parent}/core_helper
mkdir -p {lab.RECORDS}
install -m 700 -d {STORE}
cp latency {PROGRAM}
echo 'DOCKERCOREHELPER_DELEGATE="{PROGRAM} {RECORD}"' >{handlers.CONFIGURATION}
echo 512 >/proc/sys/kernel/core_pipe_limit
python3 tests/bench/machine.py there
"""


def there() -> Results:
    """On the machine: crashes of its own processes, whose pattern was that of systemd-coredump."""
    # systemd-coredump obeys the limit.
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    handlers.write_floor()
    systemd = Handler(
        report.SYSTEMD, HOST, lab.setting(door.PATTERN).read_text().rstrip("\n"), report.C_HOST, silent=True
    )
    plain = [
        handler for handler in handlers.plain(PIPE) if handler.place == HOST and not handler.pattern.startswith("@")
    ]
    (storing,) = [handler for handler in handlers.keeping(PIPE) if handler.place == HOST]
    keeping = [storing, Handler("helper at the pipe, keeps, host", HOST, PIPE, storing.name), systemd]
    crasher = handlers.Crasher()
    found: Results = {}
    for part, chosen, lines in (
        ("plain", [*plain, systemd], ""),
        ("kept", keeping, handlers.KEEP + "DOCKERCOREHELPER_RELEASE=kept\n"),
    ):
        with handlers.configured(lines):
            found[part] = [measure.turns(chosen, mib, rounds, {HOST: crasher}) for mib, rounds in ROUNDS.items()]
    crasher.stop()
    version = lab.output("systemctl", "--version").split()[1]
    found["machine"] = {"Linux": platform.release().partition("+")[0].partition("-")[0], "systemd": version}
    return found


def main() -> None:
    """Starts the machine, measures there, adds that to the results, and ends the machine."""
    if sys.argv[1] == "there":
        print(json.dumps(there()))
        return
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, interrupt)
    name, directory = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="bench.") as temporary:
        program = Path(temporary) / "latency"
        handlers.compile_program(program)
        here = Path(temporary) / "machine"
        try:
            machine = machines.start(name, here)
            machine.unpack(archive(program), THERE)
            found: Results = {"name": name, **json.loads(machine.run(INSTALL).splitlines()[-1])}
        finally:
            machines.stop(here)
    page.write(directory, {**page.read(directory), "virtual": found})
    print(page.beside_systemd(found))


def interrupt(number: int, frame: FrameType | None) -> None:
    """Lets the end of a terminal or of a job clean up like Ctrl-C."""
    raise KeyboardInterrupt


def archive(program: Path) -> bytes:
    """What the machine needs."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for part in PARTS:
            file.add(lab.PROJECT / part, part, filter=lambda entry: None if "__pycache__" in entry.name else entry)
        file.add(program, "latency")
    return content.getvalue()


if __name__ == "__main__":
    main()
