"""Keep a tier busy and time it: prompts that fill its context, many requests in a row and at once. Judges nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median

from checker import hardware, text
from checker.evidence import Latency, Sample, Speed, Spread, Stability, steps
from checker.llama_server import Generation, LlamaServer, ServerError

REPEATS = 3
# One micro-batch of the engine's default, so that the prompt's speed is that of full ones.
_SHORT_PROMPT = 512
SHORT_ANSWER = 64
_FULL_ANSWER = 32
# The engine keeps some places of a context free for what it adds itself.
_FULL_SPARE = 8
# A prompt that fills the context is computed anew while all of it takes no longer than this: a slow card needs minutes.
_FULL_S = 60.0
_IN_A_ROW = 16
_AT_ONCE = 4
_SMALL_ANSWER = 8

# Long enough for a tier that reaches a quarter of what it has shown before.
_SLOWEST = 4
_SPARE_S = 60

Problem = Callable[[str], None]


@dataclass(frozen=True)
class Exercised:
    """What came of the exercises; None where the server failed, which `problem` was told."""

    short: Speed | None = None
    full: Speed | None = None
    stability: Stability | None = None


def exercise(
    server: Callable[[], LlamaServer],
    context: int,
    slots: int,
    question: str,
    seed: int,
    held: Callable[[], tuple[float | None, float | None]],
    problem: Problem,
) -> Exercised:
    """Do all exercises, up to the first at which the server fails.

    `server` makes a client, one for each thread; `context` is that of one slot, in tokens; `held` reads the MiB that
    the server holds on the host and on its cards.
    """
    done = Exercised()
    client = server()
    try:
        tokens = client.tokenize(text.read())
        short = short_speed(client, tokens, context, seed)
        done = Exercised(short=short)
        done = Exercised(short=done.short, full=full_speed(client, tokens, context, seed, short))
    except ServerError as error:
        problem(str(error))
        return done
    return Exercised(done.short, done.full, stability(server, slots, question, seed, held))


def short_speed(client: LlamaServer, tokens: Sequence[int], context: int, seed: int) -> Speed:
    """Time a short prompt of some text, given in tokens, and its answer; ServerError when the server fails."""
    count = min(_SHORT_PROMPT, context // 4)
    prompt, timeout_s = filled(tokens, count), _SPARE_S * _SLOWEST
    return speed(count, [_whole(client, prompt, SHORT_ANSWER, seed, timeout_s) for _ in range(REPEATS)])


def full_speed(client: LlamaServer, tokens: Sequence[int], context: int, seed: int, short: Speed) -> Speed:
    """Time a prompt that fills the context, and its answer; ServerError when the server fails.

    The prompt is computed once, and again while the next time is likely to end within a minute in all; the answer is
    timed as often as ever, after a prompt from the cache if need be. The `short` speed tells how long to be patient.
    """
    count = context - _FULL_ANSWER - _FULL_SPARE
    prompt = filled(tokens, count)
    timeout_s = _SPARE_S + _SLOWEST * count * max(one.prompt_s / max(one.prompt_tokens, 1) for one in short.samples)
    samples: list[Sample] = []
    for _ in range(REPEATS):
        cached = bool(samples) and samples[0].wall_s + sum(one.wall_s for one in samples) > _FULL_S
        samples.append(_whole(client, prompt, _FULL_ANSWER, seed, timeout_s, cached=cached))
    return speed(count, samples)


def filled(tokens: Sequence[int], count: int) -> list[int]:
    """Return `count` tokens: the text over and over."""
    return (list(tokens) * ceil(count / len(tokens)))[:count] if tokens else []


def _whole(
    client: LlamaServer, prompt: Sequence[int], answer: int, seed: int, timeout_s: float, *, cached: bool = False
) -> Sample:
    return sample(client.complete(prompt, answer, 0, seed, timeout_s, cached=cached, whole=True))


def sample(generation: Generation) -> Sample:
    """Return what of a completion is kept as a sample of speed."""
    return Sample(
        prompt_tokens=generation.prompt_tokens,
        prompt_s=round(generation.prompt_ms / 1000, 4),
        generated_tokens=generation.generated_tokens,
        generation_s=round(generation.generation_ms / 1000, 4),
        wall_s=round(generation.wall_s, 4),
    )


def speed(context_tokens: int, samples: Sequence[Sample]) -> Speed:
    """Return the speeds of some samples; pure. A prompt that lay mostly in the cache tells nothing of the prompt's."""
    computed = [one for one in samples if 2 * one.prompt_tokens >= context_tokens]
    return Speed(
        context_tokens=context_tokens,
        prompt_tokens_per_second=_spread([(one.prompt_tokens, one.prompt_s) for one in computed]),
        generation_tokens_per_second=_spread([(steps(one.generated_tokens), one.generation_s) for one in samples]),
        samples=tuple(samples),
    )


def _spread(counted: Sequence[tuple[int, float]]) -> Spread | None:
    speeds = [tokens / seconds for tokens, seconds in counted if tokens > 0 and seconds > 0]
    if not speeds:
        return None
    return Spread(round(median(speeds), 3), round(min(speeds), 3), round(max(speeds), 3))


def stability(
    server: Callable[[], LlamaServer],
    slots: int,
    question: str,
    seed: int,
    held: Callable[[], tuple[float | None, float | None]],
) -> Stability:
    """Ask small questions at once, then in a row, and see what fails, how long each takes and what grows.

    At once first: what a server allocates for its slots then does not look like growth.
    """
    failures: list[str] = []

    def ask() -> float:
        began = time.monotonic()
        try:
            server().complete(question, _SMALL_ANSWER, 0, seed, _SPARE_S)
        except ServerError as error:
            failures.append(str(error))
        return time.monotonic() - began

    at_once = max(_AT_ONCE, 2 * slots)
    with ThreadPoolExecutor(at_once) as pool:
        together = list(pool.map(lambda _: ask(), range(at_once)))
    row, host, cards = [], [], []
    for _ in range(_IN_A_ROW):
        if failures:
            break
        row.append(ask())
        on_host, on_cards = held()
        host.append(on_host)
        cards.append(on_cards)
    return Stability(
        in_a_row=len(row),
        row_latency=latency(row),
        at_once=at_once,
        at_once_latency=latency(together),
        failures=tuple(dict.fromkeys(failures)),
        host_growth_mib=growth(host),
        cards_growth_mib=growth(cards),
    )


def latency(seconds: Sequence[float]) -> Latency | None:
    """Return the percentiles of some latencies (the nearest that was measured); None of none. Pure."""
    if not seconds:
        return None
    ordered = sorted(seconds)

    def percentile(share: float) -> float:
        return round(ordered[max(0, ceil(share * len(ordered)) - 1)], 4)

    return Latency(percentile(0.5), percentile(0.95), percentile(1.0))


def growth(values: Sequence[float | None]) -> float | None:
    """Return the slope of some values by least squares, in their unit for each step; None when one is unknown. Pure."""
    known = [value for value in values if value is not None]
    if len(known) < max(2, len(values)):
        return None
    middle = (len(known) - 1) / 2
    mean = sum(known) / len(known)
    over = sum((index - middle) * (value - mean) for index, value in enumerate(known))
    return round(over / sum((index - middle) ** 2 for index in range(len(known))), 4)


def host_mib(pid: int, proc: Path = Path("/proc")) -> float | None:
    """Read what a process holds of its own in the host's memory, without the files that it has mapped."""
    try:
        lines = (proc / str(pid) / "status").read_text().splitlines()
    except OSError:
        return None
    held = next((line.split()[1] for line in lines if line.startswith("RssAnon:")), None)
    return None if held is None else int(held) * 1024 / hardware.MIB
