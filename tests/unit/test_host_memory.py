"""How a tier's server reads its model's file, and what it may hold of the host's memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import Q4, shaped
from test_plan_switching import MODELS, PLACES, host, made

from checker import plan_document, site_plan, tier
from checker.reports import plans
from inventories import inventory

# What of the host's memory is not for tiers, and what is left for a server itself (checker/cards.py, host_memory.py).
SYSTEM_MIB, SERVER_MIB = 1536, 2048
DEEP: dict[str, Any] = {"name": "deep", "port": 8081, "context": 4096, "gpus": "any"}


def site(ram_mib: int | None, *tiers: dict[str, Any], replan: bool = False, **profile: Any) -> list[tier.TierSpec]:
    models = {Q4: {"file": f"{Q4}.gguf", "header": shaped(Q4).to_json()}}
    whole = inventory(tiers=list(tiers), models=MODELS | models)
    found = {**profile, **({"ram_mib": ram_mib} if ram_mib else {})}
    return list(site_plan.for_site(**whole, places=PLACES, profile=found, replan=replan).specs)


def big(name: str = "deep", **changes: Any) -> dict[str, Any]:
    return {**DEEP, "name": name, "candidates": [{"model": Q4, "placement": "auto"}], **changes}


def weights_mib(spec: tier.TierSpec) -> float:
    return sum(device.weights_mib or 0 for device in spec.devices)


def mode(spec: tier.TierSpec) -> str:
    told = spec.argv[spec.argv.index("--load-mode") + 1]
    assert told == spec.load_mode
    return told


def test_a_file_that_has_no_room_in_the_page_cache_is_read_past_it() -> None:
    (rich,), (poor,), (unknown,) = (site(ram_mib, big()) for ram_mib in (16_000, 8_000, None))
    assert 8_000 - SYSTEM_MIB < weights_mib(poor) < 16_000 - SYSTEM_MIB, "the case of this test"
    assert (mode(rich), mode(poor), mode(unknown)) == ("mmap", "dio", "mmap")
    assert rich.memory_max_mib is not None and poor.memory_max_mib is not None
    assert rich.memory_max_mib > weights_mib(rich) + SERVER_MIB
    assert SERVER_MIB < poor.memory_max_mib < SERVER_MIB + 2048, "what is cached is no part of it"


def test_what_is_resident_beside_it_is_counted_and_what_it_takes_turns_with_is_not() -> None:
    small = {"gpus": ["NVIDIA GeForce RTX 3060 Ti"], "candidates": [{"model": "tiny", "placement": "auto"}]}
    (alone,) = site(16_000, big())
    _, deep = site(16_000, {**DEEP, "name": "fast", "port": 8080, "cache_ram_mib": 6_000, **small}, big())
    assert deep.rivals == (), "the case of this test"
    assert (mode(alone), mode(deep)) == ("mmap", "dio")
    _, turn = site(16_000, big("fast", port=8080, cache_ram_mib=6_000), big(residency="on_demand"))
    assert turn.rivals == ("fast",), "the case of this test"
    assert mode(turn) == "mmap"


def test_what_serves_is_not_loaded_anew_for_a_neighbour_before_it_is_planned_anew() -> None:
    (serving,) = site(16_000, big())
    proven = {"proven": {"deep": serving.to_json()}}
    (kept,), (anew,) = (site(8_000, big(), replan=replan, **proven) for replan in (False, True))
    assert (mode(kept), mode(anew)) == ("mmap", "dio")
    before = serving.to_json()
    del before["load_mode"]
    (old,) = site(8_000, big(), proven={"deep": before})
    assert mode(old) == "mmap", "a version before wrote none"
    (other,) = site(8_000, big(context=8192), **proven)
    assert mode(other) == "dio", "it is loaded anew in any case"


def test_another_model_in_the_same_placement_is_read_as_its_own_file_asks_for() -> None:
    (serving,) = site(16_000, big())
    stranger = serving.to_json()
    stranger["model"]["name"] = "another"
    (spec,) = site(8_000, big(), proven={"deep": stranger})
    assert mode(spec) == "dio"


@given(ram_mib=st.integers(9_000, 64_000), cache_ram_mib=st.integers(0, 4_000))
def test_a_tier_reaches_its_own_limit_before_all_together_reach_theirs(ram_mib: int, cache_ram_mib: int) -> None:
    """One that grows without end is what gives way, with the other as large as it was planned, and its server's own."""
    small = {"gpus": ["NVIDIA GeForce RTX 3060 Ti"], "candidates": [{"model": "tiny", "placement": "auto"}]}
    tiers = [{**DEEP, "name": "fast", "port": 8080, "cache_ram_mib": cache_ram_mib, **small}, big()]
    (alone,) = site(200_000, tiers[0])
    # Which read their files through the cache, and are kept so.
    proven = {spec.name: spec.to_json() for spec in site(200_000, *tiers)}
    _, deep = site(ram_mib, *tiers, proven=proven)
    assert (deep.rivals, mode(deep)) == ((), "mmap")
    assert alone.memory_max_mib is not None and deep.memory_max_mib is not None
    planned_mib = alone.memory_max_mib - weights_mib(alone)
    assert deep.memory_max_mib + planned_mib <= max(ram_mib - SYSTEM_MIB, planned_mib + 2 * SERVER_MIB) + 1
    assert deep.memory_max_mib >= SERVER_MIB


@pytest.mark.parametrize(("ram_mib", "told"), [(64_000, False), (4_200, True)])
def test_a_plan_tells_it(ram_mib: int, told: bool) -> None:
    tiny = {"name": "one", "port": 8080, "context": 4096, "gpus": "any"}
    given_models = [{"model": "tiny", "placement": "auto"}]
    planned = made(host(10) | {"ram_mib": ram_mib}, {**tiny, "cache_ram_mib": 640, "candidates": given_models})
    document = plan_document.to_json(planned, "tower")
    assert document["tiers"][0]["load_mode"] == ("dio" if told else "mmap")
    shown = plans.render([document], "table")
    assert ("read past the page cache" in " ".join(shown.split())) == told


@given(ram_mib=st.integers(6_000, 40_000), cache_ram_mib=st.integers(0, 4_000))
def test_it_is_cached_exactly_when_it_has_room(ram_mib: int, cache_ram_mib: int) -> None:
    (spec,) = site(ram_mib, big(cache_ram_mib=cache_ram_mib))
    (whole,) = site(200_000, big(cache_ram_mib=cache_ram_mib))
    assert whole.memory_max_mib is not None and spec.memory_max_mib is not None
    if abs(whole.memory_max_mib - (ram_mib - SYSTEM_MIB)) > 1:
        assert mode(spec) == ("mmap" if whole.memory_max_mib <= ram_mib - SYSTEM_MIB else "dio")
    assert spec.memory_max_mib <= ram_mib - SYSTEM_MIB
