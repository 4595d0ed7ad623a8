"""What follows from a verification: what passed is accepted, and what is only slower than before gives way to it again.

A tier is held against the speed with which it was accepted (`checker.accepted`). Its units and spec of then are kept on
the host (`checker.proven`), so that there is something to go back to, however many runs were cut off in between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checker import accepted, activation, proven, systemd, tier, verification
from checker.accepted import Speeds
from checker.evidence import Report, TierReport
from checker.measure import Depth
from checker.tier import TierSpec


def read(path: Path) -> Speeds:
    """Read the speeds that are kept of this host, none when there is no such file; ValueError when it is damaged."""
    try:
        return accepted.read(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Speeds()
    except ValueError as error:
        # To go on without them would be to accept anything.
        raise ValueError(
            f"{path} is damaged ({error}): remove it to accept the speeds that are measured next"
        ) from error


def refusals(specs: Sequence[TierSpec], speeds: Speeds) -> tuple[str, ...]:
    """Say of each tier that is to be started anew why it is not to be: it was rolled back for its speed just so."""
    host = accepted.host_of(*verification.cards())
    told = (accepted.refusal(spec, speeds, host) for spec in specs if not proven.runs(spec))
    return tuple(reason for reason in told if reason)


def accept(found: Report, speeds: Speeds) -> Speeds:
    """Keep units and spec of each tier that passed and was measured whole; return the speeds with theirs."""
    for evidence, _ in accepted.to_accept(found):
        if proven.is_remembered(tier.load(evidence.tier)):
            proven.accept(evidence.tier)
    return accepted.accept(speeds, found)


def roll_back(found: Report, speeds: Speeds, earlier: Sequence[Mapping[str, Any]]) -> tuple[Report, Speeds] | None:
    """Have all tiers serve as they were accepted if one of them fails for nothing but its speed; None if none does.

    Nor is there anything to go back to where a tier was never accepted, or is as it was then (another driver).
    Return the report of what serves now, in which each tier that was too slow fails with the reason and with what came
    of it, and the speeds with what was refused. `earlier` are evidence documents of this host, newest first.
    """
    slow = [each for each in found.tiers if accepted.only_slower(each.verdict) and _was_otherwise(each.name)]
    if not slow:
        return None
    names = [each.name for each in slow]
    before = {each.name: tier.load(each.name) for each in found.tiers}
    try:
        activation.go_back(list(before), lambda line: None)
    except (activation.ActivationError, systemd.SystemdError) as error:
        return _told(found, slow, dict.fromkeys(names, f"it could not be rolled back: {error}")), speeds
    specs = tier.load_all()
    served = verification.report(specs, found.host, earlier, Depth.QUICK, {}, {}, found.decision)
    back = [spec for spec in specs if spec.running() != before[spec.name].running()]
    also = [spec.name for spec in back if spec.name not in names]
    went_too = f"; {', '.join(also)} went back too" if also else ""
    came = {spec.name: f"rolled back: {_words(spec)}{went_too}" for spec in back}
    return _told(served, slow, came), accepted.refuse(speeds, found, names)


def _was_otherwise(name: str) -> bool:
    before = proven.accepted(name)
    return before is not None and before.running() != tier.load(name).running()


def _words(spec: TierSpec) -> str:
    split = ",".join(map(str, spec.placement.tensor_split))
    return f"{spec.model.name} with split {split} on release {Path(spec.engine.release).name} serves again"


def _told(served: Report, slow: Sequence[TierReport], came: Mapping[str, str]) -> Report:
    """Return a report in which the tiers that were too slow fail for that, each with what came of it."""
    by_name = {each.name: each for each in slow}
    tiers = (
        _failed(each, by_name[each.name], came[each.name]) if each.name in by_name else each for each in served.tiers
    )
    return replace(served, passed=False, tiers=tuple(tiers))


def _failed(served: TierReport, slow: TierReport, came: str) -> TierReport:
    (reason,) = slow.verdict.reasons
    (gate,) = (check for check in slow.verdict.checks if not check.passed)
    checks = (*(check for check in served.verdict.checks if check.name != gate.name), gate)
    reasons = (f"{reason}; {came}", *(other for other in served.verdict.reasons if other != reason))
    return replace(served, verdict=replace(served.verdict, verdict="fail", checks=checks, reasons=reasons))
