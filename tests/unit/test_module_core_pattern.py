"""The module that sets the kernel's values, run for real on files in a temporary directory."""

from __future__ import annotations

import errno
import importlib.util
import json
from pathlib import Path
from typing import IO, Any

import pytest

testing = pytest.importorskip("ansible.module_utils.testing")

MODULE = Path(__file__).resolve().parents[2] / "roles/docker_core_helper/library/core_pattern.py"
PATTERN = "|/opt/bin/docker_core_helper %P %u %g"
APPORT = "|/usr/share/apport/apport -p%p -s%s"


class Kernel:
    """The kernel's values and the files beside them, in a directory."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Make a kernel that nobody has set up."""
        specification = importlib.util.spec_from_file_location("core_pattern", MODULE)
        assert specification is not None
        assert specification.loader is not None
        self.module: Any = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(self.module)
        self.capture = capture
        self.host = root / "host"
        self.host.mkdir()
        monkeypatch.setattr(self.module, "ROOT", str(self.host))
        self.root = root = root / "kernel"
        root.mkdir()
        self.record = root / "previous.json"
        self.sysctl_file = root / "60-docker-core-helper.conf"
        self.written: list[str] = []
        self.refuses: str | None = None
        self.set("core", "0")
        monkeypatch.setattr(self.module, "KERNEL", str(root))
        monkeypatch.setattr(self.module, "open", self.open, raising=False)

    def open(self, path: str | int, mode: str = "r", **options: Any) -> IO[Any]:
        """Open a file as the module does; keep in mind which values of the kernel it writes."""
        name = Path(str(path)).name
        if mode == "w" and name in ("core_pattern", "core_pipe_limit"):
            if name == self.refuses:
                raise OSError(errno.EINVAL, "Invalid argument")
            self.written.append(name)
        return open(path, mode, **options)

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
        with testing.patch_module_args(parameters), pytest.raises(SystemExit):
            self.module.main()
        result: dict[str, Any] = json.loads(self.capture.readouterr().out.splitlines()[-1])
        return result

    def files(self) -> dict[str, str]:
        """Return all files with their contents."""
        return {path.name: path.read_text() for path in self.root.iterdir()}


@pytest.fixture
def kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Return a kernel that nobody has set up."""
    return Kernel(tmp_path, capsys, monkeypatch)


def test_both_values_are_set_live_and_for_the_next_boot(kernel: Kernel) -> None:
    result = kernel.run()
    assert result["changed"]
    assert kernel.live == (PATTERN, "64")
    assert f"kernel.core_pipe_limit = 64\nkernel.core_pattern = {PATTERN}\n" in kernel.sysctl_file.read_text()
    assert result["previous"] == {"core_pattern": "core", "core_pipe_limit": "0"}


def test_the_pattern_is_set_last_and_removed_first(kernel: Kernel) -> None:
    kernel.run()
    assert kernel.written == ["core_pipe_limit", "core_pattern"]
    kernel.written.clear()
    kernel.run("absent")
    assert kernel.written == ["core_pattern", "core_pipe_limit"]


def test_a_second_run_writes_nothing(kernel: Kernel) -> None:
    kernel.run()
    kernel.written.clear()
    result = kernel.run()
    assert (result["changed"], result["diff"], kernel.written) == (False, [], [])


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.parametrize("installed", [False, True])
def test_check_mode_tells_what_a_run_does_and_does_nothing(kernel: Kernel, state: str, installed: bool) -> None:
    if installed:
        kernel.run(pipe_limit=8)
    before = kernel.files()
    predicted = kernel.run(state, check=True)
    assert kernel.files() == before
    real = kernel.run(state)
    assert {**predicted, "invocation": None} == {**real, "invocation": None}
    assert (kernel.files() != before) == real["changed"]


def test_removal_restores_the_values_from_before_the_first_run(kernel: Kernel) -> None:
    kernel.set(APPORT, "16")
    before = kernel.files()
    kernel.run()
    kernel.run(pattern=PATTERN + " /opt/bin/other", pipe_limit=8)
    kernel.run("absent")
    assert kernel.files() == before
    assert not kernel.run("absent")["changed"]


def test_a_pattern_that_somebody_took_over_is_set_again_and_the_record_stays(kernel: Kernel) -> None:
    kernel.run()
    kernel.set(APPORT, "0")
    assert kernel.run()["changed"]
    assert kernel.live == (PATTERN, "64")
    assert kernel.run("absent")["core_pattern"] == "core"


def test_removal_leaves_a_pattern_that_somebody_else_has_set(kernel: Kernel) -> None:
    kernel.run()
    kernel.set(APPORT, "64")
    result = kernel.run("absent")
    assert kernel.live == (APPORT, "64")
    assert "somebody else has set kernel.core_pattern" in str(result["warnings"])
    assert not kernel.sysctl_file.exists()
    assert not kernel.record.exists()


def test_our_own_pattern_is_never_recorded_as_the_one_from_before(kernel: Kernel) -> None:
    kernel.set("|/usr/bin/env A=1 /opt/bin/docker_core_helper %P %u %g /opt/bin/uploader.sh", "0")
    result = kernel.run()
    assert "no values from before are known" in str(result["warnings"])
    kernel.run("absent")
    assert kernel.live == ("core", "0")


def test_a_value_that_reads_back_differently_fails_and_is_taken_back(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kernel.files()
    get = kernel.module.get
    # A kernel that cuts the pattern off.
    monkeypatch.setattr(kernel.module, "get", lambda name: get(name)[:20])
    result = kernel.run()
    assert result["failed"]
    assert "the kernel shows '|/opt/bin/docker_cor'" in result["msg"]
    assert kernel.files() == before


@pytest.mark.parametrize("name", ["core_pattern", "core_pipe_limit"])
@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_value_that_the_kernel_refuses_fails_and_everything_is_taken_back(
    kernel: Kernel, name: str, state: str
) -> None:
    if state == "absent":
        kernel.run()
    before = kernel.files()
    kernel.refuses = name
    result = kernel.run(state)
    assert result["failed"]
    assert f"kernel.{name}: the kernel refuses" in result["msg"]
    assert "Invalid argument" in result["msg"]
    assert kernel.files() == before


def test_the_record_is_there_before_the_kernel_is_changed(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(values: dict[str, str], names: tuple[str, ...]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernel.module, "set_live", stop)
    with pytest.raises(KeyboardInterrupt):
        kernel.run()
    assert json.loads(kernel.record.read_text()) == {"core_pattern": "core", "core_pipe_limit": "0"}
