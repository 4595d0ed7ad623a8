"""The catalogues and inventories that ship are right."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from checker import decision, planning, trial
from checker.catalogue import EngineFlags, ModelEntry, check_inventory
from checker.decision import Contender, Figures, Published
from checker.policies import parse
from checker.tier import Placement

ROOT = Path(__file__).parents[2]


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


MODELS = load("catalogue/models.yml")["models"]
ENGINES = load("catalogue/engines.yml")["engines"]
POLICIES = parse(load("catalogue/policies.yml"), "policies.yml")


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
    hosts = load("inventories/reference/hosts.yml")["gpu_hosts"]["hosts"]
    tiers = {tier["name"] for tier in hosts["9-trials"]["tiers"]}
    assert {name for policy in POLICIES.policies.values() for name in policy.tiers} == tiers


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


@cache
def as_planned() -> dict[str, list[Contender]]:
    """Return the production host's candidates by tier, as if each was measured as planned and loaded at once."""
    (tower,) = planning.subjects(ROOT, str(ROOT / "inventories/production"), "tower", None)
    return {
        tier["name"]: [as_measured(tower, tier, candidate) for candidate in tier["candidates"]]
        for tier in tower.variables["tiers"]
    }


def as_measured(tower: planning.Subject, tier: dict[str, Any], candidate: dict[str, Any]) -> Contender:
    alone = {**tier, "candidates": [candidate], "fallback": None}
    subject = replace(tower, variables={**tower.variables, "tiers": [alone]})
    (planned,) = planning.make(subject, planning.Wishes(), MODELS, ENGINES)["tiers"]
    published = Published(None, None, 1.0)
    if planned["verdict"] != "fits":
        return Contender(
            candidate["model"], candidate["placement"], published, trial.INFEASIBLE, None, (planned["reason"],)
        )
    placement = Placement(**{each.name: planned["placement"][each.name] for each in fields(Placement)})
    cards = tuple(device["gpu"] for device in planned["devices"])
    figures = Figures(
        tokens_per_second=planned["tokens_per_second"]["expected"],
        load_s=0.0,
        cpu_layers=ModelEntry.model_validate(MODELS[candidate["model"]]).header.n_layer + 1 - placement.n_gpu_layers,
        gpus=cards,
        uuids=cards,
        placed=placement,
        measured_at="2026-11-24T15:00:00Z",
        evidence="e" * 64,
    )
    return Contender(candidate["model"], candidate["placement"], published, trial.MEASURED, figures, ())


@pytest.mark.parametrize("policy", POLICIES.policies)
def test_each_policy_finds_its_candidates_in_the_production_inventory(policy: str) -> None:
    """As far as a plan can know: they reach what it asks of cards, layers on the CPU and speed."""
    made = decision.decide("tower", as_planned(), POLICIES, policy, POLICIES.acceptable_tokens_per_second)
    assert made.steps[0].applies, made.steps[0].reason


def test_cards_that_are_too_slow_together_leave_the_production_host_a_choice() -> None:
    slow = {
        name: [
            replace(each, figures=replace(each.figures, tokens_per_second=6.0))
            if each.figures and len(each.figures.gpus) > 1
            else each
            for each in contenders
        ]
        for name, contenders in as_planned().items()
    }
    made = decision.decide("tower", slow, POLICIES, POLICIES.first, POLICIES.acceptable_tokens_per_second)
    assert made.step and made.step.policy == "single-gpu"
    chosen = {each.name: each.chosen.contender.model for each in made.step.choices if each.chosen}
    assert chosen["deep"] == "deepseek-r1-distill-qwen-7b-q6_k"
