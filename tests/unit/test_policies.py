"""Policies as data: the shipped ones are right, and every slip is named with its place, its value and what to do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from decision_cases import contender, figures

from checker import decision
from checker.catalogue import InventoryError
from checker.policies import parse

ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "catalogue/policies.yml").read_text(encoding="utf-8"))


def test_the_three_scenarios_and_two_fallbacks_ship() -> None:
    policies = parse(SHIPPED, "policies.yml")
    notes = [policy.note.partition(":")[0] for policy in policies.policies.values()]
    assert sorted(notes) == ["Fallback", "Fallback", "Scenario 1", "Scenario 2", "Scenario 3"]


def test_a_policy_that_finds_nobody_hands_on() -> None:
    names = [name for name, _ in parse(SHIPPED, "policies.yml").ladder("max-quality")]
    assert names == ["max-quality", "multi-gpu", "single-gpu", "partial-offload"]


def test_the_fast_tier_of_the_first_scenario_lies_on_one_card() -> None:
    deep = contender("deep", found=figures(cards=2))
    both, one = contender("both", found=figures(60, cards=2)), contender("one", found=figures(50, cards=1))
    shipped = parse(SHIPPED, "policies.yml")
    made = decision.decide("tower", {"deep": [deep], "fast": [both, one]}, shipped, "multi-gpu", 10)
    assert made.step and made.step.policy == "multi-gpu"
    assert [each.chosen.contender for each in made.step.choices if each.chosen] == [deep, one]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["first"], "best", "policies.yml: first 'best' is none of its policies; they are: multi-gpu, single-gpu"),
        (["acceptable_tokens_per_second"], 0, "acceptable_tokens_per_second 0 is wrong: expected more than 0"),
        (["acceptable_tokens_per_second"], "many", "acceptable_tokens_per_second 'many' is wrong: expected a number"),
        (
            ["policies", "single-gpu", "otherwise"],
            "none",
            "policies.single-gpu.otherwise 'none' is none of its policies; they are: multi-gpu",
        ),
        (
            ["policies", "partial-offload", "otherwise"],
            "single-gpu",
            "policies.single-gpu.otherwise leads back to it (single-gpu → partial-offload → single-gpu): leave out one",
        ),
        (["policies", "multi-gpu", "tiers"], {}, "policies.multi-gpu.tiers {} is wrong: expected a list of 1 or more"),
        (
            ["policies", "multi-gpu", "tiers", "deep", "min_generation_tokens_per_second"],
            "fast",
            "policies.multi-gpu.tiers.deep.min_generation_tokens_per_second 'fast' is wrong: expected a number or "
            "'acceptable'",
        ),
        (
            ["policies", "multi-gpu", "tiers", "deep", "max_cards"],
            1,
            "max_cards 1 is below min_cards 2: exchange them",
        ),
        (
            ["policies", "multi-gpu", "tiers", "deep", "prefer"],
            ["price"],
            "policies.multi-gpu.tiers.deep.prefer[0] 'price' is wrong: expected 'quality', 'speed' or 'load'",
        ),
        (
            ["policies", "multi-gpu", "tiers", "deep", "prefer"],
            ["speed", "speed"],
            "names a word twice: name each once",
        ),
        (
            ["policies", "multi-gpu", "tiers", "deep", "prefer"],
            "quality",
            "policies.multi-gpu.tiers.deep.prefer 'quality' is wrong: expected a list, such as [quality, speed]",
        ),
        (
            ["policies", "multi-gpu", "tiers", "deep", "prefer"],
            None,
            "policies.multi-gpu.tiers.deep.prefer None is wrong: expected a list, such as [quality, speed]",
        ),
        (["policies", "multi-gpu", "tiers", "deep", "max_load"], 3, "tiers.deep.max_load is not a known key"),
        (["policies", "multi-gpu", "tiers", "deep", "min_quality"], 120, "min_quality 120 is wrong: expected 100"),
    ],
)
def test_a_slip_is_named(place: list[str], value: Any, said: str) -> None:
    document = copy.deepcopy(SHIPPED)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(InventoryError) as caught:
        parse(document, "policies.yml")
    assert said in str(caught.value)


def test_a_round_trip_of_policies_is_told_once() -> None:
    document = copy.deepcopy(SHIPPED)
    document["policies"]["partial-offload"]["otherwise"] = "multi-gpu"
    with pytest.raises(InventoryError) as caught:
        parse(document, "policies.yml")
    assert len(caught.value.problems) == 1


def test_a_file_of_nothing_is_named() -> None:
    with pytest.raises(InventoryError, match=r"policies\.yml: expected first"):
        parse(None, "policies.yml")
