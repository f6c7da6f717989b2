"""Processes that have joined the files of a container, and how one sees that nothing of it was executed for them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from hostile.groups import move
from support import lab
from support.containers import Container, MakeCrash, wait_for_log

PROGRAM = f"{lab.PROGRAMS}/crasher"
UNCONFINED = ("--security-opt=seccomp=unconfined",)
ADMINISTRATOR = ("--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined")
# There the delegate records what it is in its root directory, wherever that is: there is no volume.
IN_ROOT = "RECORD_DIRECTORY=/"
OF_THE_HOST = {"RECORD_DIRECTORY": "/", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
NOT_FOR = "not for a program of that container's image"
# What the engine gives a container, in the first 32 bits.
DEFAULT_CAPABILITIES = "a80425fb"

Refusal = Callable[[str], str]


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
