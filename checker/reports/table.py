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
    reasons = [Text(reason, style="red") for tier in report["tiers"] for reason in tier["reasons"]]
    return [title, _tiers(report["tiers"]), _memory(report["tiers"]), *reasons, *([Text()] if reasons else [])]


def _tiers(tiers: list[dict[str, Any]]) -> Table:
    table = _table(["tier", "verdict", "model"], ["context", "tokens/s", "load s"])
    for tier in tiers:
        evidence = tier["evidence"]
        completion = evidence["completion"]
        table.add_row(
            tier["name"],
            Text("pass", style="green") if tier["verdict"] == "pass" else Text("FAIL", style="bold red"),
            evidence["model"]["name"],
            str(evidence["placement"]["ctx_size"]),
            _number(completion and completion["generation_tokens_per_second"], ".1f"),
            _number(evidence["unit"]["load_s"], ".1f"),
        )
    return table


def _memory(tiers: list[dict[str, Any]]) -> Table:
    table = _table(["tier", "on"], ["weights MiB", "KV MiB", "compute MiB", "process MiB"])
    for tier in tiers:
        for device in tier["evidence"]["devices"]:
            table.add_row(
                tier["name"],
                device["gpu"] or device["uuid"] or device["name"],
                *(_number(device[key], ",.0f") for key in ("weights_mib", "kv_mib", "compute_mib", "process_mib")),
            )
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
