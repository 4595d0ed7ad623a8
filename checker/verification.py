"""Measure and judge all tiers of this host, as one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from checker import checklist, hardware, speed_verdict, systemd
from checker.accepted import Gate, Host, Reached, fingerprint, host_of, key, only_slow
from checker.evidence import Evidence, Quality, Report, TierReport, from_json
from checker.measure import Depth, booted_at, front, measure, now, strange_files
from checker.tier import TierSpec, unit_of
from checker.verdict import judge


def report(
    specs: Sequence[TierSpec],
    host: str,
    earlier: Sequence[Mapping[str, Any]],
    depth: Depth,
    accepted: Mapping[str, Reached],
    quality: Mapping[str, Quality | str],
    decision: Mapping[str, Any] | None,
    *,
    wake: bool = True,
) -> Report:
    """Measure and judge the tiers one after the other; `host` is the name that the inventory gives this host.

    A tier on demand that is not loaded is judged by what was measured of the same command before, if that passes, is
    all that `depth` asks for and tells of its rivals, or if a card of it does not answer now. Else it is loaded, unless
    `wake` is false; pinned tiers that it stopped come back.

    `earlier` are evidence documents of this host, newest first; `accepted` the speeds that releases and placements have
    to reach, empty when slower ones are allowed; `quality` what was measured just now of the splits, by tier;
    `decision` the inventory's, None without one. A host passes when it has tiers and each of them passes. Never raises
    for what is down: the tiers' reasons tell.
    """
    driver, gpus = cards()

    def judged(spec: TierSpec, evidence: Evidence) -> TierReport:
        return _judged(spec, evidence, accepted, host_of(driver, gpus))

    def measured(spec: TierSpec, depth: Depth) -> TierReport:
        told = judged(spec, measure(spec, earlier, depth, quality.get(spec.name)))
        if told.verdict.verdict == "fail" and _sleeps(spec):
            # It gave way in the middle, which is no failure of it.
            known = _as_measured_before(spec, earlier, quality.get(spec.name))
            return judged(spec, known) if known else told
        return told

    found: dict[str, TierReport] = {}
    serving = [spec for spec in specs if spec.pinned and _is_active(spec)]
    # Pinned ones first, as they serve: to load one on demand may stop them.
    for spec in sorted(specs, key=lambda spec: not spec.pinned):
        if _sleeps(spec):
            known = _as_measured_before(spec, earlier, quality.get(spec.name))
            enough = (
                known
                and depth is not Depth.WHOLE
                and (known.thorough or depth is Depth.QUICK)
                # Whether it takes turns with them is seen only while it is loaded.
                and (not wake or set(spec.rivals) <= set(known.rival_states))
            )
            if known and (known.problems or (enough and judged(spec, known).verdict.verdict == "pass")):
                found[spec.name] = judged(spec, known)
                continue
            if wake:
                _load(spec)
        found[spec.name] = measured(spec, depth)
        if depth is not Depth.QUICK and _is_in_doubt(found[spec.name], depth, earlier):
            found[spec.name] = measured(spec, Depth.WHOLE)
    if wake:
        for spec in serving:
            if _gave_way(spec):
                _load(spec)
    tiers = tuple(found[spec.name] for spec in specs)
    return Report(
        host=host,
        recorded_at=now(),
        passed=bool(tiers) and all(tier.verdict.verdict == "pass" for tier in tiers),
        driver=driver,
        gpus=gpus,
        tiers=tiers,
        decision=dict(decision) if decision else None,
        checklist=checklist.boxes(tiers, decision),
    )


def _is_active(spec: TierSpec) -> bool:
    try:
        return systemd.is_active(spec.unit)
    except systemd.SystemdError:
        return False


def _sleeps(spec: TierSpec) -> bool:
    """Whether a tier is not loaded for nobody asks for it, or a rival is asked for; not because it failed."""
    try:
        state = systemd.unit_state(spec.unit)
        if state.active_state != "inactive" or systemd.has_failed(spec.unit, state):
            return False
        return not spec.pinned or any(systemd.is_active(unit_of(rival)) for rival in spec.rivals)
    except systemd.SystemdError:
        return False


def _gave_way(spec: TierSpec) -> bool:
    """Whether a pinned tier was stopped for another one; its cooldown starts one that has failed, when it is time."""
    try:
        return systemd.unit_state(spec.unit).active_state == "inactive"
    except systemd.SystemdError:
        return False


def _load(spec: TierSpec) -> None:
    """Load a tier; that it could not be shows in what is measured of it."""
    with suppress(systemd.SystemdError):
        systemd.start(spec.unit)


def _as_measured_before(
    spec: TierSpec, earlier: Sequence[Mapping[str, Any]], quality: Quality | str | None
) -> Evidence | None:
    """Return what was measured last of a tier that runs just this command, as that of one that is not loaded now.

    `quality` is as in `checker.measure.measure`. Its only problems can be a card that does not answer now, and why the
    quality could not be measured.
    """
    for document in earlier:
        found = from_json(document)
        if found is None or found.tier != spec.name or found.unit.active_state != "active":
            continue
        if found.asleep and found.problems:
            # That is of then; what was measured before it stands.
            continue
        same = (found.argv, found.environment, found.model.sha256) == (spec.argv, spec.environment, spec.model.sha256)
        if not same or found.problems:
            return None
        unmeasured = (quality,) if isinstance(quality, str) else ()
        return replace(
            found,
            asleep=True,
            front=front(spec),
            problems=(*_absent(spec), *unmeasured),
            quality=quality if isinstance(quality, Quality) else found.quality,
            rivals=spec.rivals,
            booted_at=booted_at(spec, earlier),
            strange_files=strange_files(spec),
        )
    return None


def _absent(spec: TierSpec) -> tuple[str, ...]:
    try:
        _, reason = hardware.reach(spec.cards)
    except hardware.HardwareError as error:
        reason = str(error)
    return (reason,) if reason else ()


def _judged(spec: TierSpec, evidence: Evidence, accepted: Mapping[str, Reached], host: Host) -> TierReport:
    before = accepted.get(key(spec.name, evidence, host))
    gate = Gate(before, same=before.fingerprint == fingerprint(evidence, host)) if before else None
    return TierReport(spec.name, judge(spec, evidence, gate), evidence)


def _is_in_doubt(told: TierReport, depth: Depth, earlier: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a tier fails for what may be otherwise by now: an earlier measurement of this run, or a busy host."""
    if told.verdict.verdict == "pass":
        return False
    return only_slow(told.verdict) or (depth is Depth.AUTO and _carried(told.evidence, earlier))


def _carried(evidence: Evidence, earlier: Sequence[Mapping[str, Any]]) -> bool:
    told = [document["thorough"]["measured_at"] for document in earlier if document.get("thorough")]
    return evidence.thorough is not None and evidence.thorough.measured_at in told


def cards() -> tuple[hardware.Driver | None, tuple[hardware.Gpu, ...]]:
    """Read the driver and the cards that answer; None and none when NVML cannot be read."""
    try:
        return hardware.read_driver(), hardware.answering_gpus()
    except hardware.HardwareError:
        # Every tier fails with what NVML said: none of its devices could be read.
        return None, ()


def describe(tier: TierReport) -> str:
    """Say in one line what was found of a tier."""
    if tier.verdict.verdict == "fail":
        return f"{tier.name}: FAIL: " + "; ".join(
            reason.removeprefix(f"{tier.name}: ") for reason in tier.verdict.reasons
        )
    evidence = tier.evidence
    speed = speed_verdict.generation_speed(evidence) or 0
    weights = " + ".join(f"{device.gpu} {device.weights_mib or 0:,.0f} MiB" for device in evidence.devices)
    loaded = evidence.unit.load_s or 0
    return f"{tier.name}: PASS, {speed:.1f} tokens/s, loaded in {loaded:.1f} s; weights: {weights}"


def stable(report: Report) -> dict[str, Any]:
    """Return what stays the same from run to run while nothing changes: no measurement, no time."""
    return {
        tier.name: {
            "model": asdict(tier.evidence.model),
            "engine": asdict(tier.evidence.engine),
            "placement": asdict(tier.evidence.placement),
            "base_url": tier.evidence.base_url,
            "verdict": tier.verdict.verdict,
        }
        for tier in report.tiers
    }
