"""`make test-arm`: the helper on an emulated 64-bit ARM processor, where programs of 64 and of 32 bits crash in containers.

The machine has no disk. Debian's packages, which are only unpacked, this project and what crashes are its initial RAM disk, and
``init.sh`` is its first program. That runs ``test_arm.py`` and the unit tests that make system calls. Their output comes by the
console.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import lab
from support.project import PROJECT, tracked

CACHE = PROJECT / ".cache" / "arm"
SUITE = "trixie"
# The kernel is that of backports: from Linux 6.16 on it says by the pidfd what it dumps.
PACKAGES = (
    *("base-files", "base-passwd", "busybox-static", "coreutils", "dash", "grep", "iproute2", "libseccomp2"),
    *(f"linux-image-cloud-arm64/{SUITE}-backports", "linux-libc-dev", "mount", "python3-pytest", "runc", "util-linux"),
)
# What nothing there reads takes memory.
WITHOUT = (
    *("usr/lib/modules/*/kernel", "usr/lib/*/gconv", "usr/share/doc", "usr/share/i18n", "usr/share/info"),
    *("usr/share/locale", "usr/share/man", "usr/share/perl", "usr/share/zoneinfo", "var/cache/apt", "var/lib/apt"),
)
COMPILERS = {"wide": "aarch64-linux-gnu-gcc", "narrow": "arm-linux-gnueabihf-gcc"}
# Of the unit tests those that ask the kernel, or execute a program. The others take an emulated machine long.
MODULES = (
    *("build_ids", "container", "control_groups", "corefile", "examine", "joining", "linux", "linux_flags"),
    *("privileges", "process", "procfs", "program", "seccomp", "seccomp_flags", "start", "tracing", "verification"),
)
# As they are needed in the machine.
FILES = ("helper/", "pyproject.toml", "roles/docker_core_helper/defaults/", "tests/")
# Pointer authentication by the book would take most of the time of an emulated processor.
QEMU = (
    *("qemu-system-aarch64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "virt", "-no-reboot"),
    *("-cpu", "max,pauth-impdef=on", "-accel", "tcg", "-smp", "1", "-m", "1600", "-serial", "stdio"),
)
APPEND = "console=ttyAMA0 quiet panic=-1"
LIFETIME_SECONDS = 3600
PASSED = "The tests have ended with status 0."


def main() -> int:
    """Runs the tests and returns the exit status."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: sys.exit(130))
    kernel, base = build()
    with tempfile.TemporaryDirectory(prefix="arm.") as temporary:
        directory = Path(temporary)
        add_project(directory / "root")
        with open(directory / "initrd", "wb") as initrd:
            initrd.write(base.read_bytes())
            initrd.write(packed(directory / "root"))
        words = ["timeout", str(LIFETIME_SECONDS), *QEMU, "-kernel", str(kernel), "-initrd", f"{directory}/initrd"]
        passed = False
        with subprocess.Popen([*words, "-append", APPEND], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as machine:
            assert machine.stdout is not None
            try:
                for line in machine.stdout:
                    text = line.decode(errors="replace").rstrip()
                    passed |= text == PASSED
                    print(text, flush=True)
            finally:
                machine.terminate()
    if not passed:
        print("The tests on the machine have failed, or it has not come to their end.", file=sys.stderr)
    return int(not passed)


def build() -> tuple[Path, Path]:
    """The kernel, and the initial RAM disk of Debian's packages; makes them if the cache has none."""
    key = hashlib.sha256(repr((SUITE, PACKAGES, WITHOUT)).encode()).hexdigest()[:12]
    directory = CACHE / key
    if not directory.exists():
        print(f"Unpacks Debian's packages for arm64: {directory.relative_to(PROJECT)}", flush=True)
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="arm.", dir=CACHE) as temporary:
            root, partial = Path(temporary) / "root", Path(temporary) / "partial"
            unpack(root)
            partial.mkdir(mode=0o755)
            (kernel,) = [*root.glob("boot/vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")]
            kernel.rename(partial / "vmlinuz")
            (partial / "base").write_bytes(packed(root))
            partial.rename(directory)
        # The clone belongs to somebody who is not root, maybe, and wants to remove it.
        owner = PROJECT.stat()
        for path in (CACHE.parent, CACHE, directory, *directory.iterdir()):
            os.chown(path, owner.st_uid, owner.st_gid)
    return directory / "vmlinuz", directory / "base"


def unpack(root: Path) -> None:
    """Unpacks the packages into a directory. None is configured: that would take programs of the other processor."""
    backports = rf"s/^\(deb .*\) {SUITE} main/&\n\1 {SUITE}-backports main/"
    words = [
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=extract", '--aptopt=APT::Install-Recommends "false"'),
        *("--architectures=arm64", f"--include={','.join(PACKAGES)}"),
        f"--setup-hook=sed -i '{backports}' \"$1/etc/apt/sources.list\"",
        *(SUITE, str(root)),
    ]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    for pattern in WITHOUT:
        for path in root.glob(pattern):
            shutil.rmtree(path)
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)


def add_project(root: Path) -> None:
    """Puts this project into a root directory, with what crashes and the delegates."""
    for name in tracked():
        if name.startswith(FILES):
            target = root / "project" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target, follow_symlinks=False)
    shutil.copy(PROJECT / "tests/arm/init.sh", root / "init")
    for kind, compiler in COMPILERS.items():
        programs = root / "programs" / kind
        programs.mkdir(parents=True)
        lab.compile_programs(programs, compiler)
    (root / "modules").write_text(" ".join(f"tests/unit/helper/test_{module}.py" for module in MODULES))


def packed(root: Path) -> bytes:
    """The archive of a directory, as the kernel wants it for an initial RAM disk."""
    names = subprocess.run(["find", "."], cwd=root, check=True, stdout=subprocess.PIPE).stdout
    words = ["busybox", "cpio", "-o", "-H", "newc"]
    return subprocess.run(words, cwd=root, input=names, check=True, capture_output=True).stdout


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
