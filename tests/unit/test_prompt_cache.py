"""Memory of the host for cached prompts: what a range gets of what is left."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_plan_switching import BOUND, host, made, site, tiny

from checker import plan_document, tier
from checker.catalogue import InventoryError
from checker.reports import plans

# What of the host's memory is not for tiers, and what is left for a server itself (checker/cards.py, host_memory.py).
SYSTEM_MIB, SERVER_MIB = 1536, 2048
ALL = {"min": 0, "max": 8192}


def cached(spec: tier.TierSpec) -> int:
    told = int(spec.argv[spec.argv.index("--cache-ram") + 1])
    assert told == spec.placement.cache_ram_mib
    return told


def served(ram_mib: int | None, *tiers: dict[str, Any], cards: float = 10) -> list[tier.TierSpec]:
    return list(site(host(cards) | {"ram_mib": ram_mib}, *tiers).specs)


def test_one_tier_gets_what_its_server_leaves_up_to_the_end_of_its_range() -> None:
    (rich,) = served(64_000, tiny("one", cache_ram_mib=ALL))
    (poor,) = served(6_000, tiny("one", cache_ram_mib=ALL))
    (bare,) = served(3_000, tiny("one", cache_ram_mib=ALL))
    assert (cached(rich), cached(bare)) == (8192, 0)
    assert 0 < cached(poor) <= 6_000 - SYSTEM_MIB - SERVER_MIB
    (all_but_one,) = served(6_000, tiny("one", cache_ram_mib={"min": 0, "max": cached(poor) - 1}))
    assert cached(all_but_one) == cached(poor) - 1


def test_the_limit_of_memory_grows_with_it() -> None:
    (none,), (much,) = served(64_000, tiny("one")), served(64_000, tiny("one", cache_ram_mib=ALL))
    assert none.memory_max_mib is not None and much.memory_max_mib is not None
    assert much.memory_max_mib - none.memory_max_mib == 8192


def test_a_plan_tells_it_where_there_is_one() -> None:
    for written, told in ((ALL, True), (0, False)):
        planned = made(host(10) | {"ram_mib": 64_000}, tiny("one", cache_ram_mib=written))
        shown = plans.render([plan_document.to_json(planned, "tower")], "table")
        assert ("prompt cache 8,192 MiB" in " ".join(shown.split())) == told


def test_of_two_that_are_up_at_once_the_first_one_gets_it() -> None:
    first, second = served(10_000, tiny("one", cache_ram_mib=ALL), tiny("two", cache_ram_mib=ALL))
    (alone,) = served(10_000, tiny("one", cache_ram_mib=ALL))
    assert 0 < cached(first) <= 10_000 - SYSTEM_MIB - 2 * SERVER_MIB
    assert cached(first) < cached(alone)
    assert cached(second) == 0


def test_each_of_two_rivals_gets_it_all() -> None:
    tiers = [tiny("one", gpus=BOUND, cache_ram_mib=ALL), tiny("two", "on_demand", gpus=BOUND, cache_ram_mib=ALL)]
    first, second = served(10_000, *tiers, cards=1.5)
    (alone,) = served(10_000, tiers[0], cards=1.5)
    assert cached(first) == cached(second) == cached(alone) > 0


def test_where_the_hosts_memory_is_not_known_it_is_what_has_to_be() -> None:
    (spec,) = served(None, tiny("one", cache_ram_mib={"min": 100, "max": 8192}))
    assert cached(spec) == 100


@given(
    ram_mib=st.integers(3_000, 40_000),
    ranges=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20_000)), min_size=1, max_size=3),
)
def test_all_caches_and_servers_have_room_or_are_as_small_as_can_be(
    ram_mib: int, ranges: list[tuple[int, int]]
) -> None:
    tiers = [
        tiny(f"t{index}", cache_ram_mib={"min": least, "max": least + more})
        for index, (least, more) in enumerate(ranges)
    ]
    found = [cached(spec) for spec in served(ram_mib, *tiers)]
    assert all(least <= mib <= least + more for mib, (least, more) in zip(found, ranges, strict=True))
    if found != [least for least, _ in ranges]:
        assert sum(found) + SERVER_MIB * len(found) <= ram_mib - SYSTEM_MIB


@given(
    cards=st.floats(0.9, 3.5),
    ram_mib=st.integers(3_000, 20_000),
    residencies=st.lists(st.sampled_from(["pinned", "on_demand"]), min_size=2, max_size=4),
)
def test_whoever_may_be_up_together_has_room_for_its_cache(cards: float, ram_mib: int, residencies: list[str]) -> None:
    tiers = [tiny(f"t{i}", how, gpus=BOUND, cache_ram_mib=ALL) for i, how in enumerate(residencies)]
    try:
        specs = served(ram_mib, *tiers, cards=cards)
    except InventoryError:
        return
    for one, two in itertools.combinations(specs, 2):
        if two.name not in one.rivals and cached(one) + cached(two):
            assert cached(one) + cached(two) + 2 * SERVER_MIB <= ram_mib - SYSTEM_MIB


def test_what_is_proven_is_kept_while_it_lies_in_the_range_and_more_is_told() -> None:
    wide, narrow = tiny("one", cache_ram_mib=ALL), tiny("one", cache_ram_mib={"min": 0, "max": 500})
    (proven,) = served(64_000, narrow)
    again = site(host(10, 10, proven) | {"ram_mib": 64_000}, wide)
    assert [cached(spec) for spec in again.specs] == [500]
    assert again.kept == ("one",)
    assert any("prompt cache 8,192 MiB" in said for said in (*again.remarks, *again.summary)), again
    (anew,) = site(host(10, 10, proven) | {"ram_mib": 64_000}, tiny("one", cache_ram_mib=100)).specs
    assert cached(anew) == 100


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"min": 5, "max": 1}, "min 5 is above max 1: exchange them, or write one number"),
        ("much", "expected MiB of host memory, or a range such as {min: 0, max: 8192}"),
        (-1, "expected MiB of host memory, or a range such as {min: 0, max: 8192}"),
        ({"max": 1}, "min"),
    ],
    ids=str,
)
def test_what_is_no_size_and_no_range_is_refused_by_its_place(written: Any, said: str) -> None:
    with pytest.raises(InventoryError, match=r"cache_ram_mib") as told:
        served(64_000, tiny("one", cache_ram_mib=written))
    assert said in str(told.value)


def test_one_that_has_to_be_larger_than_the_memory_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(InventoryError, match="prompt cache"):
        served(6_000, tiny("one", cache_ram_mib={"min": 8000, "max": 9000}))
