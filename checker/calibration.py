"""Evidence to expectations: how fast the tiers of a host were measured, against what the priors expect of them. Pure.

A card that is faster or slower than its generation's prior is so with every model: published runs of one card with
models from 1B to 14B agree within 3 % on by how much (tests/unit/test_throughput.py has them). Cards that share a tier
share its speed, so the ratio of the tier's time is put down to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from pydantic import TypeAdapter

from checker import throughput
from checker.cards import Card, Host, Learned
from checker.catalogue import ModelEntry
from checker.evidence import REPORT_SCHEMA
from checker.memory import CACHE_TYPES
from checker.tier import Placement

# How far off an expectation may be of a card that was measured alone, and of one that was measured with others only:
# the first is beyond what published runs of one card differ by, for they have neither long contexts nor hot cards.
_SPREAD_ALONE, _SPREAD_SHARED = 0.10, 0.20
# A tier that failed these was measured all the same, at what it does.
_OF_SPEED = ("generation speed", "load time", "no slower than before")


class EvidenceError(ValueError):
    """A document that is no report of a verification; the message says what is wrong with it."""


@dataclass(frozen=True)
class Run:
    """One tier as it was measured: tokens/s of one request with on average `fill_tokens` in the cache.

    `uuids` are the cards in device order, `recorded_at` is UTC.
    """

    model: str
    sha256: str
    placement: Placement
    uuids: tuple[str, ...]
    tokens_per_second: float
    fill_tokens: int
    recorded_at: str


_RUN = TypeAdapter(Run)


def runs(report: Any) -> tuple[Run, ...]:
    """Return the runs of a report (docs/schemas/verification.schema.json) that tell how fast cards are.

    A tier counts when all layers lay where they were planned, on cards, one card after the other. EvidenceError when
    the document is none of a verification.
    """
    if not isinstance(report, Mapping) or report.get("schema") != REPORT_SCHEMA:
        raise EvidenceError(f"it is no report of schema {REPORT_SCHEMA!r}")
    try:
        found = [_run(tier["evidence"], report["recorded_at"]) for tier in report["tiers"] if _is_sound(tier)]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EvidenceError(f"it is damaged ({type(error).__name__}: {' '.join(str(error).split())})") from error
    return tuple(run for run in found if 0 < run.tokens_per_second < math.inf)


def _is_sound(tier: Mapping[str, Any]) -> bool:
    evidence = tier["evidence"]
    placement = evidence["placement"]
    return (
        all(check["passed"] for check in tier["checks"] if check["name"] not in _OF_SPEED)
        and evidence["completion"] is not None
        and placement["split_mode"] in ("none", "layer")
        and not placement["n_cpu_moe"]
        and {placement["cache_type_k"], placement["cache_type_v"]} <= set(CACHE_TYPES)
    )


def _run(evidence: Mapping[str, Any], recorded_at: str) -> Run:
    placement = evidence["placement"]
    tokens_per_second, fill_tokens = _speed(evidence)
    return _RUN.validate_python(
        {
            "model": evidence["model"]["name"],
            "sha256": evidence["model"]["sha256"],
            "placement": placement,
            # The devices of the plan come first.
            "uuids": [device["uuid"] for device in evidence["devices"][: len(placement["tensor_split"])]],
            "tokens_per_second": tokens_per_second,
            "fill_tokens": fill_tokens,
            "recorded_at": recorded_at,
        }
    )


def _speed(evidence: Mapping[str, Any]) -> tuple[Any, int]:
    """Return tokens/s and the tokens in the cache on average: of the repeats with a short context, else of the one
    completion, which is short and not repeated once its unit's run was measured whole."""
    short = (evidence.get("thorough") or {}).get("short") or {}
    if spread := short.get("generation_tokens_per_second"):
        return spread["median"], short["context_tokens"] + short["samples"][0]["generated_tokens"] // 2
    completion = evidence["completion"]
    return (
        completion["generation_tokens_per_second"],
        completion["prompt_tokens"] + completion["generated_tokens"] // 2,
    )


def calibrated(host: Host, measured: Iterable[Run], models: Mapping[str, ModelEntry]) -> Host:
    """Return the host with what was learned of its cards, by UUID; runs of models that are not known tell nothing."""
    alone: dict[str, list[float]] = {}
    shared: dict[str, list[float]] = {}
    days: dict[str, str] = {}
    cards = {card.uuid: card for card in host.cards if card.uuid and card.bandwidth_gb_s}
    for run in measured:
        ratio = _ratio(run, cards, host, models)
        if ratio is None:
            continue
        for uuid in run.uuids:
            (alone if len(run.uuids) == 1 else shared).setdefault(uuid, []).append(ratio)
            days[uuid] = max(days.get(uuid, ""), run.recorded_at[:10])

    def learned(card: Card) -> Learned | None:
        uuid = card.uuid or ""
        ratios, spread = (alone[uuid], _SPREAD_ALONE) if uuid in alone else (shared.get(uuid, []), _SPREAD_SHARED)
        if not ratios:
            return None
        middle, count = median(ratios), len(ratios)
        return Learned(
            ratio=middle,
            spread=max(spread, *(abs(ratio / middle - 1) for ratio in ratios)),
            source=f"measured on this host: {count} run{'s' * (count > 1)}, {days[uuid]}",
        )

    return replace(host, cards=tuple(replace(card, learned=learned(card)) for card in host.cards))


def _ratio(run: Run, cards: Mapping[str, Card], host: Host, models: Mapping[str, ModelEntry]) -> float | None:
    """Return measured / expected by priors, None when nothing can be expected of the run."""
    entry = models.get(run.model)
    if entry is None or entry.header is None or entry.sha256 not in (None, run.sha256):
        return None
    everywhere = len(run.uuids) == len(run.placement.tensor_split) and all(uuid in cards for uuid in run.uuids)
    if not everywhere or sum(run.placement.tensor_split) != entry.header.n_layer + 1:
        return None
    used = [cards[uuid] for uuid in run.uuids]
    expected = throughput.speed(entry.header, run.placement, used, host.ram, run.fill_tokens).expected
    return run.tokens_per_second / expected
