"""Trials and a policy to a decision that explains itself, and a decision back to the candidates of a plan. Pure.

A policy decides all of the tiers that it names, or it does not apply and the next one is tried. What a policy demands
comes on top of the tier's own criteria: a candidate that would not pass verification is never chosen. Tokens per
second, seconds, MiB.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import Field, ValidationError

from checker import asked, speed_verdict, tier, trial
from checker.catalogue import (
    Candidate,
    GpuEntry,
    InventoryError,
    ModelEntry,
    TierEntry,
    Written,
    model_path,
    sentences,
)
from checker.policies import Policies, PolicyEntry, RuleEntry
from checker.tier import Placement
from checker.trial import Trial
from checker.verdict import judge

SCHEMA = "llama-tiers/decision/2"
EXPLANATION_SCHEMA = "llama-tiers/explanation/1"
# The inventory's variable that holds a host's decision.
VARIABLE = "llama_tiers_decision"
TRY_AGAIN = "try and decide again (`checker trial`, `checker decide`)"
_AGAIN = f"{TRY_AGAIN}; without the file the inventory's order holds"
_ANEW = "`checker decide` writes it anew; without the file the inventory's order holds"

_MIB = 1024 * 1024


@dataclass(frozen=True)
class Published:
    """What a model is ranked by: published shares of solved problems in per cent, and its size in MiB.

    Figures are published of a model before it is quantised, so of two quantisations of it the larger one ranks higher.
    None is "nothing was published".
    """

    score: float | None
    aime_2024: float | None
    model_mib: float


@dataclass(frozen=True)
class Figures:
    """What a policy looks at of a measurement; `evidence` is the sha256 of the trial's file, `measured_at` UTC.

    `cpu_layers` are the layers outside the cards, `gpus` and `uuids` the cards in device order, `placed` is how the
    model lay on them.
    """

    tokens_per_second: float
    load_s: float
    cpu_layers: int
    gpus: tuple[str, ...]
    uuids: tuple[str, ...]
    placed: Placement
    measured_at: str
    evidence: str


@dataclass(frozen=True)
class Contender:
    """A candidate of the inventory with what is known of it; `placement` as the inventory spells it at its shortest.

    `outcome` is that of the trial that counts, None when none does. `figures` are None when nothing was measured that
    counts; `faults` say why, or why it did not pass verification.
    """

    model: str
    placement: trial.Written
    published: Published
    outcome: str | None
    figures: Figures | None
    faults: tuple[str, ...]

    @property
    def label(self) -> str:
        """The candidate in a few words."""
        return f"{self.model} ({placement_words(self.placement)})"


@dataclass(frozen=True)
class Criterion:
    """One thing that a candidate is held against."""

    name: str
    passed: bool
    wanted: str
    found: str


@dataclass(frozen=True)
class Judged:
    """A contender and how it stands against a rule."""

    contender: Contender
    criteria: tuple[Criterion, ...]

    @property
    def passes(self) -> bool:
        """Whether every criterion is met."""
        return all(criterion.passed for criterion in self.criteria)

    @property
    def failed(self) -> tuple[Criterion, ...]:
        """The criteria that are not met."""
        return tuple(criterion for criterion in self.criteria if not criterion.passed)


@dataclass(frozen=True)
class TierChoice:
    """What a policy finds for one tier: all its candidates in the inventory's order, the chosen one, and why.

    `changes` are sentences about what would lead to another choice.
    """

    name: str
    judged: tuple[Judged, ...]
    chosen: Judged | None
    because: str
    changes: tuple[str, ...]

    @property
    def tried(self) -> bool:
        """Whether any trial of its candidates counts, whatever came of it."""
        return any(each.contender.outcome for each in self.judged)


@dataclass(frozen=True)
class Step:
    """One policy that was tried; it applies when it found a candidate for each of the host's tiers that it names.

    `absent` are the tiers that it names and the host has not.
    """

    policy: str
    note: str
    choices: tuple[TierChoice, ...]
    absent: tuple[str, ...]

    @property
    def applies(self) -> bool:
        """Whether this policy decides."""
        return bool(self.choices) and all(choice.chosen for choice in self.choices)

    @property
    def reason(self) -> str:
        """Why it decides, or why it does not."""
        if not self.choices:
            return f"the host has none of the tiers that it names: {', '.join(self.absent)}"
        without = [choice.name for choice in self.choices if choice.tried and choice.chosen is None]
        told = [f"no candidate reaches what it asks for: {', '.join(without)}"] if without else []
        told += [
            f"{choice.name} has no trial that counts: try it too (`checker trial -i INVENTORY --tier {choice.name}`)"
            for choice in self.choices
            if not choice.tried
        ]
        each_tier = "each of the host's tiers" if self.absent else "each tier"
        told = told or [f"it finds a candidate for {each_tier} that it names"]
        told += [f"it has a rule for {', '.join(self.absent)}, which this host has not"] if self.absent else []
        return "; ".join(told)


@dataclass(frozen=True)
class Decision:
    """The policies that were tried for a host, in order, up to the first that applies.

    `undecided` are the host's tiers that are left to the inventory's order, and `by_order` what that has first with
    room, in words; `warnings` are sentences about what is served by that order although its trial failed, and about
    trials that count for nothing.
    """

    host: str
    acceptable_tokens_per_second: float
    steps: tuple[Step, ...]
    undecided: tuple[str, ...]
    by_order: Mapping[str, str]
    warnings: tuple[str, ...]

    @property
    def step(self) -> Step | None:
        """The policy that decides; None when none does."""
        return self.steps[-1] if self.steps[-1].applies else None


def contenders(
    entry: TierEntry,
    models: Mapping[str, ModelEntry],
    trials: Iterable[Trial],
    commit: str,
    gpus: Sequence[GpuEntry],
) -> tuple[Contender, ...]:
    """Return a tier's candidates with what their newest trial that still holds tells, in the inventory's order.

    `trials` are those of the host, in any order; a trial holds while model and engine (`commit`) are the inventory's,
    and what it asks of the placement, on the host's cards, is what was tried (`asked.changed`). One that came to
    nothing before the placement did (no file) tells something only where no other does.
    """
    newest_first = sorted(trials, key=_newness, reverse=True)
    own = [each for each in newest_first if each.tier == entry.name]
    return tuple(
        _contender(
            entry,
            candidate,
            models[candidate.model],
            [each for each in own if _is_of(each, candidate)],
            commit,
            gpus,
        )
        for candidate in entry.candidates
    )


def _published(model: ModelEntry) -> Published:
    return Published(
        score=model.published.score if model.published else None,
        aime_2024=model.published.aime_2024 if model.published else None,
        model_mib=model.header.total_bytes / _MIB if model.header else 0.0,
    )


def _contender(
    entry: TierEntry,
    candidate: Candidate,
    model: ModelEntry,
    trials: Sequence[Trial],
    commit: str,
    gpus: Sequence[GpuEntry],
) -> Contender:
    published = _published(model)

    def unmeasured(outcome: str | None, why: str) -> Contender:
        return Contender(candidate.model, candidate.written, published, outcome, None, (why,))

    outdated = [_outdated(each, entry, candidate, model, commit, gpus) for each in trials]
    newest = next((each for each, why in zip(trials, outdated, strict=True) if why is None), None)
    if newest is None:
        why = outdated[0] if outdated else None
        return unmeasured(None, f"it was tried before {why}: try it again" if why else "it was not tried yet")
    if newest.spec is None or newest.evidence is None:
        return unmeasured(newest.outcome, newest.reason or newest.outcome)
    criteria = tier.Criteria(entry.criteria.min_generation_tokens_per_second, entry.criteria.max_load_s)
    verdict = judge(replace(newest.spec, criteria=criteria), newest.evidence)
    layers = _layers(model, newest.spec.placement)
    figures = Figures(
        tokens_per_second=round(speed_verdict.generation_speed(newest.evidence) or 0.0, 2),
        load_s=math.inf if newest.evidence.unit.load_s is None else newest.evidence.unit.load_s,
        cpu_layers=max(layers - newest.spec.placement.n_gpu_layers, newest.spec.placement.n_cpu_moe),
        gpus=tuple(device.gpu for device in newest.spec.devices),
        uuids=tuple(device.uuid for device in newest.spec.devices),
        placed=newest.spec.placement,
        measured_at=newest.recorded_at,
        evidence=newest.digest,
    )
    said = tuple(reason.removeprefix(f"{entry.name}: ") for reason in verdict.reasons)
    return Contender(candidate.model, candidate.written, published, newest.outcome, figures, said)


def outdated(
    trials: Sequence[Trial],
    tiers: Iterable[TierEntry],
    models: Mapping[str, ModelEntry],
    commits: Mapping[str, str],
    gpus: Sequence[GpuEntry],
) -> list[str | None]:
    """Say of each trial of the host why no decision goes by it; None when one may.

    `commits` are those of the tiers' engines, by tier.
    """
    by_name = {entry.name: entry for entry in tiers}

    def changed(found: Trial) -> str | None:
        entry = by_name.get(found.tier)
        if entry is None:
            return f"tier {found.tier} went"
        candidate = next((each for each in entry.candidates if _is_of(found, each)), None)
        if candidate is None:
            return "the candidate went"
        return _outdated(found, entry, candidate, models[candidate.model], commits[entry.name], gpus)

    since = [changed(each) for each in trials]
    that_hold = [each for each, why in zip(trials, since, strict=True) if why is None]
    said: list[str | None] = []
    for each, why in zip(trials, since, strict=True):
        counts = max((other for other in that_hold if _of_one(other, each)), key=_newness, default=each)
        if why:
            said.append(f"tried before {why}")
        else:
            said.append(None if counts is each else f"the trial of {counts.recorded_at} counts")
    return said


def _of_one(one: Trial, other: Trial) -> bool:
    return (one.tier, one.model, one.placement) == (other.tier, other.model, other.placement)


def _newness(found: Trial) -> tuple[bool, str, str]:
    """By what the trial that counts is the greatest of those of one candidate."""
    return found.is_of_placement, found.recorded_at, found.digest


def _is_of(found: Trial, candidate: Candidate) -> bool:
    return (found.model, found.placement) == (candidate.model, candidate.written)


def _outdated(
    found: Trial, entry: TierEntry, candidate: Candidate, model: ModelEntry, commit: str, gpus: Sequence[GpuEntry]
) -> str | None:
    """Say what has changed since a trial so that it does not hold; None when it does."""
    spec = found.spec
    if spec is None:
        same = found.outcome != trial.INFEASIBLE or found.fingerprint == asked.fingerprint(entry, candidate, gpus)
        return None if same else "another placement was asked for"
    if not spec.model.file.endswith(model_path(model, "")) or spec.model.sha256 != (model.sha256 or ""):
        return "the catalogue named another file"
    if spec.engine.commit != commit:
        return f"the engine became {commit[:9]}"
    uuids = [device.uuid for device in spec.devices]
    return asked.changed(entry, candidate, gpus, _layers(model, spec.placement), spec.placement, uuids)


def _layers(model: ModelEntry, found: Placement) -> int:
    """Return a model's layers, the output layer included; those on the cards where nobody knows its header."""
    return model.header.n_layer + 1 if model.header else found.n_gpu_layers


def decide(
    host: str,
    candidates: Mapping[str, Sequence[Contender]],
    policies: Policies,
    name: str,
    acceptable_tokens_per_second: float,
) -> Decision:
    """Try a policy, and those that it names for when it finds no candidate, until one applies.

    `candidates` are those of each tier of the host, in the inventory's order; `name` is one of the policies'.
    """
    steps: list[Step] = []
    for policy_name, policy in policies.ladder(name):
        steps.append(_step(policy_name, policy, candidates, acceptable_tokens_per_second))
        if steps[-1].applies:
            break
    decided = {choice.name for choice in steps[-1].choices} if steps[-1].applies else set()
    undecided = tuple(each for each in candidates if each not in decided)
    return Decision(
        host=host,
        acceptable_tokens_per_second=acceptable_tokens_per_second,
        steps=tuple(steps),
        undecided=undecided,
        by_order={each: _by_order(candidates[each]).label for each in undecided if candidates[each]},
        warnings=tuple(_against_its_trial(candidates, undecided)) if decided else (),
    )


def _by_order(candidates: Sequence[Contender]) -> Contender:
    """Return which candidate the inventory's order has served: the first with room, as far as was tried."""
    return next((each for each in candidates if each.outcome != trial.INFEASIBLE), candidates[0])


def _against_its_trial(candidates: Mapping[str, Sequence[Contender]], undecided: Iterable[str]) -> Iterable[str]:
    """Say which tiers the inventory's order has served by a candidate whose trial failed: its first one with room."""
    for name in undecided:
        served = _by_order(candidates[name]) if candidates[name] else None
        if served and served.outcome not in (None, trial.INFEASIBLE) and served.faults:
            yield (
                f"{name} is served by the inventory's order: {served.label}, whose trial failed: "
                f"{'; '.join(served.faults)}; put another candidate before it"
            )


def _step(name: str, policy: PolicyEntry, candidates: Mapping[str, Sequence[Contender]], acceptable: float) -> Step:
    return Step(
        policy=name,
        note=policy.note,
        choices=tuple(
            _choose(tier_name, rule, candidates[tier_name], acceptable)
            for tier_name, rule in policy.tiers.items()
            if tier_name in candidates
        ),
        absent=tuple(tier_name for tier_name in policy.tiers if tier_name not in candidates),
    )


def _choose(name: str, rule: RuleEntry, contenders: Sequence[Contender], acceptable: float) -> TierChoice:
    judged = tuple(Judged(each, tuple(_criteria(each, rule, acceptable))) for each in contenders)
    # Sorting is stable: among equals the inventory's order holds.
    passing = sorted((each for each in judged if each.passes), key=lambda each: _rank(each.contender, rule))
    chosen = passing[0] if passing else None
    return TierChoice(
        name=name,
        judged=judged,
        chosen=chosen,
        because=_because(passing, rule),
        changes=tuple(_changes(judged, passing, rule, acceptable)),
    )


def _criteria(contender: Contender, rule: RuleEntry, acceptable: float) -> Iterable[Criterion]:
    """Yield how a contender stands; only why it was not measured when nothing was."""
    found, faults = contender.figures, contender.faults
    if found is None:
        yield Criterion("measured", False, "a trial", "; ".join(faults))
        return
    yield Criterion("verification", not faults, "pass", "; ".join(faults) or "pass")
    least = _least_speed(rule, acceptable)
    yield Criterion(
        "tokens/s", found.tokens_per_second >= least, f"at least {least:g}", f"{found.tokens_per_second:.1f}"
    )
    if rule.max_load_s is not None:
        yield Criterion("load", found.load_s <= rule.max_load_s, f"at most {rule.max_load_s:g} s", _load(found))
    if rule.min_quality is not None:
        score = contender.published.score
        yield Criterion(
            "quality",
            score is not None and score >= rule.min_quality,
            f"at least {rule.min_quality:g} %",
            "nothing published" if score is None else f"{score:g} %",
        )
    cards = len(found.gpus)
    if rule.min_cards > 1 or rule.max_cards is not None:
        most = math.inf if rule.max_cards is None else rule.max_cards
        yield Criterion("cards", rule.min_cards <= cards <= most, _cards_wanted(rule), str(cards))
    if rule.max_cpu_layers is not None:
        yield Criterion(
            "layers on the CPU",
            found.cpu_layers <= rule.max_cpu_layers,
            f"at most {rule.max_cpu_layers}",
            str(found.cpu_layers),
        )


def _least_speed(rule: RuleEntry, acceptable: float) -> float:
    wanted = rule.min_generation_tokens_per_second
    return acceptable if wanted == "acceptable" else float(wanted)


def _load(found: Figures) -> str:
    return "not known" if math.isinf(found.load_s) else f"{found.load_s:.1f} s"


def _cards_wanted(rule: RuleEntry) -> str:
    if rule.max_cards is None:
        return f"at least {rule.min_cards}"
    return f"{rule.min_cards} to {rule.max_cards}" if rule.max_cards > rule.min_cards else f"{rule.min_cards}"


def _by(word: str, contender: Contender) -> tuple[float, ...] | None:
    """Return what a preference ranks by, the least first; None when that was not measured."""
    if word == "quality":
        return _quality(contender.published)
    if contender.figures is None:
        return None
    return (-contender.figures.tokens_per_second,) if word == "speed" else (contender.figures.load_s,)


def _quality(published: Published) -> tuple[float, ...]:
    """Return what quality is ranked by, the least first: figures that nobody published go last."""
    score, aime = (-1.0 if each is None else each for each in (published.score, published.aime_2024))
    return (-score, -aime, -published.model_mib)


def quality_ranks(served: Collection[str], models: Mapping[str, ModelEntry]) -> dict[str, int | None]:
    """Rank the models of some tiers by quality: 1 and how many tiers have a better one, so that equals share a rank.

    None for a model of which nothing was published, or that the catalogue has not.
    """
    found = {name: _published(models[name]) for name in served if name in models}
    keys = {name: _quality(known) for name, known in found.items() if known.score is not None}
    every = [keys[name] for name in served if name in keys]
    return {name: 1 + sum(other < keys[name] for other in every) if name in keys else None for name in served}


def _rank(contender: Contender, rule: RuleEntry) -> tuple[tuple[float, ...], ...]:
    return tuple(_by(word, contender) or () for word in rule.prefer)


def _because(passing: Sequence[Judged], rule: RuleEntry) -> str:
    """Say which rule chose the first of those that pass."""
    if not passing:
        return "no candidate reaches what is asked for"
    if len(passing) == 1:
        return "the only candidate that reaches what is asked for"
    chosen, second = passing[0].contender, passing[1].contender
    word = next((word for word in rule.prefer if _by(word, chosen) != _by(word, second)), None)
    told = f"first of {len(passing)} that reach what is asked for"
    if word is None:
        return f"{told}: equal to {second.label}, and before it in the inventory"
    equal = rule.prefer[: rule.prefer.index(word)]
    after = f", equal in {' and '.join(equal)}" if equal else ""
    return f"{told}, by {word}: {_advantage(word, chosen, second)}{after}"


def _advantage(word: str, better: Contender, worse: Contender) -> str:
    """Say what one contender has before another in what a preference ranks by."""
    ours, theirs = better.figures, worse.figures
    if word == "speed" and ours and theirs:
        return f"{ours.tokens_per_second:.1f} tokens/s, {worse.label} {theirs.tokens_per_second:.1f}"
    if word == "load" and ours and theirs:
        return f"loaded in {_load(ours)}, {worse.label} in {_load(theirs)}"
    for what, own, other in (
        ("solves {} % (published)", better.published.score, worse.published.score),
        ("solves {} % of AIME 2024 (published)", better.published.aime_2024, worse.published.aime_2024),
    ):
        if own != other:
            return f"{what.format('none known' if own is None else f'{own:g}')}, {worse.label} " + (
                "nothing known" if other is None else f"{other:g} %"
            )
    return f"{better.published.model_mib:,.0f} MiB of the same model, {worse.label} {worse.published.model_mib:,.0f}"


def _changes(judged: Sequence[Judged], passing: Sequence[Judged], rule: RuleEntry, acceptable: float) -> Iterable[str]:
    """Say what would lead to another choice."""
    chosen = passing[0].contender if passing else None
    for each in judged:
        if not each.passes and (chosen is None or _could_go_before(each.contender, chosen, rule)):
            lacks = "; ".join(
                criterion.found
                if criterion.name in ("measured", "verification")
                else f"{criterion.name} {criterion.found}, wanted {criterion.wanted}"
                for criterion in each.failed
            )
            goes = "would be chosen" if chosen is None else "would go before it"
            yield f"{each.contender.label} {goes} but for: {lacks}"
    if chosen is None or chosen.figures is None:
        return
    limits = [
        f"up to {chosen.figures.tokens_per_second:.1f} tokens/s wanted ({_least_speed(rule, acceptable):g} now)",
        *(
            [f"down to {_load(chosen.figures)} of load allowed ({rule.max_load_s:g} s now)"]
            if rule.max_load_s is not None
            else []
        ),
    ]
    yield f"{chosen.label} passes {' and '.join(limits)}"
    if len(passing) > 1:
        yield f"without it, {passing[1].contender.label}"


def _could_go_before(other: Contender, chosen: Contender, rule: RuleEntry) -> bool:
    """Whether a contender might be preferred if it passed: what was not measured of it may be anything."""
    for word in rule.prefer:
        theirs, ours = _by(word, other), _by(word, chosen)
        if theirs is None or ours is None or theirs < ours:
            return True
        if theirs > ours:
            return False
    return False


def placement_words(written: trial.Written) -> str:
    """Say in a few words what an inventory wrote for a placement."""
    if isinstance(written, str):
        return written
    rest = dict(written)
    mode, split, layers = (rest.pop(key, None) for key in ("split_mode", "tensor_split", "n_gpu_layers"))
    words = []
    if split:
        words.append(",".join(str(part) for part in split))
    if mode:
        words.append("one card" if mode == "none" else f"{mode} split")
    if layers:
        words.append("the rest on the CPU" if layers == "auto" else f"{layers} layers on the cards")
    return ", ".join([*words, *(f"{key} {value}" for key, value in rest.items())])


def to_json(decision: Decision) -> dict[str, Any] | None:
    """Return the document of the decision, as an inventory holds it; None when no policy decides."""
    step = decision.step
    if step is None:
        return None
    return {
        "schema": SCHEMA,
        "host": decision.host,
        "policy": step.policy,
        "acceptable_tokens_per_second": decision.acceptable_tokens_per_second,
        "tiers": {
            choice.name: _decided_json(choice, choice.chosen.contender.figures)
            for choice in step.choices
            if choice.chosen and choice.chosen.contender.figures
        },
    }


def _decided_json(choice: TierChoice, figures: Figures) -> dict[str, Any]:
    assert choice.chosen
    return {
        "model": choice.chosen.contender.model,
        "placement": choice.chosen.contender.placement,
        "because": choice.because,
        "tokens_per_second": figures.tokens_per_second,
        "load_s": figures.load_s,
        "gpus": list(figures.gpus),
        "uuids": list(figures.uuids),
        "placed": {**asdict(figures.placed), "tensor_split": list(figures.placed.tensor_split)},
        "measured_at": figures.measured_at,
        "evidence": figures.evidence,
    }


def explanation(decision: Decision) -> dict[str, Any]:
    """Return the document that explains a decision (docs/schemas/decision.schema.json)."""
    return {
        "schema": EXPLANATION_SCHEMA,
        "host": decision.host,
        "acceptable_tokens_per_second": decision.acceptable_tokens_per_second,
        "policies": [_step_json(step) for step in decision.steps],
        "undecided": list(decision.undecided),
        "by_order": dict(decision.by_order),
        "warnings": list(decision.warnings),
        "decision": to_json(decision),
    }


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "name": step.policy,
        "note": step.note,
        "applies": step.applies,
        "reason": step.reason,
        "tiers": [
            {
                "name": choice.name,
                "because": choice.because,
                "changes": list(choice.changes),
                "candidates": [_judged_json(each, step, choice) for each in choice.judged],
            }
            for choice in step.choices
        ],
    }


def _judged_json(judged: Judged, step: Step, choice: TierChoice) -> dict[str, Any]:
    contender = judged.contender
    return {
        "model": contender.model,
        "placement": contender.placement,
        "words": placement_words(contender.placement),
        "chosen": step.applies and judged is choice.chosen,
        "passes": judged.passes,
        "published": {"score": contender.published.score, "aime_2024": contender.published.aime_2024},
        "evidence": contender.figures.evidence if contender.figures else None,
        "criteria": [
            {"name": each.name, "passed": each.passed, "wanted": each.wanted, "found": each.found}
            for each in judged.criteria
        ],
    }


class DecidedEntry(Written):
    """The candidate that was chosen for one tier, why, and what was measured of it (UTC, `evidence` its file's sha256).

    `placed` is how it lay on the cards, by name (`gpus`) and UUID in device order.
    """

    model: str
    placement: dict[str, Any] | str
    because: str
    tokens_per_second: float
    load_s: float
    gpus: list[str]
    uuids: list[str]
    placed: Placement
    measured_at: str
    evidence: str


class DecisionEntry(Written):
    """A host's decision as `checker decide` writes it into the inventory."""

    schema_: Literal["llama-tiers/decision/2"] = Field(alias="schema")
    host: str
    policy: str
    acceptable_tokens_per_second: float
    tiers: dict[str, DecidedEntry]


def parse(document: Any, host: str, tiers: Collection[str]) -> DecisionEntry | None:
    """Read the inventory's decision for a host; None when it has none.

    `tiers` are the names of all of the host's tiers in the inventory. InventoryError when it is none of this version,
    or of another host, or of tiers that the inventory has not (any more).
    """
    if not document:
        return None
    try:
        decided = DecisionEntry.model_validate(document)
    except ValidationError as error:
        raise InventoryError([f"{said}; {_ANEW}" for said in sentences(VARIABLE, error)]) from error
    if decided.host != host:
        said = f"it was decided for host {decided.host}, and this is {host}; put the name or the file back, or {_AGAIN}"
        raise InventoryError([f"{VARIABLE}: {said}"])
    problems = [
        f"{_decided_is(name, choice)}, but it is none of the inventory's tiers: {', '.join(tiers)}; "
        f"put it back, or {_AGAIN}"
        for name, choice in decided.tiers.items()
        if name not in tiers
    ]
    if problems:
        raise InventoryError(problems)
    return decided


def narrowed(
    tiers: Sequence[TierEntry],
    decided: DecisionEntry | None,
    gpus: Sequence[GpuEntry],
    models: Mapping[str, ModelEntry],
) -> list[TierEntry]:
    """Return the tiers with the decided candidate alone, placed as it was measured.

    A tier that was not decided keeps its candidates. InventoryError when the inventory has a decided one no longer, or
    asks something else of it than was measured.
    """
    narrow, problems = [], []
    for entry in tiers:
        choice = decided.tiers.get(entry.name) if decided else None
        own = next((each for each in entry.candidates if choice and is_decided(each, choice)), None)
        if choice is None:
            narrow.append(entry)
        elif own is None:
            names = ", ".join(_candidate_words(each) for each in entry.candidates)
            problems.append(
                f"{_decided_is(entry.name, choice)}, which is none of the inventory's candidates: {names}; "
                f"put it back, or {TRY_AGAIN}"
            )
        else:
            layers = _layers(models[own.model], choice.placed)
            why = asked.changed(entry, own, gpus, layers, choice.placed, choice.uuids)
            if why:
                problems.append(
                    f"{_decided_is(entry.name, choice)}, which was measured before {why}: put that back, or {TRY_AGAIN}"
                )
            else:
                narrow.append(asked.as_placed(entry, own.model, choice.placed, choice.uuids, entry.context.min))
    if problems:
        raise InventoryError(problems)
    return narrow


def is_decided(candidate: Candidate, choice: DecidedEntry) -> bool:
    """Whether a candidate of the inventory is the one that was chosen."""
    return (candidate.model, candidate.written) == (choice.model, choice.placement)


def _decided_is(name: str, choice: DecidedEntry) -> str:
    return f"tier {name}: decided is {choice.model} ({placement_words(choice.placement)})"


def _candidate_words(candidate: Candidate) -> str:
    return f"{candidate.model} ({placement_words(candidate.written)})"


def words(decided: DecisionEntry, name: str) -> str | None:
    """Say in a few words by what a tier's candidate was decided; None when it was not."""
    choice = decided.tiers.get(name)
    if choice is None:
        return None
    measured = f"{choice.tokens_per_second:.1f} tokens/s measured {choice.measured_at[:10]}"
    return f"decided by policy {decided.policy}: {measured}, evidence {choice.evidence[:12]}"
