"""Proof of a release before it becomes the current one: machine code for every card, the cards in order, known flags.

Runs on hosts. Pure but for `list_devices` and `help_text`; each function returns sentences, none when all is well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from checker import argv, program, toolkit
from checker.cuda import Card, Cubin, version

_TIMEOUT_S = 120
# common/arg.cpp (b11434) of --list-devices: "  %s: %s (%zu MiB, %zu MiB free)".
_DEVICE = re.compile(r"^ +(\w+): (.+) \((\d+) MiB, (\d+) MiB free\)$", re.MULTILINE)


@dataclass(frozen=True)
class ListedDevice:
    """A device as llama-server lists it: llama.cpp's name (CUDA0), the card's name, memory in MiB."""

    name: str
    gpu: str
    total_mib: int


@dataclass(frozen=True)
class ExpectedCard:
    """A card that the release is to serve."""

    uuid: str
    name: str
    compute_capability: str


def parse_devices(text: str) -> list[ListedDevice]:
    """Read what `llama-server --list-devices` prints, in its order; other lines are left alone."""
    return [ListedDevice(name, gpu, int(total)) for name, gpu, total, _ in _DEVICE.findall(text)]


def list_devices(binary: str, uuids: Sequence[str]) -> list[ListedDevice]:
    """Ask a llama-server for its devices when only these cards are shown to CUDA, in this order; ProgramError."""
    shown = ",".join(uuids)
    return parse_devices(program.output([binary, "--list-devices"], _TIMEOUT_S, CUDA_VISIBLE_DEVICES=shown))


def help_text(binary: str) -> str:
    """Return what a llama-server says of its flags; ProgramError when it fails, whatever it printed until then."""
    return program.output([binary, "--help"], _TIMEOUT_S)


def order_problems(cards: Sequence[ExpectedCard], listed: Sequence[ListedDevice]) -> list[str]:
    """Hold the devices that were listed for these cards, by UUID and in order, against their names."""
    names = [card.name for card in cards]
    found = [device.gpu for device in listed if device.name.startswith("CUDA")]
    if found == names:
        return []
    asked = ", ".join(f"{card.uuid} ({card.name})" for card in cards)
    return [
        f"with CUDA_VISIBLE_DEVICES {asked} the built llama-server lists {', '.join(found) or 'no CUDA device'}: each "
        "card has to be there once, in this order; llama-server --list-devices and the kernel log say why one is not"
    ]


def code_problems(
    cards: Sequence[ExpectedCard], architectures: Iterable[str], cubins: Mapping[Cubin, int]
) -> list[str]:
    """Hold the cubins of a program, counted by architecture, against the cards and what was asked of the compiler.

    Asked for is an architecture by its number: whether its code is for that one alone, the engine decides.
    """
    served = [Card(card.name, version(card.compute_capability)) for card in cards]
    return toolkit.unproven_cards(served, cubins) + [
        f"{asked} was asked of the compiler and is not in the program, which holds "
        f"{', '.join(map(str, cubins)) or 'none at all'}: remove the build's folder and run again"
        for asked in toolkit.machine_code(architectures)
        if asked.arch not in {cubin.arch for cubin in cubins}
    ]


def flag_problems(engine_flags: Mapping[str, Sequence[str]], help_text: str) -> list[str]:
    """Name the flags that a tier's command line may hold and the built llama-server does not know."""
    unknown = argv.unknown_flags(("llama-server", *argv.TEMPLATED, *chain(*engine_flags.values())), help_text)
    return [
        f"the built llama-server does not know {flag}: mend the flags of this engine in catalogue/engines.yml, or take "
        "another engine"
        for flag in unknown
    ]
