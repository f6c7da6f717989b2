"""The kernel's values as files of a directory, on which the module core_pattern is run for real."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import IO, Any

import pytest
from support.project import load, shared

MODULE = Path(__file__).resolve().parents[2] / "plugins/modules/core_pattern.py"
PATTERN = "|/opt/bin/docker_core_helper %P %u %g"


class Kernel:
    """The kernel's values and the files beside them, in a directory."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Make a kernel that nobody has set up."""
        self.module = load(MODULE)
        self.live_values, self.file_tools = shared("kernel"), shared("files")
        self.capture = capture
        self.host = root / "host"
        self.host.mkdir()
        monkeypatch.setattr(shared("next_boot"), "ROOT", str(self.host))
        self.root = root = root / "kernel"
        root.mkdir()
        self.record = root / "previous.json"
        self.sysctl_file = root / "60-docker-core-helper.conf"
        self.written: list[str] = []
        self.refuses: str | None = None
        self.set("core", "0")
        monkeypatch.setattr(self.live_values, "KERNEL", str(root))
        monkeypatch.setattr(self.live_values, "open", self.open, raising=False)
        # Ansible collects the warnings of all runs of this process.
        self.warned: list[str] = []
        monkeypatch.setattr(self.module.AnsibleModule, "warn", self.warn)

    def open(self, path: str | int, mode: str = "r", **options: Any) -> IO[Any]:
        """Open a file as the module does; keep in mind which values of the kernel it writes."""
        name = Path(str(path)).name
        if mode == "w" and name in ("core_pattern", "core_pipe_limit"):
            if name == self.refuses:
                raise OSError(errno.EINVAL, "Invalid argument")
            self.written.append(name)
        return open(path, mode, **options)

    def warn(self, text: str) -> None:
        """Take a warning of the module."""
        self.warned.append(text)

    def set(self, pattern: str, limit: str) -> None:
        """Set the live values as somebody else would."""
        (self.root / "core_pattern").write_text(pattern + "\n")
        (self.root / "core_pipe_limit").write_text(limit + "\n")

    @property
    def live(self) -> tuple[str, str]:
        """The live values."""
        pattern, limit = ((self.root / name).read_text().rstrip("\n") for name in ("core_pattern", "core_pipe_limit"))
        return pattern, limit

    def run(self, state: str = "present", check: bool = False, **changed: object) -> dict[str, Any]:
        """Run the module and return its result."""
        parameters = {
            "state": state,
            "pattern": PATTERN,
            "pipe_limit": 64,
            "record": str(self.record),
            "sysctl_file": str(self.sysctl_file),
            "_ansible_check_mode": check,
            **changed,
        }
        self.warned.clear()
        testing = pytest.importorskip("ansible.module_utils.testing")
        with testing.patch_module_args(parameters), pytest.raises(SystemExit):
            self.module.main()
        result: dict[str, Any] = json.loads(self.capture.readouterr().out.splitlines()[-1])
        return result

    def files(self) -> dict[str, str]:
        """Return all files with their contents."""
        return {path.name: path.read_text() for path in self.root.iterdir()}
