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
    unit = rendered(cooldown_s, [], **changes)
    assert re.findall("^ExecStart=.*", unit, re.MULTILINE) == [f"ExecStart=/usr/bin/sleep {sleeps_s}"]


def test_a_tier_in_its_cooldown_answers_for_no_other_be_that_in_the_plan_or_not() -> None:
    unit = rendered(30, [{"name": "deep", "fallback": "fast"}, {"name": "fast"}, {"name": "max", "fallback": "deep"}])
    assert "Conflicts=llama-tier-fast.socket llama-tier-deep-fallback.socket\n" in unit
    assert re.search("^OnSuccess=.* llama-tier-deep-fallback.socket$", unit, re.MULTILINE)
    assert "max" not in unit


def rendered(cooldown_s: int, tiers: list[dict[str, Any]], **changes: Any) -> str:
    """Return the unit of tier fast, in an inventory of these tiers."""
    spec = {"name": "fast", "residency": "pinned", "rivals": [], "fallback": None, "criteria": {"max_load_s": 180.0}}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=False)
    environment.filters["regex_replace"] = lambda text, old, new: re.sub(old, new, text)
    return environment.get_template(UNIT).render(
        spec=spec | changes, tiers_cooldown_s=cooldown_s, tiers_fallback_s=3600, tiers_list=tiers
    )
