"""The placements that the engine is asked about: every mission model and every other shape, one to three devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import models


@dataclass(frozen=True)
class Case:
    """One model in one placement; the words are llama-server's. `tensor_split` has one entry for each device."""

    model: str
    tensor_split: tuple[int, ...]
    n_gpu_layers: int
    ctx_size: int = 8192
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    ubatch_size: int = 512
    flash_attn: str = "on"
    split_mode: str = "layer"
    pipeline_parallel: bool = True
    n_cpu_moe: int = 0
    parallel: int = 1

    @property
    def name(self) -> str:
        """Tell the case in one word, the same for the same case."""
        return "/".join(
            (
                self.model,
                f"{self.split_mode}-{','.join(map(str, self.tensor_split))}",
                f"ngl{self.n_gpu_layers}",
                f"c{self.ctx_size}",
                f"{self.cache_type_k}-{self.cache_type_v}",
                f"ub{self.ubatch_size}",
                *(["fa-off"] if self.flash_attn == "off" else []),
                *([] if self.pipeline_parallel else ["no-pipeline"]),
                *([f"cpu-moe{self.n_cpu_moe}"] if self.n_cpu_moe else []),
                *([f"np{self.parallel}"] if self.parallel > 1 else []),
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Return the case as the truth file keeps it."""
        return {**asdict(self), "tensor_split": list(self.tensor_split)}


def from_json(document: dict[str, Any]) -> Case:
    """Build a case from what `Case.to_json` wrote."""
    return Case(**{**document, "tensor_split": tuple(document["tensor_split"])})


def _shares(layers: int, *weights: int) -> tuple[int, ...]:
    """Share whole layers out in proportion; the last device takes what is left."""
    parts = [layers * weight // sum(weights) for weight in weights[:-1]]
    return (*parts, layers - sum(parts))


def _quantised(case: Case) -> Case:
    return replace(case, cache_type_k="q8_0", cache_type_v="q8_0")


def _mission(name: str, layers: int) -> Iterator[Case]:
    one = Case(name, (layers,), layers)
    two = Case(name, _shares(layers, 38, 11), layers)
    three = Case(name, _shares(layers, 1, 1, 1), layers)
    partial = round(layers * 0.6)
    yield replace(one, ctx_size=4096)
    yield _quantised(replace(one, ctx_size=32768))
    yield _quantised(replace(one, ubatch_size=128))
    yield replace(one, tensor_split=(partial,), n_gpu_layers=partial)
    yield _quantised(replace(one, tensor_split=(partial,), n_gpu_layers=partial, ctx_size=16384, ubatch_size=128))
    yield two
    yield replace(two, ubatch_size=128, pipeline_parallel=False)
    yield _quantised(replace(two, ctx_size=16384))
    yield _quantised(replace(two, ctx_size=4096, ubatch_size=128))
    yield _quantised(replace(two, tensor_split=_shares(layers, 13, 36), pipeline_parallel=False))
    yield replace(two, tensor_split=_shares(layers - 1, 8, 3), n_gpu_layers=layers - 1)
    yield _quantised(replace(two, tensor_split=_shares(partial, 2, 1), n_gpu_layers=partial))
    yield replace(two, tensor_split=_shares(partial, 1, 1), n_gpu_layers=partial, ctx_size=32768, ubatch_size=128)
    yield three
    yield _quantised(replace(three, tensor_split=_shares(layers, 5, 2, 1), ctx_size=32768, ubatch_size=128))
    yield replace(three, tensor_split=(layers - 9, 0, 9), ctx_size=4096)


def _other(name: str, layers: int, experts: bool) -> Iterator[Case]:
    one = Case(name, (layers,), layers)
    two = Case(name, _shares(layers, 38, 11), layers)
    partial = round(layers * 0.6)
    yield replace(one, ctx_size=4096)
    yield _quantised(replace(one, ctx_size=16384, ubatch_size=128))
    yield two
    yield _quantised(replace(two, ctx_size=32768))
    yield replace(two, ubatch_size=128, pipeline_parallel=False)
    yield replace(one, tensor_split=(partial,), n_gpu_layers=partial, ctx_size=16384)
    yield _quantised(replace(two, tensor_split=_shares(partial, 2, 1), n_gpu_layers=partial))
    yield Case(name, _shares(layers, 2, 1, 1), layers, ctx_size=16384)
    if experts:
        yield replace(one, n_cpu_moe=layers - 1)
        yield replace(two, n_cpu_moe=layers // 2, ubatch_size=128)
        yield _quantised(replace(two, n_cpu_moe=4, ctx_size=16384))


def _special() -> Iterator[Case]:
    """Yield what is off the usual: slots, types that differ, no flash attention, nothing offloaded, odd sizes."""
    deep, fast, gemma = (
        "deepseek-r1-distill-qwen-14b-q4_k_m",
        "qwen2.5-7b-instruct-abliterated-q6_k",
        "gemma-3-4b-it-q4_k_m",
    )
    yield Case(deep, (8, 3), 49)
    yield Case(deep, (38, 11), 49, parallel=4)
    yield Case(deep, (38, 11), 49, cache_type_k="q8_0", cache_type_v="f16")
    yield Case(deep, (38, 11), 49, cache_type_k="q4_0", cache_type_v="q4_0")
    yield Case(deep, (38, 11), 49, flash_attn="off")
    yield Case(deep, (38, 11), 49, ctx_size=5000)
    yield Case(deep, (38, 11), 49, ubatch_size=1024)
    yield Case(deep, (49,), 0)
    yield Case(fast, (29,), 29, flash_attn="off", ctx_size=4096)
    yield Case(fast, (29,), 29, parallel=2, ctx_size=16384)
    yield Case(fast, (29,), 10, flash_attn="off", ctx_size=4096)
    yield Case(gemma, (35,), 35, parallel=4, ctx_size=16384)
    yield Case(gemma, (35,), 0)
    yield Case(gemma, (20, 15), 35, flash_attn="off")


def _all() -> Iterator[Case]:
    for name in models.shapes.MODELS:
        yield from _mission(name, models.MODELS[name].shape.n_layer + 1)
    for name, model in models.OTHERS.items():
        yield from _other(name, model.shape.n_layer + 1, bool(model.shape.n_expert))
    yield from _special()


CASES: tuple[Case, ...] = tuple(dict.fromkeys(_all()))
