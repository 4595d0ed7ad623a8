"""Tiers that are not all resident at once: who gives way to whom, and that whoever may be up together has room."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import Q4, shaped

from checker import plan, plan_document, planning, site_plan, tier
from checker.cards import host as join_host
from checker.catalogue import InventoryError, RamEntry, parse_inventory
from inventories import BIG, MODELS, SMALL, inventory

PLACES = site_plan.Places(
    releases={"new": "/opt/llama-tiers/releases/r", "old": "/opt/llama-tiers/releases/o"}, models="/m", keys="/k"
)
LLAMA = "llama-3.1-8b-instruct-abliterated-q6_k"
BOUND = [BIG["uuid"]]


def tiny(
    name: str, residency: str = "pinned", gpus: Any = "any", context: Any = 4096, **changes: Any
) -> dict[str, Any]:
    candidates = [{"model": "tiny", "placement": "auto"}]
    port = 8080 + sum(name.encode())
    whole = {"name": name, "port": port, "context": context, "gpus": gpus, "residency": residency}
    return {**whole, "candidates": candidates, **changes}


def site(profile: dict[str, Any], *tiers: dict[str, Any], **models: Any) -> site_plan.SitePlan:
    return site_plan.for_site(**inventory(tiers=list(tiers), models=MODELS | models), places=PLACES, profile=profile)


def made(profile: dict[str, Any], *tiers: dict[str, Any]) -> plan.Plan:
    """Plan tiers, whether they can be served or not."""
    given = inventory(tiers=list(tiers))
    gpus, entries, models, _ = parse_inventory(given["gpus"], given["tiers"], given["models"])
    return plan.make(gpus, entries, models, join_host(gpus, RamEntry(), profile))


def alone_mib() -> float:
    """Return what one tier needs of the large card."""
    (one,) = site({"ram_mib": 16000}, tiny("one", gpus=BOUND)).specs
    return sum(device.predicted_mib or 0 for device in one.devices)


ALONE = alone_mib()


def host(big: float, small: float = 10, *proven: tier.TierSpec) -> dict[str, Any]:
    """Return a host whose cards hold so many times what one tier needs, and what was proven on it."""
    cards = [
        {"uuid": card["uuid"], "total_mib": int(ALONE * share) + 64 + 150}
        for card, share in ((BIG, big), (SMALL, small))
    ]
    return {"gpus": cards, "ram_mib": 16000, "proven": {spec.name: spec.to_json() for spec in proven}}


def rivals(found: site_plan.SitePlan) -> dict[str, tuple[str, ...]]:
    return {spec.name: spec.rivals for spec in found.specs}


def on(spec: tier.TierSpec) -> list[str]:
    return [device.uuid for device in spec.devices]


def test_the_missions_tiers_switch_when_one_is_on_demand() -> None:
    models = {name: {"file": f"{name}.gguf", "header": shaped(name).to_json()} for name in (Q4, LLAMA)}
    fast = tiny("fast", candidates=[{"model": LLAMA, "placement": "auto"}], context=8192)
    deep = tiny("deep", "on_demand", candidates=[{"model": Q4, "placement": "auto"}], context=8192, fallback="fast")
    both = site({}, fast, deep, **models)
    assert rivals(both) == {"fast": ("deep",), "deep": ("fast",)}
    assert [(spec.residency, spec.fallback) for spec in both.specs] == [("pinned", None), ("on_demand", "fast")]
    (alone,) = site({}, deep | {"fallback": None}, **models).specs
    assert both.specs[1].placement == alone.placement, "each is placed as if it had the host for itself"
    assert both.specs[1].devices == alone.devices


def test_a_tier_on_demand_lies_beside_the_pinned_ones_where_it_has_room() -> None:
    """Alone it would take the fast card; beside the pinned one it never has to be switched."""
    (alone,) = site(host(1.5), tiny("one", "on_demand")).specs
    assert on(alone) == [BIG["uuid"]]
    both = site(host(1.5), tiny("fast"), tiny("deep", "on_demand"))
    assert rivals(both) == {"fast": (), "deep": ()}
    assert [on(spec) for spec in both.specs] == [[BIG["uuid"]], [SMALL["uuid"]]]


def test_one_that_has_room_is_no_rival_because_another_has_none() -> None:
    tiers = [tiny("fast", gpus=BOUND), tiny("deep", "on_demand", gpus=BOUND), tiny("side", "on_demand")]
    planned = site(host(1.5), *tiers)
    assert rivals(planned) == {"fast": ("deep",), "deep": ("fast",), "side": ()}
    assert on(planned.specs[2]) == [SMALL["uuid"]]


def test_of_three_that_fit_in_pairs_only_the_two_on_demand_are_rivals() -> None:
    tiers = [tiny("a", "on_demand", gpus=BOUND), tiny("b", gpus=BOUND), tiny("c", "on_demand", gpus=BOUND)]
    found = made(host(2.5), *tiers)
    assert [(each.tiers, each in found.switched) for each in found.exclusions] == [(("a", "c"), True)]
    assert found.resident_together == (("a", "b"), ("b", "c"))
    assert "3060 Ti needs" in found.exclusions[0].reason
    assert rivals(site(host(2.5), *tiers)) == {"a": ("c",), "b": (), "c": ("a",)}


def test_of_three_with_two_pinned_the_last_pinned_one_gives_way() -> None:
    tiers = [tiny("a", gpus=BOUND), tiny("b", gpus=BOUND), tiny("c", "on_demand", gpus=BOUND)]
    assert rivals(site(host(2.5), *tiers)) == {"a": (), "b": ("c",), "c": ("b",)}


@pytest.mark.parametrize(("second", "refused"), [("pinned", True), ("on_demand", False)])
def test_only_pinned_tiers_without_room_are_refused(second: str, refused: bool) -> None:
    tiers = [tiny("one", gpus=BOUND), tiny("two", second, gpus=BOUND)]
    found = made(host(1.5), *tiers)
    assert (found.refused == found.exclusions, found.switched == found.exclusions) == (refused, not refused)
    assert bool(plan.problems(found)) == refused
    document = plan_document.to_json(found, "tower")
    assert [each["switched"] for each in document["exclusions"]] == [not refused]
    assert [each["residency"] for each in document["tiers"]] == ["pinned", second]
    if refused:
        with pytest.raises(InventoryError, match=r"one and two cannot be resident together: .* `residency: on_demand`"):
            site(host(1.5), *tiers)


def test_two_pinned_ones_without_room_are_refused_beside_one_on_demand() -> None:
    tiers = [tiny("one", gpus=BOUND), tiny("two", gpus=BOUND), tiny("three", "on_demand", gpus=BOUND)]
    (said,) = plan.problems(made(host(1.5), *tiers))
    assert said.startswith("one and two cannot be resident together")


def test_a_plan_with_switching_passes_and_says_that_it_switches() -> None:
    words = inventory(tiers=[tiny("fast", gpus=BOUND), tiny("deep", "on_demand", gpus=BOUND)])
    subject = planning.Subject(
        "tower", {"gpus": words["gpus"], "tiers": words["tiers"], "llama_cpp_engine": "new"}, host(1.5)
    )
    document = planning.make(subject, planning.Wishes(), words["models"], words["engines"])
    assert document["exclusions"][0]["switched"]
    assert document["resident_together"] == [["fast"], ["deep"]]


def test_the_most_memory_of_a_tier_is_what_is_planned_and_no_more_than_there_is() -> None:
    (one,) = site(host(5), tiny("one", gpus=BOUND)).specs
    (much,) = site(host(5), tiny("one", gpus=BOUND, cache_ram_mib=4096)).specs
    assert one.memory_max_mib is not None and much.memory_max_mib is not None
    assert much.memory_max_mib - one.memory_max_mib == pytest.approx(4096, abs=1)
    assert one.memory_max_mib > sum(device.weights_mib or 0 for device in one.devices)
    (little,) = site(host(5) | {"ram_mib": 3000}, tiny("one", gpus=BOUND)).specs
    assert little.memory_max_mib is not None
    assert little.memory_max_mib < one.memory_max_mib


places = st.sampled_from(["any", BOUND, [SMALL["uuid"]]])
residencies = st.sampled_from(["pinned", "on_demand", "on_demand"])
drawn = st.lists(
    st.tuples(residencies, places, st.sampled_from([4096, {"min": 1024, "max": 8192}])), min_size=2, max_size=4
)
shares = st.floats(0.9, 3.5)


def as_tiers(chosen: list[tuple[str, Any, Any]]) -> list[dict[str, Any]]:
    return [tiny(f"t{i}", residency, gpus, context) for i, (residency, gpus, context) in enumerate(chosen)]


@settings(max_examples=60)
@given(drawn, shares, shares)
def test_whoever_may_be_up_together_has_room(chosen: list[tuple[str, Any, Any]], big: float, small: float) -> None:
    found = made(host(big, small), *as_tiers(chosen))
    if plan.problems(found):
        return
    by_name = {each.name: each for each in found.tiers}
    for name in by_name:
        assert all(name in found.rivals(other) for other in found.rivals(name)), "each stops when the other starts"
        assert name not in found.rivals(name)
    pinned = [each.name for each in found.tiers if each.pinned]
    assert not any(set(found.rivals(name)) & set(pinned) for name in pinned)
    for size in range(1, len(by_name) + 1):
        for names in itertools.combinations(by_name, size):
            if not any(other in found.rivals(name) for name, other in itertools.combinations(names, 2)):
                assert fits([by_name[name] for name in names]), names
                assert any(set(names) <= set(together) for together in found.resident_together)
    for together in found.resident_together:
        assert not any(other in found.rivals(name) for name, other in itertools.combinations(together, 2))


def fits(planned: list[plan.TierPlan]) -> bool:
    held = Counter[str]()
    for each in planned:
        for card, need in zip(each.chosen.choice.cards, each.chosen.choice.estimate.devices, strict=True):
            held[card.name] += need.total_mib
    rooms = {card.name: card.room_mib for each in planned for card in each.cards}
    return all(mib <= rooms[name] for name, mib in held.items())


@settings(max_examples=60)
@given(drawn, shares, shares)
def test_a_second_plan_is_the_first_once_that_is_proven(
    chosen: list[tuple[str, Any, Any]], big: float, small: float
) -> None:
    tiers = as_tiers(chosen)
    try:
        first = site(host(big, small), *tiers)
    except InventoryError:
        return
    assert site(host(big, small, *first.specs), *tiers).specs == first.specs
