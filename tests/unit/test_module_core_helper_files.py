"""The module that installs the helper's files, run for real in a temporary directory."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.project import load, shared
from support.sender_host import COMMENT, PROGRAMS, HostOfSender

basic = pytest.importorskip("ansible.module_utils.basic")
testing = pytest.importorskip("ansible.module_utils.testing")

PROJECT = Path(__file__).resolve().parents[2]
LIBRARY = PROJECT / "plugins/modules"
COMPILER = PROJECT / "helper/compile_library.py"
PYTHON = os.path.realpath(sys.executable)
ENTRY = """\
#!/usr/bin/python3 -IS
import sys

LIBRARY = __file__.rpartition("/")[0] or "."
sys.path.insert(0, LIBRARY)
from core_helper.main import main

main()
"""
MAIN = """\
def main():
    print("docker_core_helper 1.0.0")
"""


class Host:
    """A host in a directory: where its files go, and what the module says when it runs there."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Make a bare host below ``root``."""
        self.module = load(LIBRARY / "core_helper_files.py")
        self.capture = capture
        self.pattern = root / "core_pattern"
        self.pattern.write_text("core\n")
        self.configuration = root / "docker_core_helper.conf"
        self.bin_dir = root / "opt" / "bin"
        self.lib_dir = root / "opt" / "lib" / "docker_core_helper"
        self.entry = self.bin_dir / "docker_core_helper"
        self.library = {"__init__.py": '__version__ = "1.0.0"\n', "main.py": MAIN}
        # Not from the result: Ansible leaves them out where the same process has loaded a plugin of the controller.
        self.warnings: list[str] = []
        monkeypatch.setattr(basic.AnsibleModule, "warn", lambda _, text: self.warnings.append(text))
        monkeypatch.setattr(shared("places"), "CONFIGURATION", str(self.configuration))
        monkeypatch.setattr(shared("usable_host"), "CORE_PATTERN", str(self.pattern))
        monkeypatch.setattr(shared("usable_python"), "OWNER", os.getuid())
        monkeypatch.setattr(shared("usable_python"), "GROUP", os.getgid())

    def run(self, state: str = "present", check: bool = False, **changed: object) -> dict[str, Any]:
        """Run the module and return its result."""
        self.warnings.clear()
        parameters = {
            "state": state,
            "bin_dir": str(self.bin_dir),
            "lib_dir": str(self.lib_dir),
            "python": PYTHON,
            "library": self.library,
            "entry": ENTRY,
            "compiler": COMPILER.read_text(),
            "configuration": "DOCKERCOREHELPER_TIMEOUT=300\n",
            "_ansible_check_mode": check,
            **changed,
        }
        with testing.patch_module_args(parameters), pytest.raises(SystemExit):
            self.module.main()
        result: dict[str, Any] = json.loads(self.capture.readouterr().out.splitlines()[-1])
        return result

    def refused(self, **changed: Any) -> str:
        """Run the module, which must refuse without changing anything, and return why it does."""
        before = self.files()
        result = self.run(**changed)
        assert result.get("failed"), result
        assert self.files() == before
        message: str = result["msg"]
        assert "\n" not in message
        return message

    def files(self) -> dict[str, tuple[int, str | None]]:
        """Return everything there is on the host, with modes and contents."""
        found = {}
        for path in sorted(self.pattern.parent.rglob("*")):
            content = path.read_bytes().hex() if path.is_file() else None
            found[str(path)] = (stat.S_IMODE(path.lstat().st_mode), content)
        return found

    def versions(self) -> list[str]:
        """Return the installed versions of the library."""
        return sorted(path.name for path in self.lib_dir.iterdir() if path.is_dir())


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return a bare host."""
    return Host(tmp_path, capsys, monkeypatch)


def test_the_installed_helper_runs_from_its_version_of_the_library(host: Host) -> None:
    result = host.run()
    assert result["changed"]
    assert subprocess.check_output([host.entry, "--version"], env={}, text=True) == "docker_core_helper 1.0.0\n"
    lines = host.entry.read_text().splitlines()
    assert lines[0] == f"#!{PYTHON} -IS"
    assert f'LIBRARY = "{result["library"]}"' in lines
    assert Path(result["library"]).parent == host.lib_dir
    assert stat.S_IMODE(host.entry.stat().st_mode) == 0o755
    assert stat.S_IMODE(host.configuration.stat().st_mode) == 0o644


def test_the_library_is_compiled_for_good_and_names_its_final_place(host: Host) -> None:
    package = Path(host.run()["library"]) / "core_helper"
    source = package / "main.py"
    os.utime(source, (1, 1))
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r})\n"
    code += "from core_helper.main import main; print(main.__code__.co_filename)"
    before = {path.name: path.stat().st_ino for path in (package / "__pycache__").iterdir()}
    assert len(before) == 3
    assert subprocess.check_output([PYTHON, "-IS", "-c", code], text=True).strip() == str(source)
    assert {path.name: path.stat().st_ino for path in (package / "__pycache__").iterdir()} == before


def install_the_real_one(host: Host) -> dict[str, Any]:
    host.library = {path.name: path.read_text() for path in (PROJECT / "helper/core_helper").glob("*.py")}
    return host.run(entry=(PROJECT / "helper/docker_core_helper").read_text())


def unbundled(result: dict[str, Any]) -> set[str]:
    """Return the modules of the installed library that a start imports one by one."""
    code = f"import sys; sys.path.insert(0, {result['library']!r}); import core_helper.main\n"
    code += "core_helper.load('deliver'); import core_helper.deliver\n"
    code += "print(*[name for name, module in sys.modules.items() if name[:11] == 'core_helper' and module.__spec__])"
    return set(subprocess.check_output([PYTHON, "-BISc", code], text=True).split())


def test_the_modules_of_every_crash_come_out_of_few_files(host: Host) -> None:
    result = install_the_real_one(host)
    assert unbundled(result) == {"core_helper"}
    bundles = list(Path(result["library"]).glob("core_helper/__pycache__/bundle.*"))
    assert len(bundles) == 3
    for name in ("relay", "journal", "fallback"):
        assert not any(f"/{name}.py".encode() in bundle.read_bytes() for bundle in bundles)


@pytest.mark.parametrize("damage", ["removed", "of another Python", "cut off"])
def test_the_helper_runs_without_these_files(host: Host, damage: str) -> None:
    result = install_the_real_one(host)
    for bundle in Path(result["library"]).glob("core_helper/__pycache__/bundle.*"):
        if damage == "removed":
            bundle.unlink()
        elif damage == "cut off":
            bundle.write_bytes(bundle.read_bytes()[:5000])
        else:
            bundle.write_bytes(b"????" + bundle.read_bytes()[4:])
    assert {"core_helper.main", "core_helper.linux", "core_helper.supervisor"} <= unbundled(result)
    assert install_the_real_one(host)["changed"]
    assert unbundled(result) == {"core_helper"}


def test_a_second_run_changes_nothing(host: Host) -> None:
    host.run()
    before = host.files()
    result = host.run()
    assert (result["changed"], result["diff"]) == (False, [])
    assert host.files() == before


def test_modes_do_not_depend_on_the_umask(host: Host) -> None:
    before = os.umask(0o077)
    try:
        result = host.run()
    finally:
        os.umask(before)
    modes = {mode for path, (mode, _) in host.files().items() if "/opt" in path and path != str(host.entry)}
    assert modes == {0o755, 0o644}, result


def test_modes_do_not_depend_on_a_default_acl_either(host: Host, tmp_path: Path) -> None:
    # acl(5): the owner, user 1000, the group, the mask and all others; a default one is there instead of the umask.
    entries = ((0x01, 7, -1), (0x02, 7, 1000), (0x04, 5, -1), (0x10, 7, -1), (0x20, 5, -1))
    content = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", content)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    package = Path(host.run()["library"]) / "core_helper"
    assert {stat.S_IMODE(path.stat().st_mode) for path in package.rglob("*.*")} == {0o644}
    assert not host.run()["changed"]


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.parametrize("installed", [False, True])
def test_check_mode_tells_what_a_run_does_and_does_nothing(host: Host, state: str, installed: bool) -> None:
    if installed:
        host.run()
        host.library["main.py"] += "\n"
    before = host.files()
    predicted = host.run(state, check=True)
    assert host.files() == before
    real = host.run(state)
    assert (predicted["changed"], predicted["diff"]) == (real["changed"], real["diff"])
    assert (host.files() != before) == real["changed"]


def test_the_version_before_stays_and_older_ones_go(host: Host) -> None:
    first = Path(host.run()["library"]).name
    host.library["main.py"] += "# second\n"
    second = Path(host.run()["library"]).name
    assert host.versions() == sorted([first, second])
    host.library["main.py"] += "# third\n"
    third = Path(host.run()["library"]).name
    assert host.versions() == sorted([second, third])


def test_a_changed_configuration_leaves_the_version_before(host: Host) -> None:
    host.run()
    host.library["main.py"] += "# second\n"
    host.run()
    before = host.versions()
    result = host.run(configuration="DOCKERCOREHELPER_TIMEOUT=1\n")
    assert [entry["after_header"] for entry in result["diff"]] == [str(host.configuration)]
    assert host.versions() == before


@pytest.mark.parametrize("damage", ["changed", "removed", "mode", "compiled", "bundle", "compiled mode", "bundle mode"])
def test_a_damaged_library_is_repaired(host: Host, damage: str) -> None:
    package = Path(host.run()["library"]) / "core_helper"
    before = host.files()
    if damage == "changed":
        (package / "main.py").write_text("def main(): pass\n")
    elif damage == "removed":
        (package / "main.py").unlink()
    elif damage == "mode":
        (package / "main.py").chmod(0o666)
    else:
        stem = "main" if damage.startswith("compiled") else "bundle"
        path = next((package / "__pycache__").glob(f"{stem}.*"))
        if damage.endswith("mode"):
            path.chmod(0o666)
        else:
            path.write_bytes(b"compiled by another Python")
    assert host.run(check=True)["changed"]
    assert host.run()["changed"]
    assert host.files() == before
    assert not host.run()["changed"]


def test_a_helper_that_does_not_start_never_replaces_the_old_one(host: Host) -> None:
    host.run()
    host.library["main.py"] = "import a_module_that_nobody_has\n"
    assert "a_module_that_nobody_has" in host.refused()


def test_a_helper_that_does_not_start_leaves_nothing_on_a_bare_host(host: Host) -> None:
    host.library["main.py"] = "import a_module_that_nobody_has\n"
    assert "does not start on this host" in host.refused()


def test_a_library_that_does_not_compile_leaves_nothing(host: Host) -> None:
    host.library["other.py"] = "def\n"
    assert "cannot compile" in host.refused()


def test_a_host_that_is_too_slow_to_compile_the_library_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shared("library").run

    def run(*words: str) -> Any:
        if "compile" in words:
            raise subprocess.TimeoutExpired(words, 60)
        return real(*words)

    monkeypatch.setattr(shared("library"), "run", run)
    assert "has not compiled the helper's library within 60 seconds: run this again when" in host.refused()


def test_the_directories_of_an_interrupted_run_go_with_the_next_removal(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.files()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(host.module.Files, "install_entry", interrupted)
        with pytest.raises(KeyboardInterrupt):
            host.run()
    host.run()
    host.run("absent")
    assert host.files() == before
    assert not host.lib_dir.exists()


def test_a_full_disk_names_the_file_and_leaves_no_other_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.run()
    before = host.files()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(host.module.os, "fsync", full)
    result = host.run(configuration="DOCKERCOREHELPER_TIMEOUT=301\n")
    assert result["msg"] == f"{host.configuration}: No space left on device"
    assert host.files() == before


def test_leftovers_of_an_interrupted_run_go(host: Host) -> None:
    host.run()
    (host.lib_dir / ".new.0123456789ab").mkdir()
    host.library["main.py"] += "# second\n"
    host.run()
    assert ".new.0123456789ab" not in host.versions()


# -- refusals


def test_an_old_kernel_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    release = type("Release", (), {"release": "5.4.0-100-generic"})
    monkeypatch.setattr(host.module.os, "uname", lambda: release)
    assert "runs Linux 5.4.0-100-generic: the helper needs 5.6" in host.refused()


def test_another_system_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert "freebsd14" in host.refused()


def test_a_container_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared("usable_host"), "CORE_PATTERN", "/nonexistent/core_pattern")
    assert "cannot be written" in host.refused()


def test_another_user_than_root_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.module.os, "geteuid", lambda: os.getuid() + 1)
    assert "become root" in host.refused()


@pytest.mark.parametrize("name", ["missing", "old", "incomplete", "exposed", "foreign", "relative/python3", "a b"])
def test_an_unusable_python_is_refused(host: Host, tmp_path: Path, name: str) -> None:
    python = tmp_path / name
    script = {
        "old": "echo 'is Python 3.7, and the helper needs 3.8 or newer' >&2; exit 1",
        "incomplete": "echo 'lacks a module that the helper needs: No module named _ctypes' >&2; exit 1",
    }
    reason = {
        "missing": "is no program on this host",
        "old": "is Python 3.7",
        "incomplete": "No module named _ctypes",
        "exposed": "can be written by everybody",
        "foreign": "does not run",
    }
    if name not in ("missing", "relative/python3"):
        python.write_text(f"#!/bin/sh\n{script[name]}\n" if name in script else "no program\n")
        python.chmod(0o777 if name == "exposed" else 0o755)
    message = host.refused(python=name if "/" in name else str(python))
    assert reason.get(name, "is not an absolute path without spaces") in message
    assert message.startswith("no usable Python: ")
    assert "docker_core_helper_python" in message


def test_a_python_below_a_directory_of_everybody_is_refused(host: Host, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open/python3").symlink_to(PYTHON)
    (tmp_path / "python3").symlink_to("open/python3")
    assert f"{tmp_path}/open can be written by everybody" in host.refused(python=str(tmp_path / "python3"))


def test_directories_that_others_can_write_are_refused(host: Host) -> None:
    host.bin_dir.parent.mkdir()
    host.bin_dir.parent.chmod(0o777)
    assert "cannot hold what the kernel starts as root" in host.refused()
    # Sticky: nobody else can take away what is in it.
    host.bin_dir.parent.chmod(0o1777)
    assert host.run()["changed"]


def test_a_program_that_must_not_be_lent_is_refused(host: Host, tmp_path: Path) -> None:
    program, link, linked = tmp_path / "program", tmp_path / "link", Path("/bin/true").resolve()
    source = "int main(void) { return 0; }"
    subprocess.run(["gcc", "-x", "c", "-static", "-o", program, "-"], input=source, text=True, check=True)
    link.symlink_to(program)
    named = "which docker_core_helper_lend names,"
    for path, told in (
        (tmp_path / "missing", f"{tmp_path}/missing, {named}: No such file or directory: put that program there first"),
        (link, f"{link}, {named} has a symbolic link in its path: name {program}"),
        (tmp_path, f"{tmp_path}, {named} is not an executable file: chmod 0755"),
        (linked, f"{linked}, {named} is not a static program: lend one that is linked statically"),
    ):
        assert host.refused(lent=str(path)) == told
    for mode, told in ((0o757, "must be root's alone: "), (0o644, "is not an executable file: chmod 0755")):
        program.chmod(mode)
        assert told in host.refused(lent=str(program))
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert "is not a static program" in host.refused(lent=str(program))
    subprocess.run(["gcc", "-x", "c", "-static", "-o", program, "-"], input=source, text=True, check=True)
    assert host.run(lent=str(program))["changed"]


@pytest.mark.parametrize("name", ["", "core_helper", "core_helper/__pycache__"])
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_a_version_that_somebody_else_has_put_into_a_sticky_directory_is_refused(host: Host, name: str) -> None:
    host.lib_dir.mkdir(parents=True)
    host.lib_dir.chmod(0o1777)
    version = host.lib_dir / shared("library").version_of(host.library)
    (version / "core_helper/__pycache__").mkdir(parents=True)
    os.chown(version / name, 12345, 12345)
    assert "belongs to user 12345; remove it" in host.refused()


def test_the_search_takes_the_first_usable_python_by_its_stable_name(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, stable = tmp_path / "broken", tmp_path / "python3"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    stable.symlink_to(PYTHON)
    monkeypatch.setattr(
        shared("usable_python"), "PYTHONS", (str(tmp_path / "missing"), str(broken), str(stable), PYTHON)
    )
    assert host.run(python="")["python"] == str(stable)
    monkeypatch.setattr(shared("usable_python"), "PYTHONS", (str(broken),))
    assert f"no usable Python: {broken} no message; install one" in host.refused(python="")


def test_a_second_installation_is_refused(host: Host, tmp_path: Path) -> None:
    host.run()
    assert "has its library in" in host.refused(lib_dir=str(tmp_path / "elsewhere"))
    host.pattern.write_text(f"|{host.entry} %P %u %g\n")
    assert "is already installed as" in host.refused(bin_dir=str(tmp_path / "elsewhere"))


def test_an_incomplete_role_is_refused(host: Host) -> None:
    assert "is the role complete?" in host.refused(library={})
    assert "is the role complete?" in host.refused(entry="#!/bin/sh\n")


# -- removal


def test_removal_leaves_what_was_there_before(host: Host) -> None:
    before = host.files()
    host.run()
    host.library["main.py"] += "# second\n"
    host.run()
    assert host.run("absent")["changed"]
    assert host.files() == before
    assert not host.run("absent")["changed"]


def test_removal_leaves_the_files_and_directories_of_others(host: Host) -> None:
    host.lib_dir.parent.mkdir(parents=True)
    host.run()
    (host.bin_dir / "uploader.sh").write_text("")
    host.run("absent")
    assert [path.name for path in host.bin_dir.iterdir()] == ["uploader.sh"]
    assert list(host.lib_dir.parent.iterdir()) == []


def test_removal_leaves_a_helper_that_it_did_not_install(host: Host) -> None:
    host.bin_dir.mkdir(parents=True)
    host.entry.write_bytes(b"\x7fELF\xff")
    # By hand, as the README tells: that one reads the same file.
    host.configuration.write_text("DOCKERCOREHELPER_DELEGATE=/opt/mine\n")
    result = host.run("absent")
    assert not result["changed"]
    assert "was not installed by this role" in str(host.warnings)
    assert host.entry.exists()
    assert host.configuration.exists()


def test_a_configuration_that_somebody_has_written_by_hand_is_refused(host: Host) -> None:
    host.configuration.write_text("DOCKERCOREHELPER_DELEGATE=/opt/mine\n")
    assert f"{host.configuration} was written by somebody else, and would be lost" in host.refused()
    host.configuration.write_text("# Written by the Ansible role docker_core_helper; long ago\n")
    assert host.run()["changed"]
    # Once the role has written it, it is the role's.
    host.configuration.write_text("DOCKERCOREHELPER_DELEGATE=/opt/mine\n")
    assert host.run()["changed"]


def test_directories_of_others_stay_whatever_their_names(host: Host, tmp_path: Path) -> None:
    """A library's directory that is not ours alone, /usr/lib say: names of twelve digits are common."""
    others = [host.lib_dir / name for name in ("0123456789ab", ".new.0123456789ab")]
    for other in others:
        (other / "core_helper").mkdir(parents=True)
        (other / "precious").write_text("")
    (host.lib_dir / "abcdef012345").symlink_to(tmp_path)
    (host.lib_dir / "abcdef012346").write_text("")
    before = host.files()
    host.run()
    host.library["main.py"] += "# second\n"
    host.run()
    assert host.run("absent")["changed"]
    assert host.files() == before


# -- the sender

UPLOADER = (PROJECT / "container_scripts/uploader.sh").read_text()
MARK = "# Written by the Ansible role docker_core_helper; long ago\n"
SECRET = "not-to-be-shown"
WITH_SENDER = {
    "uploader": UPLOADER,
    "service": f"{MARK}[Service]\nExecStart=/bin/true é\n",
    "timer": f"{MARK}[Timer]\n",
    "credentials": f'{MARK}KEY="{SECRET}-1"\nID="{SECRET}-2"\n',
}


class SenderHost(HostOfSender):
    """The host, with programs in place of those that would change this machine."""

    def __init__(self, host: Host, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the programs, and see what the module writes into the log of the host."""
        super().__init__(root, host.lib_dir, monkeypatch)
        self.host = host
        self.bare = self.files()
        self.logged: list[str] = []
        monkeypatch.setattr(basic.AnsibleModule, "log", lambda *words, **more: self.logged.append(f"{words} {more}"))

    def run(self, state: str = "present", check: bool = False, **changed: object) -> dict[str, Any]:
        """Run the module with a sender. Nothing that it returns or logs may have a value of the credentials."""
        result = self.host.run(state, check, **{**WITH_SENDER, **changed})
        assert self.logged
        assert SECRET not in json.dumps(result) + "".join(self.logged)
        return result

    def without(self, **changed: Any) -> dict[str, Any]:
        """Run the module without a sender."""
        return self.host.run(**changed)

    def files(self) -> dict[str, tuple[int, str | None]]:
        """Return everything there is on the host, but for what the programs have noted."""
        return {path: found for path, found in self.host.files().items() if not path.endswith("/said")}


@pytest.fixture
def sender(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SenderHost:
    """Return a bare host with systemd."""
    return SenderHost(host, tmp_path, monkeypatch)


def headers(result: dict[str, Any]) -> list[str]:
    """Return what a run has changed, by the last part of its name."""
    return [step["after_header"].rpartition("/")[2] for step in result["diff"]]


PARTS = [
    "uploader.sh",
    "docker-core-helper-sender.service",
    "docker-core-helper-sender.timer",
    "docker_core_helper.credentials",
    "docker-core-helper-sender.timer",
    "user docker-core-helper",
]
STARTS = [
    "systemctl daemon-reload",
    "systemctl enable docker-core-helper-sender.timer",
    "systemctl restart docker-core-helper-sender.timer",
]
STOPS = [
    "systemctl disable --now docker-core-helper-sender.timer",
    "systemctl stop docker-core-helper-sender.service",
    "systemctl reset-failed docker-core-helper-sender.service",
    "systemctl daemon-reload",
    "userdel docker-core-helper",
]


def test_the_sender_comes_last_with_all_its_parts(sender: SenderHost) -> None:
    predicted = sender.run(check=True)
    assert (sender.files(), sender.said()) == (sender.bare, [])
    result = sender.run()
    assert (result["changed"], result["diff"]) == (True, predicted["diff"])
    assert headers(result) == ["library", "docker_core_helper.conf", "docker_core_helper", *PARTS]
    made, *rest = sender.said()
    assert made.startswith("useradd --system --no-create-home --home-dir /nonexistent --shell /")
    assert made.endswith(f"--comment {COMMENT} --user-group docker-core-helper")
    assert rest == STARTS
    for path, mode, name in (
        (sender.uploader, 0o755, "uploader"),
        (sender.service, 0o644, "service"),
        (sender.timer, 0o644, "timer"),
        (sender.credentials, 0o600, "credentials"),
    ):
        assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (mode, WITH_SENDER[name])


def test_a_second_run_with_a_sender_changes_nothing(sender: SenderHost) -> None:
    sender.run()
    sender.said()
    before = sender.files()
    result = sender.run()
    assert (result["changed"], result["diff"], sender.said()) == (False, [], [])
    assert sender.files() == before


@pytest.mark.parametrize("state", ["absent", "without"])
def test_nothing_of_the_sender_is_left(sender: SenderHost, state: str) -> None:
    sender.without()
    plain = sender.files()
    sender.run()
    sender.said()
    changed: dict[str, Any] = {"state": "absent"} if state == "absent" else {}
    before = sender.files()
    predicted = sender.without(check=True, **changed)
    assert (sender.files(), sender.said()) == (before, [])
    # Also if the variables of the host still have a sender.
    result = sender.run("absent") if state == "absent" else sender.without()
    assert (result["changed"], result["diff"]) == (True, predicted["diff"])
    assert headers(result)[:6] == PARTS
    assert sender.said() == STOPS
    sender.link.parent.rmdir()  # systemd's.
    assert sender.files() == (sender.bare if state == "absent" else plain)
    assert not sender.without(**changed)["changed"]
    assert sender.said() == []


def test_a_diff_has_the_names_of_the_credentials_and_says_which_value_is_another(sender: SenderHost) -> None:
    sender.run()
    sender.said()
    changed = WITH_SENDER["credentials"].replace("-2", "-3") + 'NEW=""\n'
    result = sender.run(credentials=changed)
    (step,) = result["diff"]
    assert step["before"] == "KEY=(not shown)\nID=(not shown)\n"
    assert step["after"] == "KEY=(not shown)\nID=(not shown, another value)\nNEW=(not shown)\n"
    assert sender.credentials.read_text() == changed
    # The helper reads the file each time.
    assert sender.said() == []


@pytest.mark.parametrize("part", ["credentials", "service", "uploader", "timer"])
@pytest.mark.parametrize("damage", ["content", "mode", "link", "removed"])
def test_a_damaged_part_is_mended(sender: SenderHost, tmp_path: Path, part: str, damage: str) -> None:
    sender.run()
    before = sender.files()
    path: Path = getattr(sender, part)
    theirs = tmp_path / "elsewhere"
    if damage == "content":
        path.write_text(path.read_text() + "# by hand\n")
    elif damage == "mode":
        path.chmod(0o666)
    elif damage == "link":
        theirs.write_text(path.read_text())
        path.unlink()
        path.symlink_to(theirs)
    else:
        path.unlink()
    predicted = sender.run(check=True)
    assert predicted["changed"]
    assert sender.run()["diff"] == predicted["diff"]
    theirs.unlink(missing_ok=True)
    assert sender.files() == before
    assert not sender.run()["changed"]


@pytest.mark.parametrize("damage", ["stopped", "disabled", "another version in force", "no user"])
def test_what_is_no_file_is_mended(sender: SenderHost, damage: str) -> None:
    sender.run()
    before = sender.files()
    path = {
        "stopped": sender.bin / "active",
        "disabled": sender.link,
        "another version in force": sender.bin / "old",
        "no user": sender.users,
    }[damage]
    if damage == "another version in force":
        path.write_text("yes\n")
    else:
        path.unlink()
    if damage == "no user":
        (sender.bin / "groups").unlink()
    predicted = sender.run(check=True)
    assert headers(predicted) == [PARTS[5 if damage == "no user" else 4]]
    assert sender.run()["diff"] == predicted["diff"]
    assert sender.files() == before
    assert not sender.run()["changed"]


@pytest.mark.parametrize("program", ["useradd", "systemctl", "userdel"])
def test_a_failure_is_one_line_and_the_next_run_completes_it(sender: SenderHost, program: str) -> None:
    if program == "userdel":
        sender.run()
    sender.program(program, "echo noise >&2; echo it fails on purpose >&2; exit 1")
    result = sender.without(state="absent") if program == "userdel" else sender.run()
    assert result["failed"]
    assert result["msg"].partition(": ")[2].startswith("it fails on purpose")
    assert "\n" not in result["msg"]
    # Whole in both cases.
    assert subprocess.check_output([sender.host.entry, "--version"], env={}, text=True).startswith("docker_core_helper")
    assert sender.host.configuration.exists()
    sender.program(program, PROGRAMS[program])
    if program == "userdel":
        sender.without(state="absent")
        sender.link.parent.rmdir()
        assert sender.files() == sender.bare
    else:
        assert "the helper itself is whole, its sender is not" in result["msg"]
        assert sender.run()["changed"]
        assert sender.users.exists() and sender.link.is_symlink()
        assert not sender.run()["changed"]


def test_the_next_removal_completes_one_that_was_interrupted(sender: SenderHost) -> None:
    sender.run()
    sender.without(state="absent")
    sender.users.write_text(f"docker-core-helper:990:{COMMENT}\n")
    (sender.bin / "groups").write_text("docker-core-helper\n")
    sender.said()
    result = sender.without(state="absent")
    assert (result["changed"], headers(result)) == (True, ["user docker-core-helper"])
    assert not sender.users.exists()


def test_a_unit_that_somebody_has_deleted_does_not_stay_enabled(sender: SenderHost) -> None:
    sender.run()
    sender.said()
    sender.timer.unlink()
    sender.without(state="absent")
    assert sender.said()[0] == f"systemctl stop {sender.timer.name} {sender.service.name}"
    assert not sender.link.is_symlink()
    assert not sender.without(state="absent")["changed"]


def test_a_user_that_was_there_before_stays(sender: SenderHost) -> None:
    sender.users.write_text("docker-core-helper:990:of the administrator\n")
    assert "user docker-core-helper" not in headers(sender.run())
    result = sender.without(state="absent")
    assert "user docker-core-helper" not in headers(result)
    assert sender.users.exists()
    assert not [line for line in sender.said() if line.startswith("user")]


def test_a_group_that_was_there_before_is_taken(sender: SenderHost) -> None:
    (sender.bin / "groups").write_text("docker-core-helper\n")
    sender.run()
    assert sender.said()[0].endswith("--gid docker-core-helper docker-core-helper")


def test_a_group_that_is_left_goes_with_the_user(sender: SenderHost) -> None:
    sender.program("userdel", 'rm "$here/users"')
    sender.program("groupdel", 'rm "$here/groups"')
    sender.run()
    sender.without(state="absent")
    assert sender.said()[-1] == "groupdel docker-core-helper"
    assert not (sender.bin / "groups").exists()


def test_alpine_has_other_programs_for_users(sender: SenderHost) -> None:
    for name in ("useradd", "userdel"):
        (sender.bin / name).unlink()
    sender.program("addgroup", 'echo "$2" >>"$here/groups"')
    sender.program("adduser", f'echo "docker-core-helper:990:{COMMENT}" >"$here/users"')
    sender.program("deluser", PROGRAMS["userdel"])
    sender.run()
    group, user, *_ = sender.said()
    assert group == "addgroup -S docker-core-helper"
    assert user.startswith("adduser -S -D -H -h /nonexistent -s /")
    assert user.endswith(f" -g {COMMENT} -G docker-core-helper docker-core-helper")
    sender.without(state="absent")
    assert sender.said()[-1] == "deluser docker-core-helper"
    assert not sender.users.exists()


def refused(sender: SenderHost, **changed: Any) -> str:
    """Run the module, which must refuse before it changes anything, and return why it does."""
    before = sender.files()
    result = sender.run(**changed)
    assert result.get("failed"), result
    assert sender.files() == before
    return str(result["msg"])


def test_a_host_that_cannot_make_a_user_is_refused(sender: SenderHost) -> None:
    (sender.bin / "useradd").unlink()
    assert "has neither useradd nor adduser: make the system user docker-core-helper" in refused(sender)


def test_a_sender_that_would_be_root_is_refused(sender: SenderHost) -> None:
    sender.users.write_text("docker-core-helper:0:\n")
    assert "is root: give it a uid of its own" in refused(sender)


@pytest.mark.parametrize("part", ["credentials", "service", "uploader", "timer"])
def test_a_file_that_somebody_has_written_by_hand_is_refused_and_stays(sender: SenderHost, part: str) -> None:
    path: Path = getattr(sender, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"THEIRS={SECRET}\n")
    message = refused(sender)
    assert f"{path} was written by somebody else, and would be lost: move it away" in message
    assert ("sender_environment" in message) == (part == "credentials")
    sender.without()
    sender.without(state="absent")
    assert path.exists()


def test_credentials_of_somebody_else_are_used_where_the_role_has_none(sender: SenderHost) -> None:
    sender.credentials.write_text(f"THEIRS={SECRET}\n")
    sender.run(credentials=None)
    sender.without(state="absent")
    assert sender.credentials.read_text() == f"THEIRS={SECRET}\n"


def test_credentials_go_when_the_role_has_none_any_more(sender: SenderHost) -> None:
    sender.run()
    assert headers(sender.run(credentials=None)) == ["docker_core_helper.credentials"]
    assert not sender.credentials.exists()


def test_where_systemd_does_not_run_the_timer_is_enabled_for_the_next_boot(sender: SenderHost) -> None:
    sender.booted.rmdir()
    sender.run()
    assert sender.said()[1:] == ["systemctl enable docker-core-helper-sender.timer"]
    assert not sender.run()["changed"]
    sender.without(state="absent")
    assert sender.said() == ["systemctl disable docker-core-helper-sender.timer", "userdel docker-core-helper"]


def test_a_host_without_systemd_has_no_units_and_is_told_what_to_do(sender: SenderHost) -> None:
    (sender.bin / "systemctl").unlink()
    sender.run()
    assert ["let cron run docker_core_helper cores send as root" in text for text in sender.host.warnings] == [True]
    assert list(sender.units.iterdir()) == []
    assert not sender.run()["changed"]
    sender.without(state="absent")
    assert not sender.users.exists() and not sender.credentials.exists()


def test_units_are_wanted_with_the_uploader_only(sender: SenderHost) -> None:
    assert "uploader" in str(sender.without(uploader=UPLOADER)["msg"])
    sender.without(credentials=WITH_SENDER["credentials"])
    assert not sender.credentials.exists()


@pytest.mark.parametrize("place", ["default", "configured"])
def test_a_removal_keeps_the_cores_and_says_where_they_are(sender: SenderHost, tmp_path: Path, place: str) -> None:
    directory = tmp_path / ("cores" if place == "default" else 'a "b" \\c')
    quoted = str(directory).replace("\\", "\\\\").replace('"', '\\"')
    line = f'DOCKERCOREHELPER_KEEP_DIRECTORY="{quoted}"\n' if place == "configured" else ""
    sender.without(configuration=f"{MARK}{line}")
    sender.without(state="absent")
    assert sender.host.warnings == []
    sender.without(configuration=f"{MARK}{line}")
    group = directory / "group"
    group.mkdir(parents=True)
    for name in ("x.core", "x.json", "y.core.zst", "y.json", ".z.9.part"):
        (group / name).touch()
    sender.without(state="absent")
    (warning,) = sender.host.warnings
    assert warning.startswith(f"2 cores stay in {directory}, and no bound or age deletes them any more: delete ")
    assert len(list(group.iterdir())) == 5
