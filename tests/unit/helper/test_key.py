"""key: the name of a core that no other core has."""

from __future__ import annotations

import posix
import re

import pytest
from core_helper import key, runtime
from core_helper.crash import Crash
from core_helper.process import CONTAINER_NAME, POD_NAME, Record
from unit.helper.support import process

ID = "0123456789abcdef" * 4
SHAPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def crash(pid: int = 4711, time: int = 1700000000) -> Crash:
    """Return a crash of that process at that second."""
    made = Crash(pid, 0, 0)
    made.time = time
    return made


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on a machine of a known name."""
    monkeypatch.setattr(posix, "uname", lambda: type("Names", (), {"nodename": "node-1.example"}))


def test_a_key_tells_where_who_and_when() -> None:
    crashed = process(container_id=ID, container_name=ID[:12], exe=b"/usr/bin/java", comm=b"C2 CompilerThre")
    found = key.key_of(crash(), crashed)
    assert re.fullmatch(
        r"node-1\.example\.0123456789ab\.java\.C2_CompilerThre\.4711\.20231114T221320Z\.[0-9a-f]{12}", found
    )


def test_the_pod_stands_for_the_container_and_the_name_for_the_id() -> None:
    known = Record()
    known.facts[CONTAINER_NAME] = b"web"
    crashed = process(container_id=ID, container_name=ID[:12], record=known)
    assert key.key_of(crash(), crashed).startswith("node-1.example.web.server.")
    known.facts[POD_NAME] = b"web-0/.."
    assert key.key_of(crash(), crashed).startswith("node-1.example.web-0_...server.")


def test_the_same_crash_has_one_key_and_no_other_crash_has_it() -> None:
    first, second = crash(), crash()
    keys = [key.key_of(each, process()) for each in (first, second, first)]
    assert keys[0] == keys[2] != keys[1]
    assert keys[0].rpartition(".")[0] == keys[1].rpartition(".")[0]


@pytest.mark.parametrize(
    "text",
    [b"", b"..", b".hidden", b"-rf", b"a/../b", b"a b\n\0", b"\xff\xc3\xa9", b"x" * 4096, b"%P$(x)`", b"\xe2\x80\xae"],
)
def test_what_a_container_chooses_can_do_no_harm(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(runtime, "group_of", lambda cgroups: "unit-" + "x" * 128)
    name = text.decode("utf-8", "surrogateescape")
    monkeypatch.setattr(posix, "uname", lambda: type("Names", (), {"nodename": name}))
    crashed = process(exe=b"/bin/" + text, comm=text, hostname=text)
    found = key.key_of(crash(9999999, 10**20), crashed)
    assert SHAPE.fullmatch(found)
    assert found.rsplit(".", 3)[1:3] == ["9999999", "99991231T235959Z"]


def test_a_process_of_the_host_is_of_its_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "group_of", lambda cgroups: {b"a": "unit-cron.service", b"b": "host"}[cgroups[0][1]])
    for path, name in ((b"a", "unit-cron.service"), (b"b", "host")):
        found = key.key_of(crash(), process(cgroups=[(b"", path)]))
        assert found.startswith(f"node-1.example.{name}.server.server.4711.")


def test_a_container_that_a_user_may_have_named_is_not_taken_for_another() -> None:
    found = key.key_of(crash(), process(container_id=ID, container_name=f"1000:{ID[:12]}"))
    assert found.startswith("node-1.example.1000_0123456789ab.")


def test_a_program_that_is_gone_keeps_its_name() -> None:
    assert ".server.x.4711." in key.key_of(crash(), process(exe=b"/opt/server (deleted)", comm=b"x"))
    assert ".unknown.unknown.4711." in key.key_of(crash(), process(exe=b"", comm=b""))
