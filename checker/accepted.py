"""The speed with which a tier was accepted on this host, and the gate for whatever takes its place. Pure.

Kept in one file on the host, by what stays the same when release or placement change: tier, cards of the host, model,
context and slots. So a new release, driver or split of the same promise is held against the last one that was accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from json import dumps
from typing import Any

from checker.evidence import Check, Evidence
from checker.findings import Finding

SCHEMA = "llama-tiers/accepted/1"
_SHARE = 0.95


@dataclass(frozen=True)
class Accepted:
    """A speed that was accepted, in tokens per second, when, and with what: release, driver, placement, flags."""

    tokens_per_second: float
    recorded_at: str
    fingerprint: dict[str, Any]


@dataclass(frozen=True)
class Gate:
    """What a tier is held against: a speed, and whether it was reached by the `same` release, driver and placement."""

    accepted: Accepted
    same: bool


def key(evidence: Evidence, cards: Sequence[str]) -> str:
    """Return what a tier's speed is kept under; `cards` are the UUIDs of all cards of the host."""
    placement = evidence.placement
    return _digest([evidence.tier, sorted(cards), evidence.model.sha256, placement.ctx_size, placement.parallel])


def fingerprint(evidence: Evidence, cards: Sequence[str], driver: str | None) -> dict[str, Any]:
    """Return everything that a speed depends on."""
    return {
        "cards": sorted(cards),
        "driver": driver,
        "model_sha256": evidence.model.sha256,
        "engine_commit": evidence.engine.commit,
        "engine_release": evidence.engine.release,
        "placement": {**asdict(evidence.placement), "tensor_split": list(evidence.placement.tensor_split)},
        "devices": [device.uuid for device in evidence.devices if device.name and device.uuid],
        "flags": _digest([list(evidence.argv[1:]), evidence.environment]),
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
    before = gate.accepted
    least = before.tokens_per_second * _SHARE
    said = (
        f"{tier}: generates {measured:.1f} tokens/s, {before.tokens_per_second:.1f} were accepted on "
        f"{before.recorded_at} (release {before.fingerprint.get('engine_release')}, split "
        f"{before.fingerprint.get('placement', {}).get('tensor_split')}, driver {before.fingerprint.get('driver')})"
    )
    yield Finding(
        Check(
            "no slower than before",
            gate.same or measured >= least,
            f"at least {least:.1f} tokens/s",
            f"{measured:.1f} tokens/s",
        ),
        f"{said}, {_SHARE:.0%} of them have to be reached: go back to that, or allow it: verification_accept_slower",
        note=f"{said}, with the same release, driver and placement" if measured < least else "",
    )


def repeated_speed(evidence: Evidence) -> float | None:
    """Return the median tokens per second of repeated completions; None where one alone was asked for."""
    short = evidence.thorough.short if evidence.thorough else None
    spread = short.generation_tokens_per_second if short else None
    return None if spread is None else spread.median


def read(document: Any) -> dict[str, Accepted]:
    """Read the file's document; empty when it is of another schema, ValueError when it is not whole."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return {}
    try:
        return {name: Accepted(**entry) for name, entry in document["accepted"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def to_json(accepted: Mapping[str, Accepted]) -> dict[str, Any]:
    """Return the file's document."""
    return {"schema": SCHEMA, "accepted": {name: asdict(entry) for name, entry in accepted.items()}}
