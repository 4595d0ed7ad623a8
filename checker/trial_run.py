"""Run candidates on this host, one at a time, and have what served before serve again, whatever happens.

`run` is the work of the unit llama-tiers-trial.service, `restore` its ExecStopPost=: systemd starts what served before
when the work is done, fails, is killed or takes too long. llama-tiers-restore.service does the same at boot, when a
trial was cut off by one, and tries again what was refused. A trial goes on only while somebody follows it: whoever does
touches the lease.

A candidate is a tier by the name of `trial`, with the unit that the tier would have (`checker.restoring`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from checker import activation, measure, proven, restoring, systemd, tier, trial, whole
from checker.tier import TierSpec

NAME = restoring.NAME
UNIT = "llama-tiers-trial.service"
DIRECTORY = Path("/var/lib/llama-tiers/trial")
RECORDS = Path("/var/lib/llama-tiers/trials")
LEASE = Path("/run/llama-tiers/trial.lease")
PROGRESS = Path("/run/llama-tiers/progress/trial")
# The lease is touched every two seconds; a slow connection is no reason to end a trial.
_LEASE_S = 30
# Long enough to see that nobody follows a trial any more, and too short for one.
PATIENCE_S = 60
_POLL_S = 0.5
# Of the load time that a tier may take: beyond it the candidate has failed, a little later nobody waits for it.
_LOAD_SPARE_S = 15

Report = Callable[[str], None]


def run(report: Report) -> None:
    """Try every candidate of the job, and keep a record of each; raises when the host itself does not play along."""
    job = json.loads((DIRECTORY / "job.json").read_text(encoding="utf-8"))
    candidates, began, done = job["candidates"], time.monotonic(), 0
    to_run = sum(candidate["reason"] is None for candidate in candidates)
    report("waiting for whoever starts and stops tiers")
    with activation.alone():
        for number, candidate in enumerate(candidates, start=1):
            record = _record(job, candidate)
            if record.reason is None:
                average = (time.monotonic() - began) / done if done else job["limit_s"]
                left = f"{'about' if done else 'at most'} {_minutes(average * (to_run - done))} left"
                where = f"candidate {number} of {len(candidates)}, {candidate['tier']}: {candidate['label']}"
                saying = _saying(report, where, left)
                try:
                    record, ran = _tried(record, job, candidate, saying)
                    # Before what may not end: a driver that hangs keeps the candidate from stopping.
                    keep(record, candidate["asked"], ran)
                finally:
                    saying("taking it away")
                    restoring.take_away()
                done += 1
            else:
                keep(record, candidate["asked"], ran=False)


def _saying(report: Report, where: str, left: str) -> Report:
    return lambda line: report(f"{where}: {line.removeprefix(f'{NAME}: ')}; {left}")


def _record(job: Mapping[str, Any], candidate: Mapping[str, Any]) -> trial.Trial:
    """Return the record of a candidate as it is before it runs, which is that of one that does not run."""
    file = candidate["spec"] and Path(tier.from_json(candidate["spec"]).model.file)
    gone = f"its file is not on the host ({file})" if file and not file.exists() else None
    return trial.Trial(
        host=job["host"],
        tier=candidate["tier"],
        model=candidate["model"],
        placement=candidate["placement"],
        recorded_at=measure.now(),
        outcome=candidate["outcome"] or trial.FAILED,
        reason=candidate["reason"] or gone,
        fingerprint=candidate["fingerprint"],
        spec=None,
        evidence=None,
    )


def _tried(
    record: trial.Trial, job: Mapping[str, Any], candidate: Mapping[str, Any], report: Report
) -> tuple[trial.Trial, bool]:
    """Run a candidate; return its record, and whether it came to be measured, whatever was found."""
    spec = tier.from_json(candidate["spec"])
    # The record is the tier's: only while it runs the candidate has a name of its own.
    allowed = trial.limits(spec, job["limit_s"], job["depth"])
    record = replace(record, spec=replace(spec, name=record.tier), limits=allowed)
    if not restoring.is_due():
        report("stopping what serves")
        restoring.make_room()
    report("starting")
    ran = False
    try:
        _lay_out(spec, candidate["unit"], job["limit_s"])
        reason = activation.start(spec, report)
        if reason is not None:
            return replace(record, recorded_at=measure.now(), reason=f"it did not start: {reason}"), ran
        report("measuring")
        ran = True
        evidence = measure.measure(spec, [], measure.Depth(job["depth"]), None)
        if systemd.unit_state(spec.unit).active_state != "active":
            said = "; ".join(evidence.problems) or "no reason is known"
            why = f"it stopped serving while it was measured, or was not done after {job['limit_s']:g} s: {said}"
            return replace(record, recorded_at=measure.now(), reason=why), ran
        # Nothing is before it: it is asked at its own socket.
        found = replace(evidence, tier=record.tier, front=None)
        return replace(record, recorded_at=measure.now(), outcome=trial.MEASURED, evidence=found), ran
    except systemd.SystemdError as error:
        return replace(record, recorded_at=measure.now(), reason=str(error)), ran


def _lay_out(spec: TierSpec, unit: str, limit_s: float) -> None:
    # It loads once, in the time that the tier may take, and is measured for a limited time.
    limits = (
        "# Of a trial: llama-tiers, role trial.\n[Service]\n"
        f"TimeoutStartSec={spec.criteria.max_load_s + _LOAD_SPARE_S:.0f}\nRuntimeMaxSec={limit_s:.0f}\n"
    )
    drop_in = restoring.UNITS / f"{restoring.CANDIDATE}.d"
    drop_in.mkdir(parents=True, exist_ok=True)
    (drop_in / "trial.conf").write_text(limits, encoding="utf-8")
    (restoring.UNITS / restoring.CANDIDATE).write_text(unit, encoding="utf-8")
    _write(proven.spec_file(NAME), spec.to_json())
    systemd.daemon_reload()


def restore(patience_s: float | None = None) -> None:
    """Have what served before serve again, once nobody else starts or stops tiers; SystemdError says what does not.

    BusyError after so many seconds in which somebody else had not ended; without them it is waited for.
    """
    with activation.alone(patience_s):
        restoring.restore()


def wait(patience_s: float | None = None) -> systemd.UnitState:
    """Wait until a trial has done its work, what systemd starts after it included; return the state of its unit.

    One that nobody follows any more ends by itself. BusyError after so many seconds when somebody follows it.
    """
    began = time.monotonic()
    while True:
        state = systemd.unit_state(UNIT)
        if state.active_state in ("inactive", "failed"):
            return state
        if patience_s is not None and time.monotonic() - began >= patience_s and _is_followed():
            raise activation.BusyError(
                f"another trial runs on this host ({_last_said()}), and was waited for in vain for {patience_s:g} s; "
                "try again when it is done"
            )
        time.sleep(_POLL_S)


def _last_said() -> str:
    try:
        return PROGRESS.read_text(encoding="utf-8").strip()
    except OSError:
        return "it has not said yet at what it is"


def keep(record: trial.Trial, asked: str, ran: bool) -> None:
    """Write a record among those of this host in the place of one of the same measurement (`trial.replaces`).

    `asked` is the fingerprint by which the candidate is recorded when it has no room; it `ran` when it came to be
    measured.
    """
    path, as_asked = _path(record.tier, record.fingerprint), _path(record.tier, asked)
    before = _read(path)
    if before is None or trial.replaces(record, before, ran):
        _write(path, record.to_json())
        if as_asked != path and record.is_of_placement:
            as_asked.unlink(missing_ok=True)
    elif as_asked.exists():
        # It has room again: else that it had none would hide what stays, and have it tried by every trial. Without a
        # spec this one counts where nothing else is known.
        _write(as_asked, replace(record, fingerprint=asked, spec=None, limits=None).to_json())


def _path(name: str, fingerprint: str) -> Path:
    return RECORDS / f"{name}-{fingerprint[:16]}.json"


def _read(path: Path) -> trial.Trial | None:
    try:
        return trial.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _write(path: Path, document: Any) -> None:
    whole.write(path, json.dumps(document, indent=2) + "\n")


def kept() -> list[dict[str, Any]]:
    """Return the documents of the records of this host; one that is damaged is none."""
    found = []
    for path in sorted(RECORDS.glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            trial.from_json(document)
        except (OSError, ValueError):
            continue
        found.append(document)
    return found


def end_without_lease() -> None:
    """End this process when nobody has touched the lease for a while; what follows is systemd's business."""
    while True:
        if not _is_followed():
            said = f"nobody has followed this trial for {_LEASE_S} s: it ends, and what served before serves again"
            print(said, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1)


def _is_followed() -> bool:
    try:
        return time.time() - LEASE.stat().st_mtime <= _LEASE_S
    except OSError:
        return False


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def main(word: str) -> int:
    """Do what a unit asks for by a word; return the exit code."""

    def report(line: str) -> None:
        PROGRESS.parent.mkdir(parents=True, exist_ok=True)
        PROGRESS.write_text(line + "\n", encoding="utf-8")

    try:
        if word == "restore":
            restore()
        else:
            threading.Thread(target=end_without_lease, daemon=True).start()
            run(report)
    except (systemd.SystemdError, tier.TierSpecError, OSError, ValueError, KeyError) as error:
        print(f"{word}: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
