"""Explanations of decisions (docs/schemas/decision.schema.json) as people and programs read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from checker.policies import ACCEPTABLE
from checker.reports.console import printed

# Criteria that have a shorter name above a column.
_HEADS = {"verification": "verified", "layers on the CPU": "on CPU"}
# Criteria whose finding is a sentence, which has no room in a table.
_SENTENCES = ("measured", "verification")


def render(explanations: Sequence[dict[str, Any]], standing: Mapping[str, str], name: str) -> str:
    """Render the explanations of some hosts' decisions; JSON is one document, or one a line of several hosts.

    `standing` says to people, by host, what became of its file, or by what is served where no policy decides.
    """
    if name == "json":
        indent = 2 if len(explanations) == 1 else None
        return "\n".join(json.dumps(each, indent=indent, ensure_ascii=False) for each in explanations)
    return printed(Group(*(part for each in explanations for part in _host(each, standing.get(each["host"])))))


def _host(document: dict[str, Any], stands: str | None) -> Iterator[RenderableType]:
    decision = document["decision"]
    acceptable = f"acceptable are {document['acceptable_tokens_per_second']:g} tokens/s"
    yield Text.assemble((document["host"], "bold underline"), f"  {acceptable}")
    shown: dict[str, tuple[str, dict[str, Any]]] = {}
    for policy in document["policies"]:
        verdict = ("decides", "bold green") if policy["applies"] else ("does not apply", "bold red")
        yield Text.assemble(("\n" + policy["name"], "bold"), "  ", verdict, f": {policy['reason']}")
        yield Padding(Text(policy["note"], style="dim"), (0, 0, 0, 2))
        for tier in policy["tiers"]:
            before, first = shown.setdefault(tier["name"], (policy["name"], tier))
            again = first is not tier and not policy["applies"]
            yield Padding(Group(*(_as_before(tier, before, first) if again else _tier(tier))), (0, 0, 0, 2))
    yield Text()
    if decision is None:
        stays = f"no policy decides; what serves stays{f': {stands}' if stands else ''}"
        yield Text(stays, style="bold red")
        yield Text(
            f"To have one decide: lower {ACCEPTABLE} ({document['acceptable_tokens_per_second']:g} now), list other "
            "candidates, or try those that have no trial that counts (`checker trial -i INVENTORY`); then decide again"
        )
    else:
        for name, chosen in decision["tiers"].items():
            yield Text.assemble((f"{name}: ", "bold"), (chosen["model"], "green"), f", {chosen['because']}")
        for name in document["undecided"]:
            first = document["by_order"].get(name)
            said = f"{name}: {first}" if first else name
            yield Text(f"left to the inventory's order: {said}; {decision['policy']} has no rule for it", style="dim")
    for warning in document["warnings"]:
        yield Text(f"! {warning}", style="yellow")
    if decision is not None and stands:
        yield Text(stands)
    yield Text()


def _as_before(tier: dict[str, Any], policy: str, first: dict[str, Any]) -> Iterator[RenderableType]:
    """Say what is found of a tier otherwise than under the policy that has shown its candidates."""
    other = [change for change in tier["changes"] if change not in first["changes"]]
    told = f"{tier['because']}; as under {policy}{', but for:' if other else ''}"
    yield Text.assemble((f"{tier['name']}: ", "bold"), told)
    for change in other:
        yield Text(f"- {change}", style="dim")


def _tier(tier: dict[str, Any]) -> Iterator[RenderableType]:
    wanted: dict[str, str] = {}
    for candidate in tier["candidates"]:
        wanted |= {each["name"]: each["wanted"] for each in candidate["criteria"] if each["name"] != "measured"}
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column(tier["name"], overflow="fold")
    table.add_column("solves\n%", justify="right")
    for name, limit in wanted.items():
        table.add_column(f"{_HEADS.get(name, name)}\n{_short(limit)}", justify="right")
    for candidate in tier["candidates"]:
        found = {each["name"]: each for each in candidate["criteria"]}
        table.add_row(
            _mark(candidate),
            Text.assemble(candidate["model"], (f"\n{candidate['words']}", "dim")),
            _published(candidate["published"]),
            *(_cell(found.get(name)) for name in wanted),
        )
    yield table
    for candidate in tier["candidates"]:
        said = [each["found"] for each in candidate["criteria"] if each["name"] in _SENTENCES and not each["passed"]]
        # What stands among the changes need not be said twice.
        for sentence in said:
            if any(sentence in change for change in tier["changes"]):
                continue
            yield Text(f"- {candidate['model']} ({candidate['words']}): {sentence}", style="red")
    for change in tier["changes"]:
        yield Text(f"- {change}", style="dim")


def _mark(candidate: dict[str, Any]) -> Text:
    if candidate["chosen"]:
        return Text("▶", style="bold green")
    return Text("✓", style="green") if candidate["passes"] else Text("✗", style="red")


def _published(published: dict[str, float | None]) -> str:
    known = [f"{figure:g}" for figure in (published["score"], published["aime_2024"]) if figure is not None]
    return "\n".join(known) or "-"


def _short(limit: str) -> str:
    return limit.replace("at least ", "≥ ").replace("at most ", "≤ ")


def _cell(criterion: dict[str, Any] | None) -> Text:
    if criterion is None:
        return Text("-", style="dim")
    word = criterion["found"] if criterion["passed"] or criterion["name"] not in _SENTENCES else "FAIL"
    return Text(word, style="green" if criterion["passed"] else "red")
