"""Shape-exact GGUFs without weights: header and tensor table of a real model, its data a hole in a sparse file.

The engine sizes everything from the table, so tens of kilobytes on disk stand for any model. The mission's models come
from `shapes.MODELS`; those here are of other architectures, each for something that memory depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy
import shapes

Table = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Other(shapes.ShapedModel):
    """A model with tensors of its own: `table` yields names and shapes, `types` names the type of one of them."""

    table: Callable[[shapes.Shape], Table] | None = None
    types: Callable[[str, tuple[int, ...]], str | None] | None = None

    def tensors(self) -> list[shapes.TensorShape]:
        """List every tensor in the order of a converted file."""
        table = self.table or shapes.unquantised
        return [
            shapes.TensorShape(
                name,
                size,
                (self.types and self.types(name, size)) or shapes.tensor_type(self.shape, self.mix, name, size),
            )
            for name, size in table(self.shape)
        ]


def _layer_norm(shape: shapes.Shape) -> Table:
    """Yield the tensors of a model with LayerNorm, biases everywhere and no gate (src/models/starcoder2.cpp)."""
    biased = ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down", "output_norm")
    for name, size in shapes.unquantised(shape):
        if "ffn_gate" in name:
            continue
        yield name, size
        if name.removesuffix(".weight").split(".")[-1] in biased:
            yield name.replace(".weight", ".bias"), (size[-1],)


def _parallel(shape: shapes.Shape) -> Table:
    """Yield the tensors of a model whose attention and feed-forward read one norm (src/models/falcon.cpp)."""
    for name, size in shapes.unquantised(shape):
        if "ffn_gate" in name or "ffn_norm" in name:
            continue
        yield name, size
        if name.endswith("_norm.weight"):
            yield name.replace(".weight", ".bias"), size


def _gpt_oss(shape: shapes.Shape) -> Table:
    """Yield the tensors of gpt-oss: biases, sinks, experts, a norm after attention (src/models/openai-moe.cpp)."""
    for name, size in shapes.unquantised(shape):
        if "post_ffw_norm" in name or "ffn_norm" in name:
            continue
        yield name, size
        block, _, part = name.removesuffix(".weight").rpartition(".")
        if part == "attn_output":
            yield f"{block}.attn_sinks.weight", (shape.n_head,)
        if part in ("attn_q", "attn_k", "attn_v", "attn_output") or part.startswith("ffn_"):
            yield f"{block}.{part}.bias", size[1:]


def _norms_after(shape: shapes.Shape) -> Table:
    """Yield the tensors of a model that has norms only after its blocks (src/models/olmo2.cpp)."""
    for name, size in shapes.unquantised(shape):
        part = name.split(".")[-2]
        if part in ("attn_norm", "ffn_norm"):
            continue
        width = {"attn_q_norm": shape.n_head, "attn_k_norm": shape.n_head_kv}.get(part)
        yield name, (width * shape.head,) if width else size


def _shared_experts(shape: shapes.Shape) -> Table:
    """Yield the tensors of a model with a shared expert beside the chosen ones (src/models/llama4.cpp)."""
    ff = shape.extra.get("expert_shared_feed_forward_length", shape.n_ff_expert)
    for name, size in shapes.unquantised(shape):
        yield name, size
        block, _, part = name.removesuffix(".weight").rpartition(".")
        if part == "ffn_up_exps":
            if shape.architecture == "qwen2moe":
                yield f"{block}.ffn_gate_inp_shexp.weight", (shape.n_embd,)
            yield f"{block}.ffn_gate_shexp.weight", (shape.n_embd, ff)
            yield f"{block}.ffn_up_shexp.weight", (shape.n_embd, ff)
            yield f"{block}.ffn_down_shexp.weight", (ff, shape.n_embd)


def _phi2(shape: shapes.Shape) -> Table:
    """Yield the tensors of phi-2: one norm for both branches, biases everywhere (src/models/phi2.cpp)."""
    for name, size in _layer_norm(shape):
        if "ffn_norm" not in name:
            yield name, size
    yield "output.bias", (shape.n_vocab,)


def _command_r(shape: shapes.Shape) -> Table:
    """Yield the tensors of a model with one norm for both branches and a gate (src/models/cohere2.cpp)."""
    return ((name, size) for name, size in shapes.unquantised(shape) if "ffn_norm" not in name)


def _stablelm(shape: shapes.Shape) -> Table:
    """Yield the tensors of a model with LayerNorm and its biases (src/models/stablelm.cpp)."""
    for name, size in shapes.unquantised(shape):
        yield name, size
        if name.endswith("_norm.weight"):
            yield name.replace(".weight", ".bias"), size


def _gpt_oss_types(name: str, size: tuple[int, ...]) -> str | None:
    if name.endswith("_exps.weight"):
        return "MXFP4"
    return "Q8_0" if len(size) == 2 and name.endswith("weight") and "gate_inp" not in name else "F32"


LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
GEMMA = shapes.Shape(
    architecture="gemma3",
    n_layer=34,
    n_embd=2560,
    n_ff=10240,
    n_head=8,
    n_head_kv=4,
    n_vocab=262208,
    n_ctx_train=131072,
    head_dim=256,
    tied=True,
    qk_norm=True,
    post_norms=True,
    n_swa=1024,
)
QWEN3_8B = shapes.Shape(
    architecture="qwen3",
    n_layer=36,
    n_embd=4096,
    n_ff=12288,
    n_head=32,
    n_head_kv=8,
    n_vocab=151936,
    n_ctx_train=40960,
    head_dim=128,
    qk_norm=True,
)
LLAMA = replace(shapes.LLAMA_31_8B, rope_freqs=False)

OTHERS = {
    model.name: model
    for model in (
        # Sliding window, tied embeddings, heads of 256, norms after.
        Other("gemma-3-4b-it-q4_k_m", GEMMA, "Q4_K_M"),
        Other(
            "gemma-3-1b-it-q8_0",
            replace(GEMMA, n_layer=26, n_embd=1152, n_ff=6912, n_head=4, n_head_kv=1, n_vocab=262144, n_swa=512),
            "Q8_0",
        ),
        # A window that the source knows (4096) in every other layer.
        Other(
            "gemma-2-9b-it-q4_k_m",
            replace(
                GEMMA,
                architecture="gemma2",
                n_layer=42,
                n_embd=3584,
                n_ff=14336,
                n_head=16,
                n_head_kv=8,
                n_vocab=256000,
                n_ctx_train=8192,
                qk_norm=False,
                n_swa=0,
                extra={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
            ),
            "Q4_K_M",
        ),
        # Fused Q, K, V and fused gate; as many KV heads as heads; a window that the engine switches off.
        Other(
            "phi-3-mini-4k-instruct-q4_k_m",
            shapes.Shape(
                architecture="phi3",
                n_layer=32,
                n_embd=3072,
                n_ff=8192,
                n_head=32,
                n_head_kv=32,
                n_vocab=32064,
                n_ctx_train=4096,
                fused_qkv=True,
                fused_gate=True,
                n_swa=2047,
                extra={"rope.dimension_count": 96},
            ),
            "Q4_K_M",
        ),
        # Explicit head size, norms of Q and K; in the small one heads are wider than the embedding.
        Other("qwen3-8b-q4_k_m", QWEN3_8B, "Q4_K_M"),
        Other(
            "qwen3-0.6b-q8_0",
            replace(QWEN3_8B, n_layer=28, n_embd=1024, n_ff=3072, n_head=16, tied=True),
            "Q8_0",
        ),
        # Experts: many small ones, and eight large ones.
        Other(
            "qwen3-30b-a3b-q4_k_m",
            replace(
                QWEN3_8B,
                architecture="qwen3moe",
                n_layer=48,
                n_embd=2048,
                n_ff=6144,
                n_head_kv=4,
                n_expert=128,
                n_expert_used=8,
                n_ff_expert=768,
            ),
            "Q4_K_M",
        ),
        Other(
            "mixtral-8x7b-instruct-q4_k_m",
            replace(LLAMA, n_vocab=32000, n_ctx_train=32768, n_expert=8, n_expert_used=2),
            "Q4_K_M",
        ),
        Other(
            "gpt-oss-20b-mxfp4",
            shapes.Shape(
                architecture="gpt-oss",
                n_layer=24,
                n_embd=2880,
                n_ff=2880,
                n_head=64,
                n_head_kv=8,
                n_vocab=201088,
                n_ctx_train=131072,
                head_dim=64,
                post_norms=True,
                n_swa=128,
                n_expert=32,
                n_expert_used=4,
                n_ff_expert=2880,
            ),
            "Q8_0",
            table=_gpt_oss,
            types=_gpt_oss_types,
        ),
        Other("mistral-7b-instruct-v0.3-q4_k_m", replace(LLAMA, n_vocab=32768, n_ctx_train=32768), "Q4_K_M"),
        Other(
            "llama-3.2-1b-instruct-q8_0",
            replace(
                shapes.LLAMA_31_8B, n_layer=16, n_embd=2048, n_ff=8192, tied=True, extra={"rope.dimension_count": 64}
            ),
            "Q8_0",
        ),
        # LayerNorm, biases, no gate, fused or one KV head.
        Other(
            "starcoder2-7b-q4_k_m",
            shapes.Shape(
                architecture="starcoder2",
                n_layer=32,
                n_embd=4608,
                n_ff=18432,
                n_head=36,
                n_head_kv=4,
                n_vocab=49152,
                n_ctx_train=16384,
                extra=LAYER_NORM,
            ),
            "Q4_K_M",
            table=_layer_norm,
        ),
        Other(
            "falcon-7b-q4_k_m",
            shapes.Shape(
                architecture="falcon",
                n_layer=32,
                n_embd=4544,
                n_ff=18176,
                n_head=71,
                n_head_kv=1,
                n_vocab=65024,
                n_ctx_train=2048,
                fused_qkv=True,
                extra=LAYER_NORM,
            ),
            "Q4_K_M",
            table=_parallel,
        ),
        Other(
            "phi-2-q4_k_m",
            shapes.Shape(
                architecture="phi2",
                n_layer=32,
                n_embd=2560,
                n_ff=10240,
                n_head=32,
                n_head_kv=32,
                n_vocab=51200,
                n_ctx_train=2048,
                extra={**LAYER_NORM, "rope.dimension_count": 32},
            ),
            "Q4_K_M",
            table=_phi2,
        ),
        Other(
            "stablelm-2-1_6b-q4_k_m",
            shapes.Shape(
                architecture="stablelm",
                n_layer=24,
                n_embd=2048,
                n_ff=5632,
                n_head=32,
                n_head_kv=32,
                n_vocab=100352,
                n_ctx_train=4096,
                extra={**LAYER_NORM, "rope.dimension_count": 16},
            ),
            "Q4_K_M",
            table=_stablelm,
        ),
        # One norm for both branches, a window in three of four layers, tied.
        Other(
            "c4ai-command-r7b-q4_k_m",
            shapes.Shape(
                architecture="cohere2",
                n_layer=32,
                n_embd=4096,
                n_ff=14336,
                n_head=32,
                n_head_kv=8,
                n_vocab=256000,
                n_ctx_train=132096,
                tied=True,
                n_swa=4096,
                extra={**LAYER_NORM, "logit_scale": 0.25},
            ),
            "Q4_K_M",
            table=_command_r,
        ),
        # Norms only after the blocks, none before.
        Other(
            "olmo-2-7b-instruct-q4_k_m",
            shapes.Shape(
                architecture="olmo2",
                n_layer=32,
                n_embd=4096,
                n_ff=11008,
                n_head=32,
                n_head_kv=32,
                n_vocab=100352,
                n_ctx_train=4096,
                qk_norm=True,
                post_norms=True,
            ),
            "Q4_K_M",
            table=_norms_after,
        ),
        Other(
            "gemma-7b-it-q4_k_m",
            replace(
                GEMMA,
                architecture="gemma",
                n_layer=28,
                n_embd=3072,
                n_ff=24576,
                n_head=16,
                n_head_kv=16,
                n_vocab=256000,
                n_ctx_train=8192,
                qk_norm=False,
                post_norms=False,
                n_swa=0,
            ),
            "Q4_K_M",
        ),
        Other(
            "granite-3.1-8b-instruct-q4_k_m",
            replace(
                LLAMA,
                architecture="granite",
                n_layer=40,
                n_ff=12800,
                n_vocab=49155,
                tied=True,
                extra={
                    "rope.dimension_count": 128,
                    "logit_scale": 16.0,
                    "attention.scale": 0.0078125,
                    "embedding_scale": 12.0,
                    "residual_scale": 0.22,
                },
            ),
            "Q4_K_M",
        ),
        # Norms before and after, fused gate, two KV heads.
        Other(
            "glm-4-9b-0414-q4_k_m",
            shapes.Shape(
                architecture="glm4",
                n_layer=40,
                n_embd=4096,
                n_ff=13696,
                n_head=32,
                n_head_kv=2,
                n_vocab=151552,
                n_ctx_train=32768,
                head_dim=128,
                qkv_bias=True,
                fused_gate=True,
                post_norms=True,
                extra={"rope.dimension_count": 64},
            ),
            "Q4_K_M",
        ),
        # A shared expert beside the chosen ones; in the second one expert is chosen and three of four layers slide.
        Other(
            "qwen1.5-moe-a2.7b-chat-q4_k_m",
            shapes.Shape(
                architecture="qwen2moe",
                n_layer=24,
                n_embd=2048,
                n_ff=5632,
                n_head=16,
                n_head_kv=16,
                n_vocab=151936,
                n_ctx_train=8192,
                qkv_bias=True,
                n_expert=60,
                n_expert_used=4,
                n_ff_expert=1408,
                extra={"expert_shared_feed_forward_length": 5632},
            ),
            "Q4_K_M",
            table=_shared_experts,
        ),
        Other(
            "llama-4-scout-17b-16e-instruct-q4_k_m",
            shapes.Shape(
                architecture="llama4",
                n_layer=48,
                n_embd=5120,
                n_ff=16384,
                n_head=40,
                n_head_kv=8,
                n_vocab=202048,
                n_ctx_train=10485760,
                n_expert=16,
                n_expert_used=1,
                n_ff_expert=8192,
                extra={"interleave_moe_layer_step": 1, "rope.dimension_count": 128},
            ),
            "Q4_K_M",
            table=_shared_experts,
        ),
    )
}
MODELS: dict[str, shapes.ShapedModel] = {**shapes.MODELS, **OTHERS}


def write(model: shapes.ShapedModel, directory: Path, vocabulary: bool = False) -> Path:
    """Write the sparse GGUF of a model and return its path; with a made-up vocabulary it can answer, all zeros."""
    path = directory / f"{model.name}{'-speaking' if vocabulary else ''}.gguf"
    writer = gguf.GGUFWriter(path, model.shape.architecture)
    for key, value in model.metadata().items():
        if not (vocabulary and key == "tokenizer.ggml.model"):
            _add(writer, key, value)
    if vocabulary:
        _add_vocabulary(writer, model.shape.n_vocab)
    for tensor in model.tensors():
        writer.add_tensor_info(
            tensor.name,
            tensor.shape[::-1],
            numpy.dtype(numpy.float32),
            tensor.bytes,
            raw_dtype=gguf.GGMLQuantizationType[tensor.type_name],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    alignment = writer.data_alignment
    with path.open("r+b") as file:
        data = sum(-(-tensor.bytes // alignment) * alignment for tensor in model.tensors())
        file.seek(0, 2)
        file.truncate(-(-file.tell() // alignment) * alignment + data)
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, count: int) -> None:
    """Add the smallest SentencePiece vocabulary that the engine takes: specials, bytes, and words of no meaning."""
    special = ["<unk>", "<s>", "</s>"]
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"w{number}" for number in range(count - len(special) - len(every_byte))]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *every_byte, *words])
    writer.add_token_scores([0.0] * count)
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *([kinds.BYTE] * 256), *([kinds.NORMAL] * len(words))]
    writer.add_token_types([int(kind) for kind in types])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if key == "general.architecture":
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
