"""The names of cores: what can be said of a core before anything of it is read.

``KEY.core``, then ``.zst`` or ``.gz`` if it is compressed, then ``.truncated`` if it was cut off. The helper makes the key:
node, pod or container, program, thread, pid, time, and twelve random digits. An older one leaves that to the uploader: host
name of the container, program, pid, uid, gid and seconds since the Epoch. ``KEY.json`` beside the core has the facts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone

ENDING = re.compile(r"(?P<stem>.+)\.core(?P<packed>\.zst|\.gz)?(?P<cut>\.truncated)?", re.S)
# How a core is packed, as ENDING has it.
PACKED = ("", ".zst", ".gz")
FACTS = ".json"
KEY = re.compile(r"(?P<names>.+)\.(?P<pid>\d+)\.(?P<time>\d{4}\d{4}T\d{6}Z)\.(?P<id>[0-9a-f]{12})", re.S)
OLD_KEY = re.compile(r"(?P<program>.+)\.(?P<pid>\d+)\.(?P<uid>\d+)\.(?P<gid>\d+)\.(?P<time>\d{1,11})", re.S)
# Bytes that the helper leaves of the name of a program, and that the kernel leaves of that of a thread.
LONGEST_PROGRAM, LONGEST_THREAD = 24, 15


@dataclass(frozen=True)
class Name:
    """The path of an object, taken apart at its end."""

    path: str
    stem: str
    packed: str
    truncated: bool

    @property
    def key(self) -> str:
        """The key without the directories."""
        return self.stem.rpartition("/")[2]


@dataclass(frozen=True)
class Key:
    """What a key says. What it does not say is empty or None."""

    node: str = ""
    place: str = ""
    program: str = ""
    thread: str = ""
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    time: datetime | None = None
    id: str = ""
    # Whether node, place, program and thread may be separated wrongly.
    vague: bool = False


def name_of(path: str) -> Name | None:
    """Return the parts of the path of a core, None if it is not one."""
    found = ENDING.fullmatch(path)
    if not found or found["stem"].endswith("/"):
        return None
    return Name(path, found["stem"], found["packed"] or "", bool(found["cut"]))


def read(stem: str) -> Key:
    """Return what the key of a core says."""
    directory, _, key = stem.rpartition("/")
    if found := KEY.fullmatch(key):
        node, place, program, thread = _names(found["names"])
        return Key(
            node,
            place,
            program,
            thread,
            int(found["pid"]),
            time=_time(found["time"]),
            id=found["id"],
            vague=found["names"].count(".") != 3,
        )
    if found := OLD_KEY.fullmatch(key):
        return Key(
            place=directory.rpartition("/")[2],
            program=found["program"],
            pid=int(found["pid"]),
            uid=int(found["uid"]),
            gid=int(found["gid"]),
            time=datetime.fromtimestamp(int(found["time"]), timezone.utc),
        )
    return Key()


def _names(names: str) -> tuple[str, str, str, str]:
    """Return node, place, program and thread. Each may have dots: then the likeliest, which a JSON file may correct.

    Mostly the thread has the name of its program, so that the two are found where one begins like the other.
    """
    parts = names.split(".")
    if len(parts) < 4:
        return ("", "", names, "")
    program, thread = next(
        (
            (program, thread)
            # With a dot before each byte. A stranger may give an object a name of a thousand dots.
            for thread in range(1, min(len(parts) - 2, LONGEST_THREAD + 2))
            for program in range(thread, min(len(parts) - 1 - thread, LONGEST_PROGRAM + 2))
            if ".".join(parts[-program - thread : -thread])[:LONGEST_THREAD] == ".".join(parts[-thread:])
        ),
        (1, 1),
    )
    left = parts[: -program - thread]
    return (
        ".".join(left[:-1]),
        left[-1],
        ".".join(parts[-program - thread : -thread]),
        ".".join(parts[-thread:]),
    )


def _time(digits: str) -> datetime | None:
    """Return the time that a key has, None if there is no such day."""
    try:
        # Many times as fast as strptime, which counts for 100,000 keys.
        date, time = int(digits[:8]), int(digits[9:15])
        day = (date // 10000, date // 100 % 100, date % 100)
        return datetime(*day, time // 10000, time // 100 % 100, time % 100, tzinfo=timezone.utc)
    except ValueError:
        return None
