"""pattern: the kernel's pattern is a file of the test here; tests/crash has the kernel's own."""

from __future__ import annotations

import os
import posix
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from core_helper import pattern
from core_helper.pattern import Failed, Pattern

PIPE = b"|/opt/bin/docker_core_helper -F%F %P %u %g /opt/bin/uploader.sh"


class Kernel:
    """The files of a kernel, and a socket that it could reach."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = directory / "run" / "core.sock"
        self.path.parent.mkdir(mode=0o700)
        self.file = directory / "core_pattern"
        self.modes = directory / "core_modes"
        self.kept = Path(f"{self.path}.previous")
        self.modes.write_text("file\npipe\nsocket\n")
        self.set(PIPE)
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(self.path))
        monkeypatch.setattr(pattern, "FILE", str(self.file))
        monkeypatch.setattr(pattern, "MODES", str(self.modes))

    def set(self, line: bytes) -> None:
        """Set the pattern, as the kernel shows it."""
        self.file.write_bytes(line + b"\n")

    def get(self) -> bytes:
        """Return the pattern: the first line, as a file keeps the rest of a longer one."""
        return self.file.read_bytes().partition(b"\n")[0]

    @property
    def ours(self) -> bytes:
        return b"@@" + os.fsencode(self.path)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


@pytest.mark.parametrize("before", [PIPE, b"core", b"", b"/var/cores/core.%e \xc3\xa4", b"x" * 127])
def test_the_pattern_is_ours_and_then_that_of_before(kernel: Kernel, before: bytes) -> None:
    kernel.set(before)
    ours = Pattern(str(kernel.path))
    assert ours.install() == before
    assert kernel.get() == kernel.ours
    assert kernel.kept.read_bytes() == before + b"\n" and kernel.kept.stat().st_mode & 0o777 == 0o600
    assert ours.restore()
    assert kernel.get() == before
    assert sorted(path.name for path in kernel.path.parent.iterdir()) == ["core.sock"]


def test_the_file_is_there_before_the_pattern_is_ours(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(line: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pattern, "write", die)
    with pytest.raises(KeyboardInterrupt):
        Pattern(str(kernel.path)).install()
    assert kernel.kept.read_bytes() == PIPE + b"\n"


def test_what_a_killed_server_has_left_is_not_taken_for_the_pattern_of_before(kernel: Kernel) -> None:
    Pattern(str(kernel.path)).install()
    following = Pattern(str(kernel.path))
    assert following.install() == PIPE
    assert following.restore() and kernel.get() == PIPE


def test_the_file_of_a_killed_server_gives_way_to_what_the_host_has_set_since(kernel: Kernel) -> None:
    Pattern(str(kernel.path)).install()
    kernel.set(b"core")
    following = Pattern(str(kernel.path))
    assert following.install() == b"core"
    assert following.restore() and kernel.get() == b"core"


def test_a_pattern_that_somebody_else_has_set_stays(kernel: Kernel) -> None:
    ours = Pattern(str(kernel.path))
    ours.install()
    kernel.set(b"|/other %P")
    assert not ours.restore()
    assert kernel.get() == b"|/other %P" and not kernel.kept.exists()


def test_a_server_whose_pattern_of_before_nobody_knows_serves_and_leaves_its_own(kernel: Kernel) -> None:
    kernel.set(kernel.ours)
    ours = Pattern(str(kernel.path))
    assert ours.install() is None
    with pytest.raises(Failed, match="is missing"):
        ours.restore()
    assert kernel.get() == kernel.ours


@pytest.mark.parametrize(
    "content",
    [b"", b"core", b"core\nmore\n", b"core\n\n", b"co\tre\n", b"co\0re\n", b"x" * 128 + b"\n", b"x" * 300, None],
)
def test_a_line_that_is_no_pattern_is_not_set(kernel: Kernel, content: bytes | None) -> None:
    ours = Pattern(str(kernel.path))
    ours.install()
    kernel.kept.write_bytes(kernel.ours + b"\n" if content is None else content)
    with pytest.raises(Failed, match="does not hold a pattern"):
        ours.restore()
    assert kernel.get() == kernel.ours and kernel.kept.exists()


def as_a_link(kept: Path) -> None:
    kept.rename(kept.with_suffix(".other"))
    kept.symlink_to(kept.with_suffix(".other"))


def as_a_directory(kept: Path) -> None:
    kept.unlink()
    kept.mkdir(mode=0o700)


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept.chmod(0o644),
        lambda kept: kept.chmod(0o620),
        lambda kept: os.chown(kept, 1000, 0),
        lambda kept: kept.parent.chmod(0o770),
        lambda kept: os.chown(kept.parent, 1000, 0),
        as_a_link,
        as_a_directory,
    ],
)
def test_a_file_that_others_than_root_may_have_made_is_not_believed(kernel: Kernel, change: Any) -> None:
    ours = Pattern(str(kernel.path))
    ours.install()
    change(kernel.kept)
    with pytest.raises(Failed, match="only root may"):
        ours.restore()
    assert kernel.get() == kernel.ours


def test_nothing_that_others_have_put_there_is_written_to(kernel: Kernel, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"x")
    for name in (f"{kernel.kept}.part", str(kernel.kept)):
        os.symlink(target, name)
    Pattern(str(kernel.path)).install()
    assert target.read_bytes() == b"x" and not kernel.kept.is_symlink()


def test_a_kernel_without_the_socket_is_not_asked_by_writing(kernel: Kernel) -> None:
    kernel.modes.write_text("file\npipe\n")
    with pytest.raises(Failed, match=r"it takes Linux 6\.17"):
        Pattern(str(kernel.path)).install()
    kernel.modes.unlink()
    with pytest.raises(Failed, match=r"it takes Linux 6\.17"):
        Pattern(str(kernel.path)).install()
    assert kernel.get() == PIPE and not kernel.kept.exists()


def test_a_kernel_that_takes_another_line_has_that_of_before_again(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = posix.write

    def cut_off(descriptor: int, content: bytes) -> int:
        return int(real(descriptor, content[:9] + b"\n" if content.startswith(b"@@") else content))

    monkeypatch.setattr(posix, "write", cut_off)
    with pytest.raises(Failed, match="was set to"):
        Pattern(str(kernel.path)).install()
    assert kernel.get() == PIPE and not kernel.kept.exists()


def test_a_kernel_that_refuses_has_that_of_before(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = posix.write

    def refuse(descriptor: int, content: bytes) -> int:
        if content.startswith(b"@@"):
            raise OSError(22, "Invalid argument")
        return int(real(descriptor, content))

    monkeypatch.setattr(posix, "write", refuse)
    with pytest.raises(OSError, match="Invalid"):
        Pattern(str(kernel.path)).install()
    assert kernel.get() == PIPE and not kernel.kept.exists()


def test_a_pattern_that_could_not_be_given_back_is_not_replaced(kernel: Kernel) -> None:
    kernel.set(b"|/opt/x \x07")
    with pytest.raises(Failed, match="could not be given back"):
        Pattern(str(kernel.path)).install()
    assert kernel.get() == b"|/opt/x \x07"


def test_a_path_that_the_kernel_would_not_follow_is_refused(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(kernel.path.parent)
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "core.sock").touch()
    for path, why in (
        (tmp_path / "link" / "core.sock", "symbolic link"),
        (tmp_path / "missing" / "core.sock", "No such file"),
        (tmp_path / "a b" / "core.sock", "name another path"),
        (Path(f"/{'x' * 126}"), "name another path"),
    ):
        with pytest.raises(Failed, match=why):
            Pattern(str(path)).install()
    kernel.path.parent.chmod(0o777)
    with pytest.raises(Failed, match="only root may own and write"):
        Pattern(str(kernel.path)).install()
    assert kernel.get() == PIPE
