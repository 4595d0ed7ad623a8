"""Who else is on a tier's cards: before its server was started, and now.

What was there before is known only until the server loads: `checker wait` writes it down in the RuntimeDirectory= of
the tier's unit, where it lasts as long as this run of the unit does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checker import hardware, ports
from checker.evidence import Holder
from checker.hardware import GpuProcess
from checker.tier import TierSpec

_FILE = "before.json"


@dataclass(frozen=True)
class Others:
    """Of one card: who else is there, and all MiB in use before the server was started (None: not known)."""

    before_mib: float | None
    holders: tuple[Holder, ...]


@dataclass(frozen=True)
class _Before:
    """What was written down of one card: MiB in use, and by process, None where the driver does not tell."""

    used_mib: float
    processes: dict[int, float | None]


def write_down(cards: Collection[str], directory: Path) -> None:
    """Write down what is in use on some cards, by UUID, and by which processes.

    HardwareError when a card cannot be read, OSError when the directory cannot be written to.
    """
    states = [hardware.read_state(uuid) for uuid in cards]
    document = {state.uuid: {"used_mib": state.used_mib, "processes": _by_pid(state.processes)} for state in states}
    (directory / _FILE).write_text(json.dumps(document), encoding="utf-8")


def around(spec: TierSpec, main_pid: int | None) -> dict[str, Others]:
    """Read who else is on each card of a tier, by UUID; needs root to name the processes of other users.

    Of a card that does not answer nobody is known; nor what was before, of a start that wrote nothing down.
    """
    written = _written(Path(spec.socket).parent / _FILE)
    return {uuid: _on_card(uuid, written.get(uuid), main_pid) for uuid in spec.cards}


def _on_card(uuid: str, before: _Before | None, main_pid: int | None) -> Others:
    try:
        now = _by_pid(hardware.processes(uuid))
    except hardware.HardwareError:
        return Others(before.used_mib if before else None, ())
    then = before.processes if before else {}
    holders = tuple(
        Holder(pid, *ports.who(pid), now.get(pid, 0.0), then.get(pid, 0.0) if before else None)
        for pid in sorted({*now, *then})
        if pid != main_pid
    )
    return Others(before.used_mib if before else None, holders)


def _by_pid(processes: Iterable[GpuProcess]) -> dict[int, float | None]:
    found = tuple(processes)
    return {process.pid: hardware.held_mib(found, process.pid) for process in found}


def _written(file: Path) -> dict[str, _Before]:
    """Return what was written down of each card. The tier's user may write there too: another shape tells nothing."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {
            uuid: _Before(
                _mib(card["used_mib"]),
                {int(pid): None if mib is None else _mib(mib) for pid, mib in card["processes"].items()},
            )
            for uuid, card in found.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return {}


def _mib(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(value)
    return float(value)
