"""What was measured of a tier's memory less what was planned, by card, and what a next plan learns of it. Pure; MiB.

Weights, KV cache and compute buffers follow rules that the engine itself has to agree with before a tier starts; what a
process takes of a card beside them (CUDA's context, modules, libraries) is a matter of card and driver, and is learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from checker.evidence import CardLoad, DeviceEvidence, Residual, devices_from_json, thorough_from_json


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
    overhead, buffers = _overhead(devices), _planned_buffers_mib(devices)
    return None if overhead is None or buffers is None else buffers + overhead


def logged_mib(devices: Sequence[DeviceEvidence]) -> float | None:
    """Return what the engine says it allocated on the devices of one card; None when its log could not be read."""
    buffers = [_sum(devices, f"{term}_mib") for term in ("weights", "kv", "compute")]
    return None if None in buffers else sum(mib or 0 for mib in buffers)


def overheads(reports: Iterable[Any], driver: str | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what a tier's process was measured to take of a card beside the engine's buffers, as a profile has it.

    `overheads` by UUID is of tiers whose devices hold whole layers; `row_overheads` by UUID and the model's name is of
    row split, for which CUDA keeps more on each card, how much is a matter of the model. Each is
    `{"mib": ..., "source": ...}`, the source a sentence that names the measurement.
    `reports` are documents of one host (docs/schemas/verification.schema.json), newest first: of each card the newest
    that tells of it counts, and there the tier with which it took most. With `driver` only what was measured under this
    version of the driver counts. A document that is damaged, or written by another version, tells nothing.
    """
    told = list(reports)
    by_rows: dict[str, dict[str, Any]] = {}
    for (uuid, model), learned in _newest(told, driver, by_rows=True).items():
        by_rows.setdefault(uuid, {})[model] = learned
    by_layers = {uuid: learned for (uuid, _), learned in _newest(told, driver, by_rows=False).items()}
    return {"overheads": by_layers, "row_overheads": by_rows}


def _newest(reports: Iterable[Any], driver: str | None, *, by_rows: bool) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what was learned last by card, and with row split by the model's name."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        try:
            told = _learned(report, driver, by_rows=by_rows)
        except (LookupError, TypeError, ValueError, AttributeError):
            continue
        found = told | found
    return found


def _learned(report: Mapping[str, Any], driver: str | None, *, by_rows: bool) -> dict[tuple[str, str], dict[str, Any]]:
    version, day = report["driver"]["version"], report["recorded_at"][:10]
    if driver not in (None, version):
        return {}
    taken: dict[tuple[str, str], dict[str, float]] = {}
    for tier in report["tiers"]:
        evidence = tier["evidence"]
        if evidence["placement"]["split_mode"] not in (("row",) if by_rows else ("none", "layer")):
            continue
        for uuid, mib in _beside_buffers(evidence).items():
            taken.setdefault((uuid, evidence["model"]["name"] if by_rows else ""), {})[tier["name"]] = mib
    return {
        key: {
            "mib": math.ceil(max(by_tier.values())),
            "source": f"measured on this host with {' and '.join(by_tier)}, {day}, driver {version}",
        }
        for key, by_tier in taken.items()
    }


def _beside_buffers(evidence: Mapping[str, Any]) -> dict[str, float]:
    """Return what one tier took of each card beside its buffers, at the peak under a prompt that filled the context.

    Its buffers are those that were planned, or those that the engine logged where these are less: so a next plan of the
    same placement expects no less than was held. Nothing is told of a tier that was measured quickly, of which less was
    asked; where a card could not be read to the end; and of cards behind an RPC server, whose memory is the server's.
    """
    devices, thorough = devices_from_json(evidence["devices"]), thorough_from_json(evidence.get("thorough"))
    if not devices or thorough is None or thorough.full is None or thorough.unread:
        return {}
    planned = [device for device in devices if device.name.startswith("CUDA") and device.uuid]
    found = {}
    for uuid in dict.fromkeys(device.uuid for device in planned):
        peak = peak_mib(uuid, planned, thorough.cards)
        here = [device for device in planned if device.uuid == uuid]
        logged, expected = logged_mib(here), _planned_buffers_mib(here)
        # A process that holds less than its buffers had them moved off the card: no measurement of anything.
        if peak is not None and logged is not None and logged <= peak < math.inf:
            found[uuid] = peak - min(logged, logged if expected is None else expected)
    return found


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
        planned_mib=_less(planned_mib(devices), 0.0),
        held_mib=held,
    )


def _planned_buffers_mib(devices: Sequence[DeviceEvidence]) -> float | None:
    buffers = [_sum(devices, f"predicted_{term}_mib") for term in ("weights", "kv", "compute")]
    return None if None in buffers else sum(mib or 0 for mib in buffers)


def _overhead(devices: Sequence[DeviceEvidence]) -> float | None:
    told = [device.predicted_overhead_mib for device in devices]
    return None if None in told else max(mib or 0 for mib in told)


def _sum(devices: Sequence[DeviceEvidence], field: str) -> float | None:
    values: list[float | None] = [getattr(device, field) for device in devices]
    return None if None in values else sum(value or 0 for value in values)


def _less(measured: float | None, planned: float | None) -> float | None:
    return None if measured is None or planned is None else round(measured - planned, 2)
