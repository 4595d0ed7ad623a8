"""The engine table: complete, consistent, and spelled as the engines' own sources spell it."""

from __future__ import annotations

import os
import re
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from checker import argv
from checker.catalogue import EngineFlags

ROOT = Path(__file__).parents[2]
ENGINES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "catalogue/engines.yml").read_text(encoding="utf-8"))[
    "engines"
]
CACHE = Path(os.environ.get("LLAMA_TIERS_CACHE", Path.home() / ".cache/llama-tiers"))
SHA256 = re.compile(r"[0-9a-f]{64}")

engine = pytest.mark.parametrize("name", ENGINES)


@engine
def test_an_engine_is_named_by_its_commit(name: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", ENGINES[name]["commit"])
    assert ENGINES[name]["commit"].startswith(name)


@engine
def test_every_source_can_be_verified(name: str) -> None:
    entry = ENGINES[name]
    assert SHA256.fullmatch(entry["package"]["sha256"])
    assert SHA256.fullmatch(entry["archive"]["sha256"])
    assert entry["archive"]["bytes"] > 0
    # The archive of a mirror is the package's source distribution.
    assert entry["archive"]["sha256"] == entry["package"]["sha256"]
    assert (
        entry["archive"]["file"] == f"{entry['package']['name'].replace('-', '_')}-{entry['package']['version']}.tar.gz"
    )
    assert entry["git"]["url"].startswith("https://")


@engine
def test_the_planner_can_use_the_flags_and_split_modes(name: str) -> None:
    EngineFlags.model_validate(ENGINES[name]["flags"])
    assert set(ENGINES[name]["split_modes"]) == {"cpu", "cuda", "rpc"}
    assert all("none" in modes for modes in ENGINES[name]["split_modes"].values())


@engine
def test_nothing_is_fetched_at_build_time(name: str) -> None:
    flags = ENGINES[name]["cmake_flags"]
    assert {flags[key] for key in ("LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL")} == {"OFF"}


@cache
def sources(name: str) -> dict[str, str]:
    """Return what is looked at of an engine's tree, by path."""
    entry = ENGINES[name]
    archive = CACHE / "mirror/sources" / entry["archive"]["file"]
    if not archive.exists():
        pytest.skip(f"{archive} is not there; `make lab-up` fetches it")
    wanted = r"CMakeLists\.txt|common/arg\.cpp|ggml/src/ggml-cuda/ggml-cuda\.cu"
    tree = {}
    with tarfile.open(archive) as package:
        for member in package:
            path = member.name.partition(f"/{entry['archive']['subdirectory']}/")[2]
            if re.fullmatch(rf"({wanted}|(tools|ggml)/.*CMakeLists\.txt)", path):
                content = package.extractfile(member)
                assert content is not None
                tree[path] = content.read().decode()
    return tree


@engine
def test_the_table_is_spelled_as_the_source_spells_it(name: str) -> None:
    """Every CMake option, target and flag stands in the tree; row split stands there exactly when the table has it."""
    entry, tree = ENGINES[name], sources(name)
    cmake = "\n".join(text for path, text in tree.items() if path.endswith("CMakeLists.txt"))
    for option in entry["cmake_flags"]:
        assert re.search(rf"option\({option}\s", cmake), option
    for target in entry["targets"]:
        assert re.search(rf"set\(TARGET\s+{target}\)", cmake), target
    for words in (*entry["flags"].pop("load_mode").values(), *entry["flags"].values()):
        for flag in (word for word in words if word.startswith("--")):
            assert f'"{flag}"' in tree["common/arg.cpp"], flag
    has_row = "ggml_backend_cuda_split_buffer_type" in tree["ggml/src/ggml-cuda/ggml-cuda.cu"]
    assert ("row" in entry["split_modes"]["cuda"]) == has_row


@engine
def test_arguments_of_ones_own_are_what_the_source_takes_them_for(name: str) -> None:
    """Each is another option than those of a tier's command line, and has a value exactly when one follows it there."""
    seen = set()
    for option in sources(name)["common/arg.cpp"].split("add_opt(common_arg(")[1:]:
        spellings = set(re.findall(r'"(--?[a-zA-Z][^" ]*)"', option.partition("params")[0]))
        handler = re.search(r"\]\(common_params &[^),]*,? ?([^)]*)\)", option)
        valued = handler is not None and handler[1].startswith(("int", "const std::string"))
        for flag in spellings & set(argv.EXTRA):
            assert argv.EXTRA[flag] == valued, flag
            assert not spellings & set(argv.TEMPLATED), flag
            seen.add(flag)
        for flag in spellings - set(argv.EXTRA):
            assert list(argv.refused([flag, "1"])), flag
    # The older one has no such level.
    assert set(argv.EXTRA) - seen <= {"--reasoning-effort"}


def test_the_documentation_lists_the_arguments_of_ones_own() -> None:
    text = (ROOT / "docs/inventory.md").read_text(encoding="utf-8").partition("## Arguments of your own")[2]
    listed = [flag for words in re.findall(r"^- [^`]*`([^`]*)`", text, re.MULTILINE) for flag in words.split()]
    assert sorted(listed) == sorted(argv.EXTRA)
