"""What the helper makes of bytes that others chose, for any bytes (hypothesis).

readers.py says what holds of each reader whatever it reads; here are the bytes, and what holds of texts of a known meaning.
"""

from __future__ import annotations

import os
import re
import shlex
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import (
    command_line,
    control_groups,
    corefile,
    journal,
    privileges,
    procfs,
    runtime,
    status_pipe,
    supervisor,
    verification,
)
from core_helper.child import Result
from core_helper.configuration import Configuration, parse_configuration
from core_helper.crash import Crash
from core_helper.log import Log
from core_helper.program import parse_script_line
from core_helper.words import WordError, expand, split_words
from fuzz import readers
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from unit.helper import support

# The same examples in each run: what fails today must not have been green by chance yesterday. fuzz.py looks for new ones.
settings.register_profile(
    "fuzz", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fuzz")

# What the texts are made of; bytes at random would seldom get past the first separator.
PIECES: dict[str, list[bytes]] = {
    "status": [b"Name:", b"Uid:", b"\t", b"\n", b"0", b":", b"\x85", b"\r", b"\xa0"],
    "stat": [b"7 (", b")", b" ", b"\n", b"R", b"12", b"\xa0", b"\x1c"],
    "limits": [
        b"Limit\n",
        b"Max cpu time".ljust(26),
        b"unlimited".ljust(21),
        b"10 ",
        b"\n",
        b"-1 ",
        b"\xb2 ",
        b"9" * 5000,
    ],
    "cgroup": [b"0:", b":", b"/", b"\n", readers.ID, b"docker-", b".scope", b"cpu,cpuacct", b"F" * 64, b"-"],
    "environ": [b"A", b"=", b"\0", b"CORE_PID", b"x" * 70000, b"\n"],
    "auxv": [struct.pack("=QQ", 23, 1), struct.pack("=II", 23, 0), bytes(16), b"\xff" * 8, b"\x17", bytes(7)],
    "mountinfo": [
        b"1 2 0:3 / /m rw - cgroup",
        b"30 23 0:26 ",
        b"/ ",
        b"/sys/fs/cgroup ",
        b" - ",
        b"cgroup ",
        b"cgroup2 ",
        b"rw,cpu\n",
        b" ",
        b"\\040",
    ],
    "mounts": [b"/", b"/a", b"a b", b"\n", b"\\", b"040", b" / ", b"\t"],
    "layers": [b"lowerdir=", b"upperdir=", b"lowerdir+=", b",", b":", b"/a", b"b", b"\\072", b" ", b"="],
    "pattern": [b"/a", b"*", b"?", b"\0", b"b", b"[a]", b"\n", b"\xff"],
    "script_line": [b"/bin/sh", b" ", b"\t", b"\n", b"\0", b"a" * 50, b" " * 50, b"\t" * 120, b"-e"],
    "arguments": [b"-F", b"-", b"--", b"-c-1", b"\0", b"3", b"1\x002\x003\0", b"/a", b"\xff", "²".encode(), b"9" * 25],
    "configuration": [
        b"\nDOCKERCOREHELPER_DELEGATE=/a",
        b"\nDOCKERCOREHELPER_TIMEOUT=" + b"9" * 5000,
        b"DOCKERCOREHELPER_DELEGATE=",
        b"DOCKERCOREHELPER_TIMEOUT=",
        b"DOCKERCOREHELPER_FALLBACK_CORE",
        b"\n",
        b'"',
        b"'",
        b"/a",
        b" ",
        b"#",
        b"%P",
        b"%",
        b"\\",
        b"30",
        b"\xb2",
    ],
    "words": [b'"', b"'", b"\\", b" ", b"\t", b"#", b"a", b"$", b"`", b"\n", b"\0"],
    "specifiers": [b"%", b"%%", b"%P", b"%x", b"a", b"\xe9", b"%h"],
    "escape": [b'"', b"\\", b"\\x41", b"\n", b"\x1b", b"a", b"\xff"],
    "core": [support.elf(64, "<", [(0x1000, 0x500)]), b"\x7fELF\x02\x01", b"\xff\xff", bytes(30), b"\x40\0", b"\x38\0"],
    "output": [b"a", b"\n", b"\n" * 150, b"x" * 40000, b"\0"],
    "bundle": [
        b'{"linux":{"cgroupsPath":""},"annotations":{"io.kubernetes.cri.container-name":"',
        b'","io.kubernetes.cri.image-name":"',
        b'","io.kubernetes.cri.sandbox-uid":"',
        b'"},"process":{"env":["A=',
        b'","B',
        b'"]}}',
        b'{"config":{"labels":["bundle=/',
        b'"]},"cgroup_paths":{"":"',
        b'"},"linux":{"cgroupsPath":"x"}}',
        b"\\u0000",
        b"\\ud800",
        b"[" * 2000,
        b"\xff",
        b"9" * 5000,
    ],
    "part": [b"..", b"/", b"-", b"a", b"\xff", b"x" * 70, b"\n"],
    "reports": [
        b"pid ",
        b"note ",
        b"ready ",
        b"absent ",
        b"crowded ",
        b"\n",
        b"12",
        b"\xff",
        "²".encode(),
        b"9" * 5000,
        b"0",
    ],
}


def foreign(name: str) -> st.SearchStrategy[bytes]:
    """Return bytes for the reader ``name``: anything at all, or something not unlike what it expects."""
    pieces = st.lists(st.sampled_from([*PIECES[name], *readers.SEEDS[name]]) | st.binary(max_size=3), max_size=24)
    return st.binary(max_size=600) | pieces.map(b"".join)


@pytest.mark.parametrize("name", readers.READERS)
@settings(max_examples=400)
@given(data=st.data())
def test_what_holds_of_a_reader_holds_for_any_bytes(name: str, data: st.DataObject) -> None:
    readers.READERS[name](data.draw(foreign(name)))


@pytest.mark.parametrize("name", readers.READERS)
def test_what_holds_of_a_reader_holds_for_the_bytes_of_this_machine(name: str) -> None:
    for seed in readers.SEEDS[name]:
        readers.READERS[name](seed)


def test_a_name_of_a_thread_changes_no_other_field() -> None:
    @given(comm=st.binary(max_size=15) | st.sampled_from([b"a\nUid:\t0", b"\\", b"x\n\nTgid:\t1", b") R 1 1 (", b"\r"]))
    def check(comm: bytes) -> None:
        comm = comm.replace(b"\0", b"")
        # fs/proc/array.c, proc_task_name: escaped in status, as it is in stat.
        escaped = comm.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
        status = procfs.parse_status(b"Name:\t" + escaped + b"\nTgid:\t7\nUid:\t1\t2\t3\t4\nGroups:\t5 6 \n")
        assert (status["Tgid"], status["Uid"], status["Groups"]) == ("7", "1\t2\t3\t4", "5 6")
        assert set(status) == {"Name", "Tgid", "Uid", "Groups"}
        numbers = [str(number) for number in range(4, 53)]
        assert procfs.stat_fields(b"7 (" + comm + b") D " + " ".join(numbers).encode() + b"\n") == ["D", *numbers]

    check()


LIMIT = st.none() | st.integers(0, 2**64 - 1)


@given(
    st.dictionaries(st.sampled_from(sorted(privileges.RESOURCES)), st.tuples(LIMIT, LIMIT, st.sampled_from(["us", ""])))
)
def test_limits_are_those_that_the_kernel_printed(rows: dict[str, tuple[int | None, int | None, str]]) -> None:
    def text(value: int | None) -> str:
        return "unlimited" if value is None else str(value)

    printed = "".join(
        f"{name:<25} {text(soft):<20} {text(hard):<20} {unit:<10}\n" for name, (soft, hard, unit) in rows.items()
    )
    found = procfs.parse_limits(f"{'Limit':<25} {'Soft Limit':<20} {'Hard Limit':<20} Units     \n{printed}".encode())
    expected = {name: tuple(-1 if value is None else value for value in row[:2]) for name, row in rows.items()}
    assert found == expected


HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
NAME = st.text("abcdef-.:_ ", max_size=12)
ENGINE = st.sampled_from(["{}", "docker-{}.scope", "libpod-{}.scope", "cri-containerd-{}.scope"])


@given(
    st.lists(NAME, max_size=2),
    ENGINE,
    HEX,
    HEX,
)
def test_the_outermost_id_counts_and_not_one_that_a_container_put_below(
    above: list[str], engine: str, outer: str, inner: str
) -> None:
    path = "/" + "/".join([*above, engine.format(outer), "init", f"docker-{inner}.scope"])
    groups = procfs.parse_cgroup(f"0::{path}\n".encode())
    assert groups == [(b"", path.encode())]
    assert runtime.container_id(groups) == outer


VARIABLE = st.tuples(st.binary(min_size=1, max_size=8), st.binary(max_size=20)).filter(
    lambda pair: b"\0" not in pair[0] + pair[1] and b"=" not in pair[0]
)


@given(st.lists(VARIABLE | st.just((b"A", b"1")), max_size=40), st.booleans())
def test_the_first_of_two_variables_counts_as_for_getenv(pairs: list[tuple[bytes, bytes]], final: bool) -> None:
    text = b"\0".join(name + b"=" + value for name, value in pairs) + (b"\0" if final else b"")
    assert procfs.parse_environ(text) == (dict(reversed(pairs)), False)


LENGTH = st.integers(1, 140000) | st.integers(131066, 131070)


@settings(max_examples=60)
@given(st.lists(LENGTH, min_size=1, max_size=30))
@example([100000] * 11)
@example([131067, 131068, 1])
def test_an_environment_is_cut_between_variables_and_that_is_told(lengths: list[int]) -> None:
    strings = [b"V%02d=" % number + b"x" * length for number, length in enumerate(lengths)]
    text = (b"\0".join(strings) + b"\0")[: procfs.ENVIRON_LIMIT + 1]
    variables, cut = procfs.parse_environ(text)
    readers.environ(text)
    # execve(2) takes 128 KiB with the NUL, MAX_ARG_STRLEN.
    fitting = [string for string in strings if len(string) + 1 <= 131072]
    assert set(fitting) >= {name + b"=" + value for name, value in variables.items()}
    assert cut == (len(variables) < len(strings) or len(text) > procfs.ENVIRON_LIMIT)
    assert len(variables) == len(fitting) or len(text) > procfs.ENVIRON_LIMIT


@given(
    st.sampled_from(["=QQ", "=II"]),
    st.dictionaries(st.integers(24, 51) | st.integers(3, 22), st.integers(1, 2**31), min_size=4),
    st.sampled_from([0, 1]),
    st.integers(0, 51),
    st.integers(0, 7),
)
def test_at_secure_is_told_by_vectors_of_both_sizes(
    kind: str, others: dict[int, int], secure: int, position: int, extra: int
) -> None:
    entries = [*others.items(), (0, 0)]
    entries.insert(position % len(entries), (procfs.AT_SECURE, secure))
    auxv = b"".join(struct.pack(kind, *entry) for entry in entries) + bytes(extra)
    assert verification.secure_execution(auxv) is bool(secure)


PATH = st.text("abc/ :,-", max_size=20).map(lambda text: "/" + text)


@given(PATH, PATH, st.lists(st.sampled_from(["cpu", "cpuacct", "memory", "name=systemd"]), min_size=1, unique=True))
def test_hierarchies_are_found_whatever_their_mount_points_are(unified: str, old: str, controllers: list[str]) -> None:
    assume(" - cgroup" not in unified + old)
    lines = [
        "23 30 0:23 /docker/1 /elsewhere rw - cgroup cgroup rw,memory,cpu",
        f"24 30 0:22 / {unified.replace(' ', chr(92) + '040')} rw shared:4 - cgroup2 cgroup2 rw,nsdelegate",
        f"25 30 0:23 / {old.replace(' ', chr(92) + '040')} rw - cgroup cgroup rw,{','.join(controllers)}",
    ]
    mounts = control_groups.cgroup_mounts("\n".join(lines).encode())
    assert mounts[b""] == unified.encode()
    assert all(mounts[controller.encode()] == old.encode() for controller in controllers)


BLANKS = st.text(" \t", max_size=130).map(str.encode)
WORD = st.binary(min_size=1, max_size=130).filter(lambda word: not set(word) & set(b" \t\n\0"))


@settings(max_examples=1000)
@given(BLANKS, WORD, BLANKS, st.binary(max_size=260), st.sampled_from([b"\n", b"\0", b""]))
@example(b"", b"a" * 253, b" ", b"", b"")  # A blank as the last byte of the buffer shows that the name is whole.
@example(b"", b"a" * 254, b"", b"", b"")
@example(b" " * 252, b"a", b"", b"", b"\0")
@example(b" " * 254, b"", b"", b"", b"\n")
def test_the_first_line_of_a_script_is_read_as_the_kernel_does(
    before: bytes, name: bytes, blanks: bytes, argument: bytes, end: bytes
) -> None:
    readers.script_line(before + name + blanks + argument + end)


@given(WORD, st.binary(max_size=40).filter(lambda text: b"\n" not in text and b"\0" not in text))
def test_interpreter_and_argument_are_those_that_were_written(name: bytes, argument: bytes) -> None:
    argument = argument.strip(b" \t")
    expected = [name, argument] if argument else [name]
    assert parse_script_line(b"#! " + b" ".join(expected) + b" \t\nmore\n") == expected


OPTION = {"-F": "pidfd", "-I": "tid", "-s": "signal", "-t": "time", "-d": "dumpable", "-c": "limit"}


@given(
    st.dictionaries(st.sampled_from(sorted(OPTION)), st.none() | st.integers(0, 2**63)),
    st.tuples(st.integers(1, 2**22), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.lists(st.binary(max_size=12).filter(lambda word: b"\0" not in word), max_size=4),
)
def test_the_crash_is_the_one_that_the_kernel_announced(
    options: dict[str, int | None], ids: tuple[int, int, int], rest: list[bytes]
) -> None:
    program = [b"/opt/bin/uploader.sh", *rest]
    words = [f"{option}{'' if value is None else value}" for option, value in options.items()]
    crash, problems = command_line.parse_arguments([*words, *map(str, ids), *map(os.fsdecode, program)])
    assert (crash.pid, crash.uid, crash.gid) == ids
    assert crash.delegate == program and problems == []
    for option, value in options.items():
        assert value is None or getattr(crash, OPTION[option]) == value
    assert all(
        getattr(crash, name) is None for option, name in OPTION.items() if option not in options and name != "time"
    )


# Where both have the same rules: shlex ends a comment's word, keeps a backslash before $ and `, and splits at ends of lines.
SHELL = st.text("ab /%=" + "\"'\\\t", max_size=30) | st.text(
    st.characters(exclude_characters="#$`\n\r", max_codepoint=0xFF), max_size=30
)


@settings(max_examples=2000)
@given(SHELL)
def test_words_are_those_of_the_standard_library(text: str) -> None:
    try:
        expected = shlex.split(text)
    except ValueError as error:
        assume("quotation" in str(error))  # A backslash at the end is an error for shlex only.
        with pytest.raises(WordError, match="not closed"):
            split_words(text.encode("latin-1"))
    else:
        assert split_words(text.encode("latin-1")) == [word.encode("latin-1") for word in expected]


WORDS = st.lists(st.binary(max_size=12).filter(lambda word: b"\0" not in word and b"\n" not in word), max_size=5)


@given(WORDS)
def test_quoted_words_come_back_from_the_configuration(words: list[bytes]) -> None:
    words = [b"/opt/bin/up loader", *words]
    inner = " ".join(shlex.quote(word.replace(b"%", b"%%").decode("latin-1")) for word in words)
    line = '"' + re.sub(r'[\\"]', r"\\\g<0>", inner) + '"'
    configuration = Configuration()
    parse_configuration(b"DOCKERCOREHELPER_DELEGATE=" + line.encode("latin-1") + b"\n", "conf", configuration)
    assert configuration.problems == []
    assert [expand(word, {}) for word in configuration.delegate] == words


@given(
    st.lists(
        st.sampled_from([b"X=1", b"DOCKERCOREHELPER_TIMEOUT=0", b'DOCKERCOREHELPER_DELEGATE="', b"#", b"", b"="]),
        max_size=8,
    )
)
def test_wrong_lines_are_told_by_number_and_spoil_no_other(wrong: list[bytes]) -> None:
    configuration = Configuration()
    parse_configuration(b"\n".join([*wrong, b"DOCKERCOREHELPER_TIMEOUT=7"]), "conf", configuration)
    told = [int(problem.split("line ")[1].split(" ")[0]) for problem in configuration.problems]
    assert told == [number for number, line in enumerate(wrong, 1) if line not in (b"", b"#")]
    assert configuration.timeout == 7


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_an_expanded_value_is_never_expanded_again(value: bytes, other: bytes) -> None:
    text = other.replace(b"%", b"%%")
    assert expand(text + b"%e" + text, {"e": value}) == other + value + other


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What /dev/log gets."""
    lines: list[bytes] = []

    def send(lines_of: object, path: str, message: bytes) -> bool:
        lines.append(message)
        return True

    monkeypatch.setattr(journal.Journal, "_send", send)
    return lines


HEAD = re.compile(rb"<(27|28|30)>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d docker_core_helper\[\d+\]: ")


def only_line(log: list[bytes]) -> bytes:
    """Return the text of the only line in ``log``, and empty that."""
    [message] = log
    log.clear()
    head = HEAD.match(message)
    assert head and len(message) <= head.end() + journal.LINE_LIMIT
    assert all(32 <= byte < 127 for byte in message)
    return message[head.end() :]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=300) | st.text("\ud800\udcff\n\x1b\x7f😀", max_size=300) | st.just("x" * 5000))
def test_a_line_of_the_log_is_one_line_of_printable_ascii(log: list[bytes], text: str) -> None:
    journal.Journal(Log()).error(text)
    line = only_line(log)
    assert text[:1] == "" or line


ANY_NAME = st.binary(max_size=64) | st.sampled_from([b'x" exe="/y', b"\nuid=0", b'\\x22" uid=0'])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(comm=ANY_NAME, exe=ANY_NAME | st.just(b"/" + b"\xff" * 4000), host=ANY_NAME)
def test_nobody_can_forge_or_push_out_what_the_log_says_of_a_crash(
    log: list[bytes], comm: bytes, exe: bytes, host: bytes
) -> None:
    process = support.process(comm=comm, exe=exe, hostname=host, container_name=readers.ID[:12].decode())
    result = Result()
    result.delivered, result.complete = 123, True
    journal.Journal(Log()).conclude(Crash(77, 1, 2), process, b"/opt/bin/up", result, 0.0)
    line = only_line(log)
    pattern = (
        rb'pid=77 .* uid=1 gid=2 signal=\? comm="([^"]*)" exe="([^"]*)" container=0123456789ab host="([^"]*)": (.*)'
    )
    found = re.fullmatch(pattern, line)
    assert found, line
    # A path may be shortened, but not changed.
    assert [found[1].decode(), found[3].decode()] == [journal.escape(comm), journal.escape(host)]
    assert journal.escape(exe).startswith(found[2].decode().removesuffix("..."))
    assert found[4].startswith(b"delivered 123 bytes to /opt/bin/up in ")


SEGMENTS = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 3000)), max_size=12)


@given(st.sampled_from([32, 64]), st.sampled_from("<>"), SEGMENTS, st.booleans(), st.randoms(use_true_random=False))
def test_a_core_dump_is_as_long_as_it_says_however_it_comes_in(
    bits: int, order: str, segments: list[tuple[int, int]], uncountable: bool, random: Any
) -> None:
    size, section = (64, 64) if bits == 64 else (52, 40)
    if uncountable:
        # More segments than e_phnum can say: their number stands in a section header at the end, fs/binfmt_elf.c.
        end = 5000
        dump = bytearray(support.elf(bits, order, segments, corefile.PN_XNUM, end).ljust(end + section, b"\x01"))
        dump[46 if bits == 32 else 58 : 48 if bits == 32 else 60] = struct.pack(f"{order}H", section)
    else:
        dump = bytearray(support.elf(bits, order, segments))
        dump = dump.ljust(max([offset + filled for offset, filled in segments], default=0), b"\x01")
    length = (5000 + section) if uncountable else max([offset + filled for offset, filled in segments], default=0)
    header = corefile.Header()
    position = 0
    while header.wanted and position < len(dump):
        step = random.randint(1, header.wanted - len(header.content))
        header.add(bytes(dump[position : position + step]))
        position += step
    # What ends within the first 64 bytes is no dump that the kernel writes: there are always notes.
    assert header.length == (length if len(dump) >= 64 else None), (size, position)
    assert position <= max(64, size + 56 * len(segments))


@given(st.sampled_from([32, 64]), st.sampled_from("<>"), SEGMENTS, st.data())
def test_a_core_dump_that_ends_within_its_headers_has_no_length(
    bits: int, order: str, segments: list[tuple[int, int]], data: st.DataObject
) -> None:
    headers = support.elf(bits, order, segments)
    header = corefile.Header()
    header.add(headers[: data.draw(st.integers(0, min(len(headers), max(64, len(headers))) - 1))])
    assert header.length is None


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=50) | st.sampled_from([b"\n" * 90, b"x" * 30000, b"line\n"]), max_size=12))
def test_output_is_bounded_in_whatever_parts_it_comes(parts: list[bytes]) -> None:
    readers.output(b"".join(parts))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


REPORT = st.tuples(
    st.sampled_from(["note", "absent", "crowded", "failed"]), st.text(max_size=60) | st.text("é\n\udcff", max_size=5000)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(report=REPORT, pid=st.integers(1, 4194304))
def test_a_report_arrives_as_it_was_sent(pipe: tuple[int, int], report: tuple[str, str], pid: int) -> None:
    kind, text = report
    status = status_pipe.StatusPipe(pipe[1])
    status.send("pid", str(pid))
    status.send(kind, text)
    child: Any = SimpleNamespace(setup_pid=1, pid=0, reported_pid=0, reported=os.read(pipe[0], 65536))
    result = Result()
    assert supervisor._read_reports(child, result) is False
    assert (child.reported_pid, child.reported) == (pid, b"")
    told = result.notes[0] if kind == "note" else result.failure
    sent = text.replace("\n", "\\n").encode("utf-8", "backslashreplace")
    assert told == sent[: 4000 - len(kind) - 1].decode("utf-8", "replace")
    assert (result.absent, result.crowded) == (kind == "absent", kind == "crowded")
