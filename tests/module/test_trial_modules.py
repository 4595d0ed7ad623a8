"""trial_plan, trial_run and prune_unused: what is to be tried, whose turn it is not, and what nothing refers to."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modules import run, run_here

from checker import activation, proven, restoring, systemd, tier, trial_run
from inventories import BIG, SMALL, inventory

FOLDERS = {
    "releases": {"new": "/opt/llama-tiers/releases/one"},
    "models_directory": "/var/lib/llama-tiers/models",
    "keys_directory": "/etc/llama-tiers/keys",
}
PROFILE = {"driver": {"version": "580.126.09"}, "gpus": []}


def plan(**arguments: Any) -> dict[str, Any]:
    changes = {key: arguments.pop(key) for key in ("gpus", "tiers") if key in arguments}
    limits = {"limit_s": 1800, "depth": "whole"}
    return run("trial_plan", profile=PROFILE, **FOLDERS, **limits, **inventory(**changes), **arguments)


def test_candidates_are_told_apart_by_what_becomes_of_them() -> None:
    first = plan()
    assert first["summary"] == ["fast: tiny (5, one card): is tried", "deep: tiny (3,2): is tried"]
    deep = {key: first["candidates"][1][key] for key in ("fingerprint", "spec")}
    done = plan(known=[{**deep, "outcome": "measured", "recorded_at": "2026-11-24T15:00:00Z"}])
    assert done["summary"][1] == "deep: tiny (3,2): was tried already"
    refused = plan(gpus=[BIG, {**SMALL, "total_mib": 160}])
    assert refused["summary"][1].startswith("deep: tiny (3,2): has no room: tiny, context 4,096")
    assert (refused["candidates"][1]["spec"], refused["candidates"][1]["outcome"]) == (None, "infeasible")


def test_an_unknown_tier_is_named() -> None:
    result = plan(only="wide")
    assert result["failed"] is True
    assert result["problems"] == ["no tier 'wide'; tiers here: fast, deep"]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return what reads the records of a host whose trial is in one state after the other, and then in the last one."""
    for module, name in (
        (trial_run, "RECORDS"), (trial_run, "LEASE"), (trial_run, "PROGRESS"), (restoring, "UNITS"),
        (restoring, "BEFORE"), (activation, "_LOCK"), (tier, "DIRECTORY"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, tmp_path / f"{module.__name__}{name}")
    monkeypatch.setattr(trial_run, "PATIENCE_S", 0.05)
    trial_run.LEASE.touch()
    trial_run.PROGRESS.write_text("candidate 3 of 13, deep: tiny (3,2): measuring; about 40 min left\n")

    def looking(*states: str) -> dict[str, Any]:
        found = itertools.chain(states, itertools.repeat(states[-1]))
        monkeypatch.setattr(
            systemd, "unit_state", lambda unit: systemd.UnitState(next(found), "running", 1, "0" * 32, "success", 1, 2)
        )
        params = {"host": "tower", "candidates": [], "depth": "whole", "limit_s": 1800}
        return run_here("trial_run", params)

    return looking


def test_a_trial_that_somebody_follows_is_not_waited_for(look: Callable[..., dict[str, Any]]) -> None:
    found = look("activating")
    assert found["failed"] is True
    assert found["msg"] == (
        "another trial runs on this host (candidate 3 of 13, deep: tiny (3,2): measuring; about 40 min left), and was "
        "waited for in vain for 0.05 s; try again when it is done"
    )


def test_a_trial_that_nobody_follows_any_more_is_waited_for(look: Callable[..., dict[str, Any]]) -> None:
    old = time.time() - 31
    os.utime(trial_run.LEASE, (old, old))
    assert look("activating", "deactivating", "deactivating", "failed") == {"changed": False, "records": []}
    trial_run.LEASE.unlink()
    assert look("activating", "deactivating", "deactivating", "failed") == {"changed": False, "records": []}


def test_whoever_else_has_the_tiers_is_not_waited_for_in_silence(look: Callable[..., dict[str, Any]]) -> None:
    with activation.alone():
        found = look("inactive")
    assert found["failed"] is True
    assert found["msg"].startswith("a trial, a run of site.yml or another measurement starts and stops tiers")
    assert found["msg"].endswith("try again when it is done")
    assert look("inactive") == {"changed": False, "records": []}


def pruning(directory: Path, **changes: Any) -> dict[str, Any]:
    """Return what prune_unused is told of folders that are called by four letters."""
    given: dict[str, Any] = {
        "directory": str(directory),
        "ours": "[a-z]{4}",
        "referred": ["used"],
        "memory": str(directory.parent / "served.json"),
        "remove": False,
    }
    return {**given, **changes}


def prune(directory: Path, **changes: Any) -> dict[str, Any]:
    return run("prune_unused", **pruning(directory, **changes))


def folders(directory: Path, *names: str) -> None:
    """Make folders, each older than the one before."""
    for age, name in enumerate(names):
        (directory / name).mkdir(parents=True)
        os.utime(directory / name, (10**9 - age, 10**9 - age))


def test_what_nothing_refers_to_is_named_and_removed_when_asked(tmp_path: Path) -> None:
    directory = tmp_path / "models"
    folders(directory, "used", "idle")

    named = prune(directory)
    checked = prune(directory, remove=True, check=True)
    assert len(list(directory.iterdir())) == 2
    removed = prune(directory, remove=True)

    assert named["changed"] is False
    assert "nothing refers to it; -e llama_tiers_prune=true removes it" in named["unused"][0]
    assert (checked["changed"], removed["changed"]) == (True, True)
    assert [path.name for path in directory.iterdir()] == ["used"]
    assert prune(directory, remove=True)["changed"] is False


@pytest.mark.parametrize(
    ("newest", "stay"),
    [(1, {"used", "back"}), (3, {"used", "back", "idle"}), (4, {"used", "back", "idle", "aged"})],
    ids=["those referred to are more", "one besides", "all"],
)
def test_unasked_only_the_oldest_go_of_those_that_nothing_refers_to(
    tmp_path: Path, newest: int, stay: set[str]
) -> None:
    directory = tmp_path / "releases"
    folders(directory, "used", "idle", "aged", "back", "not ours")
    (tmp_path / "previous").symlink_to("releases/back")
    done = prune(directory, newest=newest)
    assert {path.name for path in directory.iterdir()} == {*stay, "not ours"}
    assert done["changed"] is (len(stay) < 4)
    prune(directory, newest=newest, remove=True)
    assert {path.name for path in directory.iterdir()} == {"used", "back", "not ours"}


def test_what_was_served_before_the_last_change_of_its_kind_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tier, "DIRECTORY", tmp_path / "tiers")
    monkeypatch.setattr(proven, "DIRECTORY", tmp_path / "proven")
    directory, path = tmp_path / "models", tmp_path / "proven/deep/spec.json"
    folders(directory, "used", "once", "idle")
    path.parent.mkdir(parents=True)
    for model, release in (("once", "one"), ("used", "one"), ("used", "two"), ("used", "two")):
        document = {"model": {"file": f"/m/{model}/model.gguf"}, "engine": {"release": f"/r/{release}"}}
        path.write_text(json.dumps(document))
        run_here("prune_unused", pruning(directory, referred=["idle", "used"], newest=0, remove=True))
    assert {path.name for path in directory.iterdir()} == {"used", "once", "idle"}
    run_here("prune_unused", pruning(directory, newest=0, remove=True))
    assert {path.name for path in directory.iterdir()} == {"used", "once"}


def test_what_tiers_are_to_run_or_were_proven_with_stays_and_all_while_that_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tier, "DIRECTORY", tmp_path / "tiers")
    monkeypatch.setattr(proven, "DIRECTORY", tmp_path / "proven")
    directory = tmp_path / "releases"
    folders(directory, "used", "runs", "goes", "idle")
    for path, name in ((tmp_path / "tiers/deep.json", "runs"), (tmp_path / "proven/deep/spec.json", "goes")):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"model": {"file": "/m/0/model.gguf"}, "engine": {"release": f"/r/{name}"}}))
    damaged = tmp_path / "tiers/fast.json"
    damaged.write_text("{")
    said = run_here("prune_unused", pruning(directory, newest=0, remove=True))
    assert said["changed"] is False
    assert str(damaged) in said["unused"][0] and "nothing is removed" in said["unused"][0]
    damaged.unlink()
    assert len(list(directory.iterdir())) == 4
    run_here("prune_unused", pruning(directory, newest=0, remove=True))
    assert {path.name for path in directory.iterdir()} == {"used", "runs", "goes"}
