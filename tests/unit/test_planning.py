"""`checker plan`: the mission's cases answered line by line, from files alone; exit codes, and what bad input gets."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import example_report
import pytest
import small_gguf
import yaml
from planning_cases import BIG, Q4, Q5, SMALL, shaped

from checker import cli, planning
from checker.placement import short_name
from checker.reports import plans
from checker.tier import Placement

ROOT = Path(__file__).parents[2]
HARDWARE = {
    "gpus": [{"name": BIG, "free_mib": 7900}, {"name": SMALL, "free_mib": 2950}],
    "ram_mib": 16000,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["plan", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, Any]]:
    """Plan the reference inventory once: document by case."""
    models = planning.read_yaml(ROOT / "catalogue/models.yml")["models"]
    engines = planning.read_yaml(ROOT / "catalogue/engines.yml")["engines"]
    subjects = planning.subjects(ROOT, str(ROOT / "inventories/reference"), None, None)
    return {subject.name: planning.make(subject, planning.Wishes(), models, engines) for subject in subjects}


@pytest.fixture
def hardware(tmp_path: Path) -> str:
    path = tmp_path / "tower.yml"
    path.write_text(yaml.safe_dump(HARDWARE))
    return str(path)


def tier(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in document["tiers"] if item["name"] == name)
    return found


def needs(planned: dict[str, Any]) -> dict[str, float]:
    return {device["gpu"]: device["total_mib"] for device in planned["devices"]}


def test_fast_and_deep_each_fit_and_exclude_each_other(cases: dict[str, Any]) -> None:
    document = cases["1-fast-and-deep"]
    fast, deep = tier(document, "fast"), tier(document, "deep")
    assert (fast["verdict"], deep["verdict"]) == ("fits", "fits")
    assert document["resident_together"] == [["fast"], ["deep"]]
    (exclusion,) = document["exclusions"]
    both = needs(fast)[BIG] + needs(deep)[BIG]
    assert f"RTX 3060 Ti needs {both:,.0f} MiB" in exclusion["reason"]
    assert both > 8192


def test_8b_and_7b_side_by_side_do_not_fit_for_the_small_card(cases: dict[str, Any]) -> None:
    document = cases["2-8b-and-7b-side-by-side"]
    assert tier(document, "fast")["verdict"] == "fits"
    small = tier(document, "small")
    assert small["verdict"] == "does-not-fit"
    assert small["devices"][0]["weights_mib"] == pytest.approx(5532, abs=60)
    assert "GTX 1060 3GB needs 6,1" in small["reason"]


def test_8_3_is_refused_for_the_small_card_and_38_11_fits(cases: dict[str, Any]) -> None:
    refused = tier(cases["3-deep-split-8-3"], "deep")
    assert refused["verdict"] == "does-not-fit"
    big, small = refused["devices"]
    assert (big["gpu"], small["gpu"]) == (BIG, SMALL)
    assert big["spare_mib"] > 0 > small["spare_mib"]
    # The figures of the engine's own estimate.
    assert (small["weights_mib"], small["kv_mib"]) == (pytest.approx(2531, abs=2), 384)
    fits = tier(cases["4-deep-split-38-11"], "deep")
    assert fits["verdict"] == "fits"
    assert fits["placement"]["tensor_split"] == [38, 11]
    assert [device["kv_mib"] for device in fits["devices"]] == [1216, 320]


def test_q5_at_8192_does_not_fit_and_says_what_would(cases: dict[str, Any]) -> None:
    refused = tier(cases["5-deep-q5"], "deep")
    assert refused["verdict"] == "does-not-fit"
    changes = [change["what"] for change in refused["candidates"][0]["changes"]]
    assert any(what.startswith("context ") for what in changes)
    assert any(what.endswith("on the CPU") for what in changes)
    assert Q4 in changes


def test_7b_alone_and_32b_with_the_cpu_fit(cases: dict[str, Any]) -> None:
    alone, large = tier(cases["6-7b-alone"], "deep"), tier(cases["7-32b-with-cpu"], "max")
    assert list(needs(alone)) == [BIG]
    assert large["verdict"] == "fits"
    assert large["placement"]["n_gpu_layers"] < 65
    assert large["host_ram"]["weights_mib"] > 8000
    assert 1 < large["tokens_per_second"]["expected"] < 6 < alone["tokens_per_second"]["expected"]


def test_the_devices_of_a_fitting_tier_add_up(cases: dict[str, Any]) -> None:
    for document in cases.values():
        for planned in document["tiers"]:
            for device in planned["devices"]:
                parts = sum(device[key] for key in ("weights_mib", "kv_mib", "compute_mib", "overhead_mib"))
                assert parts == pytest.approx(device["total_mib"], abs=0.3)
                assert device["free_mib"] == device["card_mib"] - device["taken_mib"]
                spare = device["free_mib"] - device["margin_mib"] - device["total_mib"]
                assert spare == pytest.approx(device["spare_mib"], abs=0.1)
            assert (planned["verdict"] == "fits") == all(device["spare_mib"] >= 0 for device in planned["devices"])


def test_production_serves_the_first_candidate_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    inventory = ["-i", str(ROOT / "inventories/production")]
    code, out, _ = run(capsys, *inventory, "--limit", "tower", "--format", "json")
    deep = tier(json.loads(out), "deep")
    assert code == 0
    assert [candidate["verdict"] for candidate in deep["candidates"]] == ["does-not-fit", "fits"]
    assert deep["model"] == Q4
    assert [device["uuid"] for device in deep["devices"]] == [None, None]


def test_a_tier_with_a_fallback_is_planned_alone(capsys: pytest.CaptureFixture[str]) -> None:
    inventory = ["-i", str(ROOT / "inventories/production")]
    code, out, err = run(
        capsys, *inventory, "--limit", "tower", "--tier", "deep", "--context", "4096", "--format", "json"
    )
    assert (code, err) == (0, "")
    assert tier(json.loads(out), "deep")["context"]["max"] == 4096


def test_the_table_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, "-i", str(ROOT / "inventories/reference"))
    assert code == 1
    assert max(len(line) for line in out.splitlines()) <= 80
    for piece in (
        "DOES NOT FIT",
        "tokens/s expected, not measured here",
        "not together: fast + deep",
        "would fit:",
        "█",
    ):
        assert piece in out
    # Estimates are called so, with where they come from.
    assert "CUDA itself 120 MiB: estimate, not measured: context and modules of a GTX 1060" in " ".join(out.split())


def test_each_of_two_cards_of_one_name_has_its_reckoning(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "twins.yml"
    path.write_text(f"gpus: [{{name: {BIG}, free_mib: 7900}}, {{name: {BIG}, free_mib: 6000}}]\nram_mib: 16000\n")
    _, out, _ = run(capsys, "--hardware", str(path), "--model", Q4)
    assert "RTX 3060 Ti: 7,613 of 8,192 MiB for tiers (292 taken" in out
    assert "RTX 3060 Ti: 5,713 of 8,192 MiB for tiers (2,192 taken" in out


def test_a_hardware_file_and_a_model_of_the_catalogue(capsys: pytest.CaptureFixture[str], hardware: str) -> None:
    code, out, _ = run(capsys, "--hardware", hardware, "--model", Q4, "--format", "json")
    document = json.loads(out)
    planned = tier(document, "model")
    assert (code, document["host"], planned["verdict"]) == (0, "tower", "fits")
    assert {device["gpu"]: device["free_mib"] for device in planned["devices"]} == {BIG: 7900, SMALL: 2950}
    assert planned["host_ram"]["total_mib"] == 16000


@pytest.mark.parametrize(
    ("wish", "code", "seen"),
    [
        (["--tensor-split", "8,3"], 1, {"tensor_split": [36, 13]}),
        (["--tensor-split", "38,11"], 0, {"tensor_split": [38, 11]}),
        (["--context", "4096"], 0, {"ctx_size": 4096}),
        (["--cache-type", "q8_0"], 0, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
        (["--ubatch", "128"], 0, {"ubatch_size": 128}),
        (["--gpu-layers", "40"], 0, {"n_gpu_layers": 40}),
        (["--context", "32768"], 1, {"ctx_size": 32768}),
    ],
    ids=lambda value: value[0] + value[1] if isinstance(value, list) else "",
)
def test_the_command_line_goes_before_the_inventory(
    capsys: pytest.CaptureFixture[str], hardware: str, wish: list[str], code: int, seen: dict[str, Any]
) -> None:
    got, out, _ = run(capsys, "--hardware", hardware, "--model", Q4, "--format", "json", *wish)
    placement = tier(json.loads(out), "model")["placement"]
    assert got == code
    assert {key: placement[key] for key in seen} == seen


@pytest.mark.parametrize(("asked", "said"), [("8,3", "36,13"), ("38,12", "38,11"), ("0.5,0.5", "25,24")])
def test_a_split_that_is_none_of_whole_layers_is_said_as_what_it_is_taken(
    capsys: pytest.CaptureFixture[str], hardware: str, asked: str, said: str
) -> None:
    arguments = ["--hardware", hardware, "--model", Q4, "--tensor-split", asked]
    _, out, _ = run(capsys, *arguments, "--format", "json")
    assert json.loads(out)["remarks"] == [f"{asked} is taken as {said} of 49 layers, as llama.cpp would"]
    assert f"note: {asked} is taken as {said} of 49 layers, as llama.cpp would\n" in run(capsys, *arguments)[1]


def shell(command: str, hardware: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of bash, in which {plan} is `checker plan` of one model."""
    whole = f"{sys.executable} -m checker.cli plan --hardware {hardware} --model {Q4}"
    return subprocess.run(
        ["bash", "-c", command.format(plan=whole)], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("{plan} | true; exit ${{PIPESTATUS[0]}}", 141, ""),
        ("{plan} > /dev/full", 2, "checker: standard output cannot be written: No space left on device\n"),
        ("PYTHONIOENCODING=ascii {plan}", 0, ""),
    ],
    ids=["nobody reads", "disk full", "ascii"],
)
def test_odd_standard_output_is_no_traceback(hardware: str, form: str, command: str, code: int, said: str) -> None:
    ran = shell(command.replace("{plan}", f"{{plan}} --format {form}"), hardware)
    assert (ran.returncode, ran.stderr) == (code, said)


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(planning, "read_inventory", interrupted)
    code, out, err = run(capsys, "-i", str(ROOT / "inventories/lab"))
    assert (code, out, err) == (130, "", "checker: interrupted\n")


def test_a_split_of_whole_layers_needs_no_remark(capsys: pytest.CaptureFixture[str], hardware: str) -> None:
    wish = ["--tensor-split", "38,11", "--format", "json"]
    _, out, _ = run(capsys, "--hardware", hardware, "--model", Q4, *wish)
    assert json.loads(out)["remarks"] == []


def test_a_decision_for_a_tier_that_has_a_rival_is_planned() -> None:
    """The production host: deep takes the place of fast on demand, and its fallback is a third tier."""
    (tower,) = planning.subjects(ROOT, str(ROOT / "inventories/production"), "tower", None)
    deep = {
        "model": "deepseek-r1-distill-qwen-14b-q4_k_m",
        "placement": "auto",
        "because": "the only candidate that reaches what is asked for",
        "tokens_per_second": 18.0,
        "load_s": 40.0,
        "gpus": [BIG, SMALL],
        "uuids": [each["uuid"] for each in planning.with_placeholders(tower.variables["gpus"])],
        "placed": asdict(Placement("layer", (38, 11), 49, 8192, "f16", "f16", 512, "on", pipeline_parallel=False)),
        "measured_at": "2026-11-24T15:00:00Z",
        "evidence": "ab" * 32,
    }
    policy = {"host": "tower", "policy": "multi-gpu", "acceptable_tokens_per_second": 10, "tiers": {"deep": deep}}
    variables = {**tower.variables, "llama_tiers_decision": {"schema": "llama-tiers/decision/2", **policy}}
    document = planning.make(replace(tower, variables=variables), planning.Wishes(), *planning.read_catalogues(ROOT))
    served = tier(document, "deep")
    assert (served["model"], served["verdict"]) == ("deepseek-r1-distill-qwen-14b-q4_k_m", "fits")
    assert "decided by policy multi-gpu" in served["decided"]
    assert tier(document, "fast")["decided"] is None
    assert any({"fast", "deep"} == set(each["tiers"]) for each in document["exclusions"])
    assert all(each["switched"] for each in document["exclusions"])


def test_the_inventorys_tiers_on_other_hardware(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "big.yml"
    card = {"name": "NVIDIA Big", "total_mib": 24576, "bandwidth_gb_s": 936, "compute_capability": "8.6"}
    path.write_text(yaml.safe_dump({"gpus": [card], "ram_mib": 64000}))
    inventory = ["-i", str(ROOT / "inventories/production"), "--limit", "tower"]
    code, out, _ = run(capsys, *inventory, "--hardware", str(path), "--format", "json")
    assert code == 0
    assert tier(json.loads(out), "deep")["candidates"][0]["verdict"] == "fits"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name the host"),
        (["--hardware", "{hardware}"], "say what to plan with --model"),
        (["-i", "nowhere"], "no inventory at nowhere"),
        (["--hardware", "{hardware}", "--model", "nonesuch"], "neither a model of the catalogue nor a GGUF"),
        (["--hardware", "nowhere.yml", "--model", Q4], "nowhere.yml cannot be read"),
        (["--hardware", "{wrong}", "--model", Q4], "gpus[0].colour is not a known key"),
        (["--hardware", "{nothing}", "--model", Q4], "expected `gpus:` with a list of cards"),
        (["--hardware", "{mystery}", "--model", Q4], "the memory of NVIDIA Mystery is not known: give total_mib"),
        (["--hardware", "{hardware}", "--model", "{text}"], "GGUF"),
        (["--hardware", "{words}", "--model", Q4], "gpus[0].free_mib 'abc' is wrong"),
        (["--hardware", "{less}", "--model", Q4], "ram_mib -9 is wrong"),
        (["--hardware", "{hardware}", "--model", "x" * 400], "neither a model of the catalogue nor a GGUF"),
        (["--hardware", "{hardware}", "--model", Q4[:-1]], f"did you mean {Q4}? known models: "),
        (["--hardware", "{hardware}", "--model", "no/such.gguf"], "there is no file no/such.gguf"),
        (["--hardware", "{hardware}", "--model", "~nobody/some.gguf"], "there is no file ~nobody/some.gguf"),
        (["--hardware", "{hardware}", "--model", "/tmp"], "/tmp is a folder: name the GGUF in it"),
        (["--hardware", "{hardware}", "--model", "ftp://host/a.gguf"], "a model cannot be read from ftp://"),
        (
            ["--hardware", "{hardware}", "--model", Q4, "--tensor-split", "8"],
            f"--tensor-split 8 has 1 entry for 2 cards: give one for each, in this order: {BIG}, {SMALL}",
        ),
        (["--hardware", "{hardware}", "--model", Q4, "--gpu-layers", "99"], "tower: --gpu-layers 99: deepseek"),
        (
            ["--hardware", "{hardware}", "--model", Q4, "--gpu-layers", "auto", "--tensor-split", "38,11"],
            "tower: --gpu-layers 'auto' cannot go with --tensor-split [38, 11]",
        ),
        (["--hardware", "{short}", "--model", Q4], f"give total_mib in its entry of gpus; did you mean {BIG}?"),
        (["--hardware", "{none}", "--model", Q4], "none.yml: gpus [] is wrong: expected a list of 1 or more"),
        (["--hardware", "{more}", "--model", Q4], "free_mib 99999 is more than the 8192 MiB of the card"),
        (["--hardware", "{endless}", "--model", Q4], "ram_mib 9223372036854775808 is wrong: expected 16777216 or less"),
        (["--hardware", "/tmp", "--model", Q4], "checker: /tmp cannot be read: Is a directory\n"),
        (["--hardware", "{binary}", "--model", Q4], "binary.yml is no YAML: "),
        (["--hardware", "{cut}", "--model", Q4], "cut.yml:3:1 is no YAML: while parsing a flow mapping, "),
        (["--hardware", "{date}", "--model", Q4], "date.yml is no YAML: month must be in 1..12"),
        (["--hardware", "{hardware}", "--model", ""], "'' is neither a model of the catalogue nor a GGUF"),
        (["-i", "{lab}", "--tier", "nonesuch"], "no tier 'nonesuch'; tiers here: fast, deep"),
        (["-i", "{lab}", "--limit", "nobody"], "nobody"),
    ],
)
def test_bad_input_is_named_and_exits_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hardware: str, arguments: list[str], said: str
) -> None:
    files = {
        "wrong": yaml.safe_dump({"gpus": [{"name": BIG, "colour": "green"}]}),
        "nothing": "- 1",
        "mystery": yaml.safe_dump({"gpus": [{"name": "NVIDIA Mystery"}]}),
        "text": "<!doctype html>",
        "words": yaml.safe_dump({"gpus": [{"name": BIG, "free_mib": "abc"}]}),
        "short": yaml.safe_dump({"gpus": [{"name": "RTX 3060 ti"}]}),
        "none": yaml.safe_dump({"gpus": []}),
        "more": yaml.safe_dump({"gpus": [{"name": BIG, "free_mib": 99999}]}),
        "endless": yaml.safe_dump({"gpus": [{"name": BIG}], "ram_mib": 2**63}),
        "binary": "[\0",
        "cut": "gpus:\n  - {name: big\n",
        "date": "ram_mib: 2026-13-01",
        "less": yaml.safe_dump({"gpus": [{"name": BIG}], "ram_mib": -9}),
    }
    paths = {"hardware": hardware, "lab": str(ROOT / "inventories/lab")}
    for name, text in files.items():
        (tmp_path / f"{name}.yml").write_text(text)
        paths[name] = str(tmp_path / f"{name}.yml")
    code, out, err = run(capsys, *(argument.format(**paths) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("checker: ")
    assert said in err
    for word in ("Traceback", "Errno", "the inventory's gpus", "candidates[", "unicode string"):
        assert word not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--context", "12"], "'12' is not a whole number from 256 to 2147483648"),
        (["--context", "9" * 5000], "is not a whole number from 256"),
        (["--ubatch", "9999999"], "'9999999' is not a whole number from 32 to 2048"),
        (["--tensor-split", "8,x"], "'8,x' is not a list of layers such as 38,11"),
        (["--tensor-split", "49,0"], "'49,0' leaves a card without layers"),
        (["--gpu-layers", "0"], "'0' is not a whole number from 1"),
        (["--gpu-layers", "all"], "nor auto: as many as fit"),
        (["--cache-type", "q2"], "q2"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_absurd_arguments_exit_2(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", "--hardware", "x.yml", *arguments])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert arguments[0] in err
    assert said in err


def test_what_was_chosen_of_a_range_of_context_is_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hardware: str
) -> None:
    tier_ = {"name": "deep", "port": 8081, "context": {"min": 4096, "max": 200_000}, "gpus": "any"}
    words = {"gpus": HARDWARE["gpus"], "tiers": [tier_ | {"candidates": [{"model": Q4}]}]}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"gpu_hosts": {"hosts": {"one": words}}}))
    arguments = ["-i", str(tmp_path / "hosts.yml"), "--hardware", hardware]
    code, out, _ = run(capsys, *arguments, "--format", "json")
    planned = tier(json.loads(out), "deep")
    chosen = planned["placement"]["ctx_size"]
    assert code == 0
    assert planned["context"] == {"min": 4096, "max": 200_000}
    assert 8192 < chosen < 32768
    cut_off, slower = planned["remarks"]
    assert "cut off at 131,072" in cut_off
    at_start = tier(json.loads(run(capsys, *arguments, "--context", "4096", "--format", "json")[1]), "deep")
    now, start = (each["tokens_per_second"]["expected"] for each in (planned, at_start))
    assert slower == (
        f"the range of the context costs speed: {now} tokens/s expected with {chosen:,}, {start} with 4,096"
    )
    assert now < start * 0.95
    _, out, _ = run(capsys, *arguments)
    assert f"context {chosen:,} of 4,096 to 200,000" in out
    assert "note: the range of the context was cut off at 131,072" in out
    # A wish goes before the inventory.
    _, out, _ = run(capsys, *arguments, "--context", "2048", "--format", "json")
    assert tier(json.loads(out), "deep")["context"] == {"min": 2048, "max": 2048}


def test_a_models_own_file_is_planned_for(capsys: pytest.CaptureFixture[str], tmp_path: Path, hardware: str) -> None:
    (file,) = small_gguf.write(tmp_path / "some-model.gguf")
    code, out, _ = run(capsys, "--hardware", hardware, "--model", str(file), "--format", "json")
    planned = tier(json.loads(out), "model")
    assert (code, planned["model"], planned["verdict"]) == (0, "some-model.gguf", "fits")


def test_the_default_context_is_no_more_than_the_model_was_trained_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hardware: str
) -> None:
    (file,) = small_gguf.write(tmp_path / "some-model.gguf")  # trained for 4,096
    arguments = ["--hardware", hardware, "--model", str(file), "--format", "json"]
    planned = tier(json.loads(run(capsys, *arguments)[1]), "model")
    assert (planned["placement"]["ctx_size"], planned["remarks"]) == (4096, [])
    chosen = tier(json.loads(run(capsys, *arguments, "--context", "8192")[1]), "model")
    assert chosen["placement"]["ctx_size"] == 8192
    assert "beyond what the model was trained for" in chosen["remarks"][0]


def test_the_inventory_is_read_in_any_locale(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    code, _, err = run(capsys, "-i", str(ROOT / "inventories/lab"))
    assert (code, err) == (0, "")


def test_a_host_with_too_little_memory_is_the_reason(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "tower.yml"
    path.write_text(yaml.safe_dump(HARDWARE | {"ram_mib": 8000}))
    wish = ["--hardware", str(path), "--model", "qwen2.5-32b-instruct-q4_k_m", "--gpu-layers"]
    for layers in ("auto", "28"):
        code, out, _ = run(capsys, *wish, layers, "--format", "json")
        planned = tier(json.loads(out), "model")
        assert code == 1
        (reason,) = planned["candidates"][0]["reasons"]
        assert reason.startswith("the host needs 1")
        assert all(device["spare_mib"] >= 0 for device in planned["devices"])


@pytest.mark.parametrize(
    ("ram", "said"),
    [
        ({"ram_mib": 16000}, "RAM: 14,464 of 16,000 MiB for tiers (the rest is the system's)"),
        (
            {},
            "RAM: not known, so it was not checked; give ram_mib in a hardware file or ram.total_mib in the inventory",
        ),
    ],
)
def test_the_table_says_what_ram_was_reckoned_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, ram: dict[str, int], said: str
) -> None:
    path = tmp_path / "tower.yml"
    path.write_text(yaml.safe_dump({"gpus": HARDWARE["gpus"], **ram}))
    _, out, _ = run(capsys, "--hardware", str(path), "--model", Q4)
    assert said in " ".join(out.split())


def test_the_table_calls_what_tiers_may_use_one_thing(
    capsys: pytest.CaptureFixture[str], hardware: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, "--hardware", hardware, "--model", Q4, "--tensor-split", "48,1")
    lines = out.splitlines()
    assert "RTX 3060 Ti: 7,613 of 8,192 MiB for tiers (292 taken: the profile's free_mib; 287 margin)" in lines
    assert "7,613 are for tiers (8,192 - 292 taken - 287 margin)" in out
    assert " MiB   1 layer\n" in out
    assert "free " not in out.replace("free_mib", "")
    # One empty line before the legend.
    assert lines[-2] == "" != lines[-3]
    assert lines[-1].startswith("░ taken")


@pytest.mark.parametrize("names", [[BIG, SMALL], [SMALL, BIG]])
def test_the_cards_of_the_table_are_in_the_inventorys_order(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, names: list[str]
) -> None:
    path = tmp_path / "tower.yml"
    path.write_text(yaml.safe_dump({"gpus": [{"name": name} for name in names]}))
    _, out, _ = run(capsys, "--hardware", str(path), "--model", Q4)
    assert [name for line in out.splitlines() for name in names if line.startswith(f"{short_name(name)}: ")] == names


def test_tiers_that_fit_only_alone_are_not_called_resident_together(cases: dict[str, Any]) -> None:
    def table(*sets: list[str]) -> str:
        return plans.render([cases["1-fast-and-deep"] | {"resident_together": [*sets]}], "table")

    assert "\nonly alone: fast, deep\n" in table(["fast"], ["deep"])
    assert "resident together" not in table(["fast"], ["deep"])
    assert "\nresident together: fast + tiny\nonly alone: deep\n" in table(["fast", "tiny"], ["deep"])
    assert "alone" not in table(["fast"])


def test_a_derived_header_is_not_presented_as_one_that_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    inventory = ["-i", str(ROOT / "inventories/production"), "--limit", "tower"]
    _, out, _ = run(capsys, *inventory, "--format", "json")
    assert tier(json.loads(out), "deep")["header_tolerance"] == 0.001
    _, out, _ = run(capsys, *inventory)
    assert "its header is derived, true to 0.1%" in out
    _, out, _ = run(capsys, "-i", str(ROOT / "inventories/lab"), "--format", "json")
    assert tier(json.loads(out), "deep")["header_tolerance"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"gpus": 5}, "gpus is 5, expected a list"),
        ({"tiers": "none"}, "tiers is 'none', expected a list"),
        (
            {"tiers": [{"name": "deep", "port": 1, "context": 512, "gpus": "any", "candidates": 5}]},
            "tier deep: candidates",
        ),
    ],
)
def test_an_inventory_of_the_wrong_shape_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: dict[str, Any], said: str
) -> None:
    good = {"gpus": [{"name": BIG, "uuid": "edit-me"}], "tiers": []}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"gpu_hosts": {"hosts": {"odd": {**good, **words}}}}))
    code, _, err = run(capsys, "-i", str(tmp_path / "hosts.yml"), "--context", "1024")
    assert code == 2
    assert said in err
    assert "Traceback" not in err


ORDER_HOLDS = "put it back with git, or remove it: then the inventory's order holds"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("host_vars/one/decision.yml", "a: {b: 1\n", ":2:1 is no YAML: while parsing a flow mapping, "),
        ("host_vars/one/decision.yml", "garbage", ": a file of variables has to hold `name: value` pairs"),
        ("host_vars/one/main.yml", "a: 1\n b: 2\n", ":2:3 is no YAML: mapping values are not allowed here"),
        (
            "host_vars/one/main.yml",
            "a: {{ b }}\n",
            ":1:5 is no YAML: while constructing a mapping, found unhashable key",
        ),
        ("host_vars/one/main.yml", "- a\n", ": a file of variables has to hold `name: value` pairs"),
        ("group_vars/gpu_hosts/main.yml", "a: [\n", ":2:1 is no YAML: while parsing a flow node, "),
        ("hosts.yml", "gpu_hosts: {\n", ":2:1 is no YAML: while parsing a flow node, "),
    ],
)
def test_a_damaged_file_of_an_inventory_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, text: str, said: str
) -> None:
    files = {
        "hosts.yml": "gpu_hosts: {hosts: {one: }}\n",
        # What Ansible reads, and what it does not, is not damaged.
        "group_vars/all/key.yml": "key: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3132\n",
        "group_vars/gpu_hosts/empty.yml": "---\n",
        "host_vars/one/main.yml~": "a: {",
        "host_vars/one/.main.yml.swp": "a: {",
        "host_vars/one/notes.txt": "a: {",
        "host_vars/two.yml": "$ANSIBLE_VAULT;1.1;AES256\n3132\n",
    }
    for path, content in {**files, name: text}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    for inventory in (tmp_path, tmp_path / "hosts.yml"):
        code, out, err = run(capsys, "-i", str(inventory))
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        assert line.startswith(f"checker: {tmp_path / name}{said}")
        assert (ORDER_HOLDS in line) == name.endswith("decision.yml")


@pytest.mark.parametrize("value", [0, -1, True, "many", float("inf"), None])
def test_speeds_that_nobody_can_decide_by_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, value: Any
) -> None:
    arguments = evidenced(tmp_path, None)
    document = yaml.safe_load((tmp_path / "hosts.yml").read_text())
    document["gpu_hosts"]["hosts"]["one"]["llama_tiers_acceptable_tokens_per_second"] = value
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(document))
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err == (
        f"checker: one: llama_tiers_acceptable_tokens_per_second {value!r} is wrong: "
        "expected tokens per second, more than 0\n"
    )


def test_a_bad_host_hides_no_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good = {
        "gpus": [{"name": BIG, "uuid": "edit-me"}, {"name": SMALL, "uuid": "edit-me"}],
        "tiers": [{"name": "deep", "port": 1, "context": 512, "gpus": "any", "candidates": [{"model": Q4}]}],
    }
    hosts = {"good": good, "bad": {**good, "gpus": []}, "worse": {**good, "gpus": [{"name": "NVIDIA Mystery"}]}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"gpu_hosts": {"hosts": hosts}}))
    code, out, err = run(capsys, "-i", str(tmp_path / "hosts.yml"), "--format", "json")
    assert code == 2
    assert json.loads(out)["host"] == "good"
    bad, worse = err.splitlines()
    assert bad.startswith("checker: bad: gpus is empty")
    assert worse.startswith("checker: worse: tier deep: the memory of NVIDIA Mystery is not known")
    # What is wrong for all of them is said once.
    _, out, err = run(capsys, "-i", str(tmp_path / "hosts.yml"), "--model", "nonesuch")
    assert out == ""
    (said,) = err.splitlines()
    assert said.startswith("checker: bad, good, worse: 'nonesuch' is neither")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"gpus": "{{ found.gpus }}"}, "one: gpus has a template, '{{ found.gpus }}', which only a play resolves"),
        ({"tiers": [{"name": "deep", "gpus": ["{{ gpus[0].uuid }}"]}]}, "tiers has a template, '{{ gpus[0].uuid }}'"),
        ({"llama_cpp_engine": "{% if a %}b{% endif %}"}, "llama_cpp_engine has a template"),
    ],
)
def test_what_only_a_play_resolves_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: dict[str, Any], said: str
) -> None:
    arguments = evidenced(tmp_path, None)
    inventory = yaml.safe_load((tmp_path / "hosts.yml").read_text())
    inventory["gpu_hosts"]["hosts"]["one"] |= words
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1, "and nothing that follows from it"


def evidenced(folder: Path, text: str | None, directory: str | None = None) -> list[str]:
    """Write an inventory of one host with evidence; return the arguments that plan it."""
    uuids = {name: f"GPU-{index:08x}-0000-4000-8000-000000000000" for index, name in enumerate((BIG, SMALL))}
    words = {
        "gpus": [{"name": name, "uuid": uuid} for name, uuid in uuids.items()],
        "tiers": [{"name": "deep", "port": 1, "context": 8192, "gpus": "any", "candidates": [{"model": Q4}]}],
        "verification_documents_directory": directory or str(folder),
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump({"gpu_hosts": {"hosts": {"one": words}}}))
    (folder / "evidence").mkdir(exist_ok=True)
    if text is not None:
        (folder / "evidence/one.json").write_text(text)
    return ["-i", str(folder / "hosts.yml")]


def test_what_verification_measured_sharpens_what_a_plan_expects(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def planned(*arguments: str) -> dict[str, Any]:
        return tier(json.loads(run(capsys, *arguments, "--format", "json")[1]), "deep")

    before = planned(*evidenced(tmp_path, None))
    report = example_report.report().to_json()
    evidence = report["tiers"][0]["evidence"]
    evidence["model"]["name"] = Q4
    evidence["model"]["sha256"] = "0b319bd0572f2730bfe11cc751defe82045fad5085b4e60591ac2cd2d9633181"
    evidence["placement"] |= {key: before["placement"][key] for key in ("tensor_split", "n_gpu_layers", "ctx_size")}
    for device, of_plan in zip(evidence["devices"], before["devices"], strict=True):
        device["uuid"] = of_plan["uuid"]
    evidence["thorough"]["short"]["generation_tokens_per_second"]["median"] = before["tokens_per_second"]["expected"]
    arguments = evidenced(tmp_path, json.dumps(report))
    after = planned(*arguments)
    speed, prior = after["tokens_per_second"], before["tokens_per_second"]
    # It was measured with a nearly empty context, with a half full one less is expected.
    assert prior["low"] < speed["low"] < speed["expected"] < prior["expected"]
    assert speed["high"] < prior["high"]
    assert speed["by"] == "measured on this host: 1 run, 2026-11-24"
    assert {device["speed_by"] for device in after["devices"]} == {speed["by"]}
    assert (after["placement"], after["devices"][0]["total_mib"]) == (
        before["placement"],
        before["devices"][0]["total_mib"],
    )
    _, out, _ = run(capsys, *arguments)
    assert f"{speed['expected']:.1f} tokens/s expected ({speed['low']:.1f} to" in out
    assert "speed by: measured on this host: 1 run, 2026-11-24" in out


def test_what_verification_measured_of_cuda_itself_is_planned_with_and_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def devices(*arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = tier(json.loads(run(capsys, *arguments, "--format", "json")[1]), "deep")[
            "devices"
        ]
        return found

    before = devices(*evidenced(tmp_path, None))
    report = example_report.report().to_json()
    for index, device in enumerate(report["tiers"][0]["evidence"]["devices"]):
        device |= {"name": f"CUDA{index}", "uuid": next(d["uuid"] for d in before if d["gpu"] == device["gpu"])}
    for card, device in zip(report["tiers"][0]["evidence"]["thorough"]["cards"], before[::-1], strict=True):
        card |= {"uuid": device["uuid"], "peak_mib": 400.0}
    arguments = evidenced(tmp_path, json.dumps(report))
    after = {device["gpu"]: device for device in devices(*arguments)}
    assert [after[name]["overhead_mib"] for name in (BIG, SMALL)] == [154, 312]
    said = "measured on this host with deep, 2026-11-24, driver 580.126.09"
    assert {device["overhead_by"] for device in after.values()} == {said}
    assert all("estimate" in device["overhead_by"] for device in before)
    assert f"CUDA itself 312 MiB: {said}" in run(capsys, *arguments)[1]


@pytest.mark.parametrize(
    ("text", "directory", "said"),
    [
        ("{", None, "evidence/one.json tells nothing of speeds and memory: "),
        ("{}", None, "it is no report of schema 'llama-tiers/report/1'; `checker verify` writes it anew"),
        (None, "{{ somewhere }}", "verification_documents_directory '{{ somewhere }}' is a template"),
    ],
)
def test_evidence_that_cannot_be_read_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, directory: str | None, said: str
) -> None:
    arguments = evidenced(tmp_path, text, directory)
    code, out, _ = run(capsys, *arguments, "--format", "json")
    document = json.loads(out)
    (remark,) = document["remarks"]
    assert code == 0
    assert said in remark
    assert tier(document, "deep")["tokens_per_second"]["by"] == "priors"
    assert f"note: {remark[:40]}" in run(capsys, *arguments)[1]


def test_what_nothing_reads_and_what_cannot_be_fetched_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = evidenced(tmp_path, None)
    inventory = tmp_path / "hosts.yml"
    document = yaml.safe_load(inventory.read_text())
    words = document["gpu_hosts"]["hosts"]["one"]
    words |= {"llama_cpp_backed": "cuda", "tiers_idle_s": 60, "ansible_host": "tower.example"}
    words["tiers"][0]["candidates"] = [{"model": "llama-3.1-8b-instruct-abliterated-q6_k"}]
    inventory.write_text(yaml.safe_dump(document))
    code, out, _ = run(capsys, *arguments, "--format", "json")
    assert code == 0
    assert json.loads(out)["remarks"] == [
        "nothing reads llama_cpp_backed in the inventory: did you mean llama_cpp_backend?",
        "the catalogue has no sha256, without which nothing is fetched: "
        "run `checker lock llama-3.1-8b-instruct-abliterated-q6_k`",
    ]


def test_of_the_candidates_that_have_room_a_trial_names_what_cannot_be_fetched(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = evidenced(tmp_path, None)
    document = yaml.safe_load((tmp_path / "hosts.yml").read_text())
    tiers = document["gpu_hosts"]["hosts"]["one"]["tiers"]
    unlocked = ("llama-3.1-8b-instruct-abliterated-q6_k", "qwen2.5-7b-instruct-abliterated-q6_k")
    # The last one, which has no room on these cards, would not be fetched in any case.
    tiers[0]["candidates"] = [{"model": name} for name in (Q4, *unlocked, unlocked[0], "qwen2.5-32b-instruct-q4_k_m")]
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(document))
    code = cli.main(["trial", *arguments, "--dry-run", "--format", "json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [each["verdict"] for each in document["tiers"][0]["candidates"]] == [*["fits"] * 4, "does-not-fit"]
    assert document["remarks"] == [
        f"the catalogue has no sha256, without which nothing is fetched: run `checker lock {' '.join(unlocked)}`"
    ]


def test_a_model_of_a_signed_url_is_called_by_its_path(monkeypatch: pytest.MonkeyPatch, hardware: str) -> None:
    models: dict[str, Any] = {}
    monkeypatch.setattr(planning, "read_header", lambda source: shaped(Q4))
    wishes = planning.Wishes(model="https://hub.example/a/some.gguf?X-Signature=SECRET")
    assert planning._tier_of(wishes, models)["candidates"] == [{"model": "some.gguf"}]
    assert list(models) == ["some.gguf"]


def screened(capsys: pytest.CaptureFixture[str], host: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Screen a case of the reference inventory; return the exit code, and by tier each candidate in words."""
    inventory = str(ROOT / "inventories/reference")
    code = cli.main(["trial", "-i", inventory, "--limit", host, "--dry-run", "--format", "json"])
    tiers = json.loads(capsys.readouterr().out)["tiers"]
    return code, {
        (tier["name"], f"{each['model']} {each['words']}"): each for tier in tiers for each in tier["candidates"]
    }


def test_the_candidates_of_the_reference_host_are_screened(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = screened(capsys, "9-trials")
    assert code == 0
    assert {key: each["verdict"] == "fits" for key, each in found.items()} == {
        ("deep", f"{Q5} auto"): False,
        ("deep", f"{Q5} 36,13"): False,
        ("deep", f"{Q4} auto"): True,
        ("deep", f"{Q4} 38,11"): True,
        ("deep", f"{Q4} 36,13"): False,
        ("deep", f"{Q4} 36,6, 42 layers on the cards"): True,
        ("deep", f"{Q4} 38,11, tensor split"): False,
        ("deep", f"{Q4} one card, the rest on the CPU"): True,
        ("deep", "qwen2.5-14b-instruct-q6_k the rest on the CPU"): True,
        ("deep", "deepseek-r1-distill-qwen-7b-q6_k one card"): True,
        ("fast", "llama-3.1-8b-instruct-abliterated-q6_k auto"): True,
        ("fast", "qwen2.5-7b-instruct-abliterated-q6_k auto"): True,
        ("max", "qwen2.5-32b-instruct-q4_k_m the rest on the CPU"): True,
    }
    for words, card in (("36,13", SMALL), ("38,11, tensor split", BIG)):
        (reason,) = found["deep", f"{Q4} {words}"]["reasons"]
        assert reason.startswith(f"{short_name(card)} needs ")


def test_of_row_splits_the_reference_host_has_room_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = screened(capsys, "10-trials-with-row-split")
    assert code == 0
    reasons = {words: each["reasons"] for (_, words), each in found.items()}
    assert not reasons[f"{Q4} 37,12, row split"]
    for words, card in (("38,11", BIG), ("36,13", SMALL)):
        (reason,) = reasons[f"{Q4} {words}, row split"]
        assert reason.startswith(f"{short_name(card)} needs ")
