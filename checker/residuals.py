"""What was measured of a tier's memory less what was planned, by card: what the next plan can learn from. Pure; MiB."""

from __future__ import annotations

from collections.abc import Sequence

from checker.evidence import CardLoad, DeviceEvidence, Residual


def of(devices: Sequence[DeviceEvidence], cards: Sequence[CardLoad] = ()) -> tuple[Residual, ...]:
    """Return the differences for each card of the plan; `cards` tell the peak where one was measured."""
    planned = [device for device in devices if device.name and device.uuid]
    return tuple(
        _of_card([device for device in planned if device.uuid == uuid], peak_mib(uuid, planned, cards))
        for uuid in dict.fromkeys(device.uuid for device in planned)
    )


def peak_mib(uuid: str, devices: Sequence[DeviceEvidence], cards: Sequence[CardLoad]) -> float | None:
    """Return the most that the tier's process was seen to hold on a card; None when it was never read."""
    seen = [card.peak_mib for card in cards if card.uuid == uuid]
    seen += [device.process_mib for device in devices if device.uuid == uuid]
    return max((mib for mib in seen if mib is not None), default=None)


def planned_mib(devices: Sequence[DeviceEvidence]) -> float | None:
    """Return what the devices of one card are planned to hold together; None when the plan could not tell.

    CUDA itself takes its share of a card once, whatever number of devices the engine makes of it.
    """
    overhead = _overhead(devices)
    buffers = [_sum(devices, f"predicted_{term}_mib") for term in ("weights", "kv", "compute")]
    if overhead is None or None in buffers:
        return None
    return sum(mib or 0 for mib in buffers) + overhead


def logged_mib(devices: Sequence[DeviceEvidence]) -> float | None:
    """Return what the engine says it allocated on the devices of one card; None when its log could not be read."""
    buffers = [_sum(devices, f"{term}_mib") for term in ("weights", "kv", "compute")]
    return None if None in buffers else sum(mib or 0 for mib in buffers)


def _of_card(devices: Sequence[DeviceEvidence], held: float | None) -> Residual:
    rest = _less(held, logged_mib(devices))
    return Residual(
        uuid=devices[0].uuid,
        gpu=devices[0].gpu,
        weights_mib=_less(_sum(devices, "weights_mib"), _sum(devices, "predicted_weights_mib")),
        kv_mib=_less(_sum(devices, "kv_mib"), _sum(devices, "predicted_kv_mib")),
        compute_mib=_less(_sum(devices, "compute_mib"), _sum(devices, "predicted_compute_mib")),
        rest_mib=_less(rest, _overhead(devices)),
        total_mib=_less(held, planned_mib(devices)),
    )


def _overhead(devices: Sequence[DeviceEvidence]) -> float | None:
    told = [device.predicted_overhead_mib for device in devices]
    return None if None in told else max(mib or 0 for mib in told)


def _sum(devices: Sequence[DeviceEvidence], field: str) -> float | None:
    values: list[float | None] = [getattr(device, field) for device in devices]
    return None if None in values else sum(value or 0 for value in values)


def _less(measured: float | None, planned: float | None) -> float | None:
    return None if measured is None or planned is None else round(measured - planned, 2)
