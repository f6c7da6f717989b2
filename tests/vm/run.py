"""`make test-vm`: molecule's scenario "vm" with one virtual machine after the other, and a table of what each has proven.

The words of the command line are the machines' names; ``fleet`` for three of them at once; or ``all`` for everything.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import machines

# Molecule's actions in their order. Those before the tests are checks themselves. Idempotence is not among them: test_sender.py
# has a second rollout that changes nothing, with more that could be changed.
ACTIONS = {
    "create": "boots and answers",
    "check": "dry run with --check --diff",
    "converge": "rollout",
    "verify": "tests",
}

# Three machines at once.
FLEET = "fleet"

# What came of each check.
Results = dict[str, str]


def main() -> int:
    """Tries the machines, prints the table, and returns the exit status."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, interrupt)
    names = sys.argv[1:] or [machines.DEFAULT]
    names = [*machines.MACHINES, FLEET] if names == ["all"] else names
    table: dict[str, Results] = {name: {} for name in names}
    began = time.monotonic()
    try:
        passed = [attempt(name, table[name]) for name in names]
    finally:
        show(table)
    print(f"\n{' '.join(names)}: {(time.monotonic() - began) / 60:.1f} minutes")
    return 0 if all(passed) else 1


def attempt(name: str, results: Results) -> bool:
    """Takes one machine, or the fleet, through all checks, and ends it, also after a failure or Ctrl-C.

    Returns whether it has passed.
    """
    try:
        for machine in machines.MACHINES if name == FLEET else [name]:
            machines.build(machine)
    except subprocess.CalledProcessError as error:
        print(f"{name} cannot be built: {error}", file=sys.stderr)
        results["is built"] = "FAILED"
        return False
    # What molecule, Ansible and pytest keep goes with the machines.
    home = Path(tempfile.mkdtemp(prefix="vm."))
    report = home / "report.xml"
    environment = {**os.environ, "HOME": str(home), "PYTEST_ADDOPTS": f"--junitxml={report} --basetemp={home}/pytest"}
    try:
        if name == FLEET:
            tests = ["pytest", "--verbose", "tests/vm/fleet.py"]
            status = run(tests, {**environment, "FLEET_DIRECTORY": str(home)})
            results |= read(report) or {"starts": "FAILED"}
            return status == 0
        environment |= {"VM_MACHINE": name, "VM_DIRECTORY": str(home / "machine")}
        for action, check in ACTIONS.items():
            began = time.monotonic()
            status = run(["molecule", action, "--scenario-name=vm", "--no-command-borders"], environment)
            checks = read(report) if action == "verify" else {}
            results |= checks or {check: f"{'passed' if status == 0 else 'FAILED'} {time.monotonic() - began:4.0f} s"}
            if status != 0:
                return False
        return True
    finally:
        # Nobody is helped by half a clean-up.
        endings = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
        before = [(number, signal.signal(number, signal.SIG_IGN)) for number in endings]
        for directory in home.glob("*/machine.json"):
            machines.stop(directory.parent)
        shutil.rmtree(home)
        for number, handler in before:
            signal.signal(number, handler)


def run(words: list[str], environment: dict[str, str]) -> int:
    """Runs a program to its end and returns its exit status; if this is interrupted, it ends with all that it has started."""
    # A session of its own, because a signal to this process alone would leave those behind that molecule has started.
    process = subprocess.Popen(
        words, cwd=machines.PROJECT, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGINT)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        finally:
            # Also where somebody presses Ctrl-C once more.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        raise


def read(report: Path) -> Results:
    """What pytest says of each test, without those that have no meaning on the machine."""
    results = {}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        if case.find("skipped") is None:
            bad = case.find("failure") is not None or case.find("error") is not None
            name = case.attrib["name"].removeprefix("test_").replace("_", " ")
            results[name] = f"{'FAILED' if bad else 'passed'} {float(case.attrib['time']):4.0f} s"
    return results


def show(table: dict[str, Results]) -> None:
    """Prints machine x check; a check without a result was not reached, or has no meaning on that machine."""
    checks = list(dict.fromkeys(check for results in table.values() for check in results))
    width = max(map(len, checks), default=0)
    print(f"\n{'':{width}} | {' | '.join(f'{name:16}' for name in table)}")
    print(f"{'-' * width}-|-{'-|-'.join('-' * 17 for _ in table)}")
    for check in checks:
        row = [results.get(check, "-") for results in table.values()]
        print(f"{check:{width}} | {' | '.join(f'{result:16}' for result in row)}")


def interrupt(number: int, frame: FrameType | None) -> None:
    """Lets the end of a terminal or of a job clean up like Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
