"""Shows that the tests can fail: takes out one defence after the other of the installed helper, and runs its test.

For whoever changes a test or a defence; no part of ``make test``. It takes some fifteen minutes::

    sudo env PATH="$PWD/.venv/bin:$PATH" python tests/hostile/broken.py
"""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
from hostile import run
from hostile.defences import BREAKS
from support import door, lab

LIBRARY = Path("/opt/lib/docker_core_helper")
USAGE = "usage: broken.py [BEGINNING...], for all of these names, or those with one of these beginnings:"


class Failures:
    """The tests that failed."""

    def __init__(self) -> None:
        """Starts with none."""
        self.names: list[str] = []
        self.passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes the result of a test."""
        if report.when == "call":
            if report.failed:
                self.names.append(report.nodeid.rpartition("::")[2])
            else:
                self.passed += 1


def try_out(name: str) -> bool:
    """Takes a defence out, runs its tests, puts it back, and tells whether a test has failed."""
    edits, selection = BREAKS[name]
    (library,) = LIBRARY.glob("*/core_helper")
    kept = lab.DIRECTORY / "kept"
    shutil.copytree(library, kept)
    failures = Failures()
    try:
        for file, old, new in edits:
            source = library / file
            text = source.read_text()
            if text.count(old) != 1:
                print(f"{name}: {file} does not have exactly one {old!r}")
                return False
            source.write_text(text.replace(old, new))
            # Compiled code that is never compared with its source; see the role's library.
            for stem in (source.stem, "bundle"):
                for compiled in (library / "__pycache__").glob(f"{stem}.*"):
                    compiled.unlink()
        door.start()  # Only now: a server keeps what it has loaded.
        with contextlib.redirect_stdout(io.StringIO()):
            suites = [str(lab.PROJECT / "tests" / name) for name in ("hostile", "crash")]
            pytest.main(["-q", "--maxfail=1", f"--rootdir={lab.PROJECT}", "-k", selection, *suites], plugins=[failures])
    finally:
        door.stop()
        shutil.rmtree(library)
        shutil.copytree(kept, library)
        shutil.rmtree(kept)
    print(f"{name}: {len(failures.names)} failed, {failures.passed} passed: {', '.join(failures.names)}", flush=True)
    return bool(failures.names)


def main() -> int:
    """Tries all, or those whose name begins with a word of the command line; returns the exit status."""
    chosen = [name for name in BREAKS if not sys.argv[1:] or name.startswith(tuple(sys.argv[1:]))]
    if not chosen:
        # Also for --help: nothing on this machine is changed for that.
        print(USAGE, *BREAKS, sep="\n  ")
        return 0 if "--help" in sys.argv[1:] else 2
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, run.interrupt)
    try:
        lab.start()
        lab.playbook("site.yml", *lab.HERE, "-e", run.VARIABLES)
        shown = [try_out(name) for name in chosen]
    finally:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        lab.stop()
    return 0 if all(shown) else 1


if __name__ == "__main__":
    sys.exit(main())
