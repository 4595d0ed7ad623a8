"""What a trial leaves on this host: a candidate that runs, if it was cut off, and what served before, stopped.

What served is remembered on the disk until all of it has been started again, so that whoever comes next may restore it:
systemd after the trial, at boot, and after a try that was refused, the next trial, and site.yml before it changes a
tier. Each has `activation.alone()` meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from checker import proven, systemd, tier, whole

# A candidate is a tier by this name; its files lie where a boot removes them, but for its spec.
NAME = "trial"
CANDIDATE = tier.unit_of(NAME)
UNITS = Path("/run/systemd/system")
BEFORE = Path("/var/lib/llama-tiers/trial/before.json")
# The slowest of all loads; TimeoutStopSec= and TimeoutStartSec= of the role's units leave time for the rest.
_START_S = 1800
_ASK_S = 10


@dataclass(frozen=True)
class _Failure:
    """Why a unit is not up; `settled` where another try of ours is not what it needs."""

    reason: str
    settled: bool


def is_due() -> bool:
    """Whether something is remembered that served before."""
    return BEFORE.exists()


def remember(units: Sequence[str]) -> None:
    """Remember units as what is to serve again."""
    whole.write(BEFORE, json.dumps({"units": units}) + "\n")


def forget() -> None:
    """Remember nothing any more: it serves again, or something else in its place."""
    BEFORE.unlink(missing_ok=True)


def restore() -> None:
    """Take the candidate away and start what served before; nothing is changed where no trial has left anything.

    SystemdError names what went wrong; everything else serves by then. What another try may mend stays remembered.
    """
    wrong = []
    try:
        if _candidate_is_there():
            take_away()
    except (systemd.SystemdError, OSError) as error:
        # No reason to leave down what served.
        wrong.append(f"the candidate is not taken away: {error}")
    failures: dict[str, _Failure] = {}
    if is_due():
        units = json.loads(BEFORE.read_text(encoding="utf-8"))["units"]
        # What site.yml has removed meanwhile does not come back.
        failures = _start_all([unit for unit in units if (proven.UNITS / unit).exists()])
    if failures:
        reasons = "; ".join(failure.reason for failure in failures.values())
        wrong.append(f"what served before does not start again: {reasons}")
    left = [unit for unit, failure in failures.items() if not failure.settled]
    try:
        if left or _candidate_is_there():
            remember(left)
        else:
            forget()
    except OSError as error:
        wrong.append(str(error))
    if wrong:
        raise systemd.SystemdError("; ".join(wrong))


def _candidate_is_there() -> bool:
    return (UNITS / CANDIDATE).exists() or proven.spec_file(NAME).exists()


def take_away() -> None:
    """Stop the candidate, if there is one, and remove its files."""
    unit = UNITS / CANDIDATE
    # systemd knows it no longer after a boot.
    if unit.exists():
        systemd.stop(CANDIDATE)
        systemd.reset_failed(CANDIDATE)
        unit.unlink()
    shutil.rmtree(UNITS / f"{CANDIDATE}.d", ignore_errors=True)
    proven.spec_file(NAME).unlink(missing_ok=True)
    systemd.daemon_reload()


def waits_for(port: str, loads: Collection[str], rivals: Mapping[str, Collection[str]]) -> set[str]:
    """Return which of the units that are started too are to be up, or to have failed, before a port is opened.

    The port's tier, and its rivals (`rivals`, by tier): a request would stop them. Where a fallback answers: all.
    """
    name = port.removeprefix("llama-tier-").removesuffix(".socket")
    if name not in rivals:
        return {*loads}
    return {*map(tier.unit_of, (name, *rivals[name]))} & {*loads}


def _start_all(units: Sequence[str]) -> dict[str, _Failure]:
    """Start units side by side, so that none waits for one that it has nothing to do with; return which are not up."""
    specs = _specs()
    rivals = {name: spec.rivals for name, spec in specs.items()}
    on_demand = {tier.Front(spec.name).socket: spec for spec in specs.values() if not spec.pinned}
    loads = [unit for unit in units if not unit.endswith(".socket")]

    def open_port(port: str, others: Collection[Future[_Failure | None]]) -> _Failure | None:
        wait(others)
        failure = _start(port)
        if failure is None and port in on_demand:
            _ask(on_demand[port])
        return failure

    with ThreadPoolExecutor(max_workers=max(1, len(units))) as pool:
        starts = {unit: pool.submit(_start, unit) for unit in loads}
        for port in units:
            if port not in loads:
                others = [starts[unit] for unit in waits_for(port, loads, rivals)]
                starts[port] = pool.submit(open_port, port, others)
    return {unit: failure for unit, start in starts.items() if (failure := start.result())}


def _specs() -> dict[str, tier.TierSpec]:
    found = {}
    for name in proven.leftovers([NAME]):
        with contextlib.suppress(tier.TierSpecError):
            found[name] = tier.load(name)
    return found


def _start(unit: str) -> _Failure | None:
    try:
        systemd.reset_failed(unit)
        if unit.endswith(".target"):
            # It would start what did not serve before, too.
            systemd.start_alone(unit)
        else:
            systemd.start(unit, _START_S)
    except systemd.SystemdError as error:
        return _Failure(str(error), settled=_has_failed(unit))
    return None


def _has_failed(unit: str) -> bool:
    """Whether a server was started and failed: its cooldown tries again. What a shutdown refuses was never started."""
    try:
        return unit.endswith(".service") and systemd.unit_state(unit).active_state == "failed"
    except systemd.SystemdError:
        return False


def _ask(spec: tier.TierSpec) -> None:
    """Connect to a tier if it is up, and leave: the idle time after which its rivals come back counts from then."""
    address = urlsplit(spec.base_url)
    with contextlib.suppress(OSError, systemd.SystemdError):
        if systemd.is_active(spec.unit):
            socket.create_connection((address.hostname, address.port), timeout=_ASK_S).close()
