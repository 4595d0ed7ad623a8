"""What follows from a verification: what passed is accepted, and what fails where that passed gives way to it again.

Units and spec with which a tier was accepted are kept on the host (`checker.proven`), so that there is something to go
back to, however many runs were cut off in between; so is the speed that it is held against (`checker.accepted`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checker import accepted, activation, proven, systemd, tier, verification
from checker.accepted import Speeds
from checker.evidence import Evidence, Report, TierReport
from checker.measure import Depth
from checker.tier import TierSpec, Tls
from checker.verdict import OVER_TLS


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
    """Say of each tier that is to be started anew why it is not to be: it was rolled back when it was just so."""
    host = accepted.host_of(*verification.cards())
    told = (accepted.refusal(spec, speeds, host) for spec in specs if not proven.runs(spec))
    return tuple(reason for reason in told if reason)


def accept(found: Report, speeds: Speeds) -> Speeds:
    """Keep units and spec of each tier that passed and was measured whole; return the speeds with theirs."""
    for evidence, _ in accepted.to_accept(found):
        if proven.is_remembered(tier.load(evidence.tier)):
            proven.accept(evidence.tier)
    return accepted.accept(speeds, found)


def roll_back(
    found: Report, speeds: Speeds, earlier: Sequence[Mapping[str, Any]], *, accept_slower: bool = False
) -> tuple[Report, Speeds] | None:
    """Have all tiers serve as they were accepted if one of them serves and fails; None if none does.

    Nor is there anything to go back to where a tier was never accepted, or is as it was then (another driver). What
    could not be measured for another reason than that the server failed tells nothing of the tier, and what is only
    slow stays if slower ones are accepted. Return the report of what serves now, in which each tier that gave way fails
    with the reason and with what came of it, and the speeds with what was refused. `earlier` are evidence documents of
    this host, newest first.
    """
    failed = [
        each
        for each in found.tiers
        if _serves_and_fails(each)
        and not (accept_slower and accepted.only_slow(each.verdict))
        and _was_otherwise(each.name)
    ]
    if not failed:
        return None
    names = [each.name for each in failed]
    before = {each.name: tier.load(each.name) for each in found.tiers}
    try:
        activation.go_back(list(before), lambda line: None)
    except (activation.ActivationError, systemd.SystemdError) as error:
        return _told(found, failed, dict.fromkeys(names, f"it could not be rolled back: {error}")), speeds
    specs = tier.load_all()
    served = verification.report(specs, found.host, earlier, Depth.QUICK, {}, {}, found.decision)
    back = [spec for spec in specs if _seen(spec) != _seen(before[spec.name])]
    also = [spec.name for spec in back if spec.name not in names]
    went_too = f"; {', '.join(also)} went back too" if also else ""
    came = {spec.name: f"rolled back: {_words(spec, before[spec.name].tls)}{went_too}" for spec in back}
    return _told(served, failed, came), accepted.refuse(speeds, found, names)


def _serves_and_fails(told: TierReport) -> bool:
    evidence = told.evidence
    degraded = evidence.front is not None and evidence.front.fallback is not None
    serves = evidence.unit.active_state == "active" and not degraded and not evidence.asleep
    # A certificate is none of the server's business.
    wrong = {check.name for check in told.verdict.checks if not check.passed} != {OVER_TLS}
    return told.verdict.verdict == "fail" and wrong and serves and not _is_unknown(evidence)


def _is_unknown(evidence: Evidence) -> bool:
    """Whether something else failed than the server: what it died of may be a card that was lost under it."""
    lost = evidence.thorough is not None and bool(evidence.thorough.unread)
    return bool(set(evidence.problems) - set(evidence.failures)) or (bool(evidence.failures) and lost)


def _seen(spec: TierSpec) -> object:
    """Return what a client could see of a change."""
    return spec.running(), spec.port, spec.bind, spec.allow, spec.tls


def _was_otherwise(name: str) -> bool:
    before = proven.accepted(name)
    return before is not None and before.running() != tier.load(name).running()


def _words(spec: TierSpec, tls: Tls | None) -> str:
    split = ",".join(map(str, spec.placement.tensor_split))
    said = f"{spec.model.name} with split {split} on release {Path(spec.engine.release).name} serves again"
    return f"{said}; its TLS does not go back: it is as the inventory has it now" if spec.tls != tls else said


def _told(served: Report, failed: Sequence[TierReport], came: Mapping[str, str]) -> Report:
    """Return a report in which the tiers that gave way fail for that, each with what came of it."""
    by_name = {each.name: each for each in failed}
    tiers = (
        _failed(each, by_name[each.name], came[each.name]) if each.name in by_name else each for each in served.tiers
    )
    return replace(served, passed=False, tiers=tuple(tiers))


def _failed(served: TierReport, failed: TierReport, came: str) -> TierReport:
    wrong = tuple(check for check in failed.verdict.checks if not check.passed)
    names = {check.name for check in wrong}
    checks = (*(check for check in served.verdict.checks if check.name not in names), *wrong)
    *first, last = failed.verdict.reasons
    others = (reason for reason in served.verdict.reasons if reason not in failed.verdict.reasons)
    reasons = (*first, f"{last}; {came}", *others)
    return replace(served, verdict=replace(served.verdict, verdict="fail", checks=checks, reasons=reasons))
