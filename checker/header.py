"""What the planner needs to know of a model: the meaning of a GGUF's key-values and tensor table. Pure.

What belongs to which layer, and which layers slide, is llama.cpp's own knowledge (engine 0c1e57098): `blk.N.*` is layer
N, `token_embd.weight` and its like are the input layer and stay on the host, all else goes with the output layer
(src/llama-arch.cpp, LLM_TENSOR_INFOS); hyperparameters and their defaults are those of src/llama-model.cpp
(`load_hparams`) and src/models/*.cpp (`load_arch_hparams`). All sizes are bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

KNOWN = "known architecture"
BY_NAMES = "tensor names only"

# src/llama.h and src/llama-hparams.h: LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS. The others are far beyond any model.
MAX_LAYERS = 512
MAX_EXPERTS = 1024
MAX_DIMENSION = 1 << 24
MAX_CONTEXT = 1 << 31
MAX_TENSOR_BYTES = 1 << 44

# The tensors of the input layer (src/llama-arch.cpp, LLM_TENSOR_LAYER_INPUT).
_INPUT = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
_OUTPUT = "output.weight"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
# What --n-cpu-moe moves (common/common.h, LLM_FFN_EXPS_REGEX).
_EXPERTS = re.compile(r"^ffn_(up|down|gate|gate_up)_(ch|)exps")
# State-space and other recurrent blocks keep a state instead of a KV cache; nothing here knows its size.
_RECURRENT = re.compile(r"^(ssm_|time_mix|shortconv|linear_attn|lin_attn|channel_mix)")


class HeaderError(Exception):
    """A GGUF header that cannot be planned with: names file or URL, key, value and what was expected."""


@dataclass(frozen=True)
class Tensor:
    """One row of a GGUF's tensor table: `shape` innermost dimension first, as GGUF has it; `bytes` of its data."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    bytes: int


@dataclass(frozen=True)
class Header:
    """One model as the planner sees it (catalogue, `header:`); bytes are sums over the tensor table, per layer 0..n-1.

    `layer_bytes` has n_layer entries; `expert_bytes` is what of them are tensors of experts (0 in a dense model);
    `output_bytes` is what goes with the output layer (with tied embeddings the embedding matrix once more);
    `token_embd_bytes` stays on the host. `head_kv` is the number of KV heads of each layer (0 where it keeps none),
    `head_dim_k` and `head_dim_v` their sizes (0 for V where the cache keeps K only), `head_dim_k_swa` and
    `head_dim_v_swa` those of sliding layers where they differ, `sliding` tells which layers see only the last `n_swa`
    tokens. `n_ff_exp` and `n_ff_shexp` are the widths of one expert and of the shared ones. `block_bytes` has, by name
    without `blk.N.` and `.weight`, the bytes of each weight and bias of a layer (of the largest, where layers differ),
    of `output` and of RoPE's factors: which there are tells the compute graph; empty where a catalogue does not know.
    `confidence` tells whether the architecture's rules are known or only its tensors.
    """

    architecture: str
    n_layer: int
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    n_head: tuple[int, ...]
    head_kv: tuple[int, ...]
    head_dim_k: int
    head_dim_v: int
    n_ff: tuple[int, ...]
    layer_bytes: tuple[int, ...]
    expert_bytes: tuple[int, ...]
    output_bytes: int
    token_embd_bytes: int
    tied: bool
    n_swa: int
    sliding: tuple[bool, ...]
    n_expert: int
    n_expert_used: int
    n_ff_exp: int = 0
    n_ff_shexp: int = 0
    head_dim_k_swa: int = 0
    head_dim_v_swa: int = 0
    block_bytes: tuple[tuple[str, int], ...] = ()
    confidence: str = KNOWN

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as they lie in memory: a tied embedding matrix counts twice (host and output)."""
        return sum(self.layer_bytes) + self.output_bytes + self.token_embd_bytes

    def head_dims(self, layer: int) -> tuple[int, int]:
        """Return the sizes of one K and one V head of a layer (src/llama-hparams.cpp, n_embd_head_k, n_embd_head_v)."""
        if self.sliding[layer]:
            return self.head_dim_k_swa or self.head_dim_k, self.head_dim_v_swa or self.head_dim_v
        return self.head_dim_k, self.head_dim_v

    def to_json(self) -> dict[str, Any]:
        """Return the header as the catalogue and the cache keep it: plain lists, numbers and words."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {**document, "block_bytes": dict(self.block_bytes)}


def from_json(document: Mapping[str, Any], where: str = "header") -> Header:
    """Build a header from what `Header.to_json` wrote; HeaderError names `where` and what is missing or unknown."""
    known = {field.name for field in fields(Header)}
    unknown = sorted(set(document) - known)
    if unknown:
        raise HeaderError(f"{where}: no header has {', '.join(unknown)}; known keys: {', '.join(sorted(known))}")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    blocks = values.get("block_bytes") or {}
    values["block_bytes"] = tuple(sorted(dict(blocks).items()))
    try:
        header = Header(**values)
    except TypeError as error:
        raise HeaderError(f"{where}: {error}") from error
    for name in ("n_head", "head_kv", "n_ff", "layer_bytes", "expert_bytes", "sliding"):
        length = len(getattr(header, name))
        if length != header.n_layer:
            raise HeaderError(f"{where}: {name} has {length} entries, expected one for each of {header.n_layer} layers")
    return header


@dataclass(frozen=True)
class _Sliding:
    """How an architecture's source sets its window: layer il is full where il modulo `pattern` is last (or 0)."""

    pattern: int
    dense_first: bool = False
    default: int = 0
    fixed: int = 0


# src/models/*.cpp, load_arch_hparams: load_swa_pattern(ml, pattern, dense_first) and the n_swa around it.
_SLIDING: dict[str, _Sliding] = {
    "afmoe": _Sliding(4),
    "cohere2": _Sliding(4),
    "gemma2": _Sliding(2, default=4096),
    "gemma3": _Sliding(6),
    "gpt-oss": _Sliding(2),
    "llama4": _Sliding(4, fixed=8192),
    "olmo2": _Sliding(4),
}
# Architectures whose figures are held to the engine's own (tests/truth/models.py has a model of each). phi3 reads a
# sliding window and switches it off (src/models/phi3.cpp).
_HELD = frozenset(
    {
        *("cohere2", "falcon", "gemma", "gemma2", "gemma3", "glm4", "gpt-oss", "granite", "llama", "llama4", "olmo2"),
        *("phi2", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "stablelm", "starcoder2"),
    }
)
# Keep one compressed K per token and no V (src/llama-hparams.cpp, is_mla).
_MLA = frozenset(["deepseek2"])


class _Fields:
    """The key-values of one header, read with bounds."""

    def __init__(self, values: Mapping[str, Any], architecture: str, where: str) -> None:
        self.values, self.architecture, self.where = values, architecture, where

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def error(self, key: str, value: object, expected: str) -> HeaderError:
        return HeaderError(f"{self.where}: {key} is {_shown(value)}, expected {expected}")

    def number(self, name: str, low: int, high: int, default: int | None = None) -> int:
        key = self.key(name)
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise HeaderError(f"{self.where}: {key} is missing, expected a whole number from {low} to {high}")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, value, f"a whole number from {low} to {high}")
        return value

    def numbers(self, name: str, n_layer: int, low: int, high: int, default: int | None = None) -> tuple[int, ...]:
        """Read one number for all layers, or an array with one for each (llama-model-loader, get_key_or_arr)."""
        key = self.key(name)
        value: Any = self.values.get(key)
        if not _is_array(value):
            return (self.number(name, low, high, default),) * n_layer
        if len(value) != n_layer:
            raise self.error(key, f"an array of {len(value)} numbers", f"a number, or one for each of {n_layer} layers")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int) or not low <= item <= high:
                raise self.error(key, f"an array with {_shown(item)}", f"whole numbers from {low} to {high}")
        return tuple(value)


def _is_array(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _shown(value: object) -> str:
    text = value if isinstance(value, str) and value.startswith("an array") else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sliding(read: _Fields, n_layer: int) -> tuple[int, tuple[bool, ...]]:
    """Return the window and which layers it holds for; (0, none) where the architecture has none."""
    none = (0, (False,) * n_layer)
    rule = _SLIDING.get(read.architecture)
    if rule is None:
        return none
    window = read.number("attention.sliding_window", 0, MAX_CONTEXT, rule.default if not rule.fixed else rule.fixed)
    if window == 0:
        return none
    pattern = read.values.get(read.key("attention.sliding_window_pattern"))
    if _is_array(pattern):
        flags = read.values[read.key("attention.sliding_window_pattern")]
        if len(flags) != n_layer:
            raise read.error(
                read.key("attention.sliding_window_pattern"),
                f"an array of {len(flags)} flags",
                f"one for each of {n_layer} layers",
            )
        return rule.fixed or window, tuple(bool(flag) for flag in flags)
    period = read.number("attention.sliding_window_pattern", 0, MAX_LAYERS, rule.pattern)
    if period == 0:
        return rule.fixed or window, (True,) * n_layer
    full = 0 if rule.dense_first else period - 1
    return rule.fixed or window, tuple(layer % period != full for layer in range(n_layer))


def _checked(tensors: Sequence[Tensor], where: str) -> dict[str, Tensor]:
    table: dict[str, Tensor] = {}
    for tensor in tensors:
        if tensor.name in table:
            raise HeaderError(f"{where}: tensor {tensor.name} stands there twice, expected each name once")
        if not _NAME.fullmatch(tensor.name):
            raise HeaderError(
                f"{where}: a tensor is called {_shown(tensor.name)}, expected a name such as 'blk.0.ffn_up'"
            )
        if not 0 < tensor.bytes <= MAX_TENSOR_BYTES:
            raise HeaderError(
                f"{where}: tensor {tensor.name} has {tensor.bytes} bytes, expected 1 to {MAX_TENSOR_BYTES}"
            )
        if not tensor.shape or any(not 0 < size <= 1 << 40 for size in tensor.shape):
            raise HeaderError(
                f"{where}: tensor {tensor.name} has shape {list(tensor.shape)}, expected positive dimensions"
            )
        table[tensor.name] = tensor
    return table


def _heads_by_names(table: Mapping[str, Tensor], n_layer: int, n_head: int) -> tuple[int, int] | None:
    """Return the widths of K and V of one token as the blocks of the first layer that has them tell."""
    for layer in range(n_layer):
        k, v = table.get(f"blk.{layer}.attn_k.weight"), table.get(f"blk.{layer}.attn_v.weight")
        if k and v and len(k.shape) == 2 and len(v.shape) == 2:
            return k.shape[1], v.shape[1]
    return None


def from_metadata(fields: Mapping[str, Any], tensors: Sequence[Tensor], where: str) -> Header:
    """Read the meaning of a GGUF's key-values and tensor table; HeaderError names `where` and what was expected."""
    architecture = fields.get("general.architecture")
    # A header's words end in the catalogue, which Ansible reads as templates: nothing but a plain name may pass.
    if not isinstance(architecture, str) or not _NAME.fullmatch(architecture):
        raise HeaderError(f"{where}: general.architecture is {_shown(architecture)}, expected a name such as 'llama'")
    read = _Fields(fields, architecture, where)
    n_layer = read.number("block_count", 1, MAX_LAYERS)
    n_embd = read.number("embedding_length", 1, MAX_DIMENSION)
    n_ctx_train = read.number("context_length", 1, MAX_CONTEXT)
    table = _checked(tensors, where)

    layers, experts = [0] * n_layer, [0] * n_layer
    input_bytes = output_bytes = 0
    seen: set[int] = set()
    blocks: dict[str, int] = {}
    for name, tensor in table.items():
        match = _LAYER.match(name)
        if not match:
            if name.startswith(_INPUT):
                input_bytes += tensor.bytes
            else:
                output_bytes += tensor.bytes
            if name.startswith("rope_f"):
                blocks[name.removesuffix(".weight")] = tensor.bytes
            continue
        layer, part = int(match.group(1)), match.group(2)
        if layer >= n_layer:
            raise HeaderError(f"{where}: tensor {name} is of layer {layer}, but {read.key('block_count')} is {n_layer}")
        if _RECURRENT.match(part):
            raise HeaderError(
                f"{where}: tensor {name} is of a recurrent layer ({architecture}), whose state this planner cannot "
                "weigh; expected a model with attention layers only"
            )
        seen.add(layer)
        layers[layer] += tensor.bytes
        if _EXPERTS.match(part):
            experts[layer] += tensor.bytes
        if part.endswith((".weight", ".bias")):
            kind = part.removesuffix(".weight")
            blocks[kind] = max(blocks.get(kind, 0), tensor.bytes)
    missing = sorted(set(range(n_layer)) - seen)
    if missing:
        shown = ", ".join(str(layer) for layer in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise HeaderError(
            f"{where}: {read.key('block_count')} is {n_layer}, but layers {shown} have no tensors; "
            "expected the whole table (of a split GGUF: of all parts)"
        )
    embedding = table.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[0] != n_embd:
        shape = "missing" if embedding is None else f"of shape {list(embedding.shape)}"
        raise HeaderError(f"{where}: tensor token_embd.weight is {shape}, expected [{n_embd}, vocabulary]")
    tied = _OUTPUT not in table
    output_bytes += embedding.bytes if tied else 0
    blocks["output"] = embedding.bytes if tied else table[_OUTPUT].bytes

    n_head = read.numbers("attention.head_count", n_layer, 0, MAX_DIMENSION)
    widest = max(n_head)
    if widest == 0:
        raise read.error(read.key("attention.head_count"), 0, "at least one head in some layer")
    head_kv = read.numbers("attention.head_count_kv", n_layer, 0, MAX_DIMENSION, -1)
    head_kv = n_head if head_kv[0] < 0 else head_kv
    if any(kv > heads for kv, heads in zip(head_kv, n_head, strict=True)):
        raise read.error(read.key("attention.head_count_kv"), max(head_kv), f"at most {widest} (head_count)")
    default_dim = n_embd // n_head[0] if n_head[0] else 0
    head_dim_k = read.number("attention.key_length", 1, MAX_DIMENSION, default_dim)
    head_dim_v = read.number("attention.value_length", 1, MAX_DIMENSION, default_dim)
    n_expert = read.number("expert_count", 0, MAX_EXPERTS, 0)
    n_ff = read.numbers("feed_forward_length", n_layer, 0, MAX_DIMENSION, 0)
    n_swa, sliding = _sliding(read, n_layer)
    # Layers that predict further tokens are in the table, but computed in a graph of their own.
    known = architecture in _HELD and read.number("nextn_predict_layers", 0, MAX_LAYERS, 0) == 0

    compressed = architecture in _MLA and read.key("attention.key_length_mla") in fields
    if compressed:
        head_dim_v = 0
    elif not known:
        widths = _heads_by_names(table, n_layer, widest)
        kv = max(head_kv)
        if widths and kv and widths[0] % kv == 0 and widths[1] % kv == 0:
            head_dim_k, head_dim_v = widths[0] // kv, widths[1] // kv
    if head_dim_k == 0:
        raise read.error(read.key("attention.head_count"), n_head[0], f"1 to {n_embd} heads in the first layer")

    return Header(
        architecture=architecture,
        n_layer=n_layer,
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_vocab=embedding.shape[1],
        n_head=n_head,
        head_kv=head_kv,
        head_dim_k=head_dim_k,
        head_dim_v=head_dim_v,
        n_ff=n_ff,
        layer_bytes=tuple(layers),
        expert_bytes=tuple(experts),
        output_bytes=output_bytes,
        token_embd_bytes=input_bytes,
        tied=tied,
        n_swa=n_swa,
        sliding=sliding,
        n_expert=n_expert,
        n_expert_used=max(read.numbers("expert_used_count", n_layer, 0, MAX_EXPERTS, 0)),
        n_ff_exp=_width(table, n_layer, "ffn_down_exps") if n_expert else 0,
        n_ff_shexp=_width(table, n_layer, "ffn_down_shexp") if n_expert else 0,
        head_dim_k_swa=read.number("attention.key_length_swa", 1, MAX_DIMENSION, head_dim_k) if any(sliding) else 0,
        head_dim_v_swa=read.number("attention.value_length_swa", 1, MAX_DIMENSION, head_dim_v) if any(sliding) else 0,
        block_bytes=tuple(sorted(blocks.items())),
        confidence=KNOWN if known else BY_NAMES,
    )


def _width(table: Mapping[str, Tensor], n_layer: int, name: str) -> int:
    """Return what a projection of the first layer that has it takes in, 0 where none has it."""
    tensors = (table.get(f"blk.{layer}.{name}.weight") for layer in range(n_layer))
    return next((tensor.shape[0] for tensor in tensors if tensor), 0)
