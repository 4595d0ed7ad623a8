"""What verifying one tier costs, on its host: `checker`'s own Python runs this with the tier's name, and prints JSON.

Of each depth the seconds by the clock without the completions, which any verification has to wait for, and the seconds
of CPU of this process and its children, which nobody else on a busy machine adds to.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from checker import tier, verification
from checker.llama_server import LlamaServer
from checker.measure import Depth

complete = LlamaServer.complete
asked: list[tuple[float, float]] = []


def timed(*given: Any, **options: Any) -> Any:
    began = time.monotonic()
    try:
        return complete(*given, **options)
    finally:
        asked.append((began, time.monotonic()))


def busy() -> float:
    """Return the seconds in which any completion was waited for; several are at once."""
    total, until = 0.0, 0.0
    for began, ended in sorted(asked):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def cost(name: str, depth: Depth) -> dict[str, float]:
    asked.clear()
    began, used = time.monotonic(), sum(os.times()[:4])
    report = verification.report([tier.load(name)], "here", [], depth, {}, {}, None, wake=False)
    wall = time.monotonic() - began
    assert report.passed, [each.verdict.reasons for each in report.tiers]
    return {"wall_s": wall, "beyond_s": wall - busy(), "cpu_s": sum(os.times()[:4]) - used}


LlamaServer.complete = timed  # type: ignore[method-assign]
print(json.dumps({depth.value: cost(sys.argv[1], depth) for depth in (Depth.QUICK, Depth.WHOLE)}))
