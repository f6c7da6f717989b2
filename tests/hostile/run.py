"""`make test-hostile`: every attack of the list, with real containers on this machine; then the machine is as it was."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
from support import door, lab

TIMEOUT = 5
VARIABLES = (
    '{"docker_core_helper_delegate": ["/opt/bin/delegate", "%P", "%u", "%g"],'
    f' "docker_core_helper_timeout": {TIMEOUT}}}'
)


class Results:
    """What came of each attack; one that was tried in several ways has held only if it has held in all."""

    def __init__(self) -> None:
        """Starts with none."""
        self.of: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes the result of a test, which is that of its setup where that did not pass."""
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.rpartition("::")[2].partition("[")[0].removeprefix("test_")
            self.of.setdefault(name, []).append(report.outcome)

    def show(self) -> None:
        """Prints the table."""
        names = sorted(self.of)
        width = max(map(len, names), default=0)
        print(f"\n{'attack':{width}} | result\n{'-' * width}-|-------")
        for name in names:
            outcomes = self.of[name]
            result = next((bad for bad in ("failed", "skipped") if bad in outcomes), "passed")
            print(f"{name.replace('_', ' '):{width}} | {result}{f' ({len(outcomes)})' if len(outcomes) > 1 else ''}")


def main() -> int:
    """Rolls out, attacks, and gives the machine back, also after a failure or Ctrl-C; returns the exit status."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, interrupt)
    results = Results()
    try:
        lab.start()
        lab.playbook("site.yml", *lab.HERE, "-e", VARIABLES)
        door.start()
        here = str(Path(__file__).resolve().parent)
        status = pytest.main(["-v", f"--rootdir={lab.PROJECT}", *(sys.argv[1:] or [here])], plugins=[results])
    finally:
        # Nobody is helped by half a clean-up.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        lab.stop()
        results.show()
    return int(status)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Lets the end of a terminal or of a job clean up like Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
