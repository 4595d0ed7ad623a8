"""A report of one host, judged by the real judge from evidence that is made here."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from fake_tier import COMMIT, TEXT, spec

from checker import checklist, residuals, verdict
from checker.evidence import (
    CardLoad,
    Completion,
    DeviceEvidence,
    EngineId,
    Evidence,
    FrontEvidence,
    Holder,
    HostEvidence,
    Latency,
    Load,
    ModelId,
    Quality,
    Report,
    Residual,
    Sample,
    Served,
    Speed,
    Spread,
    Stability,
    Thorough,
    TierReport,
    UnitEvidence,
)
from checker.hardware import Driver, Gpu
from checker.tier import Predicted
from inventories import BIG, SMALL

CARDS = (
    Gpu(BIG["name"], BIG["uuid"], "00000000:01:00.0", "8.6", 8192, 452, 448.1, 0),
    Gpu(SMALL["name"], SMALL["uuid"], "00000000:02:00.0", "6.1", 3072, 190, None, 1),
)


PLANNED = spec(predicted=Predicted(100.0, 62.0))


def card(uuid: str, peak_mib: float | None, **changes: Any) -> CardLoad:
    """Return a card that works as it should."""
    well = CardLoad(uuid, peak_mib, 1800.0, 1900.0, 7000.0, 7001.0, 120.0, 200.0, 61.0, 4, 4, 16, 16, ())
    return replace(well, **changes)


def speed(context: int, prompt: float, generation: float) -> Speed:
    """Return the speed of three samples with these tokens per second, which took what they tell."""
    sample = Sample(context, context / prompt, 64, 64 / generation, round(context / prompt + 64 / generation + 0.01, 4))
    return Speed(
        context,
        Spread(prompt, prompt - 1, prompt + 1),
        Spread(generation, generation - 1, generation + 1),
        (sample,) * 3,
    )


def thorough(small_peak_mib: float = 95.0) -> Thorough:
    """Return what a whole measurement of a good tier finds."""
    return Thorough(
        measured_at="2026-11-24T15:00:00Z",
        warm_completion=Completion("Explain.", TEXT, 8, 200, 100.0, 61.2, 3.36),
        short=speed(512, 400.0, 61.0),
        full=speed(4056, 380.0, 55.0),
        stability=Stability(16, Latency(0.2, 0.25, 0.3), 4, Latency(0.5, 0.6, 0.7), (), 0.01, 0.0),
        cards=(card(BIG["uuid"], 266.0), card(SMALL["uuid"], small_peak_mib)),
        unread=(),
    )


DECISION = {
    "schema": "llama-tiers/decision/2",
    "host": "tower",
    "policy": "multi-gpu",
    "acceptable_tokens_per_second": 10.0,
    "tiers": {
        "deep": {
            "model": "tiny",
            "placement": "auto",
            "because": "first of 2 that reach what is asked for, by quality",
            "tokens_per_second": 61.25,
            "load_s": 3.14,
            "gpus": [BIG["name"], SMALL["name"]],
            "uuids": [BIG["uuid"], SMALL["uuid"]],
            "placed": {**asdict(PLANNED.placement), "tensor_split": [13, 6]},
            "measured_at": "2026-11-23T10:00:00Z",
            "evidence": "e" * 64,
        }
    },
}


def report(
    host: str = "tower",
    failed: bool = False,
    unreadable: bool = False,
    unread: bool = False,
    decision: dict[str, Any] | None = None,
) -> Report:
    """Report one tier `deep`: all well, `failed` (one card empty), `unreadable` (down, and no NVML), or with a card
    that was `unread` while it worked."""
    planned = PLANNED
    evidence = Evidence(
        tier=planned.name,
        base_url=planned.base_url,
        model=ModelId(planned.model.name, planned.model.sha256),
        engine=EngineId(planned.engine.commit, planned.engine.release),
        placement=planned.placement,
        unit=UnitEvidence("active", "0123456789abcdef0123456789abcdef", 4711, 3.14),
        served=Served(planned.model.file, planned.model.name, 4096, f"b1-{COMMIT[:9]}"),
        devices=(
            DeviceEvidence(
                *("RPC0", BIG["uuid"], BIG["name"], 184.86, 184.86, 20.0, 52.84, 262.0),
                *(20.0, 41.57, 0.0, 260.0, 292.0, "00000000:01:00.0", None, "8.6"),
                *(292.0, (Holder(12, "ollama", "ollama.service", 100.0, 100.0),)),
            ),
            DeviceEvidence(
                *("RPC1", SMALL["uuid"], SMALL["name"], 50.3, 50.3, 5.0, 33.0, 0.0 if failed else 93.0),
                *(5.0, 33.0, 0.0, 92.0, 122.0, "00000000:02:00.0", None, "6.1"),
                *(72.0, (Holder(815, "Xorg", "", 50.0, 0.0),)),
            ),
        ),
        host=HostEvidence(170.0, 0.0, 5.0),
        completion=Completion("Explain.", TEXT, 8, 200, 100.0, 61.2, 3.36),
        problems=(),
        front=FrontEvidence("active"),
        load=Load(0.3, 2.1, 0.3, 0.4, 12.0, 241.4, ("6.1", "8.6")),
        thorough=replace(thorough(), unread=(f"{SMALL['uuid']}: the GPU is lost",)) if unread else thorough(),
        quality=Quality("2026-11-24T15:00:00Z", f"{BIG['uuid']} alone", 1024, 0.0, 1.0, 2e-6, 4e-5, 1.0),
        predicted=planned.predicted,
        argv=planned.argv,
        measured_at="2026-11-24T15:00:00Z",
    )
    evidence = replace(evidence, residuals=residuals.of(evidence.devices, thorough().cards))
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
            front=None,
            load=Load(None, None, None, None, None, None, ()),
            thorough=None,
            quality=None,
            residuals=tuple(
                Residual(d.uuid, d.gpu, None, None, None, None, None, None, None) for d in evidence.devices
            ),
            problems=("NVML could not be opened",),
        )
    judged = verdict.judge(planned, evidence)
    tiers = (TierReport(planned.name, judged, evidence),)
    return Report(
        host=host,
        recorded_at="2026-11-24T15:00:00Z",
        passed=judged.verdict == "pass",
        driver=None if unreadable else Driver("580.126.09", "13.0"),
        gpus=() if unreadable else CARDS,
        tiers=tiers,
        decision=decision,
        checklist=checklist.boxes(tiers, decision),
    )
