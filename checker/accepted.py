"""The speed with which a tier was accepted on this host, and the gate for whatever takes its place. Pure.

Kept in one file on the host, by what stays the same when release or placement change: tier, cards of the host, model,
context and slots. So a new release, driver or split of the same promise is held against the last one that was accepted.
What was rolled back is kept beside it, so that it is not tried again for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from json import dumps
from typing import Any

from checker.evidence import Check, Evidence, Report, Verdict
from checker.findings import Finding
from checker.hardware import Driver, Gpu
from checker.tier import TierSpec

SCHEMA = "llama-tiers/accepted/1"
_SHARE = 0.95
_CHECK = "no slower than before"
# What a busy host may have brought about. Whoever is slower than he promised is slower than before as well.
_OF_SPEED = {_CHECK, "generation speed"}
_OVERRIDE = "`-e verification_accept_slower=true`"


@dataclass(frozen=True)
class Reached:
    """A speed that a tier reached, in tokens per second, when, and with what: release, driver, placement, flags."""

    tokens_per_second: float
    recorded_at: str
    fingerprint: dict[str, Any]


@dataclass(frozen=True)
class Refused:
    """What was rolled back, when and why, and with which speed in tokens per second; None when not for that alone."""

    tokens_per_second: float | None
    recorded_at: str
    fingerprint: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Speeds:
    """By `key`, the speed that was accepted last, and what was rolled back."""

    accepted: Mapping[str, Reached] = field(default_factory=dict)
    refused: Mapping[str, tuple[Refused, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """What a tier is held against: a speed, and whether it was reached by the `same` release, driver and placement."""

    accepted: Reached
    same: bool


@dataclass(frozen=True)
class Host:
    """What a speed depends on besides the tier: UUIDs of all cards of the host, version of the driver."""

    cards: tuple[str, ...]
    driver: str | None


def host_of(driver: Driver | None, gpus: Sequence[Gpu]) -> Host:
    """Return what NVML tells of a host; of one on which it tells nothing, that."""
    return Host(tuple(gpu.uuid for gpu in gpus), driver.version if driver else None)


def key(tier: str, found: Evidence | TierSpec, host: Host) -> str:
    """Return what a tier's speed is kept under, as it was measured or as it is planned."""
    placement = found.placement
    return _digest([tier, sorted(host.cards), found.model.sha256, placement.ctx_size, placement.parallel])


def fingerprint(found: Evidence | TierSpec, host: Host) -> dict[str, Any]:
    """Return everything that a speed depends on."""
    return {
        "cards": sorted(host.cards),
        "driver": host.driver,
        "model_sha256": found.model.sha256,
        "engine_commit": found.engine.commit,
        "engine_release": found.engine.release,
        "placement": {**asdict(found.placement), "tensor_split": list(found.placement.tensor_split)},
        "devices": [device.uuid for device in found.devices if device.name and device.uuid],
        "flags": _digest([list(found.argv[1:]), found.environment]),
    }


def _digest(value: Any) -> str:
    return sha256(dumps(value, sort_keys=True).encode()).hexdigest()


def slower(tier: str, evidence: Evidence, gate: Gate | None) -> Iterator[Finding]:
    """Yield the gate's check; nothing where there is nothing to hold against, or speed was not measured by repeats.

    What is slower with nothing changed is noise or heat, no regression: it is noted.
    """
    measured = repeated_speed(evidence)
    if gate is None or measured is None:
        return
    least = _least(gate.accepted)
    said = f"{tier}: generates {measured:.1f} tokens/s, {_accepted(gate.accepted)}"
    yield Finding(
        Check(_CHECK, gate.same or measured >= least, f"at least {least:.1f} tokens/s", f"{measured:.1f} tokens/s"),
        f"{said}, {_SHARE:.0%} of them have to be reached: go back to that, or accept this with {_OVERRIDE}",
        note=f"{said}, with the same release, driver and placement" if measured < least else "",
    )


def only_slow(verdict: Verdict) -> bool:
    """Whether a tier failed, and for nothing but its speed."""
    failed = [check.name for check in verdict.checks if not check.passed]
    return bool(failed) and len(verdict.reasons) == len(failed) and _OF_SPEED.issuperset(failed)


def refusal(spec: TierSpec, speeds: Speeds, host: Host) -> str | None:
    """Say why a tier would fail again as it is planned, for it was rolled back when it was just so; None if not."""
    name, own = key(spec.name, spec, host), fingerprint(spec, host)
    before = speeds.accepted.get(name)
    tried = next((each for each in speeds.refused.get(name, ()) if each.fingerprint == own), None)
    if before is None or tried is None:
        return None
    if tried.tokens_per_second is not None and tried.tokens_per_second >= _least(before):
        return None
    slower = f", {_accepted(before)}" if tried.tokens_per_second is not None else ""
    accept = f"accept this with {_OVERRIDE}, or " if slower else ""
    return (
        f"{spec.name}: was rolled back on {tried.recorded_at} as it is planned now ({_with_what(tried)}): "
        f"{tried.reason}{slower}. Nothing that it depends on has changed: stay with what serves, {accept}have it tried "
        "again with `-e llama_tiers_retry=true`"
    )


def refuse(speeds: Speeds, found: Report, failed: Collection[str]) -> Speeds:
    """Return the speeds with those of tiers that are rolled back; the last measurement of the same one counts."""
    refused, host = dict(speeds.refused), host_of(found.driver, found.gpus)
    for each in (each for each in found.tiers if each.name in failed):
        evidence = each.evidence
        name, own = key(evidence.tier, evidence, host), fingerprint(evidence, host)
        speed = repeated_speed(evidence) if only_slow(each.verdict) else None
        reason = "; ".join(told.removeprefix(f"{each.name}: ") for told in each.verdict.reasons)
        if speed is not None:
            reason = f"it generated {speed:.1f} tokens/s"
        refused[name] = (*_without(refused.get(name, ()), own), Refused(speed, found.recorded_at, own, reason))
    return Speeds(speeds.accepted, refused)


def accept(speeds: Speeds, found: Report) -> Speeds:
    """Return the speeds with those of the tiers that are `to_accept`.

    One that was accepted with the very same release, driver and placement stays as it is, so that noise does not wear
    the gate down from run to run. What is accepted is refused no longer.
    """
    accepted, refused = dict(speeds.accepted), dict(speeds.refused)
    host = host_of(found.driver, found.gpus)
    for evidence, speed in to_accept(found):
        name, own = key(evidence.tier, evidence, host), fingerprint(evidence, host)
        if name not in accepted or accepted[name].fingerprint != own:
            accepted[name] = Reached(speed, found.recorded_at, own)
        refused[name] = _without(refused.get(name, ()), own)
    return Speeds(accepted, {name: entries for name, entries in refused.items() if entries})


def to_accept(found: Report) -> Iterator[tuple[Evidence, float]]:
    """Yield the evidence of each tier that passed and was measured whole, with its speed."""
    for each in found.tiers:
        speed = repeated_speed(each.evidence)
        # What was measured before says nothing of the driver that is here now.
        if each.verdict.verdict == "pass" and speed is not None and not each.evidence.asleep:
            yield each.evidence, speed


def _without(refused: Sequence[Refused], own: Mapping[str, Any]) -> tuple[Refused, ...]:
    return tuple(entry for entry in refused if entry.fingerprint != own)


def _least(accepted: Reached) -> float:
    return accepted.tokens_per_second * _SHARE


def _accepted(before: Reached) -> str:
    return f"{before.tokens_per_second:.1f} were accepted on {before.recorded_at} ({_with_what(before)})"


def _with_what(reached: Reached | Refused) -> str:
    told = reached.fingerprint
    return (
        f"release {told.get('engine_release')}, split {told.get('placement', {}).get('tensor_split')}, "
        f"driver {told.get('driver')}"
    )


def repeated_speed(evidence: Evidence) -> float | None:
    """Return the median tokens per second of repeated completions; None where one alone was asked for."""
    short = evidence.thorough.short if evidence.thorough else None
    spread = short.generation_tokens_per_second if short else None
    return None if spread is None else spread.median


def read(document: Any) -> Speeds:
    """Read the file's document; nothing when it is of another schema, ValueError when it is not whole."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return Speeds()
    try:
        return Speeds(
            {name: Reached(**entry) for name, entry in document["accepted"].items()},
            {
                name: tuple(Refused(**entry) for entry in entries)
                for name, entries in document.get("refused", {}).items()
            },
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def to_json(speeds: Speeds) -> dict[str, Any]:
    """Return the file's document."""
    return {
        "schema": SCHEMA,
        "accepted": {name: asdict(entry) for name, entry in speeds.accepted.items()},
        "refused": {name: [asdict(entry) for entry in entries] for name, entries in speeds.refused.items()},
    }
