"""Which candidates of a host are tried, and as what: screened by the planner, told apart from what was tried before.

Each is planned as if it were the only tier of the host, for while it is tried it is. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checker import asked, decision, site_plan, tier, trial
from checker.catalogue import InventoryError, check_inventory, parse_inventory
from checker.tier import TierSpec
from checker.trial_run import NAME


@dataclass(frozen=True)
class Candidate:
    """One candidate to try, `label` in a few words; `spec` is of a tier by the name of `trial`.

    `reason` says why it has no room, and there is no spec then; `done` when a record of just this measurement is kept.
    `asked` is the fingerprint by which it is recorded when it has no room.
    """

    tier: str
    model: str
    placement: trial.Written
    label: str
    fingerprint: str
    asked: str
    spec: TierSpec | None
    reason: str | None
    done: bool

    def to_json(self) -> dict[str, Any]:
        """Return what `checker.trial_run` is told of it."""
        return {
            "tier": self.tier,
            "model": self.model,
            "placement": self.placement,
            "label": self.label,
            "fingerprint": self.fingerprint,
            "asked": self.asked,
            "spec": None if self.spec is None else self.spec.to_json(),
            "outcome": None if self.reason is None else trial.INFEASIBLE,
            "reason": self.reason,
            "done": self.done,
        }


def candidates(
    gpus: Sequence[Any],
    tiers: Sequence[Any],
    models: Mapping[str, Any],
    engines: Mapping[str, Any],
    engine: str,
    backend: str,
    places: site_plan.Places,
    profile: Mapping[str, Any],
    ram: Mapping[str, Any],
    only: str | None,
    known: Sequence[Mapping[str, Any]],
    limit_s: float,
    depth: str,
) -> tuple[Candidate, ...]:
    """Screen every candidate of the tiers, or of the `only` one, in the inventory's order.

    Arguments are those of `site_plan.for_site`. `known` has the documents of the records that are kept; what they
    answer is not tried again, but for what had no room since then, so that its newest record is not that.
    InventoryError when the inventory cannot be used, or has no such tier.
    """
    problems = check_inventory(gpus, tiers, models, engines, engine, backend)
    parsed_gpus, parsed_tiers, _, _ = parse_inventory(gpus, tiers, models)
    names = [entry.name for entry in parsed_tiers]
    if only is not None and only not in names:
        problems.append(f"no tier {only!r}; tiers here: {', '.join(names)}")
    if problems:
        raise InventoryError(problems)
    driver = (profile.get("driver") or {}).get("version")
    cards = [gpu["uuid"] for gpu in gpus]
    records = {document["fingerprint"]: document for document in known}
    found = []
    for entry, written in zip(parsed_tiers, tiers, strict=True):
        if only not in (None, entry.name):
            continue
        for each, as_written in zip(entry.candidates, written["candidates"], strict=True):
            own = {"name": NAME, "candidates": [as_written], "residency": tier.PINNED, "fallback": None}
            alone = {**written, **own}
            spec, reason = None, None
            no_room = asked.fingerprint(entry, each, parsed_gpus)
            try:
                planned = site_plan.for_site(
                    gpus, [alone], models, engines, engine, backend, places, profile, ram, in_trial=True
                )
                spec = planned.specs[0]
                measured = trial.fingerprint(spec, cards, driver)
                # Another tier's, or one that is written in another way, has a record of its own all the same.
                fingerprint = trial.other_fingerprint(entry.name, each.written, measured)
            except InventoryError as error:
                reason = "; ".join(problem.removeprefix(f"{NAME}: ") for problem in error.problems)
                fingerprint = no_room
            label = f"{each.model} ({decision.placement_words(each.written)})"
            done = spec is not None and _is_done(
                records.get(fingerprint), records.get(no_room), trial.limits(spec, limit_s, depth)
            )
            found.append(
                Candidate(entry.name, each.model, each.written, label, fingerprint, no_room, spec, reason, done)
            )
    return tuple(found)


def _is_done(own: Mapping[str, Any] | None, as_asked: Mapping[str, Any] | None, limits: Mapping[str, Any]) -> bool:
    if own is None or own["spec"] is None:
        return False
    had_no_room_since = (
        as_asked is not None
        # Else it has room again, and could not be brought to run (`trial_run.keep`).
        and as_asked["outcome"] == trial.INFEASIBLE
        and as_asked["recorded_at"] >= own["recorded_at"]
    )
    return not had_no_room_since and trial.is_answer(own, limits)
