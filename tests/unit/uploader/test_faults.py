"""Faults of a real store: where the core is then, and what the log says. Their table is at the end of the run."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from support.tables import Row
from unit.uploader.support import (
    ACCESS_KEY,
    CLIENTS,
    CORE,
    KEY,
    OTHER_STORES,
    SECRET_KEY,
    Bottleneck,
    Image,
    Network,
    Server,
    ailing,
    assert_delivered,
    assert_failed,
    each_client,
    fault,
    free_port,
    images_with_a_client_each,
    in_other_store,
    of_all_clients,
    other_store,
    serving,
    settings_of,
    with_rclone,
)


@each_client
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "another"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "another"}, "InvalidAccessKeyId"),
    ],
    ids=["secret", "key"],
)
def test_wrong_credentials_are_one_clear_line(
    image: Image, client: str, server: Server, wrong: dict[str, str], words: str, row: Row
) -> None:
    result = image.run("s3://bucket/", environment={**server.environment, **wrong})
    assert_failed(result, 74, f"s3://bucket/{KEY}.zst: {client}: ", words, "check the container's AWS_ACCESS_KEY_ID")
    assert not (server.root / "bucket" / f"{KEY}.zst").exists()
    fault(row, f"403, {words}", client, result)


@each_client
def test_a_missing_bucket_is_one_clear_line_and_is_not_created(
    image: Image, client: str, server: Server, row: Row
) -> None:
    result = image.run("s3://missing/", environment=server.environment)
    assert_failed(result, 74, f"s3://missing/{KEY}.zst: {client}: ", "NoSuchBucket", "create the bucket")
    assert not (server.root / "missing").exists()
    fault(row, "404, no such bucket", client, result)


@each_client
def test_an_endpoint_where_nobody_listens_is_one_clear_line_soon(
    image: Image, client: str, server: Server, row: Row
) -> None:
    with socket.socket() as bound_but_silent:
        bound_but_silent.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound_but_silent.getsockname()[1]}"
        began = time.monotonic()
        result = image.run("s3://bucket/", environment={**server.environment, "AWS_ENDPOINT_URL": endpoint})
    assert_failed(result, 75, f"{client}: ", "check the container's AWS_ENDPOINT_URL and network")
    assert time.monotonic() - began < 60
    fault(row, "refuses the connection", client, result)


SLOW_DOWN = (503, b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce</Message></Error>")
# What a client hears that ends an upload once more, when the first answer was an error and has ended the upload, too.
NO_UPLOAD = (404, b"<?xml version='1.0'?><Error><Code>NoSuchUpload</Code><Message>Not there</Message></Error>")
ERRORS = [
    SLOW_DOWN,
    (500, b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>Try again</Message></Error>"),
    (502, b"<html>Bad Gateway</html>"),
    (429, b"<?xml version='1.0'?><Error><Code>TooManyRequests</Code><Message>Wait</Message></Error>"),
    (503, b""),
]


# s3cmd and curl say the same of each error of a server.
@pytest.mark.parametrize(
    ("shell", "client", "error"),
    [
        *(("dash", client, error) for client in ("rclone", "aws") for error in ERRORS),
        *(("dash", client, SLOW_DOWN) for client in ("s3cmd", "curl")),
        ("dash", "aws", NO_UPLOAD),
    ],
    indirect=["shell", "client"],
)
def test_an_error_of_the_server_asks_to_keep_the_core(
    image: Image, client: str, error: tuple[int, bytes], row: Row
) -> None:
    status, body = error
    with ailing(status, body) as port:
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
            # The clients wait between their tries.
            "AWS_MAX_ATTEMPTS": "1",
        }
        result = image.run("s3://bucket/", environment=environment)
    assert_failed(result, 75, f"{client}: ", "look at the store, or try again later")
    code = re.search(r"<Code>(\w+)", body.decode())
    fault(row, f"{status}, {code[1] if code else 'no word'}", client, result)


@pytest.mark.parametrize("client_of_dash", CLIENTS)
@pytest.mark.parametrize("what", ["dies in the middle", "is slow"])
def test_a_server_that_fails_in_the_middle(
    dash: Image, client_of_dash: str, server: Server, what: str, row: Row
) -> None:
    of_all_clients(dash, client_of_dash)
    rate, left = (1e9, 3e6) if what == "dies in the middle" else (2e6, 1e9)
    core, prefix = os.urandom(6_000_000), f"{client_of_dash}-{what[:2]}"
    with Bottleneck(int(server.environment["AWS_ENDPOINT_URL"].rpartition(":")[2]), rate, left) as bottleneck:
        environment = {**server.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{bottleneck.server_address[1]}"}
        # As where the host keeps the core: the client does not try for long.
        result = dash.run(f"s3://bucket/{prefix}/", core=core, environment=environment, CORE_SIZE=str(len(core)))
        bottleneck.left = 0
        bottleneck.shutdown()
    stored = server.root / "bucket" / prefix / KEY
    if what == "is slow":
        assert_delivered(result, f"s3://bucket/{prefix}/{KEY}")
        assert stored.read_bytes() == core
    else:
        assert_failed(result, 75, f"{client_of_dash}: ", "check the container's AWS_ENDPOINT_URL and network")
        assert not stored.exists()
    fault(row, what, client_of_dash, result, stored.exists())


def test_a_store_that_is_away_for_a_while_gets_the_core(tmp_path: Path, row: Row) -> None:
    images = images_with_a_client_each(tmp_path, *CLIENTS)
    port = free_port()
    environment = {**Server(tmp_path, f"http://127.0.0.1:{port}").environment, "CORE_TIMEOUT": "300"}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = {
            client: pool.submit(image.run, f"s3://bucket/{client}/", environment=environment)
            for client, image in images.items()
        }
        # Three tries, which a client has by default, are over by then.
        time.sleep(15)
        assert not any(run.done() for run in runs.values())
        with serving(tmp_path, port=port):
            results = {client: run.result() for client, run in runs.items()}
    for client, result in results.items():
        assert_delivered(result, f"s3://bucket/{client}/{KEY}")
        stored = tmp_path / "bucket" / client / KEY
        assert stored.read_bytes() == CORE
        fault(row, "is away for 15 s", client, result, stored.exists())


# The same faults of the stores that only rclone knows. How its parts for them try again, each has its own way.


@pytest.mark.parametrize("store", OTHER_STORES)
def test_another_store_that_is_away_asks_to_keep_the_core_soon(dash: Image, store: str, row: Row) -> None:
    with_rclone(dash)
    began = time.monotonic()
    known = {**settings_of(store, free_port()), "CORE_SIZE": str(len(CORE))}
    result = dash.run(f"{store}://bucket/shop/", environment=known)
    assert_failed(result, 75, "rclone: ", "network")
    assert time.monotonic() - began < 60
    fault(row, "refuses the connection", f"rclone, {store}", result)


def test_another_store_that_is_away_for_a_while_gets_the_core(tmp_path: Path, row: Row) -> None:
    ports, images = {}, {}
    for store in OTHER_STORES:
        (tmp_path / store).mkdir()
        ports[store], images[store] = free_port(), Image("dash", tmp_path / store)
        with_rclone(images[store])
    with concurrent.futures.ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        runs = {
            store: pool.submit(
                image.run,
                f"{store}://bucket/shop/",
                environment={**settings_of(store, ports[store]), "CORE_TIMEOUT": "300"},
            )
            for store, image in images.items()
        }
        time.sleep(15)
        for store, run in runs.items():
            assert not run.done(), run.result()
            settings = stack.enter_context(other_store(store, tmp_path / store, ports[store]))
            result = run.result()
            assert_delivered(result, f"{store}://bucket/shop/{KEY}")
            assert in_other_store(store, settings, "cat", f"bucket/shop/{KEY}") == CORE
            fault(row, "is away for 15 s", f"rclone, {store}", result, True)


@pytest.mark.parametrize("store", OTHER_STORES)
@pytest.mark.parametrize(("status", "code"), [(403, 74), (503, 75)])
def test_what_another_store_answers_is_told_as_such(dash: Image, store: str, status: int, code: int, row: Row) -> None:
    with_rclone(dash)
    with ailing(status) as port:
        known = {**settings_of(store, port), "CORE_SIZE": str(len(CORE))}
        result = dash.run(f"{store}://bucket/shop/", environment=known)
    assert_failed(result, code, "rclone: ", "they may write there" if status == 403 else "try again later")
    fault(row, f"{status}, no word", f"rclone, {store}", result)


@pytest.mark.parametrize("store", OTHER_STORES)
@pytest.mark.parametrize("what", ["dies in the middle", "is slow"])
def test_another_store_that_fails_in_the_middle(dash: Image, store: str, what: str, tmp_path: Path, row: Row) -> None:
    with_rclone(dash)
    rate, left = (1e9, 3e6) if what == "dies in the middle" else (2e6, 1e9)
    core, port = os.urandom(6_000_000), free_port()
    with (
        Bottleneck(port, rate, left) as bottleneck,
        other_store(store, tmp_path, port, bottleneck.server_address[1]) as settings,
    ):
        known = {**settings_of(store, bottleneck.server_address[1]), "CORE_SIZE": str(len(core))}
        result = dash.run(f"{store}://bucket/shop/", core=core, environment=known)
        bottleneck.left = 0
        bottleneck.shutdown()
        stored = in_other_store(store, settings, "cat", f"bucket/shop/{KEY}")
    if what == "is slow":
        assert_delivered(result, f"{store}://bucket/shop/{KEY}")
        assert stored == core
    else:
        assert_failed(result, 75, "rclone: ", "network")
        assert stored == b""
    fault(row, what, f"rclone, {store}", result, bool(stored))


# What these stores say where they have too much to do, or have an error of their own.
def of_google(code: int, reason: str, message: str) -> tuple[int, bytes, dict[str, str]]:
    error = {"code": code, "message": message, "errors": [{"message": message, "domain": "global", "reason": reason}]}
    return code, json.dumps({"error": error}).encode(), {"Content-Type": "application/json; charset=UTF-8"}


def of_azure(status: int, code: str, message: str) -> tuple[int, bytes, dict[str, str]]:
    body = f"<?xml version='1.0' encoding='utf-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return status, body.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code}


WORDS = {
    ("gs", "backendError"): of_google(503, "backendError", "We encountered an internal error. Please try again."),
    ("gs", "rateLimitExceeded"): of_google(429, "rateLimitExceeded", "The rate of requests is above the limit."),
    ("azblob", "ServerBusy"): of_azure(503, "ServerBusy", "Ingress is over the account limit."),
    ("azblob", "TooManyRequests"): of_azure(429, "TooManyRequests", "The request rate is too large."),
}


@pytest.mark.parametrize(("store", "word"), WORDS)
def test_the_word_of_another_store_is_told_and_asks_to_keep_the_core(
    dash: Image, store: str, word: str, row: Row
) -> None:
    with_rclone(dash)
    answer = WORDS[store, word]
    with ailing(*answer) as port:
        known = {**settings_of(store, port), "CORE_SIZE": str(len(CORE))}
        result = dash.run(f"{store}://bucket/shop/", environment=known)
    assert_failed(result, 75, "rclone: ", word, "look at the store, or try again later")
    fault(row, f"{answer[0]}, {word}", f"rclone, {store}", result)


MOUNTS = ["unshare", "--user", "--map-root-user", "--mount", "--"]
# For the command after it only, so it says itself what is left there.
FULL_DISK = """
PATH=/usr/sbin:/usr/bin:/sbin:/bin mount -t tmpfs -o size=64k none "$0" || exit
"$@"
status=$?
PATH=/usr/bin:/bin find "$0" -type f
exit "$status"
"""


def with_a_full_disk(directory: Path) -> list[str]:
    """What runs a program for which this directory has 64 KiB, and prints the files that it has left there."""
    own = [str(shutil.which(MOUNTS[0])), *MOUNTS[1:]]
    if subprocess.run([*own, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let this user mount (unshare --user --mount)")
    return [*own, str(shutil.which("sh")), "-c", FULL_DISK, str(directory)]


@pytest.mark.parametrize("what", ["directory", "TMPDIR, for curl", "CORE_SPOOL"])
def test_a_full_disk_leaves_nothing_behind(image: Image, cores: Path, what: str, row: Row) -> None:
    image.link("zstd")
    image.program("curl" if "curl" in what else "rclone", "cat >/dev/null\n")
    image.command = [*with_a_full_disk(cores), *image.command]
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    known = {} if what == "directory" else {what.partition(",")[0]: str(cores), **keys}
    destination = str(cores) if what == "directory" else "s3://bucket/"
    result = image.run(destination, core=os.urandom(1 << 20), environment=known)
    assert_failed(result, 74, ": zstd: error 70 : Write error : cannot write block : No space left on device: make")
    fault(row, "the disk is full", what, result)


@each_client
def test_a_store_whose_disk_is_full_asks_to_keep_the_core(image: Image, client: str, tmp_path: Path, row: Row) -> None:
    (tmp_path / "s3").mkdir()
    inside = with_a_full_disk(tmp_path / "s3")
    # The bucket that was there is below the disk.
    inside[-2] = inside[-2].replace('"$@"', 'PATH=/usr/bin:/bin mkdir "$0/bucket"; exec "$@"')
    with serving(tmp_path / "s3", network=Network(inside, "self")) as server:
        result = image.run("s3://bucket/", core=os.urandom(1 << 20), environment=server.environment)
    assert_failed(result, 75, f"{client}: ", "look at the store, or try again later")
    fault(row, "the disk of the store is full", client, result)


# 20 MiB are sent in parts.
@pytest.mark.parametrize(("store", "size"), [("gs", 1 << 20), ("gs", 20 << 20), ("azblob", 20 << 20)])
def test_another_store_whose_disk_is_full_asks_to_keep_the_core(
    dash: Image, store: str, size: int, tmp_path: Path, row: Row
) -> None:
    with_rclone(dash)
    (tmp_path / "disk").mkdir()
    inside = with_a_full_disk(tmp_path / "disk")
    inside[-2] = inside[-2].replace('"$@"', 'PATH=/usr/bin:/bin mkdir -p "$0/stored/bucket"; exec "$@"')
    full = Network(inside, "self")
    with other_store(store, tmp_path, free_port(), on=tmp_path / "disk", network=full) as settings:
        known = {**settings, "CORE_SIZE": str(size)}
        result = dash.run(f"{store}://bucket/shop/", core=os.urandom(size), environment=known)
        assert in_other_store(store, settings, "lsf", "bucket/shop/web-1") == b""
    assert_failed(result, 75, "rclone: ", "look at the store, or try again later")
    fault(row, "the disk of the store is full", f"rclone, {store}", result)
