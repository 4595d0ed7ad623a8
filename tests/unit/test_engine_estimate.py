"""The engine's own estimate: what is asked of the release, and what a difference from the plan says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_tier
import pytest

from checker import engine_estimate, tier
from checker.engine_estimate import Estimate, EstimateError
from inventories import BIG, SMALL


@pytest.fixture
def spec(tmp_path: Path) -> tier.TierSpec:
    """Return a tier whose release lies in tmp_path; `answer` there is its llama-fit-params."""
    devices = tuple(replace(device, kv_mib=20.0, compute_mib=1.0) for device in fake_tier.spec().devices)
    argv = (
        str(tmp_path / "llama-server"),
        "--model",
        "/m.gguf",
        "--alias",
        "tiny",
        "--tensor-split",
        "13,6",
        "--no-ui",
    )
    return fake_tier.spec(argv=argv, devices=devices, environment={"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"})


def answer(spec: tier.TierSpec, script: str) -> None:
    binary = Path(spec.argv[0]).with_name("llama-fit-params")
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)


def test_the_release_is_asked_with_the_flags_that_decide_memory_on_the_tiers_own_cards(spec: tier.TierSpec) -> None:
    answer(spec, 'echo "$@ $CUDA_VISIBLE_DEVICES" > "$(dirname "$0")/asked"; echo "RPC0 185 20 273"; echo "Host 1 0 9"')
    assert engine_estimate.ask(spec) == {"RPC0": Estimate(185, 20), "Host": Estimate(1, 0)}
    asked = Path(spec.argv[0]).with_name("asked").read_text().strip()
    assert asked == "--model /m.gguf --tensor-split 13,6 --fit-print on GPU-1,GPU-2"


def test_lines_that_are_no_estimate_are_passed_over(spec: tier.TierSpec) -> None:
    answer(spec, 'echo "RPC0  185 20 273"; echo "RPC1 12 abc 9"; echo "took 3 ms x"; echo "common 1 2 3 4"')
    assert engine_estimate.ask(spec) == {"RPC0": Estimate(185, 20)}


def test_an_engine_that_fails_is_quoted(spec: tier.TierSpec) -> None:
    answer(spec, "echo 'cudaMalloc failed: out of memory' >&2; exit 1")
    with pytest.raises(EstimateError, match=r"^deep: .*llama-fit-params gave no estimate \(exit 1\).*out of memory"):
        engine_estimate.ask(spec)
    Path(spec.argv[0]).with_name("llama-fit-params").unlink()
    with pytest.raises(EstimateError, match=r"llama-fit-params gave no estimate: .*No such file"):
        engine_estimate.ask(spec)


def test_split_modes_that_the_engine_cannot_estimate_are_not_asked_for(spec: tier.TierSpec) -> None:
    assert engine_estimate.ask(replace(spec, placement=replace(spec.placement, split_mode="tensor"))) is None


def test_figures_that_agree_say_nothing(spec: tier.TierSpec) -> None:
    assert engine_estimate.disagreements(spec, {"RPC0": Estimate(185, 20), "RPC1": Estimate(50, 20)}) == []


@pytest.mark.parametrize(
    ("told", "uuid"),
    [
        ({"RPC0": Estimate(285, 20), "RPC1": Estimate(50, 20)}, BIG["uuid"]),
        ({"RPC0": Estimate(185, 20), "RPC1": Estimate(50, 60)}, SMALL["uuid"]),
        ({"RPC0": Estimate(185, 20)}, SMALL["uuid"]),
    ],
    ids=["weights", "KV cache", "a card that the engine leaves empty"],
)
def test_a_difference_names_the_card_and_both_figures(
    spec: tier.TierSpec, told: dict[str, Estimate], uuid: str
) -> None:
    (problem,) = engine_estimate.disagreements(spec, told)
    assert problem.startswith(f"deep: on {uuid} ")
    device = next(device for device in spec.devices if device.uuid == uuid)
    engine = told.get(device.name, Estimate(0, 0))
    assert f"expects {engine.weights_mib} MiB of weights and {engine.kv_mib} of KV" in problem
    assert f"planned are {device.weights_mib:.0f} and {device.kv_mib:.0f}" in problem


def test_weights_on_the_host_are_compared_where_the_engine_tells_all_of_them(spec: tier.TierSpec) -> None:
    right = {"RPC0": Estimate(185, 20), "RPC1": Estimate(50, 20)}
    planned = replace(spec, host_weights_mib=170.0)
    assert engine_estimate.disagreements(planned, right | {"Host": Estimate(169, 0)}) == []
    (problem,) = engine_estimate.disagreements(planned, right | {"Host": Estimate(300, 0)})
    assert problem.startswith("deep: in the host's memory llama-fit-params expects 300 MiB of weights, planned are 170")
    # Repacked for the CPU, which the engine does not print.
    assert engine_estimate.disagreements(planned, right | {"Host": Estimate(2, 0)}) == []
    cuda = replace(planned, devices=tuple(replace(device, rpc_endpoint=None) for device in spec.devices))
    assert len(engine_estimate.disagreements(cuda, right | {"Host": Estimate(2, 0)})) == 1


def test_what_was_not_planned_is_not_compared(spec: tier.TierSpec) -> None:
    unknown = replace(spec, devices=tuple(replace(device, weights_mib=None) for device in spec.devices))
    assert engine_estimate.disagreements(unknown, {}) == []
