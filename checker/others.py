"""Who else is on a tier's cards: before its server was started, and now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from checker import before, hardware, ports
from checker.evidence import Holder
from checker.tier import TierSpec


@dataclass(frozen=True)
class Others:
    """Of one card: who else is there, and all MiB in use before the server was started (None: not known)."""

    before_mib: float | None
    holders: tuple[Holder, ...]


def around(spec: TierSpec, main_pid: int | None) -> dict[str, Others]:
    """Read who else is on each card of a tier, by UUID; needs root to name the processes of other users.

    Of a card that does not answer nobody is known; nor what was before, of a start that wrote nothing down.
    """
    written = before.read(Path(spec.socket).parent)
    return {uuid: _on_card(uuid, written.get(uuid), main_pid) for uuid in spec.cards}


def _on_card(uuid: str, found: before.Before | None, main_pid: int | None) -> Others:
    try:
        now = before.by_pid(hardware.processes(uuid))
    except hardware.HardwareError:
        return Others(found.used_mib if found else None, ())
    then = found.processes if found else {}
    holders = tuple(
        Holder(pid, *ports.who(pid), now.get(pid, 0.0), then.get(pid, 0.0) if found else None)
        for pid in sorted({*now, *then})
        if pid != main_pid
    )
    return Others(found.used_mib if found else None, holders)
