"""Verification documents as people and programs read them: one small module for each format, `render(document)`.

A verification document is `{"schema": SCHEMA, "hosts": [report, ...]}` (docs/schemas/verification.schema.json).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

SCHEMA = "llama-tiers/verification/1"

FORMATS = ("table", "json", "markdown", "junit", "prometheus")


def render(document: dict[str, Any], name: str) -> str:
    """Render a verification document in the named format."""
    # Imported where it is used: a host has the standard library for its metrics, and no table.
    rendered: str = import_module(f"checker.reports.{name}").render(_complete(document))
    return rendered


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    """Give evidence that an older version wrote the keys that came since, as "not measured"."""
    came: dict[str, Any] = {"thorough": None, "quality": None, "residuals": [], "load": None}
    return {
        **document,
        "hosts": [
            {
                "decision": None,
                "checklist": [],
                **host,
                "tiers": [
                    {"notes": [], **tier, "evidence": _with_cards({**came, **tier["evidence"]})}
                    for tier in host["tiers"]
                ],
            }
            for host in document["hosts"]
        ],
    }


def _with_cards(evidence: dict[str, Any]) -> dict[str, Any]:
    cards = [{"planned_mib": None, "held_mib": None, **card} for card in evidence["residuals"]]
    return {**evidence, "residuals": cards}
