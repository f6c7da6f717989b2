"""How times, sizes and the words of strangers are written and read."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime, timedelta, timezone

from corefetch.errors import Exit, Failure

UNITS = ("", "K", "M", "G", "T", "P")
LONGEST_NAME = 200
SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def plain(text: str) -> str:
    """Return ``text``, which a container may have chosen, without what could steer a terminal."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(one) in ("Cc", "Cf", "Cs") else one for one in text
    )


def encoded(text: str) -> bytes:
    """Return any text in bytes: names of files that are no UTF-8, and JSON, may have characters that no encoding has."""
    return text.encode("utf-8", "surrogatepass")


def harmless(name: str) -> str:
    """Return a name of a store as the name of a file: no option, no hidden file, and nothing that steers a terminal."""
    return re.sub(r"^[.-]", "_", re.sub(r"[^A-Za-z0-9._-]", "_", name))[-LONGEST_NAME:] or "core"


def size(number: int | None) -> str:
    """Return a number of bytes with at most three digits and a unit."""
    if number is None:
        return "-"
    value = float(number)
    for unit in UNITS:
        if value < 999.5 or unit == UNITS[-1]:
            return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"
        value /= 1024
    raise AssertionError(number)


def moment(time: datetime | None, seconds: bool = True) -> str:
    """Return a time in UTC."""
    if time is None:
        return "-"
    return time.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def iso(time: datetime | None) -> str | None:
    """Return a time for JSON."""
    return time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if time else None


def read_time(words: str, now: datetime | None = None) -> datetime:
    """Read a time, such as ``2h``, ``yesterday`` or ``2026-11-29T18:00`` (UTC unless it names another zone)."""
    now = now or datetime.now(timezone.utc)
    if span := re.fullmatch(r"(\d{1,18})([smhdw])", words):
        try:
            return now - timedelta(seconds=int(span[1]) * SPANS[span[2]])
        except OverflowError:
            raise _no_time(words) from None
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if words in ("today", "yesterday"):
        return midnight - timedelta(days=words == "yesterday")
    try:
        # Python 3.10 does not know the Z.
        found = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", words))
    except ValueError:
        raise _no_time(words) from None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _no_time(words: str) -> Failure:
    """Return the failure of a time that makes no sense."""
    return Failure(f"no time: {plain(words)}", "say 2h, 3d, yesterday, 2026-11-29 or 2026-11-29T18:00", Exit.USAGE)
