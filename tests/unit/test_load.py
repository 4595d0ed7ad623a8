"""Where the time of a start went, by a journal as the engine writes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_tier
import pytest

from checker import load
from checker.systemd import Line, UnitState

STATE = UnitState("active", "running", 4711, "run", "success", 1_000_000, 9_250_000)
# Times and words of a real start (engine 0c1e57098); systemd's own line stands first.
SAID = [
    (900_000, 1, "Starting llama-tier-deep.service - llama.cpp tier deep..."),
    (1_500_000, 4711, "srv  llama_server: initializing ..."),
    (
        2_000_000,
        4711,
        "common_param: system_info: n_threads = 8 | CUDA : ARCHS = 610,860 | USE_GRAPHS = 1 | CPU : SSE3 = 1",
    ),
    (
        7_000_000,
        4711,
        "common_init_: warming up the model with an empty run - please wait ... (--no-warmup to disable)",
    ),
    (8_000_000, 4711, "srv  llama_server: model loaded"),
]
LINES = [Line(when, pid, fake_tier.as_jsonl(said) if pid != 1 else said) for when, pid, said in SAID]


def test_a_start_is_split_by_the_marks_of_the_log() -> None:
    assert load.phases(STATE, LINES) == {"process_s": 0.5, "weights_s": 5.5, "warm_up_s": 1.0, "proof_s": 1.25}


def test_the_parts_are_all_of_the_time() -> None:
    parts = load.phases(STATE, LINES).values()
    assert sum(part or 0 for part in parts) == pytest.approx((9_250_000 - 1_000_000) / 1e6)


@pytest.mark.parametrize(
    ("lines", "state", "unknown"),
    [
        ([], STATE, {"process_s", "weights_s", "warm_up_s", "proof_s"}),
        (LINES[:3], STATE, {"weights_s", "warm_up_s", "proof_s"}),
        (LINES, replace(STATE, active_state="activating"), {"proof_s"}),
        (LINES, replace(STATE, started_monotonic_us=0), {"process_s"}),
        (LINES, replace(STATE, main_pid=12), {"process_s", "weights_s", "warm_up_s", "proof_s"}),
    ],
    ids=["vacuumed", "still loading", "not ready yet", "never started", "another process"],
)
def test_what_no_mark_bounds_is_unknown(lines: list[Line], state: UnitState, unknown: set[str]) -> None:
    assert {name for name, seconds in load.phases(state, lines).items() if seconds is None} == unknown


def test_storage_is_read_by_process_and_all_parts_of_a_model_count(tmp_path: Path) -> None:
    (tmp_path / "4711").mkdir()
    (tmp_path / "4711/io").write_text("rchar: 7332669\nread_bytes: 12062720\nwrite_bytes: 0\n")
    for part in (1, 2, 3):
        (tmp_path / f"big-0000{part}-of-00003.gguf").write_bytes(bytes(part * 1024 * 1024))
    found = load.read(STATE, LINES, tmp_path / "big-00001-of-00003.gguf", proc=tmp_path)
    assert (found.read_mib, found.model_mib, found.compiled_for) == (11.5, 6.0, ("6.1", "8.6"))
    one = load.read(STATE, LINES[:2], tmp_path / "big-00002-of-00003.gguf", proc=tmp_path / "absent")
    assert (one.read_mib, one.model_mib, one.compiled_for) == (None, 2.0, ())
    assert load.read(STATE, [], tmp_path / "absent.gguf", proc=tmp_path).model_mib is None
