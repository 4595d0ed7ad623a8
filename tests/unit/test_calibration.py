"""What was measured on a host sharpens what is expected there, and chooses nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import example_report
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import BIG, Q4, SMALL, headers, hosts, reference, shaped

from checker import calibration, placement, throughput
from checker.calibration import EvidenceError, Run
from checker.cards import Card, Host, Learned
from checker.catalogue import ModelEntry
from checker.placement import Choice, Demand
from checker.tier import Placement

SEVEN = "deepseek-r1-distill-qwen-7b-q6_k"
SHA = "ab" * 32
MODELS = {
    name: ModelEntry.model_validate({"file": "x.gguf", "sha256": SHA, "header": shaped(name).to_json()})
    for name in (Q4, SEVEN)
}
HOST = reference()
FAST, SLOW = HOST.cards


def ran(model: str, split: tuple[int, ...], cards: tuple[Card, ...], share: float, **changes: Any) -> Run:
    """Return a run of a model that reached so much of what the priors expect."""
    mode = "layer" if len(split) > 1 else "none"
    made = Placement(mode, split, sum(split), 8192, "f16", "f16", 512, "on")
    header = shaped(model)
    speed = share * throughput.speed(header, made, cards, HOST.ram, 108).expected
    uuids = tuple(card.uuid or "" for card in cards)
    return replace(Run(model, SHA, made, uuids, speed, 108, "2026-11-24T15:00:00Z"), **changes)


def learned(*measured: Run) -> dict[str, Learned | None]:
    return {card.name: card.learned for card in calibration.calibrated(HOST, measured, MODELS).cards}


def test_a_card_that_was_measured_alone_is_known_by_its_ratio() -> None:
    found = learned(ran(SEVEN, (29,), (FAST,), 0.9))
    one = found[BIG]
    assert one
    assert one.ratio == pytest.approx(0.9)
    assert one.spread == 0.10
    assert one.source == "measured on this host: 1 run, 2026-11-24"
    assert found[SMALL] is None


def test_cards_that_share_a_tier_share_its_ratio_which_says_less_of_each() -> None:
    for one in learned(ran(Q4, (38, 11), (FAST, SLOW), 0.8)).values():
        assert one
        assert one.ratio == pytest.approx(0.8)
        assert one.spread == 0.20


def test_of_several_runs_the_median_counts_and_their_differences_widen_the_interval() -> None:
    later = {"recorded_at": "2026-11-26T01:00:00Z"}
    alone = [ran(SEVEN, (29,), (FAST,), share, **later) for share in (0.8, 0.9, 1.2)]
    one = learned(ran(Q4, (38, 11), (FAST, SLOW), 0.5), *alone)[BIG]
    assert one
    assert one.ratio == pytest.approx(0.9)
    assert one.spread == pytest.approx(1.2 / 0.9 - 1)
    assert one.source == "measured on this host: 3 runs, 2026-11-26"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "nobody knows it"},
        {"sha256": "cd" * 32},
        {"uuids": ("GPU-elsewhere",)},
        {"uuids": ()},
        {"placement": Placement("none", (20,), 20, 8192, "f16", "f16", 512, "on")},
    ],
    ids=["another model", "another file", "another card", "no card", "layers on the CPU"],
)
def test_a_run_that_tells_nothing_of_these_cards_is_left_out(changes: dict[str, Any]) -> None:
    assert set(learned(replace(ran(SEVEN, (29,), (FAST,), 0.9), **changes)).values()) == {None}


def test_what_was_measured_is_expected_again_in_a_narrower_interval() -> None:
    run = ran(SEVEN, (29,), (FAST,), 0.9)
    (card, _) = calibration.calibrated(HOST, [run], MODELS).cards
    by_prior = throughput.speed(shaped(SEVEN), run.placement, [FAST], HOST.ram, 108)
    again = throughput.speed(shaped(SEVEN), run.placement, [card], HOST.ram, 108)
    assert again.expected == pytest.approx(run.tokens_per_second)
    assert by_prior.low < again.low < again.expected < again.high < by_prior.high
    assert (by_prior.by, again.by) == ("priors", "measured on this host: 1 run, 2026-11-24")
    # Layers on the CPU are as little known as before.
    partial = throughput.speed(
        shaped(SEVEN), replace(run.placement, tensor_split=(20,), n_gpu_layers=20), [card], HOST.ram
    )
    assert partial.by == "measured on this host: 1 run, 2026-11-24; priors"


@settings(max_examples=60, deadline=None)
@given(headers(), hosts(), st.floats(0.01, 100), st.floats(0, 3), st.sampled_from([None, "auto"]))
def test_evidence_chooses_no_placement_and_expects_nothing_above_the_bound(
    model: Any, host: Host, ratio: float, spread: float, gpu_layers: str | None
) -> None:
    known = Learned(ratio, spread, "measured")
    some = replace(host, cards=(replace(host.cards[0], learned=known), *host.cards[1:]))
    everything = replace(host, cards=tuple(replace(card, learned=known) for card in host.cards))
    before = placement.search(model, host, Demand(4096, gpu_layers=gpu_layers))
    for other in (some, everything):
        after = placement.search(model, other, Demand(4096, gpu_layers=gpu_layers))
        assert type(after) is type(before)
        if isinstance(after, Choice) and isinstance(before, Choice):
            assert (after.placement, after.estimate) == (before.placement, before.estimate)
            assert [card.uuid for card in after.cards] == [card.uuid for card in before.cards]
            assert after.speed
            assert 0 < after.speed.low <= after.speed.expected <= after.speed.high <= after.speed.bound


def test_a_report_of_verification_is_read() -> None:
    (run,) = calibration.runs(example_report.report().to_json())
    # The median of the repeats, in the middle of an answer of 64 tokens to a prompt of 512.
    assert (run.model, run.tokens_per_second, run.fill_tokens) == ("tiny", 61.0, 544)
    assert run.placement.tensor_split == (13, 6)
    assert len(run.uuids) == 2
    # A tier whose weights or cards were wrong, or that did not answer, tells nothing.
    assert calibration.runs(example_report.report(failed=True).to_json()) == ()
    assert calibration.runs(example_report.report(unreadable=True).to_json()) == ()


@pytest.mark.parametrize(
    "thorough", [None, "absent", {"short": None}, {"short": {"generation_tokens_per_second": None}}]
)
def test_a_quick_report_tells_the_speed_of_its_one_completion(thorough: Any) -> None:
    document = spoiled("tiers/0/evidence/thorough", thorough)
    if thorough == "absent":
        del document["tiers"][0]["evidence"]["thorough"]
    (run,) = calibration.runs(document)
    assert (run.tokens_per_second, run.fill_tokens) == (61.2, 108)


@pytest.mark.parametrize("name", ["generation speed", "load time", "no slower than before"])
def test_a_tier_that_only_was_too_slow_was_measured_all_the_same(name: str) -> None:
    document = example_report.report().to_json()
    document["tiers"][0]["checks"].append({"name": "no slower than before", "passed": True})
    for check in document["tiers"][0]["checks"]:
        check["passed"] = check["name"] != name
    assert len(calibration.runs(document)) == 1


def spoiled(path: str, value: Any) -> dict[str, Any]:
    document: Any = copy.deepcopy(example_report.report().to_json())
    *steps, last = path.split("/")
    place = document
    for step in steps:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    return dict(document)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {"schema": "llama-tiers/plan/1"},
        spoiled("tiers", 5),
        spoiled("tiers/0/evidence", None),
        spoiled("tiers/0/evidence/devices", [1, 2]),
        spoiled("tiers/0/evidence/placement/ctx_size", "wide"),
        spoiled("tiers/0/evidence/placement/tensor_split", None),
        spoiled("tiers/0/evidence/thorough/short/generation_tokens_per_second/median", "fast"),
        spoiled("tiers/0/evidence/thorough/short/samples", []),
    ],
)
def test_what_is_no_report_is_told(document: Any) -> None:
    with pytest.raises(EvidenceError, match="it is"):
        calibration.runs(document)


def test_a_speed_that_is_none_tells_nothing() -> None:
    for speed in (0.0, float("inf"), float("nan")):
        document = spoiled("tiers/0/evidence/thorough/short/generation_tokens_per_second/median", speed)
        assert calibration.runs(document) == ()
