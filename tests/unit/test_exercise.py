"""Exercises: what fills a context, what of the answers counts as speed, latency and growth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fake_tier
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checker import exercise, text
from checker.evidence import Latency, Sample
from checker.llama_server import LlamaServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[fake_tier.Server]:
    with fake_tier.serving(tmp_path) as played:
        played.counted_s = played.waits_s = played.works_s = 0.001
        yield played


def run(server: fake_tier.Server, slots: int = 1, problems: list[str] | None = None) -> exercise.Exercised:
    grown = iter(range(1000))
    return exercise.exercise(
        lambda: LlamaServer.of(server.spec),
        server.context,
        slots,
        "Why?",
        1,
        lambda: (100.0 + 2 * next(grown), 50.0),
        [].append if problems is None else problems.append,
    )


def test_the_text_is_english_prose_and_long_enough_for_four_chunks_of_kl_divergence() -> None:
    assert text.read().startswith("Alice was beginning to get very tired")
    assert len(text.read().split()) > 2000
    assert text.read().isascii()


@given(st.lists(st.integers(), min_size=1, max_size=9), st.integers(0, 40))
def test_a_context_is_filled_with_the_text_over_and_over(tokens: list[int], count: int) -> None:
    found = exercise.filled(tokens, count)
    assert len(found) == count
    assert all(token == tokens[index % len(tokens)] for index, token in enumerate(found))


def test_a_tier_is_asked_with_a_short_and_a_full_context_and_then_at_once_and_in_a_row(
    server: fake_tier.Server,
) -> None:
    done = run(server, slots=3)
    long = [body for path, body in server.asked if path == "/completion" and isinstance(body["prompt"], list)]
    assert [len(body["prompt"]) for body in long] == [512] * 3 + [4096 - 32 - 8] * 3
    assert all(body["ignore_eos"] for body in long)
    assert [body["cache_prompt"] for body in long] == [False] * 6
    small = [body for path, body in server.asked if path == "/completion" and body["prompt"] == "Why?"]
    assert len(small) == 6 + 16
    assert done.short is not None and done.full is not None and done.stability is not None
    assert (done.short.context_tokens, done.full.context_tokens) == (512, 4056)
    assert (done.stability.at_once, done.stability.in_a_row, done.stability.failures) == (6, 16, ())
    assert (done.stability.host_growth_mib, done.stability.cards_growth_mib) == (2.0, 0.0)


@pytest.mark.parametrize(("bound_s", "computed"), [(0.0, 1), (0.85, 2), (60.0, 3)], ids=["slow", "in between", "fast"])
def test_a_full_prompt_is_computed_again_while_a_bound_allows_and_its_answer_is_timed_all_the_same(
    server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch, bound_s: float, computed: int
) -> None:
    """The bound of a minute is shortened here, for prompts that take 0.3 s."""
    monkeypatch.setattr(exercise, "_FULL_S", bound_s)
    server.works_s = 0.3
    full = run(server).full
    asked = [body["cache_prompt"] for _, body in server.asked if len(body.get("prompt", "")) == 4096 - 32 - 8]
    assert asked == [False] * computed + [True] * (3 - computed)
    assert full is not None
    assert len(full.samples) == 3


def test_a_server_that_dies_is_asked_nothing_more_and_what_was_measured_stays(server: fake_tier.Server) -> None:
    server.dies_at = 4000
    problems: list[str] = []
    done = run(server, problems=problems)
    assert (done.short is None, done.full, done.stability) == (False, None, None)
    assert len(problems) == 1
    assert "the server crashed" in problems[0]


def test_a_small_request_that_fails_ends_the_row(server: fake_tier.Server) -> None:
    server.completion_status = 500
    stability = run(server).stability
    assert stability is not None
    assert (stability.at_once, stability.in_a_row, stability.row_latency) == (4, 0, None)
    assert len(stability.failures) == 1, "the same sentence is said once"
    assert "/completion answers 500" in stability.failures[0]


def test_speed_is_the_median_and_a_cached_prompt_is_no_speed() -> None:
    samples = [
        Sample(1000, 2.0, 33, 0.5, 2.6),
        Sample(1, 0.0001, 33, 0.4, 0.5),
        Sample(1, 0.02, 33, 0.8, 0.9),
    ]
    found = exercise.speed(1000, samples)
    assert found.prompt_tokens_per_second is not None and found.generation_tokens_per_second is not None
    assert (found.prompt_tokens_per_second.median, found.prompt_tokens_per_second.high) == (500.0, 500.0)
    assert found.generation_tokens_per_second == exercise.Spread(64.0, 40.0, 80.0), "the first token is the prompt's"
    assert exercise.speed(10, [Sample(0, 0.0, 0, 0.0, 0.1)]).generation_tokens_per_second is None
    assert exercise.speed(10, [Sample(10, 0.1, 1, 0.001, 0.1)]).generation_tokens_per_second is None


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=40))
def test_percentiles_are_latencies_that_were_measured(seconds: list[float]) -> None:
    found = exercise.latency(seconds)
    assert found is not None
    rounded = [round(value, 4) for value in seconds]
    assert found.p50_s in rounded and found.p95_s in rounded
    assert found.p50_s <= found.p95_s <= found.max_s == max(rounded)


def test_percentiles_of_twenty() -> None:
    assert exercise.latency([float(value) for value in range(1, 21)]) == Latency(10.0, 19.0, 20.0)
    assert exercise.latency([]) is None


@given(st.integers(-50, 50), st.integers(0, 10**5), st.integers(2, 30))
def test_growth_is_the_slope_of_a_line(slope: int, begin: int, count: int) -> None:
    assert exercise.growth([begin + slope * index for index in range(count)]) == pytest.approx(slope)


def test_growth_of_what_could_not_be_read_is_unknown() -> None:
    assert exercise.growth([1.0, None, 3.0]) is None
    assert exercise.growth([1.0]) is None
    assert exercise.growth([]) is None


def test_own_memory_of_a_process_leaves_mapped_files_out(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text("VmRSS:\t  240480 kB\nRssAnon:\t   53576 kB\nRssFile:\t  186904 kB\n")
    assert exercise.host_mib(7, tmp_path) == pytest.approx(52.32, abs=0.01)
    assert exercise.host_mib(8, tmp_path) is None
