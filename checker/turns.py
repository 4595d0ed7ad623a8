"""Whose turn it is when tiers of a host change: who starts after whom, and who has to stop for it. Pure; MiB.

A tier that serves is to serve until its successor is proven. But a card has so much room: a successor may need what
another tier still holds with which it was proven.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from checker import tier

# Predictions are rounded to a tenth for each device, and nothing hangs on so little.
_NOTHING_MIB = 0.5


@dataclass(frozen=True)
class Hold:
    """What a tier holds while it serves: MiB of cards by UUID."""

    mib: Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """A tier that is to be started: what it holds now (None when it does not serve), and what it will hold."""

    name: str
    old: Hold | None
    new: Hold


@dataclass(frozen=True)
class Turn:
    """The next tier to start, and those of later turns that have to stop before."""

    name: str
    stop: tuple[str, ...]


def hold(spec: tier.TierSpec) -> Hold:
    """Return what a tier holds by its spec; memory that was not predicted is not held against anyone.

    Nor is that of a tier on demand: it is planned beside the others, or stops its rivals itself when it starts.
    """
    mib: dict[str, float] = {}
    for device in spec.devices if spec.pinned else ():
        parts = (device.weights_mib, device.kv_mib, device.compute_mib, device.overhead_mib)
        mib[device.uuid] = mib.get(device.uuid, 0.0) + sum(part or 0.0 for part in parts)
    return Hold(mib)


def room(for_tiers_mib: Mapping[str, float], serving: Sequence[Hold], staying: Sequence[Hold]) -> dict[str, float]:
    """Return the MiB by card that are left for tiers that change.

    `for_tiers_mib` is what the plan may use of each card; a card that it does not name is not reckoned with. What is
    `serving` now is evidently resident at once, even where the plan has less by now. `staying` are those among them
    that go on.
    """
    return {card: max(mib, _on(card, serving)) - _on(card, staying) for card, mib in for_tiers_mib.items()}


def order(changes: Sequence[Change], room_mib: Mapping[str, float]) -> tuple[Turn, ...]:
    """Return the turns with which the fewest tiers have to stop before their own: in the given order if nobody has to.

    A tier is stopped only when the one whose turn it is cannot be beside it. One that has no room even so has its turn
    all the same, and nobody is stopped for it who holds nothing of what it lacks.
    """
    # The cheapest way first, of equally cheap ones the longest: stops, minus length, places in `changes`, turns.
    ways: list[tuple[int, int, tuple[int, ...], tuple[Turn, ...]]] = [(0, 0, (), ())]
    seen = set()
    while True:
        cost, _, places, taken = heapq.heappop(ways)
        if len(places) == len(changes):
            return taken
        down = {name for turn in taken for name in turn.stop}
        state = (frozenset(places), frozenset(down))
        if state in seen:
            continue
        seen.add(state)
        standing = [changes[place].new for place in places]
        for place, change in enumerate(changes):
            if place in places:
                continue
            later = [
                (other.name, other.old)
                for index, other in enumerate(changes)
                if index not in (*places, place) and other.name not in down
            ]
            stop = _in_the_way([*standing, change.new], later, room_mib)
            turns = (*taken, Turn(change.name, stop))
            heapq.heappush(ways, (cost + len(stop), -len(turns), (*places, place), turns))


def going_back(
    started: Sequence[Change],
    returning: Sequence[Hold],
    standing: Sequence[Hold],
    room_mib: Mapping[str, float],
    anyway: Collection[str] = (),
) -> tuple[str, ...]:
    """Name those of the `started` tiers that have to be again what they were, so that the `returning` can serve.

    `standing` is what is proven and stays. When all of them go back, that is what served at once before: the fewest
    go with which it is as good, the first ones last. One that goes back may be in the way of another that started, so
    that it is not enough to spare one after the other. Those named in `anyway` go back for another reason.
    """

    def missing(back: Iterable[str]) -> float:
        places = [change.old if change.name in back else change.new for change in started]
        return _missing_mib([*returning, *standing, *filter(None, places)], room_mib)

    names = [change.name for change in started]
    least = missing(names) + _NOTHING_MIB
    bound = set(anyway) & set(names)
    ways = (
        back
        for count in range(len(bound), len(names))
        for back in itertools.combinations(reversed(names), count)
        if bound <= set(back)
    )
    return tuple(reversed(next((back for back in ways if missing(back) <= least), names[::-1])))


def _in_the_way(
    wanted: Sequence[Hold], others: Sequence[tuple[str, Hold | None]], room_mib: Mapping[str, float]
) -> tuple[str, ...]:
    """Name those of some others that stop for what is `wanted`: no more than it takes, the first ones spared first."""

    def missing(stopping: Iterable[str]) -> float:
        return _missing_mib([*wanted, *(hold for name, hold in others if hold and name not in stopping)], room_mib)

    stopping = [name for name, _ in others]
    least = missing(stopping) + _NOTHING_MIB
    for name, _ in others:
        fewer = [other for other in stopping if other != name]
        if missing(fewer) <= least:
            stopping = fewer
    return tuple(stopping)


def _missing_mib(holds: Sequence[Hold], room_mib: Mapping[str, float]) -> float:
    return sum(max(0.0, _on(card, holds) - mib) for card, mib in room_mib.items())


def _on(card: str, holds: Iterable[Hold]) -> float:
    return sum(each.mib.get(card, 0.0) for each in holds)
