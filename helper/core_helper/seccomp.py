"""The system calls that a delegate may not use where the faulting process had a seccomp filter.

The filter of a dumping process cannot be read, so the delegate gets ours instead. It denies what Docker's default profile
denies to a container without capabilities, and tracing; seccomp(2). Where the process was one of 32 bits, it also knows the
calls of 32 bits of its machine, since the delegate is a program of either then.
"""

import _struct
import posix

from core_helper.crash import Refused

EPERM = 1
ENOSYS = 38
AF_VSOCK = 40
CLONE_NEW_ANY = 0x7E020000  # Every CLONE_NEW* flag that clone(2) takes; CLONE_NEWTIME is for clone3 and unshare only.
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000

# Offsets in struct seccomp_data, and the instructions of classic BPF that are needed (linux/bpf_common.h).
NUMBER, ARCH, FIRST_ARGUMENT = 0, 4, 16
BPF_LD_W_ABS = 0x20
BPF_JA = 0x05
BPF_JEQ_K = 0x15
BPF_JGE_K = 0x35
BPF_JSET_K = 0x45
BPF_RET_K = 0x06
VALUE = 32  # Where the value of an instruction begins, in bits; both machines are little-endian.

ALLOW = BPF_RET_K | SECCOMP_RET_ALLOW << VALUE
ANSWER_EPERM = BPF_RET_K | (SECCOMP_RET_ERRNO | EPERM) << VALUE
ANSWER_ENOSYS = BPF_RET_K | (SECCOMP_RET_ERRNO | ENOSYS) << VALUE

# Numbers from the kernel's unistd_64.h (x86_64), asm-generic/unistd.h (aarch64), unistd_32.h (i386) and unistd-eabi.h (arm);
# None: there is no such call. Of those that only 32 bits have, umount, stime, clock_settime64 and clock_adjtime64 do what other
# calls here do; the rest are out of use, and Docker allows none of them.
# fmt: off
DENIED: "dict[str, tuple[int | None, int | None, int | None, int | None]]" = {
    "_sysctl": (156, None, 149, 149), "acct": (163, 89, 51, 51), "add_key": (248, 217, 286, 309),
    "bdflush": (None, None, 134, 134), "bpf": (321, 280, 357, 386), "chroot": (161, 51, 61, 61),
    "clock_adjtime": (305, 266, 343, 372), "clock_adjtime64": (None, None, 405, 405), "clock_settime": (227, 112, 264, 262),
    "clock_settime64": (None, None, 404, 404), "create_module": (174, None, 127, None), "delete_module": (176, 106, 129, 129),
    "fanotify_init": (300, 262, 338, 367), "finit_module": (313, 273, 350, 379), "fsconfig": (431, 431, 431, 431),
    "fsmount": (432, 432, 432, 432), "fsopen": (430, 430, 430, 430), "fspick": (433, 433, 433, 433),
    "get_kernel_syms": (177, None, 130, None), "get_mempolicy": (239, 236, 275, 320), "idle": (None, None, 112, None),
    "init_module": (175, 105, 128, 128), "io_uring_enter": (426, 426, 426, 426), "io_uring_register": (427, 427, 427, 427),
    "io_uring_setup": (425, 425, 425, 425), "ioperm": (173, None, 101, None), "iopl": (172, None, 110, None),
    "kcmp": (312, 272, 349, 378), "kexec_file_load": (320, 294, None, 401), "kexec_load": (246, 104, 283, 347),
    "keyctl": (250, 219, 288, 311), "lookup_dcookie": (212, 18, 253, 249), "mbind": (237, 235, 274, 319),
    "migrate_pages": (256, 238, 294, 400), "mount": (165, 40, 21, 21), "mount_setattr": (442, 442, 442, 442),
    "move_mount": (429, 429, 429, 429), "move_pages": (279, 239, 317, 344), "name_to_handle_at": (303, 264, 341, 370),
    "nfsservctl": (180, 42, 169, 169), "oldfstat": (None, None, 28, None), "oldlstat": (None, None, 84, None),
    "oldolduname": (None, None, 59, None), "oldstat": (None, None, 18, None), "olduname": (None, None, 109, None),
    "open_by_handle_at": (304, 265, 342, 371), "open_tree": (428, 428, 428, 428), "perf_event_open": (298, 241, 336, 364),
    "pidfd_getfd": (438, 438, 438, 438), "pivot_root": (155, 41, 217, 218), "pkey_alloc": (330, 289, 381, 395),
    "pkey_free": (331, 290, 382, 396), "pkey_mprotect": (329, 288, 380, 394), "process_madvise": (440, 440, 440, 440),
    "process_vm_readv": (310, 270, 347, 376), "process_vm_writev": (311, 271, 348, 377), "ptrace": (101, 117, 26, 26),
    "query_module": (178, None, 167, None), "quotactl": (179, 60, 131, 131), "quotactl_fd": (443, 443, 443, 443),
    "readdir": (None, None, 89, None), "reboot": (169, 142, 88, 88), "request_key": (249, 218, 287, 310),
    "set_mempolicy": (238, 237, 276, 321), "set_mempolicy_home_node": (450, 450, 450, 450),
    "setdomainname": (171, 162, 121, 121), "sethostname": (170, 161, 74, 74), "setns": (308, 268, 346, 375),
    "settimeofday": (164, 170, 79, 79), "sgetmask": (None, None, 68, None), "sigaction": (None, None, 67, 67),
    "signal": (None, None, 48, None), "sigpending": (None, None, 73, 73), "sigsuspend": (None, None, 72, 72),
    "ssetmask": (None, None, 69, None), "stime": (None, None, 25, None), "swapoff": (168, 225, 115, 115),
    "swapon": (167, 224, 87, 87), "sysfs": (139, None, 135, 135), "syslog": (103, 116, 103, 103),
    "umount": (None, None, 22, None), "umount2": (166, 39, 52, 52), "unshare": (272, 97, 310, 337),
    "uselib": (134, None, 86, 86), "userfaultfd": (323, 282, 374, 388), "ustat": (136, None, 62, 62),
    "vhangup": (153, 58, 111, 111), "vm86": (None, None, 166, None), "vm86old": (None, None, 113, None),
}
# fmt: on

CLONE3 = 435
LAST_KNOWN = 450  # set_mempolicy_home_node, Linux 5.17: what came later is not there (ENOSYS), as for Docker 20.10.
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


class Architecture:
    """What the filter has to know of the system calls of one architecture."""

    def __init__(
        self,
        audit: int,
        column: int,
        *,
        clone: int,
        personality: int,
        socket: int,
        private: "tuple[int, ...]" = (),
    ) -> None:
        """Take AUDIT_ARCH_*, the column of DENIED, and the numbers of calls whose arguments decide.

        ``private`` are the numbers beyond LAST_KNOWN that are allowed.
        """
        self.audit = audit
        self.column = column
        self.clone = clone
        self.personality = personality
        self.socket = socket
        self.private = private


X86_64 = Architecture(0xC000003E, 0, clone=56, personality=135, socket=41)
AARCH64 = Architecture(0xC00000B7, 1, clone=220, personality=92, socket=198)
I386 = Architecture(0x40000003, 2, clone=120, personality=136, socket=359)
# breakpoint, cacheflush and set_tls, without which no C library starts (__ARM_NR_*, asm/unistd.h).
ARM = Architecture(0x40000028, 3, clone=120, personality=136, socket=281, private=(0xF0001, 0xF0002, 0xF0005))

# A kernel of 64 bits also runs programs of 32 bits, the second of each pair. Even a program of 64 bits may use the calls of
# i386, by int 0x80.
MACHINES = {"x86_64": (X86_64, I386), "aarch64": (AARCH64, ARM)}


def architectures(narrow: bool) -> "tuple[Architecture, ...]":
    """Return those of the machine, that of 32 bits only if ``narrow``. Raises Refused where no filter is known for it."""
    machine = posix.uname().machine
    if machine not in MACHINES:
        raise Refused(f"the process has a seccomp filter and there is none of ours for {machine}")
    return MACHINES[machine] if narrow else MACHINES[machine][:1]


# The filters that were made. A worker has that of 64 bits from its server.
_made: "dict[tuple[Architecture, ...], bytes]" = {}


def deny_filter(known: "tuple[Architecture, ...]") -> bytes:
    """Return the filter for the architectures ``known``, an array of struct sock_filter; made where it is asked for first."""
    if known not in _made:
        _made[known] = _filter_of(known)
    return _made[known]


def _filter_of(known: "tuple[Architecture, ...]") -> bytes:
    """Return the filter for the architectures ``known``.

    Calls of any other architecture answer ENOSYS, since their numbers mean other calls. Those of x32 do so, too: their numbers
    are above all others of x86_64.
    """
    program = [_load(ARCH)]
    for architecture in known:
        calls = _of(architecture)
        # A comparison jumps over 255 instructions at most; BPF_JA jumps over any number.
        program += [_if(BPF_JEQ_K, architecture.audit, 1, 0), BPF_JA | len(calls) << VALUE, *calls]
    program.append(ANSWER_ENOSYS)
    # One call for all: this runs at every crash in a container.
    return _struct.pack(f"={len(program)}Q", *program)


def _of(architecture: Architecture) -> "list[int]":
    """Return instructions that answer to the calls of ``architecture``.

    clone3 answers ENOSYS, since a filter cannot see its arguments: programs take clone instead. socketcall of i386 has no such
    substitute in the C library. It is allowed as by Docker, though no filter sees the family of the socket.
    """
    program = [_load(NUMBER)]
    for number in architecture.private:
        program += [_if(BPF_JEQ_K, number, 0, 1), ALLOW]
    program += [_if(BPF_JGE_K, LAST_KNOWN + 1, 0, 1), ANSWER_ENOSYS, _if(BPF_JEQ_K, CLONE3, 0, 1), ANSWER_ENOSYS]
    namespaces = [_load(FIRST_ARGUMENT), _if(BPF_JSET_K, CLONE_NEW_ANY, 0, 1), ANSWER_EPERM, ALLOW]
    vsock = [_load(FIRST_ARGUMENT), _if(BPF_JEQ_K, AF_VSOCK, 0, 1), ANSWER_EPERM, ALLOW]
    personality = [_load(FIRST_ARGUMENT)]
    for value in PERSONALITIES:
        personality += [_if(BPF_JEQ_K, value, 0, 1), ALLOW]
    personality.append(ANSWER_EPERM)
    decided = [(architecture.clone, namespaces), (architecture.socket, vsock), (architecture.personality, personality)]
    for number, block in decided:
        program += [_if(BPF_JEQ_K, number, 0, len(block)), *block]
    numbers = [row[architecture.column] for row in DENIED.values()]
    return program + _search(sorted([number for number in numbers if number is not None]))


def _search(denied: "list[int]") -> "list[int]":
    """Return instructions that refuse the system calls ``denied``, sorted, and allow all others.

    A binary search: the kernel runs the filter for each system call there is when it is installed.
    """
    if len(denied) > 4:
        middle = len(denied) // 2
        below, above = _search(denied[:middle]), _search(denied[middle:])
        return [_if(BPF_JGE_K, denied[middle], len(below), 0), *below, *above]
    program = [_if(BPF_JEQ_K, number, left, 0) for left, number in zip(range(len(denied), 0, -1), denied)]
    return [*program, ALLOW, ANSWER_EPERM]


# An instruction is a struct sock_filter as one number: code, jump if true, jump if false, value. Jumps count instructions.


def _load(offset: int) -> int:
    return BPF_LD_W_ABS | offset << VALUE


def _if(comparison: int, value: int, if_true: int, if_false: int) -> int:
    return comparison | if_true << 16 | if_false << 24 | value << VALUE
