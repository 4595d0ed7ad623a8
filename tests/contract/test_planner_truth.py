"""The planner's memory is held to every truth that is committed: what the engine told of each case."""

from __future__ import annotations

import json
import math
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "truth"))

import cases
import compare
import models

from checker import header, memory
from checker.cards import default_margin_mib

ROOT = Path(__file__).parents[2]
TRUTHS = sorted((ROOT / "docs/evidence").glob("planner-truth-*.json"))
# What is published: bytes of the file. The tokenizer is what a header-only file lacks.
PUBLISHED = {
    "deepseek-r1-distill-qwen-14b-q4_k_m": 8.99e9,
    "deepseek-r1-distill-qwen-14b-q5_k_m": 10.51e9,
    "deepseek-r1-distill-qwen-7b-q6_k": 6.25e9,
    "llama-3.1-8b-instruct-abliterated-q6_k": 6.59e9,
    "qwen2.5-32b-instruct-q4_k_m": 19.85e9,
}


@lru_cache
def document(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


@lru_cache
def rows(path: Path) -> tuple[compare.Row, ...]:
    return tuple(compare.rows(document(path)))


def test_there_is_a_truth_with_cases_enough() -> None:
    assert any(path.name == "planner-truth-rpc.json" for path in TRUTHS)
    assert len(cases.CASES) >= 150
    names = {case.model for case in cases.CASES}
    assert set(models.shapes.MODELS) <= names
    assert len({models.MODELS[name].shape.architecture for name in names}) >= 8
    assert {len(case.tensor_split) for case in cases.CASES} == {1, 2, 3}
    assert {case.ctx_size for case in cases.CASES} >= {4096, 8192, 16384, 32768}
    assert {case.ubatch_size for case in cases.CASES} >= {128, 512}
    assert {case.cache_type_k for case in cases.CASES} >= {"f16", "q8_0"}
    assert any(case.n_gpu_layers <= models.MODELS[case.model].shape.n_layer for case in cases.CASES)
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)


@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)
def test_the_engine_answered_nearly_every_case_and_says_who_it_is(path: Path) -> None:
    truth = document(path)
    assert "commit " in truth["engine"]
    assert truth["date"]
    assert truth["kind"] == "rpc" or truth["card"]["name"]
    answered = {row.case for row in rows(path)}
    assert len(answered) >= max(150, 0.95 * len(truth["cases"]))
    assert {row.tool for row in rows(path)} == set(compare.TOOLS)


@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)
def test_what_the_engine_refuses_the_planner_refuses(path: Path) -> None:
    for answer in document(path)["cases"]:
        refused = "error" in answer["llama-server"]
        case = cases.from_json(answer["case"])
        kinds = [document(path)["kind"].upper()] * len(case.tensor_split)
        if refused:
            with pytest.raises(memory.PlacementError):
                memory.estimate(compare.header_of(case.model), compare.placement_of(case), kinds)


def test_an_architecture_is_called_known_when_a_truth_holds_it() -> None:
    held = {models.MODELS[case.model].shape.architecture for case in cases.CASES}
    assert held == header._HELD


@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)
def test_every_device_of_every_case_is_within_bounds(path: Path) -> None:
    broken = [
        f"{row.case} {row.tool} {row.device}: engine {row.engine}, planner "
        f"{tuple(round(value, 1) for value in row.planner)}: {', '.join(row.broken)}"
        for row in rows(path)
        if row.device != "Host" and row.broken
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)
def test_what_just_fits_by_the_planner_fits_by_the_engine(path: Path) -> None:
    """On a card with no room but what the planner counts and the margin, the engine's own need finds its place."""
    devices = [row for row in rows(path) if row.device != "Host"]
    assert len(devices) > 1000
    for row in devices:
        planned = math.ceil(sum(row.planner))
        free = planned + default_margin_mib(planned)
        assert sum(row.engine) <= free, row


@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)
def test_the_committed_comparison_is_of_this_planner(path: Path) -> None:
    comparison = document(path.with_name(path.name.replace("truth", "comparison")))
    assert comparison["summary"] == compare.summary(list(rows(path))), "run tests/truth/compare.py with --out"


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_shapes_have_the_size_of_the_published_files(name: str) -> None:
    size = sum(tensor.bytes for tensor in models.MODELS[name].tensors())
    assert size == pytest.approx(PUBLISHED[name], rel=1e-3)


def test_a_difference_is_counted_from_the_whole_mib_that_the_engine_tells() -> None:
    row = compare.Row("case", "llama-server", "RPC0", (100, 10, 50), (100.9, 10.0, 50.5))
    assert row.off == (0, 0, 0, 0)
    assert not row.broken
    row = compare.Row("case", "llama-server", "RPC0", (100, 10, 50), (102.5, 8.0, 84.0))
    assert row.broken == ["weights +1.5", "KV -2.0", "compute +33.0"]
