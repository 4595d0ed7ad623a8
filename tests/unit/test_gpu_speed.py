"""How the proof on a real GPU holds the checker's speeds against llama-bench's, without either."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from example_report import speed

sys.path.append(str(Path(__file__).parents[1] / "gpu"))

import engine
import measure

EVIDENCE = Path(__file__).parents[2] / "docs/evidence/gpu"
KEPT = [*sorted(EVIDENCE.glob("*/speed.json")), *EVIDENCE.glob("*/paced.json")]
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


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_what_the_evidence_says_follows_from_its_figures(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    for case in document["cases"]:
        for told in (case[name] for name in ("as_a_tier", "as_the_bench") if name in case):
            medians = [told["checker"][f"{what}_tokens_per_second"]["median"] for what in ("prompt", "generation")]
            found = measure.agreement(speed(512, *medians), case["llama_bench"])
            assert found == {key: told[key] for key in found}
        assert case["passed"] == case["as_a_tier"]["passed"]


def test_on_cards_as_fast_as_the_reference_hosts_all_agree() -> None:
    (paced,) = [json.loads(path.read_text(encoding="utf-8")) for path in KEPT if path.stem == "paced"]
    assert len(paced["cases"]) == 3
    assert all(case["passed"] for case in paced["cases"])


def test_rows_of_llama_bench_are_told_apart_by_what_they_measure_and_at_which_depth() -> None:
    rows = [
        {"n_prompt": prompt, "n_gen": generated, "n_depth": depth, "avg_ts": 61.234, "samples_ts": [60.001, 62.467]}
        for depth in (0, 512)
        for prompt, generated in ((512, 0), (0, 64))
    ]
    found = engine.bench_speeds(rows)
    assert list(found) == ["pp512", "tg64", "pp512 @ d512", "tg64 @ d512"]
    assert found["tg64"] == {"tokens_per_second": 61.23, "all": [60.0, 62.47]}


@pytest.fixture
def mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a program stand for the control of CUDA MPS; return the file with what it was told, and cards of 132."""
    told, control = tmp_path / "told", tmp_path / "bin/nvidia-cuda-mps-control"
    control.parent.mkdir()
    control.write_text(f'#!/bin/sh\nif [ "$1" = -d ]; then echo start >>{told}; else cat >>{told}; fi\n')
    control.chmod(0o755)
    told.touch()

    def multiprocessors() -> int:
        serves = told.read_text().splitlines()[-1:] == ["start"] and "CUDA_MPS_PIPE_DIRECTORY" in os.environ
        percent = int(os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "100"))
        return 132 * percent // 100 if serves else 132

    monkeypatch.setenv("PATH", f"{control.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(engine, "multiprocessors", multiprocessors)
    monkeypatch.setattr(engine.proof, "STATE", tmp_path / "state")
    monkeypatch.setattr(engine.proof, "LOGS", tmp_path / "logs")
    return told


def variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("CUDA_MPS")}


def test_a_card_is_paced_for_the_block_alone_also_where_the_block_fails(mps: Path) -> None:
    with pytest.raises(ZeroDivisionError), engine.paced(12) as share:
        assert share == 15
        assert variables()["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "12"
        raise ZeroDivisionError
    assert variables() == {}
    assert mps.read_text().splitlines() == ["quit -t 10", "start", "quit -t 10"]


def test_a_pace_that_has_no_effect_is_refused(mps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "multiprocessors", lambda: 132)
    with pytest.raises(RuntimeError, match="no effect: 132 of 132"), engine.paced(12):
        raise AssertionError("not reached")
    assert variables() == {}
    assert mps.read_text().splitlines()[-1] == "quit -t 10"


def test_without_mps_nothing_is_paced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="nvidia-cuda-mps-control is not on this machine"), engine.paced(12):
        raise AssertionError("not reached")
