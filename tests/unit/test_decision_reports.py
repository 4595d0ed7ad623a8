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
    text = decisions.render([explained(SLOW, UNTRIED, WRONG, TAKEN)], "table")
    assert max(len(line) for line in text.splitlines()) <= 80
    found = rows(text)
    assert ["▶", "taken", "93.9", "pass", "24.1", "31.5 s", "2", "0"] in found
    assert ["✗", "slow", "95", "pass", "8.2", "31.0 s", "2", "0"] in found
    assert ["✗", "untried", "94", "-", "-", "-", "-", "-"] in found
    assert ["✗", "wrong", "10", "FAIL", "50.0", "5.0 s", "2", "0"] in found
    assert ["deep", "%", "pass", "≥ 10", "≤ 60 s", "≥ 2", "≤ 0"] in found


def test_every_fault_is_said_and_none_twice() -> None:
    text = " ".join(decisions.render([explained(SLOW, UNTRIED, WRONG, TAKEN)], "table").split())
    for said in ("it was not tried yet", "weights on another card", "tokens/s 8.2, wanted at least 10"):
        assert text.count(said) == 1, said
    assert "left to the inventory's order: fast" in text


def test_policies_that_do_not_apply_say_why() -> None:
    text = " ".join(decisions.render([explained(SLOW)], "table").split())
    assert "strict does not apply: no candidate reaches what it asks for: deep All of it on two cards." in text
    assert "lenient decides" in text
    assert "deep: slow, the only candidate that reaches what is asked for" in text


def test_a_warning_is_said_beside_the_tiers_that_are_left_to_the_inventory() -> None:
    broken = contender("broken", 90.0, "the server crashed", outcome=trial.FAILED)
    made = decision.decide("tower", {"deep": (TAKEN,), "fast": (broken,)}, policies(), "strict", 10)
    text = " ".join(decisions.render([decision.explanation(made)], "table").split())
    assert "left to the inventory's order: fast ! fast is served by" in text
    assert text.count("the server crashed") == 1


def test_no_decision_is_said() -> None:
    assert "no policy decides; what serves stays" in decisions.render([explained(UNTRIED)], "table")


def test_json_is_the_document() -> None:
    document = explained(TAKEN)
    assert json.loads(decisions.render([document], "json")) == document
    assert [json.loads(line) for line in decisions.render([document] * 2, "json").splitlines()] == [document] * 2
