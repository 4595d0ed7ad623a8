"""Bring the tiers of this host to what their files say, one at a time, and go back where a successor fails.

A tier is *proven* when its unit became active (readiness included) with the inputs that lie on the host: unit, tier
spec and key. The proven unit and spec are kept under /var/lib/llama-tiers/proven/<tier>/, with a digest of what the
server depends on. So a run that was cut off is finished by the next one, a second run restarts nothing, and a failed
successor is replaced by what served before.

A release that fails with one tier is taken from every tier: those that this run moved to it go back to what they were
proven with, and so does /opt/llama-tiers/current.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checker import hardware, systemd, tier, turns

_UNITS = Path("/etc/systemd/system")
_PROVEN = Path("/var/lib/llama-tiers/proven")
_LOCK = Path("/run/llama-tiers/activation.lock")
_CURRENT = Path("/opt/llama-tiers/current")
_POLL_S = 0.5

Report = Callable[[str], None]


class ActivationError(Exception):
    """A tier did not become active; the message says why and what serves now."""


@dataclass(frozen=True)
class Inputs:
    """The files that decide how a tier is served."""

    unit: Path
    spec: Path
    key: Path

    def digest(self) -> str:
        """Return the sha256 over unit, key, and what of the spec the running server depends on.

        What the plan predicts is no part of it: a better prediction is no reason to restart what serves.
        """
        digest = hashlib.sha256()
        running = tier.from_json(json.loads(self.spec.read_text(encoding="utf-8"))).running()
        for content in (self.unit.read_bytes(), self.key.read_bytes(), json.dumps(running, sort_keys=True).encode()):
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()


def _inputs(name: str) -> Inputs:
    spec = tier.load(name)
    return Inputs(unit=_UNITS / spec.unit, spec=tier.DIRECTORY / f"{name}.json", key=Path(spec.key_file))


def _proven_digest(name: str) -> str:
    path = _PROVEN / name / "digest"
    return path.read_text().strip() if path.exists() else ""


def _remember(name: str, inputs: Inputs) -> None:
    directory = _PROVEN / name
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy2(inputs.unit, directory / "unit")
    shutil.copy2(inputs.spec, directory / "spec.json")
    (directory / "digest").write_text(inputs.digest() + "\n")


def _held_mib(spec: tier.TierSpec, pid: int) -> float:
    held = 0.0
    for uuid in {device.uuid for device in spec.devices}:
        held += sum(process.used_mib or 0 for process in hardware.processes(uuid) if process.pid == pid)
    return held


def _loading(spec: tier.TierSpec, state: systemd.UnitState, seconds: float) -> str:
    try:
        held = _held_mib(spec, state.main_pid) if state.main_pid else 0.0
    except hardware.HardwareError:
        held = 0.0
    planned = sum(device.predicted_mib or device.weights_mib or 0 for device in spec.devices)
    of = f" of {planned:,.0f}" if planned else ""
    return f"{spec.name}: loading {spec.model.name}, {held:,.0f}{of} MiB on the GPUs, {seconds:.0f} s"


def start(spec: tier.TierSpec, report: Report) -> str | None:
    """(Re)start a tier and wait until it is active; return None, or the reason why it is not."""
    try:
        systemd.reset_failed(spec.unit)
        systemd.restart(spec.unit)
    except systemd.SystemdError as error:
        # Such as a unit file that systemd refuses.
        return str(error)
    began = time.monotonic()
    while True:
        state = systemd.unit_state(spec.unit)
        if state.active_state == "active":
            report(f"{spec.name}: active after {time.monotonic() - began:.1f} s")
            return None
        if state.active_state in ("failed", "inactive") or state.sub_state == "auto-restart":
            reason = _reason(spec.unit, state)
            systemd.stop(spec.unit)
            return reason
        report(_loading(spec, state, time.monotonic() - began))
        time.sleep(_POLL_S)


def _reason(unit: str, state: systemd.UnitState) -> str:
    """Say why a start failed: what readiness said, else the engine's own errors, else the end of the journal."""
    try:
        lines = [line for line in systemd.journal(unit, state.invocation_id) if line.strip()]
    except systemd.SystemdError as error:
        return str(error)
    said = [line for line in lines if line.startswith("not ready: ")]
    errors = [line for line in lines if '"level":"error"' in line.replace(" ", "") or " E " in line[:40]]
    chosen = said[-1:] or [_message(line) for line in errors[-3:]] or [_message(line) for line in lines[-3:]]
    return " | ".join(chosen) or f"the journal of {unit} is empty (result {state.result})"


def _message(line: str) -> str:
    try:
        return str(json.loads(line).get("msg", line)).strip()
    except (json.JSONDecodeError, AttributeError):
        return line.strip()


def _put_back(name: str) -> bool:
    """Lay out the unit and spec that were proven last; False when there are none."""
    directory = _PROVEN / name
    if not (directory / "unit").exists():
        return False
    shutil.copy2(directory / "unit", _UNITS / _unit(name))
    shutil.copy2(directory / "spec.json", tier.DIRECTORY / f"{name}.json")
    return True


def _roll_back(name: str, report: Report) -> str:
    """Put back what served before; return what serves now, as the end of a sentence."""
    if not _put_back(name):
        return f"nothing served as {name} before, so it is down"
    systemd.daemon_reload()
    before = tier.load(name)
    reason = start(before, report)
    if reason is None:
        return f"what served before is active again ({before.model.name}, {Path(before.engine.release).name})"
    return f"what served before does not start either ({reason}), so {name} is down"


def _proven_release(name: str) -> str | None:
    """Return the release with which a tier was proven, None when it never was."""
    try:
        return str(json.loads((_PROVEN / name / "spec.json").read_text(encoding="utf-8"))["engine"]["release"])
    except (OSError, ValueError, KeyError):
        return None


def _point_current(release: str | None) -> None:
    """Make a release the current one again, unless it is gone; the link is replaced in one step."""
    if release and Path(release).is_dir() and _CURRENT.is_symlink():
        beside = _CURRENT.with_suffix(".new")
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path(release).relative_to(_CURRENT.parent))
        beside.replace(_CURRENT)


def _unit(name: str) -> str:
    return f"llama-tier-{name}.service"


def _leftovers(names: Sequence[str]) -> list[str]:
    """Name the tiers that have files on this host and no place among `names`, those of an interrupted removal too."""
    units = {path.stem.removeprefix("llama-tier-") for path in _UNITS.glob(_unit("*"))}
    specs = {path.stem for path in tier.DIRECTORY.glob("*.json")}
    return sorted((units | specs) - set(names))


def _remove(name: str) -> None:
    if (_UNITS / _unit(name)).exists():
        systemd.disable_now(_unit(name))
    (tier.DIRECTORY / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(_PROVEN / name, ignore_errors=True)
    (_UNITS / _unit(name)).unlink(missing_ok=True)


def proven() -> dict[str, Any]:
    """Return the spec documents with which tiers were proven last, by tier; what cannot be read is left out."""
    found = {}
    for path in sorted(_PROVEN.glob("*/spec.json")):
        with contextlib.suppress(OSError, ValueError):
            found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _held(name: str) -> turns.Hold | None:
    """Return what a tier holds now: by what it was proven with, else by its files; None when it does not serve."""
    if systemd.unit_state(_unit(name)).active_state in ("inactive", "failed"):
        return None
    for path in (_PROVEN / name / "spec.json", tier.DIRECTORY / f"{name}.json"):
        with contextlib.suppress(OSError, ValueError, tier.TierSpecError):
            return turns.hold(tier.from_json(json.loads(path.read_text(encoding="utf-8"))))
    return None


@dataclass(frozen=True)
class Outcome:
    """What an activation changed: names of tiers that were (re)started, in order, and of those that were removed."""

    activated: tuple[str, ...]
    retired: tuple[str, ...]


def activate(names: Sequence[str], room_mib: Mapping[str, float], report: Report) -> Outcome:
    """Bring every named tier up as its files say, and remove every other; ActivationError names the first that fails.

    `room_mib` is what tiers may hold of each card by the plan, by UUID; a card that is not in it is not reckoned with.
    Tiers are started one at a time, so that at most one of those that serve is down at any moment; only one that holds
    a port or memory without which another cannot start has to go down before its turn, and the order is one in which
    the fewest have to (`checker.turns`). After a failure every tier that is not proven has the unit and spec again with
    which it was proven, and what was stopped serves again. A second call waits for the first to end.
    """
    with alone():
        return _activate(names, room_mib, report)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep every other call that starts or stops tiers of this host waiting until the block ends."""
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _activate(names: Sequence[str], room_mib: Mapping[str, float], report: Report) -> Outcome:
    specs = {name: tier.load(name) for name in names}
    leftovers = _leftovers(names)
    held = {name: hold for name in (*names, *leftovers) if (hold := _held(name))}
    for name in leftovers:
        if (_UNITS / _unit(name)).exists():
            report(f"{name}: is in the inventory no longer, stopping")
            systemd.stop(_unit(name))
    if any(systemd.needs_daemon_reload(spec.unit) for spec in specs.values()):
        systemd.daemon_reload()
    changes = [
        turns.Change(name, held.get(name), turns.hold(spec)) for name, spec in specs.items() if not _is_proven(spec)
    ]
    changed = {change.name for change in changes}
    staying = [held[name] for name in names if name in held and name not in changed]
    order = _start_in_turn(
        changes,
        {name: held[name] for name in leftovers if name in held},
        turns.room(room_mib, list(held.values()), staying),
        report,
    )
    for name in names:
        # What is predicted of a tier that goes on serving may have changed.
        if (_PROVEN / name / "spec.json").read_bytes() != _inputs(name).spec.read_bytes():
            _remember(name, _inputs(name))
    for name in leftovers:
        _remove(name)
    if leftovers:
        systemd.daemon_reload()
    return Outcome(activated=order, retired=tuple(leftovers))


def _is_proven(spec: tier.TierSpec) -> bool:
    active = systemd.unit_state(spec.unit).active_state == "active"
    return active and _proven_digest(spec.name) == _inputs(spec.name).digest()


def _start_in_turn(
    changes: Sequence[turns.Change], leaving: Mapping[str, turns.Hold], room_mib: Mapping[str, float], report: Report
) -> tuple[str, ...]:
    """Start what has changed and return its names in the order of their turns.

    A tier is remembered as proven as soon as nobody can need its place for the way back: those whose turn is yet to
    come, and those that are `leaving` and have stopped, may have to serve again as before. Tiers that move to another
    release are remembered together, after the last of them: a host is on one release or on the other.
    """
    moving = {
        change.name
        for change in changes
        if _proven_release(change.name) not in (None, tier.load(change.name).engine.release)
    }
    order = turns.order(changes, room_mib)
    by_name = {change.name: change for change in changes}
    started: list[turns.Change] = []
    proven_holds: list[turns.Hold] = []
    stopped: set[str] = set()
    for index, turn in enumerate(order):
        stopped |= set(turn.stop)
        reason = _take(turn, report)
        if reason is None:
            started.append(by_name[turn.name])
        unproven = [by_name[other.name] for other in order[index + (reason is None) :]]
        # Nobody comes back any more when the last turn has gone well.
        returning = [*leaving.values(), *(change.old for change in unproven if change.old)] if unproven else []
        back = set(turns.going_back(started, returning, proven_holds, room_mib))
        if moving & {change.name for change in unproven}:
            back |= moving
        for change in started:
            if change.name not in back:
                _remember(change.name, _inputs(change.name))
                proven_holds.append(change.new)
        started = [change for change in started if change.name in back]
        if reason is not None:
            later = [change.name for change in unproven[1:]]
            again = [*leaving, *(name for name in later if name in stopped)]
            now = _undo(turn.name, started, later, again, moving, report)
            raise ActivationError(f"tier {turn.name} did not become ready: {reason}; {now}")
    return tuple(turn.name for turn in order)


def _take(turn: turns.Turn, report: Report) -> str | None:
    """Stop who has to, and start the tier whose turn it is; return None, or the reason why it is not active."""
    try:
        for name in turn.stop:
            report(f"{name}: stopping, the new {turn.name} needs its port or its memory")
            systemd.stop(_unit(name))
        systemd.enable(_unit(turn.name))
        return start(tier.load(turn.name), report)
    except systemd.SystemdError as error:
        # What has stopped by now is to serve again.
        return str(error)


def _undo(
    failed: str,
    back: Sequence[turns.Change],
    later: Sequence[str],
    stopped: Sequence[str],
    moving: Collection[str],
    report: Report,
) -> str:
    """Have everything serve again as before; return what serves now, as the end of a sentence.

    `back` were started and are in the way of what served before, or are `moving` to another release; `later` had no
    turn yet, `stopped` made room.
    """
    # One that systemd fails for is no reason to leave the others down.
    wrong: list[str] = []

    def each(do: Callable[[str], None], names: Iterable[str]) -> None:
        for name in names:
            try:
                do(_unit(name))
            except systemd.SystemdError as error:
                wrong.append(f"; {name}: {error}")

    went = [change.name for change in back]
    each(systemd.stop, went)
    for name in {failed, *later, *went} & set(moving):
        _point_current(_proven_release(name))
    for name in (*later, *went):
        _put_back(name)
    try:
        now = _roll_back(failed, report)
    except systemd.SystemdError as error:
        now = f"what served as {failed} before cannot be brought back ({error})"
    each(lambda _: systemd.daemon_reload(), [failed])
    each(systemd.restart, [*stopped, *(change.name for change in back if change.old)])
    had_place = ", ".join(name for name in went if name not in moving)
    had_moved = ", ".join(name for name in went if name in moving)
    if had_place:
        now += f"; {had_place} had its place and went back too"
    if had_moved:
        now += f"; {had_moved} had moved to the same release and went back too"
    return "".join([now, *wrong])
