"""The host's Python, its modules and its libraries: no container has its own files in their place, and none overwrites them."""

from __future__ import annotations

import os
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.observe import wait_until
from hostile.options import CAP_SYS_PTRACE, UNCONFINED
from support import door, lab
from support.containers import MakeCrash
from support.hosts import HELPER

LIBRARY = Path("/opt/lib/docker_core_helper")


def interpreter() -> Path:
    """The Python of the host that the installed helper runs on."""
    return Path(HELPER.read_text().split(maxsplit=1)[0][2:])


@pytest.fixture
def planted_interpreter() -> tuple[str, ...]:
    """A program of ours where a program interpreter is that the host's Python wants; elf(5), PT_INTERP."""
    headers = lab.output("readelf", "--program-headers", "--wide", interpreter())
    (path,) = re.findall(r"program interpreter: (\S+)\]", headers)
    return (f"--volume={lab.PROGRAMS}/planted:{path}:ro",)


@pytest.mark.parametrize(
    "delegate", ["#!/proc/self/exe", "#!/proc/thread-self/exe", "#!/opt/link", "#!/opt/bin/script", "self-exe"]
)
def test_attack_01_proc_self_exe_as_delegate(
    attack: MakeCrash, planted_interpreter: tuple[str, ...], tmp_path: Path, delegate: str
) -> None:
    link, script = tmp_path / "link", tmp_path / "script"
    link.symlink_to("/proc/self/exe")
    script.write_text("#!/proc/self/exe\n")
    script.chmod(0o755)
    # A symbolic link cannot be mounted itself, its directory can.
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o755)
    delegate = delegate.replace("/opt/link", "/tricks/link").replace("/opt/bin/script", "/tricks/script")
    options = (*planted_interpreter, f"--volume={tmp_path}:/tricks")
    container = attack(f"delegate={delegate}", options=options)
    assert "delegate" in container.log("core dropped")
    assert not (container.records / "planted").exists()


def test_attack_01_the_python_of_the_host_as_delegate(attack: MakeCrash, planted_interpreter: tuple[str, ...]) -> None:
    container = attack(options=(*planted_interpreter, f"--volume={interpreter().resolve()}:/opt/bin/delegate:ro"))
    assert "is the helper's own interpreter" in container.log("core dropped")
    assert not (container.records / "planted").exists()


MARK = 'import posix\nposix.close(posix.open("/out/planted", posix.O_CREAT | posix.O_WRONLY, 0o666))\n'
GCONV = "gconv"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Something that leaves a mark wherever a program of the host would look for code: Python's modules and the C library's.

    All of it is an image's: where the host has its files, the container has these.
    """
    root = tmp_path_factory.mktemp("planted")
    told = lab.output(interpreter(), "-IS", "-c", "import sys, _imp; print(*sys.path, *_imp.extension_suffixes())")
    archive, modules, extensions, suffix = told.split()[:4]
    places = [archive, modules, str(LIBRARY), *plant_libraries(root)]
    binary = {file.name.partition(".")[0] for file in Path(extensions).iterdir()} | {"resource", "_json"}
    for name in binary:
        link(root, f"{extensions}/{name}{suffix}")
    with zipfile.ZipFile(below(root, archive), "w") as modules_in_one:
        for name in [*sorted(sys.stdlib_module_names - binary), "encodings/__init__", "encodings/idna"]:
            below(root, f"{modules}/{name}.py").write_text(MARK)
            modules_in_one.writestr(f"{name}.py", MARK)
    for module in LIBRARY.glob("*/core_helper/*.py"):
        below(root, str(module)).write_text(MARK)
    return tuple(f"--volume={root}{place}:{place}:ro" for place in places)


def plant_libraries(root: Path) -> list[str]:
    """Plants every shared library of the host, with those by which the C library converts and looks names up."""
    linked = re.findall(r"(/\S+) \(0x", lab.output("ldd", interpreter()))
    (loader,) = (library for library in linked if "/ld-linux" in library)
    directories = {str(Path(library).parent) for library in linked if library != loader}
    directories |= {str(Path(directory).resolve()) for directory in directories}
    for directory in sorted(directories):
        for library in [*Path(directory).glob("*.so*"), *Path(directory, GCONV).glob("*.so")]:
            link(root, str(library))
        link(root, f"{directory}/libnss_planted.so.2")
        # For a host that has no cache of its own, which is read at the start; iconvconfig(8).
        below(root, f"{directory}/{GCONV}/gconv-modules").write_text(
            "module BIG5// INTERNAL BIG5 1\nmodule INTERNAL BIG5// BIG5 1\n"
        )
    link(root, loader)
    databases = ("passwd", "group", "shadow", "hosts", "services", "protocols")
    below(root, "/etc/nsswitch.conf").write_text("".join(f"{name}: planted\n" for name in databases))
    below(root, "/etc/ld.so.preload").write_text(f"{loader}\n")
    return [loader, "/etc/nsswitch.conf", "/etc/ld.so.preload", *sorted(directories)]


def below(root: Path, path: str) -> Path:
    """The place of an absolute path below another root directory, which then exists."""
    file = Path(f"{root}{path}")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def link(root: Path, path: str) -> None:
    """Plants a shared library; they are many, and all the same."""
    file = below(root, path)
    if not file.exists():
        file.hardlink_to(lab.PROGRAMS / "planted")


@pytest.mark.parametrize("delegate", ["none", "directory", "#!/opt/kept"])
def test_attack_04_planted_modules_and_libraries(attack: MakeCrash, planted: tuple[str, ...], delegate: str) -> None:
    container = attack(f"delegate={delegate}", options=planted)
    assert "pid=" in container.log("pid=")
    assert not (container.records / "planted").exists()


def test_attack_05_a_fifo_at_the_path_of_the_helper(attack: MakeCrash, tmp_path: Path) -> None:
    for file in [HELPER, *LIBRARY.glob("*/core_helper/*.py")]:
        planted = tmp_path / file.relative_to("/opt")
        planted.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(planted)
    # A delegate that fails after the root directory was changed: whoever prints a traceback reads the program's source.
    (tmp_path / "bin" / "delegate").mkdir()
    container = attack("wait=/out/go", options=(f"--volume={tmp_path}:/opt", "--detach"))
    (container.records / "go").touch()
    began = time.monotonic()
    assert "not a regular file" in container.log("core dropped")
    # The line is the last thing that the helper does.
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("action", "options"), [("hold=3", ()), ("hold-userns=3", UNCONFINED)], ids=["", "of children in user namespaces"]
)
def test_attack_21_cap_sys_ptrace_holds_the_interpreter_and_writes_to_it_later(
    attack: MakeCrash, action: str, options: tuple[str, ...]
) -> None:
    container = attack(action, options=("--cap-add=SYS_PTRACE", *options))
    assert "held 1" in container.output, "the interpreter was never held: nothing was shown"
    assert "write: Read-only file system" in container.output


@pytest.fixture(params=["as it is", "on a read-only file system"])
def python(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The interpreter of the helper."""
    path = interpreter().resolve()
    if request.param == "as it is":
        yield path
        return
    lab.command("mount", "--bind", path, path)
    try:
        lab.command("mount", "-o", "remount,bind,ro", path)
        yield path
    finally:
        lab.command("umount", "--lazy", path)


def test_attack_21_cap_sys_ptrace_has_nobody_wait_for_the_interpreter(attack: MakeCrash, python: Path) -> None:
    container = attack("lease=3", options=("--cap-add=SYS_PTRACE", "--detach"))
    wait_until(lambda: "lease: " in lab.output("docker", "logs", container.name), "the interpreter was never held", 20)
    printed = lab.output("docker", "logs", container.name)
    # As whoever starts this Python, who would wait.
    os.close(os.open(python, os.O_RDONLY | os.O_NONBLOCK))
    # At the socket, the server itself executes that file all the time, and the kernel may grant none.
    assert f"held 1\nlease: {'' if door.BY_SOCKET else 'granted'}" in printed


# Before Linux 5.12, there is no mount_setattr(2).
OLD_KERNEL = """
from core_helper import linux


def missing(path):
    raise OSError(38, "Function not implemented")


linux.clone_read_only = linux.overlay_of = missing
"""


@pytest.mark.parametrize("rights", ["sleep=0", f"unbound={CAP_SYS_PTRACE}"])
def test_attack_21_cap_sys_ptrace_never_finds_the_interpreter_before_linux_5_12(
    attack: MakeCrash, old_kernel: Callable[[str], None], rights: str
) -> None:
    old_kernel(OLD_KERNEL)
    container = attack(rights, "hold=2", options=("--cap-add=SYS_PTRACE",))
    assert "held 0\n" in container.output
    assert "Function not implemented" in container.log("Function not implemented")
