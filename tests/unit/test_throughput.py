"""Expected speeds lie under their bound, and near what others have measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import Q4, card, headers, hosts, shaped, small_header

from checker import throughput
from checker.cards import Card, Ram
from checker.throughput import Speed
from checker.tier import Placement

RTX_2080 = card("RTX 2080", 8192, 448.0, compute_capability="7.5")
RTX_3090 = card("RTX 3090", 24576, 936.0)
RTX_3080 = card("RTX 3080", 10240, 760.0)
GTX_1060 = card("GTX 1060 6GB", 6144, 192.0, compute_capability="6.1")
GTX_1080_TI = card("GTX 1080 Ti", 11264, 484.0, compute_capability="6.1")
RTX_5060_TI = card("RTX 5060 Ti", 16384, 448.0, compute_capability="12.0")
H100 = card("H100", 81559, 3352.0, compute_capability="9.0")


def placed(split: tuple[int, ...], context: int = 512, **changes: object) -> Placement:
    whole = Placement("layer" if len(split) > 1 else "none", split, sum(split), context, "f16", "f16", 512, "on")
    return replace(whole, **changes)  # type: ignore[arg-type]


def measured(layers: int, read_gb: float, *cards: Card) -> Speed:
    """Return the speed of a model of so many layers that reads so many GB for a token, over all cards evenly."""
    model = small_header([round(read_gb * 1e9 / 2**20 / layers)] * layers, output_mib=0, head_kv=(0,) * layers)
    each = (layers + 1) // len(cards)
    split = (each,) * (len(cards) - 1) + (layers + 1 - each * (len(cards) - 1),)
    return throughput.speed(model, placed(split), cards, Ram(None))


# Published llama.cpp runs, Q4_K_M: layers, GB read for a token (file less token embedding), cards, tokens/s.
RUNS = [
    ("Llama 3.2 1B on RTX 2080", 16, 0.81, [RTX_2080], 304.3),
    ("Llama 3.2 3B on RTX 2080", 28, 2.02, [RTX_2080], 140.3),
    ("Qwen 2.5 7B on RTX 2080", 28, 4.37, [RTX_2080], 77.0),
    ("Llama 3.1 8B on RTX 2080", 32, 4.6, [RTX_2080], 71.9),
    ("Qwen 2.5 7B on RTX 3090", 28, 4.37, [RTX_3090], 150.3),
    ("Llama 3.1 8B on RTX 3080", 32, 4.6, [RTX_3080], 112.0),
    ("Qwen 2.5 7B on GTX 1060 6 GB", 28, 4.37, [GTX_1060], 24.0),
    ("Qwen 2.5 14B on GTX 1080 Ti", 48, 8.57, [GTX_1080_TI], 24.3),
    ("Qwen 2.5 7B on RTX 5060 Ti", 28, 4.37, [RTX_5060_TI], 87.8),
    ("27B on two RTX 5060 Ti, layer split", 64, 17.9, [RTX_5060_TI, RTX_5060_TI], 22.3),
    ("Qwen 2.5 14B on H100 (our run)", 48, 8.57, [H100], 133.0),
    ("3B on H100", 26, 2.1, [H100], 305.0),
]


@pytest.mark.parametrize(
    ("layers", "read_gb", "cards", "seen"), [run[1:] for run in RUNS], ids=[run[0] for run in RUNS]
)
def test_published_runs_are_met_within_a_fifth(layers: int, read_gb: float, cards: list[Card], seen: float) -> None:
    speed = measured(layers, read_gb, *cards)
    assert speed.expected == pytest.approx(seen, rel=0.2)
    assert speed.low <= seen <= speed.high
    assert seen <= speed.bound


@settings(max_examples=60, deadline=None)
@given(headers(), hosts(), st.sampled_from([512, 8192]), st.data())
def test_nothing_is_expected_above_the_bound(model, host, context, data) -> None:  # type: ignore[no-untyped-def]
    counts = [data.draw(st.integers(1, 3)) for _ in host.cards]
    offloaded = min(sum(counts), model.n_layer + 1)
    split = (offloaded,) if len(counts) == 1 else (1, offloaded - 1)
    speed = throughput.speed(model, placed(split, context), host.cards, host.ram)
    assert 0 < speed.low <= speed.expected <= speed.high <= speed.bound


def test_the_split_of_the_mission_is_expected_where_the_facts_expect_it() -> None:
    cards = [card("3060 Ti", 8192, 448.0), card("1060", 3072, 192.0, compute_capability="6.1")]
    speed = throughput.speed(shaped(Q4), placed((38, 11), 8192), cards, Ram(None))
    assert 18 <= speed.expected <= 26
    assert speed.bound == pytest.approx(39, abs=2)


def test_layers_on_the_cpu_are_slower_than_on_any_card() -> None:
    model = shaped(Q4)
    full = throughput.speed(model, placed((49,)), [GTX_1060], Ram(None))
    some = throughput.speed(model, placed((40,)), [GTX_1060], Ram(None))
    assert some.expected < full.expected
    faster = throughput.speed(model, placed((40,)), [GTX_1060], Ram(None, 100.0))
    assert faster.expected > some.expected


def test_what_is_assumed_of_the_hosts_memory_is_expected_and_no_bound() -> None:
    unknown, known = (
        throughput.speed(shaped(Q4), placed((37,)), [GTX_1060], ram) for ram in (Ram(None), Ram(None, 51.2))
    )
    assert unknown.expected == known.expected
    # A server's memory is several times as fast (docs/evidence/gpu/2x-nvidia-h200/trial.json).
    assert unknown.bound > known.bound * 1.3


def test_only_the_used_experts_are_read() -> None:
    dense = small_header([800] * 4)
    moe = replace(dense, expert_bytes=tuple(size // 2 for size in dense.layer_bytes), n_expert=8, n_expert_used=2)
    dense_reads, moe_reads = (throughput.layer_reads(model, "f16", "f16", 0) for model in (dense, moe))
    assert sum(moe_reads[:-1]) == pytest.approx(sum(dense_reads[:-1]) * (0.5 + 0.5 / 4))


def test_a_sliding_layer_reads_no_more_of_the_cache_than_its_window() -> None:
    model = small_header([100, 100], n_swa=1024, sliding=(True, False))
    sliding, full, _ = throughput.layer_reads(model, "f16", "f16", 8192)
    empty = throughput.layer_reads(model, "f16", "f16", 0)[0]
    assert sliding - empty == pytest.approx((full - empty) / 8)
    assert throughput.layer_reads(model, "q8_0", "q8_0", 8192)[1] - empty == pytest.approx((full - empty) * 34 / 64)
