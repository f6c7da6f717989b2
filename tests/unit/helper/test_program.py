"""delegate.Program: finding and executing the delegate, compared with what the kernel itself does."""

from __future__ import annotations

import errno
import fcntl
import os
import posix
import re
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from core_helper import program as program_module
from core_helper import status_pipe
from core_helper.program import Program, Stopped, identity, loader_of, parse_script_line, refuse_changeable
from unit.helper.support import execute, executed, executed_by_helper, executed_by_kernel, program, script
from unit.helper.world import keeps_descriptors


def padded(name: bytes, length: int) -> bytes:
    """Return a path of ``length`` bytes to the program ``name``."""
    return name.rjust(length, b"/")


TRUE = b"bin/true"
LINES = [
    b"#!/bin/true\n",
    b"#! \t /bin/true \t\n",
    b"#!/bin/true -a b  c \t \n",
    b"#!/bin/true\ta\tb\n",
    b"#!/bin/true \xff\xfe\"'\\$\n",
    b"#!/bin/true",
    b"#!/bin/true\0\n",
    b"#!/bin/true a\0b\n",
    b"#!/bin/true\n\0more\n",
    b"#!/bin/true\r\n",
    b"#!/bin/true\x0ba\n",
    b"#!/missing\n",
    b"#!/bin/true " + b" " * 300 + b"\n",
    b"#!/bin/true " + b"a" * 241 + b" b\n",
    b"#!/bin/true " + b"a" * 243 + b"\n",
    b"#!" + padded(TRUE, 252) + b"\n",
    b"#!" + padded(TRUE, 253) + b"\n",
    b"#!" + padded(TRUE, 254) + b"\n",
    b"#!" + padded(TRUE, 252),
    b"#!" + padded(TRUE, 253),
    b"#!" + padded(TRUE, 254),
    b"#!" + padded(TRUE, 300) + b"\n",
    b"#!" + padded(TRUE, 253) + b" x\n",
    b"#!" + padded(TRUE, 254) + b" x\n",
    b"#!" + b" " * 244 + b"/bin/true\n",
    b"#!" + b" " * 245 + b"/bin/true\n",
    b"#!" + b" " * 300 + b"/bin/true\n",
    b"#!\n",
    b"#!",
    b"#! ",
    b"#!   \n",
    b"#!\0",
    b"#",
    b"",
    b" #!/bin/true\n",
    b"\n#!/bin/true\n",
    b"# !/bin/true\n",
    b"echo without a first line\n",
    # Of the 256 bytes that the kernel reads, the last one becomes the end of the string.
    b"#!" + padded(TRUE, 252) + b" x\n",
    b"#!" + padded(TRUE, 251) + b" xyz\n",
    b"#!/bin/true " + b"a" * 300 + b"\n",
    b"#!/bin/true " + b"a" * 242 + b" b\n",
    # A file that ends within the line; what is read is filled up with NUL, which is no blank.
    b"#!/bin/true ",
    b"#!/bin/true a ",
    b"#!/bin/true \0\n",
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line[:20]!r}-{len(line)}")
def test_a_script_is_executed_as_the_kernel_would(tmp_path: Path, line: bytes) -> None:
    path = script(tmp_path / "delegate", line)
    kernel, helper = executed_by_kernel(path, b"s3://bucket/", b""), executed_by_helper(path, b"s3://bucket/", b"")
    assert bool(kernel.error) is bool(helper.error), (kernel.error, helper.error)
    assert helper.arguments == kernel.arguments
    assert helper.program == kernel.program


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 7])
def test_scripts_name_scripts_as_deep_as_the_kernel_allows(tmp_path: Path, depth: int) -> None:
    interpreter = b"/bin/true"
    for level in range(depth):
        path = script(tmp_path / f"level{level}", b"#!" + interpreter + b" -%d x\n" % level)
        interpreter = os.fsencode(path)
    kernel, helper = executed_by_kernel(path, b"last"), executed_by_helper(path, b"last")
    assert bool(kernel.error) is bool(helper.error) is (depth > 5)
    assert helper.arguments == kernel.arguments
    if depth <= 5:
        assert len(helper.arguments) == 2 * depth + 2
    else:
        assert "more than 5 scripts" in helper.error


def test_an_interpreter_without_an_absolute_path_is_refused_whatever_the_directory_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(tmp_path / "delegate", b"#!true\n")
    (tmp_path / "true").symlink_to("/bin/true")
    monkeypatch.chdir(tmp_path)
    assert "interpreter true is not an absolute path" in executed_by_helper(path).error


def test_a_program_is_executed_with_its_arguments_and_environment() -> None:
    words = [b"/bin/true", b"", b"a b", b"\xff"]
    environment = {b"A": b"1", b"B\xff": b"x=y\n"}
    done = executed(lambda reporter: execute(program(words), environment, reporter))
    assert (done.arguments, done.environment) == (words, [b"A=1", b"B\xff=x=y\n"])
    assert done.program == os.path.realpath("/bin/true")
    assert (done.error, done.reported) == ("", b"")


def test_nothing_is_read_from_or_done_to_the_path_after_it_was_opened(tmp_path: Path) -> None:
    path = script(tmp_path / "delegate", b"#!/bin/true first\n")

    def replace_and_execute(reporter: status_pipe.StatusPipe) -> None:
        opened = program([os.fsencode(path)])
        script(path, b"#!/bin/false second\n")
        execute(opened, {}, reporter)

    assert executed(replace_and_execute).arguments == [b"/bin/true", b"first", os.fsencode(path)]


def refusal(path: Path, forbidden: tuple[int, int] | None = None) -> str:
    with pytest.raises(Stopped) as caught:
        program([os.fsencode(path)], forbidden)
    return type(caught.value).__name__ + ": " + str(caught.value)


def test_a_program_that_has_become_a_script_since_it_was_opened_is_not_executed(tmp_path: Path) -> None:
    file = script(tmp_path / "delegate", Path("/bin/true").read_bytes())

    def run(reporter: status_pipe.StatusPipe) -> None:
        opened = program([os.fsencode(file)])
        file.write_bytes(b"#!/bin/sh\n")
        execute(opened, {}, reporter)

    execution = executed(run)
    told = f"Stopped: {file}: its dynamic loader is not there: install that one, or link the program statically"
    assert (execution.program, re.sub(r"loader /\S+ is", "loader is", execution.error)) == ("", told)


def elf(bits: int, order: Literal["little", "big"], loader: bytes) -> bytes:
    """Return the first bytes of a program with two program headers, of which the second names the loader."""
    word, half = bits // 8, 2
    size, entry = (64, 56) if bits == 64 else (52, 32)

    def number(value: int, length: int) -> bytes:
        return value.to_bytes(length, order)

    def header(kind: int) -> bytes:
        start, filled = number(size + 2 * entry, word), number(len(loader) + 1, word)
        if bits == 64:
            return number(kind, 4) + bytes(4) + start + bytes(16) + filled + bytes(16)
        return number(kind, 4) + start + bytes(8) + filled + bytes(12)

    begin = b"\x7fELF" + bytes([bits // 32, 1 if order == "little" else 2]) + bytes(10)
    fields = bytes(8) + bytes(word) + number(size, word) + bytes(word) + bytes(4)
    counts = number(size, half) + number(entry, half) + number(2, half) + bytes(6)
    return begin + fields + counts + header(6) + header(3) + loader + b"\0"


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("bits", [32, 64])
def test_the_loader_of_a_program_is_the_one_that_its_header_names(bits: int, order: Literal["little", "big"]) -> None:
    begin = elf(bits, order, b"/lib/ld-musl.so.1")
    assert loader_of(begin) == b"/lib/ld-musl.so.1"
    # What is not in the bytes at hand is not made up.
    assert b"/lib/ld-musl.so.1".startswith(loader_of(begin[:-5]))
    for length in range(len(begin)):
        assert b"/lib/ld-musl.so.1".startswith(loader_of(begin[:length]))
    for position in range(len(begin)):
        for value in (0, 255):
            loader_of(begin[:position] + bytes([value]) + begin[position + 1 :])


@pytest.mark.parametrize("begin", [b"", b"#!/bin/sh\n", b"\x7fELF", bytes(4096), b"\x7fELF\2\1" + b"\xff" * 4090])
def test_what_is_no_program_with_a_loader_names_none(begin: bytes) -> None:
    assert loader_of(begin) == b""


def test_the_loader_of_a_program_of_this_machine_is_found() -> None:
    found = program([b"/bin/true"])
    assert os.path.exists(loader_of(found.begin))


def test_a_missing_delegate_is_nobodys_failure(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    assert refusal(path) == f"Absent: {path}: No such file on this host: put the delegate there"
    assert refusal(path, (0, 0)) == f"Absent: {path}: No such file in the container: put the delegate there"
    (tmp_path / "dangling").symlink_to(path)
    assert (
        refusal(tmp_path / "dangling")
        == f"Absent: {tmp_path}/dangling: No such file on this host: put the delegate there"
    )


def test_a_delegate_that_is_missing_below_a_root_directory_that_was_changed_is_told_with_that(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as caught:
        program([b"/missing"], (0, 0), b"/var/lib/haproxy")
    assert str(caught.value) == (
        "/missing: No such file in the container, below /var/lib/haproxy, which the process has made its root directory:"
        " put the delegate there"
    )


def test_a_missing_interpreter_is_a_failure(tmp_path: Path) -> None:
    path = script(tmp_path / "delegate", b"#!/missing\n")
    told = f"Stopped: {path}: its interpreter /missing: No such file"
    assert refusal(path) == f"{told} on this host: install that one there"
    assert refusal(path, (0, 0)) == f"{told} in the container: install that one there"
    script(path, b"#!/bin/sh\r\n")
    assert refusal(path) == (
        f"Stopped: {path}: its interpreter /bin/sh\r: No such file on this host: save it with Unix line ends"
    )


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o000, 0o444])
def test_a_file_that_is_not_executable_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = script(tmp_path / "delegate", b"#!/bin/true\n", mode)
    assert refusal(path) == f"Stopped: {path}: not executable; chmod 0755"


@pytest.mark.parametrize(
    ("changed", "uid", "mode", "fine"),
    [
        ("/", 0, 0o755, True),
        ("/bin", 1000, 0o755, True),
        ("/bin/delegate", 1000, 0o700, True),
        ("/", 1001, 0o755, False),
        ("/bin", 1001, 0o755, False),
        ("/bin/delegate", 1001, 0o755, False),
        ("/", 0, 0o1777, False),
        ("/bin", 0, 0o775, False),
        ("/bin/delegate", 0, 0o757, False),
    ],
)
def test_where_it_counts_no_other_user_can_change_the_program(
    monkeypatch: pytest.MonkeyPatch, changed: str, uid: int, mode: int, fine: bool
) -> None:
    owners = {"/": (0, 0o755), "/bin": (0, 0o755), "/bin/delegate": (0, 0o755), changed: (uid, mode)}
    facts = {path: SimpleNamespace(st_uid=user, st_mode=bits) for path, (user, bits) in owners.items()}
    monkeypatch.setattr(posix, "stat", lambda path: facts[path])
    monkeypatch.setattr(posix, "getuid", lambda: 1000)
    if fine:
        refuse_changeable(b"/link", "/bin/delegate")
    else:
        with pytest.raises(Stopped, match=f"/link: {changed}: another user may change it"):
            refuse_changeable(b"/link", "/bin/delegate")


def test_a_user_whom_the_namespace_does_not_know_is_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "getuid", lambda: 65534)
    monkeypatch.setattr(posix, "stat", lambda path: SimpleNamespace(st_uid=65534, st_mode=0o100755))
    with pytest.raises(Stopped, match="/link: /bin/delegate: another user may change it"):
        refuse_changeable(b"/link", "/bin/delegate")


def test_a_program_and_its_interpreters_are_looked_at_where_no_link_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = script(tmp_path / "delegate", b"#!/bin/sh\n")
    (tmp_path / "link").symlink_to(file)
    looked: list[tuple[bytes, str]] = []
    monkeypatch.setattr(program_module, "refuse_changeable", lambda name, path: looked.append((name, path)))
    words = [os.fsencode(tmp_path / "link")]
    program(words)
    assert looked == []
    program(words, root=b"/srv")
    assert looked == [(words[0], str(file.resolve())), (b"/bin/sh", os.path.realpath("/bin/sh"))]


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o777)
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "fifo", tmp_path / "directory", Path("/dev/null")):
        assert refusal(path) == f"Stopped: {path}: not a regular file"
        assert refusal(script(tmp_path / "delegate", b"#!" + os.fsencode(path) + b"\n")) == (
            f"Stopped: {path}: not a regular file"
        )


def test_loops_of_links_and_files_as_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "a") == f"Stopped: {tmp_path}/a: Too many levels of symbolic links"
    assert refusal(tmp_path / "file" / "x") == f"Stopped: {tmp_path}/file/x: Not a directory"


def test_a_script_that_names_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "delegate"
    script(path, b"#!" + os.fsencode(path) + b"\n")
    assert refusal(path) == f"Stopped: {path}: more than 5 scripts name each other as interpreter"


@pytest.mark.parametrize(
    "link", ["/proc/self/exe", "/proc/self/root/bin/true", "/proc/self/fd/0", "/proc/thread-self/exe"]
)
def test_a_magic_link_is_refused_by_name_by_link_and_as_interpreter(tmp_path: Path, link: str) -> None:
    (tmp_path / "link").symlink_to(link)
    named = script(tmp_path / "delegate", f"#!{link}\n".encode())
    linked = script(tmp_path / "other", b"#!" + os.fsencode(tmp_path / "link") + b"\n")
    for path in (Path(link), tmp_path / "link", named, linked):
        assert "Too many levels of symbolic links" in refusal(path)


def test_the_helpers_own_interpreter_is_refused_under_every_name(tmp_path: Path) -> None:
    own = script(tmp_path / "own", b"\x7fELF")
    os.link(own, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(own)
    own_identity = identity(os.stat(own))
    for path in (own, tmp_path / "hard", tmp_path / "soft"):
        assert refusal(path, own_identity) == f"Stopped: {path}: is the helper's own interpreter"
        named = script(tmp_path / "delegate", b"#!" + os.fsencode(path) + b"\n")
        assert refusal(named, own_identity) == f"Stopped: {path}: is the helper's own interpreter"


def test_ordinary_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/bin/true")
    assert executed_by_helper(tmp_path / "link").arguments == [os.fsencode(tmp_path / "link")]


def test_a_file_of_another_kind_is_refused_by_the_kernel_and_that_is_told(tmp_path: Path) -> None:
    path = script(tmp_path / "delegate", b"\x7fELF garbage")
    assert executed_by_helper(path).error == f"Stopped: {path}: Exec format error"


def test_no_descriptor_of_ours_reaches_the_program(tmp_path: Path) -> None:
    listing = tmp_path / "listing"
    words = [
        b"/bin/sh",
        b"-c",
        b'for n in 3 4 5 6 7 8 9 50 100 200; do [ -e /proc/$$/fd/$n ] && echo $n; done >"$0"; :',
    ]

    pid = os.fork()
    if pid == 0:
        try:
            # Below, between and above the two that are kept until the end.
            for number in (3, 4, 5, 6):
                os.dup2(1, number)
            opened = program([*words, os.fsencode(listing)])
            reporter = status_pipe.StatusPipe(fcntl.fcntl(os.pipe()[1], fcntl.F_DUPFD_CLOEXEC, 100))
            for number in (50, 200):
                os.dup2(1, number)
            execute(opened, {}, reporter)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert listing.read_text() == ""


def test_an_environment_that_execve_does_not_take_is_reduced_to_that_of_the_helper() -> None:
    environment = {b"V%d" % number: b"x" * 100000 for number in range(8)}
    environment.update({b"CORE_PID": b"7", b"CORE_UID": b"0"})

    def limited(reporter: status_pipe.StatusPipe) -> None:
        # A quarter of it is for arguments and environment; execve(2).
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))
        execute(program([b"/bin/true", b"a"]), environment, reporter)

    done = executed(limited)
    assert (done.arguments, done.environment) == ([b"/bin/true", b"a"], [b"CORE_PID=7", b"CORE_UID=0"])
    assert done.reported == b"note environment too long for execve(2): only CORE_* passed on\n"


def test_a_command_line_that_execve_does_not_take_is_an_error() -> None:
    words = [b"/bin/true", b"x" * 131072]
    done = executed(lambda reporter: execute(program(words), {}, reporter))
    assert os.strerror(errno.E2BIG) in done.error


def test_the_first_line_is_that_of_the_file_that_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(tmp_path / "delegate", b"#!/bin/true\n")
    other = script(tmp_path / "other", b"#!/missing\n")
    real = posix.fstat

    def fstat(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        if other.exists():
            os.replace(other, path)
        return found

    monkeypatch.setattr(posix, "fstat", fstat)
    assert program([os.fsencode(path)]).arguments == [b"/bin/true", os.fsencode(path)]
    assert not other.exists()


def test_scripts_and_what_is_refused_leave_nothing_open(tmp_path: Path) -> None:
    fine = script(tmp_path / "fine", b"#!/bin/sh\n")
    words = [b"/missing", os.fsencode(tmp_path), os.fsencode(fine)]
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)

    def opened() -> None:
        os.close(Program([words[2]], None, descriptors).descriptor)

    assert keeps_descriptors(opened)
    program = Program([words[2]], None, descriptors)
    assert os.get_inheritable(program.descriptor) is False
    # Opened without any right, so that it has no effect: O_PATH.
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(program.descriptor, 1)
    for descriptor in (program.descriptor, descriptors):
        os.close(descriptor)


def test_a_program_that_may_not_be_read_is_no_script(tmp_path: Path) -> None:
    fine = script(tmp_path / "fine", b"#!/bin/sh\n")
    program = Program([os.fsencode(fine)], None, 9999)
    assert program.arguments == [os.fsencode(fine)]
    os.close(program.descriptor)


def test_a_script_that_names_no_interpreter_is_told(tmp_path: Path) -> None:
    path = script(tmp_path / "delegate", b"#! \n")
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)

    def opened() -> None:
        with pytest.raises(Stopped, match=f"^{path}: its #! line names no interpreter"):
            Program([os.fsencode(path)], None, descriptors)

    assert keeps_descriptors(opened)
    os.close(descriptors)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        # 256 bytes are looked at: an interpreter that their end may have cut is none.
        (b"#!/" + b"a" * 300, None),
        (b"#! /" + b"a" * 300, None),
        (b"#!" + b" " * 300, None),
        (b"#!/a " + b"b" * 300, [b"/a", b"b" * 250]),
        (b"#!/a b\n", [b"/a", b"b"]),
        (b"#!\n", None),
    ],
)
def test_the_first_line_is_read_as_far_as_the_kernel_reads_it(line: bytes, words: list[bytes] | None) -> None:
    assert parse_script_line(line[:256]) == words
