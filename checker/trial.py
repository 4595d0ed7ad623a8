"""The record of a trial: one candidate that was run on a host for a moment, or why it could not be.

One file for each candidate, `<documents>/evidence/trials/<host>/<tier>-<digest>.json` on the controller and
`/var/lib/llama-tiers/trials/` on the host (docs/schemas/trial.schema.json). What was measured is kept; whether that is
enough is judged when it is read (`checker.decision`), so that other criteria need no other trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checker import tier
from checker.evidence import Evidence
from checker.evidence import from_json as evidence_from_json
from checker.tier import TierSpec

SCHEMA = "llama-tiers/trial/1"
# It ran and was measured; it did not come to run, or failed while it was measured; it was not even tried, for it has no
# room.
MEASURED, FAILED, INFEASIBLE = "measured", "failed", "infeasible"
_OUTCOMES = (MEASURED, FAILED, INFEASIBLE)

# A placement as an inventory spells it at its shortest (`checker.catalogue.Candidate.written`).
Written = dict[str, Any] | str


class TrialError(ValueError):
    """A document that is no record of a trial; the message says what is wrong with it."""


@dataclass(frozen=True)
class Trial:
    """One candidate of a tier of a host, tried at `recorded_at` (UTC, 2026-10-01T12:00:00Z).

    `fingerprint` is of all that a measurement depends on (`fingerprint`), or of what was asked where that had no room,
    or had none before and could not be brought to run since. `spec` is what the tier would have been, None for the
    latter and for what was never started; `evidence` is there when it was measured, `reason` when it was not. `limits`
    are those of `limits`; records of before have none. `digest` is the sha256 of the file that it was read from, by
    which a decision names it; empty for one that was not.
    """

    host: str
    tier: str
    model: str
    placement: Written
    recorded_at: str
    outcome: str
    reason: str | None
    fingerprint: str
    spec: TierSpec | None
    evidence: Evidence | None
    limits: Mapping[str, Any] | None = None
    digest: str = ""

    @property
    def is_of_placement(self) -> bool:
        """Whether it tells something of the candidate's placement, be it that there is no room for any."""
        return self.spec is not None or self.outcome == INFEASIBLE

    def to_json(self) -> dict[str, Any]:
        """Return the document of the record."""
        return {
            "schema": SCHEMA,
            "host": self.host,
            "tier": self.tier,
            "model": self.model,
            "placement": self.placement,
            "recorded_at": self.recorded_at,
            "outcome": self.outcome,
            "reason": self.reason,
            "fingerprint": self.fingerprint,
            "spec": None if self.spec is None else self.spec.to_json(),
            "evidence": None if self.evidence is None else self.evidence.to_json(),
            "limits": self.limits,
        }


def from_json(document: Any, digest: str = "") -> Trial:
    """Read the document of a record, whose file has the sha256 `digest`; TrialError says what is wrong with it."""
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise TrialError(f"it has schema {schema!r}, this checker reads {SCHEMA!r}")
    try:
        spec, evidence = document["spec"], document["evidence"]
        found = Trial(
            **{key: value for key, value in document.items() if key not in ("schema", "spec", "evidence")},
            spec=None if spec is None else tier.from_json(spec),
            evidence=evidence_from_json(evidence),
            digest=digest,
        )
    except (KeyError, TypeError, ValueError, tier.TierSpecError) as error:
        raise TrialError(f"it does not fit schema {SCHEMA!r}: {error}") from error
    if evidence is not None and found.evidence is None:
        raise TrialError("its evidence is of another version")
    if found.outcome not in _OUTCOMES:
        raise TrialError(f"its outcome {found.outcome!r} is none of {', '.join(_OUTCOMES)}")
    if found.outcome == MEASURED and (found.spec is None or found.evidence is None):
        raise TrialError("its outcome is 'measured', but spec or evidence is not there")
    return found


def replaces(new: Trial, old: Trial, ran: bool) -> bool:
    """Whether a record takes the place of an older one of the same measurement; `ran` when it came to be measured.

    What failed while it was measured is the newer truth. What could not be brought to run says nothing against what was
    measured, and what never came to its placement (no file) nothing against what became of that.
    """
    if not new.is_of_placement:
        return not old.is_of_placement
    return ran or old.outcome != MEASURED


def limits(spec: TierSpec, limit_s: float, depth: str) -> dict[str, Any]:
    """Return what a candidate was allowed: seconds to load and to be measured, and how deeply it is measured."""
    return {"load_s": spec.criteria.max_load_s, "measure_s": limit_s, "depth": depth}


def is_answer(document: Mapping[str, Any], allowed: Mapping[str, Any]) -> bool:
    """Whether the document of a record says what running its candidate again, with these `limits`, would say.

    What was measured quickly tells less than a whole measurement; what failed may have for the limits that it had.
    """
    had = document.get("limits") or {}
    if document["outcome"] == MEASURED:
        return had.get("depth", "whole") in ("whole", allowed["depth"])
    return had == allowed


def fingerprint(spec: TierSpec, cards: Sequence[str], driver: str | None) -> str:
    """Return the sha256 of all that a trial's measurement depends on; `cards` are the UUIDs of the host's cards."""
    return _digest([spec.running(), spec.engine.release, sorted(cards), driver])


def other_fingerprint(*words: Any) -> str:
    """Return the sha256 of words that a record is told apart by."""
    return _digest(words)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
