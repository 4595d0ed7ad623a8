"""What `checker lock` found, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from checker.lock import SCHEMA, Outcome
from checker.reports.console import printed

_STYLES = {"locked": "green", "unchanged": "", "incomplete": "yellow", "differs": "bold red", "failed": "bold red"}


def render(outcomes: Sequence[Outcome], catalogue: str, form: str) -> str:
    """Render the outcomes in the named format."""
    if form == "json":
        document = {"schema": SCHEMA, "catalogue": catalogue, "models": [outcome.to_json() for outcome in outcomes]}
        return json.dumps(document, indent=2)
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    for head in ("model", "status", "sha256", "header", "written"):
        table.add_column(head, overflow="fold")
    table.add_column("bytes", justify="right")
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            Text(outcome.status, style=_STYLES[outcome.status]),
            f"{outcome.sha256[:12]}..." if outcome.sha256 else "-",
            outcome.header,
            ", ".join(sorted(key for key, value in outcome.changes.items() if value is not None)) or "-",
            f"{outcome.bytes:,}" if outcome.bytes else "-",
        )
    # Not wrapped: an address that is broken over two lines cannot be copied.
    reasons = [f"{outcome.name}: {outcome.reason}" for outcome in outcomes if outcome.reason]
    return "\n".join([printed(table), *([""] if reasons else []), *reasons])
