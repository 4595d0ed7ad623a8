"""What a soak makes of what it has seen: which tier may be hit by its limit, and how the kernel tells it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import soak
from soak import Sample, Seen

LIMITS = {"fast": 2000.0, "deep": 2000.0}
MIB = 2**20


def seen(*, pid: int = 1, a_minute: float = 0.0, hits: int = 0, kills: int = 0, failed: int = 0) -> Seen:
    """Return what a tier did in ten minutes, with memory that grew by so many MiB in each of the last five."""
    samples = [
        Sample(60.0 * at, pid, 600, 650, 100 + max(0, at - 5) * a_minute, hits, kills, 400.0) for at in range(11)
    ]
    return Seen(answered=20, long_prompts=9, failures=[(1.0, "refused")] * failed, samples=samples)


def own(**changes: Seen) -> list[str]:
    return list(soak.faults({"fast": seen(), "deep": seen()} | changes, LIMITS, None, 0))


def test_tiers_that_answer_and_hold_their_memory_are_well() -> None:
    assert own() == []


@pytest.mark.parametrize(
    ("deep", "said"),
    [
        (seen(failed=2), "deep: 2 requests failed, the first: refused"),
        (seen(kills=1, hits=9), "deep: its limit acted"),
        (seen(a_minute=50), "deep: in 50 min it would hold 2,850 MiB, of 2,000 allowed"),
        (Seen(failures=[(1.0, "refused")]), "deep: it was never seen to run"),
        (Seen(long_prompts=1, samples=[*seen().samples, *seen(pid=2).samples]), "deep: it was started again"),
        (Seen(answered=3, samples=seen().samples), "deep: no long prompt was answered"),
    ],
)
def test_what_a_tier_must_not_do_under_its_own_limit(deep: Seen, said: str) -> None:
    [fault] = own(deep=deep)
    assert fault.startswith(said)


def test_growth_that_is_far_from_the_limit_and_the_cached_file_at_the_limit_are_well() -> None:
    assert own(deep=seen(a_minute=10, hits=9)) == []


def test_a_day_is_judged_by_five_hours() -> None:
    every_minute = [Sample(60.0 * at, 1, 600, 650, 500 + at, 0, 0, 400.0) for at in range(289)]
    [fault] = own(deep=Seen(answered=20, long_prompts=9, samples=every_minute))
    assert fault == "deep: in 1,440 min it would hold 2,228 MiB, of 2,000 allowed"


def test_a_small_limit_lies_above_a_load_and_below_what_requests_take() -> None:
    assert soak.small_limit_mib(100, 340) == 160
    assert soak.small_limit_mib(100, 200) is None
    assert soak.small_limit_mib(100, 0) is None


def test_a_tier_that_never_ran_has_a_summary() -> None:
    told = soak.summary({"deep": Seen(failures=[(1.0, "refused"), (2.0, "refused")])}, LIMITS)["deep"]
    assert (told["samples"], told["most_anonymous_mib"], told["oom_kills"], told["growth_mib_per_min"]) == (0, 0, 0, 0)
    assert (told["first_failure_s"], told["failures"]) == (1.0, {"refused": 2})


def test_a_small_limit_has_to_act_on_its_tier_and_on_no_other() -> None:
    def small(deep: Seen, killed: int, limit_mib: float = 110, **others: Seen) -> list[str]:
        part = {"fast": seen(), "deep": deep} | others
        return list(soak.faults(part, LIMITS | {"deep": limit_mib}, "deep", killed))

    hit = Seen(failures=[(2.0, "closed")], samples=[*seen().samples, *seen(pid=2).samples])
    assert small(hit, 1) == []
    assert small(hit, 0) == ["deep: its limit did not act"]
    # Something else has killed it.
    assert small(hit, 1, limit_mib=300) == ["deep: its limit did not act"]
    assert small(Seen(samples=hit.samples), 1) == ["deep: its limit acted, and its port was not closed"]
    assert small(Seen(), 0) == ["deep: it was never seen to run"]
    [said] = small(hit, 1, fast=seen(failed=1))
    assert said.startswith("fast: 1 requests failed")
    [said] = small(hit, 1, fast=Seen(long_prompts=1, samples=hit.samples))
    assert said.startswith("fast: it was started again")


def test_the_account_of_a_control_group_is_read_in_either_version(tmp_path: Path) -> None:
    group = "/system.slice/llama-tier-deep.service"
    version_2 = {
        "memory.current": 600 * MIB,
        "memory.peak": 700 * MIB,
        "memory.stat": f"anon {100 * MIB}\nfile {500 * MIB}",
        "memory.events": "low 0\nhigh 0\nmax 7\noom 1\noom_kill 1",
    }
    version_1 = {
        "memory.usage_in_bytes": 600 * MIB,
        "memory.max_usage_in_bytes": 700 * MIB,
        "memory.stat": f"cache {500 * MIB}\nrss {100 * MIB}",
        "memory.failcnt": 7,
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1",
    }
    two = write(tmp_path / "two" / group[1:], version_2)
    write(tmp_path / "one/memory" / group[1:], version_1)
    told = {"held_mib": 600.0, "peak_mib": 700.0, "anonymous_mib": 100.0, "limit_hits": 7, "oom_kills": 1}
    assert soak.memory(group, tmp_path / "two") == soak.memory(group, tmp_path / "one") == told
    (two / "memory.peak").unlink()
    assert soak.memory(group, tmp_path / "two") == told | {"peak_mib": None}
    with pytest.raises(OSError):
        soak.memory("/system.slice/gone.service", tmp_path / "two")


def write(folder: Path, files: Mapping[str, object]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
    return folder


def test_texts_take_turns_and_share_no_beginning() -> None:
    assert len({soak.text(number, 50)[:30] for number in range(soak.TEXTS)}) == soak.TEXTS
    assert soak.text(1, 50) == soak.text(1, 50)
