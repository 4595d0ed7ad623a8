"""Placement to tokens per second of one request's generation: an upper bound, and what is to be expected.

Generation reads every weight it uses, and the KV cache, once for each token, and layer split runs the cards one after
the other: the time of a token is the sum over the devices of bytes / bandwidth (published runs: two RTX 5060 Ti run a
27B model at the speed of one). That is the bound. What is expected is slower: no kernel reaches the datasheet's
bandwidth, and every layer costs the start of its kernels, most of the time of a small model or on a very fast card.
Both are priors by compute capability, fitted to published runs, which what was measured on a card sharpens
(`checker.calibration`). Pure; bytes, seconds, GB/s (10^9 bytes a second).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from checker.cards import Card, Ram
from checker.header import Header
from checker.memory import CACHE_TYPES
from checker.tier import Placement


@dataclass(frozen=True)
class Pace:
    """How fast a card generates: share of its bandwidth that is reached, and seconds that each layer costs besides."""

    share: float
    layer_s: float

    def times(self, ratio: float) -> Pace:
        """Return the pace that is so many times as fast."""
        return Pace(self.share * ratio, self.layer_s / ratio)


@dataclass(frozen=True)
class Prior:
    """What to expect of a generation of cards before one was measured, worst and best, and where it comes from."""

    expected: Pace
    low: Pace
    high: Pace
    source: str


# By compute capability; "8" stands for every 8.x that has no row of its own. Fitted to llama.cpp runs of dense models,
# Q4_K_M, fully offloaded, one request; the bytes are those read for a token (the file without its token embedding).
PRIORS = {
    "5": Prior(
        Pace(0.50, 200e-6), Pace(0.30, 300e-6), Pace(0.65, 100e-6), "no run on Maxwell found; Pascal's, lowered"
    ),
    "6": Prior(
        Pace(0.58, 150e-6),
        Pace(0.37, 250e-6),
        Pace(0.72, 80e-6),
        "GTX 1060 6 GB 7B 24.0 tokens/s, GTX 1080 Ti 14B 24.3, GTX 1050 Ti 3B 20.8 (published runs)",
    ),
    "7": Prior(
        Pace(0.91, 80e-6),
        Pace(0.75, 140e-6),
        Pace(0.94, 60e-6),
        "RTX 2080: 1B 304 tokens/s, 3B 140, 7B 77.0, 8B 71.9; RTX 2070 SUPER 7B 69.9 (published); Volta by analogy",
    ),
    "8": Prior(
        Pace(0.90, 75e-6),
        Pace(0.70, 140e-6),
        Pace(0.94, 50e-6),
        "RTX 3090 7B 150 tokens/s, RTX 3080 8B 112, RTX 3060 8B 42 (published runs)",
    ),
    "9": Prior(
        Pace(0.91, 100e-6),
        Pace(0.80, 130e-6),
        Pace(0.95, 65e-6),
        "H100: 14B 133 tokens/s (our run), 3B 305 (published)",
    ),
    "12": Prior(
        Pace(0.92, 25e-6), Pace(0.82, 60e-6), Pace(0.95, 15e-6), "RTX 5060 Ti 7B 87.8 tokens/s, two of them 27B 22.1"
    ),
}
_UNKNOWN = Prior(
    Pace(0.60, 150e-6), Pace(0.30, 300e-6), Pace(0.95, 25e-6), "compute capability not known; a wide guess"
)
# Two published runs of 14B models on an RTX 2080 with 7 and 9 layers left on the CPU imply 43 and 54 GB/s.
RAM_PRIOR = Prior(
    Pace(0.75, 0.0), Pace(0.45, 0.0), Pace(1.0, 0.0), "RTX 2080 + CPU, 14B; of an assumed 51.2 GB/s (derived)"
)
_BOUND = Pace(1.0, 0.0)
# Where the inventory does not say it (`ram: {bandwidth_gb_s: ...}`): two channels of DDR4-3200 are assumed. The most
# that a host can have are two sockets with twelve channels of MRDIMM-8800 each (Xeon 6900P), by the datasheets.
_ASSUMED_RAM_GB_S, _MOST_RAM_GB_S = 51.2, 1689.6

# One hidden vector (f32) crosses PCIe at each cut: its bytes are next to nothing, the wait for it is the cost.
_PCIE_GB_S = 6.0
_HOP_S = 50e-6
_SPLIT_BY_ROWS = ("row", "tensor")
# Expected speeds are those of a half full context; the bound is that of an empty one, so that no measurement passes it.
FILL = 0.5


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one request. `bound` by bandwidth alone with an empty context; the others with `fill_tokens`
    in the cache: `expected` inside its interval from `low` to `high`. `by` says what they rest on: priors, measurements
    of the cards, or both."""

    bound: float
    expected: float
    low: float
    high: float
    fill_tokens: int
    by: str


def prior(compute_capability: str | None) -> Prior:
    """Return the prior for a card."""
    if compute_capability is None:
        return _UNKNOWN
    return PRIORS.get(compute_capability) or PRIORS.get(compute_capability.split(".")[0], _UNKNOWN)


def expectation(card: Card) -> Prior:
    """Return what to expect of a card: its prior, sharpened by what was measured on it."""
    known = prior(card.compute_capability)
    if card.learned is None:
        return known
    expected, low, high = (pace.times(card.learned.ratio) for pace in (known.expected, known.low, known.high))
    return Prior(expected, low, high, card.learned.source)


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
        cached = header.head_kv[layer] * (dim_k * _cache_bytes(cache_type_k) + dim_v * _cache_bytes(cache_type_v))
        reads.append(size - experts + experts * used + cells * cached)
    return [*reads, float(header.output_bytes)]


def _cache_bytes(cache_type: str) -> float:
    """Return the bytes of one number in a KV cache."""
    size, numbers = CACHE_TYPES[cache_type]
    return size / numbers


def rate(card: Card, pace: Pace) -> float:
    """Return the bytes that a card reads in a second; ValueError when its bandwidth is not known."""
    if not card.bandwidth_gb_s:
        raise ValueError(f"the memory bandwidth of {card.name} is not known: give bandwidth_gb_s in its entry of gpus")
    return card.bandwidth_gb_s * 1e9 * pace.share


def ram_rate(ram: Ram, pace: Pace = RAM_PRIOR.expected) -> float:
    """Return the bytes that the host's memory is expected to give in a second."""
    return (ram.bandwidth_gb_s or _ASSUMED_RAM_GB_S) * 1e9 * pace.share


def hops_s(header: Header, places: int) -> float:
    """Return the seconds a token spends between the places (devices, host) that its layers lie on."""
    return max(0, places - 1) * (_HOP_S + 4 * header.n_embd / (_PCIE_GB_S * 1e9))


def speed(
    header: Header, placement: Placement, cards: Sequence[Card], ram: Ram, fill_tokens: int | None = None
) -> Speed:
    """Return what to expect of a placement; `cards` in device order. ValueError when a bandwidth is not known.

    `fill_tokens` in the cache are assumed, half of the context when it is None.
    """
    fill = int(placement.ctx_size * FILL) if fill_tokens is None else fill_tokens
    full = layer_reads(header, placement.cache_type_k, placement.cache_type_v, fill)
    empty = layer_reads(header, placement.cache_type_k, placement.cache_type_v, 0)
    all_on_cards = placement.n_gpu_layers >= len(full) and not placement.n_cpu_moe
    priors = [expectation(card) for card in cards]
    places = sum(count > 0 for count in placement.tensor_split) + (placement.n_gpu_layers < len(full))
    hops = hops_s(header, places)
    most = (ram.bandwidth_gb_s or _MOST_RAM_GB_S) * 1e9
    bound = 1 / _seconds(header, placement, empty, cards, [_BOUND] * len(cards), most)
    expected, low, high = (
        min(bound, 1 / (_seconds(header, placement, full, cards, paces, ram_rate(ram, ram_pace)) + hops))
        for paces, ram_pace in (
            ([each.expected for each in priors], RAM_PRIOR.expected),
            ([each.low for each in priors], RAM_PRIOR.low),
            ([each.high for each in priors], RAM_PRIOR.high),
        )
    )
    learned = [card.learned for card in cards]
    if all_on_cards and all(learned):
        spread = max(each.spread for each in learned if each)
        low, high = max(low, expected * (1 - spread)), min(high, expected * (1 + spread))
    of_cards = [each.source if each else "priors" for each in learned]
    by = "; ".join(dict.fromkeys([*of_cards, *([] if all_on_cards else ["priors"])]))
    return Speed(bound, expected, low, high, fill, by)


def _seconds(
    header: Header,
    placement: Placement,
    reads: Sequence[float],
    cards: Sequence[Card],
    paces: Sequence[Pace],
    host_rate: float,
) -> float:
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
        return host / host_rate + max(
            whole * count / parts / rate(card, pace) + placement.n_gpu_layers * pace.layer_s
            for count, card, pace in zip(placement.tensor_split, cards, paces, strict=True)
        )
    ends = itertools.accumulate(placement.tensor_split, initial=start)
    return host / host_rate + sum(
        sum(device_reads[first:last]) / rate(card, pace) + (last - first) * pace.layer_s
        for (first, last), card, pace in zip(itertools.pairwise(ends), cards, paces, strict=True)
    )
