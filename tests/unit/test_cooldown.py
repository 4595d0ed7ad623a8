"""The cooldown of a tier: how long its port stays closed, by the template of its unit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, FileSystemLoader

TEMPLATES = Path(__file__).parents[2] / "roles/tiers/templates"
UNIT = "etc/systemd/system/llama-tier-cooldown.service.j2"


@pytest.mark.parametrize(
    ("cooldown_s", "changes", "sleeps_s"),
    [
        (0, {}, 60),
        (0, {"rivals": ["deep"]}, 180),
        (0, {"rivals": ["deep"], "criteria": {"max_load_s": 20.0}}, 60),
        (30, {"rivals": ["deep"]}, 30),
        (0, {"rivals": ["deep"], "fallback": "deep"}, 3600),
    ],
    ids=["alone", "slow to load", "quick to load", "as it is set", "with a fallback"],
)
def test_a_broken_tier_takes_its_rivals_place_no_sooner_than_a_load_may_take(
    cooldown_s: int, changes: dict[str, Any], sleeps_s: int
) -> None:
    spec = {"name": "fast", "residency": "pinned", "rivals": [], "fallback": None, "criteria": {"max_load_s": 180.0}}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=False)
    environment.filters["regex_replace"] = lambda text, old, new: re.sub(old, new, text)
    unit = environment.get_template(UNIT).render(
        spec=spec | changes,
        tiers_cooldown_s=cooldown_s,
        tiers_fallback_s=3600,
        __tiers_plan={"specs": [spec | changes]},
    )
    assert re.findall("^ExecStart=.*", unit, re.MULTILINE) == [f"ExecStart=/usr/bin/sleep {sleeps_s}"]
