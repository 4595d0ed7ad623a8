"""Turns: nobody stops who need not, everybody has room when its turn comes, and there is a way back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import fake_tier
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checker import tier, turns
from checker.turns import Change, Hold, Turn

CARDS = ("a", "b", "c")


def change(name: str, old: dict[str, float] | None, new: dict[str, float]) -> Change:
    return Change(name, None if old is None else Hold(old), Hold(new))


def fits(holds: Iterable[Hold], room: Mapping[str, float]) -> bool:
    holds = list(holds)
    return all(_sum(card, holds) <= room[card] for card in room)


def resident(changes: Sequence[Change], started: Iterable[str], stopped: Iterable[str]) -> list[Hold]:
    """Return what is held when some have started and some of the others are stopped."""
    return [
        hold
        for each in changes
        for hold in [each.new if each.name in started else None if each.name in stopped else each.old]
        if hold
    ]


def test_nobody_stops_where_there_is_room() -> None:
    growing = [change("fast", {"a": 100}, {"a": 150}), change("deep", {"a": 100}, {"a": 200})]
    assert turns.order(growing, {"a": 350}) == (Turn("fast", ()), Turn("deep", ()))


def test_who_shrinks_goes_before_who_grows_on_the_same_card() -> None:
    moved = [change("fast", {"a": 100}, {"a": 200}), change("deep", {"a": 200}, {"a": 100})]
    assert turns.order(moved, {"a": 320}) == (Turn("deep", ()), Turn("fast", ()))


def test_who_swaps_cards_stops_one_and_no_more() -> None:
    swapped = [
        change("fast", {"a": 200}, {"b": 200}),
        change("deep", {"b": 200}, {"a": 200}),
        change("other", {"c": 200}, {"c": 100}),
    ]
    assert turns.order(swapped, dict.fromkeys(CARDS, 300)) == (
        Turn("other", ()),
        Turn("fast", ("deep",)),
        Turn("deep", ()),
    )


def test_a_ring_of_three_stops_one() -> None:
    ring = [change(name, {name: 200}, {after: 200}) for name, after in (("a", "b"), ("b", "c"), ("c", "a"))]
    assert turns.order(ring, dict.fromkeys(CARDS, 300)) == (Turn("a", ("b",)), Turn("c", ()), Turn("b", ()))


def test_a_card_that_nobody_knows_stops_nobody() -> None:
    swapped = [change("fast", {"a": 200}, {"b": 200}), change("deep", {"b": 200}, {"a": 200})]
    assert turns.order(swapped, {}) == (Turn("fast", ()), Turn("deep", ()))


def test_for_a_tier_without_room_only_those_stop_who_hold_some_of_what_it_lacks() -> None:
    changes = [
        change("huge", None, {"a": 500}),
        change("deep", {"a": 200}, {"a": 100}),
        change("other", {"b": 200}, {"b": 100}),
    ]
    taken = turns.order(changes, {"a": 300, "b": 300})
    assert sorted(turn.name for turn in taken) == ["deep", "huge", "other"]
    assert not any("other" in turn.stop for turn in taken)


def test_what_serves_now_is_room_that_there_is() -> None:
    held = [Hold({"a": 200}), Hold({"a": 150, "b": 10})]
    assert turns.room({"a": 300, "b": 300}, held, held[1:]) == {"a": 200, "b": 290}


def test_what_a_tier_holds_is_what_its_spec_predicts() -> None:
    devices = (
        tier.Device("CUDA0", "a", "A", 1, 100.0, None, 20.0, 3.0, 4.0),
        tier.Device("CUDA1", "b", "B", 1, 50.0),
        tier.Device("CUDA2", "a", "A", 1, None),
    )
    assert turns.hold(fake_tier.spec(devices=devices)) == Hold({"a": 127.0, "b": 50.0})


def test_a_tier_on_demand_is_held_against_nobody() -> None:
    """It is planned beside the others, or stops its rivals itself when it starts."""
    assert turns.hold(fake_tier.spec(residency=tier.ON_DEMAND)) == Hold({})


@pytest.mark.parametrize("room_on_b", [300, 500])
def test_who_has_started_goes_back_when_it_is_in_the_way_of_who_returns(room_on_b: float) -> None:
    fast = change("fast", {"a": 200}, {"b": 200})
    returning = [Hold({"b": 200})]
    back = turns.going_back([fast], returning, [], {"a": 300, "b": room_on_b})
    assert back == (("fast",) if room_on_b == 300 else ())


def test_who_goes_back_may_push_another_back() -> None:
    """fast has gone where deep was, and new where fast was."""
    started = [change("new", None, {"a": 200}), change("fast", {"a": 200}, {"b": 200}), change("other", None, {"c": 9})]
    back = turns.going_back(started, [Hold({"b": 200})], [], dict.fromkeys(CARDS, 300))
    assert set(back) == {"new", "fast"}


holds = st.dictionaries(st.sampled_from(CARDS), st.integers(0, 300), max_size=3).map(Hold)


@st.composite
def cases(draw: st.DrawFn, most: int = 4) -> tuple[list[Change], dict[str, float]]:
    """Draw changes, and room for all old and for all new ones."""
    names = [f"t{index}" for index in range(draw(st.integers(1, most)))]
    changes = [Change(name, draw(st.one_of(st.none(), holds)), draw(holds)) for name in names]
    olds, news = [each.old for each in changes if each.old], [each.new for each in changes]
    spare = draw(st.sampled_from([0, 10, 100, 400]))
    room = {card: spare + max(_sum(card, olds), _sum(card, news)) for card in CARDS}
    return changes, room


def _sum(card: str, held: Iterable[Hold]) -> float:
    return sum(each.mib.get(card, 0.0) for each in held)


@given(cases())
def test_everyone_starts_once_with_room(case: tuple[list[Change], dict[str, float]]) -> None:
    changes, room = case
    started: list[str] = []
    stopped: set[str] = set()
    taken = turns.order(changes, room)
    for turn in taken:
        assert not set(turn.stop) & {*started, *stopped, turn.name}
        stopped |= set(turn.stop)
        started.append(turn.name)
        assert fits(resident(changes, started, stopped), room)
    assert sorted(started) == [each.name for each in changes]


@given(cases())
def test_nobody_stops_who_could_have_stayed(case: tuple[list[Change], dict[str, float]]) -> None:
    changes, room = case
    serving = {each.name for each in changes if each.old}
    started: list[str] = []
    stopped: set[str] = set()
    for turn in turns.order(changes, room):
        started.append(turn.name)
        assert set(turn.stop) <= serving
        for spared in turn.stop:
            assert not fits(resident(changes, started, {*stopped, *turn.stop} - {spared}), room)
        stopped |= set(turn.stop)


@given(cases())
def test_nobody_stops_when_there_is_an_order_in_which_nobody_has_to(
    case: tuple[list[Change], dict[str, float]],
) -> None:
    changes, room = case
    names = [each.name for each in changes]
    free = [
        way
        for way in itertools.permutations(names)
        if all(fits(resident(changes, way[: count + 1], ()), room) for count in range(len(way)))
    ]
    taken = turns.order(changes, room)
    if free:
        assert [turn.name for turn in taken] == list(free[0]), "the first one in the given order"
    assert any(turn.stop for turn in taken) == (not free)


@given(cases(), st.data())
def test_what_served_can_serve_again_whoever_fails(
    case: tuple[list[Change], dict[str, float]], data: st.DataObject
) -> None:
    """Whoever was found not to be in the way of what is yet to come stays; the others are enough to go back."""
    changes, room = case
    by_name = {each.name: each for each in changes}
    taken = turns.order(changes, room)
    fails = data.draw(st.integers(0, len(taken) - 1))
    waiting: list[Change] = []
    settled: list[Hold] = []
    for index in range(fails + 1):
        if index < fails:
            waiting.append(by_name[taken[index].name])
        yet = [by_name[turn.name] for turn in taken[index + (index < fails) :]]
        returning = [each.old for each in yet if each.old]
        back = turns.going_back(waiting, returning, settled, room)
        settled += [each.new for each in waiting if each.name not in back]
        waiting = [each for each in waiting if each.name in back]
    gone_back = [each.old for each in waiting if each.old]
    assert fits([*settled, *gone_back, *returning], room)


@given(cases(), st.data())
def test_no_fewer_could_go_back(case: tuple[list[Change], dict[str, float]], data: st.DataObject) -> None:
    started, room = case
    count = data.draw(st.integers(0, len(started)))
    returning = [each.old for each in started[count:] if each.old]
    started = started[:count]
    back = turns.going_back(started, returning, [], room)

    def serves(names: Iterable[str]) -> bool:
        return fits([*returning, *(h for each in started if (h := each.old if each.name in names else each.new))], room)

    names = [each.name for each in started]
    fewer = (way for size in range(len(back)) for way in itertools.combinations(names, size))
    assert serves(back)
    assert not any(map(serves, fewer))
