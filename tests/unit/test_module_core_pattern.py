"""The module that sets the kernel's values, run for real on files in a temporary directory."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from support.kernel_values import PATTERN, Kernel
from support.project import shared

pytest.importorskip("ansible.module_utils.testing")

APPORT = "|/usr/share/apport/apport -p%p -s%s"
SOCKET = "@@/run/systemd/coredumpd/kernel"
REGISTER = "systemd-coredump-register.service"
ONEAGENT = "|/opt/dynatrace/oneagent/agent/rdp -p %p -e %e -s %s"
KEPT = "var/lib/dynatrace/oneagent/agent/backup/original_core_pattern"


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


def test_a_host_without_a_directory_for_such_files_gets_one(kernel: Kernel) -> None:
    kernel.sysctl_file = kernel.sysctl_file.parent / "sysctl.d" / kernel.sysctl_file.name
    umask = os.umask(0o077)
    kernel.run()
    os.umask(umask)
    assert "kernel.core_pattern" in kernel.sysctl_file.read_text()
    assert stat.S_IMODE(kernel.sysctl_file.parent.stat().st_mode) == 0o755


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


@pytest.mark.parametrize(("pattern", "warns"), [("/var/crash/core.%e", True), ("core", False), ("|/bin/false", False)])
def test_who_has_told_the_kernel_where_to_write_files_is_warned_once(kernel: Kernel, pattern: str, warns: bool) -> None:
    kernel.set(pattern, "0")
    kernel.run()
    assert len(kernel.warned) == warns
    assert all(pattern in warning and "no such files are written any more" in warning for warning in kernel.warned)
    kernel.run()
    assert kernel.warned == []


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


@pytest.mark.parametrize("pattern", [APPORT, ONEAGENT, SOCKET, "@/run/a socket"])
def test_removal_restores_the_values_from_before_the_first_run(kernel: Kernel, pattern: str) -> None:
    kernel.set(pattern, "16")
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
    kernel.run("absent")
    assert kernel.live == (APPORT, "64")
    assert "somebody else has set kernel.core_pattern" in str(kernel.warned)
    assert not kernel.sysctl_file.exists()
    assert not kernel.record.exists()


def test_a_socket_that_somebody_else_has_set_is_called_one(kernel: Kernel) -> None:
    kernel.run()
    kernel.set(SOCKET, "0")
    kernel.run("absent")
    assert "the socket /run/systemd/coredumpd/kernel (systemd-coredump); before the first run" in str(kernel.warned)


def test_a_socket_gets_no_cores_any_more_and_is_no_file_name(kernel: Kernel) -> None:
    kernel.set(SOCKET, "0")
    kernel.run()
    (warning,) = kernel.warned
    assert "the socket /run/systemd/coredumpd/kernel (systemd-coredump), which gets no cores any more" in warning
    assert "file name" not in warning
    kernel.run()
    assert kernel.warned == []


@pytest.mark.parametrize("pattern", [SOCKET, "@/run/mine"])
def test_no_core_is_passed_on_to_a_socket_and_nothing_is_changed(kernel: Kernel, pattern: str) -> None:
    kernel.set(pattern, "0")
    before = kernel.files()
    for check in (True, False):
        message = kernel.run(check=check, chain_previous=True)["msg"]
        assert f"cannot pass a core to the socket {pattern.lstrip('@')}" in message and repr(pattern) in message
        assert "name a program of this host in docker_core_helper_chain" in message
        assert "or set docker_core_helper_chain=none; the kernel's values and those of the next boot are as" in message
        assert (kernel.files(), kernel.written, kernel.warned) == (before, [], [])
    # Also once the pattern is ours: what counts is what was there before the first run.
    kernel.run()
    assert "cannot pass a core to the socket" in kernel.run(chain_previous=True)["msg"]
    assert kernel.run("absent", chain_previous=True)["core_pattern"] == pattern


@pytest.mark.parametrize("pattern", [APPORT, "core", "@relative", "/var/cores/@@/core"])
def test_what_is_no_socket_can_be_passed_on_to_or_is_not_there(kernel: Kernel, pattern: str) -> None:
    kernel.set(pattern, "0")
    assert kernel.run(chain_previous=True)["changed"]


def test_our_own_pattern_is_never_recorded_as_the_one_from_before(kernel: Kernel) -> None:
    kernel.set("|/usr/bin/env A=1 /opt/bin/docker_core_helper %P %u %g /opt/bin/uploader.sh", "0")
    kernel.run()
    assert "no values from before are known" in str(kernel.warned)
    kernel.run("absent")
    assert kernel.live == ("core", "0")


def test_a_value_that_reads_back_differently_fails_and_is_taken_back(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kernel.files()
    get = kernel.live_values.get
    # A kernel that cuts the pattern off.
    monkeypatch.setattr(kernel.live_values, "get", lambda *arguments: get(*arguments)[:20])
    result = kernel.run()
    assert result["failed"]
    assert "the kernel shows '|/opt/bin/docker_cor'" in result["msg"]
    assert kernel.files() == before


def test_a_socket_that_is_read_back_is_called_one(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    get = kernel.live_values.get
    # Whoever registers a socket at the same moment.
    monkeypatch.setattr(kernel.live_values, "get", lambda name, *_: SOCKET if name == "core_pattern" else get(name))
    shows = f"but the kernel shows {SOCKET!r}, the socket /run/systemd/coredumpd/kernel (systemd-coredump)"
    assert shows in kernel.run()["msg"]


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


def test_what_cannot_be_brought_back_is_named_and_its_record_stays(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel takes nothing, and then the disk is full: two failures, and neither hides the other.
    kernel.refuses = "core_pattern"
    real = kernel.file_tools.os.replace
    written = []

    def replace(source: str, target: str) -> None:
        written.append(Path(target).name)
        if written.count(kernel.sysctl_file.name) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    kernel.sysctl_file.write_text(f"{shared('places').WRITTEN}\n")
    monkeypatch.setattr(kernel.file_tools.os, "replace", replace)
    message = kernel.run()["msg"]
    assert "kernel.core_pattern: the kernel refuses" in message
    assert f"could not be brought back: {kernel.sysctl_file}: No space left on device" in message
    assert kernel.record.exists()
    assert not list(kernel.root.glob(".*"))


def test_a_file_that_cannot_be_written_is_named_and_leaves_no_other_one(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kernel.files()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kernel.file_tools.os, "fsync", full)
    message = kernel.run()["msg"]
    assert message.startswith(
        f"{kernel.record}: No space left on device; the kernel's values and those of the next boot are"
    )
    assert kernel.files() == before


@pytest.mark.parametrize(
    "text", ["{", "[]", "7", '{"core_pattern": "core"}', '{"core_pattern": 1, "core_pipe_limit": "0"}']
)
@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_record_that_is_damaged_is_named_with_the_remedy(kernel: Kernel, text: str, state: str) -> None:
    kernel.run()
    kernel.record.write_text(text)
    before = kernel.files()
    message = kernel.run(state)["msg"]
    assert message.startswith(
        f"{kernel.record} does not hold the values from before the first run any more: restore it, or"
    )
    assert message.endswith("; nothing was changed")
    assert kernel.files() == before


def test_the_record_is_there_before_the_kernel_is_changed(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(values: dict[str, str], names: tuple[str, ...]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernel.live_values, "set_live", stop)
    with pytest.raises(KeyboardInterrupt):
        kernel.run()
    assert json.loads(kernel.record.read_text()) == {"core_pattern": "core", "core_pipe_limit": "0"}


# Other owners of the pattern: the host is a made-up tree.

SYSCTL = "etc/sysctl.d/99-kernel_core_pattern.conf"
HARDENED = "# STIG\nkernel.core_pattern = |/bin/false\nkernel.kptr_restrict = 1\n"
TAKE: dict[str, Any] = {"conflicts": "take_over"}


def add(kernel: Kernel, path: str, content: str) -> Path:
    """Put a file into the host."""
    file = kernel.host / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def systemd(kernel: Kernel) -> None:
    """Have systemd run on the host."""
    (kernel.host / "run/systemd/system").mkdir(parents=True)


def link(kernel: Kernel, path: str, target: str) -> Path:
    """Put a symbolic link into the host."""
    file = kernel.host / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(target)
    return file


def tree(kernel: Kernel) -> dict[str, tuple[str, int]]:
    """Return all of the host and the kernel: what each file holds, or where each link leads, and its mode."""
    found = {}
    for top in (kernel.host, kernel.root):
        for path in sorted(top.rglob("*")):
            if path.is_symlink():
                found[str(path)] = (str(path.readlink()), 0)
            elif path.is_file():
                found[str(path)] = (path.read_bytes().decode("latin-1"), path.stat().st_mode)
    return found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (SYSCTL, "kernel.core_pattern = |/bin/false"),
        (SYSCTL, "kernel/core_pattern=|/bin/false"),
        (SYSCTL, "-kernel.core_pattern =|/bin/false"),
        (SYSCTL, "  - kernel.core_pattern=  |/bin/false  "),
        ("run/sysctl.d/61-a.conf", "kernel.core_pattern = |/bin/false"),
        ("usr/local/lib/sysctl.d/61-a.conf", "kernel.core_pattern = |/bin/false"),
        ("usr/lib/sysctl.d/61-a.conf", "kernel.core_pattern = |/bin/false"),
        ("lib/sysctl.d/61-a.conf", "kernel.core_pattern = |/bin/false"),
        ("etc/sysctl.d/a.conf", "kernel.core_pattern = |/bin/false"),
        ("etc/sysctl.conf", "kernel.core_pattern = |/bin/false"),
    ],
)
def test_a_line_that_is_read_later_is_named_and_nothing_is_changed(kernel: Kernel, path: str, line: str) -> None:
    file = add(kernel, path, f"# a comment\n{line}\n")
    before = tree(kernel)
    result = kernel.run()
    assert result["failed"] and tree(kernel) == before
    assert f"{file}, line 2, sets kernel.core_pattern = |/bin/false and is read" in result["msg"]
    assert "remove that line, or set docker_core_helper_conflicts=take_over" in result["msg"]
    assert "\n" not in result["msg"] and len(result["conflicts"]) == 1
    assert (result["next_boot"], result["next_boot_file"]) == ("|/bin/false", str(file))
    assert (result["live"], result["pipe_limit"]) == ("core", 0)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("usr/lib/sysctl.d/50-coredump.conf", "kernel.core_pattern=|/usr/lib/systemd/systemd-coredump %P\n"),
        ("etc/sysctl.d/10-a.conf", "kernel.core_pattern = x\nkernel.core_pipe_limit = 0\n"),
        (SYSCTL, "#kernel.core_pattern = x\n; kernel.core_pattern = x\n"),
        (SYSCTL, "kernel.core_pattern\nkernel.core_uses_pid = 1\nkernel.core_pattern.x = 1\n"),
        (SYSCTL, f"kernel.core_pattern = {PATTERN}\n"),
        (SYSCTL, f"kernel.core_pattern = x\nkernel.core_pattern = {PATTERN}\n"),
        ("etc/sysctl.d/99-a.conf.dpkg-old", "kernel.core_pattern = x\n"),
        ("etc/sysctl.d/.hidden", "kernel.core_pattern = x\n"),
    ],
)
def test_what_does_not_win_is_no_conflict(kernel: Kernel, path: str, content: str) -> None:
    add(kernel, path, content)
    assert kernel.run()["conflicts"] == []


def test_what_cannot_be_read_at_boot_is_no_conflict(kernel: Kernel) -> None:
    circle = link(kernel, "etc/sysctl.d/70-circle.conf", "70-circle.conf")
    link(kernel, "etc/sysctl.d/71-nowhere.conf", "70-circle.conf/nowhere")
    link(kernel, "etc/sysctl.d/72-no-directory.conf", "73-file.conf/nowhere")
    add(kernel, "etc/sysctl.d/73-file.conf", "\n")
    os.mkfifo(circle.parent / "74-pipe.conf")
    (circle.parent / "75-directory.conf").mkdir()
    link(kernel, "etc/default/apport", "apport")
    assert kernel.run()["conflicts"] == []
    assert kernel.run("absent")["changed"]


def test_a_host_that_cannot_be_looked_at_is_told_without_a_traceback(kernel: Kernel) -> None:
    add(kernel, SYSCTL, "\n")
    kernel.record.mkdir()
    assert kernel.run()["msg"].startswith(f"{kernel.record}: Is a directory; nothing was changed")


def test_a_limit_of_somebody_else_is_a_conflict_too(kernel: Kernel) -> None:
    add(kernel, SYSCTL, "kernel.core_pipe_limit = 0\n")
    assert "line 1, sets kernel.core_pipe_limit = 0" in kernel.run()["msg"]


@pytest.mark.parametrize("mask", ["link", "file"])
def test_a_file_that_is_masked_by_one_of_the_same_name_does_not_count(kernel: Kernel, mask: str) -> None:
    add(kernel, "usr/lib/sysctl.d/99-a.conf", "kernel.core_pattern = x\n")
    if mask == "link":
        link(kernel, "etc/sysctl.d/99-a.conf", "/dev/null")
    else:
        add(kernel, "run/sysctl.d/99-a.conf", "")
    assert kernel.run()["conflicts"] == []


@pytest.mark.parametrize(("runs", "linked", "wins"), [(True, False, False), (True, True, True), (False, True, True)])
def test_sysctl_conf_counts_where_it_is_read(kernel: Kernel, runs: bool, linked: bool, wins: bool) -> None:
    if runs:
        systemd(kernel)
    add(kernel, "etc/sysctl.conf", "kernel.core_pattern = x\n")
    if linked:
        link(kernel, "etc/sysctl.d/99-sysctl.conf", "../sysctl.conf")
    result = kernel.run()
    assert len(result["conflicts"]) == wins
    assert result["next_boot"] == ("x" if wins else "core")


def enable(kernel: Kernel, service: str, how: str) -> None:
    """Enable a service."""
    name = service.partition(".")[0]
    if how == "unit":
        add(kernel, f"usr/lib/systemd/system/{service}", "[Service]\n")
        link(kernel, f"etc/systemd/system/multi-user.target.wants/{service}", f"/usr/lib/systemd/system/{service}")
    else:
        add(kernel, f"etc/init.d/{name}", "#!/bin/sh\n")
        link(kernel, f"etc/rc2.d/S20{name}", f"../init.d/{name}")
        link(kernel, f"etc/rc0.d/K20{name}", f"../init.d/{name}")


@pytest.mark.parametrize("how", ["unit", "script"])
@pytest.mark.parametrize("service", ["apport.service", "abrt-ccpp.service", "memfaultd.service"])
def test_a_service_that_sets_the_pattern_is_named(kernel: Kernel, service: str, how: str) -> None:
    enable(kernel, service, how)
    result = kernel.run()
    assert f"{service} is enabled and sets kernel.core_pattern when it starts: disable it, or set" in result["msg"]
    assert (result["next_boot"], result["next_boot_file"]) == ("", service)


def test_the_service_that_registers_a_socket_is_named_although_no_link_enables_it(kernel: Kernel) -> None:
    # systemd's own units start it.
    unit = add(kernel, f"usr/lib/systemd/system/{REGISTER}", "[Service]\n")
    before = tree(kernel)
    result = kernel.run()
    how = f"mask it, by systemctl mask {REGISTER}, or set docker_core_helper_conflicts=take_over"
    assert f"{REGISTER} is enabled and sets kernel.core_pattern when it starts: {how}" in result["msg"]
    assert (result["next_boot"], result["next_boot_file"], result["next_boot_owner"]) == ("", REGISTER, "")
    assert tree(kernel) == before
    # What is in force is what it has set, if it is its socket, and not that of the program of the same name.
    kernel.set("|/usr/lib/systemd/systemd-coredump %P", "0")
    assert kernel.run()["next_boot"] == ""
    kernel.set(SOCKET, "0")
    result = kernel.run()
    assert (result["next_boot"], result["next_boot_file"]) == (SOCKET, REGISTER)
    assert result["next_boot_owner"] == "the socket /run/systemd/coredumpd/kernel (systemd-coredump)"
    mask = link(kernel, f"etc/systemd/system/{REGISTER}", "/dev/null")
    assert kernel.run(check=True)["conflicts"] == []
    mask.unlink()
    unit.unlink()
    assert kernel.run(check=True)["conflicts"] == []


def test_a_line_of_a_known_owner_names_that_owner(kernel: Kernel) -> None:
    file = add(kernel, "etc/sysctl.conf", f"kernel.core_pattern = {ONEAGENT}\n")
    result = kernel.run()
    assert (
        f"{file}, line 1, sets kernel.core_pattern = {ONEAGENT} (Dynatrace OneAgent) and is read last" in result["msg"]
    )
    assert result["next_boot_owner"] == "Dynatrace OneAgent"
    kernel.run(**TAKE)
    assert f"= {ONEAGENT}" in file.read_text() and kernel.run()["conflicts"] == []
    kernel.run("absent")
    assert file.read_text() == f"kernel.core_pattern = {ONEAGENT}\n"


@pytest.mark.parametrize("path", [KEPT, "opt/dynatrace/oneagent/agent/conf/original_core_pattern"])
def test_oneagent_and_the_helper_do_not_hand_cores_on_to_each_other(kernel: Kernel, path: str) -> None:
    kernel.set(ONEAGENT, "0")
    kept = add(kernel, path, f"{PATTERN}\n")
    before = tree(kernel)
    message = kernel.run(chain_previous=True)["msg"]
    assert f"{kept} names the helper" in message and "docker_core_helper_chain=none" in message
    assert tree(kernel) == before
    assert kernel.run(check=True)["changed"]
    kept.write_text("core\n")
    assert kernel.run(chain_previous=True)["changed"]


def test_a_pattern_of_ours_that_oneagent_keeps_is_told_at_the_removal(kernel: Kernel) -> None:
    kernel.set(APPORT, "0")
    kernel.run()
    kept = add(kernel, KEPT, f"{PATTERN}\n")
    # It got the cores before the first run of neither: only its own file counts.
    assert kernel.run(chain_previous=True)["changed"] is False
    kernel.run("absent")
    assert f"{kept} names the helper, which is removed: write the pattern {APPORT!r} into that file" in str(
        kernel.warned
    )
    kept.write_text(f"{APPORT}\n")
    kernel.run()
    kernel.run("absent")
    assert kernel.warned == []


def test_a_service_that_is_not_enabled_is_no_conflict(kernel: Kernel) -> None:
    enable(kernel, "apport.service", "script")
    add(kernel, "etc/default/apport", "# set this to 0\nenabled=0\n")
    enable(kernel, "abrt-ccpp.service", "unit")
    link(kernel, "etc/systemd/system/abrt-ccpp.service", "/dev/null")
    add(kernel, "etc/init.d/abrt-ccpp", "#!/bin/sh\n")
    assert kernel.run()["conflicts"] == []


def test_with_systemd_a_script_that_has_a_unit_does_not_count(kernel: Kernel) -> None:
    systemd(kernel)
    enable(kernel, "apport.service", "script")
    assert len(kernel.run()["conflicts"]) == 1
    add(kernel, "usr/lib/systemd/system/apport.service", "[Service]\n")
    assert kernel.run()["conflicts"] == []


def make_conflict(kernel: Kernel, kind: str) -> Path:
    """Make somebody else win at the next boot, and return the file or link that does it."""
    if kind == "later file":
        return add(kernel, SYSCTL, HARDENED)
    if kind == "last file":
        file = add(kernel, "etc/sysctl.d/zzz.conf", "# caf\u00e9\r\n" + HARDENED.replace("\n", "\r\n"))
        file.chmod(0o640)
        return file
    if kind == "sysctl.conf":
        link(kernel, "etc/sysctl.d/99-sysctl.conf", "../sysctl.conf")
        return add(kernel, "etc/sysctl.conf", HARDENED + "kernel.core_pipe_limit=0")
    if kind == "static unit":
        add(kernel, f"usr/lib/systemd/system/{REGISTER}", "[Service]\n")
        (kernel.host / "etc/systemd/system").mkdir(parents=True)
        return kernel.host / f"etc/systemd/system/{REGISTER}"
    enable(kernel, "apport.service", kind)
    return (
        kernel.host
        / {
            "unit": "etc/systemd/system/multi-user.target.wants/apport.service",
            "script": "etc/rc2.d/S20apport",
        }[kind]
    )


KINDS = ["later file", "last file", "sysctl.conf", "unit", "script", "static unit"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_taken_over_is_given_back(kernel: Kernel, kind: str) -> None:
    file = make_conflict(kernel, kind)
    before = tree(kernel)
    predicted = kernel.run(check=True, **TAKE)
    assert tree(kernel) == before
    result = kernel.run(**TAKE)
    assert result["changed"] and len(result["conflicts"]) >= 1
    assert {**predicted, "invocation": None} == {**result, "invocation": None}
    if kind == "later file":
        # Least intrusive: a name that is read later is enough.
        assert file.read_text() == HARDENED
        assert "kernel.core_pattern = |/opt" in (kernel.root / "zz-docker-core-helper.conf").read_text()
        assert not kernel.sysctl_file.exists()
    elif kind in ("last file", "sysctl.conf"):
        assert "removal gives it back: kernel.core_pattern = |/bin/false" in file.read_text()
        assert "\nkernel.kptr_restrict = 1" in file.read_text()
        assert kernel.sysctl_file.exists()
    elif kind == "static unit":
        assert os.readlink(file) == "/dev/null"
    else:
        assert not file.is_symlink()
    again = kernel.run(**TAKE)
    assert (again["changed"], again["conflicts"]) == (False, [])
    assert not kernel.run()["changed"]
    kernel.run("absent", check=True)
    assert kernel.warned == []
    kernel.run("absent")
    assert kernel.warned == []
    assert tree(kernel) == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_boot_is_ours_after_the_takeover(kernel: Kernel, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.sysctl_file = kernel.host / "etc/sysctl.d/60-docker-core-helper.conf"
    kernel.sysctl_file.parent.mkdir(parents=True)
    make_conflict(kernel, kind)
    kernel.run(**TAKE)
    found = kernel.run()
    assert (found["next_boot"], found["conflicts"]) == (PATTERN, [])
    name = "zz-docker-core-helper.conf" if kind == "later file" else "60-docker-core-helper.conf"
    assert found["next_boot_file"] == str(kernel.sysctl_file.with_name(name))


def test_the_diff_shows_what_is_taken_over(kernel: Kernel) -> None:
    make_conflict(kernel, "last file")
    make_conflict(kernel, "unit")
    shown = {diff["after_header"]: diff["after"] for diff in kernel.run(check=True, **TAKE)["diff"]}
    assert "took this over" in shown[str(kernel.host / "etc/sysctl.d/zzz.conf")]
    assert shown["apport.service"] == "disabled\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", ["disable", "write", "write_own_files", "set_live"])
def test_a_takeover_that_was_interrupted_is_given_back(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, kind: str, stop: str
) -> None:
    make_conflict(kernel, kind)
    before = tree(kernel)
    with monkeypatch.context() as patch:

        def interrupt(*arguments: object, **options: object) -> None:
            # The record is written by the same function as the files of others.
            if stop == "write" and arguments[1] == str(kernel.record):
                write(*arguments, **options)
            else:
                raise KeyboardInterrupt

        owners = {"disable": kernel.module.Takeover, "set_live": kernel.live_values, "write": kernel.file_tools}
        owner, write = owners.get(stop, kernel.module.Change), kernel.file_tools.write
        patch.setattr(owner, stop, interrupt)
        try:
            kernel.run(**TAKE)
        except KeyboardInterrupt:
            kernel.capture.readouterr()
    assert "taken_over" in kernel.record.read_text()
    kernel.run("absent")
    assert kernel.warned == []
    assert tree(kernel) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_takeover_that_the_kernel_refuses_is_given_back_at_once(kernel: Kernel, kind: str) -> None:
    make_conflict(kernel, kind)
    before = tree(kernel)
    kernel.refuses = "core_pattern"
    assert "the kernel refuses" in kernel.run(**TAKE)["msg"]
    assert tree(kernel) == before


def test_a_line_that_somebody_added_meanwhile_is_not_overruled(kernel: Kernel) -> None:
    file = make_conflict(kernel, "last file")
    kernel.run(**TAKE)
    file.write_bytes(b"kernel.core_pattern = theirs\n" + file.read_bytes())
    after = file.read_bytes()
    kernel.run("absent")
    assert f"{file}, line 1, was added meanwhile: left as it is" in str(kernel.warned)
    assert file.read_bytes() == after


def test_other_changes_of_the_file_stay(kernel: Kernel) -> None:
    file = make_conflict(kernel, "sysctl.conf")
    kernel.run(**TAKE)
    file.write_text("vm.swappiness = 1\n" + file.read_text())
    kernel.run("absent")
    assert kernel.warned == []
    assert file.read_text() == "vm.swappiness = 1\n" + HARDENED + "kernel.core_pipe_limit=0"


@pytest.mark.parametrize("change", ["removed line", "removed file"])
def test_a_file_that_somebody_has_changed_is_told(kernel: Kernel, change: str) -> None:
    file = make_conflict(kernel, "last file")
    kernel.run(**TAKE)
    if change == "removed line":
        file.write_text("# nothing\n")
    else:
        file.unlink()
    result = kernel.run("absent")
    assert f"{file} {'was changed meanwhile' if change == 'removed line' else 'is gone'}" in str(kernel.warned)
    assert not result.get("failed") and (change != "removed line" or file.read_text() == "# nothing\n")


def test_a_service_that_was_removed_meanwhile_is_told(kernel: Kernel) -> None:
    file = make_conflict(kernel, "unit")
    kernel.run(**TAKE)
    file.parent.rmdir()
    kernel.run("absent")
    assert "apport.service was enabled before the first run, and cannot be enabled again" in str(kernel.warned)
    assert not kernel.record.exists()


def test_where_systemd_runs_it_disables_and_enables_the_service(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    systemd(kernel)
    wanted = make_conflict(kernel, "unit")

    def run_command(module: object, words: list[str]) -> tuple[int, str, str]:
        asked.append(words)
        if words[1] == "disable":
            wanted.unlink()
        return 0, "", ""

    monkeypatch.setattr(kernel.module.AnsibleModule, "run_command", run_command)
    kernel.run(check=True, **TAKE)
    assert asked == []
    kernel.run(**TAKE)
    assert not kernel.run(**TAKE)["changed"]
    assert asked == [["systemctl", "disable", "apport.service"]]
    kernel.run("absent")
    assert asked[1:] == [["systemctl", "enable", "apport.service"]]


def test_where_systemd_runs_it_masks_and_unmasks_what_it_cannot_disable(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    systemd(kernel)
    mask = make_conflict(kernel, "static unit")

    def run_command(module: object, words: list[str]) -> tuple[int, str, str]:
        asked.append(words)
        if words[1] == "mask":
            mask.symlink_to("/dev/null")
        else:
            mask.unlink()
        return 0, "", ""

    monkeypatch.setattr(kernel.module.AnsibleModule, "run_command", run_command)
    kernel.run(**TAKE)
    assert not kernel.run(**TAKE)["changed"]
    assert asked == [["systemctl", "mask", REGISTER]]
    kernel.run("absent")
    assert asked[1:] == [["systemctl", "unmask", REGISTER]]


def test_a_unit_of_the_administrator_is_not_removed_with_the_mask(kernel: Kernel) -> None:
    unit = make_conflict(kernel, "static unit")
    unit.write_text("[Service]\n")
    before = tree(kernel)
    assert "File exists" in kernel.run(**TAKE)["msg"]
    assert tree(kernel) == before


def test_a_service_that_systemd_cannot_disable_fails_and_everything_is_taken_back(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd(kernel)
    make_conflict(kernel, "unit")
    make_conflict(kernel, "last file")
    before = tree(kernel)
    monkeypatch.setattr(kernel.module.AnsibleModule, "run_command", lambda *_: (1, "", "no bus\n"))
    assert "systemctl disable apport.service failed: no bus" in kernel.run(**TAKE)["msg"]
    assert tree(kernel) == before


def test_a_conflict_that_comes_after_the_first_run_is_taken_over_too(kernel: Kernel) -> None:
    kernel.run()
    make_conflict(kernel, "last file")
    assert "zzz.conf" in kernel.run()["msg"]
    kernel.run(**TAKE)
    make_conflict(kernel, "unit")
    kernel.run(**TAKE)
    record = json.loads(kernel.record.read_text())
    assert (record["core_pattern"], list(record["taken_over"]["services"])) == ("core", ["apport.service"])
    assert len(record["taken_over"]["lines"]) == 1


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("core", []),
        ("|{handler} %P %u -- %E", ["{handler}", "%P", "%u", "--", "%E"]),
        ("|{handler}.missing %P", []),
        ("|/bin/false", []),
        ("|/bin/true %P", []),
        ("|", []),
        (PATTERN, []),
        ("|/usr/bin/env A=1 /opt/bin/docker_core_helper %P %u %g", []),
    ],
)
def test_the_handler_from_before_is_told_before_and_after_the_first_run(
    kernel: Kernel, pattern: str, words: list[str]
) -> None:
    handler = add(kernel, "handler", "")
    handler.chmod(0o755)
    kernel.set(pattern.format(handler=handler), "0")
    expected = [word.format(handler=handler) for word in words]
    assert kernel.run(check=True)["previous_handler"] == expected
    kernel.run()
    assert kernel.run()["previous_handler"] == expected


def test_the_next_boot_of_a_bare_host_is_the_value_of_the_kernel(kernel: Kernel) -> None:
    result = kernel.run(check=True)
    assert (result["next_boot"], result["next_boot_file"]) == ("core", "")


def test_the_helper_itself_is_never_the_handler_from_before(kernel: Kernel) -> None:
    helper = add(kernel, "opt/docker_core_helper", "")
    helper.chmod(0o755)
    assert kernel.live_values.handler_of(f"|{helper} %P") == []


def test_a_file_of_ours_under_the_other_name_is_no_conflict_and_goes(kernel: Kernel) -> None:
    kernel.sysctl_file = kernel.host / "etc/sysctl.d/60-docker-core-helper.conf"
    content = (
        "# Written by the Ansible role docker_core_helper; for long\nkernel.core_pattern = |/old/docker_core_helper\n"
    )
    left = add(kernel, "etc/sysctl.d/zz-docker-core-helper.conf", content)
    assert kernel.run()["conflicts"] == []
    assert not left.exists() and kernel.sysctl_file.exists()


@pytest.mark.parametrize("name", ["60-docker-core-helper.conf", "zz-docker-core-helper.conf"])
def test_a_file_of_somebody_else_under_a_name_of_ours_is_refused(kernel: Kernel, name: str) -> None:
    kernel.sysctl_file = kernel.host / "etc/sysctl.d/60-docker-core-helper.conf"
    add(kernel, f"etc/sysctl.d/{name}", "kernel.core_pattern = /var/crash/%p\n")
    before, live = tree(kernel), kernel.live
    for check in (True, False):
        result = kernel.run(check=check, conflicts="take_over")
        assert result["failed"]
        assert f"{name} was written by somebody else, and would be lost: move its lines" in result["msg"]
        assert (tree(kernel), kernel.live) == (before, live)


def test_files_that_others_could_write_are_told_and_repaired(kernel: Kernel) -> None:
    kernel.run()
    before = kernel.files()
    for path in (kernel.record, kernel.sysctl_file):
        path.chmod(0o666)
        told = kernel.run(check=True)
        assert [step["after_header"] for step in told["diff"]] == [str(path)]
        assert "-rw-rw-rw-" in told["diff"][0]["before"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert kernel.run()["changed"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert kernel.files() == before
    assert not kernel.run()["changed"]


def test_a_link_stays_one_when_its_line_is_taken_over(kernel: Kernel) -> None:
    file = add(kernel, "etc/shared.conf", HARDENED)
    entry = link(kernel, "etc/sysctl.d/zzz.conf", "../shared.conf")
    kernel.run(**TAKE)
    assert entry.is_symlink() and "took this over" in file.read_text()
    kernel.run("absent")
    assert entry.is_symlink() and file.read_text() == HARDENED
