"""Where the credentials of the container come from."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.uploader.support import (
    ACCESS_KEY,
    CLIENTS,
    CORE,
    KEY,
    SECRET_KEY,
    Image,
    Network,
    Server,
    assert_delivered,
    assert_failed,
    assert_refused,
    each_client,
    emulating,
    free_port,
    images_with_a_client_each,
    network_of_its_own,
    of_all_clients,
    serving,
)


@each_client
def test_no_credentials_are_one_clear_line(image: Image, client: str, server: Server) -> None:
    environment = {**server.environment, "AWS_ACCESS_KEY_ID": "UNSET", "AWS_SECRET_ACCESS_KEY": "UNSET"}
    result = image.run("s3://bucket/", environment=environment)
    if client == "curl":  # It is the script that looks for them.
        assert_failed(
            result, 77, "curl needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and takes no token and no role"
        )
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


# The service of Amazon's that s3cmd asks, with the question in the address. moto wants it in the body.
QUESTION = """
import http.server, ssl, sys, urllib.request

class Question(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        answer = urllib.request.urlopen("http://127.0.0.1:9000/", self.path.partition("?")[2].encode()).read()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(*sys.argv[1:])
server = http.server.HTTPServer(("127.0.0.1", 443), Question)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@pytest.mark.parametrize("region", ["UNSET", "eu-central-1"])
def test_s3cmd_takes_a_token_to_the_service_of_amazon(dash: Image, tmp_path: Path, region: str) -> None:
    of_all_clients(dash, "s3cmd")
    if importlib.util.find_spec("moto") is None or shutil.which("openssl") is None:
        pytest.skip("no moto or no openssl: pip install moto flask flask-cors; apt-get install openssl")
    # EKS sets the variable, and has such a service in the region.
    name = "sts.amazonaws.com" if region == "UNSET" else f"sts.{region}.amazonaws.com"
    (tmp_path / "hosts").write_text(f"127.0.0.1 localhost {name}\n")
    (tmp_path / "token").write_text("a token")
    (tmp_path / "moto").mkdir()
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext"
    own = [*words.split(), f"subjectAltName=DNS:{name}", "-keyout", key, "-out", certificate]
    subprocess.run(own, check=True, capture_output=True)
    settings = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
        "AWS_REGION": region,
        "AWS_STS_REGIONAL_ENDPOINTS": "UNSET" if region == "UNSET" else "regional",
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/cores",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "SSL_CERT_FILE": certificate,
    }
    moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "9000"]
    with (
        network_of_its_own(hosts=tmp_path / "hosts") as network,
        emulating([sys.executable, "-c", QUESTION, certificate, key], 443, tmp_path, network),
        emulating(moto, 9000, tmp_path / "moto", network),
    ):
        ask = "import urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:9000/bucket', method='PUT'))"
        subprocess.run([*network.inside, sys.executable, "-c", ask], check=True)
        dash.command = [*network.inside, *dash.command]
        result = dash.run("s3://bucket/shop/", environment=settings)
        assert_delivered(result, f"s3://bucket/shop/{KEY}")
        log = (tmp_path / "moto/server.log").read_text()
    assert re.search(r'"POST / HTTP/1.1" 200', log) and f"/bucket/shop/{KEY}" in log


# A role that the container has from where it runs. Each address is that of a cloud's own service, so the network is the test's.

MACHINE, TASK, POD = "169.254.169.254", "169.254.170.2", "169.254.170.23"
ROLE = {
    MACHINE: {},
    TASK: {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/cores"},
    POD: {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{POD}/v1/credentials"},
}
# As strict as the real ones: a machine answers only who has asked for a token before, a pod only who has the token of a file.
SERVICE = f"""
import http.server, json
known = dict(AccessKeyId="{ACCESS_KEY}", SecretAccessKey="{SECRET_KEY}", Token="a session", Code="Success")
known.update(LastUpdated="2026-01-01T00:00:00Z", Expiration="2099-01-01T00:00:00Z")
role = "/latest/meta-data/iam/security-credentials/"

class Service(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        asked = self.path == "/latest/api/token" and self.headers["x-aws-ec2-metadata-token-ttl-seconds"]
        self.answer("a token of this machine" if asked else None)

    def do_GET(self):
        words = self.connection.getsockname()[0], self.path
        if self.headers["x-aws-ec2-metadata-token"] == "a token of this machine":
            words += ("by token",)
        if self.headers["authorization"] == "a token of this pod":
            words += ("by token",)
        self.answer({{
            ("{MACHINE}", role, "by token"): "cores-role",
            ("{MACHINE}", role + "cores-role", "by token"): json.dumps(known),
            ("{TASK}", "/v2/credentials/cores"): json.dumps(known),
            ("{POD}", "/v1/credentials", "by token"): json.dumps(known),
        }}.get(words))

    def answer(self, text):
        self.send_response(200 if text else 401)
        self.send_header("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60")
        self.end_headers()
        self.wfile.write((text or "").encode())

http.server.ThreadingHTTPServer(("", 80), Service).serve_forever()
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Network, Server]]:
    """A network with the services of a cloud, and a server of S3 that knows nobody else's credentials."""
    directory = tmp_path_factory.mktemp("cloud")
    with network_of_its_own(*(f"{address}/32" for address in ROLE)) as network:
        service = emulating([sys.executable, "-c", SERVICE], 80, directory, network)
        with service, serving(directory, port=9000, network=network) as server:
            yield network, server


def of_a_role(server: Server, directory: Path, address: str) -> dict[str, str]:
    """The environment of a container that has no credentials of its own."""
    (directory / "token").write_text("a token of this pod")
    token = {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(directory / "token")} if address == POD else {}
    known = {"AWS_ENDPOINT_URL": server.environment["AWS_ENDPOINT_URL"], "AWS_REGION": "us-east-1"}
    return {**known, "HOME": str(directory), **ROLE[address], **token}


@pytest.mark.parametrize("address", ROLE)
@pytest.mark.parametrize("client_of_dash", CLIENTS)
def test_a_role_is_enough_where_the_client_can_take_it(
    dash: Image, client_of_dash: str, address: str, cloud: tuple[Network, Server], tmp_path: Path
) -> None:
    of_all_clients(dash, client_of_dash)
    network, server = cloud
    dash.command = [*network.inside, *dash.command]
    destination = f"s3://bucket/{client_of_dash}-{address}/"
    offered = dash.offer(destination, environment=of_a_role(server, tmp_path, address))
    if client_of_dash == "curl":
        assert_refused(offered, 77, "takes no token and no role: give these to the container, or install rclone or aws")
    elif client_of_dash == "s3cmd" and address != MACHINE:
        assert_refused(offered, 77, "s3cmd takes no role of a task or a pod", "install rclone or aws in the image")
    else:
        assert_delivered(offered[0], f"{destination}{KEY}")
        assert (server.root / destination.removeprefix("s3://") / KEY).read_bytes() == CORE[:1000]


@pytest.mark.parametrize("client_of_dash", ["rclone", "aws"])
def test_where_the_service_that_gives_credentials_is_away_the_host_is_asked_to_keep_the_core(
    dash: Image, client_of_dash: str, tmp_path: Path
) -> None:
    of_all_clients(dash, client_of_dash)
    away = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{free_port()}/", "AWS_REGION": "us-east-1"}
    result = dash.run("s3://bucket/", environment={**away, "HOME": str(tmp_path)})
    assert_failed(result, 75, "the service that gives it credentials does not answer")


SILENCE = "import socket, time; server = socket.create_server(('', 80)); time.sleep(1000)"


def test_where_nobody_answers_the_question_for_credentials_they_are_missed(tmp_path: Path) -> None:
    """A machine that is none of a cloud, or one whose answers do not reach containers."""
    images = images_with_a_client_each(tmp_path, "rclone", "aws", "s3cmd")
    known = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "us-east-1", "HOME": str(tmp_path)}
    with (
        network_of_its_own(f"{MACHINE}/32") as network,
        emulating([sys.executable, "-c", SILENCE], 80, tmp_path, network),
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        for image in images.values():
            image.command = [*network.inside, *image.command]
        runs = {client: pool.submit(image.run, "s3://bucket/", environment=known) for client, image in images.items()}
        for client, run in runs.items():
            assert_failed(run.result(), 74, f"{client}: ", "give the container credentials, such as AWS_ACCESS_KEY_ID")
    assert b"needs an HttpPutResponseHopLimit of 2 there" in runs["rclone"].result().stderr


@pytest.mark.parametrize(
    ("destination", "name"),
    [
        ("s3://bucket", "AWS_WEB_IDENTITY_TOKEN_FILE"),
        ("s3://bucket", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
        ("gs://bucket", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("azblob://box", "AZURE_FEDERATED_TOKEN_FILE"),
    ],
)
def test_a_token_that_the_user_may_not_read_is_named(image: Image, destination: str, name: str) -> None:
    image.program("rclone", "cat >/dev/null\n")
    words = (f"cannot read {name}=/proc/nowhere/file", "let that user read it")
    assert_refused(image.offer(destination, environment={name: "/proc/nowhere/file"}), 77, *words)
    # Where it does not count, it may be whatever it is.
    other = {"AWS_ACCESS_KEY_ID": "a", "RCLONE_GCS_ENV_AUTH": "false", "RCLONE_AZUREBLOB_KEY": "a"}
    assert image.run(destination, environment={**other, name: "/proc/nowhere/file"}).returncode == 0
