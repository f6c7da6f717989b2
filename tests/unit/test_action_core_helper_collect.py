"""How cores come to the controller: by parts, whole or not at all, and never where a host wants them to be."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.project import load

PLUGIN = Path(__file__).resolve().parents[2] / "plugins/action/core_helper_collect.py"
PART = 4096
KEY = "shop-1.box.shop.shop.17.20261129T183440Z.919eb8c9e6bc"
CORE = os.urandom(6 * PART) + bytes(1 << 20) + b"end"
# Of the same size, and another one whatever CORE begins with.
ANOTHER = bytes([CORE[0] ^ 1]) + CORE[1:]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the plugin, with small parts."""
    pytest.importorskip("ansible.errors")
    loaded = load(PLUGIN)
    monkeypatch.setattr(loaded, "PART", PART)
    monkeypatch.setattr(loaded.ActionBase, "run", lambda *_: {})
    return loaded


def packed(content: bytes) -> bytes:
    """Compress, as the host does."""
    if shutil.which("zstd") is None:
        pytest.skip("there is no zstd here")
    return subprocess.run(["zstd", "-q", "-c"], input=content, check=True, stdout=subprocess.PIPE).stdout


class Host:
    """A host, which keeps some cores."""

    def __init__(self) -> None:
        """Start without any."""
        self.files: dict[str, bytes] = {}
        self.cores: list[dict[str, Any]] = []
        self.asked: list[tuple[Any, ...]] = []
        self.before_read: Callable[[int], None] = lambda _: None

    def put(self, content: bytes = CORE, key: str = KEY, compressed: bool = False, **other: Any) -> dict[str, Any]:
        """Have the host keep a core, and return what the host lists of it."""
        path = f"/store/group/{key}.core{'.zst' if compressed else ''}"
        self.files[path] = packed(content) if compressed else content
        known = {
            "key": key,
            "id": key.rpartition(".")[2],
            "group": "container-abc",
            "size": len(content),
            "bytes": 4096,
            "truncated": False,
            "facts": {"CORE_TIME": "86400", "CORE_SIGNAL_NAME": "SIGSEGV", "CORE_EXE": "/usr/bin/shop"},
            "sha256": hashlib.sha256(content).hexdigest(),
            "path": path,
            **other,
        }
        self.cores.append(known)
        return known

    def answer(self, **arguments: Any) -> dict[str, Any]:
        """Do what the module does."""
        step, path = arguments["step"], arguments.get("path", "")
        self.asked.append((step, arguments["offset"]) if step == "read" else (step,))
        if step == "list":
            return {"installed": True, "cores": self.cores}
        if step == "checksum":
            return {"sha256": hashlib.sha256(self.files[path]).hexdigest()}
        if step == "remove":
            self.cores = [core for core in self.cores if core["key"] not in arguments["keys"]]
            return {}
        self.before_read(arguments["offset"])
        data = self.files[path][arguments["offset"] :][: arguments["length"]]
        return {"data": base64.b64encode(zlib.compress(data)).decode(), "size": len(self.files[path])}

    def offsets(self) -> list[int]:
        """Return from where on parts were read since the last call."""
        asked, self.asked = self.asked, []
        return [step[1] for step in asked if step[0] == "read"]


class Controller:
    """The directory of the controller, and the task."""

    def __init__(self, plugin: Any, directory: Path, host: Host) -> None:
        """Collect into a directory that is not there yet."""
        self.plugin, self.host = plugin, host
        self.directory = directory / "rollout/cores"
        self.place = self.directory / "shop-1"
        self.core = self.place / f"{KEY}.core"

    def collect(self, check_mode: bool = False, **arguments: Any) -> dict[str, Any]:
        """Run the task."""
        action = self.plugin.ActionModule.__new__(self.plugin.ActionModule)
        words = {"bin_dir": "/opt/bin", "directory": str(self.directory), **arguments}
        action._task = SimpleNamespace(args=words, check_mode=check_mode)
        action._execute_module = lambda module_name, module_args, task_vars: self.host.answer(**module_args)
        result: dict[str, Any] = action.run(None, {"inventory_hostname": "shop-1"})
        return result

    def refused(self) -> str:
        """Run the task, which must not bring the core, and return why."""
        result = self.collect()
        assert result["failed"] and [core["collected"] for core in result["cores"]] == ["failed"]
        assert not self.core.exists() and not self.core.with_suffix(".core.new").exists()
        (problem,) = result["problems"]
        assert result["msg"] == problem
        return str(problem)

    def names(self) -> list[str]:
        """Return the files of the host that are here, without what all names begin with."""
        return sorted(path.name.removeprefix(KEY) for path in self.place.iterdir())


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def controller(plugin: Any, tmp_path: Path, host: Host) -> Controller:
    return Controller(plugin, tmp_path, host)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_core_comes_whole_for_its_owner_alone_and_once(controller: Controller, host: Host, compressed: bool) -> None:
    known = host.put(compressed=compressed)
    result = controller.collect()
    assert "failed" not in result and result["changed"]
    (core,) = result["cores"]
    assert (core["collected"], core["file"]) == ("now", str(controller.core))
    assert controller.core.read_bytes() == CORE
    assert controller.core.stat().st_blocks * 512 < len(CORE) / 2
    assert controller.names() == [".core", ".json"]
    modes = {path.name: path.stat().st_mode & 0o777 for path in (*controller.place.iterdir(), controller.place)}
    assert modes == {f"{KEY}.core": 0o600, f"{KEY}.json": 0o600, "shop-1": 0o700}
    assert controller.directory.stat().st_mode & 0o777 == 0o700
    assert json.loads((controller.place / f"{KEY}.json").read_text()) == known
    assert len(host.offsets()) > 5

    result = controller.collect()
    assert result["cores"][0]["collected"] == "before" and not result["changed"]
    assert host.offsets() == []


@pytest.mark.parametrize("change", ["size", "checksum", "description"])
def test_what_is_not_the_same_core_is_brought_again(controller: Controller, host: Host, change: str) -> None:
    host.put()
    controller.collect()
    if change == "size":
        controller.core.write_bytes(CORE[:-1])
    elif change == "checksum":
        host.cores.clear()
        host.put(ANOTHER)
    else:
        (controller.place / f"{KEY}.json").unlink()
    assert controller.collect()["cores"][0]["collected"] == "now"
    assert hashlib.sha256(controller.core.read_bytes()).hexdigest() == host.cores[0]["sha256"]


@pytest.mark.parametrize("compressed", [False, True])
def test_an_interrupted_core_goes_on_where_it_was(
    plugin: Any, controller: Controller, host: Host, compressed: bool
) -> None:
    def lose(offset: int) -> None:
        if offset == 3 * PART:
            raise plugin.AnsibleConnectionFailure("no route to host")

    host.put(compressed=compressed)
    host.before_read = lose
    problem = controller.refused()
    assert "the connection is lost: no route to host: what has come stays; run again" in problem
    assert controller.names() == [".core.zst.part" if compressed else ".core.part"]
    assert host.offsets() == [0, PART, 2 * PART, 3 * PART]

    host.before_read = lambda _: None
    assert controller.collect()["cores"][0]["collected"] == "now"
    assert host.offsets()[0] == 3 * PART
    assert controller.core.read_bytes() == CORE
    assert controller.names() == [".core", ".json"]


@pytest.mark.parametrize("compressed", [False, True])
def test_what_was_damaged_here_is_refused_and_deleted(controller: Controller, host: Host, compressed: bool) -> None:
    known = host.put(compressed=compressed)
    controller.place.mkdir(mode=0o700, parents=True)
    part = controller.place / (Path(known["path"]).name + ".part")
    begin = bytearray(host.files[known["path"]][: 2 * PART + 5])
    begin[PART] ^= 1
    part.write_bytes(begin)
    problem = controller.refused()
    assert problem.startswith(f"{KEY}: ") and problem.endswith("what had come of it is deleted; run again")
    assert "its checksum is wrong" in problem or compressed
    assert host.offsets()[0] == 2 * PART + 5
    assert controller.names() == []
    assert controller.collect()["cores"][0]["collected"] == "now"


@pytest.mark.parametrize("compressed", [False, True])
def test_what_was_damaged_on_the_host_is_refused(controller: Controller, host: Host, compressed: bool) -> None:
    host.put(compressed=compressed, sha256="0" * 64)
    assert "its checksum is wrong" in controller.refused()
    assert controller.names() == []


def test_a_file_that_unpacks_to_more_than_the_core_is_refused_early(
    plugin: Any, controller: Controller, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    put = plugin.put

    def count(file: int, block: bytes, offset: int) -> None:
        written.append(offset + len(block))
        put(file, block, offset)

    monkeypatch.setattr(plugin, "put", count)
    host.put(bytes(100 << 20), compressed=True, size=PART)
    assert f"it has more than {PART} bytes" in controller.refused()
    assert max(written) < 1 << 20


@pytest.mark.parametrize("size", [len(CORE) - 1, len(CORE) + 1])
def test_a_size_that_is_not_true_is_refused(controller: Controller, host: Host, size: int) -> None:
    host.put(size=size)
    assert f"its file has {len(CORE)} bytes, and the core {size}" in controller.refused()


def test_a_host_that_sends_without_end_is_stopped(controller: Controller, host: Host) -> None:
    known = host.put(compressed=True)
    host.files[known["path"]] = bytes(3 * len(CORE))
    assert f"its file has {3 * len(CORE)} bytes" in controller.refused()
    assert host.offsets() == [0]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"data": None, "size": 1},
        {"data": "%", "size": 1},
        {"data": "eJw=", "size": "x"},
        {"data": base64.b64encode(b"no zlib").decode(), "size": 1},
        {"data": base64.b64encode(zlib.compress(bytes(100 << 20))).decode(), "size": len(CORE)},
        {"data": base64.b64encode(zlib.compress(b"few")).decode(), "size": len(CORE)},
        {"failed": True, "msg": "gone meanwhile"},
    ],
)
def test_a_part_that_makes_no_sense_is_refused(controller: Controller, host: Host, answer: dict[str, Any]) -> None:
    host.put()
    real = host.answer
    host.answer = lambda **words: answer if words["step"] == "read" else real(**words)  # type: ignore[method-assign]
    problem = controller.refused()
    assert "makes no sense" in problem or "the host has sent" in problem or "gone meanwhile" in problem


def test_a_core_without_a_checksum_is_compared_with_the_file_of_the_host(controller: Controller, host: Host) -> None:
    known = host.put(sha256=None)
    assert controller.collect()["cores"][0]["collected"] == "now"
    noted = json.loads((controller.place / f"{KEY}.json").read_text())
    assert noted["sha256"] == hashlib.sha256(CORE).hexdigest()
    assert controller.collect()["cores"][0]["collected"] == "before"

    host.cores[0] = {**known, "key": "other", "id": "other"}
    real = host.answer
    host.answer = lambda **words: {"sha256": "0"} if words["step"] == "checksum" else real(**words)  # type: ignore[method-assign]
    assert "its checksum is wrong" in controller.collect()["msg"]


def test_without_zstd_what_has_come_waits_for_it(
    controller: Controller, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.put(compressed=True)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        assert "the controller has no zstd: install zstd, and run again" in controller.refused()
    host.offsets()
    assert controller.collect()["cores"][0]["collected"] == "now"
    assert len(host.offsets()) == 1


WINDOW = "/*stdin*\\ : Decoding error (36) : Frame requires too much memory for decoding"
MEMORY = "zstd: error 11 : Allocation error : not enough memory"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -KILL $$", "zstd was ended by signal 9: what has come stays"),
        (f"echo '{WINDOW}\nUse --long=31' >&2; exit 1", f"{WINDOW} Use --long=31: what has come stays"),
        (f"echo '{MEMORY}' >&2; exit 11", f"{MEMORY}: what has come stays"),
        ("exit 127", "zstd has ended with exit code 127: what has come stays"),
    ],
)
def test_a_zstd_that_fails_by_itself_costs_nothing_that_has_come(
    controller: Controller, host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
) -> None:
    host.put(compressed=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/zstd").write_text(f"#!/bin/sh\n{script}\n".replace("\\n", "\n"))
    (tmp_path / "bin/zstd").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
        assert controller.refused() == f"{KEY}: {said}; run again, and if that does not help, delete its .part"
        assert controller.names() == [".core.zst.part"]
        (tmp_path / "bin/zstd").chmod(0o644)
        patch.setenv("PATH", f"{tmp_path}/bin")
        assert "zstd does not start: Permission denied: what has come stays" in controller.refused()
    host.offsets()
    assert controller.collect()["cores"][0]["collected"] == "now"
    assert len(host.offsets()) == 1


@pytest.mark.parametrize("how", ["cut", "other", "few", "bit"])
def test_what_zstd_calls_damaged_is_deleted(controller: Controller, host: Host, how: str) -> None:
    known = host.put(compressed=True)
    whole = host.files[known["path"]]
    middle = len(whole) // 2
    host.files[known["path"]] = {
        "cut": whole[:middle],
        "other": b"no zstd at all",
        "few": b"(\xb5",
        "bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    }[how]
    problem = controller.refused()
    assert "zstd cannot decompress it: " in problem and problem.endswith("what had come of it is deleted; run again")
    assert controller.names() == []


def test_the_disk_of_the_controller_is_not_filled(
    controller: Controller, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.put()
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=4096))
    assert "the disk has less than 1 GiB left: what has come stays" in controller.refused()


def test_no_core_stands_beside_the_checksum_of_another(
    controller: Controller, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = controller.plugin.Place.rename

    def die(place: Any, old: str, new: str) -> None:
        if new.endswith(".core"):
            raise KeyboardInterrupt
        rename(place, old, new)

    host.put()
    controller.collect()
    host.cores.clear()
    host.put(ANOTHER)
    with monkeypatch.context() as patch:
        patch.setattr(controller.plugin.Place, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            controller.collect()
    assert not controller.core.exists()


def test_two_runs_do_not_write_one_file(controller: Controller, host: Host) -> None:
    host.put()
    controller.place.mkdir(mode=0o700, parents=True)
    with open(controller.place / f"{KEY}.core.part", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another run is bringing it" in controller.refused()
        assert controller.names() == [".core.part"]


def test_a_core_that_the_host_cannot_describe_costs_no_other_core(controller: Controller, host: Host) -> None:
    host.put()
    real = host.answer
    host.answer = lambda **words: {**real(**words), "problem": "b.json: damaged"}  # type: ignore[method-assign]
    result = controller.collect()
    assert (result["failed"], result["problems"]) == (True, ["b.json: damaged"])
    assert [row["collected"] for row in result["cores"]] == ["now"]
    assert controller.core.exists()


HOSTILE = ("../../x", "a/b", "", ".", "..", ".hidden", "-rf", "a\nb", "a b", "\x1b[2J", "é", "x" * 300)


@pytest.mark.parametrize("key", HOSTILE)
def test_a_key_that_is_no_key_never_becomes_a_path(controller: Controller, host: Host, key: str) -> None:
    host.put()
    host.cores[0]["key"] = key
    result = controller.collect()
    assert result["failed"] and "its answer makes no sense" in result["msg"]
    assert not controller.directory.exists()


@pytest.mark.parametrize(
    "cores",
    [None, 3, [3], [{}], "no", [{"key": KEY}], {"a": 1}],
)
def test_a_list_that_makes_no_sense_is_a_failure(controller: Controller, host: Host, cores: Any) -> None:
    host.cores = cores
    result = controller.collect()
    assert result["failed"] and "its answer makes no sense" in result["msg"]


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": "x"},
        {"size": 10**400},
        {"sha256": "../x"},
        {"facts": {"CORE_TIME": str(10**30)}},
        {"facts": None},
        {"path": "/x.core.zst", "sha256": None},
    ],
)
def test_a_core_that_makes_no_sense_is_a_failure(controller: Controller, host: Host, change: dict[str, Any]) -> None:
    host.put(**change)
    assert "its answer makes no sense" in controller.collect()["msg"]


def test_the_name_of_a_host_is_never_a_path_and_never_that_of_another(plugin: Any) -> None:
    names = ["shop-1", "shop.example.org", "10.0.0.1", *filter(None, HOSTILE), "fe80::1", "a_b", "a:b"]
    directories = {plugin.name_of(name) for name in names}
    assert len(directories) == len(names)
    assert all(plugin.KEY.fullmatch(name) for name in directories)
    assert plugin.name_of("shop-1") == "shop-1"


def test_a_directory_that_others_can_enter_gets_no_core(controller: Controller, host: Host) -> None:
    host.put()
    controller.place.mkdir(mode=0o755, parents=True)
    result = controller.collect()
    assert f"{controller.place} must be yours alone, because cores hold secrets" in result["msg"]
    assert controller.names() == [] and host.offsets() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_a_directory_of_somebody_else_gets_no_core(controller: Controller, host: Host) -> None:
    host.put()
    controller.place.mkdir(mode=0o700, parents=True)
    os.chown(controller.place, 12345, 12345)
    assert "must be yours alone" in controller.collect()["msg"]


def test_no_link_is_followed(controller: Controller, host: Host, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    host.put()
    controller.directory.mkdir(parents=True)
    controller.place.symlink_to(other)
    assert f"{controller.place}: " in controller.collect()["msg"]
    controller.place.unlink()
    controller.place.mkdir(mode=0o700)
    (controller.place / f"{KEY}.core.part").symlink_to(other / "core")
    assert KEY in controller.refused()
    assert list(other.iterdir()) == []


def test_in_check_mode_nothing_is_brought_and_the_list_says_what_would_be(controller: Controller, host: Host) -> None:
    host.put()
    result = controller.collect(check_mode=True, remove=True)
    assert result["cores"][0]["collected"] == "would be" and result["changed"]
    assert not controller.directory.parent.exists() and host.asked == [("list",)]
    controller.collect()
    host.put(key="another")
    result = controller.collect(check_mode=True, remove=True)
    assert [core["collected"] for core in result["cores"]] == ["before", "would be"]
    assert controller.names() == [".core", ".json"] and len(host.cores) == 2


def test_without_a_directory_the_cores_are_only_listed(controller: Controller, host: Host) -> None:
    host.put()
    result = controller.collect(directory=None)
    assert result["cores"][0]["collected"] == "-" and not result["changed"]
    assert host.asked == [("list",)]


def test_only_what_is_here_is_deleted_on_the_host(controller: Controller, host: Host) -> None:
    host.put(sha256="0" * 64)
    host.put(key="good")
    result = controller.collect(remove=True)
    assert [(core["key"], core.get("removed")) for core in result["cores"]] == [(KEY, None), ("good", True)]
    assert [core["key"] for core in host.cores] == [KEY]
    assert result["failed"] and len(result["problems"]) == 1


def test_a_host_without_helper_is_a_failure(controller: Controller, host: Host) -> None:
    host.answer = lambda **_: {"installed": False, "cores": []}  # type: ignore[method-assign]
    result = controller.collect()
    assert result["failed"] and result["msg"].startswith("there is no /opt/bin/docker_core_helper, so nobody can say")
