"""Trials and contenders for the decision's tests: the reference host's candidates, and any that hypothesis draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import example_report
from fake_tier import spec
from hypothesis import strategies as st

from checker import tier, trial
from checker.decision import Contender, Figures, Published
from checker.evidence import Evidence
from checker.policies import Policies, parse
from checker.trial import Trial
from inventories import ENGINES, MODELS

COMMIT = ENGINES["new"]["commit"]


def policies(**changes: Any) -> Policies:
    """Return two policies, of which the second asks for less; `changes` replace keys of the document."""
    document: dict[str, Any] = {
        "first": "strict",
        "acceptable_tokens_per_second": 10,
        "policies": {
            "strict": {
                "note": "All of it on two cards.",
                "otherwise": "lenient",
                "tiers": {"deep": {"min_cards": 2, "max_cpu_layers": 0, "max_load_s": 60}},
            },
            "lenient": {
                "note": "Whatever answers.",
                "tiers": {"deep": {"min_generation_tokens_per_second": 2, "prefer": ["speed"]}},
            },
        },
    }
    return parse({**document, **changes}, "policies.yml")


def figures(tokens_per_second: float = 20.0, load_s: float = 30.0, cpu_layers: int = 0, cards: int = 2) -> Figures:
    return Figures(
        tokens_per_second,
        load_s,
        cpu_layers,
        ("card",) * cards,
        tuple(f"GPU-{number}" for number in range(cards)),
        tier.Placement("layer", (1,) * cards, cards, 4096, "f16", "f16", 512, "on"),
        "2026-11-24T15:00:00Z",
        "e" * 64,
    )


def contender(
    model: str, score: float | None = 90.0, *faults: str, found: Figures | None = None, outcome: str | None = None
) -> Contender:
    """Return a candidate; one with faults was not measured unless `found` is given, and not tried without `outcome`."""
    own = found or (None if faults else figures())
    return Contender(model, "auto", Published(score, None, 8000.0), trial.MEASURED if own else outcome, own, faults)


@st.composite
def contenders(draw: st.DrawFn) -> Contender:
    """Draw a candidate that was tried or was not, and passed verification or did not."""
    measured = draw(st.booleans())
    faults = draw(st.sampled_from([(), ("weights on another card",)])) if measured else ("it was not tried yet",)
    found = figures(
        draw(st.sampled_from([1.0, 5.0, 10.0, 20.0])),
        draw(st.sampled_from([5.0, 60.0, 300.0])),
        draw(st.integers(0, 1)),
        draw(st.integers(1, 2)),
    )
    published = Published(
        draw(st.sampled_from([None, 75.5, 93.9])),
        draw(st.sampled_from([None, 69.7])),
        draw(st.sampled_from([6e3, 9e3])),
    )
    model, outcome = f"model{draw(st.integers(0, 99))}", trial.MEASURED if measured else None
    return Contender(model, "auto", published, outcome, found if measured else None, faults)


def measured(
    placement: trial.Written, tokens_per_second: float = 61.0, recorded_at: str = "2026-11-24T15:00:00Z", **changes: Any
) -> Trial:
    """Return a trial of tier `deep` of the small inventory on both cards; `changes` replace fields of the record."""
    planned = spec(
        engine=tier.Engine(COMMIT, "/opt/llama-tiers/releases/one"),
        model=tier.Model("tiny", f"/m/{MODELS['tiny']['sha256'][:12]}/tiny.gguf", MODELS["tiny"]["sha256"]),
        placement=tier.Placement("layer", (3, 2), 5, 4096, "f16", "f16", 512, "on"),
    )
    record = Trial(
        host="tower",
        tier="deep",
        model="tiny",
        placement=placement,
        recorded_at=recorded_at,
        outcome=trial.MEASURED,
        reason=None,
        fingerprint=trial.fingerprint(planned, [device.uuid for device in planned.devices], "580.126.09"),
        spec=planned,
        evidence=_evidence(planned, tokens_per_second),
    )
    return replace(record, **changes)


def _evidence(planned: tier.TierSpec, tokens_per_second: float) -> Evidence:
    found = example_report.report().tiers[0].evidence
    assert found.served and found.thorough and found.completion
    speed = example_report.speed(512, 400.0, tokens_per_second)
    return replace(
        found,
        model=replace(found.model, sha256=planned.model.sha256),
        engine=replace(found.engine, commit=COMMIT),
        served=replace(found.served, model_path=planned.model.file, build=f"b1-{COMMIT[:9]}"),
        placement=planned.placement,
        thorough=replace(found.thorough, short=speed),
        argv=planned.argv,
    )
