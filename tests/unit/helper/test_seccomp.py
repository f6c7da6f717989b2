"""seccomp: the filter's numbers against the kernel's headers, its program interpreted, and the filter at work."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from core_helper import linux, privileges, procfs, seccomp
from core_helper.crash import Refused
from unit.helper.support import in_child, narrow_program, process

if TYPE_CHECKING:
    Call = tuple[int, int, int]  # A number, the first argument, and what stands for all others.

# Debian's linux-libc-dev has the headers of its own machine, and from Debian 13 on those of all. From Linux 6.11 on aarch64 has
# one of its own, made of a table.
HEADERS = {
    "x86_64": ["x86_64-linux-gnu/asm/unistd_64.h"],
    "aarch64": ["aarch64-linux-gnu/asm/unistd_64.h", "asm-generic/unistd.h"],
    "i386": ["i386-linux-gnu/asm/unistd_32.h", "x86_64-linux-gnu/asm/unistd_32.h"],
    "arm": ["arm-linux-gnueabihf/asm/unistd-eabi.h"],
}
ARCHITECTURES = {
    "x86_64": seccomp.X86_64,
    "aarch64": seccomp.AARCH64,
    "i386": seccomp.I386,
    "arm": seccomp.ARM,
}
# Each with the architectures that its machine knows, of which it is one.
PROGRAMS = {
    name: seccomp.deny_filter(known)
    for known in seccomp.MACHINES.values()
    for name, architecture in ARCHITECTURES.items()
    if architecture in known
}
NAMES = sorted(ARCHITECTURES)
MACHINES = sorted(seccomp.MACHINES)
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
# The calls whose arguments decide.
DECIDED = ("clone", "personality", "socket")


def numbers(name: str) -> dict[str, int]:
    """Return the system calls of an architecture as the kernel's header of this host numbers them."""
    header = next((path for path in map(Path("/usr/include").joinpath, HEADERS[name]) if path.exists()), None)
    if header is None:
        pytest.skip(f"/usr/include has none of {HEADERS[name]}: package linux-libc-dev")
    # What asm-generic/unistd.h has for 32 bits is none of aarch64.
    text = re.sub(r"(?ms)^#if [^\n]*__BITS_PER_LONG == 32\n.*?^#endif$", "", header.read_text())
    # arm counts from a base, which is 0.
    text = re.sub(r"\(__NR_SYSCALL_BASE \+ ?([0-9]+)\)", r"\1", text)
    found: dict[str, str] = dict(re.findall(r"^#define (__NR\w*)\s+(\w+)", text, re.MULTILINE))
    # asm-generic/unistd.h defines some by another name, __NR3264_*.
    resolved = {name: found.get(value, value) for name, value in found.items() if name.startswith("__NR_")}
    return {name[5:]: int(value) for name, value in resolved.items() if value.isdigit()}


@functools.lru_cache(maxsize=1)
def libseccomp() -> ctypes.CDLL:
    """Return the library by which engines make their filters: its tables are another source than the kernel's headers."""
    try:
        return ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("this host has no libseccomp.so.2: package libseccomp2")


def told_by_libseccomp(name: str, call: str) -> int | None:
    """Return the number of a call, None where the architecture has none; seccomp_syscall_resolve_name(3)."""
    audit = ctypes.c_uint32(ARCHITECTURES[name].audit)
    number = int(libseccomp().seccomp_syscall_resolve_name_arch(audit, call.encode()))
    if number == -1:
        pytest.skip(f"the libseccomp of this host is older than {call}")
    # What another architecture has is a negative number.
    return number if number >= 0 else None


def interpret(program: bytes, name: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """Return what the classic BPF ``program`` answers to a system call; linux/bpf_common.h, linux/seccomp.h."""
    architecture = ARCHITECTURES[name].audit if audit is None else audit
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
        elif code == 0x05:
            position += value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value != 0}[code]
            position += if_true if holds else if_false


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", [*sorted(seccomp.DENIED), "clone3"])
def test_a_denied_call_has_the_number_of_the_kernels_header(name: str, call: str) -> None:
    known = numbers(name)
    ours = seccomp.CLONE3 if call == "clone3" else seccomp.DENIED[call][ARCHITECTURES[name].column]
    if ours is not None and ours > max(known.values()):
        pytest.skip(f"the header of this host ends at {max(known.values())}, before {call}")
    assert known.get(call) == ours


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", [*sorted(seccomp.DENIED), "clone3"])
def test_a_denied_call_has_the_number_that_libseccomp_knows(name: str, call: str) -> None:
    ours = seccomp.CLONE3 if call == "clone3" else seccomp.DENIED[call][ARCHITECTURES[name].column]
    assert told_by_libseccomp(name, call) == ours


@pytest.mark.parametrize("name", NAMES)
def test_calls_whose_arguments_decide_have_the_numbers_of_the_kernels_header(name: str) -> None:
    known = numbers(name)
    assert [known.get(call) for call in DECIDED] == [getattr(ARCHITECTURES[name], call) for call in DECIDED]


@pytest.mark.parametrize("call", DECIDED)
def test_calls_of_arm_whose_arguments_decide_have_the_numbers_that_libseccomp_knows(call: str) -> None:
    # That of i386 hides that there is a call socket, since Linux 4.3.
    assert told_by_libseccomp("arm", call) == getattr(seccomp.ARM, call)


def test_the_private_calls_of_arm_are_those_of_the_engine() -> None:
    assert [told_by_libseccomp("arm", call) for call in ("breakpoint", "cacheflush", "set_tls")] == [
        *seccomp.ARM.private
    ]
    for number in range(0xEFFFF, 0xF0010):
        assert interpret(PROGRAMS["arm"], "arm", number) == (ALLOW if number in seccomp.ARM.private else ENOSYS)
        for name in ("aarch64", "i386", "x86_64"):
            assert interpret(PROGRAMS[name], name, number) == ENOSYS


@pytest.mark.parametrize(("wide", "narrow"), list(seccomp.MACHINES.values()), ids=MACHINES)
def test_what_is_denied_in_64_bits_is_denied_in_32(wide: seccomp.Architecture, narrow: seccomp.Architecture) -> None:
    # The calls that only 64 bits have, on x86_64 and on aarch64; arm never had, or has no more, those for i386 alone.
    missing = {
        call for call, row in seccomp.DENIED.items() if row[wide.column] is not None and row[narrow.column] is None
    }
    of_i386 = {"create_module", "get_kernel_syms", "ioperm", "iopl", "query_module"}
    assert missing == {seccomp.I386: {"kexec_file_load"}, seccomp.ARM: set()}[narrow]
    assert {call for call, row in seccomp.DENIED.items() if row[0] is not None and row[3] is None} == of_i386
    # And by each of its names.
    assert {"clock_settime64", "clock_adjtime64"} <= {
        call for call, row in seccomp.DENIED.items() if row[narrow.column]
    }
    assert {"umount", "stime"} <= {call for call, row in seccomp.DENIED.items() if row[seccomp.I386.column]}


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
    for architecture in ARCHITECTURES.values():
        denied = [row[architecture.column] for row in seccomp.DENIED.values()]
        known = [number for number in denied if number is not None]
        assert len(known) == len(set(known))


@pytest.mark.parametrize("name", NAMES)
def test_every_call_is_answered_as_the_table_says(name: str) -> None:
    architecture = ARCHITECTURES[name]
    denied = {row[architecture.column] for row in seccomp.DENIED.values()}
    for number in range(601):
        expected = EPERM if number in denied else ALLOW
        if number == seccomp.CLONE3 or number > seccomp.LAST_KNOWN:
            expected = ENOSYS
        assert interpret(PROGRAMS[name], name, number) == expected, number


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [2**31 - 1, 2**31, 2**32 - 1, 0x40000000, 0x40000000 + 101, 0x40000000 + 520])
def test_calls_of_the_x32_interface_and_huge_numbers_do_not_exist(name: str, number: int) -> None:
    assert interpret(PROGRAMS[name], name, number) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
# i386, arm, aarch64, x86_64, arm of the other byte order, s390x, and none.
@pytest.mark.parametrize("audit", [0x40000003, 0x40000028, 0xC00000B7, 0xC000003E, 0x28, 0x80000016, 0])
def test_calls_of_another_architecture_do_not_exist(machine: str, audit: int) -> None:
    known = seccomp.MACHINES[machine]
    program = seccomp.deny_filter(known)
    if audit not in {architecture.audit for architecture in known}:
        calls = (*range(601), *seccomp.ARM.private)
        assert {interpret(program, machine, number, audit=audit) for number in calls} == {ENOSYS}


@pytest.mark.parametrize("machine", MACHINES)
def test_each_jump_leads_forward_to_an_instruction(machine: str) -> None:
    program = seccomp.deny_filter(seccomp.MACHINES[machine])
    instructions = list(struct.iter_unpack("=HBBI", program))
    for position, (code, if_true, if_false, value) in enumerate(instructions, 1):
        assert code in {0x05, 0x06, 0x15, 0x20, 0x35, 0x45}
        if code in {0x06, 0x20}:
            assert if_true == if_false == 0
        else:
            assert position + (value if code == 0x05 else max(if_true, if_false)) < len(instructions)
    # A jump that did not fit into its 8 bits would have gone into its neighbour's: one of the two is always 0.
    assert not any(if_true and if_false for _, if_true, if_false, _ in instructions)
    assert max(if_true for _, if_true, _, _ in instructions) < 255 > max(if_false for _, _, if_false, _ in instructions)


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


@pytest.mark.parametrize("name", NAMES)
def test_clone_makes_processes_and_threads_but_no_namespaces(name: str) -> None:
    clone, program = ARCHITECTURES[name].clone, PROGRAMS[name]
    for usual in (OF_THREADS, OF_FORK, OF_VFORK, 17, 0):
        assert interpret(program, name, clone, usual) == ALLOW
        for kind, flag in NEW.items():
            assert interpret(program, name, clone, usual | flag) == EPERM, kind
    # Only the first argument holds flags.
    assert interpret(program, name, clone, 17, 0x7E020000, 0x7E020000) == ALLOW


@pytest.mark.parametrize("name", NAMES)
def test_sockets_reach_everything_but_the_machine_around(name: str) -> None:
    socket, program = ARCHITECTURES[name].socket, PROGRAMS[name]
    for family in range(60):
        assert interpret(program, name, socket, family) == (EPERM if family == 40 else ALLOW)
    # The kernel takes an int: what stands above 32 bits does not change the family.
    assert interpret(program, name, socket, 40 | 1 << 32) == EPERM
    assert interpret(program, name, socket, 1, 40) == ALLOW


def test_i386_may_make_its_sockets_by_socketcall_as_its_c_library_does() -> None:
    for call in range(22):
        assert interpret(PROGRAMS["i386"], "i386", 102, call) == ALLOW


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, 8, 0x20000, 0x20008, 0xFFFFFFFF, 1, 4, 0x40000, 0x400000, 0x20009, 0xFFFFFFFE])
def test_the_personality_may_be_asked_for_but_not_weakened(name: str, value: int) -> None:
    answer = interpret(PROGRAMS[name], name, ARCHITECTURES[name].personality, value)
    assert answer == (ALLOW if value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF) else EPERM)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_is_whole_and_short_enough_for_the_kernel(machine: str) -> None:
    program = seccomp.deny_filter(seccomp.MACHINES[machine])
    assert len(program) % 8 == 0 and len(program) // 8 < 4096
    # The kernel wants the last instruction to be a return.
    assert struct.unpack("=HBBI", program[-8:])[0] == 0x06


def test_a_machine_without_a_filter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posix.uname", lambda: os.uname_result(("Linux", "box", "6.1", "#1", "s390x")))
    with pytest.raises(Refused, match="s390x"):
        seccomp.architectures(False)


here = pytest.mark.skipif(os.uname().machine not in MACHINES, reason="no filter of ours for this machine")


def install(narrow: bool = True) -> None:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.set_seccomp_filter(seccomp.deny_filter(seccomp.architectures(narrow)))


def call(number: int, *arguments: int) -> int:
    """Return the errno of a system call with ``arguments``, 0 where it succeeded; missing ones are -1, so harmless."""
    library = ctypes.CDLL(None, use_errno=True)
    padded = [*arguments, -1, -1, -1, -1, -1, -1][:6]
    result = library.syscall(number, *(ctypes.c_long(value) for value in padded))
    return ctypes.get_errno() if result == -1 else 0


@here
def test_the_kernel_denies_every_call_of_the_table() -> None:
    column = seccomp.architectures(False)[0].column
    # A filter that let one through must not do damage, so the capabilities go first.
    denied = {name: row[column] for name, row in seccomp.DENIED.items() if row[column] is not None}

    def attempt() -> object:
        linux.capset(0, 0, 0)
        install()
        return {name: call(number) for name, number in denied.items() if number is not None}

    assert in_child(attempt) == dict.fromkeys(denied, errno.EPERM)


@here
def test_the_kernel_answers_to_the_argument_cases() -> None:
    machine = seccomp.architectures(False)[0]

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


# push rbx; mov eax, edi; mov ebx, esi; mov ecx, edx; mov edi, edx; int 0x80; pop rbx; ret
INT_0X80 = bytes.fromhex("53 89f8 89f3 89d1 89d7 cd80 5b c3")
# A program of arm. Behind it stand the calls, up to the number -1. It makes each, puts the answer in place of the number, and
# writes all to standard output. If it may not end then, it comes to an instruction that is none.
LOOP = bytes.fromhex(
    "50808fe2 007098e5 010077e3 0800000a 040098e5 081098e5 0120a0e1 0130a0e1 0140a0e1 0150a0e1 000000ef 0c0088e4 f3ffffea"
    "0100a0e3 18108fe2 012048e0 0470a0e3 000000ef 0000a0e3 0170a0e3 000000ef f000f0e7"
)


def call_of_i386(number: int, first: int, others: int) -> int:
    """Return what a system call of i386 answers. This program is one of 64 bits."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(INT_0X80)
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int)
    return int(kind(ctypes.addressof(ctypes.c_char.from_buffer(code)))(number, first, others))


def calls_of_arm(calls: list[Call]) -> list[int]:
    """Return what system calls of arm answer to a program that makes them; raises CalledProcessError if it cannot say so."""
    table = b"".join(struct.pack("<3i", *call) for call in calls) + struct.pack("<i", -1)
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(narrow_program(LOOP + table))
    try:
        os.chmod(file.name, 0o755)
        told = subprocess.run([file.name], stdout=subprocess.PIPE, check=True).stdout
    finally:
        os.unlink(file.name)
    return [answer for answer, _first, _others in struct.iter_unpack("<3i", told)]


def narrow_calls(calls: list[Call]) -> list[int]:
    """Return the errnos of system calls of 32 bits, 0 for each that succeeded."""
    answers = calls_of_arm(calls) if os.uname().machine == "aarch64" else [call_of_i386(*call) for call in calls]
    return [-answer if -4096 < answer < 0 else 0 for answer in answers]


GETPID, SOCKETCALL = 20, 102  # Of i386; arm has getpid there, too, and no socketcall.


def the_narrow_one() -> seccomp.Architecture:
    """Return the architecture of the programs of 32 bits that this machine runs; skips where it runs none."""
    if os.uname().machine not in MACHINES or sys.maxsize < 1 << 32:
        pytest.skip("only a program of 64 bits on x86_64 or aarch64 meets two kinds of system calls")
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            os._exit(narrow_calls([(GETPID, 0, 0)])[0])
        except OSError:
            os._exit(1)
    if os.waitpid(child, 0)[1] != 0:
        pytest.skip("the kernel takes no system call of 32 bits")
    return seccomp.MACHINES[os.uname().machine][1]


def test_the_kernel_denies_every_call_of_the_table_to_32_bits() -> None:
    column = the_narrow_one().column
    denied = {name: row[column] for name, row in seccomp.DENIED.items() if row[column] is not None}

    def attempt() -> object:
        linux.capset(0, 0, 0)
        install()
        return narrow_calls([(number, -1, -1) for number in denied.values() if number is not None])

    assert dict(zip(denied, in_child(attempt))) == dict.fromkeys(denied, errno.EPERM)


def test_where_the_process_was_one_of_64_bits_no_call_of_32_is_there() -> None:
    the_narrow_one()

    def attempt() -> object:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        install(narrow=False)
        try:
            return narrow_calls([(number, -1, -1) for number in (GETPID, 64, SOCKETCALL)])
        except subprocess.CalledProcessError as error:
            return error.returncode, error.stdout.decode()

    # The program of arm can neither write nor end.
    expected = [-signal.SIGILL, ""] if os.uname().machine == "aarch64" else [errno.ENOSYS] * 3
    assert in_child(attempt) == expected


def test_the_kernel_answers_to_the_argument_cases_of_32_bits() -> None:
    narrow = the_narrow_one()
    expected: dict[Call, int] = {
        (GETPID, -1, -1): 0,
        (seccomp.CLONE3, -1, -1): errno.ENOSYS,
        (seccomp.LAST_KNOWN + 1, -1, -1): errno.ENOSYS,
        (0x40000000 | GETPID, -1, -1): errno.ENOSYS,
        (narrow.clone, NEW["CLONE_NEWUSER"] | 17, 0): errno.EPERM,
        (narrow.socket, 40, 1): errno.EPERM,
        (narrow.socket, 1, 1): 0,
        (SOCKETCALL, 2, -1): errno.EFAULT if narrow is seccomp.I386 else errno.ENOSYS,
        (narrow.personality, -1, -1): 0,
        (narrow.personality, 0x40000, -1): errno.EPERM,
    }
    if narrow is seccomp.ARM:
        # cacheflush of nothing, set_tls, and the neighbour that reads what that has set.
        expected.update({(0xF0002, 0, 0): 0, (0xF0005, 0, 0): 0, (0xF0006, 0, 0): errno.ENOSYS})

    def attempt() -> object:
        install()
        return narrow_calls(list(expected))

    assert dict(zip(expected, in_child(attempt))) == expected


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
