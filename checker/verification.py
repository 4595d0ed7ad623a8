"""Measure and judge all tiers of this host, as one report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from checker import hardware
from checker.evidence import Report, TierReport
from checker.measure import measure
from checker.tier import TierSpec
from checker.verdict import judge


def report(specs: Sequence[TierSpec], host: str) -> Report:
    """Measure and judge the tiers one after the other; `host` is the name that the inventory gives this host.

    A host passes when it has tiers and each of them passes. Never raises for what is down: the tiers' reasons tell.
    """
    driver, gpus = _cards()
    tiers = []
    for spec in specs:
        evidence = measure(spec)
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
        return hardware.read_driver(), hardware.read_gpus()
    except hardware.GpuLostError as error:
        return hardware.read_driver(), error.found
    except hardware.HardwareError:
        # Every tier fails with what NVML said: none of its devices could be read.
        return None, ()
