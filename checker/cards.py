"""Cards and host as the planner sees them: memory that is for tiers, and how fast it is read.

Every figure that is not read on the host is a named prior with its source, never a measurement. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checker.catalogue import GpuEntry, RamEntry
from checker.memory import Overhead


@dataclass(frozen=True)
class Known:
    """Datasheet of a card: memory in MiB, bandwidth in GB/s (10^9 bytes a second), compute capability."""

    total_mib: int
    bandwidth_gb_s: float
    compute_capability: str


# By NVML's name; NVIDIA's product pages (memory size, memory bandwidth) and its list of compute capabilities.
# What NVML reads on the host, and what the inventory says, goes before.
KNOWN_CARDS = {
    "NVIDIA GeForce GTX 980": Known(4096, 224.0, "5.2"),
    "NVIDIA GeForce GTX 1060 3GB": Known(3072, 192.0, "6.1"),
    "NVIDIA GeForce RTX 3060 Ti": Known(8192, 448.0, "8.6"),
}

# Memory that no process holds and none can have. Priors: a GTX 1060 3 GB without a screen has 3,005 of 3,072 MiB free
# (aidatatools/ollama-benchmark PR #9), an RTX 3060 Ti "0.2 GB" taken before a load (sudoingX/qwen38-mtp PR #37).
_RESERVED_SHARE, _RESERVED_LEAST_MIB, _RESERVED_MOST_MIB = 0.025, 64, 512
_TAKEN_STEP_MIB = 64
# What a plan leaves free on a card by itself, for what the estimate misses. Prior: 300 MiB on 8 GiB, 150 MiB on 3 GiB;
# llama.cpp's default of 1,024 MiB pushes layers off a small card.
_MARGIN_SHARE, _MARGIN_LEAST_MIB = 0.035, 150

# What the operating system and everything that is no tier needs of the host's memory.
_SYSTEM_RAM_MIB = 1536


def name_hint(names: Sequence[str]) -> str:
    """Say which cards' names are known, or which of them was meant: a name that is only alike is another card's."""

    def plain(name: str) -> str:
        return re.sub(r"nvidia|geforce|[^a-z0-9]", "", name.lower())

    known = {plain(name): name for name in KNOWN_CARDS}
    meant = [known[plain(name)] for name in names if plain(name) in known]
    if meant:
        return f"; did you mean {', '.join(meant)}?"
    return f"; known by name are {', '.join(KNOWN_CARDS)}"


def default_margin_mib(total_mib: int) -> int:
    """Return what a plan leaves free on a card of this size unless the inventory says otherwise, in MiB."""
    return max(_MARGIN_LEAST_MIB, math.ceil(_MARGIN_SHARE * total_mib))


def default_reserved_mib(total_mib: int) -> int:
    """Return what the driver keeps of a card of this size by prior, in MiB."""
    return min(_RESERVED_MOST_MIB, max(_RESERVED_LEAST_MIB, math.ceil(_RESERVED_SHARE * total_mib)))


@dataclass(frozen=True)
class Learned:
    """What measurements say of a card's speed: measured / expected by its prior, and how far off that may be (a share).

    `source` names the measurements.
    """

    ratio: float
    spread: float
    source: str


@dataclass(frozen=True)
class Card:
    """One card. Memory in MiB; `uuid` is None until the inventory has one.

    `taken_mib` is what tiers cannot have (driver, other processes), `taken_by` says where the figure comes from;
    `others_known` is False where the host could not tell other processes from our own tiers. `learned` sharpens what is
    expected of a placement; no placement is chosen by it (docs/planning.md). `overhead` is what a tier's process was
    measured to take of the card beside the engine's buffers, None where nothing was (`placement.overhead` has priors);
    `row_overheads` are the same of row split, by the model's name.
    `total_mib` is None when nobody knows the card; bandwidth in GB/s and compute capability likewise.
    """

    name: str
    uuid: str | None
    kind: str
    total_mib: int | None
    taken_mib: int
    taken_by: str
    margin_mib: int
    bandwidth_gb_s: float | None
    compute_capability: str | None
    rpc_endpoint: str | None = None
    others_known: bool = True
    learned: Learned | None = None
    overhead: Overhead | None = None
    row_overheads: tuple[tuple[str, Overhead], ...] = ()

    @property
    def free_mib(self) -> int:
        """MiB that tiers can have; 0 of an unknown card."""
        return max(0, (self.total_mib or 0) - self.taken_mib)

    @property
    def room_mib(self) -> int:
        """MiB that a plan may use: what is free less the margin."""
        return max(0, self.free_mib - self.margin_mib)


@dataclass(frozen=True)
class Ram:
    """Memory of the host: MiB and GB/s, each None when not known."""

    total_mib: int | None
    bandwidth_gb_s: float | None = None

    @property
    def room_mib(self) -> int | None:
        """MiB that tiers may use: all but what the system needs."""
        return None if self.total_mib is None else max(0, self.total_mib - _SYSTEM_RAM_MIB)


@dataclass(frozen=True)
class Host:
    """What a plan is made for; `model` names the one that is placed on it, where that is one."""

    cards: tuple[Card, ...]
    ram: Ram = Ram(None)
    model: str = ""


def card(
    entry: GpuEntry,
    read: Mapping[str, Any] | None,
    measured: Mapping[str, Any] | None = None,
    by_rows: Mapping[str, Any] | None = None,
) -> Card:
    """Join what the inventory says of a card with what was read on the host (`gpus` of a host profile), if anything.

    `measured` and `by_rows` are what was learned of its overhead (`residuals.overheads`), None when nothing was.

    Memory and compute capability: host, inventory, datasheet, in this order; bandwidth: inventory, host, datasheet, so
    that a measured figure can be written down.
    """
    read = read or {}
    known = KNOWN_CARDS.get(entry.name)
    total = read.get("total_mib") or entry.total_mib or (known.total_mib if known else None)
    taken, taken_by = _taken(total or 0, read, behind_rpc=entry.rpc_endpoint is not None)
    margin = entry.margin_mib if entry.margin_mib is not None else default_margin_mib(total or 0)
    return Card(
        name=entry.name,
        uuid=entry.uuid,
        kind="RPC" if entry.rpc_endpoint else "CUDA",
        total_mib=total,
        taken_mib=taken,
        taken_by=taken_by,
        margin_mib=margin,
        bandwidth_gb_s=entry.bandwidth_gb_s or read.get("bandwidth_gb_s") or (known.bandwidth_gb_s if known else None),
        compute_capability=(
            read.get("compute_capability") or entry.compute_capability or (known.compute_capability if known else None)
        ),
        rpc_endpoint=entry.rpc_endpoint,
        others_known=read.get("used_mib") is None or read.get("tiers_mib") is not None or bool(entry.rpc_endpoint),
        overhead=Overhead(measured["mib"], measured["source"]) if measured else None,
        row_overheads=tuple((model, Overhead(told["mib"], told["source"])) for model, told in (by_rows or {}).items()),
    )


def _taken(total_mib: int, read: Mapping[str, Any], *, behind_rpc: bool) -> tuple[int, str]:
    """Return what tiers cannot have of a card, and why.

    Our own running tiers are no obstacle to their successors, so their memory (`tiers_mib` of the profile) is taken off
    what NVML calls used. What remains counts when it is more than the driver's prior, in whole steps, so that a few MiB
    that come and go do not change a plan. A profile that does not tell the tiers apart counts as the prior; so does a
    card behind an RPC server, which nobody but tiers uses.
    """
    if read.get("free_mib") is not None:
        return max(0, total_mib - int(read["free_mib"])), "the profile's free_mib"
    prior = default_reserved_mib(total_mib)
    if read.get("used_mib") is not None and read.get("tiers_mib") is not None and not behind_rpc:
        others = math.ceil((read["used_mib"] - read["tiers_mib"]) / _TAKEN_STEP_MIB) * _TAKEN_STEP_MIB
        if read["used_mib"] - read["tiers_mib"] > prior:
            return min(total_mib, others), "read on the host, without our tiers' memory"
    return prior, "driver, estimated"


def host(gpus: list[GpuEntry], ram: RamEntry, profile: Mapping[str, Any]) -> Host:
    """Join the inventory's `gpus` and `ram` with the host profile (empty when there is no host to ask)."""
    tiers_mib = profile.get("tiers_mib") or {}
    read = {
        gpu["uuid"]: {"tiers_mib": tiers_mib.get(gpu["uuid"]), **gpu}
        for gpu in profile.get("gpus") or []
        if gpu.get("uuid")
    }
    measured, by_rows = profile.get("overheads") or {}, profile.get("row_overheads") or {}
    return Host(
        cards=tuple(
            card(entry, read.get(entry.uuid), measured.get(entry.uuid), by_rows.get(entry.uuid)) for entry in gpus
        ),
        ram=Ram(
            total_mib=profile.get("ram_mib") or ram.total_mib,
            bandwidth_gb_s=ram.bandwidth_gb_s,
        ),
    )
