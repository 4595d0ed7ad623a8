"""tier_verification: what it keeps on the host and what it forgives, with tiers that are measured elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import example_report
import pytest
from modules import run_here

from checker import acceptance, proven, tier, verification
from checker.accepted import Refused, Speeds
from checker.evidence import Report
from checker.measure import Depth


class Host:
    """A host whose tier generates at a speed that a test sets; `asked` is with what the tiers were measured."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.found = example_report.report()
        self.asked: list[dict[str, Any]] = []

    def report(
        self,
        specs: Any,
        host: str,
        earlier: Any,
        depth: Depth,
        accepted: Any,
        quality: Any,
        decision: Any,
        *,
        wake: bool,
    ) -> Report:
        asked = {"earlier": earlier, "depth": depth, "accepted": accepted, "decision": decision, "wake": wake}
        self.asked.append(asked)
        return self.found

    def verify(self, *, check: bool = False, **changes: Any) -> dict[str, Any]:
        params = {
            "host": "tower",
            "evidence_directory": str(self.directory / "evidence"),
            "keep": 3,
            "depth": "auto",
            "quality": False,
            "accepted": str(self.directory / "accepted.json"),
            "accept_slower": False,
            "decision": {"policy": "multi-gpu"},
            "roll_back": False,
            "metrics": "",
            "fact": str(self.directory / "llama_tiers.fact"),
            **changes,
        }
        return run_here("tier_verification", params, check=check)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    played = Host(tmp_path)
    monkeypatch.setattr(tier, "load_all", lambda: (example_report.PLANNED,))
    # The tier has no files on this machine that could be kept.
    monkeypatch.setattr(tier, "load", lambda name: example_report.PLANNED)
    monkeypatch.setattr(proven, "is_remembered", lambda spec: False)
    monkeypatch.setattr(verification, "report", played.report)
    return played


def test_what_was_verified_is_news_once_and_what_failed_is_none(host: Host) -> None:
    assert [host.verify()["changed"], host.verify()["changed"]] == [True, False]
    assert [each["wake"] for each in host.asked] == [True, True]
    verified = (host.directory / "llama_tiers.fact").read_text()
    host.found = example_report.report(failed=True)
    failed = host.verify()
    assert (failed["changed"], failed["ansible_facts"]["llama_tiers"]["passed"]) == (False, False)
    assert (host.directory / "llama_tiers.fact").read_text() == verified, "it tells what was verified last"


def test_the_report_is_told_of_the_decision(host: Host) -> None:
    host.verify()
    assert host.asked[0]["decision"] == {"policy": "multi-gpu"}


def test_check_mode_is_quick_and_leaves_nothing(host: Host) -> None:
    assert host.verify(check=True, depth="whole", quality=True, metrics=str(host.directory / "x.prom"))["changed"]
    assert host.asked[0]["depth"] is Depth.QUICK
    assert not host.asked[0]["wake"], "to load a tier stops others"
    assert list(host.directory.iterdir()) == []


def test_what_was_accepted_is_held_against_the_next_unless_slower_ones_are_allowed(host: Host) -> None:
    host.verify()
    host.verify()
    host.verify(accept_slower=True)
    given = [[entry.tokens_per_second for entry in each["accepted"].values()] for each in host.asked]
    assert given == [[], [61.0], []]
    assert "61.0" in (host.directory / "accepted.json").read_text(), "allowing forgets nothing"


def test_what_is_too_slow_gives_way_only_where_that_is_asked_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    served = replace(example_report.report(), recorded_at="2026-11-24T15:01:00Z", passed=False)
    asked: list[Report] = []

    def roll_back(
        found: Report, speeds: Speeds, earlier: Sequence[Any], *, accept_slower: bool
    ) -> tuple[Report, Speeds]:
        assert not accept_slower
        asked.append(found)
        assert [each["tier"] for each in earlier] == ["deep"], "what was measured just now, too"
        return served, Speeds(refused={"deep": (Refused(40.0, "2026-11-24T15:00:00Z", {}, "slow"),)})

    monkeypatch.setattr(acceptance, "roll_back", roll_back)
    host.verify(check=True, roll_back=True)
    assert asked == []
    said = host.verify(roll_back=True)
    assert asked == [host.found]
    assert said["changed"]
    assert said["ansible_facts"]["llama_tiers"] == served.to_json()
    assert len(list((host.directory / "evidence").iterdir())) == 2, "what was too slow, and what serves"
    assert "40.0" in (host.directory / "accepted.json").read_text()
    assert not (host.directory / "llama_tiers.fact").exists()
    host.verify()
    assert len(asked) == 1
    assert "40.0" in (host.directory / "accepted.json").read_text(), "it is not forgotten"


def test_the_last_reports_are_kept_newest_first(host: Host) -> None:
    for minute in range(5):
        host.found = replace(host.found, recorded_at=f"2026-11-24T15:0{minute}:00Z")
        host.verify()
    kept = sorted(path.name for path in (host.directory / "evidence").iterdir())
    assert kept == [f"2026-11-24T150{minute}00Z.json" for minute in (2, 3, 4)]
    assert len(host.asked[4]["earlier"]) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"tiers": 5}', '{"tiers": [5]}', '{"tiers": [{}]}'])
def test_a_report_that_is_damaged_tells_nothing(host: Host, text: str) -> None:
    (host.directory / "evidence").mkdir()
    (host.directory / "evidence/2026-01-01T000000Z.json").write_text(text)
    assert host.verify()["ansible_facts"]["llama_tiers"]["passed"]
    assert host.asked[0]["earlier"] == []


@pytest.mark.parametrize("text", ["", "{", '{"schema": "llama-tiers/accepted/1"}'])
def test_a_gate_is_not_forgotten_because_its_file_is_damaged(host: Host, text: str) -> None:
    (host.directory / "accepted.json").write_text(text)
    said = host.verify()
    assert said["failed"]
    assert "accepted.json is damaged" in said["msg"]
    assert host.asked == []
    assert (host.directory / "accepted.json").read_text() == text
