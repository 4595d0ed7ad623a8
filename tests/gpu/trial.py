"""trial.py: the reference host's trials on this machine's cards, with as much room for models as its own cards have.

While other processes hold the rest of the cards: `checker trial` (playbooks/trial.yml), `checker decide`, site.yml and
`checker verify`; then the tier deep as it was decided, beside llama.cpp's default and the command that was once planned
for its model. The candidates are those of inventories/reference, host 9-trials, whose models `run.sh models` wrote.
Evidence is written after every stage; what was tried before is not tried again.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import engine
import measure
import proof
import record
import synthesize
import yaml

from checker import cards, llama_server, placement, speed_verdict, systemd, tier, trial
from checker.cards import Card
from checker.catalogue import GpuEntry, with_placeholders
from checker.planning import read_yaml

INVENTORY = proof.ROOT / "inventories/trial"
CATALOGUE = proof.ROOT / "catalogue/models.yml"
REFERENCE = proof.ROOT / "inventories/reference"
DOCUMENTS = proof.STATE / "trial"
# One that hangs is to cost minutes, not the machine's time.
LOAD_LIMIT_S, TRIAL_LIMIT_S = 60, 240
TAKEN_STEP_MIB = 64
COMMANDS = {
    "trial": ("checker", "trial", "-i", "inventories/trial", "--format", "json"),
    "decide": ("checker", "decide", "-i", "inventories/trial", "--format", "json"),
    "site": ("ansible-playbook", "-i", "inventories/trial", "site.yml"),
    "verify": ("checker", "verify", "-i", "inventories/trial", "--quick", "--format", "json"),
}


def catalogue(published: Mapping[str, Any], written: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the catalogue with the synthetic models that were written; they rank as the models of their shape."""
    shaped = {
        entry["name"]: {key: published[name][key] for key in ("header", "published") if key in published[name]}
        | {key: entry[key] for key in ("file", "sha256", "bytes")}
        for entry in written
        if (name := entry["name"].removeprefix(synthesize.PREFIX)) in published
    }
    return {**published, **shaped}


def tiers(wished: Sequence[Mapping[str, Any]], uuids: Mapping[str, str], models: Mapping[str, Any]) -> list[Any]:
    """Return the reference host's tiers with this machine's cards, and the candidates whose models are here.

    `uuids` has the card that stands for each of the reference host's; with one card there is no tensor split.
    """

    def here(candidate: Mapping[str, Any]) -> bool:
        return candidate["model"] in models and (len(uuids) > 1 or "tensor_split" not in candidate["placement"])

    found = []
    for entry in wished:
        named = [{**each, "model": synthesize.name_of(each["model"])} for each in entry["candidates"]]
        gpus = entry["gpus"] if entry["gpus"] == "any" else [uuids[name] for name in entry["gpus"] if name in uuids]
        own = {"gpus": gpus, "candidates": list(filter(here, named)), "criteria": {"max_load_s": LOAD_LIMIT_S}}
        found.append({**entry, **own})
    return [entry for entry in found if entry["candidates"]]


def played() -> tuple[Card, ...]:
    """Return the reference host's cards as the planner knows them."""
    words = read_yaml(REFERENCE / "group_vars/gpu_hosts/main.yml")
    return tuple(cards.card(GpuEntry.model_validate(gpu), None) for gpu in with_placeholders(words["gpus"]))


def free_mib(mine: Sequence[Card]) -> dict[str, int]:
    """Return what is to be free of each card, so that models have the room that they have on the cards played.

    What CUDA itself takes is another figure on each card. One card has the room of all.
    """
    room = [card.free_mib - placement.overhead(card).mib for card in played()]
    room = [sum(room)] if len(mine) == 1 else room
    return {
        # What others hold is taken in steps.
        str(card.uuid): math.ceil(mib + placement.overhead(card).mib) + TAKEN_STEP_MIB
        for card, mib in zip(mine, room, strict=False)
    }


def variables(mine: Sequence[Card], models: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inventory's words: `checker decide` reads them without a play, so that none of them is a template."""
    words = read_yaml(proof.ROOT / "inventories/gpu/group_vars/gpu_hosts/main.yml")
    wished = read_yaml(REFERENCE / "hosts.yml")["gpu_hosts"]["hosts"]["9-trials"]["tiers"]
    totals = [card.total_mib or 0 for card in played()]
    totals = [sum(totals)] if len(mine) == 1 else totals
    uuids = {there.name: str(card.uuid) for there, card in zip(played(), mine, strict=False)}
    return {
        **{key: value for key, value in words.items() if "{{" not in str(value)},
        "gpus": [
            {"name": card.name, "uuid": card.uuid, "margin_mib": cards.default_margin_mib(total)}
            for card, total in zip(mine, totals, strict=False)
        ],
        "tiers": tiers(wished, uuids, models),
        "verification_documents_directory": str(DOCUMENTS),
        "trial_limit_s": TRIAL_LIMIT_S,
    }


def lay_out() -> dict[str, Any]:
    """Write catalogue and inventory of the trial into this copy of the checkout; return the inventory's words."""
    models = catalogue(read_yaml(CATALOGUE)["models"], synthesize.before())
    CATALOGUE.write_text(yaml.safe_dump({"models": models}, sort_keys=False), encoding="utf-8")
    words = variables(engine.physical(), models)
    (INVENTORY / "group_vars/gpu_hosts").mkdir(parents=True, exist_ok=True)
    shutil.copy(proof.ROOT / "inventories/gpu/hosts.yml", INVENTORY)
    (INVENTORY / "group_vars/gpu_hosts/main.yml").write_text(yaml.safe_dump(words, sort_keys=False), encoding="utf-8")
    return words


def run(name: str) -> tuple[dict[str, Any], str]:
    """Run a stage; return what is to be said of any, and what it printed."""
    program, *arguments = COMMANDS[name]
    log, began = proof.LOGS / f"trial-{name}.log", time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        code = subprocess.run(
            [Path(sys.executable).with_name(program), *arguments], cwd=proof.ROOT, stdout=out, check=False
        ).returncode
    printed = log.read_text(encoding="utf-8")
    seconds = round(time.monotonic() - began)
    print(f"{name}: exit {code}, {seconds} s{printed[-3000:] if code else ''}", flush=True)
    return {"command": " ".join(COMMANDS[name]), "exit_code": code, "seconds": seconds}, printed


def tried(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be known of a record of a trial."""
    own = trial.from_json(document)
    found: dict[str, Any] = {key: document[key] for key in ("tier", "model", "placement", "outcome", "reason")}
    if own.spec:
        placed = own.spec.placement
        found |= {"tensor_split": list(placed.tensor_split), "n_gpu_layers": placed.n_gpu_layers}
        found["predicted_mib"] = {uuid: round(mib, 1) for uuid, mib in engine.predicted_mib(own.spec.devices).items()}
    if own.evidence:
        found["measured_mib"] = {device.uuid: device.process_mib for device in own.evidence.devices if device.uuid}
        found |= {"tokens_per_second": speed_verdict.generation_speed(own.evidence), "load_s": own.evidence.unit.load_s}
    return found


def told(name: str, printed: str) -> dict[str, Any]:
    """Return what a stage found, of what it printed."""
    if name == "site":
        return record.playbook(printed)
    if name == "trial":
        found = [tried(json.loads(line)) for line in printed.splitlines()]
        for each in found:
            print({key: each.get(key) for key in ("tier", "model", "tensor_split", "tokens_per_second", "reason")})
        return {"candidates": found}
    document = json.loads(printed)
    if name == "decide":
        return {"explanation": document}
    return {"tiers": [record.verdict(each) for host in document["hosts"] for each in host["tiers"]]}


def compared() -> Iterator[dict[str, Any]]:
    """Measure the tier deep as it is served, then what others make of its model in the same memory."""
    spec = tier.load("deep")
    systemd.start(spec.unit, LOAD_LIMIT_S + engine.LOAD_LIMIT_S)
    pid = systemd.unit_state(spec.unit).main_pid or 0
    yield {
        "what": "ours",
        "model": spec.model.name,
        "split_mode": spec.placement.split_mode,
        "tensor_split": list(spec.placement.tensor_split),
        "environment": dict(spec.environment),
        "tokens_per_second": engine.rate(engine.Running(llama_server.LlamaServer.of(spec), pid, Path(), 0)),
        "measured_mib": engine.held_mib(pid),
    }
    with measure.tiers_stopped():
        yield from measure.others(Path(spec.model.file), engine.environment(engine.physical()))


def write(found: dict[str, Any]) -> None:
    """Write the evidence as far as it has come; the release is known once the first stage is done."""
    proof.write("trial", proof.head("trial", "tests/gpu/run.sh trial") | found)


def main() -> int:
    found: dict[str, Any] = {"inventory": lay_out(), "passed": False}
    # What an earlier call has left would count as memory that is held.
    subprocess.run(["systemctl", "stop", tier.TARGET, "llama-tier-*"], check=False)
    with engine.holding(free_mib(engine.physical())) as left:
        found["free_mib"] = left
        for name in COMMANDS:
            stage, printed = run(name)
            try:
                found[name] = stage | told(name, printed)
            except ValueError:
                found[name] = stage | {"printed": printed[-2000:]}
            write(found)
            if stage["exit_code"]:
                return 1
        found["cases"] = []
        for case in compared():
            found["cases"].append(case)
            measure.compare(found["cases"])
            write(found)
    found["passed"] = (found["cases"][0]["times_the_default"] or 0) >= 1
    write(found)
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
