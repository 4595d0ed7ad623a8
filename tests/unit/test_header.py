"""What a GGUF's table means, and that absurd values are refused with what was expected."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checker.header import BY_NAMES, KNOWN, Header, HeaderError, Tensor, from_json, from_metadata

sys.path.insert(0, str(Path(__file__).parents[1] / "truth"))

import models

WHERE = "http://mirror/model.gguf"


def table(n_layer: int = 2, n_embd: int = 64, tied: bool = False) -> list[Tensor]:
    tensors = [Tensor("token_embd.weight", (n_embd, 1000), "F16", n_embd * 2000)]
    for layer in range(n_layer):
        for part, rows in (("attn_q", n_embd), ("attn_k", 32), ("attn_v", 16), ("attn_output", n_embd)):
            tensors.append(Tensor(f"blk.{layer}.{part}.weight", (n_embd, rows), "F16", n_embd * rows * 2))
    tensors.append(Tensor("output_norm.weight", (n_embd,), "F32", n_embd * 4))
    if not tied:
        tensors.append(Tensor("output.weight", (n_embd, 1000), "F16", n_embd * 2000))
    return tensors


def fields(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    values = {
        "block_count": 2,
        "context_length": 4096,
        "embedding_length": 64,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        **changes,
    }
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in values.items() if value is not None},
    }


def read(tensors: list[Tensor] | None = None, architecture: str = "llama", **changes: Any) -> Header:
    return from_metadata(fields(architecture, **changes), table() if tensors is None else tensors, WHERE)


def test_bytes_go_to_their_layer_to_the_output_or_to_the_host() -> None:
    header = read()
    layer = 64 * (64 + 32 + 16 + 64) * 2
    assert header.layer_bytes == (layer, layer)
    assert header.output_bytes == 64 * 2000 + 64 * 4
    assert header.token_embd_bytes == 64 * 2000
    assert not header.tied
    assert header.n_vocab == 1000
    assert header.total_bytes == sum(tensor.bytes for tensor in table())


def test_tied_embeddings_are_held_once_more_as_output() -> None:
    header = read(table(tied=True))
    assert header.tied
    assert header.output_bytes == 64 * 2000 + 64 * 4
    assert dict(header.block_bytes)["output"] == 64 * 2000


def test_head_sizes_are_told_by_keys_or_follow_from_the_embedding() -> None:
    assert (read().head_dim_k, read().head_dim_v) == (16, 16)
    header = read(**{"attention.key_length": 128, "attention.value_length": 64})
    assert (header.head_dim_k, header.head_dim_v) == (128, 64)


def test_heads_and_widths_may_differ_by_layer() -> None:
    header = read(**{"attention.head_count_kv": [2, 0], "feed_forward_length": [128, 256]})
    assert header.head_kv == (2, 0)
    assert header.n_ff == (128, 256)
    assert read(**{"attention.head_count_kv": None}).head_kv == (4, 4)


@pytest.mark.parametrize(
    ("architecture", "changes", "n_swa", "sliding"),
    [
        # src/models/*.cpp: every second layer, all but every sixth, three of four in chunks, switched off, none.
        ("gemma2", {}, 4096, [True, False] * 6),
        ("gemma2", {"attention.sliding_window": 512}, 512, [True, False] * 6),
        ("gemma3", {"attention.sliding_window": 1024}, 1024, ([True] * 5 + [False]) * 2),
        ("gemma3", {}, 0, [False] * 12),
        ("gpt-oss", {"attention.sliding_window": 128}, 128, [True, False] * 6),
        ("llama4", {}, 8192, ([True] * 3 + [False]) * 3),
        ("llama4", {"attention.sliding_window": 0}, 0, [False] * 12),
        ("phi3", {"attention.sliding_window": 2047}, 0, [False] * 12),
        ("llama", {"attention.sliding_window": 4096}, 0, [False] * 12),
        (
            "gemma3",
            {"attention.sliding_window": 1024, "attention.sliding_window_pattern": [True] * 11 + [False]},
            1024,
            [True] * 11 + [False],
        ),
        (
            "gemma3",
            {"attention.sliding_window": 1024, "attention.sliding_window_pattern": 3},
            1024,
            [True, True, False] * 4,
        ),
    ],
)
def test_which_layers_slide_is_the_architectures(
    architecture: str, changes: dict[str, Any], n_swa: int, sliding: list[bool]
) -> None:
    header = read(table(12), architecture, block_count=12, **changes)
    assert header.n_swa == n_swa
    assert list(header.sliding) == sliding
    assert header.confidence == KNOWN


def test_experts_are_counted_apart() -> None:
    experts = [
        Tensor(f"blk.{layer}.ffn_{part}_exps.weight", (16, 64, 8), "F16", 16 * 64 * 8 * 2)
        for layer in range(2)
        for part in ("up", "gate", "down")
    ]
    header = read([*table(), *experts], expert_count=8, expert_used_count=2)
    assert header.expert_bytes == (3 * 16384, 3 * 16384)
    assert (header.n_expert, header.n_expert_used, header.n_ff_exp) == (8, 2, 16)


def test_an_unknown_architecture_is_read_by_its_tensors_and_says_so() -> None:
    header = read(architecture="brandnew")
    assert header.confidence == BY_NAMES
    # What attn_k and attn_v give, for two heads each.
    assert (header.head_dim_k, header.head_dim_v) == (16, 8)


def test_a_compressed_cache_keeps_k_only() -> None:
    keys = {"attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192}
    header = read(architecture="deepseek2", **keys)
    assert (header.head_dim_k, header.head_dim_v) == (576, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": 0}, r"llama.block_count is 0, expected a whole number from 1 to 512"),
        ({"block_count": -1}, r"llama.block_count is -1, expected"),
        ({"block_count": 2**63}, r"llama.block_count is 9223372036854775808, expected a whole number from 1 to 512"),
        ({"block_count": None}, r"llama.block_count is missing, expected a whole number"),
        ({"block_count": "two"}, r"llama.block_count is 'two', expected a whole number"),
        ({"block_count": True}, r"llama.block_count is True, expected a whole number"),
        ({"block_count": 3}, r"llama.block_count is 3, but layers 2 have no tensors; .*all parts"),
        ({"block_count": 1}, r"tensor blk.1.attn_q.weight is of layer 1, but llama.block_count is 1"),
        ({"context_length": 0}, r"llama.context_length is 0, expected"),
        ({"embedding_length": 2**63}, r"llama.embedding_length is 9223372036854775808, expected"),
        ({"embedding_length": 65}, r"token_embd.weight is of shape \[64, 1000\], expected \[65, vocabulary\]"),
        ({"attention.head_count": 0}, r"llama.attention.head_count is 0, expected at least one head"),
        ({"attention.head_count": None}, r"llama.attention.head_count is missing"),
        ({"attention.head_count_kv": 8}, r"llama.attention.head_count_kv is 8, expected at most 4"),
        ({"attention.head_count_kv": -2}, r"llama.attention.head_count_kv is -2, expected"),
        ({"attention.head_count_kv": [2]}, r"head_count_kv is an array of 1 numbers, expected .* each of 2 layers"),
        ({"attention.head_count_kv": [2, -1]}, r"head_count_kv is an array with -1, expected whole numbers"),
        ({"attention.key_length": 0}, r"llama.attention.key_length is 0, expected"),
        ({"feed_forward_length": -5}, r"llama.feed_forward_length is -5, expected"),
        ({"expert_count": 10**6}, r"llama.expert_count is 1000000, expected a whole number from 0 to 1024"),
    ],
)
def test_absurd_values_are_refused_with_what_was_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HeaderError, match=f"^{WHERE}: .*{message}"):
        read(**changes)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor("blk.0.attn_q.weight", (64, 64), "F16", 8192), r"blk.0.attn_q.weight stands there twice"),
        (Tensor("x", (64,), "F32", 0), r"tensor x has 0 bytes, expected 1 to"),
        (Tensor("x", (64,), "F32", 2**63), r"tensor x has 9223372036854775808 bytes"),
        (Tensor("x", (64, -1), "F32", 256), r"tensor x has shape \[64, -1\], expected positive dimensions"),
        (Tensor("x", (), "F32", 256), r"tensor x has shape \[\], expected positive dimensions"),
        (Tensor("blk.1.ssm_in.weight", (64, 64), "F32", 256), r"is of a recurrent layer \(llama\)"),
    ],
)
def test_absurd_tensors_are_refused(tensor: Tensor, message: str) -> None:
    with pytest.raises(HeaderError, match=f"^{WHERE}: .*{message}"):
        read([*table(), tensor])


def test_a_table_without_embedding_or_an_unnamed_architecture_is_refused() -> None:
    with pytest.raises(HeaderError, match=r"token_embd.weight is missing, expected \[64, vocabulary\]"):
        read([tensor for tensor in table() if tensor.name != "token_embd.weight"])
    with pytest.raises(HeaderError, match=r"general.architecture is None, expected a name"):
        from_metadata({}, table(), WHERE)
    flags = {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True]}
    with pytest.raises(HeaderError, match=r"sliding_window_pattern is an array of 1 flags, expected one for each of 2"):
        read(architecture="gemma3", **flags)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(sorted(fields())),
        st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=3)),
    )
)
def test_no_value_of_a_key_makes_anything_but_a_header_or_a_header_error(changes: dict[str, Any]) -> None:
    try:
        header = from_metadata({**fields(), **changes}, table(), WHERE)
    except HeaderError as error:
        assert str(error).startswith(f"{WHERE}: ")
    else:
        assert header.total_bytes == sum(tensor.bytes for tensor in table())


@pytest.mark.parametrize("name", list(models.MODELS))
def test_headers_of_real_shapes_survive_json(name: str) -> None:
    model = models.MODELS[name]
    tensors = [Tensor(tensor.name, tensor.shape, tensor.type_name, tensor.bytes) for tensor in model.tensors()]
    header = from_metadata(model.metadata(), tensors, name)
    assert header.confidence == KNOWN
    once_more = sum(tensor.bytes for tensor in tensors if tensor.name == "token_embd.weight") if header.tied else 0
    assert header.total_bytes == sum(tensor.bytes for tensor in tensors) + once_more
    document = json.loads(json.dumps(header.to_json()))
    assert from_json(document) == header


def test_a_wrong_document_is_refused() -> None:
    document = read().to_json()
    with pytest.raises(HeaderError, match=r"^cache: no header has mood; known keys: "):
        from_json({**document, "mood": "good"}, "cache")
    with pytest.raises(HeaderError, match=r"^cache: .*n_layer"):
        from_json({key: value for key, value in document.items() if key != "n_layer"}, "cache")
    with pytest.raises(HeaderError, match=r"^cache: layer_bytes has 1 entries, expected one for each of 2 layers"):
        from_json({**document, "layer_bytes": [1]}, "cache")


def test_heads_of_sliding_layers_may_have_another_size() -> None:
    header = replace(read(), sliding=(True, False), head_dim_k_swa=32, head_dim_v_swa=8)
    assert [header.head_dims(layer) for layer in range(2)] == [(32, 8), (16, 16)]


@pytest.mark.parametrize("words", ["{{ lookup('pipe', 'id') }}", "llama\n", "../llama", "a b", "x" * 200])
def test_words_of_a_file_that_are_no_plain_names_are_refused(words: str) -> None:
    with pytest.raises(HeaderError, match=r"general\.architecture is .* expected a name"):
        from_metadata(fields(words), table(), WHERE)
    with pytest.raises(HeaderError, match=r"a tensor is called .* expected a name"):
        from_metadata(fields(), [*table(), Tensor(words, (1,), "F32", 4)], WHERE)
