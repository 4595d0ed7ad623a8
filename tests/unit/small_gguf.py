"""Small real GGUFs, written by the library, and sources of bytes in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy

N_LAYER, N_EMBD, N_VOCAB = 2, 32, 64
# A model of two layers: everything that a header needs, and little else.
TENSORS: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (N_VOCAB, N_EMBD),
    **{
        f"blk.{layer}.{part}.weight": (rows, N_EMBD)
        for layer in range(N_LAYER)
        for part, rows in (("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32), ("ffn_up", 96))
    },
    "output_norm.weight": (N_EMBD,),
    "output.weight": (N_VOCAB, N_EMBD),
}
FLOAT = 4


def write(
    path: Path,
    tensors: Mapping[str, tuple[int, ...]] = TENSORS,
    n_layer: int = N_LAYER,
    tokens: int = 3,
    endian: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
    tensors_per_part: int = 0,
) -> list[Path]:
    """Write a model of 32-bit numbers; return its files (several when it is split)."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endian, split_max_tensors=tensors_per_part)
    writer.add_block_count(n_layer)
    writer.add_context_length(4096)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv([2] * n_layer)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token {number}" for number in range(tokens)])
    writer.add_token_types([1] * tokens)
    for name, shape in tensors.items():
        writer.add_tensor(name, numpy.zeros(shape, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}*.gguf"))


class Memory:
    """Bytes in memory as a source; `size` may promise more than there is, which then reads as zeros."""

    def __init__(self, content: bytes, size: int | None = None) -> None:
        self.where = "memory"
        self.size: int | None = len(content) if size is None else size
        self.content = content
        self.given = 0

    def read(self, start: int, length: int) -> bytes:
        end = min(start + length, self.size or 0)
        piece = self.content[start:end]
        piece += bytes(max(end - start, 0) - len(piece))
        self.given += len(piece)
        return piece


def header_bytes(path: Path) -> bytes:
    """Return what comes before the data of the first tensor."""
    reader = gguf.GGUFReader(path)
    return path.read_bytes()[: reader.data_offset]


def key_values(reader: gguf.GGUFReader) -> dict[str, Any]:
    """Return what the library reads, the tokenizer left out."""
    return {
        key: field.contents()
        for key, field in reader.fields.items()
        if not key.startswith(("tokenizer.", "GGUF.")) and key != "general.tags"
    }


def end_of_header(path: Path) -> int:
    """Return where the data begins, from the sizes of the tensors: quicker than the library with many tokens."""
    data = sum(-(-FLOAT * int(numpy.prod(shape)) // 32) * 32 for shape in TENSORS.values())
    return path.stat().st_size - data
