"""Measure how far a split placement and an unsplit model differ; needs the memory that the tiers hold. Judges nothing.

Every tier of the host is stopped, and its port closed, while llama-perplexity runs three times (an unsplit reference,
the same once more for the noise, the tier's own placement); what was up is started again after that.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from checker import activation, hardware, perplexity, systemd, text
from checker.evidence import Quality
from checker.measure import now
from checker.perplexity import Divergence
from checker.tier import Device, Front, TierSpec

# The logits of 1020 tokens are some 600 MB with a vocabulary of 262,144; /tmp may lie in memory.
_DIRECTORY = Path("/var/lib/llama-tiers")
_TIMEOUT_S = 1800
# A start may take as long as the unit's own limit, which is twice the load and this.
_SPARE_S = 135


class QualityError(Exception):
    """A comparison that could not be made; the message says what the engine said."""


def measure(specs: Sequence[TierSpec], directory: Path = _DIRECTORY) -> dict[str, Quality | str]:
    """Compare each tier that is split over devices; one that could not be compared has a sentence in its place.

    Tiers that were down before stay down. SystemdError when one does not stop, or does not start again.
    """
    split = [spec for spec in specs if sum(count > 0 for count in spec.placement.tensor_split) > 1]
    if not split:
        return {}
    up = _up(specs)
    found: dict[str, Quality | str] = {}
    try:
        # The target first: without it no pinned tier comes back when a rival of it stops.
        systemd.stop(activation.TARGET)
        for spec in specs:
            activation.end(spec.name)
        for spec in split:
            try:
                found[spec.name] = _compare(spec, directory)
            except (QualityError, systemd.SystemdError, OSError) as error:
                found[spec.name] = f"quality of the split was not measured: {error}"
    finally:
        _start(up, timeout_s=2 * max(spec.criteria.max_load_s for spec in specs) + _SPARE_S)
    return found


def _up(specs: Sequence[TierSpec]) -> dict[str, str]:
    """Return the states of the units that are up, or on their way, in the order in which they may start again."""
    fronts = [Front(spec.name) for spec in specs]
    units = [
        activation.TARGET,
        *(spec.unit for spec in specs),
        *(front.cooldown for front in fronts),
        # A request may ask for a rival of what is to serve first. What passes it on is started by it.
        *(unit for front in fronts for unit in (front.stand_in_socket, front.socket)),
    ]
    states = {unit: systemd.unit_state(unit).active_state for unit in units}
    return {unit: state for unit, state in states.items() if state in ("active", "activating")}


def _start(units: Mapping[str, str], timeout_s: float) -> None:
    """Start units again, each although another does not; the first failure is raised when all were tried."""
    failures = []
    for unit, state in units.items():
        try:
            if unit == activation.TARGET:
                # It would start what was down, too.
                systemd.start_alone(unit)
            elif state == "activating":
                # Such as one that waits for a card: nobody knows for how long.
                systemd.restart(unit)
            else:
                systemd.start(unit, timeout_s)
        except systemd.SystemdError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _compare(spec: TierSpec, directory: Path) -> Quality:
    user = systemd.user(spec.unit)
    with tempfile.TemporaryDirectory(prefix="quality-", dir=directory) as made:
        if user and os.geteuid() == 0:
            os.chown(made, _entry(user).pw_uid, -1)
        logits = Path(made) / "logits"
        reference, placed = _reference(spec, logits, user)
        noise = _against(spec, placed, logits, user)
        own = _against(spec, perplexity.split(spec), logits, user)
    return Quality(
        measured_at=now(),
        reference=reference,
        tokens=perplexity.TOKENS,
        noise_mean_kld=noise.mean_kld,
        noise_same_top_share=noise.same_top_share,
        mean_kld=own.mean_kld,
        max_kld=own.max_kld,
        same_top_share=own.same_top_share,
    )


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise QualityError(f"this host has no user {user}") from None


def _reference(spec: TierSpec, logits: Path, user: str) -> tuple[str, tuple[str, ...]]:
    """Write the logits of the unsplit model: on the tier's largest card, or in host memory where that has no room."""
    card = _largest(spec)
    placed = perplexity.alone(spec, card.name)
    try:
        _run(spec, perplexity.base(spec, placed, text.PATH, logits), user)
    except QualityError:
        placed = perplexity.on_host()
        _run(spec, perplexity.base(spec, placed, text.PATH, logits), user)
        return "host memory, by the CPU", placed
    return f"{card.uuid} ({card.gpu}) alone", placed


def _largest(spec: TierSpec) -> Device:
    try:
        size = {gpu.uuid: gpu.total_mib for gpu in hardware.read_gpus()}
    except hardware.HardwareError as error:
        raise QualityError(str(error)) from error
    return max(spec.devices, key=lambda device: size.get(device.uuid, 0))


def _against(spec: TierSpec, placed: Sequence[str], logits: Path, user: str) -> Divergence:
    printed = _run(spec, perplexity.compare(spec, placed, logits), user)
    found = perplexity.read(printed)
    if found is None:
        raise QualityError(f"llama-perplexity {' '.join(placed)} told no KL divergence: {_end(printed)}")
    return found


def _run(spec: TierSpec, command: Sequence[str], user: str) -> str:
    # The group too, and no other: a process keeps root's unless it is told.
    entry = _entry(user) if user and os.geteuid() == 0 else None
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **spec.environment},
            user=entry and entry.pw_uid,
            group=entry and entry.pw_gid,
            extra_groups=() if entry else None,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise QualityError(f"{command[0]} took longer than {_TIMEOUT_S} s") from None
    if done.returncode:
        raise QualityError(f"{command[0]} failed (exit {done.returncode}): {_end(done.stdout)}")
    return done.stdout


def _end(printed: str) -> str:
    return " | ".join(printed.strip().splitlines()[-3:]) or "it said nothing"
