"""One model on the cards of a host: the fastest placement that fits every card, or why none does and what would.

The search is exact over what llama.cpp can do with whole layers: which cards, in which order, how many layers on each,
type of the KV cache, micro-batch, pipeline parallelism, layers left on the CPU. It is fast because what a range of
layers weighs is a difference of prefix sums, and what a device needs besides depends on its place and not on the cut
(but for a few layers): for one order of cards the best cuts are a shortest path over (device, layer).
`memory.estimate` has the last word on every placement that leaves this module. Pure; memory in MiB, speed in tokens per
second.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from checker import memory, throughput
from checker.cards import Card, Host, Ram, name_hint
from checker.header import Header
from checker.throughput import Speed
from checker.tier import Placement

MIB = 1024 * 1024
UBATCH_SIZES = (512, 256, 128)
# Placements this close to the fastest count as equally fast: the larger micro-batch goes before (prompts run faster).
_EQUAL = 0.991
# What is given up, at most, to leave the same spare memory on every card.
_BALANCE = 0.999
# Every order of so many cards is tried; of more, every first and last card (what lies between them only moves cuts).
_ORDERED = 5
# With so few layers on a device its compute buffers depend on their number (memory.estimate); with more they do not.
_FEW = 6
# A smaller context is looked for in these steps (llama.cpp pads it to 256), a larger one of a range in those.
_CONTEXT_STEP = 256
_RANGE_STEP = 1024


@dataclass(frozen=True)
class Demand:
    """What a placement has to be; the tuples are choices, the preferred one first.

    `context` in tokens; where `most_context` is above it, the context is the largest up to there that leaves as many
    layers on the cards, and the same type of KV cache, as `context` itself. `cache_ram_mib` is what cached prompts have
    of the host's memory, up to `most_cache_ram_mib` where a plan finds it left. `cache_types` are pairs (K, V).
    `gpu_layers` None is every layer, a number that many (the output layer counts as one), "auto" as many as fit.
    `split` fixes the layers of each card, in the order of the host's cards; `all_in_order` asks for a split over all of
    them in this order.
    """

    context: int
    cache_types: tuple[tuple[str, str], ...] = (("f16", "f16"),)
    ubatch_sizes: tuple[int, ...] = UBATCH_SIZES
    pipeline: tuple[bool, ...] = (True, False)
    gpu_layers: int | str | None = None
    flash_attn: str = "on"
    parallel: int = 1
    cache_ram_mib: int = 0
    n_cpu_moe: int = 0
    split_mode: str = "layer"
    split: tuple[int, ...] | None = None
    all_in_order: bool = False
    most_context: int = 0
    most_cache_ram_mib: int = 0


@dataclass(frozen=True)
class Choice:
    """A placement with its arithmetic; `cards` in device order. `speed` is None when a bandwidth is not known."""

    placement: Placement
    cards: tuple[Card, ...]
    estimate: memory.Estimate
    speed: Speed | None
    ram: Ram = field(default_factory=lambda: Ram(None))

    @property
    def spare_mib(self) -> tuple[float, ...]:
        """MiB that stay free above the margin, by device; negative where it does not fit."""
        return tuple(
            card.room_mib - need.total_mib for card, need in zip(self.cards, self.estimate.devices, strict=True)
        )

    @property
    def fits(self) -> bool:
        """Whether every card and the host's memory have room."""
        return min(self.spare_mib) >= 0 and host_miss(self) is None


@dataclass(frozen=True)
class Change:
    """The smallest change of one kind that would fit, and what it costs."""

    what: str
    choice: Choice


@dataclass(frozen=True)
class Refusal:
    """No placement fits: the one that misses by least, why it does not fit, and what would."""

    nearest: Choice
    reasons: tuple[str, ...]
    changes: tuple[Change, ...]


def whole_layers(ratios: Sequence[float], n_gpu_layers: int) -> tuple[int, ...]:
    """Turn proportions into whole layers as llama.cpp does (src/llama-model.cpp): by position, not by rounding.

    A layer goes to the first device whose cumulative share is above the layer's position; 8,3 of 49 is 36,13.
    """
    total = sum(ratios)
    ends = [part / total for part in itertools.accumulate(ratios)]
    counts = [0] * len(ratios)
    for layer in range(n_gpu_layers):
        position = layer / n_gpu_layers
        counts[min(next((i for i, end in enumerate(ends) if end > position), len(ends) - 1), len(ends) - 1)] += 1
    return tuple(counts)


def host_miss(choice: Choice) -> str | None:
    """Say why the host's memory is not enough, or None."""
    room, need = choice.ram.room_mib, choice.estimate.host
    if room is None or need.total_mib <= room:
        return None
    return (
        f"the host needs {need.total_mib:,.0f} MiB ({need.weights_mib:,.0f} weights + {need.kv_mib:,.0f} KV + "
        f"{need.compute_mib:,.0f} compute + {need.cache_ram_mib:,.0f} prompt cache), {room:,} of its "
        f"{choice.ram.total_mib:,} MiB are for tiers"
    )


def misses(choice: Choice) -> tuple[str, ...]:
    """Return one sentence, with the arithmetic, for each card (and the host) that has not the room."""
    said = [
        f"{short_name(card.name)} needs {need.total_mib:,.0f} MiB ({need.weights_mib:,.0f} weights + "
        f"{need.kv_mib:,.0f} KV + {need.compute_mib:,.0f} compute + {need.overhead_mib:,.0f} CUDA), "
        f"{card.room_mib:,} are for tiers "
        f"({card.total_mib:,} - {card.taken_mib:,} taken - {card.margin_mib:,} margin)"
        for card, need, spare in zip(choice.cards, choice.estimate.devices, choice.spare_mib, strict=True)
        if spare < 0
    ]
    return (*said, *filter(None, [host_miss(choice)]))


def _estimate(header: Header, placement: Placement, cards: Sequence[Card], model: str) -> memory.Estimate:
    return memory.estimate(
        header,
        placement,
        tuple(card.kind for card in cards),
        overheads=tuple(overhead(card, placement.split_mode, model) for card in cards),
    )


def evaluate(header: Header, placement: Placement, cards: Sequence[Card], ram: Ram, model: str = "") -> Choice:
    """Put one placement to the arithmetic; `cards` in device order, `model` is the name of the header's."""
    estimate = _estimate(header, placement, cards, model)
    known = all(card.bandwidth_gb_s for card in cards)
    speed = throughput.speed(header, placement, cards, ram) if known else None
    return Choice(placement, tuple(cards), estimate, speed, ram)


@dataclass(frozen=True)
class _Setting:
    """What is the same for every cut: types of the cache, micro-batch, pipeline parallelism."""

    cache_type_k: str
    cache_type_v: str
    ubatch_size: int
    pipeline: bool


@dataclass
class _Buffers:
    """Compute buffers by device, MiB: with many layers on it, and by (device, count) with a few, as they are learnt."""

    many: list[float]
    few: dict[tuple[int, int], float]
    host_mib: float


@dataclass(frozen=True)
class _Room:
    """MiB that a device has for weights and KV: of many layers, and by count of a few."""

    many: float
    few: list[float]


@dataclass(frozen=True)
class _Cut:
    """The fastest cuts for one setting and order of cards."""

    seconds: float
    setting: _Setting
    order: tuple[Card, ...]
    split: tuple[int, ...]


class _Search:
    """The search for one model, host and demand; keeps what does not depend on the cut."""

    def __init__(self, header: Header, host: Host, demand: Demand) -> None:
        self.header, self.demand, self.ram = header, demand, host.ram
        self.layers = header.n_layer + 1
        self.host_cards = host.cards
        self.cards = sorted(host.cards, key=_canonical)
        self.ram_rate = throughput.ram_rate(host.ram)
        self._seconds: dict[tuple[_Setting, Card], list[float]] = {}
        self._sums: dict[_Setting, tuple[list[float], list[float]]] = {}
        self._buffers: dict[tuple[_Setting, tuple[str, ...], int], _Buffers] = {}

    def settings(self, cache_type: tuple[str, str], n_gpu_layers: int) -> list[_Setting]:
        """Return the settings, the preferred one first and the one that needs least memory last.

        With layers on the host the engine does not compute in a pipeline, whatever is asked.
        """
        return [
            _Setting(*cache_type, ubatch, pipeline)
            for ubatch in sorted(self.demand.ubatch_sizes, reverse=True)
            for pipeline in (self.demand.pipeline if n_gpu_layers == self.layers else (True,))
        ]

    @cached_property
    def orders(self) -> list[tuple[Card, ...]]:
        """Return every ordered choice of cards, once for cards that are alike; few cards go before many."""
        if self.demand.all_in_order:
            return [self.host_cards]
        limit = 1 if self.demand.split_mode == "none" else len(self.cards)
        found: dict[tuple[object, ...], tuple[Card, ...]] = {}
        for size in range(1, limit + 1):
            for order in _orders(self.cards, size):
                found.setdefault(tuple(_alike(card) for card in order), order)
        return list(found.values())

    def placement(self, setting: _Setting, split: tuple[int, ...]) -> Placement:
        """Return the placement of one split."""
        return Placement(
            split_mode="layer" if len(split) > 1 else "none",
            tensor_split=split,
            n_gpu_layers=sum(split),
            ctx_size=self.demand.context,
            cache_type_k=setting.cache_type_k,
            cache_type_v=setting.cache_type_v,
            ubatch_size=setting.ubatch_size,
            flash_attn=self.demand.flash_attn,
            pipeline_parallel=setting.pipeline,
            n_cpu_moe=self.demand.n_cpu_moe,
            parallel=self.demand.parallel,
            cache_ram_mib=self.demand.cache_ram_mib,
        )

    def sums(self, setting: _Setting) -> tuple[list[float], list[float]]:
        """Return prefix sums over the layers: MiB of weights and KV, and bytes read for one token."""
        if setting not in self._sums:
            types = setting.cache_type_k, setting.cache_type_v
            reads = throughput.layer_reads(self.header, *types, int(self.demand.context * throughput.FILL))
            weights = memory.by_layer(self.header, self.placement(setting, (self.layers,)))
            self._sums[setting] = ([0.0, *itertools.accumulate(weights)], [0.0, *itertools.accumulate(reads)])
        return self._sums[setting]

    def seconds(self, setting: _Setting, card: Card) -> list[float]:
        """Return prefix sums over the layers: seconds of one token on a card."""
        key = (setting, card)
        if key not in self._seconds:
            pace = throughput.prior(card.compute_capability).expected
            rate = throughput.rate(card, pace)
            reads = self.sums(setting)[1]
            self._seconds[key] = [read / rate + layer * pace.layer_s for layer, read in enumerate(reads)]
        return self._seconds[key]

    def buffers(self, setting: _Setting, order: Sequence[Card], n_gpu_layers: int) -> _Buffers:
        """Return the compute buffers of an order of cards, with many layers on each (an even split has that)."""
        kinds = tuple(card.kind for card in order)
        key = (setting, kinds, n_gpu_layers)
        if key not in self._buffers:
            even = whole_layers([1] * len(kinds), n_gpu_layers)
            estimate = memory.estimate(self.header, self.placement(setting, even), kinds)
            many = [device.compute_mib for device in estimate.devices]
            self._buffers[key] = _Buffers(many, {}, estimate.host.total_mib)
        return self._buffers[key]

    def cut(
        self,
        setting: _Setting,
        order: tuple[Card, ...],
        n_gpu_layers: int,
        buffers: _Buffers | None = None,
        more_mib: float = 0.0,
    ) -> _Cut | None:
        """Return the fastest cuts for one order of cards, None when none fits.

        `buffers` are the compute buffers to leave room for, none when not given; `more_mib` is memory that every card
        is given in thought (negative: that it must leave).
        """
        weight, read = self.sums(setting)
        start = self.layers - n_gpu_layers
        took = [self.seconds(setting, card) for card in order]
        free = [card.room_mib + more_mib - _overhead_mib(card) for card in order]
        while True:
            room = [
                _Room(
                    mib - (buffers.many[device] if buffers else 0.0),
                    [mib - (buffers.few.get((device, count), 0.0) if buffers else 0.0) for count in range(_FEW + 1)],
                )
                for device, mib in enumerate(free)
            ]
            found = _shortest(weight, took, room, start)
            if found is None:
                return None
            if buffers is None or not self.learnt(buffers, setting, order, found[1]):
                break
        places = len(order) + (start > 0)
        seconds = found[0] + read[start] / self.ram_rate + throughput.hops_s(self.header, places)
        return _Cut(seconds, setting, order, found[1])

    def learnt(self, buffers: _Buffers, setting: _Setting, order: Sequence[Card], split: tuple[int, ...]) -> bool:
        """Learn the buffers of devices that hold a few layers; tell whether there was anything to learn."""
        new = [
            (device, count)
            for device, count in enumerate(split)
            if count <= _FEW and (device, count) not in buffers.few
        ]
        if new:
            kinds = tuple(card.kind for card in order)
            estimate = memory.estimate(self.header, self.placement(setting, split), kinds)
            buffers.few |= {(device, count): estimate.devices[device].compute_mib for device, count in new}
        return bool(new)

    def cuts(self, setting: _Setting, n_gpu_layers: int, more_mib: float = 0.0) -> list[_Cut]:
        """Return the fastest cuts of every order that has any."""
        found = []
        for order in self.orders:
            # Where there is no room without compute buffers there is none with them.
            if len(order) > n_gpu_layers or self.cut(setting, order, n_gpu_layers, None, more_mib) is None:
                continue
            buffers = self.buffers(setting, order, n_gpu_layers)
            if self.ram.room_mib is None or buffers.host_mib <= self.ram.room_mib:
                found.append(self.cut(setting, order, n_gpu_layers, buffers, more_mib))
        return [cut for cut in found if cut is not None]

    def verified(self, cut: _Cut) -> _Cut | None:
        """Return the cut, or the next best of its order, that fits by the estimate itself."""
        n_gpu_layers, best = sum(cut.split), None
        known = self.buffers(cut.setting, cut.order, n_gpu_layers)
        own = _Buffers(list(known.many), dict(known.few), known.host_mib)
        tried: _Cut | None = cut
        for _ in range(8):
            if tried is None or (best and tried.seconds >= best.seconds):
                break
            choice = self.choice(tried)
            if choice.fits:
                best = tried
            for device, (count, need) in enumerate(zip(tried.split, choice.estimate.devices, strict=True)):
                if count <= _FEW:
                    own.few[device, count] = max(own.few.get((device, count), 0.0), need.compute_mib)
                elif choice.fits:
                    own.many[device] = need.compute_mib
                else:
                    own.many[device] = max(own.many[device], need.compute_mib)
            tried = self.cut(cut.setting, cut.order, n_gpu_layers, own)
        return best

    def choice(self, cut: _Cut) -> Choice:
        """Put a cut to the arithmetic."""
        return evaluate(self.header, self.placement(cut.setting, cut.split), cut.order, self.ram)

    def could_be(self, setting: _Setting, n_gpu_layers: int) -> float | None:
        """Return seconds that no placement of so many layers can beat, None when even weights and KV do not fit."""
        cuts = (self.cut(setting, order, n_gpu_layers) for order in self.orders if len(order) <= n_gpu_layers)
        return min((cut.seconds for cut in cuts if cut), default=None)

    def best(self, cache_type: tuple[str, str], n_gpu_layers: int) -> _Cut | None:
        """Return the fastest placement with so many layers on the cards, None when none fits."""
        *others, frugal = self.settings(cache_type, n_gpu_layers)
        # More room never makes it slower: what needs least memory is the fastest there is, and fits if anything does.
        least = self.fastest(frugal, n_gpu_layers)
        if least is None:
            return None
        for setting in others:
            found = self.fastest(setting, n_gpu_layers)
            if found and found.seconds * _EQUAL <= least.seconds:
                return self.balanced(found)
        return self.balanced(least)

    def fastest(self, setting: _Setting, n_gpu_layers: int) -> _Cut | None:
        """Return the fastest cut of a setting that fits by the estimate itself."""
        found = self.cuts(setting, n_gpu_layers)
        proven: set[tuple[Card, ...]] = set()
        while found:
            least = min(cut.seconds for cut in found)
            # The first of those that are the same but for rounding: fewer cards, then the canonical order.
            cut = next(cut for cut in found if cut.seconds <= least * (1 + 1e-9))
            if cut.order in proven:
                return cut
            proven.add(cut.order)
            place = found.index(cut)
            found[place : place + 1] = filter(None, [self.verified(cut)])
        return None

    def balanced(self, cut: _Cut) -> _Cut:
        """Return a cut of the same order that is as fast and leaves the tightest card as much as can be."""
        n_gpu_layers, best = sum(cut.split), cut
        buffers = self.buffers(cut.setting, cut.order, n_gpu_layers)
        low, high = 0.0, max(self.choice(cut).spare_mib)
        while high - low > 16 and len(cut.order) > 1:
            middle = (low + high) / 2
            found = self.cut(cut.setting, cut.order, n_gpu_layers, buffers, -middle)
            if found and found.seconds * _BALANCE <= cut.seconds and self.choice(found).fits:
                low, best = middle, found
            else:
                high = middle
        return best

    def run(self) -> Choice | None:
        """Return the choice: the first type of cache with which everything is on the cards, else as much as fits."""
        for cache_type in self.demand.cache_types:
            found = self.best(cache_type, self.most_layers)
            if found:
                return self.choice(found)
        if self.demand.gpu_layers != "auto":
            return None
        for cache_type in self.demand.cache_types:
            best: _Cut | None = None
            for n_gpu_layers in range(self.most_layers - 1, 0, -1):
                limit = self.could_be(self.settings(cache_type, n_gpu_layers)[-1], n_gpu_layers)
                if limit is None:
                    continue
                if best and limit >= best.seconds * _BALANCE:
                    break
                found = self.best(cache_type, n_gpu_layers)
                if found and (best is None or found.seconds < best.seconds):
                    best = found
            if best:
                return self.choice(best)
        return None

    @property
    def most_layers(self) -> int:
        """Layers that may lie on cards; the output layer counts as one."""
        wanted = self.demand.gpu_layers
        return wanted if isinstance(wanted, int) else self.layers

    def could_fit(self) -> bool:
        """Whether weights and KV cache alone leave room: it fits with no larger context either where they do not."""
        return any(
            self.could_be(self.settings(cache_type, self.most_layers)[-1], self.most_layers) is not None
            for cache_type in self.demand.cache_types
        )

    def fits_at_all(self) -> bool:
        """Whether any placement with as many layers as asked for fits; quick."""
        return any(
            self.fastest(self.settings(cache_type, self.most_layers)[-1], self.most_layers)
            for cache_type in self.demand.cache_types
        )

    def nearest(self) -> Choice:
        """Return the placement that misses by least: it would fit if every card had the same few MiB more."""
        if self.ram.room_mib is not None:
            rich = Host(self.host_cards, replace(self.ram, total_mib=None))
            on_cards = _Search(self.header, rich, self.demand).run()
            if on_cards:  # so the host's memory is what is too small
                return replace(on_cards, ram=self.ram)
        best: tuple[float, _Cut] | None = None
        for cache_type in self.demand.cache_types:
            setting = self.settings(cache_type, self.most_layers)[-1]
            low, high = 0.0, self.sums(setting)[0][-1] + 1e5
            found = self.cuts(setting, self.most_layers, high)
            while found and high - low > 1:
                middle = (low + high) / 2
                better = self.cuts(setting, self.most_layers, middle)
                if better:
                    high, found = middle, better
                else:
                    low = middle
            if found and (best is None or high < best[0]):
                best = high, min(found, key=lambda cut: cut.seconds)
        if best:
            return self.choice(best[1])
        # The host's memory is too small as well, whatever lies on the cards.
        setting, order = self.settings(self.demand.cache_types[0], self.most_layers)[-1], self.orders[-1]
        split = whole_layers([card.room_mib + 1 for card in order], self.most_layers)
        used = [(card, count) for card, count in zip(order, split, strict=True) if count]
        cards, layers = zip(*used, strict=True)
        return self.choice(_Cut(0.0, setting, cards, layers))


def _shortest(
    weight: list[float], took: Sequence[list[float]], rooms: Sequence[_Room], start: int
) -> tuple[float, tuple[int, ...]] | None:
    """Return seconds and layers of the fastest cuts into one run of at least one layer for each device.

    The layers from `start` on lie on the devices in order; device d can hold [a, b) if weight[b] - weight[a] is within
    its room, and takes took[d][b] - took[d][a]. A shortest path: up to `_FEW` layers each a is looked at, beyond that
    the allowed a are a window, the best in front.
    """
    end = len(weight) - 1
    seconds: list[float | None] = [None] * (end + 1)
    seconds[start] = 0.0
    origins: list[list[int]] = []
    for room, own in zip(rooms, took, strict=True):
        after: list[float | None] = [None] * (end + 1)
        origin = [-1] * (end + 1)
        window: deque[tuple[float, int]] = deque()
        for b in range(start + 1, end + 1):
            least, place = None, -1
            for a in range(max(start, b - _FEW), b):
                before = seconds[a]
                if before is None or weight[b] - weight[a] > room.few[b - a]:
                    continue
                if least is None or before - own[a] < least:
                    least, place = before - own[a], a
            a = b - _FEW - 1
            before = seconds[a] if a >= start else None
            if before is not None:
                value = before - own[a]
                while window and window[-1][0] > value:
                    window.pop()
                window.append((value, a))
            while window and weight[b] - weight[window[0][1]] > room.many:
                window.popleft()
            if window and (least is None or window[0][0] <= least):
                least, place = window[0]
            if least is not None:
                after[b] = least + own[b]
                origin[b] = place
        seconds = after
        origins.append(origin)
    total = seconds[end]
    if total is None:
        return None
    cuts = [end]
    for origin in reversed(origins):
        cuts.append(origin[cuts[-1]])
    return total, tuple(b - a for a, b in itertools.pairwise(reversed(cuts)))


def _rate(card: Card) -> float:
    return throughput.rate(card, throughput.prior(card.compute_capability).expected)


def _overhead_mib(card: Card) -> float:
    return overhead(card).mib


def overhead(card: Card, split_mode: str = "layer", model: str = "") -> memory.Overhead:
    """Return what CUDA itself takes of a card for each tier, measured or else a prior, and where that comes from."""
    by_rows = dict(card.row_overheads).get(model) if split_mode == "row" else None
    return by_rows or card.overhead or prior_overhead(card)


def prior_overhead(card: Card) -> memory.Overhead:
    """Return what CUDA itself is expected to take of a card on which nothing was measured."""
    return memory.cuda_overhead(card.compute_capability) if card.kind == "CUDA" else memory.NO_OVERHEAD


def overhead_source(card: Card, split_mode: str = "layer", model: str = "") -> str:
    """Say where the figure of what CUDA itself takes of a card comes from, and when it is another card's."""
    found = overhead(card, split_mode, model)
    return found.source if found.card in card.name else f"borrowed from another card: {found.source}"


def _canonical(card: Card) -> tuple[object, ...]:
    return (-_rate(card), -card.room_mib, card.name, card.uuid or "")


def _alike(card: Card) -> tuple[object, ...]:
    return (card.kind, card.room_mib, card.bandwidth_gb_s, card.compute_capability, _overhead_mib(card))


def _orders(cards: Sequence[Card], size: int) -> Iterator[tuple[Card, ...]]:
    if len(cards) <= _ORDERED:
        yield from itertools.permutations(cards, size)
        return
    for chosen in itertools.combinations(cards, size):
        for ends in itertools.permutations(chosen, min(2, size)):
            middle = [card for card in chosen if card not in ends]
            yield (ends[0], *middle, *ends[1:])


def search(
    header: Header, host: Host, demand: Demand, alternatives: Mapping[str, Header] | None = None
) -> Choice | Refusal:
    """Find the fastest expected placement of a model that fits.

    ValueError when the memory of a card is not known, or with a split to be found its bandwidth. `alternatives` are
    other quantisations of the model, by name, to be proposed when this one does not fit. With `demand.split` nothing is
    searched but what the demand leaves open, and a refusal proposes a split that fits.
    """
    unknown = [card.name for card in host.cards if card.total_mib is None]
    if unknown:
        raise ValueError(
            f"the memory of {', '.join(unknown)} is not known: give total_mib in its entry of gpus{name_hint(unknown)}"
        )
    found = _search(header, host, demand, alternatives or {})
    if isinstance(found, Refusal):
        return found
    made = found.placement
    kept = replace(demand, cache_types=((made.cache_type_k, made.cache_type_v),), gpu_layers=made.n_gpu_layers)
    most = min(demand.most_context, trained_context(header, demand))
    larger = range(demand.context // _RANGE_STEP * _RANGE_STEP + _RANGE_STEP, most, _RANGE_STEP)
    context = _largest_fitting([*larger, most] if most > demand.context else [], header, host, kept)
    return _search(header, host, replace(kept, context=context), {}) if context else found


def trained_context(header: Header, demand: Demand) -> int:
    """Return the most tokens of context that are of use: llama-server gives no request more than the model knows."""
    return header.n_ctx_train * demand.parallel


def _search(header: Header, host: Host, demand: Demand, alternatives: Mapping[str, Header]) -> Choice | Refusal:
    if demand.split is not None:
        return _explicit(header, host, demand, demand.split, alternatives)
    work = _Search(header, host, demand)
    found = work.run()
    if found:
        return found
    nearest = work.nearest()
    return Refusal(nearest, misses(nearest), _changes(header, host, demand, alternatives))


def _written(header: Header, host: Host, demand: Demand, split: tuple[int, ...]) -> list[Choice]:
    """Put a split as people wrote it to the arithmetic, once for each choice of pipeline parallelism."""
    return [
        evaluate(
            header,
            Placement(
                split_mode=demand.split_mode,
                tensor_split=split,
                n_gpu_layers=sum(split),
                ctx_size=demand.context,
                cache_type_k=demand.cache_types[0][0],
                cache_type_v=demand.cache_types[0][1],
                ubatch_size=demand.ubatch_sizes[0],
                flash_attn=demand.flash_attn,
                pipeline_parallel=pipeline,
                n_cpu_moe=demand.n_cpu_moe,
                parallel=demand.parallel,
                cache_ram_mib=demand.cache_ram_mib,
            ),
            host.cards,
            host.ram,
            host.model,
        )
        for pipeline in demand.pipeline
    ]


def _explicit(
    header: Header, host: Host, demand: Demand, split: tuple[int, ...], alternatives: Mapping[str, Header]
) -> Choice | Refusal:
    tried = _written(header, host, demand, split)
    for choice in tried:
        if choice.fits:
            return choice
    nearest = max(tried, key=lambda choice: min(choice.spare_mib))
    if not all(card.bandwidth_gb_s for card in host.cards) or demand.split_mode not in ("none", "layer"):
        return Refusal(nearest, misses(nearest), ())
    layers = sum(split) if sum(split) <= header.n_layer else None
    same = replace(demand, split=None, gpu_layers=layers, pipeline=(True, False), all_in_order=True)
    free = replace(same, ubatch_sizes=UBATCH_SIZES, all_in_order=False)
    for other in (same, free):
        found = _Search(header, host, other).run()
        if found:
            return Refusal(nearest, misses(nearest), (Change(split_words(found), found),))
    return Refusal(nearest, misses(nearest), _changes(header, host, free, alternatives))


def short_name(name: str) -> str:
    """Return a card's name without its maker's and family's: what a person calls it."""
    return name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def layers_words(layers: int | str) -> str:
    """Say a number of layers, or how many lie on each card."""
    return "1 layer" if str(layers) == "1" else f"{layers} layers"


def split_words(choice: Choice) -> str:
    """Say a split: `38,11 layers on RTX 3060 Ti, GTX 1060 3GB without pipeline parallelism`."""
    placement = choice.placement
    layers = ",".join(str(count) for count in placement.tensor_split)
    words = f"{layers_words(layers)} on {', '.join(short_name(card.name) for card in choice.cards)}"
    if len(choice.cards) > 1 and not placement.pipeline_parallel:
        words += " without pipeline parallelism"
    if placement.ubatch_size != UBATCH_SIZES[0]:
        words += f", micro-batch {placement.ubatch_size}"
    return words


def _changes(header: Header, host: Host, demand: Demand, alternatives: Mapping[str, Header]) -> tuple[Change, ...]:
    """Return the smallest changes, one of each kind, that would fit."""
    changes = []

    def propose(what: str, changed: Demand, other: Header = header) -> bool:
        found = _Search(other, host, changed).run()
        if found:
            changes.append(Change(what, found))
        return found is not None

    context = _largest_context(header, host, demand)
    if context:
        propose(f"context {context:,}", replace(demand, context=context))
    if ("q8_0", "q8_0") not in demand.cache_types and demand.flash_attn == "on":
        smaller = replace(demand, cache_types=(("q8_0", "q8_0"),))
        if not propose("KV cache q8_0", smaller):
            context = _largest_context(header, host, smaller)
            if context:
                propose(f"KV cache q8_0 and context {context:,}", replace(smaller, context=context))
    if demand.gpu_layers is None:
        found = _Search(header, host, replace(demand, gpu_layers="auto")).run()
        if found:
            on_host = header.n_layer + 1 - found.placement.n_gpu_layers
            changes.append(Change(f"{layers_words(on_host)} on the CPU", found))
    for name, other in sorted(alternatives.items(), key=lambda item: -item[1].total_bytes):
        if other.total_bytes < header.total_bytes and propose(name, demand, other):
            break
    return tuple(changes)


def _largest_context(header: Header, host: Host, demand: Demand) -> int | None:
    """Return the largest context below the demanded one, and within the model's own, that fits; None when none does."""
    most = min(demand.context - 1, trained_context(header, demand)) // _CONTEXT_STEP * _CONTEXT_STEP
    return _largest_fitting(range(_CONTEXT_STEP, most + 1, _CONTEXT_STEP), header, host, demand)


def _largest_fitting(contexts: Sequence[int], header: Header, host: Host, demand: Demand) -> int | None:
    """Return the largest of some rising contexts with which a demand fits, None when it fits with none.

    Weights and KV cache never shrink with a larger context, so where they alone have no room is found by bisection.
    Compute buffers may shrink (their layout is a best fit; memory.estimate of a split without pipeline parallelism
    shows it), so that below each context is tried until one fits.
    """

    def could(context: int) -> bool:
        wanted = replace(demand, context=context)
        if demand.split is None:
            return _Search(header, host, wanted).could_fit()
        return any(_has_room_for_weights_and_kv(choice) for choice in _written(header, host, wanted, demand.split))

    def does(context: int) -> bool:
        wanted = replace(demand, context=context)
        if demand.split is None:
            return _Search(header, host, wanted).fits_at_all()
        return any(choice.fits for choice in _written(header, host, wanted, demand.split))

    possible = contexts[: bisect_left(contexts, True, key=lambda context: not could(context))]
    return next((context for context in reversed(possible) if does(context)), None)


def _has_room_for_weights_and_kv(choice: Choice) -> bool:
    return all(
        spare + need.compute_mib >= 0 for spare, need in zip(choice.spare_mib, choice.estimate.devices, strict=True)
    )
