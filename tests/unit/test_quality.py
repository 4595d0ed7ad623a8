"""Quality of a split: llama-perplexity runs with the tiers out of the way, which serve again whatever happens."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from example_report import CARDS, PLANNED
from test_perplexity import ARGV, PRINTED

from checker import activation, hardware, quality, systemd
from checker.evidence import Quality
from checker.tier import TierSpec
from inventories import BIG


@dataclass
class Units:
    """What systemd does: `states` are those of units that are not up, `stuck` those that do not start again."""

    states: dict[str, str] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)
    done: list[str] = field(default_factory=list)


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> Units:
    played = Units()

    def state(unit: str) -> systemd.UnitState:
        # Nothing has failed, when a test says nothing else.
        usual = "inactive" if unit.endswith(("-cooldown.service", "-fallback.socket")) else "active"
        return systemd.UnitState(played.states.get(unit, usual), "", 1, "", "", 0, 0)

    def start(unit: str, timeout_s: float) -> None:
        played.done.append(f"start {unit} within {timeout_s:g} s")
        if unit in played.stuck:
            raise systemd.SystemdError(f"{unit} did not start")

    def do(what: str) -> Callable[[str], None]:
        return lambda unit: played.done.append(f"{what} {unit}")

    monkeypatch.setattr(systemd, "unit_state", state)
    monkeypatch.setattr(systemd, "stop", do("stop"))
    monkeypatch.setattr(activation, "end", do("end"))
    monkeypatch.setattr(systemd, "start", start)
    monkeypatch.setattr(systemd, "start_alone", do("start alone"))
    monkeypatch.setattr(systemd, "restart", do("restart"))
    monkeypatch.setattr(systemd, "user", lambda unit: "")
    monkeypatch.setattr(hardware, "read_gpus", lambda: CARDS)
    return played


def engine(directory: Path, script: str) -> TierSpec:
    """Return tier `deep`, whose release's llama-perplexity is a shell script: $* are its arguments."""
    binary = directory / "llama-perplexity"
    binary.write_text(f'#!/bin/sh\necho "$*" >> {directory}/asked\n{script}\n')
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    (directory / "printed").write_text(PRINTED.format(mean="0.000002", same="99.804"))
    return replace(PLANNED, argv=(str(directory / "llama-server"), *ARGV[1:]))


def measure(directory: Path, *specs: TierSpec) -> dict[str, Any]:
    return quality.measure(specs, directory)


def asked(directory: Path) -> list[str]:
    return (directory / "asked").read_text().splitlines()


def test_a_split_is_compared_with_the_largest_card_alone_after_the_noise(tmp_path: Path, units: Units) -> None:
    spec = engine(tmp_path, f"cat {tmp_path}/printed")
    found = measure(tmp_path, spec)["deep"]
    assert isinstance(found, Quality)
    assert found.reference == f"{BIG['uuid']} ({BIG['name']}) alone"
    assert (found.tokens, found.noise_mean_kld, found.mean_kld, found.same_top_share) == (1020, 2e-6, 2e-6, 0.99804)
    base, noise, split = asked(tmp_path)
    assert "--device RPC0 " in base and "--file" in base and "alice.txt" in base
    assert "--device RPC0 " in noise and noise.endswith("--kl-divergence")
    assert "--tensor-split 14,5" in split and split.endswith("--kl-divergence")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [], "the logits are gone"


def test_every_tier_makes_room_and_serves_again_but_not_what_was_down(tmp_path: Path, units: Units) -> None:
    """The target first, for it brings pinned tiers back; ports last, for a request loads a tier, and maybe a rival."""
    units.states = {"llama-tier-spare.service": "inactive", "llama-tier-spare.socket": "inactive"}
    spec = engine(tmp_path, f"cat {tmp_path}/printed")
    single = replace(spec, placement=replace(spec.placement, tensor_split=(19,)))
    found = measure(tmp_path, replace(single, name="fast"), spec, replace(single, name="spare"))
    assert list(found) == ["deep"], "a tier on one card has no split to judge"
    assert units.done == [
        "stop llama-tiers.target",
        "end fast",
        "end deep",
        "end spare",
        "start alone llama-tiers.target",
        "start llama-tier-fast.service within 375 s",
        "start llama-tier-deep.service within 375 s",
        "start llama-tier-fast.socket within 375 s",
        "start llama-tier-deep.socket within 375 s",
    ]


def test_a_tier_that_has_failed_is_as_it_was_afterwards(tmp_path: Path, units: Units) -> None:
    """Its cooldown goes on, with its fallback where it has one; who waits for a card waits again, and nobody for it."""
    units.states = {
        "llama-tier-deep.service": "failed",
        "llama-tier-deep.socket": "inactive",
        "llama-tier-deep-cooldown.service": "active",
        "llama-tier-deep-fallback.socket": "active",
        "llama-tier-fast.service": "activating",
    }
    spec = engine(tmp_path, f"cat {tmp_path}/printed")
    measure(tmp_path, spec, replace(spec, name="fast"))
    assert units.done[units.done.index("start alone llama-tiers.target") :] == [
        "start alone llama-tiers.target",
        "restart llama-tier-fast.service",
        "start llama-tier-deep-cooldown.service within 375 s",
        "start llama-tier-deep-fallback.socket within 375 s",
        "start llama-tier-fast.socket within 375 s",
    ]


def test_a_host_whose_tiers_are_all_stopped_stays_so(tmp_path: Path, units: Units) -> None:
    units.states = dict.fromkeys(
        ("llama-tiers.target", "llama-tier-deep.service", "llama-tier-deep.socket"), "inactive"
    )
    assert isinstance(measure(tmp_path, engine(tmp_path, f"cat {tmp_path}/printed"))["deep"], Quality)
    assert [done for done in units.done if "start" in done] == []


def test_without_a_split_nobody_is_stopped(tmp_path: Path, units: Units) -> None:
    spec = engine(tmp_path, "exit 1")
    assert measure(tmp_path, replace(spec, placement=replace(spec.placement, tensor_split=(19,)))) == {}
    assert units.done == []


def test_a_model_too_large_for_one_card_is_compared_with_the_cpu(tmp_path: Path, units: Units) -> None:
    full = f"case \"$*\" in *'--split-mode none'*) echo out of memory >&2; exit 1;; esac; cat {tmp_path}/printed"
    found = measure(tmp_path, engine(tmp_path, full))["deep"]
    assert isinstance(found, Quality)
    assert found.reference == "host memory, by the CPU"
    assert ["--device none" in line for line in asked(tmp_path)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo error: no such model >&2; exit 3", "failed (exit 3): error: no such model"),
        ("echo nothing of the kind", "told no KL divergence: nothing of the kind"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence_and_the_tiers_serve_again(
    tmp_path: Path, units: Units, script: str, said: str
) -> None:
    found = measure(tmp_path, engine(tmp_path, script))["deep"]
    assert str(found).startswith("quality of the split was not measured: ")
    assert said in str(found)
    assert "start llama-tier-deep.service within 375 s" in units.done


def test_an_engine_without_the_program_is_a_sentence(tmp_path: Path, units: Units) -> None:
    spec = engine(tmp_path, "")
    (tmp_path / "llama-perplexity").unlink()
    assert "llama-perplexity" in str(measure(tmp_path, spec)["deep"])


def test_a_user_that_is_not_there_is_a_sentence(tmp_path: Path, units: Units, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(systemd, "user", lambda unit: "nobody-of-that-name")
    assert "nobody-of-that-name" in str(measure(tmp_path, engine(tmp_path, ""))["deep"])
    assert "start llama-tier-deep.service within 375 s" in units.done


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs a program as somebody else")
def test_the_engine_runs_with_the_groups_of_its_user_alone(units: Units, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "user", lambda unit: "nobody")
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        spec = engine(Path(made), 'echo "ids $(id -u) $(id -G)"; exit 1')
        (Path(made) / "llama-perplexity").chmod(0o755)
        assert f"ids {nobody.pw_uid} {nobody.pw_gid}" in str(measure(Path(made), spec)["deep"])


def test_a_unit_that_does_not_tell_its_user_is_a_sentence(
    tmp_path: Path, units: Units, monkeypatch: pytest.MonkeyPatch
) -> None:
    def user(unit: str) -> str:
        raise systemd.SystemdError("systemctl show failed")

    monkeypatch.setattr(systemd, "user", user)
    assert str(measure(tmp_path, engine(tmp_path, ""))["deep"]).endswith("was not measured: systemctl show failed")


def test_one_tier_that_does_not_start_again_does_not_keep_the_others_down(tmp_path: Path, units: Units) -> None:
    units.stuck = {"llama-tier-deep.service"}
    spec = engine(tmp_path, f"cat {tmp_path}/printed")
    with pytest.raises(systemd.SystemdError, match=r"llama-tier-deep\.service did not start"):
        measure(tmp_path, spec, replace(spec, name="fast"))
    assert "start llama-tier-fast.service within 375 s" in units.done
