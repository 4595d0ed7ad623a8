"""collect.py EVIDENCE.tar.gz [FOLDER]: puts the proof's evidence into docs/evidence/gpu (or FOLDER) and prints a table.

A file of evidence names card, driver, engine, date and command; one that does not is refused.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What a line of the table says of a case.
_TOLD = (
    *("what", "fault", "tier", "model", "placement", "split_mode", "tensor_split", "cache_type", "architectures"),
    *("off_percent", "times_the_default", "cold", "warm", "mean_kld", "wall_s", "cpu_s", "bytes", "outcome", "reason"),
    "error",
)
NAMED = ("schema", "what", "date", "command", "cards", "driver", "engine", "release")


def documents(archive: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and document of each file of evidence."""
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda found: found.name):
            path = Path(member.name)
            file = tar.extractfile(member)
            if path.parent.name == "evidence" and path.suffix == ".json" and file:
                yield path.stem, json.load(file)


def folder_name(document: dict[str, Any]) -> str:
    """Name the machine: its cards, once each with their number."""
    names = [card["name"] for card in document["cards"]]
    return "-".join(f"{names.count(name)}x-{name}" for name in dict.fromkeys(names)).replace(" ", "-").lower()


def summary(document: dict[str, Any]) -> Iterator[str]:
    """Say in a line each what was found."""
    what = document["what"]
    if what in ("site", "again", "switching", "real"):
        counts = document["recap"]
        yield f"exit {document['exit_code']}, changed={counts.get('changed')}, {document['seconds']} s"
        for tier in document.get("tiers", []):
            text = (tier["completion"] or {}).get("text", "")
            yield f"{tier['name']}: {tier['verdict']}, {tier['tensor_split']}, says {text[:80]!r}"
    elif what == "verify":
        for tier in (tier for host in (document["report"] or {"hosts": []})["hosts"] for tier in host["tiers"]):
            yield f"{tier['name']}: {tier['verdict']} {'; '.join(tier['reasons'])}".strip()
    elif what == "models":
        yield ", ".join(f"{model['name']} {model['bytes']:,} bytes" for model in document["models"])
    elif what == "sandbox":
        yield f"allowed {document['allowed']}; refused {document['refused']}; {document['exposure']}"
    elif what == "search":
        yield f"ours {document.get('share_of_best_percent')} % of the best of {len(document['cases'])} splits"
    else:
        for case in (*document.get("trial", {}).get("candidates", []), *document.get("cases", [])):
            told = [f"{key} {case[key]}" for key in _TOLD if case.get(key) is not None]
            speed = case.get("tokens_per_second")
            speed = speed["as_asked"]["median"] if isinstance(speed, dict) else speed
            yield ", ".join(told if speed is None else [*told, f"{speed:g} tokens/s"])


def main() -> int:
    archive = Path(sys.argv[1])
    base = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs/evidence/gpu"
    code = 0
    for name, document in documents(archive):
        missing = [
            key for key in NAMED if not document.get(key) and not (key in ("engine", "release") and name == "models")
        ]
        if missing:
            print(f"{name}: does not say its {', '.join(missing)}", file=sys.stderr)
            code = 1
            continue
        path = base / folder_name(document) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        cases = document.get("cases", [])
        passed = document.get("passed", all(case.get("passed", True) for case in cases))
        for line in summary(document):
            print(f"| {name} | {line} | {'pass' if passed else 'FAIL'} |")
    return code


if __name__ == "__main__":
    sys.exit(main())
