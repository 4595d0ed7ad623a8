"""A report of one host, judged by the real judge from evidence that is made here."""

from __future__ import annotations

from dataclasses import replace

from fake_tier import COMMIT, TEXT, spec

from checker import verdict
from checker.evidence import (
    Completion,
    DeviceEvidence,
    EngineId,
    Evidence,
    HostEvidence,
    ModelId,
    Report,
    Served,
    TierReport,
    UnitEvidence,
)
from checker.hardware import Driver, Gpu
from inventories import BIG, SMALL

CARDS = (
    Gpu(BIG["name"], BIG["uuid"], "00000000:01:00.0", "8.6", 8192, 452, 448.1, 0),
    Gpu(SMALL["name"], SMALL["uuid"], "00000000:02:00.0", "6.1", 3072, 190, None, 1),
)


def report(host: str = "tower", failed: bool = False, unreadable: bool = False) -> Report:
    """Report one tier `deep`: all well, `failed` (one card empty), or `unreadable` (down, and no NVML)."""
    planned = spec()
    evidence = Evidence(
        tier=planned.name,
        base_url=planned.base_url,
        model=ModelId(planned.model.name, planned.model.sha256),
        engine=EngineId(planned.engine.commit, planned.engine.release),
        placement=planned.placement,
        unit=UnitEvidence("active", "0123456789abcdef0123456789abcdef", 4711, 3.14),
        served=Served(planned.model.file, planned.model.name, 4096, f"b1-{COMMIT[:9]}"),
        devices=(
            DeviceEvidence("RPC0", BIG["uuid"], BIG["name"], 184.86, 184.86, 20.0, 52.84, 262.0),
            DeviceEvidence("RPC1", SMALL["uuid"], SMALL["name"], 50.3, 50.3, 5.0, 33.0, 0.0 if failed else 93.0),
        ),
        host=HostEvidence(170.0, 0.0, 5.0),
        completion=Completion("Explain.", TEXT, 8, 200, 100.0, 61.2, 3.36),
        problems=(),
    )
    if unreadable:
        evidence = replace(
            evidence,
            unit=UnitEvidence("failed", "", None, None),
            served=None,
            devices=tuple(
                replace(device, weights_mib=None, kv_mib=None, compute_mib=None, process_mib=None)
                for device in evidence.devices
            ),
            host=HostEvidence(None, None, None),
            completion=None,
            problems=("NVML could not be opened",),
        )
    judged = verdict.judge(planned, evidence)
    return Report(
        host=host,
        recorded_at="2026-11-24T15:00:00Z",
        passed=judged.verdict == "pass",
        driver=None if unreadable else Driver("580.126.09", "13.0"),
        gpus=() if unreadable else CARDS,
        tiers=(TierReport(planned.name, judged, evidence),),
    )
