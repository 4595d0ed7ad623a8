"""llama-perplexity: its command lines for a tier, and what it prints of KL divergence. Pure.

`--kl-divergence-base` writes the logits of a text, `--kl-divergence` holds another run against them
(tools/perplexity, engine 0c1e57098). Half of each chunk is context, the other half is compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checker.tier import TierSpec

_CONTEXT = 512
_CHUNKS = 4
# Tokens that a run compares: of each chunk those behind its middle, each by what it foretells of the next.
TOKENS = _CHUNKS * (_CONTEXT - _CONTEXT // 2 - 1)

# More than any model has; the engine takes it for all.
_EVERY_LAYER = "999"

# The flags of a tier that decide what is computed and where; each comes with a value.
_SAME = (
    "--model",
    "--cache-type-k",
    "--cache-type-v",
    "--ubatch-size",
    "--flash-attn",
    "--load-mode",
    "--fit",
)
_PLACED = (
    "--rpc",
    "--device",
    "--n-gpu-layers",
    "--split-mode",
    "--tensor-split",
    "--n-cpu-moe",
    "--override-tensor",
)


@dataclass(frozen=True)
class Divergence:
    """How a run differs from the base: KL divergence of its tokens, share with the same most likely one (0 to 1)."""

    mean_kld: float
    max_kld: float
    same_top_share: float


def split(spec: TierSpec) -> tuple[str, ...]:
    """Return the flags that place the model as the tier does."""
    return _copied(spec, _PLACED)


def alone(spec: TierSpec, device: str) -> tuple[str, ...]:
    """Return the flags that place the whole model on one device of the tier."""
    return (*_copied(spec, ("--rpc",)), "--device", device, "--n-gpu-layers", _EVERY_LAYER, "--split-mode", "none")


def on_host() -> tuple[str, ...]:
    """Return the flags that place the whole model in the host's memory."""
    return ("--device", "none", "--n-gpu-layers", "0")


def base(spec: TierSpec, placed: Sequence[str], text: Path, logits: Path) -> tuple[str, ...]:
    """Return the command line that writes the logits of a text."""
    return (*_command(spec, placed, logits), "--file", str(text))


def compare(spec: TierSpec, placed: Sequence[str], logits: Path) -> tuple[str, ...]:
    """Return the command line that holds a placement against logits; the text is in them."""
    return (*_command(spec, placed, logits), "--kl-divergence")


def _command(spec: TierSpec, placed: Sequence[str], logits: Path) -> tuple[str, ...]:
    size = ("--ctx-size", str(_CONTEXT), "--chunks", str(_CHUNKS))
    binary = str(Path(spec.argv[0]).with_name("llama-perplexity"))
    return (binary, *_copied(spec, _SAME), *placed, *size, "--offline", "--kl-divergence-base", str(logits))


def _copied(spec: TierSpec, flags: Sequence[str]) -> tuple[str, ...]:
    pairs = zip(spec.argv, spec.argv[1:], strict=False)
    return tuple(word for flag, value in pairs if flag in flags for word in (flag, value))


def read(printed: str) -> Divergence | None:
    """Read what a comparison printed; None when it does not tell, or when what it computed is no number."""
    found = [
        re.search(rf"^{name}\s*:\s+(-?\d+\.\d+)", printed, re.MULTILINE)
        for name in (r"Mean\s+KLD", r"Maximum\s+KLD", r"Same top p")
    ]
    values = [float(match[1]) for match in found if match]
    if len(values) != len(found):
        return None
    # A figure below its own rounding comes out as -0.000000.
    mean, most, same = values
    return Divergence(max(mean, 0.0), max(most, 0.0), round(same / 100, 6))
