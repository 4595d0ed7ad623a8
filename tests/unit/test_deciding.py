"""`checker decide`: what it reads, what it writes and what it leaves alone; the decision as the next plan's input."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from decision_cases import measured

from checker import cli, deciding, planning, runner, trial
from inventories import BIG, ENGINES, MODELS, SMALL

AUTO, SPLIT = "auto", {"tensor_split": [3, 2]}
TIER = {
    "name": "deep",
    "port": 8081,
    "context": 4096,
    "gpus": "any",
    "candidates": [{"model": "tiny", "placement": AUTO}, {"model": "tiny", "placement": SPLIT}],
}
POLICIES = {
    "first": "quick",
    "acceptable_tokens_per_second": 10,
    "policies": {
        "quick": {"note": "The fastest.", "tiers": {"deep": {"prefer": ["speed"]}}},
        "never": {"note": "Nobody.", "tiers": {"deep": {"min_generation_tokens_per_second": 10**6}}},
    },
}


class Checkout:
    """A checkout with a small catalogue, an inventory of some hosts, and trials of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.inventory = root, root / "inventories/site"
        (root / "catalogue").mkdir()
        for name, content in (
            ("models", {"models": MODELS}),
            ("engines", {"engines": ENGINES}),
            ("policies", POLICIES),
        ):
            (root / f"catalogue/{name}.yml").write_text(yaml.safe_dump(content))
        self.inventory.mkdir(parents=True)
        self.hosts("tower")

    def hosts(self, *names: str, **variables: Any) -> None:
        words = {"gpus": [BIG, SMALL], "tiers": [TIER], "llama_cpp_engine": "new", **variables}
        (self.inventory / "hosts.yml").write_text(
            yaml.safe_dump({"gpu_hosts": {"hosts": dict.fromkeys(names), "vars": words}})
        )

    def tried(self, *trials: trial.Trial, host: str = "tower") -> None:
        """Keep records as the role does: for people to read, and in the record's order."""
        directory = self.root / "evidence/trials" / host
        directory.mkdir(parents=True, exist_ok=True)
        for record in trials:
            text = json.dumps(record.to_json(), indent=4) + "\n"
            (directory / f"{record.tier}-{sha256(text.encode()).hexdigest()[:16]}.json").write_text(text)

    def evidence(self) -> dict[str, float]:
        """Return the speed in each record of the tower's trials, by the sha256 of its file."""
        files = [path.read_bytes() for path in (self.root / "evidence/trials/tower").iterdir()]
        speeds = [json.loads(each)["evidence"]["thorough"]["short"] for each in files]
        return {
            sha256(file).hexdigest(): speed["generation_tokens_per_second"]["median"]
            for file, speed in zip(files, speeds, strict=True)
        }

    def decision(self, host: str = "tower") -> Path:
        return self.inventory / "host_vars" / host / "decision.yml"

    def plan(self, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
        code = cli.main(["plan", "-i", str(self.inventory), "--format", "json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    made = Checkout(tmp_path)
    made.tried(measured(AUTO, 40.0), measured(SPLIT, 50.0))
    return made


def decide(
    capsys: pytest.CaptureFixture[str], checkout: Checkout, *arguments: str, inventory: Path | None = None
) -> tuple[int, str, str]:
    code = cli.main(["decide", "-i", str(inventory or checkout.inventory), *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_chosen_candidate_is_written_with_its_evidence(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = decide(capsys, checkout)
    assert code == 0
    assert str(checkout.decision()) in err
    assert "▶" in out and "tiny (3,2)" in out
    text = checkout.decision().read_text()
    assert "do not edit" in text.splitlines()[1]
    made = yaml.safe_load(text)["llama_tiers_decision"]
    assert (made["schema"], made["host"], made["policy"]) == ("llama-tiers/decision/2", "tower", "quick")
    deep = made["tiers"]["deep"]
    assert (deep["model"], deep["placement"], deep["tokens_per_second"]) == ("tiny", SPLIT, 50.0)
    assert checkout.evidence()[deep["evidence"]] == 50.0


def test_nothing_else_is_touched_and_nothing_is_left_behind(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in checkout.root.rglob("*") if path.is_file()}
    decide(capsys, checkout)
    after = {path: path.read_bytes() for path in checkout.root.rglob("*") if path.is_file()}
    assert set(after) - set(before) == {checkout.decision()}
    assert {path: after[path] for path in before} == before


def test_a_second_run_changes_nothing(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    decide(capsys, checkout)
    first = checkout.decision().stat().st_mtime_ns
    code, _, err = decide(capsys, checkout)
    assert code == 0
    assert "as it was" in err
    assert checkout.decision().stat().st_mtime_ns == first


def test_a_dry_run_says_it_and_writes_nothing(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = decide(capsys, checkout, "--dry-run", "--format", "json")
    assert (code, err) == (0, "")
    assert json.loads(out)["decision"]["tiers"]["deep"]["placement"] == SPLIT
    assert not checkout.decision().exists()


def test_a_dry_run_says_that_it_was_one_and_what_would_become_of_the_file(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    path = checkout.decision()

    def dry() -> str:
        code, out, err = decide(capsys, checkout, "--dry-run")
        assert (code, err) == (0, "")
        return out.splitlines()[-1].removeprefix("not written (dry run): ")

    assert dry() == f"{path}; it would be new"
    decide(capsys, checkout)
    written = path.read_text()
    assert dry() == f"{path}; it is there, just so"
    checkout.tried(measured(AUTO, 70.0, "2026-11-25T15:00:00Z"))
    assert dry() == f"{path}; it would change: deep: tiny (3,2) → tiny (auto)"
    checkout.tried(measured(SPLIT, 80.0, "2026-11-25T15:00:00Z"))
    assert dry() == f"{path}; it would change, but no candidate"
    assert path.read_text() == written
    path.write_text("llama_tiers_decision: {schema: llama-tiers/decision/1}\n")
    assert dry() == f"{path}; it would change: deep: the inventory's order → tiny (3,2)"


def test_a_dry_run_refuses_what_the_real_one_would(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.decision().parent.mkdir(parents=True)
    checkout.decision().write_text("note: mine\n")
    code, _, err = decide(capsys, checkout, "--dry-run")
    assert code == 2
    assert f"{checkout.decision()} was not written by `checker decide`" in err


def test_without_a_decision_it_is_said_what_stands(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    code, out, _ = decide(capsys, checkout, "--policy", "never")
    assert code == 1
    assert "no policy decides; what serves stays: the inventory's order holds, deep: tiny (auto)\n" in out
    decide(capsys, checkout)
    code, out, _ = decide(capsys, checkout, "--policy", "never")
    assert code == 1
    assert f"no policy decides; what serves stays: {checkout.decision()} is left as it is\n" in out
    assert "checker trial -i INVENTORY" in out


def test_two_hosts_get_two_decisions(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.hosts("tower", "shed")
    checkout.tried(measured(AUTO, 70.0, host="shed"), host="shed")
    code, out, _ = decide(capsys, checkout, "--format", "json")
    assert code == 0
    assert [json.loads(line)["host"] for line in out.splitlines()] == ["shed", "tower"]
    placements = {}
    for host in ("tower", "shed"):
        made = yaml.safe_load(checkout.decision(host).read_text())["llama_tiers_decision"]
        placements[made["host"]] = made["tiers"]["deep"]["placement"]
    assert placements == {"tower": SPLIT, "shed": AUTO}


def test_a_host_without_trials_hides_no_other(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.hosts("tower", "shed")
    code, _, err = decide(capsys, checkout)
    assert code == 2
    assert "shed: there is no trial in" in err and "run `checker trial -i INVENTORY` first" in err
    assert checkout.decision("tower").exists()
    assert not checkout.decision("shed").exists()


def test_nobody_passing_is_exit_1_and_writes_nothing(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = decide(capsys, checkout, "--policy", "never")
    assert code == 1
    assert "no policy decides" in out
    assert err == ""
    assert not checkout.decision().exists()


def test_a_tier_that_was_left_out_of_the_trials_is_named_with_the_command(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"note": "Both.", "tiers": {"deep": {}, "fast": {}}}
    (checkout.root / "catalogue/policies.yml").write_text(yaml.safe_dump({**POLICIES, "policies": {"quick": both}}))
    checkout.hosts("tower", tiers=[TIER, {**TIER, "name": "fast", "port": 8080}])
    code, out, _ = decide(capsys, checkout)
    assert code == 1
    assert (
        "quick does not apply: fast has no trial that counts: try it too (`checker trial -i INVENTORY --tier fast`)"
        in (" ".join(out.split()))
    )


def test_what_is_acceptable_is_the_hosts_word(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.hosts("tower", llama_tiers_acceptable_tokens_per_second=45)
    _, out, _ = decide(capsys, checkout, "--dry-run", "--format", "json")
    explained = json.loads(out)
    passes = [each["passes"] for each in explained["policies"][0]["tiers"][0]["candidates"]]
    assert (explained["acceptable_tokens_per_second"], passes) == (45, [False, True])


@pytest.mark.parametrize(
    "content", ["note: mine\n", "llama_tiers_decision: {schema: mine}\n", "key: !vault |\n  1\n", "- 1\n", "a: [\n"]
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "decision.yml"
    path.write_text(content)
    with pytest.raises(deciding.PlanningError, match="was not written by `checker decide`, so it is left alone"):
        deciding.write(path, "other")
    assert path.read_text() == content


def test_a_file_of_somebody_else_is_exit_2(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.decision().parent.mkdir(parents=True)
    checkout.decision().write_text("note: mine\n")
    code, _, err = decide(capsys, checkout)
    assert code == 2
    assert f"{checkout.decision()} was not written by `checker decide`" in err


def test_a_file_of_variables_that_a_folder_would_hide_is_named(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = checkout.inventory / "host_vars/tower.yml"
    beside.parent.mkdir()
    beside.write_text("note: kept\n")
    code, _, err = decide(capsys, checkout)
    assert code == 2
    assert f"{beside} would be read no longer beside a folder" in err and "main.yml" in err
    assert not checkout.decision().exists()


def test_an_inventory_that_is_a_file_has_its_host_vars_beside_it(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = decide(capsys, checkout, inventory=checkout.inventory / "hosts.yml")
    assert code == 0
    assert checkout.decision().exists()


def test_a_folder_that_cannot_be_written_is_named(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout.inventory / "host_vars").write_text("")
    code, _, err = decide(capsys, checkout)
    assert code == 2
    assert "decision.yml cannot be written: Not a directory" in err


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ({}, ["--policy", "best"], "no policy 'best'; policies: never, quick"),
        ({}, ["--policy", "qick"], "no policy 'qick'; did you mean quick? policies: never, quick"),
        (
            {"llama_tiers_acceptable_tokens_per_second": "many"},
            [],
            "llama_tiers_acceptable_tokens_per_second 'many' is wrong: expected tokens per second, more than 0",
        ),
        ({"verification_documents_directory": "{{ here }}"}, [], "name the folder of the evidence with --evidence"),
        ({"tiers": [{**TIER, "candidates": [{"model": "huge"}]}]}, [], "model 'huge' is not in the catalogue"),
        ({"gpus": "{{ found }}"}, [], "gpus has a template, '{{ found }}', which only a play resolves"),
    ],
)
def test_what_cannot_be_used_is_named(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], change: dict[str, Any], arguments: list[str], said: str
) -> None:
    checkout.hosts("tower", **change)
    code, out, err = decide(capsys, checkout, *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_the_evidence_can_lie_elsewhere(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.hosts("tower", verification_documents_directory="{{ here }}")
    code, _, _ = decide(capsys, checkout, "--evidence", str(checkout.root / "evidence"))
    assert code == 0


def test_a_damaged_record_is_named(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = checkout.root / "evidence/trials/tower/deep-1.json"
    damaged.write_text("{")
    code, _, err = decide(capsys, checkout)
    assert code == 2
    assert f"{damaged} is no record of a trial" in err and "remove it" in err


MEDIAN = ("evidence", "thorough", "short", "generation_tokens_per_second", "median")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (MEDIAN, "fast", "'fast' is wrong: expected a number"),
        (("recorded_at",), 7, "recorded_at 7 is wrong"),
        (("evidence", "unit", "load_s"), "x", "evidence.unit.load_s 'x' is wrong: expected a number"),
        (("spec", "placement", "tensor_split"), ["3", 2], "spec.placement.tensor_split[0] '3' is wrong"),
        (("host",), None, "host None is wrong"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_a_record_with_a_value_of_the_wrong_type_is_named_with_the_place(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], place: tuple[str, ...], value: Any, said: str
) -> None:
    path = min((checkout.root / "evidence/trials/tower").iterdir())
    inner = document = json.loads(path.read_text())
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(document))
    code, out, err = decide(capsys, checkout)
    assert (code, out) == (2, "")
    assert f"tower: {path} is no record of a trial: {'.'.join(place)}" in err and said in err
    assert "remove it, and run the command again" in err


FOREIGN = (
    "! trials of attic lie among those of tower and count for nothing: `checker trial -i INVENTORY --again` tries here"
)


def test_the_trials_of_another_host_count_for_nothing_and_are_named(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.tried(measured(SPLIT, 90.0, "2026-11-25T15:00:00Z", host="attic"))
    code, out, _ = decide(capsys, checkout)
    deep = yaml.safe_load(checkout.decision().read_text())["llama_tiers_decision"]["tiers"]["deep"]
    assert (code, deep["tokens_per_second"]) == (0, 50.0)
    assert FOREIGN in " ".join(out.split())


def test_with_the_trials_of_another_host_alone_nothing_is_decided(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.hosts("shed")
    checkout.tried(measured(SPLIT, 90.0), measured(AUTO, 90.0), host="shed")
    code, out, _ = decide(capsys, checkout)
    assert code == 1
    assert FOREIGN.replace("tower", "shed").replace("attic", "tower") in " ".join(out.split())
    assert not checkout.decision("shed").exists()


# The plan after it.


def test_the_plan_takes_the_decided_candidate_and_says_so(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    _, before, _ = checkout.plan(capsys)
    decide(capsys, checkout)
    code, after, _ = checkout.plan(capsys)
    assert code == 0
    assert before["tiers"][0]["decided"] is None
    assert before["tiers"][0]["placement"]["tensor_split"] == [5]
    (deep,) = after["tiers"]
    assert deep["placement"]["tensor_split"] == [3, 2]
    (evidence,) = (digest[:12] for digest, speed in checkout.evidence().items() if speed == 50.0)
    assert deep["decided"] == f"decided by policy quick: 50.0 tokens/s measured 2026-11-24, evidence {evidence}"
    cli.main(["plan", "-i", str(checkout.inventory)])
    assert deep["decided"] in " ".join(capsys.readouterr().out.split())


def test_the_command_line_goes_before_the_decision(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    decide(capsys, checkout)
    assert cli.main(["plan", "-i", str(checkout.inventory), "--tensor-split", "4,1", "--format", "json"]) == 0
    (deep,) = json.loads(capsys.readouterr().out)["tiers"]
    assert deep["placement"]["tensor_split"] == [4, 1]
    assert cli.main(["plan", "-i", str(checkout.inventory), "--model", "tiny", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["tiers"][0]["decided"] is None


def test_other_hardware_has_no_decision(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    decide(capsys, checkout)
    other = checkout.root / "hardware.yml"
    card = {"name": "NVIDIA Big", "total_mib": 24576, "bandwidth_gb_s": 936, "compute_capability": "8.6"}
    other.write_text(yaml.safe_dump({"gpus": [card, card], "ram_mib": 64000}))
    words = ["-i", str(checkout.inventory), "--hardware", str(other), "--format", "json"]
    assert cli.main(["plan", *words]) == 0
    (deep,) = json.loads(capsys.readouterr().out)["tiers"]
    assert (deep["decided"], deep["placement"]["tensor_split"]) == (None, [5])


def test_a_decided_candidate_that_is_gone_from_the_inventory_is_an_error(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(capsys, checkout)
    checkout.hosts("tower", tiers=[{**TIER, "candidates": [{"model": "tiny", "placement": AUTO}]}])
    code, _, err = checkout.plan(capsys)
    assert code == 2
    assert "tower: tier deep: decided is tiny (3,2), which is none of the inventory's candidates: tiny (auto)" in err
    assert "decide again" in err


@pytest.mark.parametrize(
    ("host", "tier", "said"),
    [
        ("tower", "large", "tier deep: decided is tiny (3,2), but it is none of the inventory's tiers: large; "),
        ("attic", "deep", "llama_tiers_decision: it was decided for host tower, and this is attic; "),
    ],
    ids=["tier", "host"],
)
def test_a_decision_for_a_tier_or_host_that_was_renamed_is_an_error(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], host: str, tier: str, said: str
) -> None:
    decide(capsys, checkout)
    checkout.hosts(host, tiers=[{**TIER, "name": tier}])
    if host != "tower":
        checkout.decision().parent.rename(checkout.decision(host).parent)
    code, _, err = checkout.plan(capsys)
    assert (code, f"checker: {host}: {said}" in err) == (2, True), err


def test_a_tier_that_was_removed_is_gone_from_the_decision_that_is_written_anew(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = {**TIER, "name": "fast", "port": 8082}
    policies = {**POLICIES, "policies": {"quick": {"note": "The fastest.", "tiers": {"deep": {}, "fast": {}}}}}
    (checkout.root / "catalogue/policies.yml").write_text(yaml.safe_dump(policies))
    checkout.tried(measured(SPLIT, 50.0, tier="fast"))
    checkout.hosts("tower", tiers=[TIER, fast])
    assert decide(capsys, checkout)[0] == 0
    checkout.hosts("tower", tiers=[fast])
    code, _, err = checkout.plan(capsys)
    assert code == 2 and "put it back, or try and decide again" in err
    assert decide(capsys, checkout)[0] == 0
    assert list(yaml.safe_load(checkout.decision().read_text())["llama_tiers_decision"]["tiers"]) == ["fast"]
    assert checkout.plan(capsys)[0] == 0


def test_a_plan_of_one_tier_has_all_of_the_inventorys_decision(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(capsys, checkout)
    checkout.hosts("tower", tiers=[TIER, {**TIER, "name": "fast", "port": 8082}])
    assert cli.main(["plan", "-i", str(checkout.inventory), "--tier", "fast", "--format", "json"]) == 0
    assert [tier["name"] for tier in json.loads(capsys.readouterr().out)["tiers"]] == ["fast"]


def test_without_the_file_the_inventorys_order_holds_again(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    _, before, _ = checkout.plan(capsys)
    decide(capsys, checkout)
    checkout.decision().unlink()
    assert checkout.plan(capsys)[1] == before


# Which trials are old.


def tried(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *records: trial.Trial
) -> tuple[str, str]:
    """Return what `checker trial` prints of the records that a host hands back."""
    kept = {"llama_tiers_trials": {"tower": [record.to_json() for record in records]}}
    monkeypatch.setattr(runner, "run", lambda *_: runner.RunResult(kept, (), ""))
    assert cli.main(["trial", "-i", str(checkout.inventory)]) == 0
    out, err = capsys.readouterr()
    return " ".join(out.split()), err


def test_a_trial_by_which_no_decision_goes_is_marked_as_old(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = measured(AUTO, 40.0)
    assert before.spec
    other = replace(before, spec=replace(before.spec, engine=replace(before.spec.engine, commit="2" * 40)))
    gone, unlisted = measured(SPLIT, tier="wide"), measured({"tensor_split": [4, 1]})
    out, err = tried(checkout, monkeypatch, capsys, other, gone, unlisted, measured(SPLIT))
    assert (out.count("old:"), err) == (3, "")
    assert f"deep: tiny (auto): old: tried before the engine became {ENGINES['new']['commit'][:9]}" in out
    assert "wide: tiny (3,2): old: tried before tier wide went" in out
    assert "deep: tiny (4,1): old: tried before the candidate went" in out


def test_of_two_trials_of_a_candidate_the_one_that_does_not_count_is_old(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = measured(SPLIT, 50.0, "2026-11-23T15:00:00Z", fingerprint="ab" * 32)
    unfetched = measured(
        SPLIT, recorded_at="2026-11-25T15:00:00Z", outcome="failed", reason="404", spec=None, evidence=None
    )
    out, _ = tried(checkout, monkeypatch, capsys, before, measured(SPLIT), unfetched)
    assert out.count("old: the trial of 2026-11-24T15:00:00Z counts") == out.count("old:") == 2


def test_that_nobody_can_tell_which_trials_are_old_is_said(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.hosts("tower", tiers="{{ of_another_variable }}")
    out, err = tried(checkout, monkeypatch, capsys, measured(SPLIT))
    assert "tiny" in out and "old" not in out
    assert "checker: tower: which of its trials are old is not known: tiers has a template" in err


# Which candidates have room.


def screen(capsys: pytest.CaptureFixture[str], checkout: Checkout, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["trial", "-i", str(checkout.inventory), "--dry-run", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_every_candidate_is_screened_with_its_arithmetic(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = {**SMALL, "total_mib": 200, "margin_mib": 150, "bandwidth_gb_s": 100}
    checkout.hosts("tower", gpus=[BIG, narrow])
    code, out, _ = screen(capsys, checkout, "--format", "json")
    assert code == 0
    auto, split = json.loads(out)["tiers"][0]["candidates"]
    assert (auto["verdict"], auto["words"], auto["reasons"]) == ("fits", "auto", [])
    assert (split["verdict"], split["placement"]) == ("does-not-fit", SPLIT)
    assert split["reasons"][0].startswith("GTX 1060 3GB needs ")
    code, table, _ = screen(capsys, checkout)
    assert code == 0
    assert "✓   tiny (auto)" in table and "✗   tiny (3,2)" in table
    assert split["reasons"][0] in " ".join(table.split())


def test_a_tier_without_any_candidate_that_has_room_is_exit_1(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"total_mib": 200, "margin_mib": 150, "bandwidth_gb_s": 100}
    checkout.hosts("tower", gpus=[{**BIG, **tiny}, {**SMALL, **tiny}])
    assert screen(capsys, checkout)[0] == 1


def test_an_unknown_tier_is_named(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = screen(capsys, checkout, "--tier", "wide")
    assert code == 2
    assert "no tier 'wide'; tiers here: deep" in err


def test_what_ansible_reads_is_what_was_written(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    decide(capsys, checkout)
    (tower,) = planning.subjects(checkout.root, str(checkout.inventory), None, None)
    written = yaml.safe_load(checkout.decision().read_text())
    assert tower.variables["llama_tiers_decision"] == written["llama_tiers_decision"]
