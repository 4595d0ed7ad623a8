"""Placement to tokens per second of one request's generation: an upper bound, and what is to be expected.

Generation reads every weight it uses, and the KV cache, once for each token, and layer split runs the cards one after
the other: the time of a token is the sum over the devices of bytes / bandwidth (published runs: two RTX 5060 Ti run a
27B model at the speed of one). No kernel reaches the datasheet's bandwidth, so each card has an efficiency: a prior by
compute capability, derived from published runs (tokens/s x bytes / bandwidth). Pure; bytes, seconds, 10^9 bytes/s.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from checker.cards import Card, Ram
from checker.header import Header
from checker.tier import Placement


@dataclass(frozen=True)
class Efficiency:
    """Share of the datasheet's bandwidth that generation reaches: expected, worst and best of the rows it is from."""

    expected: float
    low: float
    high: float
    source: str


# By compute capability; "8" stands for every 8.x that has no row of its own. Rows are llama.cpp runs of dense 7B to 14B
# models, Q4_K_M unless another type is named, fully offloaded.
EFFICIENCIES = {
    "5": Efficiency(0.45, 0.30, 0.60, "no figure for Maxwell was found; Pascal's, lowered"),
    "6": Efficiency(
        0.52, 0.37, 0.63, "GTX 1060 6 GB 0.58, 1080 Ti 0.45, 1080 0.5, 1050 Ti 0.37, P40 (Q4_0) 0.63 (published runs)"
    ),
    "7": Efficiency(0.75, 0.60, 0.80, "RTX 2080 0.79, RTX 2070 SUPER 0.73 (published runs); Volta by analogy"),
    "8": Efficiency(
        0.74, 0.57, 0.80, "RTX 3080 0.72, 3090 0.75, 3060 0.57, RTX 2080 (same bandwidth) 0.79 (published)"
    ),
    "9": Efficiency(0.36, 0.30, 0.45, "H100: 14B Q4_K_M 0.36 (our run), 9B 0.32 (published run)"),
    "12": Efficiency(0.89, 0.80, 0.94, "RTX 5060 Ti 0.92, two of them with layer split 0.88 to 0.90 (published runs)"),
}
_UNKNOWN = Efficiency(0.50, 0.30, 0.90, "no figure for this compute capability; a wide guess")
# Two published runs of 14B models on an RTX 2080 with 7 and 9 layers left on the CPU imply 43 and 54 GB/s.
RAM_EFFICIENCY = Efficiency(0.75, 0.45, 1.0, "RTX 2080 + CPU, 14B: 43 to 54 GB/s of an assumed 51.2 (derived)")

# Bytes of one number in a KV cache (ggml's block sizes: q8_0 is 34 bytes for 32 numbers).
CACHE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}

# One hidden vector (f32) crosses PCIe at each cut: its bytes are next to nothing, the wait for it is the cost.
_PCIE_GB_S = 6.0
_HOP_S = 50e-6
_SPLIT_BY_ROWS = ("row", "tensor")
# Expected speeds are those of a half full context; the bound is that of an empty one, so that no measurement passes it.
FILL = 0.5


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one request. `bound` by bandwidth alone with an empty context; the others by the priors with
    `fill_tokens` in the cache: `expected` inside its interval from `low` to `high`."""

    bound: float
    expected: float
    low: float
    high: float
    fill_tokens: int


def efficiency(compute_capability: str | None) -> Efficiency:
    """Return the prior for a card."""
    if compute_capability is None:
        return _UNKNOWN
    return EFFICIENCIES.get(compute_capability) or EFFICIENCIES.get(compute_capability.split(".")[0], _UNKNOWN)


def layer_reads(header: Header, cache_type_k: str, cache_type_v: str, fill_tokens: int) -> list[float]:
    """Return the bytes that one token reads of each layer, 0 to n_layer - 1, and of the output layer.

    Of experts only the used ones are read. A sliding layer reads no more of the cache than its window.
    """
    used = header.n_expert_used / header.n_expert if header.n_expert else 1.0
    reads = []
    for layer, size in enumerate(header.layer_bytes):
        experts = header.expert_bytes[layer]
        cells = min(fill_tokens, header.n_swa) if header.sliding[layer] else fill_tokens
        dim_k, dim_v = header.head_dims(layer)
        cached = header.head_kv[layer] * (dim_k * CACHE_BYTES[cache_type_k] + dim_v * CACHE_BYTES[cache_type_v])
        reads.append(size - experts + experts * used + cells * cached)
    return [*reads, float(header.output_bytes)]


def rate(card: Card, share: float) -> float:
    """Return the bytes that a card reads in a second at a share of its bandwidth; ValueError when it is not known."""
    if not card.bandwidth_gb_s:
        raise ValueError(
            f"the memory bandwidth of {card.name} is not known: "
            "give bandwidth_gb_s in its entry of the inventory's gpus"
        )
    return card.bandwidth_gb_s * 1e9 * share


def ram_rate(ram: Ram, share: float) -> float:
    """Return the bytes that the host's memory gives in a second at a share of its bandwidth."""
    return ram.bandwidth_gb_s * 1e9 * share


def hops_s(header: Header, places: int) -> float:
    """Return the seconds a token spends between the places (devices, host) that its layers lie on."""
    return max(0, places - 1) * (_HOP_S + 4 * header.n_embd / (_PCIE_GB_S * 1e9))


def speed(header: Header, placement: Placement, cards: Sequence[Card], ram: Ram) -> Speed:
    """Return what to expect of a placement; `cards` in device order. ValueError when a bandwidth is not known."""
    fill = int(placement.ctx_size * FILL)
    full = layer_reads(header, placement.cache_type_k, placement.cache_type_v, fill)
    empty = layer_reads(header, placement.cache_type_k, placement.cache_type_v, 0)
    priors = [efficiency(card.compute_capability) for card in cards]

    def seconds(reads: list[float], shares: list[float], ram_share: float) -> float:
        return _seconds(
            header, placement, reads, [rate(c, s) for c, s in zip(cards, shares, strict=True)], ram_rate(ram, ram_share)
        )

    places = sum(count > 0 for count in placement.tensor_split) + (placement.n_gpu_layers < len(full))
    hops = hops_s(header, places)
    bound = 1 / seconds(empty, [1.0] * len(cards), 1.0)
    expected, low, high = (
        1 / (seconds(full, [getattr(prior, which) for prior in priors], getattr(RAM_EFFICIENCY, which)) + hops)
        for which in ("expected", "low", "high")
    )
    return Speed(bound, min(expected, bound), min(low, bound), min(high, bound), fill)


def _seconds(header: Header, placement: Placement, reads: list[float], rates: list[float], ram_rate: float) -> float:
    """Sum the seconds of one token over host and devices; devices of row and tensor split work at the same time."""
    start = len(reads) - placement.n_gpu_layers
    host = sum(reads[:start])
    used = header.n_expert_used / header.n_expert if header.n_expert else 1.0
    device_reads = list(reads)
    for layer in range(start, min(placement.n_cpu_moe, header.n_layer)):
        moved = header.expert_bytes[layer] * used
        device_reads[layer] -= moved
        host += moved
    if placement.split_mode in _SPLIT_BY_ROWS:
        whole, parts = sum(device_reads[start:]), sum(placement.tensor_split) or 1
        shares = [whole * count / parts / rate for count, rate in zip(placement.tensor_split, rates, strict=True)]
        return host / ram_rate + max(shares)
    ends = itertools.accumulate(placement.tensor_split, initial=start)
    ranges = itertools.pairwise(ends)
    return host / ram_rate + sum(
        sum(device_reads[first:last]) / rate for (first, last), rate in zip(ranges, rates, strict=True)
    )
