"""STATUS.md: the same template that the role `verification` writes it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Path(__file__).resolve().parents[2] / "templates"


def render(document: dict[str, Any]) -> str:
    """Render a verification document as STATUS.md."""
    # As Ansible reads its templates.
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), trim_blocks=True, undefined=StrictUndefined)
    return environment.get_template("STATUS.md.j2").render(reports=document["hosts"])
