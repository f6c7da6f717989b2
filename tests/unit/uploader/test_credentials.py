"""Where the credentials of the container come from."""

from __future__ import annotations

import importlib.util
import re
import sys
import urllib.request
from pathlib import Path

import pytest
from unit.uploader.support import (
    KEY,
    Image,
    Server,
    assert_delivered,
    assert_failed,
    each_client,
    emulating,
    free_port,
    of_all_clients,
)


@each_client
def test_no_credentials_are_one_clear_line(image: Image, client: str, server: Server) -> None:
    environment = {**server.environment, "AWS_ACCESS_KEY_ID": "UNSET", "AWS_SECRET_ACCESS_KEY": "UNSET"}
    result = image.run("s3://bucket/", environment=environment)
    if client == "curl":  # It is the script that looks for them.
        assert_failed(result, 77, "curl needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    else:
        assert_failed(result, 74, f"{client}: ", "give the container credentials, such as AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize("client_of_dash", ["rclone", "aws"])
def test_a_token_of_the_container_is_enough_for_aws(dash: Image, client_of_dash: str, tmp_path: Path) -> None:
    of_all_clients(dash, client_of_dash)
    if importlib.util.find_spec("moto") is None:
        pytest.skip("no moto: pip install moto flask flask-cors")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    (tmp_path / "token").write_text("a token")
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL_STS": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/cores",
        "AWS_ROLE_SESSION_NAME": "cores",
        "HOME": str(tmp_path),  # aws keeps credentials there.
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with emulating([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, tmp_path):
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"))
        result = dash.run("s3://bucket/shop/", environment=settings)
        assert_delivered(result, f"s3://bucket/shop/{KEY}")
        log = (tmp_path / "server.log").read_text()
    # It has asked for credentials, and was given some.
    assert re.search(r'"POST / HTTP/1.1" 200', log) and f"/bucket/shop/{KEY}" in log
