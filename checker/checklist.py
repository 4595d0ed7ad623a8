"""The checklist of a host: what has to be seen before its tiers are relied on. Pure.

A box is ticked by evidence alone, and is open with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from checker.evidence import Box, Evidence, TierReport

_NO_SPLIT = "no tier lies on several cards"


def boxes(tiers: Sequence[TierReport], decision: Mapping[str, Any] | None) -> tuple[Box, ...]:
    """Return the checklist of a host, in the order in which it is worked through.

    `decision` is what the inventory holds of `checker decide` (docs/schemas/decision.schema.json), None without one.
    """
    split = [tier for tier in tiers if len(_cards(tier.evidence)) > 1]
    return (
        _checked("Every tier loads", tiers, ("unit active", "reachable")),
        _checked("Each card of a split holds its part", split, ("memory held on ", "memory as planned on "), _NO_SPLIT),
        _checked("Tokens a second are measured", tiers, ("generation speed",)),
        _checked("The time to load is measured", tiers, ("load time",)),
        _checked(
            "A split answers as the unsplit model does",
            split,
            ("quality of the split", "noise of the reference"),
            _NO_SPLIT,
            "`checker verify --quality` compares them",
        ),
        _turns(tiers),
        _boot(tiers),
        _decided(tiers, decision),
    )


def _cards(evidence: Evidence) -> tuple[str, ...]:
    """Return the names of the cards that a tier is planned on, in device order."""
    return tuple(device.gpu for device in evidence.devices if device.name and device.uuid)


def _checked(
    name: str,
    tiers: Sequence[TierReport],
    wanted: tuple[str, ...],
    without: str = "no tier is here",
    unmeasured: str = "`checker verify` measures it",
) -> Box:
    """Tick what the verdicts' checks prove whose names begin with one of `wanted`; those of the first one are shown."""
    seen, lacking = [], []
    for tier in tiers:
        checks = [check for check in tier.verdict.checks if check.name.startswith(wanted)]
        shown = [check for check in checks if check.name.startswith(wanted[0])]
        said = (f"{check.name.removeprefix(wanted[0])} {check.measured}".strip() for check in shown)
        seen.append(f"{tier.name}: {', '.join(said)}")
        if not shown:
            lacking.append(f"{tier.name}: not measured, {unmeasured}")
        lacking += [
            f"{tier.name}: {check.name} is {check.measured}, wanted {check.expected}"
            for check in checks
            if not check.passed
        ]
    return Box(name, bool(tiers) and not lacking, "; ".join(lacking or seen) or without)


def _turns(tiers: Sequence[TierReport]) -> Box:
    """Tick what rivals prove that were measured: while one was loaded, none of the others was."""
    name = "Tiers take turns"
    rivals = [tier for tier in tiers if tier.evidence.rivals]
    if not rivals:
        return Box(name, False, "no tier gives way to another: all are loaded beside each other")
    unseen = [tier.name for tier in rivals if tier.evidence.unit.active_state != "active"]
    if unseen:
        return Box(name, False, f"not seen loaded: {', '.join(unseen)}")
    apart = [said for tier in rivals for said in _beside(tier)]
    if apart:
        return Box(name, False, "; ".join(apart))
    pairs = (f"{tier.name} in the place of {' and '.join(tier.evidence.rivals)}" for tier in rivals)
    return Box(name, True, f"each was measured loaded: {', '.join(pairs)}")


def _beside(tier: TierReport) -> Iterator[str]:
    """Say which rivals were loaded while a tier was measured, and of which that is not known."""
    for rival in tier.evidence.rivals:
        state = tier.evidence.rival_states.get(rival)
        if state is None:
            yield f"{tier.name}: not seen whether {rival} was loaded beside it, `checker verify` looks"
        elif state not in ("inactive", "failed"):
            yield f"{tier.name}: {rival} was {state} beside it"


def _boot(tiers: Sequence[TierReport]) -> Box:
    name = "Tiers are back after a reboot"
    unseen = [tier.name for tier in tiers if tier.evidence.booted_at is None]
    if unseen or not tiers:
        return Box(name, False, f"not seen since a boot: {', '.join(unseen)}; restart the host, then `checker verify`")
    return Box(name, True, ", ".join(f"{tier.name} {tier.evidence.booted_at}" for tier in tiers))


def _decided(tiers: Sequence[TierReport], decision: Mapping[str, Any] | None) -> Box:
    """Tick a decision that is served, by model, cards and how it lies on them."""
    name = "The decision is served"
    if not decision:
        return Box(name, False, "no decision: `checker trial`, then `checker decide`")
    served = {tier.name: _served(tier.evidence) for tier in tiers}
    # A decision of another version says of none how it lay, and site.yml says that.
    decided = {
        name: _Served(choice["model"], choice["gpus"], choice.get("uuids", []), choice.get("placed") or {})
        for name, choice in decision["tiers"].items()
    }
    apart = [
        f"{tier}: decided is {wanted}, served {served.get(tier, 'is nothing')}"
        for tier, wanted in decided.items()
        if tier not in served or served[tier].key != wanted.key
    ]
    if apart:
        return Box(name, False, f"{'; '.join(apart)}: run site.yml")
    said = (f"{tier}: {wanted}" for tier, wanted in decided.items())
    return Box(name, True, f"policy {decision['policy']}; {'; '.join(said)}")


def _served(evidence: Evidence) -> _Served:
    uuids = [device.uuid for device in evidence.devices if device.name and device.uuid]
    return _Served(evidence.model.name, _cards(evidence), uuids, asdict(evidence.placement))


@dataclass(frozen=True)
class _Served:
    """A model and how it lies on cards, in device order; `placed` has the words of `tier.Placement`."""

    model: str
    gpus: Sequence[str]
    uuids: Sequence[str]
    placed: Mapping[str, Any]

    @property
    def key(self) -> tuple[Any, ...]:
        """What two of them differ in, when they do."""
        words = (self.placed.get(word) for word in ("split_mode", "n_gpu_layers"))
        return (self.model, *self.uuids, *self.placed.get("tensor_split", ()), *words)

    def __str__(self) -> str:
        split, mode = self.placed.get("tensor_split"), self.placed.get("split_mode")
        layers = f", {','.join(map(str, split))} layers" if split else ""
        return f"{self.model}{layers} on {' and '.join(self.gpus) or 'no card'}" + (
            f", {mode} split" if mode in ("row", "tensor") else ""
        )
