"""``list`` with a real S3 server and with directories."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import zstandard
from corefetch import cli, facts, learn, listing
from corefetch.cache import Cache
from corefetch.errors import Exit, Failure
from corefetch.stores import Directory, Entry, Store, explain
from support.command import Desk
from support.cores import Shop
from support.servers import S3

MANY = 100_000


def key(id: str, time: str = "20261129T180000Z", names: str = "node-7.shop-1.shop.shop", pid: int = 7775) -> str:
    """Return the key of a core."""
    return f"{names}.{pid}.{time}.{id}"


def packed(core: Path) -> bytes:
    """Return a core as the uploader packs it."""
    return zstandard.ZstdCompressor(level=1).compress(core.read_bytes())


def words(**changes: Any) -> str:
    """Return the JSON file beside a core."""
    known = {
        "CORE_NODE": "node-9.example.org",
        "CORE_POD_NAME": "cart-0",
        "CORE_CONTAINER_NAME": "sidecar",
        "CORE_EXE": "/srv/cart.bin",
        "CORE_COMM": "worker",
        "CORE_SIGNAL": "6",
        "CORE_SIGNAL_NAME": "SIGABRT",
        "CORE_TIME": "1795975200",
        **changes,
    }
    return json.dumps({"core": "x", "sha256": None, "build_ids": None, "truncated": False, "facts": known})


@pytest.fixture
def full(bucket: S3, shop: Shop) -> S3:
    """A bucket with cores of all kinds."""
    place = bucket.directory / "shop"
    content = packed(shop.core)
    (place / f"{key('aaaaaaaaaaa1')}.core.zst").write_bytes(content)
    (place / f"{key('aaaaaaaaaaa2', '20261129T180100Z')}.core.zst").write_bytes(content)
    (place / f"{key('aaaaaaaaaaa3', '20261129T190000Z')}.core.zst.truncated").write_bytes(content[: len(content) // 2])
    (place / f"{key('bbbbbbbbbbb1', '20261129T200000Z', 'node-8.cart-1.shop.shop')}.core.gz").write_bytes(
        gzip.compress(shop.aborted.read_bytes(), 1)
    )
    (
        place / f"{key('bbbbbbbbbbb2', '20261129T170000Z', 'node-9.example.org.cart-0.cart.bin.worker')}.core"
    ).write_bytes(b"no core")
    (place / f"{key('bbbbbbbbbbb2', '20261129T170000Z', 'node-9.example.org.cart-0.cart.bin.worker')}.json").write_text(
        words()
    )
    (place / "README.txt").write_text("not a core")
    (place / "old-host").mkdir()
    (place / "old-host" / "shop.7.0.0.1795900000.core.zst").write_bytes(content)
    return bucket


def ids(desk: Desk, *more: str) -> list[str]:
    """Return the ids of the cores that are listed."""
    return [row["id"] for row in desk.good("list", "--json", *more).json]


def test_cores_are_listed_with_the_newest_first(desk: Desk, full: S3) -> None:
    assert ids(desk) == ["bbbbbbbbbbb1", "aaaaaaaaaaa3", "aaaaaaaaaaa2", "aaaaaaaaaaa1", "bbbbbbbbbbb2", None]
    rows = {row["id"]: row for row in desk.good("list", "--json").json}
    assert rows["aaaaaaaaaaa1"]["signal"] == "SIGSEGV"
    assert rows["aaaaaaaaaaa3"]["truncated"] is True
    assert rows["aaaaaaaaaaa1"]["truncated"] is False
    assert rows["bbbbbbbbbbb1"]["signal"] == "SIGABRT"
    # The JSON file says it better than the key.
    assert rows["bbbbbbbbbbb2"]["host"] == "node-9.example.org"
    assert rows["bbbbbbbbbbb2"]["program"] == "/srv/cart.bin"
    assert (rows["bbbbbbbbbbb2"]["pod"], rows["bbbbbbbbbbb2"]["container"]) == ("cart-0", "sidecar")
    assert rows[None]["container"] == "old-host"


def test_a_link_that_somebody_puts_beside_a_core_is_not_followed(desk: Desk, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    one = key("bbbbbbbbbbb2")
    (place / f"{one}.core").write_bytes(b"no core")
    (tmp_path / "elsewhere.json").write_text(words())
    (place / f"{one}.json").symlink_to(tmp_path / "elsewhere.json")
    for core in ("last", f"{one}.core", place / f"{one}.core"):
        assert desk.good("info", "--facts", "--json", core, "--from", place).json["pod"] is None


def test_a_link_is_a_core_only_where_the_user_names_it(desk: Desk, tmp_path: Path, shop: Shop) -> None:
    one = f"{key('bbbbbbbbbbb2')}.core"
    (tmp_path / one).symlink_to(shop.core)
    assert desk.run("info", "--facts", one, "--from", tmp_path).status == Exit.NOT_FOUND
    assert desk.good("info", "--facts", "--json", tmp_path / one).json["signal"] == "SIGSEGV"
    desk.good("get", tmp_path / one)
    assert (desk.directory / one).read_bytes() == shop.core.read_bytes()


def test_a_file_beside_a_core_is_read_to_a_bound_whatever_it_says(tmp_path: Path) -> None:
    store = Directory(Path("/proc/self"))
    found = store.stat("maps")
    assert found and found.size == 0 and store.read("maps", 100) is None
    assert store.read("comm", 100) == Path("/proc/self/comm").read_bytes()
    (tmp_path / "link").symlink_to("/proc/self/comm")
    with pytest.raises(Failure, match="symbolic links"):
        list(Directory(tmp_path).blocks("link"))


def test_a_part_of_a_core_and_the_whole_have_one_json_file(desk: Desk, tmp_path: Path) -> None:
    one = key("bbbbbbbbbbb2")
    for name in (f"{one}.core.zst", f"{one}.core.zst.truncated"):
        (tmp_path / name).write_bytes(b"no core")
    (tmp_path / f"{one}.json").write_text(words())
    rows = desk.good("list", "--json", "--from", str(tmp_path)).json
    assert sorted((row["pod"], row["truncated"]) for row in rows) == [("cart-0", False), ("cart-0", True)]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (["--host", "node-7"], ["aaaaaaaaaaa3", "aaaaaaaaaaa2", "aaaaaaaaaaa1"]),
        (["--host", "node-9.example.org"], ["bbbbbbbbbbb2"]),
        (["--host", "*.org"], ["bbbbbbbbbbb2"]),
        (["--container", "cart"], ["bbbbbbbbbbb1", "bbbbbbbbbbb2"]),
        (["--pod", "cart-0"], ["bbbbbbbbbbb2"]),
        # The key has the name of the pod only.
        (["--container", "sidecar"], ["bbbbbbbbbbb2"]),
        (["--program", "cart.bin"], ["bbbbbbbbbbb2"]),
        (["--program", "/srv/cart.bin"], ["bbbbbbbbbbb2"]),
        (["--signal", "abrt"], ["bbbbbbbbbbb1", "bbbbbbbbbbb2"]),
        (["--signal", "6"], ["bbbbbbbbbbb1", "bbbbbbbbbbb2"]),
        (["--signal", "SIGSEGV", "--since", "2026-11-29T18:30"], ["aaaaaaaaaaa3"]),
        (["--since", "2026-11-29T18:01", "--until", "2026-11-29T20:00"], ["aaaaaaaaaaa3", "aaaaaaaaaaa2"]),
        (["--truncated"], ["aaaaaaaaaaa3"]),
        (["--limit", "2"], ["bbbbbbbbbbb1", "aaaaaaaaaaa3"]),
        (["--host", "nobody"], []),
    ],
)
def test_cores_are_chosen(desk: Desk, full: S3, choice: list[str], expected: list[str]) -> None:
    assert ids(desk, *choice) == expected


def test_json_has_of_a_bucket_what_needs_no_request_more(desk: Desk, full: S3, shop: Shop) -> None:
    # Its beginning was read for the signal.
    row = next(row for row in desk.good("list", "--json").json if row["id"] == "aaaaaaaaaaa1")
    assert row["size"] == shop.core.stat().st_size
    assert row["fault"].startswith(f"{row['program']}+0x")
    assert len(row["build_id"]) == 40
    # The JSON file had the signal.
    (full.directory / "shop" / f"{key('aaaaaaaaaaa1')}.json").write_text(words())
    row = next(row for row in desk.good("list", "--json").json if row["id"] == "aaaaaaaaaaa1")
    assert (row["size"], row["fault"], row["build_id"]) == (None, None, None)


def test_json_has_all_that_the_files_of_a_directory_say(desk: Desk, shop: Shop) -> None:
    place = desk.directory / "store"
    place.mkdir()
    (place / f"{key('aaaaaaaaaaa1')}.core.zst").write_bytes(packed(shop.core))
    exe = f"/{shop.program.relative_to(shop.root)}"
    (place / f"{key('aaaaaaaaaaa1')}.json").write_text(words(CORE_SIGNAL_NAME="SIGSEGV", CORE_EXE=exe))
    (row,) = desk.good("list", "--json", "--from", "store").json
    (group,) = desk.good("list", "--json", "--group", "--from", "store").json
    assert row["size"] == shop.core.stat().st_size
    assert row["fault"] and (row["fault"], row["build_id"]) == (group["fault"], group["build_id"])


def test_a_crash_loop_is_one_row(desk: Desk, full: S3) -> None:
    rows = desk.good("list", "--group", "--json").json
    segv = next(row for row in rows if row["signal"] == "SIGSEGV")
    assert segv["count"] == 4
    assert (segv["first"], segv["last"]) == ("2026-11-28T21:06:40Z", "2026-11-29T19:00:00Z")
    assert segv["program"].endswith("/app/shop")
    assert segv["fault"].startswith(f"{segv['program']}+0x")
    assert len(segv["build_id"]) == 40
    assert "aaaaaaaaaaa3" in segv["newest"]
    aborted = next(row for row in rows if row["signal"] == "SIGABRT" and row["program"] == segv["program"])
    assert aborted["count"] == 1
    assert "/libc.so.6+0x" in aborted["fault"]


@pytest.mark.parametrize("more", [[], ["--group"]])
def test_a_table_has_80_columns_at_most_where_the_terminal_has(desk: Desk, full: S3, more: list[str]) -> None:
    done = desk.good("list", *more, COLUMNS="80")
    lines = done.out.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80
    assert "aaaaaaaa" in done.out
    assert "SEGV" in done.out
    # Whoever reads by a program gets whole words.
    assert "aaaaaaaaaaa3" in desk.good("list", *more).out


def test_what_a_container_has_chosen_does_not_steer_the_terminal(desk: Desk, full: S3) -> None:
    name = key("ccccccccccc1", "20261129T230000Z")
    (full.directory / "shop" / f"{name}.core").write_bytes(b"")
    (full.directory / "shop" / f"{name}.json").write_text(
        words(CORE_EXE="/a\x1b[31mb", CORE_POD_NAME="p\nq", CORE_NODE=["x"])
    )
    done = desk.good("list")
    assert "\x1b" not in done.out
    assert "a\ufffd[31mb" in done.out
    assert len(done.out.splitlines()) == 8


LONG = words(CORE_SIGNAL_NAME="SIGABRT", padding="x" * (1 << 20))


@pytest.mark.parametrize(
    "content", [LONG, "[" * 100_000, "{", "[]", "7", '{"facts": 7, "build_ids": [1], "sha256": {}}', "\x00"]
)
def test_a_json_file_that_makes_no_sense_hides_no_core(desk: Desk, full: S3, content: str) -> None:
    (full.directory / "shop" / f"{key('aaaaaaaaaaa1')}.json").write_text(content)
    row = next(row for row in desk.good("list", "--json").json if row["id"] == "aaaaaaaaaaa1")
    assert (row["signal"], row["host"]) == ("SIGSEGV", "node-7")


def test_a_core_that_cannot_be_read_hides_no_other_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for identity in ("aaaaaaaaaaa1", "aaaaaaaaaaa2"):
        (tmp_path / f"{key(identity)}.core").touch()
    (tmp_path / f"{key('aaaaaaaaaaa1')}.json").write_text(words(CORE_SIGNAL_NAME="SIGABRT"))
    read = Directory.blocks

    def blocks(store: Directory, path: str, offset: int = 0) -> Iterator[bytes]:
        if "aaaaaaaaaaa2" in path:
            raise Failure(f"{path}: Permission denied", "ask its owner, or become root", Exit.DENIED)
        return read(store, path, offset)

    monkeypatch.setattr(Directory, "blocks", blocks)
    for name in ("XDG_CONFIG_HOME", "COREFETCH_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for option, expected in (([], {"SIGABRT", None}), (["--signal", "ABRT"], {"SIGABRT"})):
        assert cli.main(["list", "--json", "--from", str(tmp_path), *option]) == Exit.DONE
        said = capsys.readouterr()
        assert {row["signal"] for row in json.loads(said.out)} == expected
        assert said.err.startswith("corefetch: some cores could not be read: ")


@pytest.mark.parametrize(
    ("signal", "names"),
    [
        ("11", {"SIGSEGV", "SIG11"}),
        ("sigsegv", {"SIGSEGV", "SIG11"}),
        ("Abrt", {"SIGABRT", "SIG6"}),
        ("SIG35", {"signal 35", "SIG35"}),
    ],
)
def test_a_signal_is_a_name_or_a_number(signal: str, names: set[str]) -> None:
    assert listing.signal_names(signal) == names


@pytest.mark.parametrize("signal", ["SIGFOO", "0", "65", "11x", "", "\u00b2"])
def test_no_signal_is_one_line(desk: Desk, signal: str) -> None:
    done = desk.run("list", "--from", ".", "--signal", signal)
    assert (done.status, done.out) == (Exit.USAGE, "")
    assert done.err.startswith(f"corefetch: no signal: {signal}: say a name such as SEGV")


def test_no_core_is_said_with_what_was_asked_for(desk: Desk) -> None:
    store = f" in {desk.directory.as_uri()}\n"
    done = desk.good("list", "--from", ".", "--signal", "11", "--host", "a b", "--truncated")
    assert done.err == f"corefetch: no core with --host 'a b' --signal 11 --truncated{store}"
    assert desk.good("list", "--from", ".").err == f"corefetch: no core{store}"


def test_no_core_is_said(desk: Desk, bucket: S3) -> None:
    done = desk.good("list")
    assert done.out == ""
    assert done.err.startswith("corefetch: no core")
    assert desk.good("list", "--json").json == []


def test_what_collect_yml_has_brought_is_a_store(desk: Desk, shop: Shop) -> None:
    place = desk.directory / "rollout" / "cores" / "host-1"
    place.mkdir(parents=True)
    name = key("ddddddddddd1")
    shutil.copy(shop.core, place / f"{name}.core")
    known = {
        "facts": {"CORE_NODE": "host-1", "CORE_SIGNAL_NAME": "SIGSEGV", "CORE_EXE": "/x/shop"},
        "sha256": "0" * 64,
        "truncated": False,
    }
    (place / f"{name}.json").write_text(json.dumps(known))
    (place / "other.core.zst.part").write_bytes(b"x")
    (row,) = desk.good("list", "--json").json
    assert (row["host"], row["program"], row["sha256"]) == ("host-1", "/x/shop", "0" * 64)
    assert row == desk.good("list", "--json", "--from", place.parent.as_uri()).json[0]
    assert row == desk.good("list", "--json", "--from", str(place.parent)).json[0]


def test_the_configuration_file_names_stores(desk: Desk, full: S3) -> None:
    file = desk.directory / ".config" / "corefetch" / "config.toml"
    file.parent.mkdir(parents=True)
    url = desk.variables.pop("COREFETCH_FROM")
    endpoint = desk.variables.pop("AWS_ENDPOINT_URL")
    file.write_text(f'from = "work"\nendpoint = "{endpoint}"\nregion = "us-east-1"\n[stores]\nwork = "{url}"\n')
    assert len(ids(desk)) == 6
    assert ids(desk, "--from", f"{url}/old-host") == [None]


def test_an_unknown_name_of_a_store_is_said_with_those_that_there_are(desk: Desk) -> None:
    file = desk.directory / ".config" / "corefetch" / "config.toml"
    remedy = "say s3://BUCKET, gs://BUCKET, az://CONTAINER or file:///DIRECTORY, or a name of"
    done = desk.run("list", "--from", "staging")
    assert (done.status, done.err) == (
        Exit.USAGE,
        f"corefetch: no store: staging: {remedy} {file}, which has no [stores]\n",
    )
    file.parent.mkdir(parents=True)
    file.write_text('[stores]\nprod = "s3://cores"\nlab = "/cores"\n')
    assert desk.run("list", "--from", "staging").err.endswith(f"or a name of {file}, which has prod, lab\n")
    assert "a name of" not in desk.run("list", "--from", "ftp://x/y").err


def test_pages_of_a_real_server_are_all_read(desk: Desk, bucket: S3) -> None:
    for number in range(2500):
        name = key(
            f"{number:012x}", f"20261129T{number // 3600:02}{number // 60 % 60:02}{number % 60:02}Z", pid=1000 + number
        )
        os.close(os.open(bucket.directory / "shop" / f"{name}.core", os.O_CREAT))
    # The newest and the oldest stand in the last and in the first page.
    assert ids(desk, "--limit", "1") == [f"{2499:012x}"]
    assert ids(desk, "--until", "2026-11-29T00:00:01") == [f"{0:012x}"]


@pytest.fixture
def many() -> Iterator[tuple[str, list[int]]]:
    """A server that knows of S3 only how to list, so that 100,000 objects cost nothing; and how many there are."""
    number = [MANY]

    class Lister(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            first = int(query.get("continuation-token", ["0"])[0])
            last = min(first + 1000, number[0])
            content = "".join(map(self.describe, range(first, last)))
            more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
            more = more if last < number[0] else "<IsTruncated>false</IsTruncated>"
            answer = f"<ListBucketResult><Name>many</Name>{more}{content}</ListBucketResult>".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def describe(self, number: int) -> str:
            # The order of the names is not that of the times. Each core has a JSON file.
            time = datetime(2026, 11, 1, tzinfo=timezone.utc) + timedelta(seconds=(number // 2 * 7919) % MANY)
            name = f"p/{key(f'{number // 2:012x}', f'{time:%Y%m%dT%H%M%SZ}')}{'.json' if number % 2 else '.core.zst'}"
            modified = f"<LastModified>{time:%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
            return f"<Contents><Key>{name}</Key>{modified}<ETag>e</ETag><Size>1000</Size></Contents>"

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Lister) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", number
        server.shutdown()
        thread.join()


def test_memory_does_not_grow_with_the_store(desk: Desk, many: tuple[str, list[int]]) -> None:
    program = (
        "import resource, sys; from corefetch import learn; from corefetch.cli import main\n"
        # What a row shows besides its name would be asked of the server, which does not have it.
        "learn.Student.learn = lambda self, core, deep=False: core\n"
        "status = main(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(status)"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "list",
        "--json",
        "--from",
        "s3://many/p",
        "--host",
        "node-7",
        "--limit",
        "3",
    ]
    used = {}
    for number in (2000, MANY):
        many[1][0] = number
        environment = desk.environment(AWS_ENDPOINT_URL=many[0], AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="y")
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=100)
        rows = json.loads(done.stdout)
        used[number] = int(done.stderr.split()[-1])
    # The newest of all, wherever they stand in the order of the names.
    expected = sorted(((n * 7919) % MANY for n in range(MANY // 2)), reverse=True)[:3]
    begin = datetime(2026, 11, 1, tzinfo=timezone.utc)
    assert [row["time"] for row in rows] == [f"{begin + timedelta(seconds=n):%Y-%m-%dT%H:%M:%SZ}" for n in expected]
    # KiB.
    assert used[MANY] - used[2000] < 24 << 10


class Refusing(Store):
    """A store that lets a user list, and not read."""

    url = "s3://refusing"

    def entries(self) -> Iterator[Entry]:
        """Yield one core."""
        yield Entry(f"{key('aaaaaaaaaaa1')}.core", 5, datetime(2026, 11, 1, tzinfo=timezone.utc), "e")

    def stat(self, path: str) -> Entry | None:
        """Find nothing."""
        return None

    def blocks(self, path: str, offset: int = 0) -> Iterator[bytes]:
        """Refuse."""
        raise explain(self.url, PermissionError("403 Forbidden"))

    def remove(self, path: str) -> None:
        """Do nothing."""


def test_a_store_that_refuses_the_content_still_lists_the_names(tmp_path: Path) -> None:
    student = learn.Student(Refusing(), Cache(tmp_path))
    (core,) = student.of_many(learn.cores_of(student.store))
    assert isinstance(core, facts.Core)
    assert core.signal == ""
    assert "refuses" in str(student.problem)
