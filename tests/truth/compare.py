"""Hold checker.memory to what the engine told: the table, and the bounds that it must keep.

    python tests/truth/compare.py docs/evidence/planner-truth-rpc.json [--worst N] [--out FILE]

Exit 1 when a bound is broken. Overhead is left out: the engine's figures are of its buffers only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cases
import models

from checker import header, memory, tier

# The engine tells whole MiB, cut off; so a figure may be up to one higher than what it tells.
EXACT_MIB = 1
COMPUTE_MIB, COMPUTE_SHARE = 32, 0.10
TOTAL_MIB, TOTAL_SHARE = 48, 0.02

TOOLS: dict[str, Literal["slots", "ubatch"]] = {"llama-server": "slots", "llama-fit-params": "ubatch"}


@dataclass(frozen=True)
class Row:
    """One device (or the host) of one case as a tool and the planner tell it, MiB: weights, KV cache, compute."""

    case: str
    tool: str
    device: str
    engine: tuple[int, int, int]
    planner: tuple[float, float, float]

    @property
    def off(self) -> tuple[float, float, float, float]:
        """Planner minus engine: weights, KV, compute, total."""
        weights, kv, compute = (_off(p, e) for p, e in zip(self.planner, self.engine, strict=True))
        return weights, kv, compute, _off(sum(self.planner), sum(self.engine), len(self.engine))

    @property
    def broken(self) -> list[str]:
        """Name the bounds that this row breaks."""
        weights, kv, compute, total = self.off
        found = [f"weights {weights:+.1f}"] if abs(weights) > EXACT_MIB else []
        found += [f"KV {kv:+.1f}"] if abs(kv) > EXACT_MIB else []
        if abs(compute) > max(COMPUTE_MIB, COMPUTE_SHARE * self.engine[2]):
            found.append(f"compute {compute:+.1f}")
        if abs(total) > max(TOTAL_MIB, TOTAL_SHARE * sum(self.engine)):
            found.append(f"total {total:+.1f}")
        return found


def _off(planned: float, told: int, cut: int = 1) -> float:
    """Return how far a figure is from one that was cut off to whole MiB (`cut` of them added up)."""
    if told <= planned < told + cut:
        return 0.0
    return planned - told if planned < told else planned - told - cut


@lru_cache
def header_of(name: str) -> header.Header:
    """Return the header of a model of the cases, as the planner reads it from its table."""
    model = models.MODELS[name]
    tensors = [header.Tensor(t.name, t.shape, t.type_name, t.bytes) for t in model.tensors()]
    return header.from_metadata(model.metadata(), tensors, name)


def placement_of(case: cases.Case) -> tier.Placement:
    """Return the placement of a case."""
    return tier.Placement(
        split_mode=case.split_mode,
        tensor_split=case.tensor_split,
        n_gpu_layers=case.n_gpu_layers,
        ctx_size=case.ctx_size,
        cache_type_k=case.cache_type_k,
        cache_type_v=case.cache_type_v,
        ubatch_size=case.ubatch_size,
        flash_attn=case.flash_attn,
        pipeline_parallel=case.pipeline_parallel,
        n_cpu_moe=case.n_cpu_moe,
        parallel=case.parallel,
    )


def rows(document: dict[str, Any]) -> Iterator[Row]:
    """Yield a row for each device that a tool answered about; errors of the engine are left out."""
    for answer in document["cases"]:
        case = cases.from_json(answer["case"])
        kinds = [document["kind"].upper()] * len(answer["devices"])
        for tool, outputs in TOOLS.items():
            told = answer.get(tool, {"error": ""})
            if "error" in told:
                continue
            estimate = memory.estimate(header_of(case.model), placement_of(case), kinds, outputs=outputs)
            parts = dict(zip(answer["devices"], estimate.devices, strict=True)) | {"Host": estimate.host}
            for device, part in parts.items():
                figures = told.get(device)
                if figures is not None:
                    planned = part.weights_mib, part.kv_mib, part.compute_mib
                    yield Row(answer["name"], tool, device, tuple(figures), planned)


def summary(found: list[Row]) -> dict[str, Any]:
    """Return how far planner and engine are apart, over devices; the host's figures beside them."""
    devices = [row for row in found if row.device != "Host"]
    host = [row for row in found if row.device == "Host"]
    return {
        "cases": len({row.case for row in found}),
        "device_rows": len(devices),
        "largest_difference_mib": {
            what: round(max((abs(row.off[index]) for row in devices), default=0.0), 1)
            for index, what in enumerate(("weights", "kv", "compute", "total"))
        },
        "compute_exact_rows": sum(row.off[2] == 0 for row in devices),
        "device_rows_out_of_bounds": sum(bool(row.broken) for row in devices),
        "host_rows_out_of_bounds": sum(bool(row.broken) for row in host),
        "planner_below_engine_mib": round(max((-row.off[3] for row in devices), default=0.0), 1),
    }


def main() -> int:
    """Print the table and the summary; 1 when a device's row is out of bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--worst", type=int, default=0, help="only the N rows that are furthest off")
    parser.add_argument("--out", type=Path, help="write the comparison as JSON")
    options = parser.parse_args()
    document = json.loads(options.truth.read_text(encoding="utf-8"))
    found = list(rows(document))
    shown = sorted(found, key=lambda row: -abs(row.off[2]))[: options.worst] if options.worst else found
    print(f"{'case':<86} {'tool':<16} {'device':<6} {'engine w/kv/compute':>20} {'planner':>24}")
    for row in shown:
        engine = "/".join(map(str, row.engine))
        planner = "/".join(f"{value:.1f}" for value in row.planner)
        print(f"{row.case:<86} {row.tool:<16} {row.device:<6} {engine:>20} {planner:>24} {' '.join(row.broken)}")
    told = summary(found)
    print(json.dumps(told, indent=1))
    if options.out:
        kept = {key: document[key] for key in ("engine", "kind", "card", "date")}
        lines = [
            json.dumps([row.case, row.tool, row.device, *row.engine, *(round(value, 1) for value in row.planner)])
            for row in found
        ]
        head = json.dumps(
            {
                "schema": "llama-tiers/planner-comparison/1",
                **kept,
                "summary": told,
                "columns": [
                    *("case", "tool", "device", "engine_weights_mib", "engine_kv_mib", "engine_compute_mib"),
                    *("planner_weights_mib", "planner_kv_mib", "planner_compute_mib"),
                ],
            },
            indent=1,
        )
        body = ",\n  ".join(lines)
        options.out.write_text(f'{head[:-2]},\n "rows": [\n  {body}\n ]\n}}\n', encoding="utf-8")
    return 1 if told["device_rows_out_of_bounds"] else 0


if __name__ == "__main__":
    sys.exit(main())
