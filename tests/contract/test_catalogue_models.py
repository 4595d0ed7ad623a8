"""The catalogue's models hold what `tests/truth/shapes.py` derives, and that holds to what is known of real files."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/truth"))

import derive_headers  # noqa: E402
import shapes  # noqa: E402

from checker import catalogue_file  # noqa: E402
from checker.catalogue import ModelEntry  # noqa: E402
from checker.gguf import LocalFile, read_header, read_part  # noqa: E402
from checker.header import Header  # noqa: E402

MIB = 1024 * 1024
GEMMA = Path("~/.cache/llama-tiers/mirror/models/gemma-3-270m-it-Q4_K_M.gguf").expanduser()
here = pytest.mark.skipif(not GEMMA.is_file(), reason="the demonstration's model is not here (make demo fetches it)")
_, MODELS = catalogue_file.read(ROOT / "catalogue/models.yml")


def header(name: str) -> Header:
    found = ModelEntry.model_validate(MODELS[name]).header
    assert found is not None
    return found


def test_every_model_of_the_mission_is_there_with_a_header() -> None:
    assert set(shapes.MODELS) <= set(MODELS)
    for name in MODELS:
        assert header(name).n_layer > 0


def test_derived_headers_are_what_the_shapes_give() -> None:
    assert derive_headers.changes(MODELS) == {}, "run tests/truth/derive_headers.py"


def test_a_header_that_was_not_read_from_the_file_says_so() -> None:
    assert "header_derived" not in MODELS["gemma-3-270m-it-q4_k_m"]
    for name in shapes.MODELS:
        assert "header_derived" in MODELS[name], "locked: hold it to the file's own figures here"


# Mean, least and most MiB of a layer; all layers; output; token embedding. Of synthetic files that llama.cpp loaded,
# whose sizes agree with the published files' to 0.1 %.
@pytest.mark.parametrize(
    ("name", "mean", "least", "most", "layers", "output", "embedding"),
    [
        ("deepseek-r1-distill-qwen-14b-q4_k_m", 157.1, 147.7, 166.4, 7539, 609, 418),
        ("deepseek-r1-distill-qwen-14b-q5_k_m", 185.4, 180.5, 190.2, 8897, 609, 510),
        ("deepseek-r1-distill-qwen-7b-q6_k", 182.4, 182.4, 182.4, 5106, 426, 426),
        ("llama-3.1-8b-instruct-abliterated-q6_k", 170.7, 170.7, 170.7, 5461, 411, 411),
        ("qwen2.5-7b-instruct-abliterated-q6_k", 182.4, 182.4, 182.4, 5106, 426, 426),
        ("qwen2.5-32b-instruct-q4_k_m", 279.7, 261.6, 297.7, 17899, 609, 418),
    ],
)
def test_sizes_agree_with_those_of_files_that_were_loaded(
    name: str, mean: float, least: float, most: float, layers: float, output: float, embedding: float
) -> None:
    found = header(name)
    mib = [size / MIB for size in found.layer_bytes]
    pairs = [
        (sum(mib) / len(mib), mean),
        (min(mib), least),
        (max(mib), most),
        (sum(mib), layers),
        (found.output_bytes / MIB, output),
        (found.token_embd_bytes / MIB, embedding),
    ]
    for is_, known in pairs:
        # 0.1 %, and what the figures are rounded to
        assert math.isclose(is_, known, rel_tol=0.001, abs_tol=0.55 if known > 400 else 0.06), (is_, known)


# Bytes of published files, as public lists of downloads have them (bartowski's repositories on the hub).
PUBLISHED = {
    "R1 14B": (
        shapes.R1_QWEN_14B,
        {"Q4_K_M": 8988110240, "Q5_K_M": 10508873120, "Q6_K": 12124683680, "Q8_0": 15701597600},
    ),
    "Qwen2.5 7B": (
        shapes.QWEN2_7B,
        {"Q4_K_M": 4683074240, "Q5_K_M": 5444831936, "Q6_K": 6254199488, "Q8_0": 8098525888},
    ),
    "Qwen2.5 14B": (
        shapes.QWEN2_14B,
        {"Q4_K_M": 8988110976, "Q5_K_M": 10508873856, "Q6_K": 12124684416, "Q8_0": 15701598336},
    ),
    "Qwen2.5 32B": (
        shapes.QWEN2_32B,
        {"Q4_K_M": 19851336576, "Q5_K_M": 23262157696, "Q6_K": 26886155136, "Q8_0": 34820885376},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_derived_tensors_leave_the_same_header_in_every_quantisation(name: str) -> None:
    """What a published file has besides the derived tensors is its header, which does not depend on the mix.

    One wrong type or shape of one tensor in one mix, and these would not be one number.
    """
    shape, files = PUBLISHED[name]
    data = {mix: sum(-(-tensor.bytes // 32) * 32 for tensor in shapes.quantised(shape, mix)) for mix in files}
    headers = {size - data[mix] for mix, size in files.items()}
    assert len(headers) == 1, headers
    # Qwen's vocabulary with its merges.
    assert 5_900_000 < headers.pop() < 6_000_000


def test_the_size_in_the_catalogue_is_the_published_one() -> None:
    assert MODELS["deepseek-r1-distill-qwen-14b-q4_k_m"]["bytes"] == PUBLISHED["R1 14B"][1]["Q4_K_M"]


@here
def test_the_catalogue_has_the_header_of_the_real_file() -> None:
    assert read_header(GEMMA) == header("gemma-3-270m-it-q4_k_m")
    assert GEMMA.stat().st_size == MODELS["gemma-3-270m-it-q4_k_m"]["bytes"]


@here
def test_the_shapes_and_mixes_rebuild_the_real_file() -> None:
    """Every tensor's name, shape and type: the rules that derive the other headers are those that made this file."""
    gemma = shapes.Shape(
        architecture="gemma3",
        n_layer=18,
        n_embd=640,
        n_ff=2048,
        n_head=4,
        n_head_kv=1,
        n_vocab=262144,
        n_ctx_train=32768,
        head_dim=256,
        tied=True,
        qk_norm=True,
        post_norms=True,
        n_swa=512,
    )
    with LocalFile(GEMMA) as file:
        part = read_part(file)
    derived = {
        tensor.name: (tensor.shape, tensor.type_name, tensor.bytes) for tensor in shapes.quantised(gemma, "Q4_K_M")
    }
    assert {tensor.name: (tensor.shape, tensor.type_name, tensor.bytes) for tensor in part.tensors} == derived
