"""seccomp: the search for a system call among those that are denied is a short one."""

from __future__ import annotations

import struct

from core_helper import seccomp


def decided(program: list[int], number: int) -> tuple[int, int]:
    """Return what the instructions say of a system call, and how many of them were executed."""
    position, executed = 0, 0
    while True:
        code, jump_true, jump_false, value = struct.unpack("=HBBI", struct.pack("=Q", program[position]))
        executed += 1
        if code == seccomp.BPF_RET_K:
            return value, executed
        true = number == value if code == seccomp.BPF_JEQ_K else number >= value
        position += 1 + (jump_true if true else jump_false)


def test_a_number_is_found_among_many_by_few_comparisons() -> None:
    # The kernel runs the filter for each system call that there is when it is installed.
    denied = list(range(10, 138, 2))
    program = seccomp._search(denied)
    answers = {number: decided(program, number) for number in range(150)}
    refused = seccomp.SECCOMP_RET_ERRNO | seccomp.EPERM
    for number, (answer, executed) in answers.items():
        assert answer == (refused if number in denied else seccomp.SECCOMP_RET_ALLOW)
        # 64 in halves down to 4, then each of those, and the answer.
        assert executed <= 4 + 4 + 1
