"""Weights by device: every byte lies where llama.cpp puts it, once."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from pathlib import Path

import numpy
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from checker import memory
from inventories import MIB

CATALOGUE = Path(__file__).parents[2] / "catalogue/models.yml"

HEADERS = st.builds(
    lambda layers, output, embedding: memory.Header("llama", len(layers), tuple(layers), output, embedding),
    st.lists(st.integers(1, 10**10), min_size=1, max_size=80),
    st.integers(1, 10**10),
    st.integers(0, 10**10),
)


@st.composite
def placed(draw: st.DrawFn) -> tuple[memory.Header, tuple[int, ...]]:
    """Draw a model and a split of its last layers over one to four devices, any of which may be left empty."""
    header = draw(HEADERS)
    offloaded = draw(st.integers(1, header.n_layer + 1))
    cuts = sorted(draw(st.lists(st.integers(0, offloaded), max_size=3)))
    return header, tuple(end - start for start, end in itertools.pairwise([0, *cuts, offloaded]))


def llama_cpp(n_layer: int, split: tuple[int, ...]) -> list[int | None]:
    """Return the device of each layer and of the output, None for the host, as `load_tensors` of llama.cpp finds it."""
    n_gpu_layers = sum(split)
    total = numpy.float32(n_gpu_layers)
    ends = [numpy.float32(end) / total for end in itertools.accumulate(split)]
    first = max(n_layer + 1 - n_gpu_layers, 0)
    return [
        None if layer < first else bisect_right(ends, numpy.float32(layer - first) / total)
        for layer in range(n_layer + 1)
    ]


@given(placed())
def test_every_byte_is_somewhere_once(given: tuple[memory.Header, tuple[int, ...]]) -> None:
    header, split = given
    weights = memory.weights(header, split)
    assert weights is not None
    everything = sum(header.layer_bytes or ()) + (header.output_bytes or 0) + (header.token_embd_bytes or 0)
    assert sum(int(mib * MIB) for mib in (*weights.devices_mib, weights.host_mib)) == everything


@given(placed())
def test_layers_lie_where_llama_cpp_puts_them(given: tuple[memory.Header, tuple[int, ...]]) -> None:
    header, split = given
    on_host, on_devices = header.token_embd_bytes or 0, [0] * len(split)
    sizes = (*(header.layer_bytes or ()), header.output_bytes or 0)
    for size, device in zip(sizes, llama_cpp(header.n_layer, split), strict=True):
        if device is None:
            on_host += size
        else:
            on_devices[device] += size

    weights = memory.weights(header, split)
    assert weights is not None
    assert weights.host_mib * MIB == on_host
    assert [mib * MIB for mib in weights.devices_mib] == on_devices


def test_lower_layers_stay_on_the_host_and_the_output_is_on_the_last_device() -> None:
    header = memory.Header("llama", 4, (1 * MIB, 2 * MIB, 4 * MIB, 8 * MIB), 16 * MIB, 32 * MIB)
    assert memory.weights(header, (2, 1)) == memory.Weights(devices_mib=(12.0, 16.0), host_mib=35.0)
    assert memory.weights(header, (1,)) == memory.Weights(devices_mib=(16.0,), host_mib=47.0)
    assert memory.weights(header, (0, 5, 0)) == memory.Weights(devices_mib=(0.0, 31.0, 0.0), host_mib=32.0)


# As llama.cpp logged it for this file: 50.30 and 184.86 MiB, 170.00 on the host.
@pytest.mark.parametrize(("split", "devices_mib"), [((14, 5), [50.30, 184.86]), ((19,), [235.16])])
def test_figures_of_the_catalogues_gemma_are_those_that_the_engine_logs(
    split: tuple[int, ...], devices_mib: list[float]
) -> None:
    entry = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))["models"]["gemma-3-270m-it-q4_k_m"]["header"]
    known = {key: entry[key] for key in ("architecture", "n_layer", "output_bytes", "token_embd_bytes")}
    weights = memory.weights(memory.Header(**known, layer_bytes=tuple(entry["layer_bytes"])), split)
    assert weights is not None
    assert [round(mib, 2) for mib in weights.devices_mib] == devices_mib
    assert round(weights.host_mib, 2) == 170.0


def test_more_layers_than_there_are_is_refused() -> None:
    header = memory.Header("llama", 2, (1, 1), 1, 1)
    with pytest.raises(ValueError, match=r"\[2, 2\] places more than the 3 layers"):
        memory.weights(header, (2, 2))


@pytest.mark.parametrize("absent", ["layer_bytes", "output_bytes", "token_embd_bytes"])
def test_a_model_whose_tensors_are_not_known_has_no_figures(absent: str) -> None:
    known = {"layer_bytes": (1, 1), "output_bytes": 1, "token_embd_bytes": 1}
    assert memory.weights(memory.Header("llama", 2, **known), (3,)) is not None
    assert memory.weights(memory.Header("llama", 2, **{**known, absent: None}), (3,)) is None
