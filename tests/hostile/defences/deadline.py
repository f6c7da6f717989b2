"""The deadline, and who is held beyond it."""

from __future__ import annotations

from hostile.defences.kinds import Breaks

BREAKS: Breaks = {
    "11, 12 no deadline": (
        [("relay.py", "            if left <= 0:", "            if False:")],
        "attack_11_the_delegate_stops",
    ),
    "11 a frozen delegate is waited for": (
        [
            (
                "linux.py",
                "if time.monotonic() > limit:\n            return False\n",
                "if False:\n            return False\n",
            )
        ],
        "attack_11_the_container_is_frozen",
    ),
    "11 the start of a delegate is waited for": (
        [("supervisor.py", "poll.poll(max(0.0, limit - time.monotonic()) * 1000)", "poll.poll(30000)")],
        "attack_11_the_container_is_frozen_before",
    ),
    "11 control groups are joined before the fork": (
        [
            (
                "joining.py",
                "        try:\n            pid = posix.fork()",
                "        plan.groups.join(counting_only=True)\n        try:\n            pid = posix.fork()",
            )
        ],
        "attack_11_the_limit",
    ),
    "11 the length of the core is not known": (
        [("relay.py", "self.result.length = self.header.length", "pass")],
        "attack_11_the_process",
    ),
    "11 the exit code is ignored": ([("relay.py", "and end.si_status:", "and False:")], "attack_11_the_exit"),
    "12 only the session is ended": ([("family.py", "in _holders(child, process)", "in []")], "attack_12_a_daemon"),
    "12 whoever holds the pipe lives on": (
        [("family.py", "in _holders(child, process)", "in []")],
        "attack_12_standard",
    ),
    "12 the delegate gets the pipe of the kernel": (
        [
            ("child.py", "                source.close()\n", "                self.kernel = source.descriptor\n"),
            ("child.py", "return {0: self.core_read_end,", "return {0: self.kernel,"),
        ],
        "attack_12_standard",
    ),
    "12 all output is logged": (
        [
            ("relay.py", "OUTPUT_LINES = 200", "OUTPUT_LINES = 1000000"),
            ("relay.py", "OUTPUT_LIMIT = 65536", "OUTPUT_LIMIT = 1 << 19"),
        ],
        "attack_12_the_output",
    ),
    "23 tracers are not ended": (
        [("family.py", " and _kill_tracers(pid, process):", " and False:")],
        "attack_23_a_delegate_whose_end",
    ),
    "23 a tracing thread is taken for a process": (
        [
            (
                "family.py",
                'tracers.add(int(procfs.parse_status(procfs.read_path(f"/proc/{tracer}/status"))["Tgid"]))',
                "tracers.add(int(tracer))",
            )
        ],
        "attack_23_a_delegate_whose_end",
    ),
    "23 a tracer above the pid namespace stays": (
        [("family.py", "_is_of_the_family(str(tracer), process, True)", "_is_of_the_family(str(tracer), process)")],
        "attack_23_a_delegate_whose_end",
    ),
    "23 what does not end is not killed": (
        [("source.py", "        linux.pidfd_send_signal(crash.handle, SIGKILL)\n", "")],
        "attack_23_the_kernel",
    ),
    "23 only helpers count": (
        [("slots.py", "(record not in gone or _is_locked(file, index))", "_is_locked(file, index)")],
        "attack_23_a_mapped",
    ),
    "23 a process of ours that hangs counts nowhere": (
        [("slots.py", " or (_names_process(child) and child not in gone)", "")],
        "attack_23_a_process_of_ours",
    ),
    "23 control groups are joined after the delegate was opened": (
        [
            ("joining.py", "        _check_groups(process, plan.groups.join(), status)\n", ""),
            (
                "joining.py",
                "        plan.label.at_exec()\n",
                "        plan.label.at_exec()\n        _check_groups(process, plan.groups.join(), status)\n",
            ),
        ],
        "attack_23_a_process_of_ours and CAP",
    ),
    "23 one thread does everything": (
        [("supervisor.py", "_thread.start_new_thread(_attend, (", "_attend(*(")],
        "attack_23_the_delegate_has_the_kernel",
    ),
    "23 the threads of a process are not looked at": (
        [("family.py", 'for thread in _listed(f"/proc/{name}/task"):', "for thread in [name]:")],
        "attack_23_the_delegate_has_the_kernel and thread",
    ),
    "23 a visit to mounts has no end": (
        [("apart.py", "while poll.poll(max(0.0, limit - time.monotonic()) * 1000):", "while poll.poll():")],
        "attack_23_a_helper_that_enters",
    ),
    "23 a visit to the mounts of others has no end": (
        [("apart.py", "while poll.poll(max(0.0, limit - time.monotonic()) * 1000):", "while poll.poll():")],
        "attack_23_helpers_of_others",
    ),
    "23 the end of a delegate is waited for": (
        [
            # Either one alone ends the helper.
            (
                "supervisor.py",
                "finished.acquire(timeout=deadline.left(LATE))",
                "finished.acquire()",
            ),
            ("relay.py", "posix.WEXITED | posix.WNOWAIT | posix.WNOHANG", "posix.WEXITED | posix.WNOWAIT"),
        ],
        "attack_23_a_delegate_that_has_ended",
    ),
    "23 a tracer that another one holds stays": (
        [("family.py", "                traced.append(tracer)\n", "")],
        "end_of_the_tracer",
    ),
    "23 whoever traces a process of ours says that it is ready": (
        [("supervisor.py", 'elif kind == "ready" and child.stays:', 'elif kind == "ready":')],
        "attack_23_what_is_said",
    ),
    "23 a process of ours without pipes is not found": (
        [
            ("supervisor.py", "child.reported_pid = child.reported_pid or int(text)", "child.reported_pid = int(text)"),
            ("family.py", "_is_in_container(name) or ", ""),
        ],
        "attack_23_what_is_said",
    ),
    "23 descriptors are looked at without end": (
        [
            (
                "family.py",
                "            if time.monotonic() > limit:\n                return False",
                "            if False:\n                return False",
            )
        ],
        "many_descriptors",
    ),
}
