"""What the parts of a verdict have in common: a check with its sentence, and how figures are written. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from checker.evidence import Check, DeviceEvidence, Evidence
from checker.tier import TierSpec


@dataclass(frozen=True)
class Finding:
    """One check: `reason` is the sentence for when it failed, `note` what is to be said although it passed."""

    check: Check
    reason: str
    note: str = ""


def expected_devices(spec: TierSpec, evidence: Evidence) -> tuple[DeviceEvidence, ...]:
    """Return what was measured of each device of the spec, in device order; one that was not found has no figures."""
    by_place = {(found.name, found.uuid): found for found in evidence.devices}
    return tuple(
        by_place.get(
            (device.name, device.uuid),
            DeviceEvidence(device.name, device.uuid, device.gpu, device.weights_mib, None, None, None, None),
        )
        for device in spec.devices
    )


def mib(value: float | None) -> str:
    """Write MiB in a sentence."""
    return "an unknown number of MiB" if value is None else f"{value:,.1f} MiB"
