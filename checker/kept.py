"""Placements that are proven on a host, and when a plan keeps one although it would choose another now.

What others hold of a card comes and goes, priors get better: neither is a reason to restart a tier that serves. So a
proven placement stays while it is still what the inventory asks for and still fits. Pure; MiB, tokens per second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from checker import asked, placement, tier
from checker.cards import Card, Ram
from checker.catalogue import InventoryError, ModelEntry, TierEntry, model_path
from checker.header import Header
from checker.placement import Choice, Demand

# A new choice this much faster is worth a word; the search calls what is closer equally fast.
_CLEARLY = 1.01
_SPEC = TypeAdapter(tier.TierSpec)
# Verification calls a plan good that is within this of what a card holds: nothing hangs on less.
_GOOD_MIB = 100.0


def of_profile(profile: Mapping[str, Any]) -> dict[str, tier.TierSpec]:
    """Return the specs that were proven on the host, by tier; one that is not whole and of this schema is none."""
    found = {}
    for name, document in (profile.get("proven") or {}).items():
        try:
            found[name] = _SPEC.validate_python(asdict(tier.from_json(document)))
        except (tier.TierSpecError, ValidationError):
            continue
    return found


def narrowed(
    tiers: Sequence[TierEntry],
    proven: Mapping[str, tier.TierSpec],
    models: Mapping[str, ModelEntry],
    engines: Mapping[str, Any],
) -> list[TierEntry]:
    """Return those tiers that are proven, each with what it was proven with as its only candidate.

    A tier that names an engine has the one that it was proven with, whichever it names by now. InventoryError lists
    what the catalogue has no longer, or has another file or engine by its name of, and what is no placement.
    """
    narrow, problems = [], []
    for entry in tiers:
        if entry.name not in proven:
            continue
        try:
            found = _as_served(entry, proven[entry.name], models, engines)
        except InventoryError as error:
            problems += error.problems
            continue
        # One that is not served answers for nobody.
        narrow.append(found if found.fallback in proven else found.model_copy(update={"fallback": None}))
    if problems:
        raise InventoryError(problems)
    return narrow


def _as_served(
    entry: TierEntry, own: tier.TierSpec, models: Mapping[str, ModelEntry], engines: Mapping[str, Any]
) -> TierEntry:
    model = models.get(own.model.name)
    if model is None or not own.model.file.endswith(model_path(model, "")):
        said = f"it serves {own.model.name} from {own.model.file}, which the catalogue has not; put that back"
        raise InventoryError([f"tier {entry.name}: {said}"])
    engine = None
    if entry.engine is not None:
        engine = next((name for name, known in engines.items() if known["commit"] == own.engine.commit), None)
        if engine is None:
            said = f"it is served by engine {own.engine.commit[:9]}, which the engine table has not; put that back"
            raise InventoryError([f"tier {entry.name}: {said}"])
    uuids = [device.uuid for device in own.devices]
    try:
        placed = asked.as_placed(entry, own.model.name, own.placement, uuids, own.placement.ctx_size)
    except ValidationError as error:
        wrong = ", ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        said = f"what it is proven with on the host is no placement ({wrong}); run site.yml to serve it anew"
        raise InventoryError([f"tier {entry.name}: {said}"]) from error
    return placed.model_copy(update={"engine": engine})


def choice(proven: tier.TierSpec, header: Header, cards: Sequence[Card], ram: Ram, demand: Demand) -> Choice | None:
    """Put a proven placement to today's arithmetic; None when it is not what is asked for, or does not fit.

    `cards` are those that the tier may use, in the inventory's order.
    """
    known = {card.uuid: card for card in cards}
    uuids = [device.uuid for device in proven.devices]
    if len(set(uuids)) < len(uuids) or not set(uuids) <= set(known):
        return None
    order = tuple(known[uuid] for uuid in uuids)
    if demand.split is not None and order != tuple(cards):
        return None
    if len(order) != len(proven.placement.tensor_split) or not asked.admits(
        demand, proven.placement, header.n_layer + 1
    ):
        return None
    found = placement.evaluate(header, proven.placement, order, ram, proven.model.name)
    return found if found.fits else None


def undecided(planned: tier.TierSpec, proven: tier.TierSpec | None) -> tier.TierSpec:
    """Return a spec that no decision put there where one has only found good what nobody's decision had put there."""
    if proven is None or proven.decided is not None:
        return planned
    places = [(each.model, each.placement, [device.uuid for device in each.devices]) for each in (planned, proven)]
    return replace(planned, decided=None) if places[0] == places[1] else planned


def steady(planned: tier.TierSpec, proven: tier.TierSpec | None) -> tier.TierSpec:
    """Return a spec that does not change for what was measured, unless it was measured far from what it says.

    Every verification measures the cards' overhead a little otherwise, and a second run is to change nothing.
    """
    if proven is None or planned.placement != proven.placement or len(planned.devices) != len(proven.devices):
        return planned
    pairs = [(now, before) for now, before in zip(planned.devices, proven.devices, strict=True)]
    near = all(
        now.uuid == before.uuid
        and None not in (now.overhead_mib, before.overhead_mib)
        and abs((now.overhead_mib or 0) - (before.overhead_mib or 0)) <= _GOOD_MIB
        for now, before in pairs
    )
    if not near:
        return planned
    return replace(planned, devices=tuple(replace(now, overhead_mib=before.overhead_mib) for now, before in pairs))


def load_mode(model: str, planned: Choice, proven: tier.TierSpec | None) -> str | None:
    """Return how the server that is proven reads its model's file; None when another one or placement is planned."""
    if proven is None or (proven.model.name, proven.placement) != (model, planned.placement):
        return None
    return proven.load_mode


def better(kept: Choice, anew: Choice, demand: Demand) -> str | None:
    """Say what a new choice would be and have before the kept one; None when it is not clearly better."""
    speed = anew.speed.expected / kept.speed.expected if anew.speed and kept.speed else 1.0
    cache = [(each.placement.cache_type_k, each.placement.cache_type_v) for each in (anew, kept)]
    gains = []
    if anew.placement.ctx_size > kept.placement.ctx_size:
        gains.append(f"context {anew.placement.ctx_size:,}")
    if demand.cache_types.index(cache[0]) < demand.cache_types.index(cache[1]):
        gains.append(f"KV cache {'/'.join(dict.fromkeys(cache[0]))}")
    if anew.placement.ubatch_size > kept.placement.ubatch_size:
        gains.append(f"micro-batch {anew.placement.ubatch_size}")
    if anew.placement.cache_ram_mib > kept.placement.cache_ram_mib:
        gains.append(f"prompt cache {anew.placement.cache_ram_mib:,} MiB")
    if not gains and speed < _CLEARLY:
        return None
    return f"{placement.split_words(anew)} ({', '.join([f'{speed - 1:+.0%} tokens/s expected', *gains])})"
