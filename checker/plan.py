"""All tiers of a host together: inventory, catalogue and host profile to one spec for each tier, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checker import argv, memory, tier
from checker.catalogue import (
    EngineFlags,
    GpuEntry,
    InventoryError,
    ModelEntry,
    TierEntry,
    check_inventory,
    parse_inventory,
    resolve_gpus,
)


@dataclass(frozen=True)
class Places:
    """Where things lie on the host; absolute paths."""

    release: str
    models: str
    keys: str


def model_path(model: ModelEntry, directory: str) -> str:
    """Return where the first file of a model lies: `<directory>/<first 12 of its sha256>/<file>`.

    A model whose sha256 is not known cannot be on a host; its path says so in place of the digits.
    """
    first = model.parts[0] if model.parts else model
    return f"{directory}/{first.sha256[:12] if first.sha256 else 'sha256-not-known'}/{first.file}"


def _devices(gpus: Sequence[GpuEntry], split: Sequence[int], weights: memory.Weights | None) -> tuple[tier.Device, ...]:
    """Name the cards as llama.cpp will: CUDA in the order of CUDA_VISIBLE_DEVICES, RPC in that of --rpc."""
    devices = []
    counts = {"CUDA": 0, "RPC": 0}
    for index, gpu in enumerate(gpus):
        kind = "RPC" if gpu.rpc_endpoint else "CUDA"
        devices.append(
            tier.Device(
                name=f"{kind}{counts[kind]}",
                uuid=gpu.uuid,
                gpu=gpu.name,
                layers=split[index],
                weights_mib=weights.devices_mib[index] if weights else None,
                rpc_endpoint=gpu.rpc_endpoint,
            )
        )
        counts[kind] += 1
    return tuple(devices)


def _spec(
    entry: TierEntry,
    gpus: Sequence[GpuEntry],
    models: Mapping[str, ModelEntry],
    engine: Mapping[str, Any],
    backend: str,
    places: Places,
) -> tier.TierSpec:
    candidate = entry.candidates[0]
    model = models[candidate.model]
    split = tuple(candidate.placement.tensor_split)
    weights = memory.weights(
        memory.Header(
            architecture=model.header.architecture,
            n_layer=model.header.n_layer,
            layer_bytes=tuple(model.header.layer_bytes) if model.header.layer_bytes else None,
            output_bytes=model.header.output_bytes,
            token_embd_bytes=model.header.token_embd_bytes,
        ),
        split,
    )
    placement = tier.Placement(
        split_mode=candidate.placement.split_mode,
        tensor_split=split,
        n_gpu_layers=sum(split),
        ctx_size=entry.context,
        cache_type_k=candidate.placement.cache_type_k,
        cache_type_v=candidate.placement.cache_type_v,
        ubatch_size=candidate.placement.ubatch_size,
        flash_attn=candidate.placement.flash_attn,
    )
    resolved = resolve_gpus(entry, gpus)
    if isinstance(resolved, str):
        raise InventoryError([resolved])
    devices = _devices(resolved, split, weights)
    model_file = model_path(model, places.models)
    key_file = f"{places.keys}/{entry.name}"
    cuda = [device.uuid for device in devices if device.rpc_endpoint is None]
    return tier.TierSpec(
        name=entry.name,
        bind=entry.api.bind,
        port=entry.port,
        key_file=key_file,
        model=tier.Model(name=candidate.model, file=model_file, sha256=model.sha256 or ""),
        engine=tier.Engine(commit=engine["commit"], release=places.release),
        placement=placement,
        devices=devices,
        host_weights_mib=weights.host_mib if weights else None,
        criteria=tier.Criteria(
            min_generation_tokens_per_second=entry.criteria.min_generation_tokens_per_second,
            max_load_s=entry.criteria.max_load_s,
        ),
        argv=argv.server_argv(
            entry,
            candidate.model,
            placement,
            devices,
            EngineFlags.model_validate(engine["flags"]),
            binary=f"{places.release}/bin/llama-server",
            model_file=model_file,
            key_file=key_file,
        ),
        # Named by UUID, so that neither the order of the slots nor that of the driver decides which card is CUDA0.
        environment={"CUDA_VISIBLE_DEVICES": ",".join(cuda)} if backend == "cuda" else {},
    )


def overfull(specs: Sequence[tier.TierSpec], total_mib: Mapping[str, int]) -> list[str]:
    """Return one sentence for each card that cannot hold even the weights of the tiers that are to live on it.

    `total_mib` is what NVML says of each card, by UUID. Weights alone are a lower bound: what passes here may still not
    fit, what does not pass never will.
    """
    problems = []
    for uuid, total in total_mib.items():
        held = [(s.name, d) for s in specs for d in s.devices if d.uuid == uuid and d.weights_mib is not None]
        needed = sum(device.weights_mib or 0 for _, device in held)
        if needed > total:
            shares = " + ".join(f"{name} {device.weights_mib:,.0f}" for name, device in held)
            problems.append(
                f"{held[0][1].gpu} ({uuid}) has {total:,} MiB, "
                f"but the weights alone need {needed:,.0f} MiB ({shares}): "
                "give the card fewer layers in tensor_split, or take a smaller quantisation"
            )
    return problems


def plan(
    gpus: Sequence[Any],
    tiers: Sequence[Any],
    models: Mapping[str, Any],
    engines: Mapping[str, Any],
    engine: str,
    backend: str,
    places: Places,
    total_mib: Mapping[str, int],
) -> tuple[tier.TierSpec, ...]:
    """Plan every tier of a host; InventoryError lists all reasons why that cannot be done.

    Arguments are the inventory's words as Ansible hands them over; `total_mib` is the host profile's memory by UUID,
    empty when there is no host to ask.
    """
    problems = check_inventory(gpus, tiers, models, engines, engine, backend)
    if problems:
        raise InventoryError(problems)
    parsed_gpus, parsed_tiers, parsed_models, _ = parse_inventory(gpus, tiers, models)
    specs = tuple(_spec(entry, parsed_gpus, parsed_models, engines[engine], backend, places) for entry in parsed_tiers)
    problems = overfull(specs, total_mib)
    if problems:
        raise InventoryError(problems)
    return specs


def describe(spec: tier.TierSpec) -> str:
    """Say in one line what a tier is planned to be."""
    devices = " + ".join(
        f"{device.gpu} {device.layers} layers" + (f" ({device.weights_mib:,.0f} MiB)" if device.weights_mib else "")
        for device in spec.devices
    )
    return f"{spec.name}: {spec.model.name}, context {spec.placement.ctx_size}, port {spec.port}: {devices}"
