"""Which candidates are tried and as what: screened one by one, told apart from what was measured already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from checker import site_plan, trial, trial_plan
from checker.catalogue import InventoryError
from inventories import BIG, SMALL, inventory

RELEASES = {"new": "/opt/llama-tiers/releases/r", "old": "/opt/llama-tiers/releases/o"}
PLACES = site_plan.Places(releases=RELEASES, models="/m", keys="/k")
SPLIT = {"tensor_split": [3, 2]}


def screened(
    only: str | None = None,
    known: Sequence[Mapping[str, Any]] = (),
    used_mib: int = 0,
    limit_s: float = 1800,
    depth: str = "whole",
    **changes: Any,
) -> list[trial_plan.Candidate]:
    """Screen the small inventory's candidates; other processes hold `used_mib` of the small card."""
    given = inventory(**changes)
    given["tiers"][-1]["candidates"].append({"model": "tiny"})
    held = [{"uuid": SMALL["uuid"], "total_mib": 3072, "used_mib": used_mib}] if used_mib else []
    profile = {"driver": {"version": "580.126.09"}, "gpus": held, "tiers_mib": {SMALL["uuid"]: 0}}
    trying = {"profile": profile, "ram": {}, "known": known, "limit_s": limit_s, "depth": depth}
    return list(trial_plan.candidates(**given, places=PLACES, only=only, **trying))


def record(candidate: trial_plan.Candidate, day: int = 24, **changes: Any) -> dict[str, Any]:
    """Return what is kept of a candidate that was measured, or had no room, on a day."""
    spec = candidate.spec
    return {
        "fingerprint": candidate.fingerprint,
        "recorded_at": f"2026-11-{day}T15:00:00Z",
        "outcome": "measured" if spec else "infeasible",
        "spec": spec and spec.to_json(),
        "limits": spec and trial.limits(spec, 1800, "whole"),
        **changes,
    }


def test_every_candidate_gets_the_command_line_that_its_tier_would_have() -> None:
    fast, deep, auto = screened()
    assert [each.tier for each in (fast, deep, auto)] == ["fast", "deep", "deep"]
    planned = site_plan.for_site(**inventory(), places=PLACES).specs[1]
    assert deep.spec
    assert deep.spec.name == "trial"
    own = [
        word.replace("/k/trial", "/k/deep").replace("llama-tier-trial/", "llama-tier-deep/") for word in deep.spec.argv
    ]
    assert tuple(own) == planned.argv
    assert (deep.spec.placement, deep.spec.devices, deep.spec.port) == (
        planned.placement,
        planned.devices,
        planned.port,
    )
    assert (deep.placement, auto.placement, deep.label) == (SPLIT, "auto", "tiny (3,2)")


def test_tiers_that_exclude_each_other_are_tried_all_the_same() -> None:
    small = [{**BIG, "total_mib": 350, "margin_mib": 0}, {**SMALL, "total_mib": 350, "margin_mib": 0}]
    with pytest.raises(InventoryError, match="fast and deep cannot be resident together"):
        site_plan.for_site(**inventory(gpus=small), places=PLACES)
    assert [each.reason for each in screened(gpus=small)] == [None, None, None]


def test_a_candidate_has_neither_rivals_nor_a_fallback_and_the_engine_of_its_tier() -> None:
    tiers = inventory()["tiers"]
    tiers[1] |= {"residency": "on_demand", "fallback": "fast", "engine": "old"}
    _, deep, _ = screened(tiers=tiers)
    assert deep.spec
    assert (deep.spec.rivals, deep.spec.fallback, deep.spec.engine.release) == ((), None, RELEASES["old"])


def test_what_has_no_room_has_the_arithmetic_and_no_spec() -> None:
    _, deep, auto = screened(gpus=[BIG, {**SMALL, "total_mib": 160}])
    assert deep.spec is None and deep.reason
    assert deep.reason.startswith("tiny, context 4,096, 3,2 layers on RTX 3060 Ti, GTX 1060 3GB")
    assert "GTX 1060 3GB needs" in deep.reason
    assert deep.to_json()["outcome"] == "infeasible"
    assert auto.reason is None and auto.to_json()["outcome"] is None


def test_what_was_measured_with_all_the_same_is_done() -> None:
    (fast, deep, auto) = screened()
    known = [record(deep)]
    assert [each.done for each in screened(known=known)] == [False, True, False]
    assert [each.done for each in screened(known=known, engine="old")] == [False, False, False]
    assert len({fast.fingerprint, deep.fingerprint, auto.fingerprint}) == 3


def test_what_had_no_room_since_it_was_measured_is_tried_again() -> None:
    deep, held = screened()[1], screened(used_mib=3000)[1]
    assert held.spec is None
    assert not screened(known=[record(deep, 24), record(held, 25)])[1].done
    assert screened(known=[record(deep, 25), record(held, 24)])[1].done


def test_what_has_room_again_but_could_not_be_started_is_not_tried_for_ever() -> None:
    deep, held = screened()[1], screened(used_mib=3000)[1]
    assert (deep.asked, held.asked) == (held.fingerprint, held.fingerprint)
    since = record(held, 26, outcome="failed", reason="it did not start: cudaMalloc failed")
    assert screened(known=[record(deep, 24), since])[1].done


def test_what_failed_is_tried_again_with_other_limits_alone() -> None:
    deep = screened()[1]
    failed = record(deep, outcome="failed")
    assert screened(known=[failed])[1].done
    assert not screened(known=[failed], limit_s=3600)[1].done
    assert not screened(known=[failed], depth="quick")[1].done
    patient = inventory()["tiers"]
    patient[-1]["criteria"] = {"max_load_s": 900}
    assert not screened(known=[failed], tiers=patient)[1].done
    assert screened(known=[record(deep)], tiers=patient)[1].done, "what was measured is judged when it is read"
    assert not screened(known=[{**failed, "limits": None}])[1].done, "nobody wrote its limits down"


def test_what_could_not_be_fetched_is_tried_again() -> None:
    assert not screened(known=[record(screened()[1], outcome="failed", spec=None)])[1].done


def test_a_quick_measurement_does_for_a_whole_one_never() -> None:
    deep = screened()[1]
    assert deep.spec
    quick = record(deep, limits=trial.limits(deep.spec, 1800, "quick"))
    assert screened(known=[quick], depth="quick")[1].done
    assert not screened(known=[quick])[1].done
    assert screened(known=[record(deep)], depth="quick")[1].done


def test_one_tier_alone_can_be_tried() -> None:
    assert [each.tier for each in screened(only="fast")] == ["fast"]


@pytest.mark.parametrize(
    ("only", "name", "said"),
    [
        ("wide", "deep", "no tier 'wide'; tiers here: fast, deep"),
        (None, "trial", "tier trial: name 'trial' is a trial's own"),
    ],
)
def test_a_tier_that_cannot_be_is_named(only: str | None, name: str, said: str) -> None:
    given = inventory()
    given["tiers"][1]["name"] = name
    with pytest.raises(InventoryError) as caught:
        screened(only=only, tiers=given["tiers"])
    assert said in str(caught.value)
