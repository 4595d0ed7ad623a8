"""What an inventory asks of a tier's placement, and whether that is still what a placement was measured for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from checker import placement, trial
from checker.catalogue import (
    Candidate,
    ContextRange,
    GpuEntry,
    InventoryError,
    PlacementEntry,
    TierEntry,
    resolve_gpus,
)
from checker.placement import Demand
from checker.tier import Placement


def cards(entry: TierEntry, gpus: Sequence[GpuEntry]) -> list[GpuEntry]:
    """Return the cards that a tier may use, in device order; InventoryError when the inventory has them not."""
    named = resolve_gpus(entry, gpus)
    if isinstance(named, str):
        raise InventoryError([named])
    return named


def demand(entry: TierEntry, candidate: Candidate) -> Demand:
    """Turn what the inventory says of a candidate into what is asked of its placement."""
    written = candidate.placement
    explicit = written.tensor_split is not None
    types = ["f16"] if explicit else entry.cache_types
    pairs = dict.fromkeys((written.cache_type_k or kind, written.cache_type_v or kind) for kind in types)
    sizes = (512,) if explicit else placement.UBATCH_SIZES
    return Demand(
        context=entry.context.min,
        most_context=entry.context.max,
        cache_types=tuple(pairs),
        ubatch_sizes=(written.ubatch_size,) if written.ubatch_size else sizes,
        pipeline=(True, False) if written.pipeline_parallel is None else (written.pipeline_parallel,),
        gpu_layers=written.n_gpu_layers,
        flash_attn=written.flash_attn,
        parallel=entry.parallel,
        cache_ram_mib=entry.cache_ram_mib.min,
        most_cache_ram_mib=entry.cache_ram_mib.max,
        n_cpu_moe=written.n_cpu_moe,
        split_mode=written.split_mode,
        split=tuple(written.tensor_split) if written.tensor_split else None,
    )


def admits(demand: Demand, found: Placement, layers: int) -> bool:
    """Whether a placement is one of those that a demand allows; `layers` are the model's, the output layer included."""
    counts = found.tensor_split
    if not all(isinstance(count, int) and count > 0 for count in counts) or sum(counts) != found.n_gpu_layers:
        return False
    pipeline = demand.pipeline
    if demand.split is not None:
        as_split = (found.split_mode, counts) == (demand.split_mode, demand.split)
    else:
        wanted = layers if demand.gpu_layers is None else demand.gpu_layers
        as_split = (
            found.split_mode == ("layer" if len(counts) > 1 else "none")
            and (demand.split_mode == "layer" or len(counts) == 1)
            and (found.n_gpu_layers <= layers if wanted == "auto" else found.n_gpu_layers == wanted)
        )
        # With layers on the host the engine does not compute in a pipeline, whatever is asked.
        pipeline = demand.pipeline if found.n_gpu_layers == layers else (True,)
    return (
        as_split
        and found.pipeline_parallel in pipeline
        and found.ubatch_size in demand.ubatch_sizes
        and (found.cache_type_k, found.cache_type_v) in demand.cache_types
        and demand.context <= found.ctx_size <= max(demand.context, demand.most_context)
        and demand.cache_ram_mib <= found.cache_ram_mib <= max(demand.cache_ram_mib, demand.most_cache_ram_mib)
        and (found.flash_attn, found.parallel, found.n_cpu_moe)
        == (demand.flash_attn, demand.parallel, demand.n_cpu_moe)
    )


def changed(
    entry: TierEntry,
    candidate: Candidate,
    gpus: Sequence[GpuEntry],
    layers: int,
    found: Placement,
    uuids: Sequence[str],
) -> str | None:
    """Say what has become of what is asked of a candidate since a placement was measured; None when it is that still.

    `layers` are the model's, the output layer included, `uuids` those of the placement's cards in device order.
    """
    wanted, own = demand(entry, candidate), [gpu.uuid for gpu in cards(entry, gpus)]
    gone = [uuid for uuid in uuids if uuid not in own]
    if gone:
        return f"card {gone[0]} went"
    if not entry.context.min <= found.ctx_size <= entry.context.max:
        return f"the context became another than {found.ctx_size:,}"
    if found.parallel != entry.parallel:
        return f"the slots became {entry.parallel}"
    cache = (found.cache_type_k, found.cache_type_v)
    if cache not in wanted.cache_types:
        return f"the KV cache became another than {'/'.join(dict.fromkeys(cache))}"
    # The prompt cache lies in the host's memory and makes no answer slower.
    same = admits(wanted, replace(found, cache_ram_mib=wanted.cache_ram_mib), layers)
    if not same or (wanted.split is not None and list(uuids) != own):
        return "another placement was asked for"
    return None


def as_placed(entry: TierEntry, model: str, found: Placement, uuids: Sequence[str], least_context: int) -> TierEntry:
    """Return a tier with one candidate, whose placement is spelled out as it lay on its cards, in device order.

    Beside others it may have less of its context, down to `least_context`, which makes nothing slower.
    """
    words = {key: word for key, word in asdict(found).items() if key in PlacementEntry.model_fields}
    return entry.model_copy(
        update={
            "gpus": list(uuids),
            "context": ContextRange(min=least_context, max=found.ctx_size),
            "candidates": [Candidate(model=model, placement=PlacementEntry.model_validate(words))],
        }
    )


def fingerprint(entry: TierEntry, candidate: Candidate, gpus: Sequence[GpuEntry]) -> str:
    """Return the sha256 of what is asked of a candidate: what a record that it has no room is told apart by."""
    own = [gpu.model_dump() for gpu in cards(entry, gpus)]
    return trial.other_fingerprint(
        entry.name, candidate.model, candidate.written, asdict(demand(entry, candidate)), own
    )
