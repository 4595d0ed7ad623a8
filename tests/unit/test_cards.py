"""What is free on a card: the host's reading before the inventory's, the inventory's before the datasheet's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import BIG, SMALL, entry

from checker import cards
from checker.catalogue import RamEntry


def one(read: dict[str, Any] | None = None, name: str = BIG, **written: Any) -> cards.Card:
    return cards.card(entry(name, **written), read)


@pytest.mark.parametrize(
    ("name", "total", "bandwidth", "capability"),
    [(BIG, 8192, 448.0, "8.6"), (SMALL, 3072, 192.0, "6.1"), ("NVIDIA GeForce GTX 980", 4096, 224.0, "5.2")],
)
def test_known_cards_need_no_figures(name: str, total: int, bandwidth: float, capability: str) -> None:
    found = one(name=name)
    assert (found.total_mib, found.bandwidth_gb_s, found.compute_capability) == (total, bandwidth, capability)


def test_the_nearest_source_of_each_figure_is_taken() -> None:
    read = {"total_mib": 8000, "bandwidth_gb_s": 440.0, "compute_capability": "8.7"}
    assert one(read).total_mib == 8000
    assert one(read, total_mib=7000).total_mib == 8000
    assert one(total_mib=7000).total_mib == 7000
    assert one(read).bandwidth_gb_s == 440.0
    assert one(read, bandwidth_gb_s=300.0).bandwidth_gb_s == 300.0
    assert one(read, compute_capability="5.2").compute_capability == "8.7"
    assert one(name="NVIDIA Mystery").total_mib is None


def test_margins_are_those_of_the_facts_and_can_be_overridden() -> None:
    assert cards.default_margin_mib(8192) == pytest.approx(300, abs=15)
    assert cards.default_margin_mib(3072) == 150
    assert one(margin_mib=10).room_mib == one().room_mib + one().margin_mib - 10


def test_without_a_host_the_drivers_prior_is_taken_off() -> None:
    # 3,005 of 3,072 MiB are free on a GTX 1060 without a screen (a published reading); the prior is not below it.
    assert 2950 <= one(name=SMALL).free_mib <= 3005
    assert "prior" in one().taken_by


def test_other_processes_count_and_our_own_tiers_do_not() -> None:
    prior = one().taken_mib
    idle = one({"total_mib": 8192, "used_mib": 150, "tiers_mib": 0.0})
    serving = one({"total_mib": 8192, "used_mib": 7400, "tiers_mib": 7250.0})
    assert (idle.taken_mib, serving.taken_mib) == (prior, prior)
    desktop = one({"total_mib": 8192, "used_mib": 900, "tiers_mib": 0.0})
    assert 900 <= desktop.taken_mib <= 964
    # A few MiB that come and go change nothing.
    assert one({"total_mib": 8192, "used_mib": 905, "tiers_mib": 0.0}) == one(
        {"total_mib": 8192, "used_mib": 930, "tiers_mib": 0.0}
    )
    told_nothing = one({"total_mib": 8192, "used_mib": 7400})
    assert told_nothing.taken_mib == prior
    assert (told_nothing.others_known, serving.others_known, one().others_known) == (False, True, True)
    not_told = one({"total_mib": 8192, "used_mib": 7400, "tiers_mib": None})
    assert (not_told.taken_mib, not_told.others_known) == (prior, False)
    behind_rpc = one({"total_mib": 8192, "used_mib": 7400, "tiers_mib": 0.0}, rpc_endpoint="127.0.0.1:50052")
    assert (behind_rpc.taken_mib, behind_rpc.others_known) == (prior, True)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_room_is_never_negative_nor_more_than_the_card(total: int, used: int, tiers: int) -> None:
    found = one({"total_mib": total, "used_mib": used, "tiers_mib": tiers}, name="NVIDIA Mystery")
    assert 0 <= found.room_mib <= found.free_mib <= total


def test_a_host_joins_cards_by_uuid_and_keeps_the_inventorys_order() -> None:
    entries = [entry(SMALL, 1), entry(BIG, 0)]
    profile = {
        "gpus": [{"uuid": entries[1].uuid, "total_mib": 8188}, {"uuid": entries[0].uuid, "total_mib": 3070}],
        "tiers_mib": {},
        "ram_mib": 15900,
    }
    host = cards.host(entries, RamEntry(total_mib=1, bandwidth_gb_s=40.0), profile)
    assert [found.total_mib for found in host.cards] == [3070, 8188]
    assert (host.ram.total_mib, host.ram.bandwidth_gb_s) == (15900, 40.0)
    assert cards.host(entries, RamEntry(), {}).ram.room_mib is None
