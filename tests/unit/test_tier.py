"""The tier spec file: it survives the way through JSON, and what cannot be read says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fake_tier import spec
from hypothesis import given, settings
from hypothesis import strategies as st

from checker import tier

ROOT = Path(__file__).parents[2]
SCHEMA = jsonschema.Draft202012Validator(
    json.loads((ROOT / "docs/schemas/tier.schema.json").read_text(encoding="utf-8"))
)

WORDS = st.text(max_size=20)
FILES = WORDS.map(lambda word: f"/{word}")
MIB = st.none() | st.floats(0, 1e6)
COUNTS = st.integers(0, 10**6)

SPECS = st.builds(
    tier.TierSpec,
    name=WORDS,
    bind=WORDS,
    port=st.integers(1, 65535),
    key_file=FILES,
    model=st.builds(tier.Model, name=WORDS, file=FILES, sha256=st.just("ab" * 32)),
    engine=st.builds(tier.Engine, commit=st.just("0" * 40), release=FILES),
    placement=st.builds(
        tier.Placement,
        split_mode=st.sampled_from(["none", "layer", "row", "tensor"]),
        tensor_split=st.lists(COUNTS, min_size=1, max_size=4).map(tuple),
        n_gpu_layers=COUNTS,
        ctx_size=st.integers(1, 10**6),
        cache_type_k=WORDS,
        cache_type_v=WORDS,
        ubatch_size=st.integers(1, 4096),
        flash_attn=st.sampled_from(["on", "off"]),
    ),
    devices=st.lists(
        st.builds(
            tier.Device,
            name=WORDS,
            uuid=WORDS.map(lambda word: f"GPU-{word}"),
            gpu=WORDS,
            layers=COUNTS,
            weights_mib=MIB,
            rpc_endpoint=st.none() | WORDS,
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    host_weights_mib=MIB,
    criteria=st.builds(tier.Criteria, min_generation_tokens_per_second=st.floats(0, 1e6), max_load_s=st.floats(0, 1e6)),
    argv=st.lists(WORDS, min_size=1, max_size=5).map(tuple),
    environment=st.dictionaries(WORDS, WORDS, max_size=3),
    residency=st.sampled_from([tier.PINNED, tier.ON_DEMAND]),
    rivals=st.lists(WORDS, max_size=3).map(tuple),
    fallback=st.none() | WORDS,
    memory_max_mib=st.none() | COUNTS,
    load_mode=st.sampled_from([tier.MMAP, tier.DIO]),
    tls=st.none()
    | st.builds(
        tier.Tls,
        bind=WORDS,
        port=st.integers(1, 65535),
        allow=st.lists(WORDS, max_size=2).map(tuple),
        certificate=FILES,
        key=FILES,
    ),
)


def write(directory: Path, name: str, document: Any) -> None:
    (directory / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")


@settings(deadline=None)
@given(SPECS)
def test_a_spec_survives_its_file_and_fits_its_schema(any_spec: tier.TierSpec) -> None:
    document = json.loads(json.dumps(any_spec.to_json()))
    SCHEMA.validate(document)
    assert tier.from_json(document) == any_spec


def test_a_spec_of_before_tls_has_none() -> None:
    document = spec().to_json()
    del document["tls"]
    assert tier.from_json(document) == spec()


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        ("192.168.1.10", "https://192.168.1.10:8443"),
        ("fd00::1", "https://[fd00::1]:8443"),
        ("::", "https://[::1]:8443"),
    ],
)
def test_the_clients_of_a_tier_with_tls_are_told_that_port(bind: str, url: str) -> None:
    own = tier.Tls(bind=bind, port=8443, allow=("10.0.0.0/8",), certificate="/c", key="/k")
    assert spec(tls=own).base_url == url
    assert spec().base_url == spec().local_url == spec(tls=own).local_url


def test_url_and_unit_follow_from_the_spec() -> None:
    assert spec(bind="127.0.0.2", port=8081).base_url == "http://127.0.0.2:8081"
    assert spec(bind="::1", port=8081).base_url == "http://[::1]:8081"
    assert spec(name="fast").unit == "llama-tier-fast.service"
    assert spec(name="fast").socket == "/run/llama-tier-fast/api.sock"


@pytest.mark.parametrize(("bind", "host"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])
def test_a_tier_that_listens_on_every_address_is_reached_over_the_loopback(bind: str, host: str) -> None:
    assert spec(bind=bind, port=8081).base_url == f"http://{host}:8081"


def test_the_specs_of_a_host_are_loaded_by_name(tmp_path: Path) -> None:
    for name in ("fast", "deep"):
        write(tmp_path, name, spec(name=name).to_json())
    (tmp_path / "deep.json.old").write_text("not a spec")
    assert tier.load("fast", tmp_path) == spec(name="fast")
    assert tier.load_all(tmp_path) == (spec(name="deep"), spec(name="fast"))
    assert tier.load_all(tmp_path / "absent") == ()


@pytest.mark.parametrize(("there", "known"), [(["fast", "deep"], "deep, fast"), ([], "none")])
def test_a_spec_that_is_absent_names_those_that_are_there(tmp_path: Path, there: list[str], known: str) -> None:
    for name in there:
        write(tmp_path, name, spec(name=name).to_json())
    with pytest.raises(tier.TierSpecError, match=f"no tier 'huge' on this host .* tiers here: {known}$"):
        tier.load("huge", tmp_path)


@pytest.mark.parametrize(
    "content", [b'{"schema": "llama-tiers/ti', b"", b"\xff\xfe\x00"], ids=["cut", "empty", "bytes"]
)
def test_a_file_that_is_not_json_says_how_to_mend_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "deep.json").write_bytes(content)
    with pytest.raises(tier.TierSpecError, match=r"deep\.json is not JSON .* run site\.yml again"):
        tier.load("deep", tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep.json").mkdir()
    with pytest.raises(tier.TierSpecError, match=r"deep\.json cannot be read"):
        tier.load("deep", tmp_path)


@pytest.mark.parametrize("schema", ["llama-tiers/tier/2", None], ids=["newer", "none"])
def test_another_schema_is_refused_with_both_names(schema: str | None) -> None:
    document = spec().to_json() | {"schema": schema}
    with pytest.raises(tier.TierSpecError, match=f"has schema {schema!r}, this checker reads 'llama-tiers/tier/1'"):
        tier.from_json(document)


@pytest.mark.parametrize("document", [[], None, "deep", 3])
def test_json_that_is_no_object_is_refused(tmp_path: Path, document: Any) -> None:
    write(tmp_path, "deep", document)
    with pytest.raises(tier.TierSpecError, match="this checker reads 'llama-tiers/tier/1'"):
        tier.load("deep", tmp_path)


@pytest.mark.parametrize("part", ["model", "placement", "devices", "criteria", "environment", "argv", "port"])
def test_a_missing_part_is_named(part: str) -> None:
    document = spec().to_json()
    del document[part]
    with pytest.raises(tier.TierSpecError, match=f"does not fit schema 'llama-tiers/tier/1': .*{part}"):
        tier.from_json(document)


def test_a_spec_of_before_tiers_switched_is_of_one_that_is_pinned_and_alone() -> None:
    document = spec().to_json()
    for part in ("residency", "rivals", "fallback", "memory_max_mib", "load_mode"):
        del document[part]
    assert tier.from_json(document) == spec()
    assert spec().pinned
    assert not spec(residency=tier.ON_DEMAND).pinned


def test_the_units_of_a_front_end_in_what_no_tier_may_be_called() -> None:
    """So that no unit of one tier is taken for the server of another."""
    front = tier.Front("deep")
    assert len(set(front.units)) == 5
    for unit in front.units:
        stem, _, kind = unit.removeprefix("llama-tier-").rpartition(".")
        assert kind == "socket" or stem.endswith(tier.RESERVED_ENDINGS)
        assert front.holds_port(unit)
    assert not front.holds_port(tier.unit_of("deep"))
    assert not front.holds_port(tier.Front("fast").socket)


def test_an_unknown_part_is_named() -> None:
    document = spec().to_json()
    document["placement"]["mood"] = "good"
    with pytest.raises(tier.TierSpecError, match="mood"):
        tier.from_json(document)
