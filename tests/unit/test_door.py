"""tests/support/door.py: which process the server is."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

from support import door

PR_SET_NAME = 15


def test_a_worker_that_has_no_name_of_its_own_yet_is_no_server() -> None:
    reading, writing = os.pipe()
    server = os.fork()
    if server == 0:
        signal.alarm(30)
        ctypes.CDLL(None).prctl(PR_SET_NAME, b"of_test_door", 0, 0, 0)
        worker = os.fork()
        if worker:
            os.write(writing, b"%d" % worker)
        signal.pause()
    worker = int(os.read(reading, 16))
    try:
        assert {server, worker} <= set(door.named("of_test_door"))
        assert door.parent_of(worker) == server
        assert door.servers("of_test_door") == [server]
    finally:
        for pid in (worker, server):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(server, 0)
    assert not Path(f"/proc/{server}").exists() and door.parent_of(server) == 0
