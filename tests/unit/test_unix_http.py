"""HTTP over a unix socket: the whole of it arrives, and whatever becomes of the server is told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import fake_tier
import pytest

from checker.llama_server import BrokenError, LlamaServer, UnreachableError
from checker.unix_http import UnixConnection


@pytest.fixture
def server(tmp_path: Path) -> Iterator[fake_tier.Server]:
    with fake_tier.serving(tmp_path) as played:
        played.waits_s = 0
        yield played


def test_a_connection_is_one_to_the_socket(server: fake_tier.Server) -> None:
    connection = UnixConnection(str(server.socket), 5)
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok"}
    assert server.asked == [("/health", {})]
    connection.close()


def test_a_connection_that_fails_leaves_no_socket_open(tmp_path: Path) -> None:
    connection = UnixConnection(str(tmp_path / "absent.sock"), 5)
    with pytest.raises(FileNotFoundError):
        connection.connect()
    assert connection.sock is None


def test_a_large_body_arrives(server: fake_tier.Server) -> None:
    long = "many words " * 100_000
    assert len(LlamaServer.of(server.spec).tokenize(long)) == 200_000
    assert server.asked[-1][1]["content"] == long


def test_a_client_outlives_a_server_that_was_started_anew(tmp_path: Path) -> None:
    with fake_tier.serving(tmp_path) as first:
        client = LlamaServer.of(first.spec)
        client.health()
    with pytest.raises(UnreachableError, match=r"nothing answers at unix:.*deep\.sock \(connection refused\)$"):
        client.health()
    first.socket.unlink()
    with pytest.raises(UnreachableError, match=r"nothing answers at unix:.*deep\.sock \(no such file or directory\)$"):
        client.health()
    with fake_tier.serving(tmp_path) as second:
        client.health()
        assert second.asked == [("/health", {})]


def test_a_server_that_accepts_and_says_nothing_ends_the_patience(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "mute.sock"))
        listening.listen()
        connection = UnixConnection(str(tmp_path / "mute.sock"), 0.1)
        connection.request("GET", "/")
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", b"no HTTP at all\r\n\r\n"])
def test_a_server_that_ends_in_its_answer_is_broken(tmp_path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "ends.sock"))
        listening.listen()

        def end() -> None:
            connection, _ = listening.accept()
            connection.recv(1)
            connection.sendall(said)
            connection.close()

        threading.Thread(target=end, daemon=True).start()
        with pytest.raises(BrokenError, match=r"^unix:.*ends\.sock/health"):
            LlamaServer(f"unix:{tmp_path / 'ends.sock'}", "").health()


def test_messages_name_the_socket(server: fake_tier.Server) -> None:
    server.health_status = 500
    with pytest.raises(BrokenError, match=f"^unix:{server.socket}/health answers 500"):
        LlamaServer.of(server.spec).health()
