"""The explanation of a decision as a person reads it: in 80 columns, each candidate with how it stands, said once."""

from __future__ import annotations

import json
import re

import pytest
from decision_cases import contender, figures, policies

from checker import decision, trial
from checker.reports import decisions

SLOW = contender("slow", 95.0, found=figures(8.2, 31.0))
UNTRIED = contender("untried", 94.0, "it was not tried yet")
WRONG = contender("wrong", 10.0, "weights on another card", found=figures(50, 5))
TAKEN = contender("taken", 93.9, found=figures(24.1, 31.5))


def explained(*contenders: decision.Contender) -> dict[str, object]:
    return decision.explanation(decision.decide("tower", {"deep": contenders, "fast": ()}, policies(), "strict", 10))


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def rows(text: str) -> list[list[str]]:
    return [[cell for cell in re.split(r"\s{2,}", line.strip()) if cell] for line in text.splitlines()]


def test_each_candidate_is_shown_with_every_criterion() -> None:
    text = decisions.render([explained(SLOW, UNTRIED, WRONG, TAKEN)], {}, "table")
    assert max(len(line) for line in text.splitlines()) <= 80
    found = rows(text)
    assert ["▶", "taken", "93.9", "pass", "24.1", "31.5 s", "2", "0"] in found
    assert ["✗", "slow", "95", "pass", "8.2", "31.0 s", "2", "0"] in found
    assert ["✗", "untried", "94", "-", "-", "-", "-", "-"] in found
    assert ["✗", "wrong", "10", "FAIL", "50.0", "5.0 s", "2", "0"] in found
    assert ["deep", "%", "pass", "≥ 10", "≤ 60 s", "≥ 2", "≤ 0"] in found


def test_every_fault_is_said_and_none_twice() -> None:
    text = " ".join(decisions.render([explained(SLOW, UNTRIED, WRONG, TAKEN)], {}, "table").split())
    for said in ("it was not tried yet", "weights on another card", "tokens/s 8.2, wanted at least 10"):
        assert text.count(said) == 1, said
    assert "left to the inventory's order: fast" in text


def test_policies_that_do_not_apply_say_why() -> None:
    text = " ".join(decisions.render([explained(SLOW)], {}, "table").split())
    assert "strict does not apply: no candidate reaches what it asks for: deep All of it on two cards." in text
    assert "lenient decides" in text
    assert "deep: slow, the only candidate that reaches what is asked for" in text


def test_a_warning_is_said_beside_the_tiers_that_are_left_to_the_inventory() -> None:
    broken = contender("broken", 90.0, "the server crashed", outcome=trial.FAILED)
    made = decision.decide("tower", {"deep": (TAKEN,), "fast": (broken,)}, policies(), "strict", 10)
    text = " ".join(decisions.render([decision.explanation(made)], {}, "table").split())
    assert "left to the inventory's order: fast: broken (auto); strict has no rule for it ! fast is served by" in text
    assert text.count("the server crashed") == 1


def test_no_decision_is_said_with_what_stands_and_what_to_do() -> None:
    text = " ".join(decisions.render([explained(UNTRIED)], {"tower": "a/decision.yml holds"}, "table").split())
    assert text.endswith(
        "no policy decides; what serves stays: a/decision.yml holds To have one decide: lower "
        "llama_tiers_acceptable_tokens_per_second (10 now), list other candidates, or try those that have no trial "
        "that counts (`checker trial -i INVENTORY`); then decide again"
    )


def test_what_becomes_of_the_file_is_the_last_word() -> None:
    text = decisions.render([explained(TAKEN)], {"tower": "not written (dry run): a/decision.yml"}, "table")
    assert text.splitlines()[-1] == "not written (dry run): a/decision.yml"


def in_vain(*rules: dict[str, object]) -> list[str]:
    """Return the lines of policies one, two, ... of which none applies; each has one of the rules for the tier."""
    names = ["one", "two", "three"][: len(rules)]
    ladder = zip(names, [*names[1:], None], rules, strict=True)
    known = {name: {"note": "n", "otherwise": after, "tiers": {"deep": rule}} for name, after, rule in ladder}
    made = decision.decide("tower", {"deep": (SLOW, UNTRIED)}, policies(first="one", policies=known), "one", 10)
    return [line.strip() for line in decisions.render([decision.explanation(made)], {}, "table").splitlines()]


def test_what_the_next_policies_find_the_same_is_said_once() -> None:
    lines = in_vain({}, {"max_cards": 1}, {})
    assert [line[0] for line in lines if line].count("✗") == 2
    assert lines.count("- untried (auto) would be chosen but for: it was not tried yet") == 1
    said = "does not apply: no candidate reaches what it asks for: deep"
    two, three = (lines.index(f"{name}  {said}") for name in ("two", "three"))
    assert lines[two + 2 : three - 1] == [
        "deep: no candidate reaches what is asked for; as under one, but for:",
        "- slow (auto) would be chosen but for: tokens/s 8.2, wanted at least 10; cards",
        "2, wanted 1",
    ]
    assert lines[three + 2] == "deep: no candidate reaches what is asked for; as under one"


def test_the_policy_that_decides_has_its_table_although_another_had_one() -> None:
    text = decisions.render([explained(SLOW)], {}, "table")
    assert ["✗", "slow", "95", "pass", "8.2", "31.0 s", "2", "0"] in rows(text)
    assert ["▶", "slow", "95", "pass", "8.2"] in rows(text)


def test_json_is_the_document() -> None:
    document = explained(TAKEN)
    assert json.loads(decisions.render([document], {}, "json")) == document
    assert [json.loads(line) for line in decisions.render([document] * 2, {}, "json").splitlines()] == [document] * 2
