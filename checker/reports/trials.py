"""Candidates that have room, and those that were tried (docs/schemas), as people and programs read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from checker.decision import placement_words
from checker.reports.console import printed

_MARKS = {"measured": ("✓", "green"), "failed": ("✗", "red"), "infeasible": ("✗", "yellow")}


def screening(documents: Sequence[dict[str, Any]], name: str) -> str:
    """Render which candidates of some hosts have room; JSON is one document, or one a line of several hosts."""
    if name == "json":
        indent = 2 if len(documents) == 1 else None
        return "\n".join(json.dumps(document, indent=indent, ensure_ascii=False) for document in documents)
    return printed(Group(*(part for each in documents for part in _screened(each))))


def render(
    records: Mapping[str, Sequence[dict[str, Any]]], outdated: Mapping[str, Sequence[str | None]], name: str
) -> str:
    """Render the records of trials by host; JSON is one record a line.

    `outdated` says of each record why no decision goes by it, None of one by which one may; it is without the hosts of
    which nobody knows that.
    """
    if name == "json":
        every = (record for own in records.values() for record in own)
        return "\n".join(json.dumps(record, ensure_ascii=False) for record in every)
    parts = (_tried(host, own, outdated.get(host, [None] * len(own))) for host, own in records.items())
    return printed(Group(*(part for host in parts for part in host)))


def _tried(host: str, records: Sequence[dict[str, Any]], outdated: Sequence[str | None]) -> Iterator[RenderableType]:
    told = sorted(zip(records, outdated, strict=True), key=lambda each: each[1] is not None)
    yield Text(host, style="bold underline")
    # In 80 columns the longest name of the catalogue has just room.
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("tier", no_wrap=True)
    table.add_column("candidate", overflow="fold")
    table.add_column("split", overflow="fold")
    table.add_column("tokens\n/s", justify="right")
    table.add_column("load\ns", justify="right")
    table.add_column("tried", no_wrap=True)
    for record, since in told:
        found, spec = record["evidence"], record["spec"]
        mark, colour = _MARKS[record["outcome"]]
        table.add_row(
            Text(mark, style="" if since else colour),
            record["tier"],
            Text.assemble(record["model"], (f"\n{placement_words(record['placement'])}", "dim")),
            ",".join(map(str, spec["placement"]["tensor_split"])) if spec else "-",
            _number(_speed(found)) if found else "-",
            _number(found["unit"]["load_s"]) if found else "-",
            record["recorded_at"][:10] + ("\nold" if since else ""),
            style="dim" if since else None,
        )
    yield Padding(table, (1, 0))
    for record, since in told:
        said = [record["reason"]] if record["reason"] else []
        said += [f"old: {since}"] if since else []
        if said:
            label = f"{record['tier']}: {record['model']} ({placement_words(record['placement'])})"
            yield Text(f"{label}: {'; '.join(said)}", style="dim" if since else "red")
    yield Text()


def _speed(evidence: dict[str, Any]) -> float | None:
    thorough = evidence["thorough"]
    speed = thorough and thorough["short"] and thorough["short"]["generation_tokens_per_second"]
    found = speed["median"] if speed else (evidence["completion"] or {}).get("generation_tokens_per_second")
    return None if found is None else float(found)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _screened(document: dict[str, Any]) -> Iterator[RenderableType]:
    yield Text(document["host"], style="bold underline")
    for remark in document["remarks"]:
        yield Text(f"note: {remark}", style="yellow")
    for tier in document["tiers"]:
        table = Table(box=SIMPLE_HEAD, header_style="bold")
        table.add_column("", no_wrap=True)
        table.add_column(tier["name"], overflow="fold")
        table.add_column("would lie", overflow="fold")
        table.add_column("tokens/s expected", justify="right")
        for candidate in tier["candidates"]:
            fits = candidate["verdict"] == "fits"
            speed = candidate["tokens_per_second"]
            table.add_row(
                Text("✓", style="green") if fits else Text("✗", style="red"),
                f"{candidate['model']} ({candidate['words']})",
                candidate["tried"] if fits else "has no room",
                f"{speed:.1f}" if fits and speed is not None else "-",
            )
        yield table
        for candidate in tier["candidates"]:
            yield from _no_room(candidate)
    yield Text()


def _no_room(candidate: dict[str, Any]) -> Iterator[RenderableType]:
    if candidate["verdict"] == "fits":
        return
    yield Text(f"{candidate['model']} ({candidate['words']}): {candidate['tried']}", style="red")
    for reason in candidate["reasons"]:
        yield Padding(Text(reason), (0, 0, 0, 2))
    if candidate["changes"]:
        would = "; ".join(change["what"] for change in candidate["changes"])
        yield Padding(Text(f"would fit: {would}", style="dim"), (0, 0, 0, 2))
