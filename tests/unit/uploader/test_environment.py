"""The environment: settings of a file where it lacks them, and what is for the application alone."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from unit.uploader.support import (
    CORE,
    KEY,
    NAME,
    Image,
    Server,
    assert_delivered,
    assert_failed,
    assert_refused,
    each_client,
    files,
    storing_client,
    with_settings,
)


def test_the_file_says_what_the_environment_lacks(image: Image, cores: Path) -> None:
    with_settings(image, f"# a comment\n\nCORE_DESTINATION={cores}")
    assert_delivered(image.run(), f"{cores}/{NAME}")
    assert_delivered(image.run(CORE_DESTINATION="", CORE_PID="43"), f"{cores}/{NAME.replace('42', '43')}")
    assert_failed(image.run(CORE_DESTINATION="/proc/nowhere"), 73, "no directory /proc/nowhere")


def test_credentials_of_the_file_reach_the_client(image: Image, store: Path) -> None:
    storing_client(image, "rclone")
    with_settings(image, "AWS_SECRET_ACCESS_KEY=a=b $HOME `id`\nRCLONE_CONFIG_box_TYPE='sftp'\r\nAWS_REGION=\"eu\"\r\n")
    assert image.run("s3://bucket", STORE=str(store), AWS_REGION="us").returncode == 0
    given = (store.parent / "store.given").read_text().splitlines()
    assert {"AWS_SECRET_ACCESS_KEY=a=b $HOME `id`", "RCLONE_CONFIG_box_TYPE=sftp", "AWS_REGION=us"} <= set(given)


@pytest.mark.parametrize(
    "line",
    ["PATH=/secret", "LD_PRELOAD=secret", "CORE_X;touch secret;=1", "export CORE_X=secret", "AWS_=secret", "secret"],
)
def test_other_lines_of_the_file_count_for_nothing_and_are_not_shown(image: Image, cores: Path, line: str) -> None:
    path = with_settings(image, f"{line}\nCORE_DESTINATION={cores}\n")
    result = image.run()
    assert result.returncode == 0 and files(cores) == [NAME]
    told, _stored = result.stderr.decode().splitlines()
    assert told.startswith(f"uploader.sh: {path}: line 1 is not CORE_*=VALUE") and "secret" not in told
    assert not (cores / "secret").exists() and not Path("secret").exists()


def test_a_file_that_the_user_may_not_read_is_named(public_image: Image, users: list[int]) -> None:
    path = with_settings(public_image, "CORE_DESTINATION=/cores\n")
    path.chmod(0o600)
    result, left = public_image.offer(user=users[0])
    named, missing = result.stderr.decode().splitlines()
    assert named.startswith(f"uploader.sh: {path}: the user of the faulting process cannot read it: ")
    assert (result.returncode, left) == (64, 1000) and "no destination" in missing


def test_a_certificate_that_cannot_be_read_is_named(image: Image) -> None:
    image.program("rclone", "cat >/dev/null\n")
    words = ("cannot read AWS_CA_BUNDLE=/proc/nowhere/file", "let that user read it")
    assert_refused(image.offer("s3://bucket", environment={"AWS_CA_BUNDLE": "/proc/nowhere/file"}), 77, *words)


def test_what_is_for_the_application_reaches_no_client(image: Image, store: Path) -> None:
    storing_client(image, "rclone")
    gone = {
        "LD_LIBRARY_PATH": "/srv\nexport LD_X=1",
        "LD_AUDIT": "",
        "PYTHONHOME": "/srv",
        "PYTHONPATH": "/srv",
        "LC_CTYPE": "tr_TR",
        "LANG": "tr_TR",
        "GOMEMLIMIT": "1",
        "GODEBUG": "x",
        "OPENSSL_CONF": "/srv",
        "ZSTD_CLEVEL": "19",
        "AWS_PROFILE": "shop",
    }
    stays = {
        "HTTPS_PROXY": "http://proxy",
        "HOME": "/proc/nowhere",
        "GOOGLE_APPLICATION_CREDENTIALS": "/key",
        "TMPDIR": "/x",
    }
    assert image.run("s3://bucket", environment={**gone, **stays, "STORE": str(store)}).returncode == 0
    given = dict(line.partition("=")[::2] for line in (store.parent / "store.given").read_text().splitlines())
    assert not set(gone) & set(given), given
    assert stays.items() <= given.items() and given["LC_ALL"] == "C"


def test_a_profile_stays_where_a_configuration_has_it(image: Image, store: Path, tmp_path: Path) -> None:
    storing_client(image, "rclone")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").touch()
    assert image.run("s3://bucket", STORE=str(store), HOME=str(tmp_path), AWS_PROFILE="shop").returncode == 0
    assert "AWS_PROFILE=shop\n" in (store.parent / "store.given").read_text()


@each_client
def test_the_environment_of_a_python_application_stops_no_client(image: Image, client: str, server: Server) -> None:
    application = {
        "PYTHONHOME": "/proc/nowhere",
        "PYTHONPATH": "/proc/nowhere",
        "LD_LIBRARY_PATH": "/proc/nowhere",
        "AWS_PROFILE": "shop",
    }
    result = image.run("s3://bucket/application/", environment={**server.environment, **application})
    assert_delivered(result, f"s3://bucket/application/{KEY}.zst")


def test_a_compressor_that_does_not_start_is_replaced_by_the_next(image: Image, cores: Path) -> None:
    image.program("zstd", "echo 'zstd: undefined symbol: x' >&2; exit 127\n")
    image.link("gzip")
    result = image.run(str(cores))
    told, stored = result.stderr.decode().splitlines()
    assert told.startswith(f"uploader.sh: {cores}/{NAME}: zstd: undefined symbol: x: the core is stored without it: ")
    assert stored == f"uploader.sh: {cores}/{NAME}.gz" and gzip.decompress((cores / f"{NAME}.gz").read_bytes()) == CORE
    image.program("gzip", "exit 127\n")
    result = image.run(str(cores))
    assert result.stderr.decode().endswith(f"uploader.sh: {cores}/{NAME}\n") and (cores / NAME).read_bytes() == CORE
