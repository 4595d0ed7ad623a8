"""What was measured of a tier, and what was found of it: plain records, with their JSON documents.

The documents are published (docs/schemas/verification.schema.json): fields are added, never renamed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, cast, get_args, get_origin, get_type_hints

from checker.hardware import Driver, Gpu
from checker.tier import PINNED, Placement, Predicted

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
class TlsEvidence:
    """What came of a handshake with a tier, which is to serve the certificate of its file.

    `valid_until` is UTC (2026-10-01T12:00:00Z), `days_left` how many days that was from then; None where there is a
    `fault` (one of `checker.tls.Fault`), of which `said` has the words.
    """

    valid_until: str | None = None
    days_left: float | None = None
    fault: str | None = None
    said: str | None = None


@dataclass(frozen=True)
class FrontEvidence:
    """What is before a tier: the state of the socket that holds its port, and of its fallback there.

    `stranger` names a process, with its unit, that listens on the port and is no part of the tier; `fallback` the tier
    that answers there because this one failed, for the `reason` of its last start. `tls` is None of a tier without TLS.
    """

    socket_state: str
    stranger: str | None = None
    fallback: str | None = None
    reason: str | None = None
    tls: TlsEvidence | None = None


@dataclass(frozen=True)
class Served:
    """What the server says it serves; `ctx_size` is the context of one slot."""

    model_path: str
    alias: str
    ctx_size: int
    build: str


@dataclass(frozen=True)
class Holder:
    """Another process on a card of the tier, with what it holds there, and held before the tier's server was started.

    MiB, 0 when it was not there, None "not known". Name and unit are empty of a process that has ended since, the unit
    also of one that belongs to none.
    """

    pid: int
    name: str
    unit: str
    mib: float | None
    before_mib: float | None


@dataclass(frozen=True)
class DeviceEvidence:
    """Memory of the tier on one device, in MiB.

    Weights, KV and compute are what the engine logged, `process_mib` what NVML says the unit's main process holds on
    the whole card after the first completion, and `loaded_mib` before it; None is "could not be read". `before_mib` is
    all that was in use on the card before this run's server was started, `others_mib` what is now besides that process
    (driver, other processes), and `others` who that is, as far as the driver tells. `pci_bus_id` is the card's address
    by NVML, `used_pci_bus_id` that of the card behind the device by the engine's log. The devices of the spec come
    first, in device order; after them any other place where the tier was found, with an empty `name` where only NVML
    tells of it and an empty `uuid` where only the log does.
    """

    name: str
    uuid: str
    gpu: str
    predicted_weights_mib: float | None
    weights_mib: float | None
    kv_mib: float | None
    compute_mib: float | None
    process_mib: float | None
    predicted_kv_mib: float | None = None
    predicted_compute_mib: float | None = None
    predicted_overhead_mib: float | None = None
    loaded_mib: float | None = None
    others_mib: float | None = None
    pci_bus_id: str | None = None
    used_pci_bus_id: str | None = None
    compute_capability: str | None = None
    before_mib: float | None = None
    others: tuple[Holder, ...] = ()


@dataclass(frozen=True)
class HostEvidence:
    """Buffers in the host's memory as the engine logged them, in MiB; None is "could not be read"."""

    weights_mib: float | None
    kv_mib: float | None
    compute_mib: float | None


def steps(generated_tokens: int) -> int:
    """Return in how many steps tokens were generated.

    The first token comes with the prompt's last batch, and the engine's clock of the answer starts at it: all of
    them by that time would be faster than the tier is.
    """
    return max(generated_tokens - 1, 0)


@dataclass(frozen=True)
class Completion:
    """One real completion: tokens and tokens per second by the server's count, `wall_s` by the caller's clock.

    A speed is 0 when the server counted no time, or no token after the first one.
    """

    prompt: str
    text: str
    prompt_tokens: int
    generated_tokens: int
    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    wall_s: float


@dataclass(frozen=True)
class Load:
    """Where the time from start to ready went, in seconds by the journal; None is "the log does not tell".

    `process_s` until the server's first line (libraries, CUDA), `weights_s` until the model and its context are in
    memory, `warm_up_s` until "model loaded" (the engine's empty run, in which CUDA compiles kernels that the binary
    does not hold), `proof_s` until active (readiness: first token, memory). `read_mib` is what the process had read
    from storage when this run of the unit was first measured (later it has read again what the page cache dropped
    meanwhile, and a warm load would look cold), `model_mib` the size of the model's files: they tell a cold page cache
    from a warm one. `compiled_for` are the compute capabilities that the engine says it holds kernels for ("8.6"),
    empty without CUDA.
    """

    process_s: float | None
    weights_s: float | None
    warm_up_s: float | None
    proof_s: float | None
    read_mib: float | None
    model_mib: float | None
    compiled_for: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """One request: tokens and seconds by the server's count, `wall_s` of the whole request by the caller's clock.

    `prompt_tokens` are those that were computed; the rest of the prompt lay in the cache.
    """

    prompt_tokens: int
    prompt_s: float
    generated_tokens: int
    generation_s: float
    wall_s: float


@dataclass(frozen=True)
class Spread:
    """Median, least and most of some measurements."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """Speed with `context_tokens` in the context when generation began; tokens per second by the server's count.

    None is "no sample counted any". That of generation is without the first token, which comes with the prompt.
    """

    context_tokens: int
    prompt_tokens_per_second: Spread | None
    generation_tokens_per_second: Spread | None
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class CardLoad:
    """One card while the tier worked: the most that its process held, and what the driver said of clocks and link.

    Clocks are medians in MHz, power (W), temperature (degrees Celsius) and the PCIe link the highest that were seen;
    `slowed_by` are the driver's reasons for a lower clock. None is "the driver does not tell".
    """

    uuid: str
    peak_mib: float | None
    graphics_mhz: float | None
    graphics_max_mhz: float | None
    memory_mhz: float | None
    memory_max_mhz: float | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: float | None
    pcie_generation: int | None
    pcie_generation_max: int | None
    pcie_width: int | None
    pcie_width_max: int | None
    slowed_by: tuple[str, ...]


@dataclass(frozen=True)
class Latency:
    """Seconds of some requests by the caller's clock."""

    p50_s: float
    p95_s: float
    max_s: float


@dataclass(frozen=True)
class Stability:
    """Many small requests, in a row and at once; `failures` are sentences.

    Growth is that of the row by least squares, in MiB a request: of the process's own memory on the host (without the
    mapped model), and of what it holds on its cards. None is "could not be read".
    """

    in_a_row: int
    row_latency: Latency | None
    at_once: int
    at_once_latency: Latency | None
    failures: tuple[str, ...]
    host_growth_mib: float | None
    cards_growth_mib: float | None


@dataclass(frozen=True)
class Thorough:
    """What only a whole verification measures, which keeps the tier busy: once for each run of its unit.

    `warm_completion` is the first completion asked again. `full` is the speed with a prompt that fills the context
    in full micro-batches, `cards` what the cards did meanwhile. None is "was not answered"; the problems say why.
    `unread` are sentences, one for each reason why a card could not be read to the end: its peak is not known.
    """

    measured_at: str
    warm_completion: Completion | None
    short: Speed | None
    full: Speed | None
    stability: Stability | None
    cards: tuple[CardLoad, ...]
    unread: tuple[str, ...]


@dataclass(frozen=True)
class Quality:
    """How far the tier's placement and an unsplit reference differ: llama-perplexity's KL divergence over a text.

    `reference` names where the unsplit model lay. The noise is the reference held against a second run of itself.
    `same_top_share` is the share of tokens for which both find the same one most likely (0 to 1).
    """

    measured_at: str
    reference: str
    tokens: int
    noise_mean_kld: float
    noise_same_top_share: float
    mean_kld: float
    max_kld: float
    same_top_share: float


@dataclass(frozen=True)
class Residual:
    """What was measured on one card less what was planned, in MiB; None is "one of the two is not known".

    `rest_mib` is what neither weights nor KV cache nor compute buffers explain, less the planned overhead of CUDA;
    `total_mib` the whole: the most that was seen held, `held_mib`, less what was planned, `planned_mib`.
    """

    uuid: str
    gpu: str
    weights_mib: float | None
    kv_mib: float | None
    compute_mib: float | None
    rest_mib: float | None
    total_mib: float | None
    planned_mib: float | None
    held_mib: float | None


@dataclass(frozen=True)
class Evidence:
    """Everything measured of one tier; `problems` are the sentences of what could not be measured.

    `failures` are those of the problems that are the server's own doing: it took a request and died of it, refused it
    or never answered. `strange_files` are those of the model's files that are not, by size and time, what was verified
    when they were fetched.

    `thorough` and `quality` are None where they were not measured for this run of the unit, `residuals` one for each
    card of the plan. `front` is what listens on the tier's port. `argv` and `environment` are what the unit runs, so
    that a measurement can be repeated. `asleep` says of a tier on demand that it was not loaded when the report was
    made: all else is of `measured_at`. `rivals` are the tiers that are not loaded while this one is; `rival_states` is
    what systemd said of the unit of each ("inactive") while this one was active and measured, without those that nobody
    looked at. `booted_at` is when this command was last seen up, of a tier on demand its port, as a boot had left it;
    None when it never was.
    """

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
    front: FrontEvidence | None = None
    load: Load | None = None
    thorough: Thorough | None = None
    quality: Quality | None = None
    residuals: tuple[Residual, ...] = ()
    predicted: Predicted | None = None
    argv: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    residency: str = PINNED
    measured_at: str = ""
    asleep: bool = False
    rivals: tuple[str, ...] = ()
    booted_at: str | None = None
    failures: tuple[str, ...] = ()
    strange_files: tuple[str, ...] = ()
    rival_states: dict[str, str] = field(default_factory=dict)

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
    """ "pass" or "fail", every check, and one sentence for each that did not pass.

    `notes` are sentences about what passed and should be looked at all the same.
    """

    verdict: str
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()


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
class Box:
    """One box of the checklist: what ticks it, or why it is open."""

    name: str
    ticked: bool
    reason: str


@dataclass(frozen=True)
class Report:
    """All tiers of one host; `recorded_at` is UTC (2026-10-01T12:00:00Z), `driver` None when NVML cannot be read.

    `decision` is the inventory's, as `checker decide` wrote it (docs/schemas/decision.schema.json), None without one.
    """

    host: str
    recorded_at: str
    passed: bool
    driver: Driver | None
    gpus: tuple[Gpu, ...]
    tiers: tuple[TierReport, ...]
    decision: dict[str, Any] | None
    checklist: tuple[Box, ...]

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
            "decision": self.decision,
            "checklist": [_plain(box) for box in self.checklist],
        }


def from_json(document: Any) -> Evidence | None:
    """Read an evidence document; None where it lacks what was always there."""
    return cast("Evidence | None", _read(Evidence, document))


def thorough_from_json(document: Any) -> Thorough | None:
    """Read that part of an evidence document; None where it is absent or lacks what was always there."""
    return cast("Thorough | None", _read(Thorough, document))


def devices_from_json(document: Any) -> tuple[DeviceEvidence, ...] | None:
    """Read that part of an evidence document; None where it is absent or lacks what was always there."""
    return cast("tuple[DeviceEvidence, ...] | None", _read(tuple[DeviceEvidence, ...], document))


def quality_from_json(document: Any) -> Quality | None:
    """Read that part of an evidence document; None where it is absent or lacks what was always there."""
    return cast("Quality | None", _read(Quality, document))


def _read(kind: Any, document: Any) -> Any:
    try:
        return None if document is None else _build(kind, document)
    except (KeyError, TypeError):
        return None


def _build(kind: Any, value: Any) -> Any:
    """Build a record of plain JSON by the types of its fields."""
    if value is None:
        return None
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        # A field that came later has a default, which is "not known".
        return cast("Any", kind)(**{name: _build(hint, value[name]) for name, hint in hints.items() if name in value})
    inner = [argument for argument in get_args(kind) if argument not in (type(None), Ellipsis)]
    if get_origin(kind) is tuple:
        return tuple(_build(inner[0], part) for part in value)
    if get_origin(kind) is dict:
        return dict(value)
    return _build(inner[0], value) if inner else value


def _plain(record: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(asdict(record)))
    return document
