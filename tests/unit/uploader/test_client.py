"""What a client is told, and what is made of what it says: programs of the test in the places of the clients."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unit.uploader.support import (
    KEY,
    MADE,
    UPLOADER,
    Image,
    assert_delivered,
    assert_failed,
    assert_refused,
    storing_client,
)


def test_an_image_without_a_client_is_one_clear_line(image: Image) -> None:
    assert_refused(image.offer("s3://bucket/"), 69, f"s3://bucket/{KEY}", "no S3 client", "install rclone or aws")


def test_rclone_goes_before_aws(image: Image, store: Path) -> None:
    storing_client(image, "rclone")
    image.program("aws", "exit 9\n")
    assert image.run("s3://bucket/a/b", STORE=str(store)).returncode == 0
    assert f":s3:bucket/a/b/{KEY}" in (store.parent / "store.given").read_text()


@pytest.mark.parametrize("destination", ["s3://bucket", "s3://bucket/", "s3://bucket//"])
def test_a_bucket_needs_no_prefix(image: Image, store: Path, destination: str) -> None:
    image.link("zstd")
    storing_client(image, "aws")
    assert_delivered(image.run(destination, STORE=str(store)), f"s3://bucket/{KEY}.zst")
    assert f" s3://bucket/{KEY}.zst " in (store.parent / "store.given").read_text()
    made = f"s3://bucket/{MADE}.core.zst"
    assert_delivered(image.run(destination, "7", "8", "9", STORE=str(store), CORE_KEY=MADE), made)


@pytest.mark.parametrize("given", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_old_clients_are_told_the_endpoint_and_the_region(image: Image, store: Path, given: str) -> None:
    environment = {"STORE": str(store), given: "http://s3.test:9000", "AWS_REGION": "eu-test-1"}
    storing_client(image, "aws")
    assert image.run("s3://bucket", environment=environment).returncode == 0
    assert "--endpoint-url http://s3.test:9000" in (store.parent / "store.given").read_text()
    assert "AWS_DEFAULT_REGION=eu-test-1\n" in (store.parent / "store.given").read_text()
    storing_client(image, "rclone")
    assert image.run("s3://bucket", environment=environment).returncode == 0
    given_to_rclone = (store.parent / "store.given").read_text()
    assert "RCLONE_S3_ENDPOINT=http://s3.test:9000\n" in given_to_rclone
    assert "RCLONE_S3_REGION=eu-test-1\n" in given_to_rclone
    assert "RCLONE_S3_PROVIDER=Other\n" in given_to_rclone


def test_settings_of_the_container_go_before_those_of_the_script(image: Image, store: Path) -> None:
    storing_client(image, "rclone")
    environment = {
        "RCLONE_S3_ENDPOINT": "http://a",
        "RCLONE_S3_CHUNK_SIZE": "5M",
        "AWS_ENDPOINT_URL": "http://b",
    }
    assert image.run("s3://bucket", STORE=str(store), environment=environment).returncode == 0
    given = (store.parent / "store.given").read_text()
    assert "RCLONE_S3_ENDPOINT=http://a\n" in given
    assert "RCLONE_S3_CHUNK_SIZE=5M\n" in given


def test_what_a_client_writes_on_its_own_is_for_nobody_else(image: Image, store: Path) -> None:
    storing_client(image, "aws")
    assert image.run("s3://bucket", STORE=str(store)).returncode == 0
    assert "umask 77\n" in (store.parent / "store.given").read_text()


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("exit 3", "rclone: ended with status 3"),
        ("echo one >&2; echo two >&2; exit 3", "rclone: one two"),
        ("head -c 100000 >/dev/null; echo half >&2; exit 3", "rclone: half"),
        ("cat >/dev/null; echo 'at the end' >&2; exit 3", "rclone: at the end"),
        ("kill -KILL $$", "rclone: "),
        ("head -c 100000 /dev/zero | tr '\\000' x >&2; echo THE END >&2; exit 3", "xxxTHE END: "),
        ("echo '* of  /*' >&2; exit 3", "rclone: * of /*: "),
        ("echo 'AccessDenied: no' >&2; exit 3", "AWS_SECRET_ACCESS_KEY, and that they may write"),
    ],
)
def test_a_failed_client_is_blamed_in_one_line(image: Image, end: str, words: str) -> None:
    image.program("rclone", end + "\n")
    assert_failed(image.run("s3://bucket", core=os.urandom(1 << 20)), 74, words)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("dial tcp 127.0.0.1:9000: connect: connection refused", 75),
        ("Could not connect to the endpoint URL", 75),
        ("read: connection reset by peer", 75),
        ("write tcp 127.0.0.1:58308->127.0.0.1:44497: use of closed network connection", 75),
        ("http: server closed idle connection", 75),
        ("http2: client connection lost", 75),
        ("net/http: HTTP/1.x transport connection broken", 75),
        ("http2: server sent GOAWAY and closed the connection", 75),
        ("connect: no route to host", 75),
        ("lookup s3.test on 127.0.0.11:53: server misbehaving", 75),
        ("(55) Send failure: Broken pipe", 75),
        ("(52) Empty reply from server", 75),
        ("context deadline exceeded (Client.Timeout exceeded)", 75),
        ("lookup s3.test: no such host", 75),
        ("https response error StatusCode: 503, RequestID: , HostID: , no more", 75),
        ("An error occurred (500) when calling the PutObject operation", 75),
        ("An error occurred (SlowDown) when calling the UploadPart operation", 75),
        ("An error occurred (InternalError) when calling", 75),
        ("https response error StatusCode: 403, RequestID: , HostID: , no more", 74),
        ("An error occurred (404) when calling the PutObject operation", 74),
        ("tls: failed to verify certificate: x509: certificate signed by unknown authority", 74),
        ("get identity: operation error STS: AssumeRoleWithWebIdentity, lookup sts.test: no such host", 75),
        ("NoSuchBucket: request of 503 bytes", 74),
        ("", 74),
    ],
)
def test_a_store_that_is_away_is_told_from_one_that_refuses(image: Image, words: str, code: int) -> None:
    image.program("rclone", f"cat >/dev/null; echo '{words}' >&2; exit 1\n")
    assert_failed(image.run("s3://bucket"), code, words)


BANNER = "!" * 41
# What s3cmd asks for where it has a fault of its own; it says the first part and the last once more.
TRACEBACK = f"""
{BANNER}
    An unexpected error has occurred.
  Please try reproducing the error using
  the latest s3cmd code from the git master
{BANNER}

Invoked as: /usr/bin/s3cmd put
Problem: %s
S3cmd:   2.4.0
Traceback (most recent call last):
  File "/usr/bin/s3cmd", line 3627, in <module>
{BANNER}
    An unexpected error has occurred.
   s3tools-bugs@lists.sourceforge.net
{BANNER}
"""
AT_PORT = "<title>400 The plain HTTP request was sent to HTTPS port</title>"


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (
            "ERROR: b'Client sent an HTTP request to an HTTPS server.'\n" + TRACEBACK % "ParseError: syntax error",
            74,
            ("s3cmd: HTTP request to an HTTPS: ", "says https:// for a server that speaks http, or the reverse"),
        ),
        (
            f"ERROR: b'{AT_PORT}'\nERROR: Upload of '/tmp/{'x' * 200}' failed too many times ({'x' * 200})",
            74,
            ("s3cmd: HTTP request was sent to HTTPS: ", "says https:// for a server that speaks http, or the reverse"),
        ),
        (
            "WARNING: Retrying\n" + TRACEBACK % "<class 'ConnectionResetError: [Errno 104] Connection reset by peer",
            75,
            ("s3cmd: WARNING: Retrying <class 'ConnectionResetError", "check the container's AWS_ENDPOINT_URL"),
        ),
        (TRACEBACK % "KeyError: 'a'", 74, ("s3cmd: KeyError: 'a': run the container's client by hand",)),
    ],
)
def test_what_s3cmd_did_not_expect_is_told_without_its_traceback(
    image: Image, tmp_path: Path, said: str, code: int, words: tuple[str, ...]
) -> None:
    (tmp_path / "said").write_text(said)
    image.program("s3cmd", f"cat {tmp_path}/said >&2; exit 1\n")
    known = {"AWS_ENDPOINT_URL": "http://s3.test", "TMPDIR": str(tmp_path), "CORE_SIZE": "1"}
    assert_failed(image.run("s3://bucket", environment=known), code, *words)


def test_what_a_client_says_does_not_reach_the_terminal_as_escapes(image: Image) -> None:
    image.program("rclone", "printf 'a\\033[31m\\r\\tb' >&2; exit 3\n")
    assert_failed(image.run("s3://bucket"), 74, "rclone: a [31m b: ")


def test_a_client_that_fails_after_it_was_given_everything_is_a_failure(image: Image, store: Path) -> None:
    storing_client(image, "aws", code=1)
    assert_failed(image.run("s3://bucket", STORE=str(store)), 74, "aws: ended with status 1")


def test_no_other_process_sees_the_credentials_that_curl_gets(dash: Image, tmp_path: Path) -> None:
    dash.program("curl", f'echo "$*" >{tmp_path}/words; cat >{tmp_path}/given\n')
    known = {"AWS_ACCESS_KEY_ID": "the-key", "AWS_SECRET_ACCESS_KEY": "the/secret", "AWS_SESSION_TOKEN": "the-token"}
    assert dash.run("s3://bucket", environment=known).returncode == 0
    words, given = (tmp_path / "words").read_text(), (tmp_path / "given").read_text()
    assert 'user = "the-key:the/secret"\n' in given and "x-amz-security-token: the-token" in given
    assert not any(secret in words for secret in known.values())


@pytest.mark.parametrize(
    ("known", "tries"),
    [
        ({}, 3),
        ({"CORE_TIMEOUT": "59"}, 3),
        ({"CORE_TIMEOUT": "60"}, 5),
        ({"CORE_TIMEOUT": "240"}, 7),
        ({"CORE_TIMEOUT": "86400"}, 7),
        ({"CORE_TIMEOUT": "300", "CORE_SIZE": "1000"}, 3),
    ],
)
def test_how_often_a_client_tries_depends_on_the_time_and_on_whether_the_host_keeps_the_core(
    image: Image, store: Path, known: dict[str, str], tries: int
) -> None:
    storing_client(image, "rclone")
    assert image.run("s3://bucket", environment={**known, "STORE": str(store)}).returncode == 0
    assert f" --low-level-retries={tries} " in (store.parent / "store.given").read_text()


@pytest.mark.parametrize(("timeout", "tries"), [("59", 1), ("60", 2), ("300", 5)])
def test_azure_whose_tries_are_four_each_is_tried_less_often(
    image: Image, store: Path, timeout: str, tries: int
) -> None:
    storing_client(image, "rclone")
    assert image.run("azblob://box", environment={"CORE_TIMEOUT": timeout, "STORE": str(store)}).returncode == 0
    assert f" --low-level-retries={tries} " in (store.parent / "store.given").read_text()


LEFT = {"memory.max": "67108864", "memory.stat": "anon 2000000\nfile 50000000\nshmem 0\n"}
OLD_LEFT = {
    "memory/memory.limit_in_bytes": "67108864",
    "memory/memory.stat": "rss 1\ntotal_rss 2000000\ntotal_cache 9\n",
}
NO_LIMIT = {"memory.max": "max", "memory.stat": "anon 2000000\n"}
OLD_NO_LIMIT = {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.stat": "total_rss 2000000\n"}


@pytest.mark.parametrize(
    ("group", "parts", "limit"),
    [
        (LEFT, "5M", "31MiB"),
        (OLD_LEFT, "5M", "31MiB"),
        (NO_LIMIT, "16M", None),
        (OLD_NO_LIMIT, "16M", None),
        ({}, "16M", None),
    ],
    ids=["v2", "v1", "v2 without a limit", "v1 without a limit", "unknown"],
)
def test_the_client_takes_no_more_memory_than_the_container_has_left(
    image: Image, store: Path, tmp_path: Path, group: dict[str, str], parts: str, limit: str | None
) -> None:
    for name, text in group.items():
        (tmp_path / "group" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "group" / name).write_text(text)
    image.replace("/sys/fs/cgroup /sys/fs/cgroup/memory", f"{tmp_path}/group {tmp_path}/group/memory")
    storing_client(image, "rclone")
    assert image.run("s3://bucket", STORE=str(store)).returncode == 0
    given = dict(line.partition("=")[::2] for line in (store.parent / "store.given").read_text().splitlines())
    assert given["RCLONE_S3_CHUNK_SIZE"] == parts and given.get("GOMEMLIMIT") == limit


def test_parts_are_large_enough_for_100_gib() -> None:
    # S3 allows 10,000 parts, and rclone counts in GiB.
    assert 16 * 10_000 >= 100 * 1024 and "part_size=16M" in UPLOADER.read_text()


@pytest.mark.parametrize(
    ("destination", "remote"),
    [
        ("gs://bucket/a/", f":gcs:bucket/a/{KEY}"),
        ("azblob://box/a", f":azureblob:box/a/{KEY}"),
        ("rclone:box:cores/", f"box:cores/{KEY}"),
        ("rclone:box:", f"box:{KEY}"),
    ],
)
def test_other_stores_are_for_rclone(image: Image, store: Path, destination: str, remote: str) -> None:
    image.program("aws", "exit 9\n")
    assert_refused(image.offer(destination), 69, "no rclone in PATH")
    storing_client(image, "rclone")
    result = image.run(destination, STORE=str(store))
    assert result.returncode == 0, result.stderr
    given = (store.parent / "store.given").read_text()
    assert f" {remote} " in given and ("--config=" in given) == (remote[0] == ":")
