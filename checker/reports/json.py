"""The document itself, for programs."""

from __future__ import annotations

import json
from typing import Any


def render(document: dict[str, Any]) -> str:
    """Render a verification document as JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False)
