"""Header of a GGUF file: what its layers weigh, summed over the tensor table, never guessed from a name.

Which tensor belongs to which layer follows llama.cpp (src/llama-model.cpp, `create_tensor`, engine 0c1e57098):
`blk.N.*` is layer N; `token_embd.weight` stays on the host; all else (`output.weight`, `output_norm.weight`, ...) goes
with the output layer. A model without `output.weight` has tied embeddings: the embedding matrix is loaded once more as
output.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import gguf

_EMBEDDING = "token_embd.weight"
_OUTPUT = "output.weight"


def header_summary(path: Path) -> dict[str, Any]:
    """Summarise a local GGUF as the catalogue's `header:` (architecture, n_layer, bytes by layer).

    ValueError when the file has no layers or lacks one of them, for instance the first part of a split GGUF.
    """
    reader = gguf.GGUFReader(str(path))
    architecture = str(reader.fields["general.architecture"].contents())
    n_layer = int(reader.fields[f"{architecture}.block_count"].contents())
    layers: dict[int, int] = defaultdict(int)
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
    output = 0
    for name, size in sizes.items():
        layer = re.match(r"blk\.(\d+)\.", name)
        if layer:
            layers[int(layer.group(1))] += size
        elif name != _EMBEDDING:
            output += size
    if sorted(layers) != list(range(n_layer)):
        raise ValueError(f"{path}: tensors of {len(layers)} layers, but {architecture}.block_count is {n_layer}")
    embedding = sizes.get(_EMBEDDING, 0)
    return {
        "architecture": architecture,
        "n_layer": n_layer,
        "layer_bytes": [layers[index] for index in range(n_layer)],
        "output_bytes": output if _OUTPUT in sizes else output + embedding,
        "token_embd_bytes": embedding,
    }
