"""The published schemas: what we write fits them, and what is not ours does not."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/unit"))

import decision_cases  # noqa: E402
from example_report import DECISION, report  # noqa: E402

from checker import decision, plan_document, planning, reports, site_plan, tier, trial  # noqa: E402
from checker.evidence import EVIDENCE_SCHEMA, REPORT_SCHEMA  # noqa: E402
from inventories import BIG, SMALL, inventory  # noqa: E402

RELEASES = {"new": "/opt/llama-tiers/releases/r", "old": "/opt/llama-tiers/releases/o"}
PLACES = site_plan.Places(releases=RELEASES, models="/m", keys="/k")
ENDPOINTS = [BIG | {"rpc_endpoint": "127.0.0.1:50052"}, SMALL | {"rpc_endpoint": "127.0.0.1:50053"}]

Document = dict[str, Any]

# So that one schema can refer to another by its file's name.
EVERY = referencing.Registry().with_resources(
    (path.name, referencing.Resource.from_contents(json.loads(path.read_text(encoding="utf-8"))))
    for path in (ROOT / "docs/schemas").glob("*.json")
)


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((ROOT / f"docs/schemas/{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, registry=EVERY)


def verification(**changes: Any) -> Document:
    return {"schema": reports.SCHEMA, "hosts": [report(**changes).to_json()]}


def test_a_report_of_a_tier_with_tls_fits_its_schema() -> None:
    api = {"bind": "::1", "tls": {"port": 8443, "certificate": "/c.pem", "key": "/k.pem"}}
    tiers = [one | {"api": api} for one in inventory()["tiers"][:1]]
    (spec,) = site_plan.for_site(**inventory(tiers=tiers), places=PLACES)[0]
    validator("tier").validate(spec.to_json())
    document = verification()
    document["hosts"][0]["tiers"][0]["evidence"] |= {"base_url": spec.base_url}
    assert spec.base_url == "https://[::1]:8443"
    validator("verification").validate(document)


@pytest.mark.parametrize("changes", [{}, {"gpus": ENDPOINTS, "backend": "cpu"}], ids=["cuda", "rpc"])
def test_a_planned_tier_fits_its_schema(changes: Document) -> None:
    planned = site_plan.for_site(**inventory(**changes), places=PLACES)[0]
    assert planned
    for spec in planned:
        validator("tier").validate(spec.to_json())
        assert tier.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "hardware", [{}, {"gpus": [{"uuid": BIG["uuid"], "total_mib": 300}]}], ids=["fits", "does not"]
)
def test_a_plan_fits_its_schema(hardware: Document) -> None:
    given = inventory()
    subject = planning.Subject(
        "tower", {"gpus": given["gpus"], "tiers": given["tiers"], "llama_cpp_engine": "new"}, hardware
    )
    document = planning.make(subject, planning.Wishes(), given["models"], given["engines"])
    validator("plan").validate(document)
    assert {tier["verdict"] for tier in document["tiers"]} == {"does-not-fit" if hardware else "fits"}
    assert validator("plan").schema["properties"]["schema"]["const"] == plan_document.SCHEMA


@pytest.mark.parametrize("total_mib", [3072, 160], ids=["fits", "does not"])
def test_a_screening_fits_its_schema(total_mib: int) -> None:
    given = inventory()
    subject = planning.Subject("tower", {**given, "llama_cpp_engine": "new"}, {})
    subject.variables["gpus"][1] |= {"total_mib": total_mib}
    document = planning.screen(subject, "deep", given["models"], given["engines"])
    validator("screening").validate(document)
    verdicts = [each["verdict"] for each in document["tiers"][0]["candidates"]]
    assert verdicts == ["fits" if total_mib > 1000 else "does-not-fit"]
    assert validator("screening").schema["properties"]["schema"]["const"] == planning.SCREENING_SCHEMA


@pytest.mark.parametrize("decided", [True, False])
def test_a_decision_fits_its_schema(decided: bool) -> None:
    contenders = [decision_cases.contender("untried", None, "it was not tried yet")]
    contenders += [decision_cases.contender("good")] if decided else []
    made = decision.decide("tower", {"deep": contenders, "fast": []}, decision_cases.policies(), "strict", 10)
    validator("decision").validate(decision.explanation(made))
    file = decision.to_json(made)
    assert (file is not None) == decided
    if file:
        own = {"$ref": "decision.schema.json#/$defs/decision"}
        jsonschema.Draft202012Validator(own, registry=EVERY).validate(file)
        assert decision.parse(file, "tower", ["deep", "fast"])
    schema = validator("decision").schema
    assert schema["properties"]["schema"]["const"] == decision.EXPLANATION_SCHEMA
    assert schema["$defs"]["decision"]["properties"]["schema"]["const"] == decision.SCHEMA


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outcome": trial.FAILED, "reason": "it hung", "evidence": None},
        {"outcome": trial.INFEASIBLE, "reason": "has no room", "spec": None, "evidence": None},
    ],
    ids=["measured", "failed", "infeasible"],
)
def test_a_trial_fits_its_schema(changes: Document) -> None:
    record = decision_cases.measured({"tensor_split": [3, 2]}, **changes).to_json()
    validator("trial").validate(record)
    assert not validator("trial").is_valid({**record, "evidence": {}})
    assert validator("trial").schema["properties"]["schema"]["const"] == trial.SCHEMA


def test_a_trial_that_was_written_before_fits_its_schema() -> None:
    record = decision_cases.measured({"tensor_split": [3, 2]}).to_json()
    del record["limits"], record["spec"]["decided"]
    validator("trial").validate(record)
    assert trial.from_json(record).spec


REPORTS: list[Document] = [{}, {"failed": True}, {"unreadable": True}, {"unread": True}, {"decision": DECISION}]


@pytest.mark.parametrize("changes", REPORTS, ids=["pass", "fail", "unreadable", "unread", "decided"])
def test_a_report_fits_its_schema(changes: Document) -> None:
    validator("verification").validate(verification(**changes))


# What documents of the same schema did not tell at first: a report of a device, and of a tier; a trial its limits; a
# spec by which evidence it was decided.
LATER = {"before_mib", "others"}
LATER_OF_A_TIER = {"rival_states"}


def test_a_report_that_was_written_before_fits_its_schema() -> None:
    document = verification()
    for tier_report in document["hosts"][0]["tiers"]:
        for key in LATER_OF_A_TIER:
            del tier_report["evidence"][key]
        for device in tier_report["evidence"]["devices"]:
            for key in LATER:
                del device[key]
    validator("verification").validate(document)


def test_the_schemas_name_the_documents_that_the_code_writes() -> None:
    definitions = validator("verification").schema["$defs"]
    assert definitions["report"]["properties"]["schema"]["const"] == REPORT_SCHEMA
    assert definitions["evidence"]["properties"]["schema"]["const"] == EVIDENCE_SCHEMA
    assert validator("tier").schema["properties"]["schema"]["const"] == tier.SCHEMA


def releases(value: Any) -> list[Document]:
    """Return every release document that lies anywhere in a JSON value."""
    if isinstance(value, list):
        return [found for part in value for found in releases(part)]
    if not isinstance(value, dict):
        return []
    below = [found for part in value.values() for found in releases(part)]
    return [value] if str(value.get("schema")).startswith("llama-tiers/release/") else below


RELEASES_IN_EVIDENCE = [
    pytest.param(found, id=str(path.relative_to(ROOT / "docs/evidence")))
    for path in sorted((ROOT / "docs/evidence").rglob("*.json"))
    for found in releases(json.loads(path.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("document", RELEASES_IN_EVIDENCE)
def test_a_release_of_the_evidence_fits_its_schema(document: Document) -> None:
    validator("release").validate(document)


def test_there_is_evidence_of_releases_and_the_role_writes_what_the_schema_names() -> None:
    assert RELEASES_IN_EVIDENCE
    tasks = yaml.safe_load((ROOT / "roles/llama_cpp/tasks/publish.yml").read_text(encoding="utf-8"))
    (written,) = [
        task["vars"]["_llama_cpp_description"] for task in tasks if "_llama_cpp_description" in task.get("vars", {})
    ]
    assert list(written) == validator("release").schema["required"]
    assert written["schema"] == validator("release").schema["properties"]["schema"]["const"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"commit": "0c1e57098"},
        {"cubins": {"61": 1}},
        {"cubins": {"sm_120f": 1}},
        {"sha256": {}},
        {"jobs": 0},
        {"toolkit": "12.4"},
        {"mood": "good"},
    ],
)
def test_a_wrong_release_is_refused(wrong: Document) -> None:
    (document, *_) = (case.values[0] for case in RELEASES_IN_EVIDENCE)
    assert not validator("release").is_valid(document | wrong)


def objects(schema: Any) -> list[Document]:
    """Return every object with named properties that a schema holds."""
    below = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else []
    own = [schema] if isinstance(schema, dict) and isinstance(schema.get("properties"), dict) else []
    return own + [found for part in below for found in objects(part)]


@pytest.mark.parametrize("name", ["decision", "plan", "release", "screening", "tier", "trial", "verification"])
def test_schemas_are_strict_and_described(name: str) -> None:
    found = objects(validator(name).schema)
    assert found
    for schema in found:
        assert schema["additionalProperties"] is False
        assert set(schema["properties"]) - set(schema["required"]) in (
            set(),
            LATER,
            LATER_OF_A_TIER,
            {"limits"},
            {"decided", "load_mode", "tls"},
            {"tls"},
        )
        assert schema["required"] == [key for key in schema["properties"] if key in schema["required"]]
        for key, value in schema["properties"].items():
            assert "const" in value or value["description"], key


def _unknown(document: Document) -> None:
    document["hosts"][0]["mood"] = "good"


def _no_evidence(document: Document) -> None:
    del document["hosts"][0]["tiers"][0]["evidence"]


def _verdict(document: Document) -> None:
    document["hosts"][0]["tiers"][0]["verdict"] = "perhaps"


def _negative(document: Document) -> None:
    document["hosts"][0]["tiers"][0]["evidence"]["devices"][0]["process_mib"] = -1


def _local_time(document: Document) -> None:
    document["hosts"][0]["recorded_at"] = "2026-11-24 15:00"


def _other(document: Document) -> None:
    document["schema"] = "llama-tiers/verification/2"


@pytest.mark.parametrize("spoil", [_unknown, _no_evidence, _verdict, _negative, _local_time, _other])
def test_a_wrong_verification_is_refused(spoil: Callable[[Document], None]) -> None:
    document = copy.deepcopy(verification())
    spoil(document)
    assert not validator("verification").is_valid(document)


@pytest.mark.parametrize(
    "wrong", [{"port": 0}, {"devices": []}, {"argv": "llama-server"}, {"api_key": "secret"}, {"key_file": "key"}]
)
def test_a_wrong_tier_spec_is_refused(wrong: Document) -> None:
    document = site_plan.for_site(**inventory(), places=PLACES)[0][0].to_json()
    assert not validator("tier").is_valid(document | wrong)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/evidence/gpu").glob("*/verify.json")), ids=lambda path: path.parent.name
)
def test_a_verification_on_real_cards_fits_and_tells_the_quality_of_every_split(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))["report"]
    validator("verification").validate(found)
    for measured in (each["evidence"] for host in found["hosts"] for each in host["tiers"]):
        assert (measured["quality"] is not None) == (len(measured["placement"]["tensor_split"]) > 1)
