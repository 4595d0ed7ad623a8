"""The record of a trial: whole on the way to a file and back, told apart by what it measured, refused when damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from decision_cases import measured

from checker import trial
from checker.trial import TrialError

RECORD = measured({"tensor_split": [3, 2]})


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, outcome=trial.FAILED, reason="it hung", evidence=None),
        replace(RECORD, outcome=trial.INFEASIBLE, reason="has no room", spec=None, evidence=None),
    ],
    ids=["measured", "failed", "infeasible"],
)
def test_a_record_survives_its_file(record: trial.Trial) -> None:
    again = trial.from_json(json.loads(json.dumps(record.to_json())))
    assert again == record


def test_a_fingerprint_is_of_what_a_measurement_depends_on() -> None:
    spec = RECORD.spec
    assert spec
    cards = [device.uuid for device in spec.devices]
    own = trial.fingerprint(spec, cards, "580.126.09")
    other_criteria = replace(spec, criteria=replace(spec.criteria, max_load_s=1))
    assert own == trial.fingerprint(other_criteria, cards[::-1], "580.126.09")
    others = [
        trial.fingerprint(spec, cards, "580.127.00"),
        trial.fingerprint(spec, cards[:1], "580.126.09"),
        trial.fingerprint(replace(spec, argv=(*spec.argv, "--other")), cards, "580.126.09"),
        trial.fingerprint(replace(spec, engine=replace(spec.engine, release="/other")), cards, "580.126.09"),
    ]
    assert len({own, *others}) == 5


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in RECORD.to_json().items() if name != key}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "it has schema None, this checker reads 'llama-tiers/trial/1'"),
        ({**RECORD.to_json(), "schema": "llama-tiers/trial/2"}, "it has schema 'llama-tiers/trial/2'"),
        (_without("tier"), "it does not fit schema"),
        ({**RECORD.to_json(), "mood": "good"}, "it does not fit schema"),
        ({**RECORD.to_json(), "evidence": {"schema": "other"}}, "its evidence is of another version"),
        ({**RECORD.to_json(), "outcome": "fine"}, "its outcome 'fine' is none of measured, failed, infeasible"),
        ({**RECORD.to_json(), "evidence": None}, "its outcome is 'measured', but spec or evidence is not there"),
    ],
)
def test_what_is_no_record_is_refused(document: Any, said: str) -> None:
    with pytest.raises(TrialError) as caught:
        trial.from_json(document)
    assert said in str(caught.value)
