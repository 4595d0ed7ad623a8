"""Which models and releases nothing refers to: never what is served, was served before, or what the inventory needs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fake_tier import spec

from checker import prune
from checker.prune import Served

OLD, NOW, LISTED, STRAY = "a" * 12, "b" * 12, "c" * 12, "d" * 12
OURS = "[0-9a-f]{12}"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    for name in (OLD, NOW, LISTED, STRAY, "somebody-elses"):
        (directory / name).mkdir(parents=True)
        (directory / name / "model.gguf").write_bytes(b"x" * 2**20)
    return directory


def test_only_what_nothing_refers_to_is_named_and_removed(models: Path) -> None:
    found = prune.unused(prune.folders(models, OURS), {LISTED, NOW, OLD})
    assert [(each.path.name, each.mib) for each in found] == [(STRAY, 1)]
    prune.remove(found)
    assert {path.name for path in models.iterdir()} == {OLD, NOW, LISTED, "somebody-elses"}


def test_the_newest_folder_comes_first_and_a_link_is_none(models: Path) -> None:
    (models / ("e" * 12)).symlink_to(models / NOW)
    for age, name in enumerate((STRAY, OLD, LISTED, NOW)):
        os.utime(models / name, (10**9 - age, 10**9 - age))
    assert [path.name for path in prune.folders(models, OURS)] == [STRAY, OLD, LISTED, NOW]


def test_what_a_link_beside_the_folder_points_at_is_referred_to(tmp_path: Path) -> None:
    directory = tmp_path / "releases"
    (directory / "one").mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/one")
    (tmp_path / "previous").symlink_to(directory / "gone")
    (tmp_path / "other").symlink_to("/opt/elsewhere/three")
    assert prune.linked(directory) == {"one", "gone"}


def test_a_tier_needs_the_folders_of_its_model_and_its_release(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text(json.dumps(spec().to_json()))
    assert prune.needed([path]) == {
        "models": {Path(spec().model.file).parent.name},
        "releases": {Path(spec().engine.release).name},
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"file": 7}, "engine": {"release": "/r"}}', '{"model": {}}'])
def test_a_spec_that_does_not_tell_what_it_needs_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "deep.json"
    path.write_text(content)
    with pytest.raises(prune.PruneError, match=r"deep\.json does not tell which model and release it needs"):
        prune.needed([path])


def remember(memory: Path, model: str, release: str) -> None:
    served = prune.after(prune.read(memory), {"models": {model}, "releases": {release}})
    prune.write(memory, served)


def test_what_was_served_before_the_last_change_is_remembered(tmp_path: Path) -> None:
    memory = tmp_path / "served.json"
    for model in (OLD, NOW, NOW, NOW):
        remember(memory, model, "one")
    assert prune.read(memory) == {"models": Served((NOW,), (OLD,)), "releases": Served(("one",), ())}
    remember(memory, LISTED, "one")
    assert prune.read(memory)["models"] == Served((LISTED,), (NOW,))


def test_a_change_of_one_kind_is_no_step_of_the_other(tmp_path: Path) -> None:
    memory = tmp_path / "served.json"
    for model, release in ((OLD, "one"), (NOW, "one"), (NOW, "two"), (NOW, "two")):
        remember(memory, model, release)
    assert prune.read(memory) == {"models": Served((NOW,), (OLD,)), "releases": Served(("two",), ("one",))}


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[]",
        '{"schema": "llama-tiers/served/9", "models": {"now": [], "before": []}}',
        '{"schema": "llama-tiers/served/2", "models": {"now": ["a"], "before": []}, "releases": {}}',
    ],
)
def test_a_memory_that_is_none_is_empty(tmp_path: Path, content: str | None) -> None:
    memory = tmp_path / "served.json"
    if content is not None:
        memory.write_text(content)
    assert prune.read(memory) == {"models": Served(), "releases": Served()}


def test_no_folder_has_nothing_unused(tmp_path: Path) -> None:
    assert prune.folders(tmp_path / "none", OURS) == ()
    assert prune.linked(tmp_path / "none" / "models") == set()
