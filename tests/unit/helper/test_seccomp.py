"""seccomp: the filter's numbers against the kernel's headers, its program interpreted, and the filter at work."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from core_helper import linux, privileges, procfs, seccomp
from core_helper.crash import Refused
from unit.helper.support import in_child, process

# Debian's linux-libc-dev has the headers of all machines. From Linux 6.11 on aarch64 has one of its own, made of a table.
HEADERS = {
    "x86_64": ["x86_64-linux-gnu/asm/unistd_64.h"],
    "aarch64": ["aarch64-linux-gnu/asm/unistd_64.h", "asm-generic/unistd.h"],
}
MACHINES = sorted(seccomp.ARCHITECTURES)
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
# The three calls whose arguments decide.
DECIDED = ("clone", "personality", "socket")


def numbers(machine: str) -> dict[str, int]:
    """Return the system calls of ``machine`` as the kernel's header of this host numbers them."""
    header = next((path for path in map(Path("/usr/include").joinpath, HEADERS[machine]) if path.exists()), None)
    if header is None:
        pytest.skip(f"/usr/include has none of {HEADERS[machine]}: package linux-libc-dev")
    found: dict[str, str] = dict(re.findall(r"^#define (__NR\w*)\s+(\w+)", header.read_text(), re.MULTILINE))
    # asm-generic/unistd.h defines some by another name, __NR3264_*.
    resolved = {name: found.get(value, value) for name, value in found.items() if name.startswith("__NR_")}
    return {name[5:]: int(value) for name, value in resolved.items() if value.isdigit()}


def interpret(program: bytes, machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """Return what the classic BPF ``program`` answers to a system call; linux/bpf_common.h, linux/seccomp.h."""
    architecture = seccomp.ARCHITECTURES[machine].audit if audit is None else audit
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, architecture, 0x7FFF12345678, *(value & 2**64 - 1 for value in padded))
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, value = instructions[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value != 0}[code]
            position += if_true if holds else if_false


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", [*sorted(seccomp.DENIED), "clone3"])
def test_a_denied_call_has_the_number_of_the_kernels_header(machine: str, name: str) -> None:
    known = numbers(machine)
    ours = seccomp.CLONE3 if name == "clone3" else seccomp.DENIED[name][seccomp.ARCHITECTURES[machine].column]
    if ours is not None and ours > max(known.values()):
        pytest.skip(f"the header of this host ends at {max(known.values())}, before {name}")
    assert known.get(name) == ours


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_whose_arguments_decide_have_the_numbers_of_the_kernels_header(machine: str) -> None:
    known, architecture = numbers(machine), seccomp.ARCHITECTURES[machine]
    assert [known[name] for name in DECIDED] == [architecture.clone, architecture.personality, architecture.socket]


def test_what_reaches_the_kernel_or_other_processes_is_denied() -> None:
    # A list of its own, so that a line that is lost from the table is missed.
    assert set(seccomp.DENIED) >= {
        *("acct", "add_key", "bpf", "chroot", "clock_settime", "delete_module", "finit_module", "fsconfig", "fsmount"),
        *(
            "fsopen",
            "fspick",
            "init_module",
            "io_uring_setup",
            "ioperm",
            "iopl",
            "kcmp",
            "kexec_file_load",
            "kexec_load",
        ),
        *("keyctl", "mount", "mount_setattr", "move_mount", "name_to_handle_at", "open_by_handle_at", "open_tree"),
        *("perf_event_open", "pidfd_getfd", "pivot_root", "process_vm_readv", "process_vm_writev", "ptrace", "reboot"),
        *("request_key", "setdomainname", "sethostname", "setns", "settimeofday", "swapoff", "swapon", "syslog"),
        *("umount2", "unshare", "userfaultfd"),
    }


def test_no_number_is_denied_twice() -> None:
    for machine in MACHINES:
        denied = [pair[seccomp.ARCHITECTURES[machine].column] for pair in seccomp.DENIED.values()]
        known = [number for number in denied if number is not None]
        assert len(known) == len(set(known))


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_is_answered_as_the_table_says(machine: str) -> None:
    architecture = seccomp.ARCHITECTURES[machine]
    program = seccomp.deny_filter(architecture)
    denied = {pair[architecture.column] for pair in seccomp.DENIED.values()}
    for number in range(601):
        expected = EPERM if number in denied else ALLOW
        if number == seccomp.CLONE3 or number > seccomp.LAST_KNOWN:
            expected = ENOSYS
        assert interpret(program, machine, number) == expected, number


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("number", [2**31 - 1, 2**31, 2**32 - 1, 0x40000000, 0x40000000 + 101, 0x40000000 + 520])
def test_calls_of_the_x32_interface_and_huge_numbers_do_not_exist(machine: str, number: int) -> None:
    program = seccomp.deny_filter(seccomp.ARCHITECTURES[machine])
    assert interpret(program, machine, number) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
# i386, arm, the other of the two, and none.
@pytest.mark.parametrize("audit", [0x40000003, 0x40000028, 0xC000003E, 0xC00000B7, 0])
def test_calls_of_another_architecture_do_not_exist(machine: str, audit: int) -> None:
    architecture = seccomp.ARCHITECTURES[machine]
    program = seccomp.deny_filter(architecture)
    if audit != architecture.audit:
        assert {interpret(program, machine, number, audit=audit) for number in range(601)} == {ENOSYS}


NEW = {
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
OF_THREADS, OF_FORK, OF_VFORK = 0x3D0F00, 0x01200011, 0x4111


@pytest.mark.parametrize("machine", MACHINES)
def test_clone_makes_processes_and_threads_but_no_namespaces(machine: str) -> None:
    architecture = seccomp.ARCHITECTURES[machine]
    program = seccomp.deny_filter(architecture)
    for usual in (OF_THREADS, OF_FORK, OF_VFORK, 17, 0):
        assert interpret(program, machine, architecture.clone, usual) == ALLOW
        for name, flag in NEW.items():
            assert interpret(program, machine, architecture.clone, usual | flag) == EPERM, name
    # Only the first argument holds flags.
    assert interpret(program, machine, architecture.clone, 17, 0x7E020000, 0x7E020000) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_sockets_reach_everything_but_the_machine_around(machine: str) -> None:
    architecture = seccomp.ARCHITECTURES[machine]
    program = seccomp.deny_filter(architecture)
    for family in range(60):
        assert interpret(program, machine, architecture.socket, family) == (EPERM if family == 40 else ALLOW)
    # The kernel takes an int: what stands above 32 bits does not change the family.
    assert interpret(program, machine, architecture.socket, 40 | 1 << 32) == EPERM
    assert interpret(program, machine, architecture.socket, 1, 40) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("value", [0, 8, 0x20000, 0x20008, 0xFFFFFFFF, 1, 4, 0x40000, 0x400000, 0x20009, 0xFFFFFFFE])
def test_the_personality_may_be_asked_for_but_not_weakened(machine: str, value: int) -> None:
    architecture = seccomp.ARCHITECTURES[machine]
    answer = interpret(seccomp.deny_filter(architecture), machine, architecture.personality, value)
    assert answer == (ALLOW if value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF) else EPERM)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_is_whole_and_short_enough_for_the_kernel(machine: str) -> None:
    program = seccomp.deny_filter(seccomp.ARCHITECTURES[machine])
    assert len(program) % 8 == 0 and len(program) // 8 < 4096
    # The kernel wants the last instruction to be a return.
    assert struct.unpack("=HBBI", program[-8:])[0] == 0x06


def test_a_machine_without_a_filter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posix.uname", lambda: os.uname_result(("Linux", "box", "6.1", "#1", "s390x")))
    with pytest.raises(Refused, match="s390x"):
        seccomp.architecture()


here = pytest.mark.skipif(os.uname().machine not in MACHINES, reason="no filter of ours for this machine")


def install() -> None:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.set_seccomp_filter(seccomp.deny_filter(seccomp.architecture()))


def call(number: int, *arguments: int) -> int:
    """Return the errno of a system call with ``arguments``, 0 where it succeeded; missing ones are -1, so harmless."""
    library = ctypes.CDLL(None, use_errno=True)
    padded = [*arguments, -1, -1, -1, -1, -1, -1][:6]
    result = library.syscall(number, *(ctypes.c_long(value) for value in padded))
    return ctypes.get_errno() if result == -1 else 0


@here
def test_the_kernel_denies_every_call_of_the_table() -> None:
    column = seccomp.architecture().column
    # A filter that let one through must not do damage, so the capabilities go first.
    denied = {name: pair[column] for name, pair in seccomp.DENIED.items() if pair[column] is not None}

    def attempt() -> object:
        linux.capset(0, 0, 0)
        install()
        return {name: call(number) for name, number in denied.items() if number is not None}

    assert in_child(attempt) == dict.fromkeys(denied, errno.EPERM)


@here
def test_the_kernel_answers_to_the_argument_cases() -> None:
    machine = seccomp.architecture()

    def attempt() -> object:
        install()
        return {
            "clone3": call(seccomp.CLONE3),
            "after the last known": call(seccomp.LAST_KNOWN + 1),
            "new user namespace": call(machine.clone, NEW["CLONE_NEWUSER"] | 17, 0, 0, 0, 0),
            "vsock": call(machine.socket, 40, 1, 0),
            "unix": call(machine.socket, 1, 1, 0),
            "query": call(machine.personality, 0xFFFFFFFF),
            "no randomization": call(machine.personality, 0x40000),
        }

    assert in_child(attempt) == {
        "clone3": errno.ENOSYS,
        "after the last known": errno.ENOSYS,
        "new user namespace": errno.EPERM,
        "vsock": errno.EPERM,
        "unix": 0,
        "query": 0,
        "no randomization": errno.EPERM,
    }


@here
@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["/bin/true"], ""),
        (["/bin/sh", "-c", "(echo a | cat; exit 3); echo $?"], "a\n3\n"),
        (
            [
                sys.executable,
                "-BIc",
                "import threading, socket, tempfile, subprocess\n"
                "t = threading.Thread(target=lambda: subprocess.run(['/bin/echo', 'b'], check=True))\n"
                "t.start(); t.join(); socket.socket().close(); tempfile.TemporaryFile().write(b'x')",
            ],
            "b\n",
        ),
    ],
    ids=["true", "sh", "python"],
)
def test_a_normal_program_runs_under_the_filter(words: list[str], output: str) -> None:
    def attempt() -> object:
        install()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert in_child(attempt) == [0, output, ""]


@here
def test_the_filter_stays_after_an_execve() -> None:
    def attempt() -> object:
        privileges.confine(process(seccomp=2))
        status = subprocess.run(["/bin/cat", "/proc/self/status"], stdout=subprocess.PIPE, check=True).stdout
        return procfs.parse_status(status)["Seccomp"]

    assert in_child(attempt) == "2"
