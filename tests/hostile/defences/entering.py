"""The way into the container: the interpreter, tracing, the program that becomes the delegate."""

from __future__ import annotations

from hostile.defences.kinds import Breaks, Edit

NO_MAGICLINKS: Edit = ("linux.py", "resolve: int = RESOLVE_NO_MAGICLINKS", "resolve: int = 0")
BOUNDING_SET_ALONE: Edit = (
    "first_process.py",
    'int(status["CapPrm"], 16) | int(status["CapBnd"], 16) | int(status["CapInh"], 16)',
    'int(status["CapBnd"], 16)',
)
KEEP_DESCRIPTORS: Edit = ("linux.py", "    lowest = 3\n", "    return\n    lowest = 3\n")
BREAKS: Breaks = {
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
    "02 the files of control groups are kept until exec": (
        [
            (
                "joining.py",
                "        if plan.late:\n            kept.update",
                "        if True:\n            kept.update",
            ),
            ("control_groups.py", "isinstance(file, int) and _counts_processes(name)]", "isinstance(file, int)]"),
        ],
        "attack_02_cap",
    ),
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
                "        opened = Program(words, plan.interpreter, descriptors, plan.root)\n"
                "        enter(plan, status)\n        # After",
            ),
            (
                "joining.py",
                "        program = Program(words, plan.interpreter, descriptors, plan.root)",
                "        program = opened",
            ),
        ],
        "attack_06_the_path and programs",
    ),
    "21 the interpreter is where everybody has it": (
        [("start.py", 'if is_exposed(crash) else ""', 'if False else ""')],
        "attack_21",
    ),
    "25 the program that is lent is executed itself": (
        [("lent.py", "self.descriptor = self._copy_of(file, size)", "self.descriptor = posix.dup(file)")],
        "attack_25_a_container",
    ),
    "25 the copy can be changed": ([("lent.py", "        linux.seal(copy)\n", "")], "attack_25_a_container"),
    "25 others may have changed what is lent": (
        [("lent.py", "        if changeable:\n", "        if False:\n")],
        "attack_25_a_program",
    ),
    "25 a sandbox names the words": (
        [("process.py", "        if self.confined:\n", "        if False:\n")],
        "attack_25_a_sandbox",
    ),
    "10 a user may do without a control group": (
        [("joining.py", "if failures and (not unmounted or process", "if failures and (process")],
        "whose_path_is_too_long and 5000",
    ),
    "21 the interpreter has the inode that everybody has": (
        [
            (
                "start.py",
                "for interpreter in (interpreter_of_overlay, interpreter_of_clone):",
                "for interpreter in (interpreter_of_clone,):",
            )
        ],
        "attack_21_cap_sys_ptrace_has_nobody_wait",
    ),
    "21 a Python that nobody can write to is executed as it is": (
        [
            (
                "start.py",
                "    task = procfs.task_of(crash.pid, crash.tid) + ",
                '    if posix.statvfs("/proc/self/exe").f_flag & ST_RDONLY:\n'
                "        return False\n"
                "    task = procfs.task_of(crash.pid, crash.tid) + ",
            )
        ],
        "attack_21_cap_sys_ptrace_has_nobody_wait",
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
}
