"""linux: each wrapper does what its manual page says, and raises OSError with number, text and name of the call."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from core_helper import linux, procfs
from unit.helper.support import HELPER, in_child

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 2**22 + 1  # Above the highest pid that the kernel gives.


@pytest.mark.parametrize(
    ("call", "name", "number"),
    [
        (lambda: linux.prctl(9999), "prctl", errno.EINVAL),
        (lambda: linux.setns(-1, linux.CLONE_NEWNET), "setns", errno.EBADF),
        (lambda: linux.openat2(b"/missing/file", os.O_RDONLY), "openat2", errno.ENOENT),
        (lambda: linux.openat2(b"/", os.O_RDONLY, resolve=1 << 60), "openat2", errno.EINVAL),
        (lambda: linux.pidfd_open(NOBODY), "pidfd_open", errno.ESRCH),
        (lambda: linux.fork_into_cgroup(9999), "clone3", errno.EBADF),
        (lambda: linux.splice(-1, -1, 1), "splice", errno.EBADF),
        (lambda: linux.getrlimit(9999), "getrlimit", errno.EINVAL),
        (lambda: linux.setrlimit(9999, 0, 0), "setrlimit", errno.EINVAL),
        (lambda: linux.setrlimit(7, 2, 1), "setrlimit", errno.EINVAL),
        (lambda: linux.set_seccomp_filter(bytes(8)), "prctl", None),
    ],
)
def test_a_failure_is_an_oserror_with_the_name_of_the_call(
    call: Callable[[], object], name: str, number: int | None
) -> None:
    with pytest.raises(OSError, match=name) as caught:
        call()
    if number is not None:
        assert caught.value.errno == number
    assert caught.value.errno and caught.value.filename == name
    assert caught.value.strerror == os.strerror(caught.value.errno)


def test_the_exception_is_the_librarys_class_for_its_number() -> None:
    with pytest.raises(FileNotFoundError):
        linux.openat2(b"/missing", os.O_RDONLY)
    with pytest.raises(ProcessLookupError):
        linux.pidfd_open(NOBODY)


def test_capabilities_that_are_not_permitted_cannot_be_taken() -> None:
    def become() -> object:
        linux.capset(0, 0, 0)
        try:
            linux.capset(1 << 32, 1 << 32, 0)
        except OSError as error:
            return error.errno, error.filename, linux.permitted_capabilities()
        return "succeeded"

    assert in_child(become) == [errno.EPERM, "capset", 0]


def test_an_ambient_capability_must_be_permitted() -> None:
    def become() -> object:
        linux.capset(0, 0, 0)
        linux.set_ambient(0)
        try:
            linux.set_ambient(1)
        except OSError as error:
            return error.errno, error.filename
        return "succeeded"

    assert in_child(become) == [errno.EPERM, "prctl"]


def test_the_bounding_set_cannot_be_changed_without_privilege_and_that_is_told() -> None:
    def become() -> object:
        linux.capset(0, 0, 0)
        try:
            linux.drop_from_bounding_set(0)
        except OSError as error:
            return error.errno, error.filename
        return "succeeded"

    assert in_child(become) == [errno.EPERM, "prctl"]


def test_dropping_from_the_bounding_set_ends_at_the_first_number_that_the_kernel_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped: list[int] = []

    def prctl(option: int, capability: int) -> None:
        assert option == linux.PR_CAPBSET_DROP
        if capability > 40:
            raise OSError(errno.EINVAL, "Invalid argument", "prctl")
        dropped.append(capability)

    monkeypatch.setattr(linux, "prctl", prctl)
    linux.drop_from_bounding_set(0b101 | 1 << 40 | 1 << 63)
    assert dropped == [number for number in range(41) if number not in (0, 2, 40)]


def test_permitted_capabilities_are_those_in_status() -> None:
    status = procfs.parse_status(Path("/proc/self/status").read_bytes())
    assert linux.permitted_capabilities() == int(status["CapPrm"], 16)


@pytest.mark.parametrize(
    "pair", [(0, 0), (5, 6), (-1, -1), (1 << 40, -1), (0, (1 << 63) - 1), (1 << 63, (1 << 64) - 2)]
)
def test_limits_are_set_and_read_in_64_bits(pair: tuple[int, int]) -> None:
    def become() -> object:
        linux.setrlimit(15, *pair)
        return linux.getrlimit(15)

    assert tuple(in_child(become)) == pair


def test_opened_files_are_close_on_exec_and_have_the_mode(tmp_path: Path) -> None:
    descriptor = linux.openat2(os.fsencode(tmp_path / "new"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    assert os.get_inheritable(descriptor) is False
    assert os.fstat(descriptor).st_mode & 0o777 == 0o600
    os.close(descriptor)


@pytest.mark.parametrize("path", [b"/proc/self/exe", b"/proc/self/root/etc", b"/proc/self/cwd", b"/proc/self/fd/0"])
def test_magic_links_are_refused(path: bytes) -> None:
    with pytest.raises(OSError, match="symbolic links") as caught:
        linux.openat2(path, os.O_PATH)
    assert caught.value.errno == errno.ELOOP


def test_a_pidfd_becomes_readable_when_the_child_ends() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    descriptor = linux.pidfd_open(pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(5000) == [(descriptor, select.POLLIN)]
    assert os.get_inheritable(descriptor) is False
    os.close(descriptor)
    os.waitpid(pid, 0)


def test_a_process_that_does_not_dump_core_has_no_core_dump_mask() -> None:
    descriptor = linux.pidfd_open(os.getpid())
    assert linux.pidfd_coredump_mask(descriptor) is None
    os.close(descriptor)
    assert linux.pidfd_coredump_mask(descriptor) is None
    with open("/dev/null") as file:
        assert linux.pidfd_coredump_mask(file.fileno()) is None


@pytest.mark.parametrize(
    ("answered", "mask", "expected"),
    [(0x10, 5, 5), (0x17, 9, 9), (0x10, 4, None), (0x10, 0, None), (0x07, 5, None), (0, 0, None)],
)
def test_the_core_dump_mask_counts_only_if_the_kernel_answered_and_dumps(
    monkeypatch: pytest.MonkeyPatch, answered: int, mask: int, expected: int | None
) -> None:
    def ioctl(descriptor: int, request: int, buffer: bytearray, mutate: bool) -> int:
        assert (descriptor, request, len(buffer), mutate) == (3, 0xC048FF0B, 72, True)
        assert int.from_bytes(buffer[:8], sys.byteorder) & 0x10
        buffer[:8] = answered.to_bytes(8, sys.byteorder)
        buffer[64:68] = mask.to_bytes(4, sys.byteorder)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert linux.pidfd_coredump_mask(3) == expected


def test_splice_moves_until_the_end_and_never_waits() -> None:
    source_out, source_in = os.pipe()
    sink_out, sink_in = os.pipe()
    with pytest.raises(BlockingIOError):
        linux.splice(source_out, sink_in, 100)
    os.write(source_in, b"core")
    assert linux.bytes_in_pipe(source_out) == 4
    assert linux.splice(source_out, sink_in, 3) == 3
    assert linux.splice(source_out, sink_in, 100) == 1
    os.close(source_in)
    assert linux.splice(source_out, sink_in, 100) == 0
    assert (linux.bytes_in_pipe(sink_in), os.read(sink_out, 100)) == (4, b"core")
    os.close(sink_out)
    for descriptor in (source_out, sink_in):
        os.close(descriptor)


def test_the_size_of_a_pipe_is_raised_and_a_refusal_is_no_failure() -> None:
    reading, writing = os.pipe()
    linux.set_pipe_size(writing, 1 << 17)
    assert fcntl.fcntl(writing, 1032) == 1 << 17  # F_GETPIPE_SZ
    linux.set_pipe_size(writing, (1 << 31) - 1)
    linux.set_pipe_size(-1 & 0x7FFFFFFF, 1)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("old_kernel", [False, True])
@pytest.mark.parametrize(
    ("keep", "left"), [("set()", [0, 1, 2]), ("{5, 9}", [0, 1, 2, 5, 9]), ("{0, 3, 4, 200}", [0, 1, 2, 3, 4, 200])]
)
def test_every_descriptor_but_a_few_is_closed(old_kernel: bool, keep: str, left: list[int]) -> None:
    program = (
        f"import os, sys; sys.path.insert(0, {str(HELPER)!r})\n"
        "from core_helper import linux\n"
        f"if {old_kernel}: linux.NR_CLOSE_RANGE = 9999\n"
        "for number in (3, 4, 5, 6, 7, 9, 200): os.dup2(0, number)\n"
        f"linux.close_all_but({keep})\n"
        "def is_open(number):\n"
        "    try: os.fstat(number)\n"
        "    except OSError: return False\n"
        "    return True\n"
        "print([number for number in range(300) if is_open(number)])"
    )
    printed = subprocess.run([sys.executable, "-BIc", program], stdout=subprocess.PIPE, check=True).stdout
    assert json.loads(printed) == left
