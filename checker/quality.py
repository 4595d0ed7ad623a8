"""Measure how far a split placement and an unsplit model differ; needs the memory that the tiers hold. Judges nothing.

Every tier of the host is stopped, and its port closed, while llama-perplexity runs three times (an unsplit reference,
the same once more for the noise, the tier's own placement); what was up is started again after that. A process of
systemd's waits for the end of all this, however it comes, and starts what is down then.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from checker import activation, hardware, perplexity, restoring, systemd, text
from checker.evidence import Quality
from checker.measure import now
from checker.perplexity import Divergence
from checker.tier import Device, TierSpec

# The logits of 1020 tokens are some 600 MB with a vocabulary of 262,144; /tmp may lie in memory.
_DIRECTORY = Path("/var/lib/llama-tiers")
_TIMEOUT_S = 1800
# Long enough for whoever finds nothing to do, and too short for a trial.
_PATIENCE_S = 60
# It waits for `activation.alone()` first, and finds nothing to do after a measurement that came to its end.
_RESTORE = (sys.executable, "-m", "checker.trial_run", "restore")


class QualityError(Exception):
    """A comparison that could not be made; the message says what the engine said."""


def measure(
    specs: Sequence[TierSpec], report: Callable[[str], None], directory: Path = _DIRECTORY
) -> dict[str, Quality | str]:
    """Compare each tier that is split over devices; one that could not be compared has a sentence in its place.

    Tiers that were down before stay down. `report` is told what went wrong beside the comparisons: somebody else starts
    or stops tiers, what serves cannot be remembered, one does not stop or does not start again.
    """
    split = [spec for spec in specs if sum(count > 0 for count in spec.placement.tensor_split) > 1]
    found: dict[str, Quality | str] = {}
    if not split:
        return found
    try:
        with activation.alone(_PATIENCE_S):
            # What a trial that was cut off has stopped counts as what is up.
            restoring.restore()
            systemd.run_aside("Start what a measurement of quality has left down", *_RESTORE)
            try:
                restoring.make_room()
                for spec in split:
                    found[spec.name] = _compared(spec, directory)
            finally:
                restoring.restore()
    except (activation.BusyError, systemd.SystemdError, OSError) as error:
        report(str(error))
        return {spec.name: _not_measured(error) for spec in split} | found
    return found


def _compared(spec: TierSpec, directory: Path) -> Quality | str:
    try:
        return _compare(spec, directory)
    except (QualityError, systemd.SystemdError, OSError) as error:
        return _not_measured(error)


def _not_measured(error: Exception) -> str:
    return f"quality of the split was not measured: {error}"


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
            # One that outlived this process would hold the memory that the tiers need again.
            ["setpriv", "--pdeathsig", "KILL", *command],
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
