"""journal: the lines that operators read, and where they go."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from typing import Iterator

import pytest
from core_helper import journal
from core_helper.child import Result
from core_helper.crash import Crash
from core_helper.log import Log
from core_helper.process import CONTAINER_NAME, POD_NAME, POD_NAMESPACE, Record
from unit.helper.support import process

ID = "0123456789abcdef" * 4


@pytest.fixture
def kernel_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the test out of the logs of this machine; there is no socket, and the kernel's log is a file."""
    path = tmp_path / "kmsg"
    path.touch()
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "log"))
    monkeypatch.setattr(journal, "KERNEL_LOG", str(path))
    return path


@pytest.fixture
def system_log(kernel_log: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(journal.SOCKET)
        server.settimeout(5)
        yield server


@pytest.fixture
def crash() -> Crash:
    crash = Crash(4711, 1000, 100)
    crash.signal = 11
    return crash


PREFIX = rf"docker_core_helper\[{os.getpid()}\]: "
STAMP = r"[A-Z][a-z]{2} [ 123]\d \d\d:\d\d:\d\d "


def test_a_line_goes_to_the_system_log_as_the_c_library_writes_it(system_log: socket.socket, kernel_log: Path) -> None:
    journal.Journal(Log()).error("core lost")
    assert re.fullmatch(rf"<27>{STAMP}{PREFIX}core lost", system_log.recv(9999).decode())
    journal.Journal(Log()).warning("mend it")
    assert re.fullmatch(rf"<28>{STAMP}{PREFIX}mend it", system_log.recv(9999).decode())
    assert kernel_log.read_bytes() == b""


def test_a_line_goes_to_the_kernel_log_where_there_is_no_other(kernel_log: Path) -> None:
    journal.Journal(Log()).error("core lost")
    assert re.fullmatch(rf"<27>{PREFIX}core lost\n", kernel_log.read_text())


def test_a_socket_whose_server_has_ended_does_not_hold_the_helper_up(
    kernel_log: Path, system_log: socket.socket
) -> None:
    began = time.monotonic()
    lines = journal.Journal(Log())
    lines.error("one")
    system_log.close()
    lines.error("two")
    assert "two" in kernel_log.read_text()
    assert time.monotonic() - began < 1


def test_a_host_without_any_log_is_no_failure(kernel_log: Path) -> None:
    kernel_log.unlink()
    journal.Journal(Log()).error("core lost")


def test_a_person_sees_the_line_too(kernel_log: Path) -> None:
    reading, writing = os.pipe()
    log = Log()
    log.terminal = writing
    log.lines.error("core lost")
    assert log.lines is log.lines
    assert os.read(reading, 9999) == b"docker_core_helper: core lost\n"
    assert "core lost" in kernel_log.read_text()
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a\nb", "a\\nb"),
        ("a\0b\x1b[31m\x7f", "a\\x00b\\x1b[31m\\x7f"),
        ("\xe4\u20ac\U0001f4a5", "\\xe4\\u20ac\\U0001f4a5"),
        ("\udcff", "\\udcff"),
        ('%s "quoted" \\', '%s "quoted" \\'),
    ],
)
def test_a_line_is_one_line_of_printable_ascii(kernel_log: Path, text: str, written: str) -> None:
    journal.Journal(Log()).error(text)
    assert kernel_log.read_text().partition("]: ")[2] == written + "\n"


def test_a_long_line_is_cut(system_log: socket.socket) -> None:
    journal.Journal(Log()).error("x" * 1_000_000)
    assert system_log.recv(99999).decode().partition("]: ")[2] == "x" * 2000


def test_a_long_line_is_cut_to_what_a_record_of_the_kernel_holds(kernel_log: Path) -> None:
    journal.Journal(Log()).error("x" * 1_000_000)
    assert len(kernel_log.read_bytes()) == 901 and kernel_log.read_bytes().endswith(b"x\n")


def test_every_byte_that_a_container_chose_is_escaped_or_harmless() -> None:
    escaped = journal.escape(bytes(range(256)))
    assert re.fullmatch(r"([ !#-\[\]-~]|\\x[0-9a-f]{2})*", escaped)
    plain = re.sub(r"\\x(..)", lambda match: chr(int(match[1], 16)), escaped)
    assert plain.encode("latin-1") == bytes(range(256))
    assert journal.escape(b'a" uid=0 b="\n\\') == "a\\x22 uid=0 b=\\x22\\x0a\\x5c"


def test_a_line_has_the_names_that_the_engine_knows(crash: Crash) -> None:
    known = Record()
    crashed = process(container_name=ID[:12], record=known)
    assert f'container={ID[:12]} host="box"' in journal.describe(crash, crashed)
    known.facts[CONTAINER_NAME] = b'a" b="' + b"x" * 200
    name = "a\\x22_b=\\x22".replace("_", " ") + "x" * 74
    assert f'container={ID[:12]} name="{name}" host="box"' in journal.describe(crash, crashed)
    known.facts = {POD_NAME: b"web-0", POD_NAMESPACE: b"prod"}
    assert f'container={ID[:12]} pod="prod/web-0" host="box"' in journal.describe(crash, crashed)
    known.facts = {CONTAINER_NAME: b"web", POD_NAME: b"web-0"}
    assert f'container={ID[:12]} name="web" pod="web-0" host="box"' in journal.describe(crash, crashed)


def test_a_crash_is_described_on_one_line(crash: Crash) -> None:
    text = journal.describe(crash, process(container_name=ID[:12], comm=b'a" uid=0', exe=b"/a b\n", hostname=b"h\xff"))
    assert text == (
        "pid=4711 (7 in its namespace) uid=1000 gid=100 signal=11 (SIGSEGV)"
        ' comm="a\\x22 uid=0" exe="/a b\\x0a" container=0123456789ab host="h\\xff"'
    )


def test_what_is_not_known_of_a_crash_is_marked(crash: Crash) -> None:
    crash.signal = None
    text = journal.describe(crash, process(comm=b"", exe=b""))
    assert "signal=? " in text and 'comm="" exe="" container=- ' in text


@pytest.mark.parametrize(
    ("name", "line", "written"),
    [
        (ID[:12], b"no bucket\x1b[0m", "container=0123456789ab: delegate: no bucket\\x1b[0m"),
        ("-", b"", "container=-: delegate: "),
    ],
)
def test_a_line_of_the_delegate_says_whose_it_is(
    kernel_log: Path, crash: Crash, name: str, line: bytes, written: str
) -> None:
    journal.Journal(Log()).output(crash, process(container_name=name), line)
    assert re.fullmatch(rf"<30>{PREFIX}pid=4711 {re.escape(written)}\n", kernel_log.read_text())


def outcome(**facts: object) -> Result:
    result = Result()
    for name, fact in {"started": True, "complete": True, "delivered": 4096, **facts}.items():
        setattr(result, name, fact)
    return result


@pytest.mark.parametrize(
    ("result", "severity", "expected"),
    [
        (outcome(), 30, r": delivered 4096 bytes to /d\\x0a in 0\.\d{3} s"),
        (outcome(notes=["a", "b"]), 30, r": delivered 4096 bytes to /d\\x0a in 0\.\d{3} s; a; b"),
        (
            outcome(complete=False),
            27,
            r": not delivered: it stopped reading: 4096 bytes to /d\\x0a in 0\.\d{3} s, truncated",
        ),
        (
            outcome(failure="it ended with exit code 1"),
            27,
            r": not delivered: it ended with exit code 1: 4096 bytes to /d\\x0a in 0\.\d{3} s",
        ),
        (
            outcome(length=4097, cut=True),
            27,
            r": not delivered: the core was cut off: 4096 bytes to /d\\x0a in 0\.\d{3} s, truncated: of 4097 bytes; .*",
        ),
        (outcome(length=4096), 30, r": delivered 4096 bytes to /d\\x0a in 0\.\d{3} s"),
        (
            outcome(delivered=0, cut=True),
            27,
            r": not delivered: .*: 0 bytes to /d\\x0a in .*, truncated: of an unknown number of bytes; .*",
        ),
        (
            outcome(failure="write fallback file: File exists", length=4097, cut=True),
            27,
            r": not delivered: write fallback file: File exists: 4096 bytes to .*, truncated: of 4097 bytes; .*",
        ),
        (
            outcome(failure="deadline passed", complete=False, notes=["a"]),
            27,
            r": not delivered: deadline passed: 4096 bytes to /d\\x0a in 0\.\d{3} s, truncated; a",
        ),
    ],
)
def test_the_outcome_is_one_line_and_success_is_never_claimed_wrongly(
    kernel_log: Path, crash: Crash, result: Result, severity: int, expected: str
) -> None:
    delivered = journal.Journal(Log()).conclude(crash, process(), b"/d\n", result, time.monotonic())
    assert delivered is (severity == 30)
    line = kernel_log.read_text()
    who = re.escape(journal.describe(crash, process()))
    assert re.fullmatch(rf"<{severity}>{PREFIX}{who}{expected}\n", line)


def test_cores_that_were_left_out_before_are_told(kernel_log: Path, crash: Crash) -> None:
    journal.Journal(Log()).conclude(crash, process(left_out=7), b"/d", outcome(), time.monotonic())
    assert ' host="box" left_out=7: delivered 4096 bytes' in kernel_log.read_text()


def test_a_reason_of_the_container_does_not_push_the_outcome_out_of_the_line(kernel_log: Path, crash: Crash) -> None:
    reason = "/" + "x" * 5000 + ": not executable"
    journal.Journal(Log()).conclude(crash, process(), b"/tmp/core.1.2.3", outcome(), time.monotonic(), reason)
    line = kernel_log.read_text()
    assert re.search(r": delivered 4096 bytes to /tmp/core\.1\.2\.3 in 0\.\d{3} s; no delegate took it: /xxx", line), (
        line
    )


@pytest.mark.parametrize(
    ("absent", "severity", "told"), [(True, 30, "core dropped"), (False, 27, "core dropped, 0 bytes delivered")]
)
def test_a_dropped_core_is_an_error_only_if_something_failed(
    kernel_log: Path, crash: Crash, absent: bool, severity: int, told: str
) -> None:
    journal.Journal(Log()).drop(crash, process(), "why", absent)
    line = kernel_log.read_text()
    assert line.startswith(f"<{severity}>") and line.endswith(f'host="box": {told}: why\n')


def test_names_do_not_push_out_of_the_kernel_log_what_became_of_the_core(kernel_log: Path, crash: Crash) -> None:
    known = Record()
    known.facts = {CONTAINER_NAME: b"\xff" * 80, POD_NAMESPACE: b"\xfd" * 40, POD_NAME: b"\xfe" * 80}
    names = {"comm": b"\x01" * 15, "exe": b"/" + b"\x02" * 4096, "hostname": b"\x03" * 64}
    crashed = process(container_name="4294967295:" + ID[:12], record=known, left_out=1 << 31, **names)
    # An escape is not cut in the middle, wherever the line ends.
    for length in range(4):
        crashed.exe = b"/" + b"a" * length + b"\x02" * 4096
        journal.Journal(Log()).drop(crash, crashed, "no delegate; " + "\u20ac" * 900, True)
    for line in kernel_log.read_text().splitlines():
        assert ": core dropped: no delegate; \\u20ac\\u20ac" in line and len(line) <= 900
        assert re.fullmatch(r"([^\\]|\\x[0-9a-f]{2}|\\u20ac)*", line), line
        assert 'exe="/' in line and line.count('..."') == 5


def test_names_that_fit_into_the_kernel_log_stay_whole(kernel_log: Path, crash: Crash) -> None:
    exe = b"/usr/lib/" + b"x" * 150
    journal.Journal(Log()).drop(crash, process(exe=exe), "no delegate", True)
    assert f'exe="{exe.decode()}"' in kernel_log.read_text()
