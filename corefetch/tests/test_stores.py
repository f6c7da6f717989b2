"""Emulators of Google Cloud Storage and of Azure, which know ranges, too, and names that no server has for obstore."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest
import zstandard
from corefetch import acquire, stores, unreadable
from corefetch.cache import Cache
from corefetch.clients import open_store
from corefetch.config import Settings
from corefetch.errors import Exit, Failure
from corefetch.facts import of_entry
from corefetch.stores import Directory
from corefetch.text import plain
from support import servers
from support.command import Desk
from support.cores import KEY, Shop


@pytest.fixture(params=["gs", "az"])
def filled(desk: Desk, shop: Shop, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, bytes]]:
    """Objects in a store to which the desk's settings lead."""
    objects = {
        f"{KEY}.core.zst": zstandard.ZstdCompressor(level=1).compress(shop.core.read_bytes()),
        f"{KEY}.json": b'{"facts": {"CORE_SIGNAL_NAME": "SIGSEGV", "CORE_NODE": "node-7"}}',
    }
    desk.variables["COREFETCH_FROM"] = f"{request.param}://{servers.BUCKET}/shop"
    if request.param == "az":
        if not servers.has_azure():
            pytest.skip("no emulator of Azure: apt-get install npm, then make .cache/azurite/complete")
        with servers.azure(tmp_path, {f"shop/{name}": content for name, content in objects.items()}) as variables:
            desk.variables.update(variables)
            yield objects
        return
    with servers.gcs(tmp_path) as url:
        desk.variables.update(STORAGE_EMULATOR_HOST=url)
        for name, content in objects.items():
            servers.post(f"{url}/upload/storage/v1/b/{servers.BUCKET}/o?uploadType=media&name=shop/{name}", content)
        yield objects


class Lister(BaseHTTPRequestHandler):
    """A server that knows of S3 only how to list: a real one on a file system has no such names."""

    keys: tuple[str, ...] = ()
    knows_start = True

    def do_GET(self) -> None:
        """Answer with one page, in which all keys are that are asked for."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, start = query.get("prefix", ""), query.get("start-after", "") if self.knows_start else ""
        found = sorted(key for key in self.keys if key.startswith(prefix) and key > start)
        cut = {key: key[len(prefix) :].partition(query.get("delimiter", "\0")) for key in found}
        below = dict.fromkeys(f"{prefix}{before}{slash}" for before, slash, _ in cut.values() if slash)
        content = "".join(
            f"<Contents><Key>{escape(key, {chr(10): '&#10;'})}</Key><LastModified>2026-11-29T00:00:00.000Z</LastModified>"
            "<ETag>e</ETag><Size>3</Size></Contents>"
            for key, (_, slash, _) in cut.items()
            if not slash
        )
        content += "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in below)
        self.send_response(200 if "list-type" in query else 404)
        self.end_headers()
        self.wfile.write(
            f"<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>{content}</ListBucketResult>".encode()
        )

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def listing(*keys: str, knows_start: bool = True) -> Iterator[dict[str, str]]:
    """Run a server with objects, and yield the variables that lead to it."""
    handler = type("Handler", (Lister,), {"keys": keys, "knows_start": knows_start})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "y",
            "COREFETCH_FROM": "s3://b/p",
        }
        server.shutdown()
        thread.join()


NAMES = ["a/1.core", "a/b/2.core", "b/3.core", "b/c/4.core", "c.core", "d/5.core", "e/6.core", "e/f/7.core"]


def test_two_names_that_cannot_be_read_hide_no_other(desk: Desk) -> None:
    with listing("p/a//x.core", "p/b//x.core", "p/e/\nx.core", *(f"p/{one}" for one in NAMES)) as variables:
        done = desk.good("list", "--json", **variables)
    assert sorted(row["path"] for row in done.json) == NAMES


@pytest.mark.parametrize("name", ["b//x.core", "b/../x.core", "b/c/\nx.core", 'd"//'])
def test_a_name_that_cannot_be_read_hides_no_other(desk: Desk, name: str) -> None:
    with listing(f"p/{name}", *(f"p/{one}" for one in NAMES)) as variables:
        done = desk.good("list", "--json", **variables)
    assert sorted(row["path"] for row in done.json) == NAMES
    shown = re.sub(r"[\n\x7f]", "\ufffd", name)
    assert f"corefetch: s3://b/p: names that cannot be read: {shown}: delete these objects" in done.err


def test_more_such_names_than_are_looked_at_end_the_list_and_not_the_command(desk: Desk) -> None:
    names = [f"p/{number:03}//x.core" for number in range(unreadable.MOST + 1)]
    with listing("p/0.core", *names, "p/z.core") as variables:
        done = desk.good("list", "--json", **variables)
    assert [row["path"] for row in done.json] == ["0.core"]
    assert "and 97 more: delete these objects; all cores behind the last one are left out" in done.err


def test_a_store_that_cannot_go_on_after_such_a_name_is_said(desk: Desk) -> None:
    with listing("p/a.core", "p/b//x.core", knows_start=False) as variables:
        done = desk.run("list", **variables)
    assert done.status == Exit.FAILED
    assert "an object has a name that cannot be read: p/b//x.core: delete that object" in done.err


def test_a_core_is_listed_fetched_read_and_deleted(desk: Desk, filled: dict[str, bytes], shop: Shop) -> None:
    (row,) = desk.good("list", "--json").json
    assert (row["key"], row["signal"], row["stored_size"]) == (KEY, "SIGSEGV", len(filled[f"{KEY}.core.zst"]))
    desk.good("get", "last", "-o", "x.core")
    assert (desk.directory / "x.core").read_bytes() == shop.core.read_bytes()
    assert "total_of" in desk.good("info", "0f3a", "--sysroot", str(shop.root)).out
    desk.good("rm", "last", "--yes")
    assert desk.good("list", "--json").json == []


@pytest.mark.parametrize("filled", ["az"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"AZURE_STORAGE_ACCOUNT_KEY": "YW5vdGhlcg=="}, Exit.DENIED, "the store refuses these credentials"),
        ({"COREFETCH_FROM": "az://missing"}, Exit.NOT_FOUND, "there is no such bucket"),
        ({"AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1/x"}, Exit.UNREACHABLE, "the store does not answer"),
    ],
)
def test_what_azure_refuses_is_one_line(
    desk: Desk, filled: dict[str, bytes], changes: dict[str, str], status: Exit, said: str
) -> None:
    done = desk.run("list", **changes)
    assert (done.status, done.err.count("\n")) == (status, 1)
    assert said in done.err


def test_a_fetch_goes_on_with_what_is_missing(
    desk: Desk, filled: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in desk.variables.items():
        monkeypatch.setenv(name, value)
    store = open_store(desk.variables["COREFETCH_FROM"])
    name, content = f"{KEY}.core.zst", filled[f"{KEY}.core.zst"]
    for offset in (0, 1, 1000, len(content) - 1, len(content)):
        assert b"".join(store.blocks(name, offset)) == content[offset:]
    with pytest.raises(Failure, match="not there any more"):
        list(store.blocks("nothing.core"))
    assert store.stat("nothing.core") is None
    assert store.read("nothing.json", 100) is None
    assert store.read(name, 100) is None
    store.remove("nothing.core")


def nested(directory: Path, name: str, number: int) -> None:
    """Make very many directories in each other, also deeper than a path can be long."""
    at = os.open(directory, os.O_RDONLY)
    for _ in range(number):
        os.mkdir(name, dir_fd=at)
        at, before = os.open(name, os.O_RDONLY, dir_fd=at), at
        os.close(before)
    os.close(at)


def test_a_directory_that_cannot_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "store"
    for name in ("a", "lost+found", "m", "n", "o", "z"):
        (place / name).mkdir(parents=True)
        (place / name / f"{KEY}.core").write_bytes(name.encode())
    scandir = os.scandir

    def refusing(path: Path) -> Any:
        # The tests may run as root, who may read all.
        if path.name in ("lost+found", "m", "n", "o"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    store = Directory(place)
    assert [one.path for one in store.entries()] == [f"a/{KEY}.core", f"z/{KEY}.core"]
    told = f"{place}: what cannot be read: {place}/lost+found (Permission denied), {place}/m (Permission denied), "
    assert str(store.problem).startswith(f"{told}{place}/n (Permission denied) and 1 more: ask its owner")
    acquire.resolve(Settings(), Cache(tmp_path / "cache"), str(place), "last")
    assert told in capsys.readouterr().err
    (place / "o").rename(tmp_path / "o")
    with pytest.raises(Failure, match="Permission denied: ask its owner") as caught:
        list(Directory(tmp_path / "o").entries())
    assert caught.value.code == Exit.DENIED


@pytest.mark.parametrize(("name", "number"), [("a", 1200), ("a" * 200, 30)])
def test_directories_of_any_depth_hide_no_core(desk: Desk, name: str, number: int) -> None:
    place = desk.directory / "store"
    place.mkdir()
    nested(place, name, number)
    (place / f"{KEY}.core").write_bytes(b"")
    try:
        done = desk.good("list", "--json", "--from", "store")
    finally:
        subprocess.run(["rm", "-r", place], check=True)
    assert [row["path"] for row in done.json] == [f"{KEY}.core"]
    assert done.err.count("\n") == (len(name) > 1)
    assert len(name) == 1 or "... (File name too long): ask its owner" in done.err


def test_a_word_that_is_too_long_for_a_name_is_one_line(desk: Desk) -> None:
    long = "a" * 300
    for words in (("info", long), ("get", long), ("list", "--from", long), ("rm", "--yes", f"/{long}")):
        done = desk.run(*words, COREFETCH_FROM=str(desk.directory))
        assert (done.status != 0, done.err.count("\n")) == (True, 1)


@pytest.mark.parametrize("packed", [True, False])
def test_a_name_that_is_no_utf_8_is_one_as_any_other(desk: Desk, shop: Shop, packed: bool) -> None:
    place = desk.directory / "store"
    place.mkdir()
    core = Path(os.fsdecode(os.fsencode(place) + b"/\xff.core" + (b".zst" if packed else b"")))
    content = shop.core.read_bytes()
    core.write_bytes(zstandard.ZstdCompressor(level=1).compress(content) if packed else content)
    (place / f"{KEY}.core").write_bytes(b"")
    desk.variables["COREFETCH_FROM"] = str(place)
    assert len(desk.good("list").out.splitlines()) == 3
    (row,) = [one for one in desk.good("list", "--json").json if one["path"] == core.name]
    assert row["signal"] == "SIGSEGV"
    assert "total_of" in desk.good("info", core.name, "--sysroot", shop.root).out
    got = subprocess.run(
        desk.words("get", core.name, "-o", Path(os.fsdecode(b"\xfe.out"))),
        check=True,
        capture_output=True,
        cwd=desk.directory,
        env=desk.environment(),
    )
    assert got.stdout == b"\xfe.out\n"
    assert (desk.directory / os.fsdecode(b"\xfe.out")).read_bytes() == content
    desk.good("rm", "--yes", core.name)
    assert not core.exists()


@pytest.mark.parametrize("image", ["\ud800", "a\x00b", "a\nb"])
def test_an_image_that_no_program_can_be_given_is_one_line(desk: Desk, shop: Shop, image: str) -> None:
    place = desk.directory / "store"
    place.mkdir()
    (place / f"{KEY}.core").write_bytes(shop.core.read_bytes())
    (place / f"{KEY}.json").write_text(json.dumps({"facts": {"CORE_IMAGE": image}}))
    done = desk.run("info", "last", "--from", place, "--engine", "true")
    assert (done.status, done.err) == (Exit.MISSING_PROGRAM, "")
    assert f"- no image: {plain(image)}: say one by --image\n" in done.out


@pytest.mark.parametrize(("seconds", "year"), [(1e12, 9999), (253402300799.9, 9999), (-1e12, 1), (0.0, 1970)])
def test_a_file_of_any_time_is_listed(seconds: float, year: int) -> None:
    """Not each file system has such times."""
    known: Any = SimpleNamespace(st_mtime=seconds, st_mtime_ns=int(seconds * 1e9), st_size=1, st_ino=1)
    (row,) = [one.row() for one in map(of_entry, [stores._entry("x.core", known)]) if one]
    assert int(row["stored_at"].partition("-")[0]) == year
