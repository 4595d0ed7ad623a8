"""What the engine itself says that a tier will take, held against its plan before the tier is started.

The release's own `llama-fit-params --fit-print on` reads the real file on the real cards and allocates nothing
(tools/fit-params, engine 0c1e57098). It reserves rows of logits for a whole micro-batch, which llama-server does not:
only weights and KV cache are compared. Those the planner meets to the MiB where it knows the file's header
(docs/evidence/planner-comparison-cuda.json); so it does the weights that stay on the host.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checker.tier import TierSpec

# Rounding of the engine's figures; a catalogue's derived header is true to a thousandth.
_SLACK_MIB = 8.0
_SLACK_SHARE = 0.005
_TIMEOUT_S = 120
# A line of the estimate: device, then MiB of weights, context and compute buffers.
_ROW = re.compile(r"(\S+)\s+(\d+)\s+(\d+)\s+(\d+)")
_HOST = "Host"

# The flags of a tier that decide what its buffers take; each comes with a value.
_ASKED = (
    "--model",
    "--rpc",
    "--device",
    "--n-gpu-layers",
    "--split-mode",
    "--tensor-split",
    "--ctx-size",
    "--parallel",
    "--cache-type-k",
    "--cache-type-v",
    "--ubatch-size",
    "--flash-attn",
    "--n-cpu-moe",
    "--override-tensor",
)
# The engine has no estimate for the others.
_SPLIT_MODES = ("none", "layer")


class EstimateError(Exception):
    """The engine gave no estimate; the message says what it said."""


@dataclass(frozen=True)
class Estimate:
    """Weights and KV cache on one device or the host, in whole MiB as the engine prints them."""

    weights_mib: int
    kv_mib: int


def ask(spec: TierSpec) -> dict[str, Estimate] | None:
    """Ask the tier's release for its estimate by device name; None when it has none for the tier's split mode.

    EstimateError when it fails, for instance for want of memory for its context on a card.
    """
    if spec.placement.split_mode not in _SPLIT_MODES:
        return None
    flags = [
        word for flag, value in zip(spec.argv, spec.argv[1:], strict=False) if flag in _ASKED for word in (flag, value)
    ]
    binary = Path(spec.argv[0]).with_name("llama-fit-params")
    try:
        done = subprocess.run(
            [binary, *flags, "--fit-print", "on"],
            capture_output=True,
            text=True,
            env={**os.environ, **spec.environment},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EstimateError(f"{spec.name}: {binary} gave no estimate: {error}") from error
    rows = filter(None, map(_ROW.fullmatch, map(str.strip, done.stdout.splitlines())))
    found = {row[1]: Estimate(int(row[2]), int(row[3])) for row in rows}
    if done.returncode or not found:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:]) or "nothing"
        raise EstimateError(f"{spec.name}: {binary} gave no estimate (exit {done.returncode}), it said: {said}")
    return found


def disagreements(spec: TierSpec, told: Mapping[str, Estimate]) -> list[str]:
    """Return one sentence for each device, and the host, for which the engine expects another size than the plan; pure.

    An engine without CUDA repacks weights for the CPU and prints no buffers of such, so of a tier on RPC devices the
    host's row may be lower than the plan.
    """
    anew = (
        f"the catalogue's header of {spec.model.name} is not that of the file; "
        f"`checker lock --file FILE {spec.model.name}` reads it anew, then plan again"
    )
    problems = []
    for device in spec.devices:
        if device.weights_mib is None or device.kv_mib is None:
            continue
        engine = told.get(device.name, Estimate(0, 0))
        if _far(device.weights_mib, engine.weights_mib) or _far(device.kv_mib, engine.kv_mib):
            problems.append(
                f"{spec.name}: on {device.uuid} ({device.gpu}) llama-fit-params expects {engine.weights_mib:,} MiB of "
                f"weights and {engine.kv_mib:,} of KV cache, planned are {device.weights_mib:,.0f} and "
                f"{device.kv_mib:,.0f}: {anew}"
            )
    if _HOST in told and spec.host_weights_mib is not None:
        planned, engine_mib = spec.host_weights_mib, told[_HOST].weights_mib
        repacked = engine_mib < planned and any(device.rpc_endpoint for device in spec.devices)
        if _far(planned, engine_mib) and not repacked:
            problems.append(
                f"{spec.name}: in the host's memory llama-fit-params expects {engine_mib:,} MiB of weights, "
                f"planned are {planned:,.0f}: {anew}"
            )
    return problems


def _far(planned_mib: float, told_mib: float) -> bool:
    return abs(planned_mib - told_mib) > max(_SLACK_MIB, planned_mib * _SLACK_SHARE)
