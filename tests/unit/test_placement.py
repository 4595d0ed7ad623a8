"""The search finds what trying every placement finds, and says no with figures that add up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning_cases import BIG, Q4, Q5, SMALL, card, headers, hosts, reference, shaped, small_header, tight

from checker import header, memory, placement
from checker.cards import Host, Ram
from checker.placement import Choice, Demand, Refusal
from checker.tier import Placement

F16, Q8 = ("f16", "f16"), ("q8_0", "q8_0")

demands = st.builds(
    Demand,
    context=st.sampled_from([1024, 4096]),
    cache_types=st.sampled_from([(F16,), (F16, Q8), (Q8,)]),
    ubatch_sizes=st.sampled_from([(512,), (512, 128)]),
    pipeline=st.sampled_from([(True, False), (False,), (True,)]),
    gpu_layers=st.sampled_from([None, None, "auto", 2]),
)
thorough = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def found(model: header.Header, host: Host, demand: Demand) -> Choice | None:
    result = placement.search(model, host, demand)
    return result if isinstance(result, Choice) else None


def every_placement(
    model: header.Header, host: Host, demand: Demand, cache_type: tuple[str, str], n_gpu_layers: int
) -> Iterator[Choice]:
    """Try everything that the demand allows."""
    for count in range(1, min(len(host.cards), n_gpu_layers) + 1):
        for order in itertools.permutations(host.cards, count):
            for cuts in itertools.combinations(range(1, n_gpu_layers), count - 1):
                split = tuple(b - a for a, b in itertools.pairwise((0, *cuts, n_gpu_layers)))
                for ubatch, pipeline in itertools.product(demand.ubatch_sizes, demand.pipeline):
                    made = Placement(
                        "layer" if count > 1 else "none",
                        split,
                        n_gpu_layers,
                        demand.context,
                        *cache_type,
                        ubatch,
                        "on",
                        pipeline_parallel=pipeline,
                    )
                    choice = placement.evaluate(model, made, order, host.ram)
                    if choice.fits:
                        yield choice


def optimum(model: header.Header, host: Host, demand: Demand) -> float | None:
    """Return the best expected speed there is: everything on the cards with the first type of cache, if that can be."""
    layers = demand.gpu_layers if isinstance(demand.gpu_layers, int) else model.n_layer + 1
    rounds = [[layers]] + ([list(range(1, layers))] if demand.gpu_layers == "auto" else [])
    for counts in rounds:
        for cache_type in demand.cache_types:
            fitting = [c for n in counts for c in every_placement(model, host, demand, cache_type, n)]
            if fitting:
                return max(choice.speed.expected for choice in fitting if choice.speed)
    return None


@thorough
@given(tight() | st.tuples(headers(), hosts()), demands)
def test_the_search_is_as_good_as_trying_everything(case: tuple[header.Header, Host], demand: Demand) -> None:
    model, host = case
    choice = found(model, host, demand)
    best = optimum(model, host, demand)
    assert (choice is None) == (best is None)
    if choice and best:
        assert choice.fits
        assert choice.speed
        assert choice.speed.expected >= 0.99 * best


@settings(max_examples=12, deadline=None)
@given(tight(cards=3, most_layers=4), demands)
def test_the_search_is_as_good_on_three_cards(case: tuple[header.Header, Host], demand: Demand) -> None:
    model, host = case
    choice = found(model, host, demand)
    best = optimum(model, host, demand)
    assert (choice is None) == (best is None)
    if choice and choice.speed and best:
        assert choice.speed.expected >= 0.99 * best


@settings(max_examples=40, deadline=None)
@given(tight(), demands, st.lists(st.integers(0, 800), min_size=3, max_size=3))
def test_more_free_memory_never_takes_a_plan_away(
    case: tuple[header.Header, Host], demand: Demand, more: list[int]
) -> None:
    model, host = case
    choice = found(model, host, demand)
    larger = replace(
        host,
        cards=tuple(replace(c, total_mib=(c.total_mib or 0) + mib) for c, mib in zip(host.cards, more, strict=False)),
    )
    if choice and choice.speed:
        better = found(model, larger, demand)
        assert better
        assert better.speed
        if better.placement.cache_type_k == choice.placement.cache_type_k:
            assert better.speed.expected >= 0.99 * choice.speed.expected


@settings(max_examples=40, deadline=None)
@given(tight(), demands)
def test_the_order_in_which_cards_are_listed_does_not_matter(case: tuple[header.Header, Host], demand: Demand) -> None:
    model, host = case
    choice = found(model, host, demand)
    other = found(model, replace(host, cards=tuple(reversed(host.cards))), demand)

    def seen(choice: Choice | None) -> object:
        if choice is None:
            return None
        like = [(c.total_mib, c.bandwidth_gb_s, c.compute_capability, c.kind) for c in choice.cards]
        return choice.placement, like, choice.estimate

    assert seen(choice) == seen(other)


@pytest.mark.parametrize("name", [Q4, Q5, "qwen2.5-32b-instruct-q4_k_m", "llama-3.1-8b-instruct-abliterated-q6_k"])
@pytest.mark.parametrize("gpu_layers", [None, "auto"])
def test_every_choice_fits_and_every_refusal_misses(name: str, gpu_layers: str | None) -> None:
    result = placement.search(shaped(name), reference(), Demand(8192, gpu_layers=gpu_layers))
    if isinstance(result, Choice):
        assert min(result.spare_mib) >= 0
        assert sum(result.placement.tensor_split) == result.placement.n_gpu_layers
        return
    assert min(result.nearest.spare_mib) < 0
    assert len(result.reasons) == sum(spare < 0 for spare in result.nearest.spare_mib)
    for change in result.changes:
        assert change.choice.fits


def test_the_best_split_of_the_missions_14b_is_that_of_all_splits() -> None:
    """The real model: every split over both cards, in both orders, by the same arithmetic."""
    model, host = shaped(Q4), reference()
    demand = Demand(8192)
    choice = found(model, host, demand)
    assert choice
    assert choice.speed
    best = max(c.speed.expected for c in every_placement(model, host, demand, F16, 49) if c.speed)
    assert choice.speed.expected >= 0.99 * best


@pytest.mark.parametrize("cache_type", [F16, Q8])
@pytest.mark.parametrize("more", range(0, 200, 23))
def test_sliding_layers_are_searched_as_exactly(cache_type: tuple[str, str], more: int) -> None:
    sliding = tuple(layer % 6 != 5 for layer in range(14))
    model = small_header([70] * 14, n_swa=1024, sliding=sliding)
    first, second = card("a", 1000 + more), card("b", 600, 192.0, compute_capability="6.1")
    host, demand = Host((first, second)), Demand(8192, cache_types=(cache_type,))
    choice, best = found(model, host, demand), optimum(model, host, demand)
    assert (choice is None) == (best is None)
    if choice and choice.speed and best:
        assert choice.speed.expected >= 0.99 * best


def test_an_explicit_split_is_refused_with_the_arithmetic_and_the_split_that_fits() -> None:
    eight_three = placement.whole_layers((8, 3), 49)
    assert eight_three == (36, 13)
    explicit = Demand(8192, ubatch_sizes=(512,), split=eight_three)
    refused = placement.search(shaped(Q4), reference(), explicit)
    assert isinstance(refused, Refusal)
    (reason,) = refused.reasons
    assert reason.startswith("GTX 1060 3GB needs 3,")
    assert "2,531 weights + 384 KV" in reason
    (change,) = refused.changes
    assert change.choice.placement.tensor_split in ((38, 11), (39, 10))
    assert change.choice.placement.ubatch_size == 512
    assert [c.name for c in change.choice.cards] == [BIG, SMALL]
    assert isinstance(placement.search(shaped(Q4), reference(), replace(explicit, split=(38, 11))), Choice)


def test_pipeline_parallelism_of_an_explicit_split_is_given_up_only_where_it_must_be() -> None:
    model = small_header([200, 200, 200, 200])
    roomy = Host((card("a", 4000), card("b", 4000)))
    explicit = Demand(4096, ubatch_sizes=(512,), split=(3, 2))
    choice = found(model, roomy, explicit)
    assert choice
    assert choice.placement.pipeline_parallel
    with_it, without = (
        placement.evaluate(model, replace(choice.placement, pipeline_parallel=on), roomy.cards, roomy.ram)
        for on in (True, False)
    )
    between = int(with_it.estimate.devices[0].total_mib + without.estimate.devices[0].total_mib) // 2
    tight = found(model, Host((card("a", between), card("b", 4000))), explicit)
    assert tight
    assert not tight.placement.pipeline_parallel


def test_what_would_fit_costs_what_the_search_says() -> None:
    refused = placement.search(shaped(Q5), reference(), Demand(8192), {Q4: shaped(Q4)})
    assert isinstance(refused, Refusal)
    kinds = {change.what: change.choice for change in refused.changes}
    context = next(choice for what, choice in kinds.items() if what.startswith("context "))
    assert context.placement.cache_type_k == "f16"
    # The next step of context does not fit.
    more = replace(Demand(8192), context=context.placement.ctx_size + 256)
    assert found(shaped(Q5), reference(), more) is None
    on_cpu = next(choice for what, choice in kinds.items() if what.endswith("on the CPU"))
    assert on_cpu.placement.n_gpu_layers < 49
    assert Q4 in kinds
    assert on_cpu.speed
    assert kinds[Q4].speed
    assert on_cpu.speed.expected < kinds[Q4].speed.expected


def largest_one_by_one(model: header.Header, host: Host, demand: Demand) -> Choice | None:
    """Return what a range of context is to give: every context of it is tried, with what its start has on the cards."""
    least = found(model, host, replace(demand, most_context=0))
    if least is None:
        return None
    made = least.placement
    kept = replace(demand, cache_types=((made.cache_type_k, made.cache_type_v),), gpu_layers=made.n_gpu_layers)
    most = min(demand.most_context, model.n_ctx_train * demand.parallel)
    for context in sorted({*range(1024, most + 1, 1024), most}, reverse=True):
        if context <= demand.context:
            break
        choice = found(model, host, replace(kept, context=context, most_context=0))
        if choice:
            return choice
    return least


@settings(max_examples=60, deadline=None)
@given(tight() | st.tuples(headers(), hosts()), demands, st.integers(1024, 40000), st.sampled_from([1, 2]))
def test_a_range_of_context_gives_the_largest_that_costs_no_layers(
    case: tuple[header.Header, Host], demand: Demand, most: int, parallel: int
) -> None:
    model, host = case
    wide = replace(demand, most_context=max(most, demand.context), parallel=parallel)
    choice, wanted = found(model, host, wide), largest_one_by_one(model, host, wide)
    assert (choice and choice.placement) == (wanted and wanted.placement)
    least = found(model, host, replace(wide, most_context=0))
    if choice and least:
        assert choice.placement.n_gpu_layers == least.placement.n_gpu_layers
        assert choice.placement.cache_type_k == least.placement.cache_type_k


def test_a_range_of_context_of_an_explicit_split() -> None:
    explicit = Demand(4096, ubatch_sizes=(512,), split=(38, 11), most_context=100_000)
    choice = found(shaped(Q4), reference(), explicit)
    assert choice
    context = choice.placement.ctx_size
    assert context > 8192
    assert context % 1024 == 0
    assert choice.placement.tensor_split == (38, 11)
    assert found(shaped(Q4), reference(), replace(explicit, context=context + 1024)) is None


def test_the_end_of_a_range_need_not_be_a_whole_step() -> None:
    roomy = Host((card("a", 8000),))
    model = small_header([20] * 4)
    choice = found(model, roomy, Demand(1000, most_context=5000))
    assert choice
    assert choice.placement.ctx_size == 5000
    beyond = found(replace(model, n_ctx_train=3000), roomy, Demand(1000, most_context=5000))
    assert beyond
    assert beyond.placement.ctx_size == 3000


def test_a_larger_context_can_need_less_memory_so_that_each_one_is_tried() -> None:
    """The search for the largest context must not take it that what fits with one context fits with a smaller one."""
    split, layers = (21, 23), 44
    totals = []
    for context in (1792, 2048):
        made = Placement("layer", split, layers, context, "f16", "f16", 512, "off")
        devices = memory.estimate(shaped(Q4), made, ("CUDA", "CUDA")).devices
        totals.append((devices[0].total_mib, devices[0].weights_mib + devices[0].kv_mib))
    (smaller, held), (larger, more) = totals
    assert larger < smaller
    assert more > held
    room = tuple(int(need) + 1 for need in (larger, 9000))
    host = Host(tuple(card(name, mib) for name, mib in zip("ab", room, strict=True)))
    explicit = Demand(256, ubatch_sizes=(512,), flash_attn="off", split=split, most_context=2048)
    choice = found(shaped(Q4), host, explicit)
    assert choice
    assert choice.placement.ctx_size == 2048


@settings(max_examples=60, deadline=None)
@given(headers(), st.integers(256, 30000), st.integers(0, 5000), st.sampled_from([1, 3]), st.sampled_from([F16, Q8]))
def test_weights_and_kv_never_shrink_with_the_context(
    model: header.Header, context: int, more: int, parallel: int, types: tuple[str, str]
) -> None:
    made = Placement("none", (model.n_layer + 1,), model.n_layer + 1, context, *types, 512, "on", parallel=parallel)
    larger = replace(made, ctx_size=context + more)
    assert all(a <= b for a, b in zip(memory.by_layer(model, made), memory.by_layer(model, larger), strict=True))


def test_the_hosts_memory_can_be_what_is_too_small() -> None:
    model = shaped("qwen2.5-32b-instruct-q4_k_m")
    refused = placement.search(model, reference(ram_mib=8000), Demand(8192, gpu_layers=31))
    assert isinstance(refused, Refusal)
    assert any("of its 8,000 MiB are for tiers" in reason for reason in refused.reasons)
    assert found(model, reference(ram_mib=16000), Demand(8192, gpu_layers="auto"))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_nearest_miss_names_no_card_that_it_does_not_use(layers: int) -> None:
    # The host's memory is too small whatever lies on the cards, of which one is tiny.
    host = Host((card("a", 24000), card("b", 700, 192.0)), Ram(1600))
    refused = placement.search(shaped(Q4), host, Demand(8192, gpu_layers=layers))
    assert isinstance(refused, Refusal)
    assert 0 not in refused.nearest.placement.tensor_split
    assert sum(refused.nearest.placement.tensor_split) == layers
    assert len(refused.nearest.cards) == len(refused.nearest.placement.tensor_split)


def test_the_preferred_type_of_cache_is_left_only_for_more_layers_on_the_cards() -> None:
    model = small_header([200] * 4, head_kv=(16,) * 4)
    weights = memory.by_layer(model, Placement("none", (5,), 5, 8192, "f16", "f16", 128, "on"))
    enough = Host((card("a", int(sum(weights)) + 1000),))
    both = Demand(8192, cache_types=(F16, Q8))
    roomy = found(model, enough, both)
    assert roomy
    assert roomy.placement.cache_type_k == "f16"
    # A card with room for the smaller cache only.
    tight = Host((card("a", int(sum(weights)) + 125, compute_capability="6.1"),))
    assert found(model, tight, replace(both, cache_types=(F16,))) is None
    less = found(model, tight, both)
    assert less
    assert less.placement.cache_type_k == "q8_0"


def test_one_card_that_is_enough_is_used_alone_and_the_fast_one() -> None:
    choice = found(shaped("deepseek-r1-distill-qwen-7b-q6_k"), reference(SMALL, BIG), Demand(8192))
    assert choice
    assert [c.name for c in choice.cards] == [BIG]
    assert choice.placement.split_mode == "none"


def test_cards_that_are_alike_share_alike() -> None:
    twins = Host((card("a", 2000), card("b", 2000)))
    choice = found(small_header([300] * 6), twins, Demand(2048))
    assert choice
    assert max(choice.spare_mib) - min(choice.spare_mib) < 400


def test_a_card_that_nobody_knows_is_named() -> None:
    unknown = replace(card("NVIDIA Mystery", 4000), total_mib=None)
    with pytest.raises(ValueError, match="NVIDIA Mystery is not known: give total_mib"):
        placement.search(small_header([10]), Host((unknown,)), Demand(1024))
    # Nor does a split as people wrote it "fit" there.
    with pytest.raises(ValueError, match="NVIDIA Mystery is not known: give total_mib"):
        placement.search(small_header([10]), Host((unknown, card("a", 4000))), Demand(1024, split=(1, 1)))
    slow = replace(card("NVIDIA Mystery", 4000), bandwidth_gb_s=None)
    with pytest.raises(ValueError, match="bandwidth of NVIDIA Mystery is not known: give bandwidth_gb_s"):
        placement.search(small_header([10]), Host((slow,)), Demand(1024))


def test_eight_different_cards_are_searched() -> None:
    names = [f"card{index}" for index in range(8)]
    host = Host(tuple(card(name, 3000 + 10 * i, 300.0 + i) for i, name in enumerate(names)), Ram(64000))
    assert found(shaped(Q4), host, Demand(8192))


def test_proportions_become_whole_layers_as_llama_cpp_makes_them() -> None:
    assert placement.whole_layers((1, 1), 5) == (3, 2)
    assert placement.whole_layers((38, 11), 49) == (38, 11)
    for split in ((8, 3), (1, 2, 3), (7, 7, 1)):
        counts = placement.whole_layers(split, 33)
        where = memory.assignment(32, 33, split)
        assert tuple(where.count(device) for device in range(len(split))) == counts


def test_the_reference_hosts_free_memory_makes_36_13_as_its_ratio_does() -> None:
    """llama.cpp splits by it where nothing is said of a split (src/llama-model.cpp)."""
    assert placement.whole_layers([card.free_mib for card in reference().cards], 49) == (36, 13)


def test_the_reference_host_has_room_for_no_tensor_split_of_the_deep_model() -> None:
    for layers in range(1, 49):
        smallest = Demand(8192, ubatch_sizes=(128,), split_mode="tensor", split=(layers, 49 - layers))
        assert isinstance(placement.search(shaped(Q4), reference(), smallest), Refusal)
