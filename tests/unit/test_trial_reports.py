"""The records of trials as a person reads them: each told from every other, in 80 columns and in 100."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from decision_cases import measured

from checker import trial
from checker.reports import trials

LONG = "deepseek-r1-distill-qwen-14b-q4_k_m"
ON_ONE_CARD = {"split_mode": "none", "n_gpu_layers": "auto"}
SPLIT = {"tensor_split": [38, 11]}


def no_room(placement: trial.Written, reason: str, model: str = LONG) -> trial.Trial:
    lacking = {"outcome": trial.INFEASIBLE, "reason": reason, "spec": None, "evidence": None}
    return measured(placement, **lacking, model=model)


def shown(*records: trial.Trial, old: dict[int, str] | None = None) -> list[str]:
    outdated = [(old or {}).get(place) for place in range(len(records))]
    own: list[dict[str, Any]] = [record.to_json() for record in records]
    return trials.render({"tower": own}, {"tower": outdated}, "table").splitlines()


@pytest.fixture(autouse=True, params=[80, 100])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def test_two_placements_of_one_model_are_told_apart_in_row_and_reason() -> None:
    lines = shown(no_room(SPLIT, "GTX 1060 3GB is full"), no_room(ON_ONE_CARD, "RTX 3060 Ti is full"))
    rows = [place for place, line in enumerate(lines) if re.match(rf"✗ +deep +{LONG} +- +- +- +2026-11-24", line)]
    assert [lines[place + 1].strip() for place in rows] == ["38,11", "one card, the rest on the CPU"]
    said = " ".join(" ".join(lines).split())
    assert f"deep: {LONG} (38,11): GTX 1060 3GB is full" in said
    assert f"deep: {LONG} (one card, the rest on the CPU): RTX 3060 Ti is full" in said


def test_every_row_has_the_date_of_its_record() -> None:
    lines = shown(measured(SPLIT, 33.3, "2026-10-01T12:00:00Z"), measured(SPLIT, 34.4, "2026-11-24T15:00:00Z"))
    assert [line.split()[-2:] for line in lines if "tiny" in line] == [["3.1", "2026-10-01"], ["3.1", "2026-11-24"]]


def test_what_is_old_comes_last_is_marked_and_says_since_when() -> None:
    old, new = measured(SPLIT, 33.3, "2026-10-01T12:00:00Z"), measured(SPLIT, 34.4)
    lines = shown(old, new, old={0: "tried before the engine became 0c1e57098"})
    rows = [place for place, line in enumerate(lines) if "tiny " in line and "✓" in line]
    assert ["34.4" in lines[place] for place in rows] == [True, False]
    assert [lines[place + 1].split() for place in rows] == [["38,11"], ["38,11", "old"]]
    assert "deep: tiny (38,11): old: tried before the engine became 0c1e57098" in lines


def test_what_failed_and_is_old_says_both() -> None:
    failed = replace(measured(SPLIT), outcome=trial.FAILED, reason="it did not start: out of memory", evidence=None)
    said = " ".join(" ".join(shown(failed, old={0: "tried before tier deep went"})).split())
    assert said.endswith("deep: tiny (38,11): it did not start: out of memory; old: tried before tier deep went")


def test_names_as_long_as_the_catalogues_leave_the_figures_readable(width: int) -> None:
    model = "llama-3.1-8b-instruct-abliterated-q6_k"
    row = {"split_mode": "row", "tensor_split": [38, 11], "cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    lines = shown(replace(measured(row, 12.2), model=model), no_room("auto", "has no room", model))
    assert max(len(line) for line in lines) <= width
    (measured_row, infeasible) = (line for line in lines if line.startswith(("✓", "✗")))
    assert measured_row.split()[1:] == ["deep", model, "3,2", "12.2", "3.1", "2026-11-24"]
    assert infeasible.split()[1:] == ["deep", model, "-", "-", "-", "2026-11-24"]
