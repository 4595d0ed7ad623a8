#!/usr/bin/env python3
"""Keep every tier of a host busy with long prompts for minutes, and watch the memory that they take.

    ssh HOST /opt/llama-tiers/checker/bin/python - MINUTES TIER < tests/benchmarks/soak.py > soak.json

Runs on a host that site.yml has provisioned, as root; its tiers are pinned, with room beside each other. For two thirds
of the time each tier has its own limit of memory; for the last third TIER has one that lets it load, and is less than
what it then holds under load and nobody can take back. That has to act, and on that tier alone. Exit code 1 when
something is not as it should be: `faults` in the document.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from checker import hardware, systemd, tier
from checker.llama_server import LlamaServer, ServerError
from checker.tier import TierSpec

SCHEMA = "llama-tiers/soak/1"
COMMAND = "ssh HOST /opt/llama-tiers/checker/bin/python"
MIB = 2**20
CGROUPS = Path("/sys/fs/cgroup")
EVERY_S, START_EVERY_S = 3.0, 0.1
# So many texts take turns: none of them is the one that the server has just seen.
TEXTS = 24
SHORT_CLIENTS = 2
# Of the context of a request; the rest is for the answer.
LONG, SHORT = 0.9, 0.01
ANSWER_TOKENS, SHORT_ANSWER_TOKENS = 32, 8
# For an answer, and for a tier to answer again after its cooldown.
PATIENCE_S = 600.0
# Growth is held to go on for so many times as long as it was seen: a day is judged by five hours, and minutes by what
# neither noise nor the last prompts that a cache has room for bring to the limit.
AHEAD = 5
# The small limit lies so far from what a load takes towards what requests make of it.
SMALL = 1 / 4
# Less than this between the two says nothing: a load may take as much for a moment.
ROOM_MIB = 30
# A tier that its limit has ended was last seen with so much of it: a prompt more is a matter of a moment.
NEAR = 0.85


@dataclass(frozen=True)
class Sample:
    """What a tier takes at a moment (s since the start of its part): MiB of the host and of its cards.

    `anonymous_mib` is what cannot be taken back, unlike the cached file of its model. `limit_hits` and `oom_kills` are
    the kernel's counts since its process `pid` was started.
    """

    at_s: float
    pid: int
    held_mib: float
    peak_mib: float | None
    anonymous_mib: float
    limit_hits: int
    oom_kills: int
    cards_mib: float


@dataclass
class Seen:
    """What came of one tier in one part: requests answered, those that failed with when and why, and its samples."""

    answered: int = 0
    long_prompts: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """Main processes of the tier, in order."""
        return list(dict.fromkeys(sample.pid for sample in self.samples))

    @property
    def most_mib(self) -> float:
        """The most that it held and that could not be taken back; 0 when it was never seen to run."""
        return max((sample.anonymous_mib for sample in self.samples), default=0.0)


def memory(group: str, root: Path = CGROUPS) -> dict[str, Any]:
    """Read the kernel's account of a control group, version 2 or 1, as `Sample` names it; OSError when it is gone."""

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    def mib(name: str) -> float | None:
        return round(int(read(name)) / MIB, 1) if (folder / name).exists() else None

    def counts(name: str) -> dict[str, int]:
        return {line.split()[0]: int(line.split()[1]) for line in read(name).splitlines()}

    folder = root / group.lstrip("/")
    if (folder / "memory.current").exists():
        events = counts("memory.events")
        return {
            "held_mib": mib("memory.current"),
            # Since Linux 5.19.
            "peak_mib": mib("memory.peak"),
            "anonymous_mib": round(counts("memory.stat")["anon"] / MIB, 1),
            "limit_hits": events["max"],
            "oom_kills": events["oom_kill"],
        }
    folder = root / "memory" / group.lstrip("/")
    return {
        "held_mib": mib("memory.usage_in_bytes"),
        "peak_mib": mib("memory.max_usage_in_bytes"),
        "anonymous_mib": round(counts("memory.stat")["rss"] / MIB, 1),
        "limit_hits": int(read("memory.failcnt")),
        "oom_kills": counts("memory.oom_control")["oom_kill"],
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return by how much the second rises while the first rises by one, by least squares; 0 where that says nothing."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len({x for x, _ in points}) > 1 else 0.0


def growth_mib_per_min(samples: Sequence[Sample]) -> float:
    """Return how fast the second half of some samples grew: in the first half caches fill."""
    late = samples[len(samples) // 2 :]
    return 60 * slope([(sample.at_s, sample.anonymous_mib) for sample in late])


def ahead_min(samples: Sequence[Sample]) -> float:
    """Return for how many minutes more some samples can tell what is held."""
    return AHEAD * (samples[-1].at_s - samples[0].at_s) / 60


def small_limit_mib(load_mib: float, most_mib: float) -> int | None:
    """Return a limit that lets a tier load and that its requests reach; None where they take little more than a load.

    Both are of what cannot be taken back: a limit that the cached file of the model fills makes the kernel drop that.
    """
    return round(load_mib + SMALL * (most_mib - load_mib)) if SMALL * (most_mib - load_mib) >= ROOM_MIB else None


def faults(part: Mapping[str, Seen], limits_mib: Mapping[str, float], hit: str | None, killed: int) -> Iterator[str]:
    """Say what is not as it should be in a part: all serve but the tier `hit`, `killed` so often by its limit."""
    for name, seen in part.items():
        if not seen.samples:
            yield f"{name}: it was never seen to run"
            continue
        if name == hit:
            # The kernel's counts go with the process between two samples.
            if not killed or seen.most_mib < NEAR * limits_mib[name]:
                yield f"{name}: its limit did not act"
            elif not seen.failures:
                yield f"{name}: its limit acted, and its port was not closed"
            continue
        if seen.failures:
            yield f"{name}: {len(seen.failures)} requests failed, the first: {seen.failures[0][1]}"
        if not seen.long_prompts:
            yield f"{name}: no long prompt was answered"
        if len(seen.pids) != 1:
            yield f"{name}: it was started again: main processes {seen.pids}"
            continue
        if any(sample.oom_kills for sample in seen.samples):
            yield f"{name}: its limit acted"
        minutes = ahead_min(seen.samples)
        then = seen.samples[-1].anonymous_mib + minutes * growth_mib_per_min(seen.samples)
        if hit is None and then > limits_mib[name]:
            yield f"{name}: in {minutes:,.0f} min it would hold {then:,.0f} MiB, of {limits_mib[name]:,.0f} allowed"


def show(unit: str, name: str) -> str:
    """Return a property of a unit."""
    told = subprocess.run(["systemctl", "show", "-P", name, unit], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def sample(spec: TierSpec, at_s: float) -> Sample | None:
    """Look at a tier; None while it has no process."""
    pid, group = int(show(spec.unit, "MainPID")), show(spec.unit, "ControlGroup")
    if not pid or not group:
        return None
    try:
        account = memory(group)
    except OSError:
        return None
    cards = sum(hardware.held_mib(hardware.processes(uuid), pid) or 0.0 for uuid in spec.cards)
    return Sample(at_s=at_s, pid=pid, cards_mib=round(cards, 1), **account)


def text(number: int, words: int) -> str:
    """Return a text that shares no beginning with one of another number."""
    chosen = random.Random(number)
    return " ".join(chosen.choice(WORDS) for _ in range(words))


WORDS = ("amber", "bridge", "candle", "desert", "engine", "forest", "garden", "harbor", "island", "jungle", "kettle")


def prompts(spec: TierSpec, share: float) -> list[list[int]]:
    """Return prompts that fill a share of the context of a request."""
    server = LlamaServer.of(spec)
    tokens = int(server.props().ctx_size * share)
    # A word is one token or more.
    return [server.tokenize(text(number, tokens))[:tokens] for number in range(TEXTS)]


@contextmanager
def clients(specs: Iterable[TierSpec], part: Mapping[str, Seen], began: float) -> Iterator[None]:
    """Ask all tiers by their ports for the block: one client of each with long prompts, some with short ones."""
    ended = threading.Event()

    def ask(spec: TierSpec, asked: Sequence[list[int]], tokens: int, counted: int) -> None:
        seen = part[spec.name]
        for prompt in itertools.cycle(asked):
            if ended.is_set():
                return
            try:
                LlamaServer(spec.base_url, spec.key_file).complete(prompt, tokens, 0.7, 1, PATIENCE_S, cached=True)
            except ServerError as error:
                seen.failures.append((round(time.monotonic() - began, 1), str(error)))
                # As long as its port is closed.
                ended.wait(1)
            else:
                seen.answered += 1
                seen.long_prompts += counted

    work: list[tuple[TierSpec, list[list[int]], int, int]] = []
    for spec in specs:
        work.append((spec, prompts(spec, LONG), ANSWER_TOKENS, 1))
        short = prompts(spec, SHORT)
        work += [(spec, short[first:] + short[:first], SHORT_ANSWER_TOKENS, 0) for first in range(SHORT_CLIENTS)]
    threads = [threading.Thread(target=ask, args=each) for each in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def soak(specs: Sequence[TierSpec], minutes: float) -> dict[str, Seen]:
    """Keep the tiers busy, and look at them meanwhile."""
    part = {spec.name: Seen() for spec in specs}
    began = time.monotonic()
    with clients(specs, part, began):
        while (now := time.monotonic() - began) < 60 * minutes:
            for spec in specs:
                found = sample(spec, round(now, 1))
                if found:
                    part[spec.name].samples.append(found)
            time.sleep(EVERY_S)
    return part


@contextmanager
def limited(spec: TierSpec, mib: int) -> Iterator[None]:
    """Have a tier serve under another limit of memory for the block."""
    folder = Path(f"/run/systemd/system/{spec.unit}.d")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / "soak.conf").write_text(f"[Service]\nMemoryMax={mib}M\n", encoding="utf-8")
        systemd.daemon_reload()
        start_anew(spec)
        yield
    finally:
        (folder / "soak.conf").unlink()
        systemd.daemon_reload()
        start_anew(spec)


def start_anew(spec: TierSpec) -> float:
    """Have a tier hold nothing yet, wait until it is active, and return the most MiB that it was seen to take for that.

    What cannot be taken back, with that of the commands that prove it ready.
    """
    systemd.restart(spec.unit)
    most = 0.0
    while systemd.unit_state(spec.unit).active_state == "activating":
        with suppress(OSError):
            most = max(most, memory(show(spec.unit, "ControlGroup") or "gone")["anonymous_mib"])
        time.sleep(START_EVERY_S)
    systemd.start(spec.unit)
    return most


def comes_back(spec: TierSpec) -> str | None:
    """Wait until a tier answers again by itself; return the last error when it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            LlamaServer(spec.base_url, spec.key_file).complete("1", 1, 0, 1)
        except ServerError as error:
            if time.monotonic() > deadline:
                return str(error)
            time.sleep(EVERY_S)
        else:
            return None


def ends(spec: TierSpec, since: str) -> list[str]:
    """Return what systemd said of the ends of a tier's processes since a time of the host's clock."""
    told = subprocess.run(
        ["journalctl", "-u", spec.unit, "--since", since, "-o", "cat"], capture_output=True, text=True, check=True
    )
    return [line for line in told.stdout.splitlines() if "Main process exited" in line or "OOM killer" in line]


def summary(part: Mapping[str, Seen], limits_mib: Mapping[str, float]) -> dict[str, Any]:
    """Return what goes into the document: of the samples one for each half minute."""
    return {
        name: {
            "limit_mib": round(limits_mib[name]),
            "answered": seen.answered,
            "long_prompts": seen.long_prompts,
            "failed": len(seen.failures),
            "first_failure_s": seen.failures[0][0] if seen.failures else None,
            "failures": Counter(why for _, why in seen.failures),
            "main_pids": seen.pids,
            "most_anonymous_mib": seen.most_mib,
            "growth_mib_per_min": round(growth_mib_per_min(seen.samples), 2),
            "limit_hits": max((sample.limit_hits for sample in seen.samples), default=0),
            "oom_kills": max((sample.oom_kills for sample in seen.samples), default=0),
            "samples": len(seen.samples),
            "every_30_s": [vars(sample) for sample in seen.samples[:: round(30 / EVERY_S)]],
        }
        for name, seen in part.items()
    }


def under_small_limit(
    specs: Sequence[TierSpec], chosen: TierSpec, limits_mib: Mapping[str, float], minutes: float
) -> tuple[dict[str, Any], list[str]]:
    """Have a tier serve under too small a limit beside the others; return what was seen, and what was wrong in it."""
    with limited(chosen, round(limits_mib[chosen.name])):
        # Its start under the limit was the end of another process.
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        part = soak(specs, minutes)
        error = comes_back(chosen)
        said = ends(chosen, since)
    seen = summary(part, limits_mib)
    seen[chosen.name] |= {"ends": said, "came_back": error is None}
    wrong = list(faults(part, limits_mib, chosen.name, sum("status=9/KILL" in line for line in said)))
    return seen, wrong + ([f"{chosen.name}: it does not come back: {error}"] if error else [])


def main(minutes: float, limited_tier: str) -> int:
    """Run both parts, and print the document."""
    specs = tier.load_all()
    chosen = next(spec for spec in specs if spec.name == limited_tier)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": f"{COMMAND} - {minutes:g} {limited_tier} < tests/benchmarks/soak.py",
        "minutes": minutes,
        "engine": chosen.engine.commit,
        "cgroups": 2 if (CGROUPS / "cgroup.controllers").exists() else 1,
        "tiers": {spec.name: [spec.model.name, vars(spec.placement)] for spec in specs},
    }
    loads = {spec.name: start_anew(spec) for spec in specs}
    limits = {spec.name: int(show(spec.unit, "MemoryMax")) / MIB for spec in specs}
    own = soak(specs, minutes * 2 / 3)
    document["own_limits"] = summary(own, limits)
    found = list(faults(own, limits, None, 0))

    document["load_anonymous_mib"] = loads
    less = small_limit_mib(loads[limited_tier], own[limited_tier].most_mib)
    if less is None:
        found.append(f"{limited_tier}: its requests took no more than its load, so that no limit can be too small")
    else:
        try:
            document["small_limit"], also = under_small_limit(specs, chosen, limits | {limited_tier: less}, minutes / 3)
        except systemd.SystemdError as error:
            also = [f"{limited_tier}: it does not start: {error}"]
        found += also
    print(json.dumps(document | {"faults": found, "passed": not found}, indent=1))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2]))
