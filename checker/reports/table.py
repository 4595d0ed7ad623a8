"""Tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from checker.reports.console import printed


def render(document: dict[str, Any]) -> str:
    """Render a verification document as tables, coloured when standard output is a terminal that wants it."""
    return printed(Group(*(part for host in document["hosts"] for part in _host(host))))


def _host(report: dict[str, Any]) -> list[Table | Text]:
    driver = report["driver"]
    told = f"driver {driver['version']}, CUDA {driver['cuda_version']}" if driver else "NVML could not be read"
    title = Text.assemble((report["host"], "bold"), f"  {told}, measured {report['recorded_at']}")
    said = [Text(reason, style="red") for tier in report["tiers"] for reason in tier["reasons"]]
    said += [Text(note, style="yellow") for tier in report["tiers"] for note in tier["notes"]]
    return [title, _tiers(report["tiers"]), _memory(report["tiers"]), *said, *([Text()] if said else [])]


def _tiers(tiers: list[dict[str, Any]]) -> Table:
    table = _table(["tier", "verdict", "model"], ["context", "tokens/s", "when full", "load s"])
    for tier in tiers:
        evidence = tier["evidence"]
        table.add_row(
            tier["name"],
            Text("pass", style="green") if tier["verdict"] == "pass" else Text("FAIL", style="bold red"),
            evidence["model"]["name"],
            str(evidence["placement"]["ctx_size"]),
            _number(_generation(evidence, "short"), ".1f"),
            _number(_generation(evidence, "full"), ".1f"),
            _number(evidence["unit"]["load_s"], ".1f"),
        )
    return table


def _generation(evidence: dict[str, Any], filled: str) -> float | None:
    """Return the speed of the answer: the median of repeats, or that of the one short completion that was asked for."""
    thorough, completion = evidence["thorough"], evidence["completion"]
    speed = thorough and thorough[filled]
    if speed and speed["generation_tokens_per_second"]:
        median: float = speed["generation_tokens_per_second"]["median"]
        return median
    return completion["generation_tokens_per_second"] if completion and filled == "short" else None


def _memory(tiers: list[dict[str, Any]]) -> Table:
    table = _table(["tier", "MiB on"], ["weights", "KV", "compute", "held", "apart"])
    for tier in tiers:
        of_cards = {card["uuid"]: card for card in tier["evidence"]["residuals"]}
        for device in tier["evidence"]["devices"]:
            # Another place than the plan's has no residual.
            card = of_cards.get(device["uuid"]) if device["name"] else None
            table.add_row(
                tier["name"],
                device["gpu"] or device["uuid"] or device["name"],
                *(_number(device[key], ",.0f") for key in ("weights_mib", "kv_mib", "compute_mib")),
                _number(card["held_mib"] if card else device["process_mib"], ",.0f"),
                _number(card["total_mib"] if card else None, "+z,.0f"),
            )
    table.caption = Text("held: the most, by NVML; apart: that less the plan", style="dim")
    return table


def _table(words: list[str], numbers: list[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    for head in words:
        table.add_column(head, overflow="fold")
    for head in numbers:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
