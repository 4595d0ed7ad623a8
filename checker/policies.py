"""Policies: what a candidate has to reach to be chosen for a tier, and which of those that do is preferred.

`catalogue/policies.yml`, validated; every problem names the place, the value and what would be right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from checker.catalogue import InventoryError, Percent, Written, sentences

ACCEPTABLE = "llama_tiers_acceptable_tokens_per_second"

Preference = Literal["quality", "speed", "load"]


def _list(written: Any) -> Any:
    if not isinstance(written, list | tuple):
        raise ValueError("expected a list, such as [quality, speed]")
    return written


class RuleEntry(Written):
    """What one tier's candidates are held against, on top of the tier's own criteria.

    Speed is tokens per second of one answer (`acceptable` is the one figure of the host), `min_quality` a published
    share of solved problems in per cent (`checker.catalogue.PublishedEntry.score`), `max_cpu_layers` how many layers
    may lie outside the cards. `prefer` ranks what passes: by the first word, and among equals by the next.
    """

    min_generation_tokens_per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["acceptable"] = (
        "acceptable"
    )
    max_load_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    min_quality: Percent | None = None
    min_cards: int = Field(default=1, ge=1)
    max_cards: int | None = Field(default=None, ge=1)
    max_cpu_layers: int | None = Field(default=None, ge=0)
    prefer: Annotated[tuple[Preference, ...], BeforeValidator(_list)] = Field(
        default=("quality", "speed"), min_length=1
    )

    @model_validator(mode="after")
    def _can_be_met(self) -> RuleEntry:
        if self.max_cards is not None and self.max_cards < self.min_cards:
            raise ValueError(f"max_cards {self.max_cards} is below min_cards {self.min_cards}: exchange them")
        if len(set(self.prefer)) < len(self.prefer):
            raise ValueError(f"prefer {', '.join(self.prefer)} names a word twice: name each once")
        return self


class PolicyEntry(Written):
    """One policy: a rule for each tier that it decides, and the policy to try where one of them finds no candidate."""

    note: str = Field(min_length=1)
    otherwise: str | None = None
    tiers: dict[str, RuleEntry] = Field(min_length=1)


class Policies(Written):
    """All policies; `first` is the one that is tried unless another is named.

    `acceptable_tokens_per_second` is what `acceptable` stands for where a host says nothing else
    (`llama_tiers_acceptable_tokens_per_second` in the inventory).
    """

    first: str
    acceptable_tokens_per_second: float = Field(gt=0, allow_inf_nan=False)
    policies: dict[str, PolicyEntry] = Field(min_length=1)

    def ladder(self, name: str) -> tuple[tuple[str, PolicyEntry], ...]:
        """Return the policy of that name, the one to try when it finds no candidate, and so on."""
        steps = []
        step: str | None = name
        while step is not None:
            steps.append((step, self.policies[step]))
            step = self.policies[step].otherwise
        return tuple(steps)


def parse(document: Any, where: str) -> Policies:
    """Validate the document of a file of policies; InventoryError has a sentence for each problem."""
    if not isinstance(document, Mapping):
        raise InventoryError([f"{where}: expected first, acceptable_tokens_per_second and policies with their values"])
    try:
        policies = Policies.model_validate(document)
    except ValidationError as error:
        raise InventoryError(list(sentences(where, error))) from error
    problems = [f"{where}: {problem}" for problem in _problems(policies)]
    if problems:
        raise InventoryError(problems)
    return policies


def acceptable_problems(variables: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with the speed that a host's inventory calls acceptable, if it says one."""
    if ACCEPTABLE not in variables:
        return []
    said = variables[ACCEPTABLE]
    if not isinstance(said, bool) and isinstance(said, int | float) and 0 < said < float("inf"):
        return []
    return [f"{ACCEPTABLE} {said!r} is wrong: expected tokens per second, more than 0"]


def _problems(policies: Policies) -> Iterable[str]:
    known = ", ".join(policies.policies)
    if policies.first not in policies.policies:
        yield f"first {policies.first!r} is none of its policies; they are: {known}"
    for name, policy in policies.policies.items():
        if policy.otherwise is not None and policy.otherwise not in policies.policies:
            yield f"policies.{name}.otherwise {policy.otherwise!r} is none of its policies; they are: {known}"
    told: set[str] = set()
    for name in policies.policies:
        way = _round(policies, name)
        if way and not told & set(way):
            yield f"policies.{name}.otherwise leads back to it ({' → '.join(way)}): leave out one of them"
        told |= set(way)


def _round(policies: Policies, name: str) -> list[str]:
    """Return the way from a policy back to itself, empty when there is none."""
    way = [name]
    while (policy := policies.policies.get(way[-1])) is not None and policy.otherwise is not None:
        if policy.otherwise == name:
            return [*way, name]
        if policy.otherwise in way:
            return []
        way.append(policy.otherwise)
    return []
