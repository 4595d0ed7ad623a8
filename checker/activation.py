"""Bring the tiers of this host to what their files say, one at a time, and go back where a successor fails.

A tier is *proven* when its unit became active (readiness included) with the inputs that lie on the host: unit, tier
spec and key. The proven unit and spec are kept under /var/lib/llama-tiers/proven/<tier>/, with a digest of what the
server depends on. So a run that was cut off is finished by the next one, a second run restarts nothing, and a failed
successor is replaced by what served before.

A release that fails with one tier is taken from every tier: those that this run moved to it go back to what they were
proven with, and so does /opt/llama-tiers/current.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from checker import hardware, systemd, tier

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
        held += sum(process.used_mib for process in hardware.processes(uuid) if process.pid == pid)
    return held


def _loading(spec: tier.TierSpec, state: systemd.UnitState, seconds: float) -> str:
    try:
        held = _held_mib(spec, state.main_pid) if state.main_pid else 0.0
    except hardware.HardwareError:
        held = 0.0
    planned = sum(device.weights_mib or 0 for device in spec.devices)
    of = f" of {planned:,.0f}" if planned else ""
    return f"{spec.name}: loading {spec.model.name}, {held:,.0f}{of} MiB on the GPUs, {seconds:.0f} s"


def _start(spec: tier.TierSpec, report: Report) -> str | None:
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


@dataclass(frozen=True)
class _Proven:
    """What a tier was proven with: unit file, tier spec file, digest; and the release that it runs."""

    files: tuple[tuple[str, bytes], ...]
    release: str


def _read_proven(name: str) -> _Proven | None:
    """Return what a tier was proven with, None when it never was."""
    directory = _PROVEN / name
    try:
        files = tuple((file, (directory / file).read_bytes()) for file in ("unit", "spec.json", "digest"))
        return _Proven(files, str(json.loads(dict(files)["spec.json"])["engine"]["release"]))
    except (OSError, ValueError, KeyError):
        return None


def _point_current(release: str) -> None:
    """Make a release the current one again, unless it is gone; the link is replaced in one step."""
    if Path(release).is_dir() and _CURRENT.is_symlink():
        beside = _CURRENT.with_suffix(".new")
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path(release).relative_to(_CURRENT.parent))
        beside.replace(_CURRENT)


def _leave_release(failed: tier.TierSpec, moved: Sequence[tuple[str, _Proven | None]], report: Report) -> str:
    """Take the release of a failed tier from the tiers that were `moved` to it in this run; return what came of it.

    Empty when the tier had that release before: then the release is not what failed.
    """
    before = _read_proven(failed.name)
    if before is None or before.release == failed.engine.release:
        return ""
    _point_current(before.release)
    said = []
    for name, proven in reversed(moved):
        if proven is not None and proven.release != failed.engine.release:
            for file, content in proven.files:
                (_PROVEN / name / file).write_bytes(content)
            said.append(f"; {name}: {_roll_back(name, report)}")
    return "".join(said)


def _roll_back(name: str, report: Report) -> str:
    """Put back what served before; return what serves now, as the end of a sentence."""
    if not _put_back(name):
        return f"nothing served as {name} before, so it is down"
    systemd.daemon_reload()
    before = tier.load(name)
    reason = _start(before, report)
    if reason is None:
        return f"what served before is active again ({before.model.name}, {Path(before.engine.release).name})"
    return f"what served before does not start either ({reason}), so {name} is down"


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


def _served_port(name: str) -> int | None:
    """Return the port on which a tier was proven, which it holds until it is started anew."""
    try:
        return int(json.loads((_PROVEN / name / "spec.json").read_text(encoding="utf-8"))["port"])
    except (OSError, ValueError, KeyError):
        return None


@dataclass(frozen=True)
class Outcome:
    """What an activation changed: names of tiers that were (re)started, and of those that were removed."""

    activated: tuple[str, ...]
    retired: tuple[str, ...]


def activate(names: Sequence[str], report: Report) -> Outcome:
    """Bring every named tier up as its files say, and remove every other; ActivationError names the first that fails.

    Tiers are started one at a time, in the given order, so that at most one of those that serve is down at any moment;
    only one that holds the port of another has to go down before its turn. After a failure every tier has the unit and
    spec again with which it was proven, and what was stopped serves again. A second call waits for the first to end.
    """
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _activate(names, report)


def _activate(names: Sequence[str], report: Report) -> Outcome:
    specs = [tier.load(name) for name in names]
    leftovers = _leftovers(names)
    stopped = [name for name in leftovers if (_UNITS / _unit(name)).exists()]
    for name in stopped:
        report(f"{name}: is in the inventory no longer, stopping")
        systemd.stop(_unit(name))
    if any(systemd.needs_daemon_reload(spec.unit) for spec in specs):
        systemd.daemon_reload()
    changed = [spec for spec in specs if not _is_proven(spec)]
    before = {spec.name: _read_proven(spec.name) for spec in changed}
    for index, spec in enumerate(changed):
        for other in changed[index + 1 :]:
            if _served_port(other.name) == spec.port:
                systemd.stop(other.unit)
                stopped.append(other.name)
        systemd.enable(spec.unit)
        reason = _start(spec, report)
        if reason is not None:
            moved = [(earlier.name, before[earlier.name]) for earlier in changed[:index]]
            others = _leave_release(spec, moved, report)
            now = _roll_back(spec.name, report)
            _serve_as_before([later.name for later in changed[index + 1 :]], stopped)
            raise ActivationError(f"tier {spec.name} did not become ready: {reason}; {now}{others}")
        _remember(spec.name, _inputs(spec.name))
    for spec in specs:
        # What is predicted of a tier that goes on serving may have changed.
        if (_PROVEN / spec.name / "spec.json").read_bytes() != _inputs(spec.name).spec.read_bytes():
            _remember(spec.name, _inputs(spec.name))
    for name in leftovers:
        _remove(name)
    if leftovers:
        systemd.daemon_reload()
    return Outcome(activated=tuple(spec.name for spec in changed), retired=tuple(leftovers))


def _is_proven(spec: tier.TierSpec) -> bool:
    active = systemd.unit_state(spec.unit).active_state == "active"
    return active and _proven_digest(spec.name) == _inputs(spec.name).digest()


def _serve_as_before(untried: Sequence[str], stopped: Sequence[str]) -> None:
    """Give tiers whose turn did not come what they were proven with, and start those that were stopped for others."""
    for name in untried:
        _put_back(name)
    systemd.daemon_reload()
    for name in stopped:
        systemd.restart(_unit(name))
