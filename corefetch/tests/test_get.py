"""``get`` and ``rm``, with a real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard
from corefetch import text
from corefetch.errors import Exit, Failure
from corefetch.facts import of_entry
from corefetch.fetch import fetch
from corefetch.stores import Directory
from support.command import Desk
from support.cores import KEY, Shop
from support.servers import S3

OTHER = "node-7.shop-1.shop.shop.7776.20261129T180001Z.0f3a9c27d1b5"


@pytest.fixture
def place(bucket: S3, shop: Shop) -> Path:
    """The bucket's directory, with a core and what is known of it."""
    place = bucket.directory / "shop"
    content = shop.core.read_bytes()
    (place / f"{KEY}.core.zst").write_bytes(zstandard.ZstdCompressor(level=1).compress(content))
    describe(place, hashlib.sha256(content).hexdigest())
    return place


def describe(place: Path, sha256: str | None) -> None:
    """Write the JSON file."""
    (place / f"{KEY}.json").write_text(
        json.dumps({"sha256": sha256, "build_ids": None, "facts": {"CORE_NODE": "node-7"}})
    )


def left(desk: Desk) -> list[str]:
    """Return what lies in the user's directory, but for the cache."""
    return sorted(path.name for path in desk.directory.iterdir() if path.name != ".cache")


@pytest.mark.parametrize("words", ["last", "0f3a", KEY, f"{KEY}.core.zst", f"s3://cores/shop/{KEY}.core.zst"])
def test_a_core_comes_whole_by_any_of_its_names(desk: Desk, place: Path, shop: Shop, words: str) -> None:
    done = desk.good("get", words)
    path = desk.directory / done.out.strip()
    assert path.name == f"{KEY}.core"
    assert path.read_bytes() == shop.core.read_bytes()
    assert path.stat().st_blocks * 512 < path.stat().st_size / 2
    assert path.stat().st_mode & 0o777 == 0o600
    assert "as it must be" in done.err
    assert left(desk) == [path.name]


def test_what_a_program_wants_to_know_is_json(desk: Desk, place: Path, shop: Shop) -> None:
    known = desk.good("get", "last", "--json", "-o", "x.core").json
    assert known["sha256"] == hashlib.sha256(shop.core.read_bytes()).hexdigest()
    assert (known["path"], known["verified"], known["truncated"]) == ("x.core", True, False)


def poured(desk: Desk, *words: str) -> tuple[int, bytes, str]:
    """Return the status of get, and what it writes to both outputs."""
    done = subprocess.run(
        desk.words("get", "last", "-o", "-", *words),
        cwd=desk.directory,
        env=desk.environment(),
        check=False,
        capture_output=True,
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_standard_output_gets_a_core_unless_it_is_a_terminal(desk: Desk, place: Path, shop: Shop) -> None:
    status, out, err = poured(desk)
    assert (status, out) == (0, shop.core.read_bytes())
    assert "as it must be" in err
    assert poured(desk, "--packed")[1] == (place / f"{KEY}.core.zst").read_bytes()
    assert poured(desk, "--json")[:2] == (Exit.USAGE, b"")
    lead, follow = pty.openpty()
    words = desk.words("get", "last", "-o", "-")
    done = subprocess.run(
        words, cwd=desk.directory, env=desk.environment(), check=False, stdout=follow, stderr=subprocess.PIPE
    )
    os.close(follow)
    os.close(lead)
    assert (done.returncode, done.stderr.count(b"\n")) == (Exit.USAGE, 1)
    describe(place, "1" * 64)
    status, out, err = poured(desk)
    assert status == Exit.DAMAGED and "checksum is wrong" in err
    packed = place / f"{KEY}.core.zst"
    packed.write_bytes(packed.read_bytes()[:-1000])
    status, out, err = poured(desk)
    assert status == Exit.DAMAGED and shop.core.read_bytes().startswith(out) and "end is missing" in err
    assert left(desk) == []


def test_a_core_leaves_room_on_the_disk_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"x" * (20 << 20)
    (tmp_path / f"{KEY}.core.zst").write_bytes(zstandard.ZstdCompressor(level=1).compress(content))
    store = Directory(tmp_path)
    entry = store.stat(f"{KEY}.core.zst")
    assert entry
    core = of_entry(entry)
    assert core
    (tmp_path / "here").mkdir()
    path = tmp_path / "here/x.core"
    # A disk of 200 MiB, of which 25 are free: a twentieth stays so.
    monkeypatch.setattr(os, "fstatvfs", lambda file: SimpleNamespace(f_blocks=51200, f_frsize=4096, f_bavail=free()))

    def free() -> int:
        return 6400 - sum(one.stat().st_size for one in (tmp_path / "here").iterdir()) // 4096

    with pytest.raises(Failure) as failure:
        fetch(store, core, path, lambda *_: None)
    told = str(failure.value)
    assert told.endswith("no more than 10 MiB of the disk are left, which others may need: make room, and run again"), (
        told
    )
    assert list((tmp_path / "here").iterdir()) == []
    monkeypatch.undo()
    fetch(store, core, path, lambda *_: None)
    assert path.read_bytes() == content


def test_nothing_but_a_file_is_replaced(desk: Desk, place: Path) -> None:
    os.mkfifo(desk.directory / "pipe")
    done = desk.run("get", "last", "--force", "-o", "pipe")
    assert (done.status, done.err.count("\n")) == (Exit.USAGE, 1)
    assert "- for standard output" in done.err
    assert (desk.directory / "pipe").is_fifo()


def test_a_wrong_checksum_leaves_no_file(desk: Desk, place: Path) -> None:
    describe(place, "1" * 64)
    done = desk.run("get", "last")
    assert done.status == Exit.DAMAGED
    assert "checksum is wrong" in done.err
    assert left(desk) == []


def test_a_core_without_a_checksum_says_so(desk: Desk, place: Path) -> None:
    describe(place, None)
    assert (
        "not compared: no checksum is known of a core that was sent while it was written"
        in desk.good("get", "last").err
    )


def test_a_checksum_of_something_else_is_not_denied(desk: Desk, place: Path) -> None:
    said = "not compared: the known checksum is that of the whole core, unpacked"
    assert said in desk.good("get", "last", "--packed").err


def test_a_damaged_core_is_never_taken_for_a_whole_one(desk: Desk, place: Path, shop: Shop) -> None:
    packed = place / f"{KEY}.core.zst"
    packed.write_bytes(packed.read_bytes()[:-1000])
    done = desk.run("get", "last")
    assert done.status == Exit.DAMAGED
    assert "end is missing" in done.err
    assert left(desk) == [f"{KEY}.core.truncated"]
    assert shop.core.read_bytes().startswith((desk.directory / f"{KEY}.core.truncated").read_bytes())


def test_nothing_is_replaced_without_a_word(desk: Desk, place: Path) -> None:
    (desk.directory / f"{KEY}.core").write_text("mine")
    done = desk.run("get", "last")
    assert done.status == Exit.USAGE
    assert "exists already" in done.err
    assert (desk.directory / f"{KEY}.core").read_text() == "mine"
    desk.good("get", "last", "--force")
    assert (desk.directory / f"{KEY}.core").read_bytes()[:4] == b"\x7fELF"


def test_a_packed_core_comes_as_it_is(desk: Desk, place: Path) -> None:
    desk.good("get", "last", "--packed", "-o", "./")
    assert (desk.directory / f"{KEY}.core.zst").read_bytes() == (place / f"{KEY}.core.zst").read_bytes()


def part_of(desk: Desk) -> Path:
    """Return the file of what has come."""
    (part,) = desk.directory.glob(".*.part")
    return part


def test_an_interrupted_core_goes_on_where_it_was(desk: Desk, place: Path) -> None:
    content = os.urandom(64 << 20)
    (place / f"{OTHER}.core").write_bytes(content)
    # What has come before a Ctrl-C is the beginning of the object.
    process = subprocess.Popen(
        desk.words("get", "0f3a9c27d1b5"), cwd=desk.directory, env=desk.environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in desk.directory.glob(".*.part")) and process.poll() is None:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == Exit.INTERRUPTED, said
    assert "Traceback" not in said
    assert [name for name in left(desk) if not name.endswith(".part")] == []
    part = part_of(desk)
    done = part.stat().st_size
    assert 0 < done < len(content)
    assert f"interrupted: {done} of {len(content)} bytes are in {part.name}: the same command goes on there" in said
    assert content.startswith(part.read_bytes())
    # A mark in what has come, which would be gone if all came again.
    with open(part, "r+b") as file:
        file.write(b"MARK")
    desk.good("get", "0f3a9c27d1b5")
    assert (desk.directory / f"{OTHER}.core").read_bytes() == b"MARK" + content[4:]
    assert left(desk) == [f"{OTHER}.core"]


def test_an_interrupted_copy_of_a_file_says_that_nothing_stays(desk: Desk) -> None:
    store = desk.directory / "store"
    store.mkdir()
    source = store / f"{OTHER}.core"
    with open(source, "wb") as file:
        file.truncate(40 << 30)
    process = subprocess.Popen(
        desk.words("get", "last", "--from", "store"),
        cwd=desk.directory,
        env=desk.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not list(desk.directory.glob(".*.new")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == Exit.INTERRUPTED
    assert said == f"corefetch: interrupted: {source} was read, and nothing is written: the next run reads it again\n"
    assert left(desk) == ["store"]


@pytest.mark.parametrize(("owner", "mode"), [(4711, 0o600), (-1, 0o666)])
def test_nothing_comes_into_a_file_that_another_user_has_made(desk: Desk, place: Path, owner: int, mode: int) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    stat = (place / f"{KEY}.core.zst").stat()
    version = f"{KEY}.core.zst\n{stat.st_size}\n{int(stat.st_mtime)}"
    part = desk.directory / f".{KEY}.core.{hashlib.sha256(version.encode()).hexdigest()[:12]}.part"
    part.touch()
    part.chmod(mode)
    os.chown(part, owner, -1)
    done = desk.run("get", "last")
    assert (done.status, done.out) == (Exit.FAILED, "")
    assert f"{part.name}: not the user's alone: delete it" in done.err
    assert part.read_bytes() == b""


def test_another_core_under_the_same_name_begins_anew(desk: Desk, place: Path) -> None:
    (place / f"{OTHER}.core").write_bytes(b"x" * 1000)
    desk.good("get", "d1b5")
    (desk.directory / f"{OTHER}.core").unlink()
    (desk.directory / f".{OTHER}.core.000000000000.part").write_bytes(b"y" * 500)
    desk.good("get", "d1b5")
    assert (desk.directory / f"{OTHER}.core").read_bytes() == b"x" * 1000


def test_progress_is_shown_on_a_terminal_only(desk: Desk, place: Path) -> None:
    def seen(**variables: str) -> str:
        lead, follow = pty.openpty()
        (desk.directory / f"{KEY}.core").unlink(missing_ok=True)
        process = subprocess.Popen(
            desk.words("get", "last"),
            cwd=desk.directory,
            env=desk.environment(TERM="xterm-256color", **variables),
            stderr=follow,
            stdout=subprocess.PIPE,
        )
        os.close(follow)
        found = b""
        while True:
            try:
                block = os.read(lead, 1000)
            except OSError:
                break
            if not block:
                break
            found += block
        assert process.wait(30) == 0
        os.close(lead)
        return found.decode()

    assert "unpacking" in seen()
    # Colours are what NO_COLOR is about: the bar may still move.
    assert "\x1b[38;" in seen()
    assert "\x1b[38;" not in seen(NO_COLOR="1")
    (desk.directory / f"{KEY}.core").unlink()
    assert "\x1b" not in desk.good("get", "last").err


def test_several_cores_of_one_part_are_named(desk: Desk, place: Path) -> None:
    (place / f"{OTHER}.core").write_bytes(b"x")
    done = desk.run("get", "0f3a")
    assert done.status == Exit.NOT_FOUND
    assert "0f3a9c27d1b4 (shop-1, 2026-11-29 18:00:00), 0f3a9c27d1b5 (shop-1, 2026-11-29 18:00:01)" in done.err
    assert desk.run("get", "nobody").status == Exit.NOT_FOUND


def test_a_word_is_of_the_store_before_it_is_of_a_file(desk: Desk, place: Path) -> None:
    # Such as the program itself.
    program = desk.directory / "shop-1"
    shutil.copy("/bin/true", program)
    done = desk.good("info", "shop-1", "--facts", "--json")
    assert done.json["key"] == KEY
    assert done.err == f"corefetch: {KEY}.core.zst of the store is meant; ./shop-1 is the file of that name here\n"
    done = desk.run("info", "./shop-1")
    assert (done.status, done.err) == (
        Exit.DAMAGED,
        "corefetch: shop-1: no core: an ELF file of another kind: see file(1)\n",
    )
    # Where the store has no such key, and where there is no store, it is the file.
    program.rename(desk.directory / "other")
    assert "corefetch: other: no core: " in desk.run("info", "other").err
    away = desk.run("info", "other", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert away.status == Exit.UNREACHABLE and "; ./other is the file of that name here" in away.err
    del desk.variables["COREFETCH_FROM"]
    assert "corefetch: other: no core: " in desk.run("info", "other").err


def test_a_file_with_the_name_of_a_core_need_not_come_again(desk: Desk, place: Path, shop: Shop) -> None:
    desk.good("get", "last")
    assert desk.good("info", f"{KEY}.core", "--facts", "--json", AWS_ENDPOINT_URL="http://127.0.0.1:1").json["pid"]
    # What rm deletes is in the store, and nothing else.
    assert desk.good("rm", f"{KEY}.core", "--yes").out == f"{KEY}.core.zst\n"
    done = desk.run("rm", f"{KEY}.core", "--yes")
    assert done.status == Exit.NOT_FOUND and f"; ./{KEY}.core is the file of that name here" in done.err
    assert left(desk) == [f"{KEY}.core"]
    desk.good("rm", f"./{KEY}.core", "--yes")
    assert left(desk) == []


def test_a_core_is_deleted_with_what_is_known_of_it(desk: Desk, place: Path) -> None:
    done = desk.run("rm", "last")
    assert done.status == Exit.USAGE
    assert "--yes" in done.err
    assert len(list(place.iterdir())) == 2
    assert desk.good("rm", "last", "--yes", "--json").json == [{"key": KEY, "path": f"{KEY}.core.zst"}]
    assert list(place.glob("*")) == []
    assert desk.run("rm", "last", "--yes").status == Exit.NOT_FOUND


@pytest.mark.parametrize("whole", [f"{KEY}.core", f"{KEY}.core.zst", f"{KEY}.core.gz"])
def test_a_part_of_a_core_is_deleted_without_what_is_known_of_the_whole(desk: Desk, place: Path, whole: str) -> None:
    (core,) = place.glob("*.core*")
    core.rename(place / whole)
    part = f"{KEY}.core.zst.truncated"
    (place / part).write_bytes(b"part")
    assert desk.good("rm", part, "--yes").out == f"{part}\n"
    assert sorted(path.name for path in place.iterdir()) == [whole, f"{KEY}.json"]
    (place / part).write_bytes(b"part")
    (place / whole).unlink()
    desk.good("rm", part, "--yes")
    assert list(place.glob("*")) == []


@pytest.mark.parametrize(
    ("answer", "status", "files"), [("y\n", 0, 0), ("n\n", Exit.FAILED, 2), ("\n", Exit.FAILED, 2)]
)
def test_a_user_is_asked_before_a_core_is_deleted(
    desk: Desk, place: Path, answer: str, status: int, files: int
) -> None:
    lead, follow = pty.openpty()
    process = subprocess.Popen(
        desk.words("rm", "last"),
        cwd=desk.directory,
        env=desk.environment(),
        stdin=follow,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(follow)
    os.write(lead, answer.encode())
    _, said = process.communicate(timeout=30)
    os.close(lead)
    assert process.returncode == status
    size = text.size((place / f"{KEY}.core.zst").stat().st_size) if status else ""
    assert f"{KEY}.core.zst (shop-1, SIGSEGV, 2026-11-29 18:00:00 UTC, {size}" in said.decode()
    assert b"Delete this core?" in said
    assert len(list(place.glob("*"))) == files


def test_a_file_is_a_core_too(desk: Desk, shop: Shop) -> None:
    done = desk.good("get", shop.core, "--packed", "-o", "copy.core")
    assert (desk.directory / done.out.strip()).read_bytes() == shop.core.read_bytes()


@pytest.mark.parametrize("words", [".", "/", "..", "*", ".core", "core.zst", ".zst", "s3://cores/shop/"])
def test_a_word_that_every_core_has_names_none(desk: Desk, place: Path, words: str) -> None:
    done = desk.run("rm", "--yes", "--", words)
    assert (done.status, done.out, done.err.count("\n")) in ((Exit.USAGE, "", 1), (Exit.NOT_FOUND, "", 1))
    assert (place / f"{KEY}.core.zst").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("rm", "--yes", ""),
        ("rm", "--yes", "last", "--from", ""),
        ("get", ""),
        ("get", "last", "-o", ""),
        ("info", ""),
        ("info", "last", "--image", ""),
        ("debug", "last", "--symbols", ""),
        ("list", "--host", ""),
        ("list", "--pod", ""),
        ("list", "--program", ""),
    ],
)
def test_an_empty_word_means_nothing(desk: Desk, place: Path, words: tuple[str, ...]) -> None:
    done = desk.run(*words)
    assert (done.status, done.out) == (Exit.USAGE, "")
    assert done.err.endswith(": an empty word: see whether a variable is not set\n")
    assert (place / f"{KEY}.core.zst").exists()
