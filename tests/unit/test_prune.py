"""Which models nothing refers to: never what is served, what was served before, or what the inventory names."""

from __future__ import annotations

from pathlib import Path

import pytest

from checker import prune
from checker.prune import Served

OLD, NOW, LISTED, STRAY = "a" * 12, "b" * 12, "c" * 12, "d" * 12


@pytest.fixture
def models(tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    for name in (OLD, NOW, LISTED, STRAY, "somebody-elses"):
        (directory / name).mkdir(parents=True)
        (directory / name / "model.gguf").write_bytes(b"x" * 2**20)
    return directory


def test_only_what_nothing_refers_to_is_named_and_removed(models: Path) -> None:
    found = prune.unused(models, [LISTED], Served((NOW,), (OLD,)))
    assert [(each.path.name, each.mib) for each in found] == [(STRAY, 1)]
    prune.remove(found)
    assert {path.name for path in models.iterdir()} == {OLD, NOW, LISTED, "somebody-elses"}


def test_a_link_is_not_followed(models: Path) -> None:
    (models / ("e" * 12)).symlink_to(models / NOW)
    assert [each.path.name for each in prune.unused(models, [LISTED], Served((NOW,), (OLD,)))] == [STRAY]


def test_what_was_served_before_the_last_change_is_remembered(tmp_path: Path) -> None:
    memory = tmp_path / "served.json"
    for served in ([OLD], [NOW], [NOW], [NOW]):
        prune.write(memory, prune.read(memory).after(served))
    assert prune.read(memory) == Served((NOW,), (OLD,))
    assert prune.read(memory).after([LISTED]) == Served((LISTED,), (NOW,))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema": "llama-tiers/served/9", "now": [], "before": []}'])
def test_a_memory_that_is_none_is_empty(tmp_path: Path, content: str | None) -> None:
    memory = tmp_path / "served.json"
    if content is not None:
        memory.write_text(content)
    assert prune.read(memory) == Served((), ())


def test_no_folder_has_nothing_unused(tmp_path: Path) -> None:
    assert prune.unused(tmp_path / "none", [], Served((), ())) == ()
