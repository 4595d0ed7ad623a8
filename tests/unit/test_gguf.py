"""The header summary of a GGUF, on files that the library itself writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy
import pytest

from checker.gguf import header_summary

FLOAT = 4
TIED = {
    "token_embd.weight": 64,
    "blk.0.attn_q.weight": 8,
    "blk.0.ffn_up.weight": 16,
    "blk.1.attn_q.weight": 10,
    "output_norm.weight": 2,
}


def write(path: Path, tensors: Mapping[str, int], n_layer: int = 2) -> Path:
    """Write a GGUF with tensors of so many 32-bit numbers."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(n_layer)
    for name, count in tensors.items():
        writer.add_tensor(name, numpy.zeros(count, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tied_embeddings_weigh_on_the_host_and_with_the_output(tmp_path: Path) -> None:
    assert header_summary(write(tmp_path / "tied.gguf", TIED)) == {
        "architecture": "llama",
        "n_layer": 2,
        "layer_bytes": [24 * FLOAT, 10 * FLOAT],
        "output_bytes": (2 + 64) * FLOAT,
        "token_embd_bytes": 64 * FLOAT,
    }


def test_an_output_of_its_own_is_counted_in_place_of_the_embedding(tmp_path: Path) -> None:
    summary = header_summary(write(tmp_path / "untied.gguf", {**TIED, "output.weight": 32, "rope_freqs.weight": 3}))
    assert summary["output_bytes"] == (2 + 32 + 3) * FLOAT
    assert summary["token_embd_bytes"] == 64 * FLOAT


def test_layers_are_ordered_by_number(tmp_path: Path) -> None:
    layers = {f"blk.{index}.attn_q.weight": index + 1 for index in (10, 2, 0, 1, 11, 9, 8, 7, 6, 5, 4, 3)}
    summary = header_summary(write(tmp_path / "many.gguf", layers, n_layer=12))
    assert summary["layer_bytes"] == [(index + 1) * FLOAT for index in range(12)]


def test_quantised_tensors_weigh_what_they_take_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "quantised.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    numbers = gguf.quants.quantize(numpy.zeros((2, 64), dtype=numpy.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_q.weight", numbers, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # Q8_0: blocks of 32 numbers in 34 bytes
    assert header_summary(path)["layer_bytes"] == [4 * 34]


@pytest.mark.parametrize(
    ("left_out", "n_layer", "found"),
    [("blk.1.", 2, 1), ("blk.0.", 2, 1), ("blk.", 2, 0), ("none", 3, 2)],
    ids=["last", "first", "all", "one more promised"],
)
def test_a_missing_layer_is_refused(tmp_path: Path, left_out: str, n_layer: int, found: int) -> None:
    tensors = {name: count for name, count in TIED.items() if not name.startswith(left_out)}
    path = write(tmp_path / "part-00001-of-00002.gguf", tensors, n_layer)
    with pytest.raises(ValueError, match=f"{path}: tensors of {found} layers, but llama.block_count is {n_layer}"):
        header_summary(path)


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "empty file"), (b"PK\x03\x04" * 20, "GGUF magic invalid")], ids=["empty", "zip"]
)
def test_what_is_not_a_gguf_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        header_summary(path)


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.gguf"):
        header_summary(tmp_path / "absent.gguf")
