"""What site.yml makes of a plan: a spec for every tier of a host, or a refusal with the same arithmetic.

Pure; MiB and tokens per second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

from checker import argv, decision, host_memory, kept, placement, plan, tier
from checker.cards import host as join_host
from checker.catalogue import (
    EVERYBODY,
    Api,
    EngineFlags,
    InventoryError,
    ModelEntry,
    RamEntry,
    TierEntry,
    check_inventory,
    model_path,
    parse_inventory,
    parse_ram,
)
from checker.decision import DecisionEntry
from checker.placement import Choice


@dataclass(frozen=True)
class Places:
    """Where things lie on the host; absolute paths. `releases` are by engine."""

    releases: Mapping[str, str]
    models: str
    keys: str


def _spec(
    entry: TierEntry,
    chosen: plan.CandidatePlan,
    model: ModelEntry,
    engine: Mapping[str, Any],
    release: str,
    backend: str,
    places: Places,
    rivals: tuple[str, ...],
    beside: Sequence[Sequence[Choice]],
    load_mode: str,
    decided: str | None,
) -> tier.TierSpec:
    choice = chosen.choice
    named = plan.devices(choice)
    model_file = model_path(model, places.models)
    key_file = f"{places.keys}/{entry.name}"
    cuda = [device.uuid for device in named if device.rpc_endpoint is None]
    return tier.TierSpec(
        name=entry.name,
        bind=_plain_bind(entry.api),
        port=entry.port,
        key_file=key_file,
        model=tier.Model(name=chosen.model, file=model_file, sha256=model.sha256 or ""),
        engine=tier.Engine(commit=engine["commit"], release=release),
        placement=choice.placement,
        devices=named,
        host_weights_mib=choice.estimate.host.weights_mib,
        criteria=tier.Criteria(
            min_generation_tokens_per_second=entry.criteria.min_generation_tokens_per_second,
            max_load_s=entry.criteria.max_load_s,
        ),
        argv=argv.server_argv(
            entry,
            chosen.model,
            choice.placement,
            named,
            EngineFlags.model_validate(engine["flags"]),
            binary=f"{release}/bin/llama-server",
            model_file=model_file,
            key_file=key_file,
            load_mode=load_mode,
        ),
        # Named by UUID, so that neither the order of the slots nor that of the driver decides which card is CUDA0.
        environment={"CUDA_VISIBLE_DEVICES": ",".join(cuda)} if backend == "cuda" else {},
        predicted=None
        if choice.speed is None
        else tier.Predicted(round(choice.speed.bound, 1), round(choice.speed.expected, 1)),
        residency=entry.residency,
        rivals=rivals,
        fallback=entry.fallback,
        memory_max_mib=host_memory.most_mib(choice, load_mode, beside),
        load_mode=load_mode,
        allow=() if entry.api.tls else tuple(entry.api.allow),
        decided=decided,
        tls=_tls(entry.api),
    )


def _plain_bind(api: Api) -> str:
    """Return where a tier listens without TLS: on the loopback where it is reached over TLS."""
    if api.tls is None:
        return api.bind
    return "127.0.0.1" if ip_address(api.bind).version == 4 else "::1"


def _tls(api: Api) -> tier.Tls | None:
    if api.tls is None:
        return None
    return tier.Tls(
        bind=api.bind,
        port=api.tls.port,
        allow=tuple(api.allow),
        certificate=api.tls.certificate,
        key=api.tls.key,
    )


class SitePlan(NamedTuple):
    """What site.yml makes of a plan.

    One spec and one readable line for each tier, one sentence for each candidate that was passed over, the remarks on
    the chosen ones, and the names of the tiers that keep a proven placement instead of another that would be chosen
    now. `room_mib` is what tiers may hold of each card whose memory is known, by UUID. `figures` says of each card on
    which tiers lie what is taken of it besides them, and whether that is measured or a prior. `ram_room_mib` is what
    tiers may hold of the host's memory, None where that is not known. `left_out` are tiers without a spec, for only
    what is served was asked for.
    """

    specs: tuple[tier.TierSpec, ...]
    passed_over: tuple[str, ...]
    summary: tuple[str, ...]
    remarks: tuple[str, ...]
    kept: tuple[str, ...]
    room_mib: dict[str, int]
    figures: tuple[str, ...]
    ram_room_mib: int | None = None
    left_out: tuple[str, ...] = ()


def for_site(
    gpus: Sequence[Any],
    tiers: Sequence[Any],
    models: Mapping[str, Any],
    engines: Mapping[str, Any],
    engine: str,
    backend: str,
    places: Places,
    profile: Mapping[str, Any] | None = None,
    ram: Mapping[str, Any] | None = None,
    *,
    replan: bool = False,
    as_served: bool = False,
    decided: Mapping[str, Any] | None = None,
    host_name: str = "",
    in_trial: bool = False,
) -> SitePlan:
    """Plan every tier of a host for site.yml; InventoryError lists all reasons why that cannot be done.

    Arguments are the inventory's words as Ansible hands them over; `profile` is the host profile, empty when there is
    no host to ask. Pinned tiers of a host are served at once, so such that exclude each other are refused. `replan`
    makes a new choice for every tier, where else a placement that is proven on the host is kept. `decided` is the
    inventory's decision: a tier that is in it has the candidate that was chosen, as it was measured, and no other. It
    has to be that of `host_name`, as the inventory calls the host, and of tiers that are here.
    `as_served` asks neither: each tier has model, cards and split with which it is proven on the host, and no other;
    its port and all else are the inventory's. One that never was proven is left out. `in_trial` is as in
    `check_inventory`.
    """
    found = check_inventory(gpus, tiers, models, engines, engine, backend, in_trial=in_trial)
    ram_entry = parse_ram(ram or {}, found)
    if found:
        raise InventoryError(found)
    parsed_gpus, parsed_tiers, parsed_models, _ = parse_inventory(gpus, tiers, models)
    proven = kept.of_profile(profile or {})
    by = None if as_served else decision.parse(decided, host_name, _names(parsed_tiers))
    left_out: tuple[str, ...] = ()
    if as_served:
        left_out = tuple(entry.name for entry in parsed_tiers if entry.name not in proven)
        parsed_tiers = kept.narrowed(parsed_tiers, proven, parsed_models, engines)
        if not parsed_tiers:
            raise InventoryError(["no tier of the inventory is proven on this host, so none is served; run site.yml"])
    else:
        parsed_tiers = decision.narrowed(parsed_tiers, by, parsed_gpus, parsed_models)
    # By which evidence each tier that is decided is so; going back does not make it one that nobody decided.
    evidence = {name: spec.decided for name, spec in proven.items() if as_served}
    evidence |= {name: choice.evidence for name, choice in (by.tiers if by else {}).items()}
    host = join_host(parsed_gpus, ram_entry, profile or {})
    planned = plan.make(parsed_gpus, parsed_tiers, parsed_models, host)
    if not replan:
        # What a decision alone put there goes with it.
        own = {name: spec for name, spec in proven.items() if spec.decided is None or evidence.get(name)}
        planned = plan.keep(planned, own, parsed_gpus, parsed_tiers, parsed_models, host)
    found = plan.problems(planned, by.tiers if by else ())
    if found:
        raise InventoryError(found)
    engine_of = {entry.name: entry.engine or engine for entry in parsed_tiers}
    found = [
        f"tier {name}: engine {own} has no release on the host yet; site.yml builds it"
        for name, own in engine_of.items()
        if own not in places.releases
    ]
    if found:
        raise InventoryError(found)
    made = (
        _spec(
            entry,
            each.chosen,
            parsed_models[each.chosen.model],
            engines[engine_of[entry.name]],
            places.releases[engine_of[entry.name]],
            backend,
            places,
            planned.rivals(entry.name),
            planned.beside(entry.name),
            # That of a tier which serves stays: what lies beside it now is no reason to load it anew.
            (None if replan else kept.load_mode(each.chosen.model, each.chosen.choice, proven.get(entry.name)))
            or planned.load_mode(entry.name),
            evidence.get(entry.name),
        )
        for entry, each in zip(parsed_tiers, planned.tiers, strict=True)
    )
    specs = tuple(kept.steady(kept.undecided(spec, proven.get(spec.name)), proven.get(spec.name)) for spec in made)
    found = [f"tier {spec.name}: command line: {problem}" for spec in specs for problem in argv.problems(spec.argv)]
    if found:
        raise InventoryError(found)
    over = plan.over(planned.tiers, host)
    beyond = f"what was measured leaves less than the margin, and what serves is kept all the same: {over}"
    return SitePlan(
        specs=specs,
        passed_over=tuple(
            plan.refusal(each.name, tried) for each in planned.tiers for tried in each.candidates if not tried.fits
        ),
        summary=tuple(
            describe(spec) + _decided_words(by, spec.name) + _kept_words(each.chosen)
            for spec, each in zip(specs, planned.tiers, strict=True)
        ),
        remarks=(
            *(f"{each.name}: {remark}" for each in planned.tiers for remark in each.chosen.remarks),
            *exposed(parsed_tiers),
            *([beyond] if over else []),
            *(f"{name}: left out, for it was never proven on this host; site.yml serves it" for name in left_out),
        ),
        kept=tuple(each.name for each in planned.tiers if each.chosen.kept),
        room_mib={card.uuid: card.room_mib for card in host.cards if card.uuid and card.total_mib is not None},
        figures=tuple(
            f"{placement.short_name(card.name)}: {card.taken_mib:,} MiB taken ({card.taken_by}), CUDA itself "
            f"{placement.overhead(card).mib:,.0f} MiB for each tier ({placement.overhead_source(card)})"
            for card in plan.on_cards(planned.tiers)
        ),
        ram_room_mib=host.ram.room_mib,
        left_out=left_out,
    )


def exposed(tiers: Sequence[TierEntry]) -> list[str]:
    """Say of each tier that is open to every address that it is."""
    plain = "where keys and answers can be read on their way: name your own networks, or give it api.tls"
    over_tls = "where everybody may try keys, and every connection loads a tier on demand: name your own networks"
    return [
        f"{entry.name}: {network} lets every address reach it, {over_tls if entry.api.tls else plain} "
        '(docs/inventory.md, "TLS")'
        for entry in tiers
        for network in entry.api.allow
        if network in EVERYBODY
    ]


def _names(tiers: Sequence[TierEntry]) -> list[str]:
    return [entry.name for entry in tiers]


def served(
    gpus: Sequence[Any],
    tiers: Sequence[Any],
    models: Mapping[str, Any],
    decided: Mapping[str, Any] | None,
    host_name: str,
) -> list[str]:
    """Return the model that each tier will probably serve, before there is a host to read.

    By the inventory's decision, figures and datasheets; a tier that cannot be planned with them alone has its first
    candidate's. InventoryError when the decision does not go with the inventory, or is not that of `host_name`.
    """
    parsed_gpus, parsed_tiers, parsed_models, _ = parse_inventory(gpus, tiers, models)
    host = join_host(parsed_gpus, RamEntry(), {})
    by = decision.parse(decided, host_name, _names(parsed_tiers))
    names = []
    for entry in decision.narrowed(parsed_tiers, by, parsed_gpus, parsed_models):
        try:
            names += [each.chosen.model for each in plan.make(parsed_gpus, [entry], parsed_models, host).tiers]
        except InventoryError:
            names.append(entry.candidates[0].model)
    return names


def describe(spec: tier.TierSpec) -> str:
    """Say in one line what a tier is planned to be."""
    lie = " + ".join(
        f"{device.gpu} {placement.layers_words(device.layers)}"
        + (f" ({device.predicted_mib:,.0f} MiB)" if device.predicted_mib else "")
        for device in spec.devices
    )
    speed = f", {spec.predicted.expected:.1f} tokens/s expected" if spec.predicted else ""
    return f"{spec.name}: {spec.model.name}, context {spec.placement.ctx_size:,}, port {spec.port}: {lie}{speed}"


def _decided_words(decided: DecisionEntry | None, name: str) -> str:
    words = decision.words(decided, name) if decided else None
    return f"; {words}" if words else ""


def _kept_words(chosen: plan.CandidatePlan) -> str:
    anew = f"; a new choice would be {chosen.anew}: `-e llama_tiers_replan=true` takes it" if chosen.anew else ""
    return f"; kept as proven{anew}" if chosen.kept else ""
