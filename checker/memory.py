"""Placement to MiB: what a model takes on each device and on the host, by llama.cpp's own rules.

Read in llama.cpp 0c1e57098: which layer lies where (src/llama-model.cpp, `load_tensors`: of the n_layer + 1 layers, the
output counts as one, the last `n_gpu_layers` go to the devices in device order, the lower ones stay on the host; the
token embedding always stays on the host), the KV cache (src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp,
src/llama-context.cpp), and through `checker.compute` the compute buffers. Summed in bytes, told in MiB.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from checker import compute, header, tier

MIB = 1024 * 1024
HOST = -1

# Bytes of a block and numbers in it, of the types that a KV cache can have (ggml/src/ggml.c, type_traits).
CACHE_TYPES = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q4_0": (18, 32),
    "q4_1": (20, 32),
    "iq4_nl": (18, 32),
    "q5_0": (22, 32),
    "q5_1": (24, 32),
}
# llama-context.cpp: cells of a cache are a multiple of this.
_PAD = 256
# llama-model.cpp, llama_meta_device_get_split_state: what tensor split cuts, and what of that it leaves whole.
_CUT = ("attn_q", "attn_k", "attn_v", "attn_output", "attn_sinks", "ffn_up", "ffn_gate", "ffn_down")
_WHOLE = ("attn_q_norm", "attn_k_norm", "attn_output.bias", "attn_output_norm", "ffn_gate_inp", "ffn_down.bias")
# Bytes of 256 numbers in the K-quants, whose blocks are of 256; other types are cut in 128.
_K_QUANTS = (84, 110, 144, 176, 210)
# ggml-cuda/mmq.cuh of b3fed31b, get_mmq_y_host: 128 from Volta on, 64 before; the larger, for unequal cards.
_ROW_TILE = 128
# common/common.h, n_batch: the logical batch that llama-server sets unless told otherwise.
_BATCH = 2048


class PlacementError(ValueError):
    """A placement that no engine can take: names the key, its value and what is possible."""


@dataclass(frozen=True)
class Overhead:
    """Memory (MiB) of a card that no buffer of llama.cpp accounts for; `source` and `card` say whose figure it is."""

    mib: float
    source: str
    card: str = ""


NO_OVERHEAD = Overhead(0, "an RPC device's memory is its server's")
# By major compute capability. Only the first is measured; the others are estimates until a card was measured.
OVERHEADS = {
    9: Overhead(
        615,
        "measured on one H100, driver 580.159: the largest of five (docs/evidence/planner-truth-cuda.json)",
        "H100",
    ),
    8: Overhead(
        250, "estimate, not measured: context, modules and cuBLAS of an RTX 3060 Ti, 100 to 250 MiB", "RTX 3060 Ti"
    ),
    6: Overhead(120, "estimate, not measured: context and modules of a GTX 1060, 60 to 120 MiB", "GTX 1060"),
}


def cuda_overhead(compute_capability: str | None) -> Overhead:
    """Return the overhead of a card such as "8.6": of a generation between two that are known the larger one's."""
    major = int(compute_capability.split(".")[0]) if compute_capability else 8
    older = max((known for known in OVERHEADS if known <= major), default=min(OVERHEADS))
    newer = min((known for known in OVERHEADS if known >= major), default=max(OVERHEADS))
    return max(OVERHEADS[older], OVERHEADS[newer], key=lambda overhead: overhead.mib)


@dataclass(frozen=True)
class DeviceMemory:
    """What one device holds, MiB: llama.cpp's "model", "context" and "compute" of it, and what lies outside of them."""

    weights_mib: float
    kv_mib: float
    compute_mib: float
    overhead_mib: float

    @property
    def total_mib(self) -> float:
        """Sum of the terms, MiB."""
        return self.weights_mib + self.kv_mib + self.compute_mib + self.overhead_mib


@dataclass(frozen=True)
class HostMemory:
    """What the host's RAM holds, MiB; weights are mapped from the file, so the page cache holds them."""

    weights_mib: float
    kv_mib: float
    compute_mib: float
    cache_ram_mib: float

    @property
    def total_mib(self) -> float:
        """Sum of the terms, MiB."""
        return self.weights_mib + self.kv_mib + self.compute_mib + self.cache_ram_mib


@dataclass(frozen=True)
class Estimate:
    """Memory by device, in device order, and of the host."""

    devices: tuple[DeviceMemory, ...]
    host: HostMemory


def _f32(value: float) -> float:
    """Round to the single precision that the engine computes splits in."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


@lru_cache(maxsize=4096)
def assignment(n_layer: int, n_gpu_layers: int, tensor_split: tuple[int, ...]) -> tuple[int, ...]:
    """Return the device of each layer, and last of the output layer, `HOST` where it stays there.

    llama-model.cpp, `get_layer_buft_list`: the first device whose cumulative share, in single precision, is beyond the
    layer's place among the offloaded ones. Entries that add up to the offloaded layers are therefore exact.
    """
    offloaded = min(n_gpu_layers, n_layer + 1)
    start = n_layer + 1 - offloaded
    if offloaded <= 0:
        return (HOST,) * (n_layer + 1)
    if any(share < 0 for share in tensor_split) or sum(tensor_split) <= 0:
        raise PlacementError(f"tensor_split {list(tensor_split)}: expected shares that are not negative, one above 0")
    ends = [_f32(end) for end in accumulate(tensor_split)]
    ends = [_f32(end / ends[-1]) for end in ends]
    places = (bisect_right(ends, _f32(index / offloaded)) for index in range(offloaded))
    return (HOST,) * start + tuple(places)


def _cells(model: header.Header, placement: tier.Placement) -> tuple[int, int, int, int]:
    """Return cells of a full and of a sliding layer's cache per stream, streams, and tokens of a micro-batch."""
    streams = placement.parallel
    n_ctx = _padded(placement.ctx_size)
    per_stream = _padded(max(n_ctx // streams, 1))
    ubatch = min(placement.ubatch_size, n_ctx, _BATCH)
    sliding = _padded(min(per_stream, model.n_swa + ubatch)) if any(model.sliding) else per_stream
    return per_stream, sliding, streams, ubatch


def _padded(value: int) -> int:
    return -(-value // _PAD) * _PAD


def _row_bytes(width: int, cache_type: str) -> int:
    size, numbers = CACHE_TYPES[cache_type]
    return -(-width // numbers) * size


def _check(model: header.Header, placement: tier.Placement, kinds: Sequence[str]) -> None:
    for key in ("cache_type_k", "cache_type_v"):
        value = getattr(placement, key)
        if value not in CACHE_TYPES:
            raise PlacementError(f"{key} {value!r}: expected one of {', '.join(CACHE_TYPES)}")
    # src/llama-context.cpp, llama_init_from_model: a head is whole blocks of the cache's type.
    for which, key in enumerate(("cache_type_k", "cache_type_v")):
        numbers = CACHE_TYPES[getattr(placement, key)][1]
        wide = {model.head_dims(layer)[which] for layer in range(model.n_layer)}
        if any(dim % numbers for dim in wide):
            raise PlacementError(
                f"{key} {getattr(placement, key)!r}: heads of {max(wide)} are no multiple of {numbers}"
            )
    if placement.cache_type_v not in ("f32", "f16", "bf16") and placement.flash_attn == "off":
        raise PlacementError(f"cache_type_v {placement.cache_type_v!r} needs flash_attn 'on'")
    for key, low in (("ctx_size", 1), ("ubatch_size", 1), ("parallel", 1), ("n_gpu_layers", 0), ("n_cpu_moe", 0)):
        if getattr(placement, key) < low:
            raise PlacementError(f"{key} {getattr(placement, key)}: expected {low} or more")
    if not kinds or any(kind not in ("CUDA", "RPC") for kind in kinds):
        raise PlacementError(f"devices {list(kinds)}: expected CUDA or RPC for each, at least one")
    if placement.split_mode != "none" and len(placement.tensor_split) != len(kinds):
        raise PlacementError(
            f"tensor_split {list(placement.tensor_split)} has {len(placement.tensor_split)} entries, "
            f"expected one for each of {len(kinds)} devices"
        )


def estimate(
    model: header.Header,
    placement: tier.Placement,
    kinds: Sequence[str],
    *,
    overheads: Sequence[Overhead] = (),
    outputs: Literal["slots", "ubatch"] = "slots",
) -> Estimate:
    """Estimate the memory of a placement; `kinds` is "CUDA" or "RPC" per device, in device order.

    `overheads` gives the overhead of each card (see `cuda_overhead`; left out, that of an RTX 3060 Ti for every CUDA
    device and none for RPC). `outputs` is what logits are kept for: llama-server keeps one row per slot,
    llama-fit-params and llama-bench a whole micro-batch. PlacementError when no engine could take the placement.
    """
    _check(model, placement, kinds)
    return _estimate(model, placement, tuple(kinds), tuple(overheads), outputs)


@lru_cache(maxsize=16384)
def _estimate(
    model: header.Header,
    placement: tier.Placement,
    kinds: tuple[str, ...],
    overheads: tuple[Overhead, ...],
    outputs: str,
) -> Estimate:
    count = len(kinds)
    # Under tensor split all devices are one to the layers (src/llama.cpp, the "Meta" device).
    split = placement.tensor_split if placement.split_mode in ("layer", "row") else (1,)
    where = assignment(model.n_layer, placement.n_gpu_layers, split)
    if placement.split_mode == "tensor":
        weights, kv = _tensor_split(model, placement, where)
        each = _compute(model, placement, where, kinds[:1], outputs)
        buffers = [each[0]] * count + [each[HOST]]
    else:
        weights = _weights(model, placement, where, count)
        kv = _kv(model, placement, where, count)
        if placement.split_mode == "row":
            weights = _row_split(model, placement, weights)
        buffers = _compute(model, placement, where, kinds, outputs)
    devices = tuple(
        DeviceMemory(
            weights_mib=weights[device] / MIB,
            kv_mib=kv[device] / MIB,
            compute_mib=buffers[device] / MIB,
            overhead_mib=(overheads[device] if overheads else _default_overhead(kinds[device])).mib,
        )
        for device in range(count)
    )
    host = HostMemory(weights[HOST] / MIB, kv[HOST] / MIB, buffers[HOST] / MIB, float(placement.cache_ram_mib))
    return Estimate(devices, host)


def _default_overhead(kind: str) -> Overhead:
    return cuda_overhead(None) if kind == "CUDA" else NO_OVERHEAD


def _weights(model: header.Header, placement: tier.Placement, where: Sequence[int], count: int) -> list[int]:
    """Return bytes of weights by device, and last the host's."""
    held = [0] * (count + 1)
    held[HOST] += model.token_embd_bytes
    for layer, device in enumerate(where[:-1]):
        experts = model.expert_bytes[layer] if layer < placement.n_cpu_moe else 0
        held[device] += model.layer_bytes[layer] - experts
        held[HOST] += experts
    held[where[-1]] += model.output_bytes
    if model.tied and where[-1] == HOST:
        # TENSOR_DUPLICATED: on the host the embedding matrix is there already.
        held[HOST] -= dict(model.block_bytes).get("output", model.token_embd_bytes)
    return held


def _kv(model: header.Header, placement: tier.Placement, where: Sequence[int], count: int) -> list[int]:
    """Return bytes of the KV cache by device, and last the host's."""
    full, sliding, streams, _ = _cells(model, placement)
    held = [0] * (count + 1)
    for layer, device in enumerate(where[:-1]):
        cells = (sliding if model.sliding[layer] else full) * streams
        dim_k, dim_v = model.head_dims(layer)
        row = _row_bytes(model.head_kv[layer] * dim_k, placement.cache_type_k)
        row += _row_bytes(model.head_kv[layer] * dim_v, placement.cache_type_v)
        held[device] += cells * row
    return held


def _row_split(model: header.Header, placement: tier.Placement, held: Sequence[int]) -> list[int]:
    """Share the weights of all devices out by rows, by `tensor_split`; the host's stay.

    ggml/src/ggml-cuda/ggml-cuda.cu, `get_row_split`, of engine b3fed31b: each matrix on its own, in whole tiles of
    rows. The few vectors that stay whole on a layer's device are shared out with the rest: less than 1 MiB. That engine
    tells nothing of this mode beforehand, so no truth holds these figures.
    """
    split = placement.tensor_split
    rows = _matrix_rows(model)
    blocks = {name: size for name, size in (model.block_bytes or _usual_blocks(model)) if rows.get(name, 0) > 1}
    total = sum(blocks.values()) or 1
    on_devices = sum(held[:-1])
    shares = [0.0] * len(split)
    for name, size in blocks.items():
        for device, portion in enumerate(_portions(rows[name], _ROW_TILE, split, 0)):
            shares[device] += size / total * portion / rows[name]
    ends = [round(on_devices * share) for share in accumulate(shares[:-1])] + [on_devices]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)] + [held[HOST]]


def _matrix_rows(model: header.Header) -> dict[str, int]:
    """Return how many rows each matrix of a layer has."""
    heads, heads_kv, wide = max(model.n_head), max(model.head_kv), max(model.n_ff)
    query, key, value = heads * model.head_dim_k, heads_kv * model.head_dim_k, heads_kv * model.head_dim_v
    experts = model.n_expert * model.n_ff_exp
    return {
        **{"attn_q": query, "attn_k": key, "attn_v": value, "attn_qkv": query + key + value},
        **{"attn_output": model.n_embd, "ffn_down": model.n_embd, "ffn_gate": wide, "ffn_up": wide},
        **{"ffn_gate_exps": experts, "ffn_up_exps": experts, "ffn_down_exps": model.n_expert * model.n_embd},
    }


def _portions(total: int, granule: int, split: Sequence[int], rotation: int) -> list[int]:
    """Cut `total` as `llama_meta_device_get_split_state` does: whole granules, the remainder to the last in turn."""
    count = len(split)
    turned = [split[(index + rotation) % count] for index in range(count)]
    portions, low = [0] * count, 0
    for index, end in enumerate(accumulate(turned)):
        high = total if index == count - 1 else total * end // sum(turned) // granule * granule
        portions[(index + rotation) % count] = high - low
        low = high
    return portions


def _block(size: int, numbers: int) -> int:
    """Return how many columns of a matrix are cut together, told from its bytes."""
    return 256 if numbers and size * 256 // numbers in _K_QUANTS else 128


def _tensor_split(model: header.Header, placement: tier.Placement, where: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return bytes of weights and of the KV cache by device, and last the host's, under tensor split.

    src/llama-model.cpp, `llama_meta_device_get_split_state`: attention is cut between KV heads, the feed-forward
    between columns, the output between rows, by turns from layer to layer; vectors, routers and a tied embedding are on
    every device whole. The engine has no estimate of its own for this mode to agree with. Where layers are quantised
    differently, attention's share of a layer is taken from the largest ones.
    """
    split, count = placement.tensor_split, len(placement.tensor_split)
    full, sliding, streams, _ = _cells(model, placement)
    blocks = dict(model.block_bytes)
    cut = {name: size for name, size in blocks.items() if name.startswith(_CUT) and not name.startswith(_WHOLE)}
    attention = sum(size for name, size in cut.items() if name.startswith("attn_"))
    whole = sum(size for name, size in blocks.items() if name not in cut and name != "output")
    part = attention / sum(cut.values()) if cut else 0.3
    weights, kv = [0] * (count + 1), [0] * (count + 1)
    weights[HOST] += model.token_embd_bytes
    turns = {True: 0, False: 0}
    for layer, place in enumerate(where[:-1]):
        rotation = turns[model.sliding[layer]] % count
        turns[model.sliding[layer]] += 1
        dim_k, dim_v = model.head_dims(layer)
        heads = model.head_kv[layer]
        cells = (sliding if model.sliding[layer] else full) * streams
        per_head = cells * (_row_bytes(dim_k, placement.cache_type_k) + _row_bytes(dim_v, placement.cache_type_v))
        if place == HOST:
            weights[HOST] += model.layer_bytes[layer]
            kv[HOST] += heads * per_head
            continue
        wide = model.n_head[layer] // max(heads, 1) * dim_k
        granule = math.lcm(wide, _block(blocks.get("attn_output", 0), model.n_head[layer] * dim_v * model.n_embd))
        by_head = _portions(heads, max(granule // max(wide, 1), 1), split, rotation)
        columns, down = (model.n_ff[layer], "ffn_down")
        if model.expert_bytes[layer]:
            columns, down = model.n_ff_exp, "ffn_down_exps"
        numbers = columns * model.n_embd * (model.n_expert if model.expert_bytes[layer] else 1)
        by_column = _portions(columns, _block(blocks.get(down, 0), numbers), split, rotation)
        rest = model.layer_bytes[layer] - whole
        for device in range(count):
            share = part * by_head[device] / max(heads, 1) + (1 - part) * by_column[device] / max(columns, 1)
            weights[device] += whole + round(rest * share)
            kv[device] += by_head[device] * per_head
    rows = _portions(model.output_bytes, 1, split, model.n_layer % count)
    for device in range(count):
        weights[device] += model.output_bytes if model.tied else rows[device]
    return weights, kv


def by_layer(model: header.Header, placement: tier.Placement) -> tuple[float, ...]:
    """Return the MiB of weights and KV cache of each layer, and last of the output layer, as if all lay on devices.

    What a run of layers takes is the sum: a search over splits needs no estimate for each of them.
    """
    each = range(model.n_layer + 1)
    weights, kv = (held(model, placement, each, len(each)) for held in (_weights, _kv))
    return tuple((weights[layer] + kv[layer]) / MIB for layer in each)


def _compute(
    model: header.Header, placement: tier.Placement, where: Sequence[int], kinds: tuple[str, ...], outputs: str
) -> list[int]:
    """Return bytes of compute buffers by device, and last the host's."""
    full, sliding, streams, ubatch = _cells(model, placement)
    host = len(kinds)
    full_offload = placement.n_gpu_layers > model.n_layer
    tokens = -(-ubatch // streams) * streams
    layers = []
    for layer, device in enumerate(where[:-1]):
        dim_k, dim_v = model.head_dims(layer)
        heads_kv = model.head_kv[layer]
        has_experts = model.expert_bytes[layer] > 0
        layers.append(
            compute.Layer(
                device=host if device == HOST else device,
                experts_device=host if device == HOST or layer < placement.n_cpu_moe else device,
                n_head=model.n_head[layer],
                n_head_kv=heads_kv,
                kv_head_dims=(dim_k, dim_v),
                kv_row_bytes=(
                    _row_bytes(heads_kv * dim_k, placement.cache_type_k),
                    _row_bytes(heads_kv * dim_v, placement.cache_type_v),
                ),
                n_kv=sliding if model.sliding[layer] else full,
                sliding=model.sliding[layer],
                n_ff=model.n_ff[layer],
                n_expert=model.n_expert if has_experts else 0,
                n_expert_used=model.n_expert_used if has_experts else 0,
                n_ff_exp=model.n_ff_exp if has_experts else 0,
                n_ff_shared=model.n_ff_shexp if has_experts else 0,
            )
        )
    work = compute.Work(
        architecture=model.architecture,
        n_embd=model.n_embd,
        n_vocab=model.n_vocab,
        n_tokens=tokens,
        n_outputs=min(streams, tokens) if outputs == "slots" else ubatch,
        n_streams=streams,
        layers=tuple(layers),
        output_device=host if where[-1] == HOST else where[-1],
        cuda=tuple(kind == "CUDA" for kind in kinds),
        flash_attention=placement.flash_attn != "off",
        quantised_k=placement.cache_type_k not in ("f32", "f16", "bf16"),
        quantised_v=placement.cache_type_v not in ("f32", "f16", "bf16"),
        f16_k=placement.cache_type_k == "f16",
        f16_v=placement.cache_type_v == "f16",
        pipeline=(
            len(kinds) > 1
            and full_offload
            and placement.split_mode == "layer"
            and placement.pipeline_parallel
            and not placement.n_cpu_moe
        ),
        sliding_cache=any(model.sliding),
        blocks=model.block_bytes or _usual_blocks(model),
    )
    return list(compute.buffers(work))


def _usual_blocks(model: header.Header) -> tuple[tuple[str, int], ...]:
    """Return what the weights of a layer usually are, for a catalogue that tells only what a layer weighs."""
    gate, up, down = ("ffn_gate", "ffn_up", "ffn_down")
    wide = max(model.n_ff)
    if model.n_expert:
        gate, up, down = (f"{name}_exps" for name in (gate, up, down))
        wide = model.n_ff_exp * model.n_expert
    heads, heads_kv = max(model.n_head), max(model.head_kv)
    widths = {
        "attn_q": heads * model.head_dim_k,
        "attn_k": heads_kv * model.head_dim_k,
        "attn_v": heads_kv * model.head_dim_v,
        "attn_output": heads * model.head_dim_v,
        gate: wide,
        up: wide,
        down: wide,
    }
    share = max(model.layer_bytes) / max(sum(widths.values()), 1)
    matrices = {name: round(width * share) for name, width in widths.items()}
    vectors = dict.fromkeys(("attn_norm", "ffn_norm"), 4 * model.n_embd)
    output = {"output": model.output_bytes}
    router = {"ffn_gate_inp": 4 * model.n_embd * model.n_expert} if model.n_expert else {}
    return tuple(sorted({**matrices, **vectors, **output, **router}.items()))
