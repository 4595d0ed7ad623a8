"""Tier to command line: the one place that knows how llama-server's flags are spelled.

Flags only, never LLAMA_ARG_* variables: llama.cpp ignores unknown variables in silence (common/arg.cpp). Everything
whose default changed between engines, or depends on the host, is always written out.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from checker.tier import Device, Placement, socket_of

if TYPE_CHECKING:
    # `unknown_flags` runs on hosts, which have no pydantic.
    from checker.catalogue import EngineFlags, TierEntry


# Every flag that `server_argv` may write, but for those that an engine's table spells (`EngineFlags`).
TEMPLATED = (
    "--model",
    "--alias",
    "--host",
    "--api-key-file",
    "--rpc",
    "--device",
    "--n-gpu-layers",
    "--split-mode",
    "--tensor-split",
    "--ctx-size",
    "--parallel",
    "--cache-type-k",
    "--cache-type-v",
    "--ubatch-size",
    "--flash-attn",
    "--n-cpu-moe",
    "--override-tensor",
    "--cache-ram",
    "--fit",
    "--offline",
)

# Flags that the tables of engines may spell, and whether a value follows.
_OF_ENGINE = {
    **dict.fromkeys(("--load-mode", "--log-verbosity"), True),
    **dict.fromkeys(("--mmap", "--no-mmap", "--direct-io", "--log-jsonl", "--no-ui"), False),
}

# Flags that a tier may be given besides, and whether a value follows: how the model answers, and with how many threads.
# None of them changes where the server listens, who may ask it, what it serves or what it holds.
_SAMPLING = """
--samplers --seed --temp --dynatemp-range --dynatemp-exp --top-k --top-p --min-p --top-nsigma --typical
--xtc-probability --xtc-threshold --repeat-last-n --repeat-penalty --presence-penalty --frequency-penalty
--dry-multiplier --dry-base --dry-allowed-length --dry-penalty-last-n --mirostat --mirostat-lr --mirostat-ent
"""
_CHAT = "--chat-template --chat-template-kwargs --reasoning --reasoning-format --reasoning-effort --reasoning-budget"
EXTRA = {
    **dict.fromkeys(f"{_SAMPLING} {_CHAT} --threads --threads-batch".split(), True),
    **dict.fromkeys(("--jinja", "--no-jinja"), False),
}
_FINAL = {**dict.fromkeys(TEMPLATED, True), "--offline": False, **_OF_ENGINE, **EXTRA}

# The inventory's own words for what people know as a flag; for messages alone.
_KNOWN_AS = {
    "api.bind": "--host",
    "port": "--port",
    "api.tls": "--ssl-key-file --ssl-cert-file",
    "tiers_api_keys": "--api-key --api-key-file",
    "context": "-c --ctx-size",
    "parallel": "-np --parallel",
    "cache_ram_mib": "-cram --cache-ram",
    "gpus": "-dev --device -mg --main-gpu --rpc",
    "candidates": "-m --model -a --alias -mu --model-url -hf -hfr --hf-repo -hff --hf-file -dr --docker-repo",
    "the placement of a candidate": """
        -sm --split-mode -ts --tensor-split -ngl --gpu-layers --n-gpu-layers -fit --fit -ot --override-tensor
        -ctk --cache-type-k -ctv --cache-type-v -ub --ubatch-size -fa --flash-attn -ncmoe --n-cpu-moe -cmoe --cpu-moe
    """,
}
_INSTEAD = {flag: key for key, flags in _KNOWN_AS.items() for flag in flags.split()}

# Any override switches pipeline parallelism off (src/llama-context.cpp); this one matches no tensor.
_NO_PIPELINE = "no-such-tensor=CPU"


def server_argv(
    tier: TierEntry,
    model_name: str,
    placement: Placement,
    devices: Sequence[Device],
    flags: EngineFlags,
    *,
    binary: str,
    model_file: str,
    key_file: str,
    load_mode: str,
) -> tuple[str, ...]:
    """Return the whole command line of a tier's llama-server.

    `devices` are in device order: `--device`, `--tensor-split` and `--rpc` follow it. The fit stage is off: a placement
    that does not fit must fail, not be bent (common/fit.cpp goes on loading after a failed fit).
    """
    endpoints = [device.rpc_endpoint for device in devices if device.rpc_endpoint]
    return (
        binary,
        *("--model", model_file),
        *("--alias", model_name),
        # A path that ends in .sock is a unix socket to it (tools/server/server-http.cpp).
        *("--host", socket_of(tier.name)),
        *("--api-key-file", key_file),
        *(("--rpc", ",".join(endpoints)) if endpoints else ()),
        *("--device", ",".join(device.name for device in devices)),
        *("--n-gpu-layers", str(placement.n_gpu_layers)),
        *("--split-mode", placement.split_mode),
        *("--tensor-split", ",".join(str(count) for count in placement.tensor_split)),
        *("--ctx-size", str(placement.ctx_size)),
        *("--parallel", str(tier.parallel)),
        *("--cache-type-k", placement.cache_type_k),
        *("--cache-type-v", placement.cache_type_v),
        *("--ubatch-size", str(placement.ubatch_size)),
        *("--flash-attn", placement.flash_attn),
        *(("--n-cpu-moe", str(placement.n_cpu_moe)) if placement.n_cpu_moe else ()),
        *(("--override-tensor", _NO_PIPELINE) if not placement.pipeline_parallel and len(devices) > 1 else ()),
        *("--cache-ram", str(placement.cache_ram_mib)),
        *getattr(flags.load_mode, load_mode),
        *("--fit", "off"),
        *flags.no_ui,
        *flags.log,
        "--offline",
        *tier.arguments,
    )


def refused(words: Sequence[str], allowed: Mapping[str, bool] = EXTRA) -> Iterator[str]:
    """Say of each flag among the words of a command line that is not `allowed`, or not so, what is wrong with it.

    `allowed` tells whether a value follows a flag. Whatever is not in it is refused, in any spelling: llama-server has
    short names, several names for one thing, takes `_` for `-`, and of two the last (common/arg.cpp). What is said has
    no values, of which one may be a key.
    """
    rest, seen = deque(words), set()
    while rest:
        word = rest.popleft()
        if word not in allowed:
            yield _why_refused(re.split(r"[=\s]", word)[0])
            while rest and not rest[0].startswith("-"):
                rest.popleft()
            continue
        if word in seen:
            yield f"{word} stands there twice"
        seen.add(word)
        if allowed[word]:
            if rest and not rest[0].startswith("--"):
                rest.popleft()
            else:
                yield f"{word} is without its value"


def _why_refused(flag: str) -> str:
    instead = _INSTEAD.get(flag.replace("_", "-") if flag.startswith("--") else flag)
    fix = f"use {instead} instead" if instead else "docs/inventory.md lists what a tier may be given"
    return f"{flag} is refused: {fix}"


def problems(argv: Sequence[str]) -> list[str]:
    """Return what is wrong with a final command line: flags that no tier may have, and such that override others."""
    return list(refused(argv[1:], _FINAL))


def unknown_flags(argv: Sequence[str], help_text: str) -> tuple[str, ...]:
    """Return the flags of a command line that the `--help` of its binary does not name.

    An engine refuses a flag it does not know ("invalid argument") and the tier would crash in a loop.
    """
    known = {word.rstrip(",") for line in help_text.splitlines() for word in line.split() if word.startswith("-")}
    return tuple(flag for flag in argv[1:] if flag.startswith("--") and flag not in known)
