"""command.parse_arguments: the words of kernel.core_pattern, as the kernel expanded them."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from core_helper import command_line
from core_helper.crash import SIGNALS, Crash
from unit.helper.support import HELPER


def parse(line: str) -> Crash:
    crash, problems = command_line.parse_arguments(line.split(" "))
    assert problems == []
    return crash


def test_the_line_of_the_original_works_as_it_stands() -> None:
    crash = parse("4711 1000 100 /opt/bin/uploader.sh s3://my-bucket-for-cores/ 4711 1000 100")
    assert (crash.pid, crash.uid, crash.gid) == (4711, 1000, 100)
    assert crash.delegate == [b"/opt/bin/uploader.sh", b"s3://my-bucket-for-cores/", b"4711", b"1000", b"100"]
    assert [crash.pidfd, crash.tid, crash.signal, crash.dumpable, crash.limit] == [None] * 5


def test_every_option_of_the_roles_pattern_is_taken_over() -> None:
    crash = parse("-F3 -I4712 -s11 -t1700000000 -d1 -c18446744073709551615 4711 1000 100")
    assert (crash.pidfd, crash.tid, crash.signal, crash.time, crash.dumpable) == (3, 4712, 11, 1700000000, 1)
    assert crash.limit == 2**64 - 1
    assert (crash.pid, crash.uid, crash.gid, crash.delegate) == (4711, 1000, 100, [])


def test_options_without_a_value_are_those_of_an_older_kernel() -> None:
    before = int(time.time())
    crash = parse("-F -I -s -t -d -c 4711 1000 100 /d")
    assert [crash.pidfd, crash.tid, crash.signal, crash.dumpable, crash.limit] == [None] * 5
    assert before <= crash.time <= time.time()
    assert crash.delegate == [b"/d"]


def test_an_unlimited_core_may_be_told_as_minus_one() -> None:
    assert parse("-c-1 1 2 3").limit == -1


@pytest.mark.parametrize(
    "word", ["-Fx", "-I1x", "-s-1", "-d1.0", "-t0x1", "-c-2", "-F٣", "-d²", "-t" + "9" * 21, "-I 1"]
)
def test_an_option_that_is_no_number_is_told_and_ignored(word: str) -> None:
    crash, problems = command_line.parse_arguments([word, "1", "2", "3"])
    assert [crash.pidfd, crash.tid, crash.signal, crash.dumpable, crash.limit] == [None] * 5
    assert len(problems) == 1 and repr(word) in problems[0] and "number" in problems[0]


@pytest.mark.parametrize("word", ["-x1", "-", "-f3", "--unknown"])
def test_an_unknown_option_is_told_and_ignored(word: str) -> None:
    crash, problems = command_line.parse_arguments([word, "-s6", "1", "2", "3"])
    assert (crash.pid, crash.signal) == (1, 6)
    assert len(problems) == 1 and "unknown option" in problems[0] and "--help" in problems[0]


def test_two_dashes_end_the_options() -> None:
    assert parse("-s6 -- 1 2 3").pid == 1
    with pytest.raises(command_line.UsageError):
        command_line.parse_arguments(["--", "-s6", "1", "2"])


def test_options_end_where_the_process_begins() -> None:
    assert parse("1 2 3 /d -s6 --").delegate == [b"/d", b"-s6", b"--"]


@pytest.mark.parametrize("words", [[], ["1"], ["1", "2"], ["-s6", "1", "2"], ["-s6"], ["--"]])
def test_a_line_without_the_process_is_refused_with_the_remedy(words: list[str]) -> None:
    with pytest.raises(command_line.UsageError, match="%P %u %g"):
        command_line.parse_arguments(words)


@pytest.mark.parametrize("number", ["", "x", "1x", " 1", "+1", "-1", "1_0", "٣", "²", "9" * 21, "\udcff"])
@pytest.mark.parametrize(("position", "name"), [(1, "UID"), (2, "GID")])
def test_an_id_that_is_no_number_is_refused_by_name(number: str, position: int, name: str) -> None:
    words = ["1", "2", "3"]
    words[position] = number
    with pytest.raises(command_line.UsageError, match=f"{name} must be a number"):
        command_line.parse_arguments(words)


@pytest.mark.parametrize("number", ["", "x", "٣", "9" * 21])
def test_a_pid_that_is_no_number_is_refused_by_name(number: str) -> None:
    with pytest.raises(command_line.UsageError, match="PID must be a number"):
        command_line.parse_arguments([number, "2", "3"])


@pytest.mark.parametrize("path", ["uploader.sh", "./uploader.sh", "", "|/bin/sh"])
def test_a_delegate_without_an_absolute_path_is_told_and_ignored(path: str) -> None:
    crash, problems = command_line.parse_arguments(["1", "2", "3", path, "argument"])
    assert crash.delegate == []
    assert len(problems) == 1 and "absolute path" in problems[0]


def test_arguments_of_the_delegate_may_be_empty() -> None:
    crash, _ = command_line.parse_arguments(["1", "2", "3", "/d", "", "x", ""])
    assert crash.delegate == [b"/d", b"", b"x", b""]


@pytest.mark.parametrize(
    ("number", "name"), [(None, ""), (11, "SIGSEGV"), (6, "SIGABRT"), (9, "SIG9"), (34, "SIG34"), (0, "SIG0")]
)
def test_the_name_of_the_signal_is_that_of_signal_7(number: int | None, name: str) -> None:
    crash = Crash(1, 2, 3)
    crash.signal = number
    assert crash.signal_name() == name


def test_the_names_of_signals_are_those_of_this_machine() -> None:
    import signal

    assert {number: signal.Signals(number).name for number in SIGNALS} == SIGNALS


def test_odd_bytes_of_the_delegate_arrive_unchanged_in_the_kernels_empty_environment() -> None:
    words = [b"/opt/\xff\xfe\n", b"\xc3\xa4", b"\xc3", b" \t", bytes(range(1, 256))]
    program = (
        f"import sys; sys.path.insert(0, {str(HELPER)!r})\n"
        "from core_helper import command_line\n"
        "crash, problems = command_line.parse_arguments(sys.argv[1:])\n"
        "print([list(word) for word in crash.delegate])"
    )
    command_line = [sys.executable.encode(), b"-BISc", program.encode(), b"1", b"2", b"3", *words]
    printed = subprocess.run(command_line, env={}, stdout=subprocess.PIPE, check=True).stdout
    assert [bytes(word) for word in json.loads(printed)] == words
