"""What stands in the place of a store answers the same however busy the machine is."""

from __future__ import annotations

import contextlib
import socket

import pytest
from unit.uploader.support import Bottleneck, ailing, free_port


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (b"Content-Length: 4", [b"co", b"re"]),
        (b"Transfer-Encoding: chunked", [b"2\r\nco\r\n", b"2\r\nre\r\n0\r\n\r\n"]),
    ],
)
def test_an_ailing_server_answers_when_it_has_heard_the_whole_request(kind: bytes, parts: list[bytes]) -> None:
    with ailing(503, b"SlowDown") as port, connected(port) as client:
        client.sendall(b"PUT /core HTTP/1.1\r\nHost: store.test\r\n" + kind + b"\r\n\r\n")
        for part in parts:
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.sendall(part)
        client.settimeout(10)
        answer = b"".join(iter(lambda: client.recv(1000), b""))
    assert answer.startswith(b"HTTP/1.1 503 ") and answer.endswith(b"\r\n\r\nSlowDown")


def test_a_server_that_has_died_in_the_middle_refuses_connections_before_it_ends_those_that_it_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as behind:
        for _ in range(20):
            with Bottleneck(behind.getsockname()[1], 1e9, 1) as bottleneck:
                port = bottleneck.server_address[1]
                with connected(port) as client:
                    client.sendall(b"core")
                    with contextlib.suppress(ConnectionResetError):
                        assert client.recv(1) == b""
                    with pytest.raises(ConnectionRefusedError):
                        connected(port)


def test_a_free_port_stays_free_for_its_server_alone() -> None:
    port = free_port()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    with pytest.raises(ConnectionRefusedError):
        connected(port)
    with socket.create_server(("127.0.0.1", port)):  # It sets SO_REUSEADDR, as servers do.
        connected(port).close()
