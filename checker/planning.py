"""What `checker plan` reads: inventory through ansible-inventory, hardware files, catalogue, a model's own file.

The edge of the planner: everything here ends in the entries of `checker.catalogue` and in `checker.plan.make`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from checker import (
    calibration,
    cards,
    decision,
    plan,
    plan_document,
    policies,
    residuals,
    site_plan,
    spelling,
    yaml_file,
)
from checker.catalogue import (
    CAPABILITY_PATTERN,
    LEAST_CONTEXT,
    GbPerS,
    GpuEntry,
    InventoryError,
    Mib,
    ModelEntry,
    TierEntry,
    check_inventory,
    parse_inventory,
    parse_ram,
    sentences,
    with_placeholders,
)
from checker.decision import DecisionEntry
from checker.header import Header
from checker.placement import whole_layers

DEFAULT_CONTEXT = 8192
SCREENING_SCHEMA = "llama-tiers/screening/1"


class PlanningError(Exception):
    """Something that is needed for a plan cannot be read; the message names it and what was expected."""


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for besides the inventory; None leaves the inventory's word."""

    tier: str | None = None
    model: str | None = None
    context: int | None = None
    cache_type: str | None = None
    ubatch: int | None = None
    tensor_split: tuple[float, ...] | None = None
    gpu_layers: int | str | None = None


@dataclass(frozen=True)
class Subject:
    """One host to plan for: the inventory's variables, what was read of its hardware, and how fast its tiers ran.

    The profile has also what was measured of the cards' overhead (`residuals.overheads`). `remarks` say why what may be
    there was not read.
    """

    name: str
    variables: Mapping[str, Any]
    profile: Mapping[str, Any]
    measured: tuple[calibration.Run, ...] = ()
    remarks: tuple[str, ...] = ()


class _CardOfFile(BaseModel):
    """One card of a hardware file; memory in MiB, bandwidth in 10^9 bytes a second."""

    model_config = ConfigDict(extra="forbid")

    name: str
    uuid: str | None = None
    pci_bus_id: str | None = None
    total_mib: Mib | None = Field(default=None, gt=0)
    free_mib: Mib | None = None
    margin_mib: Mib | None = None
    bandwidth_gb_s: GbPerS | None = None
    compute_capability: Annotated[str, BeforeValidator(str)] | None = Field(default=None, pattern=CAPABILITY_PATTERN)

    @model_validator(mode="after")
    def _has_what_is_free(self) -> _CardOfFile:
        known = cards.KNOWN_CARDS.get(self.name)
        total = self.total_mib or (known.total_mib if known else None)
        if total and (self.free_mib or 0) > total:
            raise ValueError(f"free_mib {self.free_mib} is more than the {total} MiB of the card")
        return self


class _HardwareFile(BaseModel):
    """A host profile without the host (docs/planning.md)."""

    model_config = ConfigDict(extra="forbid")

    gpus: list[_CardOfFile] = Field(min_length=1)
    ram_mib: Mib | None = Field(default=None, gt=0)
    ram_bandwidth_gb_s: GbPerS | None = None


def read_yaml(path: Path) -> Any:
    """Read a YAML file; PlanningError names it when that cannot be done."""
    try:
        return yaml_file.read(path)
    except yaml_file.YamlFileError as error:
        raise PlanningError(str(error)) from error


def read_catalogues(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the models and engines of a checkout; PlanningError when this is none."""
    directory = root / "catalogue"
    if not (directory / "models.yml").is_file():
        raise PlanningError("this needs the repository's catalogue; run it from a checkout: .venv/bin/checker")
    return read_yaml(directory / "models.yml")["models"], read_yaml(directory / "engines.yml")["engines"]


def read_inventory(root: Path, inventory: Path, limit: str | None) -> list[Subject]:
    """Read the hosts of the group gpu_hosts with their variables, as Ansible merges them; needs no host."""
    beside = Path(sys.executable).parent / "ansible-inventory"
    command = [str(beside) if beside.exists() else "ansible-inventory", "-i", str(inventory), "--list"]
    command += ["--limit", limit] if limit else []
    try:
        ran = subprocess.run(
            command,
            cwd=root,
            # Ansible refuses to start with a locale that is not of UTF-8, such as C.
            env=os.environ | {"ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        document = json.loads(ran.stdout) if ran.returncode == 0 else None
    except FileNotFoundError:
        raise PlanningError("ansible-inventory is not installed here; `make setup` in the checkout does it") from None
    except json.JSONDecodeError:
        document = None
    names = sorted(_members(document, "gpu_hosts")) if document else []
    # Of a damaged file of hosts Ansible only warns, and then has no host.
    damaged = [] if names else list(yaml_file.damaged(inventory))
    if damaged:
        raise PlanningError("\n".join(damaged))
    if document is None:
        raise PlanningError(f"ansible-inventory cannot read {inventory}: {ran.stderr.strip() or ran.stdout.strip()}")
    words = document.get("_meta", {}).get("hostvars", {})
    if not names:
        which = f", or --limit {limit} leaves it out" if limit else ""
        raise PlanningError(f"{inventory} has no host in the group gpu_hosts{which}")
    of_roles = _variables_of_roles(root)
    return [_read(root, name, words.get(name, {}), of_roles) for name in names]


def _variables_of_roles(root: Path) -> set[str]:
    specs = (read_yaml(path)["argument_specs"] for path in root.glob("roles/*/meta/argument_specs.yml"))
    return {name for spec in specs for entry in spec.values() for name in entry.get("options", {})}


def _read(root: Path, name: str, words: Mapping[str, Any], of_roles: set[str]) -> Subject:
    subject = _measured(root, Subject(name, words, {}))
    return replace(subject, remarks=(*spelling.misspelt(words, of_roles), *subject.remarks))


def _measured(root: Path, subject: Subject) -> Subject:
    """Add what verification has kept of a host on this controller, or a remark why that cannot be read."""
    host, variables = subject.name, subject.variables
    directory = str(variables.get("verification_documents_directory", root))
    if "{{" in directory:
        why = f"verification_documents_directory {directory!r} is a template, which only a play resolves"
        return replace(subject, remarks=(f"{why}: speeds and memory are expected without what was measured",))
    path = root / directory / "evidence" / f"{host}.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return replace(subject, profile=residuals.overheads([report]), measured=calibration.runs(report))
    except FileNotFoundError:
        return subject
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        why = f"{path} tells nothing of speeds and memory: {reason}; `checker verify` writes it anew"
        return replace(subject, remarks=(why,))


def _members(document: Mapping[str, Any], group: str) -> set[str]:
    entry = document.get(group, {})
    return set(entry.get("hosts", [])).union(*(_members(document, child) for child in entry.get("children", [])))


def read_hardware(path: Path) -> Subject:
    """Read a host profile from a YAML file (docs/planning.md); the cards need no UUID."""
    document = read_yaml(path)
    if not isinstance(document, Mapping) or not isinstance(document.get("gpus"), list):
        raise PlanningError(f"{path}: expected `gpus:` with a list of cards (name, total_mib, ...), and `ram_mib:`")
    try:
        written = _HardwareFile.model_validate(document)
    except ValidationError as error:
        raise PlanningError("\n".join(sentences(str(path), error))) from error
    gpus = with_placeholders([gpu.model_dump(exclude_none=True) for gpu in written.gpus])
    of_inventory = ("name", "uuid", "total_mib", "bandwidth_gb_s", "compute_capability", "margin_mib")
    ram = {"bandwidth_gb_s": written.ram_bandwidth_gb_s} if written.ram_bandwidth_gb_s else {}
    return Subject(
        path.stem,
        {"gpus": [{key: gpu[key] for key in of_inventory if key in gpu} for gpu in gpus], "ram": ram},
        {"gpus": gpus, "ram_mib": written.ram_mib},
    )


def subjects(root: Path, inventory: str | None, limit: str | None, hardware: str | None) -> list[Subject]:
    """Return the hosts to plan for: the inventory's, the hardware file's, or the inventory's one on that hardware."""
    if inventory is None:
        return [read_hardware(Path(str(hardware)).expanduser())]
    path = Path(inventory).expanduser().resolve()
    if not path.exists():
        raise PlanningError(f"no inventory at {inventory}; give -i a file or folder, such as inventories/production")
    hosts = read_inventory(root, path, limit)
    if hardware is None:
        return hosts
    if len(hosts) > 1:
        names = ", ".join(host.name for host in hosts)
        raise PlanningError(f"{hardware} is one host's hardware, the inventory has {names}: name one with --limit")
    read = read_hardware(Path(hardware).expanduser())
    # A decision is of the cards on which it was measured.
    variables = {**hosts[0].variables, "gpus": read.variables["gpus"], decision.VARIABLE: None}
    return [replace(hosts[0], variables=variables, profile={**hosts[0].profile, **read.profile})]


def read_header(source: str) -> Header:
    """Read the header of a GGUF, a file or a URL; PlanningError when it is none."""
    from checker import gguf
    from checker.header import HeaderError

    try:
        return gguf.read_header(source)
    except (HeaderError, OSError, ValueError) as error:
        raise PlanningError(str(error)) from error


def make(subject: Subject, wishes: Wishes, models: Mapping[str, Any], engines: Mapping[str, Any]) -> dict[str, Any]:
    """Plan one host and return the plan document; InventoryError or PlanningError when it cannot be planned."""
    try:
        return _made(subject, wishes, models, engines)
    except InventoryError as error:
        raise InventoryError([_as_typed(problem, wishes) for problem in error.problems]) from error


def _made(subject: Subject, wishes: Wishes, models: Mapping[str, Any], engines: Mapping[str, Any]) -> dict[str, Any]:
    variables = subject.variables
    refuse_templates(variables, *(["tiers"] if wishes.model is None else []))
    known, models = models, dict(models)
    gpus = with_placeholders(variables.get("gpus") or [])
    tiers = _tiers(variables.get("tiers") or [], wishes, models, gpus)
    parsed_gpus, parsed_tiers, parsed_models, host = _checked(subject, gpus, tiers, models, engines)
    decided = None
    if wishes.model is None:
        decided = decision.parse(variables.get(decision.VARIABLE), subject.name, _names(variables["tiers"]))
    if decided:
        parsed_tiers = _decided(variables["tiers"], parsed_tiers, decided, parsed_gpus, parsed_models)
    planned = plan.make(parsed_gpus, parsed_tiers, parsed_models, host)
    chosen = [each.chosen.model for each in planned.tiers]
    unlocked = _cannot_be_fetched([name for name in chosen if name in known], parsed_models)
    remarks = (*subject.remarks, *_taken_as(wishes, tiers), *site_plan.exposed(parsed_tiers), *unlocked)
    return plan_document.to_json(planned, subject.name, remarks, decided)


def _cannot_be_fetched(wanted: Iterable[str], models: Mapping[str, ModelEntry]) -> tuple[str, ...]:
    """Say which of the wanted models site.yml would refuse to fetch, if any."""
    names = " ".join(name for name in dict.fromkeys(wanted) if not models[name].sha256 and not models[name].parts)
    if not names:
        return ()
    return (f"the catalogue has no sha256, without which nothing is fetched: run `checker lock {names}`",)


def engine_of(variables: Mapping[str, Any], engines: Mapping[str, Any]) -> tuple[str, str]:
    """Return a host's engine and back end: what its inventory names, else what the role llama_cpp takes."""
    engine = str(variables.get("llama_cpp_engine") or next(iter(engines)))
    return engine, str(variables.get("llama_cpp_backend", "cuda"))


def refuse_templates(variables: Mapping[str, Any], *words: str) -> None:
    """Raise PlanningError for one that what a host's inventory says of its cards and engine, or of `words`, has."""
    for word in ("gpus", "ram", "llama_cpp_engine", "llama_cpp_backend", *words):
        template = _template(variables.get(word))
        if template:
            raise PlanningError(
                f"{word} has a template, {template!r}, which only a play resolves: write the value itself, or plan "
                "without the inventory, with --hardware and --model; site.yml plans it as it is"
            )


def _template(value: Any) -> str | None:
    """Return the first template that is anywhere in what the inventory says, None when there is none."""
    if isinstance(value, str):
        return value if "{{" in value or "{%" in value else None
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next(filter(None, map(_template, parts)), None)


def _checked(
    subject: Subject, gpus: Any, tiers: Any, models: Mapping[str, Any], engines: Mapping[str, Any]
) -> tuple[list[GpuEntry], list[TierEntry], dict[str, ModelEntry], cards.Host]:
    """Return the inventory's entries and the host by what is known of it; InventoryError has every problem."""
    variables = subject.variables
    problems = check_inventory(gpus, tiers, models, engines, *engine_of(variables, engines))
    ram = parse_ram(variables.get("ram") or {}, problems)
    problems += policies.acceptable_problems(variables)
    if problems:
        raise InventoryError(problems)
    parsed_gpus, parsed_tiers, parsed_models, _ = parse_inventory(gpus, tiers, models)
    host = calibration.calibrated(cards.host(parsed_gpus, ram, subject.profile), subject.measured, parsed_models)
    return parsed_gpus, parsed_tiers, parsed_models, host


def _decided(
    written: Any,
    wished: Sequence[TierEntry],
    decided: DecisionEntry,
    gpus: Sequence[GpuEntry],
    models: Mapping[str, ModelEntry],
) -> list[TierEntry]:
    """Return tiers with the decided candidate alone; it is found as the inventory wrote it, before the wishes.

    A tier that is wished otherwise is not placed as the candidate was measured. InventoryError as of
    `decision.narrowed`.
    """
    by_name = {entry.name: entry for entry in parse_inventory([], written, {})[1]}
    narrowed = []
    for entry in wished:
        before, choice = by_name[entry.name], decided.tiers.get(entry.name)
        (own,) = decision.narrowed([before], decided, gpus, models)
        if entry != before:
            pairs = zip(entry.candidates, before.candidates, strict=True)
            kept = [each for each, old in pairs if choice is None or decision.is_decided(old, choice)]
            own = entry.model_copy(update={"candidates": kept})
        narrowed.append(own)
    return narrowed


def screen(subject: Subject, tier: str | None, models: Mapping[str, Any], engines: Mapping[str, Any]) -> dict[str, Any]:
    """Screen every candidate of a host's tiers, or of one, and return the document; errors as those of `make`."""
    refuse_templates(subject.variables, "tiers")
    gpus, tiers = with_placeholders(subject.variables.get("gpus") or []), subject.variables.get("tiers") or []
    tiers = _tiers(tiers, Wishes(tier=tier), dict(models), gpus)
    parsed_gpus, parsed_tiers, parsed_models, host = _checked(subject, gpus, tiers, models, engines)
    screened = [
        (entry, list(zip(entry.candidates, plan.screen(entry, parsed_gpus, parsed_models, host), strict=True)))
        for entry in parsed_tiers
    ]
    room = [each.model for _, found in screened for each, tried in found if tried.fits]
    return {
        "schema": SCREENING_SCHEMA,
        "host": subject.name,
        "remarks": [*subject.remarks, *_cannot_be_fetched(room, parsed_models)],
        "tiers": [
            {
                "name": entry.name,
                "candidates": [
                    {
                        "placement": candidate.written,
                        "words": decision.placement_words(candidate.written),
                        "tokens_per_second": round(tried.choice.speed.expected, 1) if tried.choice.speed else None,
                        **plan_document.tried_json(tried),
                    }
                    for candidate, tried in found
                ],
            }
            for entry, found in screened
        ],
    }


def _as_typed(problem: str, wishes: Wishes) -> str:
    """Call in a problem what the command line asked for by the name that it has there."""
    typed = {
        "tensor_split": ("--tensor-split", wishes.tensor_split),
        "n_gpu_layers": ("--gpu-layers", wishes.gpu_layers),
        "ubatch_size": ("--ubatch", wishes.ubatch),
        "cache_type_[kv]": ("--cache-type", wishes.cache_type),
    }
    for key, (option, wish) in typed.items():
        if wish is not None:
            problem = re.sub(rf"(candidates\[\d+\]\.placement\.)?\b{key}\b", option, problem)
    return problem.removeprefix("tier model: ") if wishes.model is not None else problem


def _tiers(written: Any, wishes: Wishes, models: dict[str, Any], gpus: Any) -> Any:
    """Return the tiers to plan: the inventory's, the named one, or one for a model; with the wishes put in."""
    if wishes.model is not None:
        written = [_tier_of(wishes, models)]
    elif not isinstance(written, list):
        return written
    elif wishes.tier is not None:
        names = _names(written)
        if wishes.tier not in names:
            raise PlanningError(f"no tier {wishes.tier!r}; tiers here: {', '.join(names) or 'none'}")
        # Alone it has nobody to stand in for it.
        alone = (tier for tier in written if isinstance(tier, Mapping) and tier.get("name") == wishes.tier)
        written = [{key: value for key, value in tier.items() if key != "fallback"} for tier in alone]
    return [_with_wishes(tier, wishes, models, gpus) for tier in written]


def _names(written: Sequence[Any]) -> list[str]:
    return [str(tier.get("name")) for tier in written if isinstance(tier, Mapping)]


def _tier_of(wishes: Wishes, models: dict[str, Any]) -> dict[str, Any]:
    name = str(wishes.model)
    if name not in models:
        # Of a URL the path alone: its query may hold a signature.
        source, name = _gguf(name, models), Path(urlsplit(name).path if "://" in name else name).name
        models[name] = {"file": name, "header": read_header(source).to_json()}
    header = _header(name, models)
    return {
        "name": "model",
        "port": 8080,
        "context": max(LEAST_CONTEXT, min(DEFAULT_CONTEXT, header.n_ctx_train)) if header else DEFAULT_CONTEXT,
        "gpus": "any",
        "candidates": [{"model": name}],
    }


def _gguf(name: str, models: Mapping[str, Any]) -> str:
    """Return the file or URL of a GGUF that is called so; PlanningError when it is neither, nor a known model."""
    scheme, mark, _ = name.partition("://")
    if mark:
        if scheme.lower() not in ("http", "https"):
            raise PlanningError(f"a model cannot be read from {scheme}://: give an address of http or https, or a file")
        return name
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return str(path)
        if name and path.is_dir():
            raise PlanningError(f"{name} is a folder: name the GGUF in it")
    except (OSError, RuntimeError):  # a name that no file can have, a home of nobody
        pass
    if "/" in name or name.endswith(".gguf"):
        raise PlanningError(f"there is no file {name}")
    raise PlanningError(
        f"{name!r} is neither a model of the catalogue nor a GGUF (file or URL); "
        f"{spelling.meant(name, models)}known models: {', '.join(sorted(models))}"
    )


def _header(name: str, models: Mapping[str, Any]) -> Header | None:
    entry = models.get(name)
    return ModelEntry.model_validate(entry).header if entry else None


def _with_wishes(tier: Any, wishes: Wishes, models: Mapping[str, Any], gpus: Any) -> Any:
    asked = (wishes.cache_type, wishes.ubatch, wishes.tensor_split, wishes.gpu_layers)
    if (
        not isinstance(tier, Mapping)
        or not isinstance(tier.get("candidates"), list)
        or (wishes.context is None and all(wish is None for wish in asked))
    ):
        return tier
    changed = dict(tier)
    if wishes.context is not None:
        changed["context"] = wishes.context
    own = tier.get("gpus") if isinstance(tier.get("gpus"), list) else gpus
    changed["candidates"] = [
        {**candidate, "placement": _placement(candidate, wishes, models, own)}
        if isinstance(candidate, Mapping)
        else candidate
        for candidate in tier["candidates"]
    ]
    return changed


def _placement(candidate: Mapping[str, Any], wishes: Wishes, models: Mapping[str, Any], gpus: Any) -> Any:
    written = candidate.get("placement", "auto")
    if written != "auto" and not isinstance(written, Mapping):
        return written
    placement = {} if written == "auto" else dict(written)
    if wishes.cache_type is not None:
        placement |= {"cache_type_k": wishes.cache_type, "cache_type_v": wishes.cache_type}
    if wishes.ubatch is not None:
        placement["ubatch_size"] = wishes.ubatch
    if wishes.gpu_layers is not None:
        placement["n_gpu_layers"] = wishes.gpu_layers
        # Another number of layers needs another split.
        placement.pop("tensor_split", None)
    if wishes.tensor_split is not None:
        if isinstance(gpus, list) and len(gpus) != len(wishes.tensor_split):
            names = ", ".join(str(gpu["name"] if isinstance(gpu, Mapping) and "name" in gpu else gpu) for gpu in gpus)
            parts, card = len(wishes.tensor_split), "card" if len(gpus) == 1 else "cards"
            raise PlanningError(
                f"--tensor-split {_joined(wishes.tensor_split)} has {parts} {'entry' if parts == 1 else 'entries'} for "
                f"{len(gpus)} {card}: give one for each, in this order: {names}"
            )
        placement["tensor_split"] = _whole(wishes.tensor_split, candidate, placement.get("n_gpu_layers"), models)
        placement.setdefault("split_mode", "layer")
    return placement


def _whole(
    ratios: tuple[float, ...], candidate: Mapping[str, Any], gpu_layers: Any, models: Mapping[str, Any]
) -> list[float]:
    """Turn proportions such as 8,3 into the whole layers that llama.cpp makes of them."""
    header = _header(str(candidate.get("model")), models)
    if header is None:
        return list(ratios)
    return list(whole_layers(ratios, gpu_layers if isinstance(gpu_layers, int) else header.n_layer + 1))


def _joined(parts: Sequence[float]) -> str:
    return ",".join(f"{part:g}" for part in parts)


def _taken_as(wishes: Wishes, tiers: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Say as what the split of the command line was taken where it does not name the layers themselves."""
    if wishes.tensor_split is None:
        return ()
    asked = _joined(wishes.tensor_split)
    splits = [candidate["placement"]["tensor_split"] for tier in tiers for candidate in tier["candidates"]]
    return dict.fromkeys(
        f"{asked} is taken as {','.join(map(str, split))} of {sum(split)} layers, as llama.cpp would"
        for split in splits
        if split != list(wishes.tensor_split)
    )
