"""The system calls that a delegate may not use where the faulting process had a seccomp filter.

The filter of a dumping process cannot be read, so the delegate gets ours instead. It denies what Docker's default profile
denies to a container without capabilities, and tracing; seccomp(2).
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
BPF_JEQ_K = 0x15
BPF_JGE_K = 0x35
BPF_JSET_K = 0x45
BPF_RET_K = 0x06

# Numbers from the kernel's unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64); None: there is no such call.
# fmt: off
DENIED: "dict[str, tuple[int | None, int | None]]" = {
    "_sysctl": (156, None), "acct": (163, 89), "add_key": (248, 217), "bpf": (321, 280), "chroot": (161, 51),
    "clock_adjtime": (305, 266), "clock_settime": (227, 112), "create_module": (174, None), "delete_module": (176, 106),
    "fanotify_init": (300, 262), "finit_module": (313, 273), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fsopen": (430, 430), "fspick": (433, 433), "get_kernel_syms": (177, None), "get_mempolicy": (239, 236),
    "init_module": (175, 105), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_uring_setup": (425, 425),
    "ioperm": (173, None), "iopl": (172, None), "kcmp": (312, 272), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "keyctl": (250, 219), "lookup_dcookie": (212, 18), "mbind": (237, 235),
    "migrate_pages": (256, 238), "mount": (165, 40),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "move_pages": (279, 239), "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42), "open_by_handle_at": (304, 265), "open_tree": (428, 428), "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438), "pivot_root": (155, 41), "pkey_alloc": (330, 289),
    "pkey_free": (331, 290), "pkey_mprotect": (329, 288), "process_madvise": (440, 440), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "ptrace": (101, 117), "query_module": (178, None), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "reboot": (169, 142), "request_key": (249, 218), "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450), "setdomainname": (171, 162), "sethostname": (170, 161), "setns": (308, 268),
    "settimeofday": (164, 170), "swapoff": (168, 225), "swapon": (167, 224),
    "sysfs": (139, None), "syslog": (103, 116), "umount2": (166, 39), "unshare": (272, 97), "uselib": (134, None),
    "userfaultfd": (323, 282), "ustat": (136, None), "vhangup": (153, 58),
}
# fmt: on

CLONE3 = 435
LAST_KNOWN = 450  # set_mempolicy_home_node, Linux 5.17: what came later is not there (ENOSYS), as for Docker 20.10.
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


class Architecture:
    """What the filter has to know of a machine."""

    def __init__(self, audit: int, column: int, clone: int, personality: int, socket: int) -> None:
        """Take AUDIT_ARCH_*, the column of DENIED, and the numbers of three calls whose arguments decide."""
        self.audit = audit
        self.column = column
        self.clone = clone
        self.personality = personality
        self.socket = socket


ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 0, clone=56, personality=135, socket=41),
    "aarch64": Architecture(0xC00000B7, 1, clone=220, personality=92, socket=198),
}


def architecture() -> Architecture:
    """Return the machine's. Raises Refused where no filter is known for it."""
    machine = posix.uname().machine
    if machine not in ARCHITECTURES:
        raise Refused(f"the process has a seccomp filter and there is none of ours for {machine}")
    return ARCHITECTURES[machine]


def deny_filter(machine: Architecture) -> bytes:
    """Return the filter for ``machine``, an array of struct sock_filter.

    Calls of another architecture (32 bit) answer ENOSYS, since their numbers mean other calls. clone3 does so, too: a filter
    cannot see its flags, and the C library falls back to clone.
    """
    program = [*_load(ARCH), BPF_JEQ_K, 1, 0, machine.audit, *_deny(ENOSYS)]
    program += [*_load(NUMBER), BPF_JGE_K, 0, 1, LAST_KNOWN + 1, *_deny(ENOSYS)]
    program += [BPF_JEQ_K, 0, 1, CLONE3, *_deny(ENOSYS)]
    namespaces = [*_load(FIRST_ARGUMENT), BPF_JSET_K, 0, 1, CLONE_NEW_ANY, *_deny(EPERM), *_allow()]
    vsock = [*_load(FIRST_ARGUMENT), BPF_JEQ_K, 0, 1, AF_VSOCK, *_deny(EPERM), *_allow()]
    personality = _load(FIRST_ARGUMENT)
    for value in PERSONALITIES:
        personality += [BPF_JEQ_K, 0, 1, value, *_allow()]
    personality += _deny(EPERM)
    for number, block in ((machine.clone, namespaces), (machine.socket, vsock), (machine.personality, personality)):
        program += [BPF_JEQ_K, 0, len(block) // 4, number, *block]
    numbers = [pair[machine.column] for pair in DENIED.values()]
    program += _search(sorted(number for number in numbers if number is not None))
    # One call for all: this runs at every crash in a container.
    return _struct.pack("=" + "HBBI" * (len(program) // 4), *program)


def _search(denied: "list[int]") -> "list[int]":
    """Return instructions that refuse the system calls ``denied``, sorted, and allow all others.

    A binary search: the kernel runs the filter for each system call there is when it is installed.
    """
    if len(denied) > 4:
        middle = len(denied) // 2
        below, above = _search(denied[:middle]), _search(denied[middle:])
        return [BPF_JGE_K, len(below) // 4, 0, denied[middle], *below, *above]
    program: list[int] = []
    for left, number in zip(range(len(denied), 0, -1), denied):
        program += [BPF_JEQ_K, left, 0, number]
    return program + _allow() + _deny(EPERM)


# An instruction is four numbers, as in struct sock_filter: code, jump if true, jump if false, value. Jumps count instructions.


def _load(offset: int) -> "list[int]":
    return [BPF_LD_W_ABS, 0, 0, offset]


def _allow() -> "list[int]":
    return [BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW]


def _deny(error: int) -> "list[int]":
    return [BPF_RET_K, 0, 0, SECCOMP_RET_ERRNO | error]
