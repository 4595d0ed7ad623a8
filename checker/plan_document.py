"""A plan as a document for programs and reports (docs/schemas/plan.schema.json). Pure; MiB and tokens per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from checker import decision, placement, throughput, tier
from checker.cards import Card
from checker.catalogue import is_placeholder
from checker.decision import DecisionEntry
from checker.placement import Choice, Refusal
from checker.plan import CandidatePlan, Plan, TierPlan, devices, refusal

SCHEMA = "llama-tiers/plan/1"


def to_json(
    planned: Plan, host: str, remarks: Sequence[str] = (), decided: DecisionEntry | None = None
) -> dict[str, Any]:
    """Return the plan document (docs/schemas/plan.schema.json); `remarks` are those on the whole host."""
    return {
        "schema": SCHEMA,
        "host": host,
        "remarks": list(remarks),
        "gpus": [{"name": card.name, "uuid": _uuid(card)} for card in planned.cards],
        "tiers": [_tier_json(each, planned.load_mode(each.name), decided) for each in planned.tiers],
        "resident_together": [list(names) for names in planned.resident_together],
        "exclusions": [
            {"tiers": list(item.tiers), "reason": item.reason, "switched": item in planned.switched}
            for item in planned.exclusions
        ],
    }


def _tier_json(planned: TierPlan, load_mode: str, decided: DecisionEntry | None) -> dict[str, Any]:
    return {
        "name": planned.name,
        "residency": tier.PINNED if planned.pinned else tier.ON_DEMAND,
        "engine": planned.engine,
        "decided": decision.words(decided, planned.name) if decided else None,
        "load_mode": load_mode,
        **_candidate_json(planned.name, planned.chosen),
        "unused_gpus": [card.name for card in planned.cards if card not in planned.chosen.choice.cards],
        "candidates": [tried_json(candidate) for candidate in planned.candidates],
    }


def tried_json(candidate: CandidatePlan) -> dict[str, Any]:
    """Return what a plan document says of one candidate: verdict, and the arithmetic when it does not fit."""
    refused = candidate.result if isinstance(candidate.result, Refusal) else None
    return {
        "model": candidate.model,
        "verdict": _verdict(candidate),
        "tried": placement.split_words(candidate.choice),
        "reasons": list(refused.reasons) if refused else [],
        "changes": [
            {
                "what": change.what,
                "tensor_split": list(change.choice.placement.tensor_split),
                "tokens_per_second": _speed_json(change.choice),
            }
            for change in (refused.changes if refused else ())
        ],
    }


def _uuid(card: Card) -> str | None:
    return None if is_placeholder(card.uuid) else card.uuid


def _verdict(candidate: CandidatePlan) -> str:
    return "fits" if candidate.fits else "does-not-fit"


def _candidate_json(name: str, candidate: CandidatePlan) -> dict[str, Any]:
    choice = candidate.choice
    words = asdict(choice.placement)
    return {
        "model": candidate.model,
        "verdict": _verdict(candidate),
        "reason": None if candidate.fits else refusal(name, candidate),
        "confidence": candidate.confidence,
        "header_tolerance": candidate.header_tolerance,
        "remarks": list(candidate.remarks),
        "context": {"min": candidate.demand.context, "max": candidate.demand.most_context},
        "kept": candidate.kept,
        "anew": candidate.anew,
        "placement": {
            **words,
            "tensor_split": list(choice.placement.tensor_split),
            "devices": [device.name for device in devices(choice)],
        },
        "devices": [
            {
                "name": device.name,
                "gpu": card.name,
                "uuid": _uuid(card),
                "layers": device.layers,
                "card_mib": card.total_mib,
                "free_mib": card.free_mib,
                "taken_mib": card.taken_mib,
                "taken_by": card.taken_by,
                "margin_mib": card.margin_mib,
                "weights_mib": round(need.weights_mib, 1),
                "kv_mib": round(need.kv_mib, 1),
                "compute_mib": round(need.compute_mib, 1),
                "overhead_mib": round(need.overhead_mib, 1),
                "total_mib": round(need.total_mib, 1),
                "spare_mib": round(spare, 1),
                "overhead_by": placement.overhead_source(card, choice.placement.split_mode, candidate.model),
                "speed_by": throughput.expectation(card).source,
            }
            for device, card, need, spare in zip(
                devices(choice), choice.cards, choice.estimate.devices, choice.spare_mib, strict=True
            )
        ],
        "host_ram": {
            "total_mib": choice.ram.total_mib,
            "for_tiers_mib": choice.ram.room_mib,
            "weights_mib": round(choice.estimate.host.weights_mib, 1),
            "kv_mib": round(choice.estimate.host.kv_mib, 1),
            "compute_mib": round(choice.estimate.host.compute_mib, 1),
            "cache_ram_mib": round(choice.estimate.host.cache_ram_mib, 1),
            "needed_mib": round(choice.estimate.host.total_mib, 1),
        },
        "tokens_per_second": _speed_json(choice),
    }


def _speed_json(choice: Choice) -> dict[str, Any] | None:
    if choice.speed is None:
        return None
    return {key: value if isinstance(value, str) else round(value, 1) for key, value in asdict(choice.speed).items()}
