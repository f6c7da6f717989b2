"""cores: what operators see and do with what the host keeps."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from core_helper import cores, store
from core_helper.configuration import Configuration

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="a store belongs to root")
CORE = b"core" + bytes(20000) + b"end"


def put(directory: Path, key: str, content: bytes = CORE, packed: bool = False, **more: Any) -> Path:
    """Put a core into the store, as the helper does."""
    group = directory / "container-abc"
    directory.mkdir(mode=0o700, exist_ok=True)
    group.mkdir(exist_ok=True)
    file = group / (f"{key}.core.zst" if packed else f"{key}.core")
    file.write_bytes(
        subprocess.run(["zstd", "-c"], input=content, check=True, stdout=subprocess.PIPE).stdout if packed else content
    )
    facts = {
        "CORE_KEY": key,
        "CORE_TIME": "86400",
        "CORE_SIGNAL_NAME": "SIGSEGV",
        "CORE_SIGNAL": "11",
        "CORE_EXE": "/usr/bin/redis\x1b[2J",
        "CORE_COMM": "redis",
    }
    known = {
        "key": key,
        "group": "container-abc",
        "size": len(content),
        "truncated": False,
        "reason": "because",
        "facts": facts,
        "file": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        **more,
    }
    (group / f"{key}.json").write_text(json.dumps(known))
    return file


@pytest.fixture(autouse=True)
def _configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has no configuration of this machine count."""
    monkeypatch.setattr(cores, "read_configuration", Configuration)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cores"


def run(directory: Path, *words: object) -> int:
    return cores.run(["--directory", str(directory), *map(str, words)])


def test_a_store_that_is_not_there_has_no_cores(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(directory, "list") == 0
    assert capsys.readouterr().out.startswith(f"no core is kept in {directory}: DOCKERCOREHELPER_KEEP")
    assert run(directory, "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(directory, "info", "x") == 1
    assert "no core is kept here" in capsys.readouterr().err
    assert not directory.exists()


def test_the_table_has_a_line_for_each_core_and_steers_no_terminal(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(directory, "node.box.redis.redis.17.19700102T000000Z.aaaa")
    put(directory, "node.box.redis.redis.18.19700102T000000Z.bbbb", truncated=True)
    assert run(directory, "list") == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "ID"
    assert first.split()[0] == "aaaa" and first.endswith("whole") and "SIGSEGV" in first and "20K" in first
    assert "/usr/bin/redis\\x1b[2J" in first
    assert second.split()[0] == "bbbb" and second.endswith("truncated")


def test_a_long_path_makes_the_lines_of_others_no_longer(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"CORE_TIME": "86400", "CORE_SIGNAL_NAME": "SIGSEGV", "CORE_EXE": "/\x1b" * 2000 + "/shop"}
    put(directory, "node.aaaa", facts=facts)
    put(directory, "node.bbbb")
    assert run(directory, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 160
    assert "  ..." in lines[1] and "/\\x1b/shop  " in lines[1]


def test_all_that_is_known_is_told_to_programs(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(directory, "node.aaaa")
    run(directory, "list", "--json")
    (listed,) = json.loads(capsys.readouterr().out)
    run(directory, "info", "aaaa")
    told = json.loads(capsys.readouterr().out)
    assert told == listed
    assert told["path"] == str(directory / "container-abc/node.aaaa.core")
    assert (told["id"], told["key"], told["reason"], told["facts"]["CORE_COMM"]) == (
        "aaaa",
        "node.aaaa",
        "because",
        "redis",
    )


@pytest.mark.parametrize("name", ["aaaa", "node.aaaa"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_core_is_fetched_whole_with_its_holes(directory: Path, tmp_path: Path, name: str, packed: bool) -> None:
    if packed and shutil.which("zstd") is None:
        pytest.skip("there is no zstd here")
    put(directory, "node.aaaa", packed=packed)
    assert run(directory, "get", name, tmp_path / "file") == 0
    found = tmp_path / "file"
    assert found.read_bytes() == CORE
    assert found.stat().st_mode & 0o777 == 0o600
    assert found.stat().st_blocks * 512 < len(CORE)


def test_a_core_may_go_to_standard_output(directory: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    put(directory, "node.aaaa")
    assert run(directory, "get", "aaaa", "-") == 0
    assert capfdbinary.readouterr().out == CORE


def test_a_file_that_is_there_is_never_replaced(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(directory, "node.aaaa")
    (tmp_path / "file").write_text("mine")
    assert run(directory, "get", "aaaa", tmp_path / "file") == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("fault", ["content", "zstd"])
def test_a_damaged_core_gets_no_name(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    if fault == "zstd" and shutil.which("zstd") is None:
        pytest.skip("there is no zstd here")
    file = put(directory, "node.aaaa", packed=fault == "zstd")
    file.write_bytes(b"no core")
    assert run(directory, "get", "aaaa", tmp_path / "file") == 1
    assert ("its checksum is wrong" if fault == "content" else "zstd ended with exit code") in capsys.readouterr().err
    assert not (tmp_path / "file").exists()


def test_what_is_not_there_is_named_and_nothing_is_deleted(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(directory, "node.aaaa")
    assert run(directory, "remove", "aaaa", "cccc") == 1
    assert "cccc: there is no such core" in capsys.readouterr().err
    assert len(cores.cores_of(store.Store(str(directory)))[0]) == 1


def test_an_id_that_two_cores_have_is_not_enough(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(directory, "one.aaaa")
    put(directory, "two.aaaa")
    assert run(directory, "remove", "aaaa") == 1
    assert "give the whole key" in capsys.readouterr().err
    assert run(directory, "remove", "one.aaaa") == 0
    assert [core["key"] for core in cores.cores_of(store.Store(str(directory)))[0]] == ["two.aaaa"]


def test_a_damaged_description_is_named(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = put(directory, "node.aaaa")
    file.with_name("node.aaaa.json").write_text("{")
    assert run(directory, "list") == 1
    assert f"{file.with_name('node.aaaa.json')}: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("readable", [True, False])
def test_a_damaged_description_hides_no_other_core(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], readable: bool
) -> None:
    note = put(directory, "node.aaaa").with_name("node.aaaa.json")
    note.write_text("{")
    if not readable:
        note.unlink()
        note.symlink_to("nowhere")
    put(directory, "node.bbbb")
    assert run(directory, "list") == 1
    assert "bbbb" in capsys.readouterr().out
    assert run(directory, "get", "bbbb", tmp_path / "file") == 0
    assert run(directory, "get", "node.aaaa", tmp_path / "other") == 1
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("fetch",), ("get", "aaaa"), ("remove",)])
def test_wrong_usage_is_exit_code_2(directory: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as raised:
        run(directory, *words)
    assert raised.value.code == 2


@pytest.mark.parametrize("command", [(), ("list",), ("info",), ("get",), ("send",), ("remove",)])
def test_help_goes_to_standard_output_and_names_all_commands_and_exit_codes(
    directory: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as raised:
        run(directory, *command, "--help")
    told = capsys.readouterr()
    assert (raised.value.code or 0, told.err) == (0, "")
    assert " ".join(("usage: docker_core_helper cores", *command)) in told.out
    if not command:
        assert "exit codes: 0 done; 1 failed, or only in part; 2 wrong command line." in told.out
        assert all(f"    {name} " in told.out for name in ("list", "info", "get", "send", "remove"))


def test_others_than_root_are_told_so(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(directory, "list") == 1
    assert "only root may see the cores of this host" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1.0K"), (10 << 20, "10M"), (1536 << 20, "1.5G"), (5 << 40, "5.0T")],
)
def test_amounts(number: int, text: str) -> None:
    assert cores.amount(number) == text
