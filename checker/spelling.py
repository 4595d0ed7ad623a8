"""Slips of the pen: names that are none, and words of an inventory that nothing reads; Ansible is silent. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

# What an inventory says besides the variables of the roles (their meta/argument_specs.yml).
OWN = (
    *("gpus", "tiers", "ram"),
    *("llama_tiers_mirror", "llama_tiers_acceptable_tokens_per_second", "llama_tiers_decision"),
    *("llama_tiers_prune", "llama_tiers_replan", "llama_tiers_retry"),
)
# So near that a slip is likelier than a word of the reader's own.
_NEAR = 0.85


def misspelt(words: Collection[str], of_roles: Collection[str]) -> tuple[str, ...]:
    """Return a sentence for each word of an inventory that is nearly one that is read, in their order."""
    known = {*OWN, *of_roles}
    found = []
    for word in words:
        near = [] if word in known else difflib.get_close_matches(word, known, n=1, cutoff=_NEAR)
        found += [f"nothing reads {word} in the inventory: did you mean {each}?" for each in near]
    return tuple(found)


def meant(word: str, known: Iterable[str]) -> str:
    """Return a question for the known word that was likely meant, with a space after it; empty when there is none."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]}? " if close else ""
