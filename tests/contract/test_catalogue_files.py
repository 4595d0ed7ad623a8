"""The catalogues and inventories that ship are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from checker.catalogue import EngineFlags, ModelEntry, check_inventory
from checker.policies import parse

ROOT = Path(__file__).parents[2]


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


MODELS = load("catalogue/models.yml")["models"]
ENGINES = load("catalogue/engines.yml")["engines"]


def test_every_model_is_well_formed() -> None:
    for entry in MODELS.values():
        model = ModelEntry.model_validate(entry)
        if model.header.layer_bytes is not None:
            assert len(model.header.layer_bytes) == model.header.n_layer


def test_every_engine_says_how_it_spells_its_flags() -> None:
    for name, entry in ENGINES.items():
        EngineFlags.model_validate(entry["flags"])
        assert entry["commit"].startswith(name)


def test_the_policies_are_right_and_know_the_tiers_of_the_reference_host() -> None:
    policies = parse(load("catalogue/policies.yml"), "policies.yml")
    hosts = load("inventories/reference/hosts.yml")["gpu_hosts"]["hosts"]
    tiers = {tier["name"] for tier in hosts["9-trials"]["tiers"]}
    assert {name for policy in policies.policies.values() for name in policy.tiers} == tiers


def test_every_model_of_the_reference_hosts_trials_has_a_published_figure_and_its_source() -> None:
    hosts = load("inventories/reference/hosts.yml")["gpu_hosts"]["hosts"]
    named = {each["model"] for tier in hosts["9-trials"]["tiers"] for each in tier["candidates"]}
    for name in named:
        published = ModelEntry.model_validate(MODELS[name]).published
        assert published and published.source, name


def words_of(*files: str) -> dict[str, Any]:
    words: dict[str, Any] = {}
    for file in files:
        words.update(load(file))
    return words


def problems_in(words: dict[str, Any]) -> list[str]:
    return check_inventory(
        words["gpus"], words["tiers"], MODELS, ENGINES, words["llama_cpp_engine"], words["llama_cpp_backend"]
    )


def test_the_lab_inventory_is_right() -> None:
    assert problems_in(words_of("inventories/lab/group_vars/gpu_hosts/main.yml")) == []


@pytest.mark.parametrize("host", ["tower", "workbench"])
def test_the_production_inventory_wants_nothing_but_the_uuids(host: str) -> None:
    words = words_of(
        "inventories/production/group_vars/gpu_hosts/main.yml", f"inventories/production/host_vars/{host}/main.yml"
    )
    assert any("edit-me" in problem for problem in problems_in(words))
    for index, gpu in enumerate(words["gpus"]):
        gpu["uuid"] = f"GPU-00000000-0000-4000-8000-{index:012}"
    assert problems_in(words) == []
