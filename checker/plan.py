"""All tiers of a host together: inventory, catalogue and host to a plan.

`make` finds for every tier the first candidate that fits and says which tiers can be resident together; it never fails
because something does not fit (`checker.site_plan` does). Pure; MiB and tokens per second.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from checker import asked, decision, host_memory, kept, placement, tier
from checker.cards import Card, Host, Ram
from checker.catalogue import (
    GpuEntry,
    InventoryError,
    ModelEntry,
    TierEntry,
    model_path,
)
from checker.header import KNOWN, Header
from checker.placement import Choice, Demand, Refusal
from checker.tier import is_here

# Of so many tiers every order is tried in which they can be placed one beside the other.
_ORDERED_TIERS = 4
# A context of a range below this share of the speed that its start has is remarked on.
_COSTS_SPEED = 0.95
# The engine tells no estimate of its own for these (docs/evidence/README.md).
_UNPROVEN_MODES = ("row", "tensor")


@dataclass(frozen=True)
class CandidatePlan:
    """One candidate put to the arithmetic, with its header.

    `header_tolerance` is None when the header was read from the file; else it was derived, and its sizes are true to
    this share. `kept` when the result was proven on the host and a new choice would be another; `anew` says which, and
    in what it is clearly better. `start` is what was chosen for the start of a range of context, where more was taken.
    """

    model: str
    demand: Demand
    result: Choice | Refusal
    header: Header
    header_tolerance: float | None
    kept: bool = False
    anew: str | None = None
    start: Choice | None = None

    @property
    def choice(self) -> Choice:
        """The placement that fits, or the one that misses by least."""
        return self.result if isinstance(self.result, Choice) else self.result.nearest

    @property
    def fits(self) -> bool:
        """Whether the candidate can be served."""
        return isinstance(self.result, Choice)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What whoever reads the figures should know of them, one sentence each."""
        mode = self.choice.placement.split_mode
        unproven = f"{mode} split: how far these figures are off is not known; leave the cards a larger margin_mib"
        return (
            *self._of_context,
            *self._of_range,
            *self._of_layers,
            *([unproven] if mode in _UNPROVEN_MODES else []),
            *self._of_cards,
        )

    @property
    def confidence(self) -> str:
        """What the figures of its memory rest on: `header.KNOWN`, or what makes them less sure."""
        mode = self.choice.placement.split_mode
        if mode not in _UNPROVEN_MODES:
            return self.header.confidence
        rules = f"rules of {mode} split that no estimate of the engine was held against"
        return rules if self.header.confidence == KNOWN else f"{self.header.confidence}, and {rules}"

    @property
    def _of_cards(self) -> tuple[str, ...]:
        elsewhere = (
            f"{placement.short_name(card.name)} is another host's (RPC server {card.rpc_endpoint}): what CUDA takes "
            "there besides is not known and not counted; leave it a larger margin_mib"
            for card in self.choice.cards
            if not is_here(card.rpc_endpoint)
        )
        untold = (
            f"{placement.short_name(card.name)}: the host does not tell what our own tiers hold of it, so what other "
            "processes hold is not known and the driver's prior is counted; look with `nvidia-smi`"
            for card in self.choice.cards
            if not card.others_known
        )
        unknown = (
            f"{placement.short_name(card.name)}: its compute capability is not known, so that its speed and "
            "what CUDA takes of it are a wide guess; give compute_capability"
            for card in self.choice.cards
            if card.compute_capability is None
        )
        return (*elsewhere, *untold, *unknown)

    @property
    def _of_range(self) -> tuple[str, ...]:
        now, start = self.choice.speed, self.start.speed if self.start else None
        if not self.start or not now or not start or now.expected >= start.expected * _COSTS_SPEED:
            return ()
        contexts = self.choice.placement.ctx_size, self.start.placement.ctx_size
        return (
            f"the range of the context costs speed: {now.expected:,.1f} tokens/s expected with {contexts[0]:,}, "
            f"{start.expected:,.1f} with {contexts[1]:,}",
        )

    @property
    def _of_layers(self) -> tuple[str, ...]:
        layers = self.header.n_layer + 1
        on_host = layers - self.choice.placement.n_gpu_layers
        return (f"{on_host} of {layers} layers on the CPU",) if on_host else ()

    @property
    def _of_context(self) -> tuple[str, ...]:
        trained, context = placement.trained_context(self.header, self.demand), self.choice.placement.ctx_size
        slots = f" for each of {self.demand.parallel} requests" if self.demand.parallel > 1 else ""
        if context > trained:
            return (
                f"context {context:,} is beyond what the model was trained for, {self.header.n_ctx_train:,} tokens"
                f"{slots}: llama-server gives a request no more than that, so verification will fail",
            )
        if self.demand.most_context > trained:
            return (
                f"the range of the context was cut off at {trained:,}: the model was trained for no more than "
                f"{self.header.n_ctx_train:,} tokens{slots}",
            )
        return ()


@dataclass(frozen=True)
class TierPlan:
    """One tier: `candidates` in order of preference up to the first that fits, which is the chosen one.

    `cards` are those that the tier may use, `engine` is what the inventory names for it, None for the host's. One that
    is not `pinned` need not be resident beside every other.
    """

    name: str
    candidates: tuple[CandidatePlan, ...]
    cards: tuple[Card, ...]
    engine: str | None = None
    pinned: bool = True

    @property
    def chosen(self) -> CandidatePlan:
        """The candidate that is served; the first one when none fits."""
        return self.candidates[-1] if self.fits else self.candidates[0]

    @property
    def fits(self) -> bool:
        """Whether any candidate fits."""
        return self.candidates[-1].fits


@dataclass(frozen=True)
class Exclusion:
    """Tiers that each fit, but not together, and the arithmetic."""

    tiers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a host's tiers are planned to be; `resident_together` are the largest sets of tiers that fit at once.

    `cards` are the host's, in the inventory's order.
    """

    cards: tuple[Card, ...]
    tiers: tuple[TierPlan, ...]
    resident_together: tuple[tuple[str, ...], ...]
    exclusions: tuple[Exclusion, ...]

    def rivals(self, name: str) -> tuple[str, ...]:
        """Name the tiers that cannot be resident beside one, in the inventory's order; each stops when it starts."""
        beside = {other for exclusion in self.switched for other in exclusion.tiers if name in exclusion.tiers}
        return tuple(each.name for each in self.tiers if each.name in beside and each.name != name)

    def beside(self, name: str) -> list[list[Choice]]:
        """Return the sets of other tiers that may be resident with one."""
        choices = {each.name: each.chosen.choice for each in self.tiers}
        return [
            [choices[other] for other in names if other != name] for names in self.resident_together if name in names
        ]

    def load_mode(self, name: str) -> str:
        """Return how the server of a tier is to read its model's file (`checker.host_memory`)."""
        (own,) = (each.chosen.choice for each in self.tiers if each.name == name)
        return host_memory.load_mode(own, self.beside(name))

    @property
    def switched(self) -> tuple[Exclusion, ...]:
        """Those exclusions that the host lives with: pairs of which one is on demand, and gives way."""
        return tuple(exclusion for exclusion in self.exclusions if exclusion not in self.refused)

    @property
    def refused(self) -> tuple[Exclusion, ...]:
        """Those exclusions that cannot be: of tiers that are all pinned, which are to be served at the same time."""
        pinned = {each.name for each in self.tiers if each.pinned}
        return tuple(exclusion for exclusion in self.exclusions if pinned >= set(exclusion.tiers))


def make(gpus: Sequence[GpuEntry], tiers: Sequence[TierEntry], models: Mapping[str, ModelEntry], host: Host) -> Plan:
    """Plan all tiers of a host; the entries have passed `catalogue.check_inventory`.

    Each tier is planned for the whole host. Where these placements cannot be resident together, the tiers are planned
    once more one beside the other (`_squeezed`). When that is in vain, those that are pinned are planned so, and one
    that is on demand beside them if it has room there, else for the whole host (`_switched`). A range of context is a
    matter of what is left then, so that it makes no tiers exclude each other.
    """
    planned = {entry.name: _tier(entry, gpus, models, host) for entry in tiers}
    fitting = [entry for entry in tiers if planned[entry.name].fits]

    def beside(entries: Sequence[TierEntry]) -> tuple[TierPlan, ...] | None:
        alone = tuple(planned[entry.name] for entry in entries)
        return _squeezed(entries, gpus, models, host, alone) if over(alone, host) else alone

    together: tuple[tuple[str, ...], ...] = (tuple(entry.name for entry in fitting),) if fitting else ()
    exclusions: tuple[Exclusion, ...] = ()
    all_at_once = beside(fitting)
    if all_at_once is None:
        pinned = beside([entry for entry in fitting if planned[entry.name].pinned])
        if pinned is None or all(planned[entry.name].pinned for entry in fitting):
            together, exclusions = _together(fitting, planned, beside, host)
        else:
            switched = _switched(fitting, gpus, models, host, planned | {each.name: each for each in pinned}, {})
            planned |= {each.name: each for each in switched}
            together, exclusions = _rivals(switched, host)
    planned |= {each.name: each for each in all_at_once or ()}
    _raise_contexts(planned, together, host, lambda group: not over(group, host))
    _raise_prompt_caches(planned, together, host)
    return Plan(host.cards, tuple(planned.values()), together, exclusions)


def _tier(
    entry: TierEntry, gpus: Sequence[GpuEntry], models: Mapping[str, ModelEntry], host: Host, *, frugal: bool = False
) -> TierPlan:
    """Plan one tier on the host, with the least context that it may have.

    `frugal` leaves others as much as can be: with the smallest micro-batch, and no pipeline parallelism.
    """
    cards = dict(zip((gpu.uuid for gpu in gpus), host.cards, strict=True))
    own = Host(tuple(cards[gpu.uuid] for gpu in asked.cards(entry, gpus)), host.ram)
    tried: list[CandidatePlan] = []
    for candidate in entry.candidates:
        header = models[candidate.model].header
        if header is None:
            raise InventoryError([f"model {candidate.model} has no header in the catalogue"])
        wanted = asked.demand(entry, candidate)
        least = replace(wanted, most_context=wanted.context)
        if frugal:
            least = replace(least, ubatch_sizes=(min(wanted.ubatch_sizes),), pipeline=wanted.pipeline[-1:])
        try:
            alternatives = _quantisations(candidate.model, models)
            result = placement.search(header, replace(own, model=candidate.model), least, alternatives)
        except ValueError as error:
            raise InventoryError([f"tier {entry.name}: {error}"]) from error
        derived = models[candidate.model].header_derived
        tolerance = derived.tolerance if derived else None
        tried.append(CandidatePlan(candidate.model, wanted, result, header, tolerance))
        if tried[-1].fits:
            break
    return TierPlan(entry.name, tuple(tried), own.cards, entry.engine, entry.residency == tier.PINNED)


def screen(
    entry: TierEntry, gpus: Sequence[GpuEntry], models: Mapping[str, ModelEntry], host: Host
) -> tuple[CandidatePlan, ...]:
    """Plan every candidate of a tier as if it were the only one, and the tier alone on the host."""
    alone = (entry.model_copy(update={"candidates": [candidate]}) for candidate in entry.candidates)
    return tuple(make(gpus, [each], models, host).tiers[0].chosen for each in alone)


def _quantisations(name: str, models: Mapping[str, ModelEntry]) -> dict[str, Header]:
    """Return the headers of the catalogue's other quantisations of a model: names that differ in their last part."""

    def family(model: str) -> str:
        return re.sub(r"-(i?q\d|bf16|f16|f32|mxfp4).*$", "", model)

    return {
        other: entry.header
        for other, entry in models.items()
        if other != name and family(other) == family(name) and entry.header is not None
    }


def on_cards(planned: Iterable[TierPlan]) -> dict[Card, list[tuple[str, float]]]:
    """Return what tiers hold of each card: name and MiB."""
    held: dict[Card, list[tuple[str, float]]] = {}
    for each in planned:
        choice = each.chosen.choice
        for card, need in zip(choice.cards, choice.estimate.devices, strict=True):
            held.setdefault(card, []).append((each.name, need.total_mib))
    return held


def over(planned: Sequence[TierPlan], host: Host) -> str | None:
    """Say which card (or the host's memory) cannot hold all of these tiers at once; None when they fit together."""
    said = []
    for card, parts in on_cards(planned).items():
        needed = sum(mib for _, mib in parts)
        if needed > card.room_mib:
            shares = " + ".join(f"{name} {mib:,.0f}" for name, mib in parts)
            said.append(
                f"{placement.short_name(card.name)} needs {needed:,.0f} MiB ({shares}), {card.room_mib:,} are "
                f"for tiers ({card.total_mib:,} - {card.taken_mib:,} taken - {card.margin_mib:,} margin)"
            )
    room = host.ram.room_mib
    parts = [(each.name, each.chosen.choice.estimate.host.total_mib) for each in planned]
    needed = sum(mib for _, mib in parts)
    if room is not None and needed > room:
        shares = " + ".join(f"{name} {mib:,.0f}" for name, mib in parts)
        said.append(
            f"the host needs {needed:,.0f} MiB ({shares}), {room:,} of its {host.ram.total_mib:,} are for tiers"
        )
    return "; ".join(said) or None


def _left(host: Host, groups: Sequence[Sequence[TierPlan]]) -> tuple[Host, dict[Card, Card]]:
    """Return the host as each of some groups of tiers leaves it, and the whole card of each card that is left.

    The groups need not be resident at once: of each card, and of the host's memory, the one that holds most counts.
    """
    held = [on_cards(group) for group in groups]
    left = {}
    for card in host.cards:
        most = max((sum(mib for _, mib in each.get(card, ())) for each in held), default=0.0)
        left[replace(card, taken_mib=card.taken_mib + math.ceil(most))] = card
    ram = host.ram
    if ram.total_mib is not None:
        most = max((sum(each.chosen.choice.estimate.host.total_mib for each in group) for group in groups), default=0.0)
        ram = replace(ram, total_mib=ram.total_mib - math.ceil(most))
    return Host(tuple(left), ram), left


def _on_whole_cards(choice: Choice, whole: Mapping[Card, Card], ram: Ram) -> Choice:
    """Hand a choice that was made on what is left of cards back on the whole ones."""
    return replace(choice, cards=tuple(whole[card] for card in choice.cards), ram=ram)


def _squeezed(
    tiers: Sequence[TierEntry],
    gpus: Sequence[GpuEntry],
    models: Mapping[str, ModelEntry],
    host: Host,
    alone: Sequence[TierPlan],
    held_by: Sequence[TierPlan] = (),
) -> tuple[TierPlan, ...] | None:
    """Plan tiers beside `held_by` and each other: in the inventory's order, else in the first one in which all fit.

    Where there is none in which every tier keeps its candidate, all orders are tried again with the smallest compute
    buffers, and None is the answer when that is in vain too. Every order of up to `_ORDERED_TIERS` tiers is tried; of
    more, as many as that makes placements.
    """
    # Whatever lies where, the weights of a tier that may leave no layer on the CPU are somewhere on the cards.
    weights = sum(
        need.weights_mib
        for each in alone
        if each.chosen.demand.gpu_layers != "auto"
        for need in each.chosen.choice.estimate.devices
    )
    if weights > sum(card.room_mib for card in host.cards):
        return None

    def place(
        done: tuple[TierPlan, ...], waiting: tuple[int, ...], tries: Iterator[int], *, frugal: bool
    ) -> tuple[TierPlan, ...] | None:
        if not waiting:
            return done
        left, whole = _left(host, [done])
        for index in waiting:
            if next(tries, None) is None:
                return None
            found, before = _tier(tiers[index], gpus, models, left, frugal=frugal), alone[index]
            if not found.fits or len(found.candidates) != len(before.candidates):
                continue
            beside = _with(before, replace(found.chosen, result=_on_whole_cards(found.chosen.choice, whole, host.ram)))
            rest = tuple(other for other in waiting if other != index)
            every = place((*done, beside), rest, tries, frugal=frugal)
            if every:
                return every
        return None

    most = sum(math.perm(_ORDERED_TIERS, count + 1) for count in range(_ORDERED_TIERS))
    passes = (place(tuple(held_by), tuple(range(len(tiers))), iter(range(most)), frugal=each) for each in (False, True))
    return next(filter(None, passes), None)


def keep(
    planned: Plan,
    proven: Mapping[str, tier.TierSpec],
    gpus: Sequence[GpuEntry],
    tiers: Sequence[TierEntry],
    models: Mapping[str, ModelEntry],
    host: Host,
) -> Plan:
    """Put what is proven on the host, by tier, in the place of what `make` has planned, where it can be kept.

    As many placements are kept as there is room for, and the other tiers planned beside them. When that gives no plan
    with which all tiers are resident, the plan stays what it was. Of tiers that switch this is true of those that are
    pinned; one that is on demand keeps a placement that is resident beside them as much as the new choice would be.

    A placement that fits by the priors is not given up for what was measured of the cards' overhead, nor one that fits
    by what was measured for the priors: else the first verification could move tiers that it found well. What is kept
    may thus take some of a card's margin, but never more than the card has.
    """
    views = [planned]
    if any(card.overhead or card.row_overheads for card in host.cards):
        unmeasured = tuple(replace(card, overhead=None, row_overheads=()) for card in host.cards)
        by_priors = replace(host, cards=unmeasured)
        views.append(make(gpus, tiers, models, by_priors))
    leniently = replace(host, cards=tuple(_with_least_overhead(card) for card in host.cards))
    judged = {
        each.name: found
        for each in planned.tiers
        if each.name in proven and (found := _as_proven(each.name, views, proven[each.name], models, leniently))
    }
    as_proven = {name: _on_host(each, host) for name, each in judged.items()}
    if planned.switched and not planned.refused:
        return _keep_switched(planned, as_proven, proven, gpus, tiers, models, host)
    for size in range(len(as_proven), 0, -1):
        for names in itertools.combinations(as_proven, size):
            rest = [(entry, each) for entry, each in zip(tiers, planned.tiers, strict=True) if each.name not in names]
            entries, before = [entry for entry, _ in rest], [each for _, each in rest]
            held_by = [as_proven[name] for name in names]
            if over([judged[name] for name in names], leniently) or _beyond_cards(held_by):
                continue
            if not all(each.fits for each in before):
                continue
            every = _squeezed(entries, gpus, models, host, before, held_by)
            if every:
                by_name = {each.name: each for each in every}
                _raise_contexts(by_name, [tuple(by_name)], host, lambda _: True)
                _raise_prompt_caches(by_name, [tuple(by_name)], host)
                compared = tuple(_compared(by_name[each.name], each, planned) for each in planned.tiers)
                return Plan(host.cards, compared, (tuple(each.name for each in compared),), ())
    return planned


def _keep_switched(
    planned: Plan,
    as_proven: Mapping[str, TierPlan],
    proven: Mapping[str, tier.TierSpec],
    gpus: Sequence[GpuEntry],
    tiers: Sequence[TierEntry],
    models: Mapping[str, ModelEntry],
    host: Host,
) -> Plan:
    pairs = list(zip(tiers, planned.tiers, strict=True))
    pinned = Plan(host.cards, tuple(each for each in planned.tiers if each.pinned), (), ())
    pinned = keep(pinned, proven, gpus, [entry for entry, each in pairs if each.pinned], models, host)
    by_name = {each.name: each for each in (*planned.tiers, *pinned.tiers)}
    again = {name: each for name, each in as_proven.items() if not each.pinned and not _beyond_cards([each])}
    placed = _switched(tiers, gpus, models, host, by_name, again)
    compared = tuple(_compared(each, before, planned) for each, before in zip(placed, planned.tiers, strict=True))
    contexts = {each.name: each for each in compared}
    together, exclusions = _rivals(compared, host)
    _raise_contexts(contexts, together, host, lambda group: not over(group, host))
    _raise_prompt_caches(contexts, together, host)
    return Plan(host.cards, tuple(contexts.values()), together, exclusions)


def _with_least_overhead(card: Card) -> Card:
    prior = placement.prior_overhead(card)
    least = min(prior, card.overhead or prior, key=lambda overhead: overhead.mib)
    return replace(card, overhead=least, row_overheads=())


def _as_proven(
    name: str, views: Sequence[Plan], proven: tier.TierSpec, models: Mapping[str, ModelEntry], host: Host
) -> TierPlan | None:
    """Return a tier's plan with its proven placement, by the first of some plans that serves the same model.

    None when another model is to be served, or the placement cannot be kept on this host.
    """
    for planned in (each for view in views for each in view.tiers if each.name == name and each.fits):
        chosen, model = planned.chosen, models[planned.chosen.model]
        if proven.model.name == chosen.model and proven.model.file.endswith(model_path(model, "")):
            here = _on_host(planned, host)
            choice = kept.choice(proven, chosen.header, here.cards, host.ram, chosen.demand)
            if choice:
                return _with(here, replace(chosen, result=choice, kept=True))
    return None


def _on_host(planned: TierPlan, host: Host) -> TierPlan:
    """Put a tier's placement to the arithmetic of a host with the same cards, of which other things are known."""
    cards = {card.uuid: card for card in host.cards}
    choice = planned.chosen.choice
    order = [cards[card.uuid] for card in choice.cards]
    again = placement.evaluate(planned.chosen.header, choice.placement, order, host.ram, planned.chosen.model)
    own = tuple(cards[card.uuid] for card in planned.cards)
    return replace(_with(planned, replace(planned.chosen, result=again)), cards=own)


def _beyond_cards(planned: Sequence[TierPlan]) -> bool:
    """Whether tiers are expected to hold more of a card than there is of it."""
    return any(sum(mib for _, mib in parts) > (card.total_mib or 0) for card, parts in on_cards(planned).items())


def _compared(now: TierPlan, anew: TierPlan, planned: Plan) -> TierPlan:
    """Complete what is said of a kept placement by what the new choice was, if all tiers could have theirs.

    What a new choice would be too is not called kept.
    """
    ours, other = now.chosen, anew.chosen
    if not ours.kept:
        return now
    same = (ours.model, ours.choice.placement, ours.choice.cards) == (
        other.model,
        other.choice.placement,
        other.choice.cards,
    )
    if anew.fits and same:
        return _with(now, replace(ours, kept=False))
    if planned.refused or not all(each.fits for each in planned.tiers):
        return now
    if ours.model != other.model:
        return _with(now, replace(ours, anew=f"{other.model}, {placement.split_words(other.choice)}"))
    return _with(now, replace(ours, anew=kept.better(ours.choice, other.choice, ours.demand)))


def _with(planned: TierPlan, chosen: CandidatePlan) -> TierPlan:
    return replace(planned, candidates=(*planned.candidates[:-1], chosen))


def _switched(
    tiers: Sequence[TierEntry],
    gpus: Sequence[GpuEntry],
    models: Mapping[str, ModelEntry],
    host: Host,
    planned: Mapping[str, TierPlan],
    proven: Mapping[str, TierPlan],
) -> tuple[TierPlan, ...]:
    """Place tiers on demand, each beside those that are pinned if it has room there, else as it was planned alone.

    `planned` has the pinned ones as they are resident together, `proven` the placements on demand that may be kept.
    """
    pinned = [planned[entry.name] for entry in tiers if planned[entry.name].pinned]
    placed = []
    for entry in tiers:
        own = planned[entry.name]
        if not own.pinned and over([*pinned, own], host):
            beside = _squeezed([entry], gpus, models, host, [own], pinned)
            own = beside[-1] if beside else own
        kept_one = proven.get(entry.name)
        if kept_one and (not over([*pinned, kept_one], host) or over([*pinned, own], host)):
            own = kept_one
        placed.append(own)
    return tuple(placed)


def _rivals(planned: Sequence[TierPlan], host: Host) -> tuple[tuple[tuple[str, ...], ...], tuple[Exclusion, ...]]:
    """Return the largest sets of tiers that are resident together as placed, and the pairs that are not.

    Of more than two that only together have no room, two are made rivals: the last ones on demand, or the last of them
    and the last pinned one.
    """
    rivals: dict[frozenset[str], Exclusion] = {}
    resident: list[tuple[str, ...]] = []
    for size in range(1, len(planned) + 1):
        for chosen in itertools.combinations(planned, size):
            names = tuple(each.name for each in chosen)
            if any(pair <= set(names) for pair in rivals):
                continue
            reason = over(chosen, host)
            if reason is None:
                resident.append(names)
                continue
            # Sorted is stable: those on demand go last, in their order.
            pair = tuple(each.name for each in sorted(chosen, key=lambda each: not each.pinned)[-2:])
            rivals[frozenset(pair)] = Exclusion(pair, reason)
    together = [
        names
        for names in resident
        if not any(pair <= set(names) for pair in rivals) and not any(set(names) < set(other) for other in resident)
    ]
    return tuple(together), tuple(rivals.values())


def _together(
    tiers: Sequence[TierEntry],
    planned: Mapping[str, TierPlan],
    beside: Callable[[Sequence[TierEntry]], tuple[TierPlan, ...] | None],
    host: Host,
) -> tuple[tuple[tuple[str, ...], ...], tuple[Exclusion, ...]]:
    """Return the largest sets of tiers that fit at once, and the smallest that do not."""
    fitting: list[tuple[str, ...]] = []
    exclusions: list[Exclusion] = []
    for size in range(1, len(tiers) + 1):
        for chosen in itertools.combinations(tiers, size):
            names = tuple(entry.name for entry in chosen)
            if any(set(exclusion.tiers) <= set(names) for exclusion in exclusions):
                continue
            if beside(chosen):
                fitting.append(names)
                continue
            reason = over([planned[name] for name in names], host)
            untried = "; not every order of so many tiers was tried" if size > _ORDERED_TIERS else ""
            exclusions.append(Exclusion(names, f"{reason}{untried}"))
    largest = [names for names in fitting if not any(set(names) < set(other) for other in fitting)]
    return tuple(largest), tuple(exclusions)


def _raise_contexts(
    planned: dict[str, TierPlan],
    together: Sequence[Sequence[str]],
    host: Host,
    are_resident: Callable[[Sequence[TierPlan]], bool],
) -> None:
    """Give tiers, in their order, the context of their range that those that are resident beside them leave room for.

    A set of tiers that is resident with other placements than these only gives its context no say here: `are_resident`
    tells whether some of its tiers are with these.
    """
    for name, each in planned.items():
        least = each.chosen
        if not each.fits or least.kept or least.demand.most_context == least.demand.context:
            continue
        sets = [[planned[other] for other in names] for names in together if name in names]
        others = [[other for other in group if other is not each] for group in sets if are_resident(group)]
        left, whole = _left(host, others)
        smaller = {card: part for part, card in whole.items()}
        own = Host(tuple(smaller[card] for card in each.cards), left.ram, least.model)
        result = placement.search(least.header, own, least.demand)
        # What is left is counted in whole MiB, which may be too little by part of one.
        if isinstance(result, Choice) and result.placement.n_gpu_layers == least.choice.placement.n_gpu_layers:
            raised = replace(least, result=_on_whole_cards(result, whole, host.ram), start=least.choice)
            planned[name] = _with(each, raised)


def _raise_prompt_caches(planned: dict[str, TierPlan], together: Sequence[Sequence[str]], host: Host) -> None:
    """Give tiers, in their order, the prompt cache of their range that is left of the host's memory.

    What tiers that are resident at once are planned to hold of it goes before, and what their servers take themselves.
    """
    room = host.ram.room_mib
    if room is None:
        return
    for name, each in planned.items():
        least = each.chosen
        if not each.fits or least.kept or least.demand.most_cache_ram_mib <= least.demand.cache_ram_mib:
            continue
        groups = [[planned[other].chosen.choice for other in names] for names in together if name in names]
        held = max(map(host_memory.held_mib, groups))
        mib = min(least.demand.most_cache_ram_mib, least.demand.cache_ram_mib + math.floor(room - held))
        if mib > least.demand.cache_ram_mib:
            choice = least.choice
            more = replace(choice.placement, cache_ram_mib=mib)
            result = placement.evaluate(least.header, more, choice.cards, choice.ram, least.model)
            planned[name] = _with(each, replace(least, result=result))


def refusal(name: str, candidate: CandidatePlan) -> str:
    """Say in one sentence why a candidate does not fit and what would."""
    assert isinstance(candidate.result, Refusal)
    choice = candidate.choice
    what = f"{name}: {candidate.model}, context {candidate.demand.context:,}, {placement.split_words(choice)}: "
    said = what + "; ".join(candidate.result.reasons)
    changes = [f"{change.what} ({_speed(change.choice)})" for change in candidate.result.changes]
    return f"{said}. Would fit: {'; '.join(changes)}" if changes else f"{said}. No change of one kind would fit"


def _speed(choice: Choice) -> str:
    return f"{choice.speed.expected:.1f} tokens/s expected" if choice.speed else "speed not known"


def problems(planned: Plan, decided: Collection[str] = ()) -> list[str]:
    """Return every reason why the tiers of a plan cannot all be served at once; `decided` names those that are."""
    as_measured = "decided with the placement that was measured, and no other is served untried"
    said = [
        refusal(each.name, candidate)
        + (f"; it is {as_measured}: make room, or {decision.TRY_AGAIN}" if each.name in decided else "")
        for each in planned.tiers
        if not each.fits
        for candidate in each.candidates
    ]
    for exclusion in planned.refused:
        said.append(
            f"{' and '.join(exclusion.tiers)} cannot be resident together: {exclusion.reason}; pinned tiers are served "
            "all the time: give one of them `residency: on_demand`, or a smaller candidate or context, or leave it out"
        )
        own = [name for name in exclusion.tiers if name in decided]
        if own:
            said[-1] += (
                f"; {' and '.join(own)} {'is' if len(own) == 1 else 'are'} {as_measured}: one that leaves more room is "
                "a candidate of its own, to be written, tried and decided (`checker trial`, `checker decide`)"
            )
    return said


def devices(choice: Choice) -> tuple[tier.Device, ...]:
    """Name the cards as llama.cpp will: CUDA in the order of CUDA_VISIBLE_DEVICES, RPC in that of --rpc."""
    named = []
    counts = {"CUDA": 0, "RPC": 0}
    for card, layers, need in zip(choice.cards, choice.placement.tensor_split, choice.estimate.devices, strict=True):
        named.append(
            tier.Device(
                name=f"{card.kind}{counts[card.kind]}",
                uuid=card.uuid or "",
                gpu=card.name,
                layers=layers,
                weights_mib=need.weights_mib,
                rpc_endpoint=card.rpc_endpoint,
                kv_mib=round(float(need.kv_mib), 1),
                compute_mib=round(float(need.compute_mib), 1),
                overhead_mib=round(float(need.overhead_mib), 1),
            )
        )
        counts[card.kind] += 1
    return tuple(named)
