"""Quality of a split: llama-perplexity runs with the tiers out of the way, which serve again whatever happens."""

from __future__ import annotations

import os
import pickle
import pwd
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_report import CARDS, PLANNED
from test_perplexity import ARGV, PRINTED

from checker import activation, hardware, quality, restoring, systemd
from checker.evidence import Quality
from checker.tier import TierSpec
from inventories import BIG


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what becomes of what serves."""
    done: list[str] = []

    @contextmanager
    def alone(patience_s: float) -> Iterator[None]:
        done.append("alone")
        try:
            yield
        finally:
            done.append("not alone")

    monkeypatch.setattr(activation, "alone", alone)
    monkeypatch.setattr(restoring, "make_room", lambda: done.append("make room"))
    monkeypatch.setattr(restoring, "restore", lambda: done.append("restore"))
    monkeypatch.setattr(systemd, "run_aside", lambda what, *command: done.append(f"guard: {' '.join(command[1:])}"))
    monkeypatch.setattr(systemd, "user", lambda unit: "")
    monkeypatch.setattr(hardware, "read_gpus", lambda: CARDS)
    return done


def engine(directory: Path, script: str) -> TierSpec:
    """Return tier `deep`, whose release's llama-perplexity is a shell script: $* are its arguments."""
    binary = directory / "llama-perplexity"
    binary.write_text(f'#!/bin/sh\necho "$*" >> {directory}/asked\n{script}\n')
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    (directory / "printed").write_text(PRINTED.format(mean="0.000002", same="99.804"))
    return replace(PLANNED, argv=(str(directory / "llama-server"), *ARGV[1:]))


def measure(directory: Path, *specs: TierSpec) -> dict[str, Any]:
    return quality.measure(specs, pytest.fail, directory)


def failing(directory: Path) -> tuple[str, list[str]]:
    """Measure tier `deep` where something goes wrong; return what is found of it and what is reported."""
    said: list[str] = []
    return str(quality.measure([engine(directory, f"cat {directory}/printed")], said.append, directory)["deep"]), said


def asked(directory: Path) -> list[str]:
    return (directory / "asked").read_text().splitlines()


def test_a_split_is_compared_with_the_largest_card_alone_after_the_noise(tmp_path: Path, room: list[str]) -> None:
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


def test_what_serves_makes_room_for_a_split_and_serves_again(tmp_path: Path, room: list[str]) -> None:
    """So does what a trial that was cut off has stopped, which would be down for good else."""
    spec = engine(tmp_path, f"cat {tmp_path}/printed")
    single = replace(spec, name="fast", placement=replace(spec.placement, tensor_split=(19,)))
    assert list(measure(tmp_path, single, spec)) == ["deep"], "a tier on one card has no split to judge"
    assert room == [
        *("alone", "restore", "guard: -m checker.trial_run restore"),
        *("make room", "restore", "not alone"),
    ]


def test_without_a_split_nobody_is_stopped(tmp_path: Path, room: list[str]) -> None:
    spec = engine(tmp_path, "exit 1")
    assert measure(tmp_path, replace(spec, placement=replace(spec.placement, tensor_split=(19,)))) == {}
    assert room == []


def test_one_that_does_not_stop_keeps_nobody_down(
    tmp_path: Path, room: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise systemd.SystemdError("llama-tier-deep.service: no answer within 240 s")

    monkeypatch.setattr(restoring, "make_room", refuse)
    found, said = failing(tmp_path)
    assert said == ["llama-tier-deep.service: no answer within 240 s"]
    assert found == f"quality of the split was not measured: {said[0]}"
    assert room[-2:] == ["restore", "not alone"]


def test_one_that_does_not_start_again_is_told_and_what_was_found_stands(
    tmp_path: Path, room: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        if "make room" in room:
            raise systemd.SystemdError("what served before does not start again: llama-tier-fast.service failed")

    monkeypatch.setattr(restoring, "restore", refuse)
    found, said = failing(tmp_path)
    assert "mean_kld=2e-06" in found
    assert said == ["what served before does not start again: llama-tier-fast.service failed"]


def test_what_cannot_be_guarded_is_not_stopped(
    tmp_path: Path, room: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(what: str, *command: str) -> None:
        raise systemd.SystemdError("systemd-run failed (exit 1)")

    monkeypatch.setattr(systemd, "run_aside", refuse)
    assert failing(tmp_path)[0].endswith("was not measured: systemd-run failed (exit 1)")
    assert "make room" not in room


def test_a_trial_that_has_the_tiers_is_not_waited_for_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation, "_LOCK", tmp_path / "lock")
    monkeypatch.setattr(quality, "_PATIENCE_S", 0.05)
    with activation.alone():
        found, said = failing(tmp_path)
    assert said[0].startswith("a trial, a run of site.yml or another measurement starts and stops tiers of this host")
    assert found.endswith("try again when it is done")


def test_the_engine_does_not_outlive_the_measurement(tmp_path: Path, room: list[str]) -> None:
    """It would hold the memory that the tiers need again."""
    spec = engine(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    script = "import pickle, sys; from pathlib import Path; from checker import quality; "
    script += "quality._run(pickle.load(sys.stdin.buffer), [sys.argv[1]], '')"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "llama-perplexity")], stdin=subprocess.PIPE
    ) as measuring:
        assert measuring.stdin
        pickle.dump(spec, measuring.stdin)
        measuring.stdin.close()
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        measuring.kill()
    engine_process = Path("/proc") / (tmp_path / "pid").read_text().strip()
    while engine_process.exists() and "sleep" in (engine_process / "cmdline").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_model_too_large_for_one_card_is_compared_with_the_cpu(tmp_path: Path, room: list[str]) -> None:
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
    tmp_path: Path, room: list[str], script: str, said: str
) -> None:
    found = measure(tmp_path, engine(tmp_path, script))["deep"]
    assert str(found).startswith("quality of the split was not measured: ")
    assert said in str(found)
    assert room[-2:] == ["restore", "not alone"]


def test_an_engine_without_the_program_is_a_sentence(tmp_path: Path, room: list[str]) -> None:
    spec = engine(tmp_path, "")
    (tmp_path / "llama-perplexity").unlink()
    assert "llama-perplexity" in str(measure(tmp_path, spec)["deep"])


def test_a_user_that_is_not_there_is_a_sentence(
    tmp_path: Path, room: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(systemd, "user", lambda unit: "nobody-of-that-name")
    assert "nobody-of-that-name" in str(measure(tmp_path, engine(tmp_path, ""))["deep"])
    assert room[-2:] == ["restore", "not alone"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs a program as somebody else")
def test_the_engine_runs_with_the_groups_of_its_user_alone(room: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "user", lambda unit: "nobody")
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        spec = engine(Path(made), 'echo "ids $(id -u) $(id -G)"; exit 1')
        (Path(made) / "llama-perplexity").chmod(0o755)
        assert f"ids {nobody.pw_uid} {nobody.pw_gid}" in str(measure(Path(made), spec)["deep"])


def test_a_unit_that_does_not_tell_its_user_is_a_sentence(
    tmp_path: Path, room: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def user(unit: str) -> str:
        raise systemd.SystemdError("systemctl show failed")

    monkeypatch.setattr(systemd, "user", user)
    assert str(measure(tmp_path, engine(tmp_path, ""))["deep"]).endswith("was not measured: systemctl show failed")
