"""What `checker decide` and `checker trial` read and write: policies, the records of trials, a host's decision.yml.

The edge of `checker.decision`: everything here ends in its records, or begins with its documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from checker import decision, planning, policies, spelling, trial, whole
from checker.catalogue import (
    GpuEntry,
    InventoryError,
    ModelEntry,
    TierEntry,
    check_inventory,
    parse_inventory,
    sentences,
    with_placeholders,
)
from checker.decision import Decision
from checker.planning import PlanningError, Subject
from checker.policies import Policies

FILE = "decision.yml"
_RECORD = TypeAdapter(trial.Trial)
_HEAD = """\
---
# Written by `checker decide` as a whole; do not edit. It says which of its candidates each tier serves, and by which
# evidence. Without this file the inventory's order of preference holds.
"""


def read_policies(path: Path) -> Policies:
    """Read a file of policies; InventoryError has every problem in it, PlanningError why it cannot be read."""
    return policies.parse(planning.read_yaml(path), str(path))


def directory_of(root: Path, subject: Subject, evidence: Path | None) -> Path:
    """Return the folder with the records of a host's trials; `evidence` in the place of what the inventory says.

    PlanningError when the inventory's folder of documents is a template, which only a play resolves.
    """
    if evidence is None:
        documents = str(subject.variables.get("verification_documents_directory", root))
        if "{{" in documents:
            raise PlanningError(
                f"verification_documents_directory {documents!r} is a template, which only a play resolves: "
                "name the folder of the evidence with --evidence"
            )
        evidence = root / documents / "evidence"
    return evidence / "trials" / subject.name


def read_trials(directory: Path) -> list[trial.Trial]:
    """Read the records of trials in a folder; PlanningError when there are none, or names one that is damaged."""
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            content = path.read_bytes()
            record = trial.from_json(json.loads(content), sha256(content).hexdigest())
            # As JSON, which has lists for tuples: only there is strict about the types of values alone.
            _RECORD.validate_json(json.dumps(asdict(record)), strict=True)
        except ValidationError as error:
            said = "; ".join(sentences(f"{path} is no record of a trial", error))
            raise PlanningError(f"{said}; remove it, and run the command again") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise PlanningError(
                f"{path} is no record of a trial: {reason}; remove it, and run the command again"
            ) from error
        found.append(record)
    if not found:
        raise PlanningError(
            f"there is no trial in {directory}, so nothing was measured: run `checker trial -i INVENTORY` first"
        )
    return found


def decide(
    subject: Subject,
    trials: Iterable[trial.Trial],
    known: Policies,
    policy: str | None,
    models: Mapping[str, Any],
    engines: Mapping[str, Any],
) -> Decision:
    """Decide for one host; InventoryError when the inventory cannot be used, PlanningError for an unknown policy."""
    name = policy or known.first
    if name not in known.policies:
        raise PlanningError(
            f"no policy {name!r}; {spelling.meant(name, known.policies)}policies: {', '.join(known.policies)}"
        )
    acceptable = subject.variables.get(policies.ACCEPTABLE, known.acceptable_tokens_per_second)
    asked = _asked(subject, models, engines, policies.acceptable_problems(subject.variables))
    tried, foreign = [], set()
    for each in trials:
        if each.host == subject.name:
            tried.append(each)
        else:
            foreign.add(each.host)
    candidates = {
        entry.name: decision.contenders(entry, asked.models, tried, asked.commits[entry.name], asked.gpus)
        for entry in asked.tiers
    }
    made = decision.decide(subject.name, candidates, known, name, float(acceptable))
    if not foreign:
        return made
    warning = (
        f"trials of {', '.join(sorted(foreign))} lie among those of {subject.name} and count for nothing: "
        "`checker trial -i INVENTORY --again` tries here"
    )
    return replace(made, warnings=(*made.warnings, warning))


def outdated(
    subject: Subject, records: Iterable[Mapping[str, Any]], models: Mapping[str, Any], engines: Mapping[str, Any]
) -> list[str | None]:
    """Say of each record of a host's trials why no decision goes by it; None when one may.

    InventoryError when the inventory cannot be used, PlanningError when only a play can read it.
    """
    asked = _asked(subject, models, engines)
    found = [trial.from_json(record) for record in records]
    return decision.outdated(found, asked.tiers, asked.models, asked.commits, asked.gpus)


@dataclass(frozen=True)
class _Asked:
    """What an inventory asks of a host; `commits` are those of the tiers' engines, by tier."""

    gpus: list[GpuEntry]
    tiers: list[TierEntry]
    models: dict[str, ModelEntry]
    commits: dict[str, str]


def _asked(
    subject: Subject, models: Mapping[str, Any], engines: Mapping[str, Any], wrong: Sequence[str] = ()
) -> _Asked:
    """Read a host's inventory; InventoryError has its problems, and what else was found `wrong` with it."""
    variables = subject.variables
    planning.refuse_templates(variables, "tiers")
    gpus, tiers = with_placeholders(variables.get("gpus") or []), variables.get("tiers") or []
    engine, backend = planning.engine_of(variables, engines)
    problems = [*check_inventory(gpus, tiers, models, engines, engine, backend), *wrong]
    if problems:
        raise InventoryError(problems)
    parsed_gpus, parsed_tiers, parsed_models, _ = parse_inventory(gpus, tiers, models)
    commits = {entry.name: str(engines[entry.engine or engine]["commit"]) for entry in parsed_tiers}
    return _Asked(parsed_gpus, parsed_tiers, parsed_models, commits)


def path_of(inventory: Path, host: str) -> Path:
    """Return where the decision of a host stands; PlanningError when Ansible would not read it there."""
    path = _place(inventory, host)
    folder, base = path.parent, _base(inventory)
    if folder.parent.parent != base or host in (".", ".."):
        raise PlanningError(f"host {host!r} cannot have a folder in {base / 'host_vars'}: give it a plain name")
    if not folder.exists():
        for name in (f"{host}.yml", f"{host}.yaml", f"{host}.json"):
            beside = folder.with_name(name)
            if beside.exists():
                raise PlanningError(
                    f"{beside} would be read no longer beside a folder {folder}: move it to {folder / 'main.yml'}"
                )
    return path


def _place(inventory: Path, host: str) -> Path:
    return _base(inventory) / "host_vars" / host / FILE


def _base(inventory: Path) -> Path:
    return inventory if inventory.is_dir() else inventory.parent


def text_of(document: Mapping[str, Any]) -> str:
    """Return the text of the decision's file."""
    body = yaml.safe_dump(
        {decision.VARIABLE: dict(document)}, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )
    return _HEAD + body


def write(path: Path, text: str) -> bool:
    """Put a decision in its place, whole or not at all; return whether that changed anything.

    PlanningError when the file there is not one of ours, or cannot be written.
    """
    if _there(path) == text:
        return False
    try:
        whole.write(path, text)
    except OSError as error:
        raise PlanningError(f"{path} cannot be written: {error.strerror or error}") from error
    return True


def would_write(path: Path, document: Mapping[str, Any]) -> str:
    """Say what writing a decision would do to the file in its place; PlanningError when that is not one of ours."""
    before = _there(path)
    if before is None:
        return "it would be new"
    if before == text_of(document):
        return "it is there, just so"
    old, new = _candidates(yaml.safe_load(before)[decision.VARIABLE]), _candidates(document)
    order = "the inventory's order"
    changes = [
        f"{name}: {old.get(name, order)} → {new.get(name, order)}"
        for name in {**new, **old}
        if old.get(name) != new.get(name)
    ]
    return f"it would change: {', '.join(changes)}" if changes else "it would change, but no candidate"


def _candidates(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the candidates of a decision in words, by tier; none of one that is not whole and of this schema."""
    try:
        tiers = decision.DecisionEntry.model_validate(document).tiers
    except ValidationError:
        return {}
    return {name: f"{each.model} ({decision.placement_words(each.placement)})" for name, each in tiers.items()}


def stands(inventory: Path, made: Decision) -> str:
    """Say by what a host's tiers are served where no policy decides."""
    path = _place(inventory, made.host)
    if path.exists():
        return f"{path} is left as it is"
    first = ", ".join(f"{name}: {candidate}" for name, candidate in made.by_order.items())
    return f"the inventory's order holds, {first}"


def _there(path: Path) -> str | None:
    """Return the text of the decision in its place, None when there is none; PlanningError when it is not ours."""
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlanningError(f"{path} cannot be written: {reason}") from error
    if before is not None and not _is_ours(before):
        raise PlanningError(
            f"{path} was not written by `checker decide`, so it is left alone: move what it says to another file "
            "of its folder, such as main.yml"
        )
    return before


def _is_ours(text: str) -> bool:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    if not isinstance(document, dict) or set(document) != {decision.VARIABLE}:
        return False
    own = document[decision.VARIABLE]
    return isinstance(own, dict) and str(own.get("schema", "")).startswith("llama-tiers/decision/")
