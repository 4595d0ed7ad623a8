#!/usr/bin/env python3
"""How fast the planner is: PYTHONPATH=. .venv/bin/python tests/benchmarks/plan_speed.py

The inventories reference and production as `checker plan` plans them, after start-up; and the search for one tier
of the reference host against its peer, which tries every whole-layer split of the same choices with the same
arithmetic, in the same run.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/unit"))

from planning_cases import Q4, reference, shaped  # noqa: E402

from checker import placement, planning  # noqa: E402
from checker.placement import Choice, Demand  # noqa: E402
from checker.tier import Placement  # noqa: E402

CONTEXT = 8192


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and what it returns."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def every_split() -> float:
    """Return the best expected tokens/s over every placement that the search may choose."""
    model, host, demand = shaped(Q4), reference(), Demand(CONTEXT)
    layers = model.n_layer + 1
    best = 0.0
    for order in itertools.permutations(host.cards):
        for first, ubatch, pipeline in itertools.product(range(1, layers), demand.ubatch_sizes, demand.pipeline):
            made = Placement(
                "layer",
                (first, layers - first),
                layers,
                CONTEXT,
                "f16",
                "f16",
                ubatch,
                "on",
                pipeline_parallel=pipeline,
            )
            choice = placement.evaluate(model, made, order, host.ram)
            if choice.fits and choice.speed:
                best = max(best, choice.speed.expected)
    return best


def main() -> None:
    """Print the table."""
    models = yaml.safe_load((ROOT / "catalogue/models.yml").read_text(encoding="utf-8"))["models"]
    engines = yaml.safe_load((ROOT / "catalogue/engines.yml").read_text(encoding="utf-8"))["engines"]
    for name in ("reference", "production"):
        hosts = planning.read_inventory(ROOT, ROOT / "inventories" / name, None)
        seconds, _ = timed(lambda: [planning.make(host, planning.Wishes(), models, engines) for host in hosts])  # noqa: B023
        print(f"inventories/{name}: {len(hosts)} hosts planned in {seconds:.2f} s")
    # The peer first: what both share is in the caches when the search comes.
    peer_s, optimum = timed(every_split)
    search_s, found = timed(lambda: placement.search(shaped(Q4), reference(), Demand(CONTEXT)))
    assert isinstance(found, Choice)
    assert found.speed
    print(f"search: {search_s:.3f} s, every split: {peer_s:.3f} s, ratio {peer_s / search_s:.1f}")
    print(f"speed of its choice: {found.speed.expected / optimum:.1%} of the best there is")


if __name__ == "__main__":
    main()
