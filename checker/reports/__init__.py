"""Verification documents as people and programs read them: one small module for each format, `render(document)`.

A verification document is `{"schema": SCHEMA, "hosts": [report, ...]}` (docs/schemas/verification.schema.json).
"""

from __future__ import annotations

from typing import Any

from checker.reports import json, table

SCHEMA = "llama-tiers/verification/1"

_FORMATS = {"json": json.render, "table": table.render}


def render(document: dict[str, Any], name: str) -> str:
    """Render a verification document in the named format."""
    return _FORMATS[name](document)
