"""The text of a catalogue: how a header is spelled, and changes that leave alone what people wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from checker import catalogue_file
from checker.catalogue_file import CatalogueFileError, changed, header_of, spelled
from checker.header import HeaderError

SHA256 = "0" * 64  # as a number of YAML it would be lost
HEADER: dict[str, Any] = {
    "architecture": "llama",
    "n_layer": 3,
    "n_ctx_train": 4096,
    "n_embd": 32,
    "n_vocab": 64,
    "n_head": 4,
    "head_kv": [2, 2, 1],
    "head_dim_k": 8,
    "head_dim_v": 8,
    "n_ff": 96,
    "layer_bytes": 1000,
    "output_bytes": 2000,
    "token_embd_bytes": 3000,
    "tied": True,
}
CATALOGUE = """\
---
# What people wrote.
models:
  first:  # a name
    note: "quoted: yes"
    file: first.gguf  # on the hub
    # why this one
    sha256: abc
    huggingface: {repository: o/r}

    # of the header
    header:
      # inside
      n_layer: 3
      layer_bytes: [1,
        2, 3]

  # of the second
  second:
    file: second.gguf
  third:
    url: https://host/third.gguf
    file: third.gguf
# the end
"""


def comments(text: str) -> list[str]:
    return [line[line.index("#") :] for line in text.splitlines() if "#" in line]


def test_one_number_stands_for_all_layers() -> None:
    header = header_of(HEADER)
    assert header.layer_bytes == (1000, 1000, 1000)
    assert header.head_kv == (2, 2, 1)
    assert (header.expert_bytes, header.sliding, header.n_swa) == ((0, 0, 0), (False, False, False), 0)


def test_a_header_is_spelled_as_it_is_read() -> None:
    assert spelled(header_of(HEADER)).items() >= HEADER.items()
    header = header_of(HEADER)
    assert header_of(spelled(header)) == header_of(header.to_json()) == header


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("n_layer", 0, "n_layer is 0, expected a whole number from 1 to"),
        ("n_layer", 2**63, "n_layer is 9223372036854775808, expected a whole number from 1 to"),
        ("n_layer", "3", "n_layer is '3', expected a whole number"),
        ("n_layer", True, "n_layer is True, expected a whole number"),
        ("n_embd", -1, "n_embd is '-1', expected a whole number from 0 on"),
        ("n_embd", 1.5, "n_embd is '1.5', expected a whole number"),
        ("n_embd", None, "n_embd is 'None', expected a whole number"),
        ("output_bytes", 2**63, "output_bytes is '9223372036854775808', expected a whole number"),
        ("layer_bytes", [1, 2], "layer_bytes has 2 entries, expected one for each of 3 layers"),
        ("layer_bytes", [1, 2, "x"], "layer_bytes is .* expected a whole number from 0 on, or one for each layer"),
        ("layer_bytes", {"a": 1}, "layer_bytes is .* expected a whole number"),
        ("sliding", 1, "sliding is .* expected true or false, or one for each layer"),
        ("tied", "yes", "tied is 'yes', expected true or false"),
        ("architecture", "", "architecture is '', expected a word"),
        ("architecture", 5, "architecture is '5', expected a word"),
        ("n_head", "many", "n_head is .* expected a whole number"),
        ("layers", 3, "layers.* known keys: architecture"),
    ],
)
def test_what_is_no_header_is_named(key: str, value: Any, said: str) -> None:
    with pytest.raises(HeaderError, match=said):
        header_of(HEADER | {key: value}, "model x: header")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(HeaderError, match="n_embd"):
        header_of({key: value for key, value in HEADER.items() if key != "n_embd"})


def test_a_change_leaves_the_rest_as_it_was() -> None:
    parts = [{"file": "a", "sha256": SHA256, "bytes": 1}, {"file": "b", "sha256": SHA256, "bytes": 2}]
    changes = {
        "first": {"sha256": SHA256, "bytes": 5, "header": HEADER | {"layer_bytes": list(range(10**8, 10**8 + 60))}},
        "second": {"sha256": SHA256, "parts": parts},
        "third": {"header_derived": {"tolerance": 0.001}, "header": HEADER},
    }
    text = changed(CATALOGUE, changes, "models.yml")

    models = yaml.safe_load(text)["models"]
    for name, keys in changes.items():
        assert models[name] == yaml.safe_load(CATALOGUE)["models"][name] | keys
    # Only the comment inside what was replaced is gone.
    assert comments(text) == [comment for comment in comments(CATALOGUE) if comment != "# inside"]
    assert all(len(line) <= 120 for line in text.splitlines())
    kept = [line for line in CATALOGUE.splitlines() if "first.gguf" in line or "quoted" in line or "url" in line]
    assert all(line in text.splitlines() for line in kept)
    assert list(models["first"]) == ["note", "file", "sha256", "bytes", "huggingface", "header"]


def test_a_change_that_changes_nothing_keeps_every_letter() -> None:
    assert changed(CATALOGUE, {"first": {"sha256": "abc"}, "second": {}}, "models.yml") == CATALOGUE


def test_a_key_can_be_taken_out() -> None:
    text = changed(CATALOGUE, {"first": {"header": None, "sha256": None, "bytes": None}}, "models.yml")
    assert set(yaml.safe_load(text)["models"]["first"]) == {"note", "file", "huggingface"}
    assert "layer_bytes" not in text


def test_the_last_line_may_lack_its_end() -> None:
    text = "models:\n  a:\n    file: x"
    assert changed(text, {"a": {"bytes": 5}}, "models.yml") == "models:\n  a:\n    file: x\n    bytes: 5"
    assert changed(f"{text}\n    bytes: 5", {"a": {"bytes": None}}, "models.yml") == f"{text}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models:\n  a: {file: x}\n", r"model a \(line 2\) must have each of its keys on a line of its own"),
        ("models:\n  a: &b\n    file: x\n  c:\n    <<: *b\n", "cannot be changed|each of its keys"),
        ("models: []\n", "has no `models:`"),
        ("", "has no `models:`"),
        ("models: {a: [}\n", r"models\.yml:1:14 is no YAML: while parsing a flow node, "),
    ],
)
def test_a_text_that_cannot_be_changed_is_refused(text: str, said: str) -> None:
    models = {"c" if "<<" in text else "a": {"bytes": 5, "file": "y"}}
    try:
        after = changed(text, models, "models.yml")
    except CatalogueFileError as error:
        import re

        assert re.search(said, str(error)), error
        assert str(error).startswith("models.yml")
    else:
        assert yaml.safe_load(after)["models"]["c"]["bytes"] == 5


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.sampled_from(["first", "second", "third"]),
        st.fixed_dictionaries(
            {},
            optional={
                "sha256": st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
                "bytes": st.none() | st.integers(1, 2**62),
                "header_derived": st.none() | st.just({"tolerance": 0.001}),
                "header": st.none()
                | st.builds(
                    lambda sizes: HEADER | {"n_layer": len(sizes), "layer_bytes": sizes},
                    st.lists(st.integers(0, 2**50), min_size=1, max_size=80),
                ),
            },
        ),
    )
)
def test_any_change_is_what_is_read_afterwards(changes: dict[str, dict[str, Any]]) -> None:
    text = changed(CATALOGUE, changes, "models.yml")
    models = yaml.safe_load(text)["models"]
    for name, keys in changes.items():
        for key, value in keys.items():
            assert models[name].get(key) == value
    outside = [comment for comment in comments(CATALOGUE) if comment not in ("# inside", "# of the header")]
    assert [comment for comment in comments(text) if comment in outside] == outside
    assert changed(text, changes, "models.yml") == text


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "models.yml"
    path.write_text(CATALOGUE, encoding="utf-8")
    path.chmod(0o640)
    catalogue_file.write(path, "models: {}\n")
    assert path.read_text(encoding="utf-8") == "models: {}\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["models.yml"]


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogueFileError, match=r"absent\.yml cannot be read: No such file"):
        catalogue_file.read(tmp_path / "absent.yml")
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CatalogueFileError, match=r"binary\.yml cannot be read"):
        catalogue_file.read(tmp_path / "binary.yml")
    with pytest.raises(CatalogueFileError, match="cannot be written"):
        catalogue_file.write(tmp_path / "folder" / "models.yml", "")


@pytest.mark.parametrize("value", ["{{ lookup('pipe', 'id') }}", "{% for x in y %}", "{# #}"])
def test_what_ansible_would_run_as_a_template_is_refused(value: str) -> None:
    text = "models:\n  tiny:\n    file: tiny.gguf\n"
    with pytest.raises(CatalogueFileError, match="no plain text but a template"):
        changed(text, {"tiny": {"header": {"architecture": value}}}, "models.yml")
    with pytest.raises(CatalogueFileError, match="no plain text but a template"):
        changed(text, {"tiny": {"header": {"block_bytes": {value: 1}}}}, "models.yml")
