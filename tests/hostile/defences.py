"""The defences that broken.py takes out one at a time: what stands in the helper, what takes its place, and the attack then."""

from __future__ import annotations

Edit = tuple[str, str, str]  # A file of the library, what stands there, and what takes its place.

NO_MAGICLINKS: Edit = ("linux.py", "resolve: int = RESOLVE_NO_MAGICLINKS", "resolve: int = 0")
BOUNDING_SET_ALONE: Edit = (
    "first_process.py",
    'int(status["CapPrm"], 16) | int(status["CapBnd"], 16) | int(status["CapInh"], 16)',
    'int(status["CapBnd"], 16)',
)
KEEP_DESCRIPTORS: Edit = ("linux.py", "    lowest = 3\n", "    return\n    lowest = 3\n")
BREAKS: dict[str, tuple[list[Edit], str]] = {
    "01 interpreter may be a magic link, or our own": (
        [NO_MAGICLINKS, ("program.py", "identity(found) == forbidden", "False")],
        "attack_01",
    ),
    "01 the kernel opens the interpreter": (
        [
            ("program.py", 'if not line.startswith(b"#!"):', "if True:"),
            ("program.py", "self.execution.run()", "posix.execve(self.arguments[0], self.arguments, {})"),
        ],
        "attack_01_proc",
    ),
    "02 processes are dumpable": (
        [("start.py", "linux.prctl(linux.PR_SET_DUMPABLE, 0)", "pass")],
        "attack_02_looking",
    ),
    "02 processes are dumpable, for root of the container": (
        [("start.py", "linux.prctl(linux.PR_SET_DUMPABLE, 0)", "pass")],
        "attack_02_looking and root",
    ),
    "02 descriptors are kept until exec": ([KEEP_DESCRIPTORS], "attack_02_cap"),
    "03 the kernel's pidfd is inherited": (
        [
            KEEP_DESCRIPTORS,
            ("main.py", "posix.set_inheritable(crash.pidfd, False)", "posix.set_inheritable(crash.pidfd, True)"),
        ],
        "attack_03",
    ),
    "04 a module is imported in the container": (
        [
            ("status_pipe.py", "        lock_interpreter()\n", ""),
            ("joining.py", "        program = Program(", "        import colorsys  # noqa\n        program = Program("),
        ],
        "attack_04",
    ),
    "04 an extension module is imported in the container": (
        [
            ("status_pipe.py", "        lock_interpreter()\n", ""),
            ("joining.py", "        program = Program(", "        import _bz2  # noqa\n        program = Program("),
        ],
        "attack_04",
    ),
    "04 a user is looked up in the container": (
        [
            ("joining.py", "import posix\n", "import posix, pwd\n"),
            ("joining.py", "        program = Program(", "        pwd.getpwuid(4711)\n        program = Program("),
        ],
        "attack_04",
    ),
    "04 text is converted in the container": (
        [
            (
                "joining.py",
                "        program = Program(",
                "        convert = linux._ReturnsLong(linux._ctypes.dlsym(linux._program, 'iconv_open'))\n"
                "        convert(b'UTF-8', b'BIG5')\n        program = Program(",
            ),
        ],
        "attack_04",
    ),
    "04 a program of the host is executed in the container": (
        [
            (
                "joining.py",
                '        descriptors = posix.open("/proc/self/fd"',
                '        linux.HOST = posix.open("/proc/self/exe", posix.O_PATH | posix.O_CLOEXEC)\n'
                '        descriptors = posix.open("/proc/self/fd"',
            ),
            ("program.py", "linux.openat2(path, posix.O_PATH)", "posix.dup(linux.HOST)"),
            ("program.py", "identity(found) == forbidden", "False"),
        ],
        "attack_04",
    ),
    "05 failures are told with a traceback": (
        [
            ("status_pipe.py", "import posix\n", "import posix, traceback\n"),
            (
                "status_pipe.py",
                '{self.step}: {error}")\n            elif isinstance(error, OSError)',
                '{"".join(traceback.format_exception(error))}")\n            elif isinstance(error, OSError)',
            ),
        ],
        "attack_05",
    ),
    "06 anything may be the delegate": (
        [NO_MAGICLINKS, ("program.py", "if found.st_mode & linux.S_IFMT != linux.S_IFREG:", "if False:")],
        "attack_06_the_path",
    ),
    "06 the delegate is opened from the host": (
        [
            NO_MAGICLINKS,
            (
                "joining.py",
                "        enter(plan, status)\n        # After",
                "        words = [b'/proc/self/fd/%d' % process.root + words[0]]\n"
                "        program = Program(words, plan.interpreter, descriptors, plan.root)\n"
                "        enter(plan, status)\n        # After",
            ),
            ("joining.py", "        program = Program(words, plan.interpreter, descriptors, plan.root)\n", ""),
        ],
        "attack_06_the_path and programs",
    ),
    "07 the process is not verified": (
        [("verification.py", '    if status.get("CoreDumping") != "1":', "    return\n    if False:")],
        "attack_07",
    ),
    "07 the pidfd of the kernel is not compared": (
        [("verification.py", 'if procfs.parse_status(fdinfo).get("Pid") != str(crash.pid):', "if False:")],
        "attack_07_the_pid",
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
    "12 only the session is ended": ([("supervisor.py", "in _holders(child, process)", "in []")], "attack_12_a_daemon"),
    "12 whoever holds the pipe lives on": (
        [("supervisor.py", "in _holders(child, process)", "in []")],
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
    "13 no share of the slots": ([("slots.py", "held < weight * free", "True")], "attack_13_one"),
    "14 the limit of cores is taken over": (
        [("privileges.py", '    "Max resident set": 5,', '    "Max core file size": 4,\n    "Max resident set": 5,')],
        "attack_14",
    ),
    "15 names are written as they are": (
        [
            (
                "journal.py",
                'return "".join(chr(byte) if 32',
                'return text.decode("latin-1")\n    return "".join(chr(byte) if 32',
            )
        ],
        "attack_15",
    ),
    "15 a path may push the rest out of the line": (
        [("journal.py", "if len(exe) > NAME_LIMIT:", "if False:")],
        "attack_15_a_path",
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
    "20 the mount namespace is not asked for": (
        [("deliver.py", "        membership.check(process)\n", "        pass\n")],
        "attack_20",
    ),
    "20 who is at home there is not asked": (
        [("strangers.py", "    if find(process", "    if False and find(process")],
        "attack_20_the_first_process_of_an_agent_is_no_proof",
    ),
    "20 the program is not asked for": (
        [("foreign_files.py", '    number = mount_table.mount_of_link(task, "exe")\n', "    return\n")],
        "attack_20_an_agent_in_the_files_of_a_container or attack_20 and itself",
    ),
    "20 the pid namespace is not asked for": (
        [("membership.py", 'if first.pid_namespace != process.inode("pid"):', "if False:")],
        "attack_20_a_process_of_the_host_that_was_moved",
    ),
    "20 the control group is not asked for": (
        [("membership.py", "            _check_group(process, first)\n", "            pass\n")],
        "attack_20_a_process",
    ),
    "20 the user namespace of the mounts is not asked for": (
        [("membership.py", "        _check_owner(process)\n", "")],
        "attack_20_root",
    ),
    "20 the root directory is not asked for": (
        [
            (
                "foreign_files.py",
                "    process, path = view.process, view.path\n",
                "    return\n    process, path = view.process, view.path\n",
            ),
            ("container.py", "if mount != mount_table.mount_of(root, proc_self) and", "if False and"),
        ],
        "attack_20",
    ),
    "21 the interpreter is where everybody has it": (
        [("start.py", 'if is_exposed(crash) else ""', 'if False else ""')],
        "attack_21",
    ),
    "22 who has much may add as much": (
        [("slots.py", "held < weight * free", "held < 48")],
        "attack_22_three",
    ),
    "22 lines are not rationed": (
        [("journal.py", "quota.admit(self.log.holder) if self.log.holder else", "")],
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
    "20 other networks are not asked": (
        [("membership.py", "process.inode(kind) != first.namespace(kind) for kind", "False for kind")],
        "attack_20_an_intruder_that_has_kept",
    ),
    "20 a process that is ending has no control groups": (
        [("runtime.py", "common = first.keys() & second.keys()", "common = {*list(first)[:1]} & {*list(second)[:1]}")],
        "does_not_come_to_its_end",
    ),
    "20 a user namespace is not asked for its user": (
        [
            (
                "membership.py",
                "    if not made or (process.uid == 0 and",
                "    if False and (process.uid == 0 and",
            )
        ],
        "attack_20_no_program_of_a_user and without",
    ),
    "20 the maker of a user namespace is at home there, even root": (
        [("membership.py", "    if not made or (process.uid == 0 and", "    if not made or (False and")],
        "attack_20_root_of_the_host_in_a_user_namespace_that_root",
    ),
    "20 whoever may write in a root directory is trusted": (
        [("joining.py", "root = procfs.path_of(process.root)", 'root = b"/"')],
        "attack_20_a_user_of_a_container",
    ),
    "24 a slice is a control group like any other": (
        [("runtime.py", 'if group[1] != b"/" and not group[1].endswith(SLICE)]', 'if group[1] != b"/"][:1]')],
        "attack_24_a_filter_of_its_own_where",
    ),
    "22 the services of a slice have one share": (
        [("runtime.py", "if number is not None and rank > best:", "if number is not None and chosen is None:")],
        "attack_22_sandboxes_of_one_service",
    ),
    "20 a slice joins nobody, whatever other hierarchies tell": (
        [("runtime.py", "        if group is None and theirs.endswith(SLICE) and", "        if False and")],
        "a_slice_in_one_hierarchy",
    ),
    "20 too many processes end the search": (
        [
            (
                "first_process.py",
                "runtime.named_group(process.cgroups) or runtime.group_of_unit(process.cgroups)",
                "process.cgroups[0]",
            ),
            (
                "first_process.py",
                "    except Refused:\n        found = []",
                "    except ZeroDivisionError:\n        found = []",
            ),
        ],
        "the_control_groups_of_others",
    ),
    "23 tracers are not ended": (
        [("supervisor.py", " and _kill_tracers(pid, process):", " and False:")],
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
    "24 filters are compared with a constant": (
        [
            (
                "membership.py",
                "process.confined = process.seccomp_filters > min(member.filters for member in members)",
                "pass",
            )
        ],
        "attack_24 or attack_19_a_process",
    ),
    "fate: what was not read is lost": (
        [("relay.py", "self.result.untouched = not self.committed", "self.result.untouched = False")],
        "read_nothing_leaves",
    ),
    "20 the root directory is asked for after more capabilities only": (
        [
            (
                "membership.py",
                "        foreign_files.check_root(view, joined)\n",
                "        if joined:\n            foreign_files.check_root(view, joined)\n",
            )
        ],
        "attack_20_chroot_without",
    ),
    "20 the layers of an overlay are not looked at": (
        [("foreign_files.py", ", *map(host.place_of_layer, mount_table.layers_of(overlay))", "")],
        "attack_20_root_of_the_host_in_what",
    ),
    "20 who has left the mounts of the first process is nowhere at home": (
        [("strangers.py", "        return mount_table.sees(member.directory, executed)", "        return False")],
        "attack_20_the_first_process_of_an_agent_in_mounts",
    ),
    "20 other mounts than those of the first process need no proof": (
        [("membership.py", "        if joined or not view.own:", "        if joined:")],
        "attack_20_a_process_of_the_host_with_the_rights and ended",
    ),
    "21 control groups are joined after the fork": (
        [
            ("joining.py", "        _check_groups(process, plan.groups.join(), status)\n", ""),
            ("joining.py", "\n    if plan.late:\n", "\n    if True:\n"),
            ("joining.py", "plan.groups.join(counting_only=True)", "plan.groups.join()"),
        ],
        "attack_21_cap_sys_ptrace_never_finds",
    ),
    "21 reports have no bound": (
        [("supervisor.py", "        if amount > LONGEST_REPORTS:\n", "        if False:\n")],
        "attack_21_cap_sys_ptrace_floods",
    ),
    "22 who made a control group is not asked": (
        [("slots.py", '{owner} {group[0]}", owner)', '{owner} {group[0]}", None)')],
        "attack_22_a_user_of_the_host_names",
    ),
    "22 a container is each of its pid namespaces": (
        [("slots.py", "            if maker is not None:\n", "            if False:\n")],
        "attack_22_many_users",
    ),
    "22 a pid namespace that root makes is nobody's": (
        [("slots.py", "Holder(name, _instigator_of(crash, cgroups), by_root=True)", "Holder(name, None)")],
        "attack_22_pid_namespaces and sandboxes",
    ),
    "22 a container that nobody has named is each of its users": (
        [
            ("slots.py", "NOBODY if by_root else self.owner", "self.owner"),
            ("slots.py", "NOBODY - (user_of(crash.uid)", "NOBODY - (crash.uid"),
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
    "21 capabilities outside of the bounding set do not count": (
        [BOUNDING_SET_ALONE],
        "attack_21_cap_sys_ptrace_never_finds_a_process",
    ),
    "21 capabilities outside of the bounding set do not count, before Linux 5.12": (
        [BOUNDING_SET_ALONE],
        "attack_21_cap_sys_ptrace_never_finds_the_interpreter",
    ),
    "21 the leader stands for all threads": (
        [("tracing.py", 'threads = posix.listdir(f"/proc/{name}/task")', "threads = [name]")],
        "attack_21_cap_sys_ptrace_never_finds_a_process and leader",
    ),
    "15 a user may name a container": (
        [("runtime.py", '"" if maker == 0 else', '"" if True else')],
        "attack_15_a_user",
    ),
    "15 a user may claim a record": (
        [
            ("record.py", "runtime.maker_of(*group[1:]) != 0", "False"),
            ("record.py", "if _is_of(pid_file, process, group):", "if True:"),
        ],
        "attack_15_a_user_of_the_host_claims",
    ),
    "15 the first process of a record is not asked": (
        [
            ("record.py", "runtime.maker_of(*group[1:]) != 0", "False"),
            ("record.py", "if runtime.outermost_group(first.cgroups) != group:", "if False:"),
            ("record.py", "return first.mount_namespace", "return True or first.mount_namespace"),
            ("record.py", "return namespace is not None and", "return True or"),
        ],
        "attack_15_a_user_of_the_host_claims",
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
    "23 one thread does everything": (
        [("supervisor.py", "_thread.start_new_thread(_attend, (", "_attend(*(")],
        "attack_23_the_delegate_has_the_kernel",
    ),
    "23 the threads of a process are not looked at": (
        [("supervisor.py", 'for thread in posix.listdir(f"/proc/{name}/task"):', "for thread in [name]:")],
        "attack_23_the_delegate_has_the_kernel and thread",
    ),
    "20 what engines have mounted on the host is not looked at": (
        [("foreign_files.py", "        if _is_of_an_engine(place, home, view.host()):", "        if False:")],
        "attack_20_the_files_of_a_container_that_hides",
    ),
    "20 a root directory that is no mount is nobody's": (
        [
            (
                "foreign_files.py",
                "        return self.process.visits.mounts_of_namespace(namespace, *self.numbers())",
                "        return mount_table.mounts_of(self.process.task, *self.numbers())",
            ),
            (
                "foreign_files.py",
                "    if number not in table:\n",
                "    if number not in table:\n        return\n    if False:\n",
            ),
        ],
        "attack_20_root_of_the_host_with_mounts_of_its_own",
    ),
    "20 the other namespaces are not asked for": (
        [("membership.py", "            _check_eldest(process, member)\n", "            pass\n")],
        "attack_20_a_process_of_the_host_that_has_kept",
    ),
    "20 whatever a user mounts is his": (
        [("strangers.py", ' if owner == namespaces.of_host("user") else None', "")],
        "attack_20_a_user_of_the_host_claims_a_directory",
    ),
    "20 the first of a pid namespace is the first of a container": (
        [("first_process.py", "        if _may_be_another(init, process, group):", "        if False:")],
        "attack_20_a_pid_namespace_of_its_own",
    ),
    "20 the control group of a service tells its root directory": (
        [
            (
                "foreign_files.py",
                "        if self.first is None or self.process.shows_no_container():",
                "        if self.first is None:",
            )
        ],
        "attack_20_a_service_of_the_host",
    ),
    "20 a layer is not what its link leads to": (
        [("mount_table.py", "            target = posix.readlink(path)\n", "            raise OSError\n")],
        "attack_20_a_layer_of_an_image",
    ),
    "20 who is not at home is no stranger to the host": (
        [("strangers.py", "            strange = host and (", "            strange = False and (")],
        "attack_20_root_of_the_host_in_a_sandbox",
    ),
    "20 the sandboxes of users are containers in mounts of the host": (
        [("strangers.py", "and not (hosts and _is_of_user(member))", "")],
        "attack_20_others and user",
    ),
    "20 a monitor is its container": (
        [("runtime.py", " and engine not in MONITORS", "")],
        "attack_20_others and monitor",
    ),
    "20 the user namespace alone tells whose a sandbox is": (
        [("strangers.py", "        return namespaces.owner_of(opened[1]) != host", "        return True")],
        "attack_20_others and become",
    ),
    "20 a name on a control group is anybody's": (
        [("strangers.py", "not runtime.maker_of(*group[1:])", "False")],
        "attack_20_others and root",
    ),
    "20 what a user has mounted is read": (
        [("mount_table.py", 'if b" - fuse" in line and', "if False and")],
        "attack_20_a_user_of_the_host_makes",
    ),
    "20 what a user has mounted is read where an engine may have mounted it": (
        [("mount_table.py", 'return mount.kind.startswith(b"fuse") and', "return mount.kind not in OVERLAYS and")],
        "attack_20_a_user_makes_the_list_of_the_host",
    ),
    "20 a list that is cut off tells no root directory": (
        [
            (
                "mount_table.py",
                "    # The last line may have been cut off in its mount point.\n",
                '    if len(text) == procfs.MOUNTINFO_LIMIT:\n        raise Refused("too long")\n',
            )
        ],
        "attack_20_a_user_makes_the_list_of_a_service",
    ),
    "20 mounts are looked for in the first ones only": (
        [("mount_table.py", "LONGEST_LIST = 1 << 26", "LONGEST_LIST = 1 << 22")],
        "attack_20_a_user_makes_the_list_of_an_agent",
    ),
    "23 a visit to mounts has no end": (
        [("mount_table.py", "while poll.poll(max(0.0, limit - time.monotonic()) * 1000):", "while poll.poll():")],
        "attack_23_a_helper_that_enters",
    ),
    "23 a visit to the mounts of others has no end": (
        [("mount_table.py", "while poll.poll(max(0.0, limit - time.monotonic()) * 1000):", "while poll.poll():")],
        "attack_23_helpers_of_others",
    ),
    "20 every process is asked for its mounts": (
        [
            ("strangers.py", ' if owner == namespaces.of_host("user") else None', ""),
            ("strangers.py", "        if inode not in roots:", "        if not roots.get(inode):"),
        ],
        "attack_20_many_mounts_and_many_processes",
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
    "24 the container around a sandbox is not asked": (
        [("first_process.py", "                others.append(eldest)\n", "                pass\n")],
        "attack_24_a_filter",
    ),
    "fate: nothing is ready before the limits": (
        [
            ("joining.py", "    program.prepare(environment)\n", ""),
            (
                "joining.py",
                "    program.execute(status)",
                "    program.prepare(environment)\n    program.execute(status)",
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
    "keeping: a store that others may enter": (
        [("store.py", "if found.st_uid != 0 or found.st_mode & 0o077:", "if False:")],
        "others_could_change and (mode or owner)",
    ),
    "keeping: a loop pushes out the cores of others": (
        [("store.py", "if self.left.get(self.group) and self.taken[self.group] > share:", "if False:")],
        "crashes_in_a_loop",
    ),
    "keeping: what nobody writes any more counts": (
        [("store.py", "if entry.whole or _is_being_written(group, entry):", "if True:")],
        "helper_that_was_killed",
    ),
    "keeping: no second chance": (
        [("deliver.py", "if failed is not None and delivery.begins_again(", "if False and delivery.begins_again(")],
        "second_chance",
    ),
    "keeping: a core that was taken stays": (
        [("delivery.py", "        if self.custody is not None:\n            self.custody.drop()", "        pass")],
        "delegate_takes_does_not_stay",
    ),
    "keeping: a delegate that has read a part has taken it": (
        [("delivery.py", "if self.custody is None or (result.complete", "if True or (result.complete")],
        "delegate_loses or counts_as_taken",
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
    "custody: a core may take what is free, and not what it has claimed": (
        [("custody.py", "        self.room = need\n", "        self.room = 1 << 40\n")],
        "never_in_memory",
    ),
    "custody: a first core has room whatever it pushes out": (
        [("store.py", "        elif self.need > max(share, self.bound // FIRST):", "        elif False:")],
        "pretends_to_have",
    ),
    "custody: cores go where others have filled the disk": (
        [("store.py", "None if left >= need and freed >= need else ", "")],
        "others_fill",
    ),
    "custody: whoever finishes a core waits for its process": (
        [("custody.py", "poll.poll(PATIENCE * 1000)", "poll.poll()")],
        "stays_keeps_none",
    ),
    "custody: what is compressed has no bound": (
        [
            (
                "finishing.py",
                "min(kept_in.room(configuration) - SPARE, posix.fstat(file).st_blocks * store.BLOCK)",
                "1 << 40",
            )
        ],
        "compressed_of_it",
    ),
    "keeping: the delegate starts while the kernel dumps": (
        [("deliver.py", "            if destination.secured:\n", "            if False:\n")],
        "nothing_else or stopped_during",
    ),
    "keeping: the process waits for its delegate": (
        [("delivery.py", "if self.configuration.release_kept:", "if False:")],
        "come_after_the_process",
    ),
    "keeping: no bound": (
        [("store.py", "bound - sum(weight(entry, bound) for entry in entries)", "bound")],
        "thousand",
    ),
    "keeping: the sender is root": (
        [("sender.py", "os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)", "pass")],
        "sent_by_a_user",
    ),
    "keeping: the sender is not told that a core was cut off": (
        [("sender.py", '"1" if self.core["truncated"] else "0"', '"0"')],
        "sent_under_a_name",
    ),
    "fate: the process goes on after the deadline": (
        [("source.py", "linux.pidfd_send_signal(crash.handle, SIGKILL)", "pass")],
        "terabytes_in_as_many or walks_on_through",
    ),
    "fate: 75 means nothing": ([("relay.py", "EXIT_KEEP = 75", "EXIT_KEEP = 76")], "asks_to_keep"),
    "fate: an environment that was overwritten is not noticed": (
        [("process.py", "if procfs.was_overwritten(text):", "if False:")],
        "overwritten_its_environment",
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
    "23 a tracer that another one holds stays": (
        [("supervisor.py", "                traced.append(tracer)\n", "")],
        "end_of_the_tracer",
    ),
    "23 descriptors are looked at without end": (
        [
            (
                "supervisor.py",
                "                if time.monotonic() > limit:\n                    return False",
                "                if False:\n                    return False",
            )
        ],
        "many_descriptors",
    ),
    "20 who has no number is our user": ([("program.py", " - {OVERFLOW_UID}", "")], "look_alike"),
}
