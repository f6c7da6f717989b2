"""linux: a signal for one very process, and the ambient set as a whole."""

from __future__ import annotations

import os
import signal

import pytest
from core_helper import linux


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
