"""The checklist of a host: what ticks each box, and what an open one says is lacking."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from example_report import DECISION, report

from checker import checklist
from checker.evidence import Box, Evidence, TierReport
from inventories import BIG, SMALL

TIER = report().tiers[0]
LOADS, PARTS, SPEED, TIME, QUALITY, TURNS, BOOT, DECIDED = range(8)


def with_evidence(found: TierReport = TIER, **changes: Any) -> TierReport:
    return replace(found, evidence=replace(found.evidence, **changes))


def boxes(*tiers: TierReport, decision: dict[str, Any] | None = None) -> tuple[Box, ...]:
    return checklist.boxes(tiers, decision)


def ticked(*tiers: TierReport, decision: dict[str, Any] | None = None) -> list[bool]:
    return [box.ticked for box in boxes(*tiers, decision=decision)]


def alone(found: TierReport = TIER) -> TierReport:
    """Return the tier as one that lies on one card, whose split nobody has looked at."""
    return with_evidence(replace(found, name="fast"), devices=found.evidence.devices[:1], quality=None)


def test_what_was_measured_ticks_its_box_and_is_said() -> None:
    found = boxes(TIER)
    assert [box.ticked for box in found] == [True] * 5 + [False] * 3
    assert found[LOADS].reason == "deep: active"
    assert f"{BIG['uuid']} 262.0 MiB" in found[PARTS].reason and f"{SMALL['uuid']} 93.0 MiB" in found[PARTS].reason
    assert found[SPEED].reason == "deep: 61.0 tokens/s"
    assert found[TIME].reason.startswith("deep: 3.1 s")
    assert found[QUALITY].reason == "deep: mean KLD 0.000002, same top token 100.00%"


def test_what_failed_leaves_its_box_open_with_what_was_found() -> None:
    found = boxes(report(failed=True).tiers[0])
    assert [box.ticked for box in found[:5]] == [True, False, True, True, True]
    assert f"memory held on {SMALL['uuid']} is 0.0 MiB, wanted at least 55.3 MiB" in found[PARTS].reason


def test_what_is_down_ticks_nothing() -> None:
    found = boxes(report(unreadable=True).tiers[0])
    assert not any(box.ticked for box in found)
    assert found[LOADS].reason.startswith("deep: unit active is failed, wanted active")
    assert found[SPEED].reason == "deep: not measured, `checker verify` measures it"


def test_one_tier_that_lacks_something_leaves_a_box_open() -> None:
    assert ticked(TIER, report(unreadable=True).tiers[0])[:5] == [False] * 5


def test_without_tiers_no_box_is_ticked() -> None:
    assert not any(ticked())
    assert all(box.reason for box in boxes())


def test_a_tier_on_one_card_leaves_open_what_is_about_splits() -> None:
    found = boxes(alone())
    assert [found[box].ticked for box in (LOADS, PARTS, SPEED, TIME, QUALITY)] == [True, False, True, True, False]
    assert found[PARTS].reason == found[QUALITY].reason == "no tier lies on several cards"
    assert ticked(TIER, alone())[PARTS], "the others' splits are what it is about"


def test_a_split_that_nobody_compared_says_how_to() -> None:
    checks = tuple(
        check for check in TIER.verdict.checks if "reference" not in check.name and "split" not in check.name
    )
    found = boxes(replace(TIER, verdict=replace(TIER.verdict, checks=checks)))[QUALITY]
    assert (found.ticked, found.reason) == (False, "deep: not measured, `checker verify --quality` compares them")


def test_a_split_that_answers_differently_is_no_tick() -> None:
    checks = tuple(
        replace(check, passed=False, measured="mean KLD 0.5") if check.name == "quality of the split" else check
        for check in TIER.verdict.checks
    )
    found = boxes(replace(TIER, verdict=replace(TIER.verdict, checks=checks, verdict="fail")))[QUALITY]
    assert not found.ticked
    assert "quality of the split is mean KLD 0.5, wanted mean KLD at most 0.001" in found.reason


def beside(found: TierReport, **states: str) -> TierReport:
    """Return a tier that was measured while its rivals' units were in these states."""
    return with_evidence(found, rivals=tuple(states), rival_states=states)


def test_rivals_that_were_both_measured_loaded_took_turns() -> None:
    deep, fast = beside(TIER, fast="inactive"), beside(alone(), deep="inactive")
    found = boxes(deep, fast)[TURNS]
    assert found.ticked
    assert found.reason == "each was measured loaded: deep in the place of fast, fast in the place of deep"
    down = with_evidence(fast, unit=replace(fast.evidence.unit, active_state="failed"))
    found = boxes(deep, down)[TURNS]
    assert (found.ticked, found.reason) == (False, "not seen loaded: fast")
    assert boxes(TIER, alone())[TURNS].reason == "no tier gives way to another: all are loaded beside each other"


@pytest.mark.parametrize("state", ["active", "activating", "deactivating"])
def test_rivals_that_were_loaded_at_the_same_moment_took_no_turns(state: str) -> None:
    found = boxes(beside(TIER, fast=state), beside(alone(), deep="inactive"))[TURNS]
    assert (found.ticked, found.reason) == (False, f"deep: fast was {state} beside it")


def test_a_rival_that_nobody_looked_at_while_a_tier_was_measured_leaves_the_box_open() -> None:
    """Evidence of before has no states, and a rival may be new since a tier that sleeps was measured."""
    deep = with_evidence(beside(TIER, fast="failed"), rivals=("fast", "small"))
    found = boxes(deep, beside(alone(), deep="inactive"))[TURNS]
    assert not found.ticked
    assert found.reason == "deep: not seen whether small was loaded beside it, `checker verify` looks"


def test_every_tier_has_to_be_seen_since_a_boot() -> None:
    deep = with_evidence(booted_at="2026-11-24T14:00:00Z")
    assert boxes(deep)[BOOT] == Box("Tiers are back after a reboot", True, "deep 2026-11-24T14:00:00Z")
    found = boxes(deep, alone())[BOOT]
    assert not found.ticked
    assert found.reason == "not seen since a boot: fast; restart the host, then `checker verify`"


def served_by(**changes: Any) -> dict[str, Any]:
    """Return the decision with something else of tier `deep`."""
    return {**DECISION, "tiers": {"deep": {**DECISION["tiers"]["deep"], **changes}}}  # type: ignore[index]


def placed(**changes: Any) -> dict[str, Any]:
    """Return the decision with something else of the placement of tier `deep`."""
    return served_by(placed={**DECISION["tiers"]["deep"]["placed"], **changes})  # type: ignore[index]


def test_a_decision_that_is_served_is_a_tick() -> None:
    found = boxes(TIER, alone(), decision=DECISION)[DECIDED]
    assert found.ticked
    assert found.reason == f"policy multi-gpu; deep: tiny, 13,6 layers on {BIG['name']} and {SMALL['name']}"
    assert boxes(TIER)[DECIDED].reason == "no decision: `checker trial`, then `checker decide`"


@pytest.mark.parametrize(
    ("decision", "says"),
    [
        (served_by(model="other"), f"deep: decided is other, 13,6 layers on {BIG['name']} and {SMALL['name']}, served"),
        (served_by(uuids=[BIG["uuid"]]), "deep: decided is tiny, 13,6 layers on "),
        (placed(tensor_split=[12, 7]), f"deep: decided is tiny, 12,7 layers on {BIG['name']} and {SMALL['name']}, ser"),
        (placed(n_gpu_layers=18), "deep: decided is tiny, 13,6 layers on "),
        (placed(split_mode="row"), f"deep: decided is tiny, 13,6 layers on {BIG['name']} and {SMALL['name']}, row spl"),
        ({**DECISION, "tiers": {"max": served_by()["tiers"]["deep"]}}, "max: decided is tiny, 13,6 layers on "),
        (served_by(placed=None), "deep: decided is tiny on "),
    ],
    ids=["model", "cards", "split", "layers", "split mode", "no such tier", "of another version"],
)
def test_a_decision_that_is_not_served_leaves_the_box_open(decision: dict[str, Any], says: str) -> None:
    found = boxes(TIER, decision=decision)[DECIDED]
    assert not found.ticked
    assert found.reason.startswith(says) and found.reason.endswith(": run site.yml")


def test_evidence_of_a_place_that_was_not_planned_is_no_card_of_the_tier() -> None:
    evidence: Evidence = TIER.evidence
    strays = (*evidence.devices, replace(evidence.devices[0], name=""), replace(evidence.devices[0], uuid=""))
    assert boxes(with_evidence(devices=strays), decision=DECISION)[DECIDED].ticked
