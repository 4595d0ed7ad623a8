"""The decision: what is chosen, what never is, what it does not depend on, and what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import decision_cases
import pytest
from decision_cases import COMMIT, contender, figures, measured
from hypothesis import given
from hypothesis import strategies as st

from checker import asked, decision, trial
from checker.catalogue import GpuEntry, InventoryError, ModelEntry, TierEntry
from checker.decision import Contender, Decision
from checker.policies import Policies
from inventories import BIG, MODELS, SMALL, inventory

POLICIES = decision_cases.policies()
GPUS = [GpuEntry.model_validate(each) for each in (BIG, SMALL)]
AUTO: dict[str, Any] = {"n_gpu_layers": "auto"}
SEVERAL = st.lists(decision_cases.contenders(), min_size=1, max_size=6)


def decide(contenders: Sequence[Contender], policies: Policies = POLICIES, name: str = "strict") -> Decision:
    return decision.decide("tower", {"deep": contenders}, policies, name, policies.acceptable_tokens_per_second)


def chosen(made: Decision) -> Contender | None:
    step = made.step
    return step.choices[0].chosen.contender if step and step.choices[0].chosen else None


# What holds for every set of candidates.


@given(SEVERAL)
def test_what_fails_a_criterion_is_never_chosen(contenders: list[Contender]) -> None:
    made = decide(contenders)
    if made.step:
        assert all(each.passes for choice in made.step.choices for each in [choice.chosen] if each)
    last = made.steps[-1].choices[0]
    assert (chosen(made) is None) == (not any(judged.passes for judged in last.judged))


@given(SEVERAL)
def test_what_was_not_measured_or_not_verified_is_never_chosen(contenders: list[Contender]) -> None:
    found = chosen(decide(contenders))
    assert found is None or (found.figures is not None and not found.faults)


@given(SEVERAL, st.data())
def test_removing_a_loser_changes_nothing(contenders: list[Contender], data: st.DataObject) -> None:
    found = chosen(decide(contenders))
    losers = [index for index, each in enumerate(contenders) if each is not found]
    if losers:
        left = list(contenders)
        del left[data.draw(st.sampled_from(losers))]
        assert (chosen(decide(left)) if left else None) is found


@given(SEVERAL)
def test_a_policy_is_left_only_when_nobody_passes_it(contenders: list[Contender]) -> None:
    steps = decide(contenders).steps
    for step in steps[:-1]:
        assert not any(judged.passes for judged in step.choices[0].judged)


@given(SEVERAL)
def test_none_that_passes_is_preferred_to_the_chosen_one(contenders: list[Contender]) -> None:
    made = decide(contenders, name="lenient")
    found = chosen(made)
    if found and found.figures:
        assert made.step
        passing = [each.contender for each in made.step.choices[0].judged if each.passes]
        speeds = [each.figures.tokens_per_second for each in passing if each.figures]
        assert found.figures.tokens_per_second == max(speeds)


@given(st.permutations([measured("auto", 61.0, f"2026-11-{day}T00:00:00Z") for day in (21, 22, 23)]))
def test_the_order_of_the_evidence_is_none_of_its_business(trials: list[trial.Trial]) -> None:
    (found,) = contenders_of(trials, ["auto"])
    assert found.figures and found.figures.measured_at == "2026-11-23T00:00:00Z"


# What it says of single cases.


def test_quality_goes_before_speed_where_the_policy_says_so() -> None:
    smart, quick = contender("smart", 93.9), contender("quick", 92.8, found=figures(tokens_per_second=90))
    made = decide([quick, smart])
    assert chosen(made) is smart
    assert made.step and made.step.choices[0].because == (
        "first of 2 that reach what is asked for, by quality: solves 93.9 % (published), quick (auto) 92.8 %"
    )


def test_of_two_quantisations_the_larger_has_the_quality() -> None:
    small, large = contender("q4"), contender("q5")
    large = replace(large, published=replace(large.published, model_mib=9000.0))
    made = decide([small, large])
    assert chosen(made) is large
    assert made.step and "by quality: 9,000 MiB of the same model, q4 (auto) 8,000" in made.step.choices[0].because


def test_among_equals_the_inventorys_order_holds() -> None:
    first, second = contender("first"), contender("second")
    made = decide([first, second])
    assert chosen(made) is first
    assert made.step and "equal to second (auto), and before it in the inventory" in made.step.choices[0].because


def test_a_model_of_which_nothing_was_published_goes_last() -> None:
    unknown, known = contender("unknown", None), contender("known", 1.0)
    assert chosen(decide([unknown, known])) is known


def test_the_next_policy_decides_when_the_first_finds_nobody() -> None:
    slow, alone = contender("slow", 93.9, found=figures(5)), contender("one-card", found=figures(cards=1))
    made = decide([slow, alone])
    assert [step.policy for step in made.steps] == ["strict", "lenient"]
    assert made.steps[0].reason == "no candidate reaches what it asks for: deep"
    assert chosen(made) is alone


@pytest.mark.parametrize(
    ("deep", "fast", "said"),
    [
        (figures(20), None, "fast has no trial that counts: try it too (`checker trial -i INVENTORY --tier fast`)"),
        (figures(20), trial.INFEASIBLE, "no candidate reaches what it asks for: fast"),
        (
            figures(5),
            None,
            "no candidate reaches what it asks for: deep; "
            "fast has no trial that counts: try it too (`checker trial -i INVENTORY --tier fast`)",
        ),
    ],
)
def test_a_tier_that_was_not_tried_is_asked_for(deep: decision.Figures, fast: str | None, said: str) -> None:
    both = decision_cases.policies(policies={"strict": {"note": "Both.", "tiers": {"deep": {}, "fast": {}}}})
    untried, other = contender("untried", 90.0, "not tried"), contender("other", 90.0, "why", outcome=fast)
    tiers = {"deep": [contender("a", found=deep), untried], "fast": [untried, other]}
    made = decision.decide("tower", tiers, both, "strict", 10)
    assert (made.step, made.steps[0].reason) == (None, said)


def test_nobody_at_all_is_no_decision() -> None:
    made = decide([contender("slow", 93.9, found=figures(tokens_per_second=1))])
    assert made.step is None
    assert decision.to_json(made) is None


def test_a_tier_that_the_policy_does_not_name_is_left_to_the_inventory() -> None:
    made = decision.decide("tower", {"deep": [contender("a")], "fast": [contender("b")]}, POLICIES, "strict", 10)
    assert made.undecided == ("fast",)
    assert list((decision.to_json(made) or {})["tiers"]) == ["deep"]


FULL = contender("full", 90.0, "no room", outcome=trial.INFEASIBLE)
BROKEN = contender("broken", 90.0, "the server crashed", outcome=trial.FAILED)
WRONG = contender("wrong", 90.0, "weights on another card", found=figures())
UNTRIED = contender("untried", 90.0, "it was not tried yet")


@pytest.mark.parametrize(
    ("fast", "said"),
    [
        ([BROKEN, contender("b")], "broken (auto), whose trial failed: the server crashed"),
        ([FULL, BROKEN], "broken (auto), whose trial failed: the server crashed"),
        ([WRONG], "wrong (auto), whose trial failed: weights on another card"),
        ([contender("b"), BROKEN], None),
        ([UNTRIED, BROKEN], None),
        ([FULL], None),
    ],
    ids=["did not run", "the first has no room", "not verified", "a later one", "not tried", "no room at all"],
)
def test_what_the_inventorys_order_would_serve_against_its_trial_is_warned_of(
    fast: list[Contender], said: str | None
) -> None:
    made = decision.decide("tower", {"deep": [contender("a")], "fast": fast}, POLICIES, "strict", 10)
    warnings = [f"fast is served by the inventory's order: {said}; put another candidate before it"] if said else []
    assert decision.explanation(made)["warnings"] == warnings


def test_without_a_decision_there_is_nothing_to_warn_of() -> None:
    tiers = {"deep": [UNTRIED], "fast": [BROKEN]}
    assert decision.decide("tower", tiers, POLICIES, "strict", 10).warnings == ()


def test_a_host_with_none_of_a_policys_tiers_is_not_decided_by_it() -> None:
    made = decision.decide("tower", {"fast": [contender("b")]}, POLICIES, "strict", 10)
    assert made.step is None
    assert made.steps[0].reason == "the host has none of the tiers that it names: deep"


BOTH = {"quick": {"note": "n", "tiers": {"deep": {}, "depe": {}}}}


@pytest.mark.parametrize(
    ("found", "applies", "said"),
    [
        (figures(20), True, "it finds a candidate for each of the host's tiers that it names"),
        (figures(5), False, "no candidate reaches what it asks for: deep"),
    ],
)
def test_a_rule_for_a_tier_that_the_host_has_not_is_named(found: decision.Figures, applies: bool, said: str) -> None:
    made = decide([contender("a", found=found)], decision_cases.policies(first="quick", policies=BOTH), "quick")
    (step,) = made.steps
    assert (step.applies, step.reason) == (applies, f"{said}; it has a rule for depe, which this host has not")


def test_a_policy_whose_every_tier_the_host_has_finds_one_for_each() -> None:
    made = decide([contender("a")])
    assert made.steps[0].reason == "it finds a candidate for each tier that it names"


@pytest.mark.parametrize(
    ("fast", "first"),
    [
        ([contender("b"), contender("c")], "b (auto)"),
        ([FULL, contender("c")], "c (auto)"),
        ([FULL], "full (auto)"),
    ],
    ids=["the first", "the first with room", "none with room"],
)
def test_what_the_inventorys_order_has_first_is_named(fast: list[Contender], first: str) -> None:
    made = decision.decide("tower", {"deep": [contender("a")], "fast": fast}, POLICIES, "strict", 10)
    assert decision.explanation(made)["by_order"] == {"fast": first}


def test_without_a_decision_every_tier_goes_by_the_inventorys_order() -> None:
    made = decision.decide("tower", {"deep": [UNTRIED, BROKEN], "fast": [BROKEN]}, POLICIES, "strict", 10)
    assert decision.explanation(made)["by_order"] == {"deep": "untried (auto)", "fast": "broken (auto)"}


def test_what_would_change_the_choice_is_said() -> None:
    made = decide(
        [
            contender("slow", 95.0, found=figures(tokens_per_second=8.2)),
            contender("untried", 94.0, "it was not tried yet"),
            contender("dull", 50.0, found=figures(tokens_per_second=3)),
            contender("taken", 93.9, found=figures(24.1, 31.5)),
            contender("next", 92.8),
        ]
    )
    assert made.step and made.step.choices[0].changes == (
        "slow (auto) would go before it but for: tokens/s 8.2, wanted at least 10",
        "untried (auto) would go before it but for: it was not tried yet",
        "taken (auto) passes up to 24.1 tokens/s wanted (10 now) and down to 31.5 s of load allowed (60 s now)",
        "without it, next (auto)",
    )


def test_acceptable_is_one_figure() -> None:
    slow = contender("slow", 95.0, found=figures(tokens_per_second=8.2))
    strict = POLICIES.policies["strict"]
    alone = POLICIES.model_copy(update={"policies": {"strict": strict.model_copy(update={"otherwise": None})}})
    for acceptable, found in ((8.2, slow), (8.3, None)):
        assert chosen(decision.decide("tower", {"deep": [slow]}, alone, "strict", acceptable)) is found


@pytest.mark.parametrize(
    ("rule", "found", "failed"),
    [
        ({"max_load_s": 10}, figures(load_s=10.1), "load 10.1 s at most 10 s"),
        ({"min_cards": 2}, figures(cards=1), "cards 1 at least 2"),
        ({"max_cards": 1}, figures(cards=2), "cards 2 1"),
        ({"max_cpu_layers": 0}, figures(cpu_layers=3), "layers on the CPU 3 at most 0"),
        ({"min_quality": 91}, figures(), "quality 90 % at least 91 %"),
    ],
)
def test_each_criterion_alone_can_refuse(rule: dict[str, Any], found: decision.Figures, failed: str) -> None:
    policies = decision_cases.policies(policies={"strict": {"note": "one", "tiers": {"deep": rule}}})
    made = decide([contender("a", found=found)], policies)
    assert made.step is None
    (judged,) = made.steps[0].choices[0].judged
    assert [f"{each.name} {each.found} {each.wanted}" for each in judged.failed] == [failed]


# What a trial tells, and when it does not hold any more.


def entry(placements: list[Any], **changes: Any) -> TierEntry:
    whole = {
        "name": "deep",
        "port": 8081,
        "context": 4096,
        "gpus": "any",
        "candidates": [{"model": "tiny", "placement": placement} for placement in placements],
        **changes,
    }
    return TierEntry.model_validate(whole)


def contenders_of(trials: Sequence[trial.Trial], placements: list[Any], **changes: Any) -> tuple[Contender, ...]:
    models = {"tiny": ModelEntry.model_validate(MODELS["tiny"])}
    commit, gpus = changes.pop("commit", COMMIT), changes.pop("here", GPUS)
    return decision.contenders(entry(placements, **changes), models, trials, commit, gpus)


def test_a_trial_tells_of_its_own_candidate() -> None:
    auto, split = contenders_of([measured({"tensor_split": [3, 2]}, 33.3)], ["auto", {"tensor_split": [3, 2]}])
    assert auto.faults == ("it was not tried yet",)
    assert split.faults == ()
    assert split.figures and split.figures.tokens_per_second == 33.3
    assert split.figures.gpus == (BIG["name"], SMALL["name"])
    assert split.figures.load_s == 3.14


def test_layers_on_the_host_are_counted() -> None:
    record = measured(AUTO)
    assert record.spec
    fewer = replace(record.spec, placement=replace(record.spec.placement, n_gpu_layers=3, tensor_split=(2, 1)))
    (found,) = contenders_of([replace(record, spec=fewer, placement=AUTO)], [AUTO])
    assert found.figures and found.figures.cpu_layers == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"commit": "f" * 40}, "it was tried before the engine became fffffffff: try it again"),
        ({"here": GPUS[:1]}, f"it was tried before card {SMALL['uuid']} went: try it again"),
        ({"gpus": [BIG["uuid"]]}, f"it was tried before card {SMALL['uuid']} went: try it again"),
        ({"context": 8192}, "it was tried before the context became another than 4,096: try it again"),
        ({"parallel": 2}, "it was tried before the slots became 2: try it again"),
        ({"cache_types": ["q8_0"]}, "it was tried before the KV cache became another than f16: try it again"),
    ],
)
def test_a_trial_of_what_was_before_counts_no_longer(changes: dict[str, Any], said: str) -> None:
    (found,) = contenders_of([measured("auto")], ["auto"], **changes)
    assert found.figures is None
    assert found.faults == (said,)


def test_a_trial_of_another_file_counts_no_longer() -> None:
    record = measured("auto")
    assert record.spec
    other = replace(record.spec, model=replace(record.spec.model, file="/m/cdcdcdcdcdcd/tiny.gguf"))
    (found,) = contenders_of([replace(record, spec=other)], ["auto"])
    assert found.faults == ("it was tried before the catalogue named another file: try it again",)


def test_an_older_trial_that_holds_goes_before_a_newer_one_that_does_not() -> None:
    record = measured("auto", 50.0, "2026-11-20T00:00:00Z")
    newer = measured("auto", 70.0, "2026-11-25T00:00:00Z")
    assert newer.spec
    newer = replace(newer, spec=replace(newer.spec, engine=replace(newer.spec.engine, commit="f" * 40)))
    (found,) = contenders_of([newer, record], ["auto"])
    assert found.figures and found.figures.tokens_per_second == 50.0


def test_only_a_trial_that_counts_has_an_outcome() -> None:
    trials = [measured("auto"), measured(AUTO, model="another"), no_room({"split_mode": "none"})]
    found = contenders_of(trials, ["auto", AUTO, {"split_mode": "none"}])
    assert [each.outcome for each in found] == [trial.MEASURED, None, trial.INFEASIBLE]
    assert [each.outcome for each in contenders_of(trials, ["auto"], context=8192)] == [None]


def test_what_had_no_room_or_did_not_run_says_why() -> None:
    record = measured("auto", outcome=trial.FAILED, reason="cudaMalloc failed: out of memory", evidence=None)
    (found,) = contenders_of([record], ["auto"])
    assert (found.figures, found.faults) == (None, ("cudaMalloc failed: out of memory",))


def no_room(placement: trial.Written, recorded_at: str = "2026-11-25T00:00:00Z", **changes: Any) -> trial.Trial:
    """Return a record that the candidate had no room, as it is written of a tier with `changes`."""
    asking = entry([placement], **changes)
    fingerprint = asked.fingerprint(asking, asking.candidates[0], GPUS)
    return measured(
        placement, recorded_at=recorded_at, outcome=trial.INFEASIBLE, reason="BIG needs more", fingerprint=fingerprint,
        spec=None, evidence=None,
    )  # fmt: skip


def test_no_room_for_what_is_asked_now_goes_before_what_was_measured_earlier() -> None:
    (found,) = contenders_of([measured("auto"), no_room("auto")], ["auto"])
    assert (found.figures, found.faults) == (None, ("BIG needs more",))
    (found,) = contenders_of([measured("auto"), no_room("auto", "2026-11-20T00:00:00Z")], ["auto"])
    assert found.figures


@pytest.mark.parametrize(
    "changes", [{"context": 8192}, {"gpus": [BIG["uuid"]]}, {"cache_types": ["f32"]}, {"parallel": 4}]
)
def test_no_room_for_what_is_asked_no_longer_hides_nothing(changes: dict[str, Any]) -> None:
    (found,) = contenders_of([measured("auto"), no_room("auto", **changes)], ["auto"])
    assert found.figures and not found.faults
    (found,) = contenders_of([no_room("auto", **changes)], ["auto"])
    assert found.faults == ("it was tried before another placement was asked for: try it again",)


def test_what_could_not_be_fetched_hides_no_measurement() -> None:
    unfetched = replace(no_room("auto"), outcome=trial.FAILED, reason="its model could not be fetched: 404")
    (found,) = contenders_of([measured("auto"), unfetched], ["auto"])
    assert found.figures
    (found,) = contenders_of([unfetched], ["auto"])
    assert found.faults == ("its model could not be fetched: 404",)


def test_the_tiers_criteria_of_today_judge_the_trial() -> None:
    slow = {"criteria": {"min_generation_tokens_per_second": 500, "max_load_s": 300}}
    (found,) = contenders_of([measured("auto")], ["auto"], **slow)
    assert found.figures
    assert found.faults[0].startswith("generates 61.0 tokens/s, at least 500 are promised")


# The decision as the next plan's input.


def document() -> dict[str, Any]:
    trials, placements = [measured({"tensor_split": [3, 2]})], ["auto", {"tensor_split": [3, 2]}]
    made = decision.to_json(decide(contenders_of(trials, placements)))
    assert made
    return made


def narrowed(entries: Sequence[TierEntry], decided: dict[str, Any]) -> list[TierEntry]:
    models = {"tiny": ModelEntry.model_validate(MODELS["tiny"])}
    own = decision.parse(decided, "tower", [each.name for each in entries])
    return decision.narrowed(entries, own, GPUS, models)


def test_the_decided_candidate_alone_is_left_as_it_was_measured() -> None:
    both = entry(["auto", {"tensor_split": [3, 2]}])
    other = entry(["auto"], name="fast")
    (deep, fast) = narrowed([both, other], document())
    (candidate,) = deep.candidates
    record = measured({"tensor_split": [3, 2]})
    assert record.spec
    wanted = asked.demand(deep, candidate)
    assert (wanted.split, wanted.ubatch_sizes, wanted.pipeline) == ((3, 2), (512,), (True,))
    assert asked.admits(wanted, record.spec.placement, 5)
    assert deep.gpus == [BIG["uuid"], SMALL["uuid"]]
    assert fast == other


def test_a_range_of_context_is_the_planners_up_to_what_was_measured() -> None:
    ranged = entry([{"tensor_split": [3, 2]}], context={"min": 2048, "max": 8192})
    (deep,) = narrowed([ranged], document())
    assert (deep.context.min, deep.context.max) == (2048, 4096)


def test_a_default_that_is_written_out_is_the_same_candidate() -> None:
    longer = entry([{"tensor_split": [3, 2], "split_mode": "layer", "flash_attn": "on"}])
    assert narrowed([longer], document())[0].candidates[0].model == "tiny"


def test_a_candidate_that_the_inventory_has_no_longer_is_named() -> None:
    with pytest.raises(InventoryError) as caught:
        narrowed([entry(["auto", {"tensor_split": [4, 1]}])], document())
    assert str(caught.value) == (
        "tier deep: decided is tiny (3,2), which is none of the inventory's candidates: tiny (auto), tiny (4,1); "
        "put it back, or try and decide again (`checker trial`, `checker decide`)"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context": 8192}, "the context became another than 4,096"),
        ({"parallel": 2}, "the slots became 2"),
        ({"gpus": [SMALL["uuid"], BIG["uuid"]]}, "another placement was asked for"),
        ({"gpus": [BIG["uuid"]]}, f"card {SMALL['uuid']} went"),
    ],
)
def test_a_decision_that_was_measured_for_something_else_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InventoryError) as caught:
        narrowed([entry([{"tensor_split": [3, 2]}], **changes)], document())
    assert str(caught.value) == (
        f"tier deep: decided is tiny (3,2), which was measured before {said}: "
        "put that back, or try and decide again (`checker trial`, `checker decide`)"
    )


AGAIN = "try and decide again (`checker trial`, `checker decide`); without the file the inventory's order holds"


def test_a_decided_tier_that_the_inventory_has_no_longer_is_named() -> None:
    renamed = [entry([{"tensor_split": [3, 2]}], name=name) for name in ("large", "fast")]
    with pytest.raises(InventoryError) as caught:
        narrowed(renamed, document())
    assert caught.value.problems == [
        "tier deep: decided is tiny (3,2), but it is none of the inventory's tiers: large, fast; "
        f"put it back, or {AGAIN}"
    ]


def test_a_decision_of_another_host_is_refused() -> None:
    with pytest.raises(InventoryError) as caught:
        decision.parse({**document(), "host": "shed"}, "tower", ["deep"])
    assert caught.value.problems == [
        "llama_tiers_decision: it was decided for host shed, and this is tower; "
        f"put the name or the file back, or {AGAIN}"
    ]


def test_no_decision_leaves_everything() -> None:
    entries = [TierEntry.model_validate(each) for each in inventory()["tiers"]]
    assert narrowed(entries, {}) == entries


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"schema": "llama-tiers/decision/9"},
            "schema 'llama-tiers/decision/9' is wrong: expected 'llama-tiers/decision/2'",
        ),
        ({"schema": "llama-tiers/decision/1"}, "expected 'llama-tiers/decision/2'"),
        ({"tiers": {"deep": {}}}, "llama_tiers_decision: tiers.deep.model is missing"),
        ({"tiers": []}, "tiers [] is wrong: expected keys with values"),
    ],
)
def test_a_damaged_decision_is_named_with_what_to_do(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InventoryError) as caught:
        decision.parse({**document(), **wrong}, "tower", ["deep"])
    assert said in str(caught.value)
    assert "`checker decide` writes it anew" in str(caught.value)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("auto", "auto"),
        ({"tensor_split": [38, 11]}, "38,11"),
        ({"split_mode": "row", "tensor_split": [38, 11]}, "38,11, row split"),
        ({"split_mode": "none", "n_gpu_layers": "auto"}, "one card, the rest on the CPU"),
        ({"n_gpu_layers": 40, "ubatch_size": 256}, "40 layers on the cards, ubatch_size 256"),
    ],
)
def test_a_placement_is_said_in_words(written: trial.Written, words: str) -> None:
    assert decision.placement_words(written) == words
