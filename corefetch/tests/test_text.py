"""Times, sizes, and the words of strangers."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from corefetch import text
from corefetch.errors import Exit, Failure

NOW = datetime(2026, 11, 30, 2, 30, 15, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("words", "time"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("3d", NOW - timedelta(days=3)),
        ("today", datetime(2026, 11, 30, tzinfo=timezone.utc)),
        ("yesterday", datetime(2026, 11, 29, tzinfo=timezone.utc)),
        ("2026-11-29", datetime(2026, 11, 29, tzinfo=timezone.utc)),
        ("2026-11-29T18:00", datetime(2026, 11, 29, 18, tzinfo=timezone.utc)),
        ("2026-11-29 18:00:00Z", datetime(2026, 11, 29, 18, tzinfo=timezone.utc)),
        ("2026-11-29T18:00+01:00", datetime(2026, 11, 29, 17, tzinfo=timezone.utc)),
    ],
)
def test_a_time_is_read(words: str, time: datetime) -> None:
    assert text.read_time(words, NOW) == time


@pytest.mark.parametrize("words", ["", "soon", "2x", "2026-13-01", "99999999999w", "\x1b[31m"])
def test_no_time_is_one_line(words: str) -> None:
    with pytest.raises(Failure, match="no time") as failure:
        text.read_time(words, NOW)
    assert failure.value.code == Exit.USAGE
    assert "\x1b" not in str(failure.value)


@pytest.mark.parametrize(
    ("number", "words"),
    [(None, "-"), (0, "0"), (999, "999"), (1000, "1.0K"), (9990, "9.8K"), (10 << 20, "10M"), (3 << 40, "3.0T")],
)
def test_a_size_is_short(number: int | None, words: str) -> None:
    assert text.size(number) == words


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.b-1_C", "a.b-1_C"),
        ("-rf", "_rf"),
        (".x", "_x"),
        ("a\x1b[2J/é", "a__2J__"),
        ("", "core"),
        ("x" * 999, "x" * 200),
    ],
)
def test_no_name_of_a_stranger_is_more_than_a_file(name: str, file: str) -> None:
    assert text.harmless(name) == file


def test_no_word_of_a_stranger_steers_the_terminal() -> None:
    assert text.plain("a\x1b[2Jb\n\u202ec\x9bd") == "a\ufffd[2Jb\ufffd\ufffdc\ufffdd"
