"""The command line of a tier: every flag once, with its value; and the flags that an engine does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
        "api": {"bind": "127.0.0.2"},
        "gpus": [BIG["uuid"], SMALL["uuid"]],
        "candidates": [{"model": "tiny", "placement": {"tensor_split": [3, 2]}}],
    }
)
PLACEMENT = tier.Placement("layer", (3, 2), 5, 4096, "q8_0", "f16", 512, "on", cache_ram_mib=256)
LOCAL = (
    tier.Device("CUDA0", BIG["uuid"], BIG["name"], 3, 6.0),
    tier.Device("CUDA1", SMALL["uuid"], SMALL["name"], 2, 9.0),
)
REMOTE = (
    tier.Device("RPC0", BIG["uuid"], BIG["name"], 3, 6.0, "127.0.0.1:50052"),
    tier.Device("RPC1", SMALL["uuid"], SMALL["name"], 2, 9.0, "127.0.0.1:50053"),
)


def command(devices: Sequence[tier.Device] = LOCAL, engine: str = "new", load_mode: str = tier.MMAP) -> tuple[str, ...]:
    return argv.server_argv(
        ENTRY,
        "tiny",
        PLACEMENT,
        devices,
        EngineFlags.model_validate(ENGINES[engine]["flags"]),
        binary="/r/bin/llama-server",
        model_file="/m/tiny.gguf",
        key_file="/k/deep",
        load_mode=load_mode,
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
    ("engine", "load_mode", "own"),
    [
        ("new", "mmap", {"--load-mode": ["mmap"], "--log-jsonl": []}),
        ("new", "dio", {"--load-mode": ["dio"], "--log-jsonl": []}),
        ("old", "mmap", {"--log-verbosity": ["4"]}),
        ("old", "dio", {"--direct-io": [], "--log-verbosity": ["4"]}),
    ],
)
def test_a_split_tier_has_every_flag_once_with_its_value(engine: str, load_mode: str, own: dict[str, Any]) -> None:
    binary, *words = command(engine=engine, load_mode=load_mode)
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
        load_mode=tier.MMAP,
    )
    of_engine = {*flags.load_mode.mmap, *flags.log, *flags.no_ui}
    assert {word for word in everything if word.startswith("--")} - of_engine == set(argv.TEMPLATED)


# What llama-server calls the same thing, from its `--help`: all that a tier's command line decides, and what opens
# something. With 0 no value follows.
DECIDED: dict[tuple[str, ...], int] = {
    ("-m", "--model"): 1,
    ("-a", "--alias"): 1,
    ("--host",): 1,
    ("--api-key-file",): 1,
    ("--rpc",): 1,
    ("-dev", "--device"): 1,
    ("-ngl", "--gpu-layers", "--n-gpu-layers"): 1,
    ("-sm", "--split-mode"): 1,
    ("-ts", "--tensor-split"): 1,
    ("-c", "--ctx-size"): 1,
    ("-np", "--parallel"): 1,
    ("-ctk", "--cache-type-k"): 1,
    ("-ctv", "--cache-type-v"): 1,
    ("-ub", "--ubatch-size"): 1,
    ("-fa", "--flash-attn"): 1,
    ("-ncmoe", "--n-cpu-moe"): 1,
    ("-ot", "--override-tensor"): 1,
    ("-cram", "--cache-ram"): 1,
    ("-fit", "--fit"): 1,
    ("--offline",): 0,
    ("-lm", "--load-mode"): 1,
    ("--log-jsonl",): 0,
}
OPENING: dict[tuple[str, ...], int] = {
    ("--port",): 1,
    ("--api-key",): 1,
    ("--path",): 1,
    ("--metrics",): 0,
    ("--props",): 0,
    ("--slots", "--no-slots"): 0,
    ("--slot-save-path",): 1,
    ("--media-path",): 1,
    ("--tools",): 1,
    ("-ag", "--agent", "-no-ag", "--no-agent"): 0,
    ("--ui", "--webui", "--no-ui", "--no-webui"): 0,
    ("--ssl-key-file",): 1,
    ("--models-dir",): 1,
    ("-hf", "-hfr", "--hf-repo"): 1,
    ("-mu", "--model-url"): 1,
    ("-md", "--model-draft", "--spec-draft-model"): 1,
    ("-cmoe", "--cpu-moe"): 0,
    ("-mg", "--main-gpu"): 1,
}
GROUPS = DECIDED | OPENING | {(flag,): int(valued) for flag, valued in argv.EXTRA.items()}
GROUP_OF = {spelling: group for group in GROUPS for spelling in group}


def as_the_server_reads(words: Sequence[str]) -> dict[tuple[str, ...], str]:
    """Return the values that a command line has for llama-server, by `common_params_parse_ex` (common/arg.cpp)."""
    found, rest = {}, list(words)
    while rest:
        word = rest.pop(0)
        group = GROUP_OF[word.replace("_", "-") if word.startswith("--") else word]
        found[group] = rest.pop(0) if GROUPS[group] else word
    return found


def spelled(flag: str) -> st.SearchStrategy[list[str]]:
    """Spell a flag as llama-server takes it, and as other programs do, with a value or without."""
    forms = [flag, flag.replace("-", "_").replace("__", "--", 1), flag.upper()]
    value = st.sampled_from(["0", "-1", "0.0.0.0", "x.sock", "on"])
    return st.one_of(
        st.sampled_from(forms).map(lambda form: [form]),
        st.tuples(st.sampled_from(forms), value).map(list),
        st.tuples(st.sampled_from(forms), value).map(lambda both: ["=".join(both)]),
        st.tuples(st.sampled_from(forms), value).map(lambda both: [" ".join(both)]),
    )


FORBIDDEN = st.sampled_from(sorted(spelling for group in DECIDED | OPENING for spelling in group)).flatmap(spelled)
HARMLESS = st.sampled_from(sorted(argv.EXTRA)).map(lambda flag: [flag, "0.5"] if argv.EXTRA[flag] else [flag])


def flat(parts: Sequence[Sequence[str]]) -> list[str]:
    return [word for part in parts for word in part]


@given(st.lists(HARMLESS, max_size=3), FORBIDDEN, st.lists(HARMLESS, max_size=3))
def test_a_tier_is_given_nothing_that_is_decided_or_opens_something(
    before: list[list[str]], wrong: list[str], after: list[list[str]]
) -> None:
    assert list(argv.refused([*flat(before), *wrong, *flat(after)]))
    assert argv.problems([*command(), *flat(before), *wrong, *flat(after)])


@given(st.lists(st.sampled_from([*argv.EXTRA, *GROUP_OF, "0", "-1", "x", "", "--"]), max_size=4))
def test_what_is_accepted_changes_nothing_that_was_decided(words: list[str]) -> None:
    if list(argv.refused(words)):
        return
    whole = as_the_server_reads([*command()[1:], *words])
    own = {(flag,) for flag in argv.EXTRA}
    assert {group: value for group, value in whole.items() if group not in own} == as_the_server_reads(command()[1:])
    assert not argv.problems([*command(), *words])


@given(st.lists(st.sampled_from(sorted(argv.EXTRA)), unique=True))
def test_every_argument_of_ones_own_may_be_given_once(flags: list[str]) -> None:
    words = flat([[flag, "1"] if argv.EXTRA[flag] else [flag] for flag in flags])
    assert list(argv.refused(words)) == []
    assert argv.problems([*command(), *words]) == []
    assert [*argv.refused(words * 2)] == [f"{flag} stands there twice" for flag in flags]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ctx-size", "9"], ["--ctx-size is refused: use context instead"]),
        (["--ctx_size", "9"], ["--ctx_size is refused: use context instead"]),
        (["-ngl", "9"], ["-ngl is refused: use the placement of a candidate instead"]),
        (["--host=0.0.0.0"], ["--host is refused: use api.bind instead"]),
        (["--ssl-key-file", "/k"], ["--ssl-key-file is refused: use api.tls instead"]),
        (["--ssl_cert_file", "/c"], ["--ssl_cert_file is refused: use api.tls instead"]),
        (["--tools", "all"], ["--tools is refused: docs/inventory.md lists what a tier may be given"]),
        (["--temp", "--top-k", "4"], ["--temp is without its value"]),
        (["--seed", "-1", "--temp"], ["--temp is without its value"]),
        (["--top-k", "4", "5"], ["5 is refused: docs/inventory.md lists what a tier may be given"]),
    ],
)
def test_what_is_refused_is_named_with_what_is_meant(words: list[str], said: list[str]) -> None:
    assert list(argv.refused(words)) == said


@pytest.mark.parametrize("words", [["--api-key", "sesame"], ["--api-key=sesame"], ["--api-key sesame"]])
def test_a_key_among_the_arguments_is_not_said(words: list[str]) -> None:
    assert list(argv.refused(words)) == ["--api-key is refused: use tiers_api_keys instead"]


@pytest.mark.parametrize("engine", ["new", "old"])
def test_a_planned_command_line_has_no_problem(engine: str) -> None:
    assert argv.problems(command(REMOTE, engine)) == []
