"""Evidence: what is written can be read again, what an older version wrote too, and what is no evidence is nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from example_report import report
from hypothesis import given
from hypothesis import strategies as st

from checker.evidence import Evidence, FrontEvidence, TlsEvidence, from_json

TLS = TlsEvidence("2026-12-24T15:00:00Z", 30.0)
FRONT = FrontEvidence("inactive", "nginx (pid 7, nginx.service)", "fast", "not ready: out of memory", TLS)


@pytest.mark.parametrize("changes", [{}, {"failed": True}, {"unreadable": True}], ids=["pass", "fail", "unreadable"])
def test_the_evidence_of_a_report_can_be_read_again(changes: dict[str, Any]) -> None:
    evidence = replace(
        report(**changes).tiers[0].evidence, front=FRONT, asleep=True, environment={"CUDA_VISIBLE_DEVICES": "GPU-1"}
    )
    assert from_json(json.loads(json.dumps(evidence.to_json()))) == evidence


@given(st.from_type(Evidence))
def test_whatever_was_found_is_the_same_after_it_was_read(evidence: Evidence) -> None:
    # As text, for what is not a number does not equal itself.
    written = json.dumps(evidence.to_json())
    again = from_json(json.loads(written))
    assert again is not None
    assert json.dumps(again.to_json()) == written


def test_evidence_of_an_older_version_does_not_know_what_came_since() -> None:
    evidence = report().tiers[0].evidence
    document = evidence.to_json()
    del document["booted_at"]
    for device in document["devices"]:
        del device["before_mib"], device["others"]
    assert all(device.before_mib is not None and device.others for device in evidence.devices)
    unknown = tuple(replace(device, before_mib=None, others=()) for device in evidence.devices)
    assert from_json(document) == replace(evidence, booted_at=None, devices=unknown)


@pytest.mark.parametrize("part", ["unit", "devices", "completion"])
def test_a_document_without_what_was_always_there_is_no_evidence(part: str) -> None:
    document = report().tiers[0].evidence.to_json()
    del document[part]
    assert from_json(document) is None


@pytest.mark.parametrize("other", [None, [], "evidence", {"devices": 1}])
def test_what_is_no_evidence_is_none(other: Any) -> None:
    assert from_json(other) is None
