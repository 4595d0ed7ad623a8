"""What `checker plan` reads: inventory through ansible-inventory, hardware files, catalogue, a model's own file.

The edge of the planner: everything here ends in the entries of `checker.catalogue` and in `checker.plan.make`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from checker import calibration, cards, plan
from checker.catalogue import (
    InventoryError,
    ModelEntry,
    check_inventory,
    parse_inventory,
    parse_ram,
    sentences,
    with_placeholders,
)
from checker.header import Header
from checker.placement import whole_layers

DEFAULT_CONTEXT = 8192


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
    """One host to plan for: the inventory's variables, what was read of its hardware, and what was measured on it.

    `remarks` say why measurements that might be there were not read.
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
    total_mib: int | None = Field(default=None, gt=0)
    free_mib: int | None = Field(default=None, ge=0)
    margin_mib: int | None = Field(default=None, ge=0)
    bandwidth_gb_s: float | None = Field(default=None, gt=0)
    compute_capability: Annotated[str, BeforeValidator(str)] | None = Field(default=None, pattern=r"^\d+\.\d+$")


class _HardwareFile(BaseModel):
    """A host profile without the host (docs/planning.md)."""

    model_config = ConfigDict(extra="forbid")

    gpus: list[_CardOfFile]
    ram_mib: int | None = Field(default=None, gt=0)
    ram_bandwidth_gb_s: float | None = Field(default=None, gt=0)


def read_yaml(path: Path) -> Any:
    """Read a YAML file; PlanningError names it when that cannot be done."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanningError(f"{path} cannot be read: {error}") from error


def read_inventory(root: Path, inventory: Path, limit: str | None) -> list[Subject]:
    """Read the hosts of the group gpu_hosts with their variables, as Ansible merges them; needs no host."""
    beside = Path(sys.executable).parent / "ansible-inventory"
    command = [str(beside) if beside.exists() else "ansible-inventory", "-i", str(inventory), "--list"]
    command += ["--limit", limit] if limit else []
    try:
        ran = subprocess.run(
            command, cwd=root, env=os.environ | {"ANSIBLE_NOCOLOR": "1"}, capture_output=True, text=True, check=False
        )
        document = json.loads(ran.stdout) if ran.returncode == 0 else None
    except FileNotFoundError:
        raise PlanningError("ansible-inventory is not installed here; `make setup` in the checkout does it") from None
    except json.JSONDecodeError:
        document = None
    if document is None:
        raise PlanningError(f"ansible-inventory cannot read {inventory}: {ran.stderr.strip() or ran.stdout.strip()}")
    variables = document.get("_meta", {}).get("hostvars", {})
    names = sorted(_members(document, "gpu_hosts"))
    if not names:
        which = f" of {limit}" if limit else ""
        raise PlanningError(f"no host{which} of the group gpu_hosts is in {inventory}")
    found = []
    for name in names:
        words = variables.get(name, {})
        measured, remarks = _measured(root, name, words)
        found.append(Subject(name, words, {}, measured, remarks))
    return found


def _measured(
    root: Path, host: str, variables: Mapping[str, Any]
) -> tuple[tuple[calibration.Run, ...], tuple[str, ...]]:
    """Read what verification has kept of a host on this controller; return the runs, and remarks."""
    directory = str(variables.get("verification_documents_directory", root))
    if "{{" in directory:
        why = f"verification_documents_directory {directory!r} is a template, which only a play resolves"
        return (), (f"{why}: speeds are expected without what was measured",)
    path = root / directory / "evidence" / f"{host}.json"
    try:
        return calibration.runs(json.loads(path.read_text(encoding="utf-8"))), ()
    except FileNotFoundError:
        return (), ()
    except (OSError, ValueError) as error:
        return (), (f"{path} tells nothing of speeds: {error}; `checker verify` writes it anew",)


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
        return [read_hardware(Path(str(hardware)))]
    path = Path(inventory).resolve()
    if not path.exists():
        raise PlanningError(f"no inventory at {inventory}; give -i a file or folder, such as inventories/production")
    hosts = read_inventory(root, path, limit)
    if hardware is None:
        return hosts
    if len(hosts) > 1:
        names = ", ".join(host.name for host in hosts)
        raise PlanningError(f"{hardware} is one host's hardware, the inventory has {names}: name one with --limit")
    read = read_hardware(Path(hardware))
    variables = {**hosts[0].variables, "gpus": read.variables["gpus"]}
    return [replace(hosts[0], variables=variables, profile=read.profile)]


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
    variables = subject.variables
    models = dict(models)
    gpus = with_placeholders(variables.get("gpus") or [])
    tiers = _tiers(variables.get("tiers") or [], wishes, models)
    engine = str(variables.get("llama_cpp_engine") or next(iter(engines)))
    problems = check_inventory(gpus, tiers, models, engines, engine, str(variables.get("llama_cpp_backend", "cuda")))
    ram = parse_ram(variables.get("ram") or {}, problems)
    if problems:
        raise InventoryError(problems)
    parsed_gpus, parsed_tiers, parsed_models, _ = parse_inventory(gpus, tiers, models)
    host = calibration.calibrated(cards.host(parsed_gpus, ram, subject.profile), subject.measured, parsed_models)
    return plan.to_json(plan.make(parsed_gpus, parsed_tiers, parsed_models, host), subject.name, subject.remarks)


def _tiers(written: Any, wishes: Wishes, models: dict[str, Any]) -> Any:
    """Return the tiers to plan: the inventory's, the named one, or one for a model; with the wishes put in."""
    if wishes.model is not None:
        written = [_tier_of(wishes, models)]
    elif not isinstance(written, list):
        return written
    elif wishes.tier is not None:
        names = [tier.get("name") for tier in written if isinstance(tier, Mapping)]
        if wishes.tier not in names:
            raise PlanningError(f"no tier {wishes.tier!r}; tiers here: {', '.join(map(str, names)) or 'none'}")
        written = [tier for tier in written if tier.get("name") == wishes.tier]
    return [_with_wishes(tier, wishes, models) for tier in written]


def _tier_of(wishes: Wishes, models: dict[str, Any]) -> dict[str, Any]:
    name = str(wishes.model)
    if name not in models:
        source, path = name, Path(name)
        if "://" not in name and not _is_there(path):
            raise PlanningError(
                f"{name!r} is neither a model of the catalogue nor a GGUF (file or URL); "
                f"known models: {', '.join(sorted(models))}"
            )
        # Of a URL the path alone: its query may hold a signature.
        name = Path(urlsplit(source).path).name if "://" in source else path.name
        models[name] = {"file": name, "header": read_header(source).to_json()}
    return {
        "name": "model",
        "port": 8080,
        "context": DEFAULT_CONTEXT,
        "gpus": "any",
        "candidates": [{"model": name}],
    }


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _with_wishes(tier: Any, wishes: Wishes, models: Mapping[str, Any]) -> Any:
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
    changed["candidates"] = [
        {**candidate, "placement": _placement(candidate, wishes, models)}
        if isinstance(candidate, Mapping)
        else candidate
        for candidate in tier["candidates"]
    ]
    return changed


def _placement(candidate: Mapping[str, Any], wishes: Wishes, models: Mapping[str, Any]) -> Any:
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
        placement["tensor_split"] = _whole(wishes.tensor_split, candidate, placement.get("n_gpu_layers"), models)
        placement.setdefault("split_mode", "layer")
    return placement


def _whole(
    ratios: tuple[float, ...], candidate: Mapping[str, Any], gpu_layers: Any, models: Mapping[str, Any]
) -> list[float]:
    """Turn proportions such as 8,3 into the whole layers that llama.cpp makes of them."""
    entry = models.get(str(candidate.get("model")))
    header = ModelEntry.model_validate(entry).header if entry else None
    if header is None:
        return list(ratios)
    return list(whole_layers(ratios, gpu_layers if isinstance(gpu_layers, int) else header.n_layer + 1))
