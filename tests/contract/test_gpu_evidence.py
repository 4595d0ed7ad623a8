"""The planner is held to what processes were measured to hold of real cards (docs/evidence/gpu)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from checker import placement
from checker.cards import Card, Ram
from checker.catalogue import ModelEntry
from checker.tier import Placement

ROOT = Path(__file__).parents[2]
EVIDENCE = sorted((ROOT / "docs/evidence/gpu").glob("*/memory.json"))
MODELS = yaml.safe_load((ROOT / "catalogue/models.yml").read_text(encoding="utf-8"))["models"]


def cases() -> list[Any]:
    found = []
    for path in EVIDENCE:
        document = json.loads(path.read_text(encoding="utf-8"))
        for case in document["cases"]:
            split = ",".join(map(str, case["tensor_split"]))
            name = f"{path.parent.name} {case['model'].removeprefix('synthetic-')} {split} {case['cache_type']}"
            found.append(pytest.param(document["cards"], case, id=name))
    return found


def test_there_is_evidence_of_two_cards() -> None:
    assert any(path.parent.name.startswith("2x-") for path in EVIDENCE)


@pytest.mark.parametrize(("known", "case"), cases())
def test_what_is_planned_is_within_3_percent_of_what_nvml_told(
    known: list[dict[str, Any]], case: dict[str, Any]
) -> None:
    model = ModelEntry.model_validate(MODELS[case["model"].removeprefix("synthetic-")])
    assert model.header is not None
    cards = [
        Card(
            name=card["name"],
            uuid=card["uuid"],
            kind="CUDA",
            total_mib=card["total_mib"],
            taken_mib=0,
            taken_by="",
            margin_mib=0,
            bandwidth_gb_s=card["bandwidth_gb_s"],
            compute_capability=card["compute_capability"],
        )
        for card in known[: len(case["tensor_split"])]
    ]
    planned = placement.evaluate(
        model.header,
        Placement(
            split_mode=case["split_mode"],
            tensor_split=tuple(case["tensor_split"]),
            n_gpu_layers=sum(case["tensor_split"]),
            ctx_size=8192,
            cache_type_k=case["cache_type"],
            cache_type_v=case["cache_type"],
            ubatch_size=512,
            flash_attn="on",
        ),
        cards,
        Ram(None),
    )
    for card, need in zip(cards, planned.estimate.devices, strict=True):
        assert need.total_mib == pytest.approx(case["measured_mib"][card.uuid], rel=0.03)
