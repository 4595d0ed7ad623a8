"""The host's memory: how a tier's server reads its model's file, and the most that the tier may hold. Pure; MiB."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from checker.placement import Choice
from checker.tier import DIO, MMAP

# Room for what a server holds of the host besides the plan's buffers: CUDA's own, requests, answers.
SERVER_MIB = 2048


def load_mode(choice: Choice, resident: Iterable[Sequence[Choice]]) -> str:
    """Return MMAP where the page cache has room for the model's file beside what is resident, else DIO.

    `resident` are the sets of tiers that may be loaded at once, this one among them. Without that room a file that is
    read once would push out weights of layers on the CPU, which tiers read for every token, and parts of itself before
    they are copied: the engine asks for all of it before it copies the first part (src/llama-mmap.cpp, prefetch).
    """
    room = choice.ram.room_mib
    if room is None:
        return MMAP
    held = max((sum(each.estimate.host.total_mib for each in group) for group in resident), default=0.0)
    return MMAP if held + _cached_mib(choice) <= room else DIO


def most_mib(choice: Choice, mode: str) -> int:
    """Return the most that a tier may hold: what is predicted, the server itself, its file where that is cached.

    No more than is for tiers: beyond that it is this tier that gives way, and not the host.
    """
    cached = _cached_mib(choice) if mode == MMAP else 0
    most = math.ceil(choice.estimate.host.total_mib + cached) + SERVER_MIB
    return most if choice.ram.room_mib is None else min(most, choice.ram.room_mib)


def _cached_mib(choice: Choice) -> float:
    """Return what the page cache has of a model's file besides the weights of layers on the CPU."""
    return sum(need.weights_mib for need in choice.estimate.devices)
