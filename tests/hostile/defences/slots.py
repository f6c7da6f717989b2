"""Shares of the slots, and what a helper may cost."""

from __future__ import annotations

from hostile.defences.kinds import Breaks

BREAKS: Breaks = {
    "22 whoever can read the tables keeps helpers waiting": (
        [
            ("table.py", "    if kind == fcntl.F_RDLCK:\n", "    if False:\n"),
            ("table.py", "PATIENCE = 10.0", "PATIENCE = 1e9"),
        ],
        "attack_22_a_container_that_reads",
    ),
    "22 a lease on the configuration has the defaults count": (
        [
            (
                "configuration.py",
                "    except BlockingIOError:\n        pass\n",
                "    except ZeroDivisionError:\n        pass\n",
            )
        ],
        "attack_22_a_lease",
    ),
    "22 a helper whose process is gone waits as others do": (
        [("main.py", "    if mark is None and is_gone(crash):\n", "    if False:\n")],
        "attack_22_a_helper_whose_process",
    ),
    "23 a timer counts among the signals that wait": (
        [("linux.py", "setrlimit(RLIMIT_SIGPENDING, -1, -1)", "pass")],
        "attack_23_signals_that_wait",
    ),
    "13 no share of the slots": ([("slots.py", "held < weight * free", "True")], "attack_13_one"),
    "22 who has much may add as much": (
        [("slots.py", "held < weight * free", "held < 48")],
        "attack_22_three",
    ),
    "22 lines are not rationed": (
        [("journal.py", "        if self.log.holder:\n", "        if False:\n")],
        "attack_22_a_flood_of_lines",
    ),
    "22 variables are not counted": (
        [("procfs.py", "MOST_VARIABLES = 8192", "MOST_VARIABLES = 1 << 20")],
        "attack_22_two_hundred",
    ),
    "22 output is read without end": (
        [("relay.py", "OUTPUT_PAUSE = 0.02", "OUTPUT_PAUSE = 0.0")],
        "attack_22_a_flood_of_output",
    ),
    "22 a read of one byte counts as one byte": (
        [("relay.py", "max(len(part), OUTPUT_READ)", "len(part)")],
        "attack_22_a_flood_of_output and drips",
    ),
    "22 the services of a slice have one share": (
        [("runtime.py", "if number is not None and rank > best:", "if number is not None and chosen is None:")],
        "attack_22_sandboxes_of_one_service",
    ),
    "22 all services of root have one share": (
        [("holders.py", 'if unit else f"user {user}"', 'if False else f"user {user}"')],
        "attack_22_a_service",
    ),
    "22 who made a control group is not asked": (
        [("holders.py", '{owner} {group[0]}", owner)', '{owner} {group[0]}", None)')],
        "attack_22_a_user_of_the_host_names",
    ),
    "22 a container is each of its pid namespaces": (
        [("holders.py", "            if maker is not None:\n", "            if False:\n")],
        "attack_22_many_users",
    ),
    "22 a pid namespace that root makes is nobody's": (
        [("holders.py", "named(name, _instigator_of(crash, cgroups), by_root=True)", "named(name, None)")],
        "attack_22_pid_namespaces and sandboxes",
    ),
    "22 a container that nobody has named is each of its users": (
        [
            ("holders.py", "NOBODY if by_root else whose", "whose"),
            ("holders.py", "NOBODY - (user_of(crash.uid)", "NOBODY - (crash.uid"),
        ],
        "attack_22_pid_namespaces and container",
    ),
    "22 no slots are left to who has none": (
        [("slots.py", "last = free <= limit // RESERVE", "last = False")],
        "attack_22_eight",
    ),
    "22 no slots are left to users who have none": (
        [("slots.py", "if (last and of_owner) or", "if")],
        "attack_22_users",
    ),
    "22 a copy that has no room is made again": (
        [
            ("relay.py", "            if not self.copied:\n", "            if True:\n"),
            ("relay.py", "self.readable = self.copied > 0", "self.readable = False"),
        ],
        "attack_22_a_delegate_that_fills",
    ),
    "22 all mounts are kept": (
        [
            (
                "mount_table.py",
                '        self.text = b"\\n" + mountinfo\n',
                '        self.text = b"\\n" + mountinfo\n'
                '        self.kept = [Mount(line) for line in mountinfo.split(b"\\n") if line]\n',
            ),
            ("procfs.py", "MOUNTINFO_LIMIT = 1 << 22", "MOUNTINFO_LIMIT = 1 << 24"),
        ],
        "attack_22_a_user_of_the_host_with",
    ),
}
