"""How the proof on a real GPU holds the checker's speeds against llama-bench's, without either."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from example_report import speed

sys.path.append(str(Path(__file__).parents[1] / "gpu"))

import engine
import measure

BENCH = {"pp512": {"tokens_per_second": 400.0}, "tg64 @ d512": {"tokens_per_second": 60.0}}


def test_a_median_within_5_percent_of_both_averages_agrees() -> None:
    found = measure.agreement(speed(512, 381.0, 62.9), BENCH)
    assert found == {"off_percent": {"prompt": -4.75, "generation": 4.83}, "passed": True, "ms_between_tokens": -0.768}


@pytest.mark.parametrize(("prompt", "generation"), [(379.0, 60.0), (400.0, 56.9), (421.0, 60.0), (400.0, 63.1)])
def test_one_that_is_further_off_does_not(prompt: float, generation: float) -> None:
    assert not measure.agreement(speed(512, prompt, generation), BENCH)["passed"]


@pytest.mark.parametrize("lacking", ["pp512", "tg64 @ d512"])
def test_what_was_not_measured_does_not_agree(lacking: str) -> None:
    found = measure.agreement(speed(512, 400.0, 60.0), {name: told for name, told in BENCH.items() if name != lacking})
    assert not found["passed"]
    assert list(found["off_percent"].values()) == [0.0]


def test_a_speed_that_the_checker_did_not_measure_does_not_agree() -> None:
    assert not measure.agreement(replace(speed(512, 400.0, 60.0), generation_tokens_per_second=None), BENCH)["passed"]


@pytest.mark.parametrize("bench", [{"error": "exit 1"}, {"pp512": BENCH["pp512"], "tg64": BENCH["tg64 @ d512"]}])
def test_a_benchmark_that_failed_or_was_of_another_depth_does_not_agree(bench: dict[str, object]) -> None:
    assert not measure.agreement(speed(512, 400.0, 60.0), bench)["passed"]


def test_rows_of_llama_bench_are_told_apart_by_what_they_measure_and_at_which_depth() -> None:
    rows = [
        {"n_prompt": prompt, "n_gen": generated, "n_depth": depth, "avg_ts": 61.234, "samples_ts": [60.001, 62.467]}
        for depth in (0, 512)
        for prompt, generated in ((512, 0), (0, 64))
    ]
    found = engine.bench_speeds(rows)
    assert list(found) == ["pp512", "tg64", "pp512 @ d512", "tg64 @ d512"]
    assert found["tg64"] == {"tokens_per_second": 61.23, "all": [60.0, 62.47]}
