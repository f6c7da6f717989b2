"""Deliveries without a container: a supervisor in a process of its own, and a plain child as its delegate."""

from __future__ import annotations

import _socket
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from core_helper import control_groups, deadline, joining, supervisor
from core_helper.child import Child
from core_helper.kernel_socket import KernelSocket
from core_helper.source import KernelPipe
from unit.helper.support import in_child, process

if TYPE_CHECKING:
    from collections.abc import Callable

LONG = 4 << 20  # More than the pipes of the way can hold.
PATIENCE = 10.0  # Seconds, on a machine that has much else to do.


def feed(pipe: int, core: bytes) -> None:
    """Write ``core`` as the kernel does; a helper that closes its end early is the kernel's ordinary life."""
    try:
        view = memoryview(core)
        while view:
            view = view[os.write(pipe, view) :]
    except BrokenPipeError:
        pass
    os.close(pipe)


def without(descriptor: int, run: Callable[[Child], Any]) -> Callable[[Child], Any]:
    """Return ``run`` for a child that has not got ``descriptor``."""

    def closed(child: Child) -> Any:
        os.close(descriptor)
        return run(child)

    return closed


def wait_for_text(path: Path) -> None:
    """Wait until somebody has written to the file ``path``."""
    limit = time.monotonic() + PATIENCE
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < limit, f"nobody has written to {path}"
        time.sleep(0.001)


def supervise(
    run: Callable[[Child], Any],
    core: bytes = b"core",
    timeout: float = PATIENCE,
    once: Path | None = None,
    longest: float = 0.0,
    short: bool = False,
    by_socket: bool = False,
) -> Any:
    """Return what the supervisor says of a child that does ``run``; in a process of its own, as the helper has it.

    The supervisor, and with it the time until the deadline, begins when the child has written to the file ``once``.
    """

    def helper() -> object:
        if by_socket:
            ours, theirs = _socket.socketpair()
            source: KernelPipe = KernelSocket(ours)
            sink = theirs.detach()
        else:
            reading, sink = os.pipe()
            source = KernelPipe(reading)
        # As the kernel does: no child has its end of the pipe.
        child = Child(source, control_groups.ControlGroups(), without(sink, run), stays=True)
        threading.Thread(target=feed, args=(sink, core), daemon=True).start()
        lines: list[bytes] = []
        if once is not None:
            wait_for_text(once)
        began = time.monotonic()
        until = deadline.Deadline(began, timeout, longest, lambda: short)
        result = supervisor.supervise(source, child, process(), until, lines.append)
        logged = [line.decode("latin-1") for line in lines]
        seconds, left = time.monotonic() - began, child.left()
        if left:
            end(left)
        return {**vars(result), "drained": source.drained, "logged": logged, "seconds": seconds, "left": left}

    return SimpleNamespace(**in_child(helper))


def deliver(
    words: list[str],
    core: bytes = b"core",
    timeout: float = PATIENCE,
    once: Path | None = None,
    environment: dict[bytes, bytes] | None = None,
    **more: Any,
) -> Any:
    """Return what the supervisor says of the delegate ``words``."""
    label: Any = SimpleNamespace(open=lambda: None, at_exec=lambda: None)
    plan = joining.Plan(process(), control_groups.ControlGroups(), label, None)
    encoded = [os.fsencode(word) for word in words]

    def run(child: Child) -> Any:
        return joining.execute_delegate(plan, encoded, {}, environment or {}, child)

    return supervise(run, core, timeout, once, **more)


def shell(script: str, *arguments: object) -> list[str]:
    return ["/bin/sh", "-c", "PATH=/usr/bin:/bin; " + script, *(str(argument) for argument in arguments)]


def is_gone(pid: int, patience: float = PATIENCE) -> bool:
    """Tell whether no process ``pid`` runs any more, or not for long; a zombie whose parent is slow counts as gone."""
    limit = time.monotonic() + patience
    while time.monotonic() < limit:
        try:
            if Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def end(pid: int) -> None:
    """End a process that a delegate left behind."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
