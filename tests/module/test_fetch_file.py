"""fetch_file and model_state: what they say changed, and what they asked the server for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import file_server
import pytest
from modules import run

CONTENT = b"GGUF" + b"model" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def served() -> Iterator[file_server.FileServer]:
    with file_server.serving(CONTENT) as server:
        yield server


def fetch(served: file_server.FileServer, tmp_path: Path, check: bool = False, **changes: Any) -> dict[str, Any]:
    arguments = {
        "url": served.url,
        "dest": str(tmp_path / "models/model.gguf"),
        "sha256": SHA256,
        "bytes": len(CONTENT),
        "magic": "GGUF",
        "progress": str(tmp_path / "run/progress"),
    }
    return run("fetch_file", check=check, **{**arguments, **changes})


def test_a_file_is_fetched_once(served: file_server.FileServer, tmp_path: Path) -> None:
    first = fetch(served, tmp_path)
    second = fetch(served, tmp_path)

    assert (first["changed"], first["transferred_bytes"], first["resumed_from"]) == (True, len(CONTENT), 0)
    assert (tmp_path / "models/model.gguf").read_bytes() == CONTENT
    assert second["changed"] is False
    assert served.asked == [None]


def test_what_an_earlier_run_left_is_gone_on_with_and_said(served: file_server.FileServer, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/model.gguf.part").write_bytes(CONTENT[:1000])

    result = fetch(served, tmp_path)

    assert (result["resumed_from"], result["transferred_bytes"]) == (1000, len(CONTENT) - 1000)
    assert "reading the 0 MiB that are there" in (tmp_path / "run/progress").read_text()


def test_the_size_may_be_unknown(served: file_server.FileServer, tmp_path: Path) -> None:
    assert fetch(served, tmp_path, bytes=None)["changed"] is True


def test_check_mode_says_what_it_would_fetch_and_writes_nothing(served: file_server.FileServer, tmp_path: Path) -> None:
    result = fetch(served, tmp_path, check=True)

    assert result["changed"] is True
    assert result["msg"] == f"would fetch {served.url} to {tmp_path}/models/model.gguf"
    assert served.asked == []
    assert list(tmp_path.iterdir()) == []


def test_check_mode_of_what_is_there_is_no_change(served: file_server.FileServer, tmp_path: Path) -> None:
    fetch(served, tmp_path)

    assert fetch(served, tmp_path, check=True)["changed"] is False


def test_a_refusal_is_a_failure_with_its_reason(served: file_server.FileServer, tmp_path: Path) -> None:
    result = fetch(served, tmp_path, sha256="f" * 64)

    assert result["failed"] is True
    assert SHA256 in result["msg"] and "f" * 64 in result["msg"]
    assert "Traceback" not in result["msg"]


def test_a_place_that_cannot_be_written_is_a_failure_with_its_reason(
    served: file_server.FileServer, tmp_path: Path
) -> None:
    (tmp_path / "models").write_text("a file, not a folder")

    result = fetch(served, tmp_path)

    assert result["failed"] is True
    assert result["msg"].startswith(f"{tmp_path}/models/model.gguf: ")


def test_model_state_tells_what_is_missing(served: file_server.FileServer, tmp_path: Path) -> None:
    fetch(served, tmp_path)
    there = {"dest": str(tmp_path / "models/model.gguf"), "sha256": SHA256, "name": "there"}
    other = {**there, "sha256": "f" * 64, "name": "other"}
    absent = {**there, "dest": str(tmp_path / "models/absent.gguf"), "name": "absent"}

    result = run("model_state", files=[there, other, absent])
    assert (result["changed"], result["missing"]) == (False, [other, absent])

    os.utime(there["dest"])
    assert run("model_state", files=[there])["missing"] == [there]
