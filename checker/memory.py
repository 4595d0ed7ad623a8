"""Placement to bytes: what the layers of a model weigh, and on which device llama.cpp puts them.

The rule is llama.cpp's own (src/llama-model.cpp, `llama_model_base::load_tensors`, engine 0c1e57098): of the
n_layer + 1 layers (the output counts as one) the last `n_gpu_layers` go to the devices in device order, the lower ones
stay on the host; the token embedding always stays on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True)
class Header:
    """What the planner needs of a GGUF header (catalogue, `header:`); bytes are sums over the tensor table.

    `layer_bytes` has n_layer entries; `output_bytes` is what goes with the output layer (with tied embeddings the
    embedding matrix once more); `token_embd_bytes` stays on the host.
    """

    architecture: str
    n_layer: int
    layer_bytes: tuple[int, ...] | None = None
    output_bytes: int | None = None
    token_embd_bytes: int | None = None


@dataclass(frozen=True)
class Weights:
    """Weights in MiB, by device in device order, and on the host."""

    devices_mib: tuple[float, ...]
    host_mib: float


def weights(header: Header, tensor_split: tuple[int, ...]) -> Weights | None:
    """Weigh a whole-layer tensor split; None when the catalogue does not know the tensor table of the model.

    `tensor_split` holds layers per device and adds up to n_gpu_layers, at most n_layer + 1.
    """
    if header.layer_bytes is None or header.output_bytes is None or header.token_embd_bytes is None:
        return None
    layers = (*header.layer_bytes, header.output_bytes)
    start = len(layers) - sum(tensor_split)
    if start < 0:
        raise ValueError(f"tensor split {list(tensor_split)} places more than the {len(layers)} layers there are")
    on_host = sum(layers[:start]) + header.token_embd_bytes
    by_device = []
    for count in tensor_split:
        by_device.append(sum(layers[start : start + count]) / MIB)
        start += count
    return Weights(devices_mib=tuple(by_device), host_mib=on_host / MIB)
