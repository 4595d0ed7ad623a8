"""A plan: whole layers lie where llama.cpp will put them, the command line says so, and what cannot be is refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checker import argv, memory, plan, tier
from checker.catalogue import InventoryError
from inventories import BIG, ENGINES, MIB, SMALL, inventory

PLACES = plan.Places(release="/opt/llama-tiers/releases/r", models="/m", keys="/k")


def specs(total_mib: dict[str, int] | None = None, **changes: object) -> dict[str, tier.TierSpec]:
    planned = plan.plan(**inventory(**changes), places=PLACES, total_mib=total_mib or {})
    return {spec.name: spec for spec in planned}


def pairs(command: tuple[str, ...]) -> dict[str, str]:
    """Return flag → value of a command line."""
    return {flag: value for flag, value in itertools.pairwise(command) if flag.startswith("--")}


def test_a_split_tier_names_its_cards_in_order_and_weighs_their_layers() -> None:
    deep = specs()["deep"]
    assert [(d.name, d.uuid, d.layers, d.weights_mib) for d in deep.devices] == [
        ("CUDA0", BIG["uuid"], 3, 6.0),  # layers 0 to 2: 1 + 2 + 3
        ("CUDA1", SMALL["uuid"], 2, 9.0),  # layer 3 and the output: 4 + 5
    ]
    assert deep.host_weights_mib == 6.0
    assert deep.environment == {"CUDA_VISIBLE_DEVICES": f"{BIG['uuid']},{SMALL['uuid']}"}
    flags = pairs(deep.argv)
    assert flags["--tensor-split"] == "3,2"
    assert flags["--device"] == "CUDA0,CUDA1"
    assert flags["--n-gpu-layers"] == "5"
    assert flags["--fit"] == "off"
    assert flags["--host"] == "127.0.0.1"


def test_device_order_is_the_tiers_not_the_inventorys() -> None:
    given = inventory()
    given["tiers"][1]["gpus"].reverse()
    deep = {s.name: s for s in plan.plan(**given, places=PLACES, total_mib={})}["deep"]
    assert [device.uuid for device in deep.devices] == [SMALL["uuid"], BIG["uuid"]]
    assert deep.environment["CUDA_VISIBLE_DEVICES"].startswith(SMALL["uuid"])


def test_cards_behind_rpc_are_rpc_devices_in_the_order_of_the_endpoints() -> None:
    cards = [BIG | {"rpc_endpoint": "127.0.0.1:50052"}, SMALL | {"rpc_endpoint": "127.0.0.1:50053"}]
    deep = specs(gpus=cards, backend="cpu")["deep"]
    flags = pairs(deep.argv)
    assert (flags["--device"], flags["--rpc"]) == ("RPC0,RPC1", "127.0.0.1:50052,127.0.0.1:50053")
    assert deep.environment == {}


def test_no_secret_and_no_short_flag_is_on_the_command_line() -> None:
    deep = specs()["deep"]
    assert pairs(deep.argv)["--api-key-file"] == "/k/deep"
    assert "--api-key" not in deep.argv


def test_weights_that_no_card_can_hold_are_refused_with_the_arithmetic() -> None:
    # 15 MiB for fast and 6 for deep on the big card
    with pytest.raises(InventoryError) as refused:
        specs(total_mib={BIG["uuid"]: 20, SMALL["uuid"]: 20})
    assert "has 20 MiB" in str(refused.value)
    assert "need 21 MiB (fast 15 + deep 6)" in str(refused.value)
    assert specs(total_mib={BIG["uuid"]: 21, SMALL["uuid"]: 9})


def test_a_bad_inventory_is_refused() -> None:
    with pytest.raises(InventoryError, match="b1"):
        specs(engine="b1")


def test_a_spec_survives_its_file() -> None:
    for spec in specs().values():
        assert tier.from_json(spec.to_json()) == spec


@given(layers=st.lists(st.integers(1, 10**9), min_size=1, max_size=80), data=st.data())
def test_no_byte_of_a_model_is_lost_or_counted_twice(layers: list[int], data: st.DataObject) -> None:
    header = memory.Header("llama", len(layers), tuple(layers), output_bytes=7, token_embd_bytes=11)
    offloaded = data.draw(st.integers(1, len(layers) + 1))
    cuts = sorted(data.draw(st.lists(st.integers(0, offloaded), max_size=3)))
    split = tuple(b - a for a, b in itertools.pairwise([0, *cuts, offloaded]))
    weights = memory.weights(header, split)
    assert weights is not None
    assert weights.host_mib * MIB + sum(weights.devices_mib) * MIB == pytest.approx(sum(layers) + 7 + 11)
    assert weights.host_mib * MIB >= 11
    # the output layer is on the last device that has any layer
    last = max(index for index, count in enumerate(split) if count)
    assert weights.devices_mib[last] * MIB >= 7


def test_flags_that_the_binary_does_not_know_are_found() -> None:
    text = "-m,    --model FNAME     model path\n--host, -H HOST  address\n-fa, --flash-attn [on|off]"
    assert argv.unknown_flags(("llama-server", "--model", "/m", "--no-mmap", "--flash-attn", "on"), text) == (
        "--no-mmap",
    )


def test_every_engine_of_the_tests_is_planned_for() -> None:
    for engine in ENGINES:
        assert specs(engine=engine)["deep"].engine.commit == ENGINES[engine]["commit"]
