"""What serves on this host, stopped for what needs the whole of it (a trial, a measurement), and started again.

What served is remembered on the disk until all of it has been started again, so that whoever comes next may restore it
after one that was cut off: systemd at once (after a trial by its unit, after a measurement by a process that
`quality.measure` has it run), and where that came to nothing the next trial or measurement, and site.yml before it
changes a tier. At boot ports and pinned tiers come back by themselves; a unit of the role trial sees to the rest. A
candidate that such a trial has left is taken away. Each has `activation.alone()` meanwhile.
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
NAME = tier.TRIAL
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


def make_room() -> None:
    """Remember what serves, then stop every tier and close its port.

    SystemdError when one does not stop, OSError when they cannot be remembered, and nothing is stopped then.
    """
    names = proven.leftovers([NAME])
    if not names:
        return
    # What passes connections on is started by the next one.
    passing = {unit for name in names for unit in (tier.Front(name).proxy, tier.Front(name).stand_in)}
    units = [unit for unit in systemd.active_units("llama-tier-*") if unit not in {CANDIDATE, *passing}]
    if systemd.is_active(tier.TARGET):
        units.insert(0, tier.TARGET)
    # Such as one that waits for a card: nobody knows for how long.
    _remember(units, [unit for unit in units if systemd.unit_state(unit).active_state == "activating"])
    # The target first: without it no pinned tier comes back by itself.
    systemd.stop(tier.TARGET)
    for name in names:
        end(name)


def end(name: str) -> None:
    """Close the port of a tier and stop it."""
    units = [path.name for path in proven.unit_files(name)]
    # The end of its cooldown starts the tier again by units between, also when it is stopped: the second stop ends
    # those, and the third one what they have started by then.
    for _ in range(3 if units else 0):
        systemd.stop(*units, f"llama-tiers-*@{name}.service")


def _remember(units: Collection[str], waiting: Collection[str]) -> None:
    """Remember units as what is to serve again, and which of them were not up yet."""
    whole.write(BEFORE, json.dumps({"units": list(units), "waiting": list(waiting)}) + "\n")


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
    waiting: list[str] = []
    if is_due():
        before = json.loads(BEFORE.read_text(encoding="utf-8"))
        # A checker of before remembered none.
        waiting = before.get("waiting", [])
        # What site.yml has removed meanwhile does not come back.
        failures = _start_all([unit for unit in before["units"] if (proven.UNITS / unit).exists()], waiting)
    if failures:
        reasons = "; ".join(failure.reason for failure in failures.values())
        wrong.append(f"what served before does not start again: {reasons}")
    left = [unit for unit, failure in failures.items() if not failure.settled]
    try:
        if left or _candidate_is_there():
            _remember(left, [unit for unit in left if unit in waiting])
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


def _start_all(units: Sequence[str], waiting: Collection[str]) -> dict[str, _Failure]:
    """Start units side by side, so that none waits for one that it has nothing to do with; return which are not up.

    Those that were `waiting` wait again, and nobody for them.
    """
    specs = _specs()
    rivals = {name: spec.rivals for name, spec in specs.items()}
    on_demand = {tier.Front(spec.name).socket: spec for spec in specs.values() if not spec.pinned}
    loads = [unit for unit in units if not unit.endswith(".socket")]

    def open_port(port: str, others: Collection[Future[_Failure | None]]) -> _Failure | None:
        wait(others)
        failure = _start(port, waits=False)
        if failure is None and port in on_demand:
            _ask(on_demand[port])
        return failure

    with ThreadPoolExecutor(max_workers=max(1, len(units))) as pool:
        starts = {unit: pool.submit(_start, unit, unit in waiting) for unit in loads}
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


def _start(unit: str, waits: bool) -> _Failure | None:
    try:
        systemd.reset_failed(unit)
        if unit.endswith(".target"):
            # It would start what did not serve before, too.
            systemd.start_alone(unit)
        elif waits:
            systemd.restart(unit)
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
    address = urlsplit(spec.local_url)
    with contextlib.suppress(OSError, systemd.SystemdError):
        if systemd.is_active(spec.unit):
            socket.create_connection((address.hostname, address.port), timeout=_ASK_S).close()
