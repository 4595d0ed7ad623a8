"""A plan: whole layers lie where llama.cpp will put them, the command line says so, and what cannot be is refused."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import Q4, Q5, shaped

from checker import argv, plan, plan_document, planning, site_plan, tier
from checker.cards import default_margin_mib
from checker.cards import host as join_host
from checker.catalogue import InventoryError, RamEntry, parse_inventory
from checker.header import KNOWN
from inventories import BIG, ENGINES, MODELS, SMALL, inventory

# What CUDA takes of the large card and not of the small one.
BIG_MORE_CUDA_MIB = 250 - 120
RELEASES = {"new": "/opt/llama-tiers/releases/r", "old": "/opt/llama-tiers/releases/o"}
PLACES = site_plan.Places(releases=RELEASES, models="/m", keys="/k")


def specs(profile: Any = None, **changes: object) -> dict[str, tier.TierSpec]:
    planned = site_plan.for_site(**inventory(**changes), places=PLACES, profile=profile)[0]
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
    assert flags["--host"] == deep.socket


def test_device_order_is_the_tiers_not_the_inventorys() -> None:
    given = inventory()
    given["tiers"][1]["gpus"].reverse()
    deep = {s.name: s for s in site_plan.for_site(**given, places=PLACES)[0]}["deep"]
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


def host(big_mib: int, small_mib: int = 3072) -> dict[str, Any]:
    cards = [{"uuid": BIG["uuid"], "total_mib": big_mib}, {"uuid": SMALL["uuid"], "total_mib": small_mib}]
    return {"gpus": cards, "ram_mib": 16000}


def made(profile: dict[str, Any], *tiers: dict[str, Any], **changes: Any) -> plan.Plan:
    """Plan tiers, whether they fit or not."""
    given = inventory(tiers=list(tiers), **changes)
    gpus, entries, models, _ = parse_inventory(given["gpus"], given["tiers"], given["models"])
    return plan.make(gpus, entries, models, join_host(gpus, RamEntry(), profile))


def refusal(**changes: Any) -> str:
    with pytest.raises(InventoryError) as refused:
        specs(**changes)
    return str(refused.value)


def needed(spec: tier.TierSpec, uuid: str) -> float:
    return sum(device.predicted_mib or 0 for device in spec.devices if device.uuid == uuid)


def test_a_card_that_is_too_small_is_refused_with_the_arithmetic() -> None:
    said = refusal(profile=host(300))
    assert "fast: tiny, context 4,096" in said
    assert "15 weights + 4 KV" in said
    assert "(300 - 64 taken - 150 margin)" in said


def test_tiers_that_cannot_be_resident_together_are_refused_with_the_arithmetic() -> None:
    planned = specs()
    fast, deep = (needed(planned[name], BIG["uuid"]) for name in ("fast", "deep"))
    # Room for either, not for both; then for both.
    taken = 64 + default_margin_mib(1000)
    said = refusal(profile=host(int(max(fast, deep)) + taken + 20))
    assert "fast and deep cannot be resident together: RTX 3060 Ti needs" in said
    shares = re.search(r"\(fast (\d+) \+ deep (\d+)\)", said)
    assert shares
    assert [int(mib) for mib in shares.groups()] == [pytest.approx(fast, abs=1), pytest.approx(deep, abs=1)]
    assert specs(profile=host(int(fast + deep) + taken + 2))


def test_the_memory_of_our_own_running_tiers_is_no_obstacle() -> None:
    held = host(8192)
    held["gpus"][0] |= {"used_mib": 8000, "tiers_mib": 7700}
    assert specs(profile=held)
    held["gpus"][0] |= {"used_mib": 8000, "tiers_mib": 0}
    assert "8,000 taken" in refusal(profile=held)


def mission(*tiers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    models = {
        name: {"file": f"{name}.gguf", "header": shaped(name).to_json()}
        for name in (Q4, Q5, "deepseek-r1-distill-qwen-7b-q6_k", "llama-3.1-8b-instruct-abliterated-q6_k")
    }
    return inventory(tiers=list(tiers), models=MODELS | models, **changes)


def wanted(name: str, *models: str, port: int = 8081, gpus: Any = "any", **changes: Any) -> dict[str, Any]:
    candidates = [{"model": model, "placement": "auto"} for model in models]
    return {"name": name, "port": port, "context": 8192, "gpus": gpus, "candidates": candidates, **changes}


def test_the_first_candidate_that_fits_is_served() -> None:
    (deep,), (passed_over,), *_ = site_plan.for_site(
        **mission(wanted("deep", Q5, Q4, "deepseek-r1-distill-qwen-7b-q6_k")), places=PLACES
    )
    assert passed_over.startswith(f"deep: {Q5}, context 8,192")
    assert deep.model.name == Q4
    assert sum(device.layers for device in deep.devices) == 49
    assert deep.predicted
    assert 15 < deep.predicted.expected < deep.predicted.bound
    for device, room in zip(
        deep.devices, (8192, 3072) if deep.devices[0].gpu == BIG["name"] else (3072, 8192), strict=True
    ):
        assert device.predicted_mib
        assert device.predicted_mib < room - 150
    flags = pairs(deep.argv)
    assert flags["--tensor-split"] == ",".join(str(device.layers) for device in deep.devices)
    assert ("--override-tensor" in deep.argv) == (not deep.placement.pipeline_parallel)


def test_the_missions_fast_and_deep_tier_exclude_each_other() -> None:
    both = mission(wanted("fast", "llama-3.1-8b-instruct-abliterated-q6_k", port=8080), wanted("deep", Q4))
    with pytest.raises(InventoryError) as refused:
        site_plan.for_site(**both, places=PLACES)
    assert "fast and deep cannot be resident together" in str(refused.value)


def test_tiers_are_planned_one_beside_the_other_where_that_makes_them_fit() -> None:
    # Alone each would take the fast card, which has not room for both.
    tiny = {"candidates": [{"model": "tiny", "placement": "auto"}], "context": 4096, "gpus": "any"}
    two = inventory(tiers=[{"name": name, "port": port, **tiny} for name, port in (("one", 8080), ("two", 8081))])
    alone = site_plan.for_site(**(two | {"tiers": two["tiers"][:1]}), places=PLACES)[0][0]
    assert [device.uuid for device in alone.devices] == [BIG["uuid"]]
    room = int(needed(alone, BIG["uuid"]) * 1.5) + 64 + 150
    one, other = site_plan.for_site(**two, places=PLACES, profile=host(room))[0]
    assert [device.uuid for device in one.devices] == [BIG["uuid"]]
    assert SMALL["uuid"] in {device.uuid for device in other.devices}


def room_for(share: float) -> int:
    """Return the MiB of a card on which so many times what one tier `tiny` needs there fits."""
    (alone,) = site_plan.for_site(**inventory(tiers=[ranged("one", 8080, 4096, 4096)]), places=PLACES)[0]
    return int(needed(alone, BIG["uuid"]) * share) + 64 + 150


def test_another_order_than_the_inventorys_is_tried_before_tiers_are_refused() -> None:
    # The first one can lie on either card and prefers the fast one, the other one cannot.
    free, bound = ranged("free", 8080, 4096, 4096), ranged("bound", 8081, 4096, 4096, gpus=[BIG["uuid"]])
    for tiers in ([free, bound], [bound, free]):
        planned = specs(tiers=tiers, profile=host(room_for(1.5)))
        assert list(planned) == [tier["name"] for tier in tiers]
        assert [device.uuid for device in planned["free"].devices] == [SMALL["uuid"]]
        assert [device.uuid for device in planned["bound"].devices] == [BIG["uuid"]]


def test_the_inventorys_order_goes_before_others() -> None:
    tiers = [ranged(name, port, 4096, 4096) for name, port in (("one", 8080), ("two", 8081))]
    planned = specs(tiers=tiers, profile=host(room_for(1.5)))
    assert [device.uuid for device in planned["one"].devices] == [BIG["uuid"]]


def test_the_smallest_compute_buffers_are_tried_before_tiers_are_refused() -> None:
    deep = wanted("deep", Q4)
    (alone,) = site_plan.for_site(**mission(deep), places=PLACES)[0]
    assert alone.placement.ubatch_size > 128
    # On either card there is too little left beside that choice, but not beside the smallest buffers.
    beside = ranged("beside", 8080, 2048, 2048)
    (tiny,) = site_plan.for_site(**inventory(tiers=[beside]), places=PLACES)[0]
    room = int(needed(alone, SMALL["uuid"]) + needed(tiny, BIG["uuid"]) - BIG_MORE_CUDA_MIB) - 10
    profile = host(8192)
    profile["gpus"][1]["free_mib"] = room + 150
    both = site_plan.for_site(**mission(deep, beside), places=PLACES, profile=profile)[0]
    assert [(spec.placement.ubatch_size, spec.placement.pipeline_parallel) for spec in both] == [(128, False)] * 2


def test_sets_that_only_other_placements_make_resident_are_named() -> None:
    free = ranged("free", 8080, 4096, 4096)
    bound, other = (
        ranged(name, port, 4096, 4096, gpus=[BIG["uuid"]]) for name, port in (("bound", 8081), ("other", 8082))
    )
    planned = made(host(room_for(1.5)), free, bound, other)
    assert planned.resident_together == (("free", "bound"), ("free", "other"))
    assert [exclusion.tiers for exclusion in planned.exclusions] == [("bound", "other")]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["any", [BIG["uuid"]], [SMALL["uuid"]]]), min_size=2, max_size=3),
    st.lists(st.integers(1024, 8192), min_size=3, max_size=3),
    st.floats(0.5, 4),
    st.floats(0.5, 4),
)
def test_tiers_that_are_called_resident_together_fit_every_card(
    gpus: list[Any], most: list[int], big: float, small: float
) -> None:
    tiers = [ranged(f"t{i}", 8080 + i, 1024, most[i], gpus=wanted) for i, wanted in enumerate(gpus)]
    planned = made(host(room_for(big), room_for(small)), *tiers)
    names = tuple(each.name for each in planned.tiers)
    assert planned.exclusions or not all(each.fits for each in planned.tiers) or planned.resident_together == (names,)
    if planned.resident_together == (names,):
        held = Counter[str]()
        for each in planned.tiers:
            choice = each.chosen.choice
            for card, need in zip(choice.cards, choice.estimate.devices, strict=True):
                held[card.name] += need.total_mib
            assert 1024 <= choice.placement.ctx_size <= each.chosen.demand.most_context
        rooms = {card.name: card.room_mib for each in planned.tiers for card in each.cards}
        assert all(mib <= rooms[name] for name, mib in held.items())


def test_of_many_tiers_it_is_said_that_not_every_order_was_tried() -> None:
    tiers = [ranged(f"t{index}", 8080 + index, 4096, 4096) for index in range(5)]
    planned = made(host(room_for(2.5), room_for(1.5)), *tiers)
    (first,) = planned.exclusions
    assert first.reason.endswith("; not every order of so many tiers was tried")


def test_a_bad_inventory_is_refused() -> None:
    with pytest.raises(InventoryError, match="b1"):
        specs(engine="b1")


def test_a_spec_survives_its_file() -> None:
    for spec in specs().values():
        assert tier.from_json(spec.to_json()) == spec


def test_flags_that_the_binary_does_not_know_are_found() -> None:
    text = "-m,    --model FNAME     model path\n--host, -H HOST  address\n-fa, --flash-attn [on|off]"
    assert argv.unknown_flags(("llama-server", "--model", "/m", "--no-mmap", "--flash-attn", "on"), text) == (
        "--no-mmap",
    )


def test_a_tier_may_name_an_engine_of_its_own() -> None:
    tiers = inventory()["tiers"]
    tiers[1] |= {"engine": "old"}
    tiers[1]["candidates"][0]["placement"]["split_mode"] = "row"
    made = specs(tiers=tiers)
    fast, deep = made["fast"], made["deep"]
    assert (fast.engine.commit, fast.engine.release) == (ENGINES["new"]["commit"], RELEASES["new"])
    assert (deep.engine.commit, deep.engine.release) == (ENGINES["old"]["commit"], RELEASES["old"])
    assert [spec.argv[0] for spec in (fast, deep)] == [f"{RELEASES[name]}/bin/llama-server" for name in ("new", "old")]
    assert pairs(deep.argv)["--split-mode"] == "row"
    assert ("--load-mode" in fast.argv, "--load-mode" in deep.argv) == (True, False)
    assert ("--log-verbosity" in fast.argv, "--log-verbosity" in deep.argv) == (False, True)


def test_a_tier_that_other_hosts_reach_says_so_and_which() -> None:
    tiers = inventory()["tiers"]
    tiers[1] |= {"api": {"bind": "0.0.0.0", "allow": ["192.168.1.0/24", "10.8.0.7"]}}
    made = specs(tiers=tiers)
    assert (made["fast"].bind, made["fast"].allow) == ("127.0.0.1", ())
    assert (made["deep"].bind, made["deep"].allow) == ("0.0.0.0", ("192.168.1.0/24", "10.8.0.7/32"))
    assert tier.from_json(made["deep"].to_json()) == made["deep"]


@pytest.mark.parametrize(("bind", "plain"), [("192.168.1.10", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")])
def test_a_tier_with_tls_is_on_the_loopback_without(bind: str, plain: str) -> None:
    tiers = inventory()["tiers"]
    allow = ["192.168.1.0/24" if plain == "127.0.0.1" else "fd00::/8"]
    tiers[1] |= {"api": {"bind": bind, "allow": allow, "tls": {"port": 8443, "certificate": "/c.pem", "key": "/k.pem"}}}
    made = specs(tiers=tiers)
    assert made["fast"].tls is None
    deep = made["deep"]
    assert (deep.bind, deep.port, deep.allow) == (plain, 8081, ())
    assert deep.tls == tier.Tls(bind, 8443, tuple(allow), "/c.pem", "/k.pem")
    assert tier.from_json(deep.to_json()) == deep
    assert deep.running() == specs()["deep"].running(), "no reason to load it again"


def test_a_tier_that_everybody_reaches_over_tls_is_remarked_on_for_what_is_left() -> None:
    tiers = inventory()["tiers"]
    own = {"port": 8443, "certificate": "/c.pem", "key": "/k.pem"}
    tiers[1] |= {"api": {"bind": "0.0.0.0", "allow": ["0.0.0.0/0"], "tls": own}}
    (said,) = site_plan.for_site(**inventory(tiers=tiers), places=PLACES).remarks
    assert said.startswith("deep: 0.0.0.0/0 lets every address reach it, where everybody may try keys")
    assert "on their way" not in said


@pytest.mark.parametrize(("bind", "network"), [("0.0.0.0", "0.0.0.0/0"), ("::", "::/0"), ("::", "0.0.0.0/0")])
def test_a_tier_that_everybody_reaches_is_remarked_on(bind: str, network: str) -> None:
    tiers = inventory()["tiers"]
    tiers[1] |= {"api": {"bind": bind, "allow": ["10.0.0.0/8" if bind == "0.0.0.0" else "fd00::/8", network]}}
    (said,) = site_plan.for_site(**inventory(tiers=tiers), places=PLACES).remarks
    assert said.startswith(f"deep: {network} lets every address reach it")
    given = {**inventory(tiers=tiers), "llama_cpp_engine": "new"}
    document = planning.make(planning.Subject("tower", given, {}), planning.Wishes(), MODELS, ENGINES)
    assert document["remarks"] == [said]


def test_a_tiers_own_arguments_end_its_command_line() -> None:
    tiers = inventory()["tiers"]
    tiers[1] |= {"arguments": ["--temp", 0.6, "--jinja", "--chat-template-kwargs", '{"enable_thinking": false}']}
    made = specs(tiers=tiers)
    own = ("--temp", "0.6", "--jinja", "--chat-template-kwargs", '{"enable_thinking": false}')
    assert made["deep"].argv == specs()["deep"].argv + own
    assert made["fast"] == specs()["fast"]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (["--metrics"], "--metrics is refused: docs/inventory.md lists"),
        (["--host", "0.0.0.0"], "--host stands there twice"),
        (["-c", "64"], "-c is refused: use context instead"),
        (["--log-verbosity"], "--log-verbosity is without its value"),
    ],
)
def test_what_an_engines_table_brings_is_held_against_the_whole_command_line(written: list[str], said: str) -> None:
    engines = {**ENGINES, "new": {**ENGINES["new"], "flags": {**ENGINES["new"]["flags"], "log": written}}}
    with pytest.raises(InventoryError) as refusal:
        specs(engines=engines)
    assert [problem.partition(": command line: ")[0] for problem in refusal.value.problems] == [
        "tier fast",
        "tier deep",
    ]
    assert all(said in problem for problem in refusal.value.problems)


def test_the_same_tier_lies_the_same_with_every_engine() -> None:
    """What differs between engines is the spelling of a command line, never where a tier lies."""
    both = [specs(engine=engine)["deep"] for engine in ENGINES]
    assert both[0].placement == both[1].placement
    assert both[0].devices == both[1].devices


def test_every_engine_of_the_tests_is_planned_for() -> None:
    for engine in ENGINES:
        assert specs(engine=engine)["deep"].engine.commit == ENGINES[engine]["commit"]


def ranged(name: str, port: int, least: int, most: int, **changes: Any) -> dict[str, Any]:
    tier = {"name": name, "port": port, "context": {"min": least, "max": most}, "gpus": "any"}
    return {**tier, "candidates": [{"model": "tiny", "placement": "auto"}], **changes}


def test_a_range_of_context_is_filled_with_what_is_left() -> None:
    wide = [ranged("one", 8080, 1024, 8192)]
    (one,) = site_plan.for_site(**inventory(tiers=wide), places=PLACES)[0]
    assert one.placement.ctx_size == 8192
    assert pairs(one.argv)["--ctx-size"] == "8192"
    assert "context 8,192" in site_plan.describe(one)


def test_a_range_of_context_excludes_no_other_tier() -> None:
    # Room for both with their least contexts, and for little more.
    big = [BIG["uuid"]]
    low = [ranged(name, port, 1024, 1024, gpus=big) for name, port in (("one", 8080), ("two", 8081))]
    both = site_plan.for_site(**inventory(tiers=low), places=PLACES)[0]
    room = sum(int(needed(spec, BIG["uuid"])) + 1 for spec in both) + 64 + default_margin_mib(1000)
    high = [ranged(name, port, 1024, 8192, gpus=big) for name, port in (("one", 8080), ("two", 8081))]
    one, two = site_plan.for_site(**inventory(tiers=high), places=PLACES, profile=host(room + 3))[0]
    assert 1024 <= two.placement.ctx_size < one.placement.ctx_size < 8192
    assert needed(one, BIG["uuid"]) + needed(two, BIG["uuid"]) <= room - 64 - default_margin_mib(1000) + 3


def test_a_range_whose_start_does_not_fit_is_refused_as_its_start_is() -> None:
    start, whole = (refusal(tiers=[ranged("one", 8080, 4096, most)], profile=host(300, 200)) for most in (4096, 8192))
    assert start == whole
    assert "one: tiny, context 4,096" in whole


def remarks(**changes: Any) -> list[str]:
    planned = made({}, ranged("one", 8080, 1024, 1024, **changes))
    return list(planned.tiers[0].chosen.remarks)


def test_a_context_that_the_model_was_not_trained_for_is_remarked_on() -> None:
    assert remarks() == []
    assert remarks(context=8192) == []
    (beyond,) = remarks(context=16384)
    assert beyond.startswith("context 16,384 is beyond what the model was trained for, 8,192 tokens: llama-server")
    # Requests share the context, so together they may have more than the model knows.
    assert remarks(context=16384, parallel=2) == []
    (cut,) = remarks(context={"min": 1024, "max": 16384})
    assert cut.startswith("the range of the context was cut off at 8,192: the model was trained for no more than 8,192")
    (cut,) = remarks(context={"min": 1024, "max": 32768}, parallel=2)
    assert cut.startswith("the range of the context was cut off at 16,384")
    assert "for each of 2 requests" in cut


def test_what_the_driver_does_not_tell_of_our_tiers_is_remarked_on() -> None:
    held = host(8192)
    held["gpus"][0] |= {"used_mib": 8000, "tiers_mib": None}
    said = site_plan.for_site(**inventory(), places=PLACES, profile=held).remarks
    assert [remark.split(":")[:2] for remark in said] == [["fast", " RTX 3060 Ti"], ["deep", " RTX 3060 Ti"]]
    assert all("the host does not tell what our own tiers hold of it" in remark for remark in said)


@pytest.mark.parametrize(("mode", "engine"), [("tensor", "new"), ("row", "old")])
def test_split_modes_that_no_estimate_was_held_against_are_of_low_confidence(mode: str, engine: str) -> None:
    placed = {"split_mode": mode, "tensor_split": [3, 2]}
    deep = ranged("deep", 8080, 4096, 4096, candidates=[{"model": "tiny", "placement": placed}])
    chosen = made({}, deep, engine=engine).tiers[0].chosen
    assert chosen.fits
    assert chosen.confidence == f"rules of {mode} split that no estimate of the engine was held against"
    assert chosen.remarks == (
        f"{mode} split: how far these figures are off is not known; leave the cards a larger margin_mib",
    )
    assert made({}, ranged("deep", 8080, 4096, 4096)).tiers[0].chosen.confidence == KNOWN


def test_a_card_of_another_host_is_remarked_on() -> None:
    def said(endpoint: str) -> tuple[str, ...]:
        far = SMALL | {"rpc_endpoint": endpoint}
        return made({}, ranged("deep", 8080, 4096, 4096, gpus=[SMALL["uuid"]]), gpus=[far]).tiers[0].chosen.remarks

    assert said("127.0.0.1:50052") == said("localhost:50052") == ()
    (remark,) = said("10.0.0.7:50052")
    assert remark.startswith("GTX 1060 3GB is another host's (RPC server 10.0.0.7:50052): what CUDA takes there")


def test_layers_on_the_cpu_are_remarked_on() -> None:
    layers = [{"model": "tiny", "placement": {"n_gpu_layers": 3}}]
    assert remarks(candidates=layers) == ["2 of 5 layers on the CPU"]


def test_a_card_of_unknown_generation_is_remarked_on() -> None:
    card = {"name": "NVIDIA Mystery", "uuid": BIG["uuid"], "total_mib": 8192, "bandwidth_gb_s": 400}
    planned = made({}, ranged("deep", 8080, 1024, 1024), gpus=[card])
    (remark,) = planned.tiers[0].chosen.remarks
    assert remark.startswith("NVIDIA Mystery: its compute capability is not known".removeprefix("NVIDIA "))
    assert remark.endswith("give compute_capability")


@pytest.mark.parametrize(
    ("name", "capability", "said"),
    [
        ("NVIDIA H100 80GB HBM3", "9.0", "measured on one H100"),
        ("NVIDIA H200", "9.0", "borrowed from another card: measured on one H100"),
        ("NVIDIA GeForce GTX 980", "5.2", "borrowed from another card: estimate, not measured: context and modules"),
        (BIG["name"], "8.6", "estimate, not measured: context, modules and cuBLAS of an RTX 3060 Ti"),
    ],
)
def test_what_cuda_takes_is_said_to_be_borrowed_where_it_is(name: str, capability: str, said: str) -> None:
    card = {"name": name, "uuid": BIG["uuid"], "total_mib": 8192, "bandwidth_gb_s": 400}
    planned = made({}, ranged("deep", 8080, 1024, 1024), gpus=[card | {"compute_capability": capability}])
    (device,) = plan_document.to_json(planned, "tower")["tiers"][0]["devices"]
    assert device["overhead_by"].startswith(said)
