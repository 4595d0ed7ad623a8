"""Plan documents (docs/schemas/plan.schema.json) as people and programs read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from checker.header import KNOWN
from checker.placement import layers_words, short_name
from checker.reports.console import printed
from checker.tier import DIO

_BAR = 28
# Parts of a card, in the order of the bar: key, character, style, word of the legend.
_PARTS = (
    ("taken_mib", "░", "dim", "taken"),
    ("weights_mib", "█", "blue", "weights"),
    ("kv_mib", "▓", "cyan", "KV cache"),
    ("rest_mib", "▒", "magenta", "compute and CUDA"),
)


def render(documents: Sequence[dict[str, Any]], name: str) -> str:
    """Render the plans of some hosts in the named format; JSON is one document, or one a line of several hosts."""
    if name == "json":
        indent = 2 if len(documents) == 1 else None
        return "\n".join(json.dumps(document, indent=indent, ensure_ascii=False) for document in documents)
    return printed(Group(*(part for document in documents for part in _host(document)), _legend()))


def _host(document: dict[str, Any]) -> list[RenderableType]:
    remarks = [Text(f"note: {remark}", style="yellow") for remark in document["remarks"]]
    parts: list[RenderableType] = [Text(document["host"], style="bold underline"), *_cards(document), *remarks, Text()]
    for tier in document["tiers"]:
        parts += [*_tier(tier), Text()]
    together = [*_together(document["resident_together"])]
    together += [
        Text.assemble((f"{_apart(exclusion)}: {' + '.join(exclusion['tiers'])}: ", "bold yellow"), exclusion["reason"])
        for exclusion in document["exclusions"]
    ]
    return [*parts, *together, *([Text()] if together else [])]


def _apart(exclusion: dict[str, Any]) -> str:
    return "switched, one at a time" if exclusion["switched"] else "not together"


def _together(sets: list[list[str]]) -> Iterator[Text]:
    several = [" + ".join(names) for names in sets if len(names) > 1]
    alone = [names[0] for names in sets if len(names) == 1]
    if several:
        yield Text.assemble(("resident together: ", "bold"), "; ".join(several))
    if alone and len(sets) > 1:
        yield Text.assemble(("only alone: ", "bold"), ", ".join(alone))


def _cards(document: dict[str, Any]) -> list[RenderableType]:
    """Say of each card that a tier uses, in the inventory's order, how much is for tiers, by what reckoning."""
    # A card without a UUID is known by its figures alone.
    used = {
        (device["uuid"], device["gpu"], device["free_mib"], device["margin_mib"]): device
        for tier in document["tiers"]
        for device in tier["devices"]
    }
    order = [(gpu["name"], gpu["uuid"]) for gpu in document["gpus"]]
    said: list[RenderableType] = []
    for device in sorted(used.values(), key=lambda device: order.index((device["gpu"], device["uuid"]))):
        room = max(0, device["free_mib"] - device["margin_mib"])
        of_card = (
            f"{short_name(device['gpu'])}: {room:,} of {device['card_mib']:,} MiB for tiers "
            f"({device['taken_mib']:,} taken: {device['taken_by']}; {device['margin_mib']:,} margin)"
        )
        cuda = f"CUDA itself {device['overhead_mib']:,.0f} MiB: {device['overhead_by']}"
        said += [Text(of_card, style="dim"), Padding(Text(cuda, style="dim"), (0, 0, 0, 2))]
    return [*said, Text(_ram(document["tiers"][0]["host_ram"]), style="dim")]


def _ram(host_ram: dict[str, Any]) -> str:
    if host_ram["total_mib"] is None:
        return (
            "RAM: not known, so it was not checked; give ram_mib in a hardware file or ram.total_mib in the inventory"
        )
    whole, room = host_ram["total_mib"], host_ram["for_tiers_mib"]
    return f"RAM: {room:,} of {whole:,} MiB for tiers (the rest is the system's)"


def _tier(tier: dict[str, Any]) -> list[RenderableType]:
    placement, fits = tier["placement"], tier["verdict"] == "fits"
    title = Text.assemble(
        (tier["name"], "bold"),
        "  ",
        ("fits", "bold green") if fits else ("DOES NOT FIT", "bold red"),
        f"  {tier['model']}, context {placement['ctx_size']:,}{_range(tier['context'])}",
        ", on demand" if tier["residency"] == "on_demand" else "",
    )
    lines: list[RenderableType] = [title]
    if tier["decided"]:
        lines.append(Padding(Text(tier["decided"], style="green"), (0, 0, 0, 2)))
    if tier["confidence"] != KNOWN:
        lines.append(Padding(Text(f"low confidence: memory by {tier['confidence']}", style="yellow"), (0, 0, 0, 2)))
    if tier["header_tolerance"] is not None:
        note = f"its header is derived, true to {tier['header_tolerance']:.1%}; `checker lock` reads the file's own"
        lines.append(Padding(Text(note, style="dim"), (0, 0, 0, 2)))
    lines += [Padding(Text(f"note: {remark}", style="yellow"), (0, 0, 0, 2)) for remark in tier["remarks"]]
    if fits:
        lines += [Padding(Text(words), (0, 0, 0, 2)) for words in _words(tier)]
    lines.append(Padding(_devices(tier), (0, 0, 0, 2)))
    if fits and tier["unused_gpus"]:
        names = ", ".join(short_name(name) for name in tier["unused_gpus"])
        lines.append(Padding(Text(f"not used: {names}", style="dim"), (0, 0, 0, 2)))
    refused = [candidate for candidate in tier["candidates"] if candidate["verdict"] != "fits"]
    for candidate in refused:
        tried = f"✗ {candidate['model']}: " if len(tier["candidates"]) > 1 else "✗ nearest miss: "
        lines.append(Padding(Text(f"{tried}{candidate['tried']}", style="red"), (0, 0, 0, 2)))
        lines += [Padding(Text(reason), (0, 0, 0, 4)) for reason in candidate["reasons"]]
        lines.append(Padding(_changes(candidate["changes"]), (0, 0, 0, 4)))
    return lines


def _range(context: dict[str, int]) -> str:
    return f" of {context['min']:,} to {context['max']:,}" if context["max"] > context["min"] else ""


def _changes(changes: list[dict[str, Any]]) -> Table | Text:
    if not changes:
        return Text("no change of one kind would make it fit", style="dim")
    table = Table.grid(padding=(0, 1))
    for index, change in enumerate(changes):
        speed = change["tokens_per_second"]
        table.add_row(
            Text("" if index else "would fit:", style="dim"),
            Text(change["what"], style="green"),
            Text(f"{speed['expected']:.1f} tokens/s" if speed else "", justify="right"),
        )
    return table


def _words(tier: dict[str, Any]) -> list[str]:
    placement, speed = tier["placement"], tier["tokens_per_second"]
    cache = dict.fromkeys([placement["cache_type_k"], placement["cache_type_v"]])
    words = [f"KV {'/'.join(cache)}", f"micro-batch {placement['ubatch_size']}"]
    if tier["engine"]:
        words.append(f"engine {tier['engine']}")
    if len(tier["devices"]) > 1 and not placement["pipeline_parallel"]:
        words.append("no pipeline parallelism")
    if placement["cache_ram_mib"]:
        words.append(f"prompt cache {placement['cache_ram_mib']:,} MiB")
    if tier["load_mode"] == DIO:
        words.append("read past the page cache (no room there)")
    ram = tier["host_ram"]
    if ram["kv_mib"] or ram["weights_mib"] > 1024:
        words.append(f"{ram['needed_mib']:,.0f} MiB of host memory")
    if speed is None:
        return ["tokens/s not known: the memory bandwidth of a card is not", " · ".join(words)]
    by_priors = speed["by"] == "priors"
    expected = f"{speed['expected']:,.1f} tokens/s expected{', not measured here' if by_priors else ''}"
    return [
        f"{expected} ({speed['low']:,.1f} to {speed['high']:,.1f}), {speed['bound']:,.1f} is the bound",
        *([] if by_priors else [f"speed by: {speed['by']}"]),
        " · ".join(words),
    ]


def _devices(tier: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 1))
    for device in tier["devices"]:
        over = device["spare_mib"] < 0
        room = max(0, device["free_mib"] - device["margin_mib"])
        table.add_row(
            short_name(device["gpu"]),
            _bar(device, over),
            Text(f"{device['total_mib']:,.0f}", style="bold red" if over else "", justify="right"),
            Text(f"of {room:,} MiB", justify="right"),
            Text(layers_words(device["layers"]), style="dim", justify="right"),
        )
    return table


def _bar(device: dict[str, Any], over: bool) -> Text:
    held = {**device, "rest_mib": device["compute_mib"] + device["overhead_mib"]}
    whole = device["card_mib"]
    bar, end, drawn = Text("│"), 0.0, 0
    for key, character, style, _ in _PARTS:
        end += held[key]
        cells = min(_BAR, round(end / whole * _BAR)) - drawn
        bar.append(character * max(0, cells), style="red" if over and key != "taken_mib" else style)
        drawn += max(0, cells)
    bar.append(" " * (_BAR - drawn))
    bar.append("▶" if end > whole else "│", style="bold red" if over else "")
    return bar


def _legend() -> Text:
    parts = (part for _, character, style, word in _PARTS for part in ((character, style), f" {word}  "))
    return Text.assemble(*parts, ("numbers are MiB that the tier needs, of those for tiers", "dim"))
