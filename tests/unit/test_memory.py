"""Memory of a placement: every byte lies where llama.cpp puts it, once, and the figures are those it logged."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import replace
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checker import memory, tier
from checker.header import Header

MIB = 1024 * 1024
PLACEMENT = tier.Placement(
    split_mode="layer",
    tensor_split=(5,),
    n_gpu_layers=5,
    ctx_size=4096,
    cache_type_k="f16",
    cache_type_v="f16",
    ubatch_size=512,
    flash_attn="on",
)


def header(layers: tuple[int, ...], output: int, embedding: int, **changes: Any) -> Header:
    """A small model of 8 heads, 2 KV heads of 64, with layers of the given bytes."""
    count = len(layers)
    values: dict[str, Any] = {
        "architecture": "llama",
        "n_layer": count,
        "n_ctx_train": 4096,
        "n_embd": 512,
        "n_vocab": 1000,
        "n_head": (8,) * count,
        "head_kv": (2,) * count,
        "head_dim_k": 64,
        "head_dim_v": 64,
        "n_ff": (1024,) * count,
        "layer_bytes": layers,
        "expert_bytes": (0,) * count,
        "output_bytes": output,
        "token_embd_bytes": embedding,
        "tied": False,
        "n_swa": 0,
        "sliding": (False,) * count,
        "n_expert": 0,
        "n_expert_used": 0,
    }
    return Header(**{**values, **changes})


SIZES = st.integers(1, 10**10)
HEADERS = st.builds(
    header, st.lists(SIZES, min_size=1, max_size=40).map(tuple), output=SIZES, embedding=st.integers(0, 10**10)
)


@st.composite
def placed(draw: st.DrawFn, split_modes: tuple[str, ...] = ("layer",)) -> tuple[Header, tier.Placement]:
    """Draw a model and a split of its last layers over one to four devices, any of which may be left empty."""
    model = draw(HEADERS)
    offloaded = draw(st.integers(1, model.n_layer + 1))
    cuts = sorted(draw(st.lists(st.integers(0, offloaded), max_size=3)))
    split = tuple(end - start for start, end in itertools.pairwise([0, *cuts, offloaded]))
    types = draw(st.sampled_from(["f16", "q8_0"]))
    return model, replace(
        PLACEMENT,
        split_mode=draw(st.sampled_from(split_modes)),
        tensor_split=split,
        n_gpu_layers=offloaded,
        cache_type_k=types,
        cache_type_v=types,
        ctx_size=draw(st.sampled_from([256, 4096, 5000])),
        pipeline_parallel=draw(st.booleans()),
    )


def estimate(model: Header, placement: tier.Placement, kind: str = "RPC") -> memory.Estimate:
    return memory.estimate(model, placement, [kind] * len(placement.tensor_split))


def llama_cpp(n_layer: int, n_gpu_layers: int, split: tuple[int, ...]) -> list[int | None]:
    """Return the device of each layer and of the output, None for the host, as `load_tensors` of llama.cpp finds it."""
    sums = list(itertools.accumulate(numpy.float32(share) for share in split))
    ends = [end / sums[-1] for end in sums]
    offloaded = min(n_gpu_layers, n_layer + 1)
    first = n_layer + 1 - offloaded
    return [
        None if layer < first else bisect_right(ends, numpy.float32(layer - first) / numpy.float32(offloaded))
        for layer in range(n_layer + 1)
    ]


@settings(max_examples=60)
@given(placed(split_modes=("layer", "row")))
def test_every_byte_is_somewhere_once(case: tuple[Header, tier.Placement]) -> None:
    model, placement = case
    found = estimate(model, placement)
    weights = sum(device.weights_mib for device in found.devices) + found.host.weights_mib
    assert round(weights * MIB) == model.total_bytes


@settings(max_examples=60)
@given(placed(), st.data())
def test_moving_a_layer_never_changes_the_sum(case: tuple[Header, tier.Placement], data: st.DataObject) -> None:
    model, placement = case
    split = placement.tensor_split
    giving = [device for device, layers in enumerate(split) if layers]
    source = data.draw(st.sampled_from(giving))
    target = data.draw(st.integers(0, len(split) - 1))
    moved = list(split)
    moved[source] -= 1
    moved[target] += 1
    sums = []
    for either in (placement, replace(placement, tensor_split=tuple(moved))):
        found = estimate(model, either)
        sums.append(sum(round((device.weights_mib + device.kv_mib) * MIB) for device in found.devices))
    assert sums[0] == sums[1]


@settings(max_examples=60)
@given(placed())
def test_layers_lie_where_llama_cpp_puts_them(case: tuple[Header, tier.Placement]) -> None:
    model, placement = case
    on_host, on_devices = model.token_embd_bytes, [0] * len(placement.tensor_split)
    sizes = (*model.layer_bytes, model.output_bytes)
    places = llama_cpp(model.n_layer, placement.n_gpu_layers, placement.tensor_split)
    for size, device in zip(sizes, places, strict=True):
        if device is None:
            on_host += size
        else:
            on_devices[device] += size
    found = estimate(model, placement)
    assert round(found.host.weights_mib * MIB) == on_host
    assert [round(device.weights_mib * MIB) for device in found.devices] == on_devices


@given(st.integers(1, 100), st.integers(0, 120), st.lists(st.integers(0, 50), min_size=1, max_size=4))
def test_any_proportions_are_rounded_as_llama_cpp_does(n_layer: int, offloaded: int, split: list[int]) -> None:
    split[0] += not any(split)
    wanted = llama_cpp(n_layer, offloaded, tuple(split))
    found = memory.assignment(n_layer, offloaded, tuple(split))
    assert [None if device == memory.HOST else device for device in found] == wanted


@settings(max_examples=40)
@given(placed(), st.permutations(["CUDA", "RPC"]))
def test_estimates_are_never_negative_and_empty_devices_hold_no_weights(
    case: tuple[Header, tier.Placement], kinds: list[str]
) -> None:
    model, placement = case
    named = [kinds[device % 2] for device in range(len(placement.tensor_split))]
    found = memory.estimate(model, placement, named)
    for layers, device in zip(placement.tensor_split, found.devices, strict=True):
        assert min(device.weights_mib, device.kv_mib, device.compute_mib, device.overhead_mib) >= 0
        assert layers or (device.weights_mib, device.kv_mib) == (0, 0)


FOUR = header((1 * MIB, 2 * MIB, 4 * MIB, 8 * MIB), 16 * MIB, 32 * MIB)


@pytest.mark.parametrize(
    ("split", "devices_mib", "host_mib"),
    [((2, 1), [12, 16], 35), ((1,), [16], 47), ((0, 5, 0), [0, 31, 0], 32)],
)
def test_lower_layers_stay_on_the_host_and_the_output_is_on_the_last_device(
    split: tuple[int, ...], devices_mib: list[float], host_mib: float
) -> None:
    found = estimate(FOUR, replace(PLACEMENT, tensor_split=split, n_gpu_layers=sum(split)))
    assert [device.weights_mib for device in found.devices] == devices_mib
    assert found.host.weights_mib == host_mib


def test_a_tied_embedding_is_held_twice_unless_the_output_stays_on_the_host() -> None:
    tied = replace(FOUR, tied=True, output_bytes=32 * MIB, block_bytes=(("output", 32 * MIB),))
    assert estimate(tied, PLACEMENT).devices[0].weights_mib == 47
    assert estimate(tied, PLACEMENT).host.weights_mib == 32
    assert estimate(tied, replace(PLACEMENT, n_gpu_layers=0)).host.weights_mib == 47


def test_experts_of_the_first_layers_stay_on_the_host() -> None:
    experts = replace(FOUR, expert_bytes=(0, MIB, 2 * MIB, 4 * MIB), n_expert=4, n_expert_used=2, n_ff_exp=256)
    found = estimate(experts, replace(PLACEMENT, n_cpu_moe=3))
    assert found.devices[0].weights_mib == 31 - 3
    assert found.host.weights_mib == 32 + 3


def test_kv_cache_by_type_context_and_slots() -> None:
    # 4 layers, 2 heads of 64, K and V: 512 numbers per token and layer.
    def kv(**changes: Any) -> float:
        return estimate(FOUR, replace(PLACEMENT, **changes)).devices[0].kv_mib

    assert kv() == 4 * 4096 * 256 * 2 / MIB
    assert kv(cache_type_k="q8_0", cache_type_v="q8_0") == 4 * 4096 * 256 * 34 / 32 / MIB
    assert kv(ctx_size=4097) == 4 * 4352 * 256 * 2 / MIB
    # Each of four slots has a cache of its own, padded to 256 cells.
    assert kv(ctx_size=4097, parallel=4) == 4 * 4 * 1280 * 256 * 2 / MIB


def test_sliding_layers_hold_the_window_and_a_micro_batch() -> None:
    sliding = replace(FOUR, n_swa=512, sliding=(True, True, True, False), architecture="gemma3")
    found = estimate(sliding, replace(PLACEMENT, ctx_size=32768)).devices[0].kv_mib
    assert found == (3 * 1024 + 32768) * 256 * 2 / MIB
    narrow = estimate(sliding, replace(PLACEMENT, ctx_size=32768, ubatch_size=128)).devices[0].kv_mib
    assert narrow == (3 * 768 + 32768) * 256 * 2 / MIB


def test_a_layer_without_kv_heads_keeps_no_cache() -> None:
    found = estimate(replace(FOUR, head_kv=(2, 0, 2, 2)), PLACEMENT)
    assert found.devices[0].kv_mib == 3 * 4096 * 256 * 2 / MIB


TWO = replace(PLACEMENT, tensor_split=(3, 2))


def compute(placement: tier.Placement, kind: str = "RPC", model: Header = FOUR) -> list[float]:
    return [device.compute_mib for device in estimate(model, placement, kind).devices]


def test_pipeline_parallelism_costs_compute_buffers_and_one_layer_on_the_host_ends_it() -> None:
    on, off = compute(TWO), compute(replace(TWO, pipeline_parallel=False))
    assert all(a > b for a, b in zip(on, off, strict=True))
    one_less = replace(TWO, tensor_split=(2, 2), n_gpu_layers=4)
    assert compute(one_less) == compute(replace(one_less, pipeline_parallel=False))


@pytest.mark.parametrize("cache_type", ["q8_0", "q4_0", "bf16"])
def test_cuda_holds_f16_copies_of_a_cache_of_another_type(cache_type: str) -> None:
    quantised = replace(PLACEMENT, cache_type_k=cache_type, cache_type_v=cache_type, ctx_size=32768)
    # One layer's K and V in f16.
    extra = 2 * 32768 * 128 * 2 / MIB
    assert compute(quantised, "CUDA")[0] >= compute(quantised)[0] + extra - 4
    assert compute(PLACEMENT, "CUDA") == compute(PLACEMENT)


def test_cuda_copies_weights_of_the_host_to_the_first_device() -> None:
    known = replace(FOUR, block_bytes=(("attn_norm", 2048), ("ffn_down", 40 * MIB), ("ffn_norm", 2048), ("output", 1)))
    partial = replace(TWO, tensor_split=(1, 1), n_gpu_layers=2)
    rpc, cuda = compute(partial, "RPC", known), compute(partial, "CUDA", known)
    assert cuda[0] > rpc[0] + 40
    assert cuda[1] == rpc[1]


def test_a_model_without_a_table_is_taken_for_a_usual_one() -> None:
    named = {"attn_norm": 1, "ffn_norm": 1, "output": 1}
    named |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), 1)
    known = replace(FOUR, block_bytes=tuple(sorted(named.items())))
    assert compute(PLACEMENT) == compute(PLACEMENT, model=known)


def test_a_server_keeps_logits_of_a_row_per_slot_and_the_tools_of_a_micro_batch() -> None:
    model = replace(FOUR, n_vocab=150_000)
    server = memory.estimate(model, PLACEMENT, ["RPC"]).devices[0].compute_mib
    tools = memory.estimate(model, PLACEMENT, ["RPC"], outputs="ubatch").devices[0].compute_mib
    assert tools - server > 0.9 * 512 * 150_000 * 4 / MIB


def test_overhead_is_a_term_of_its_own_with_a_source() -> None:
    cards = [memory.cuda_overhead("8.6"), memory.cuda_overhead("6.1")]
    found = memory.estimate(FOUR, TWO, ["CUDA", "CUDA"], overheads=cards)
    assert [device.overhead_mib for device in found.devices] == [250, 120]
    assert estimate(FOUR, TWO, "RPC").devices[0].overhead_mib == 0
    assert "estimate" in cards[0].source
    assert "measured" in memory.cuda_overhead("9.0").source
    assert memory.cuda_overhead("5.2").mib == 120
    assert memory.cuda_overhead("7.5") == memory.cuda_overhead("8.6"), "between two generations the larger one counts"
    assert memory.cuda_overhead("12.0") == memory.cuda_overhead("9.0")
    assert memory.cuda_overhead(None) == memory.cuda_overhead("8.6")


def test_host_memory_counts_the_prompt_cache() -> None:
    found = estimate(FOUR, replace(PLACEMENT, cache_ram_mib=1024)).host
    assert found.cache_ram_mib == 1024
    assert found.total_mib == found.weights_mib + found.kv_mib + found.compute_mib + 1024


def test_split_mode_none_puts_all_on_the_first_device() -> None:
    found = memory.estimate(FOUR, replace(PLACEMENT, split_mode="none"), ["CUDA"])
    assert found.devices[0].weights_mib == 31


def test_row_split_shares_weights_by_rows_and_leaves_the_cache_with_the_layers() -> None:
    found = estimate(FOUR, replace(TWO, split_mode="row", tensor_split=(4, 1)))
    shares = [device.weights_mib / 31 for device in found.devices]
    assert sum(shares) == pytest.approx(1)
    # Whole tiles of 128 rows: of 128, 512 and 1024 rows the first card gets 0, 384 and 768.
    assert 0.7 < shares[0] < 0.8
    assert found.devices[1].kv_mib == 0


@given(placed(split_modes=("tensor",)))
@settings(max_examples=40)
def test_tensor_split_loses_no_byte_of_the_cache(case: tuple[Header, tier.Placement]) -> None:
    model, placement = case
    one = estimate(model, replace(placement, split_mode="layer"))
    found = estimate(model, placement)
    assert sum(device.kv_mib for device in found.devices) == pytest.approx(sum(d.kv_mib for d in one.devices))
    assert found.host.weights_mib == one.host.weights_mib


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_type_k": "q9_9"}, r"cache_type_k 'q9_9': expected one of f32, f16"),
        ({"cache_type_v": "q8_0", "flash_attn": "off"}, r"cache_type_v 'q8_0' needs flash_attn 'on'"),
        ({"ctx_size": 0}, r"ctx_size 0: expected 1 or more"),
        ({"parallel": 0}, r"parallel 0: expected 1 or more"),
        ({"n_gpu_layers": -1}, r"n_gpu_layers -1: expected 0 or more"),
        ({"tensor_split": (1, 2)}, r"tensor_split \[1, 2\] has 2 entries, expected one for each of 1 devices"),
        ({"tensor_split": (0,)}, r"tensor_split \[0\]: expected shares that are not negative, one above 0"),
    ],
)
def test_a_placement_that_no_engine_takes_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(memory.PlacementError, match=message):
        memory.estimate(FOUR, replace(PLACEMENT, **changes), ["CUDA"])


def test_a_device_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(memory.PlacementError, match=r"devices \['Metal'\]: expected CUDA or RPC"):
        memory.estimate(FOUR, PLACEMENT, ["Metal"])


def test_layers_one_by_one_add_up_to_a_device() -> None:
    each = memory.by_layer(FOUR, PLACEMENT)
    found = estimate(FOUR, PLACEMENT).devices[0]
    assert sum(each) == pytest.approx(found.weights_mib + found.kv_mib)
