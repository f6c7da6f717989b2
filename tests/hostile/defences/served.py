"""What a server at the kernel's socket does beyond the way that both doors share."""

from __future__ import annotations

from hostile.defences.kinds import Breaks

BREAKS: Breaks = {
    "socket: who was killed has a worker": (
        [
            ("server.py", "if kernel_socket.has_ended(connection):", "if False:"),
            ("server.py", "if kernel_socket.has_ended(job.connection):", "if False:"),
        ],
        "no_worker_is_started",
    ),
    "socket: a delegate is not known by its limit": (
        [("server.py", "if crash.limit == kernel_socket.OF_HELPERS:", "if False:")],
        "the_crash_of_a_delegate_does_not_come_back",
    ),
    "socket: whoever connects is taken for a crash": (
        [("kernel_socket.py", "if info is None or info.coredump is None:", "if info is None:")],
        "that_connects_and_does_not_crash",
    ),
    "socket: the login of whoever has started the server is kept": (
        [
            ("serve.py", '    forget_login(elsewhere or b"NOTIFY_SOCKET" in posix.environ)\n', ""),
            ("worker.py", "        be_ordinary()\n", ""),
        ],
        "nothing_of_the_login",
    ),
    "socket: a thread has the ids of its leader": (
        [("worker.py", "    note_thread(crash)\n", "    crash.tid = kernel_socket.faulting_thread(crash.pid)\n")],
        "another_user_than_its_leader",
    ),
    "socket: a worker needs a key": (
        [("linux.py", "if error.errno != EDQUOT:", "if True:")],
        "has_all_keys",
    ),
    "socket: whatever has a nice value keeps it": (
        [("worker.py", "        be_ordinary()\n", "")],
        "nothing_of_the_login",
    ),
    "socket: the environment of the server is kept": (
        [("serve.py", " if name in PASSED_ON", "")],
        "nothing_of_the_login",
    ),
    "socket: the terminal is waited for": (
        [("serve.py", "posix.O_WRONLY | posix.O_NONBLOCK | posix.O_NOCTTY", "posix.O_WRONLY | posix.O_NOCTTY")],
        "nobody_waits_for_the_terminal",
    ),
    "socket: any lock is that of a server": (
        [
            ("listening.py", "fcntl.lockf(file", "fcntl.flock(file"),
            ("listening.py", "        return not table.is_locked(file, 0, 0)\n", "        return False\n"),
        ],
        "attack_23_a_container_with_the_lock",
    ),
    "socket: whoever waits for the most crashes leaves no place": (
        [("waiting.py", "            if loser is None:\n", "            if True:\n")],
        "crash_loops_in_many_containers",
    ),
    "socket: nobody waits for a slot": (
        [("waiting.py", "MOST_WAITING = 1024", "MOST_WAITING = 1")],
        "more_crashes_than_slots_wait",
    ),
    "socket: of many containers nobody waits for a slot": (
        [("waiting.py", "MOST_WAITING = 1024", "MOST_WAITING = 1")],
        "sixty_crashes_at_once",
    ),
    "socket: what is shown is gone": (
        [
            (
                "kernel_socket.py",
                "recv(min(count, PAGE), _socket.MSG_PEEK | _socket.MSG_DONTWAIT)",
                "recv(min(count, PAGE), _socket.MSG_DONTWAIT)",
            )
        ],
        "test_socket and before_it_reads",
    ),
}
