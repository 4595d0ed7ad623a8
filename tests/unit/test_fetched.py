"""What is remembered of a fetched file, and which files of a model are not what was fetched."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import fake_tier
import pytest

from checker import fetched
from checker.measure import strange_files
from checker.tier import Model, TierSpec

SHA256 = "ab" * 32


def serving(file: Path, sha256: str = SHA256) -> TierSpec:
    return replace(fake_tier.spec(), model=Model("tiny", str(file), sha256))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF one")
    fetched.remember(file, SHA256)
    return file


def test_what_was_verified_is_known_until_the_file_is_touched(model: Path) -> None:
    assert fetched.sha256_of(model) == SHA256
    assert strange_files(serving(model)) == ()
    assert strange_files(serving(model, "cd" * 32)) == (str(model),), "it was verified to be another"


def test_another_file_in_its_place_is_strange(model: Path) -> None:
    other = model.with_name("other.gguf")
    other.write_bytes(b"GGUF two")
    os.utime(other, ns=(1, 1))
    other.replace(model)
    assert strange_files(serving(model)) == (str(model),)
    model.unlink()
    assert strange_files(serving(model)) == (str(model),)


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"sha256": "abab"}'])
def test_a_damaged_record_verifies_nothing(model: Path, record: str) -> None:
    model.with_name("tiny.gguf.verified").write_text(record)
    assert fetched.sha256_of(model) is None


def test_each_part_of_a_model_is_looked_at(tmp_path: Path) -> None:
    parts = [tmp_path / f"big-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, part in enumerate(parts):
        part.write_bytes(b"GGUF")
        fetched.remember(part, str(number) * 64)
    assert strange_files(serving(parts[0], "")) == ()
    parts[1].write_bytes(b"GGUF, another")
    assert strange_files(serving(parts[0], "")) == (str(parts[1]),)
