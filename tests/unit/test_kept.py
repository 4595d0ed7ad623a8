"""What serves stays: a proven placement is kept while it is asked for and fits, and given up when it is not."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import fake_tier
import planning_cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import Q4, Q5, shaped

from checker import kept, placement, plan, plan_document, site_plan, tier
from checker.cards import Host
from checker.cards import host as join_host
from checker.catalogue import GpuEntry, InventoryError, RamEntry, parse_inventory
from checker.placement import Choice, Demand
from inventories import BIG, MODELS, SMALL, inventory

RELEASES = {"new": "/opt/llama-tiers/releases/r", "old": "/opt/llama-tiers/releases/o"}
PLACES = site_plan.Places(releases=RELEASES, models="/m", keys="/k")
DEEP: dict[str, Any] = {
    "name": "deep",
    "port": 8081,
    "context": 4096,
    "gpus": "any",
    "candidates": [{"model": Q4, "placement": "auto"}],
}


def host(*proven: tier.TierSpec, big_used: int = 64, small_used: int = 64) -> dict[str, Any]:
    """Return the profile of the reference host, with what others hold of its cards and what was proven on it."""
    cards = [
        {"uuid": BIG["uuid"], "total_mib": 8192, "used_mib": big_used, "tiers_mib": 0},
        {"uuid": SMALL["uuid"], "total_mib": 3072, "used_mib": small_used, "tiers_mib": 0},
    ]
    return {"gpus": cards, "ram_mib": 32000, "proven": {spec.name: spec.to_json() for spec in proven}}


def site(
    profile: dict[str, Any],
    *tiers: dict[str, Any],
    replan: bool = False,
    as_served: bool = False,
    decided: dict[str, Any] | None = None,
    places: site_plan.Places = PLACES,
    **changes: Any,
) -> site_plan.SitePlan:
    models = {
        name: {"file": f"{name}.gguf", "sha256": "cd" * 32, "header": shaped(name).to_json()} for name in (Q4, Q5)
    }
    whole = inventory(tiers=list(tiers or [DEEP]), models=MODELS | models, **changes)
    how = {"replan": replan, "as_served": as_served, "decided": decided, "host_name": "tower"}
    return site_plan.for_site(**whole, places=places, profile=profile, **how)


def counts(spec: tier.TierSpec) -> tuple[int, ...]:
    return spec.placement.tensor_split


def on(spec: tier.TierSpec) -> list[str]:
    return [device.uuid for device in spec.devices]


@pytest.fixture(scope="module")
def crowded() -> tier.TierSpec:
    """Return what is proven while others hold some of the fast card."""
    (spec,) = site(host(big_used=300)).specs
    return spec


def test_what_others_hold_moves_the_choice_but_not_what_is_proven(crowded: tier.TierSpec) -> None:
    (free,) = site(host()).specs
    assert counts(free) != counts(crowded), "the case of this test: a new choice would be another"
    again = site(host(crowded))
    assert again.specs[0] == crowded
    assert again.kept == ("deep",)
    assert "; kept as proven" in again.summary[0]
    assert site(host(free)).kept == (), "what a new choice would be too is not called kept"


def test_what_no_longer_fits_is_chosen_anew(crowded: tier.TierSpec) -> None:
    (free,) = site(host()).specs
    anew = site(host(free, big_used=300))
    assert anew.specs == (crowded,)
    assert anew.kept == ()
    assert "kept" not in anew.summary[0]


def test_what_only_a_decision_put_there_is_not_kept_without_it(crowded: tier.TierSpec) -> None:
    split = {"tensor_split": list(counts(crowded))}
    tried = DEEP | {"candidates": [*DEEP["candidates"], {"model": Q4, "placement": split}]}
    (before,) = site(host(), tried).specs
    decided = {
        "schema": "llama-tiers/decision/2",
        "host": "tower",
        "policy": "multi-gpu",
        "acceptable_tokens_per_second": 10,
        "tiers": {
            "deep": {
                "model": Q4,
                "placement": split,
                "because": "the only candidate that reaches what is asked for",
                "tokens_per_second": 12.2,
                "load_s": 20.0,
                "gpus": [device.gpu for device in crowded.devices],
                "uuids": on(crowded),
                "placed": dataclasses.asdict(crowded.placement),
                "measured_at": "2026-11-24T15:00:00Z",
                "evidence": "ab" * 32,
            }
        },
    }
    (served,) = site(host(before), tried, decided=decided).specs
    assert counts(served) == counts(crowded) != counts(before)
    assert site(host(served), tried, decided=decided).specs == (served,)
    (gone_back,) = site(host(served), tried, decided=decided, as_served=True).specs
    for proven in (served, gone_back):
        undone = site(host(proven), tried)
        assert undone.specs == (before,), "what the inventory's order had served before serves again"
        assert undone.kept == ()
    # A decision for what serves already puts nothing there.
    confirmed = copy.deepcopy(decided)
    confirmed["tiers"]["deep"]["placed"] = dataclasses.asdict(before.placement)
    confirmed["tiers"]["deep"] |= {"placement": "auto", "uuids": on(before)}
    assert site(host(before), tried, decided=confirmed).specs == (before,)
    # And what the inventory's order chose is kept as ever.
    assert site(host(before, big_used=100), tried).specs == (before,)


def test_the_operator_may_ask_for_a_new_choice(crowded: tier.TierSpec) -> None:
    anew = site(host(crowded), replan=True)
    assert anew.specs == site(host()).specs
    assert anew.kept == ()


def but(spec: tier.TierSpec, **changes: Any) -> tier.TierSpec:
    """Return a spec with another placement."""
    return dataclasses.replace(spec, placement=dataclasses.replace(spec.placement, **changes))


def test_a_new_choice_that_is_clearly_faster_is_told(crowded: tier.TierSpec) -> None:
    (free,) = site(host()).specs
    assert crowded.predicted
    assert free.predicted
    more = free.predicted.expected / crowded.predicted.expected - 1
    split = ",".join(map(str, counts(free)))
    (line,) = site(host(crowded)).summary
    assert f"; kept as proven; a new choice would be {split} layers on RTX 3060 Ti, GTX 1060 3GB" in line
    assert f"(+{more:.0%} tokens/s expected): `-e llama_tiers_replan=true` takes it" in line


def test_a_new_choice_with_more_of_what_is_preferred_is_told(crowded: tier.TierSpec) -> None:
    both = DEEP | {"cache_types": ["f16", "q8_0"]}
    assert crowded.placement.ubatch_size == 512
    slow = but(crowded, ubatch_size=128, cache_type_k="q8_0", cache_type_v="q8_0")
    (line,) = site(host(slow, big_used=300), both).summary
    assert "% tokens/s expected, KV cache f16, micro-batch 512)" in line


def test_a_new_choice_that_is_no_better_is_not_told() -> None:
    demand = Demand(context=4096)
    best = placement.search(shaped(Q4), planning_cases.reference(), demand)
    slower = placement.search(shaped(Q4), planning_cases.reference(), Demand(context=4096, ubatch_sizes=(32,)))
    assert isinstance(best, Choice)
    assert isinstance(slower, Choice)
    unknown = dataclasses.replace(best, speed=None)
    assert [kept.better(best, anew, demand) for anew in (best, slower, unknown)] == [None, None, None]


def test_a_context_of_the_range_is_kept_and_a_larger_one_told() -> None:
    wide = DEEP | {"context": {"min": 4096, "max": 16384}}
    (less,) = site(host(small_used=1100), wide).specs
    (more,) = site(host(), wide).specs
    assert 4096 <= less.placement.ctx_size < more.placement.ctx_size
    again = site(host(less), wide)
    assert (again.specs, again.kept) == ((less,), ("deep",))
    assert f"context {more.placement.ctx_size:,}" in again.summary[0]
    longer = DEEP | {"context": {"min": less.placement.ctx_size + 1, "max": 16384}}
    assert site(host(less), longer) == site(host(), longer)


def asked(**changes: Any) -> dict[str, Any]:
    return DEEP | changes


def placed(**words: Any) -> dict[str, Any]:
    return DEEP | {"candidates": [{"model": Q4, "placement": words}]}


@pytest.mark.parametrize(
    "other",
    [
        asked(context=2048),
        asked(parallel=2),
        asked(cache_ram_mib=100),
        asked(cache_types=["q8_0"]),
        asked(gpus=[SMALL["uuid"], BIG["uuid"]], candidates=[{"model": Q4, "placement": {"tensor_split": [9, 40]}}]),
        placed(ubatch_size=32),
        placed(cache_type_k="q8_0", cache_type_v="q8_0"),
        placed(flash_attn="off"),
        placed(n_gpu_layers=40),
    ],
    ids=str,
)
def test_what_the_inventory_asks_for_goes_before_what_is_proven(crowded: tier.TierSpec, other: dict[str, Any]) -> None:
    roomy = {"gpus": [BIG | {"total_mib": 24576}, SMALL | {"total_mib": 24576}]}
    profile = {"ram_mib": 32000}
    proven = {"proven": {"deep": crowded.to_json()}}
    assert site(profile | proven, other, **roomy) == site(profile, other, **roomy)


def test_a_proven_pipeline_stays_when_a_written_split_would_fit_with_the_other() -> None:
    """An explicit split leaves the pipeline open: what others hold must not switch it either."""
    written = placed(tensor_split=[39, 10]) | {"gpus": [BIG["uuid"], SMALL["uuid"]]}
    (spec,) = site(host(small_used=400), written).specs
    assert not spec.placement.pipeline_parallel, "the case of this test: with the pipeline the split does not fit"
    again = site(host(spec), written)
    assert site(host(), written).specs[0].placement.pipeline_parallel
    assert again.specs == (spec,)
    assert again.kept == ("deep",)


def test_another_model_is_served_when_it_goes_before(crowded: tier.TierSpec) -> None:
    roomy = {"gpus": [BIG | {"total_mib": 24576}, SMALL | {"total_mib": 24576}]}
    both = DEEP | {"candidates": [{"model": model, "placement": "auto"} for model in (Q5, Q4)]}
    proven = {"ram_mib": 32000, "proven": {"deep": crowded.to_json()}}
    assert site(proven, both, **roomy).specs[0].model.name == Q5
    kept_one = site(host(crowded), both)
    assert (kept_one.specs[0].model.name, kept_one.kept) == (Q4, ("deep",)), "Q5 does not fit on this host"


@pytest.mark.parametrize(
    "wished",
    [
        {"candidates": [{"model": "tiny", "placement": "auto"}]},
        {"context": 2048},
        {"gpus": [BIG["name"]], "candidates": [{"model": "tiny", "placement": {"split_mode": "none"}}]},
    ],
    ids=["another candidate", "another context", "other cards"],
)
def test_as_it_is_served_a_tier_moves_to_another_release_and_nothing_else_changes(
    crowded: tier.TierSpec, wished: dict[str, Any]
) -> None:
    gone = {"schema": "llama-tiers/decision/2", "tiers": "of another day"}
    with pytest.raises(InventoryError, match="checker decide"):
        site(host(crowded), DEEP | wished, engine="old", decided=gone)
    (moved,) = site(host(crowded), DEEP | wished, engine="old", decided=gone, as_served=True).specs
    assert moved.engine == tier.Engine("1" * 40, RELEASES["old"])
    assert moved.argv[0].startswith(RELEASES["old"])
    assert (moved.model, moved.placement) == (crowded.model, crowded.placement)
    assert on(moved) == on(crowded)


def test_what_was_never_served_is_left_out_and_keeps_nobody_from_the_way_back(crowded: tier.TierSpec) -> None:
    """Nothing is fetched for it then, and there may be no room for it."""
    huge = {"name": "new", "port": 8082, "context": 512, "gpus": "any", "candidates": [{"model": Q5}]}
    found = site(host(crowded), DEEP | {"fallback": "new"}, huge, as_served=True)
    (deep,) = found.specs
    assert (deep.placement, deep.fallback) == (crowded.placement, None)
    assert found.left_out == ("new",)
    assert "new: left out, for it was never proven on this host; site.yml serves it" in found.remarks
    with pytest.raises(InventoryError, match="no tier of the inventory is proven on this host"):
        site(host(), as_served=True)


def test_a_tier_with_an_engine_of_its_own_keeps_the_one_that_it_runs(crowded: tier.TierSpec) -> None:
    """The inventory may name another by now, of which this host has no release."""
    places = dataclasses.replace(PLACES, releases={"new": RELEASES["new"]})
    moved = DEEP | {"engine": "old"}
    (spec,) = site(host(crowded), moved, as_served=True, places=places).specs
    assert spec.engine == crowded.engine
    unknown = dataclasses.replace(crowded, engine=tier.Engine("2" * 40, "/r"))
    with pytest.raises(InventoryError, match="deep: it is served by engine 222222222, which the engine table has not"):
        site(host(unknown), moved, as_served=True, places=places)


@pytest.mark.parametrize(
    "changes",
    [
        {"ubatch_size": 0},
        {"tensor_split": ()},
        {"tensor_split": (47, 0)},
        {"tensor_split": (48,)},
        {"split_mode": "diagonal"},
        {"cache_type_k": "q1"},
        {"ctx_size": -1},
    ],
    ids=str,
)
def test_what_is_served_and_no_placement_ends_in_a_sentence(crowded: tier.TierSpec, changes: dict[str, Any]) -> None:
    with pytest.raises(InventoryError) as refused:
        site(host(but(crowded, **changes)), as_served=True)
    (said,) = refused.value.problems
    assert said.startswith("tier deep: ")


def test_a_served_model_that_the_catalogue_does_not_have_is_named(crowded: tier.TierSpec) -> None:
    for own in (
        dataclasses.replace(crowded.model, name="gone"),
        dataclasses.replace(crowded.model, file="/m/000000000000/x.gguf"),
    ):
        with pytest.raises(InventoryError, match=rf"deep: it serves {own.name} from {own.file}, which the catalogue"):
            site(host(dataclasses.replace(crowded, model=own)), as_served=True)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda spec: dataclasses.replace(spec, model=dataclasses.replace(spec.model, file="/m/000000000000/x.gguf")),
        lambda spec: dataclasses.replace(spec, model=dataclasses.replace(spec.model, name="tiny")),
        lambda spec: dataclasses.replace(
            spec, devices=(dataclasses.replace(spec.devices[0], uuid="GPU-gone"), spec.devices[1])
        ),
        lambda spec: dataclasses.replace(spec, devices=(spec.devices[0],) * 2),
        lambda spec: dataclasses.replace(spec, devices=spec.devices[:1]),
        lambda spec: but(spec, tensor_split=(24, 24)),
        lambda spec: but(spec, tensor_split=(49, 0)),
        lambda spec: but(spec, tensor_split="ab"),
    ],
    ids=[
        "file",
        "model",
        "card gone",
        "one card twice",
        "too few cards",
        "too few layers",
        "none on a card",
        "no split",
    ],
)
def test_what_is_not_this_model_on_these_cards_is_not_kept(crowded: tier.TierSpec, spoilt: Any) -> None:
    assert site(host(spoilt(crowded))) == site(host())


@pytest.mark.parametrize(
    ("part", "odd"),
    [
        ("placement", {"ctx_size": None}),
        ("placement", {"ctx_size": "wide"}),
        ("model", {"file": None}),
        ("devices", [{"name": "CUDA0", "uuid": [], "gpu": "x", "layers": 1, "weights_mib": None}]),
    ],
    ids=str,
)
def test_a_proven_spec_with_odd_values_is_as_good_as_nothing(crowded: tier.TierSpec, part: str, odd: Any) -> None:
    document = crowded.to_json()
    document[part] = {**document[part], **odd} if isinstance(odd, dict) else odd
    assert site(host() | {"proven": {"deep": document}}) == site(host())


@pytest.mark.parametrize("document", [None, {}, {"schema": "llama-tiers/tier/0"}, {"schema": tier.SCHEMA}, "x"])
def test_what_cannot_be_read_is_as_good_as_nothing(document: Any) -> None:
    profile = host() | {"proven": {"deep": document}}
    assert site(profile) == site(host())
    assert kept.of_profile(profile) == {}


def two(**changes: Any) -> list[dict[str, Any]]:
    """Return two tiers with the same small model, that may lie anywhere."""
    tiny = {"candidates": [{"model": "tiny", "placement": "auto"}], "context": 4096, "gpus": "any", **changes}
    return [{"name": name, "port": port, **tiny} for name, port in (("one", 8080), ("two", 8081))]


def with_room_for_one(**changes: Any) -> dict[str, Any]:
    """Return a host whose fast card holds one of `two`, and its slow one any number."""
    (alone,) = site({"ram_mib": 16000}, two()[0]).specs
    assert on(alone) == [BIG["uuid"]]
    need = alone.devices[0].predicted_mib or 0
    cards = [
        {"uuid": BIG["uuid"], "total_mib": int(need * 1.5) + 64 + 150},
        {"uuid": SMALL["uuid"], "total_mib": 3072},
    ]
    return {"gpus": cards, "ram_mib": 16000, **changes}


def test_a_new_tier_is_planned_beside_what_is_kept() -> None:
    """In the inventory's order the new tier would take the fast card, on which the other one serves."""
    first, second = two()
    (serving,) = site(with_room_for_one(), second).specs
    assert on(serving) == [BIG["uuid"]]
    one, other = site(with_room_for_one(), first, second).specs
    assert on(one) == [BIG["uuid"]], "the case of this test: a new choice would move what serves"
    planned = site(with_room_for_one(proven={"two": serving.to_json()}), first, second)
    assert [spec.name for spec in planned.specs] == ["one", "two"]
    assert planned.specs[1] == serving
    assert on(planned.specs[0]) != [BIG["uuid"]]
    assert planned.kept == ("two",)
    assert on(other) != on(serving)


def test_a_context_is_raised_beside_what_is_kept() -> None:
    first, second = two()
    (serving,) = site(with_room_for_one(), second).specs
    wide = first | {"context": {"min": 4096, "max": 8192}}
    planned = site(with_room_for_one(proven={"two": serving.to_json()}), wide, second)
    assert [spec.placement.ctx_size for spec in planned.specs] == [8192, 4096]
    assert planned.specs[1] == serving


def test_what_is_kept_gives_way_to_a_tier_that_has_no_other_place() -> None:
    """The new tier may use the fast card alone: what serves there moves, and nothing is refused."""
    first, second = two()
    (serving,) = site(with_room_for_one(), second).specs
    bound = first | {"gpus": [BIG["uuid"]]}
    planned = site(with_room_for_one(proven={"two": serving.to_json()}), bound, second)
    assert planned.specs == site(with_room_for_one(), bound, second).specs
    assert planned.kept == ()


def test_no_more_is_given_up_than_has_to_be() -> None:
    """Of two tiers that serve, the one on the fast card moves for the new one; the other stays where it is."""
    tiers = two()
    one, other = site(with_room_for_one(), *tiers).specs
    assert on(one) == [BIG["uuid"]]
    # Slower than what would be chosen now, so that keeping it shows.
    slow = dataclasses.replace(other, placement=dataclasses.replace(other.placement, ubatch_size=128))
    new = {**tiers[0], "name": "new", "port": 8082, "gpus": [BIG["uuid"]]}
    proven = {"one": one.to_json(), "two": slow.to_json()}
    planned = site(with_room_for_one(proven=proven), new, *tiers)
    placements = {spec.name: spec for spec in planned.specs}
    assert planned.kept == ("two",)
    assert placements["two"].placement == slow.placement
    assert on(placements["new"]) == [BIG["uuid"]]
    assert on(placements["one"]) != [BIG["uuid"]]


def test_the_plan_document_says_what_is_kept(crowded: tier.TierSpec) -> None:
    header = shaped(Q4)
    gpus = [planning_cases.entry(card["name"]).model_copy(update={"uuid": card["uuid"]}) for card in (BIG, SMALL)]
    entry = parse_inventory([], [DEEP], {})[1][0]
    models = parse_inventory([], [], {Q4: {"file": f"{Q4}.gguf", "sha256": "cd" * 32, "header": header.to_json()}})
    whole = join_host(gpus, RamEntry(), host())
    anew = plan.make(gpus, [entry], models[2], whole)
    again = plan.keep(anew, {"deep": crowded}, gpus, [entry], models[2], whole)
    made = [plan_document.to_json(each, "h") for each in (anew, again)]
    assert [document["tiers"][0]["kept"] for document in made] == [False, True]
    assert [document["resident_together"] for document in made] == [[["deep"]]] * 2
    assert made[1]["tiers"][0]["placement"]["tensor_split"] == list(counts(crowded))


def learned(big: float | None = None, small: float | None = None) -> dict[str, Any]:
    """Return the part of a profile that says what was measured of the cards' overhead, MiB."""
    pairs = ((BIG["uuid"], big), (SMALL["uuid"], small))
    return {"overheads": {uuid: {"mib": mib, "source": "measured here"} for uuid, mib in pairs if mib is not None}}


def test_a_new_choice_reckons_with_what_was_measured_and_says_so() -> None:
    (by_prior,) = site(host()).specs
    planned = site(host() | learned(big=400))
    (spec,) = planned.specs
    assert spec.devices[0].overhead_mib == 400
    assert spec.devices[0].layers < by_prior.devices[0].layers, "there is room for fewer"
    assert [line.partition(", CUDA itself ")[2] for line in planned.figures] == [
        "400 MiB for each tier (measured here)",
        "120 MiB for each tier (estimate, not measured: context and modules of a GTX 1060, 60 to 120 MiB)",
    ]


def test_a_second_run_after_a_measurement_changes_not_even_the_spec() -> None:
    (spec,) = site(host()).specs
    again = site(host(spec) | learned(big=347, small=33))
    assert again.specs == (spec,), "within 100 MiB a plan is good"
    assert "347 MiB for each tier (measured here)" in again.figures[0]


def test_a_plan_that_was_far_off_is_corrected_and_restarts_nothing() -> None:
    (spec,) = site(host()).specs
    again = site(host(spec) | learned(big=520))
    assert again.specs[0].devices[0].overhead_mib == 520
    assert again.specs[0].running() == spec.running()
    assert again.kept == ("deep",)
    (remark,) = again.remarks
    assert remark.startswith(
        "what was measured leaves less than the margin, and what serves is kept all the same: RTX "
    )
    assert site(host(again.specs[0]) | learned(big=520)).specs == again.specs, "a third run changes nothing at all"


def test_a_row_split_that_was_far_off_is_corrected_by_what_row_split_takes() -> None:
    placed = {"split_mode": "row", "tensor_split": [35, 14]}
    rows = DEEP | {"context": 2048, "candidates": [{"model": Q4, "placement": placed}]}
    (spec,) = site(host(), rows, engine="old").specs
    of_rows = {"row_overheads": {BIG["uuid"]: {Q4: {"mib": 700, "source": "measured here"}}}}
    again = site(host(spec) | learned(big=200, small=33) | of_rows, rows, engine="old").specs[0]
    assert [device.overhead_mib for device in again.devices] == [700, 33]
    assert again.running() == spec.running()
    (layered,) = site(host() | learned(big=200, small=33) | of_rows).specs
    assert {device.overhead_mib for device in layered.devices} == {200, 33}
    tiny = DEEP | {"candidates": [{"model": "tiny", "placement": {"split_mode": "row", "tensor_split": [3, 2]}}]}
    (other,) = site(host() | learned(big=200, small=33) | of_rows, tiny, engine="old").specs
    assert [device.overhead_mib for device in other.devices] == [200, 33], "another model takes another share"


def test_a_candidate_that_only_what_was_measured_makes_fit_is_told_and_not_taken() -> None:
    both = DEEP | {"candidates": [{"model": model, "placement": "auto"} for model in (Q5, Q4)]}
    (spec,) = site(host(), both).specs
    assert spec.model.name == Q4, "the case of this test: by the priors the first does not fit"
    assert site(host() | learned(big=20, small=0), both).specs[0].model.name == Q5
    again = site(host(spec) | learned(big=20, small=0), both)
    assert (again.specs[0].running(), again.kept) == (spec.running(), ("deep",))
    assert f"; kept as proven; a new choice would be {Q5}, " in again.summary[0]


def test_what_was_measured_excludes_no_tiers_that_serve_together() -> None:
    serving = site(with_room_for_one(), *two()).specs
    profile = with_room_for_one(proven={spec.name: spec.to_json() for spec in serving})
    with pytest.raises(InventoryError, match="RTX 3060 Ti needs"):
        site(with_room_for_one() | learned(big=450), *(one | {"gpus": [BIG["uuid"]]} for one in two()))
    again = site(profile | learned(big=450), *two())
    assert [spec.running() for spec in again.specs] == [spec.running() for spec in serving]


@settings(max_examples=30, deadline=None)
@given(st.integers(64, 800), st.integers(0, 3000), st.integers(0, 3000))
def test_no_measurement_moves_what_serves_or_promises_more_than_a_card_has(used: int, big: int, small: int) -> None:
    (serving,) = site(host(big_used=used)).specs
    totals = {BIG["uuid"]: 8192, SMALL["uuid"]: 3072}
    measured = {BIG["uuid"]: big, SMALL["uuid"]: small}
    needed = {
        device.uuid: (device.predicted_mib or 0) - (device.overhead_mib or 0) + measured[device.uuid]
        for device in serving.devices
    }
    profile = host(serving, big_used=used) | learned(big, small)
    if all(needed[uuid] <= totals[uuid] - 1 for uuid in needed):
        assert site(profile).specs[0].running() == serving.running()
    rooms = join_host([GpuEntry.model_validate(card) for card in (BIG, SMALL)], RamEntry(), profile).cards
    try:
        (anew,) = site(profile, replan=True).specs
    except InventoryError:
        return
    for device in anew.devices:
        room = next(card.room_mib for card in rooms if card.uuid == device.uuid)
        buffers = (device.predicted_mib or 0) - (device.overhead_mib or 0)
        assert buffers + measured[device.uuid] <= room + 0.3


@settings(max_examples=30)
@given(st.integers(64, 800), st.integers(64, 800))
def test_others_that_come_and_go_move_a_tier_only_when_it_does_not_fit(before: int, after: int) -> None:
    (serving,) = site(host(big_used=before)).specs
    again = site(host(serving, big_used=after))
    taken = join_host([GpuEntry.model_validate(card) for card in (BIG, SMALL)], RamEntry(), host(big_used=after))
    room = {card.uuid: card.room_mib for card in taken.cards}
    if all((device.predicted_mib or 0) + 0.2 <= room[device.uuid] for device in serving.devices):
        assert again.specs == (serving,)
    elif any((device.predicted_mib or 0) - 0.2 > room[device.uuid] for device in serving.devices):
        assert again == site(host(big_used=after))


@given(planning_cases.tight(), st.sampled_from([None, "auto"]), st.integers(0, 40))
def test_what_the_search_finds_is_admitted_and_kept_until_it_does_not_fit(
    case: tuple[Any, Host], gpu_layers: str | None, more_taken_mib: int
) -> None:
    header, whole = case
    demand = Demand(context=2048, gpu_layers=gpu_layers, cache_types=(("f16", "f16"), ("q8_0", "q8_0")))
    found = placement.search(header, whole, demand)
    if not isinstance(found, Choice):
        return
    devices = tuple(tier.Device("CUDA0", card.uuid or "", card.name, 1, None) for card in found.cards)
    proven = fake_tier.spec(placement=found.placement, devices=devices)
    assert kept.choice(proven, header, whole.cards, whole.ram, demand) == found
    fuller = tuple(dataclasses.replace(card, taken_mib=card.taken_mib + more_taken_mib) for card in whole.cards)
    again = kept.choice(proven, header, fuller, whole.ram, demand)
    assert (again is not None) == all(spare >= more_taken_mib for spare in found.spare_mib)
    assert again is None or again.placement == found.placement
