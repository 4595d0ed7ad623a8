"""The command line of a tier: every flag once, with its value; and the flags that an engine does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checker import argv, tier
from checker.catalogue import EngineFlags, TierEntry
from inventories import BIG, ENGINES, SMALL

ENTRY = TierEntry.model_validate(
    {
        "name": "deep",
        "port": 8081,
        "context": 4096,
        "parallel": 2,
        "cache_ram_mib": 256,
        "api": {"bind": "127.0.0.2"},
        "gpus": [BIG["uuid"], SMALL["uuid"]],
        "candidates": [{"model": "tiny", "placement": {"tensor_split": [3, 2]}}],
    }
)
PLACEMENT = tier.Placement("layer", (3, 2), 5, 4096, "q8_0", "f16", 512, "on")
LOCAL = (
    tier.Device("CUDA0", BIG["uuid"], BIG["name"], 3, 6.0),
    tier.Device("CUDA1", SMALL["uuid"], SMALL["name"], 2, 9.0),
)
REMOTE = (
    tier.Device("RPC0", BIG["uuid"], BIG["name"], 3, 6.0, "127.0.0.1:50052"),
    tier.Device("RPC1", SMALL["uuid"], SMALL["name"], 2, 9.0, "127.0.0.1:50053"),
)


def command(devices: Sequence[tier.Device] = LOCAL, engine: str = "new") -> tuple[str, ...]:
    return argv.server_argv(
        ENTRY,
        "tiny",
        PLACEMENT,
        devices,
        EngineFlags.model_validate(ENGINES[engine]["flags"]),
        binary="/r/bin/llama-server",
        model_file="/m/tiny.gguf",
        key_file="/k/deep",
    )


def values(words: Sequence[str]) -> dict[str, list[str]]:
    """Return flag → the words after it, up to the next flag; a flag that stands there twice is an error."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("-"):
            assert word not in found, f"{word} stands there twice"
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return found


COMMON = {
    "--model": ["/m/tiny.gguf"],
    "--alias": ["tiny"],
    "--host": ["/run/llama-tier-deep/api.sock"],
    "--api-key-file": ["/k/deep"],
    "--device": ["CUDA0,CUDA1"],
    "--n-gpu-layers": ["5"],
    "--split-mode": ["layer"],
    "--tensor-split": ["3,2"],
    "--ctx-size": ["4096"],
    "--parallel": ["2"],
    "--cache-type-k": ["q8_0"],
    "--cache-type-v": ["f16"],
    "--ubatch-size": ["512"],
    "--flash-attn": ["on"],
    "--cache-ram": ["256"],
    "--fit": ["off"],
    "--no-ui": [],
    "--offline": [],
}


@pytest.mark.parametrize(
    ("engine", "own"),
    [("new", {"--load-mode": ["mmap"], "--log-jsonl": []}), ("old", {"-lv": ["4"]})],
    ids=["new", "old"],
)
def test_a_split_tier_has_every_flag_once_with_its_value(engine: str, own: dict[str, list[str]]) -> None:
    binary, *words = command(engine=engine)
    assert binary == "/r/bin/llama-server"
    assert values(words) == COMMON | own


def test_endpoints_are_named_in_device_order() -> None:
    found = values(command(REMOTE)[1:])
    assert found["--rpc"] == ["127.0.0.1:50052,127.0.0.1:50053"]
    assert found["--device"] == ["RPC0,RPC1"]
    turned = values(command(REMOTE[::-1])[1:])
    assert turned["--rpc"] == ["127.0.0.1:50053,127.0.0.1:50052"]


def test_only_the_cards_behind_an_endpoint_are_named_as_such() -> None:
    found = values(command((LOCAL[0], REMOTE[0]))[1:])
    assert (found["--rpc"], found["--device"]) == (["127.0.0.1:50052"], ["CUDA0,RPC0"])


# As llama-server prints it, shortened.
HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-m,    --model FNAME                    model path to load
                                        (env: LLAMA_ARG_MODEL)
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM
-fa,   --flash-attn [on|off|auto]       set Flash Attention use
--mmap, --no-mmap                       whether to memory-map the model
--host HOST                             ip address to listen
"""


@pytest.mark.parametrize("flag", ["--model", "--gpu-layers", "--n-gpu-layers", "--mmap", "--no-mmap", "--host"])
def test_every_spelling_that_help_names_is_known(flag: str) -> None:
    assert argv.unknown_flags(("llama-server", flag, "1"), HELP) == ()


def test_flags_that_help_does_not_name_are_found_in_their_order() -> None:
    words = ("llama-server", "--models", "/m", "--host", "::1", "--mode", "--flash-attn", "on")
    assert argv.unknown_flags(words, HELP) == ("--models", "--mode")


def test_values_and_the_binary_are_no_flags() -> None:
    assert argv.unknown_flags(("--llama-server", "--host", "-1", "--model", "x--y"), HELP) == ()


@given(st.sets(st.sampled_from(sorted(COMMON))))
def test_exactly_the_flags_that_help_leaves_out_are_unknown(left_out: set[str]) -> None:
    known = "\n".join(f"-x,    {flag} VALUE    what it does" for flag in COMMON if flag not in left_out)
    words = [word for flag, value in COMMON.items() for word in (flag, *value)]
    assert set(argv.unknown_flags(("llama-server", *words), known)) == left_out


@pytest.mark.parametrize("engine", ["new", "old"])
def test_the_templated_flags_are_those_that_a_command_line_can_hold(engine: str) -> None:
    """With cards behind RPC, experts on the host and no pipeline parallelism, every flag is there."""
    flags = EngineFlags.model_validate(ENGINES[engine]["flags"])
    everything = argv.server_argv(
        ENTRY,
        "tiny",
        replace(PLACEMENT, n_cpu_moe=1, pipeline_parallel=False),
        REMOTE,
        flags,
        binary="/r/bin/llama-server",
        model_file="/m/tiny.gguf",
        key_file="/k/deep",
    )
    of_engine = {word for words in flags.model_dump().values() for word in words}
    assert {word for word in everything if word.startswith("--")} - of_engine == set(argv.TEMPLATED)
