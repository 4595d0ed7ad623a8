"""trial_plan and model_prune: what is to be tried and why not, and which models nothing refers to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules import run

from inventories import BIG, SMALL, inventory

FOLDERS = {
    "releases": {"new": "/opt/llama-tiers/releases/one"},
    "models_directory": "/var/lib/llama-tiers/models",
    "keys_directory": "/etc/llama-tiers/keys",
}
PROFILE = {"driver": {"version": "580.126.09"}, "gpus": []}


def plan(**arguments: Any) -> dict[str, Any]:
    changes = {key: arguments.pop(key) for key in ("gpus", "tiers") if key in arguments}
    return run("trial_plan", profile=PROFILE, **FOLDERS, **inventory(**changes), **arguments)


def test_candidates_are_told_apart_by_what_becomes_of_them() -> None:
    first = plan()
    assert first["summary"] == ["fast: tiny (5, one card): is tried", "deep: tiny (3,2): is tried"]
    done = plan(finished=[first["candidates"][1]["fingerprint"]])
    assert done["summary"][1] == "deep: tiny (3,2): was tried already"
    refused = plan(gpus=[BIG, {**SMALL, "total_mib": 160}])
    assert refused["summary"][1].startswith("deep: tiny (3,2): has no room: tiny, context 4,096")
    assert (refused["candidates"][1]["spec"], refused["candidates"][1]["outcome"]) == (None, "infeasible")


def test_an_unknown_tier_is_named() -> None:
    result = plan(only="wide")
    assert result["failed"] is True
    assert result["problems"] == ["no tier 'wide'; tiers here: fast, deep"]


def test_models_that_nothing_refers_to_are_named_and_removed_when_asked(tmp_path: Path) -> None:
    directory = tmp_path / "models"
    for name in ("a" * 12, "b" * 12):
        (directory / name).mkdir(parents=True)
    arguments: dict[str, Any] = {
        "directory": str(directory),
        "memory": str(tmp_path / "served.json"),
        "referred": [{"dest": f"{directory}/{'a' * 12}/model.gguf"}],
    }

    named = run("model_prune", remove=False, **arguments)
    checked = run("model_prune", remove=True, check=True, **arguments)
    assert len(list(directory.iterdir())) == 2
    removed = run("model_prune", remove=True, **arguments)

    assert named["changed"] is False
    assert "nothing refers to it; -e llama_tiers_prune=true removes it" in named["unused"][0]
    assert (checked["changed"], removed["changed"]) == (True, True)
    assert [path.name for path in directory.iterdir()] == ["a" * 12]
    assert run("model_prune", remove=True, **arguments)["changed"] is False
