"""Compute buffers: what llama.cpp's scheduler reserves on each device for one micro-batch, by doing what it does.

The size is no closed formula: it is the peak of a best-fit allocator over the lifetimes of a graph's tensors, with
copies of what crosses devices. So the graph is built in outline (shapes only, a few layers of each kind stand for all,
for a layer's tensors are gone before the next one's), split over the back ends and allocated as in llama.cpp 0c1e57098:
src/llama-graph.cpp and src/models/*.cpp (graph), ggml/src/ggml-backend.cpp (`ggml_backend_sched_split_graph`),
ggml/src/ggml-alloc.c (`ggml_gallocr_alloc_graph_impl`), ggml/src/ggml-cuda/fattn.cu
(`ggml_cuda_flash_attn_ext_get_alloc_size`) and ggml-cuda.cu (`offload_op`). All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import eq

# ggml-alloc.c, ggml_op_can_inplace: operations that may write into the memory of what they read.
_IN_PLACE = frozenset(["ADD", "ADD_ID", "CLAMP", "DIV", "MUL", "RMS_NORM", "ROPE", "SCALE", "SOFT_MAX", "UNARY"])
_VIEWS = frozenset(["VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"])
# Alignment of the buffers: CUDA 128 (ggml-cuda.cu, buffer_type_get_alignment), others at most that.
_ALIGNMENT = 128
# ggml-backend.cpp, GGML_SCHED_MAX_COPIES: copies of each input under pipeline parallelism.
_COPIES = 4
# ggml-cuda.cu, GGML_OP_OFFLOAD_MIN_BATCH: rows from which work on weights in host memory goes to the device.
_OFFLOAD_ROWS = 32
# ggml-cuda.cu, MOE_WEIGHTED_REDUCTION_MAX_EXPERTS: up to so many chosen experts are added up by one kernel.
_FUSED_EXPERTS = 15
_F32, _F16, _I32, _I64 = 4, 2, 4, 8


@dataclass(frozen=True)
class Layer:
    """One layer as the graph sees it: where it lies (a device's number, or the host's) and how wide its tensors are.

    `experts_device` is where its experts lie; widths are numbers per token; `n_kv` cells of its KV cache per stream;
    `kv_head_dims` the sizes of one K and one V head; `kv_row_bytes` bytes of one cell of K and of V.
    """

    device: int
    experts_device: int
    n_head: int
    n_head_kv: int
    kv_head_dims: tuple[int, int]
    kv_row_bytes: tuple[int, int]
    n_kv: int
    sliding: bool
    n_ff: int
    n_expert: int
    n_expert_used: int
    n_ff_exp: int
    n_ff_shared: int


@dataclass(frozen=True)
class Work:
    """One micro-batch: everything its compute buffers depend on. `cuda` tells which devices are CUDA's.

    `blocks` has the bytes of the matrices of a layer by name, as `Header.block_bytes`.
    """

    architecture: str
    n_embd: int
    n_vocab: int
    n_tokens: int
    n_outputs: int
    n_streams: int
    layers: tuple[Layer, ...]
    output_device: int
    cuda: tuple[bool, ...]
    flash_attention: bool
    quantised_k: bool
    quantised_v: bool
    f16_k: bool
    f16_v: bool
    pipeline: bool
    sliding_cache: bool
    blocks: tuple[tuple[str, int], ...]


@dataclass(eq=False)
class _Tensor:
    """A tensor of the graph; `buffer` is where it lies already (weights, KV cache), `device` where it is computed.

    What CUDA adds: `cuda_extra` bytes behind the tensor, and `keep`, tensors not to be freed before this one is done.
    """

    op: str
    bytes: int
    layout: object = None
    src: list[_Tensor] = field(default_factory=list)
    view_of: _Tensor | None = None
    rows: int = 0
    is_input: bool = False
    is_output: bool = False
    buffer: int = -1
    is_weight: bool = False
    cuda_extra: int = 0
    keep: list[_Tensor] = field(default_factory=list)
    device: int = -1
    children: int = 0
    views: int = 0
    allocated: bool = False
    place: tuple[int, int] | None = None


class _Graph:
    """Nodes in the order of `ggml_build_forward_expand`: what a tensor needs comes before it, sources from the left."""

    def __init__(self) -> None:
        self.nodes: list[_Tensor] = []
        self.leafs: list[_Tensor] = []
        self._seen: set[int] = set()

    def expand(self, tensor: _Tensor) -> None:
        if id(tensor) in self._seen:
            return
        self._seen.add(id(tensor))
        for source in tensor.src:
            self.expand(source)
        (self.leafs if tensor.op == "NONE" else self.nodes).append(tensor)


class _Builder:
    """Builds the outline of the architecture's graph; what an architecture has is read off its tensors' names."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.graph = _Graph()
        self.n = work.n_tokens
        self.blocks = dict(work.blocks)
        self.host = len(work.cuda)
        self.factors: dict[int, _Tensor] = {}

    # -- elements -----------------------------------------------------------------------------------------------------

    def input(self, size: int) -> _Tensor:
        return _Tensor("NONE", size, is_input=True)

    def node(self, op: str, width: int, rows: int, *src: _Tensor, size: int = _F32) -> _Tensor:
        return _Tensor(op, width * rows * size, (width * rows, size), list(src), rows=rows)

    def view(self, op: str, of: _Tensor, size: int | None = None) -> _Tensor:
        return _Tensor(op, of.bytes if size is None else size, None, [of], view_of=of.view_of or of)

    def weight(self, name: str, device: int) -> _Tensor:
        return _Tensor("NONE", self.blocks.get(name, self.work.n_embd * _F32), buffer=device, is_weight=True)

    def has(self, name: str) -> bool:
        return name in self.blocks

    def mul_mat(self, name: str, device: int, x: _Tensor, width: int, rows: int) -> _Tensor:
        out = self.node("MUL_MAT", width, rows, self.weight(name, device), x)
        return self.biased(out, name, device, width, rows)

    def biased(self, x: _Tensor, name: str, device: int, width: int, rows: int) -> _Tensor:
        bias = f"{name}.bias"
        return self.node("ADD", width, rows, x, self.weight(bias, device)) if self.has(bias) else x

    def rope(self, x: _Tensor, device: int, width: int) -> _Tensor:
        name = next((name for name in ("rope_freqs", "rope_factors_long") if self.has(name)), None)
        # One tensor for all layers of a device, so that it is copied once.
        extra = [self.factors.setdefault(device, self.weight(name, device))] if name else []
        return self.node("ROPE", width, self.n, x, self.positions, *extra)

    def norm(self, x: _Tensor, name: str, device: int, width: int, rows: int) -> _Tensor:
        # A load pins the norm at a layer's start to the layer's device (llama-context.cpp, graph_get_cb). The engine's
        # own estimate loses the pins (ggml_backend_sched_reserve_size resets them), so that a second tensor crosses to
        # the next device; that larger figure is the one to agree with, for the engine judges by it what fits.
        plain = self.node("NORM" if self.work.architecture in _LAYER_NORM else "RMS_NORM", width, rows, x)
        out = self.node("MUL", width, rows, plain, self.weight(name, device))
        return self.biased(out, name, device, width, rows)

    def hadamard(self, x: _Tensor, rotation: _Tensor, width: int) -> _Tensor:
        return self.view("RESHAPE", self.node("MUL_MAT", width, self.n, rotation, self.view("RESHAPE", x)))

    # -- attention ----------------------------------------------------------------------------------------------------

    def attention(self, layer: Layer, x: _Tensor) -> _Tensor:
        work, n = self.work, self.n
        dim_k, dim_v = layer.kv_head_dims
        dim_v = dim_v or dim_k
        wide_q, wide_k, wide_v = layer.n_head * dim_k, layer.n_head_kv * dim_k, layer.n_head_kv * dim_v
        if self.has("attn_qkv"):
            joined = self.mul_mat("attn_qkv", layer.device, x, wide_q + wide_k + wide_v, n)
            # A part's rows are as far apart as the whole's, and so are those of its copy on another device.
            apart = joined.bytes - joined.bytes // n
            q, k, v = (self.view("VIEW", joined, apart + wide * _F32) for wide in (wide_q, wide_k, wide_v))
        else:
            q, k, v = (
                self.view("RESHAPE", self.mul_mat(name, layer.device, x, wide, n))
                for name, wide in (("attn_q", wide_q), ("attn_k", wide_k), ("attn_v", wide_v))
            )
        if self.has("attn_q_norm"):
            q = self.norm(q, "attn_q_norm", layer.device, wide_q, n)
            k = self.norm(k, "attn_k_norm", layer.device, wide_k, n)
        if layer.sliding or work.architecture not in _ROPE_WHERE_SLIDING:
            q, k = self.rope(q, layer.device, wide_q), self.rope(k, layer.device, wide_k)
        if work.quantised_k and dim_k % 64 == 0:
            turn = self.rotation_k[layer.sliding and work.sliding_cache]
            q, k = self.hadamard(q, turn, wide_q), self.hadamard(k, turn, wide_k)
        if work.quantised_v and dim_v % 64 == 0:
            v = self.hadamard(v, self.rotation_v[layer.sliding and work.sliding_cache], wide_v)
        for part in (q, k, v) if work.sliding_cache else (q, v, k):
            self.graph.expand(part)

        cells = layer.n_kv * work.n_streams
        cache_k = _Tensor("NONE", cells * layer.kv_row_bytes[0], buffer=layer.device)
        cache_v = _Tensor("NONE", cells * layer.kv_row_bytes[1], buffer=layer.device)
        indices = self.indices_sliding if layer.sliding and work.sliding_cache else self.indices
        for cache, part, index in ((cache_k, k, indices[0]), (cache_v, v, indices[1])):
            store = self.view("SET_ROWS", cache)
            store.src = [self.view("VIEW", part), index, cache]
            self.graph.expand(store)
        mask = self.mask_sliding if layer.sliding and work.sliding_cache else self.mask
        # Views of the cache: build_attn_mha permutes them, which moves nothing.
        all_k, all_v = (self.view("PERMUTE", self.view("VIEW", cache)) for cache in (cache_k, cache_v))
        asked = self.view("PERMUTE", self.view("VIEW", q))
        if work.flash_attention:
            sinks = [self.weight("attn_sinks", layer.device)] if self.has("attn_sinks") else []
            out = self.node("FLASH_ATTN_EXT", layer.n_head * dim_v, n, asked, all_k, all_v, mask, *sinks)
            # fattn-common.cuh, get_f16_extra_data: kernels that read f16 get a copy of a cache of another type.
            for f16, wide in ((work.f16_k, wide_k), (work.f16_v, wide_v)):
                out.cuda_extra += 0 if f16 else cells * wide * _F16
            out = self.view("RESHAPE", out)
        else:
            scores = self.node("MUL_MAT", layer.n_kv * layer.n_head, n, all_k, asked)
            scores = self.node("SOFT_MAX", layer.n_kv * layer.n_head, n, scores, mask)
            mixed = self.node("MUL_MAT", layer.n_head * dim_v, n, all_v, scores)
            out = self.node("CONT", layer.n_head * dim_v, n, self.view("PERMUTE", mixed))
        self.graph.expand(out)
        if work.quantised_v and dim_v % 64 == 0:
            turn = self.rotation_v[layer.sliding and work.sliding_cache]
            out = self.hadamard(out, turn, layer.n_head * dim_v)
        return self.mul_mat("attn_output", layer.device, out, work.n_embd, n)

    # -- feed-forward -------------------------------------------------------------------------------------------------

    def feed_forward(self, layer: Layer, x: _Tensor, rows: int) -> _Tensor:
        if layer.n_expert:
            out = self.experts(layer, x, rows)
            if layer.n_ff_shared:
                shared = self.dense(layer, x, rows, layer.n_ff_shared, "_shexp")
                out = self.node("ADD", self.work.n_embd, rows, out, shared)
            return out
        return self.dense(layer, x, rows, layer.n_ff, "")

    def dense(self, layer: Layer, x: _Tensor, rows: int, width: int, suffix: str) -> _Tensor:
        if self.has(f"ffn_gate{suffix}"):
            up = self.mul_mat(f"ffn_up{suffix}", layer.device, x, width, rows)
            gate = self.mul_mat(f"ffn_gate{suffix}", layer.device, x, width, rows)
            inner = self.node("GLU", width, rows, gate, up)
        elif self.work.architecture in _FUSED_GATE:
            up = self.mul_mat(f"ffn_up{suffix}", layer.device, x, 2 * width, rows)
            inner = self.node("GLU", width, rows, up)
        else:
            up = self.mul_mat(f"ffn_up{suffix}", layer.device, x, width, rows)
            inner = self.node("UNARY", width, rows, up)
        return self.mul_mat(f"ffn_down{suffix}", layer.device, inner, self.work.n_embd, rows)

    def experts(self, layer: Layer, x: _Tensor, rows: int) -> _Tensor:
        used, n_embd = layer.n_expert_used, self.work.n_embd
        scores = self.mul_mat("ffn_gate_inp", layer.device, x, layer.n_expert, rows)
        late = self.work.architecture in _SOFT_MAX_LATE
        before = self.work.architecture in _WEIGHTED_BEFORE
        odds = scores if late else self.node("SOFT_MAX", layer.n_expert, rows, scores)
        sorted_ = self.node("ARGSORT", layer.n_expert, rows, scores if before else odds)
        chosen = self.view("VIEW", sorted_)
        picked = weights = self.node("GET_ROWS", used, rows, self.view("RESHAPE", odds), chosen)
        routed = [scores, odds, sorted_, picked]
        if late:
            weights = self.view("RESHAPE", self.node("SOFT_MAX", used, rows, self.view("RESHAPE", weights)))
        if self.work.architecture in _WEIGHTS_NORMED:
            flat = self.view("RESHAPE", weights)
            summed = self.node("SUM_ROWS", 1, rows, flat)
            total = self.node("CLAMP", 1, rows, summed)
            divided = self.node("DIV", used, rows, flat, total)
            weights = self.view("RESHAPE", divided)
            routed += [summed, total, divided]
        self.graph.expand(weights)

        def mul_mat_id(name: str, x: _Tensor, width: int) -> _Tensor:
            out = self.node("MUL_MAT_ID", width * used, rows, self.weight(name, layer.experts_device), x, chosen)
            if not self.has(f"{name}.bias"):
                return out
            bias = self.weight(f"{name}.bias", layer.experts_device)
            return self.node("ADD_ID", width * used, rows, out, bias, chosen)

        flat = self.view("RESHAPE", x)
        # ggml-cuda.cu, graph_optimize: what the fused kernels for routing and for the weighted sum read stays.
        if before:
            repeated = self.node("REPEAT", n_embd * used, rows, flat)
            flat = self.node("MUL", n_embd * used, rows, repeated, weights)
        if not late and not before and (layer.n_expert & (layer.n_expert - 1) == 0 or layer.n_expert in (288, 576)):
            flat.keep = routed
        if self.has("ffn_gate_up_exps"):
            joined = mul_mat_id("ffn_gate_up_exps", flat, 2 * layer.n_ff_exp)
            half = joined.bytes // 2
            inner = self.node(
                "GLU",
                layer.n_ff_exp * used,
                rows,
                self.view("VIEW", joined, half),
                self.view("VIEW", joined, half),
            )
        else:
            up = mul_mat_id("ffn_up_exps", flat, layer.n_ff_exp)
            if self.has("ffn_gate_exps"):
                gate = mul_mat_id("ffn_gate_exps", flat, layer.n_ff_exp)
                inner = self.node("GLU", layer.n_ff_exp * used, rows, gate, up)
            else:
                inner = self.node("UNARY", layer.n_ff_exp * used, rows, up)
        down = mul_mat_id("ffn_down_exps", inner, n_embd)
        mixed = down if before else self.node("MUL", n_embd * used, rows, down, weights)
        self.graph.expand(mixed)
        parts = [self.view("VIEW", mixed, n_embd * rows * _F32) for _ in range(used)]
        for part in parts:
            self.graph.expand(part)
        total = parts[0]
        for part in parts[1:]:
            total = self.node("ADD", n_embd, rows, total, part)
            self.graph.expand(total)
        if 2 <= used <= _FUSED_EXPERTS and not before:
            total.keep = [mixed]
        return total if used > 1 else self.node("CONT", n_embd, rows, total)

    # -- the whole ----------------------------------------------------------------------------------------------------

    def build(self) -> _Graph:
        work, n, n_embd = self.work, self.n, self.work.n_embd
        tokens, vectors = self.input(n * _I32), self.input(n * n_embd * _F32)
        table = _Tensor("NONE", 0, buffer=self.host, is_weight=True)
        x = self.node("GET_ROWS", n_embd, n, table, tokens)
        self.graph.expand(x)
        self.graph.expand(vectors)
        if work.architecture.startswith("gemma"):
            x = self.node("SCALE", n_embd, n, x)
            self.graph.expand(x)
        self.positions = self.input(n * _I32)
        self.rotation_k = tuple(self.input(_rotation(work.layers) ** 2 * _F32) for _ in range(2))
        self.rotation_v = tuple(self.input(64 * 64 * _F32) for _ in range(2))
        mask_size = _F16 if work.flash_attention else _F32
        plain = next((layer for layer in work.layers if not layer.sliding), work.layers[0])
        slid = next((layer for layer in work.layers if layer.sliding), work.layers[0])
        wide_v = max(layer.n_head_kv * (layer.kv_head_dims[1] or layer.kv_head_dims[0]) for layer in work.layers)
        v_indices = n * _I64 * (1 if work.flash_attention else wide_v)
        self.indices = self.input(n * _I64), self.input(v_indices)
        self.mask = self.input(plain.n_kv * n * mask_size)
        self.indices_sliding = self.input(n * _I64), self.input(v_indices)
        self.mask_sliding = self.input(slid.n_kv * n * mask_size)
        out_ids = self.input(work.n_outputs * _I32)

        late = work.architecture in _LATE_OUTPUTS
        for index, layer in enumerate(work.layers):
            x = self.layer(layer, x, out_ids if index == len(work.layers) - 1 and not late else None)
        rows = work.n_outputs
        x = self.node("GET_ROWS", n_embd, rows, x, out_ids) if late else x
        x = self.norm(x, "output_norm", work.output_device, n_embd, rows)
        x = self.mul_mat("output", work.output_device, x, work.n_vocab, rows)
        x.is_output = True
        self.graph.expand(x)
        return self.graph

    def layer(self, layer: Layer, x: _Tensor, out_ids: _Tensor | None) -> _Tensor:
        n_embd, rows = self.work.n_embd, self.n
        residual = x
        normed = self.norm(x, "attn_norm", layer.device, n_embd, rows) if self.has("attn_norm") else x
        out = self.attention(layer, normed)
        parallel = not (self.has("ffn_norm") or self.has("post_attention_norm"))
        if out_ids is not None:
            rows = self.work.n_outputs
            out = self.node("GET_ROWS", n_embd, rows, out, out_ids)
            residual = self.node("GET_ROWS", n_embd, rows, residual, out_ids)
            normed = self.node("GET_ROWS", n_embd, rows, normed, out_ids) if parallel else normed
        if parallel:
            ffn = self.feed_forward(layer, normed, rows)
            branches = {"attention": out, "ffn": ffn, "residual": residual}
            first, second, third = (branches[name] for name in _BRANCHES.get(self.work.architecture, _FFN_FIRST))
            return self.node("ADD", n_embd, rows, self.node("ADD", n_embd, rows, first, second), third)
        if self.has("post_attention_norm") and self.has("ffn_norm"):
            out = self.norm(out, "post_attention_norm", layer.device, n_embd, rows)
        between = self.node("ADD", n_embd, rows, out, residual)
        name = "ffn_norm" if self.has("ffn_norm") else "post_attention_norm"
        ffn = self.feed_forward(layer, self.norm(between, name, layer.device, n_embd, rows), rows)
        if self.has("post_ffw_norm"):
            ffn = self.norm(ffn, "post_ffw_norm", layer.device, n_embd, rows)
        pair = (between, ffn) if self.work.architecture in _RESIDUAL_FIRST else (ffn, between)
        return self.node("ADD", n_embd, rows, *pair)


# What src/models/*.cpp do differently, where it moves a peak:
# LayerNorm, which is not computed in place;
_LAYER_NORM = frozenset(
    ["cohere2", "command-r", "falcon", "olmo", "orion", "phi2", "stablelm", "starcoder", "starcoder2"]
)
# the rows that logits are wanted of are taken after the last layer, not within it;
_LATE_OUTPUTS = frozenset(["deepseek2", "gpt-oss"])
# the residual is the first operand of the sum, so that its memory is written into;
_RESIDUAL_FIRST = frozenset(["phi3"])
# the branches of a layer with one norm for both are added up in another order;
_FFN_FIRST = ("ffn", "attention", "residual")
_BRANCHES = {
    "cohere2": ("ffn", "residual", "attention"),
    "command-r": ("ffn", "residual", "attention"),
    "phi2": ("attention", "ffn", "residual"),
}
# layers that see everything have no RoPE;
_ROPE_WHERE_SLIDING = frozenset(["cohere2"])
# what goes into the experts is weighted, not what comes out;
_WEIGHTED_BEFORE = frozenset(["llama4"])
# experts' weights: soft-maxed when chosen, or divided by their sum;
_SOFT_MAX_LATE = frozenset(["gpt-oss"])
_WEIGHTS_NORMED = frozenset(["llama", "phi3", "phimoe", "qwen3moe"])


def _rotation(layers: Sequence[Layer]) -> int:
    """Return the rank of the rotation of a quantised K (llama-kv-cache.cpp, build_input_k_rot)."""
    rank = 64
    while layers[0].kv_head_dims[0] % (2 * rank) == 0:
        rank *= 2
    return rank


# ffn_up holds gate and up in one (src/models/phi3.cpp, LLM_FFN_SWIGLU; glm4).
_FUSED_GATE = frozenset(["phi3", "glm4"])


class _Buffer:
    """ggml_dyn_tallocr: best fit among the free blocks, the last of which is endless; remembers how far it was used."""

    def __init__(self) -> None:
        self.free: list[list[int]] = [[0, 1 << 62]]
        self.peak = 0

    def take(self, size: int) -> tuple[int, int]:
        size = -(-size // _ALIGNMENT) * _ALIGNMENT
        best = -1
        for index in range(len(self.free) - 1):
            available = self.free[index][1]
            if available >= size and (best < 0 or available <= self.free[best][1]):
                best = index
        best = len(self.free) - 1 if best < 0 else best
        block = self.free[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            del self.free[best]
        self.peak = max(self.peak, offset + size)
        return offset, size

    def give(self, offset: int, size: int) -> None:
        size = -(-size // _ALIGNMENT) * _ALIGNMENT
        if not size:
            return
        index = 0
        while index < len(self.free) and self.free[index][0] < offset:
            index += 1
        self.free.insert(index, [offset, size])
        if index + 1 < len(self.free) and offset + size == self.free[index + 1][0]:
            self.free[index][1] += self.free.pop(index + 1)[1]
        if index and self.free[index - 1][0] + self.free[index - 1][1] == self.free[index][0]:
            self.free[index - 1][1] += self.free.pop(index)[1]


class _Scheduler:
    """ggml_backend_sched: gives every node a back end, copies what crosses between them, and lays out the buffers."""

    def __init__(self, work: Work, graph: _Graph) -> None:
        self.work, self.graph = work, graph
        self.host = len(work.cuda)
        self.copies = _COPIES if work.pipeline else 1

    def assign(self) -> None:
        for tensor in (*self.graph.leafs, *self.graph.nodes):
            if tensor.device < 0:
                tensor.device = self._from_current(tensor)
        nodes = [node for node in self.graph.nodes if node.op not in _VIEWS]
        for order, skip_host in ((1, True), (-1, True), (1, False), (-1, False)):
            current = -1
            for node in nodes[::order]:
                if node.device >= 0:
                    current = -1 if skip_host and node.device == self.host else node.device
                elif current >= 0:
                    node.device = current
        for node in self.graph.nodes:
            if node.device < 0:
                node.device = node.view_of.device if node.view_of and node.view_of.device >= 0 else self.host
            for source in node.src:
                if source.device < 0:
                    source.device = source.view_of.device if source.view_of is not None else node.device

    def _from_current(self, tensor: _Tensor) -> int:
        if tensor.buffer >= 0:
            return tensor.buffer
        if tensor.view_of is not None and tensor.view_of.buffer >= 0:
            return tensor.view_of.buffer
        if tensor.is_input:
            return self.host
        if tensor.op in ("ROPE", "FLASH_ATTN_EXT"):
            return -1
        for source in tensor.src:
            if source.is_weight:
                if source.buffer == self.host and tensor.op != "GET_ROWS" and tensor.rows >= _OFFLOAD_ROWS:
                    for device, cuda in enumerate(self.work.cuda):
                        if cuda:
                            return device
                return source.buffer
        return -1

    def split(self) -> tuple[list[_Tensor], list[_Tensor]]:
        """Return nodes and leafs with the copies of what crosses back ends, in the order of allocation."""
        copied: dict[tuple[int, int], _Tensor] = {}
        extra: list[_Tensor] = []
        order: list[_Tensor] = []
        pending: list[_Tensor] = []
        inputs: list[_Tensor] = []
        current = next(node.device for node in self.graph.nodes if node.op not in _VIEWS)

        def flush() -> None:
            for source in inputs:
                hold = _Tensor("NONE", 0, src=[source], view_of=source.view_of or source, device=source.device)
                order.extend((hold, copied[id(source), current]))
            order.extend(pending)
            pending.clear()
            inputs.clear()

        def add(node: _Tensor) -> None:
            pending.append(node)
            if node.keep and current < self.host and self.work.cuda[current]:
                # Of the weighted sum: the operands of the product, as they are after copies were put in.
                held = node.keep[0].src if node.op == "ADD" else node.keep
                pending.append(_Tensor("NONE", 0, src=held, view_of=held[0].view_of or held[0], device=current))

        for node in self.graph.nodes:
            if node.op in _VIEWS:
                add(node)
                continue
            foreign = any(s.is_weight and s.device != node.device for s in node.src)
            if node.device != current or (inputs and foreign):
                flush()
                current = node.device
            for position, source in enumerate(node.src):
                if source.device == current:
                    continue
                key = id(source), current
                if key not in copied:
                    for number in range(self.copies):
                        copy = _Tensor("NONE", source.bytes, source.layout, device=current)
                        if self.copies > 1:
                            copy.is_input = copy.is_output = True
                            extra.append(copy)
                        if number == 0:
                            copied[key] = copy
                    inputs.append(source)
                node.src[position] = copied[key]
            add(node)
        flush()
        leafs = []
        if self.copies > 1:
            for leaf in self.graph.leafs:
                if leaf.is_input:
                    leaf.is_output = True
                    leafs.append(leaf)
                    leafs += [
                        _Tensor("NONE", leaf.bytes, is_input=True, is_output=True, device=leaf.device)
                        for _ in range(self.copies - 1)
                    ]
        return order, [*leafs, *extra, *self.graph.leafs]

    def allocate(self, nodes: Sequence[_Tensor], leafs: Sequence[_Tensor]) -> list[int]:
        """Lay out all tensors as `ggml_gallocr_alloc_graph_impl` does; return the peak of each back end's buffer."""
        buffers = [_Buffer() for _ in range(self.host + 1)]

        def size(tensor: _Tensor) -> int:
            on_cuda = tensor.device < self.host and self.work.cuda[tensor.device]
            return tensor.bytes + (tensor.cuda_extra if on_cuda else 0)

        def place(tensor: _Tensor) -> None:
            if tensor.buffer >= 0 or tensor.allocated or tensor.view_of is not None or tensor.place is not None:
                return
            tensor.allocated = True
            if tensor.op in _IN_PLACE:
                for parent in tensor.src:
                    # A view owns nothing (ggml_gallocr_is_own), so its memory is never written into.
                    if not parent.allocated or parent.is_output or parent.layout != tensor.layout:
                        continue
                    if parent.children != 1 or parent.views:
                        continue
                    tensor.place, tensor.device, parent.allocated = parent.place, parent.device, False
                    return
            tensor.place = buffers[tensor.device].take(size(tensor))

        def drop(tensor: _Tensor) -> None:
            if tensor.is_output or not tensor.allocated or tensor.place is None:
                return
            buffers[tensor.device].give(tensor.place[0], size(tensor))
            tensor.allocated = False

        for leaf in leafs:
            place(leaf)
        for node in nodes:
            if node.view_of is not None and node.op != "NONE":
                node.view_of.views += 1
            for source in node.src:
                source.children += 1
                if source.is_input:
                    place(source)
        for node in nodes:
            for source in node.src:
                place(source)
            place(node)
            for source in node.src:
                source.children -= 1
                if source.children or source.views:
                    continue
                root = source.view_of
                if root is not None:
                    root.views -= 1
                    if not root.views and not root.children:
                        drop(root)
                else:
                    drop(source)
        return [buffer.peak for buffer in buffers]


def _representatives(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Keep of each run of layers on one device as many as its peak depends on.

    Kinds of layers come back after a period, and what lies where alternates from layer to layer: whole periods, an even
    number of layers, can be left out once every kind was there twice.
    """
    kept: list[Layer] = []
    start = 0
    for end in range(1, len(layers) + 1):
        if end < len(layers) and layers[end].device == layers[start].device:
            continue
        run = layers[start:end]
        period = next(step for step in range(1, len(run) + 1) if all(map(eq, run, run[step:])))
        step = period if period % 2 == 0 else 2 * period
        least = max(2 * period, 3)
        kept += run if len(run) < least else run[: least + (len(run) - least) % step]
        start = end
    return tuple(kept)


def buffers(work: Work) -> tuple[int, ...]:
    """Return the bytes of each device's compute buffer, and last the host's."""
    return _buffers(replace(work, layers=_representatives(work.layers)))


@lru_cache(maxsize=4096)
def _buffers(work: Work) -> tuple[int, ...]:
    graph = _Builder(work).build()
    scheduler = _Scheduler(work, graph)
    scheduler.assign()
    nodes, leafs = scheduler.split()
    return tuple(scheduler.allocate(nodes, leafs))
