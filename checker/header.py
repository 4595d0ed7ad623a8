"""What the planner needs to know of a model: the meaning of a GGUF's key-values and tensor table. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Header:
    """One model as the planner sees it (catalogue, `header:`); bytes are sums over the tensor table, per layer 0..n-1.

    `layer_bytes` has n_layer entries; `expert_bytes` is what of them are tensors of experts (0 in a dense model);
    `output_bytes` is what goes with the output layer (with tied embeddings the embedding matrix once more);
    `token_embd_bytes` stays on the host. `head_kv` is the number of KV heads of each layer (0 where a layer keeps no KV),
    `head_dim_k` and `head_dim_v` their sizes, `sliding` tells which layers see only the last `n_swa` tokens.
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
