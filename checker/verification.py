"""Measure and judge all tiers of this host, as one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from checker import hardware
from checker.evidence import Report, TierReport
from checker.measure import measure
from checker.tier import TierSpec
from checker.verdict import judge


def report(specs: Sequence[TierSpec], host: str, earlier: Sequence[Mapping[str, Any]] = ()) -> Report:
    """Measure and judge the tiers one after the other; `host` is the name that the inventory gives this host.

    `earlier` are evidence documents of this host, newest first.

    A host passes when it has tiers and each of them passes. Never raises for what is down: the tiers' reasons tell.
    """
    driver, gpus = _cards()
    tiers = []
    for spec in specs:
        evidence = measure(spec, earlier)
        tiers.append(TierReport(spec.name, judge(spec, evidence), evidence))
    return Report(
        host=host,
        recorded_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        passed=bool(tiers) and all(tier.verdict.verdict == "pass" for tier in tiers),
        driver=driver,
        gpus=gpus,
        tiers=tuple(tiers),
    )


def _cards() -> tuple[hardware.Driver | None, tuple[hardware.Gpu, ...]]:
    try:
        driver = hardware.read_driver()
        return driver, hardware.read_gpus()
    except hardware.GpuLostError as error:
        return driver, error.found
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
    speed = evidence.completion.generation_tokens_per_second if evidence.completion else 0
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
