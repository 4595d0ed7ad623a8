"""quality_ranks: the served models by the quality that a decision goes by."""

from __future__ import annotations

from modules import run

from inventories import MODELS

KNOWN = {"math": 75.5, "model": "one", "source": "https://example.org/"}


def test_served_models_are_ranked_and_others_do_not_matter() -> None:
    models = {
        "good": {**MODELS["tiny"], "published": KNOWN},
        "better": {**MODELS["tiny"], "published": KNOWN | {"aime_2024": 50}},
        "silent": MODELS["tiny"],
        "not served": {"published": "very good"},
    }
    result = run("quality_ranks", models=models, served=["good", "silent", "better", "gone"])
    assert result["changed"] is False
    assert result["ranks"] == {"good": 2, "silent": None, "better": 1, "gone": None}
    assert run("quality_ranks", served=["good"])["ranks"] == {"good": None}


def test_what_is_wrong_with_a_served_model_is_said() -> None:
    result = run("quality_ranks", models={"good": {**MODELS["tiny"], "published": {"math": 101}}}, served=["good"])
    assert result["failed"] is True
    assert "model good: published.math 101 is wrong: expected 100.0 or less" in result["problems"]
    assert result["msg"].splitlines()[1:] == result["problems"]
