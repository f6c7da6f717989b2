"""The faulting process, and what its delegate takes over of it."""

from __future__ import annotations

from hostile.defences.kinds import Breaks

BREAKS: Breaks = {
    "07 the process is not verified": (
        [("verification.py", '    if status.get("CoreDumping") != "1":', "    return\n    if False:")],
        "attack_07",
    ),
    "07 the pidfd of the kernel is not compared": (
        [
            ("main.py", "            return not procfs.is_process_of(crash.pidfd, crash.pid)\n", "            pass\n"),
            ("verification.py", "if not procfs.shows_process(fdinfo, crash.pid):", "if False:"),
        ],
        "attack_07_the_pid",
    ),
    "07 the number alone tells whether the process is gone": (
        [("main.py", "            return not procfs.is_process_of(crash.pidfd, crash.pid)\n", "            pass\n")],
        "attack_22_a_process_that_was_killed_costs",
    ),
    "15 the log names whoever has the number": (
        [("main.py", '    return found if known else (b"", "-")', "    return found")],
        "attack_15_another_container_has_the_pid",
    ),
    "07 the process is not verified again": (
        [("verification.py", "    if not procfs.still_dumping(", "    if False and not procfs.still_dumping(")],
        "attack_07_the_process",
    ),
    "08 set-id is not asked for": (
        [("verification.py", "    if not safe or secure or len", "    if False and len")],
        "attack_08",
    ),
    "08 the auxiliary vector is not asked for": (
        [("verification.py", "secure = not announced and secure_execution(", "secure = False and secure_execution(")],
        "attack_08 and capable",
    ),
    "09 the leader stands for the thread": (
        [("command_line.py", '"-I": "tid"', '"-I": "unused"')],
        "attack_09",
    ),
    "10 no_new_privs is not set": (
        [("privileges.py", "linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)", "pass")],
        "attack_10_a_set_id",
    ),
    "10 the bounding set is that of the process": (
        [("privileges.py", "bounding = process.bounding & process.permitted", "bounding = process.bounding")],
        "attack_10_root or attack_10_file",
    ),
    "10 control groups are not joined": (
        [("control_groups.py", 'posix.write(file, b"0")', "pass")],
        "attack_10_a_node or attack_11_the_limit",
    ),
    "14 the limit of cores is taken over": (
        [("privileges.py", '    "Max resident set": 5,', '    "Max core file size": 4,\n    "Max resident set": 5,')],
        "attack_14",
    ),
    "16 /proc is opened in the container": (
        [
            (
                "joining.py",
                '        descriptors = posix.open("/proc/self/fd"',
                '        enter(plan, status)\n        descriptors = posix.open("/proc/self/fd"',
            )
        ],
        "attack_16_a_false",
    ),
    "16 ids after the user namespace": (
        [
            (
                "privileges.py",
                "        linux.setns(process.joined_user_namespace, linux.CLONE_NEWUSER)\n",
                "        pass\n",
            ),
            (
                "privileges.py",
                "    posix.setgroups(process.groups)\n",
                "    if process.user_namespace is not None:\n"
                "        linux.setns(process.joined_user_namespace, linux.CLONE_NEWUSER)\n"
                "    posix.setgroups(process.groups)\n",
            ),
        ],
        "attack_16_a_user",
    ),
    "17 all of the environment is passed on": (
        [
            ("program.py", "if error.errno != linux.E2BIG:", "if True:"),
            ("procfs.py", "ENVIRON_LIMIT = 1 << 20", "ENVIRON_LIMIT = 1 << 24"),
        ],
        "attack_17",
    ),
    "19 no filter": (
        [
            (
                "privileges.py",
                "linux.set_seccomp_filter(seccomp.deny_filter(seccomp.architectures(process.narrow)))",
                "pass",
            )
        ],
        "attack_19",
    ),
    "19 system calls of 32 bits are there for programs of 64": (
        [("seccomp.py", "return MACHINES[machine] if narrow else MACHINES[machine][:1]", "return MACHINES[machine]")],
        "attack_19_no_system_call_of_32",
    ),
    "19 strict mode is left": ([("privileges.py", "if process.seccomp == 1:", "if False:")], "attack_19_strict"),
    "19a variables of a confined process are passed on": (
        [("process.py", "        if self.confined:", "        if False:")],
        "attack_19_a_process",
    ),
    "attributes: groups": (
        [("privileges.py", "posix.setgroups(process.groups)", "posix.setgroups([])")],
        "no_more and groups",
    ),
    "attributes: capabilities": (
        [("privileges.py", "bounding = process.bounding & process.permitted", "bounding = (1 << 40) - 1")],
        "no_more and dropped",
    ),
    "attributes: limits": (
        [
            (
                "privileges.py",
                "        if name not in process.limits:\n            continue\n        soft",
                "        continue\n        soft",
            )
        ],
        "no_more and limits",
    ),
    "attributes: nice": ([("privileges.py", "if process.nice != 0:", "if False:")], "no_more and limits"),
    "attributes: out-of-memory score": (
        [("privileges.py", "posix.write(descriptor, FIRST_TO_GO)", "pass")],
        "no_more and limits",
    ),
    "attributes: more processes": (
        [("privileges.py", '"Max processes", 64', '"Max processes", 65')],
        "no_more and limits",
    ),
    "attributes: umask": ([("joining.py", "posix.umask(process.umask)", "pass")], "no_more and limits"),
}
