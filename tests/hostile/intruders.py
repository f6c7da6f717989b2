"""Processes that have joined the files of a container, and how one sees that nothing of it was executed for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hostile.groups import move
from hostile.observe import pid_of, wait_until
from support import lab
from support.containers import Container, MakeCrash, wait_for_log

PROGRAM = f"{lab.PROGRAMS}/crasher"
OF_THE_HOST = {"RECORD_DIRECTORY": "/", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
NOT_FOR = "not for a program of that container's image"

# Until the list of mounts is longer than anybody reads; in directories whose names are as long in it as can be.
MOUNTS_OF_A_USER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1])
for _ in range(15):
    os.mkdir(" " * 250)
    os.chdir(" " * 250)
number = 0
while len(open("/proc/self/mountinfo").read()) < 1 << 22:
    device = os.open("/dev/fuse", os.O_RDWR)
    os.mkdir(str(number))
    options = f"fd={device},rootmode=40000,user_id=1000,group_id=1000".encode()
    assert libc.mount(b"x", str(number).encode(), sys.argv[2].encode(), 6, options) == 0
    number += 1
print(flush=True)
sys.stdin.readline()
for one in range(number):
    libc.umount2(str(one).encode(), 2)
"""

Refusal = Callable[[str], str]
Start = Callable[..., "subprocess.Popen[str]"]


def start(attack: MakeCrash, *actions: str, options: tuple[str, ...] = (), image: str = "hostile") -> Container:
    """Starts a container whose delegate nobody else may start; its program and its delegate are what was changed in it."""
    container = attack("wait=/out/go", *actions, "wait=/never", options=(*options, "--detach"), image=image)
    lab.output("docker", "exec", container.name, "touch", "/usr/bin/crasher", "/opt/bin/delegate")
    return container


def crash_on_host(
    *actions: str, directory: Path, group_of: int | None = None, then: Callable[[], None] | None = None
) -> None:
    """Has a process of the host's root do the actions, and crash; its control groups are the root ones, or another's."""
    go = directory / "go"
    crash = subprocess.Popen([PROGRAM, f"wait={go}", *actions], env=OF_THE_HOST)
    move(crash.pid, group_of)
    go.touch()
    if then is not None:
        then()
    crash.wait()


def let_go(container: Container) -> None:
    """Lets a container go on, and waits until its first process has ended its leading thread, or has another root directory."""
    first = Path(f"/proc/{pid_of(container)}")
    before = view_of(first)
    (container.records / "go").touch()
    wait_until(lambda: view_of(first) != before, "the container does not go on")


def view_of(process: Path) -> tuple[str, ...]:
    """What a process sees, "" where it has no leading thread."""
    try:
        return tuple(os.readlink(process / name) for name in ("root", "ns/mnt", "ns/user"))
    except OSError:
        return ()


def assert_withheld(container: Container, refusal: Refusal) -> None:
    """The delegate of a container was not started, and the log says why."""
    changed = lab.output("docker", "diff", container.name)
    assert "/delegate." not in changed, f"its delegate was started: {changed}"
    assert container.of("delegate") == []
    assert "core not delivered, 0 bytes" in refusal(NOT_FOR)


def assert_delivered_from(jail: Path) -> None:
    """A crash of the host's root in the jail has its delegate."""
    crash = subprocess.Popen(["chroot", jail, "/usr/bin/crasher"], env=OF_THE_HOST)
    crash.wait()
    assert ": delivered " in wait_for_log(f"pid={crash.pid} ", ": delivered ")


@contextmanager
def mounts_of_a_user(directory: Path, kind: str) -> Iterator[None]:
    """Has a user of the host mount so much FUSE of that type that the list is very long.

    As fusermount3 does for the user, a thousand times if asked to.
    """
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no /dev/fuse")
    words = [sys.executable, "-c", MOUNTS_OF_A_USER, str(directory), kind]
    user = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert user.stdout is not None and user.stdout.readline() == "\n"
        yield
    finally:
        user.communicate("\n")
