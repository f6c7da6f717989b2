"""What is known of one core: from its name, from the JSON file beside it, and from the core itself."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from corefetch import elfcore, keys, text
from corefetch.stores import Entry

# Bytes of a JSON file: helper and uploader write less. As Python has it, it may take 25 times as much memory, for each row.
LONGEST = 1 << 19


@dataclass
class Core:
    """A core, and all that is known of it. What is not known is empty or None."""

    path: str
    name: keys.Name
    stored: int
    modified: datetime
    json: str | None = None
    node: str = ""
    host: str = ""
    pod: str = ""
    namespace: str = ""
    container: str = ""
    image: str = ""
    program: str = ""
    exe: str = ""
    thread: str = ""
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    time: datetime | None = None
    id: str = ""
    signal: str = ""
    size: int | None = None
    truncated: bool = False
    sha256: str = ""
    build_ids: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    reason: str = ""
    known: dict[str, Any] = field(default_factory=dict)
    vague: bool = False

    @property
    def key(self) -> str:
        """The key."""
        return self.name.key

    @property
    def version(self) -> str:
        """What differs from all other objects of the store, and from another content of the same."""
        return f"{self.path}\n{self.stored}\n{int(self.modified.timestamp())}"

    @property
    def when(self) -> datetime:
        """When the process crashed, or else when the core came into the store."""
        return self.time or self.modified

    @property
    def place(self) -> str:
        """Where the process was, as an operator calls that."""
        return self.pod or self.container

    @property
    def build_id(self) -> str:
        """The build id of the program."""
        if self.exe:
            return self.build_ids.get(self.exe, "")
        return next((one for path, one in self.build_ids.items() if path.rpartition("/")[2] == self.program), "")

    def row(self) -> dict[str, Any]:
        """Return what ``--json`` shows of it."""
        return {
            "key": self.key,
            "path": self.path,
            "id": self.id or None,
            "time": text.iso(self.time),
            "stored_at": text.iso(self.modified),
            "host": self.node or self.host or None,
            "pod": self.pod or None,
            "container": self.container or None,
            "image": self.image or None,
            "program": self.exe or self.program or None,
            "thread": self.thread or None,
            "pid": self.pid,
            "signal": self.signal or None,
            "size": self.size,
            "stored_size": self.stored,
            "truncated": self.truncated,
            "sha256": self.sha256 or None,
            "build_id": self.build_id or None,
            "fault": self.fault or None,
        }


def of_entry(entry: Entry) -> Core | None:
    """Return what the name of an object says, None if it is no core."""
    name = keys.name_of(entry.path)
    if name is None:
        return None
    said = keys.read(name.stem)
    return Core(
        path=entry.path,
        name=name,
        stored=entry.size,
        modified=entry.modified,
        node=said.node,
        container=said.place,
        program=said.program,
        thread=said.thread,
        pid=said.pid,
        uid=said.uid,
        gid=said.gid,
        time=said.time,
        id=said.id,
        size=None if name.packed else entry.size,
        truncated=name.truncated,
        vague=said.vague,
    )


def add_json(core: Core, content: bytes) -> bool:
    """Add what the JSON file says: of the uploader, or of a host that has kept the core. Tells whether it makes sense."""
    try:
        known = json.loads(content)
    except (ValueError, RecursionError):
        return False
    if not isinstance(known, dict):
        return False
    inner = known.get("facts")
    facts = {**known, **(inner if isinstance(inner, dict) else {})}
    core.known = known

    def word(*names: str) -> str:
        return next((str(facts[name]) for name in names if facts.get(name) not in (None, "")), "")

    core.node = word("CORE_NODE") or core.node
    core.host = word("CORE_HOSTNAME")
    core.pod = word("CORE_POD_NAME")
    core.namespace = word("CORE_POD_NAMESPACE")
    core.container = word("CORE_CONTAINER_NAME") or core.container
    core.image = word("CORE_IMAGE")
    core.exe = word("CORE_EXE").removesuffix(elfcore.DELETED)
    core.program = core.exe.rpartition("/")[2] or core.program
    core.thread = word("CORE_COMM") or core.thread
    core.signal = word("CORE_SIGNAL_NAME") or elfcore.signal_name(_number(word("CORE_SIGNAL"))) or core.signal
    core.pid = _first(_number(word("CORE_HOST_PID", "CORE_PID")), core.pid)
    core.uid = _first(_number(word("CORE_UID")), core.uid)
    core.gid = _first(_number(word("CORE_GID")), core.gid)
    if (seconds := _number(word("CORE_TIME"))) is not None and seconds < 253402300800:
        core.time = datetime.fromtimestamp(seconds, timezone.utc)
    core.size = _first(_number(word("size", "CORE_SIZE")), core.size)
    core.truncated = core.truncated or known.get("truncated") is True or word("CORE_TRUNCATED") == "1"
    checksum = word("sha256").lower()
    core.sha256 = checksum if re.fullmatch(r"[0-9a-f]{64}", checksum) else ""
    core.reason = word("reason")
    ids = known.get("build_ids")
    if isinstance(ids, dict):
        core.build_ids = {str(path): str(one) for path, one in ids.items() if re.fullmatch(r"[0-9a-f]+", str(one))}
    return True


def add_core(core: Core, said: elfcore.CoreFacts) -> None:
    """Add what the core says of itself, where nobody else has."""
    core.signal = core.signal or elfcore.signal_name(said.signal)
    core.exe = core.exe or said.program
    core.program = core.exe.rpartition("/")[2] or core.program or said.name
    core.thread = core.thread or said.name
    core.pid = _first(core.pid, said.pid)
    core.build_ids = {**said.build_ids, **core.build_ids}
    core.truncated = core.truncated or said.truncated
    if core.size is None and not core.truncated:
        core.size = said.length
    if fault := said.fault():
        core.fault = f"{fault[0]}+{fault[1]:#x}"


def _number(word: str) -> int | None:
    """Return the number that a word is."""
    return int(word) if re.fullmatch(r"[0-9]{1,18}", word) else None


def _first(*values: int | None) -> int | None:
    """Return the first that is known."""
    return next((value for value in values if value is not None), None)
