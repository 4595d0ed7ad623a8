"""Headers of local GGUFs: files that the library writes, and what is wrong with others."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import numpy
import pytest
import small_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from small_gguf import FLOAT, N_EMBD, N_VOCAB, TENSORS, Memory, write

from checker.gguf import HEADER_LIMIT, GgufError, joined, part_names, part_urls, read_header, read_part
from checker.header import HeaderError

LAYER_BYTES = (32 + 16 + 16 + 32 + 96) * N_EMBD * FLOAT
MATRIX_BYTES = N_VOCAB * N_EMBD * FLOAT
GEMMA = Path("~/.cache/llama-tiers/mirror/models/gemma-3-270m-it-Q4_K_M.gguf").expanduser()


@pytest.fixture(scope="module")
def header() -> bytes:
    """Return the header of a small model, without its data."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return small_gguf.header_bytes(write(Path(folder) / "small.gguf")[0])


def damaged(content: bytes, at: int, form: str, value: int) -> bytes:
    """Put a number into a file."""
    changed = bytearray(content)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


def test_bytes_are_summed_by_layer_and_place(tmp_path: Path) -> None:
    found = read_header(write(tmp_path / "small.gguf")[0])

    assert (found.architecture, found.n_layer, found.n_embd, found.n_vocab) == ("llama", 2, N_EMBD, N_VOCAB)
    assert found.layer_bytes == (LAYER_BYTES, LAYER_BYTES)
    assert found.token_embd_bytes == MATRIX_BYTES
    assert found.output_bytes == MATRIX_BYTES + N_EMBD * FLOAT
    assert found.head_kv == (2, 2)
    assert not found.tied


def test_the_path_may_be_a_string(tmp_path: Path) -> None:
    path = write(tmp_path / "small.gguf")[0]
    assert read_header(str(path)) == read_header(path)


def test_tied_embeddings_weigh_on_the_host_and_with_the_output(tmp_path: Path) -> None:
    tensors = {name: shape for name, shape in TENSORS.items() if name != "output.weight"}
    found = read_header(write(tmp_path / "tied.gguf", tensors)[0])

    assert found.tied
    assert found.token_embd_bytes == MATRIX_BYTES
    assert found.output_bytes == MATRIX_BYTES + N_EMBD * FLOAT


def test_quantised_tensors_weigh_what_they_take_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "quantised.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    numbers = gguf.quants.quantize(numpy.zeros((2, 64), dtype=numpy.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_q.weight", numbers, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    (tensor,) = read_part(Memory(path.read_bytes())).tensors
    # Q8_0: blocks of 32 numbers in 34 bytes
    assert (tensor.shape, tensor.type_name, tensor.bytes) == ((64, 2), "Q8_0", 4 * 34)


@pytest.mark.parametrize("tokens", [3, 5_000])
def test_both_readers_say_the_same(tmp_path: Path, tokens: int) -> None:
    path = write(tmp_path / "small.gguf", tokens=tokens)[0]
    part = read_part(Memory(path.read_bytes()))
    library = gguf.GGUFReader(path)

    expected = [
        (tensor.name, tuple(int(size) for size in tensor.shape), tensor.tensor_type.name, int(tensor.n_bytes))
        for tensor in library.tensors
    ]
    assert [(tensor.name, tensor.shape, tensor.type_name, tensor.bytes) for tensor in part.tensors] == expected
    assert part.fields == small_gguf.key_values(library)


@pytest.mark.skipif(not GEMMA.is_file(), reason="the demonstration's model is not here (make demo fetches it)")
def test_a_real_vocabulary_of_262144_tokens_takes_less_than_a_second() -> None:
    began = time.monotonic()
    read_header(GEMMA)
    assert time.monotonic() - began < 1


# --- split models ---


@pytest.mark.parametrize("named", [0, 1, -1])
def test_any_part_of_a_split_model_names_it(tmp_path: Path, named: int) -> None:
    whole = read_header(write(tmp_path / "whole.gguf")[0])
    parts = write(tmp_path / "split.gguf", tensors_per_part=5)

    assert [path.name for path in parts] == [f"split-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert read_header(parts[named]) == whole


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = write(tmp_path / "split.gguf", tensors_per_part=5)
    parts[1].unlink()
    with pytest.raises(GgufError, match=r"split-00002-of-00003\.gguf does not exist"):
        read_header(parts[0])


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    parts = write(tmp_path / "split.gguf", tensors_per_part=5)
    alone = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(GgufError, match=r"model\.gguf: split\.count says 3 parts, but 1 were read"):
        read_header(alone)


def test_parts_in_another_order_are_refused(tmp_path: Path) -> None:
    first, second, third = write(tmp_path / "split.gguf", tensors_per_part=5)
    content = second.read_bytes()
    second.write_bytes(third.read_bytes())
    third.write_bytes(content)
    with pytest.raises(GgufError, match=r"part 2 says split\.no 2, expected 1"):
        read_header(first)


def test_names_of_parts() -> None:
    assert part_names("model.gguf") == ["model.gguf"]
    assert part_names("m-00002-of-00002.gguf") == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert part_urls("https://host/a/m-00001-of-00002.gguf?download=true")[1] == (
        "https://host/a/m-00002-of-00002.gguf?download=true"
    )
    for wrong in ("m-00003-of-00002.gguf", "m-00000-of-00002.gguf"):
        with pytest.raises(GgufError, match="there is no part"):
            part_names(wrong)


# --- what is no header ---


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty, expected a GGUF"),
        (b"PK\x03\x04" * 20, "it is no GGUF: it begins with 'PK"),
        (b"<!DOCTYPE html><title>Sign in</title>", "it begins with '<!DOCTYPE html><title>Sign in"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it begins with 'version https://git-lfs"),
        (b"GGUF", "ends at 4"),
        (b"GGUF\x03\x00\x00\x00\x01", "ends at 9"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "version 1, expected 2 or 3"),
        (b"GGUF" + struct.pack("<I", 4) + bytes(16), "version 4, expected 2 or 3"),
        (b"GGUF" + struct.pack("<I", 0) + bytes(16), "version 0, expected 2 or 3"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
    ],
)
def test_what_is_not_a_gguf_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError) as refused:
        read_header(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert said in str(refused.value)


def test_a_file_for_big_endian_machines_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "big.gguf", endian=gguf.GGUFEndian.BIG)[0]
    with pytest.raises(GgufError, match="big-endian machines; expected a little-endian one"):
        read_header(path)


@pytest.mark.parametrize(
    ("at", "what"),
    [(8, "tensors"), (16, "key-values")],
)
@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 2**31, 10**6])
def test_absurd_counts_are_refused_at_once(header: bytes, at: int, what: str, count: int) -> None:
    source = Memory(damaged(header, at, "<Q", count))
    with pytest.raises(GgufError, match=f"it says that it has {count:,} {what}"):
        read_part(source)
    assert source.given <= len(header)


def test_an_absurd_count_is_refused_in_a_large_file_too(header: bytes) -> None:
    source = Memory(damaged(header, 8, "<Q", 10**8), size=9 * 10**9)
    with pytest.raises(GgufError, match="it says that it has 100,000,000 tensors"):
        read_part(source)


@pytest.mark.parametrize("length", [2**63, 2**32, 70_000])
def test_an_absurd_length_of_a_key_is_refused(header: bytes, length: int) -> None:
    source = Memory(damaged(header, 24, "<Q", length), size=9 * 10**9)
    with pytest.raises(
        GgufError, match=f"the key of key-value 1 of [0-9]+ has {length:,} bytes, expected at most 65,535"
    ):
        read_part(source)


def place_of(header: bytes, name: str) -> int:
    """Return where the entry of a tensor goes on behind its name."""
    return header.index(name.encode()) + len(name)


@pytest.mark.parametrize(
    ("name", "behind", "form", "value", "said"),
    [
        ("blk.1.attn_q.weight", 20, "<I", 77, "is of ggml type 77, which gguf .* does not know"),
        ("blk.1.attn_q.weight", 20, "<I", 4, "is of ggml type 4, which gguf .* does not know"),
        ("blk.1.attn_q.weight", 20, "<I", 12, r"has rows of 32, expected a multiple of 256 \(Q4_K\)"),
        ("blk.1.attn_q.weight", 0, "<I", 5, "has 5 dimensions, expected 1 to 4"),
        ("blk.1.attn_q.weight", 0, "<I", 2**31, "dimensions, expected 1 to 4"),
        ("blk.1.attn_q.weight", 4, "<Q", 2**63, "has shape .* expected dimensions of 1"),
        ("blk.1.attn_q.weight", 4, "<Q", 0, "has shape .* expected dimensions of 1"),
        ("blk.1.attn_q.weight", 4, "<Q", 64, "the data of tensor blk.1.attn_k.weight is at .*, expected"),
        ("blk.1.attn_q.weight", 24, "<Q", 3, "the data of tensor blk.1.attn_q.weight is at 3, expected"),
        ("blk.1.attn_q.weight", -19 - 8, "<Q", 64, "the name of tensor .* has 64 bytes, expected at most 63"),
        ("blk.1.attn_q.weight", -15, "<B", ord("0"), "stands there twice|of layer 0"),
    ],
)
def test_a_damaged_tensor_is_named(header: bytes, name: str, behind: int, form: str, value: int, said: str) -> None:
    with pytest.raises(GgufError, match=said):
        read_part(Memory(damaged(header, place_of(header, name) + behind, form, value)))


@pytest.mark.parametrize(
    ("key", "behind", "value", "said"),
    [
        ("llama.block_count", 0, 99, "the value of llama.block_count is of type 99, expected 0 to 12"),
        ("llama.attention.head_count_kv", 4, 9, "is an array of arrays, expected numbers or strings"),
        ("llama.attention.head_count_kv", 8, 900, "it says that it has 900 numbers in the value of llama.attention"),
        ("tokenizer.ggml.model", 4, 2**31, "has 2,147,483,648 bytes, expected at most"),
    ],
)
def test_a_damaged_value_is_named(header: bytes, key: str, behind: int, value: int, said: str) -> None:
    with pytest.raises(GgufError, match=said):
        read_part(Memory(damaged(header, place_of(header, key) + behind, "<I", value)))


def test_an_absurd_array_is_refused(header: bytes) -> None:
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        source = Memory(damaged(header, place_of(header, key) + 8, "<Q", 2**63), size=9 * 10**9)
        with pytest.raises(GgufError, match=f"(strings|numbers) in the value of {key}"):
            read_part(source)


def test_an_absurd_alignment_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint32("general.alignment", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(GgufError, match=r"general\.alignment is 3, expected a power of two"):
        read_part(Memory(path.read_bytes()))


@pytest.mark.parametrize("tensors_per_part", [0, 5], ids=["whole", "split"])
def test_a_file_that_ends_before_its_last_tensor_is_refused(tmp_path: Path, tensors_per_part: int) -> None:
    files = write(tmp_path / "model.gguf", tensors_per_part=tensors_per_part)
    last = files[-1]
    assert read_header(files[0])
    whole = last.read_bytes()
    last.write_bytes(whole[:-1000])
    with pytest.raises(GgufError) as refused:
        read_header(files[0])
    assert str(refused.value) == (
        f"{last}: it ends 1,000 bytes before its last tensor does; expected a whole GGUF: was it fetched to its end?"
    )


@pytest.mark.parametrize("name", ["absent.gguf", "."])
def test_what_is_no_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(GgufError, match=r"does not exist|is no file"):
        read_header(tmp_path / name)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_missing_layer_is_refused(tmp_path: Path, layer: int) -> None:
    tensors = {name: shape for name, shape in TENSORS.items() if not name.startswith(f"blk.{layer}.")}
    path = write(tmp_path / "cut.gguf", tensors)[0]
    with pytest.raises(HeaderError, match=f"{path}: .*layers {layer} have no tensors"):
        read_header(path)


def test_every_truncation_is_an_error_that_says_so(header: bytes) -> None:
    end_of_table = len(header.rstrip(b"\x00"))
    for length in range(0, end_of_table - 8, 7):
        with pytest.raises(GgufError, match="expected"):
            read_part(Memory(header[:length]))


@settings(max_examples=500, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    end=st.one_of(st.none(), st.integers(0, 10**6)),
    promised=st.sampled_from([None, 10**6, 9 * 10**9]),
)
def test_damage_of_any_kind_is_refused_or_harmless(
    header: bytes, flips: list[tuple[int, int]], end: int | None, promised: int | None
) -> None:
    changed = bytearray(header)
    for at, value in flips:
        changed[at % len(changed)] = value
    content = bytes(changed if end is None else changed[: end % len(changed)])
    source = Memory(content, promised)
    began = time.monotonic()
    try:
        joined([read_part(source)], "memory")
    except HeaderError as error:
        assert str(error).startswith("memory: ")
    assert source.given <= HEADER_LIMIT
    assert time.monotonic() - began < 5
