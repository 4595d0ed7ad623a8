"""Hold the speed of a tier against what was promised, what memory bandwidth allows, and the caller's clock. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from checker.accepted import repeated_speed
from checker.evidence import CardLoad, Check, Completion, Evidence, Sample, steps
from checker.findings import Finding
from checker.tier import TierSpec

_WALL_SHORTEST = 0.95
_WALL_LONGEST = 1.5
_WALL_SPARE_S = 1.0
# HTTP is all that a request takes besides what the server counts, some milliseconds. A busy host makes that longer and
# never shorter: the best of several waits for nobody, most of them for little.
_REPEATED_LONGEST = 1.1
_BEST_SPARE_S = 0.05
_MOST_SPARE_S = 0.25
# A memory clock that NVML rounds down.
_BOUND_SLACK = 1.02
# Below this share of what is expected, something else than a prior is wrong.
_SUSPECT_SHARE = 0.6
_SLOW_CLOCK_SHARE = 0.7
_HOT_C = 83


def findings(spec: TierSpec, evidence: Evidence, completion: Completion) -> Iterator[Finding]:
    """Yield every check of speed and clocks."""
    measured = generation_speed(evidence) or 0.0
    minimum = spec.criteria.min_generation_tokens_per_second
    suspicion = _suspicion(spec, evidence, measured)
    yield Finding(
        Check("generation speed", measured >= minimum, f"at least {minimum:g} tokens/s", f"{measured:.1f} tokens/s"),
        f"{spec.name}: generates {measured:.1f} tokens/s, at least {minimum:g} are promised: "
        "give the faster card more layers, or lower min_generation_tokens_per_second"
        + (f"; it {suspicion}" if suspicion else ""),
        note=f"{spec.name}: {suspicion}" if suspicion else "",
    )
    yield from _bound(spec, measured)
    yield _clock(spec, completion)
    yield from _repeated_clock(spec, evidence)


def generation_speed(evidence: Evidence) -> float | None:
    """Return the tokens per second that a tier generates with a short context: the median where it was repeated."""
    repeated = repeated_speed(evidence)
    if repeated is not None:
        return repeated
    return evidence.completion.generation_tokens_per_second if evidence.completion else None


def _bound(spec: TierSpec, measured: float) -> Iterator[Finding]:
    if spec.predicted is None:
        return
    limit = spec.predicted.bound * _BOUND_SLACK
    yield Finding(
        Check("bandwidth bound", measured <= limit, f"at most {limit:.1f} tokens/s", f"{measured:.1f} tokens/s"),
        f"{spec.name}: counts {measured:.1f} tokens/s, the memory of its cards cannot give more than "
        f"{spec.predicted.bound:.1f}: the measurement is wrong, or it is not this model that answers",
    )


def _suspicion(spec: TierSpec, evidence: Evidence, measured: float) -> str:
    """Say that a tier is far slower than expected and what the driver tells about it; empty when it is not."""
    if spec.predicted is None or measured >= spec.predicted.expected * _SUSPECT_SHARE:
        return ""
    cards = evidence.thorough.cards if evidence.thorough else ()
    causes = [cause for card in cards for cause in _causes(_name(spec, card), card)]
    if any(device.rpc_endpoint for device in spec.devices):
        causes.append("cards are reached through ggml-rpc-server, whose device and link nothing here measures")
    found = "; ".join(causes) or "the driver tells no cause (clocks, power, heat and PCIe link are as they should be)"
    if not cards and not causes:
        found = "only a whole verification reads clocks, power, heat and the PCIe link"
    return (
        f"generates {measured / spec.predicted.expected:.0%} of the {spec.predicted.expected:.1f} tokens/s that are "
        f"expected: {found}"
    )


def _name(spec: TierSpec, card: CardLoad) -> str:
    gpu = next((device.gpu for device in spec.devices if device.uuid == card.uuid), "")
    return f"{card.uuid} ({gpu})"


def _causes(name: str, card: CardLoad) -> Iterator[str]:
    if card.slowed_by:
        yield f"{name} was slowed by {', '.join(card.slowed_by)}"
    for word, now, most in (
        ("graphics", card.graphics_mhz, card.graphics_max_mhz),
        ("memory", card.memory_mhz, card.memory_max_mhz),
    ):
        if now is not None and most and now < most * _SLOW_CLOCK_SHARE:
            yield f"{name} ran its {word} clock at {now:,.0f} of {most:,.0f} MHz"
    if card.temperature_c is not None and card.temperature_c >= _HOT_C:
        yield f"{name} was {card.temperature_c:.0f} degrees Celsius hot"
    if card.power_w is not None and card.power_limit_w and card.power_w >= card.power_limit_w:
        yield f"{name} took {card.power_w:.0f} W of the {card.power_limit_w:.0f} it may"
    for word, link, limit in (
        ("generation", card.pcie_generation, card.pcie_generation_max),
        ("width", card.pcie_width, card.pcie_width_max),
    ):
        if link is not None and limit is not None and link < limit:
            yield f"{name} has a PCIe link of {word} {link} where {limit} is possible"


def _clock(spec: TierSpec, completion: Completion) -> Finding:
    told_s = _seconds(completion.prompt_tokens, completion.prompt_tokens_per_second) + _seconds(
        steps(completion.generated_tokens), completion.generation_tokens_per_second
    )
    wall_s = completion.wall_s
    low, high = told_s * _WALL_SHORTEST, told_s * _WALL_LONGEST + _WALL_SPARE_S
    return Finding(
        Check(
            "clock",
            told_s > 0 and low <= wall_s <= high,
            f"{low:.2f} to {high:.2f} s by the server's count",
            f"{wall_s:.2f} s",
        ),
        f"{spec.name}: the server counts {told_s:.2f} s for a completion that took {wall_s:.2f} s: "
        "its speed cannot be believed; verify again while nobody else asks the tier",
    )


def _seconds(tokens: int, per_second: float) -> float:
    return tokens / per_second if per_second > 0 else 0.0


def _repeated_clock(spec: TierSpec, evidence: Evidence) -> Iterator[Finding]:
    """Yield a check for each group of repeats: most of them have to take what the server says that they took.

    One that is believed is not enough: the median, which counts as the speed, is that of most.
    """
    thorough = evidence.thorough
    groups = (("short", thorough.short), ("full", thorough.full)) if thorough else ()
    for name, speed in groups:
        if speed is None:
            continue
        ranked = sorted(speed.samples, key=_beyond_s)
        judged = [(ranked[0], _BEST_SPARE_S, "at best"), (ranked[len(ranked) // 2], _MOST_SPARE_S, "mostly")]
        sample, spare_s, often = next((each for each in judged if _beyond_s(each[0]) > each[1]), judged[0])
        told_s = _told_s(sample)
        low, high = told_s * _WALL_SHORTEST, told_s * _REPEATED_LONGEST + spare_s
        yield Finding(
            Check(
                f"clock with a {name} context",
                low <= sample.wall_s <= high,
                f"{low:.2f} to {high:.2f} s by the server's count",
                f"{sample.wall_s:.2f} s",
            ),
            f"{spec.name}: with a {name} context the server counts {told_s:.2f} s {often} for what took "
            f"{sample.wall_s:.2f} s: its speed cannot be believed; verify again while nobody else asks the tier",
        )


def _beyond_s(sample: Sample) -> float:
    """Return the seconds by which a request took longer than the server's count and a share of it."""
    return sample.wall_s - _told_s(sample) * _REPEATED_LONGEST


def _told_s(sample: Sample) -> float:
    return sample.prompt_s + sample.generation_s
