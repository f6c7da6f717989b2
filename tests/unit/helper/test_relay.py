"""relay: the core's way to a delegate, here a plain child without a container, and what the delegate writes."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_helper import deadline, family, linux, relay
from unit.helper.delivery import LONG, PATIENCE, deliver, shell
from unit.helper.support import elf

pytestmark = pytest.mark.usefixtures("without_entry")


@pytest.mark.parametrize("size", [1, 4095, 4096, 65536, 65537, (1 << 20) + 1, LONG])
def test_the_whole_core_arrives(tmp_path: Path, size: int) -> None:
    core = os.urandom(size)
    result = deliver(shell('cat >"$0"', tmp_path / "core"), core)
    assert (result.started, result.failure, result.complete, result.delivered) == (True, None, True, size)
    assert (tmp_path / "core").read_bytes() == core


def announcing(length: int) -> bytes:
    """Return a core of ``length`` bytes, which its header announces."""
    return elf(64, "<", [(4096, length - 4096)]).ljust(length, b"c")


def test_the_length_that_the_core_announces_is_told_beside_what_came(tmp_path: Path) -> None:
    core = announcing(104_096)
    result = deliver(shell('cat >"$0"', tmp_path / "core"), core)
    assert (result.complete, result.cut, result.delivered, result.length) == (True, False, 104_096, 104_096)
    assert (tmp_path / "core").read_bytes() == core


# A core that was cut off.

LENGTHS = [104_095, 99_096, 5000, 100, 64, 63, 4, 1, 0]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_delegate_never_sees_the_end_of_a_core_that_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(family, "GRACE", 20.0)
    core = announcing(104_096)[:length]
    result = deliver(shell('cat >"$0"; echo end >&2; mv "$0" "$1"', tmp_path / "part", tmp_path / "core"), core)
    known = 104_096 if length > 119 else None
    assert (result.started, result.failure, result.complete) == (True, None, True)
    assert (result.cut, result.delivered, result.length) == (True, length, known)
    assert result.drained is True and result.logged == [] and not (tmp_path / "core").exists()
    assert result.seconds < 15  # No grace for who has ended.


def test_a_delegate_that_has_all_of_a_core_that_was_cut_off_gets_sigterm_with_its_input_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "GRACE", 20.0)  # A busy machine takes its time.
    # As a program that has got SIGTERM: it does something more, and its input has not come to its end. The shell runs the trap
    # when the read is over, which the signal ends.
    script = f"""exec {sys.executable} -IS -c '
import os, select, signal, sys
def stop(number, frame):
    print("ready" if select.select([0], [], [], 0.2)[0] else "open", file=sys.stderr, flush=True)
    os._exit(3)
signal.signal(signal.SIGTERM, stop)
with open(sys.argv[1], "wb", 0) as file:
    while part := os.read(0, 1000):
        file.write(part)
' "$0" """
    core = announcing(1 << 20)[: LONG // 8]
    result = deliver(shell(script, tmp_path / "core"), core)
    assert (result.cut, result.delivered, result.logged) == (True, len(core), ["open"])
    assert len((tmp_path / "core").read_bytes()) > len(core) - 1001


def test_a_delegate_that_ignores_sigterm_is_killed_with_its_input_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "GRACE", 0.5)
    script = 'trap "" TERM; cat >/dev/null; touch "$0"; sleep 9'
    result = deliver(shell(script, tmp_path / "end"), announcing(104_096)[:5000])
    assert (result.failure, result.complete, result.cut) == (None, True, True)
    assert not (tmp_path / "end").exists()
    assert 0.5 < result.seconds < 9


def test_a_delegate_that_did_not_read_to_where_the_core_was_cut_off_has_stopped_reading() -> None:
    script = "exec dd bs=1000 count=3 iflag=fullblock of=/dev/null status=none"
    result = deliver(shell(script), announcing(104_096)[:50_000])
    assert (result.failure, result.complete, result.delivered) == (None, False, 3000)


def test_a_core_of_50_megabytes_arrives_unchanged(tmp_path: Path) -> None:
    core = os.urandom(50_000_000)
    result = deliver(shell('sha256sum >"$0"', tmp_path / "sum"), core)
    assert (result.failure, result.complete, result.delivered) == (None, True, len(core))
    assert (tmp_path / "sum").read_text().split()[0] == hashlib.sha256(core).hexdigest()


def test_a_delegate_that_works_on_after_the_core_is_waited_for(tmp_path: Path) -> None:
    result = deliver(shell('cat >/dev/null; sleep 0.4; echo done >"$0"', tmp_path / "done"), b"core")
    assert (result.failure, result.complete) == (None, True)
    assert result.seconds >= 0.4 and (tmp_path / "done").exists()


def test_a_delegate_that_fills_its_input_again_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tee, splice = linux.tee, linux.splice
    attempts = tmp_path / "attempts"

    def count(*words: int) -> int:
        with attempts.open("a") as file:
            file.write("x")
        return tee(*words)

    def fill_first(source: int, sink: int, length: int) -> int:
        monkeypatch.setattr(linux, "splice", splice)
        # As by a delegate that has opened /proc/self/fd/0, between poll(2) and splice(2).
        os.write(sink, bytes(4096))
        return splice(source, sink, length)

    monkeypatch.setattr(linux, "tee", count)
    monkeypatch.setattr(linux, "splice", fill_first)
    core = os.urandom(LONG)
    result = deliver(shell('sleep 0.3; head -c 4096 >/dev/null; cat >"$0"', tmp_path / "core"), core)
    assert attempts.read_text() == "x"
    assert (result.failure, result.complete, result.delivered) == (None, True, LONG)
    assert (tmp_path / "core").read_bytes() == core


def test_a_delegate_that_reads_slowly_gets_everything(tmp_path: Path) -> None:
    core = os.urandom(3 << 20)
    result = deliver(shell('(head -c 100000; sleep 0.2; cat) >"$0"', tmp_path / "core"), core)
    assert (result.failure, result.complete) == (None, True)
    assert (tmp_path / "core").read_bytes() == core


def test_a_delegate_that_exits_without_reading_is_told(tmp_path: Path) -> None:
    result = deliver(shell("exit 0"), bytes(LONG))
    assert (result.started, result.failure, result.complete, result.delivered) == (True, None, False, 0)


def test_bytes_that_the_delegate_did_not_read_do_not_count() -> None:
    result = deliver(shell("exec dd bs=1000 count=10 iflag=fullblock of=/dev/null status=none"), bytes(LONG))
    assert (result.failure, result.complete, result.delivered) == (None, False, 10000)


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("cat >/dev/null; exit 7", "it ended with exit code 7"),
        ("exit 255", "it ended with exit code 255"),
        ("kill -KILL $$", "it was killed by signal 9"),
        ("kill -TERM $$; sleep 9", "it was killed by signal 15"),
        ("exec 0</dev/null; exit 3", "it ended with exit code 3"),
    ],
)
@pytest.mark.parametrize("size", [4, LONG])
def test_a_failure_of_the_delegate_is_told(script: str, failure: str, size: int) -> None:
    assert deliver(shell(script), bytes(size)).failure == failure


@pytest.mark.parametrize(
    ("end", "keep", "failure"),
    [
        ("exit 75", True, "it ended with exit code 75 (keep the core and try again)"),
        ("exit 74", False, "it ended with exit code 74"),
        ("exit 0", False, None),
    ],
)
@pytest.mark.parametrize("reads", ["", "cat >/dev/null; "])
def test_a_delegate_may_ask_to_keep_the_core(reads: str, end: str, keep: bool, failure: str | None) -> None:
    result = deliver(shell(reads + end))
    assert (result.keep, result.failure, result.untouched) == (keep, failure, not reads)


def test_standard_error_is_logged_line_by_line() -> None:
    result = deliver(shell("printf 'one\\n\\ntwo\\377\\033[0m\\n' >&2; cat >/dev/null; printf three >&2"), b"core")
    assert result.failure is None
    assert [line for line in result.logged if line] == ["one", "two\xff\x1b[0m", "three"]


def test_standard_output_goes_nowhere_and_never_blocks() -> None:
    result = deliver(shell("head -c 3000000 /dev/zero; cat >/dev/null"), b"core")
    assert (result.failure, result.complete, result.logged) == (None, True, [])


@pytest.mark.parametrize(("piece", "free"), [(b"x", 256), (bytes(4096), 256), (bytes(65536), 16)])
def test_a_delegate_that_writes_much_or_in_many_pieces_has_to_wait(piece: bytes, free: int) -> None:
    errors, stderr = os.pipe()
    words, stdout = os.pipe()
    child: Any = SimpleNamespace(stderr_read_end=errors, stdout_read_end=words)
    output = relay.Output(child, lambda line: None)
    try:
        for number in range(free + 1):
            assert output.resume == 0, number
            os.write(stderr, piece)
            output.read(errors)
        assert output.resume > 0
    finally:
        for descriptor in (errors, stderr, words, stdout):
            os.close(descriptor)


@pytest.mark.parametrize(("text", "lines"), [("x" * 1999, 34), ("x" * 99, 201), ("", 201)])
def test_standard_error_is_bounded_and_never_blocks(text: str, lines: int) -> None:
    result = deliver(shell(f"yes '{text}' | head -c 3000000 >&2; cat >/dev/null"), b"core")
    assert (result.failure, result.complete, len(result.logged)) == (None, True, lines)
    assert "more than 64 KiB" in result.logged[-1]
    assert all(line == text or text.startswith(line) for line in result.logged[:-1])


# Whoever goes on reading has more time.

READS_SLOWLY = "import os, time\nwhile os.read(0, 65536): time.sleep({pause})\n"


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second more for 256 KiB, and never much at once."""
    monkeypatch.setattr(deadline, "RATE", 1 << 18)
    monkeypatch.setattr(deadline, "STEP", 0.4)
    monkeypatch.setattr(deadline, "AHEAD", 0.2)


def slow_reader(pause: float) -> list[str]:
    return [sys.executable, "-IS", "-c", READS_SLOWLY.format(pause=pause)]


@pytest.mark.usefixtures("little")
def test_a_delegate_that_goes_on_reading_is_not_ended_at_the_timeout() -> None:
    # 64 pieces of 64 KiB each, less than 640 of them a second.
    result = deliver(slow_reader(0.05), bytes(LONG), 1.0, longest=20.0)
    assert (result.failure, result.complete, result.delivered) == (None, True, LONG)
    assert result.seconds > 3


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize(("longest", "short"), [(1.0, False), (2.0, False), (20.0, True)])
def test_a_delegate_that_goes_on_reading_is_ended_in_the_end(longest: float, short: bool) -> None:
    result = deliver(slow_reader(0.05), bytes(LONG), 1.0, longest=longest, short=short)
    assert (result.failure, result.complete) == ("deadline passed", False)
    assert 0 < result.delivered < LONG and result.seconds < min(longest, 2.0) + 1.2


@pytest.mark.usefixtures("little")
def test_a_delegate_that_reads_much_and_stops_is_ended_after_the_timeout() -> None:
    result = deliver(shell("head -c 3000000 >/dev/null; sleep 20"), bytes(LONG), 1.0, longest=20.0)
    assert result.failure == "deadline passed"
    assert result.seconds < 4


# What was read decides whose core it is.


@pytest.mark.parametrize("size", [10, 5000, LONG])
@pytest.mark.parametrize("script", ["exit 7", "kill -KILL $$", "exec 0<&-; exit 1", "exec 0<&-; sleep 0.1; exit 1"])
def test_a_delegate_that_fails_and_has_read_nothing_leaves_the_core_whole(script: str, size: int) -> None:
    result = deliver(shell(script), b"c" * size)
    assert (result.started, result.delivered) == (True, 0)
    assert result.failure is not None
    assert result.untouched is True


@pytest.mark.parametrize("script", ["head -c 1 >/dev/null; exit 7", "head -c 1 >/dev/null; kill -KILL $$"])
def test_a_delegate_that_has_read_one_byte_has_taken_the_core(script: str) -> None:
    result = deliver(shell(script), b"c" * LONG)
    assert result.failure is not None and result.untouched is False
    assert result.delivered > 0


def test_a_delegate_that_reads_nothing_and_ends_well_does_not_want_the_core() -> None:
    result = deliver(shell("exit 0"), b"c" * LONG)
    assert (result.failure, result.untouched, result.delivered) == (None, True, 0)


def test_who_inherited_the_input_of_a_failed_delegate_does_not_keep_the_core() -> None:
    result = deliver(shell("exec 3<&0; sleep 60 <&3 >&- 2>&- 3<&- & exit 1"), b"c" * LONG)
    assert (result.untouched, result.failure) == (True, "it ended with exit code 1")


@pytest.mark.parametrize("size", [10, LONG])
def test_who_inherited_the_input_of_a_delegate_that_ended_well_reads_on(tmp_path: Path, size: int) -> None:
    (tmp_path / "core").touch()
    result = deliver(shell('exec 3<&0; (sleep 0.3; cat <&3 >"$0") 3<&3 & exit 0', tmp_path / "core"), b"c" * size)
    assert result.failure is None
    limit = time.monotonic() + PATIENCE
    while (tmp_path / "core").stat().st_size < size and time.monotonic() < limit:
        time.sleep(0.01)
    assert (tmp_path / "core").stat().st_size == size
