"""Each way in which a tier looks well and is not: what only asks /health and for a completion passes it, we do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fake_tier
import pytest
from fake_host import PID, UNIT, Host, lines

from checker.hardware import GpuProcess
from checker.measure import Depth, measure
from checker.ports import Listener
from checker.tier import Predicted, TierSpec
from checker.unix_http import UnixConnection
from checker.verdict import judge
from inventories import BIG, SMALL


@pytest.fixture
def server(tmp_path: Path) -> Iterator[fake_tier.Server]:
    with fake_tier.serving(tmp_path) as played:
        played.counted_s = played.waits_s = 0.02
        played.props["default_generation_settings"] = {"n_ctx": 1024}
        played.context = 1024
        yield played


def planned(server: fake_tier.Server) -> TierSpec:
    spec = server.spec
    return replace(
        spec, placement=replace(spec.placement, ctx_size=1024), predicted=Predicted(bound=20_000.0, expected=5_000.0)
    )


def naive(server: fake_tier.Server) -> bool:
    """Ask what a health check asks: is it up, and does it answer?"""
    key = {"Authorization": f"Bearer {fake_tier.KEY}"}
    connection = UnixConnection(str(server.socket), 5)
    connection.request("GET", "/health")
    up = connection.getresponse()
    up.read()
    connection.request("POST", "/completion", json.dumps({"prompt": "Why?"}), key)
    answer = connection.getresponse()
    content = json.loads(answer.read())["content"]
    connection.close()
    return up.status == answer.status == 200 and bool(content)


def test_a_good_tier_passes(host: Host, server: fake_tier.Server) -> None:
    spec = planned(server)
    evidence = measure(spec, [], Depth.WHOLE, None)
    assert judge(spec, evidence).reasons == ()
    assert evidence.thorough is not None
    assert evidence.thorough.full is not None
    assert evidence.thorough.full.context_tokens > 900
    assert [card.peak_mib for card in evidence.thorough.cards] == [262.5, 93.0]


def cpu_fallback(host: Host, server: fake_tier.Server) -> None:
    """No card is reached: the engine serves from the host's memory, and says that all layers are offloaded."""
    host.held = {uuid: [] for uuid in host.held}
    said = [("load_tensors", "CPU_Mapped", "model", 405.16), ("llama_kv_cache", "CPU", "KV", 25.0)]
    host.journal = lines([*fake_tier.messages(said), "load_tensors: offloaded 19/19 layers to GPU"])


def one_card_unused(host: Host, server: fake_tier.Server) -> None:
    everything = sum(process.used_mib for uuid in (BIG["uuid"], SMALL["uuid"]) for process in host.held[uuid][:1])
    host.held[BIG["uuid"]] = [GpuProcess(PID, everything)]
    host.held[SMALL["uuid"]] = []
    said = [(source, place.replace("50053", "50052"), kind, mib) for source, place, kind, mib in fake_tier.LOG]
    host.journal = lines(fake_tier.messages(said))


def kv_cache_in_host_memory(host: Host, server: fake_tier.Server) -> None:
    """--no-kv-offload: all weights are where they belong, and each token's attention is computed on the CPU."""
    on_cards = [entry for entry in fake_tier.LOG if entry[2] != "KV"]
    host.journal = lines(fake_tier.messages([*on_cards, ("llama_kv_cache", "CPU", "KV", 25.0)]))


def cards_swapped(host: Host, server: fake_tier.Server) -> None:
    """The log is as planned, by the engine's own names; the bytes lie the other way round."""
    host.held[BIG["uuid"]], host.held[SMALL["uuid"]] = host.held[SMALL["uuid"]], host.held[BIG["uuid"]]


def wrong_model(host: Host, server: fake_tier.Server) -> None:
    server.props["model_path"] = "/var/lib/llama-tiers/models/cdcdcdcdcdcd/other.gguf"


def another_model_in_place_of_the_file(host: Host, server: fake_tier.Server) -> None:
    """One of the same shape, copied over it: path, name and sizes are as planned."""
    host.verified = None


def stranger_behind_the_port(host: Host, server: fake_tier.Server) -> None:
    """Another server that tells the very same of itself, while the unit's own process lives."""
    host.listeners = (Listener(815, "llama-server", "session-1.scope"),)


def smaller_context(host: Host, server: fake_tier.Server) -> None:
    server.props["default_generation_settings"] = {"n_ctx": 512}
    server.context = 512


def smaller_context_than_it_tells(host: Host, server: fake_tier.Server) -> None:
    server.context = 900


def garbage(host: Host, server: fake_tier.Server) -> None:
    server.text = "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@"


def dies_at_the_first_long_prompt(host: Host, server: fake_tier.Server) -> None:
    server.dies_at = 600


def out_of_memory_at_the_first_long_prompt(host: Host, server: fake_tier.Server) -> None:
    """It lives on, and the driver has put what did not fit elsewhere: the card holds far more than was planned."""

    def grow(tokens: int) -> None:
        if tokens > 600:
            host.held[BIG["uuid"]] = [GpuProcess(PID, 262.5 + 400)]

    server.on_prompt = grow


def clock_that_disagrees(host: Host, server: fake_tier.Server) -> None:
    server.works_s, server.told_share = 0.5, 0.1


def clock_that_is_half_as_fast_again(host: Host, server: fake_tier.Server) -> None:
    """On a tier whose requests take a third of a second."""
    server.works_s, server.told_share = 0.3, 1 / 1.5


def clock_that_is_right_once(host: Host, server: fake_tier.Server) -> None:
    """The median of three is that of the two which are not."""
    server.works_s, asked = 0.5, iter(range(1000))

    def tell(tokens: int) -> None:
        server.told_share = 1.0 if next(asked) % 3 == 1 else 0.1

    server.on_prompt = tell


def faster_than_memory_allows(host: Host, server: fake_tier.Server) -> None:
    """Its clock is right: it is a smaller model than the one that it tells of."""
    server.works_s = 0.002


FOOLED = [
    (cpu_fallback, [f"holds nothing on {BIG['uuid']}", f"holds nothing on {SMALL['uuid']}", "layers fell to the CPU"]),
    (one_card_unused, [f"holds nothing on {SMALL['uuid']}", "0.0 MiB of weights on " + SMALL["uuid"]]),
    (
        kv_cache_in_host_memory,
        [
            f"put 0.0 MiB of KV cache on {BIG['uuid']} ({BIG['name']}), planned are 20.0 MiB (25.0 MiB of it",
            f"of KV cache on {SMALL['uuid']}",
        ],
    ),
    (cards_swapped, [f"holds 93.0 MiB on {BIG['uuid']}", "the driver has moved memory off the card"]),
    (wrong_model, ["serves /var/lib/llama-tiers/models/cdcdcdcdcdcd/other.gguf instead of"]),
    (another_model_in_place_of_the_file, ["tiny.gguf is not, by size and time, what was fetched with sha256 abab"]),
    (
        stranger_behind_the_port,
        ["llama-server (pid 815, session-1.scope) listens on port 9: what answers there is not the tier"],
    ),
    (smaller_context, ["serves a context of 512 tokens, 1024 were promised"]),
    (smaller_context_than_it_tells, ["answers 400", "exceeds the available context size"]),
    (garbage, ["the completion is not language"]),
    (dies_at_the_first_long_prompt, ["closed the connection without an answer: the server crashed"]),
    (out_of_memory_at_the_first_long_prompt, [f"holds 662.5 MiB on {BIG['uuid']}", "at its peak"]),
    (clock_that_disagrees, ["with a short context the server counts 0.05 s at best", "cannot be believed"]),
    (clock_that_is_half_as_fast_again, ["with a short context the server counts 0.20 s at best", "cannot be believed"]),
    (clock_that_is_right_once, ["with a short context the server counts 0.05 s mostly", "cannot be believed"]),
    (faster_than_memory_allows, ["the memory of its cards cannot give more than 20000.0"]),
]


@pytest.mark.parametrize(("fault", "said"), FOOLED, ids=[fault.__name__ for fault, _ in FOOLED])
def test_what_fools_a_health_check_does_not_fool_us(
    host: Host, server: fake_tier.Server, fault: Callable[[Host, fake_tier.Server], None], said: list[str]
) -> None:
    fault(host, server)
    assert naive(server)
    spec = planned(server)
    verdict = judge(spec, measure(spec, [], Depth.WHOLE, None))
    assert verdict.verdict == "fail"
    assert [part for part in said if not any(part in reason for reason in verdict.reasons)] == [], verdict.reasons
    assert all(reason.startswith("deep: ") for reason in verdict.reasons)


def test_a_swap_of_even_halves_is_told_by_the_addresses_of_the_cards(host: Host, server: fake_tier.Server) -> None:
    """With as much on one card as on the other, memory tells nothing; the engine's log names the cards by address."""
    assert isinstance(host.journal, list)
    host.journal += lines(
        [
            "llama_prepare_model_devices: using device RPC0 (NVIDIA GeForce GTX 1060 3GB) (0000:02:00.0) - 2950 MiB",
            "llama_prepare_model_devices: using device RPC1 (NVIDIA GeForce RTX 3060 Ti) (0000:01:00.0) - 7900 MiB",
        ]
    )
    assert naive(server)
    spec = planned(server)
    reasons = judge(spec, measure(spec, [], Depth.QUICK, None)).reasons
    assert [UNIT in reason and "the cards are swapped" in reason for reason in reasons] == [True, True]


@pytest.mark.parametrize("fault", [smaller_context_than_it_tells, dies_at_the_first_long_prompt])
def test_what_failed_to_be_measured_is_not_forgotten_at_the_next_verification(
    host: Host, server: fake_tier.Server, fault: Callable[[Host, fake_tier.Server], None]
) -> None:
    """The server lives on and answers small questions, in the same run of its unit."""
    fault(host, server)
    spec = planned(server)
    first = measure(spec, [], Depth.AUTO, None)
    assert judge(spec, first).verdict == "fail"
    assert first.failures == first.problems, "the server's own, not what could not be read"
    again = measure(spec, [json.loads(json.dumps(first.to_json()))], Depth.AUTO, None)
    assert judge(spec, again).verdict == "fail"
