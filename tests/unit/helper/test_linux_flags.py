"""linux: a signal for one very process, one that ends any wait, and the ambient set as a whole."""

from __future__ import annotations

import os
import posix
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from core_helper import linux
from unit.helper.support import HELPER


def test_a_signal_is_for_the_process_of_the_pidfd_and_for_no_other() -> None:
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        while True:
            signal.pause()
    pidfd = linux.pidfd_open(pid)
    linux.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    # Nobody is there any more: no error, and nobody else has it.
    linux.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


@pytest.mark.parametrize("machine", [None, "m68k"])
def test_a_wait_in_which_no_handler_runs_is_ended_in_the_end(tmp_path: Path, machine: str | None) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program = (
        f"import os, posix, signal, sys; sys.path.insert(0, {str(HELPER)!r})\n"
        "from types import SimpleNamespace\n"
        "from core_helper import linux\n"
        "signal.signal(signal.SIGALRM, lambda number, frame: os._exit(7))\n"
        f"if {machine!r}: linux.NR_TIMER = {{}}\n"
        "linux.kill_after(1)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.5)\n"
        # Until its child has executed its program, nothing but a fatal signal wakes whoever has started it so: vfork(2).
        f"os.posix_spawn('/bin/true', ['true'], {{}}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, {str(fifo)!r}, 0, 0)])\n"
    )
    waiting = subprocess.Popen([sys.executable, "-BIc", program], start_new_session=True)
    try:
        if machine is None and posix.uname().machine in linux.NR_TIMER:
            assert waiting.wait(10) == -signal.SIGKILL
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(2)
    finally:
        os.killpg(waiting.pid, signal.SIGKILL)
        waiting.wait()


@pytest.mark.parametrize(("mask", "raised"), [(0, []), (0b1, [0]), (0b101, [0, 2]), (1 << 40, [40])])
def test_the_ambient_set_is_emptied_before_it_is_filled(
    monkeypatch: pytest.MonkeyPatch, mask: int, raised: list[int]
) -> None:
    done: list[tuple[int, ...]] = []
    monkeypatch.setattr(linux, "prctl", lambda *words: done.append(words))
    linux.set_ambient(mask)
    ambient = linux.PR_CAP_AMBIENT
    assert done[0] == (ambient, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    assert done[1:] == [(ambient, linux.PR_CAP_AMBIENT_RAISE, capability) for capability in raised]
