"""Where the tests' own helpers lie, and the hub and the host that several of them play with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_host
import hub_server
import small_gguf


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub_server.HubServer]:
    """Play a hub that the checker asks in place of the real one, with nobody's token and an empty cache."""
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with hub_server.serving() as played:
        monkeypatch.setenv("HF_ENDPOINT", played.url)
        yield played


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a small GGUF that is right."""
    return small_gguf.write(tmp_path / "model.gguf")[0]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> fake_host.Host:
    """Play a host whose systemd, ports and cards tell what a test wants."""
    return fake_host.play(monkeypatch)
