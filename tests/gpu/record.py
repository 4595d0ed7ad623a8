"""record.py site|again|verify FILE SECONDS CODE: makes evidence of a playbook's log, or of checker's report."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import proof


def playbook(log: str) -> dict[str, Any]:
    """Read the recap of a run, and what it was said to do."""
    recap = re.search(r"^(\S+)\s+: (ok=\d+.*)$", log, re.MULTILINE)
    counts = dict(pair.split("=") for pair in recap[2].split()) if recap else {}
    return {"recap": {key: int(value) for key, value in counts.items()}}


def main() -> int:
    what, file, seconds, code = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    text = file.read_text(encoding="utf-8")
    if what == "verify":
        document = proof.head("verify", "checker verify -i inventories/gpu --format json") | {
            "exit_code": code,
            "report": json.loads(text) if text.strip() else None,
        }
        hosts = (document["report"] or {"hosts": []})["hosts"]
        passed = code == 0 and bool(hosts)
        for tier in (tier for host in hosts for tier in host["tiers"]):
            print(tier["name"], tier["verdict"], *tier["reasons"], sep="\n  ", flush=True)
    else:
        document = proof.head(what, "ansible-playbook -i inventories/gpu site.yml") | {
            "exit_code": code,
            "seconds": seconds,
            **playbook(text),
            "built": proof.release(),
        }
        passed = code == 0 and (what == "site" or document["recap"].get("changed") == 0)
    document["passed"] = passed
    proof.write(what, document)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
