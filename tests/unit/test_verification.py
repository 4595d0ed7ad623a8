"""Verification: all tiers of a host as one report, one line for each, and the part of it that stays the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from example_report import CARDS, report
from fake_tier import spec

from checker import hardware, tier, verification
from checker.evidence import Evidence, Report
from inventories import SMALL

FAST = replace(spec(), name="fast")
DRIVER = hardware.Driver("580.126.09", "13.0")


def measured(planned: tier.TierSpec, earlier: object) -> Evidence:
    """Return good evidence of tier `deep`, and that of a card left empty of any other."""
    evidence = report(failed=planned.name != "deep").tiers[0].evidence
    return replace(evidence, tier=planned.name)


def told(answer: Any) -> Callable[[], Any]:
    def tell() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return tell


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "measure", measured)
    monkeypatch.setattr(hardware, "read_driver", told(DRIVER))
    monkeypatch.setattr(hardware, "read_gpus", told(CARDS))


def test_a_host_passes_when_each_of_its_tiers_does() -> None:
    one = verification.report([spec()], "tower")
    assert (one.host, one.passed, one.driver, one.gpus) == ("tower", True, DRIVER, CARDS)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one.recorded_at)

    both = verification.report([FAST, spec()], "tower")
    assert not both.passed
    assert [(found.name, found.verdict.verdict) for found in both.tiers] == [("fast", "fail"), ("deep", "pass")]


def test_a_host_without_tiers_does_not_pass() -> None:
    assert not verification.report([], "tower").passed


def test_without_nvml_there_is_a_report_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "read_driver", told(hardware.HardwareError("modprobe nvidia")))
    found = verification.report([spec()], "tower")
    assert (found.driver, found.gpus, len(found.tiers)) == (None, (), 1)


def test_a_lost_card_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "read_gpus", told(hardware.GpuLostError((SMALL["uuid"],), CARDS[:1])))
    found = verification.report([spec()], "tower")
    assert (found.driver, found.gpus) == (DRIVER, CARDS[:1])


def test_a_tier_that_passed_is_described_in_one_line() -> None:
    assert verification.describe(report().tiers[0]) == (
        "deep: PASS, 61.2 tokens/s, loaded in 3.1 s; "
        "weights: NVIDIA GeForce RTX 3060 Ti 185 MiB + NVIDIA GeForce GTX 1060 3GB 50 MiB"
    )


def test_a_tier_that_failed_is_described_with_every_reason_and_its_name_once() -> None:
    found = report(unreadable=True).tiers[0]
    line = verification.describe(found)
    assert line.startswith("deep: FAIL: NVML could not be opened; llama-tier-deep.service is failed: see journalctl")
    assert line.count("deep: ") == 1
    assert "\n" not in line
    assert f"holds nothing on {SMALL['uuid']}" in verification.describe(report(failed=True).tiers[0])


def other_measurements(found: Report) -> Report:
    """Return the report of another run of the same tiers: all that is measured differs, the verdict does not."""
    evidence = found.tiers[0].evidence
    assert evidence.completion
    again = replace(
        evidence,
        unit=replace(evidence.unit, main_pid=12, load_s=99.9),
        devices=tuple(replace(device, process_mib=999.9, compute_mib=99.9) for device in evidence.devices),
        completion=replace(evidence.completion, generation_tokens_per_second=99.9, text="Other.", wall_s=9.9),
    )
    tiers = (replace(found.tiers[0], evidence=again),)
    return replace(found, recorded_at="2027-01-01T00:00:00Z", gpus=(), tiers=tiers)


def test_what_is_stable_does_not_change_with_a_measurement() -> None:
    stable = verification.stable(report())
    assert stable == verification.stable(other_measurements(report()))
    assert json.loads(json.dumps(stable))["deep"] == {
        "model": {"name": "tiny", "sha256": "ab" * 32},
        "engine": {"commit": spec().engine.commit, "release": "/opt/llama-tiers/releases/one"},
        "placement": spec().to_json()["placement"],
        "base_url": "http://127.0.0.1:9",
        "verdict": "pass",
    }


def test_what_is_stable_changes_with_the_verdict() -> None:
    assert verification.stable(report(failed=True))["deep"]["verdict"] == "fail"
    assert SMALL["uuid"] not in json.dumps(verification.stable(report(failed=True))), "a reason is a measurement"
