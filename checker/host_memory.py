"""The host's memory: how a tier's server reads its model's file, and the most that the tier may hold. Pure; MiB."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from checker.placement import Choice
from checker.tier import DIO, MMAP

# Room for what a server holds of the host besides the plan's buffers: CUDA's own, requests, answers.
SERVER_MIB = 2048


def held_mib(choices: Iterable[Choice]) -> float:
    """Return what tiers hold together as planned, and what their servers take themselves at the most."""
    return sum(choice.estimate.host.total_mib + SERVER_MIB for choice in choices)


def load_mode(choice: Choice, beside: Sequence[Sequence[Choice]]) -> str:
    """Return MMAP where the page cache has room for the model's file beside what is resident, else DIO.

    `beside` are the sets of other tiers that may be resident with this one. Without that room a file that is read once
    would push out weights of layers on the CPU, which tiers read for every token, and parts of itself before they are
    copied: the engine asks for all of it before it copies the first part (src/llama-mmap.cpp, prefetch).
    """
    room = choice.ram.room_mib
    if room is None:
        return MMAP
    return MMAP if held_mib([choice]) + _most_held_mib(beside) + _cached_mib(choice) <= room else DIO


def most_mib(choice: Choice, mode: str, beside: Sequence[Sequence[Choice]]) -> int:
    """Return the most that a tier may hold: what is predicted, the server itself, its file where that is cached.

    No more than the others leave of what is for tiers (`beside` as in `load_mode`), so that beyond that it is this tier
    that gives way, and neither another one nor the host; but what it needs in any case.
    """
    own, room = math.ceil(held_mib([choice])), choice.ram.room_mib
    most = own + (math.ceil(_cached_mib(choice)) if mode == MMAP else 0)
    if room is None:
        return most
    return min(most, max(own, math.floor(room - _most_held_mib(beside))), room)


def _most_held_mib(groups: Sequence[Sequence[Choice]]) -> float:
    return max(map(held_mib, groups), default=0.0)


def _cached_mib(choice: Choice) -> float:
    """Return what the page cache has of a model's file besides the weights of layers on the CPU."""
    return sum(need.weights_mib for need in choice.estimate.devices)
