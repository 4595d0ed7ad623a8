"""Residuals: measured less planned, by card and term; what is not known stays unknown."""

from __future__ import annotations

from dataclasses import replace

from example_report import card, report
from hypothesis import given
from hypothesis import strategies as st

from checker import residuals
from checker.evidence import DeviceEvidence, Residual
from inventories import BIG, SMALL

DEVICES = report().tiers[0].evidence.devices
mib = st.floats(0, 1e5).map(lambda value: round(value, 2))


def test_each_card_has_its_own_and_the_peak_counts() -> None:
    big, small = residuals.of(DEVICES, (card(BIG["uuid"], 266.0), card(SMALL["uuid"], 90.0)))
    assert big == Residual(BIG["uuid"], BIG["name"], 0.0, 0.0, 11.27, 8.3, 19.57)
    assert small.total_mib == 4.7, "no watch has seen more than the process held afterwards"


def test_places_that_are_no_part_of_the_plan_have_none() -> None:
    strays = (
        DeviceEvidence("", "GPU-stray", "GeForce 7", 0.0, None, None, None, 300.0),
        DeviceEvidence("CUDA7", "", "", 0.0, 7.0, 0.0, 0.0, None),
    )
    assert [found.uuid for found in residuals.of((*DEVICES, *strays))] == [BIG["uuid"], SMALL["uuid"]]


@given(st.lists(mib, min_size=8, max_size=8))
def test_the_terms_add_up_to_the_whole(values: list[float]) -> None:
    names = ("weights_mib", "kv_mib", "compute_mib")
    planned = {f"predicted_{name}": value for name, value in zip((*names, "overhead_mib"), values[:4], strict=True)}
    measured = dict(zip((*names, "process_mib"), values[4:], strict=True))
    (found,) = residuals.of((replace(DEVICES[0], **planned, **measured),))
    parts = (found.weights_mib, found.kv_mib, found.compute_mib, found.rest_mib)
    assert found.total_mib is not None
    assert abs(sum(part or 0 for part in parts) - found.total_mib) < 0.05


def test_unknown_stays_unknown() -> None:
    (found,) = residuals.of((replace(DEVICES[0], weights_mib=None, process_mib=None),))
    assert found == Residual(BIG["uuid"], BIG["name"], None, 0.0, 11.27, None, None)
    (found,) = residuals.of((replace(DEVICES[0], predicted_overhead_mib=None),))
    assert (found.weights_mib, found.rest_mib, found.total_mib) == (0.0, None, None)
