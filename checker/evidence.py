"""What was measured of a tier, and what was found of it: plain records, with their JSON documents.

The documents are published (docs/schemas/verification.schema.json): fields are added, never renamed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from checker.hardware import Driver, Gpu
from checker.tier import Placement

EVIDENCE_SCHEMA = "llama-tiers/evidence/1"
REPORT_SCHEMA = "llama-tiers/report/1"


@dataclass(frozen=True)
class ModelId:
    """The model that the tier is to serve."""

    name: str
    sha256: str


@dataclass(frozen=True)
class EngineId:
    """The engine that the tier is to run."""

    commit: str
    release: str


@dataclass(frozen=True)
class UnitEvidence:
    """State of the unit; `load_s` is from the start of the process to "active", readiness included.

    `invocation_id` is systemd's name of this run of the unit, empty when there is none.
    """

    active_state: str
    invocation_id: str
    main_pid: int | None
    load_s: float | None


@dataclass(frozen=True)
class Served:
    """What the server says it serves; `ctx_size` is the context of one slot."""

    model_path: str
    alias: str
    ctx_size: int
    build: str


@dataclass(frozen=True)
class DeviceEvidence:
    """Memory of the tier on one device, in MiB.

    Weights, KV and compute are what the engine logged, `process_mib` what NVML says the unit's main process holds on
    the whole card; None is "could not be read". The devices of the spec come first, in device order; after them any
    other place where the tier was found, with an empty `name` where only NVML tells of it and an empty `uuid` where
    only the log does.
    """

    name: str
    uuid: str
    gpu: str
    predicted_weights_mib: float | None
    weights_mib: float | None
    kv_mib: float | None
    compute_mib: float | None
    process_mib: float | None


@dataclass(frozen=True)
class HostEvidence:
    """Buffers in the host's memory as the engine logged them, in MiB; None is "could not be read"."""

    weights_mib: float | None
    kv_mib: float | None
    compute_mib: float | None


@dataclass(frozen=True)
class Completion:
    """One real completion: tokens and tokens per second by the server's count, `wall_s` by the caller's clock.

    A speed is 0 when the server counted no token or no time.
    """

    prompt: str
    text: str
    prompt_tokens: int
    generated_tokens: int
    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    wall_s: float


@dataclass(frozen=True)
class Evidence:
    """Everything measured of one tier; `problems` are the sentences of what could not be measured."""

    tier: str
    base_url: str
    model: ModelId
    engine: EngineId
    placement: Placement
    unit: UnitEvidence
    served: Served | None
    devices: tuple[DeviceEvidence, ...]
    host: HostEvidence
    completion: Completion | None
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document of the evidence."""
        return {"schema": EVIDENCE_SCHEMA, **_plain(self)}


@dataclass(frozen=True)
class Check:
    """One thing that was held against what was promised."""

    name: str
    passed: bool
    expected: str
    measured: str


@dataclass(frozen=True)
class Verdict:
    """ "pass" or "fail", every check, and one sentence for each that did not pass."""

    verdict: str
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class TierReport:
    """One tier: what was found, and the evidence for it."""

    name: str
    verdict: Verdict
    evidence: Evidence

    def to_json(self) -> dict[str, Any]:
        """Return the tier's document within a report."""
        return {"name": self.name, **_plain(self.verdict), "evidence": self.evidence.to_json()}


@dataclass(frozen=True)
class Report:
    """All tiers of one host; `recorded_at` is UTC (2026-10-01T12:00:00Z), `driver` None when NVML cannot be read."""

    host: str
    recorded_at: str
    passed: bool
    driver: Driver | None
    gpus: tuple[Gpu, ...]
    tiers: tuple[TierReport, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document of the report."""
        gpus = [_plain(gpu) for gpu in self.gpus]
        for gpu in gpus:
            # A device node's number is this boot's business.
            del gpu["minor_number"]
        return {
            "schema": REPORT_SCHEMA,
            "host": self.host,
            "recorded_at": self.recorded_at,
            "passed": self.passed,
            "driver": None if self.driver is None else _plain(self.driver),
            "gpus": gpus,
            "tiers": [tier.to_json() for tier in self.tiers],
        }


def _plain(record: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(asdict(record)))
    return document
