"""Bring the tiers of this host to what their files say, one at a time, and go back where a successor fails.

A tier is *proven* when its unit became active (readiness included) with the inputs that lie on the host: unit, tier
spec and key. The proven unit and spec are kept under /var/lib/llama-tiers/proven/<tier>/, with a digest of all three
inputs. So a run that was cut off is finished by the next one, a second run restarts nothing, and a failed successor is
replaced by what served before.
"""

from __future__ import annotations

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
        """Return the sha256 over the contents of the three files."""
        digest = hashlib.sha256()
        for path in (self.unit, self.spec, self.key):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
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


def _roll_back(name: str, failed: tier.TierSpec, report: Report) -> str:
    """Put back what served before; return what serves now, as the end of a sentence."""
    directory = _PROVEN / name
    if not (directory / "unit").exists():
        return f"nothing served as {name} before, so it is down"
    shutil.copy2(directory / "unit", _UNITS / failed.unit)
    shutil.copy2(directory / "spec.json", tier.DIRECTORY / f"{name}.json")
    systemd.daemon_reload()
    before = tier.load(name)
    reason = _start(before, report)
    if reason is None:
        return f"what served before is active again ({before.model.name}, {Path(before.engine.release).name})"
    return f"what served before does not start either ({reason}), so {name} is down"


def _retire(keep: Sequence[str], report: Report) -> list[str]:
    retired = []
    for path in sorted(_UNITS.glob("llama-tier-*.service")):
        name = path.stem.removeprefix("llama-tier-")
        if name in keep:
            continue
        report(f"{name}: is in the inventory no longer, stopping")
        systemd.disable_now(path.name)
        path.unlink()
        (tier.DIRECTORY / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(_PROVEN / name, ignore_errors=True)
        retired.append(name)
    return retired


@dataclass(frozen=True)
class Outcome:
    """What an activation changed: names of tiers that were (re)started, and of those that were removed."""

    activated: tuple[str, ...]
    retired: tuple[str, ...]


def activate(names: Sequence[str], report: Report) -> Outcome:
    """Bring every named tier up as its files say, and remove every other; ActivationError names the first that fails.

    Tiers are started one at a time, in the given order, so that at most one of those that serve is down at any moment.
    """
    specs = [tier.load(name) for name in names]
    retired = _retire(names, report)
    if retired or any(systemd.needs_daemon_reload(spec.unit) for spec in specs):
        systemd.daemon_reload()
    activated = []
    for spec in specs:
        inputs = _inputs(spec.name)
        active = systemd.unit_state(spec.unit).active_state == "active"
        if active and _proven_digest(spec.name) == inputs.digest():
            continue
        systemd.enable(spec.unit)
        reason = _start(spec, report)
        if reason is not None:
            raise ActivationError(
                f"tier {spec.name} did not become ready: {reason}; {_roll_back(spec.name, spec, report)}"
            )
        _remember(spec.name, inputs)
        activated.append(spec.name)
    return Outcome(activated=tuple(activated), retired=tuple(retired))
