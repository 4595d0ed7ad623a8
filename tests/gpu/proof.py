"""What the steps of the GPU proof share: places, the machine's cards, and evidence files."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/truth")]

from checker import hardware  # noqa: E402
from checker.planning import read_yaml  # noqa: E402

STATE = Path(os.environ.get("GPU_PROOF_STATE", "/var/lib/llama-tiers-gpu"))
EVIDENCE = STATE / "evidence"
LOGS = STATE / "logs"
MODELS = STATE / "mirror/models"
# What inventories/gpu reads.
HOST = ROOT / "build/gpu/host.json"
CATALOGUE = ROOT / "build/gpu/catalogue.yml"
RELEASE = Path("/opt/llama-tiers/current")
SCHEMA = "llama-tiers/gpu-proof/1"
# What the inventory says of it (inventories/gpu/group_vars/gpu_hosts/main.yml); each card is shown so many times.
DEVICES_PER_CARD = "gpu_proof_devices_per_card"


def devices_per_card(cards: int) -> int:
    """Return as how many devices the inventory has a card shown: with two real cards always as one."""
    variables = read_yaml(ROOT / "inventories/gpu/group_vars/gpu_hosts/main.yml")
    return int(variables[DEVICES_PER_CARD]) if cards == 1 else 1


def release() -> dict[str, Any]:
    """Return what the role wrote down of the release that is current, or was carried; empty before there is one."""
    places = (RELEASE / "release.json", *RELEASE.parent.glob("releases/*/release.json"))
    written = next((path for path in places if path.exists()), None)
    return dict(json.loads(written.read_text(encoding="utf-8"))) if written else {}


def head(what: str, command: str) -> dict[str, Any]:
    """Return what every file of evidence says first: on which card and driver, with which engine, when, and how."""
    driver, gpus = hardware.read_driver(), hardware.read_gpus()
    built = release()
    return {
        "schema": SCHEMA,
        "what": what,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "cards": [{key: dataclasses.asdict(gpu)[key] for key in _CARD} for gpu in gpus],
        "driver": driver.version,
        "cpu": cpu(),
        "engine": built.get("commit"),
        "release": built.get("name"),
        "toolkit": built.get("toolkit"),
    }


def cpu() -> str:
    """Name the processor and how many of its cores are there."""
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = next((line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")), "?")
    return f"{os.cpu_count()} cores, {name}"


_CARD = ("name", "uuid", "compute_capability", "total_mib", "used_mib", "bandwidth_gb_s")


def write(name: str, document: dict[str, Any]) -> None:
    """Write a file of evidence, complete or not at all."""
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    path = EVIDENCE / f"{name}.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"evidence: {path}", flush=True)


def read(name: str) -> dict[str, Any]:
    """Return a file of evidence of this machine; empty before there is one."""
    path = EVIDENCE / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def run_parts(parts: Mapping[str, Callable[[], None]], usage: str | None) -> int:
    """Run the parts that the command line names, in its order; return the exit code: 1 where a case did not pass."""
    chosen = sys.argv[1:]
    if not chosen or set(chosen) - set(parts):
        print(usage, file=sys.stderr)
        return 2
    code = 0
    for part in chosen:
        parts[part]()
        if not all(case.get("passed", True) for case in read(part).get("cases", [])):
            print(f"{part}: not all of it passed", flush=True)
            code = 1
    return code
