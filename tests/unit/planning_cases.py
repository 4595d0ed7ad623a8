"""Cards and models for the planner's tests: the reference host, and small ones that hypothesis draws."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from checker import cards, header
from checker.cards import Card, Host, Ram
from checker.catalogue import GpuEntry, RamEntry

sys.path.insert(0, str(Path(__file__).parents[1] / "truth"))

import shapes

MIB = 1024 * 1024
BIG, SMALL = "NVIDIA GeForce RTX 3060 Ti", "NVIDIA GeForce GTX 1060 3GB"
Q4, Q5 = "deepseek-r1-distill-qwen-14b-q4_k_m", "deepseek-r1-distill-qwen-14b-q5_k_m"


def shaped(name: str) -> header.Header:
    """Return the header of one of the mission's models."""
    model = shapes.MODELS[name]
    tensors = [header.Tensor(tensor.name, tensor.shape, tensor.type_name, tensor.bytes) for tensor in model.tensors()]
    return header.from_metadata(model.metadata(), tensors, name)


def entry(name: str, index: int = 0, **changes: Any) -> GpuEntry:
    return GpuEntry.model_validate({"name": name, "uuid": f"GPU-{index:08x}-0000-4000-8000-000000000000", **changes})


def reference(*names: str, ram_mib: int | None = 16000) -> Host:
    """Return the reference host, or one with other known cards."""
    entries = [entry(name, index) for index, name in enumerate(names or (BIG, SMALL))]
    return cards.host(entries, RamEntry(total_mib=ram_mib), {})


def card(name: str, free_mib: int, bandwidth_gb_s: float = 400.0, **changes: Any) -> Card:
    """Return a card with so much memory and no margin."""
    whole: dict[str, Any] = {
        "name": name,
        "uuid": name,
        "kind": "CUDA",
        "total_mib": free_mib,
        "taken_mib": 0,
        "taken_by": "nobody",
        "margin_mib": 0,
        "bandwidth_gb_s": bandwidth_gb_s,
        "compute_capability": "8.6",
        **changes,
    }
    return Card(**whole)


def small_header(layers: list[int], output_mib: int = 50, **changes: Any) -> header.Header:
    """Return a plain model whose layers weigh so many MiB."""
    count = len(layers)
    whole: dict[str, Any] = {
        "architecture": "llama",
        "n_layer": count,
        "n_ctx_train": 32768,
        "n_embd": 1024,
        "n_vocab": 32000,
        "n_head": (16,) * count,
        "head_kv": (8,) * count,
        "head_dim_k": 64,
        "head_dim_v": 64,
        "n_ff": (4096,) * count,
        "layer_bytes": tuple(size * MIB for size in layers),
        "expert_bytes": (0,) * count,
        "output_bytes": output_mib * MIB,
        "token_embd_bytes": 20 * MIB,
        "tied": False,
        "n_swa": 0,
        "sliding": (False,) * count,
        "n_expert": 0,
        "n_expert_used": 0,
        **changes,
    }
    return header.Header(**whole)


@st.composite
def headers(draw: st.DrawFn, most_layers: int = 5) -> header.Header:
    layers = draw(st.lists(st.integers(20, 400), min_size=2, max_size=most_layers))
    made = small_header(layers, draw(st.integers(10, 600)))
    if draw(st.booleans()):
        sliding = tuple(draw(st.lists(st.booleans(), min_size=len(layers), max_size=len(layers))))
        made = dataclasses.replace(made, n_swa=1024 if any(sliding) else 0, sliding=sliding)
    return made


@st.composite
def hosts(draw: st.DrawFn, most_cards: int = 2, least_cards: int = 1) -> Host:
    count = draw(st.integers(least_cards, most_cards))
    generations = {"8.6": 448.0, "6.1": 192.0, "7.5": 448.0}
    drawn = []
    for index in range(count):
        capability = draw(st.sampled_from(sorted(generations)))
        drawn.append(
            card(
                f"card{index}",
                draw(st.integers(300, 2500)),
                generations[capability],
                compute_capability=capability,
                kind=draw(st.sampled_from(["CUDA", "CUDA", "RPC"])),
            )
        )
    return Host(tuple(drawn), Ram(draw(st.sampled_from([None, 3000, 16000])), 40.0))


@st.composite
def tight(draw: st.DrawFn, cards: int = 2, most_layers: int = 5) -> tuple[header.Header, Host]:
    """Draw a model and cards that hold it together just about, and none of them alone as a rule."""
    model, host = draw(headers(most_layers)), draw(hosts(cards, cards))
    whole = model.total_bytes / MIB
    sized = []
    for each in host.cards:
        fixed = 250 if each.compute_capability == "8.6" else 120
        room = int(whole * draw(st.floats(0.2, 0.9))) + fixed * (each.kind == "CUDA") + draw(st.integers(20, 300))
        sized.append(dataclasses.replace(each, total_mib=room))
    return model, dataclasses.replace(host, cards=tuple(sized))
