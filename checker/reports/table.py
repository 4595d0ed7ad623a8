"""Tables for a terminal."""

from __future__ import annotations

import io
import os
import shutil
import sys
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text


def render(document: dict[str, Any]) -> str:
    """Render a verification document as tables, coloured when standard output is a terminal that wants it."""
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    console = Console(
        file=io.StringIO(),
        force_terminal=coloured,
        no_color=not coloured,
        width=max(80, shutil.get_terminal_size((100, 24)).columns),
    )
    console.print(Group(*(part for host in document["hosts"] for part in _host(host))))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def _host(report: dict[str, Any]) -> list[Table | Text]:
    driver = report["driver"]
    title = f"{report['host']}" + (f", driver {driver['version']}, CUDA {driver['cuda_version']}" if driver else "")
    parts: list[Table | Text] = [Text(title, style="bold"), _tiers(report["tiers"])]
    parts += [Text(f"{tier['name']}: {reason}", style="red") for tier in report["tiers"] for reason in tier["reasons"]]
    return parts


def _tiers(tiers: list[dict[str, Any]]) -> Table:
    table = Table(header_style="bold")
    table.add_column("tier")
    table.add_column("verdict")
    table.add_column("model")
    table.add_column("tokens/s", justify="right")
    table.add_column("load s", justify="right")
    table.add_column("on the GPUs, MiB", justify="right")
    for tier in tiers:
        evidence = tier["evidence"]
        completion = evidence["completion"]
        load_s = evidence["unit"]["load_s"]
        passed = tier["verdict"] == "pass"
        table.add_row(
            tier["name"],
            Text("pass", style="green") if passed else Text("FAIL", style="red"),
            evidence["model"]["name"],
            f"{completion['generation_tokens_per_second']:.1f}" if completion else "-",
            f"{load_s:.1f}" if load_s is not None else "-",
            "\n".join(_device(device) for device in evidence["devices"]),
        )
    return table


def _device(device: dict[str, Any]) -> str:
    held = device["process_mib"]
    return f"{device['gpu'] or device['name']} {'-' if held is None else format(held, ',.0f')}"
