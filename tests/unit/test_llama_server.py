from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import fake_tier
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checker import llama_server, tier
from checker.llama_server import Buffers, LlamaServer


@pytest.fixture
def played(tmp_path: Path) -> Iterator[fake_tier.Server]:
    with fake_tier.serving(tmp_path) as server:
        yield server


def client(played: fake_tier.Server) -> LlamaServer:
    return LlamaServer.of(played.spec)


def test_props_are_read_with_the_key(played: fake_tier.Server) -> None:
    props = client(played).props()

    assert (props.alias, props.ctx_size, props.build) == ("tiny", 4096, "b1-0c1e57098")
    assert props.model_path.endswith("/tiny.gguf")


def test_the_alias_comes_from_the_models_where_props_do_not_tell_it(played: fake_tier.Server) -> None:
    del played.props["model_alias"]

    assert client(played).props().alias == "of-models"


def test_nothing_on_the_port_is_unreachable(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(llama_server.UnreachableError, match="nothing answers at " + url):
        LlamaServer(url, "").health()


def test_503_is_loading(played: fake_tier.Server) -> None:
    played.loading_answers = 1
    with pytest.raises(llama_server.LoadingError, match="503"):
        client(played).health()
    client(played).health()


def test_a_wrong_key_names_its_file(played: fake_tier.Server, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong-key\n")
    with pytest.raises(llama_server.UnauthorizedError, match=f"refuses the key of {wrong}.*restart the tier"):
        LlamaServer(played.address, str(wrong)).props()


def test_a_key_that_cannot_be_read_or_is_empty_says_so(played: fake_tier.Server, tmp_path: Path) -> None:
    with pytest.raises(llama_server.UnauthorizedError, match=r"cannot be read.*No such file"):
        LlamaServer(played.address, str(tmp_path / "absent")).props()
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(llama_server.UnauthorizedError, match="is empty"):
        LlamaServer(played.address, str(tmp_path / "empty")).props()


def test_an_error_and_a_stranger_are_broken(played: fake_tier.Server) -> None:
    played.completion_status = 500
    with pytest.raises(llama_server.BrokenError, match="/completion answers 500"):
        client(played).complete("x", 1, 0, 1)
    played.props = {"hello": "world"}
    with pytest.raises(llama_server.BrokenError, match="/props lacks"):
        client(played).props()


def test_a_server_that_never_answers_is_broken(played: fake_tier.Server) -> None:
    played.waits_s = 1
    with pytest.raises(llama_server.BrokenError, match=r"no answer within 0\.1 s"):
        client(played).complete("x", 1, 0, 1, timeout_s=0.1)


def test_a_server_that_crashes_under_a_request_is_broken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def crash() -> None:
            connection, _ = listening.accept()
            connection.recv(1)
            connection.close()

        threading.Thread(target=crash, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(llama_server.BrokenError, match="the server crashed"):
            LlamaServer(url, "").health()


def test_a_proxy_of_the_environment_is_not_asked(played: fake_tier.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    client(played).health()


def test_a_completion_is_not_cached_and_counts_by_the_server(played: fake_tier.Server) -> None:
    generation = client(played).complete("Why?", 200, 0.7, 1)

    assert generation.text == fake_tier.TEXT
    assert (generation.prompt_tokens, generation.generated_tokens) == (8, 200)
    assert generation.generation_ms == pytest.approx(180)
    assert 0.2 <= generation.wall_s < 5
    assert played.asked[-1] == (
        "/completion",
        {"prompt": "Why?", "n_predict": 200, "temperature": 0.7, "seed": 1, "cache_prompt": False},
    )


def test_tokens_are_a_prompt_that_may_be_cached_and_answered_to_the_end(played: fake_tier.Server) -> None:
    tokens = client(played).tokenize("as many tokens as words")
    assert tokens == [0, 1, 2, 3, 4]
    generation = client(played).complete(tokens, 32, 0, 1, cached=True, whole=True)
    assert (generation.prompt_tokens, generation.generated_tokens) == (5, 32)
    body = played.asked[-1][1]
    assert (body["prompt"], body["cache_prompt"], body["ignore_eos"]) == (tokens, True, True)


def test_a_question_goes_plain_where_the_template_is_not_the_models_own(played: fake_tier.Server) -> None:
    assert client(played).as_prompt("Why?", "", "Why? Because") == "Why? Because"
    assert client(played).as_prompt("Why?", "...<|im_start|>...", "Why? Because") == "Why? Because"
    played.marker_tokens = 1
    assert client(played).as_prompt("Why?", "...<|im_start|>...", "Why? Because") == "<user>Why?<assistant>"
    assert client(played).as_prompt("Why?", "[INST]", "Why? Because") == "<user>Why?<assistant>"


DEVICES = fake_tier.spec().devices


def test_buffers_of_a_real_log_by_endpoint() -> None:
    logged = llama_server.buffers(map(fake_tier.as_jsonl, fake_tier.messages(fake_tier.LOG)), DEVICES)

    assert logged.devices == (Buffers(184.86, 20.0, 41.57), Buffers(50.3, 5.0, 33.0))
    assert logged.host == Buffers(170.0, 0.0, 6.0)
    assert (logged.others, logged.found) == ({}, True)


def test_buffers_of_cuda_devices_by_name() -> None:
    devices = (tier.Device("CUDA1", "GPU-1", "one", 4, None),)
    lines = [
        "0.00.343.496 I load_tensors:        CUDA1 model buffer size =  1050.30 MiB",
        "0.00.343.497 I load_tensors:    CUDA_Host model buffer size =    10.00 MiB",
        "0.00.343.498 I load_tensors:        CUDA0 model buffer size =     7.00 MiB",
        "0.00.836.597 I llama_memory_recurrent:      CUDA1 RS buffer size =     4.00 MiB",
    ]
    logged = llama_server.buffers(lines, devices)

    assert logged.devices == (Buffers(1050.3, 4.0, 0.0),)
    assert logged.host == Buffers(10.0, 0.0, 0.0)
    assert logged.others == {"CUDA0": Buffers(7.0, 0.0, 0.0)}


def test_matrices_whose_rows_lie_on_all_cards_are_shared_out_as_planned() -> None:
    """The figures of docs/evidence/gpu/2x-nvidia-h200/row.json."""
    devices = (
        tier.Device("CUDA0", "GPU-1", "one", 38, 6282.4),
        tier.Device("CUDA1", "GPU-2", "two", 11, 1866.0),
    )
    lines = [
        "load_tensors: CUDA0_Split model buffer size =  5910.00 MiB",
        "load_tensors: CUDA1_Split model buffer size =  2235.20 MiB",
        "load_tensors:       CUDA0 model buffer size =     2.50 MiB",
        "load_tensors:       CUDA1 model buffer size =     0.70 MiB",
    ]
    found = llama_server.buffers(lines, devices)
    assert [device.weights_mib for device in found.devices] == [
        pytest.approx(6282.4, abs=1),
        pytest.approx(1866, abs=1),
    ]
    assert sum(device.weights_mib for device in found.devices) == pytest.approx(8148.4, abs=0.1), "the engine's sum"
    assert found.others == {}
    assert set(llama_server.buffers(lines, (tier.Device("CUDA0", "GPU-1", "one", 38, None),)).others) >= {"CUDA0_Split"}


def test_a_log_without_buffers_is_told_apart_from_empty_devices() -> None:
    assert not llama_server.buffers(["Started llama.cpp tier deep.", "{broken", '{"msg": 3}', "{}"], DEVICES).found


NOISE = st.sampled_from(
    ["", "Started llama.cpp tier deep.", '{"type":"log","msg":null}', '{"x":1}', "{", "0.1 I load_tensors: done"]
)


@given(
    order=st.permutations(range(len(fake_tier.LOG))),
    noise=st.lists(NOISE, max_size=20),
    jsonl=st.booleans(),
)
def test_any_interleaving_and_either_format_gives_the_same_sums(
    order: list[int], noise: list[str], jsonl: bool
) -> None:
    def key(index: int) -> tuple[str, ...]:
        return fake_tier.LOG[index][1:3]

    # Lines of one place keep their order, as in any log: the last compute buffer counts.
    queues = {key(index): iter([i for i in range(len(order)) if key(i) == key(index)]) for index in order}
    shuffled = [fake_tier.LOG[next(queues[key(index)])] for index in order]
    style = fake_tier.as_jsonl if jsonl else fake_tier.as_text
    lines = [style(message) for message in fake_tier.messages(shuffled)]
    for position, line in enumerate(noise):
        lines.insert(position * 2, line)

    straight = llama_server.buffers(map(fake_tier.as_text, fake_tier.messages(fake_tier.LOG)), DEVICES)
    assert llama_server.buffers(lines, DEVICES) == straight


def test_the_card_behind_a_device_is_told_by_its_address() -> None:
    said = [
        "using device CUDA0 (NVIDIA GeForce RTX 3060 Ti) (0000:01:00.0) - 7900 MiB free",
        "using device CUDA1 (NVIDIA H100 80GB HBM3 (dev p0/v1)) (0000:0A:00.0-v1) - 39000 MiB free",
        "using device RPC0 (127.0.0.1:50052) (unknown id) - 24105 MiB free",
    ]
    lines = [fake_tier.as_jsonl(f"llama_prepare_model_devices: {line}") for line in said]
    assert llama_server.pci_bus_ids(lines) == {"CUDA0": "0000:01:00.0", "CUDA1": "0000:0a:00.0"}


def test_what_a_binary_was_compiled_for_is_told_by_its_log() -> None:
    line = "system_info: n_threads = 8 / 16 | CUDA : ARCHS = 520,610,860,1200 | USE_GRAPHS = 1 | CPU : SSE3 = 1 |"
    assert llama_server.compiled_for(["x", fake_tier.as_jsonl(line)]) == ("5.2", "6.1", "8.6", "12.0")
    assert llama_server.compiled_for(["system_info: n_threads = 2 | CPU : SSE3 = 1 |"]) == ()
