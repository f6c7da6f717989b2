"""What becomes of a core, and the fallback file."""

from __future__ import annotations

from hostile.defences.kinds import Breaks

BREAKS: Breaks = {
    "a signal ends the helper at once": (
        [
            ("main.py", "        deadline.signals.heed()\n", ""),
            ("worker.py", "        deadline.signals.heed()\n", ""),
        ],
        "is_told_to_end",
    ),
    "18 what is there is opened": (
        [("fallback.py", "posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW", "posix.O_CREAT")],
        "attack_18_something",
    ),
    "18 a file of another user is written": (
        [("fallback.py", "posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW", "posix.O_CREAT | posix.O_NOFOLLOW")],
        "attack_18_something and foreign",
    ),
    "18 the file is created with the helper's privileges": (
        [
            (
                "fallback.py",
                "        joining.enter(plan, status)\n",
                "        joining.container.join_namespaces(process)\n",
            )
        ],
        "attack_18_the_temporary",
    ),
    "18 errors of the disk are ignored": (
        [
            (
                "fallback.py",
                '        raise Stopped(f"{error.strerror} after',
                '        posix._exit(0)\n        raise Stopped(f"{error.strerror} after',
            )
        ],
        "attack_18_a_full",
    ),
    "fate: what was not read is lost": (
        [("relay.py", "self.result.untouched = not self.committed", "self.result.untouched = False")],
        "read_nothing_leaves",
    ),
    "fate: nothing is ready before the limits": (
        [
            ("joining.py", "program.prepare(environment)\n", "program.environment = environment\n"),
            (
                "joining.py",
                "    program.execute(status)",
                "    program.prepare(program.environment)\n    program.execute(status)",
            ),
        ],
        "little_address_space",
    ),
    "fate: a core file as large as it likes": (
        [("fallback.py", "privileges.limit_file_size(process)", "pass")],
        "no_larger_than",
    ),
    "fate: all processors": (
        [("joining.py", "privileges.take_over_processors(process)", "[]")],
        "processors_and_scheduling",
    ),
    "the core is read before the delegate has started": (
        [
            (
                "supervisor.py",
                "    result = Result()\n    child.note_pipes()\n",
                "    result = Result()\n    child.note_pipes()\n    posix.read(source.descriptor, 100)\n",
            )
        ],
        "leaves_the_whole_core",
    ),
    "fate: a core that was cut off comes to its end": (
        [("relay.py", "self.result.cut and self.child.is_delegate()", "False")],
        "core_that_was_cut_off",
    ),
    "fate: the timeout counts while the core is read": (
        [("deadline.py", "if left <= AHEAD and", "if False and")],
        "goes_on_reading",
    ),
    "fate: any number of core files": (
        [("fallback.py", "if count >= most or taken >= size:", "if False:")],
        "do_not_fill_the_disk",
    ),
    "fate: no holes": (
        [("fallback.py", "if all_of_it else holes.runs(block, len(block), start)", "if True else []")],
        "has_holes",
    ),
    "fate: a core of any size": (
        [("deliver.py", "length > configuration.size_max", "False")],
        "core_that_is_too_large",
    ),
    "fate: any number of cores": (
        [("bounds.py", "if admitted < self.most:", "if True:")],
        "crashes_too_often",
    ),
    "fate: a neighbour of the delegate goes first": (
        [("privileges.py", "posix.write(descriptor, FIRST_TO_GO)", "pass")],
        "if_memory_ends",
    ),
    "fate: no process more than the limit": (
        [("privileges.py", '"Max processes", 64', '"Max processes", 0')],
        "limit_of_processes",
    ),
    "fate: the process goes on after the deadline": (
        [("source.py", "linux.pidfd_send_signal(crash.handle, SIGKILL)", "pass")],
        "terabytes_in_as_many or walks_on_through",
    ),
    "fate: 75 means nothing": ([("relay.py", "EXIT_KEEP = 75", "EXIT_KEEP = 76")], "asks_to_keep"),
    "fate: an environment that was overwritten is not noticed": (
        [("process.py", "if procfs.was_overwritten(text):", "if False:")],
        "is_told_as_such",
    ),
    "fate: nothing of the engine's record reaches the delegate": (
        [("delivery.py", "return {name: known[name] for name in", "return {} and {name: known[name] for name in")],
        "has_the_destination_of_its_container",
    ),
    "fate: runc without an engine has no record": (
        [("record.py", '= "/run/runc/{}', '= "/run/x/{}')],
        "runc_without_an_engine",
    ),
    "fate: the thread stands for the program": (
        [("key.py", "harmless(program_of(process.exe), LONGEST_PROGRAM)", "harmless(process.comm, LONGEST_PROGRAM)")],
        "a_thread_that_has_a_name",
    ),
    "fate: keys of program and second alone": (
        [
            ("key.py", 'procfs.read_path(RANDOM)[:13].replace(b"-", b"").decode(),', '"0" * 12,'),
            ("key.py", "            str(crash.pid),\n", '            "1",\n'),
        ],
        "every_core_has_a_name",
    ),
    "fate: the root directory has no name": (
        [
            (
                "program.py",
                '                if root != b"/":\n                    where',
                "                if False:\n                    where",
            )
        ],
        "below_which_root",
    ),
    "fate: the loader has no name": (
        [("program.py", "loader_of(self.begin)", 'b""')],
        "loader_that_the_delegate",
    ),
    "fate: every signal and program is wanted": (
        [
            ("unwanted.py", "if crash.signal in configuration.ignore_signals:", "if False:"),
            ("unwanted.py", "if matches(exe, pattern):", "if False:"),
        ],
        "nobody_wants",
    ),
    # An image from scratch is tested with the role, which puts back what was taken out.
    "fate: nothing is lent": (
        [("deliver.py", "if configuration.lend and", "if False and")],
        "attack_25_the_program_that_is_lent",
    ),
    # Those whose tests are in crash/.
    "crash: an object has the name of a whole core": (
        [("relay.py", "self.result.cut and self.child.is_delegate()", "False")],
        "no_object_of_a_core",
    ),
    "crash: the soft limits of the delegate are those of the process": (
        [("privileges.py", "return soft if name == KEEPS_SOFT_LIMIT else hard, hard", "return soft, hard")],
        "resource_limits_of_the_delegate",
    ),
    "crash: a hard limit of 0 says nothing": (
        [("unwanted.py", "if configuration.obey_core_limit and", "if False and")],
        "a_hard_limit_of_0",
    ),
    "crash: a soft limit of 0 means no core": (
        [("unwanted.py", "(-1, -1))[1] == 0", "(-1, -1))[0] == 0")],
        "a_soft_limit_of_0",
    ),
    "crash: keys of program and second alone": (
        [
            ("key.py", 'procfs.read_path(RANDOM)[:13].replace(b"-", b"").decode(),', '"0" * 12,'),
            ("key.py", "            str(crash.pid),\n", '            "1",\n'),
            ("key.py", "harmless(place_of(process), LONGEST_PLACE),", '"box",'),
        ],
        "six_replicas",
    ),
    "crash: the filter knows no calls of 32 bits": (
        [
            (
                "seccomp.py",
                "return MACHINES[machine] if narrow else MACHINES[machine][:1]",
                "return MACHINES[machine][:1]",
            )
        ],
        "delegate_of_32_bits",
    ),
}
