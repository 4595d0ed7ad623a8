"""Measure and judge all tiers of this host, as one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from checker import hardware, speed_verdict
from checker.accepted import Accepted, Gate, fingerprint, key, repeated_speed
from checker.evidence import Evidence, Quality, Report, TierReport
from checker.measure import Depth, measure, now
from checker.tier import TierSpec
from checker.verdict import judge


def report(
    specs: Sequence[TierSpec],
    host: str,
    earlier: Sequence[Mapping[str, Any]],
    depth: Depth,
    accepted: Mapping[str, Accepted],
    quality: Mapping[str, Quality | str],
) -> Report:
    """Measure and judge the tiers one after the other; `host` is the name that the inventory gives this host.

    `earlier` are evidence documents of this host, newest first; `accepted` the speeds that releases and placements have
    to reach, empty when slower ones are allowed; `quality` what was measured just now of the splits, by tier. A host
    passes when it has tiers and each of them passes. Never raises for what is down: the tiers' reasons tell.
    """
    driver, gpus = _cards()
    tiers = []
    for spec in specs:
        split = quality.get(spec.name)
        found = _tier(spec, earlier, depth, accepted, driver, gpus, split)
        if depth is Depth.AUTO and found.verdict.verdict == "fail" and _carried(found.evidence, earlier):
            # What an earlier measurement of this run found need not be so any more.
            found = _tier(spec, earlier, Depth.WHOLE, accepted, driver, gpus, split)
        tiers.append(found)
    return Report(
        host=host,
        recorded_at=now(),
        passed=bool(tiers) and all(tier.verdict.verdict == "pass" for tier in tiers),
        driver=driver,
        gpus=gpus,
        tiers=tuple(tiers),
    )


def _tier(
    spec: TierSpec,
    earlier: Sequence[Mapping[str, Any]],
    depth: Depth,
    accepted: Mapping[str, Accepted],
    driver: hardware.Driver | None,
    gpus: Sequence[hardware.Gpu],
    quality: Quality | str | None,
) -> TierReport:
    evidence = measure(spec, earlier, depth, quality)
    cards = [gpu.uuid for gpu in gpus]
    before = accepted.get(key(evidence, cards))
    own = fingerprint(evidence, cards, driver.version if driver else None)
    gate = Gate(before, same=before.fingerprint == own) if before else None
    return TierReport(spec.name, judge(spec, evidence, gate), evidence)


def _carried(evidence: Evidence, earlier: Sequence[Mapping[str, Any]]) -> bool:
    told = [document["thorough"]["measured_at"] for document in earlier if document.get("thorough")]
    return evidence.thorough is not None and evidence.thorough.measured_at in told


def newly_accepted(found: Report, accepted: Mapping[str, Accepted]) -> dict[str, Accepted]:
    """Return all accepted speeds after a report: each tier that passed and was measured whole has its own.

    One that was accepted with the very same release, driver and placement stays as it is, so that noise does not wear
    the gate down from run to run.
    """
    cards = [gpu.uuid for gpu in found.gpus]
    driver = found.driver.version if found.driver else None
    now_accepted = dict(accepted)
    for tier in found.tiers:
        speed = repeated_speed(tier.evidence)
        if tier.verdict.verdict != "pass" or speed is None:
            continue
        own = fingerprint(tier.evidence, cards, driver)
        before = accepted.get(key(tier.evidence, cards))
        if before is None or before.fingerprint != own:
            now_accepted[key(tier.evidence, cards)] = Accepted(speed, found.recorded_at, own)
    return now_accepted


def _cards() -> tuple[hardware.Driver | None, tuple[hardware.Gpu, ...]]:
    try:
        return hardware.read_driver(), hardware.answering_gpus()
    except hardware.HardwareError:
        # Every tier fails with what NVML said: none of its devices could be read.
        return None, ()


def describe(tier: TierReport) -> str:
    """Say in one line what was found of a tier."""
    if tier.verdict.verdict == "fail":
        return f"{tier.name}: FAIL: " + "; ".join(
            reason.removeprefix(f"{tier.name}: ") for reason in tier.verdict.reasons
        )
    evidence = tier.evidence
    speed = speed_verdict.generation_speed(evidence) or 0
    weights = " + ".join(f"{device.gpu} {device.weights_mib or 0:,.0f} MiB" for device in evidence.devices)
    loaded = evidence.unit.load_s or 0
    return f"{tier.name}: PASS, {speed:.1f} tokens/s, loaded in {loaded:.1f} s; weights: {weights}"


def stable(report: Report) -> dict[str, Any]:
    """Return what stays the same from run to run while nothing changes: no measurement, no time."""
    return {
        tier.name: {
            "model": asdict(tier.evidence.model),
            "engine": asdict(tier.evidence.engine),
            "placement": asdict(tier.evidence.placement),
            "base_url": tier.evidence.base_url,
            "verdict": tier.verdict.verdict,
        }
        for tier in report.tiers
    }
