"""Virtual machines that do not come up, with a program in qemu's place."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from support import machines

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="has no ssh: make test-vm installs it")

QEMU = """#!{python}
import sys, time
(console,) = [word[5:] for word in sys.argv if word.startswith("file:")]
with open(console, "w") as file:
    file.write("Kernel panic - not syncing")
time.sleep({seconds})
"""


@pytest.fixture(autouse=True)
def _no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the building of a machine out."""
    image = tmp_path / "image"
    image.mkdir()
    monkeypatch.setattr(machines, "build", lambda name: image)
    monkeypatch.setattr(machines, "accelerator", lambda image: [])


@pytest.mark.parametrize(
    ("seconds", "reason"), [(0, "qemu has ended"), (60, "no answer within 2 s")], ids=["ends", "hangs"]
)
def test_a_machine_that_does_not_come_up_fails_with_its_console_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, reason: str
) -> None:
    monkeypatch.setattr(machines, "BOOT_SECONDS", 2)
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(QEMU.format(python=sys.executable, seconds=seconds))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    directory = tmp_path / "machine"
    with pytest.raises(RuntimeError, match=reason) as raised:
        machines.start("trixie", directory)
    assert "Kernel panic - not syncing" in str(raised.value)
    assert machines.processes(directory) == []
    assert not directory.exists()
