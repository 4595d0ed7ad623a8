"""Tier to command line: the one place that knows how llama-server's flags are spelled.

Flags only, never LLAMA_ARG_* variables: llama.cpp ignores unknown variables in silence (common/arg.cpp). Everything
whose default changed between engines, or depends on the host, is always written out.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        *("--cache-ram", str(tier.cache_ram_mib)),
        *flags.load_mode_mmap,
        *("--fit", "off"),
        *flags.no_ui,
        *flags.log,
        "--offline",
    )


def unknown_flags(argv: Sequence[str], help_text: str) -> tuple[str, ...]:
    """Return the flags of a command line that the `--help` of its binary does not name.

    An engine refuses a flag it does not know ("invalid argument") and the tier would crash in a loop.
    """
    known = {word.rstrip(",") for line in help_text.splitlines() for word in line.split() if word.startswith("-")}
    return tuple(flag for flag in argv[1:] if flag.startswith("--") and flag not in known)
