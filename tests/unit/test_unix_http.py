"""HTTP over a unix socket: the whole of it arrives, whatever host the URL names and whatever proxy there is."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import fake_tier
import pytest
import requests

from checker.llama_server import BrokenError, LlamaServer, UnreachableError
from checker.unix_http import UnixAdapter


@pytest.fixture
def server(tmp_path: Path) -> Iterator[fake_tier.Server]:
    with fake_tier.serving(tmp_path) as played:
        played.waits_s = 0
        yield played


def session(path: Path, mounted: str = "http://") -> requests.Session:
    found = requests.Session()
    found.mount(mounted, UnixAdapter(str(path)))
    return found


def test_any_host_of_a_url_is_the_socket(server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    asked = session(server.socket)
    for url in ("http://localhost/health", "http://no.such.host:99/health", "http://127.0.0.1:9/health"):
        assert asked.get(url, timeout=5).json() == {"status": "ok"}
    assert server.asked == [("/health", {})] * 3


def test_only_what_it_is_mounted_for_goes_to_the_socket(server: fake_tier.Server) -> None:
    with pytest.raises(requests.ConnectionError):
        session(server.socket, "http://localhost").get("http://127.0.0.1:9/health", timeout=5)
    assert server.asked == []


def test_headers_query_and_a_large_body_arrive(server: fake_tier.Server) -> None:
    long = "many words " * 100_000
    assert len(LlamaServer.of(server.spec).tokenize(long)) == 200_000
    assert server.asked[-1][1]["content"] == long
    session(server.socket).get("http://localhost/health?deep=1", timeout=5)
    assert server.asked[-1][0] == "/health?deep=1"


def test_a_session_outlives_a_server_that_was_started_anew(tmp_path: Path) -> None:
    with fake_tier.serving(tmp_path) as first:
        client = LlamaServer.of(first.spec)
        client.health()
    with pytest.raises(UnreachableError, match=r"nothing answers at unix:.*deep\.sock"):
        client.health()
    first.socket.unlink()
    with pytest.raises(UnreachableError):
        client.health()
    with fake_tier.serving(tmp_path) as second:
        client.health()
        assert second.asked == [("/health", {})]


def test_a_server_that_accepts_and_says_nothing_ends_the_patience(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "mute.sock"))
        listening.listen()
        with pytest.raises(requests.ReadTimeout):
            session(tmp_path / "mute.sock").get("http://localhost/", timeout=(5, 0.1))


def test_messages_name_the_socket(server: fake_tier.Server) -> None:
    server.health_status = 500
    with pytest.raises(BrokenError, match=f"^unix:{server.socket}/health answers 500"):
        LlamaServer.of(server.spec).health()
