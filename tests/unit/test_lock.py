"""`checker lock` against a server that plays the hub: what it finds, what it writes, what it leaves alone."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import small_gguf
import yaml
from hub_server import HubServer, Served

from checker import catalogue_file, cli
from checker.catalogue import ModelEntry
from checker.gguf import read_header
from checker.lock import Found, FoundFile, compare, urls

SCHEMA = Path(__file__).parents[2] / "docs/schemas/lock.schema.json"
A, B = "aa" * 32, "bb" * 32
CATALOGUE = """\
---
# People wrote this.
models:
  # A small one.
  small:
    note: Of no use.
    file: model.gguf
    huggingface: {repository: o/r}  # the publisher

  split:
    file: Q8_0/split-00001-of-00003.gguf
    huggingface: {repository: o/split, revision: v1}

  plain:
    file: plain.gguf
    url: URL/plain.gguf
"""


@pytest.fixture
def catalogue(server: HubServer, tmp_path: Path) -> Path:
    path = tmp_path / "models.yml"
    path.write_text(CATALOGUE.replace("URL", server.url), encoding="utf-8")
    return path


def on_hub(server: HubServer, path: str, content: bytes, sha256: str, size: int = 9 * 10**9) -> None:
    """Serve a file as the hub does: from another host, after a redirect that says what it is."""
    storage = f"/storage/{len(server.files)}"
    server.files[path] = Served(content, size, sha256=sha256, location=f"{server.other_host}{storage}?signed=1")
    server.files[storage] = Served(content, size)


def everything(server: HubServer, model: Path, tmp_path: Path) -> None:
    on_hub(server, "/o/r/resolve/main/model.gguf", model.read_bytes(), A)
    (tmp_path / "parts").mkdir()
    for number, part in enumerate(small_gguf.write(tmp_path / "parts" / "split.gguf", tensors_per_part=5)):
        on_hub(server, f"/o/split/resolve/v1/Q8_0/{part.name}", part.read_bytes(), f"{number}c" * 32, 10**9 + number)
    server.files["/plain.gguf"] = Served(model.read_bytes(), etag='"1-2"')


def as_json(capsys: pytest.CaptureFixture[str]) -> Any:
    document = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(document)
    return document


def run(catalogue: Path, *arguments: str) -> int:
    return cli.main(["lock", "--catalogue", str(catalogue), *arguments])


def entries(catalogue: Path) -> dict[str, Any]:
    models: dict[str, Any] = yaml.safe_load(catalogue.read_text(encoding="utf-8"))["models"]
    return models


def test_all_that_the_hub_knows_is_written(
    server: HubServer, model: Path, catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything(server, model, tmp_path)
    header = catalogue_file.spelled(read_header(model))

    assert run(catalogue, "small", "split") == 0

    written = entries(catalogue)
    assert written["small"] == {
        "note": "Of no use.",
        "file": "model.gguf",
        "sha256": A,
        "bytes": 9 * 10**9,
        "huggingface": {"repository": "o/r"},
        "header": header,
    }
    assert written["split"]["parts"] == [
        {"file": f"Q8_0/split-0000{number + 1}-of-00003.gguf", "sha256": f"{number}c" * 32, "bytes": 10**9 + number}
        for number in range(3)
    ]
    assert written["split"]["header"] == header
    assert "sha256" not in written["split"]
    assert written["plain"] == {"file": "plain.gguf", "url": f"{server.url}/plain.gguf"}
    for entry in written.values():
        ModelEntry.model_validate(entry)
    text = catalogue.read_text(encoding="utf-8")
    assert all(comment in text for comment in ("# People wrote this.", "# A small one.", "  # the publisher"))
    shown = capsys.readouterr().out
    assert "aaaaaaaaaaaa" in shown
    assert "9,000,000,000" in shown


def test_a_second_time_nothing_is_written_and_no_byte_is_read(
    server: HubServer, model: Path, catalogue: Path, tmp_path: Path
) -> None:
    everything(server, model, tmp_path)
    run(catalogue, "small", "split")
    before = catalogue.read_bytes(), catalogue.stat().st_mtime_ns
    server.asked.clear()

    assert run(catalogue, "small", "split") == 0

    assert (catalogue.read_bytes(), catalogue.stat().st_mtime_ns) == before
    assert server.methods() == ["HEAD"] * 4


def test_the_result_is_there_for_programs(
    server: HubServer, model: Path, catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything(server, model, tmp_path)
    assert run(catalogue, "small", "--format", "json") == 0
    assert as_json(capsys) == {
        "schema": "llama-tiers/lock/1",
        "catalogue": str(catalogue),
        "models": [
            {
                "name": "small",
                "status": "locked",
                "source": f"{server.url}/o/r/resolve/main/model.gguf",
                "sha256": A,
                "bytes": 9 * 10**9,
                "header": "read",
                "changes": ["bytes", "header", "sha256"],
                "reason": None,
            }
        ],
    }


def test_a_plain_server_does_not_tell_the_sha256(
    server: HubServer, model: Path, catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything(server, model, tmp_path)
    assert run(catalogue) == 1
    assert f"plain: sha256 is not known: {server.url}/plain.gguf does not tell" in capsys.readouterr().out
    written = entries(catalogue)
    assert (set(written["plain"]), written["plain"]["bytes"]) == (
        {"file", "url", "bytes", "header"},
        model.stat().st_size,
    )
    assert written["small"]["sha256"] == A


@pytest.mark.parametrize("line", [f"sha256: {B}", "bytes: 7"])
def test_another_file_than_the_catalogue_says_is_not_taken(
    server: HubServer,
    model: Path,
    catalogue: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
) -> None:
    everything(server, model, tmp_path)
    text = catalogue.read_text(encoding="utf-8").replace("file: model.gguf", f"file: model.gguf\n    {line}")
    catalogue.write_text(text, encoding="utf-8")

    assert run(catalogue, "small") == 1

    assert catalogue.read_text(encoding="utf-8") == text
    shown = capsys.readouterr().out
    assert f"small: model.gguf is another file: the catalogue has {line.replace(':', '')}" in shown


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1.0, "the derived header was off by 0.00% of the weights, within its 0.1%"),
        (1.01, "the derived header was off by 0.7[0-9]% of the weights, beyond its 0.1%: plan again"),
    ],
)
def test_a_derived_header_gives_way_to_the_real_one(
    server: HubServer,
    model: Path,
    catalogue: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    factor: float,
    said: str,
) -> None:
    everything(server, model, tmp_path)
    real = catalogue_file.spelled(read_header(model))
    derived = real | {"layer_bytes": int(real["layer_bytes"] * factor), "n_ctx_train": 5000}
    changes = {"small": {"header_derived": {"tolerance": 0.001}, "header": derived}}
    text = catalogue_file.changed(catalogue.read_text(encoding="utf-8"), changes, "models.yml")
    catalogue.write_text(text, encoding="utf-8")

    assert run(catalogue, "small") == 0

    written = entries(catalogue)["small"]
    assert "header_derived" not in written
    assert written["header"] == real
    assert re.search(said, capsys.readouterr().out)


def test_what_cannot_be_asked_does_not_keep_the_others_from_being_written(
    server: HubServer, model: Path, catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything(server, model, tmp_path)
    del server.files["/o/split/resolve/v1/Q8_0/split-00002-of-00003.gguf"]
    server.files["/plain.gguf"] = Served(b"<html>Sign in</html>", content_type="text/html", ranges=False)

    assert run(catalogue) == 2

    shown = capsys.readouterr().out
    assert f"split: {server.url}/o/split/resolve/v1/Q8_0/split-00002-of-00003.gguf answers 404" in shown
    assert "plain: " in shown
    assert "is no GGUF" in shown
    written = entries(catalogue)
    assert written["small"]["sha256"] == A
    assert set(written["split"]) == {"file", "huggingface"}


def test_a_gated_model_says_what_to_do(server: HubServer, catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["/o/r/resolve/main/model.gguf"] = Served(b"", token="needed")
    assert run(catalogue, "small") == 2
    assert "gated or private" in (shown := capsys.readouterr().out)
    assert "set HF_TOKEN" in shown


def test_every_status_fits_the_schema(
    server: HubServer, model: Path, catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything(server, model, tmp_path)
    run(catalogue, "small")
    text = catalogue.read_text(encoding="utf-8")
    more = "\n".join(
        [
            f"  other:\n    file: model.gguf\n    sha256: {B}\n    huggingface: {{repository: o/r}}",
            "  absent:\n    file: absent.gguf\n    huggingface: {repository: o/r}\n",
        ]
    )
    catalogue.write_text(text + more, encoding="utf-8")
    capsys.readouterr()

    assert run(catalogue, "--format", "json") == 2

    assert {entry["name"]: entry["status"] for entry in as_json(capsys)["models"]} == {
        "small": "unchanged",
        "split": "locked",
        "plain": "incomplete",
        "other": "differs",
        "absent": "failed",
    }


# --- from a file ---


def test_a_local_file_is_hashed_and_read(
    server: HubServer, model: Path, catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(catalogue, "small", "--file", str(model)) == 0
    written = entries(catalogue)["small"]
    assert written["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert written["bytes"] == model.stat().st_size
    assert written["header"] == catalogue_file.spelled(read_header(model))
    assert written["file"] == "model.gguf"
    assert server.asked == []


def test_local_parts_are_all_hashed(server: HubServer, catalogue: Path, tmp_path: Path) -> None:
    parts = small_gguf.write(tmp_path / "mine.gguf", tensors_per_part=5)
    assert run(catalogue, "split", "--file", str(parts[1])) == 0
    assert entries(catalogue)["split"]["parts"] == [
        {
            "file": f"Q8_0/split-0000{number + 1}-of-00003.gguf",
            "sha256": hashlib.sha256(part.read_bytes()).hexdigest(),
            "bytes": part.stat().st_size,
        }
        for number, part in enumerate(parts)
    ]


def test_a_local_model_in_another_number_of_files_is_another_one(
    server: HubServer, model: Path, catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = small_gguf.write(tmp_path / "mine.gguf", tensors_per_part=5)
    assert run(catalogue, "small", "--file", str(parts[0])) == 1
    assert "the catalogue's model is 1 file(s)" in capsys.readouterr().out


def test_a_local_file_that_is_another_one_is_not_taken(
    server: HubServer, model: Path, catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = catalogue.read_text(encoding="utf-8").replace("file: model.gguf", f"file: model.gguf\n    sha256: {B}")
    catalogue.write_text(text, encoding="utf-8")
    assert run(catalogue, "small", "--file", str(model)) == 1
    assert f"the catalogue has sha256 {B}" in capsys.readouterr().out


def test_a_local_file_that_is_no_gguf_is_an_error(
    server: HubServer, catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.gguf"
    other.write_text("<html>", encoding="utf-8")
    assert run(catalogue, "small", "--file", str(other)) == 2
    assert "it is no GGUF: it begins with '<html>'" in capsys.readouterr().out


# --- what cannot be run ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smal"], "has no model smal; it has: plain, small, split"),
        (["small", "split", "--file", "x.gguf"], "--file is the file of one model"),
        (["--file", "x.gguf"], "--file is the file of one model"),
    ],
)
def test_what_is_asked_wrongly_is_said(
    catalogue: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(catalogue, *arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [", "is no YAML"),
        ("models:\n  a:\n    file: x\n    sha: y\n", "model a: sha is not a known key"),
        ("models:\n  a:\n    file: x\n    header: {n_layer: 0}\n", "model a: header"),
    ],
)
def test_a_catalogue_that_is_wrong_is_said(
    catalogue: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    catalogue.write_text(text, encoding="utf-8")
    assert run(catalogue) == 2
    assert said in capsys.readouterr().err


def test_a_catalogue_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "absent.yml") == 2
    assert "absent.yml cannot be read" in capsys.readouterr().err


# --- the comparison itself ---


def entry(**words: Any) -> ModelEntry:
    return ModelEntry.model_validate({"file": "m.gguf"} | words)


def test_a_model_without_a_source_is_complete_or_says_what_is_missing(model: Path) -> None:
    header = catalogue_file.spelled(read_header(model))
    assert compare("m", entry(sha256=A, bytes=5, header=header), None).status == "unchanged"
    outcome = compare("m", entry(bytes=5), None)
    assert outcome.status == "incomplete"
    assert outcome.reason == "the catalogue names no source, and sha256 and the file's header are not known"


def test_addresses_are_those_from_which_the_hosts_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/")
    at_hub = {"huggingface": {"repository": "o/r"}}
    split = "Q8_0/m-00001-of-00002.gguf"
    assert urls(entry()) == []
    assert urls(entry(**at_hub)) == ["https://hub.example/o/r/resolve/main/m.gguf"]
    assert urls(entry(url="https://host/a/other.gguf?x=1", **at_hub)) == ["https://host/a/other.gguf?x=1"]
    assert urls(entry(**{"file": split, **at_hub}))[1] == (
        "https://hub.example/o/r/resolve/main/Q8_0/m-00002-of-00002.gguf"
    )
    assert urls(entry(file=split, url="https://host/a/m-00001-of-00002.gguf?x=1")) == [
        "https://host/a/m-00001-of-00002.gguf",
        "https://host/a/m-00002-of-00002.gguf",
    ]
    parts = [{"file": name, "sha256": A, "bytes": 1} for name in ("one.gguf", "two.gguf")]
    assert urls(entry(parts=parts, url="https://host/a/one.gguf"))[1] == "https://host/a/two.gguf"


def test_another_number_of_parts_is_another_model() -> None:
    parts = [{"file": f"m-0000{number}-of-00002.gguf", "sha256": A, "bytes": 1} for number in (1, 2)]
    outcome = compare("m", entry(parts=parts), Found("there", (FoundFile("m.gguf", A, 1),), None))
    assert (outcome.status, outcome.changes) == ("differs", {})
    assert outcome.reason == "the catalogue's model is 2 file(s), there is 1: another model"


def test_what_the_catalogue_knows_and_the_server_does_not_tell_is_kept() -> None:
    outcome = compare("m", entry(sha256=A), Found("there", (FoundFile("m.gguf", None, 5),), None))
    assert (outcome.sha256, outcome.bytes, outcome.changes) == (A, 5, {"bytes": 5})
