"""The whole core does not come, or is not sent: nothing half stays behind that does not say so."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.uploader.support import (
    CORE,
    FACTS,
    KEY,
    NAME,
    STARTS,
    Bottleneck,
    Image,
    Server,
    assert_delivered,
    assert_failed,
    each_shell_and_client,
    files,
    installed,
    of_all_clients,
    storing_client,
    terminated,
    wait_for,
)


@pytest.mark.parametrize("compressor", ["zstd", "gzip", "cat"])
def test_in_a_directory_a_part_of_a_core_has_a_name_that_says_so(image: Image, cores: Path, compressor: str) -> None:
    image.link(compressor) if compressor != "cat" else None
    suffix = {"zstd": ".zst", "gzip": ".gz", "cat": ""}[compressor]
    core = os.urandom(30_000_000)  # zstd may hold some of these back until it has more.
    status, told = terminated(image, str(cores), core)
    name = f"{cores}/{NAME}{suffix}.truncated"
    assert (status, told) == (
        74,
        f"uploader.sh: {name}: ended by SIGTERM, so this is a part of the core: see the host's log\n",
    )
    assert files(cores) == [f"{NAME}{suffix}.truncated"]
    read = {"zstd": ["zstd", "-q", "-d", "-c"], "gzip": ["gzip", "-d", "-c"], "cat": ["cat"]}[compressor]
    with Path(name).open("rb") as file:
        part = subprocess.run(read, stdin=file, capture_output=True).stdout
    assert len(part) > 10_000_000 and core.startswith(part)


@pytest.mark.parametrize(("cut", "ending"), [("1", ".truncated"), ("0", ""), ("", ""), ("UNSET", "")])
def test_a_core_that_was_cut_off_before_is_stored_under_a_name_that_says_so(
    image: Image, cores: Path, cut: str, ending: str
) -> None:
    result = image.run(str(cores), CORE_TRUNCATED=cut)
    assert (result.returncode, result.stderr.decode()) == (0, f"uploader.sh: {cores}/{NAME}{ending}\n")
    assert files(cores) == [f"{NAME}{ending}"]
    image.program("rclone", 'cat >/dev/null; case $* in *.json* | backend*) ;; *) echo "$*" >"$OBJECT" ;; esac\n')
    told = cores / "object"
    assert image.run("s3://bucket", CORE_TRUNCATED=cut, OBJECT=str(told)).returncode == 0
    assert f" :s3:bucket/{KEY}{ending} " in told.read_text()


def test_the_part_of_a_core_that_was_cut_off_before_says_so_once(image: Image, cores: Path) -> None:
    status, told = terminated(image, str(cores), CORE, CORE_TRUNCATED="1")
    assert status == 74 and f"{cores}/{NAME}.truncated: ended by SIGTERM" in told
    assert files(cores) == [f"{NAME}.truncated"]


def test_the_part_of_a_core_replaces_no_other(image: Image, cores: Path) -> None:
    (cores / f"{NAME}.truncated").write_bytes(b"precious")
    status, told = terminated(image, str(cores), CORE)
    assert status == 74 and re.search(r"\.[A-Za-z0-9]{6}\.core\.truncated: ended by SIGTERM", told), told
    assert (cores / f"{NAME}.truncated").read_bytes() == b"precious"
    (other,) = (name for name in files(cores) if name != f"{NAME}.truncated")
    assert other.endswith(".core.truncated") and (cores / other).read_bytes() == CORE


def test_in_a_directory_nothing_is_left_of_a_core_of_which_nothing_came(image: Image, cores: Path) -> None:
    status, told = terminated(image, str(cores), b"")
    assert (status, files(cores)) == (74, []), told
    assert "ended by SIGTERM before a part of the core was written" in told


@pytest.mark.parametrize("compressor", ["zstd", "gzip", "cat"])
def test_a_bucket_gets_no_object_of_a_part_of_a_core(image: Image, store: Path, compressor: str) -> None:
    image.link(compressor) if compressor != "cat" else None
    storing_client(image, "rclone")
    status, told = terminated(image, "s3://bucket/", CORE, STORE=str(store))
    # bash ends by itself.
    assert (status in (-signal.SIGTERM, 128 + signal.SIGTERM), told) == (True, "")
    assert (store.parent / "store.given").exists() and not store.exists()


@pytest.mark.parametrize("client", ["rclone", "aws"])
@pytest.mark.parametrize("end", ["exit 3", "kill -KILL $$", "cat >/dev/full"])
def test_a_failed_compressor_leaves_no_object(image: Image, store: Path, client: str, end: str) -> None:
    image.program("zstd", f"{STARTS}head -c 200000\n{end}\n")
    storing_client(image, client)
    assert_failed(image.run("s3://bucket", STORE=str(store)), 74, f"s3://bucket/{KEY}.zst: zstd: ")
    assert not store.exists()


def test_a_failed_compressor_leaves_no_object_also_when_the_client_starts_late(image: Image, store: Path) -> None:
    image.program("zstd", STARTS + "exit 3\n")
    storing_client(image, "rclone", delay=1)
    assert_failed(image.run("s3://bucket", STORE=str(store)), 74, "zstd: ended with status 3")
    assert not store.exists()


def test_a_failed_compressor_ends_also_a_client_that_is_a_wrapper(image: Image) -> None:
    image.program("zstd", STARTS + "head -c 200000; exit 3\n")
    image.program("aws", "cat >/dev/null\n")
    assert_failed(image.run("s3://bucket"), 74, "zstd: ended with status 3")


@each_shell_and_client
def test_a_compressor_killed_in_the_middle_of_an_upload_leaves_no_object(
    image: Image, client: str, server: Server
) -> None:
    (image.bin / "zstd").unlink()
    image.program("zstd", STARTS + "head -c 20000000 /dev/urandom; sleep 1; kill -KILL $$\n")
    result = image.run("s3://bucket/killed/", environment=server.environment)
    assert_failed(result, 74, "zstd: ")
    # What is left may be parts of no object: the server keeps them under other names.
    assert [name for name in files(server.root / "bucket" / "killed") if ".core" in name] == []


@pytest.mark.parametrize("end", ["well", "badly", "terminated"])
@pytest.mark.parametrize("client_of_dash", ["curl", "s3cmd"])
def test_a_client_that_needs_a_file_leaves_none_behind(
    dash: Image, tmp_path: Path, client_of_dash: str, end: str
) -> None:
    (tmp_path / "tmp").mkdir()
    dash.program(client_of_dash, "cat >/dev/null; exit 9\n" if end == "badly" else "cat >/dev/null\n")
    known: dict[str, Any] = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "TMPDIR": str(tmp_path / "tmp")}
    if end == "terminated":
        status, told = terminated(dash, "s3://bucket", CORE, **known)
        assert status == 74 and "ended by SIGTERM, so nothing is sent" in told
    else:
        assert dash.run("s3://bucket", environment=known).returncode == (0 if end == "well" else 74)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("client_of_dash", ["rclone", "aws", "s3cmd"])
def test_an_upload_that_is_ended_leaves_no_object(dash: Image, client_of_dash: str, server: Server) -> None:
    of_all_clients(dash, client_of_dash)
    prefix = f"ended-{client_of_dash}"
    terminated(dash, f"s3://bucket/{prefix}/", os.urandom(40_000_000), **server.environment)
    found = files(server.root / "bucket" / prefix) if (server.root / "bucket" / prefix).exists() else []
    assert [name for name in found if ".core" in name] == []


def parts_in(server: Server, *words: str) -> str:
    """What the bucket has of uploads that have not come to their end."""
    aws = installed("aws")
    if aws is None:
        pytest.skip("no aws, which lists the parts: pip install awscli")
    words = words or ("list-multipart-uploads", "--output=text")
    command = [aws, "s3api", *words, "--bucket=bucket", "--region=us-east-1"]
    environment = {**server.environment, "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environment, check=True, capture_output=True).stdout.decode()


def test_rclone_that_is_ended_removes_its_parts(dash: Image, server: Server) -> None:
    of_all_clients(dash, "rclone")

    def begun() -> bool:
        return f"parts/{KEY}" in parts_in(server)

    terminated(dash, "s3://bucket/parts/", os.urandom(40_000_000), begun, **server.environment)
    wait_for(lambda: not begun())


def killed_while_sending(image: Image, store: str, server: Server, directory: Path, until: Callable[[], bool]) -> None:
    """As terminated, for a client that begins to send when it has the whole core: the server is slow."""
    (directory / "given").write_bytes(os.urandom(40_000_000))
    with Bottleneck(int(server.environment["AWS_ENDPOINT_URL"].rpartition(":")[2]), 4e6, 1e9) as slow:
        known = {**server.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{slow.server_address[1]}"}
        with (directory / "given").open("rb") as core:
            process = subprocess.Popen(
                [*image.command, str(image.script), store],
                env={"PATH": str(image.bin), **FACTS, **known, "TMPDIR": str(directory)},
                stdin=core,
                start_new_session=True,
            )
        try:
            wait_for(lambda: until() or process.poll() is not None)
            assert process.poll() is None, "it was sent before the test saw it"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            slow.shutdown()


@pytest.mark.parametrize(
    ("client_of_dash", "by"), [("aws", signal.SIGTERM), ("rclone", signal.SIGKILL), ("s3cmd", signal.SIGKILL)]
)
def test_what_a_killed_client_has_left_is_aborted_by_a_later_upload(
    dash: Image, server: Server, client_of_dash: str, by: signal.Signals, tmp_path: Path
) -> None:
    of_all_clients(dash, client_of_dash)
    prefix = f"swept-{client_of_dash}"
    for name in (f"{prefix}/notes.txt", f"{prefix}/a b.core", f"{prefix}-x/x.core"):
        parts_in(server, "create-multipart-upload", "--key", name)
    left, store = f"{prefix}/{KEY}", f"s3://bucket/{prefix}/"
    if client_of_dash == "s3cmd":
        dash.link("timeout")
        killed_while_sending(dash, store, server, tmp_path, lambda: left in parts_in(server))
    else:
        terminated(dash, store, os.urandom(40_000_000), lambda: left in parts_in(server), by, **server.environment)
    assert left in parts_in(server)

    def swept(**known: Any) -> bool:
        assert_delivered(
            dash.run(store, CORE_KEY="later", environment=server.environment, **known), f"{store}later.core"
        )
        return left not in parts_in(server)

    assert not swept(), "it is young, and may be under way"
    dash.replace("now - 172800", "now + 60")
    dash.replace("max-age=48h", "max-age=0s")
    assert not swept(CORE_TIMEOUT="50"), "no time was left for that"
    assert swept(CORE_TIMEOUT="300")
    others = parts_in(server)
    assert all(name in others for name in (f"{prefix}/notes.txt", f"{prefix}/a b.core", f"{prefix}-x/x.core"))


def test_only_what_has_the_name_of_a_core_below_the_prefix_and_is_old_is_aborted(image: Image, tmp_path: Path) -> None:
    cores = ["a/x.core", "a/web-1/y.core.zst", "a/z.core.gz.truncated"]
    others = [
        "b/x.core",
        "ab/x.core",
        "a/../b/x.core",
        "a/x y.core",
        "a/n\nx.core",
        "a/t\tx.core",
        "a/x.txt",
        "a/x.core.tar",
    ]
    each = [(name, "2020-01-01T00:00:00.123Z") for name in others + cores] + [("a/fourth.core", "2020-01-01T00:00:00Z")]
    each.insert(0, ("a/young.core", "2100-01-01T00:00:00Z"))
    known = {
        "bucket": [{"Initiated": when, "Initiator": None, "Key": name, "UploadId": "Z-T.1"} for name, when in each]
    }
    (tmp_path / "listing").write_text(json.dumps(known, indent="\t"))
    image.program(
        "rclone",
        f'case $* in *list-multi*) cat {tmp_path}/listing ;; *cleanup*) echo "$3 $5" >>{tmp_path}/aborted ;;\n'
        "*) cat >/dev/null ;; esac\n",
    )
    assert_delivered(image.run("s3://bucket/a"), f"s3://bucket/a/{KEY}")
    # Three at a time.
    assert (tmp_path / "aborted").read_text().splitlines() == [f":s3:bucket/{name} max-age=48h" for name in cores]


def test_s3cmd_aborts_only_what_has_the_name_of_a_core_and_is_old_and_no_name_forges_that(
    dash: Image, tmp_path: Path
) -> None:
    old, young = "2020-01-01T00:00:00.000Z", "2100-01-01T00:00:00.000Z"
    forged = f"{old}\ts3://bucket/a/young.core\t2~young"
    listing = [
        "s3://bucket/",
        "Initiated\tPath\tId",
        f"{old}\ts3://bucket/a/x.core\t1-x",
        f"{old}\ts3://bucket/ab/x.core\t1-other",
        f"{old}\ts3://bucket/a/../b/x.core\t1-up",
        f"{old}\ts3://bucket/a/x.txt\t1-text",
        f"{old}\ts3://bucket/a/x y.core\t1-space",
        f"{old}\ts3://bucket/a/option.core\t--configure",
        f"{old}\ts3://bucket/a/none.core\t",
        # One name of another user of the bucket, with two newlines.
        f"{young}\ts3://bucket/b/name\tz\n{forged}\n{young}\ts3://bucket/b/name\t3-his",
        f"{young}\ts3://bucket/a/young.core\t2~young",
        f"{old}\ts3://bucket/a/web-1/y.core.zst\tMjA=",
    ]
    (tmp_path / "listing").write_text("\n".join(listing) + "\n")
    dash.link("timeout")
    dash.program(
        "s3cmd",
        f'case $* in *multipart\\ s3*) cat {tmp_path}/listing ;; *abortmp*) echo "${{*##*abortmp }}" >>{tmp_path}/aborted ;;\n'
        "*) cat >/dev/null ;; esac\n",
    )
    assert_delivered(dash.run("s3://bucket/a", TMPDIR=str(tmp_path)), f"s3://bucket/a/{KEY}")
    assert (tmp_path / "aborted").read_text().splitlines() == [
        "s3://bucket/a/x.core 1-x",
        "s3://bucket/a/web-1/y.core.zst MjA=",
    ]


def test_s3cmd_that_lists_without_an_end_is_ended(dash: Image, tmp_path: Path) -> None:
    dash.link("timeout")
    dash.replace("within=10", "within=1")
    dash.program("s3cmd", "case $* in *multipart\\ s3*) exec sleep 60 ;; esac; cat >/dev/null\n")
    began = time.monotonic()
    assert_delivered(dash.run("s3://bucket/a", TMPDIR=str(tmp_path)), f"s3://bucket/a/{KEY}")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("client_of_dash", "word"), [("aws", "s3api"), ("rclone", "backend"), ("s3cmd", "multipart s3")]
)
def test_who_may_not_look_for_what_was_left_has_stored_the_core(dash: Image, client_of_dash: str, word: str) -> None:
    dash.link("timeout")
    dash.program(client_of_dash, f'case "$*" in *"{word}"*) echo AccessDenied >&2; exit 1 ;; esac; cat >/dev/null\n')
    assert_delivered(dash.run("s3://bucket/", CORE_TIMEOUT="300"), f"s3://bucket/{KEY}")
