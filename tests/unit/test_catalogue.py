"""What is wrong with an inventory is said before anything is done: place, value, and what would be right."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checker.catalogue import ModelEntry, check_inventory, parse_inventory, with_placeholders
from inventories import BIG, MODELS, SMALL, inventory

Address = IPv4Address | IPv6Address


def set_at(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    """Set, or with value None delete, what is at a path of keys and indexes."""
    for step in path[:-1]:
        tree = tree[step]
    if value is None:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value


def test_a_right_inventory_has_no_problems() -> None:
    assert check_inventory(**inventory()) == []


DEEP = ("tiers", 1)
CANDIDATE = (*DEEP, "candidates", 0)
LAN = {"bind": "10.0.0.1"}
TLS = {"port": 8443, "certificate": "/etc/ssl/llm/fullchain.pem", "key": "/etc/ssl/llm/privkey.pem"}
PLACEMENT = (*CANDIDATE, "placement")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ((*CANDIDATE, "model"), None, ["tier deep", "candidates[0].model", "missing"]),
        ((*CANDIDATE, "model"), "nope", ["tier deep", "candidates[0].model 'nope'", "known models: tiny"]),
        ((*DEEP, "port"), 8080, ["tiers fast and deep", "port 8080 is used twice"]),
        ((*DEEP, "port"), 0, ["tier deep", "port 0"]),
        ((*DEEP, "api"), {"bind": "lan"}, ["tier deep: api.bind 'lan' is wrong"]),
        (
            (*DEEP, "api"),
            {"bind": "0.0.0.0"},
            ["tier deep: api", "bind 0.0.0.0 is reached by other hosts", "or bind 127"],
        ),
        (
            (*DEEP, "api"),
            {"bind": "fd00::1", "allow": []},
            ["bind fd00::1 is reached by other hosts", "name them, such as"],
        ),
        ((*DEEP, "api"), {"allow": ["10.0.0.0/8"]}, ["bind 127.0.0.1 is reached by this host alone: leave allow out"]),
        ((*DEEP, "api"), LAN | {"allow": "10.0.0.0/8"}, ["api.allow '10.0.0.0/8' is wrong: expected a list"]),
        ((*DEEP, "api"), LAN | {"allow": ["lan"]}, ["api.allow[0] 'lan' is wrong: expected a network such as"]),
        (
            (*DEEP, "api"),
            LAN | {"allow": ["fe80::1%lan0"]},
            ["api.allow[0] 'fe80::1%lan0'", "expected a network such as"],
        ),
        (
            (*DEEP, "api"),
            LAN | {"allow": ["10.1.2.3/8"]},
            ["api.allow[0] '10.1.2.3/8' is wrong: expected 10.0.0.0/8 for the network, or 10.1.2.3 for the one"],
        ),
        ((*DEEP, "api"), LAN | {"allow": ["fd00::/8"]}, ["allow fd00::/8 is of another IP version than bind 10.0.0.1"]),
        ((*DEEP, "tls"), TLS, ["tier deep: tls is not a known key: write it under api"]),
        ((*DEEP, "api"), {"tls": {"key": "/k"}}, ["tier deep: api.tls.certificate is missing"]),
        ((*DEEP, "api"), {"tls": TLS | {"cert": "/c"}}, ["tier deep: api.tls.cert is not a known key"]),
        (
            (*DEEP, "api"),
            {"tls": TLS | {"key": "privkey.pem"}},
            ["tier deep: api.tls.key is wrong: expected an absolute path of letters, digits and"],
        ),
        (
            (*DEEP, "api"),
            {"tls": TLS | {"certificate": "/etc/my certificate.pem"}},
            ["tier deep: api.tls.certificate '/etc/my certificate.pem' is wrong: expected an absolute path"],
        ),
        ((*DEEP, "api"), {"tls": TLS | {"port": 8080}}, ["tiers fast and deep (TLS): port 8080 is used twice; give"]),
        ((*DEEP, "api"), {"tls": TLS | {"port": 8081}}, ["tiers deep and deep (TLS): port 8081 is used twice; give"]),
        ((*DEEP, "api"), {"tls": TLS | {"port": 0}}, ["tier deep: api.tls.port 0 is wrong: expected 1 or more"]),
        (
            (*DEEP, "api"),
            {"tls": TLS, "allow": ["10.0.0.0/8"]},
            ["bind 127.0.0.1 is reached by this host alone: leave allow out"],
        ),
        ((*DEEP, "api"), {"tls": TLS, "bind": "0.0.0.0"}, ["bind 0.0.0.0 is reached by other hosts, and allow"]),
        ((*DEEP, "name"), "deep-tls", ["a tier's name does not end in", "-tls"]),
        ((*DEEP, "arguments"), "--temp 0.6", ["tier deep: arguments is wrong: expected a list"]),
        ((*DEEP, "arguments"), ["--reasoning", True], ["tier deep: arguments[1] is wrong: expected text"]),
        ((*DEEP, "arguments"), ["--samplers", "a\nb"], ["tier deep: arguments[1] is wrong: expected text on one line"]),
        (
            (*DEEP, "arguments"),
            ["--api-key", "sesame", "-c", 9],
            ["tier deep: arguments is wrong: --api-key is refused: use tiers_api_keys instead; -c is refused: use "],
        ),
        ((*PLACEMENT, "tensor_split"), [5], ["tier deep", "tensor_split [5]", "1 entries", "2 gpus"]),
        ((*PLACEMENT, "tensor_split"), [3, 3], ["tier deep", "tensor_split [3, 3]", "adds up to 6", "n_layer + 1 = 5"]),
        ((*PLACEMENT, "tensor_split"), [5, 0], ["tier deep", "tensor_split[1] 0"]),
        ((*PLACEMENT, "n_gpu_layers"), 9, ["tier deep", "n_gpu_layers 9", "use 5 or less"]),
        ((*PLACEMENT, "n_gpu_layers"), 4, ["tier deep", "adds up to 5", "n_gpu_layers = 4"]),
        (
            (*PLACEMENT, "split_mode"),
            "row",
            ["tier deep", "'row'", "engine new has", "have it: old (engine of the tier"],
        ),
        ((*PLACEMENT, "split_mode"), "none", ["tier deep", "'none' uses one card", "2 gpus"]),
        (PLACEMENT, "automatic", ["tier deep: candidates[0].placement 'automatic' is wrong: expected auto, or keys"]),
        (PLACEMENT, {"split_mode": "tensor"}, ["tier deep", "'tensor' needs a tensor_split of your own"]),
        (PLACEMENT, {"n_cpu_moe": 2}, ["tier deep", "n_cpu_moe needs a tensor_split of your own"]),
        ((*PLACEMENT, "n_gpu_layers"), "auto", ["tier deep", "'auto' cannot go with tensor_split [3, 2]"]),
        (
            (*PLACEMENT, "n_gpu_layers"),
            "some",
            ["tier deep: candidates[0].placement.n_gpu_layers 'some' is wrong: expected a whole number or 'auto'"],
        ),
        ((*PLACEMENT, "n_gpu_layers"), 0, ["placement.n_gpu_layers 0 is wrong: expected 1 or more or 'auto'"]),
        ((*PLACEMENT, "ubatch_size"), 99999, ["placement.ubatch_size 99999 is wrong: expected 2048 or less"]),
        ((*DEEP, "cache_types"), ["q2_k"], ["tier deep", "cache_types[0] 'q2_k'"]),
        ((*DEEP, "gpus"), "all", ["tier deep: gpus 'all' is wrong: expected a list or 'any'"]),
        ((*DEEP, "gpus"), [5], ["tier deep: gpus[0] 5 is wrong: expected text"]),
        (
            (*DEEP, "context"),
            12,
            ["tier deep: context 12 is wrong", "256", "or a range such as {min: 4096, max: 16384}"],
        ),
        (
            (*DEEP, "context"),
            "long",
            ["tier deep: context 'long' is wrong: expected 256 to 2147483648 tokens, or a range such as {min: 4096"],
        ),
        ((*DEEP, "context"), {"min": 4096}, ["tier deep: context.max is missing"]),
        ((*DEEP, "context"), {"min": 0, "max": 4096}, ["tier deep: context.min 0 is wrong", "256"]),
        ((*DEEP, "context"), {"min": 8192, "max": 4096}, ["tier deep: context", "min 8192 is above max 4096"]),
        ((*DEEP, "context"), {"min": 512, "max": 4096, "step": 1}, ["tier deep: context.step is not a known key"]),
        (("gpus", 1, "total_mib"), -1, ["gpu NVIDIA GeForce GTX 1060 3GB", "total_mib -1"]),
        (("gpus", 1, "compute_capability"), "pascal", ["compute_capability 'pascal'", 'such as "8.6"']),
        (("gpus", 1, "total_mib"), 2**63, ["total_mib 9223372036854775808 is wrong: expected 16777216 or less"]),
        (("gpus", 1, "bandwidth_gb_s"), float("nan"), ["bandwidth_gb_s nan is wrong"]),
        (("gpus", 1, "bandwidth_gb_s"), 0, ["bandwidth_gb_s 0 is wrong: expected more than 0"]),
        (
            ("gpus", 1, "rpc_endpoint"),
            "gpu2.lan:50052",
            ["GTX 1060 3GB: rpc_endpoint 'gpu2.lan:50052' is wrong: expected an IPv4 address and a port such as"],
        ),
        (("gpus", 1, "rpc_endpoint"), "[::1]:50052", ["rpc_endpoint '[::1]:50052' is wrong: expected an IPv4 address"]),
        (("gpus", 1, "rpc_endpoint"), "10.0.0.7:99999", ["rpc_endpoint '10.0.0.7:99999' is wrong: expected an IPv4"]),
        (("gpus", 1, "rpc_endpoint"), "10.0.0.7:0", ["rpc_endpoint '10.0.0.7:0' is wrong: expected an IPv4 address"]),
        (("gpus", 1, "rpc_endpoint"), "10.0.0.7", ["rpc_endpoint '10.0.0.7' is wrong: expected an IPv4 address"]),
        (("gpus", 1, "rpc_endpoint"), 50052, ["rpc_endpoint 50052 is wrong: expected text"]),
        (("models", "tiny", "header"), None, ["tier deep", "'tiny' has no header", "`checker lock tiny`"]),
        (("models", "tiny", "header", "n_layer"), 5, ["model tiny", "header", "5 layers"]),
        (("models", "tiny", "header", "colour"), "red", ["model tiny", "header", "colour"]),
        ((*PLACEMENT, "tensor_splitt"), [1], ["tier deep", "tensor_splitt is not a known key"]),
        ((*DEEP, "gpus"), ["RTX 9090"], ["tier deep", "'RTX 9090'", BIG["uuid"]]),
        ((*DEEP, "gpus"), [BIG["name"], BIG["uuid"]], ["tier deep", "twice", BIG["uuid"]]),
        ((*DEEP, "name"), "fast", ["name 'fast' stands there twice"]),
        ((*DEEP, "name"), "deep-proxy", ["name 'deep-proxy'", "does not end in -proxy, -cooldown, -fallback"]),
        ((*DEEP, "name"), "deep-cooldown", ["name 'deep-cooldown'", "its own units are called so"]),
        ((*DEEP, "name"), "trial", ["tier trial: name 'trial' is a trial's own", "give the tier another name"]),
        ((*DEEP, "residency"), "sometimes", ["tier deep: residency 'sometimes' is wrong", "pinned", "on_demand"]),
        ((*DEEP, "fallback"), "deep", ["tier deep: fallback names the tier itself", "other tiers are: fast"]),
        ((*DEEP, "fallback"), "slow", ["tier deep: fallback 'slow' is no tier of the host", "the others are: fast"]),
        ((*DEEP, "name"), "../etc", ["name '../etc'", "at most 21, such as deep-2"]),
        (("gpus", 1, "uuid"), "1", ["gpu NVIDIA GeForce GTX 1060 3GB", "uuid '1'", "nvidia-smi -L"]),
        (("gpus", 1, "uuid"), BIG["uuid"], [BIG["uuid"], "twice"]),
        (("engine",), "b1", ["llama_cpp_engine 'b1'", "known engines: new, old"]),
        ((*DEEP, "engine"), "b1", ["tier deep: engine 'b1' is not in the engine table", "known engines: new, old"]),
        (("backend",), "vulkan", ["llama_cpp_backend 'vulkan'"]),
        (("backend",), "cpu", ["tier deep", "'cpu'", "rpc_endpoint"]),
        (("tiers",), [], ["tiers is empty"]),
        (("gpus",), [], ["gpus is empty"]),
        (("models", "tiny", "sha256"), "XY", ["model tiny", "sha256 'XY'"]),
    ],
)
def test_a_problem_is_named(path: tuple[Any, ...], value: Any, said: list[str]) -> None:
    given = inventory()
    set_at(given, path, value)
    problems = check_inventory(**given)
    assert any(all(part in problem for part in said) for problem in problems), problems


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.8.8.8", "::1"])
def test_a_tier_on_the_loopback_names_nobody(bind: str) -> None:
    whole = inventory()
    whole["tiers"][1]["api"] = {"bind": bind}
    assert check_inventory(**whole) == []


def test_two_tiers_have_tls_at_ports_of_their_own() -> None:
    whole = inventory()
    for tier, port in zip(whole["tiers"], (8443, 8444), strict=True):
        tier["api"] = LAN | {"allow": ["10.0.0.0/8"], "tls": TLS | {"port": port}}
    assert check_inventory(**whole) == []
    whole["tiers"][1]["api"]["tls"]["port"] = 8443
    assert check_inventory(**whole) == [
        "tiers fast (TLS) and deep (TLS): port 8443 is used twice; give each tier a port of its own"
    ]


@given(st.ip_addresses(), st.lists(st.ip_addresses(network="0.0.0.0/0") | st.ip_addresses(network="::/0"), max_size=2))
def test_an_address_that_others_reach_is_never_without_who_they_are(bind: Address, allow: list[Address]) -> None:
    whole = inventory()
    whole["tiers"][1]["api"] = {"bind": str(bind), "allow": [str(address) for address in allow]}
    problems = check_inventory(**whole)
    if bind.is_loopback:
        assert bool(problems) == bool(allow)
    else:
        reaching = [each for each in allow if each.version == bind.version or str(bind) == "::"]
        assert bool(problems) == (not allow or reaching != allow)


def test_a_split_mode_is_held_against_the_engine_of_its_tier() -> None:
    given = inventory()
    set_at(given, (*PLACEMENT, "split_mode"), "row")
    set_at(given, (*DEEP, "engine"), "old")
    assert check_inventory(**given) == []
    set_at(given, (*DEEP, "engine"), "new")
    assert len(check_inventory(**(given | {"engine": "old"}))) == 1


@pytest.mark.parametrize(
    "value",
    ["auto", {}, {"n_gpu_layers": "auto"}, {"n_gpu_layers": 3}, {"cache_type_k": "q8_0"}, {"split_mode": "none"}],
)
def test_a_placement_without_a_split_is_the_planners(value: Any) -> None:
    given = inventory()
    set_at(given, PLACEMENT, value)
    set_at(given, (*DEEP, "gpus"), "any")
    assert check_inventory(**given) == []
    del given["tiers"][1]["candidates"][0]["placement"]
    assert check_inventory(**given) == []


@pytest.mark.parametrize("value", [8192, "8192", {"min": 4096, "max": 8192}, {"min": 4096, "max": 4096}])
def test_a_context_is_a_number_or_a_range(value: Any) -> None:
    given = inventory()
    set_at(given, (*DEEP, "context"), value)
    assert check_inventory(**given) == []
    assert len(parse_inventory(given["gpus"], given["tiers"], given["models"])[1]) == 2


def test_cards_that_are_wrong_make_no_second_problem_of_any() -> None:
    given = inventory(gpus=[BIG | {"uuid": "edit-me"}, SMALL])
    given["tiers"] = [given["tiers"][1] | {"gpus": "any"}]
    (problem,) = check_inventory(**given)
    assert "uuid 'edit-me'" in problem
    given["gpus"] = with_placeholders(given["gpus"])
    assert check_inventory(**given) == []


def test_the_hosts_own_rpc_server_may_be_called_localhost() -> None:
    given = inventory(gpus=[BIG | {"rpc_endpoint": "localhost:50052"}, SMALL])
    (big, small), _, _, problems = parse_inventory(given["gpus"], given["tiers"], given["models"])
    assert (big.rpc_endpoint, small.rpc_endpoint) == ("127.0.0.1:50052", None)
    assert problems == []


def test_a_fallback_whose_own_entry_is_wrong_is_not_reported_as_missing_too() -> None:
    given = inventory()
    given["tiers"][0]["port"] = 80810
    set_at(given, (*DEEP, "fallback"), given["tiers"][0]["name"])
    (problem,) = check_inventory(**given)
    assert "port 80810" in problem


def test_all_problems_are_reported_at_once() -> None:
    given = inventory(engine="b1")
    given["tiers"][0]["port"] = 0
    given["tiers"][1]["candidates"][0]["model"] = "nope"
    problems = "\n".join(check_inventory(**given))
    assert all(said in problems for said in ("b1", "port", "nope"))


def test_without_cards_there_is_one_problem() -> None:
    (problem,) = check_inventory(**inventory(gpus=[]))
    assert problem.startswith("gpus is empty: list the cards of the host")


def test_no_problem_is_told_in_the_validators_own_words() -> None:
    wrong = [
        {"name": "A!", "port": "x", "context": 1, "gpus": 5, "candidates": [{"model": 1, "placement": 7}], "api": 3}
    ]
    said = "\n".join(check_inventory(**inventory(tiers=wrong)))
    assert len(said.splitlines()) == 7
    for word in ("Input", "valid", "constrained", "literal", "Value error", "pattern"):
        assert word not in said


def test_two_cards_of_one_name_must_be_named_by_uuid() -> None:
    given = inventory(gpus=[BIG, SMALL | {"name": BIG["name"]}])
    problems = check_inventory(**given)
    assert any("names 2 cards" in problem and BIG["uuid"] in problem for problem in problems)
    given["tiers"][0]["gpus"] = [BIG["uuid"]]
    given["tiers"][1]["gpus"] = [BIG["uuid"], SMALL["uuid"]]
    assert check_inventory(**given) == []


@pytest.mark.parametrize("residency", ["pinned", "on_demand"])
def test_a_tier_has_a_residency_and_may_have_a_fallback(residency: str) -> None:
    given = inventory()
    given["tiers"][1] |= {"residency": residency, "fallback": "fast", "name": "proxy"}
    assert check_inventory(**given) == []
    (first, second) = parse_inventory(given["gpus"], given["tiers"], given["models"])[1]
    assert (first.residency, first.fallback) == ("pinned", None)
    assert (second.residency, second.fallback) == (residency, "fast")


@pytest.mark.parametrize("third", ["fast", "deep"])
def test_a_fallback_is_one_step(third: str) -> None:
    given = inventory()
    fast, deep = given["tiers"]
    deep["fallback"] = "fast"
    given["tiers"].append(fast | {"name": "third", "port": 8082, "fallback": third})
    problems = check_inventory(**given)
    if third == "fast":
        assert problems == [], "one tier may stand in for several"
    else:
        (problem,) = problems
        assert problem.startswith("tier third: fallback 'deep' has a fallback of its own (fast): one step is all")


def test_what_is_published_of_a_model_ranks_it_by_math_500_before_math() -> None:
    source = {"model": "Tiny-Instruct", "source": "https://example.org/tiny"}
    both = ModelEntry.model_validate({**MODELS["tiny"], "published": {**source, "math_500": 93.9, "math": 80}})
    one = ModelEntry.model_validate({**MODELS["tiny"], "published": {**source, "math": 80}})
    assert [entry.published.score for entry in (both, one) if entry.published] == [93.9, 80]


@pytest.mark.parametrize(
    ("published", "said"),
    [
        ({"aime_2024": 69.7}, "it has neither math_500 nor math: give one of them, or leave `published` out"),
        ({"math": 120}, "model tiny: published.math 120 is wrong: expected 100"),
        ({"math": 80, "source": "a blog"}, "published.source 'a blog' is wrong: expected an address that begins with"),
    ],
)
def test_a_published_figure_that_cannot_be_is_named(published: dict[str, Any], said: str) -> None:
    whole = {"model": "Tiny-Instruct", "source": "https://example.org/tiny", **published}
    given = inventory()
    given["models"]["tiny"]["published"] = whole
    assert said in "\n".join(check_inventory(**given))
