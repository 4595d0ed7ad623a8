"""What is accepted, what gives way for being slower, and what is not tried again, on a host whose systemd is played."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from example_report import CARDS, PLANNED, report, speed
from test_activation import BROKEN, ROOM, Played, have_releases, played, unit_files

from checker import acceptance, accepted, activation, hardware, proven, releases, tier, verification
from checker.accepted import Speeds
from checker.evidence import Evidence, FrontEvidence, Report, TlsEvidence
from checker.measure import Depth

NAMES = ("deep", "fast")


@dataclass
class Site:
    """A host of tiers `deep` and `fast`, and what is kept of their speeds.

    `tokens_per_second` is by tier, and by tier, release and split where that is another one.
    """

    host: Played
    speeds: Speeds = field(default_factory=Speeds)
    tokens_per_second: dict[Any, float] = field(default_factory=lambda: {"deep": 61.0, "fast": 61.0})
    driver: str = "580.126.09"
    certificate: TlsEvidence = field(default_factory=lambda: TlsEvidence("2026-12-24T15:00:00Z", 30.0))

    def plan(self, name: str, release: str = "old", split: tuple[int, int] = (13, 6), **changes: Any) -> tier.TierSpec:
        path = str(self.host.root / "releases" / release)
        return replace(
            PLANNED,
            name=name,
            port={"deep": 8081, "fast": 8080}[name],
            key_file=str(self.host.root / f"{name}.key"),
            engine=replace(PLANNED.engine, release=path),
            placement=replace(PLANNED.placement, tensor_split=split),
            argv=(f"{path}/bin/llama-server", "--tensor-split", str(split)),
            **changes,
        )

    def activate(self, *specs: tier.TierSpec) -> None:
        """Lay out the files of these tiers, and activate them."""
        for spec in specs:
            for file, text in unit_files(spec, "one").items():
                (self.host.units / file).write_text(text)
            (self.host.root / "tiers" / f"{spec.name}.json").write_text(json.dumps(spec.to_json()))
            Path(spec.key_file).write_text("key")
        activation.activate(NAMES, ROOM, lambda line: None)

    def measure(self, spec: tier.TierSpec, earlier: object, depth: Depth, quality: object) -> Evidence:
        """Play the measurement of what serves."""
        serving = tier.from_json(json.loads(self.host.serving[spec.name]["spec"]))
        evidence = report().tiers[0].evidence
        assert evidence.thorough
        kind = (spec.name, Path(serving.engine.release).name, serving.placement.tensor_split)
        measured = speed(512, 400.0, self.tokens_per_second.get(kind, self.tokens_per_second[spec.name]))
        return replace(
            evidence,
            tier=spec.name,
            engine=replace(evidence.engine, release=serving.engine.release),
            placement=serving.placement,
            argv=serving.argv,
            front=FrontEvidence("active", tls=self.certificate if serving.tls else None),
            thorough=None if depth is Depth.QUICK else replace(evidence.thorough, short=measured),
        )

    def verified(self, depth: Depth = Depth.WHOLE, gate: Mapping[str, Any] | None = None) -> Report:
        return verification.report(
            tier.load_all(), "tower", [], depth, self.speeds.accepted if gate is None else gate, {}, None
        )

    def verify(self, *, accept_slower: bool = False, **how: Any) -> Report:
        """Verify, and do what follows from it, as site.yml does; the speeds go through their file."""
        found = self.verified(**how)
        back = acceptance.roll_back(found, self.speeds, [], accept_slower=accept_slower)
        found, speeds = back or (found, acceptance.accept(found, self.speeds))
        path = self.host.root / "accepted.json"
        path.write_text(json.dumps(accepted.to_json(speeds)))
        self.speeds = acceptance.read(path)
        return found

    def serves(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return the release and the split with which a tier serves, which have to be those of its files."""
        assert self.host.serving[name] == self.host.files(name)
        spec = tier.load(name)
        return Path(spec.engine.release).name, spec.placement.tensor_split


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Serve both tiers on release `old`, accepted at 61 tokens/s."""
    site = Site(played(tmp_path, monkeypatch))
    monkeypatch.setattr(tier, "load_all", lambda: tuple(map(tier.load, NAMES)))
    monkeypatch.setattr(verification, "measure", site.measure)
    monkeypatch.setattr(hardware, "read_driver", lambda: hardware.Driver(site.driver, "13.0"))
    monkeypatch.setattr(hardware, "read_gpus", lambda: CARDS)
    have_releases(site.host, "old")
    site.activate(site.plan("deep"), site.plan("fast"))
    assert site.verify().passed
    site.host.starts.clear()
    return site


def reasons(found: Report, name: str) -> tuple[str, ...]:
    return next(each.verdict.reasons for each in found.tiers if each.name == name)


def test_a_certificate_that_is_not_served_is_no_reason_to_go_back(site: Site) -> None:
    over_tls = tier.Tls("10.0.0.1", 8443, ("10.0.0.0/8",), "/c.pem", "/k.pem")
    site.activate(site.plan("deep", split=(10, 9), tls=over_tls))
    site.certificate = TlsEvidence(fault="other", said="self-signed certificate")

    found = site.verify()

    assert [each.verdict.verdict for each in found.tiers] == ["fail", "pass"]
    assert site.serves("deep") == ("old", (10, 9))
    site.tokens_per_second["deep", "old", (10, 9)] = 40.0
    reason = reasons(site.verify(), "deep")[-1]
    assert "rolled back: " in reason, "slow it is all the same"
    assert reason.endswith("serves again; its TLS does not go back: it is as the inventory has it now")


def test_a_placement_that_is_only_slower_gives_way_and_the_reason_says_to_what(site: Site) -> None:
    site.tokens_per_second["deep", "old", (10, 9)] = 40.0
    site.activate(site.plan("deep", split=(10, 9)))
    assert site.serves("deep") == ("old", (10, 9))
    site.host.starts.clear()

    found = site.verify()

    assert not found.passed
    assert [each.verdict.verdict for each in found.tiers] == ["fail", "pass"]
    (reason,) = reasons(found, "deep")
    for said in (
        "deep: generates 40.0 tokens/s, 61.0 were accepted on ",
        "split [13, 6]",
        "accept this with `-e verification_accept_slower=true`",
        "; rolled back: tiny with split 13,6 on release old serves again",
    ):
        assert said in reason
    assert reasons(found, "fast") == ()
    assert site.serves("deep") == ("old", (13, 6))
    assert site.host.starts == ["deep"], "fast was not touched"
    assert [each.evidence.placement.tensor_split for each in found.tiers] == [(13, 6), (13, 6)], "of what serves now"
    failed = [check.name for check in found.tiers[0].verdict.checks if not check.passed]
    assert failed == ["no slower than before"]
    assert activation.activate(NAMES, ROOM, lambda line: None) == activation.Outcome((), ())
    assert site.verify().passed


def test_a_release_is_taken_from_all_tiers_and_is_not_the_current_one(site: Site) -> None:
    have_releases(site.host, "old", "new")
    site.tokens_per_second["deep", "new", (13, 6)] = 40.0
    site.tokens_per_second["fast", "new", (13, 6)] = 90.0
    site.activate(site.plan("deep", "new"), site.plan("fast", "new"))

    found = site.verify()

    assert "on release old serves again; fast went back too" in reasons(found, "deep")[0]
    assert [site.serves(name) for name in NAMES] == [("old", (13, 6))] * 2
    assert releases.linked() == ("old",)
    assert [entry.tokens_per_second for entry in site.speeds.accepted.values()] == [61.0, 61.0], (
        "nor is fast's new speed"
    )
    assert site.verify().passed


def test_what_was_rolled_back_is_refused_until_something_changes(site: Site) -> None:
    slow, good = site.plan("deep", split=(10, 9)), site.plan("deep")
    site.tokens_per_second["deep", "old", (10, 9)] = 40.0
    assert acceptance.refusals([slow], site.speeds) == ()
    site.activate(slow)
    site.verify()

    (said,) = acceptance.refusals([slow, good, site.plan("fast", split=(10, 9))], site.speeds)
    for part in ("deep: was rolled back on ", "split [10, 9]", "40.0 tokens/s, 61.0 were accepted", "split [13, 6]"):
        assert part in said
    assert "`-e verification_accept_slower=true`" in said
    assert "`-e llama_tiers_retry=true`" in said
    assert acceptance.refusals([site.plan("deep", split=(9, 10))], site.speeds) == ()
    assert acceptance.refusals([site.plan("deep", "new", split=(10, 9))], site.speeds) == ()
    assert acceptance.refusals([replace(slow, environment={"X": "1"})], site.speeds) == ()
    site.driver = "590.1"
    assert acceptance.refusals([slow], site.speeds) == (), "another driver may be faster"


def test_what_is_tried_again_is_judged_anew(site: Site) -> None:
    slow = site.plan("deep", split=(10, 9))
    site.tokens_per_second["deep", "old", (10, 9)] = 40.0
    site.activate(slow)
    site.verify()
    site.tokens_per_second["deep", "old", (10, 9)] = 45.0
    site.activate(slow)
    site.verify()
    assert site.serves("deep") == ("old", (13, 6))
    (entries,) = site.speeds.refused.values()
    assert [entry.tokens_per_second for entry in entries] == [45.0], "the last measurement counts"
    site.tokens_per_second["deep", "old", (10, 9)] = 60.0
    site.activate(slow)
    assert site.verify().passed
    assert site.serves("deep") == ("old", (10, 9))
    assert site.speeds.refused == {}


def test_what_is_slower_for_a_moment_is_measured_again_before_anything_moves(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else kept the host busy during the first measurement."""
    site.activate(site.plan("deep", split=(10, 9)))
    speeds = iter((40.0, 60.0))

    def busy_at_first(spec: tier.TierSpec, *given: Any) -> Evidence:
        if spec.name == "deep":
            site.tokens_per_second["deep", "old", (10, 9)] = next(speeds)
        return site.measure(spec, *given)

    monkeypatch.setattr(verification, "measure", busy_at_first)
    assert site.verify().passed
    assert site.serves("deep") == ("old", (10, 9))
    assert sorted(entry.tokens_per_second for entry in site.speeds.accepted.values()) == [60.0, 61.0]


def test_what_is_accepted_although_it_is_slower_stays_and_is_refused_no_longer(site: Site) -> None:
    slow = site.plan("deep", split=(10, 9))
    site.tokens_per_second["deep", "old", (10, 9)] = 40.0
    site.activate(slow)
    site.verify()
    site.activate(slow)
    assert site.verify(gate={}).passed
    assert site.serves("deep") == ("old", (10, 9))
    assert site.speeds.refused == {}
    assert sorted(entry.tokens_per_second for entry in site.speeds.accepted.values()) == [40.0, 61.0]
    site.tokens_per_second["deep", "old", (9, 10)] = 30.0
    site.activate(site.plan("deep", split=(9, 10)))
    assert "with split 10,9 on release old serves again" in reasons(site.verify(), "deep")[0]


def test_what_is_no_slower_than_what_was_accepted_since_is_not_refused(site: Site) -> None:
    site.tokens_per_second["deep", "old", (10, 9)] = 40.0
    site.activate(site.plan("deep", split=(10, 9)))
    site.verify()
    site.tokens_per_second["deep", "old", (9, 10)] = 41.0
    site.activate(site.plan("deep", split=(9, 10)))
    assert site.verify(gate={}).passed
    assert acceptance.refusals([site.plan("deep", split=(10, 9))], site.speeds) == ()


def test_after_runs_that_were_cut_off_what_was_accepted_serves_again(site: Site) -> None:
    site.tokens_per_second["deep", "old", (9, 10)] = 40.0
    site.activate(site.plan("deep", split=(10, 9)))
    site.activate(site.plan("deep", split=(9, 10)))
    site.verify()
    assert site.serves("deep") == ("old", (13, 6)), "nobody has verified 10,9"


def test_a_quick_verification_accepts_nothing(site: Site) -> None:
    site.activate(site.plan("deep", split=(10, 9)))
    assert site.verify(depth=Depth.QUICK).passed
    site.tokens_per_second["deep", "old", (10, 9)] = 40.0
    site.verify()
    assert site.serves("deep") == ("old", (13, 6))


def test_another_driver_alone_has_nothing_to_go_back_to(site: Site) -> None:
    site.driver, site.tokens_per_second["deep"] = "590.1", 40.0
    found = site.verify()
    (reason,) = reasons(found, "deep")
    assert "40.0 tokens/s" in reason
    assert "rolled back" not in reason
    assert site.host.starts == []
    assert site.speeds.refused == {}


@pytest.mark.parametrize(
    ("tokens_per_second", "changes"),
    [
        (40.0, {"problems": ("the journal does not tell",)}),
        (61.0, {"problems": ("the journal does not tell",)}),
    ],
    ids=["slower and unreadable", "unreadable"],
)
def test_what_could_not_be_measured_is_left_to_people(
    site: Site, monkeypatch: pytest.MonkeyPatch, tokens_per_second: float, changes: dict[str, Any]
) -> None:
    site.tokens_per_second["deep", "old", (10, 9)] = tokens_per_second
    site.activate(site.plan("deep", split=(10, 9)))
    monkeypatch.setattr(verification, "measure", lambda spec, *given: replace(site.measure(spec, *given), **changes))
    found = site.verify()
    assert not found.passed
    assert site.serves("deep") == ("old", (10, 9))


def test_what_is_slower_than_it_promises_gives_way_too(site: Site) -> None:
    site.tokens_per_second["deep", "old", (10, 9)] = 4.0
    site.activate(site.plan("deep", split=(10, 9)))
    found = site.verify()
    told = reasons(found, "deep")
    assert len(told) == 2
    assert "tiny with split 13,6 on release old serves again" in told[-1]
    assert site.serves("deep") == ("old", (13, 6))
    (said,) = acceptance.refusals([site.plan("deep", split=(10, 9))], site.speeds)
    assert "it generated 4.0 tokens/s, 61.0 were accepted" in said
    site.activate(site.plan("deep", split=(10, 9)))
    assert not site.verify(accept_slower=True, gate={}).passed
    assert site.serves("deep") == ("old", (10, 9)), "slower ones are accepted"


def test_what_says_no_language_any_more_gives_way_and_is_not_tried_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def garbled(spec: tier.TierSpec, *given: Any) -> Evidence:
        evidence = site.measure(spec, *given)
        if evidence.completion and evidence.placement.tensor_split == (10, 9):
            return replace(evidence, completion=replace(evidence.completion, text="!" * 400))
        return evidence

    slow = site.plan("deep", split=(10, 9))
    site.activate(slow)
    monkeypatch.setattr(verification, "measure", garbled)
    found = site.verify()
    assert "tiny with split 13,6 on release old serves again" in reasons(found, "deep")[-1]
    assert site.serves("deep") == ("old", (13, 6))
    (said,) = acceptance.refusals([slow], site.speeds)
    assert "deep: was rolled back on" in said
    assert "tokens/s" not in said
    assert "verification_accept_slower" not in said
    assert site.verify().passed


CRASHED = "unix:/run/llama-tier-deep/api.sock/completion closed the connection without an answer: the server crashed"


def crashing(site: Site, **also: Any) -> Callable[..., Evidence]:
    """Play a tier that dies of its first long prompt when it is split as 10,9."""

    def measure(spec: tier.TierSpec, *given: Any) -> Evidence:
        evidence = site.measure(spec, *given)
        if evidence.placement.tensor_split != (10, 9) or evidence.thorough is None:
            return evidence
        thorough = replace(evidence.thorough, full=None, stability=None, **also)
        return replace(evidence, thorough=thorough, problems=(CRASHED,), failures=(CRASHED,))

    return measure


def test_what_dies_under_load_gives_way_and_is_not_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    new = site.plan("deep", split=(10, 9))
    site.activate(new)
    monkeypatch.setattr(verification, "measure", crashing(site))
    found = site.verify()
    assert not found.passed
    (reason,) = reasons(found, "deep")
    assert reason.startswith(f"deep: {CRASHED}; rolled back: tiny with split 13,6 on release old serves again")
    assert site.serves("deep") == ("old", (13, 6))
    (said,) = acceptance.refusals([new], site.speeds)
    assert CRASHED in said
    assert "verification_accept_slower" not in said
    assert site.verify().passed


def test_what_dies_with_a_card_is_left_to_people(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.activate(site.plan("deep", split=(10, 9)))
    monkeypatch.setattr(verification, "measure", crashing(site, unread=("GPU-1: the GPU is lost",)))
    assert not site.verify().passed
    assert site.serves("deep") == ("old", (10, 9))


def test_what_serves_by_now_is_not_refused(site: Site) -> None:
    """A run that was to accept it was cut off before its verification."""
    slow = site.plan("deep", split=(10, 9))
    site.tokens_per_second["deep", "old", (10, 9)] = 40.0
    site.activate(slow)
    site.verify()
    assert len(acceptance.refusals([slow], site.speeds)) == 1
    site.activate(slow)
    assert acceptance.refusals([slow], site.speeds) == ()
    site.verify()
    assert site.serves("deep") == ("old", (13, 6))


def test_what_was_accepted_and_does_not_start_any_more_leaves_the_slower_one_serving(site: Site) -> None:
    site.tokens_per_second["deep", "old", (10, 9)] = 40.0
    site.activate(site.plan("deep", split=(10, 9)))
    unit = proven.DIRECTORY / "deep/accepted/units/llama-tier-deep.service"
    unit.write_text(unit.read_text() + f"# {BROKEN}\n")
    found = site.verify()
    (reason,) = reasons(found, "deep")
    assert "; it could not be rolled back: tier deep did not become ready: " in reason
    assert "what served before is active again" in reason
    assert not found.passed
    assert site.serves("deep") == ("old", (10, 9))
    assert site.speeds.refused == {}
