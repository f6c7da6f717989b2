"""tests/molecule.sh, with a stand-in for molecule: what is there for the next action, and what is given back when."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.project import PROJECT

# It remembers its actions at home. The lab, or the machine, begins with "converge" and ends with "cleanup".
MOLECULE = """#!/bin/sh
echo "$*" >>"$HOME/actions"
{ echo "$1 in $HOME:"; cat "$HOME/actions"; } | tr '\\n' ' ' >>log
echo >>log
case $1 in
converge) mkdir -p "${VM_DIRECTORY:-LAB}" ;;
cleanup | destroy) rm -rf "${VM_DIRECTORY:-LAB}" ;;
hang) touch hangs; exec sleep 60 ;;
*) exit 3 ;;
esac
"""


class Clone:
    """A directory with the script and the stand-in."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make it; what the script has in /var/lib is here, too."""
        self.directory = directory
        self.lab, self.home = directory / "var/core-lab", directory / ".cache/molecule"
        self.script = directory / "tests/molecule.sh"
        text = (PROJECT / "tests/molecule.sh").read_text()
        assert "/var/lib/" in text
        self.write(self.script, text.replace("/var/lib/", f"{directory}/var/"))
        self.write(directory / "bin/molecule", MOLECULE.replace("LAB", str(self.lab)))
        monkeypatch.setenv("PATH", str(directory / "bin"), prepend=":")
        monkeypatch.setenv("TMPDIR", str(directory))

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Write a program."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *words: str, status: int = 0, **variables: str) -> str:
        """Run the script; returns what it says."""
        result = subprocess.run(
            [self.script, *words], env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (status, "")
        return result.stdout

    def log(self) -> list[str]:
        """Return each call of molecule: its action, its home, and all that was done with that home."""
        return [line.rstrip() for line in (self.directory / "log").read_text().splitlines()]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A clone of the script."""
    return Clone(tmp_path, monkeypatch)


def test_an_action_finds_what_the_one_before_has_left_until_the_machine_is_given_back(clone: Clone) -> None:
    assert "make molecule ARGS=cleanup" in clone.run("default", "converge", "--", "-v")
    assert clone.run("default", "cleanup") == ""
    # Not every action takes more options than this one: login does not.
    option = "--scenario-name=default"
    assert clone.log()[1] == f"cleanup in {clone.home}: converge {option} -- -v cleanup {option}"
    assert not clone.home.exists()


def test_an_action_that_fails_gives_nothing_back(clone: Clone) -> None:
    clone.run("default", "converge")
    assert "make molecule ARGS=cleanup" in clone.run("default", "verify", status=3)
    assert clone.lab.exists() and clone.home.exists()


def test_what_somebody_else_has_given_back_is_not_remembered(clone: Clone) -> None:
    clone.run("default", "converge")
    clone.lab.rmdir()
    clone.run("default", "converge")
    assert clone.log()[0] == clone.log()[1]


def test_each_virtual_machine_has_its_own_memory(clone: Clone) -> None:
    for machine in ("bookworm", "trixie"):
        said = clone.run("vm", "converge", VM_MACHINE=machine)
        assert f"make test-vm VM={machine} ARGS=destroy" in said
    assert clone.run("vm", "destroy", VM_MACHINE="bookworm") == ""
    homes = clone.directory / "var/core-lab-vm"
    assert [path.relative_to(homes) for path in homes.glob("*/machine")] == [Path("trixie/machine")]
    clone.run("vm", "destroy", VM_MACHINE="trixie")
    assert not homes.exists()


def test_a_whole_run_that_fails_cleans_up_and_forgets(clone: Clone) -> None:
    clone.run("default", "converge")
    clone.run(status=3)
    _, whole, cleanup = clone.log()
    assert whole.startswith("test in ") and str(clone.home) not in whole
    assert cleanup.startswith(f"cleanup in {whole.split()[2]} ") and not clone.lab.exists()
    assert not Path(whole.split()[2].rstrip(":")).exists()


def test_ctrl_c_in_a_whole_run_cleans_up(clone: Clone) -> None:
    clone.run("default", "converge")
    clone.write(clone.directory / "bin/molecule", MOLECULE.replace("LAB", str(clone.lab)).replace("hang)", "test)"))
    # Where these tests run in the background, the signal is ignored, and a shell cannot change that.
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([clone.script], start_new_session=True, preexec_fn=heeds)
    while not (clone.directory / "hangs").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert clone.log()[-1].startswith("cleanup in ") and not clone.lab.exists()
