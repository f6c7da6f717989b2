"""An emulator of Google Cloud Storage, which knows ranges, too. rclone's S3 server is in the other tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import zstandard
from corefetch.errors import Failure
from corefetch.stores import Bucket, open_store
from obstore.store import S3Store
from support import servers
from support.command import Desk
from support.cores import Shop

KEY = "node-7.shop-1.shop.shop.7775.20261129T180000Z.0f3a9c27d1b4"


@pytest.fixture
def filled(desk: Desk, shop: Shop, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """Objects in a store to which the desk's settings lead."""
    objects = {
        f"{KEY}.core.zst": zstandard.ZstdCompressor(level=1).compress(shop.core.read_bytes()),
        f"{KEY}.json": b'{"facts": {"CORE_SIGNAL_NAME": "SIGSEGV", "CORE_NODE": "node-7"}}',
    }
    with servers.gcs(tmp_path) as url:
        desk.variables.update(COREFETCH_FROM=f"gs://{servers.BUCKET}/shop", STORAGE_EMULATOR_HOST=url)
        for name, content in objects.items():
            servers.post(f"{url}/upload/storage/v1/b/{servers.BUCKET}/o?uploadType=media&name=shop/{name}", content)
        yield objects


def test_a_name_that_cannot_be_read_is_said() -> None:
    class Lister(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            modified = "<LastModified>2026-11-29T00:00:00.000Z</LastModified>"
            content = f"<Contents><Key>p//x.core</Key>{modified}<ETag>e</ETag><Size>3</Size></Contents>"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(
                f"<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>{content}</ListBucketResult>".encode()
            )

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Lister) as server:
        threading.Thread(target=server.handle_request).start()
        store = S3Store(
            "b",
            endpoint=f"http://127.0.0.1:{server.server_port}",
            client_options={"allow_http": True},
            skip_signature=True,
        )
        with pytest.raises(Failure, match=r"cannot be read: p//x\.core: delete that object"):
            list(Bucket("s3://b", store).entries())


def test_a_core_is_listed_fetched_read_and_deleted(desk: Desk, filled: dict[str, bytes], shop: Shop) -> None:
    (row,) = desk.good("list", "--json").json
    assert (row["key"], row["signal"], row["stored_size"]) == (KEY, "SIGSEGV", len(filled[f"{KEY}.core.zst"]))
    desk.good("get", "last", "-o", "x.core")
    assert (desk.directory / "x.core").read_bytes() == shop.core.read_bytes()
    assert "total_of" in desk.good("info", "0f3a", "--sysroot", str(shop.root)).out
    desk.good("rm", "last", "--yes")
    assert desk.good("list", "--json").json == []


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
