"""What was decided is served as it was measured, or refused: never another placement, which nobody has tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from checker import planning, site_plan, trial_plan
from checker.catalogue import InventoryError
from checker.tier import TierSpec

ROOT = Path(__file__).parents[2]
MODELS, ENGINES = planning.read_catalogues(ROOT)
PLACES = site_plan.Places(releases={"0c1e57098": "/releases/one"}, models="/models", keys="/keys")
Q4, Q7 = "deepseek-r1-distill-qwen-14b-q4_k_m", "deepseek-r1-distill-qwen-7b-q6_k"
ON_ONE_CARD = {"split_mode": "none", "n_gpu_layers": "auto"}


def reference() -> dict[str, Any]:
    """Return the reference host's words, whose tiers have the mission's candidates, as arguments of the planner."""
    (host,) = planning.read_inventory(ROOT, ROOT / "inventories/reference", "9-trials")
    return {
        "gpus": planning.with_placeholders(host.variables["gpus"]),
        "tiers": host.variables["tiers"],
        "models": MODELS,
        "engines": ENGINES,
        "engine": "0c1e57098",
        "backend": "cuda",
        "places": PLACES,
        "profile": {},
        "ram": host.variables["ram"],
    }


def tried(given: Mapping[str, Any], name: str, model: str, placement: Any) -> TierSpec:
    """Return what a trial runs of a candidate."""
    (found,) = [
        each
        for each in trial_plan.candidates(**given, only=name, known=(), limit_s=1800, depth="whole")
        if (each.model, each.placement) == (model, placement)
    ]
    assert found.spec
    return found.spec


def decision(**tiers: TierSpec) -> dict[str, Any]:
    """Return the decision for what was tried of some tiers."""
    written = {Q4: ON_ONE_CARD, Q7: {"split_mode": "none"}}
    return {
        "schema": "llama-tiers/decision/2",
        "host": "9-trials",
        "policy": "partial-offload",
        "acceptable_tokens_per_second": 10,
        "tiers": {
            name: {
                "model": spec.model.name,
                "placement": written.get(spec.model.name, "auto"),
                "because": "the only candidate that reaches what is asked for",
                "tokens_per_second": 12.2,
                "load_s": 20.0,
                "gpus": [device.gpu for device in spec.devices],
                "uuids": [device.uuid for device in spec.devices],
                "placed": asdict(spec.placement),
                "measured_at": "2026-11-24T15:00:00Z",
                "evidence": "ab" * 32,
            }
            for name, spec in tiers.items()
        },
    }


def served(given: Mapping[str, Any], **tiers: TierSpec) -> dict[str, TierSpec]:
    return {
        spec.name: spec for spec in site_plan.for_site(**given, decided=decision(**tiers), host_name="9-trials").specs
    }


def lies(spec: TierSpec) -> tuple[Any, ...]:
    return spec.model, spec.placement, spec.devices


def test_a_tier_on_demand_takes_its_turn_with_the_placement_that_was_measured() -> None:
    given = reference()
    measured = tried(given, "deep", Q4, ON_ONE_CARD)
    assert (measured.placement.n_gpu_layers, measured.devices[0].gpu) == (36, "NVIDIA GeForce RTX 3060 Ti")
    found = served(given, deep=measured)
    assert lies(found["deep"]) == lies(measured)
    assert "fast" in found["deep"].rivals


def test_what_is_proven_gives_way_to_what_was_measured_and_decided() -> None:
    given = reference()
    measured, auto = tried(given, "deep", Q4, ON_ONE_CARD), tried(given, "deep", Q4, "auto")
    assert lies(auto) != lies(measured)
    for before in (auto, measured):
        given["profile"] = {"proven": {"deep": replace(before, name="deep").to_json()}}
        assert lies(served(given, deep=measured)["deep"]) == lies(measured)


def test_pinned_tiers_whose_measured_placements_have_no_room_together_are_refused() -> None:
    given = reference()
    given["tiers"] = [{**each, "residency": "pinned"} for each in given["tiers"][:2]]
    measured = tried(given, "deep", Q4, ON_ONE_CARD)
    with pytest.raises(InventoryError) as caught:
        served(given, deep=measured)
    (said,) = caught.value.problems
    assert said.startswith("deep and fast cannot be resident together: RTX 3060 Ti needs")
    assert "`residency: on_demand`" in said
    assert said.endswith(
        "; deep is decided with the placement that was measured, and no other is served untried: one that leaves more "
        "room is a candidate of its own, to be written, tried and decided (`checker trial`, `checker decide`)"
    )


def test_what_has_no_room_any_more_is_refused_and_not_placed_otherwise() -> None:
    given = reference()
    measured = tried(given, "deep", Q4, ON_ONE_CARD)
    given["gpus"][0] |= {"margin_mib": 1500}
    with pytest.raises(InventoryError) as caught:
        served(given, deep=measured)
    (said,) = caught.value.problems
    assert said.startswith(f"deep: {Q4}, context 8,192, 36 layers on RTX 3060 Ti: RTX 3060 Ti needs ")
    assert "; it is decided with the placement that was measured" in said
    assert said.endswith("make room, or try and decide again (`checker trial`, `checker decide`)")


def test_a_tier_that_is_not_decided_is_planned_beside_one_that_is() -> None:
    given = reference()
    max_ = {**given["tiers"][2], "residency": "pinned", "candidates": [{"model": Q7, "placement": ON_ONE_CARD}]}
    given["tiers"] = [given["tiers"][1], max_]
    measured = tried(given, "fast", "qwen2.5-7b-instruct-abliterated-q6_k", "auto")
    found = served(given, fast=measured)
    assert lies(found["fast"]) == lies(measured)
    assert found["max"].devices[0].gpu == "NVIDIA GeForce GTX 1060 3GB"


def test_a_plan_of_other_words_is_no_plan_of_the_decision() -> None:
    given = reference()
    variables = {**given, "llama_cpp_engine": given["engine"]}
    variables["llama_tiers_decision"] = decision(deep=tried(given, "deep", Q4, ON_ONE_CARD))
    subject = planning.Subject("9-trials", variables, {})
    as_decided, other = (
        planning.make(subject, wishes, MODELS, ENGINES)["tiers"][0]
        for wishes in (planning.Wishes(tier="deep"), planning.Wishes(tier="deep", context=4096))
    )
    assert as_decided["placement"]["tensor_split"] == [36]
    assert other["model"] == Q4
    assert other["placement"]["ctx_size"] == 4096
    assert other["placement"]["tensor_split"] > [36]
