"""record.py verify FILE SECONDS CODE: makes evidence of checker's report.
record.py NAME FILE SECONDS CODE [ARGUMENT...]: the same of the log of site.yml, run with these arguments.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import proof


def playbook(log: str) -> dict[str, Any]:
    """Read the recap of a run, and what it was said to do."""
    recap = re.search(r"^(\S+)\s+: (ok=\d+.*)$", log, re.MULTILINE)
    counts = dict(pair.split("=") for pair in recap[2].split()) if recap else {}
    return {"recap": {key: int(value) for key, value in counts.items()}}


def verdict(tier: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be known of a tier in a report of the verification."""
    evidence = tier["evidence"]
    return {
        **{key: tier[key] for key in ("name", "verdict", "reasons")},
        "model": evidence["model"],
        "split_mode": evidence["placement"]["split_mode"],
        "tensor_split": evidence["placement"]["tensor_split"],
        "completion": evidence["completion"],
        "quality": evidence["quality"],
        "measured_mib": {device["uuid"]: device["process_mib"] for device in evidence["devices"] if device["uuid"]},
    }


def served() -> list[dict[str, Any]]:
    """Return the verdicts that the last site.yml has left beside the build."""
    path = proof.ROOT / "build/gpu/report/evidence/gpu.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"tiers": []}
    return [verdict(tier) for tier in report["tiers"]]


def main() -> int:
    what, file, seconds, code = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    text = file.read_text(encoding="utf-8")
    if what == "verify":
        document = proof.head("verify", "checker verify -i inventories/gpu --quality --format json") | {
            "exit_code": code,
            "report": json.loads(text) if text.strip() else None,
        }
        hosts = (document["report"] or {"hosts": []})["hosts"]
        passed = code == 0 and bool(hosts)
        for tier in (tier for host in hosts for tier in host["tiers"]):
            print(tier["name"], tier["verdict"], *tier["reasons"], sep="\n  ", flush=True)
    else:
        command = " ".join(["ansible-playbook -i inventories/gpu", *sys.argv[5:], "site.yml"])
        document = proof.head(what, command) | {
            "exit_code": code,
            "seconds": seconds,
            **playbook(text),
            "built": proof.release(),
            "tiers": served(),
        }
        passed = code == 0 and (what != "again" or document["recap"].get("changed") == 0)
    document["passed"] = passed
    proof.write(what, document)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
