"""A tier split over two cards, and a server over real HTTP on a unix socket that plays its llama-server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import pytest

from checker import tier
from inventories import BIG, SMALL

KEY = "right-key"
COMMIT = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"
TEXT = "A quantum computer works with qubits, which can be in two states at the same time, unlike a classical bit."

LOG = [
    ("load_tensors", "CPU_Mapped", "model", 170.00),
    ("load_tensors", "RPC0[127.0.0.1:50052]", "model", 184.86),
    ("load_tensors", "RPC0[127.0.0.1:50053]", "model", 50.30),
    ("llama_context", "CPU", "output", 1.00),
    ("llama_kv_cache", "RPC0[127.0.0.1:50052]", "KV", 8.00),
    ("llama_kv_cache", "RPC0[127.0.0.1:50053]", "KV", 2.00),
    ("llama_kv_cache", "RPC0[127.0.0.1:50052]", "KV", 12.00),
    ("llama_kv_cache", "RPC0[127.0.0.1:50053]", "KV", 3.00),
    ("sched_reserve", "RPC0[127.0.0.1:50052]", "compute", 52.84),
    ("sched_reserve", "RPC0[127.0.0.1:50052]", "compute", 41.57),
    ("sched_reserve", "RPC0[127.0.0.1:50053]", "compute", 33.00),
    ("sched_reserve", "CPU", "compute", 5.00),
]


def messages(log: list[tuple[str, str, str, float]]) -> list[str]:
    return [f"{source}: {place:>10} {kind} buffer size = {mib:8.2f} MiB" for source, place, kind, mib in log]


def as_jsonl(message: str) -> str:
    return json.dumps({"type": "log", "time": 3735021, "level": "info", "msg": message + "\n"})


def as_text(message: str) -> str:
    return f"0.00.343.496 I {message}"


def spec(key_file: str = "/nonexistent", **changes: Any) -> tier.TierSpec:
    """Return the spec of tier `deep`; `changes` replace whole fields."""
    whole: dict[str, Any] = {
        "name": "deep",
        "bind": "127.0.0.1",
        "port": 9,
        "key_file": key_file,
        "model": tier.Model("tiny", "/var/lib/llama-tiers/models/abababababab/tiny.gguf", "ab" * 32),
        "engine": tier.Engine(COMMIT, "/opt/llama-tiers/releases/one"),
        "placement": tier.Placement("layer", (13, 6), 999, 4096, "f16", "f16", 512, "on"),
        "devices": (
            tier.Device("RPC0", BIG["uuid"], BIG["name"], 13, 184.86, "127.0.0.1:50052", 20.0, 41.57, 0.0),
            tier.Device("RPC1", SMALL["uuid"], SMALL["name"], 6, 50.30, "127.0.0.1:50053", 5.0, 33.0, 0.0),
        ),
        "host_weights_mib": 170.0,
        "criteria": tier.Criteria(5, 120),
        "argv": ("llama-server", "--parallel", "1"),
        "environment": {},
    }
    return tier.TierSpec(**{**whole, **changes})


@dataclass
class Server:
    """What the server plays; every field may be changed while it runs."""

    socket: Path
    key_file: str
    loading_answers: int = 0
    health_status: int = 200
    props: dict[str, Any] = field(
        default_factory=lambda: {
            "model_path": "/var/lib/llama-tiers/models/abababababab/tiny.gguf",
            "model_alias": "tiny",
            "build_info": f"b1-{COMMIT[:9]}",
            "default_generation_settings": {"n_ctx": 4096},
            "chat_template": "<|im_start|>",
        }
    )
    marker_tokens: int = 6
    text: str = TEXT
    tokens: int = 200
    counted_s: float = 0.2
    waits_s: float = 0.2
    completion_status: int = 200
    # Of prompts that come as tokens, which are long: how many fit, at how many it dies, how long each takes, what share
    # of that time it tells.
    context: int = 4096
    dies_at: int = 10**9
    works_s: float = 0.01
    busy: list[bool] = field(default_factory=lambda: [False, False])
    told_share: float = 1.0
    on_prompt: Callable[[int], None] = lambda tokens: None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def spec(self) -> tier.TierSpec:
        return spec(self.key_file)

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    def answer(self, path: str, body: dict[str, Any], key: str) -> tuple[int, Any]:
        self.asked.append((path, body))
        if path == "/health":
            if self.loading_answers > 0:
                self.loading_answers -= 1
                return 503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
            return self.health_status, {"status": "ok"}
        if key != f"Bearer {KEY}":
            return 401, {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}}
        if path == "/props":
            return 200, self.props
        if path == "/slots":
            return 200, [{"id": place, "is_processing": busy} for place, busy in enumerate(self.busy)]
        if path == "/v1/models":
            return 200, {"data": [{"id": "of-models"}]}
        if path == "/tokenize" and body.get("add_special"):
            return 200, {"tokens": list(range(len(body["content"].split())))}
        if path == "/tokenize":
            return 200, {"tokens": [1] * self.marker_tokens}
        if path == "/apply-template":
            return 200, {"prompt": f"<user>{body['messages'][0]['content']}<assistant>"}
        if path == "/completion" and isinstance(body["prompt"], list):
            return self.answer_long(len(body["prompt"]), body["n_predict"])
        if path == "/completion":
            time.sleep(self.waits_s)
            timings = {
                "prompt_n": 8,
                "prompt_ms": self.counted_s * 100,
                "predicted_n": self.tokens,
                "predicted_ms": self.counted_s * 900,
            }
            return self.completion_status, {"content": self.text, "timings": timings}
        return 404, {"error": {"message": "File Not Found", "code": 404}}

    def answer_long(self, tokens: int, answer: int) -> tuple[int, dict[str, Any]]:
        self.on_prompt(tokens)
        if tokens >= self.dies_at:
            raise ConnectionAbortedError
        if tokens + answer > self.context:
            return 400, {"error": {"message": "the request exceeds the available context size", "code": 400}}
        time.sleep(self.works_s)
        told_ms = self.works_s * self.told_share * 500
        timings = {"prompt_n": tokens, "prompt_ms": told_ms, "predicted_n": answer, "predicted_ms": told_ms}
        return 200, {"content": self.text, "timings": timings}


@contextmanager
def serving(directory: Path) -> Iterator[Server]:
    """Serve tier `deep` on its socket until the block ends; meanwhile the sockets of tiers lie in the directory."""
    key_file = directory / "key"
    key_file.write_text(KEY + "\n")
    played = Server(directory / "deep.sock", str(key_file))

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, document = played.answer(
                    self.path, json.loads(body or b"{}"), self.headers.get("Authorization") or ""
                )
            except ConnectionAbortedError:
                # As a server that is killed: the connection ends without an answer.
                return
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            # A client whose patience ended has hung up.
            with suppress(BrokenPipeError):
                self.wfile.write(data)

        do_GET = do_POST = _answer

        def log_message(self, *arguments: Any) -> None:
            pass

    class Listening(ThreadingUnixStreamServer):
        daemon_threads = True
        request_queue_size = 64

    server = Listening(str(played.socket), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tier, "socket_of", lambda name: str(directory / f"{name}.sock"))
            yield played
    finally:
        server.shutdown()
        server.server_close()
