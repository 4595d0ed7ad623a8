"""The mission's models as they are published: hyperparameters, tensors with shapes, and the type each tensor gets.

One description for two uses: `catalogue/models.yml` holds headers that are derived from it (where the file itself was
not at hand), and the shape-exact header-only GGUFs that the engine's own estimates are taken from are written from it.

Shapes and hyperparameters are those of each model's published config.json; names of tensors are llama.cpp's
(gguf-py, constants.py). Which type a tensor gets is the standard mix of `llama-quantize`, read in llama.cpp
0c1e57098, src/llama-quant.cpp (`tensor_allows_quantization`, `llama_tensor_get_type_impl`, `tensor_type_fallback`);
publishers who use another mix make files of another size.

A shape is in GGUF's order: the first number is the length of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

# What llama-quantize makes of a weight in general; the exceptions are in `tensor_type`.
MIXES = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "Q8_0": "Q8_0", "F16": "F16"}
# `general.file_type` of each (include/llama.h, llama_ftype).
FILE_TYPES = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}
# Where a row is no multiple of 256 numbers (tensor_type_fallback).
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


class TensorShape(NamedTuple):
    """One tensor: name, shape in GGUF's order, name of its ggml type."""

    name: str
    shape: tuple[int, ...]
    type_name: str

    @property
    def bytes(self) -> int:
        """What the tensor takes in the file, and on the device."""
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.type_name]]
        return prod(self.shape) // block * size


@dataclass(frozen=True)
class Shape:
    """A decoder's hyperparameters; flags say which tensors it has besides the usual ones."""

    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    n_ctx_train: int
    head_dim: int | None = None  # written as attention.key_length where it is not n_embd / n_head
    tied: bool = False  # no output.weight: the embedding matrix serves as output as well
    qkv_bias: bool = False
    fused_qkv: bool = False
    fused_gate: bool = False  # ffn_up holds gate and up in one
    qk_norm: bool = False
    post_norms: bool = False
    rope_freqs: bool = False  # rope_freqs.weight: factors of a scaled RoPE
    n_swa: int = 0
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_expert: int = 0
    rms_epsilon: float = 1e-6
    rope_base: float = 1e6
    extra: Mapping[str, Any] = field(default_factory=dict)  # further key-values, without the architecture's prefix

    @property
    def head(self) -> int:
        """Size of an attention head."""
        return self.head_dim or self.n_embd // self.n_head


@dataclass(frozen=True)
class ShapedModel:
    """A shape in a quantisation; `name` is the key in the catalogue."""

    name: str
    shape: Shape
    mix: str

    def tensors(self) -> list[TensorShape]:
        """List every tensor in the order of a converted file."""
        return quantised(self.shape, self.mix)

    def metadata(self) -> dict[str, Any]:
        """Return the key-values that an engine needs, with a tokenizer of none."""
        return metadata(self.shape) | {"general.name": self.name, "general.file_type": FILE_TYPES[self.mix]}


def metadata(shape: Shape) -> dict[str, Any]:
    """Return the key-values of a shape; `tokenizer.ggml.model` none spares the vocabulary."""
    values: dict[str, Any] = {
        "context_length": shape.n_ctx_train,
        "embedding_length": shape.n_embd,
        "block_count": shape.n_layer,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_head,
        "attention.head_count_kv": shape.n_head_kv,
        "attention.layer_norm_rms_epsilon": shape.rms_epsilon,
        "rope.freq_base": shape.rope_base,
        "vocab_size": shape.n_vocab,
    }
    if shape.head_dim:
        values |= {"attention.key_length": shape.head_dim, "attention.value_length": shape.head_dim}
    if shape.n_swa:
        values["attention.sliding_window"] = shape.n_swa
    if shape.n_expert:
        values |= {"expert_count": shape.n_expert, "expert_used_count": shape.n_expert_used}
    if shape.n_ff_expert:
        values["expert_feed_forward_length"] = shape.n_ff_expert
    values |= shape.extra
    return {
        "general.architecture": shape.architecture,
        "general.quantization_version": 2,
        "tokenizer.ggml.model": "none",
        **{f"{shape.architecture}.{key}": value for key, value in values.items()},
    }


def unquantised(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor."""
    query, cache = shape.n_head * shape.head, shape.n_head_kv * shape.head
    yield "token_embd.weight", (shape.n_embd, shape.n_vocab)
    for index in range(shape.n_layer):
        block = f"blk.{index}"
        yield f"{block}.attn_norm.weight", (shape.n_embd,)
        if shape.fused_qkv:
            yield f"{block}.attn_qkv.weight", (shape.n_embd, query + 2 * cache)
            if shape.qkv_bias:
                yield f"{block}.attn_qkv.bias", (query + 2 * cache,)
        else:
            for part, rows in (("q", query), ("k", cache), ("v", cache)):
                yield f"{block}.attn_{part}.weight", (shape.n_embd, rows)
                if shape.qkv_bias:
                    yield f"{block}.attn_{part}.bias", (rows,)
        if shape.qk_norm:
            yield f"{block}.attn_q_norm.weight", (shape.head,)
            yield f"{block}.attn_k_norm.weight", (shape.head,)
        yield f"{block}.attn_output.weight", (query, shape.n_embd)
        if shape.post_norms:
            yield f"{block}.post_attention_norm.weight", (shape.n_embd,)
        yield f"{block}.ffn_norm.weight", (shape.n_embd,)
        if shape.n_expert:
            ff = shape.n_ff_expert or shape.n_ff
            yield f"{block}.ffn_gate_inp.weight", (shape.n_embd, shape.n_expert)
            yield f"{block}.ffn_gate_exps.weight", (shape.n_embd, ff, shape.n_expert)
            yield f"{block}.ffn_down_exps.weight", (ff, shape.n_embd, shape.n_expert)
            yield f"{block}.ffn_up_exps.weight", (shape.n_embd, ff, shape.n_expert)
        elif shape.fused_gate:
            yield f"{block}.ffn_up.weight", (shape.n_embd, 2 * shape.n_ff)
            yield f"{block}.ffn_down.weight", (shape.n_ff, shape.n_embd)
        else:
            yield f"{block}.ffn_gate.weight", (shape.n_embd, shape.n_ff)
            yield f"{block}.ffn_up.weight", (shape.n_embd, shape.n_ff)
            yield f"{block}.ffn_down.weight", (shape.n_ff, shape.n_embd)
        if shape.post_norms:
            yield f"{block}.post_ffw_norm.weight", (shape.n_embd,)
    yield "output_norm.weight", (shape.n_embd,)
    if shape.rope_freqs:
        yield "rope_freqs.weight", (shape.head // 2,)
    if not shape.tied:
        yield "output.weight", (shape.n_embd, shape.n_vocab)


def quantised(shape: Shape, mix: str) -> list[TensorShape]:
    """Return every tensor with the type that `llama-quantize` gives it in a mix."""
    return [TensorShape(name, size, tensor_type(shape, mix, name, size)) for name, size in unquantised(shape)]


def _more_bits(layer: int, n_layer: int) -> bool:
    """Tell which layers get more bits in attn_v and ffn_down (use_more_bits)."""
    return layer < n_layer // 8 or layer >= 7 * n_layer // 8 or (layer - n_layer // 8) % 3 == 2


def tensor_type(shape: Shape, mix: str, name: str, size: tuple[int, ...]) -> str:
    """Name the ggml type of one tensor in a mix."""
    # Vectors, norms and the router of experts are never quantised.
    if len(size) < 2 or not name.endswith("weight") or name.endswith(("_norm.weight", "ffn_gate_inp.weight")):
        return "F32"
    kind = MIXES[mix]
    if kind == "F16":
        return kind
    if name == "output.weight" or (name == "token_embd.weight" and shape.tied):
        return "Q8_0" if kind == "Q8_0" or size[0] % 256 else "Q6_K"
    if name.startswith("blk."):
        layer, part = int(name.split(".")[1]), name.split(".")[2]
        value, key = part in ("attn_v", "attn_qkv"), part == "attn_k"
        if mix in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, shape.n_layer):
            kind = "Q6_K" if value or part.startswith("ffn_down") else kind
        if shape.n_expert == 8:
            if value or key:
                kind = "Q8_0"
            elif part == "attn_output" and mix == "Q4_K_M":
                kind = "Q5_K"
    if kind in _FALLBACK and size[0] % 256:
        kind = _FALLBACK[kind] if size[0] % 32 == 0 else "F16"
    return kind


QWEN2_7B = Shape(
    architecture="qwen2",
    n_layer=28,
    n_embd=3584,
    n_ff=18944,
    n_head=28,
    n_head_kv=4,
    n_vocab=152064,
    n_ctx_train=32768,
    qkv_bias=True,
)
QWEN2_14B = replace(QWEN2_7B, n_layer=48, n_embd=5120, n_ff=13824, n_head=40, n_head_kv=8)
QWEN2_32B = replace(QWEN2_14B, n_layer=64, n_ff=27648)
# The distilled models say 131072; no YaRN is set in them.
R1_QWEN_14B = replace(QWEN2_14B, n_ctx_train=131072, rms_epsilon=1e-5)
R1_QWEN_7B = replace(QWEN2_7B, n_ctx_train=131072, rope_base=1e4)
LLAMA_31_8B = Shape(
    architecture="llama",
    n_layer=32,
    n_embd=4096,
    n_ff=14336,
    n_head=32,
    n_head_kv=8,
    n_vocab=128256,
    n_ctx_train=131072,
    rope_freqs=True,
    rms_epsilon=1e-5,
    rope_base=5e5,
    extra={"rope.dimension_count": 128},
)

# The mission's models, by their name in the catalogue.
MODELS = {
    model.name: model
    for model in (
        ShapedModel("deepseek-r1-distill-qwen-14b-q4_k_m", R1_QWEN_14B, "Q4_K_M"),
        ShapedModel("deepseek-r1-distill-qwen-14b-q5_k_m", R1_QWEN_14B, "Q5_K_M"),
        ShapedModel("qwen2.5-14b-instruct-q6_k", QWEN2_14B, "Q6_K"),
        ShapedModel("deepseek-r1-distill-qwen-7b-q6_k", R1_QWEN_7B, "Q6_K"),
        ShapedModel("llama-3.1-8b-instruct-abliterated-q6_k", LLAMA_31_8B, "Q6_K"),
        ShapedModel("qwen2.5-7b-instruct-abliterated-q6_k", QWEN2_7B, "Q6_K"),
        ShapedModel("qwen2.5-32b-instruct-q4_k_m", QWEN2_32B, "Q4_K_M"),
    )
}
