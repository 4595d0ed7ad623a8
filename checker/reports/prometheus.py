"""Metrics as node_exporter's textfile collector reads them. Runs on hosts too: standard library alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

_Sample = tuple[str, dict[str, str], float | None]

_HELP = {
    "llama_tiers_tier_up": "Whether the tier answered when it was verified last, or sleeps and its cards answer.",
    "llama_tiers_tier_verified": "Whether the last verification passed.",
    "llama_tiers_tier_info": "Model, engine and placement of the tier.",
    "llama_tiers_card_planned_mib": "Memory that the tier is planned to hold on a card, in MiB.",
    "llama_tiers_card_measured_mib": "Memory that the tier holds on a card at its peak, by NVML, in MiB.",
    "llama_tiers_generation_tokens_per_second": "Speed of one request's answer, by filling of the context.",
    "llama_tiers_prompt_tokens_per_second": "Speed of one request's prompt, by filling of the context.",
    "llama_tiers_load_seconds": "Time from the start of the process to ready.",
    "llama_tiers_last_verification_timestamp_seconds": "When the host was verified last, in seconds since 1970.",
}


def render(document: dict[str, Any]) -> str:
    """Render a verification document in Prometheus' text format; what was not measured has no sample."""
    samples = [sample for report in document["hosts"] for sample in _host(report)]
    lines = []
    for name, said in _HELP.items():
        own = [(labels, value) for metric, labels, value in samples if metric == name and value is not None]
        if own:
            lines += [f"# HELP {name} {said}", f"# TYPE {name} gauge"]
            lines += [f"{name}{{{_labels(labels)}}} {round(value, 3)!r}" for labels, value in own]
    return "\n".join(lines)


def _host(report: dict[str, Any]) -> Iterator[_Sample]:
    recorded = datetime.strptime(report["recorded_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    yield "llama_tiers_last_verification_timestamp_seconds", {"host": report["host"]}, recorded.timestamp()
    for tier in report["tiers"]:
        yield from _tier({"host": report["host"], "tier": tier["name"]}, tier)


def _tier(labels: dict[str, str], tier: dict[str, Any]) -> Iterator[_Sample]:
    evidence = tier["evidence"]
    placement = evidence["placement"]
    # The only problem of one that sleeps is a card that does not answer: no request can load it.
    loadable = not (evidence["asleep"] and evidence["problems"])
    up = evidence["unit"]["active_state"] == "active" and evidence["completion"] is not None and loadable
    yield "llama_tiers_tier_up", labels, float(up)
    yield "llama_tiers_tier_verified", labels, float(tier["verdict"] == "pass")
    info = {
        "model": evidence["model"]["name"],
        "model_sha256": evidence["model"]["sha256"],
        "engine": evidence["engine"]["commit"],
        "split_mode": placement["split_mode"],
        "tensor_split": ",".join(str(layers) for layers in placement["tensor_split"]),
        "context": str(placement["ctx_size"]),
    }
    yield "llama_tiers_tier_info", labels | info, 1.0
    yield "llama_tiers_load_seconds", labels, evidence["unit"]["load_s"]
    for card in evidence["residuals"]:
        own = labels | {"uuid": card["uuid"], "gpu": card["gpu"]}
        yield "llama_tiers_card_measured_mib", own, card["held_mib"]
        yield "llama_tiers_card_planned_mib", own, card["planned_mib"]
    for context in ("short", "full"):
        speed = evidence["thorough"] and evidence["thorough"][context]
        for what in ("generation", "prompt"):
            spread = speed and speed[f"{what}_tokens_per_second"]
            if spread:
                yield f"llama_tiers_{what}_tokens_per_second", labels | {"filled": context}, spread["median"]


def _labels(labels: dict[str, str]) -> str:
    def quoted(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return ",".join(f'{name}="{quoted(value)}"' for name, value in labels.items())
