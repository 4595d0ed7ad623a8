"""What a tier waits for before its server starts: `ExecStartPre=` of its unit, inside its sandbox.

At boot the driver may need its time, and a rival that was just stopped may still hold memory of the cards. What is in
use of them when the wait is over is written down for verification.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from checker import before, hardware, tier

CARDS_S = 60.0
MEMORY_S = 15.0
_LOOK_S = 0.5
_POLL_S = 0.05
_UVM = "/dev/nvidia-uvm"


def wait(spec: tier.TierSpec, cards_s: float = CARDS_S, memory_s: float = MEMORY_S) -> str | None:
    """Wait for the tier's cards, then for the memory that it needs of them; return the reason why it cannot start.

    Memory that does not become free is said on stderr and is no reason: the plan's figures are a little higher than
    what a server takes, and the load itself tells.
    """
    gpus = _wait_for_cards(spec, cards_s)
    if isinstance(gpus, str):
        return gpus
    reason = _without_unified_memory(spec)
    if reason:
        return reason
    short = _wait_for_memory(spec, gpus, memory_s)
    if short:
        print(short, file=sys.stderr)
    return None


def _wait_for_cards(spec: tier.TierSpec, cards_s: float) -> Sequence[hardware.Gpu] | str:
    deadline = time.monotonic() + cards_s
    while True:
        try:
            gpus, reason = hardware.reach(spec.cards)
            if reason is None:
                return gpus
        except hardware.HardwareError as error:
            reason = str(error)
        if time.monotonic() >= deadline:
            return f"{spec.name}: {reason}"
        time.sleep(_LOOK_S)


def _without_unified_memory(spec: tier.TierSpec) -> str | None:
    """Say why CUDA would find no card, though NVML reads them; there is nothing to wait for.

    systemd opens the sandbox to the device nodes that are there when it begins a start, for all of that start.
    """
    if all(device.rpc_endpoint for device in spec.devices):
        return None
    try:
        os.close(os.open(_UVM, os.O_RDWR))
    except OSError as error:
        return (
            f"{spec.name}: {_UVM} cannot be opened ({error.strerror}), and CUDA finds no card without it: kernel "
            "module nvidia_uvm is not loaded, or the node came after this start had begun, and the next one has it"
        )
    return None


def _wait_for_memory(spec: tier.TierSpec, gpus: Sequence[hardware.Gpu], memory_s: float) -> str | None:
    needs: dict[str, float] = {}
    for device in spec.devices:
        if device.uuid in spec.cards:
            needs[device.uuid] = needs.get(device.uuid, 0.0) + (device.predicted_mib or 0.0)
    deadline = time.monotonic() + memory_s
    while True:
        free = {gpu.uuid: gpu.total_mib - gpu.used_mib for gpu in gpus}
        short = [
            f"{uuid} has {free[uuid]:,} MiB free, {mib:,.0f} are planned"
            for uuid, mib in needs.items()
            if uuid in free and free[uuid] < mib
        ]
        if not short:
            return None
        if time.monotonic() >= deadline:
            return f"{spec.name}: {'; '.join(short)}: something else holds memory of it, the load may fail"
        time.sleep(_POLL_S)
        try:
            gpus = hardware.answering_gpus()
        except hardware.HardwareError as error:
            return f"{spec.name}: {error}"


def _write_down(spec: tier.TierSpec) -> None:
    """Write down who is on the cards, in the folder that systemd makes for a start; by hand nothing starts after it."""
    directory = os.environ.get("RUNTIME_DIRECTORY")
    if directory is None:
        return
    try:
        before.write(spec.cards, Path(directory))
    except (hardware.HardwareError, OSError) as error:
        print(f"{spec.name}: what its cards hold before the load is not known: {error}", file=sys.stderr)


def main(name: str) -> int:
    """Wait as ExecStartPre; return the exit code, with the reason on stderr when it is not 0."""
    try:
        spec = tier.load(name)
        reason = wait(spec)
    except tier.TierSpecError as error:
        reason = str(error)
    if reason is None:
        _write_down(spec)
        return 0
    print(f"not ready: {reason}", file=sys.stderr)
    return 1
