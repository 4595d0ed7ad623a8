"""Reports: what a person sees in a table, piped or narrow, and JSON that says the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from example_report import DECISION, report

from checker import decision, reports
from checker.catalogue import parse_inventory
from inventories import BIG, MIB, MODELS, SMALL

ROOT = Path(__file__).parents[2]


def document(*hosts: dict[str, Any]) -> dict[str, Any]:
    return {"schema": reports.SCHEMA, "hosts": [report(**host).to_json() for host in hosts or [{}]]}


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def test_a_difference_of_next_to_nothing_has_no_minus() -> None:
    almost = document()
    for residual in almost["hosts"][0]["tiers"][0]["evidence"]["residuals"]:
        residual["total_mib"] = -0.03
    table = reports.render(almost, "table")
    assert table.count(" +0\n") == 2
    assert "-0" not in [word for line in table.splitlines() for word in line.split()]


def test_json_is_the_document() -> None:
    assert json.loads(reports.render(document(), "json")) == document()


def test_a_table_tells_verdict_speed_and_memory_of_each_card() -> None:
    lines = reports.render(document(), "table").splitlines()
    rows = [line.split("  ") for line in lines]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0] == ["tower", "driver 580.126.09, CUDA 13.0, measured 2026-11-24T15:00:00Z"]
    assert ["deep", "pass", "tiny", "4096", "61.0", "55.0", "3.1"] in cells
    assert ["deep", "NVIDIA GeForce RTX 3060 Ti", "185", "20", "53", "266", "+20"] in cells
    assert ["deep", "NVIDIA GeForce GTX 1060 3GB", "50", "5", "33", "95", "+7"] in cells


def test_a_quick_verification_shows_the_speed_of_its_completion() -> None:
    quick = document()
    quick["hosts"][0]["tiers"][0]["evidence"]["thorough"] = None
    assert re.search(r"tiny +4096 +61\.2 +- +3\.1", reports.render(quick, "table"))


def test_what_passed_and_should_be_looked_at_is_said() -> None:
    noted = document()
    noted["hosts"][0]["tiers"][0]["notes"] = ["deep: generates 20% of what is expected"]
    for form in ("table", "markdown", "junit"):
        assert "generates 20% of what is expected" in reports.render(noted, form)


def test_a_failed_tier_says_why() -> None:
    table = reports.render(document({"failed": True}), "table")
    assert "FAIL" in table
    said = " ".join(table.split())
    assert all(reason in said for reason in report(failed=True).tiers[0].verdict.reasons)


def test_a_card_that_could_not_be_read_under_load_is_in_every_document() -> None:
    lost = document({"unread": True})
    for form in ("table", "markdown", "junit"):
        said = " ".join(reports.render(lost, form).split())
        assert "while it worked, a card could not be read to the end" in said
        assert f"{SMALL['uuid']}: the GPU is lost" in said
    assert reports.render(lost, "json").count("the GPU is lost") >= 2


def test_what_could_not_be_read_is_a_dash() -> None:
    table = reports.render(document({"unreadable": True}), "table")
    assert "NVML could not be read" in table
    assert "None" not in table


def test_every_host_of_the_run_is_in_the_table() -> None:
    table = reports.render(document({"host": "tower"}, {"host": "workbench", "failed": True}), "table")
    assert [line.split()[0] for line in table.splitlines() if "driver" in line] == ["tower", "workbench"]


@pytest.mark.parametrize("columns", ["1", "80", "100"])
def test_a_piped_table_is_plain_text_of_its_width(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = reports.render(document({"failed": True}), "table")
    assert "\x1b" not in table
    assert all(len(line) <= max(80, int(columns)) for line in table.splitlines())
    assert all(line == line.rstrip() for line in table.splitlines())
    assert "MiB on" in table


ALL = [{}, {"failed": True}, {"unreadable": True}]


@pytest.mark.parametrize("changes", ALL, ids=["pass", "fail", "unreadable"])
@pytest.mark.parametrize("form", reports.FORMATS)
def test_every_format_renders_every_report(form: str, changes: dict[str, Any]) -> None:
    assert "deep" in reports.render(document(changes), form)


def test_the_command_line_offers_every_format() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "checker.cli", "report", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "{" + ",".join(reports.FORMATS) + "}" in help_text


def suites(found: dict[str, Any]) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(reports.render(found, "junit").split("\n", 1)[1]))


def test_junit_has_a_case_for_each_check_and_counts_right() -> None:
    passed, failed = suites(document({"host": "tower"}, {"host": "shed", "failed": True}))
    checks = report().to_json()["tiers"][0]["checks"]
    assert (passed.get("name"), passed.get("tests"), passed.get("failures")) == (
        "tower.deep",
        str(len(checks) + 1),
        "0",
    )
    assert [case.get("name") for case in passed if case.tag == "testcase"] == [
        "measured",
        *(check["name"] for check in checks),
    ]
    wrong = [case.get("name") for case in failed if case.find("failure") is not None]
    assert len(wrong) == int(failed.get("failures") or 0) > 0
    assert "holds nothing on" in str(ElementTree.tostring(failed))


def test_junit_has_an_error_for_what_could_not_be_measured_and_holds_any_answer() -> None:
    unreadable = document({"unreadable": True})
    unreadable["hosts"][0]["tiers"][0]["checks"][-1]["measured"] = "'\x00\x1b<&'"
    (suite,) = suites(unreadable)
    assert suite.get("errors") == "1"
    error = suite[0].find("error")
    assert error is not None and error.get("message") == "NVML could not be opened"


def metrics(found: dict[str, Any]) -> dict[str, float]:
    lines = [line for line in reports.render(found, "prometheus").splitlines() if not line.startswith("#")]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def test_metrics_tell_what_is_up_where_and_how_fast() -> None:
    told = metrics(document())
    deep = 'host="tower",tier="deep"'
    card = deep + ',uuid="GPU-{}",gpu="NVIDIA GeForce RTX 3060 Ti"'.format(
        report().tiers[0].evidence.devices[0].uuid.removeprefix("GPU-")
    )
    assert told[f"llama_tiers_tier_up{{{deep}}}"] == told[f"llama_tiers_tier_verified{{{deep}}}"] == 1
    assert told[f"llama_tiers_card_measured_mib{{{card}}}"] == 266
    assert told[f"llama_tiers_card_planned_mib{{{card}}}"] == 246.43
    assert told[f'llama_tiers_generation_tokens_per_second{{{deep},filled="full"}}'] == 55
    assert told['llama_tiers_last_verification_timestamp_seconds{host="tower"}'] == 1795532400
    info = next(name for name in told if name.startswith("llama_tiers_tier_info"))
    assert 'tensor_split="13,6"' in info and 'model="tiny"' in info


def test_metrics_of_a_tier_that_is_down_say_so_and_leave_out_what_is_not_known() -> None:
    told = metrics(document({"unreadable": True}))
    assert told['llama_tiers_tier_up{host="tower",tier="deep"}'] == 0
    assert not [name for name in told if "mib" in name or "load" in name or "per_second" in name]


def test_metrics_of_a_tier_that_sleeps_tell_whether_it_could_be_loaded() -> None:
    up = 'llama_tiers_tier_up{host="tower",tier="deep"}'
    asleep = document()
    evidence = asleep["hosts"][0]["tiers"][0]["evidence"]
    evidence["asleep"] = True
    assert metrics(asleep)[up] == 1
    evidence["problems"] = ["GPU-1: the GPU is lost"]
    assert metrics(asleep)[up] == 0


def test_metrics_need_nothing_that_a_host_lacks_and_hold_any_name() -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('rich', 'jinja2', 'yaml', 'pydantic')));"
        "from checker import reports; print(reports.render({'hosts': []}, 'prometheus'))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    odd = document({"host": 'a "tower"\\n'})
    assert 'host="a \\"tower\\"\\\\n"' in reports.render(odd, "prometheus")


def test_status_tells_everything_that_was_measured() -> None:
    status = reports.render(document(), "markdown")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in status.splitlines() if line[:1] == "|"]
    told = {cell for row in rows for cell in row}
    assert {"61.0 (60.0 to 62.0)", "55.0 (54.0 to 56.0)", "400.0 (399.0 to 401.0)", "0.60"} <= told
    assert {"246.4", "266.0", "+19.6", "88.3", "95.0", "+6.7"} <= told
    assert {"0.000002", "100.00", "1024"} <= told
    assert "ab" * 32 in told
    assert "3.1 s (process 0.3, weights 2.1, warm-up 0.3, proof 0.4; page cache warm)" in told
    assert "| - " not in status.split("### Speed")[1].split("### Cards")[0]


def test_status_tells_what_was_on_a_card_before_a_tier_and_what_is_there_beside_it() -> None:
    big, small, host = rows(reports.render(document(), "markdown"), "Memory of each tier, MiB")
    assert big[6:] == ["292.0", "246.4", "266.0", "+19.6", "292.0"]
    assert small[6:] == ["72.0", "88.3", "95.0", "+6.7", "122.0"]
    assert host[6:] == ["-"] * 5


def test_a_card_that_was_read_only_while_it_worked_has_its_peak_in_every_document() -> None:
    later = document()
    for device in later["hosts"][0]["tiers"][0]["evidence"]["devices"]:
        device["process_mib"] = None
    assert re.search(r"\| +246\.4 \| +266\.0 \| +\+19\.6 \|", reports.render(later, "markdown"))
    assert 266 in metrics(later).values()


def test_a_difference_of_nothing_has_no_sign_of_less_in_the_status() -> None:
    exact = document()
    for card in exact["hosts"][0]["tiers"][0]["evidence"]["residuals"]:
        card["total_mib"] = -0.04
    status = reports.render(exact, "markdown")
    assert "-0.0" not in status
    assert "+0.0" in status


def test_status_of_evidence_that_an_older_version_wrote() -> None:
    older = document()
    tier = older["hosts"][0]["tiers"][0]
    del tier["notes"]
    for key in ("decision", "checklist"):
        del older["hosts"][0][key]
    for key in ("thorough", "quality", "residuals", "load"):
        del tier["evidence"][key]
    for device in tier["evidence"]["devices"]:
        del device["before_mib"], device["others"]
    for form in ("markdown", "table"):
        assert "61.2" in reports.render(older, form), form
    for form in ("junit", "prometheus"):
        assert "deep" in reports.render(older, form), form


def rows(status: str, section: str) -> list[list[str]]:
    """Return the cells of the table below a heading of STATUS.md, without its head."""
    below = status.split(f"### {section}\n")[1].split("\n###")[0]
    table = [line for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_status_states_the_decision_with_its_evidence() -> None:
    status = reports.render(document({"decision": DECISION}), "markdown")
    assert "Policy multi-gpu; acceptable are 10.0 tokens/s." in status
    because = "first of 2 that reach what is asked for, by quality"
    lay = f"13,6 on {BIG['name']} + {SMALL['name']}"
    assert rows(status, "Decision") == [["deep", "tiny", lay, "61.2", "3.1", "2026-11-23", "e" * 12, because]]
    undecided = reports.render(document(), "markdown")
    assert "### Decision" not in undecided


def test_status_has_a_box_for_each_thing_to_be_seen() -> None:
    status = reports.render(document({"decision": DECISION}), "markdown")
    below = status.split("### Checklist\n")[1].split("\n###")[0]
    boxes = [line for line in below.splitlines() if line]
    found = report(decision=DECISION).checklist
    assert boxes == [f"- [{'x' if box.ticked else ' '}] {box.name}: {box.reason}" for box in found]
    assert {line[:5] for line in boxes} == {"- [x]", "- [ ]"}


def test_every_host_has_its_own_decision_and_checklist_in_the_status() -> None:
    status = reports.render(
        document({"host": "tower", "decision": DECISION}, {"host": "shed", "failed": True}), "markdown"
    )
    tower, shed = status.split("## shed: FAIL")
    assert ("### Decision" in tower, "### Decision" in shed) == (True, False)
    assert "no decision: `checker trial`, then `checker decide`" in shed
    assert "no decision" not in tower


def entry(mib: int = 10, **figures: float) -> dict[str, Any]:
    """Return what the catalogue says of a model of this size, of which these figures were published."""
    tiny = MODELS["tiny"]
    # The rest is 10 MiB of layers and 5 MiB of output.
    sized = {**tiny, "header": {**tiny["header"], "layer_bytes": [mib * MIB // 4] * 4}}
    return {**sized, "published": {**figures, "model": "one", "source": "https://example.org/"}} if figures else sized


CATALOGUE = {
    "best": entry(math_500=93.9, aime_2024=69.7),
    "equal but for AIME": entry(math_500=93.9, aime_2024=55.5),
    "and never asked that": entry(math_500=93.9),
    "good": entry(math=75.5),
    "as good": entry(math_500=75.5),
    "good, larger": entry(11, math=75.5),
    "silent": entry(),
}


def client_config(*models: str, catalogue: dict[str, Any]) -> dict[str, Any]:
    """Have Ansible render what clients are told of a host whose tiers serve these models."""
    found = report(host="tower").to_json()
    (tier,) = found["tiers"]
    found["tiers"] = [
        {**tier, "name": f"tier{place}", "evidence": {**tier["evidence"], "model": {"name": model, "sha256": "0" * 64}}}
        for place, model in enumerate(models)
    ]
    ranks = decision.quality_ranks(models, parse_inventory([], [], catalogue)[2])
    given = {"inventory_hostname": "tower", "ansible_facts": {"llama_tiers": found}, "quality_ranks": ranks}
    template = trust_as_template((ROOT / "templates/client-config.yml.j2").read_text())
    config: dict[str, Any] = yaml.safe_load(Templar(DataLoader(), given).template(template))
    return config


def test_clients_are_told_where_what_and_how_good() -> None:
    config = client_config("good", "silent", "best", "as good", "not in the catalogue", catalogue=CATALOGUE)
    assert (config["host"], config["verified_at"]) == ("tower", report().recorded_at)
    tiers = config["tiers"]
    assert [(tier["model"], tier["quality_rank"]) for tier in tiers] == [
        ("good", 2),
        ("silent", None),
        ("best", 1),
        ("as good", 2),
        ("not in the catalogue", None),
    ]
    told = {key: tiers[0][key] for key in ("tier", "base_url", "context", "loaded", "verdict")}
    assert told == {
        "tier": "tier0",
        "base_url": "http://127.0.0.1:9/v1",
        "context": 4096,
        "loaded": "always",
        "verdict": "pass",
    }
    assert [tier["quality_rank"] for tier in client_config("best", catalogue={})["tiers"]] == [None]


def test_clients_are_told_of_quality_what_a_decision_goes_by() -> None:
    """Of equals in MATH the one that solves more of AIME, then the larger one; a model on two tiers counts twice."""
    served = ("good", "good, larger", "and never asked that", "equal but for AIME", "best", "good, larger")
    told = client_config(*served, catalogue=CATALOGUE)["tiers"]
    assert [tier["quality_rank"] for tier in told] == [6, 4, 3, 2, 1, 4]
