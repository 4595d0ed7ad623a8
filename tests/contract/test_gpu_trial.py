"""The trials of tests/gpu are those of the reference host: on other cards the same candidates have room."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))

import record
import synthesize
import trial

from checker import planning, site_plan, trial_plan
from checker.cards import Card, card
from checker.catalogue import GpuEntry

ROOT = Path(__file__).parents[2]
PUBLISHED, ENGINES = planning.read_catalogues(ROOT)
FIT = json.loads((ROOT / "docs/evidence/gpu/2x-nvidia-h200/fit.json").read_text(encoding="utf-8"))
WRITTEN = [
    {"name": synthesize.name_of(name), "file": f"{synthesize.name_of(name)}.gguf", "bytes": 1, "sha256": "ab" * 32}
    for name in (*synthesize.SERVED, *synthesize.MEASURED, *synthesize.TRIED)
]
MODELS = trial.catalogue(PUBLISHED, WRITTEN)


def mine(count: int) -> tuple[Card, ...]:
    """Return cards of a machine as the planner sees them when nobody holds anything."""
    return tuple(card(GpuEntry(name=each["name"], uuid=each["uuid"]), each) for each in FIT["cards"][:count])


def profile(free_mib: dict[str, int], more_mib: int = 0) -> dict[str, Any]:
    """Return what is read on a machine whose cards have so much more memory, and are held but for what is free."""
    gpus = [
        {**each, "total_mib": each["total_mib"] + more_mib, "used_mib": each["total_mib"] + more_mib - mib}
        for each in FIT["cards"]
        if (mib := free_mib.get(each["uuid"]))
    ]
    return {"gpus": gpus, "tiers_mib": dict.fromkeys(free_mib, 0), "driver": {"version": FIT["driver"]}}


def has_room(
    variables: dict[str, Any], known: dict[str, Any], models: dict[str, Any]
) -> dict[tuple[str, str, str], bool]:
    """Say by tier, model as it is published and placement what has room."""
    places = site_plan.Places(releases={"0c1e57098": "/releases/one"}, models="/models", keys="/keys")
    found = trial_plan.candidates(
        variables["gpus"], variables["tiers"], models, ENGINES, "0c1e57098", "cuda", places, known,
        variables.get("ram", {}), None, (), 1800, "whole",
    )  # fmt: skip
    return {
        (each.tier, each.model.removeprefix(synthesize.PREFIX), str(each.placement)): each.spec is not None
        for each in found
    }


def reference() -> dict[tuple[str, str, str], bool]:
    (host,) = planning.read_inventory(ROOT, ROOT / "inventories/reference", "9-trials")
    variables = {**host.variables, "gpus": planning.with_placeholders(host.variables["gpus"])}
    return has_room(variables, {}, PUBLISHED)


# What others hold is taken in steps of 64 MiB.
@pytest.mark.parametrize("more_mib", range(0, 64, 3))
def test_on_two_held_cards_has_room_what_has_room_on_the_reference_host(more_mib: int) -> None:
    wanted = {key: room for key, room in reference().items() if synthesize.name_of(key[1]) in MODELS}
    assert {key[0] for key in wanted} == {"deep", "fast"}
    assert sorted(wanted.values()) == [False] * 4 + [True] * 7
    known = profile(trial.free_mib(mine(2)), more_mib)
    assert has_room(trial.variables(mine(2), MODELS), known, MODELS) == wanted


def test_one_card_has_no_split_and_the_room_of_both() -> None:
    words = trial.variables(mine(1), MODELS)
    found = has_room(words, profile(trial.free_mib(mine(1))), MODELS)
    assert not any("tensor_split" in placement for _, _, placement in found)
    assert found["deep", "deepseek-r1-distill-qwen-14b-q4_k_m", "auto"]
    assert not found["deep", "deepseek-r1-distill-qwen-14b-q5_k_m", "auto"]
    assert {tuple(tier["gpus"]) for tier in words["tiers"]} == {(mine(1)[0].uuid,)}


def test_the_inventory_can_be_decided_for_without_a_play() -> None:
    words = trial.variables(mine(2), MODELS)
    planning.refuse_templates(words, "tiers")
    assert "{{" not in yaml.safe_dump(words)


def test_models_that_were_not_written_are_not_tried() -> None:
    assert set(MODELS) - set(PUBLISHED) == {entry["name"] for entry in WRITTEN}
    models = trial.catalogue(PUBLISHED, WRITTEN[:1])
    found = trial.variables(mine(2), models)["tiers"]
    assert {each["model"] for tier in found for each in tier["candidates"]} == {WRITTEN[0]["name"]}


def test_a_verdict_keeps_what_the_model_said() -> None:
    report = json.loads((ROOT / "docs/evidence/gpu/2x-nvidia-h200/verify.json").read_text(encoding="utf-8"))["report"]
    (tier, _) = report["hosts"][0]["tiers"]
    told = record.verdict({**tier, "evidence": {**tier["evidence"], "quality": None}})
    assert told["completion"]["text"] and told["verdict"] == "pass"
