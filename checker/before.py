"""What was in use on a tier's cards before its server was started.

It is known only until the server loads: `checker wait` writes it down in the RuntimeDirectory= of the tier's unit,
where it lasts as long as this run of the unit does. A request waits for that start: this imports little.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checker import hardware

_FILE = "before.json"


@dataclass(frozen=True)
class Before:
    """What was written down of one card: MiB in use, and by process, None where the driver does not tell."""

    used_mib: float
    processes: dict[int, float | None]


def write(cards: Collection[str], directory: Path) -> None:
    """Write down what is in use on some cards, by UUID, and by which processes.

    HardwareError when a card cannot be read, OSError when the directory cannot be written to.
    """
    with hardware.opened():
        states = [hardware.read_state(uuid) for uuid in cards]
    document = {state.uuid: {"used_mib": state.used_mib, "processes": by_pid(state.processes)} for state in states}
    (directory / _FILE).write_text(json.dumps(document), encoding="utf-8")


def read(directory: Path) -> dict[str, Before]:
    """Return what was written down of each card. The tier's user may write there too: another shape tells nothing."""
    try:
        found = json.loads((directory / _FILE).read_text(encoding="utf-8"))
        return {
            uuid: Before(
                _mib(card["used_mib"]),
                {int(pid): None if mib is None else _mib(mib) for pid, mib in card["processes"].items()},
            )
            for uuid, card in found.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return {}


def by_pid(processes: Iterable[hardware.GpuProcess]) -> dict[int, float | None]:
    """Return the MiB that each process holds, all its entries together."""
    found = tuple(processes)
    return {process.pid: hardware.held_mib(found, process.pid) for process in found}


def _mib(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(value)
    return float(value)
